//! Datastores: primitive operations whose effect and acknowledgement are two events at different
//! times, the faults between a host and its storage, and the storage's own image locks.

use super::list::NewestList;
use super::{Happening, World};
use crate::clock::{MS, Nanos};
use crate::scenario::StorageFault;
use mainstay_core::config::FenceClass;
use mainstay_core::id::{DatastoreId, Generation, OpId, VmId};
use mainstay_core::io::{Input, IoFault, StorageOutcome, StorageRequest, StorageValue};
use mainstay_core::wire::{
    LockRecord, OLDEST_VERSION, PAGE_BYTES, PageWrite, RecordKey, version_of,
};
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
    /// The protected list that a new owner would go by, as it was last read.
    pub(super) list: Option<NewestList>,
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
            list: None,
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
            StorageRequest::PutPages(key, pages) => {
                let Some(record) = self.records.get_mut(key) else {
                    return StorageValue::NotFound;
                };
                put_pages(Arc::make_mut(record), pages);
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
            StorageRequest::ProbeLock(_) => StorageValue::Held(self.image_locks),
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
                &RecordKey::Protected(Generation(0)),
                &RecordKey::Protected(Generation(u64::MAX)),
            ),
        }
    }

    /// Of a write of pages on a device with sectors of that size, the first `whole` land, and of the one
    /// behind them, noise.
    fn break_off(
        &mut self,
        key: &RecordKey,
        pages: &[PageWrite],
        sector: usize,
        whole: usize,
        noise: u8,
    ) {
        let Some(record) = self.records.get_mut(key) else {
            return;
        };
        let file = Arc::make_mut(record);
        let all = pages.iter().flat_map(|(page, bytes)| {
            let start = size(*page) * PAGE_BYTES;
            let parts = bytes.chunks(sector).enumerate();
            parts.map(move |(n, part)| (start + n * sector, part))
        });
        for (n, (at, part)) in all.take(whole + 1).enumerate() {
            if n < whole {
                write_at(file, at, part);
            } else {
                write_at(file, at, &vec![noise; part.len()]);
            }
        }
    }

    /// Does the write need space that the record does not have yet?
    fn lengthens(&self, key: &RecordKey, pages: &[PageWrite]) -> bool {
        let len = self.records.get(key).map_or(0, |r| r.len());
        pages
            .iter()
            .any(|(page, _)| size(*page) * PAGE_BYTES >= len)
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
    /// A write of pages that ends in the middle.
    breaks_off: bool,
    answered: bool,
    parked: bool,
}

fn writes(request: &StorageRequest) -> bool {
    use StorageRequest::{Link, Put, PutPages, Remove, Renew};
    matches!(
        request,
        Renew(..) | Put(..) | PutPages(..) | Link(..) | Remove(..)
    )
}

fn size(page: u32) -> usize {
    usize::try_from(page).unwrap_or(usize::MAX / PAGE_BYTES)
}

/// Writes pages into a file.
pub(super) fn put_pages(file: &mut Vec<u8>, pages: &[PageWrite]) {
    for (page, bytes) in pages {
        write_at(file, size(*page) * PAGE_BYTES, bytes);
    }
}

fn write_at(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    file.resize(file.len().max(at + bytes.len()), 0);
    for (old, new) in file.iter_mut().skip(at).zip(bytes) {
        *old = *new;
    }
}

