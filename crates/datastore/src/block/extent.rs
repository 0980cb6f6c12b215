//! Extents: lists and configurations, each in one of two halves.
//!
//! A record is replaced by writing the other half and then its head, with the next sequence; the half with the
//! highest sequence counts. Each extent has one writer: the host for its powered-on list, the owner of a
//! generation for its lists. What an owner writes late, when eight further ones have been, falls into the extent
//! of another: there the seals of its pages do not fit, and count as damage.

use super::disk::WriteError;
use super::layout::{ExtentHead, LISTS};
use super::{BlockDatastore, locked};
use crate::error::fault;
use mainstay_core::id::Generation;
use mainstay_core::io::{IoFault, StorageOutcome, StorageValue};
use mainstay_core::wire::{PAGE_BYTES, PageWrite, RecordKey};
use std::io;
use std::sync::{Arc, Mutex};

/// The halves of an extent, as they were read.
pub(super) struct Halves {
    /// The one that counts, with its head.
    pub(super) now: Option<(u8, ExtentHead)>,
    /// A head cannot be read.
    pub(super) damaged: bool,
}

fn not_done(error: &io::Error) -> StorageOutcome {
    StorageOutcome::NotDone(fault(error))
}

const DONE: StorageOutcome = StorageOutcome::Ok(StorageValue::Done);
const NOT_FOUND: StorageOutcome = StorageOutcome::Ok(StorageValue::NotFound);

impl BlockDatastore {
    /// Where a half of the extent for a record begins, and its room.
    fn half(&self, key: &RecordKey, half: u8) -> Result<(u64, usize), IoFault> {
        let place = match key {
            RecordKey::Poweron(host) => self.place(host)?,
            _ => None,
        };
        self.head
            .geometry
            .half(key, place, half)
            .ok_or(IoFault::Foreign)
    }

    /// What is held while the record of this extent is replaced: one that hangs holds up no other.
    fn extent(&self, key: &RecordKey) -> Arc<Mutex<()>> {
        // Of what has no place nothing is written.
        let at = self.half(key, 0).map_or(u64::MAX, |(at, _)| at);
        Arc::clone(locked(&self.extents).entry(at).or_default())
    }

    fn halves(&self, key: &RecordKey) -> Result<Halves, IoFault> {
        let mut halves = Halves {
            now: None,
            damaged: false,
        };
        for half in [0, 1] {
            let (at, _) = self.half(key, half)?;
            let bytes = self
                .disk
                .read(at, self.codec.sector)
                .map_err(|e| fault(&e))?;
            match self.codec.read_extent(half, &bytes) {
                Ok(head) => {
                    let newer = halves
                        .now
                        .as_ref()
                        .is_none_or(|(_, now)| head.sequence > now.sequence);
                    if newer {
                        halves.now = Some((half, head));
                    }
                }
                Err(_) => halves.damaged = true,
            }
        }
        Ok(halves)
    }

    /// The half that holds this record.
    fn held(&self, key: &RecordKey) -> Result<Option<(u8, ExtentHead)>, IoFault> {
        let place_is_unknown =
            matches!(key, RecordKey::Poweron(host) if self.place(host)?.is_none());
        if place_is_unknown {
            return Ok(None);
        }
        let halves = self.halves(key)?;
        match halves.now {
            Some((half, head)) if head.key.as_ref() == Some(key) => Ok(Some((half, head))),
            // It may be what is damaged.
            _ if halves.damaged => Err(IoFault::Other),
            _ => Ok(None),
        }
    }

    pub(super) fn read_extent(&self, key: &RecordKey) -> StorageOutcome {
        let (half, head) = match self.held(key) {
            Ok(Some(held)) => held,
            Ok(None) => return NOT_FOUND,
            Err(fault) => return StorageOutcome::NotDone(fault),
        };
        let (at, room) = match self.half(key, half) {
            Ok(half) => half,
            Err(fault) => return StorageOutcome::NotDone(fault),
        };
        let len = usize::try_from(head.bytes).unwrap_or(room).min(room);
        let padded = len.next_multiple_of(PAGE_BYTES);
        match self.disk.read(at + PAGE_BYTES as u64, padded) {
            Ok(mut bytes) => {
                bytes.truncate(len);
                StorageOutcome::Ok(StorageValue::Bytes(bytes))
            }
            Err(e) => not_done(&e),
        }
    }

