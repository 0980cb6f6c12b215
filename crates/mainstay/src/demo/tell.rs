//! How the demo tells what it does: a fact to a line, or a JSON object to a line.

use crate::ui::{self, Table, Tone};
use serde_json::{Value, json};
use std::fmt::Display;
use std::time::Duration;

/// Tells the story, or keeps silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Teller {
    /// For people.
    People,
    /// One JSON object for each fact.
    Json,
    /// Nothing.
    Silent,
}

impl Teller {
    /// A heading.
    pub(crate) fn heading(self, text: impl Display) {
        if self == Self::People {
            ui::line("");
            ui::line(Tone::Strong.paint(text));
        }
    }

    /// A fact with a name before it.
    pub(crate) fn fact(self, name: &str, text: impl Display, tone: Tone) {
        match self {
            Self::People => ui::line(format_args!(
                "  {}  {}",
                Tone::Dim.paint(format_args!("{name:<9}")),
                tone.paint(text)
            )),
            Self::Json => ui::json(&json!({ "fact": name, "text": text.to_string() })),
            Self::Silent => {}
        }
    }

    /// Something that happened, with the time since the kill where there was one.
    pub(crate) fn happened(
        self,
        after: Option<Duration>,
        text: impl Display,
        tone: Tone,
        data: &Value,
    ) {
        match self {
            Self::People => {
                let time = after.map_or_else(String::new, |d| format!("+{:.1} s", d.as_secs_f64()));
                ui::line(format_args!(
                    "  {}  {}",
                    Tone::Strong.paint(format_args!("{time:>9}")),
                    tone.paint(text)
                ));
            }
            Self::Json => {
                ui::json(
                    &json!({ "after_s": after.map(|d| d.as_secs_f64()), "text": text.to_string(), "data": data }),
                );
            }
            Self::Silent => {}
        }
    }

    /// A reason below what happened.
    pub(crate) fn why(self, text: &str) {
        if self == Self::People && !text.is_empty() {
            ui::line(Tone::Dim.paint(format_args!("             {text}")));
        }
    }

    /// A table.
    pub(crate) fn table(self, table: &Table, data: &Value) {
        match self {
            Self::People => table.print(),
            Self::Json => ui::json(data),
            Self::Silent => {}
        }
    }

    /// A plain line for people.
    pub(crate) fn line(self, text: impl Display) {
        if self == Self::People {
            ui::line(text);
        }
    }
}
