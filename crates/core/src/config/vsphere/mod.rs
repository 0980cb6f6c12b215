//! The names that admins of vSphere HA know: each of its options is either another name of settings of
//! Mainstay, with its unit and its values converted, or refused with the reason.
//!
//! Nothing is decided by these names: they are translated when a person types them, and shown beside
//! the settings when a person asks. What is kept and carried to hosts is the settings alone.

mod convert;
mod table;
#[cfg(test)]
mod tests;

pub use table::OPTIONS;

use super::nearest::nearest;
use super::set::SettingError;
use super::settings::Settings;
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use convert::Conversion;

/// The setting that several numbered options of vSphere fill together.
const ISOLATION_ADDRESSES: &str = "isolation_addresses";

/// One option of vSphere.
#[derive(Clone, Copy, Debug)]
pub struct VsphereOption {
    /// Its name as vSphere writes it; `[0-10]` at the end stands for a number there.
    pub name: &'static str,
    /// What differs from vSphere, or why there is no equal; a sentence without its full stop.
    pub note: &'static str,
    /// How its value becomes that of settings; none: it is refused.
    conversion: Option<Conversion>,
}

impl VsphereOption {
    /// The keys of the settings that it sets; empty: it is refused.
    #[must_use]
    pub fn keys(&self) -> Vec<&'static str> {
        self.conversion.map(|c| c.keys()).unwrap_or_default()
    }

    /// The values that it takes, in vSphere's unit; empty: it is refused.
    #[must_use]
    pub fn takes(&self) -> String {
        self.conversion.map(|c| c.takes()).unwrap_or_default()
    }

    /// Is `name` this option's name? Upper and lower case are one, as in vSphere.
    fn is(&self, name: &str) -> bool {
        match self.family() {
            None => self.name.eq_ignore_ascii_case(name),
            Some((stem, last)) => {
                let number = name.get(stem.len()..).filter(|_| {
                    name.get(..stem.len())
                        .is_some_and(|s| s.eq_ignore_ascii_case(stem))
                });
                match number {
                    Some("") => true,
                    Some(n) => {
                        n.bytes().all(|b| b.is_ascii_digit())
                            && n.parse().is_ok_and(|n: u32| n <= last)
                    }
                    None => false,
                }
            }
        }
    }

    /// The name without its number, and the highest number.
    fn family(&self) -> Option<(&'static str, u32)> {
        let (stem, numbers) = self.name.strip_suffix(']')?.split_once('[')?;
        let last = numbers.rsplit('-').next()?.parse().ok()?;
        Some((stem, last))
    }
}

/// Why an option of vSphere was not taken. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VsphereError {
    /// vSphere HA has no such option, as far as Mainstay knows it.
    #[error("there is no vSphere option \"{name}\"{}", .nearest.as_ref().map(|n| format!("; did you mean \"{n}\"?")).unwrap_or_default())]
    Unknown {
        /// The name that was given.
        name: String,
        /// The nearest name that exists.
        nearest: Option<String>,
    },
    /// The option has no equal here.
    #[error("{name} has no equal: {why}")]
    Refused {
        /// The option as vSphere writes it.
        name: String,
        /// Why, and what there is instead.
        why: String,
    },
    /// The value is none of the option's values.
    #[error("\"{value}\" is no value for {name}; it takes {takes}")]
    Value {
        /// The option as vSphere writes it.
        name: String,
        /// What was given.
        value: String,
        /// What it takes, with the unit.
        takes: String,
    },
    /// The value is one of vSphere's, but the setting behind it does not take it.
    #[error("{name} is the setting {}", .source)]
    Setting {
        /// The option as vSphere writes it.
        name: String,
        /// What the setting takes.
        source: SettingError,
    },
}

/// Does this look like a name of vSphere's? Then a slip of the pen in it is answered with names of
/// vSphere's, and not with the nearest setting.
#[must_use]
pub fn is_vsphere_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let prefixes = ["das.", "fdm.", "vpxd.", "vsan.", "disk.", "misc.", "/misc/"];
    prefixes.iter().any(|p| name.starts_with(p)) || find(&name).is_some()
}

/// The option of that name, in any mixture of upper and lower case. An option of the fault-domain
/// agent is known as `das.config.fdm.NAME` (the cluster's) and as `fdm.NAME` (a host's file).
fn find(name: &str) -> Option<&'static VsphereOption> {
    let by_name = |name: &str| OPTIONS.iter().find(|o| o.is(name));
    // The host's own options are also written as paths.
    let lower = name.to_ascii_lowercase().replace('/', ".");
    let name = lower.strip_prefix('.').unwrap_or(&lower);
    by_name(name).or_else(|| match name.strip_prefix("das.config.") {
        Some(short) => by_name(short),
        None if name.starts_with("fdm.") => by_name(&format!("das.config.{name}")),
        None => None,
    })
}

