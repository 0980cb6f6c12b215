//! Datastores: primitive operations whose effect and acknowledgement are two events at different
//! times, the faults between a host and its storage, and the storage's own image locks.

use super::{Happening, World};
use crate::clock::{MS, Nanos};
use crate::scenario::StorageFault;
use mainstay_core::config::FenceClass;
use mainstay_core::id::{DatastoreId, Generation, OpId, VmId};
use mainstay_core::io::{Input, IoFault, StorageOutcome, StorageRequest, StorageValue};
use mainstay_core::wire::{LockRecord, RecordKey};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What stands between a host and a datastore.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Faults {
    pub(super) hang: bool,
    pub(super) gone: bool,
    pub(super) read_only: bool,
    pub(super) full: bool,
    pub(super) slow: Nanos,
}

impl Faults {
    fn add(&mut self, fault: StorageFault) {
        match fault {
            StorageFault::Apd => self.hang = true,
            StorageFault::Pdl => self.gone = true,
            StorageFault::Slow(time) => self.slow = time,
            StorageFault::ReadOnly => self.read_only = true,
            StorageFault::Full => self.full = true,
        }
    }

    fn with(self, other: Self) -> Self {
        Self {
            hang: self.hang || other.hang,
            gone: self.gone || other.gone,
            read_only: self.read_only || other.read_only,
            full: self.full || other.full,
            slow: self.slow.max(other.slow),
        }
    }
}

/// A datastore.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) id: DatastoreId,
    pub(super) fence: FenceClass,
    pub(super) image_locks: bool,
    pub(super) expiry: Nanos,
    pub(super) records: BTreeMap<RecordKey, Arc<Vec<u8>>>,
    /// Who has which image open, as the storage knows it.
    pub(super) images: BTreeMap<usize, usize>,
    pub(super) everybody: Faults,
    pub(super) per_host: Vec<Faults>,
    /// Since when each host's path hangs.
    hang_since: Vec<Nanos>,
    parked: Vec<usize>,
    pub(super) parked_writes: Vec<Write>,
    pub(super) parked_opens: Vec<usize>,
    pub(super) owners: BTreeMap<Generation, Option<usize>>,
}

impl Disk {
    pub(super) fn new(
        id: DatastoreId,
        fence: FenceClass,
        image_locks: bool,
        expiry: Nanos,
        hosts: usize,
    ) -> Self {
        Self {
            id,
            fence,
            image_locks,
            expiry,
            records: BTreeMap::new(),
            images: BTreeMap::new(),
            everybody: Faults::default(),
            per_host: vec![Faults::default(); hosts],
            hang_since: vec![0; hosts],
            parked: Vec::new(),
            parked_writes: Vec::new(),
            parked_opens: Vec::new(),
            owners: BTreeMap::new(),
        }
    }

    pub(super) fn faults(&self, host: usize) -> Faults {
        self.everybody
            .with(self.per_host.get(host).copied().unwrap_or_default())
    }

    /// Performs a request on the records, atomically.
    fn perform(&mut self, request: &StorageRequest) -> StorageValue {
        match request {
            StorageRequest::Read(key) => match self.records.get(key) {
                Some(bytes) => StorageValue::Bytes(bytes.to_vec()),
                None => StorageValue::NotFound,
            },
            StorageRequest::Renew(key, bytes) => match self.records.get_mut(key) {
                Some(old) => {
                    *old = Arc::new(bytes.clone());
                    StorageValue::Done
                }
                None => StorageValue::NotFound,
            },
            StorageRequest::Put(key, bytes) => {
                self.records.insert(key.clone(), Arc::new(bytes.clone()));
                StorageValue::Done
            }
            StorageRequest::Link(key, bytes) => {
                if self.records.contains_key(key) {
                    return StorageValue::Exists;
                }
                self.records.insert(key.clone(), Arc::new(bytes.clone()));
                StorageValue::Done
            }
            StorageRequest::Remove(key) => match self.records.remove(key) {
                Some(_) => StorageValue::Done,
                None => StorageValue::NotFound,
            },
            StorageRequest::ListVmLock(vm) => {
                self.keys(&Self::lock(vm, 0), &Self::lock(vm, u64::MAX))
            }
            StorageRequest::ListAllVmLocks => {
                let locks = self
                    .records
                    .keys()
                    .filter(|k| matches!(k, RecordKey::VmLock(..)));
                StorageValue::Keys(locks.cloned().collect())
            }
            StorageRequest::ListOwnerLock => self.keys(
                &RecordKey::OwnerLock(Generation(0)),
                &RecordKey::OwnerLock(Generation(u64::MAX)),
            ),
            StorageRequest::ListConfig => self.keys(
                &RecordKey::Config(Generation(0), 0),
                &RecordKey::Config(Generation(u64::MAX), u8::MAX),
            ),
            StorageRequest::ListProtected => self.keys(
                &RecordKey::Protected(Generation(0), 0),
                &RecordKey::Protected(Generation(u64::MAX), u8::MAX),
            ),
        }
    }

