use super::*;
use crate::config::RestartPriority;
use crate::id::{BootId, Generation, HostId, InstanceId};
use crate::wire::{
    DecodeError, PoweronFlags, PoweronRecord, PoweronTable, ProtectedTable, ProtectedVm,
};
use alloc::format;
use alloc::string::String;
use proptest::prelude::*;

const CLUSTER: u64 = 9;

fn stamp(seq: u64) -> Stamp {
    Stamp {
        writer: HostId::new("host-1").expect("id"),
        boot: BootId(1),
        instance: InstanceId(2),
        seq,
    }
}

fn id(n: usize, len: usize) -> VmId {
    VmId::new(&format!("vm-{n:0width$}", width = len - 3)).expect("id")
}

fn protected(n: usize) -> ProtectedVm {
    ProtectedVm {
        vm: id(n, 40),
        cpu_mhz: 2_000,
        memory_mb: 4_096,
        restart_priority: RestartPriority::High,
        last_host: Some(HostId::new("host-17").expect("id")),
    }
}

fn on(n: usize, len: usize) -> (VmId, Generation) {
    (id(n, len), Generation(n as u64))
}

fn by_vm<E: Entry>(entries: impl IntoIterator<Item = E>) -> BTreeMap<VmId, E> {
    entries.into_iter().map(|e| (e.vm().clone(), e)).collect()
}

fn begun<E: Entry>(entries: &BTreeMap<VmId, E>) -> (Table<E>, Vec<u8>) {
    let (mut table, refused) = Table::new(entries.values().cloned());
    assert_eq!(refused, []);
    let file = table.file(CLUSTER, &stamp(1), 0);
    (table, file)
}

fn write(file: &mut Vec<u8>, pages: &[PageWrite]) {
    for (page, bytes) in pages {
        let at = *page as usize * PAGE_BYTES;
        file.resize(file.len().max(at + PAGE_BYTES), 0);
        file[at..at + PAGE_BYTES].copy_from_slice(bytes);
    }
}

/// The first `sectors` of the pages land, and of the next one noise.
fn write_torn(file: &mut Vec<u8>, pages: &[PageWrite], sectors: usize, noise: u8) {
    for n in 0..=sectors {
        let per_page = PAGE_BYTES / SECTOR_BYTES;
        let Some((page, bytes)) = pages.get(n / per_page) else {
            return;
        };
        let from = n % per_page * SECTOR_BYTES;
        let at = *page as usize * PAGE_BYTES + from;
        file.resize(file.len().max(at + SECTOR_BYTES), 0);
        if n < sectors {
            file[at..at + SECTOR_BYTES].copy_from_slice(&bytes[from..from + SECTOR_BYTES]);
        } else {
            file[at..at + SECTOR_BYTES].fill(noise);
        }
    }
}

fn sound<E: Entry + core::fmt::Debug>(file: &[u8]) -> BTreeMap<VmId, E> {
    let contents = read::<E>(CLUSTER, file).expect("a table");
    assert_eq!((contents.lost, contents.fallen_back), (0, 0));
    contents.entries
}

#[test]
fn a_change_of_one_vm_costs_the_same_at_10_1000_and_8000_vms() {
    let cost = |vms: usize| {
        let mut list = by_vm((0..vms).map(protected));
        let (mut table, mut file) = begun(&list);
        let mut costs = Vec::new();
        let mut change = |list: &BTreeMap<VmId, ProtectedVm>| {
            assert_eq!(table.set(list), []);
            let pages = table.changed_pages();
            write(&mut file, &pages);
            assert_eq!(&sound::<ProtectedVm>(&file), list);
            costs.push((pages.len(), pages.iter().map(|p| p.1.len()).sum::<usize>()));
        };
        let known = id(vms / 2, 40);
        list.remove(&known);
        change(&list);
        list.insert(known.clone(), protected(vms / 2));
        change(&list);
        list.get_mut(&known).expect("there").memory_mb += 1;
        change(&list);
        list.insert(id(vms, 40), protected(vms));
        change(&list);
        costs
    };
    assert_eq!(cost(10), [(1, PAGE_BYTES); 4]);
    assert_eq!(cost(1_000), cost(10));
    assert_eq!(cost(8_000), cost(10));

    let cost = |vms: usize| {
        let mut list = by_vm((0..vms).map(|n| on(n, 40)));
        let (mut table, _) = begun(&list);
        list.insert(id(vms, 40), on(vms, 40));
        table.set(&list);
        let added = table.changed_pages();
        list.remove(&id(vms / 2, 40));
        table.set(&list);
        [added.len(), table.changed_pages().len()]
    };
    assert_eq!([cost(10), cost(1_000), cost(8_000)], [[1, 1]; 3]);
}

