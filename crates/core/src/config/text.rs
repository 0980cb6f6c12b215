//! The value of each setting as text, as [`Settings::set`] takes it, and settings as they are written.

use super::duration::format_duration;
use super::setting_docs::SETTINGS;
use super::settings::{
    ApdResponse, FenceAction, FenceCutOff, FencePolicy, HeartbeatPolicy, HostShutdown,
    IsolationResponse, PdlResponse, Settings,
};
use super::timing::Profile;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Settings on disk and on the wire: the profile, and by name what differs from it. An agent of another
/// version reads what it knows, and keeps the rest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Written {
    profile: String,
    others: BTreeMap<String, String>,
}

impl From<Settings> for Written {
    fn from(settings: Settings) -> Self {
        let plain = Settings::of(settings.profile);
        let differs = |key: &&str| settings.get(key) != plain.get(key);
        let named = SETTINGS
            .iter()
            .map(|s| s.key)
            .filter(|key| *key != "profile")
            .filter(differs)
            .filter_map(|key| Some((key.to_string(), settings.get(key)?)));
        let mut others = settings.later.clone();
        others.extend(named);
        Self {
            profile: settings.profile.name().to_string(),
            others,
        }
    }
}

impl From<Written> for Settings {
    fn from(written: Written) -> Self {
        let profile = Profile::from_name(&written.profile).unwrap_or_default();
        let mut settings = Self::of(profile);
        for (key, value) in written.others {
            if settings.set(&key, &value).is_err() {
                settings.later.insert(key, value);
            }
        }
        settings
    }
}

impl Settings {
    /// The value of the setting `key`, written as [`Settings::set`] reads it; none: there is no such
    /// setting.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<String> {
        if let Some(time) = self.time_of(key) {
            return Some(format_duration(time));
        }
        Some(match key {
            "profile" => self.profile.name().to_string(),
            "clock_drift_ppm" => self.timing.clock_drift_ppm.to_string(),
            "host_monitoring" => self.host_monitoring.to_string(),
            "accept_late_writes" => self.accept_late_writes.to_string(),
            "max_restart_attempts" => self.max_restart_attempts.to_string(),
            "isolation_addresses" if self.isolation_addresses.is_empty() => "none".to_string(),
            "isolation_addresses" => self.isolation_addresses.join(","),
            "heartbeat_datastore_policy" => match self.heartbeat_datastore_policy {
                HeartbeatPolicy::Automatic => "automatic",
                HeartbeatPolicy::Prefer => "prefer",
                HeartbeatPolicy::Only => "only",
            }
            .to_string(),
            "heartbeat_datastores" if self.heartbeat_datastores.is_empty() => "none".to_string(),
            "heartbeat_datastores" => {
                let ids: Vec<&str> = self
                    .heartbeat_datastores
                    .iter()
                    .map(|d| d.as_str())
                    .collect();
                ids.join(",")
            }
            "use_default_isolation_address" => self.use_default_isolation_address.to_string(),
            "ignore_redundant_network_warning" => self.ignore_redundant_network_warning.to_string(),
            "ignore_insufficient_heartbeat_datastores" => {
                self.ignore_insufficient_heartbeat_datastores.to_string()
            }
            "concurrent_restarts_per_host" => self.concurrent_restarts_per_host.to_string(),
            "heartbeat_datastores_per_host" => self.heartbeat_datastores_per_host.to_string(),
            "restart_retry_delays" => {
                let delays = self.restart_retry_delays.iter().copied();
                let delays: Vec<String> = delays.map(format_duration).collect();
                delays.join(",")
            }
            "isolation_response" => match self.isolation_response {
                IsolationResponse::LeavePoweredOn => "leave_powered_on",
                IsolationResponse::PowerOff => "power_off",
                IsolationResponse::ShutDown => "shut_down",
            }
            .to_string(),
            "pdl_response" => match self.pdl_response {
                PdlResponse::Disabled => "disabled",
                PdlResponse::Warn => "warn",
                PdlResponse::Restart => "restart",
            }
            .to_string(),
            "apd_response" => match self.apd_response {
                ApdResponse::Disabled => "disabled",
                ApdResponse::Warn => "warn",
                ApdResponse::RestartConservative => "restart_conservative",
                ApdResponse::RestartAggressive => "restart_aggressive",
            }
            .to_string(),
            "apd_cleared_response" => match self.apd_cleared_reset {
                false => "none",
                true => "reset",
            }
            .to_string(),
            "frozen_limit" => self
                .frozen_limit
                .map_or_else(|| "off".to_string(), format_duration),
            "fence_policy" => match self.fence_policy {
                FencePolicy::Off => "off",
                FencePolicy::Dead => "dead",
                FencePolicy::Suspected => "suspected",
            }
            .to_string(),
            "fence_cut_off" => match self.fence_cut_off {
                FenceCutOff::Never => "never",
                FenceCutOff::Isolated => "isolated",
                FenceCutOff::Partitioned => "partitioned",
            }
            .to_string(),
            "fence_action" => match self.fence_action {
                FenceAction::Off => "off",
                FenceAction::Cycle => "cycle",
            }
            .to_string(),
            "host_shutdown" => match self.host_shutdown {
                HostShutdown::RestartElsewhere => "restart_elsewhere",
                HostShutdown::Wait => "wait",
            }
            .to_string(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Profile, SETTINGS, Values};

    #[test]
    fn every_setting_can_be_read_and_what_was_read_can_be_set() {
        for profile in [Profile::Classic, Profile::Balanced, Profile::Fast] {
            let settings = Settings::of(profile);
            let mut copy = Settings::of(Profile::Balanced);
            for setting in SETTINGS {
                let value = settings
                    .get(setting.key)
                    .unwrap_or_else(|| panic!("{} cannot be read", setting.key));
                copy.set(setting.key, &value)
                    .unwrap_or_else(|error| panic!("{error}"));
            }
            assert_eq!(copy, settings);
        }
    }

    #[test]
    fn every_value_of_a_policy_is_read_as_it_was_set() {
        for setting in SETTINGS {
            let words = match setting.values {
                Values::Said(words) if words.contains(", ") => words,
                Values::TimeOrOff(_) => "off",
                _ => continue,
            };
            for word in words.split(", ") {
                let mut settings = Settings::default();
                settings.set(setting.key, word).expect("a value");
                assert_eq!(settings.get(setting.key).as_deref(), Some(word));
            }
        }
    }

    #[test]
    fn a_key_that_is_none_has_no_value() {
        assert_eq!(Settings::default().get("no_such_setting"), None);
    }
}