impl World<'_> {
    /// What is written, every agent that mounts the datastore must understand.
    fn must_be_readable(&mut self, disk: usize, request: &StorageRequest) {
        use StorageRequest::{Link, Put, Renew};
        let (Renew(key, bytes) | Put(key, bytes) | Link(key, bytes)) = request else {
            return;
        };
        let Some(version) = version_of(bytes).filter(|v| *v > OLDEST_VERSION) else {
            return;
        };
        let mounts = |h: &&super::Host| h.mounts.get(disk).copied().unwrap_or(false);
        let old = self
            .hosts
            .iter()
            .filter(mounts)
            .find(|h| h.formats < version);
        if let Some(old) = old {
            let error = format!(
                "{} was written in version {version}, and {} understands {}",
                key.file_name(),
                old.id,
                old.formats
            );
            self.fail(error);
        }
    }

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
        let renews = matches!(request, StorageRequest::Renew(..));
        if renews {
            self.settle_older_renewals(host, disk, &request);
        }
        self.owner_acts_on_disk(host, disk, &request);
        self.must_be_readable(disk, &request);
        self.gives_up_on_disk(host, disk, &request);
        let faults = self.disks[disk].faults(host);
        let storm = self.stormy();
        let weather = self.scenario.weather;
        let refused = match &request {
            _ if faults.gone => Some(IoFault::Gone),
            r if writes(r) && faults.read_only => Some(IoFault::ReadOnly),
            StorageRequest::Put(..) | StorageRequest::Link(..) if faults.full => {
                Some(IoFault::Full)
            }
            StorageRequest::PutPages(key, pages)
                if faults.full && self.disks[disk].lengthens(key, pages) =>
            {
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
        let mut breaks_off = false;
        if storm && writes(&request) && self.dice.disk.below(1000) < weather.lost_ack {
            unknown_at = Some(self.now + self.dice.disk.between(5, 3000) * MS);
            if self.dice.disk.percent(weather.late_effect) {
                to_disk += self.dice.disk.below(weather.late_ms.max(1)) * MS;
            } else {
                never = self.dice.disk.percent(40);
            }
            breaks_off =
                matches!(request, StorageRequest::PutPages(..)) && self.dice.tear.percent(50);
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
            breaks_off,
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
        if renews {
            self.renewals.entry((host, disk)).or_default().push(index);
        }
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
        let mut older = self.renewals.remove(&(host, disk)).unwrap_or_default();
        older.sort_unstable();
        older.dedup();
        for index in older {
            let Some(op) = &mut self.ops[index] else {
                continue;
            };
            let StorageRequest::Renew(key, _) = &op.request else {
                continue;
            };
            if op.host != host || op.disk != disk || op.effect_over {
                continue;
            }
            if key != new_key {
                self.renewals.entry((host, disk)).or_default().push(index);
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
            self.land(op.disk, &op.request, op.breaks_off)
        });
        if op.unknown_at.is_none() && !op.answered {
            let at = op.ack_at;
            self.at(at, Happening::Ack { op: index, serial });
        }
        self.keep_or_free(index, op);
    }

    /// A request takes effect. Pages land one by one, and each state between is judged.
    fn land(&mut self, disk: usize, request: &StorageRequest, breaks_off: bool) -> StorageOutcome {
        let StorageRequest::PutPages(key, pages) = request else {
            let value = self.disks[disk].perform(request);
            self.record_landed(disk, request, &value);
            return StorageOutcome::Ok(value);
        };
        if breaks_off {
            let dice = &mut self.dice.tear;
            let sector = if dice.percent(50) { 512 } else { PAGE_BYTES };
            let sectors = pages.len() * (PAGE_BYTES / sector);
            let whole = usize::try_from(dice.below(sectors as u64 + 1)).unwrap_or(0);
            // Zeroes are the damage that is most easily taken for absence.
            let noise = if dice.percent(50) { 0 } else { 0xa5 };
            self.disks[disk].break_off(key, pages, sector, whole, noise);
            self.record_landed(disk, request, &StorageValue::Done);
            return StorageOutcome::Unknown(IoFault::Other);
        }
        let mut value = StorageValue::Done;
        for page in pages {
            let one = StorageRequest::PutPages(key.clone(), vec![page.clone()]);
            value = self.disks[disk].perform(&one);
            self.record_landed(disk, &one, &value);
        }
        match value {
            StorageValue::NotFound => StorageOutcome::NotDone(IoFault::Foreign),
            value => StorageOutcome::Ok(value),
        }
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
        let (host, run) = (op.host, op.run);
        let told = self.hosts[host].boot == op.boot && self.hosts[host].agent_run == run;
        let input = Input::Storage(op.id, outcome);
        self.keep_or_free(index, op);
        if told && self.hosts[host].up() {
            self.feed(host, input);
        } else if told {
            self.answer(host, 0, input);
        }
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
            .living_on(host)
            .filter(|(_, i)| i.opened && self.vms[i.vm].disk == disk)
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
                let pages = matches!(op.request, StorageRequest::PutPages(..));
                op.breaks_off |= pages && self.dice.tear.percent(50);
                // Its effect may have been planned for much later: the bound is a few seconds.
                let (wait, serial) = (self.dice.disk.below(3000) * MS, op.serial);
                self.after(wait, Happening::Effect { op: index, serial });
            }
            self.keep_or_free(index, op);
        }
        self.hosts[host].in_flight = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_of_pages_that_breaks_off_leaves_a_beginning_noise_and_what_was_there() {
        let key = RecordKey::Protected(Generation(1));
        let id = DatastoreId::new("ds-1").expect("id");
        let pages = [(1, vec![1; PAGE_BYTES]), (3, vec![3; PAGE_BYTES])];
        let torn = |sector: usize, whole: usize| {
            let mut disk = Disk::new(id.clone(), FenceClass::Open, true, 0, 1);
            assert!(!disk.lengthens(&key, &[]) && disk.lengthens(&key, &pages));
            let before = Arc::new(vec![9; 2 * PAGE_BYTES]);
            disk.records.insert(key.clone(), before);
            disk.break_off(&key, &pages, sector, whole, 7);
            let file = disk.records.get(&key).expect("there").to_vec();
            // Which values, and how many sectors of each.
            let mut runs: Vec<(u8, usize)> = Vec::new();
            for part in file.chunks(512) {
                match runs.last_mut() {
                    Some((value, n)) if Some(&*value) == part.first() => *n += 1,
                    _ => runs.push((*part.first().expect("bytes"), 1)),
                }
            }
            runs
        };
        assert_eq!(torn(512, 0), [(9, 8), (7, 1), (9, 7)]);
        assert_eq!(torn(512, 5), [(9, 8), (1, 5), (7, 1), (9, 2)]);
        assert_eq!(torn(512, 9), [(9, 8), (1, 8), (0, 8), (3, 1), (7, 1)]);
        assert_eq!(torn(PAGE_BYTES, 1), [(9, 8), (1, 8), (0, 8), (7, 8)]);
        assert_eq!(torn(512, 16), [(9, 8), (1, 8), (0, 8), (3, 8)]);
    }
}
