//! How much the daemons of a host ask of a datastore. What its guests read and write is not counted: it is told
//! apart by the file.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// The directory of all records, below the root of a datastore; everything else is the guests'.
pub(super) const RECORDS: &str = ".mainstay";

/// What was asked for since a datastore was mounted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Operations as the file system sees them: reads, writes, and all that names, opens and closes files.
    pub operations: u64,
    /// Bytes read of records.
    pub bytes_read: u64,
    /// Bytes written of records.
    pub bytes_written: u64,
}

impl std::ops::Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            operations: self.operations + other.operations,
            bytes_read: self.bytes_read + other.bytes_read,
            bytes_written: self.bytes_written + other.bytes_written,
        }
    }
}

/// The counters of one mount.
#[derive(Debug, Default)]
pub(super) struct Counters {
    asked: AtomicU64,
    by_guests: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

impl Counters {
    /// Something was asked for.
    pub(super) fn asked(&self) {
        add(&self.asked, 1);
    }

    /// True when the file is a record; else one of what was asked for was a guest's.
    fn is_record(&self, path: &Path) -> bool {
        let record = path.starts_with(RECORDS);
        add(&self.by_guests, u64::from(!record));
        record
    }

    /// It was a read that gave so many bytes.
    pub(super) fn read(&self, path: &Path, bytes: usize) {
        if self.is_record(path) {
            add(&self.bytes_read, bytes as u64);
        }
    }

    /// It was a write of so many bytes.
    pub(super) fn wrote(&self, path: &Path, bytes: usize) {
        if self.is_record(path) {
            add(&self.bytes_written, bytes as u64);
        }
    }

    /// It was a sync.
    pub(super) fn synced(&self, path: &Path) {
        self.is_record(path);
    }

    pub(super) fn tally(&self) -> Tally {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Tally {
            operations: load(&self.asked).saturating_sub(load(&self.by_guests)),
            bytes_read: load(&self.bytes_read),
            bytes_written: load(&self.bytes_written),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_guests_do_is_not_counted() {
        let counters = Counters::default();
        let record = Path::new(".mainstay/0001/host-1-hb");
        let image = Path::new("vms/vm-1/disk.raw");
        for _ in 0..5 {
            counters.asked();
        }
        counters.read(record, 100);
        counters.wrote(record, 512);
        counters.wrote(image, 4096);
        counters.synced(image);
        let expected = Tally {
            operations: 3,
            bytes_read: 100,
            bytes_written: 512,
        };
        assert_eq!(counters.tally(), expected);
    }
}
