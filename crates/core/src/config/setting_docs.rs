//! Every setting by the key that `cluster.toml` and scenarios use, with its values and what it does.

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
