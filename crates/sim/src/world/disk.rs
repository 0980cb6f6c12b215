//! A datastore: its records, how a request changes them, and what waits for its paths.

use super::component::Loss;
use super::list::NewestList;
use super::paths::Faults;
use crate::clock::Nanos;
use mainstay_core::config::FenceClass;
use mainstay_core::id::{DatastoreId, Generation, VmId};
use mainstay_core::io::{StorageRequest, StorageValue};
use mainstay_core::wire::{LockRecord, PAGE_BYTES, PageWrite, RecordKey};
use std::collections::BTreeMap;
use std::sync::Arc;

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
    /// What stands between it and each host. A fault for all is one for each: healed for one host, it stays
    /// for the others.
    pub(super) per_host: Vec<Faults>,
    /// Since when each host's path hangs.
    pub(super) hang_since: Vec<Nanos>,
    /// How each host's path was lost, and for how long.
    pub(super) losses: Vec<Loss>,
    pub(super) parked: Vec<usize>,
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
            per_host: vec![Faults::default(); hosts],
            hang_since: vec![0; hosts],
            losses: vec![Loss::default(); hosts],
            parked: Vec::new(),
            parked_writes: Vec::new(),
            parked_opens: Vec::new(),
            owners: BTreeMap::new(),
            list: None,
        }
    }

    pub(super) fn faults(&self, host: usize) -> Faults {
        self.per_host.get(host).copied().unwrap_or_default()
    }

    /// What stands between it and the hosts that an event meets: one, or all.
    pub(super) fn met(&mut self, host: Option<usize>) -> impl Iterator<Item = &mut Faults> {
        let (skipped, taken) = host.map_or((0, usize::MAX), |host| (host, 1));
        self.per_host.iter_mut().skip(skipped).take(taken)
    }

    /// Performs a request on the records, atomically.
    pub(super) fn perform(&mut self, request: &StorageRequest) -> StorageValue {
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
    pub(super) fn break_off(
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
    pub(super) fn lengthens(&self, key: &RecordKey, pages: &[PageWrite]) -> bool {
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
