//! What is printed: colour and borders on a terminal, plain aligned columns elsewhere.

use anstyle::{AnsiColor, Style};
use comfy_table::{
    Attribute, Cell as TableCell, Color, ContentArrangement, ContentLineStyle, LineStyle,
    Table as Comfy, TableStyle,
};
use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How a text is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Tone {
    /// As any other.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Weaker than it should be, or in change.
    Warn,
    /// Broken.
    Bad,
    /// Beside the point.
    Dim,
    /// A heading, or a time.
    Strong,
}

impl Tone {
    /// The terminal's style for it.
    pub(crate) fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::Good => AnsiColor::Green.on_default(),
            Self::Warn => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default().bold(),
            Self::Dim => Style::new().dimmed(),
            Self::Strong => Style::new().bold(),
        }
    }

    /// The text in this tone; the codes vanish where no terminal shows them.
    pub(crate) fn paint(self, text: impl fmt::Display) -> String {
        let style = self.style();
        format!("{style}{text}{style:#}")
    }
}

/// Prints a line on standard output. A reader that has gone away (`| head`) is remembered ([`closed`]).
pub(crate) fn line(text: impl fmt::Display) {
    let mut out = anstream::stdout();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        CLOSED.store(true, Ordering::SeqCst);
    }
}

static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether the reader of standard output has gone away.
pub(crate) fn closed() -> bool {
    CLOSED.load(Ordering::SeqCst)
}

/// Prints a value as JSON: one object on one line.
pub(crate) fn json(value: &impl serde::Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => line(text),
        Err(error) => line(format_args!("{{\"error\":\"{error}\"}}")),
    }
}

/// Whether standard output is a terminal.
pub(crate) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Columns of the terminal; 100 where it does not say.
fn terminal_width() -> u16 {
    let said = Comfy::new().width().unwrap_or_default();
    if said < WIDTH_MIN {
        WIDTH_DEFAULT
    } else {
        said
    }
}

/// Narrower than this no terminal is; one that says so does not know.
const WIDTH_MIN: u16 = 20;
const WIDTH_DEFAULT: u16 = 100;
/// Below this a column of sentences leaves no room for the others.
const WIDTH_FOR_SENTENCES: u16 = 130;

/// Whether a table has room for a column of sentences. A file or a pipe always has.
pub(crate) fn room_for_sentences() -> bool {
    !is_terminal() || terminal_width() >= WIDTH_FOR_SENTENCES
}

/// Light lines, none between the rows.
const BORDERS: TableStyle = TableStyle::new()
    .top_border(LineStyle::new('┌', '─', '┬', '┐'))
    .header_lines(ContentLineStyle::new('│', '│', '│'))
    .header_separator(LineStyle::new('├', '─', '┼', '┤'))
    .content_lines(ContentLineStyle::new('│', '│', '│'))
    .bottom_border(LineStyle::new('└', '─', '┴', '┘'));

/// One cell of a table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell in a tone.
    pub(crate) fn toned(text: impl fmt::Display, tone: Tone) -> Self {
        Self {
            text: text.to_string(),
            tone,
        }
    }

    fn for_terminal(&self) -> TableCell {
        let cell = TableCell::new(&self.text);
        match self.tone {
            Tone::Plain => cell,
            Tone::Good => cell.fg(Color::Green),
            Tone::Warn => cell.fg(Color::Yellow),
            Tone::Bad => cell.fg(Color::Red),
            Tone::Dim => cell.add_attribute(Attribute::Dim),
            Tone::Strong => cell.add_attribute(Attribute::Bold),
        }
    }
}

impl<T: fmt::Display> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: text.to_string(),
            tone: Tone::Plain,
        }
    }
}

/// A table.
#[derive(Debug, Default)]
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(header: &[&'static str]) -> Self {
        Self {
            header: header.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Leaves out the last column.
    pub(crate) fn without_last(mut self) -> Self {
        self.header.pop();
        for row in &mut self.rows {
            row.pop();
        }
        self
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Prints it.
    pub(crate) fn print(&self) {
        if is_terminal() {
            line(self.bordered())
        } else {
            line(self.plain().trim_end())
        }
    }

    fn bordered(&self) -> String {
        let mut table = Comfy::new();
        table
            .load_style(BORDERS)
            .set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(
            self.header
                .iter()
                .map(|h| TableCell::new(h).add_attribute(Attribute::Bold)),
        );
        table.set_width(terminal_width());
        for row in &self.rows {
            table.add_row(row.iter().map(Cell::for_terminal));
        }
        table.to_string()
    }

    fn plain(&self) -> String {
        let mut widths: Vec<usize> = self.header.iter().map(|h| h.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let mut text = String::new();
        let header: Vec<String> = self.header.iter().map(|h| h.to_uppercase()).collect();
        push_row(&mut text, &widths, header.iter().map(String::as_str));
        for row in &self.rows {
            push_row(&mut text, &widths, row.iter().map(|c| c.text.as_str()));
        }
        text
    }
}

fn push_row<'a>(text: &mut String, widths: &[usize], cells: impl Iterator<Item = &'a str>) {
    let mut row = String::new();
    for (width, cell) in widths.iter().zip(cells) {
        let width = *width;
        row.push_str(&format!("{cell:<width$}  "));
    }
    text.push_str(row.trim_end());
    text.push('\n');
}

/// Seconds with one digit, such as `6.4 s`.
pub(crate) fn seconds(d: Duration) -> String {
    format!("{:.1} s", d.as_secs_f64())
}

/// Milliseconds as a person reads them.
pub(crate) fn millis(ms: u64) -> String {
    if ms < 1000 {
        format!("{ms} ms")
    } else {
        seconds(Duration::from_millis(ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_columns_are_aligned_and_end_without_blanks() {
        let mut table = Table::new(&["vm", "state"]);
        table.row(vec!["vm-100".into(), Cell::toned("running", Tone::Good)]);
        table.row(vec!["vm-1".into(), "".into()]);
        assert_eq!(table.plain(), "VM      STATE\nvm-100  running\nvm-1\n");
    }
}
