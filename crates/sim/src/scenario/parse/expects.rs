//! The expectations of a scenario.

use super::super::fault::EVENTS;
use super::super::read::{Section, Text, integer};
use super::fields::{FAULT, KINDS, Shape};
use super::{Building, Read};
use crate::clock::{MS, Nanos};
use crate::expect::{Check, Expect, Want};
use mainstay_core::config::format_duration;
use mainstay_core::time::Duration;
use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::DeValue;

/// Keys of an expectation that are no fields of an event.
const FRAME: &[&str] = &["by", "between", "event", "never"];
/// Keys of an expectation of a VM's state.
const STATE: &[&str] = &["by", "vm", "state", "running_on"];

impl<'a> Building<'a> {
    pub(super) fn expects(&mut self, top: &Section<'a, '_>) -> Read<()> {
        let fields = KINDS.values().flat_map(|fields| fields.keys().copied());
        let keys: Vec<&str> = fields.chain(FRAME.iter().chain(STATE).copied()).collect();
        for (table, at) in top.tables("expect")? {
            let section = Section::new(self.source, table, at, "an expectation", &keys)?;
            let expect = match (section.text("event")?, section.text("never")?) {
                (Some(_), Some(_)) => {
                    return section.error("never", "an expectation has event or never, not both");
                }
                (Some(kind), None) => self.event(&section, kind, false)?,
                (None, Some(kind)) => self.event(&section, kind, true)?,
                (None, None) => self.state(&section)?,
            };
            self.expects.push(expect);
        }
        Ok(())
    }

    /// The window in which an event is looked for; none: the whole run.
    fn window(&self, section: &Section<'_, '_>, by: bool) -> Read<Option<(Nanos, Nanos)>> {
        let Some(list) = section.texts("between")? else {
            let by = if by { section.time("by")? } else { None };
            self.before_the_end(section, "by", by)?;
            return Ok(by.map(|by| (0, by)));
        };
        if by && section.value("by").is_some() {
            return section.error(
                "by",
                "by and between both say when; keep one: by = \"20s\" is between = [\"0s\", \"20s\"]",
            );
        }
        let [low, high] = list.as_slice() else {
            return section.error("between", "between takes two times");
        };
        let (low, high) = (section.as_time(low)?, section.as_time(high)?);
        if low > high {
            return section.error(
                "between",
                "between ends before it begins; write the earlier time first",
            );
        }
        self.before_the_end(section, "between", Some(low))?;
        Ok(Some((low, high)))
    }

    fn event(&self, section: &Section<'_, '_>, kind: Text, never: bool) -> Read<Expect> {
        let Some(known) = KINDS.get(kind.text.as_str()) else {
            let known = KINDS.keys().copied();
            return Err(self
                .source
                .unknown(kind.at, "event kind", &kind.text, known));
        };
        let by_is_a_field = known.contains_key("by") && section.text("by")?.is_some_and(is_no_time);
        let between = self.window(section, !by_is_a_field)?;
        let mut fields = Map::new();
        for (key, value) in section.entries() {
            if FRAME.contains(&key) && !(key == "by" && by_is_a_field) {
                continue;
            }
            let Some(shape) = known.get(key) else {
                let known: Vec<&str> = known.keys().copied().collect();
                let what = format!(
                    "{} has no field {key}; it has {}",
                    kind.text,
                    known.join(", ")
                );
                return section.error(key, what);
            };
            fields.insert(key.into(), self.field(section, key, value, *shape)?);
        }
        if kind.text == FAULT {
            self.fault_fields(section, &fields)?;
        }
        let text = describe_event(never, &kind.text, &fields, between);
        let kind = kind.text;
        let check = if never {
            Check::Never {
                between,
                kind,
                fields,
            }
        } else {
            Check::Event {
                between,
                kind,
                fields,
            }
        };
        Ok(Expect { text, check })
    }

    /// The value of a field, if an event can ever have it.
    fn field(
        &self,
        section: &Section<'_, '_>,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        shape: Shape,
    ) -> Read<Value> {
        if shape == Shape::Number {
            let number = section.number(key)?;
            return Ok(Value::from(number));
        }
        if shape == Shape::Any && value.get_ref().as_str().is_none() {
            let plain = match value.get_ref() {
                DeValue::Boolean(truth) => Some(Value::from(*truth)),
                number => integer(number).map(Value::from),
            };
            return match plain {
                Some(plain) => Ok(plain),
                None => section.error(key, format!("{key} takes a text or a number")),
            };
        }
        let text = section.text(key)?.unwrap_or_else(|| Text {
            text: String::new(),
            at: section.at,
        });
        match shape {
            Shape::Word(words) if !words.contains(&text.text.as_str()) => {
                return Err(self.source.no_word(&text, key, words));
            }
            Shape::Id | Shape::Any => self.id(key, &text, shape)?,
            Shape::Word(_) | Shape::Text | Shape::Number => {}
        }
        Ok(Value::from(text.text))
    }

