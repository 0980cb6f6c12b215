//! The names of an enum's values, as its own deserialiser knows them.
//!
//! Handed a name that no enum has, a derived deserialiser answers with the list of those it has. So
//! the lists here are never written down twice, and a new value is in them by itself.

use super::Group;
use mainstay_core::event::EventKind;
use serde::Serialize;
use serde::de::value::{MapDeserializer, StrDeserializer};
use serde::de::{DeserializeOwned, Error, IntoDeserializer};
use std::fmt::Display;

/// The answer to a name that does not exist.
#[derive(Debug)]
struct Known(&'static [&'static str]);

impl std::fmt::Display for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "known are {}", self.0.join(", "))
    }
}

impl std::error::Error for Known {}

impl Error for Known {
    fn custom<T: Display>(_: T) -> Self {
        Self(&[])
    }
    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self(expected)
    }
}

const NOBODY: &str = "no such name";

/// Names of the values of an enum without fields.
pub(super) fn names_of<T: DeserializeOwned>() -> &'static [&'static str] {
    let text: StrDeserializer<'_, Known> = NOBODY.into_deserializer();
    T::deserialize(text).err().map_or(&[], |known| known.0)
}

/// Names of the kinds of an enum that is tagged with `kind`.
pub(super) fn kinds_of<T: DeserializeOwned>() -> &'static [&'static str] {
    let fields = [("kind", NOBODY)].into_iter();
    let map: MapDeserializer<'_, _, Known> = MapDeserializer::new(fields);
    T::deserialize(map).err().map_or(&[], |known| known.0)
}

/// The name of a value of an enum without fields.
fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

/// The name of an event's kind, and what else of it is counted.
pub(super) fn name_of(kind: &EventKind) -> (String, Option<(Group, String)>) {
    let fields = serde_json::to_value(kind).unwrap_or_default();
    let name = fields.get("kind").and_then(serde_json::Value::as_str);
    let name = name.unwrap_or_default().to_owned();
    let cause = match kind {
        EventKind::HostState { from, to, .. } => {
            Some((Group::Verdict, format!("{} -> {}", word(from), word(to))))
        }
        EventKind::VmStopped { reason, .. } => Some((Group::Stop, word(reason))),
        EventKind::RestartWaiting { cause, .. } => Some((Group::Waiting, word(cause))),
        EventKind::ConfigIssue { cause, .. } => Some((Group::Issue, word(cause))),
        EventKind::ElectionStarted { cause, .. } => Some((Group::Election, word(cause))),
        EventKind::PrimaryAbdicated { cause, .. } => Some((Group::Abdication, word(cause))),
        _ => None,
    };
    (name, cause)
}
