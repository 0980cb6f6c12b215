//! Reports: what a secondary says of itself, and what its primary keeps of it.
//!
//! A secondary sends its whole state when it joins and when it is asked to, and from then on what
//! changed since the report before, each with a number that is one higher. A primary that misses a
//! number, or has no report yet, takes nothing from the changes and asks for the whole. So every report
//! may be lost, repeated or late; a loss is noticed with the next report, which comes with every few
//! heartbeats even if nothing changed.

use crate::agent::Agent;
use crate::config::VmSpec;
use crate::id::{DatastoreId, HostId, VmId};
use crate::io::Channel;
use crate::wire::{HostReport, Message, ReportChanges, VmReport};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// A host's last report, kept up to date by its changes.
#[derive(Clone, Debug)]
pub(crate) struct Reported {
    seq: u64,
    /// Processor capacity and use, in MHz.
    pub(crate) cpu_mhz: (u64, u64),
    /// Memory capacity and use, in MiB.
    pub(crate) memory_mb: (u64, u64),
    pub(crate) datastores: Vec<DatastoreId>,
    pub(crate) vms: BTreeMap<VmId, VmReport>,
}

impl Reported {
    /// A host whose VMs say that they need more than can be counted is full, until its next whole report.
    fn put(&mut self, vm: VmReport) {
        self.take(&vm.spec.id);
        self.cpu_mhz.1 = self.cpu_mhz.1.saturating_add(vm.spec.cpu_mhz);
        self.memory_mb.1 = self.memory_mb.1.saturating_add(vm.spec.memory_mb);
        self.vms.insert(vm.spec.id.clone(), vm);
    }

    fn take(&mut self, vm: &VmId) {
        if let Some(before) = self.vms.remove(vm) {
            self.give_back(&before.spec);
        }
    }

    fn give_back(&mut self, spec: &VmSpec) {
        self.cpu_mhz.1 = self.cpu_mhz.1.saturating_sub(spec.cpu_mhz);
        self.memory_mb.1 = self.memory_mb.1.saturating_sub(spec.memory_mb);
    }
}

/// What this host has said of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reporting {
    seq: u64,
    /// To whom the last report went; the next to anybody else is whole.
    told: Option<HostId>,
    /// The datastores of the last report.
    datastores: Vec<DatastoreId>,
    /// This host's VMs as they were when they were last looked at.
    known: BTreeMap<VmId, VmReport>,
    /// How many of them each datastore is the home of.
    homes: BTreeMap<DatastoreId, usize>,
    /// VMs that changed since the last report.
    unreported: BTreeSet<VmId>,
    /// VMs that wait for something that no completion announces.
    waiting: BTreeSet<VmId>,
}

impl Reporting {
    /// A VM of this host lives on the datastore.
    pub(crate) fn has_vms_on(&self, datastore: &DatastoreId) -> bool {
        self.homes.contains_key(datastore)
    }

    fn note(&mut self, id: &VmId, report: Option<VmReport>) {
        let before = match report {
            Some(report) => {
                let home = report.spec.datastore.clone();
                *self.homes.entry(home).or_default() += 1;
                self.known.insert(id.clone(), report)
            }
            None => self.known.remove(id),
        };
        let Some(before) = before else { return };
        if let Some(count) = self.homes.get_mut(&before.spec.datastore) {
            *count -= 1;
            if *count == 0 {
                self.homes.remove(&before.spec.datastore);
            }
        }
    }

    /// The next report is whole, whoever gets it.
    pub(crate) fn begin_again(&mut self) {
        self.told = None;
    }
}

impl Agent {
    // At the host that reports.

    /// Looks at the VMs of this host that were touched: what changed is reported, and held against what
    /// is protected.
    pub(crate) fn settle_vms(&mut self) {
        for id in self.vms.take_touched() {
            let local = self.vms.get(&id);
            if local.is_some_and(crate::vms::LocalVm::waits) {
                self.reporting.waiting.insert(id.clone());
            } else {
                self.reporting.waiting.remove(&id);
            }
            let known = self.reporting.known.get(&id);
            let same = match (local, known) {
                (Some(local), Some(known)) => {
                    local.generation() == known.generation
                        && local.report_state() == known.state
                        && local.spec == known.spec
                }
                (None, None) => true,
                _ => false,
            };
            if same {
                continue;
            }
            let report = local.map(crate::vms::LocalVm::report);
            self.reporting.note(&id, report);
            self.inventory.mark(&id);
            self.inventory.revision += 1;
            self.reporting.unreported.insert(id);
        }
    }

    /// The VMs of this host that wait for something that no completion announces.
    pub(crate) fn waiting_vms(&mut self) -> Vec<VmId> {
        self.settle_vms();
        self.reporting.waiting.iter().cloned().collect()
    }

