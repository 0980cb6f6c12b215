//! The expectations of a scenario.

use super::super::read::{Section, Text, integer};
use super::{Building, Read, position};
use crate::clock::{MS, Nanos};
use crate::expect::{Check, Expect, Want};
use mainstay_core::config::format_duration;
use mainstay_core::time::Duration;
use serde_json::{Map, Value};
use toml::de::DeValue;

const KINDS: &[&str] = &[
    "host.state",
    "election.started",
    "primary.elected",
    "primary.abdicated",
    "host.vouched",
    "host.leaving",
    "heartbeat.datastores",
    "agent.restart.planned",
    "config.changed",
    "isolation.declared",
    "isolation.ended",
    "isolation.response",
    "isolation.skipped",
    "datastore.owned",
    "datastore.released",
    "vm.protected",
    "vm.unprotected",
    "vm.restart.requested",
    "vm.restart.failed",
    "vm.restart.waiting",
    "vm.restart.abandoned",
    "lock.acquired",
    "lock.broken",
    "lock.lost",
    "lock.released",
    "vm.started",
    "vm.stopped",
    "vm.frozen",
    "vm.thawed",
    "vm.reset",
    "vm.migrated",
    "vmcp.apd",
    "vmcp.pdl",
    "vmcp.cleared",
    "fence.requested",
    "fence.confirmed",
    "fence.failed",
    "admission.refused",
    "config.issue",
    "fault",
];
const FIELDS: &[&str] = &[
    "observer",
    "host",
    "from",
    "to",
    "action",
    "reason",
    "cause",
    "datastore",
    "vm",
    "attempt",
    "version",
    "owner",
    "datastores",
    "generation",
    "issue",
    "why",
    "by",
    "between",
    "event",
    "never",
    "state",
    "running_on",
    "do",
];
const HOST_STATES: &[&str] = &[
    "live",
    "unreachable",
    "dead",
    "partitioned",
    "isolated",
    "agent_unreachable",
    "maintenance",
];

impl<'a> Building<'a> {
    pub(super) fn expects(&mut self, top: &Section<'a, '_>) -> Read<()> {
        for (table, at) in top.tables("expect")? {
            let section = Section::new(self.source, table, at, "an expectation", FIELDS)?;
            let expect = self.expect(&section)?;
            self.expects.push(expect);
        }
        Ok(())
    }

    fn expect(&self, section: &Section<'_, '_>) -> Read<Expect> {
        let window = match section.texts("between")? {
            None => None,
            Some(list) => {
                let [low, high] = list.as_slice() else {
                    return section.error("between", "between takes two times");
                };
                Some((section.as_time(low)?, section.as_time(high)?))
            }
        };
        let event = section.text("event")?;
        let never = section.text("never")?;
        if let Some(kind) = event.as_ref().or(never.as_ref()) {
            if event.is_some() && never.is_some() {
                return section.error("never", "an expectation has event or never, not both");
            }
            if !KINDS.contains(&kind.text.as_str()) {
                return Err(self.source.unknown(
                    kind.at,
                    "event kind",
                    &kind.text,
                    KINDS.iter().copied(),
                ));
            }
            let by = section.time("by")?.map(|by| (0, by));
            let fields = self.fields(section, &kind.text)?;
            let between = window.or(by);
            let text = describe_event(never.is_some(), &kind.text, &fields, between);
            let kind = kind.text.clone();
            let check = match never {
                Some(_) => Check::Never {
                    between,
                    kind,
                    fields,
                },
                None => Check::Event {
                    between,
                    kind,
                    fields,
                },
            };
            return Ok(Expect { text, check });
        }
        section.need("by")?;
        section.need("vm")?;
        let (Some(by), Some(name)) = (section.time("by")?, section.text("vm")?) else {
            return section.error("by", "an expectation of a state takes by and vm");
        };
        for key in [
            "observer",
            "host",
            "from",
            "to",
            "action",
            "reason",
            "cause",
            "datastore",
            "attempt",
            "between",
        ] {
            if section.value(key).is_some() {
                return section.error(
                    key,
                    format!("{key} belongs to an expectation with event or never"),
                );
            }
        }
        let vm = self.vm(&name)?;
        let states = [
            ("running", Want::Running),
            ("frozen", Want::Frozen),
            ("powered_off", Want::PoweredOff),
        ];
        let want = match (section.texts("running_on")?, section.text("state")?) {
            (Some(list), None) => Want::RunningOn(
                list.iter()
                    .map(|text| self.host(text))
                    .collect::<Read<Vec<_>>>()?,
            ),
            (None, Some(state)) => match states.iter().find(|(word, _)| *word == state.text) {
                Some((_, want)) => want.clone(),
                None => {
                    let known = states.iter().map(|(word, _)| *word);
                    return Err(self.source.unknown(state.at, "state", &state.text, known));
                }
            },
            _ => return section.error("by", "an expectation of a state takes running_on or state"),
        };
        let what = match &want {
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
        };
        let text = format!("by {} {} is {what}", show(by), name.text);
        Ok(Expect {
            text,
            check: Check::State { by, vm, want },
        })
    }

    fn fields(&self, section: &Section<'_, '_>, kind: &str) -> Read<Map<String, Value>> {
        let mut fields = Map::new();
        for (key, value) in section.entries() {
            if ["by", "between", "event", "never"].contains(&key) {
                continue;
            }
            if ["state", "running_on"].contains(&key) {
                return section.error(key, format!("{key} does not go with an event"));
            }
            let text = value.get_ref().as_str().map(|t| Text {
                text: t.into(),
                at: value.span().start,
            });
            if let Some(text) = &text {
                match key {
                    "host" | "observer" => self.host(text).map(drop)?,
                    "vm" => self.vm(text).map(drop)?,
                    "datastore" => self.datastore(text).map(drop)?,
                    "from" | "to" if kind == "host.state" => {
                        position("state of a host", self.source, text, HOST_STATES).map(drop)?;
                    }
                    "from" if kind == "lock.broken" => self.host(text).map(drop)?,
                    _ => {}
                }
            }
            let value = match value.get_ref() {
                DeValue::Integer(_) => integer(value.get_ref()).map(Value::from),
                DeValue::Boolean(truth) => Some(Value::from(*truth)),
                _ => text.map(|t| Value::from(t.text)),
            };
            let Some(value) = value else {
                return section.error(key, format!("{key} takes a text or a number"));
            };
            fields.insert(key.into(), value);
        }
        Ok(fields)
    }
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
