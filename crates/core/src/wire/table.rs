//! Tables: records of many VMs in which the change of one VM costs one page, however many there are.
//!
//! ```text
//!   file pages 0, 1  head, twice: a frame (cluster, stamp, kind) with geometry and flags; never rewritten
//!   without twins    page p lies in file page 2 + p
//!   with twins       page p lies in file pages 2 + 2p and 3 + 2p: version 1 in the first, 2 in the
//!                    second, 3 in the first, ...: a write never touches the newest version on disk
//!   slot             checksum 4 | version of its page 8 | kind 1 | length 1 | payload
//! ```
//! A table begins as a whole file. After that only pages are written, in place; a page past the end
//! makes the file longer. No slot straddles a sector of 512 bytes, so a write that breaks off damages
//! the slots of one sector at most, or of one page where the device's own sector is that long. Each slot's
//! checksum covers the file's cluster and stamp and the slot's place, so that what was meant for another
//! place, or is left of another file, does not count. An empty slot is sealed like any other: zeroes where the
//! file was written are damage, not absence.
//!
//! # Never here
//! A damaged slot that passes for an empty one; a slot that is given up because of another's damage.

mod read;

pub use read::{Contents, read, read_page_at};

use super::frame::{FrameKind, RECORD_MAX_BYTES, Stamp, encode};
use crate::id::VmId;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use serde::{Deserialize, Serialize};

/// Size of a page, the unit in which a table is written: the largest logical block that file systems
/// ask for with O_DIRECT.
pub const PAGE_BYTES: usize = 4096;

/// Smallest sector that a device writes as one.
const SECTOR_BYTES: usize = 512;

/// Bytes of a slot before its payload.
const SLOT_HEAD: usize = 4 + 8 + 1 + 1;

/// Pages that the head takes, each of which holds it whole.
const HEADS: usize = 2;

/// Pages of a file with which it can still be read whole, less the head.
const PAGES_MAX: usize = RECORD_MAX_BYTES / PAGE_BYTES - HEADS;

/// A page of a file by its number, with its new content.
pub type PageWrite = (u32, Vec<u8>);

/// What the slots of a table hold.
pub trait Entry: Clone + PartialEq {
    /// Kind of the head's frame.
    const KIND: FrameKind;
    /// Size of a slot: a divisor of 512.
    const SLOT_BYTES: usize;
    /// Two alternating copies of each page, so that a write that breaks off harms nothing older.
    const TWINS: bool;
    /// The VM that it is about: its key.
    fn vm(&self) -> &VmId;
    /// Slots that the entry of a VM takes, 1 or 2. The id alone decides, so that an entry never moves.
    fn slots(vm: &VmId) -> u32;
    /// The payload, at most as long as that of its slots together.
    fn to_bytes(&self) -> Vec<u8>;
    /// The entry with this payload.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

/// The body of a head.
#[derive(Serialize, Deserialize)]
struct Head {
    slot_bytes: u32,
    twins: bool,
    /// Pages that the file had when it began.
    pages: u32,
    flags: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Empty = 1,
    /// An entry of one slot.
    Single = 2,
    /// An entry's first slot of two.
    First = 3,
    /// An entry's second slot.
    Second = 4,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Empty, Self::Single, Self::First, Self::Second]
            .into_iter()
            .find(|k| *k as u8 == byte)
    }
}

/// Where the slots of a kind of entry lie.
struct Geometry<E>(core::marker::PhantomData<E>);

impl<E: Entry> Geometry<E> {
    /// Slots on a page.
    const PER_PAGE: usize = {
        assert!(
            SECTOR_BYTES.is_multiple_of(E::SLOT_BYTES),
            "a slot must not straddle a sector"
        );
        assert!(E::SLOT_BYTES > SLOT_HEAD && E::SLOT_BYTES - SLOT_HEAD <= u8::MAX as usize);
        PAGE_BYTES / E::SLOT_BYTES
    };
    const PAYLOAD: usize = E::SLOT_BYTES - SLOT_HEAD;
    const COPIES: usize = if E::TWINS { 2 } else { 1 };
    /// Most pages of a table.
    const PAGES: usize = PAGES_MAX / Self::COPIES;

    fn file_page(page: usize, copy: usize) -> usize {
        HEADS + page * Self::COPIES + copy
    }