#[test]
fn a_powered_on_list_of_2048_vms_stays_within_140_kb() {
    let mut record = PoweronRecord {
        flags: PoweronFlags {
            isolated: true,
            leaving: true,
        },
        vms: (0..2_048).map(|n| on(n, 40)).collect(),
        unreadable: 0,
    };
    let (_, file) = record.begin(CLUSTER, &stamp(1));
    assert!(file.len() <= 140_000, "{}", file.len());
    assert_eq!(
        PoweronRecord::decode(CLUSTER, &file),
        Ok((stamp(1), record.clone()))
    );
    // Also when they came one by one.
    let (mut table, mut file) = PoweronRecord::default().begin(CLUSTER, &stamp(1));
    let mut list = BTreeMap::new();
    for n in 0..2_048 {
        list.insert(id(n, 40), on(n, 40));
        table.set(&list);
        write(&mut file, &table.changed_pages());
    }
    assert!(file.len() <= 140_000, "{}", file.len());
    record.flags = PoweronFlags::default();
    assert_eq!(
        PoweronRecord::decode(CLUSTER, &file),
        Ok((stamp(1), record))
    );
}

#[test]
fn the_longest_ids_fit() {
    let long = |n| on(n, 64);
    let list = by_vm((0..100).map(long).chain((100..200).map(|n| on(n, 42))));
    assert_eq!(sound(&begun(&list).1), list);
    let full = ProtectedVm {
        vm: id(1, 64),
        cpu_mhz: u64::MAX,
        memory_mb: u64::MAX,
        restart_priority: RestartPriority::Disabled,
        last_host: Some(HostId::new(&"h".repeat(64)).expect("id")),
    };
    let list = by_vm([full]);
    assert_eq!(sound(&begun(&list).1), list);
}

#[test]
fn a_list_of_which_the_file_would_be_too_long_to_read_is_refused_beyond_that() {
    let (mut table, refused) = ProtectedTable::new((0..16_400).map(protected));
    let file = table.file(CLUSTER, &stamp(1), 0);
    assert!(file.len() <= RECORD_MAX_BYTES);
    let kept = sound::<ProtectedVm>(&file).len();
    assert!(kept >= 16_000, "{kept}");
    assert_eq!(kept + refused.len(), 16_400);
}

#[test]
fn a_write_that_breaks_off_anywhere_loses_nothing_older_and_brings_nothing_back() {
    let before = by_vm((0..40).map(protected));
    let (mut table, file) = begun(&before);
    let mut now = before.clone();
    let mut file = file;
    // Both copies are in use, the second being the newest.
    now.remove(&id(3, 40));
    table.set(&now);
    write(&mut file, &table.changed_pages());
    let mut next = now.clone();
    next.remove(&id(5, 40));
    next.insert(id(90, 40), protected(90));
    next.get_mut(&id(20, 40)).expect("there").memory_mb = 1;
    table.set(&next);
    let pages = table.changed_pages();
    assert_eq!(pages.len(), 2);
    for noise in [0, 0xa5] {
        for sectors in 0..=16 {
            let mut torn = file.clone();
            write_torn(&mut torn, &pages, sectors, noise);
            let contents = read::<ProtectedVm>(CLUSTER, &torn).expect("a table");
            assert_eq!(contents.lost, 0, "the other copy is whole");
            // Zeroes over a copy that was never written change nothing.
            let visible = sectors < 16 && (noise, sectors) != (0, 8);
            assert_eq!(contents.fallen_back > 0, visible, "{sectors}");
            for (vm, entry) in &contents.entries {
                let known = [now.get(vm), next.get(vm)].contains(&Some(entry));
                assert!(known, "{vm} is neither as before nor as after");
            }
            let both = now.keys().filter(|vm| next.contains_key(*vm));
            for vm in both {
                assert!(contents.entries.contains_key(vm), "{vm} is lost");
            }
            assert!(!contents.entries.contains_key(&id(3, 40)));
        }
    }
    // A device whose sector is the page may lose it whole.
    let mut torn = file.clone();
    write(
        &mut torn,
        &pages
            .iter()
            .map(|p| (p.0, vec![0xee; PAGE_BYTES]))
            .collect::<Vec<_>>(),
    );
    let contents = read::<ProtectedVm>(CLUSTER, &torn).expect("a table");
    assert_eq!((contents.lost, contents.entries), (0, now));
}

