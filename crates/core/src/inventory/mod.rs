//! What is where: the reports of all hosts, an index from each VM to the hosts that report it, and the
//! VMs about which something changed.
//!
//! ```text
//!  a report, or changes of one ─▶ the host's last report ─▶ index: VM → hosts
//!  a host joins or is lost ─────────────────┐                  │
//!  a VM of this host changes ───────────────┴─▶ changed VMs ◀──┘ ─▶ held against what is protected (`restart`)
//! ```
//! A cluster at rest costs what its heartbeats cost, and a change costs what changed, however many VMs
//! there are. Nothing is decided here. Where a VM is, is always answered from the reports themselves;
//! only *that* it should be looked at rests on the set of changed VMs, and a part of all VMs is looked
//! at in each heartbeat besides, so that one that was forgotten is found within [`AUDIT_BEATS`].

mod report;

pub(crate) use report::{Reported, Reporting};

use crate::agent::Agent;
use crate::config::VmSpec;
use crate::id::{DatastoreId, Generation, HostId, VmId};
use crate::wire::VmReportState;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::ops::Bound;

/// Within so many heartbeats each VM is looked at though nothing said that it changed.
pub(crate) const AUDIT_BEATS: usize = 64;

/// The hosts whose last report has a VM: nearly always one.
#[derive(Clone, Debug)]
struct Places {
    first: HostId,
    /// Further ones, in order, all above the first.
    more: Vec<HostId>,
}

/// The index, and what is to be looked at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inventory {
    places: BTreeMap<VmId, Places>,
    changed: BTreeSet<VmId>,
    /// Hosts that are to be told which of their VMs are protected.
    pub(crate) tell: BTreeSet<HostId>,
    /// Grows with each change of what is where, or of who is connected.
    pub(crate) revision: u64,
    /// The last VM that the audit looked at.
    audited: Option<VmId>,
    /// The datastores that were owned when changes were last looked at, with the owner's generation.
    pub(crate) owned: BTreeMap<DatastoreId, Generation>,
}

impl Inventory {
    fn add(&mut self, vm: &VmId, host: &HostId) {
        match self.places.get_mut(vm) {
            None => {
                let places = Places {
                    first: host.clone(),
                    more: Vec::new(),
                };
                self.places.insert(vm.clone(), places);
            }
            Some(places) if *host < places.first => {
                let before = core::mem::replace(&mut places.first, host.clone());
                places.more.insert(0, before);
            }
            Some(places) if *host == places.first => {}
            Some(places) => {
                if let Err(at) = places.more.binary_search(host) {
                    places.more.insert(at, host.clone());
                }
            }
        }
    }

    fn take(&mut self, vm: &VmId, host: &HostId) {
        let Some(places) = self.places.get_mut(vm) else {
            return;
        };
        if places.first != *host {
            places.more.retain(|h| h != host);
        } else if places.more.is_empty() {
            self.places.remove(vm);
        } else {
            places.first = places.more.remove(0);
        }
    }

    /// The hosts whose last report has the VM, connected or not, in order.
    pub(crate) fn hosts_of(&self, vm: &VmId) -> impl Iterator<Item = &HostId> {
        let places = self.places.get(vm);
        let first = places.map(|p| &p.first).into_iter();
        first.chain(places.into_iter().flat_map(|p| &p.more))
    }

    /// The VM is to be looked at.
    pub(crate) fn mark(&mut self, vm: &VmId) {
        if !self.changed.contains(vm) {
            self.changed.insert(vm.clone());
        }
    }

    /// All VMs that are to be looked at, at once.
    pub(crate) fn mark_all(&mut self, vms: impl Iterator<Item = VmId>) {
        self.changed.extend(vms);
    }

    pub(crate) fn take_changed(&mut self) -> BTreeSet<VmId> {
        core::mem::take(&mut self.changed)
    }

    /// This host is not the primary: nothing is held against anything.
    pub(crate) fn rest(&mut self) {
        self.changed.clear();
        self.owned.clear();
        self.tell.clear();
    }

    /// Marks the next part of all VMs that hosts report.
    fn audit(&mut self) {
        let part = self.places.len() / AUDIT_BEATS + 1;
        let from = self
            .audited
            .take()
            .map_or(Bound::Unbounded, Bound::Excluded);
        let next: Vec<VmId> = self
            .places
            .range((from, Bound::Unbounded))
            .take(part)
            .map(|(vm, _)| vm.clone())
            .collect();
        // Less than asked for: the end was reached, and the next part begins in front.
        self.audited = next.last().filter(|_| next.len() == part).cloned();
        self.changed.extend(next);
    }
}