    /// The copy in which a version of a page lies.
    fn copy_of(version: u64) -> usize {
        usize::from(E::TWINS && version.is_multiple_of(2))
    }

    fn slot(index: usize) -> Range<usize> {
        index * E::SLOT_BYTES..(index + 1) * E::SLOT_BYTES
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn size(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// What every checksum of one file begins with.
#[derive(Clone, Debug, Default)]
struct Seal(crc32fast::Hasher);

impl Seal {
    fn new(cluster: u64, stamp: &Stamp) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&cluster.to_le_bytes());
        hasher.update(stamp.writer.as_str().as_bytes());
        for number in [stamp.boot.0, stamp.instance.0, stamp.seq] {
            hasher.update(&number.to_le_bytes());
        }
        Self(hasher)
    }

    fn checksum(&self, file_page: usize, index: usize, rest: &[u8]) -> u32 {
        let mut hasher = self.0.clone();
        hasher.update(&number(file_page).to_le_bytes());
        hasher.update(&number(index).to_le_bytes());
        hasher.update(rest);
        hasher.finalize()
    }
}

/// A table as its one writer keeps it: the entries, and where each lies in the file.
#[derive(Clone, Debug)]
pub struct Table<E> {
    seal: Seal,
    entries: BTreeMap<VmId, (u32, E)>,
    places: BTreeMap<u32, VmId>,
    free: BTreeSet<u32>,
    /// Version of each page that is on disk, or on its way there.
    versions: Vec<u64>,
    changed: BTreeSet<usize>,
    on_the_way: Vec<usize>,
}

impl<E> Default for Table<E> {
    fn default() -> Self {
        Self {
            seal: Seal::default(),
            entries: BTreeMap::new(),
            places: BTreeMap::new(),
            free: BTreeSet::new(),
            versions: Vec::new(),
            changed: BTreeSet::new(),
            on_the_way: Vec::new(),
        }
    }
}

impl<E: Entry> Table<E> {
    /// A table with these entries, in memory only. Answers also the VMs for which it has no room.
    #[must_use]
    pub fn new(entries: impl IntoIterator<Item = E>) -> (Self, Vec<VmId>) {
        let mut table = Self::default();
        let wanted = entries.into_iter().map(|e| (e.vm().clone(), e)).collect();
        let refused = table.set(&wanted);
        (table, refused)
    }

    /// Makes the entries those of `wanted`. What stays keeps its place. Answers the VMs for which there
    /// is no room; they are not in the table.
    pub fn set(&mut self, wanted: &BTreeMap<VmId, E>) -> Vec<VmId> {
        let gone = self.entries.keys().filter(|vm| !wanted.contains_key(*vm));
        for vm in gone.cloned().collect::<Vec<VmId>>() {
            self.remove(&vm);
        }
        let mut refused = Vec::new();
        for (vm, entry) in wanted {
            let known = self.entries.get_mut(vm);
            if let Some((at, known)) = known {
                if known != entry {
                    *known = entry.clone();
                    let at = *at;
                    self.touch(at);
                }
            } else if !self.insert(vm, entry) {
                refused.push(vm.clone());
            }
        }
        refused
    }

    fn touch(&mut self, at: u32) {
        self.changed.insert(size(at) / Geometry::<E>::PER_PAGE);
    }

    fn remove(&mut self, vm: &VmId) {
        let Some((at, _)) = self.entries.remove(vm) else {
            return;
        };
        self.places.remove(&at);
        self.free.extend(at..at + E::slots(vm));
        self.touch(at);
    }

    /// False when there is no room.
    fn insert(&mut self, vm: &VmId, entry: &E) -> bool {
        let slots = E::slots(vm);
        let Some(at) = self.room(slots).or_else(|| self.grow()) else {
            return false;
        };
        for taken in at..at + slots {
            self.free.remove(&taken);
        }
        self.places.insert(at, vm.clone());
        self.entries.insert(vm.clone(), (at, entry.clone()));
        self.touch(at);
        true
    }

    /// The first free place. Two slots begin at an even one, so that they share a sector.
    fn room(&self, slots: u32) -> Option<u32> {
        if slots == 1 {
            return self.free.first().copied();
        }
        let pair = |at: &&u32| at.is_multiple_of(2) && self.free.contains(&(**at + 1));
        self.free.iter().find(pair).copied()
    }

