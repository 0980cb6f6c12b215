//! Sets one setting from its text, as `cluster.toml`, scenarios and the command line write it.

use super::duration::parse_duration;
use super::nearest::nearest;
use super::setting_docs::{SETTINGS, SettingDoc, Values};
use super::settings::{
    ApdResponse, CONCURRENT_RESTARTS_MAX, FenceAction, FenceCutOff, FencePolicy, HeartbeatPolicy,
    HostShutdown, IsolationResponse, PdlResponse, Settings,
};
use super::timing::{Profile, Timing};
use crate::id::DatastoreId;
use crate::time::Duration;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Why a setting was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// There is no such setting.
    #[error("there is no setting \"{key}\"{}", suggestion(.nearest))]
    Unknown {
        /// The key that was given.
        key: String,
        /// The nearest key that exists.
        nearest: Option<String>,
    },
    /// The value is not one of the setting's values.
    #[error("\"{value}\" is no value for {key}; it takes {values}")]
    Value {
        /// The setting.
        key: String,
        /// What was given.
        value: String,
        /// What it takes.
        values: String,
    },
}

fn suggestion(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map(|n| format!("; did you mean \"{n}\"?"))
        .unwrap_or_default()
}

impl Settings {
    /// Sets one setting from its text. `profile` sets all timers, so it must come first.
    ///
    /// # Errors
    /// [`SettingError`]; then nothing was changed.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), SettingError> {
        let Some(doc) = SETTINGS.iter().find(|s| s.key == key) else {
            let nearest = nearest(key, SETTINGS.iter().map(|s| s.key)).map(Into::into);
            return Err(SettingError::Unknown {
                key: key.into(),
                nearest,
            });
        };
        self.apply(doc, value.trim())
            .ok_or_else(|| SettingError::Value {
                key: key.into(),
                value: value.into(),
                values: doc.values.to_string(),
            })
    }

    /// The value of a setting that is one time, by its key.
    #[must_use]
    pub fn time_of(&self, key: &str) -> Option<Duration> {
        self.clone().timer(key).map(|time| *time)
    }

    fn timer(&mut self, key: &str) -> Option<&mut Duration> {
        let t = &mut self.timing;
        Some(match key {
            "network_heartbeat" => &mut t.network_heartbeat,
            "datastore_heartbeat" => &mut t.datastore_heartbeat,
            "election_start" => &mut t.election_start,
            "election" => &mut t.election,
            "elected_to_restart" => &mut t.elected_to_restart,
            "isolation_ping" => &mut t.isolation_ping,
            "isolation_declare" => &mut t.isolation_declare,
            "primary_isolation_declare" => &mut t.primary_isolation_declare,
            "isolation_policy_delay" => &mut t.isolation_policy_delay,
            "look_datastore" => &mut t.look_datastore,
            "unreachable" => &mut t.unreachable,
            "dead_without_datastores" => &mut t.dead_without_datastores,
            "dead" => &mut t.dead,
            "poweron_poll" => &mut t.poweron_poll,
            "freeze" => &mut t.freeze,
            "break" => &mut t.r#break,
            "apd_timeout" => &mut t.apd_timeout,
            "apd_delay" => &mut t.apd_delay,
            "guard_latency" => &mut t.guard_latency,
            "isolation_shutdown_timeout" => &mut self.isolation_shutdown_timeout,
            "order_timeout" => &mut self.order_timeout,
            "isolation_check_interval" => &mut self.isolation_check_interval,
            "dependency_timeout" => &mut self.dependency_timeout,
            "host_shutdown_timeout" => &mut self.host_shutdown_timeout,
            "planned_restart" => &mut self.planned_restart,
            "image_lock_check_interval" => &mut self.image_lock_check_interval,
            "clock_check_interval" => &mut self.clock_check_interval,
            "fence_timeout" => &mut self.fence_timeout,
            "fence_delay" => &mut self.fence_delay,
            "fence_retry" => &mut self.fence_retry,
            "fence_boot_time" => &mut self.fence_boot_time,
            "fence_check_interval" => &mut self.fence_check_interval,
            _ => return None,
        })
    }

    fn apply(&mut self, doc: &SettingDoc, value: &str) -> Option<()> {
        if let Some(timer) = self.timer(doc.key) {
            *timer = time(doc, value)?;
            return Some(());
        }
        match doc.key {
            "profile" => {
                self.profile = Profile::from_name(value)?;
                self.timing = Timing::of(self.profile);
            }
            "clock_drift_ppm" => self.timing.clock_drift_ppm = in_range(value, 0, 100_000)?,
            "host_monitoring" => self.host_monitoring = truth(value)?,
            "accept_late_writes" => self.accept_late_writes = truth(value)?,
            "isolation_addresses" => self.isolation_addresses = isolation_addresses(value)?,
            "heartbeat_datastore_policy" => {
                self.heartbeat_datastore_policy = match value {
                    "automatic" => HeartbeatPolicy::Automatic,
                    "prefer" => HeartbeatPolicy::Prefer,
                    "only" => HeartbeatPolicy::Only,
                    _ => return None,
                }
            }
            "heartbeat_datastores" => self.heartbeat_datastores = datastores(value)?,
            "use_default_isolation_address" => self.use_default_isolation_address = truth(value)?,
            "ignore_redundant_network_warning" => {
                self.ignore_redundant_network_warning = truth(value)?
            }
            "ignore_insufficient_heartbeat_datastores" => {
                self.ignore_insufficient_heartbeat_datastores = truth(value)?
            }
            "concurrent_restarts_per_host" => {
                self.concurrent_restarts_per_host = in_range(value, 1, CONCURRENT_RESTARTS_MAX)?
            }
            "max_restart_attempts" => self.max_restart_attempts = in_range(value, 0, 100)?,
            "heartbeat_datastores_per_host" => {
                self.heartbeat_datastores_per_host = in_range(value, 0, 5)?
            }
            "restart_retry_delays" => {
                let delays = value.split(',').map(|text| time(doc, text));
                let delays: Option<Vec<Duration>> = delays.collect();
                self.restart_retry_delays = delays.filter(|d| !d.is_empty())?;
            }
            "isolation_response" => {
                self.isolation_response = match value {
                    "leave_powered_on" => IsolationResponse::LeavePoweredOn,
                    "power_off" => IsolationResponse::PowerOff,
                    "shut_down" => IsolationResponse::ShutDown,
                    _ => return None,
                }
            }
            "pdl_response" => {
                self.pdl_response = match value {
                    "disabled" => PdlResponse::Disabled,
                    "warn" => PdlResponse::Warn,
                    "restart" => PdlResponse::Restart,
                    _ => return None,
                }
            }
            "apd_response" => {
                self.apd_response = match value {
                    "disabled" => ApdResponse::Disabled,
                    "warn" => ApdResponse::Warn,
                    "restart_conservative" => ApdResponse::RestartConservative,
                    "restart_aggressive" => ApdResponse::RestartAggressive,
                    _ => return None,
                }
            }
            "apd_cleared_response" => {
                self.apd_cleared_reset = match value {
                    "none" => false,
                    "reset" => true,
                    _ => return None,
                }
            }
            "frozen_limit" => {
                self.frozen_limit = if value == "off" {
                    None
                } else {
                    Some(time(doc, value)?)
                }
            }
            "fence_policy" => {
                self.fence_policy = match value {
                    "off" => FencePolicy::Off,
                    "dead" => FencePolicy::Dead,
                    "suspected" => FencePolicy::Suspected,
                    _ => return None,
                }
            }
            "fence_cut_off" => {
                self.fence_cut_off = match value {
                    "never" => FenceCutOff::Never,
                    "isolated" => FenceCutOff::Isolated,
                    "partitioned" => FenceCutOff::Partitioned,
                    _ => return None,
                }
            }
            "fence_action" => {
                self.fence_action = match value {
                    "off" => FenceAction::Off,
                    "cycle" => FenceAction::Cycle,
                    _ => return None,
                }
            }
            "host_shutdown" => {
                self.host_shutdown = match value {
                    "restart_elsewhere" => HostShutdown::RestartElsewhere,
                    "wait" => HostShutdown::Wait,
                    _ => return None,
                }
            }
            _ => return None,
        }
        Some(())
    }
}