/// Where a VM was reported.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) host: &'a HostId,
    pub(crate) generation: Generation,
    pub(crate) state: VmReportState,
    pub(crate) spec: &'a VmSpec,
}

impl Agent {
    /// Where the VM is, by what runs here and the reports of connected hosts: where it runs, else the
    /// last that has it.
    pub(crate) fn locate(&self, vm: &VmId) -> Option<Place<'_>> {
        let mut best = self.vms.get(vm).map(|local| Place {
            host: &self.me.host,
            generation: local.generation(),
            state: local.report_state(),
            spec: &local.spec,
        });
        for host in self.inventory.hosts_of(vm) {
            if best.is_some_and(|b| b.state == VmReportState::Running) {
                break;
            }
            let Some(peer) = self.peers.get(host).filter(|p| p.connected()) else {
                continue;
            };
            if let Some(entry) = peer.report.as_ref().and_then(|r| r.vms.get(vm)) {
                best = Some(Place {
                    host,
                    generation: entry.generation,
                    state: entry.state,
                    spec: &entry.spec,
                });
            }
        }
        best
    }

    /// The highest generation of its lock that a host reported to have it under, connected or not, and that host. It was
    /// on disk when it was reported.
    pub(crate) fn reported_generation(&self, vm: &VmId) -> Option<(&HostId, Generation)> {
        let reported = self.inventory.hosts_of(vm).filter_map(|host| {
            let report = self.peers.get(host)?.report.as_ref()?;
            Some((host, report.vms.get(vm)?.generation))
        });
        reported.max_by_key(|(_, generation)| *generation)
    }

    /// Where each VM is. It costs as much as there are VMs: for people and for rare decisions.
    pub(crate) fn located(&self) -> BTreeMap<&VmId, Place<'_>> {
        let known = self.vms.keys().chain(self.inventory.places.keys());
        known
            .filter_map(|vm| Some((vm, self.locate(vm)?)))
            .collect()
    }

    /// A part of all VMs is looked at in each heartbeat: those that hosts report, and those that are
    /// protected.
    pub(crate) fn audit_inventory(&mut self) {
        if !self.role.is_primary() {
            return;
        }
        let hosts: Vec<HostId> = self.peers.keys().cloned().collect();
        for host in hosts {
            self.note_connection(&host);
            self.want_missing_report(&host);
        }
        self.inventory.audit();
        let beat = usize::try_from(self.beats).unwrap_or(0) % AUDIT_BEATS;
        let mut listed: Vec<VmId> = Vec::new();
        for datastore in self.stores.keys() {
            let Some(acting) = self.acting(datastore) else {
                continue;
            };
            let part = acting.list.len() / AUDIT_BEATS + 1;
            let keys = acting.list.keys().skip(beat * part).take(part);
            listed.extend(keys.cloned());
        }
        self.inventory.mark_all(listed.into_iter());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: u8) -> HostId {
        HostId::new(&alloc::format!("host-{n}")).expect("id")
    }

    fn vm(n: u8) -> VmId {
        VmId::new(&alloc::format!("vm-{n}")).expect("id")
    }

    #[test]
    fn hosts_of_a_vm_stay_in_order_whoever_reports_first() {
        let mut inventory = Inventory::default();
        for n in [3, 1, 2, 1] {
            inventory.add(&vm(7), &host(n));
        }
        let hosts = |i: &Inventory| i.hosts_of(&vm(7)).cloned().collect::<Vec<_>>();
        assert_eq!(hosts(&inventory), [host(1), host(2), host(3)]);
        inventory.take(&vm(7), &host(1));
        inventory.take(&vm(7), &host(3));
        inventory.take(&vm(7), &host(9));
        assert_eq!(hosts(&inventory), [host(2)]);
        inventory.take(&vm(7), &host(2));
        assert_eq!(hosts(&inventory), []);
    }

    #[test]
    fn the_audit_comes_round_to_every_vm() {
        let mut inventory = Inventory::default();
        let all: BTreeSet<VmId> = (0..200).map(vm).collect();
        for v in &all {
            inventory.add(v, &host(1));
        }
        let mut seen = BTreeSet::new();
        for _ in 0..AUDIT_BEATS {
            inventory.audit();
            seen.extend(inventory.take_changed());
        }
        assert_eq!(seen, all);
    }
}
