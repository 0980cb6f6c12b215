//! The records on a datastore.

use crate::CLUSTER;
use crate::wire::{both_ways, framed, sound};
use mainstay_core::id::{BootId, HostId, InstanceId};
use mainstay_core::id::{Generation, VmId};
use mainstay_core::wire::{
    ConfigRecord, Entry, FrameKind, HeartbeatRecord, LockRecord, MarkerRecord, PAGE_BYTES,
    PoweronRecord, ProtectedRecord, ProtectedVm, Stamp, Table, encode, read_page_at, read_table,
};
use mainstay_datastore::decoders;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// A heartbeat, a generation of a lock (of a VM or an owner), a datastore's marker, or a copy of the
/// configuration.
pub(crate) fn record(bytes: &[u8]) -> bool {
    let kinds = [
        both_ways(
            bytes,
            |bytes| HeartbeatRecord::decode(CLUSTER, bytes),
            |record, stamp| record.encode(CLUSTER, stamp),
            |_| {},
        ),
        both_ways(
            bytes,
            |bytes| LockRecord::decode(CLUSTER, bytes),
            |record, stamp| record.encode(CLUSTER, stamp),
            |_| {},
        ),
        both_ways(
            bytes,
            |bytes| MarkerRecord::decode(CLUSTER, bytes),
            |record, stamp| record.encode(CLUSTER, stamp),
            |_| {},
        ),
        both_ways(
            bytes,
            |bytes| ConfigRecord::decode(CLUSTER, bytes),
            |record, stamp| record.encode(CLUSTER, stamp),
            |record| {
                sound(&record.config);
                assert_eq!(record.config.cluster_id, CLUSTER);
            },
        ),
    ];
    assert!(kinds.iter().filter(|decoded| **decoded).count() <= 1);
    padding_is_ignored(bytes);
    kinds.contains(&true)
}

/// A sector of a region on a block datastore: its head, a slot of a register, a register's name or mark, the head of
/// an extent.
pub(crate) fn region(bytes: &[u8]) -> bool {
    let mut decoded = read_sector(bytes);
    if let Some(frame) = framed(bytes) {
        decoded |= read_sector(&frame);
    }
    decoded
}

fn read_sector(bytes: &[u8]) -> bool {
    let Some(again) = decoders::sector(CLUSTER, bytes) else {
        return false;
    };
    assert!(again.len() <= PAGE_BYTES, "a sector");
    let once_more = decoders::sector(CLUSTER, &again).expect("a sector just made");
    assert_eq!(again, once_more);
    true
}

/// A record lies in whole sectors: what is behind it is no part of it.
fn padding_is_ignored(bytes: &[u8]) {
    if let Some(frame) = framed(bytes) {
        let mut padded = frame.clone();
        padded.resize(frame.len() + 512, 0xa5);
        let read = LockRecord::decode(CLUSTER, &frame);
        assert_eq!(LockRecord::decode(CLUSTER, &padded), read);
    }
}

/// A powered-on or a protected list: the bytes as a file, and as a script that makes one.
pub(crate) fn list(bytes: &[u8]) -> bool {
    let mut decoded = read_list(bytes);
    if let Some(file) = file_of(bytes) {
        decoded |= read_list(&file);
    }
    decoded
}

fn read_list(file: &[u8]) -> bool {
    let poweron = table::<(VmId, Generation)>(file);
    assert_eq!(PoweronRecord::decode(CLUSTER, file).is_ok(), poweron);
    let protected = table::<ProtectedVm>(file);
    assert_eq!(ProtectedRecord::decode(CLUSTER, file).is_ok(), protected);
    assert!(!(poweron && protected), "no file is two kinds of list");
    poweron || protected
}

/// Pages of a list's file that its head takes.
const HEADS: u32 = 2;

