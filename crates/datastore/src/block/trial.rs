//! How long a renewal takes on a region's device: writes into a page between the copy of the head and the heartbeats,
//! which belongs to no host and is read by nobody.

use super::admin::Visit;
use super::disk::{Device, Disk};
use super::layout::TRIAL;
use crate::hygiene::{Advice, RENEWALS, Weight, judge_renewals};
use mainstay_core::id::DatastoreId;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// What trial writes to a region showed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trial {
    /// How long those that were done took, one after the other.
    pub renewals: Vec<Duration>,
    /// What should be otherwise.
    pub advice: Vec<Advice>,
}

/// Writes like renewals to the region of `id` on a device, a sector at a time and in a place that is nobody's, and reads
/// the last one back; beside its agents or without any. Judged by a right to run that lasts for `freeze` and is
/// renewed each `interval`. A write that fails is a finding.
///
/// # Errors
/// The device cannot be read, or its region is another's: then nothing was written.
pub fn trial(
    path: &Path,
    cluster: u64,
    id: &DatastoreId,
    freeze: Duration,
    interval: Duration,
) -> io::Result<Trial> {
    trial_on(&Device::new(path), cluster, id, freeze, interval)
}

fn trial_on(
    disk: &dyn Disk,
    cluster: u64,
    id: &DatastoreId,
    freeze: Duration,
    interval: Duration,
) -> io::Result<Trial> {
    let head = Visit::begin(disk, cluster)?.into_head();
    if head.datastore != *id {
        return Err(io::Error::other(format!(
            "the region there is that of {}, not of {id}",
            head.datastore
        )));
    }
    let mut renewals = Vec::new();
    let breaks = |text| Advice {
        weight: Weight::Breaks,
        text,
    };
    let mut advice = Vec::new();
    let sector = head.geometry.sector_len();
    let mut last = Vec::new();
    for n in 1..=RENEWALS {
        last = vec![u8::try_from(n).unwrap_or(u8::MAX); sector];
        let began = Instant::now();
        if let Err(e) = disk.write(TRIAL, &last) {
            advice.push(breaks(format!(
                "a write failed ({}): no host can renew its right to run; make the device writable for this host",
                e.error
            )));
            break;
        }
        renewals.push(began.elapsed());
    }
    if advice.is_empty() && disk.read(TRIAL, sector)? != last {
        advice.push(breaks(String::from(
            "a write that was acknowledged is not read back: another check may run at this moment; if none does, what the device acknowledges is not on it",
        )));
    }
    if disk.is_cached() {
        advice.push(breaks(String::from(
            "it refuses O_DIRECT, so that reads may come from a cache of this host; use it only where the cache is coherent between hosts",
        )));
    }
    advice.extend(judge_renewals(&renewals, freeze, interval));
    Ok(Trial { renewals, advice })
}

#[cfg(test)]
mod tests {
    use super::super::disk::WriteError;
    use super::super::layout::{Codec, Geometry, HEAD_COPY, REGION_FORMAT, RegionHead, head_bytes};
    use super::super::open::NO_BOOT;
    use super::*;
    use mainstay_core::id::HostId;
    use nix::errno::Errno;
    use std::sync::Mutex;

    const CLUSTER: u64 = 0xaa;

    /// The head of a region, and what was written since.
    #[derive(Debug)]
    struct Heads {
        head: Vec<u8>,
        written: Mutex<Vec<(u64, Vec<u8>)>>,
        read_only: bool,
        forgets: bool,
    }

    impl Disk for Heads {
        fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
            let written = self.written.lock().expect("lock");
            let last = written.iter().rfind(|(at, _)| *at == offset);
            let mut bytes = match last {
                Some((_, bytes)) if !self.forgets => bytes.clone(),
                None if offset == 0 => self.head.clone(),
                _ => Vec::new(),
            };
            bytes.resize(len, 0);
            Ok(bytes)
        }

        fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
            if self.read_only {
                return Err(WriteError::of(Errno::EROFS.into()));
            }
            let mut written = self.written.lock().expect("lock");
            written.push((offset, bytes.to_vec()));
            Ok(())
        }
    }

    fn id(text: &str) -> DatastoreId {
        DatastoreId::new(text).expect("id")
    }

    fn region(sector: u32) -> Heads {
        let head = RegionHead {
            format: REGION_FORMAT,
            region: 5,
            datastore: id("ds-1"),
            geometry: Geometry::sized(sector, 4, 8),
        };
        let by = HostId::new("host-1").expect("id");
        Heads {
            head: head_bytes(CLUSTER, &Codec::stamp_of(&by, NO_BOOT, 1), &head),
            written: Mutex::default(),
            read_only: false,
            forgets: false,
        }
    }

    fn tried(disk: &Heads) -> Trial {
        let (freeze, interval) = (Duration::from_secs(600), Duration::from_secs(1));
        trial_on(disk, CLUSTER, &id("ds-1"), freeze, interval).expect("a region")
    }

    #[test]
    fn what_is_tried_lies_between_the_copy_of_the_head_and_the_heartbeats() {
        for sector in [512, 4096] {
            let disk = region(sector);
            let found = tried(&disk);
            assert_eq!((found.renewals.len(), found.advice), (RENEWALS, Vec::new()));
            let copy = HEAD_COPY + 4096;
            let heartbeats = Geometry::sized(sector, 4, 8).heartbeat(0);
            for (at, bytes) in disk.written.lock().expect("lock").iter() {
                assert_eq!(bytes.len(), usize::try_from(sector).expect("small"));
                assert!(*at >= copy && at + u64::from(sector) <= heartbeats, "{at}");
            }
        }
    }

    #[test]
    fn a_region_of_another_datastore_is_not_written() {
        let disk = region(512);
        let second = Duration::from_secs(1);
        for (cluster, name) in [(CLUSTER, "ds-2"), (7, "ds-1")] {
            let refused = trial_on(&disk, cluster, &id(name), second, second);
            assert!(refused.is_err(), "{refused:?}");
        }
        assert!(disk.written.lock().expect("lock").is_empty());
    }

    #[test]
    fn a_write_that_fails_or_is_forgotten_breaks_what_is_promised() {
        for (read_only, forgets, said) in [
            (true, false, "a write failed"),
            (false, true, "not read back"),
        ] {
            let disk = Heads {
                read_only,
                forgets,
                ..region(512)
            };
            let found = tried(&disk).advice;
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(
                found[0].weight == Weight::Breaks && found[0].text.contains(said),
                "{found:?}"
            );
        }
    }
}
