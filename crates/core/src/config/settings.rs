//! The cluster's settings: every timer, limit and policy, by the key that `cluster.toml` and
//! scenarios use, with its unit, range and default.

use super::timing::{Profile, Timing};
use crate::id::DatastoreId;
use crate::time::Duration;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What a host does with its VMs when it is isolated (seed "VMware High Availability Constructs").
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IsolationResponse {
    /// Nothing: the VMs run on.
    #[default]
    LeavePoweredOn,
    /// Hard stop.
    PowerOff,
    /// Clean guest shutdown, hard stop after `isolation_shutdown_timeout`.
    ShutDown,
}

/// In which order VMs are restarted.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum RestartPriority {
    /// First.
    Highest,
    /// Before most.
    High,
    /// The default.
    #[default]
    Medium,
    /// After most.
    Low,
    /// Last.
    Lowest,
    /// Never restarted.
    Disabled,
}

/// Reaction to permanent device loss.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PdlResponse {
    /// None.
    Disabled,
    /// An event.
    Warn,
    /// Restart on another host.
    #[default]
    Restart,
}

/// Reaction to all paths down.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApdResponse {
    /// None.
    Disabled,
    /// An event.
    Warn,
    /// Restart only where another host is known to be able to run the VM.
    #[default]
    RestartConservative,
    /// Restart also where that is not known.
    RestartAggressive,
}

/// What happens to the VMs of a host that its admin shuts down.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostShutdown {
    /// They are restarted on other hosts.
    #[default]
    RestartElsewhere,
    /// They wait for the host.
    Wait,
}

/// How heartbeat datastores are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeartbeatPolicy {
    /// From all that hosts share; the admin's list is not looked at.
    Automatic,
    /// The admin's list first, then from all.
    #[default]
    Prefer,
    /// From the admin's list alone.
    Only,
}

/// All settings of a cluster.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(from = "super::text::Written", into = "super::text::Written")]
pub struct Settings {
    /// The profile that the timers began with.
    pub profile: Profile,
    /// All timers.
    pub timing: Timing,
    /// False: no host failure is reacted to.
    pub host_monitoring: bool,
    /// Reaction to isolation for VMs without one of their own.
    pub isolation_response: IsolationResponse,
    /// Time for a clean shutdown before the hard stop.
    pub isolation_shutdown_timeout: Duration,
    /// Restarts after the first attempt (seed "VMware High Availability Constructs", `das.maxvmrestartcount`: 5).
    pub max_restart_attempts: u32,
    /// Waits before each retry; the last one repeats (the same seed: 2, 4, 8, 8, 8 minutes).
    pub restart_retry_delays: Vec<Duration>,
    /// Datastores on which each host writes heartbeats for the primary's verdict.
    pub heartbeat_datastores_per_host: u32,
    /// Reaction to permanent device loss.
    pub pdl_response: PdlResponse,
    /// Reaction to all paths down.
    pub apd_response: ApdResponse,
    /// After all paths down cleared before the reaction: reset the VM?
    pub apd_cleared_reset: bool,
    /// A VM frozen for longer is killed; none: never.
    pub frozen_limit: Option<Duration>,
    /// What happens to the VMs of a host that its admin shuts down.
    pub host_shutdown: HostShutdown,
    /// Break locks on `open` datastores without proof of death: late writes of the old holder may land.
    pub accept_late_writes: bool,
    /// A host given an order that says nothing for this long is asked again.
    pub order_timeout: Duration,
    /// Time between two checks of each isolation address while other hosts are heard.
    pub isolation_check_interval: Duration,
    /// Starts under way on one host at a time; further ones wait (`das.perHostConcurrentFailoversLimit`: 32).
    pub concurrent_restarts_per_host: u32,
    /// A VM waits no longer than this for the VMs that it depends on.
    pub dependency_timeout: Duration,
    /// Guests get so long to shut down when their host is shut down; then they are switched off.
    pub host_shutdown_timeout: Duration,
    /// Addresses outside the cluster that answer as long as a host has a network, beyond the gateways: IP
    /// addresses, or `tcp://IP:PORT` where pings are dropped. At most ten.
    pub isolation_addresses: Vec<String>,
    /// The default gateway of each management network is an isolation address too.
    pub use_default_isolation_address: bool,
    /// How heartbeat datastores are chosen.
    pub heartbeat_datastore_policy: HeartbeatPolicy,
    /// The admin's list of heartbeat datastores.
    pub heartbeat_datastores: BTreeSet<DatastoreId>,
    /// Say nothing of hosts with one management network.
    pub ignore_redundant_network_warning: bool,
    /// Say nothing of hosts with too few heartbeat datastores.
    pub ignore_insufficient_heartbeat_datastores: bool,
    /// Right to run of a host's VMs while its agent or guard are restarted on purpose.
    pub planned_restart: Duration,
    /// Time between two looks whether hypervisors' locks on disk images are seen by other hosts.
    pub image_lock_check_interval: Duration,
    /// Time over which other hosts' clocks are compared with this one.
    pub clock_check_interval: Duration,
    /// Settings of a newer version, as text: kept for the agents that know them.
    pub later: BTreeMap<String, String>,
}