fn table<E: Entry + Debug>(file: &[u8]) -> bool {
    let contents = match read_table::<E>(CLUSTER, file) {
        Ok(contents) => contents,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    let slots = file.len() / E::SLOT_BYTES;
    assert!(contents.entries.len() <= slots);
    for (vm, entry) in &contents.entries {
        assert_eq!(vm, entry.vm());
    }
    pages_say_the_same::<E>(file, &contents.entries);
    let wanted: Vec<E> = contents.entries.values().cloned().collect();
    let (mut table, refused) = Table::new(wanted);
    assert_eq!(refused, [], "what was in a file has room in one");
    let again = table.file(CLUSTER, &contents.stamp, contents.flags);
    let again = read_table::<E>(CLUSTER, &again).expect("a list just made");
    assert_eq!((again.lost, again.fallen_back), (0, 0));
    assert_eq!(again.entries, contents.entries);
    assert_eq!((again.stamp, again.flags), (contents.stamp, contents.flags));
    true
}

/// Whoever follows a file page by page comes to know what one who reads the whole does.
fn pages_say_the_same<E: Entry + Debug>(file: &[u8], whole: &BTreeMap<VmId, E>) {
    let pages = u32::try_from(file.len().div_ceil(PAGE_BYTES)).expect("a short file");
    let mut entries = BTreeMap::new();
    let mut known = None;
    for page in HEADS..pages {
        let (number, contents) = read_page_at::<E>(CLUSTER, file, page).expect("as the whole");
        if known != Some(number) {
            known = Some(number);
            entries.extend(contents.entries);
        }
    }
    assert_eq!(&entries, whole);
}

/// Reads a script front to back; zeroes where it has ended.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn bytes(&mut self, length: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// The most pages of a file that a script makes, so that each is made in no time.
const SCRIPT_PAGES: u8 = 8;
/// The most slots that it writes.
const SCRIPT_SLOTS: usize = 64;

/// The file of a script, with checksums that fit where the script does not want otherwise: no fuzzer finds those
/// by itself.
///
/// ```text
/// kind of list and geometry | pages by the head | pages | slots: page index version kind seal length payload...
/// ```
fn file_of(script: &[u8]) -> Option<Vec<u8>> {
    let mut script = Script(script);
    let first = script.byte();
    let (slot_bytes, twins, kind) = if first & 1 == 0 {
        (<(VmId, Generation)>::SLOT_BYTES, false, FrameKind::Poweron)
    } else {
        (ProtectedVm::SLOT_BYTES, true, FrameKind::Protected)
    };
    let stamp = Stamp {
        writer: HostId::new("host-1").ok()?,
        boot: BootId(1),
        instance: InstanceId(2),
        seq: u64::from(first),
    };
    let head_pages = u32::from(script.byte());
    let slot_size = u32::try_from(slot_bytes).ok()?;
    let head = (
        slot_size,
        twins ^ (first & 2 != 0),
        head_pages,
        u32::from(first >> 2),
    );
    let mut file = encode(kind, CLUSTER, &stamp, &head);
    file.resize(PAGE_BYTES, 0);
    file = file.repeat(2);
    file.resize(
        PAGE_BYTES * (2 + usize::from(script.byte() % SCRIPT_PAGES)),
        0,
    );
    for _ in 0..SCRIPT_SLOTS {
        if script.0.is_empty() {
            break;
        }
        write_slot(&mut file, &mut script, &stamp, slot_bytes);
    }
    Some(file)
}

fn write_slot(file: &mut Vec<u8>, script: &mut Script<'_>, stamp: &Stamp, slot_bytes: usize) {
    let page = HEADS + u32::from(script.byte() % SCRIPT_PAGES);
    let index = usize::from(script.byte()) % (PAGE_BYTES / slot_bytes);
    let mut rest = u64::from(script.byte()).to_le_bytes().to_vec();
    rest.push(script.byte());
    let seal = script.byte();
    let length = script.byte();
    rest.push(length);
    rest.extend(script.bytes(usize::from(length)));
    rest.resize(slot_bytes - 4, 0);
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&CLUSTER.to_le_bytes());
    hasher.update(stamp.writer.as_str().as_bytes());
    for number in [stamp.boot.0, stamp.instance.0, stamp.seq] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(&page.to_le_bytes());
    hasher.update(&u32::try_from(index).unwrap_or_default().to_le_bytes());
    hasher.update(&rest);
    let checksum = hasher.finalize() ^ u32::from(seal);
    let at = usize::try_from(page).unwrap_or_default() * PAGE_BYTES + index * slot_bytes;
    file.resize(file.len().max(at + slot_bytes), 0);
    let slot = [checksum.to_le_bytes().as_slice(), &rest].concat();
    if let Some(place) = file.get_mut(at..at + slot_bytes) {
        place.copy_from_slice(&slot);
    }
}