#[test]
fn a_write_that_was_not_done_is_made_again_over_the_same_copy() {
    let mut list = by_vm((0..3).map(protected));
    let (mut table, mut file) = begun(&list);
    list.remove(&id(0, 40));
    table.set(&list);
    let first = table.changed_pages();
    table.not_written();
    list.remove(&id(1, 40));
    table.set(&list);
    let second = table.changed_pages();
    assert_eq!((first.len(), first[0].0), (1, second[0].0));
    write(&mut file, &second);
    assert_eq!(sound(&file), list);
    assert_eq!(table.changed_pages(), []);
}

#[test]
fn a_damaged_slot_costs_no_other_and_is_no_empty_one() {
    let list = by_vm((0..64).map(|n| on(n, 40)));
    let (_, file) = begun(&list);
    for slot in 0..64 {
        for damage in [0_u8, 0xff] {
            let mut damaged = file.clone();
            let at = HEADS * PAGE_BYTES + slot * 64;
            damaged[at..at + 64].fill(damage);
            let contents = read::<(VmId, Generation)>(CLUSTER, &damaged).expect("a table");
            assert_eq!((contents.lost, contents.entries.len()), (1, 63));
        }
    }
    let (_, empty) = begun(&by_vm([on(0, 40)]));
    let contents = read::<(VmId, Generation)>(CLUSTER, &empty).expect("a table");
    assert_eq!((contents.lost, contents.entries.len()), (0, 1));
    let cut = read::<(VmId, Generation)>(CLUSTER, &file[..HEADS * PAGE_BYTES]).expect("a table");
    assert_eq!((cut.lost, cut.entries.len()), (64, 0));
}

#[test]
fn one_damaged_head_costs_nothing_and_two_make_the_file_unreadable() {
    let list = by_vm((0..20).map(protected));
    let (_, mut file) = begun(&list);
    file[25] ^= 1;
    let contents = read::<ProtectedVm>(CLUSTER, &file).expect("a table");
    assert_eq!((contents.lost, contents.fallen_back), (0, 1));
    assert_eq!(contents.entries, list);
    file[PAGE_BYTES + 25] ^= 1;
    assert_eq!(
        read::<ProtectedVm>(CLUSTER, &file),
        Err(DecodeError::Checksum)
    );
}

#[test]
fn half_of_an_entry_of_two_slots_is_none() {
    let list = by_vm((0..4).map(|n| on(n, 64)));
    let (_, mut file) = begun(&list);
    file[HEADS * PAGE_BYTES + 64 + 20] ^= 1;
    let contents = read::<(VmId, Generation)>(CLUSTER, &file).expect("a table");
    assert_eq!((contents.lost, contents.entries.len()), (2, 3));
}