/// Longer than replacing a package and starting two daemons takes.
fn planned_restart() -> Duration {
    Duration::from_secs(60)
}

fn concurrent_restarts() -> u32 {
    32
}

/// As long as vSphere lets lower priorities wait for higher ones.
fn dependency_timeout() -> Duration {
    Duration::from_secs(600)
}

/// Within what service managers commonly give a service to stop (90 s).
fn host_shutdown_timeout() -> Duration {
    Duration::from_secs(75)
}

/// Often enough to find a wrong address long before it is needed, rarely enough to burden nobody's router.
fn isolation_check_interval() -> Duration {
    Duration::from_secs(30)
}

/// Documentation of one setting.
#[derive(Clone, Copy, Debug)]
pub struct SettingDoc {
    /// Key in `cluster.toml` and in scenarios.
    pub key: &'static str,
    /// Its values, with the unit.
    pub values: &'static str,
    /// What it does.
    pub what: &'static str,
}

const fn doc(key: &'static str, values: &'static str, what: &'static str) -> SettingDoc {
    SettingDoc { key, values, what }
}

/// Every setting that can be named, in the order in which it is documented.
pub const SETTINGS: &[SettingDoc] = &[
    doc(
        "profile",
        "classic, balanced, fast",
        "named set of all timers",
    ),
    doc(
        "network_heartbeat",
        "time",
        "between two network heartbeats",
    ),
    doc(
        "datastore_heartbeat",
        "time",
        "between two datastore heartbeats, and between two reads of them",
    ),
    doc(
        "election_start",
        "time",
        "a secondary without its primary starts an election",
    ),
    doc("election", "time", "how long an election lasts"),
    doc(
        "elected_to_restart",
        "time",
        "from being elected to the first restarts",
    ),
    doc(
        "isolation_ping",
        "time",
        "a secondary without network pings isolation addresses",
    ),
    doc(
        "isolation_declare",
        "time",
        "a secondary declares itself isolated",
    ),
    doc(
        "primary_isolation_declare",
        "time",
        "a primary declares itself isolated",
    ),
    doc("isolation_policy_delay", "time", "from declaring to acting"),
    doc(
        "look_datastore",
        "time",
        "the primary looks at a silent secondary's datastore heartbeat from here on",
    ),
    doc(
        "unreachable",
        "time",
        "a silent secondary is called unreachable and pinged",
    ),
    doc(
        "dead_without_datastores",
        "time",
        "a silent secondary without heartbeat datastores is called dead",
    ),
    doc(
        "dead",
        "time",
        "a silent secondary with heartbeat datastores is called dead, or its agent unreachable",
    ),
    doc(
        "poweron_poll",
        "time",
        "between two reads of the powered-on lists of cut-off hosts",
    ),
    doc(
        "freeze",
        "time",
        "a VM whose right to run was not renewed for so long is frozen",
    ),
    doc(
        "break",
        "time",
        "a lock may be broken when its holder's heartbeat stood still for longer",
    ),
    doc("apd_timeout", "time", "all paths down is declared"),
    doc(
        "apd_delay",
        "time",
        "from the declaration to the restart elsewhere",
    ),
    doc(
        "clock_drift_ppm",
        "0 to 100000",
        "how far clocks may be off, in millionths",
    ),
    doc("guard_latency", "time", "the guard's worst latency"),
    doc(
        "host_monitoring",
        "true, false",
        "react to failures of hosts",
    ),
    doc(
        "isolation_response",
        "leave_powered_on, power_off, shut_down",
        "what an isolated host does with its VMs",
    ),
    doc(
        "isolation_shutdown_timeout",
        "time",
        "a clean shutdown becomes a hard stop",
    ),
    doc(
        "max_restart_attempts",
        "0 to 100",
        "retries after the first attempt",
    ),
    doc(
        "restart_retry_delays",
        "times, separated by commas",
        "waits before each retry; the last one repeats",
    ),
    doc(
        "heartbeat_datastores_per_host",
        "0 to 5",
        "datastores on which the primary looks for a host's heartbeat",
    ),
    doc(
        "pdl_response",
        "disabled, warn, restart",
        "reaction to permanent device loss",
    ),
    doc(
        "apd_response",
        "disabled, warn, restart_conservative, restart_aggressive",
        "reaction to all paths down",
    ),
    doc(
        "apd_cleared_response",
        "none, reset",
        "reaction when all paths down clears in between",
    ),
    doc(
        "frozen_limit",
        "time, off",
        "a VM frozen for longer is killed",
    ),
    doc(
        "host_shutdown",
        "restart_elsewhere, wait",
        "what happens to VMs of a host that its admin shuts down",
    ),
    doc(
        "accept_late_writes",
        "true, false",
        "break locks on open datastores without proof of death (a weakness)",
    ),
    doc(
        "order_timeout",
        "time",
        "a host that was told to start a VM and says nothing is asked again",
    ),
    doc(
        "clock_check_interval",
        "time",
        "over which the primary compares each host's clock with its own; longer measures finer drifts",
    ),
    doc(
        "image_lock_check_interval",
        "time",
        "between two looks whether a datastore shows one host the image locks of another",
    ),
    doc(
        "isolation_check_interval",
        "time",
        "between two checks of each isolation address while all is well",
    ),
    doc(
        "concurrent_restarts_per_host",
        "1 to 1000",
        "starts under way on one host at a time",
    ),
    doc(
        "dependency_timeout",
        "time",
        "a VM waits no longer for the VMs that it depends on",
    ),
    doc(
        "host_shutdown_timeout",
        "time",
        "guests of a host that is shut down get so long to shut down themselves",
    ),
    doc(
        "planned_restart",
        "time",
        "right to run while agent or guard are restarted on purpose",
    ),
    doc(
        "isolation_addresses",
        "none or up to ten of IP and tcp://IP:PORT with commas between",
        "answer as long as a host has a network, beyond the gateways",
    ),
    doc(
        "use_default_isolation_address",
        "true, false",
        "the gateway of each management network is an isolation address",
    ),
    doc(
        "heartbeat_datastore_policy",
        "automatic, prefer, only",
        "heartbeat datastores are chosen from all, from the list first, or from the list alone",
    ),
    doc(
        "heartbeat_datastores",
        "none or ids with commas between",
        "the admin's list of heartbeat datastores",
    ),
    doc(
        "ignore_redundant_network_warning",
        "true, false",
        "say nothing of hosts with one management network",
    ),
    doc(
        "ignore_insufficient_heartbeat_datastores",
        "true, false",
        "say nothing of hosts with too few heartbeat datastores",
    ),
];

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

