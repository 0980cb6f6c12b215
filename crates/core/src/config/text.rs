//! The value of each setting as text, as [`Settings::set`] takes it.

use super::settings::{
    ApdResponse, HeartbeatPolicy, HostShutdown, IsolationResponse, PdlResponse, Settings,
    format_duration,
};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

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
    use crate::config::{Profile, SETTINGS};

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
        for setting in SETTINGS.iter().filter(|s| s.values.contains(", ")) {
            let words = setting.values.split(", ").filter(|w| *w != "time");
            for word in words.filter(|_| !setting.values.starts_with("times")) {
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
