//! What is in use is not taken away: the checks of changes that remove something.
//!
//! A lock that names a host is broken only with a proof, and the proof is that host's heartbeat. When the
//! host is no member any more, or mounts the datastore no more, nobody reads its heartbeat there, and a lock
//! that names it would stay for ever. So a host goes only when no lock can name it.

use crate::agent::Agent;
use crate::config::{Change, HostSpec};
use crate::id::{DatastoreId, HostId, VmId};
use crate::wire::VmReportState;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

impl Agent {
    /// Why a change takes away what is in use, if it does. Locks are known to the primary alone: another
    /// agent checks what it can, and the primary checks again.
    pub(super) fn check_use(&self, change: &Change) -> Result<(), String> {
        match change {
            Change::RemoveVm(vm) => self.check_removed_vm(vm),
            Change::RemoveHost(host) => self.check_removed_host(host),
            Change::PutHost(spec) => self.check_unmounted(spec),
            _ => Ok(()),
        }
    }

    fn check_removed_vm(&self, vm: &VmId) -> Result<(), String> {
        let held = self.locate(vm).is_some();
        // A host may have been lost a moment ago: what is on the list should run.
        let should = self.restarts.contains_key(vm) || self.listed_on(vm).is_some();
        // Where another primary owns its datastore, only that one knows whether it runs.
        let home = self.config.vms.get(vm).map(|spec| &spec.datastore);
        let elsewhere = home.filter(|d| self.acting(d).is_none());
        if let Some(home) = elsewhere.filter(|_| self.role.is_primary()) {
            return Err(format!(
                "the primary {} does not own {home} and cannot know whether {vm} runs; ask again when it does",
                self.me.host
            ));
        }
        if held || should {
            return Err(format!(
                "{vm} runs, or should run; power it off before it is deleted"
            ));
        }
        Ok(())
    }

    fn check_removed_host(&self, host: &HostId) -> Result<(), String> {
        if *host == self.me.host && self.role.is_primary() {
            return Err(format!(
                "{host} is the primary; let it enter maintenance first"
            ));
        }
        let runs = self
            .located()
            .values()
            .any(|l| l.host == host && l.state != VmReportState::Stopping);
        if runs {
            return Err(format!(
                "VMs run on {host}; power them off, or let them run elsewhere, first"
            ));
        }
        let mounts = self.config.hosts.get(host).map(|spec| &spec.datastores);
        self.check_locks(host, &mounts.into_iter().flatten().collect::<Vec<_>>())
    }

    /// A host's entry is replaced: the datastores that it mounts no more.
    fn check_unmounted(&self, spec: &HostSpec) -> Result<(), String> {
        let host = &spec.id;
        let before = self.config.hosts.get(host).map(|known| &known.datastores);
        let gone: Vec<&DatastoreId> = before
            .into_iter()
            .flatten()
            .filter(|d| !spec.datastores.contains(*d))
            .collect();
        let Some(first) = gone.iter().find(|d| self.is_shared(d, host)) else {
            return Ok(());
        };
        if *host == self.me.host && self.role.is_primary() {
            return Err(format!(
                "{host} is the primary and may own {first}; let it enter maintenance first"
            ));
        }
        let there = self
            .located()
            .into_values()
            .find(|l| l.host == host && gone.contains(&&l.spec.datastore));
        if let Some(place) = there {
            return Err(format!(
                "{} runs on {host} and its home is {}; power it off, or let it run elsewhere, before {host} mounts {} no more",
                place.spec.id, place.spec.datastore, place.spec.datastore
            ));
        }
        self.check_locks(host, &gone)
    }

    /// Another host than that one mounts the datastore.
    fn is_shared(&self, datastore: &DatastoreId, host: &HostId) -> bool {
        self.topology
            .mounted_by(datastore)
            .iter()
            .any(|h| h != host)
    }

    /// No lock on these datastores can name that host.
    fn check_locks(&self, host: &HostId, datastores: &[&DatastoreId]) -> Result<(), String> {
        if !self.role.is_primary() {
            return Ok(());
        }
        let held = self.restarts.iter().find(|(_, r)| r.is_held_by(host));
        if let Some((vm, restart)) = held {
            return Err(format!(
                "the lock of {vm} still names {host} ({}); wait until it runs elsewhere",
                restart.why
            ));
        }
        for datastore in datastores.iter().filter(|d| self.is_shared(d, host)) {
            let homes = self.config.vms.values();
            if !homes.map(|vm| &vm.datastore).any(|d| d == *datastore) {
                continue;
            }
            let Some(acting) = self.acting(datastore) else {
                return Err(format!(
                    "the primary {} does not own {datastore} and cannot know whether a VM's lock there names {host}; ask again when it does (`mainstay status` shows the owners)",
                    self.me.host
                ));
            };
            // Missed a moment ago: not even looked for yet.
            let missed = acting
                .list
                .keys()
                .find(|vm| !self.restarts.contains_key(*vm) && self.locate(vm).is_none());
            let unread = self.restarts.iter();
            let unread = unread
                .filter(|(_, r)| r.datastore == **datastore && r.is_unread())
                .map(|(vm, _)| vm);
            if let Some(vm) = missed.into_iter().chain(unread).next() {
                return Err(format!(
                    "{vm} should run and no host reports it, and whether its lock names {host} is not known yet; ask again in a few seconds"
                ));
            }
        }
        Ok(())
    }
}