    /// One page more; answers its first place.
    fn grow(&mut self) -> Option<u32> {
        let page = self.versions.len();
        if page >= Geometry::<E>::PAGES {
            return None;
        }
        let per_page = Geometry::<E>::PER_PAGE;
        let first = number(page * per_page);
        self.versions.push(0);
        self.free.extend(first..first + number(per_page));
        Some(first)
    }

    /// The whole file, sealed with this stamp. From then on it is written by [`Table::changed_pages`].
    #[must_use]
    pub fn file(&mut self, cluster: u64, stamp: &Stamp, flags: u32) -> Vec<u8> {
        self.seal = Seal::new(cluster, stamp);
        self.changed.clear();
        self.on_the_way.clear();
        let head = Head {
            slot_bytes: number(E::SLOT_BYTES),
            twins: E::TWINS,
            pages: number(self.versions.len()),
            flags,
        };
        let mut file = encode(E::KIND, cluster, stamp, &head);
        file.resize(PAGE_BYTES, 0);
        file = file.repeat(HEADS);
        for page in 0..self.versions.len() {
            if let Some(version) = self.versions.get_mut(page) {
                *version = 1;
            }
            file.extend(self.page(page, 1));
            // The place of the second copy is made at once: it must not want space later.
            let copies = Geometry::<E>::COPIES;
            file.resize(PAGE_BYTES * Geometry::<E>::file_page(page, copies), 0);
        }
        file
    }

    /// The pages that changed since they were written, each as its next version.
    #[must_use]
    pub fn changed_pages(&mut self) -> Vec<PageWrite> {
        self.on_the_way = core::mem::take(&mut self.changed).into_iter().collect();
        let mut writes = Vec::new();
        for page in self.on_the_way.clone() {
            let Some(version) = self.versions.get_mut(page) else {
                continue;
            };
            *version += 1;
            let version = *version;
            let copy = Geometry::<E>::copy_of(version);
            let file_page = Geometry::<E>::file_page(page, copy);
            writes.push((number(file_page), self.page(page, version)));
        }
        writes
    }

    /// The pages that [`Table::changed_pages`] gave last were certainly not written and never will be.
    pub fn not_written(&mut self) {
        for page in core::mem::take(&mut self.on_the_way) {
            if let Some(version) = self.versions.get_mut(page) {
                *version -= 1;
            }
            self.changed.insert(page);
        }
    }

    /// The next write of each changed page goes over its newest copy (a planted bug, for testing the testers).
    pub(crate) fn forget_twins(&mut self) {
        for page in &self.changed {
            if let Some(version) = self.versions.get_mut(*page) {
                *version += 1;
            }
        }
    }

    fn page(&self, page: usize, version: u64) -> Vec<u8> {
        let per_page = Geometry::<E>::PER_PAGE;
        let first = page * per_page;
        let mut kinds = vec![(Kind::Empty, Vec::new()); per_page];
        for (at, vm) in self.places.range(number(first)..number(first + per_page)) {
            let Some((_, entry)) = self.entries.get(vm) else {
                continue;
            };
            let payload = entry.to_bytes();
            let index = size(*at) - first;
            let parts: &[Kind] = match E::slots(vm) {
                1 => &[Kind::Single],
                _ => &[Kind::First, Kind::Second],
            };
            let mut left = payload.as_slice();
            for (slot, kind) in kinds.iter_mut().skip(index).zip(parts) {
                let (part, rest) = left.split_at(left.len().min(Geometry::<E>::PAYLOAD));
                *slot = (*kind, part.to_vec());
                left = rest;
            }
        }
        let file_page = Geometry::<E>::file_page(page, Geometry::<E>::copy_of(version));
        let mut out = Vec::with_capacity(PAGE_BYTES);
        for (index, (kind, payload)) in kinds.iter().enumerate() {
            let mut rest = Vec::with_capacity(E::SLOT_BYTES);
            rest.extend_from_slice(&version.to_le_bytes());
            rest.push(*kind as u8);
            rest.push(u8::try_from(payload.len()).unwrap_or(u8::MAX));
            rest.extend_from_slice(payload);
            rest.resize(E::SLOT_BYTES - 4, 0);
            let checksum = self.seal.checksum(file_page, index, &rest);
            out.extend_from_slice(&checksum.to_le_bytes());
            out.extend_from_slice(&rest);
        }
        out
    }
}

#[cfg(test)]
mod tests;
