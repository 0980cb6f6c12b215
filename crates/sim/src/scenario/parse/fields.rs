//! Which fields each kind of event has and which words they take, for expectations that name them.
//!
//! What agents report is asked of the core's own deserialiser: handed an event without fields, it names
//! the first that it misses, and handed a word that an enum does not have, it names those that it has.
//! So no list is written twice. What is written here is only what the format of scenarios has beyond it.

use super::super::fault::{EVENTS, EventDoc};
use mainstay_core::event::EventKind;
use serde::de::value::MapDeserializer;
use serde::de::{Deserializer, Error, IntoDeserializer, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::LazyLock;

/// What a field can hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    /// The id of a host, a VM or a datastore, by the field's name.
    Id,
    /// A sentence, or any other text.
    Text,
    /// A number.
    Number,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Whatever the event's argument takes.
    Any,
}

type Fields = BTreeMap<&'static str, Shape>;
type Beyond = &'static [(&'static str, Shape)];

/// A fault or a wish of the scenario itself, as the output has it.
pub(super) const FAULT: &str = "fault";

/// What the format has beyond what agents report today: fields that it gives to several kinds in one
/// breath, and kinds that belong to parts of the product still to come.
const MORE: &[(&[&str], Beyond)] = &[
    (
        &[
            "vm.restart.requested",
            "vm.restart.failed",
            "vm.restart.waiting",
            "vm.restart.abandoned",
        ],
        &[
            ("host", Shape::Id),
            ("attempt", Shape::Number),
            ("reason", Shape::Text),
        ],
    ),
    (
        &["lock.acquired", "lock.lost", "lock.released"],
        &[("from", Shape::Id)],
    ),
    (&["vm.started"], &[("reason", Shape::Text)]),
    (
        &["vm.migrated"],
        &[
            ("vm", Shape::Id),
            ("host", Shape::Id),
            ("reason", Shape::Text),
        ],
    ),
    (
        &["fence.requested", "fence.confirmed", "fence.failed"],
        &[
            ("host", Shape::Id),
            ("by", Shape::Id),
            ("reason", Shape::Text),
        ],
    ),
    (
        &["admission.refused"],
        &[("vm", Shape::Id), ("reason", Shape::Text)],
    ),
];

/// Every kind of event that an expectation may name, with its fields.
pub(super) static KINDS: LazyLock<BTreeMap<&'static str, Fields>> = LazyLock::new(|| {
    let mut kinds: BTreeMap<&'static str, Fields> = BTreeMap::new();
    for kind in kinds_of_the_core() {
        kinds.insert(kind, fields_of_the_core(kind));
    }
    for (names, fields) in MORE {
        for name in *names {
            let known = kinds.entry(name).or_default();
            for (field, shape) in *fields {
                known.entry(field).or_insert(*shape);
            }
        }
    }
    for fields in kinds.values_mut() {
        fields.insert("why", Shape::Text);
    }
    let arguments = EVENTS.iter().flat_map(EventDoc::arguments);
    let mut fault: Fields = arguments.map(|argument| (argument, Shape::Any)).collect();
    fault.insert("do", Shape::Any);
    kinds.insert(FAULT, fault);
    kinds
});

/// An answer of the deserialiser to an event that is not whole.
#[derive(Debug)]
enum Answer {
    Misses(&'static str),
    Takes(&'static [&'static str]),
    No,
}

impl Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Answer {}

impl Error for Answer {
    fn custom<T: Display>(_: T) -> Self {
        Self::No
    }
    fn missing_field(field: &'static str) -> Self {
        Self::Misses(field)
    }
    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::Takes(expected)
    }
}

/// A value to try a field with.
#[derive(Clone, Copy, Debug)]
enum Trial {
    Text(&'static str),
    Number,
}

impl<'de> Deserializer<'de> for Trial {
    type Error = Answer;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Answer> {
        match self {
            Self::Text(text) => visitor.visit_borrowed_str(text),
            Self::Number => visitor.visit_u64(1),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Answer> for Trial {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// No id may have blanks in it, any other text may.
const NO_ID: &str = "no id";
const AN_ID: &str = "id-1";

fn kinds_of_the_core() -> &'static [&'static str] {
    let fields = [("kind", Trial::Text(NO_ID))].into_iter();
    let map: MapDeserializer<'_, _, Answer> = MapDeserializer::new(fields);
    match EventKind::deserialize(map) {
        Err(Answer::Takes(kinds)) => kinds,
        _ => &[],
    }
}

fn fields_of_the_core(kind: &'static str) -> Fields {
    let mut found: Vec<(&'static str, Trial, Shape)> = Vec::new();
    loop {
        let tried = found.iter().map(|(name, trial, _)| (*name, *trial));
        let fields = [("kind", Trial::Text(kind))].into_iter().chain(tried);
        let map: MapDeserializer<'_, _, Answer> = MapDeserializer::new(fields);
        match (EventKind::deserialize(map), found.last_mut()) {
            (Err(Answer::Misses(name)), _) => {
                found.push((name, Trial::Text(NO_ID), Shape::Text));
            }
            (Err(Answer::Takes(words)), Some((_, trial, shape))) => {
                *trial = words.first().map_or(Trial::Number, |w| Trial::Text(w));
                *shape = Shape::Word(words);
            }
            (Err(Answer::No), Some((_, trial, shape))) if *shape == Shape::Text => {
                (*trial, *shape) = (Trial::Text(AN_ID), Shape::Id);
            }
            (Err(Answer::No), Some((_, trial, shape))) if *shape == Shape::Id => {
                (*trial, *shape) = (Trial::Number, Shape::Number);
            }
            _ => break,
        }
    }
    found
        .into_iter()
        .map(|(name, _, shape)| (name, shape))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_the_core_is_asked_to_its_end() {
        assert!(kinds_of_the_core().len() > 25);
        for kind in kinds_of_the_core() {
            let fields = &KINDS[kind];
            assert!(
                fields.contains_key("vm") || fields.contains_key("host"),
                "{kind}: {fields:?}"
            );
        }
    }

    #[test]
    fn fields_have_the_shapes_that_the_core_gives_them() {
        let shape = |kind: &str, field: &str| KINDS[kind].get(field).copied();
        assert_eq!(shape("host.state", "observer"), Some(Shape::Id));
        assert_eq!(shape("host.state", "vm"), None);
        assert_eq!(shape("lock.broken", "generation"), Some(Shape::Number));
        assert_eq!(shape("lock.broken", "from"), Some(Shape::Id));
        assert_eq!(
            shape("vm.restart.requested", "attempt"),
            Some(Shape::Number)
        );
        assert_eq!(shape("config.issue", "issue"), Some(Shape::Text));
        assert_eq!(shape("fence.failed", "by"), Some(Shape::Id));
        let Some(Shape::Word(words)) = shape("vm.stopped", "reason") else {
            panic!("the reasons of a stop are words");
        };
        assert!(
            words.contains(&"isolation") && words.contains(&"lock_lost"),
            "{words:?}"
        );
        let Some(Shape::Word(words)) = shape("host.state", "to") else {
            panic!("the states of a host are words");
        };
        assert!(words.contains(&"agent_unreachable"), "{words:?}");
    }
}