    fn usable_datastores(&self) -> Vec<DatastoreId> {
        let within = self.timing().r#break;
        let usable = self
            .stores
            .iter()
            .filter(|(_, s)| s.usable(self.now, within));
        usable.map(|(d, _)| d.clone()).collect()
    }

    fn own_capacity(&self) -> (u64, u64) {
        self.own_spec().map_or((0, 0), |s| (s.cpu_mhz, s.memory_mb))
    }

    /// This host as it would be reported now.
    pub(crate) fn own_reported(&self) -> Reported {
        let (cpu_mhz, memory_mb) = self.own_capacity();
        let mut own = Reported {
            seq: 0,
            cpu_mhz: (cpu_mhz, 0),
            memory_mb: (memory_mb, 0),
            datastores: self.usable_datastores(),
            vms: BTreeMap::new(),
        };
        for local in self.vms.values() {
            own.put(local.report());
        }
        own
    }

    /// Tells the primary what changed here, or everything.
    pub(crate) fn send_report(&mut self) {
        self.report_dirty = false;
        let Some(primary) = self.role.followed().cloned() else {
            return;
        };
        self.settle_vms();
        self.reporting.seq += 1;
        let seq = self.reporting.seq;
        let (cpu_mhz, memory_mb) = self.own_capacity();
        let datastores = self.usable_datastores();
        let unreported = core::mem::take(&mut self.reporting.unreported);
        let message = if self.reporting.told.as_ref() == Some(&primary) {
            let gone = |vm: &&VmId| !self.vms.contains_key(vm);
            Message::Changes(ReportChanges {
                seq,
                cpu_mhz,
                memory_mb,
                datastores: (datastores != self.reporting.datastores).then(|| datastores.clone()),
                gone: unreported.iter().filter(gone).cloned().collect(),
                vms: unreported
                    .iter()
                    .filter_map(|vm| self.vms.get(vm))
                    .map(crate::vms::LocalVm::report)
                    .collect(),
            })
        } else {
            Message::Report(HostReport {
                seq,
                cpu_mhz,
                memory_mb,
                datastores: datastores.clone(),
                vms: self.vms.values().map(crate::vms::LocalVm::report).collect(),
            })
        };
        self.reporting.datastores = datastores;
        self.reporting.told = Some(primary.clone());
        self.send(&primary, Channel::Stream, message);
    }

    /// The primary has missed a report.
    pub(crate) fn on_report_wanted(&mut self, from: &HostId) {
        if self.role.followed() == Some(from) {
            self.reporting.begin_again();
            self.send_report();
        }
    }

    // At the primary.

    /// A whole report.
    pub(crate) fn on_report(&mut self, from: &HostId, report: HostReport) {
        self.note_heard(from);
        if !self.role.is_primary() {
            self.ignore("report to a host that is no primary");
            return;
        }
        let Some(peer) = self.peers.get_mut(from) else {
            return;
        };
        let known = peer.report.take();
        if known.as_ref().is_some_and(|k| k.seq >= report.seq) {
            peer.report = known;
            self.ignore("old report");
            return;
        }
        let mut next = Reported {
            seq: report.seq,
            cpu_mhz: (report.cpu_mhz, 0),
            memory_mb: (report.memory_mb, 0),
            datastores: report.datastores,
            vms: BTreeMap::new(),
        };
        for vm in report.vms {
            next.put(shared(&self.config.vms, vm));
        }
        let before = known.map(|k| k.vms).unwrap_or_default();
        for vm in before.keys().filter(|vm| !next.vms.contains_key(*vm)) {
            self.inventory.take(vm, from);
            self.inventory.mark(vm);
        }
        for (vm, entry) in &next.vms {
            if before.get(vm) != Some(entry) {
                self.inventory.add(vm, from);
                self.inventory.mark(vm);
            }
        }
        peer.report = Some(next);
        peer.report_missing = false;
        self.inventory.tell.insert(from.clone());
        self.reported(from);
    }