    pub(super) fn put(&self, key: &RecordKey, bytes: &[u8]) -> StorageOutcome {
        let extent = self.extent(key);
        let one = locked(&extent);
        let halves = match self.halves(key) {
            Ok(halves) => halves,
            Err(fault) => return StorageOutcome::NotDone(fault),
        };
        let (half, sequence) = match &halves.now {
            Some((half, head)) => (1 - half % 2, head.sequence + 1),
            None => (0, 1),
        };
        let (at, room) = match self.half(key, half) {
            Ok(half) => half,
            Err(fault) => return StorageOutcome::NotDone(fault),
        };
        if bytes.len() > room {
            return StorageOutcome::NotDone(IoFault::Full);
        }
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(PAGE_BYTES), 0);
        match self.disk.write(at + PAGE_BYTES as u64, &padded) {
            Ok(()) => {}
            Err(e) if e.refused => return not_done(&e.error),
            // Until its head is written this half holds nothing. But the next record goes there too, and what
            // lands late would fall into it.
            Err(e) => return StorageOutcome::Unknown(fault(&e.error)),
        }
        let head = ExtentHead {
            key: Some(key.clone()),
            bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            sequence,
        };
        let outcome = self.write_head(key, half, &head);
        drop(one);
        outcome
    }

    fn write_head(&self, key: &RecordKey, half: u8, head: &ExtentHead) -> StorageOutcome {
        let written = self.half(key, half).map(|(at, _)| {
            let bytes = self.codec.extent(half, head);
            bytes.map(|bytes| self.disk.write(at, &bytes))
        });
        match written {
            Ok(Some(Ok(()))) => DONE,
            Ok(Some(Err(e))) if e.refused => not_done(&e.error),
            Ok(Some(Err(e))) => StorageOutcome::Unknown(fault(&e.error)),
            Ok(None) => StorageOutcome::NotDone(IoFault::Other),
            Err(fault) => StorageOutcome::NotDone(fault),
        }
    }

    pub(super) fn put_pages(&self, key: &RecordKey, pages: &[PageWrite]) -> StorageOutcome {
        if pages.iter().any(|(_, bytes)| bytes.len() != PAGE_BYTES) {
            return StorageOutcome::NotDone(IoFault::Other);
        }
        let extent = self.extent(key);
        let one = locked(&extent);
        let (half, mut head) = match self.held(key) {
            Ok(Some(held)) => held,
            Ok(None) => return StorageOutcome::NotDone(IoFault::Foreign),
            Err(fault) => return StorageOutcome::NotDone(fault),
        };
        let (at, room) = match self.half(key, half) {
            Ok(half) => half,
            Err(fault) => return StorageOutcome::NotDone(fault),
        };
        let end = |page: u32| (u64::from(page) + 1) * PAGE_BYTES as u64;
        let last = pages.iter().map(|(page, _)| end(*page)).max().unwrap_or(0);
        if usize::try_from(last).unwrap_or(usize::MAX) > room {
            return StorageOutcome::NotDone(IoFault::Full);
        }
        match self.blank_gap(at, u64::from(head.bytes), last, pages) {
            Ok(()) => {}
            Err(e) if e.refused => return not_done(&e.error),
            Err(e) => return StorageOutcome::Unknown(fault(&e.error)),
        }
        for (n, (page, bytes)) in pages.iter().enumerate() {
            match self.disk.write(at + end(*page), bytes) {
                Ok(()) => {}
                Err(e) if n == 0 && e.refused => return not_done(&e.error),
                Err(e) => return StorageOutcome::Unknown(fault(&e.error)),
            }
        }
        let Some(longer) = u32::try_from(last).ok().filter(|last| *last > head.bytes) else {
            drop(one);
            return DONE;
        };
        head.bytes = longer;
        match self.write_head(key, half, &head) {
            // The pages are there, but not all of them count.
            StorageOutcome::NotDone(fault) => StorageOutcome::Unknown(fault),
            outcome => outcome,
        }
    }

    /// Behind the record's end lies what an earlier one left: pages that a longer one does not write are blank.
    fn blank_gap(
        &self,
        at: u64,
        from: u64,
        to: u64,
        pages: &[PageWrite],
    ) -> Result<(), WriteError> {
        let first = from.div_ceil(PAGE_BYTES as u64);
        for page in first..to / PAGE_BYTES as u64 {
            if pages.iter().any(|(written, _)| u64::from(*written) == page) {
                continue;
            }
            let place = at + (page + 1) * PAGE_BYTES as u64;
            self.disk.write(place, &[0; PAGE_BYTES])?;
        }
        Ok(())
    }

    /// Only the one writer of an extent makes a record in it, so that looking and making need not be one step.
    pub(super) fn link_extent(&self, key: &RecordKey, bytes: &[u8]) -> StorageOutcome {
        match self.held(key) {
            Ok(Some(_)) => StorageOutcome::Ok(StorageValue::Exists),
            Ok(None) => self.put(key, bytes),
            Err(fault) => StorageOutcome::NotDone(fault),
        }
    }

    pub(super) fn remove(&self, key: &RecordKey) -> StorageOutcome {
        if matches!(
            key,
            RecordKey::VmLock(..) | RecordKey::OwnerLock(_) | RecordKey::Heartbeat(_)
        ) {
            // Old generations go by themselves. What a register still shows stays.
            return match self.read(key) {
                StorageOutcome::Ok(StorageValue::Bytes(_)) => {
                    StorageOutcome::NotDone(IoFault::Other)
                }
                outcome => outcome,
            };
        }
        let extent = self.extent(key);
        let one = locked(&extent);
        let (half, mut head) = match self.held(key) {
            Ok(Some(held)) => held,
            Ok(None) => return NOT_FOUND,
            Err(fault) => return StorageOutcome::NotDone(fault),
        };
        head.key = None;
        let outcome = self.write_head(key, half, &head);
        drop(one);
        outcome
    }

    pub(super) fn list_extents(&self, config: bool) -> StorageOutcome {
        let mut keys = Vec::new();
        for generation in 0..LISTS {
            let generation = Generation(generation);
            let places = if config {
                vec![
                    RecordKey::Config(generation, 0),
                    RecordKey::Config(generation, 1),
                ]
            } else {
                vec![RecordKey::Protected(generation)]
            };
            for place in places {
                match self.halves(&place) {
                    Ok(Halves { now: None, damaged }) if damaged => {
                        return StorageOutcome::NotDone(IoFault::Other);
                    }
                    Ok(halves) => keys.extend(halves.now.and_then(|(_, head)| head.key)),
                    Err(fault) => return StorageOutcome::NotDone(fault),
                }
            }
        }
        StorageOutcome::Ok(StorageValue::Keys(keys))
    }
}
