//! Locks that name this host though it has no such VM (safety rule H26): an agent that joins a datastore
//! lists all locks once, looks at those that may name its host, a few at a time, and gives back what does.
//!
//! What an old listing hides are other hosts' generations: one that names this host was linked from here, and
//! a host sees its own links.

use crate::agent::{Agent, Pending, planted};
use crate::id::{DatastoreId, Generation, VmId};
use crate::io::{StorageOutcome, StorageRequest, StorageValue};
use crate::lock::LockName;
use crate::tasks::TaskFor;
use crate::time::{Duration, Instant};
use crate::wire::{Desired, LockRecord, RecordKey};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Locks of a datastore that a scan reads at once: a host that joins 8,000 VMs must not keep the storage
/// from the heartbeats of all others.
const SCANNED_AT_ONCE: usize = 64;
/// A scan that is asked for once more begins after this, in which what made it necessary settles.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The scan of a datastore.
#[derive(Clone, Debug)]
pub(crate) struct Scan {
    listed: bool,
    /// It is not listed before then.
    next: Instant,
    /// VMs whose locks were listed and not looked at yet, with the newest generation of each.
    left: VecDeque<(VmId, Generation)>,
}

impl Scan {
    /// None was made, and one is due.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            listed: false,
            next: now,
            left: VecDeque::new(),
        }
    }

    /// Looks at all locks once more, a while from `now`.
    pub(crate) fn again(&mut self, now: Instant) {
        self.listed = false;
        self.next = now + AGAIN_AFTER;
    }
}

impl Agent {
    pub(crate) fn scan_orphans(&mut self) {
        let now = self.now;
        let again = now + self.timing().r#break;
        let due: Vec<DatastoreId> = self
            .stores
            .iter()
            .filter(|(_, s)| !s.scan.listed && now >= s.scan.next)
            .map(|(d, _)| d.clone())
            .collect();
        for datastore in due {
            if let Some(store) = self.stores.get_mut(&datastore) {
                store.scan.next = again;
            }
            self.storage(
                &datastore,
                StorageRequest::ListAllVmLocks,
                Pending::Scan {
                    datastore: datastore.clone(),
                },
            );
        }
    }

    pub(crate) fn on_scanned(&mut self, datastore: &DatastoreId, outcome: &StorageOutcome) {
        let StorageOutcome::Ok(StorageValue::Keys(keys)) = outcome else {
            return;
        };
        let now = self.now;
        if let Some(store) = self.stores.get_mut(datastore) {
            store.note(now, outcome);
            store.scan.listed = true;
        }
        let generation = |key| match key {
            &RecordKey::VmLock(ref vm, generation) => Some((vm, generation)),
            _ => None,
        };
        let mut generations: Vec<(&VmId, Generation)> =
            keys.iter().filter_map(generation).collect();
        generations.sort();
        let newest = generations
            .chunk_by(|a, b| a.0 == b.0)
            .filter_map(<[_]>::last);
        if let Some(store) = self.stores.get_mut(datastore) {
            store.scan.left = newest
                .map(|(vm, listed)| ((*vm).clone(), *listed))
                .collect();
        }
        // An earlier scan may still be under way.
        for _ in self.scanning(datastore)..SCANNED_AT_ONCE {
            self.scan_further(datastore);
        }
    }

    /// Looks at the next lock that the scan has listed. To be called when the reading of one has ended.
    pub(crate) fn scan_further(&mut self, datastore: &DatastoreId) {
        self.scan_next(datastore, None);
    }

    /// That lock cannot be read now: it is looked at after all others, and the next one not before `from`.
    pub(crate) fn scan_later(
        &mut self,
        datastore: &DatastoreId,
        lock: (VmId, Generation),
        from: Instant,
    ) {
        if let Some(store) = self.stores.get_mut(datastore) {
            store.scan.left.push_back(lock);
        }
        self.scan_next(datastore, Some(from));
    }

    fn scan_next(&mut self, datastore: &DatastoreId, from: Option<Instant>) {
        let next = |agent: &mut Self| agent.stores.get_mut(datastore)?.scan.left.pop_front();
        while let Some(lock) = next(self) {
            if !self.may_be_orphan(datastore, &lock.0) {
                continue;
            }
            if !self.was_ever_held(datastore, &lock) {
                self.not_held_here(&lock.0);
                continue;
            }
            self.scan_lock(datastore, &lock, from);
            return;
        }
    }

    /// A lock is begun free (`provision`), and each host that takes it makes a generation.
    fn was_ever_held(&self, datastore: &DatastoreId, (vm, listed): &(VmId, Generation)) -> bool {
        let name = LockName::Vm(vm.clone());
        self.known_generation(datastore, &name).max(*listed) > Generation(0)
    }

    /// Its lock may name this host, and nothing here would give it back.
    fn may_be_orphan(&self, datastore: &DatastoreId, vm: &VmId) -> bool {
        let purpose = TaskFor::Orphan(datastore.clone(), vm.clone());
        let kept = planted!(self, OrphanKept);
        let here = self.vms.contains_key(vm) || self.leftover.contains(vm);
        !here && !self.has_task(&purpose) && !kept
    }

    /// Gives a lock back if it names this host, which has no such VM.
    pub(crate) fn look_for_orphan(&mut self, datastore: &DatastoreId, vm: &VmId) {
        if self.stores.contains_key(datastore) && self.may_be_orphan(datastore, vm) {
            let purpose = TaskFor::Orphan(datastore.clone(), vm.clone());
            self.read_lock(datastore, LockName::Vm(vm.clone()), purpose);
        }
    }

    /// The owner says that a lock names this host though it reports no such VM.
    pub(crate) fn on_check_lock(
        &mut self,
        vm: &VmId,
        datastore: &DatastoreId,
        _generation: Generation,
    ) {
        self.look_for_orphan(datastore, vm);
    }

    /// The VM is not this host's: what its user wanted of it here counts no more, and must not switch it off
    /// should this host ever hold its lock again.
    fn not_held_here(&mut self, vm: &VmId) {
        self.durable_dirty |= self.durable.wanted_off.remove(vm);
    }

    pub(crate) fn on_orphan_head(
        &mut self,
        datastore: &DatastoreId,
        vm: &VmId,
        record: Option<LockRecord>,
    ) {
        let Some(record) = record else { return };
        let mine = record
            .holder
            .as_ref()
            .is_some_and(|h| h.host == self.me.host);
        if self.vms.contains_key(vm) {
            return;
        }
        if !mine {
            self.not_held_here(vm);
            return;
        }
        // Its user wants it off, or it should run and the owner restarts it where there is room.
        let off = self.durable.wanted_off.contains(vm);
        let desired = if off { Desired::Off } else { Desired::On };
        let purpose = TaskFor::Orphan(datastore.clone(), vm.clone());
        let from = (record.generation, record.nonce);
        self.swap_lock(
            datastore,
            LockName::Vm(vm.clone()),
            purpose,
            from,
            None,
            desired,
        );
    }
}
