//! What the configuration itself leaves weak.

use super::Issue;
use crate::config::{ClusterConfig, HostSpec, RestartPriority};
use crate::event::IssueCause;
use crate::id::{DatastoreId, VmId};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// More names than this are counted instead.
const NAMES: usize = 5;

/// A few names, and how many more there are.
fn listed<T: ToString>(names: &[T]) -> String {
    let shown: Vec<String> = names.iter().take(NAMES).map(ToString::to_string).collect();
    match names.len().saturating_sub(NAMES) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// The weaknesses of a configuration.
pub(super) fn issues(config: &ClusterConfig) -> Vec<Issue> {
    let mut all = Vec::new();
    let mut say = |cause, text| all.push(Issue::of_cluster(cause, text));
    let settings = &config.settings;
    if !settings.host_monitoring {
        say(
            IssueCause::MonitoringOff,
            String::from(
                "high availability is off: no VM is restarted when its host is lost (host_monitoring = false); `mainstay config set host_monitoring true`",
            ),
        );
    }
    if let Some(text) = too_few_hosts(config) {
        say(IssueCause::OneHost, text);
    }
    for text in not_shared(config) {
        say(IssueCause::NoSharedDatastore, text);
    }
    if let Some(text) = crate::redundancy::weakness(config) {
        say(IssueCause::OneNetwork, text);
    }
    let disabled = |v: &&crate::config::VmSpec| v.restart_priority == RestartPriority::Disabled;
    let left: Vec<&VmId> = config
        .vms
        .values()
        .filter(disabled)
        .map(|v| &v.id)
        .collect();
    if !left.is_empty() {
        let text = format!(
            "not restarted when their host is lost, because their restart priority is disabled: {}; give each another restart_priority if that is not meant",
            listed(&left)
        );
        say(IssueCause::RestartDisabled, text);
    }
    if settings.accept_late_writes {
        say(
            IssueCause::LateWritesAccepted,
            String::from(
                "accept_late_writes is on: on open datastores a lost host's late writes may land after a restart; switch it off where the storage refuses late writes or hosts can be fenced",
            ),
        );
    }
    all
}

fn too_few_hosts(config: &ClusterConfig) -> Option<String> {
    let takes_vms = |h: &&HostSpec| !h.maintenance;
    let names: Vec<String> = config
        .hosts
        .values()
        .filter(takes_vms)
        .map(|h| h.id.to_string())
        .collect();
    match (config.hosts.len(), names.as_slice()) {
        (0 | 1, _) => Some(String::from(
            "the cluster has one host: nothing can be restarted elsewhere; add another",
        )),
        (_, []) => Some(String::from(
            "all hosts are in maintenance: nothing is restarted; `mainstay maintenance exit` one of them",
        )),
        (_, [only]) => Some(format!(
            "all hosts but {only} are in maintenance: nothing can be restarted elsewhere; `mainstay maintenance exit` another"
        )),
        _ => None,
    }
}

/// VMs whose disks only one host can reach die with it.
fn not_shared(config: &ClusterConfig) -> Vec<String> {
    if config.hosts.len() < 2 {
        return Vec::new();
    }
    let mounts = |d: &DatastoreId| {
        let there = |h: &&HostSpec| h.datastores.contains(d);
        config.hosts.values().filter(there).count()
    };
    if config.datastores.keys().all(|d| mounts(d) < 2) {
        return [String::from(
            "no datastore is mounted by two hosts: no VM can be restarted elsewhere, and a silent network is never told from a dead host; give the hosts a shared datastore",
        )]
        .into();
    }
    let lonely = config.datastores.keys().filter(|d| mounts(d) < 2);
    let of = |d: &DatastoreId| -> Vec<&VmId> {
        let there = |v: &&crate::config::VmSpec| v.datastore == *d;
        config.vms.values().filter(there).map(|v| &v.id).collect()
    };
    lonely
        .map(|d| (d, of(d)))
        .filter(|(_, vms)| !vms.is_empty())
        .map(|(d, vms)| {
            format!(
                "datastore {d} is mounted by {} of the hosts, so that its VMs cannot be restarted elsewhere: {}; mount it on more hosts, or move them",
                mounts(d),
                listed(&vms)
            )
        })
        .collect()
}