/// Reads `300ms`, `30s`, `5m`, `1h`, also with a decimal point.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number.trim().parse().ok()?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        _ => return None,
    };
    if !(0.0..=1e9).contains(&seconds) {
        return None;
    }
    // Whole microseconds, so that 0.3 s and 300 ms are one value.
    let exact = Duration::from_secs_f64(seconds) + Duration::from_nanos(500);
    Some(Duration::from_micros(
        u64::try_from(exact.as_micros()).ok()?,
    ))
}

/// Writes a duration as [`parse_duration`] reads it.
#[must_use]
pub fn format_duration(d: Duration) -> String {
    let ms = crate::time::millis(d);
    match ms {
        0 => "0s".to_string(),
        ms if ms % 3_600_000 == 0 => format!("{}h", ms / 3_600_000),
        ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
        ms if ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::of(Profile::Balanced)
    }
}

impl Settings {
    /// All defaults, with the timers of `profile`.
    #[must_use]
    pub fn of(profile: Profile) -> Self {
        let minutes = |m: u64| Duration::from_secs(60 * m);
        Self {
            profile,
            timing: Timing::of(profile),
            host_monitoring: true,
            isolation_response: IsolationResponse::LeavePoweredOn,
            isolation_shutdown_timeout: Duration::from_secs(300),
            max_restart_attempts: 5,
            restart_retry_delays: alloc::vec![minutes(2), minutes(4), minutes(8)],
            heartbeat_datastores_per_host: 2,
            pdl_response: PdlResponse::Restart,
            apd_response: ApdResponse::RestartConservative,
            apd_cleared_reset: false,
            frozen_limit: None,
            host_shutdown: HostShutdown::RestartElsewhere,
            accept_late_writes: false,
            order_timeout: Duration::from_secs(60),
            isolation_check_interval: isolation_check_interval(),
            concurrent_restarts_per_host: concurrent_restarts(),
            dependency_timeout: dependency_timeout(),
            host_shutdown_timeout: host_shutdown_timeout(),
            planned_restart: planned_restart(),
            image_lock_check_interval: Duration::from_secs(300),
            clock_check_interval: Duration::from_secs(300),
            later: BTreeMap::new(),
            isolation_addresses: Vec::new(),
            use_default_isolation_address: true,
            heartbeat_datastore_policy: HeartbeatPolicy::Prefer,
            heartbeat_datastores: BTreeSet::new(),
            ignore_redundant_network_warning: false,
            ignore_insufficient_heartbeat_datastores: false,
        }
    }

