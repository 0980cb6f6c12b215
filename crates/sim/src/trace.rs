//! What happened in a run, for people and programs.

use crate::clock::{MS, Nanos};
use crate::expect::clock_text;
use mainstay_core::event::EventKind;
use serde_json::{Map, Value};

/// What an entry is about.
#[derive(Clone, PartialEq, Debug)]
pub enum Body {
    /// An event, reported by an agent or by the world.
    Event(EventKind),
    /// A fault or a user's wish from the scenario.
    Fault {
        /// Its name.
        what: &'static str,
        /// Its arguments.
        arguments: Vec<(&'static str, Value)>,
    },
}

/// One line of a trace.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// True time since the start of the world.
    pub at: Nanos,
    /// What.
    pub body: Body,
    /// What it rests on.
    pub why: String,
}

impl Entry {
    /// The fields as JSON, with `kind`.
    #[must_use]
    pub fn fields(&self) -> Map<String, Value> {
        match &self.body {
            Body::Event(kind) => match serde_json::to_value(kind) {
                Ok(Value::Object(map)) => map,
                _ => Map::new(),
            },
            Body::Fault { what, arguments } => {
                let mut map = Map::new();
                map.insert("kind".into(), Value::from("fault"));
                map.insert("do".into(), Value::from(*what));
                map.extend(arguments.iter().map(|(k, v)| ((*k).into(), v.clone())));
                map
            }
        }
    }

    /// Time from zero, in nanoseconds.
    #[must_use]
    pub fn since(&self, zero: Nanos) -> i64 {
        let signed = |t: Nanos| i64::try_from(t).unwrap_or(i64::MAX);
        signed(self.at) - signed(zero)
    }

    /// The entry as one line of JSON.
    #[must_use]
    pub fn json(&self, zero: Nanos) -> String {
        let body = match &self.body {
            // Keeps the fields in the order in which the event declares them.
            Body::Event(kind) => serde_json::to_string(kind).unwrap_or_else(|_| "{}".into()),
            Body::Fault { .. } => {
                let fields = self.fields();
                let mut text = String::from("{\"kind\":\"fault\"");
                for (key, value) in fields.iter().filter(|(k, _)| *k != "kind") {
                    text.push_str(&format!(",{}:{value}", Value::from(key.as_str())));
                }
                text.push('}');
                text
            }
        };
        let inner = body
            .get(1..body.len().saturating_sub(1))
            .unwrap_or_default();
        let t_ms = self.since(zero).div_euclid(i64::try_from(MS).unwrap_or(1));
        let why = if self.why.is_empty() {
            String::new()
        } else {
            format!(",\"why\":{}", Value::from(self.why.as_str()))
        };
        format!("{{\"type\":\"event\",\"t_ms\":{t_ms},{inner}{why}}}")
    }

    /// The entry as people read it.
    #[must_use]
    pub fn text(&self, zero: Nanos) -> String {
        let fields = self.fields();
        let mut text = format!("{:>10}  ", clock_text(self.since(zero)));
        let word = |v: &Value| v.as_str().map_or_else(|| v.to_string(), Into::into);
        let title = match &self.body {
            Body::Fault { what, .. } => format!("! {what}"),
            Body::Event(_) => fields.get("kind").map(word).unwrap_or_default(),
        };
        text.push_str(&format!("{title:<22}"));
        for (key, value) in fields
            .iter()
            .filter(|(k, _)| !matches!(k.as_str(), "kind" | "do"))
        {
            text.push_str(&format!(" {key}={}", word(value)));
        }
        if !self.why.is_empty() {
            text.push_str(&format!("  ({})", self.why));
        }
        text
    }
}
