//! The sectors of a region, for tests that hand their decoders arbitrary bytes (`mainstay-fuzz`). No part of the API.

use crate::block::layout::{Codec, ExtentHead, Geometry, Mark, Name, RegionHead, Value};
use crate::block::layout::{REGION_FORMAT, head_bytes, read_head};
use mainstay_core::id::{BootId, DatastoreId, Generation, HostId, VmId};
use mainstay_core::paxos::{Ballot, Block, Sector};
use mainstay_core::wire::{FrameKind, RecordKey, Stamp, decode};

/// The region of all sectors here.
const REGION: u64 = 5;
/// The register and the slot whose sectors are read.
const REGISTER: u32 = 7;
const SLOT: u16 = 2;
/// Sectors are as long as the longest that a device has.
const SECTOR: usize = 4096;

fn codec(cluster: u64, stamp: Stamp) -> Codec {
    Codec {
        cluster,
        region: REGION,
        stamp,
        sector: SECTOR,
    }
}

/// Reads the bytes as each kind of sector that a region has, and writes what was read anew. None: it is none.
#[must_use]
pub fn sector(cluster: u64, bytes: &[u8]) -> Option<Vec<u8>> {
    let bytes = bytes.get(..SECTOR).unwrap_or(bytes);
    if let Ok((stamp, _)) = decode::<RegionHead>(FrameKind::RegionHead, cluster, bytes) {
        let head = read_head(cluster, bytes).ok()?;
        // What is computed from it stays within what can be computed.
        assert!(head.geometry.size() > head.geometry.register(0));
        return Some(head_bytes(cluster, &stamp, &head));
    }
    let kinds = [
        FrameKind::RegisterSlot,
        FrameKind::RegisterName,
        FrameKind::ExtentHead,
    ];
    type Head = (u64, (u32, u16));
    let read = |kind| decode::<Head>(kind, cluster, bytes);
    // The body is longer than that; only who wrote it is wanted.
    let stamp = kinds.into_iter().find_map(|kind| match read(kind) {
        Ok((stamp, _)) => Some(stamp),
        Err(_) => None,
    });
    let codec = codec(cluster, stamp?);
    let slot = match codec.read_slot(REGISTER, SLOT, bytes) {
        Sector::Sound(block) => codec.slot(REGISTER, SLOT, Some(&block)),
        Sector::Blank => codec.slot(REGISTER, SLOT, None),
        Sector::Damaged => None,
    };
    let name = codec.read_name(REGISTER, bytes).ok();
    let mark = codec.read_mark(REGISTER, bytes).ok();
    let extent = codec.read_extent(0, bytes).ok();
    let is_one = [
        slot.is_some(),
        name.is_some(),
        mark.is_some(),
        extent.is_some(),
    ];
    assert!(
        is_one.iter().filter(|is| **is).count() <= 1,
        "two kinds of sector"
    );
    let name = name.and_then(|name| codec.name(REGISTER, name.as_ref()));
    let mark = mark.and_then(|mark| codec.mark(REGISTER, mark.as_ref()));
    let extent = extent.and_then(|head| codec.extent(0, &head));
    slot.or(name).or(mark).or(extent)
}

fn seeds_stamp(host: &HostId) -> Stamp {
    Codec::stamp_of(host, BootId(2), 3)
}

