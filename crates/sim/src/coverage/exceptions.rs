//! What the simulator's campaigns cannot reach, and why.

use super::Group;
use crate::scenario::EVENTS;

/// One exception.
struct Exception {
    group: Group,
    /// The item; for a verdict also a state that it changes from or to.
    item: &'static str,
    why: &'static str,
    /// The event that ends the exception once the simulator plays it.
    until: Option<&'static str>,
}

const fn never(group: Group, item: &'static str, why: &'static str) -> Exception {
    Exception {
        group,
        item,
        why,
        until: None,
    }
}

/// An exception for as long as the simulator does not play `event`.
const fn until(
    event: &'static str,
    group: Group,
    item: &'static str,
    why: &'static str,
) -> Exception {
    Exception {
        group,
        item,
        why,
        until: Some(event),
    }
}

const EXCEPTIONS: &[Exception] = &[
    until(
        "maintenance.enter",
        Group::Verdict,
        "maintenance",
        "no host enters maintenance",
    ),
    until(
        "config.set",
        Group::Waiting,
        "monitoring_off",
        "host_monitoring stays on, or L2 would have nothing to demand",
    ),
    never(
        Group::Waiting,
        "holder_unknown",
        "no host is taken out of the configuration",
    ),
    never(
        Group::Issue,
        "no_shared_datastore",
        "hosts share each datastore that VMs are on, or L2 would have nothing to demand",
    ),
    never(
        Group::Issue,
        "clock_drift",
        "clocks drift within the bound that safety assumes",
    ),
    never(
        Group::Issue,
        "no_isolation_address",
        "every simulated network has a gateway",
    ),
    never(
        Group::Fault,
        "fence_device.lies",
        "a proof by power assumes that no device calls off what runs; scenarios play it",
    ),
    never(
        Group::Issue,
        "guard_weak",
        "the agent's process sees how well the guard is protected.",
    ),
    never(
        Group::Issue,
        "hypervisor_weak",
        "the agent's process asks the drivers.",
    ),
    never(
        Group::Issue,
        "datastore_weak",
        "the agent's process opens datastores.",
    ),
    never(
        Group::Issue,
        "state_not_kept",
        "the agent's process keeps what must survive it.",
    ),
    never(
        Group::Issue,
        "address_missing",
        "the agent's process has the addresses.",
    ),
    never(
        Group::Issue,
        "stream_broken",
        "the agent's process makes the streams.",
    ),
    never(
        Group::Issue,
        "no_watchdog",
        "the agent's process has the watchdog.",
    ),
    never(
        Group::Issue,
        "host_was_reset",
        "the guard's process has the watchdog.",
    ),
    never(
        Group::Issue,
        "cannot_probe",
        "a simulated host can always ping",
    ),
    never(
        Group::Issue,
        "same_host_id",
        "every simulated host has an id of its own",
    ),
    never(
        Group::Issue,
        "records_missing",
        "records are made before the run and stay",
    ),
    never(
        Group::Issue,
        "lock_went_back",
        "no simulated datastore is restored from a snapshot",
    ),
    never(
        Group::Issue,
        "list_full",
        "a campaign has fewer VMs than a protected list has slots",
    ),
    never(
        Group::Issue,
        "config_not_kept",
        "a simulated host's local disk takes every write",
    ),
    never(
        Group::Issue,
        "agent_hangs",
        "said by the guard's process, of which the simulator has the rules only",
    ),
];

/// Why an item cannot be reached; none: it must be.
pub(super) fn exception(group: Group, item: &str) -> Option<&'static str> {
    let playable = |name: &str| EVENTS.iter().any(|e| e.name == name && e.playable);
    let meets = |e: &&Exception| {
        e.group == group
            && !e.until.is_some_and(playable)
            && (e.item == item
                || (group == Group::Verdict && item.split(" -> ").any(|state| state == e.item)))
    };
    EXCEPTIONS.iter().find(meets).map(|e| e.why)
}

/// What the table names.
#[cfg(test)]
pub(super) fn items() -> impl Iterator<Item = (Group, &'static str)> {
    EXCEPTIONS.iter().map(|e| (e.group, e.item))
}
