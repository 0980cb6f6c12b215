//! Values of vSphere's options into values of settings, and back.

use super::super::duration::parse_duration;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Values of several settings at once.
pub(super) type Values = &'static [(&'static str, &'static str)];

/// How the value of an option becomes that of a setting.
#[derive(Clone, Copy, Debug)]
pub(super) enum Conversion {
    /// Seconds into a time, from `low` to `high`.
    Seconds {
        key: &'static str,
        low: u32,
        high: u32,
    },
    /// Milliseconds into a time.
    Milliseconds { key: &'static str },
    /// True or false into true or false.
    Truth { key: &'static str },
    /// A whole number from `low` to `high`.
    Number {
        key: &'static str,
        low: u32,
        high: u32,
    },
    /// One of some words, each with what it sets.
    Words(&'static [(&'static str, Values)]),
    /// An IP address, added to a list.
    Address { key: &'static str },
}

const MS_PER_SECOND: u128 = 1000;

impl Conversion {
    /// The settings that it sets, each once.
    pub(super) fn keys(self) -> Vec<&'static str> {
        match self {
            Self::Seconds { key, .. }
            | Self::Milliseconds { key }
            | Self::Truth { key }
            | Self::Number { key, .. }
            | Self::Address { key } => alloc::vec![key],
            Self::Words(words) => {
                let all = words.iter().flat_map(|(_, sets)| sets.iter());
                let mut keys: Vec<&str> = all.map(|(key, _)| *key).collect();
                keys.sort_unstable();
                keys.dedup();
                keys
            }
        }
    }

    /// The values that it takes.
    pub(super) fn takes(self) -> String {
        match self {
            Self::Seconds { low, high, .. } => format!("seconds, {low} to {high}"),
            Self::Milliseconds { .. } => "milliseconds, 1 to 3600000".to_string(),
            Self::Truth { .. } => "true, false".to_string(),
            Self::Number { low, high, .. } => format!("{low} to {high}"),
            Self::Words(words) => {
                let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                words.join(", ")
            }
            Self::Address { .. } => "an IPv4 or IPv6 address".to_string(),
        }
    }

    /// The settings that stand for `value`; none: it is not one of the values.
    pub(super) fn settings(self, value: &str) -> Option<Vec<(&'static str, String)>> {
        let whole = |low: u32, high: u32| {
            let number: Option<u32> = value.parse().ok();
            number.filter(|n| (low..=high).contains(n))
        };
        let (key, value) = match self {
            Self::Seconds { key, low, high } => (key, format!("{}s", whole(low, high)?)),
            Self::Milliseconds { key } => (key, format!("{}ms", whole(1, 3_600_000)?)),
            Self::Number { key, low, high } => (key, whole(low, high)?.to_string()),
            Self::Truth { key } => {
                let lower = value.to_ascii_lowercase();
                let truth = match lower.as_str() {
                    "true" | "1" => "true",
                    "false" | "0" => "false",
                    _ => return None,
                };
                (key, truth.to_string())
            }
            Self::Address { key } => {
                let address: core::net::IpAddr = value.parse().ok()?;
                (key, address.to_string())
            }
            Self::Words(words) => {
                let found = words.iter().find(|(w, _)| w.eq_ignore_ascii_case(value));
                let sets = found?.1.iter();
                return Some(
                    sets.map(|(key, value)| (*key, (*value).to_string()))
                        .collect(),
                );
            }
        };
        Some(alloc::vec![(key, value)])
    }

    /// How vSphere says `values`, the values of [`Conversion::keys`]; none: it cannot say that.
    pub(super) fn shown(self, values: &[String]) -> Option<String> {
        let value = values.first()?;
        match self {
            Self::Seconds { .. } => {
                let ms = parse_duration(value)?.as_millis();
                let (seconds, rest) = (ms / MS_PER_SECOND, ms % MS_PER_SECOND);
                Some(match rest {
                    0 => seconds.to_string(),
                    rest => format!("{seconds}.{rest:03}")
                        .trim_end_matches('0')
                        .to_string(),
                })
            }
            Self::Milliseconds { .. } => Some(parse_duration(value)?.as_millis().to_string()),
            Self::Truth { .. } | Self::Number { .. } | Self::Address { .. } => Some(value.clone()),
            Self::Words(words) => {
                let keys = self.keys();
                let fits = |sets: &Values| {
                    sets.iter().all(|(key, wanted)| {
                        let at = keys.iter().position(|k| k == key);
                        at.and_then(|i| values.get(i)).is_some_and(|v| v == wanted)
                    })
                };
                let found = words.iter().find(|(_, sets)| fits(sets))?;
                Some(found.0.to_string())
            }
        }
    }
}