/// One sector of each kind, without the zeroes at its end, and what it is. Empty where an id is refused.
#[must_use]
pub fn sectors(cluster: u64) -> Vec<(&'static str, Vec<u8>)> {
    let ids = (
        HostId::new("host-1"),
        VmId::new("vm-1"),
        DatastoreId::new("ds-1"),
    );
    let (Ok(host), Ok(vm), Ok(datastore)) = ids else {
        return Vec::new();
    };
    let codec = codec(cluster, seeds_stamp(&host));
    let head = RegionHead {
        format: REGION_FORMAT,
        region: REGION,
        datastore,
        geometry: Geometry::new(512),
    };
    let ballot = |round| Ballot {
        round,
        slot: SLOT,
        incarnation: 9,
    };
    let value = |name, byte| Value {
        name,
        record: vec![byte; 3],
    };
    let promise = Block {
        base: Some((Generation(4), value(None, 4))),
        promised: ballot(6),
        accepted: None,
        decided: false,
    };
    let first = Block {
        base: None,
        promised: ballot(1),
        accepted: Some((ballot(1), value(Some(Name::Vm(vm.clone())), 0))),
        decided: true,
    };
    let mark = Mark {
        name: Name::Host(host.clone()),
        newest: Generation(0),
    };
    let held = ExtentHead {
        key: Some(RecordKey::Poweron(host)),
        bytes: 300,
        sequence: 2,
    };
    let removed = ExtentHead {
        key: None,
        bytes: 0,
        sequence: 3,
    };
    let slot = |block| codec.slot(REGISTER, SLOT, block);
    let made = [
        ("head", Some(head_bytes(cluster, &codec.stamp, &head))),
        ("slot, blank", slot(None)),
        ("slot, promised", slot(Some(&promise))),
        ("slot, decided", slot(Some(&first))),
        ("name, free", codec.name(REGISTER, None)),
        (
            "name of a VM's lock",
            codec.name(REGISTER, Some(&Name::Vm(vm))),
        ),
        (
            "name of the owner lock",
            codec.name(REGISTER, Some(&Name::Owner)),
        ),
        ("mark", codec.mark(REGISTER, Some(&mark))),
        ("extent", codec.extent(0, &held)),
        ("extent, removed", codec.extent(0, &removed)),
    ];
    let trimmed = |bytes: Vec<u8>| {
        let end = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |end| end + 1);
        bytes.get(..end).unwrap_or(&bytes).to_vec()
    };
    let made = made.into_iter();
    made.filter_map(|(what, bytes)| Some((what, trimmed(bytes?))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: u64 = 9;

    /// The bytes of each kind of sector, as the first version of a region has them: a change of these is a change of
    /// the format, which needs another number in the head (decision 0007).
    const GOLDEN: &[(&str, &str)] = &[
        (
            "head",
            "4d4e53540100090209000000000000002200000006686f73742d3102030001050464732d3180044003c03e80c01080809c0280808002dc2111d3",
        ),
        (
            "slot, blank",
            "4d4e535401000a0209000000000000000e00000006686f73742d3102030005070200d795d9ef",
        ),
        (
            "slot, promised",
            "4d4e535401000a0209000000000000001a00000006686f73742d310203000507020101040003040404060209000077a93e32",
        ),
        (
            "slot, decided",
            "4d4e535401000a0209000000000000002200000006686f73742d31020300050702010001020901010209010204766d2d310300000001d7764378",
        ),
        (
            "name, free",
            "4d4e535401000b0209000000000000000e00000006686f73742d3102030005070000480a5adc",
        ),
        (
            "name of a VM's lock",
            "4d4e535401000b0209000000000000001400000006686f73742d31020300050700010204766d2d31846c972d",
        ),
        (
            "name of the owner lock",
            "4d4e535401000b0209000000000000000f00000006686f73742d3102030005070001003ccd2064",
        ),
        (
            "mark",
            "4d4e535401000b0209000000000000001700000006686f73742d31020300050701010106686f73742d3100a8cce410",
        ),
        (
            "extent",
            "4d4e535401000c0209000000000000001900000006686f73742d31020300050000010106686f73742d31ac0202ab4fa70c",
        ),
        (
            "extent, removed",
            "4d4e535401000c0209000000000000001000000006686f73742d31020300050000000003662699fe",
        ),
    ];

    #[test]
    fn sectors_have_the_bytes_of_the_first_region_format() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let made = sectors(CLUSTER);
        let made: Vec<(&str, String)> = made.iter().map(|(what, b)| (*what, hex(b))).collect();
        let golden: Vec<(&str, String)> = GOLDEN.iter().map(|(w, b)| (*w, (*b).into())).collect();
        assert_eq!(made, golden, "{made:#?}");
    }

    #[test]
    fn what_is_written_is_read_again() {
        for (what, bytes) in sectors(CLUSTER) {
            let again = sector(CLUSTER, &bytes).expect(what);
            assert_eq!(again.get(..bytes.len()), Some(bytes.as_slice()), "{what}");
            assert_eq!(sector(1, &bytes), None, "{what}: another cluster's");
        }
    }
}