    fn lock(vm: &VmId, generation: u64) -> RecordKey {
        RecordKey::VmLock(vm.clone(), Generation(generation))
    }

    fn keys(&self, low: &RecordKey, high: &RecordKey) -> StorageValue {
        StorageValue::Keys(
            self.records
                .range(low..=high)
                .map(|(k, _)| k.clone())
                .collect(),
        )
    }

    /// The newest generation of a VM's lock.
    pub(super) fn newest_lock(&self, cluster: u64, vm: &VmId) -> Option<LockRecord> {
        let (_, bytes) = self
            .records
            .range(Self::lock(vm, 0)..=Self::lock(vm, u64::MAX))
            .next_back()?;
        LockRecord::decode(cluster, bytes)
            .ok()
            .map(|(_, record)| record)
    }
}

/// A guest's write on its way to its virtual disk.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) instance: usize,
    pub(super) disk: usize,
    pub(super) generation: Generation,
}

/// A storage operation in progress.
#[derive(Debug)]
pub(super) struct Op {
    serial: u64,
    host: usize,
    boot: u64,
    run: u64,
    disk: usize,
    id: OpId,
    request: StorageRequest,
    issued: Nanos,
    /// When the answer comes if nothing goes wrong.
    ack_at: Nanos,
    /// Its outcome is unknown to the driver from here on.
    unknown_at: Option<Nanos>,
    outcome: Option<StorageOutcome>,
    effect_over: bool,
    answered: bool,
    parked: bool,
}

fn writes(request: &StorageRequest) -> bool {
    use StorageRequest::{Link, Put, Remove, Renew};
    matches!(request, Renew(..) | Put(..) | Link(..) | Remove(..))
}

