//! A scenario: a cluster, what happens to it, and what is expected.

mod fault;
mod parse;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use fault::{EVENTS, EventDoc, Fault, FenceFault, Names, StorageFault};
pub(crate) use parse::CLUSTER;
pub use parse::{ScenarioError, parse};
pub use write::to_toml;

use crate::clock::Nanos;
use crate::expect::Expect;
use mainstay_core::config::{ClusterConfig, VmSpec};
use mainstay_core::id::{DatastoreId, HostId, VmId};
use std::collections::BTreeMap;

/// What a scenario says of a host beyond its configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct HostSetup {
    /// The host.
    pub id: HostId,
    /// Indices of its management networks.
    pub networks: Vec<usize>,
    /// From power on to a running agent.
    pub boot_time: Nanos,
    /// Drift of its clock at the start, in millionths.
    pub ppm: i64,
    /// The newest format version that its agent understands at the start.
    pub formats: u16,
}

/// What a scenario says of a VM beyond its configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct VmSetup {
    /// The VM.
    pub id: VmId,
    /// Where it is at the start, by index.
    pub host: Option<usize>,
    /// On, and protected, before zero.
    pub on: bool,
    /// Start request to running.
    pub start_time: Nanos,
    /// Clean shutdown asked for to powered off; none: it ignores it.
    pub shutdown_time: Option<Nanos>,
}

/// What a scenario says of a datastore beyond its configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct DatastoreSetup {
    /// The datastore.
    pub id: DatastoreId,
    /// The storage knows who has an image open.
    pub image_locks: bool,
    /// How long it keeps those of a host that it lost.
    pub image_lock_expiry: Nanos,
}

/// A host's fence device.
#[derive(Clone, PartialEq, Debug)]
pub struct FenceSetup {
    /// The host that it is meant for, by index.
    pub host: usize,
    /// The host whose power it really has; none: a machine outside the cluster.
    pub switches: Option<usize>,
    /// From being told to having switched; it tells the power in a quarter of that.
    pub takes: Nanos,
    /// It has no power where its host has none, and answers nobody then.
    pub dies_with_host: bool,
    /// It can be asked who it switches, before it does.
    pub says_who: bool,
}

/// One planned event.
#[derive(Clone, PartialEq, Debug)]
pub struct Planned {
    /// When, counted from zero.
    pub at: Nanos,
    /// What.
    pub fault: Fault,
}

/// Disturbances that are there all the time: how bad network, storage and guard are. Drawn for a
/// campaign's runs; calm in a scenario that does not say otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Weather {
    /// Datagrams lost, in thousandths.
    pub loss: u64,
    /// Datagrams doubled, in thousandths.
    pub duplication: u64,
    /// Streams that break and are connected anew, in thousandths of their messages.
    pub reset: u64,
    /// Messages late, in thousandths.
    pub delay: u64,
    /// How late at most, in milliseconds.
    pub delay_ms: u64,
    /// Storage operations that stall, in thousandths.
    pub stall: u64,
    /// For how long at most, in milliseconds.
    pub stall_ms: u64,
    /// Storage operations whose acknowledgement is lost, in thousandths.
    pub lost_ack: u64,
    /// Effects of such operations that come much later, of 100.
    pub late_effect: u64,
    /// How much later at most, in milliseconds.
    pub late_ms: u64,
    /// Storage operations that fail for certain, in thousandths.
    pub not_done: u64,
    /// The driver's patience with one operation in milliseconds; 0: endless.
    pub patience_ms: u64,
    /// The guard takes up to this share of its worst latency, of 100.
    pub guard_slow: u64,
    /// The weather is calm from this many milliseconds after zero on; 0: never.
    pub until_ms: u64,
}

/// A whole scenario, checked.
#[derive(Clone, PartialEq, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// Where its expectations come from.
    pub source: Option<String>,
    /// Virtual time after zero.
    pub duration: Nanos,
    /// Seed of everything random.
    pub seed: u64,
    /// The cluster as its agents see it.
    pub config: ClusterConfig,
    /// Names of the management networks.
    pub networks: Vec<String>,
    /// Hosts, in the file's order.
    pub hosts: Vec<HostSetup>,
    /// VMs, in the file's order.
    pub vms: Vec<VmSetup>,
    /// VMs that events make: not in the configuration before.
    pub created: BTreeMap<VmId, VmSpec>,
    /// Datastores, in the file's order.
    pub datastores: Vec<DatastoreSetup>,
    /// Fence devices, in the file's order.
    pub fences: Vec<FenceSetup>,
    /// What happens, by time.
    pub events: Vec<Planned>,
    /// What is expected.
    pub expects: Vec<Expect>,
    /// Disturbances that are there all the time.
    pub weather: Weather,
    /// Liveness is demanded at the end: all faults are over for long enough.
    pub liveness: bool,
}

impl Scenario {
    /// The names behind the indices.
    #[must_use]
    pub fn names(&self) -> Names {
        Names {
            hosts: self.hosts.iter().map(|h| h.id.to_string()).collect(),
            vms: self.vms.iter().map(|v| v.id.to_string()).collect(),
            datastores: self.datastores.iter().map(|d| d.id.to_string()).collect(),
            networks: self.networks.clone(),
        }
    }

    /// Where each VM is at the start, by index: where the scenario says, else, for one that is on, the host with
    /// the most free memory among those that mount its datastore. None for one that is off and has no host.
    #[must_use]
    pub fn homes(&self) -> Vec<Option<usize>> {
        let spec = |vm: &VmSetup| {
            let known = self.config.vms.get(&vm.id);
            known.or_else(|| self.created.get(&vm.id))
        };
        let host = |h: &HostSetup| self.config.hosts.get(&h.id);
        let all: Vec<u64> = self
            .hosts
            .iter()
            .map(|h| host(h).map_or(0, |h| h.memory_mb))
            .collect();
        let mut homes: Vec<Option<usize>> = self.vms.iter().map(|vm| vm.host).collect();
        let mut planned = vec![0_u64; self.hosts.len()];
        for (vm, home) in self.vms.iter().zip(&homes) {
            if let Some(sum) = home.and_then(|h| planned.get_mut(h)) {
                *sum += spec(vm).map_or(0, |s| s.memory_mb);
            }
        }
        for (vm, home) in self.vms.iter().zip(&mut homes) {
            let Some(spec) = spec(vm).filter(|_| vm.on && home.is_none()) else {
                continue;
            };
            let mounts = |h: &usize| {
                let setup = self.hosts.get(*h).and_then(host);
                setup.is_some_and(|s| s.datastores.contains(&spec.datastore))
            };
            let free = |h: usize| {
                let of = |list: &[u64]| list.get(h).copied().unwrap_or(0);
                of(&all).saturating_sub(of(&planned))
            };
            *home = (0..self.hosts.len())
                .filter(mounts)
                .max_by_key(|h| (free(*h), usize::MAX - h));
            if let Some(sum) = home.and_then(|h| planned.get_mut(h)) {
                *sum += spec.memory_mb;
            }
        }
        homes
    }

    /// Names of the events that nothing here can play, each once.
    #[must_use]
    pub fn unplayable(&self) -> Vec<&'static str> {
        let mut names: Vec<&'static str> = Vec::new();
        for planned in &self.events {
            if let Fault::NotPlayable(name) = planned.fault
                && !names.contains(&name)
            {
                names.push(name);
            }
        }
        names
    }
}