    /// The wait before retry number `retry`, counted from 0.
    #[must_use]
    pub fn retry_delay(&self, retry: u32) -> Duration {
        let index = usize::try_from(retry).unwrap_or(usize::MAX);
        let last = self
            .restart_retry_delays
            .last()
            .copied()
            .unwrap_or(Duration::from_secs(480));
        self.restart_retry_delays
            .get(index)
            .copied()
            .unwrap_or(last)
    }

    /// Sets one setting from its text. `profile` sets all timers, so it must come first.
    ///
    /// # Errors
    /// [`SettingError`]; then nothing was changed.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), SettingError> {
        if !SETTINGS.iter().any(|s| s.key == key) {
            let nearest = nearest(key, SETTINGS.iter().map(|s| s.key)).map(Into::into);
            return Err(SettingError::Unknown {
                key: key.into(),
                nearest,
            });
        }
        self.apply(key, value.trim()).ok_or_else(|| {
            let values = SETTINGS
                .iter()
                .find(|s| s.key == key)
                .map(|s| s.values)
                .unwrap_or_default();
            SettingError::Value {
                key: key.into(),
                value: value.into(),
                values: values.into(),
            }
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
            _ => return None,
        })
    }

    fn apply(&mut self, key: &str, value: &str) -> Option<()> {
        if let Some(timer) = self.timer(key) {
            *timer = parse_duration(value)?;
            return Some(());
        }
        match key {
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
                self.concurrent_restarts_per_host = in_range(value, 1, 1000)?
            }
            "max_restart_attempts" => self.max_restart_attempts = in_range(value, 0, 100)?,
            "heartbeat_datastores_per_host" => {
                self.heartbeat_datastores_per_host = in_range(value, 0, 5)?
            }
            "restart_retry_delays" => {
                let delays: Option<Vec<Duration>> = value.split(',').map(parse_duration).collect();
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
                    Some(parse_duration(value)?)
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

/// The candidate nearest to `word` by edit distance, if it is near enough to be a slip of the pen.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|c| (distance(word, c), c))
        .min()
        .filter(|(d, c)| *d <= 1 + c.len() / 3)
        .map(|(_, c)| c)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut next = alloc::vec![i + 1];
        for (j, cb) in b.iter().enumerate() {
            let above = row.get(j + 1).copied().unwrap_or(usize::MAX);
            let diagonal = row.get(j).copied().unwrap_or(usize::MAX);
            let left = next.last().copied().unwrap_or(usize::MAX);
            next.push(
                (diagonal + usize::from(ca != *cb))
                    .min(above + 1)
                    .min(left + 1),
            );
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_setting_can_be_set() {
        let mut settings = Settings::default();
        for setting in SETTINGS {
            let value = match setting.values {
                v if v.starts_with("time") => "7s",
                v => v.split([',', ' ']).next().expect("a value"),
            };
            assert_eq!(settings.set(setting.key, value), Ok(()), "{}", setting.key);
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

    #[test]
    fn durations_are_read_and_written() {
        for (text, ms) in [
            ("300ms", 300),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1.5s", 1500),
        ] {
            let d = parse_duration(text).expect(text);
            assert_eq!(crate::time::millis(d), ms);
            assert_eq!(parse_duration(&format_duration(d)), Some(d));
        }
        for bad in ["", "5", "s", "-1s", "5 parsecs", "1e99s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