    /// What changed since the report before.
    pub(crate) fn on_changes(&mut self, from: &HostId, changes: ReportChanges) {
        self.note_heard(from);
        if !self.role.is_primary() {
            self.ignore("report to a host that is no primary");
            return;
        }
        let Some(peer) = self.peers.get_mut(from) else {
            return;
        };
        let known = peer.report.as_mut();
        if known.as_ref().is_some_and(|k| k.seq >= changes.seq) {
            self.ignore("old report");
            return;
        }
        let Some(known) = known.filter(|k| k.seq + 1 == changes.seq) else {
            // What came before is missing: nothing can be taken from what changed since.
            peer.report_missing = true;
            self.want_missing_report(from);
            return;
        };
        known.seq = changes.seq;
        known.cpu_mhz.0 = changes.cpu_mhz;
        known.memory_mb.0 = changes.memory_mb;
        if let Some(datastores) = changes.datastores {
            known.datastores = datastores;
            self.inventory.revision += 1;
        }
        if !changes.gone.is_empty() || !changes.vms.is_empty() {
            self.inventory.tell.insert(from.clone());
        }
        for vm in changes.gone {
            known.take(&vm);
            self.inventory.take(&vm, from);
            self.inventory.mark(&vm);
        }
        for vm in changes.vms {
            let vm = shared(&self.config.vms, vm);
            self.inventory.add(&vm.spec.id, from);
            self.inventory.mark(&vm.spec.id);
            known.put(vm);
        }
        self.reported(from);
    }

    /// As if a host had reported a VM. Only in a copy of this agent that looks ahead.
    pub(crate) fn suppose_reported(&mut self, on: &HostId, vm: VmReport) {
        let Some(report) = self.peers.get_mut(on).and_then(|p| p.report.as_mut()) else {
            return;
        };
        self.inventory.add(&vm.spec.id, on);
        self.inventory.revision += 1;
        report.put(vm);
    }

    /// Asks a connected host for a whole report while one is missing, once in each heartbeat interval.
    pub(super) fn want_missing_report(&mut self, of: &HostId) {
        let now = self.now;
        let interval = self.timing().network_heartbeat;
        let asks = self.role.is_primary();
        let Some(peer) = self.peers.get_mut(of) else {
            return;
        };
        let missing = peer.report_missing || (peer.report.is_none() && peer.connected());
        let again = peer.report_asked.is_none_or(|at| now.since(at) >= interval);
        if asks && missing && again {
            peer.report_asked = Some(now);
            self.send(of, Channel::Stream, Message::ReportWanted);
        }
    }

    fn reported(&mut self, from: &HostId) {
        if let Some(peer) = self.peers.get_mut(from) {
            peer.follows = true;
        }
        self.inventory.revision += 1;
        self.note_connection(from);
        self.reconcile();
    }

    /// Nothing is known any more of what runs there.
    pub(crate) fn drop_report(&mut self, of: &HostId) {
        let Some(peer) = self.peers.get_mut(of) else {
            return;
        };
        peer.counted = false;
        peer.report_missing = false;
        let Some(report) = peer.report.take() else {
            return;
        };
        for vm in report.vms.into_keys() {
            self.inventory.take(&vm, of);
            self.inventory.mark(&vm);
        }
        self.inventory.revision += 1;
    }

    /// When a host's report begins or ceases to count, all its VMs are looked at.
    pub(crate) fn note_connection(&mut self, of: &HostId) {
        let Some(peer) = self.peers.get_mut(of) else {
            return;
        };
        let counts = peer.connected() && peer.report.is_some();
        if counts == peer.counted {
            return;
        }
        peer.counted = counts;
        self.inventory.revision += 1;
        if let Some(report) = &peer.report {
            self.inventory.mark_all(report.vms.keys().cloned());
        }
    }
}

/// The report with the configuration's own copy of the names, if both say the same: they are kept once.
fn shared(config: &BTreeMap<VmId, VmSpec>, mut vm: VmReport) -> VmReport {
    if let Some(spec) = config.get(&vm.spec.id).filter(|s| **s == vm.spec) {
        vm.spec = spec.clone();
    }
    vm
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Generation;
    use crate::wire::VmReportState;
    use alloc::format;

    fn vm(n: u8, memory_mb: u64) -> VmReport {
        VmReport {
            spec: VmSpec {
                id: VmId::new(&format!("vm-{n}")).expect("id"),
                datastore: DatastoreId::new("ds-1").expect("id"),
                cpu_mhz: memory_mb,
                memory_mb,
                restart_priority: Default::default(),
                isolation_response: None,
                depends_on: Vec::new(),
                guest_agent: true,
            },
            generation: Generation(1),
            state: VmReportState::Running,
        }
    }

    #[test]
    fn what_vms_use_is_summed_without_an_overflow() {
        let mut host = Reported {
            seq: 1,
            cpu_mhz: (1000, 0),
            memory_mb: (1000, 0),
            datastores: Vec::new(),
            vms: BTreeMap::new(),
        };
        host.put(vm(1, 300));
        host.put(vm(2, 200));
        host.put(vm(1, 100));
        assert_eq!((host.memory_mb.1, host.cpu_mhz.1), (300, 300));
        host.put(vm(3, u64::MAX));
        assert_eq!(host.memory_mb.1, u64::MAX, "full");
        host.take(&vm(3, 0).spec.id);
        assert_eq!(host.memory_mb.1, 0);
    }
}