/// The settings, by key, that stand for one option of vSphere with that value.
///
/// A numbered isolation address gives a list with this one address; [`translate_for`] adds it to
/// those that are set.
///
/// # Errors
/// [`VsphereError`]: the name is unknown (with the nearest one), the option has no equal here (with
/// the reason), or the value is not one of its values.
pub fn translate(name: &str, value: &str) -> Result<Vec<(&'static str, String)>, VsphereError> {
    let (name, value) = (name.trim(), value.trim());
    let Some(option) = find(name) else {
        let names = OPTIONS
            .iter()
            .map(|o| o.family().map_or(o.name, |(stem, _)| stem));
        return Err(VsphereError::Unknown {
            name: name.to_owned(),
            nearest: nearest_name(name, names),
        });
    };
    let Some(conversion) = option.conversion else {
        return Err(VsphereError::Refused {
            name: option.name.to_owned(),
            why: option.note.to_owned(),
        });
    };
    conversion
        .settings(value)
        .ok_or_else(|| VsphereError::Value {
            name: option.name.to_owned(),
            value: value.to_owned(),
            takes: conversion.takes(),
        })
}

/// As [`translate`], for a cluster that has these settings: an isolation address is added to its list.
///
/// # Errors
/// As [`translate`]; and [`VsphereError::Setting`] where the setting does not take the value. The
/// settings are not changed in any case.
pub fn translate_for(
    settings: &Settings,
    name: &str,
    value: &str,
) -> Result<Vec<(&'static str, String)>, VsphereError> {
    let mut changes = translate(name, value)?;
    let mut tried = settings.clone();
    for (key, value) in &mut changes {
        if *key == ISOLATION_ADDRESSES {
            let known = settings.get(key).unwrap_or_default();
            let mut list: Vec<&str> = entries(&known).collect();
            if !list.contains(&value.as_str()) {
                list.push(value);
            }
            *value = list.join(",");
        }
        tried
            .set(key, value)
            .map_err(|source| VsphereError::Setting {
                name: name.trim().to_owned(),
                source,
            })?;
    }
    Ok(changes)
}

/// The entries of the list setting; `none` says that it is empty.
fn entries(value: &str) -> impl Iterator<Item = &str> {
    let all = value.split(',').map(str::trim);
    all.filter(|entry| !entry.is_empty() && *entry != "none")
}

fn nearest_name(name: &str, names: impl Iterator<Item = &'static str>) -> Option<String> {
    let lower: Vec<(String, &str)> = names.map(|n| (n.to_ascii_lowercase(), n)).collect();
    let found = nearest(
        &name.to_ascii_lowercase(),
        lower.iter().map(|(l, _)| l.as_str()),
    )?;
    lower
        .iter()
        .find(|(l, _)| l == found)
        .map(|(_, n)| (*n).to_string())
}

/// A setting under vSphere's name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shown {
    /// The option, as vSphere writes it.
    pub option: String,
    /// Its value, in vSphere's unit.
    pub value: String,
    /// What differs from vSphere; may be empty.
    pub note: &'static str,
}

/// Every option of vSphere whose equal is set to something that vSphere can say, in the table's order.
#[must_use]
pub fn show(settings: &Settings) -> Vec<Shown> {
    let mut shown = Vec::new();
    for option in OPTIONS {
        let Some(conversion) = option.conversion else {
            continue;
        };
        let values: Option<Vec<String>> = conversion
            .keys()
            .into_iter()
            .map(|k| settings.get(k))
            .collect();
        let Some(values) = values else {
            continue;
        };
        let note = option.note;
        if let Some((stem, _)) = option.family() {
            let list = values.first().map(String::as_str).unwrap_or_default();
            // vSphere only pings: it has no word for an address that is tried by TCP.
            let pinged = entries(list).filter(|e| e.parse::<core::net::IpAddr>().is_ok());
            shown.extend(pinged.enumerate().map(|(n, address)| Shown {
                option: format!("{stem}{n}"),
                value: address.to_owned(),
                note,
            }));
        } else if let Some(value) = conversion.shown(&values) {
            let option = option.name.to_owned();
            shown.push(Shown {
                option,
                value,
                note,
            });
        }
    }
    shown
}
