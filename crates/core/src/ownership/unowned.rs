//! Datastores that this primary should own and does not: a weakness that is said, a reason to make room
//! for a host that can own them, and VMs that fail meanwhile and wait.

use super::Own;
use crate::agent::Agent;
use crate::event::{AbdicationCause, EventKind, HostState, IssueCause, WaitCause};
use crate::health::Issue;
use crate::id::{DatastoreId, VmId};
use crate::lock::LockName;
use crate::tasks::TaskFor;
use crate::time::{Duration, Instant};
use crate::wire::{Desired, LockRecord};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// What a primary does not own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unowned {
    /// Since when; a datastore that is owned is not here.
    since: BTreeMap<DatastoreId, Instant>,
    /// VMs that should run and do not, of which nobody here is in charge.
    waiting: BTreeMap<VmId, String>,
}

impl Agent {
    /// Once in each heartbeat interval.
    pub(crate) fn watch_unowned(&mut self) {
        let since = core::mem::take(&mut self.unowned.since);
        if !self.role.is_primary() {
            self.unowned.waiting.clear();
            return;
        }
        let now = self.now;
        let of = |d: &DatastoreId| since.get(d).copied().unwrap_or(now);
        let unowned = self.config.datastores.keys();
        let unowned = unowned.filter(|d| self.acting(d).is_none());
        self.unowned.since = unowned.map(|d| (d.clone(), of(d))).collect();
        if !self.unowned.waiting.is_empty() {
            let mut waiting = core::mem::take(&mut self.unowned.waiting);
            waiting.retain(|vm, _| {
                let home = self.config.vms.get(vm).map(|spec| &spec.datastore);
                home.is_some_and(|d| self.unowned.since.contains_key(d))
                    && self.locate(vm).is_none()
            });
            self.unowned.waiting = waiting;
        }
        self.make_room_for_an_owner();
    }

    /// Longer than a takeover of the owner lock takes.
    fn too_long_unowned(&self) -> Duration {
        self.timing().dead + self.timing().r#break
    }

    /// Datastores with VMs that have been without this owner for too long, and that nobody else owns.
    fn neglected(&self, now: Instant) -> Vec<&DatastoreId> {
        let limit = self.too_long_unowned();
        let long = self.unowned.since.iter();
        let long: Vec<&DatastoreId> = long
            .filter(|(d, since)| now.since(**since) >= limit && !self.another_owns(d))
            .map(|(d, _)| d)
            .collect();
        if long.is_empty() {
            return long;
        }
        let used: BTreeSet<&DatastoreId> = self.config.vms.values().map(|v| &v.datastore).collect();
        long.into_iter().filter(|d| used.contains(d)).collect()
    }

    /// In another partition lives a primary that holds the owner lock.
    fn another_owns(&self, datastore: &DatastoreId) -> bool {
        let Some(Own::Waiting { record, .. }) = self.owned.get(datastore) else {
            return false;
        };
        let holder = record.holder.as_ref().and_then(|h| self.peers.get(&h.host));
        holder.is_some_and(|peer| matches!(peer.state, HostState::Partitioned | HostState::Live))
    }

    /// Why it is not owned, without numbers: the sentence stays the same while nothing changes.
    fn why_unowned(&self, datastore: &DatastoreId) -> String {
        let me = &self.me.host;
        let Some(store) = self.stores.get(datastore) else {
            return format!("the primary {me} does not mount it");
        };
        if let Some(why) = &store.quarantine {
            return why.clone();
        }
        if !store.usable(self.now, self.timing().r#break) {
            return format!("the primary {me} cannot read and write it");
        }
        if let Err(why) = self.may_own() {
            return why;
        }
        match self.owned.get(datastore) {
            Some(Own::Waiting { record, .. }) => match &record.holder {
                Some(holder) => format!(
                    "its lock names {}, whose right is not proven to have ended",
                    holder.host
                ),
                None => String::from("its lock is being taken"),
            },
            _ => format!("the primary {me} could not take its lock, or read its list"),
        }
    }

    /// What nobody protects, as a weakness.
    pub(crate) fn unowned_issues(&self, now: Instant) -> Vec<Issue> {
        let neglected = self.neglected(now).into_iter();
        let text = |d: &DatastoreId| {
            format!(
                "no VM on {d} is protected or restarted, because nobody owns it: {}; mend its storage, or mount it on the hosts that can lead",
                self.why_unowned(d)
            )
        };
        neglected
            .map(|d| Issue::of_cluster(IssueCause::DatastoreNotOwned, text(d)))
            .collect()
    }

    /// A host that uses more datastores than this primary is elected instead of it, once one that VMs
    /// need has been without an owner for too long.
    fn make_room_for_an_owner(&mut self) {
        if self.neglected(self.now).is_empty() {
            return;
        }
        let own = self.rank().datastores as usize;
        let better = self.peers.iter().find(|(host, peer)| {
            let has = peer.report.as_ref().map_or(0, |r| r.datastores.len());
            peer.connected() && !peer.leaving && !self.is_resting(host) && has > own
        });
        if let Some((host, _)) = better {
            let why = format!("VMs are on a datastore that it cannot own, and {host} uses more");
            self.step_down(AbdicationCause::LacksDatastores, &why);
        }
    }

    /// A VM that a host reported is reported no more, and no restart of it is begun here: its lock tells
    /// whether it should run.
    pub(crate) fn look_at_unowned(&mut self, vm: &VmId) {
        let Some(datastore) = self.config.vms.get(vm).map(|spec| spec.datastore.clone()) else {
            return;
        };
        let purpose = TaskFor::Look(vm.clone());
        let readable = self.stores.contains_key(&datastore) && self.acting(&datastore).is_none();
        if readable && !self.has_task(&purpose) {
            self.read_lock(&datastore, LockName::Vm(vm.clone()), purpose);
        }
    }

    /// The lock of a VM on a datastore that is not owned here.
    pub(crate) fn on_unowned_look(&mut self, vm: &VmId, record: Option<&LockRecord>) {
        let Some(datastore) = self.config.vms.get(vm).map(|spec| spec.datastore.clone()) else {
            return;
        };
        let fell = record.is_some_and(|r| r.holder.is_none() && r.desired == Desired::On);
        let mine = self.acting(&datastore).is_some() || !self.role.is_primary();
        if !fell || mine || self.locate(vm).is_some() || self.unowned.waiting.contains_key(vm) {
            return;
        }
        let owner = if self.another_owns(&datastore) {
            String::from("its owner, in another partition, restarts it there")
        } else {
            format!(
                "it waits for an owner, for {}",
                self.why_unowned(&datastore)
            )
        };
        let why = format!(
            "its lock is free and it should run, but this primary does not own {datastore}: {owner}"
        );
        self.unowned.waiting.insert(vm.clone(), why.clone());
        self.emit(
            EventKind::RestartWaiting {
                vm: vm.clone(),
                reason: why.to_string(),
                cause: WaitCause::DatastoreNotOwned,
            },
            why,
        );
    }

    /// How a VM stands that no host here reports, on a datastore that is not owned here.
    pub(crate) fn unowned_state(&self, vm: &VmId) -> Option<(&'static str, String)> {
        let datastore = &self.config.vms.get(vm)?.datastore;
        if self.acting(datastore).is_some() {
            return None;
        }
        if let Some(why) = self.unowned.waiting.get(vm) {
            return Some(("waiting", why.clone()));
        }
        let who = if self.another_owns(datastore) {
            "its owner is in another partition"
        } else {
            "nobody owns it"
        };
        let why =
            format!("no host here reports it, and this primary does not own {datastore}: {who}");
        Some(("unknown", why))
    }
}