#[test]
fn pages_of_another_place_or_file_do_not_count() {
    let list = by_vm((0..130).map(|n| on(n, 40)));
    let (mut table, file) = begun(&list);
    let mut moved = file.clone();
    let first = HEADS * PAGE_BYTES;
    moved.copy_within(first..first + PAGE_BYTES, first + PAGE_BYTES);
    let contents = read::<(VmId, Generation)>(CLUSTER, &moved).expect("a table");
    assert_eq!((contents.lost, contents.entries.len()), (64, 66));
    // A page that lands after the file was begun anew.
    let mut fewer = list.clone();
    fewer.remove(&id(0, 40));
    table.set(&fewer);
    let late = table.changed_pages();
    let mut anew = table.file(CLUSTER, &stamp(2), 0);
    assert_eq!(sound(&anew), fewer);
    write(&mut anew, &late);
    let contents = read::<(VmId, Generation)>(CLUSTER, &anew).expect("a table");
    assert_eq!(contents.lost, 64);
    assert!(matches!(
        read::<(VmId, Generation)>(CLUSTER + 1, &file),
        Err(DecodeError::Foreign { .. })
    ));
    assert!(matches!(
        read::<ProtectedVm>(CLUSTER, &file),
        Err(DecodeError::Kind { .. })
    ));
}

#[test]
fn flags_of_a_newer_version_are_ignored() {
    let mut table = PoweronTable::default();
    let file = table.file(CLUSTER, &stamp(1), u32::MAX);
    let (_, record) = PoweronRecord::decode(CLUSTER, &file).expect("a list");
    assert_eq!(
        record.flags,
        PoweronFlags {
            isolated: true,
            leaving: true,
        }
    );
}

fn change() -> impl Strategy<Value = (usize, Option<u64>)> {
    (0..60_usize, proptest::option::of(0..4_u64))
}

proptest! {
    /// Whatever is added, changed, removed and not written, the file shows what was written last.
    #[test]
    fn the_file_follows_the_table(
        changes in proptest::collection::vec((proptest::collection::vec(change(), 1..6), any::<bool>()), 1..40),
        long in any::<bool>(),
    ) {
        let len = |n: usize| if long && n.is_multiple_of(3) { 64 } else { 40 };
        let (mut list, mut on_list) = (BTreeMap::new(), BTreeMap::new());
        let (mut table, mut file) = begun(&list);
        let (mut on_table, mut on_file) = begun(&on_list);
        for (batch, written) in changes {
            for (n, value) in batch {
                if let Some(value) = value {
                    list.insert(id(n, 40), ProtectedVm { memory_mb: value, ..protected(n) });
                    on_list.insert(id(n, len(n)), (id(n, len(n)), Generation(value)));
                } else {
                    list.remove(&id(n, 40));
                    on_list.remove(&id(n, len(n)));
                }
            }
            prop_assert_eq!(table.set(&list), []);
            prop_assert_eq!(on_table.set(&on_list), []);
            let (pages, on_pages) = (table.changed_pages(), on_table.changed_pages());
            if written {
                write(&mut file, &pages);
                write(&mut on_file, &on_pages);
                prop_assert_eq!(&sound::<ProtectedVm>(&file), &list);
                prop_assert_eq!(&sound::<(VmId, Generation)>(&on_file), &on_list);
            } else {
                table.not_written();
                on_table.not_written();
            }
        }
    }

    #[test]
    fn any_bytes_decode_to_a_value_or_an_error(
        bytes in proptest::collection::vec(any::<u8>(), 0..10_000),
        changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..40),
        cut in any::<u16>(),
    ) {
        let _ = read::<ProtectedVm>(CLUSTER, &bytes);
        let (_, mut file) = begun(&by_vm((0..20).map(protected)));
        // Sound heads before anything at all.
        file.truncate(HEADS * PAGE_BYTES);
        file.extend_from_slice(&bytes);
        let _ = read::<ProtectedVm>(CLUSTER, &file);
        let (_, mut file) = begun(&by_vm((0..20).map(|n| on(n, 40 + n))));
        for (at, value) in changes {
            let at = usize::from(at) % file.len();
            file[at] ^= value;
        }
        file.truncate(usize::from(cut));
        let known: Vec<String> = (0..20).map(|n| String::from(id(n, 40 + n))).collect();
        if let Ok(contents) = read::<(VmId, Generation)>(CLUSTER, &file) {
            prop_assert!(contents.entries.keys().all(|vm| known.contains(&String::from(vm.as_str()))));
        }
    }
}