    /// What an id names must be there.
    fn id(&self, key: &str, text: &Text, shape: Shape) -> Read<()> {
        match key {
            "vm" => self.vm(text).map(drop),
            "datastore" => self.datastore(text).map(drop),
            "network" => self.network(text).map(drop),
            "host" | "from" | "to" => self.host(text).map(drop),
            _ if shape == Shape::Id => self.host(text).map(drop),
            _ => Ok(()),
        }
    }

    /// A fault's fields are its event's arguments.
    fn fault_fields(&self, section: &Section<'_, '_>, fields: &Map<String, Value>) -> Read<()> {
        let Some(name) = section.text("do")? else {
            return Ok(());
        };
        let Some(doc) = EVENTS.iter().find(|e| e.name == name.text) else {
            let known = EVENTS.iter().map(|e| e.name);
            return Err(self.source.unknown(name.at, "event", &name.text, known));
        };
        let known: Vec<&str> = doc.keys().collect();
        match fields.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => section.error(key, format!("{} has no {key}", doc.name)),
            None => Ok(()),
        }
    }

    fn state(&self, section: &Section<'_, '_>) -> Read<Expect> {
        if let Some((key, _)) = section.entries().find(|(key, _)| !STATE.contains(key)) {
            return section.error(
                key,
                format!(
                    "{key} belongs to an expectation with event or never; that of a state has {}",
                    STATE.join(", ")
                ),
            );
        }
        section.need("by")?;
        section.need("vm")?;
        let (Some(by), Some(name)) = (section.time("by")?, section.text("vm")?) else {
            return section.error("by", "an expectation of a state takes by and vm");
        };
        self.before_the_end(section, "by", Some(by))?;
        let vm = self.vm(&name)?;
        let states = [
            ("running", Want::Running),
            ("frozen", Want::Frozen),
            ("powered_off", Want::PoweredOff),
        ];
        let want = match (section.texts("running_on")?, section.text("state")?) {
            (Some(list), None) if list.is_empty() => {
                return section.error(
                    "running_on",
                    "no VM runs on a host of an empty list; name hosts, or write state = \"powered_off\"",
                );
            }
            (Some(list), None) => Want::RunningOn(
                list.iter()
                    .map(|text| self.host(text))
                    .collect::<Read<Vec<_>>>()?,
            ),
            (None, Some(state)) => match states.iter().find(|(word, _)| *word == state.text) {
                Some((_, want)) => want.clone(),
                None => {
                    return Err(self
                        .source
                        .no_word(&state, "state", &states.map(|(w, _)| w)));
                }
            },
            _ => return section.error("by", "an expectation of a state takes running_on or state"),
        };
        let text = format!("by {} {} is {}", show(by), name.text, self.describe(&want));
        Ok(Expect {
            text,
            check: Check::State { by, vm, want },
        })
    }

    fn describe(&self, want: &Want) -> String {
        match want {
            Want::RunningOn(hosts) => {
                let names: Vec<&str> = hosts
                    .iter()
                    .filter_map(|h| self.hosts.get(*h))
                    .map(|(h, _)| h.id.as_str())
                    .collect();
                format!("running on {}", names.join(" or "))
            }
            Want::Running => "running".into(),
            Want::Frozen => "frozen".into(),
            Want::PoweredOff => "powered off".into(),
        }
    }
}

fn is_no_time(text: Text) -> bool {
    mainstay_core::config::parse_duration(&text.text).is_none()
}

fn show(t: Nanos) -> String {
    format_duration(Duration::from_millis(t / MS))
}

fn describe_event(
    never: bool,
    kind: &str,
    fields: &Map<String, Value>,
    between: Option<(Nanos, Nanos)>,
) -> String {
    let mut text = String::from(if never { "never " } else { "" });
    text.push_str(kind);
    for (key, value) in fields {
        let value = value.as_str().map_or_else(|| value.to_string(), Into::into);
        text.push_str(&format!(" {key}={value}"));
    }
    if let Some((low, high)) = between {
        text.push_str(&format!(" between {} and {}", show(low), show(high)));
    }
    text
}
