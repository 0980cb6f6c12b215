//! Every setting by the key that `cluster.toml` and scenarios use, with its values and what it does.

use super::duration::format_duration;
use crate::time::Duration;
use core::fmt;

/// The times that a setting takes, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The least.
    pub low: Duration,
    /// The greatest.
    pub high: Duration,
}

impl Span {
    /// True when the setting takes that time.
    #[must_use]
    pub fn takes(&self, time: Duration) -> bool {
        (self.low..=self.high).contains(&time)
    }
}

/// What a setting takes. Shown as a person reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Values {
    /// Some words, or what these words say.
    Said(&'static str),
    /// A time.
    Time(Span),
    /// A time, or `off`.
    TimeOrOff(Span),
    /// One time or more, with commas between.
    Times(Span),
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, span) = match self {
            Self::Said(words) => return f.write_str(words),
            Self::Time(span) => ("a time", span),
            Self::TimeOrOff(span) => ("off, or a time", span),
            Self::Times(span) => ("times with commas between, each", span),
        };
        let (low, high) = (format_duration(span.low), format_duration(span.high));
        write!(f, "{before} from {low} to {high}")
    }
}

/// Documentation of one setting.
#[derive(Clone, Copy, Debug)]
pub struct SettingDoc {
    /// Key in `cluster.toml` and in scenarios.
    pub key: &'static str,
    /// Its values.
    pub values: Values,
    /// What it does.
    pub what: &'static str,
}

/// No timer of a cluster means anything beyond a day.
const DAY_MS: u64 = 24 * 3_600_000;

const fn doc(key: &'static str, values: &'static str, what: &'static str) -> SettingDoc {
    let values = Values::Said(values);
    SettingDoc { key, values, what }
}

/// From `low_ms` to a day.
const fn span(low_ms: u64) -> Span {
    Span {
        low: Duration::from_millis(low_ms),
        high: Duration::from_millis(DAY_MS),
    }
}

const fn time(key: &'static str, low_ms: u64, what: &'static str) -> SettingDoc {
    let values = Values::Time(span(low_ms));
    SettingDoc { key, values, what }
}

/// Every setting that can be named, in the order in which it is documented.
pub const SETTINGS: &[SettingDoc] = &[
    doc(
        "profile",
        "classic, balanced, fast",
        "named set of all timers",
    ),
    time("network_heartbeat", 10, "between two network heartbeats"),
    time(
        "datastore_heartbeat",
        10,
        "between two datastore heartbeats, and between two reads of them",
    ),
    time(
        "election_start",
        20,
        "a secondary without its primary starts an election",
    ),
    time("election", 20, "how long an election lasts"),
    time(
        "elected_to_restart",
        0,
        "from being elected to the first restarts",
    ),
    time(
        "isolation_ping",
        0,
        "a secondary without network pings isolation addresses",
    ),
    time(
        "isolation_declare",
        10,
        "a secondary declares itself isolated",
    ),
    time(
        "primary_isolation_declare",
        100,
        "a primary declares itself isolated",
    ),
    time("isolation_policy_delay", 0, "from declaring to acting"),
    time(
        "look_datastore",
        0,
        "the primary looks at a silent secondary's datastore heartbeat from here on",
    ),
    time(
        "unreachable",
        10,
        "a silent secondary is called unreachable and pinged",
    ),
    time(
        "dead_without_datastores",
        10,
        "a silent secondary without heartbeat datastores is called dead",
    ),
    time(
        "dead",
        10,
        "a silent secondary with heartbeat datastores is called dead, or its agent unreachable",
    ),
    time(
        "poweron_poll",
        10,
        "between two reads of the powered-on lists of cut-off hosts",
    ),
    time(
        "freeze",
        20,
        "a VM whose right to run was not renewed for so long is frozen",
    ),
    time(
        "break",
        20,
        "a lock may be broken when its holder's heartbeat stood still for longer",
    ),
    time(
        "apd_timeout",
        1_000,
        "all paths down is declared when no operation was answered for so long",
    ),
    time(
        "apd_delay",
        0,
        "from the declaration of all paths down to the reaction",
    ),
    doc(
        "clock_drift_ppm",
        "0 to 100000",
        "how far clocks may be off, in millionths",
    ),
    time("guard_latency", 1, "the guard's worst latency"),
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
    time(
        "isolation_shutdown_timeout",
        0,
        "a clean shutdown becomes a hard stop",
    ),
    doc(
        "max_restart_attempts",
        "0 to 100",
        "retries after the first attempt",
    ),
    SettingDoc {
        key: "restart_retry_delays",
        values: Values::Times(span(1000)),
        what: "waits before each retry; the last one repeats",
    },
    doc(
        "heartbeat_datastores_per_host",
        "0 to 5",
        "datastores on which the primary looks for a host's heartbeat",
    ),
    doc(
        "pdl_response",
        "disabled, warn, restart",
        "what becomes of VMs whose device is gone on their host: nothing, an event, or a restart elsewhere",
    ),
    doc(
        "apd_response",
        "disabled, warn, restart_conservative, restart_aggressive",
        "what becomes of VMs whose host lost all paths to their datastore: nothing, an event, a restart where another host is known to run them, or also where that is not known",
    ),
    doc(
        "apd_cleared_response",
        "none, reset",
        "what becomes of a VM whose paths are back between apd_timeout and the end of apd_delay: it goes on, or is reset",
    ),
    SettingDoc {
        key: "frozen_limit",
        values: Values::TimeOrOff(span(1000)),
        what: "a VM frozen for longer is killed",
    },
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
    time(
        "order_timeout",
        1_000,
        "a host that was told to start a VM and says nothing is asked again",
    ),
    time(
        "clock_check_interval",
        10_000,
        "over which the primary compares each host's clock with its own; longer measures finer drifts",
    ),
    time(
        "image_lock_check_interval",
        1_000,
        "between two looks whether a datastore shows one host the image locks of another",
    ),
    time(
        "isolation_check_interval",
        1_000,
        "between two checks of each isolation address while all is well",
    ),
    doc(
        "concurrent_restarts_per_host",
        "1 to 1000",
        "starts under way on one host at a time",
    ),
    time(
        "dependency_timeout",
        0,
        "a VM waits no longer for the VMs that it depends on",
    ),
    time(
        "host_shutdown_timeout",
        0,
        "guests of a host that is shut down get so long to shut down themselves",
    ),
    time(
        "planned_restart",
        1_000,
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
    doc(
        "fence_policy",
        "off, dead, suspected",
        "which hosts their fence devices may switch off: none, dead ones, or also those that seem to be",
    ),
    doc(
        "fence_cut_off",
        "never, isolated, partitioned",
        "which hosts they may switch off although those live: none, isolated ones, or partitioned ones too",
    ),
    doc(
        "fence_action",
        "off, cycle",
        "whether a host that was switched off is switched on again when its VMs are taken over",
    ),
    time(
        "fence_timeout",
        1_000,
        "a fence device has so long to do what it is told, and to show that it did",
    ),
    time(
        "fence_delay",
        0,
        "a primary waits so long before it switches off while another may mean to switch off its own hosts",
    ),
    time("fence_retry", 1_000, "from a fence that failed to the next"),
    time(
        "fence_boot_time",
        0,
        "a host that has power again after its fence device did not answer is given so long to boot",
    ),
    time(
        "fence_check_interval",
        10_000,
        "between two looks at each fence device while all is well",
    ),
];