/// A time that the setting takes.
fn time(doc: &SettingDoc, value: &str) -> Option<Duration> {
    let span = match doc.values {
        Values::Time(span) | Values::TimeOrOff(span) | Values::Times(span) => span,
        Values::Said(_) => return None,
    };
    parse_duration(value).filter(|time| span.takes(*time))
}

fn truth(value: &str) -> Option<bool> {
    match value {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

fn in_range(value: &str, low: u32, high: u32) -> Option<u32> {
    value.parse().ok().filter(|n| (low..=high).contains(n))
}

fn datastores(value: &str) -> Option<BTreeSet<DatastoreId>> {
    if value == "none" || value.is_empty() {
        return Some(BTreeSet::new());
    }
    value
        .split(',')
        .map(|id| DatastoreId::new(id.trim()).ok())
        .collect()
}

/// Addresses separated by commas; a host name is none, because names need a service that may be down.
fn isolation_addresses(value: &str) -> Option<Vec<String>> {
    if value == "none" || value.is_empty() {
        return Some(Vec::new());
    }
    let all: Option<Vec<String>> = value
        .split(',')
        .map(str::trim)
        .map(|text| {
            let sound = match text.strip_prefix("tcp://") {
                Some(socket) => socket.parse::<core::net::SocketAddr>().is_ok(),
                None => text.parse::<core::net::IpAddr>().is_ok(),
            };
            sound.then(|| text.to_string())
        })
        .collect();
    all.filter(|a| a.len() <= ISOLATION_ADDRESSES_MAX)
}

/// As many as vSphere takes (`das.isolationaddress0` to `9`).
const ISOLATION_ADDRESSES_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::format_duration;

    #[test]
    fn every_documented_setting_can_be_set() {
        let mut settings = Settings::default();
        for setting in SETTINGS {
            let value = match setting.values {
                Values::Said(v) => v.split([',', ' ']).next().expect("a value"),
                // Within every range, and a table of timers that is whole is no concern here.
                _ => "17s",
            };
            assert_eq!(settings.set(setting.key, value), Ok(()), "{}", setting.key);
        }
    }

    #[test]
    fn a_time_is_taken_from_one_end_of_its_range_to_the_other() {
        for setting in SETTINGS {
            let (Values::Time(span) | Values::TimeOrOff(span) | Values::Times(span)) =
                setting.values
            else {
                continue;
            };
            let set = |time| Settings::default().set(setting.key, &format_duration(time));
            assert_eq!(set(span.low), Ok(()), "{}", setting.key);
            assert_eq!(set(span.high), Ok(()), "{}", setting.key);
            let beyond = [
                span.low.checked_sub(Duration::from_micros(1)),
                Some(span.high + Duration::from_micros(1)),
            ];
            for time in beyond.into_iter().flatten() {
                let error = set(time).expect_err(setting.key).to_string();
                assert!(error.contains(&setting.values.to_string()), "{error}");
                assert!(error.contains("24h"), "{error}");
            }
        }
        for key in [
            "order_timeout",
            "clock_check_interval",
            "primary_isolation_declare",
        ] {
            assert!(Settings::default().set(key, "0s").is_err(), "{key}");
        }
    }

    #[test]
    fn a_slip_of_the_pen_gets_the_nearest_key() {
        let error = Settings::default()
            .set("isolation_respons", "power_off")
            .expect_err("unknown");
        assert!(
            error
                .to_string()
                .contains("did you mean \"isolation_response\""),
            "{error}"
        );
    }

    #[test]
    fn a_wrong_value_says_what_the_setting_takes() {
        let error = Settings::default()
            .set("host_shutdown", "never")
            .expect_err("no value");
        assert!(
            error.to_string().contains("restart_elsewhere, wait"),
            "{error}"
        );
    }
}