impl World<'_> {
    pub(super) fn storage(
        &mut self,
        host: usize,
        id: OpId,
        datastore: &DatastoreId,
        request: StorageRequest,
    ) {
        let Some(disk) = self.disk_index.get(datastore).copied() else {
            return self.answer(
                host,
                MS,
                Input::Storage(id, StorageOutcome::NotDone(IoFault::Foreign)),
            );
        };
        if !self.hosts[host].mounts.get(disk).copied().unwrap_or(false) {
            return self.answer(
                host,
                MS,
                Input::Storage(id, StorageOutcome::NotDone(IoFault::Foreign)),
            );
        }
        if matches!(request, StorageRequest::Renew(..)) {
            self.settle_older_renewals(host, disk, &request);
        }
        self.owner_acts_on_disk(host, disk, &request);
        let faults = self.disks[disk].faults(host);
        let storm = self.stormy();
        let weather = self.scenario.weather;
        let refused = match &request {
            _ if faults.gone => Some(IoFault::Gone),
            r if writes(r) && faults.read_only => Some(IoFault::ReadOnly),
            StorageRequest::Put(..) | StorageRequest::Link(..) if faults.full => {
                Some(IoFault::Full)
            }
            _ if storm && self.dice.disk.below(1000) < weather.not_done => Some(IoFault::Other),
            _ => None,
        };
        if let Some(fault) = refused {
            let wait = self.dice.disk.between(200_000, MS);
            return self.answer(
                host,
                wait,
                Input::Storage(id, StorageOutcome::NotDone(fault)),
            );
        }
        let mut to_disk = self.dice.disk.between(250_000, 1_500_000);
        let mut back = self.dice.disk.between(250_000, 1_500_000);
        if faults.slow > 0 {
            let part = self.dice.disk.below(faults.slow);
            to_disk += part;
            back += faults.slow - part;
        }
        if storm && self.dice.disk.below(1000) < weather.stall {
            let stall = self.dice.disk.below(weather.stall_ms.max(1)) * MS;
            if self.dice.disk.percent(50) {
                to_disk += stall
            } else {
                back += stall
            }
        }
        let mut unknown_at = None;
        let mut never = false;
        if storm && writes(&request) && self.dice.disk.below(1000) < weather.lost_ack {
            unknown_at = Some(self.now + self.dice.disk.between(5, 3000) * MS);
            if self.dice.disk.percent(weather.late_effect) {
                to_disk += self.dice.disk.below(weather.late_ms.max(1)) * MS;
            } else {
                never = self.dice.disk.percent(40);
            }
        }
        let patience = weather.patience_ms * MS;
        if patience > 0 && to_disk + back > patience {
            unknown_at = Some(unknown_at.unwrap_or(Nanos::MAX).min(self.now + patience));
        }
        self.seq += 1;
        let serial = self.seq;
        let h = &mut self.hosts[host];
        h.in_flight += 1;
        let op = Op {
            serial,
            host,
            boot: h.boot,
            run: h.agent_run,
            disk,
            id,
            request,
            issued: self.now,
            ack_at: self.now + to_disk + back,
            unknown_at,
            outcome: None,
            effect_over: never,
            answered: false,
            parked: false,
        };
        let index = match self.free_ops.pop() {
            Some(index) => {
                self.ops[index] = Some(op);
                index
            }
            None => self.ops.push(Some(op)),
        };
        if !never {
            self.after(to_disk, Happening::Effect { op: index, serial });
        }
        if let Some(at) = unknown_at {
            self.at(at, Happening::Ack { op: index, serial });
        }
    }

    /// Renewals of one record are ordered: an older one that is still on its way lands now or never.
    fn settle_older_renewals(&mut self, host: usize, disk: usize, new: &StorageRequest) {
        let StorageRequest::Renew(new_key, _) = new else {
            return;
        };
        for index in 0..self.ops.len() {
            let Some(op) = &mut self.ops[index] else {
                continue;
            };
            let StorageRequest::Renew(key, _) = &op.request else {
                continue;
            };
            if op.host != host || op.disk != disk || op.effect_over || key != new_key {
                continue;
            }
            op.effect_over = true;
            let lands = self.dice.disk.percent(50) && !self.disks[disk].faults(host).hang;
            if lands && let Some(op) = self.ops[index].take() {
                self.disks[disk].perform(&op.request);
                self.ops[index] = Some(op);
            }
        }
    }

    fn take_op(&mut self, index: usize, serial: u64) -> Option<Op> {
        if self.ops[index].as_ref()?.serial != serial {
            return None;
        }
        self.ops[index].take()
    }

    pub(super) fn storage_effect(&mut self, index: usize, serial: u64) {
        let Some(mut op) = self.take_op(index, serial) else {
            return;
        };
        if op.effect_over {
            if op.unknown_at.is_none() && !op.answered {
                self.after(0, Happening::Ack { op: index, serial });
            }
            self.keep_or_free(index, op);
            return;
        }
        let faults = self.disks[op.disk].faults(op.host);
        let same_boot = self.hosts[op.host].boot == op.boot;
        if faults.hang && same_boot {
            // What was on its way when the path began to hang may have got through.
            let since = self.disks[op.disk]
                .hang_since
                .get(op.host)
                .copied()
                .unwrap_or(0);
            let through = op.issued < since && self.dice.disk.percent(20);
            if !through {
                self.park(index, op);
                return;
            }
        }
        op.effect_over = true;
        op.outcome = Some(if faults.gone && same_boot {
            StorageOutcome::Unknown(IoFault::Gone)
        } else {
            let value = self.disks[op.disk].perform(&op.request);
            self.record_landed(op.disk, &op.request, &value);
            StorageOutcome::Ok(value)
        });
        if op.unknown_at.is_none() && !op.answered {
            let at = op.ack_at;
            self.at(at, Happening::Ack { op: index, serial });
        }
        self.keep_or_free(index, op);
    }

    fn park(&mut self, index: usize, mut op: Op) {
        let serial = op.serial;
        let patience = self.scenario.weather.patience_ms * MS;
        if patience > 0 && op.unknown_at.is_none() && !op.answered {
            let at = (op.issued + patience).max(self.now);
            op.unknown_at = Some(at);
            self.at(at, Happening::Ack { op: index, serial });
        }
        if !op.parked {
            op.parked = true;
            self.disks[op.disk].parked.push(index);
        }
        self.ops[index] = Some(op);
    }

    pub(super) fn storage_ack(&mut self, index: usize, serial: u64) {
        let Some(mut op) = self.take_op(index, serial) else {
            return;
        };
        if op.answered {
            self.keep_or_free(index, op);
            return;
        }
        let unknown = op.unknown_at.is_some_and(|at| self.now >= at);
        let hang = self.disks[op.disk].faults(op.host).hang && self.hosts[op.host].boot == op.boot;
        if !unknown && hang {
            self.park(index, op);
            return;
        }
        op.answered = true;
        let outcome = match &op.outcome {
            Some(outcome) if !unknown => outcome.clone(),
            _ => StorageOutcome::Unknown(IoFault::TimedOut),
        };
        if self.hosts[op.host].boot == op.boot && self.hosts[op.host].agent_run == op.run {
            self.answer(op.host, 0, Input::Storage(op.id, outcome));
        }
        self.keep_or_free(index, op);
    }

    fn keep_or_free(&mut self, index: usize, op: Op) {
        if !(op.effect_over && op.answered) {
            self.ops[index] = Some(op);
            return;
        }
        if op.parked {
            self.disks[op.disk].parked.retain(|i| *i != index);
        }
        self.free_ops.push(index);
        if self.hosts[op.host].boot != op.boot {
            return;
        }
        let h = &mut self.hosts[op.host];
        h.in_flight = h.in_flight.saturating_sub(1);
        // Rule H16: a new agent comes when every thread of its predecessor is gone.
        if h.in_flight == 0 && h.agent_waits {
            h.agent_waits = false;
            let boot = h.boot;
            self.after(
                10 * MS,
                Happening::AgentStart {
                    host: op.host,
                    boot,
                },
            );
        }
    }

    /// A path changed: what waited for it goes on, what hangs from now on waits.
    pub(super) fn paths_changed(&mut self, disk: usize) {
        for host in 0..self.hosts.len() {
            let faults = self.disks[disk].faults(host);
            let since = self.disks[disk].hang_since.get(host).copied().unwrap_or(0);
            let begins = faults.hang && since == 0;
            if begins || !faults.hang {
                let value = if begins { self.now } else { 0 };
                self.disks[disk]
                    .hang_since
                    .iter_mut()
                    .skip(host)
                    .take(1)
                    .for_each(|s| *s = value);
            }
        }
        let parked = std::mem::take(&mut self.disks[disk].parked);
        for index in parked {
            let Some(op) = &mut self.ops[index] else {
                continue;
            };
            let faults = self.disks[disk].faults(op.host);
            if faults.hang && !faults.gone {
                self.disks[disk].parked.push(index);
                continue;
            }
            op.parked = false;
            let serial = op.serial;
            let wait = self.dice.disk.below(20) * MS + self.dice.disk.below(MS);
            let what = if op.effect_over {
                Happening::Ack { op: index, serial }
            } else {
                Happening::Effect { op: index, serial }
            };
            if faults.gone && !op.effect_over {
                op.effect_over = true;
                op.outcome = Some(StorageOutcome::Unknown(IoFault::Gone));
                self.after(wait, Happening::Ack { op: index, serial });
            } else {
                self.after(wait, what);
            }
        }
        for write in std::mem::take(&mut self.disks[disk].parked_writes) {
            let wait = self.dice.guest.below(30 * MS);
            self.after(
                wait,
                Happening::GuestLand {
                    write: Box::new(write),
                },
            );
        }
        for instance in std::mem::take(&mut self.disks[disk].parked_opens) {
            let wait = self.dice.guest.below(30 * MS);
            self.after(wait, Happening::OpenImage { instance });
        }
    }

    pub(super) fn datastore_fault(
        &mut self,
        disk: usize,
        host: Option<usize>,
        fault: StorageFault,
    ) {
        match host {
            None => self.disks[disk].everybody.add(fault),
            Some(host) => self.disks[disk]
                .per_host
                .iter_mut()
                .skip(host)
                .take(1)
                .for_each(|f| f.add(fault)),
        }
        self.paths_changed(disk);
        if matches!(fault, StorageFault::Apd | StorageFault::Pdl)
            && let Some(host) = host
        {
            self.storage_lost(host, disk);
        }
    }

    pub(super) fn datastore_heal(&mut self, disk: usize, host: Option<usize>) {
        match host {
            None => {
                self.disks[disk].everybody = Faults::default();
                self.disks[disk].per_host.fill(Faults::default());
            }
            Some(host) => {
                self.disks[disk]
                    .per_host
                    .iter_mut()
                    .skip(host)
                    .take(1)
                    .for_each(|f| *f = Faults::default());
            }
        }
        for host in 0..self.hosts.len() {
            self.storage_back(host, disk);
        }
        self.paths_changed(disk);
    }

    /// The storage has lost a host and drops its image locks after its expiry.
    pub(super) fn storage_lost(&mut self, host: usize, disk: usize) {
        let Some(lost) = self.hosts[host].lost.get_mut(disk) else {
            return;
        };
        *lost += 1;
        let lost = *lost;
        let wait = self.disks[disk].expiry;
        self.after(wait, Happening::DropImageLocks { host, disk, lost });
    }

    pub(super) fn drop_image_locks(&mut self, host: usize, disk: usize, lost: u64) {
        if self.hosts[host].lost.get(disk) != Some(&lost) {
            return;
        }
        let images = self.disks[disk].images.clone();
        for (vm, instance) in images {
            if self.instances[instance].host == host {
                self.disks[disk].images.remove(&vm);
            }
        }
    }

    /// The storage hears the host again: a client reclaims what nobody else has taken.
    pub(super) fn storage_back(&mut self, host: usize, disk: usize) {
        let faults = self.disks[disk]
            .per_host
            .get(host)
            .copied()
            .unwrap_or_default();
        if faults.hang || faults.gone || !self.hosts[host].up() {
            return;
        }
        if let Some(lost) = self.hosts[host].lost.get_mut(disk) {
            *lost += 1;
        }
        // A client that comes back after a reboot has lost what its processes had open.
        let instances = &self.instances;
        self.disks[disk]
            .images
            .retain(|_, i| instances[*i].host != host || instances[*i].exists());
        let mine: BTreeSet<(usize, usize)> = self
            .instances
            .iter()
            .enumerate()
            .filter(|(_, i)| {
                i.host == host && i.exists() && i.opened && self.vms[i.vm].disk == disk
            })
            .filter(|(index, i)| self.vms[i.vm].newest_open == Some(*index))
            .map(|(index, i)| (i.vm, index))
            .collect();
        for (vm, instance) in mine {
            self.disks[disk].images.entry(vm).or_insert(instance);
        }
    }

    /// The host lost power: what is on its way lands within seconds, or vanishes.
    pub(super) fn operations_lose_power(&mut self, host: usize) {
        for index in 0..self.ops.len() {
            let Some(mut op) = self.ops[index].take() else {
                continue;
            };
            if op.host != host {
                self.ops[index] = Some(op);
                continue;
            }
            op.answered = true;
            if op.parked || self.dice.disk.percent(50) {
                op.effect_over = true;
            } else if !op.effect_over {
                // Its effect may have been planned for much later: the bound is a few seconds.
                let (wait, serial) = (self.dice.disk.below(3000) * MS, op.serial);
                self.after(wait, Happening::Effect { op: index, serial });
            }
            self.keep_or_free(index, op);
        }
        self.hosts[host].in_flight = 0;
    }
}
