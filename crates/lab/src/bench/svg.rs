//! Failovers as a picture: a strip for each phase, a dot for each VM of each run.

use super::{PHASES, Percentiles, Phase, Times};
use std::fmt::Write as _;

const LEFT: f64 = 110.0;
const WIDTH: f64 = 760.0;
const RIGHT: f64 = 280.0;
const TOP: f64 = 58.0;
const STRIP: f64 = 64.0;
/// Dots of a strip lie on so many lines, in turn, so that they do not cover each other.
const LINES: usize = 12;
/// Marks of a scale, about.
const MARKS: f64 = 10.0;
const DOT: &str = "#2f7d4f";
const MIDDLE: &str = "#b3261e";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// A round number of seconds between marks.
fn step(span: f64) -> f64 {
    let rough = (span / MARKS).max(1e-3);
    let power = 10_f64.powf(rough.log10().floor());
    let digit = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|d| d * power >= rough);
    digit.unwrap_or(10.0) * power
}

/// The picture of all runs.
#[must_use]
pub fn strips(title: &str, runs: &[Vec<Times>]) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = draw(title, runs, &mut out);
    out
}

#[expect(
    clippy::cast_precision_loss,
    reason = "coordinates of a few strips and lines"
)]
fn draw(title: &str, runs: &[Vec<Times>], out: &mut String) -> std::fmt::Result {
    let values = |phase: Phase| -> Vec<f64> {
        let all = runs.iter().flatten();
        all.filter_map(|t| t.seconds(phase)).collect()
    };
    let all = Percentiles::of(PHASES.into_iter().flat_map(values));
    let (low, high) = all.map_or((0.0, 1.0), |p| (p.min.min(0.0), p.max.max(0.1)));
    let step = step(high - low);
    let (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
    let x = |seconds: f64| LEFT + (seconds - low) / (high - low) * WIDTH;
    let bottom = TOP + STRIP * PHASES.len() as f64;
    let (width, height) = (LEFT + WIDTH + RIGHT, bottom + 44.0);
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"26\" font-size=\"16\">{}</text>",
        escape(title)
    )?;
    let marks = ((high - low) / step).round();
    let mut mark = 0.0;
    while mark <= marks {
        let at = low + mark * step;
        writeln!(
            out,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP:.0}\" y2=\"{bottom:.0}\" stroke=\"#e6e6e6\"/>\
             <text x=\"{0:.1}\" y=\"{1:.0}\" text-anchor=\"middle\" fill=\"#555555\">{2} s</text>",
            x(at),
            bottom + 18.0,
            (at * 1000.0).round() / 1000.0
        )?;
        mark += 1.0;
    }
    for (row, phase) in PHASES.into_iter().enumerate() {
        let top = TOP + STRIP * row as f64;
        let values = values(phase);
        writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{top:.0}\" y2=\"{top:.0}\" stroke=\"#cccccc\"/>\
             <text x=\"16\" y=\"{:.0}\">{}</text>",
            LEFT + WIDTH,
            top + STRIP / 2.0 + 4.0,
            phase.name()
        )?;
        for (n, value) in values.iter().enumerate() {
            let y = top + 8.0 + (n % LINES) as f64 * (STRIP - 16.0) / (LINES - 1) as f64;
            writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"2\" fill=\"{DOT}\" fill-opacity=\"0.45\"/>",
                x(*value)
            )?;
        }
        let Some(p) = Percentiles::of(values) else {
            continue;
        };
        writeln!(
            out,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1:.0}\" y2=\"{2:.0}\" stroke=\"{MIDDLE}\" stroke-width=\"1.5\"/>\
             <text x=\"{3:.0}\" y=\"{4:.0}\" fill=\"#333333\">median {5:.3} s, p99 {6:.3} s, n = {7}</text>",
            x(p.median),
            top + 3.0,
            top + STRIP - 3.0,
            LEFT + WIDTH + 16.0,
            top + STRIP / 2.0 + 4.0,
            p.median,
            p.p99,
            p.count
        )?;
    }
    writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{:.0}\" fill=\"#555555\">a dot for each VM of each run; the line is the median</text>\n</svg>",
        bottom + 36.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round() {
        for (span, expected) in [(7.1, 1.0), (2.8, 0.5), (0.9, 0.1), (21.0, 5.0)] {
            assert!(
                (step(span) - expected).abs() < 1e-9,
                "{span}: {}",
                step(span)
            );
        }
    }

    #[test]
    fn without_a_value_there_is_a_picture_too() {
        let svg = strips("<none>", &[]);
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("&lt;none&gt;") && svg.contains("overhead"));
    }
}
