//! Heartbeats and lists under torn and late writes, storage that is full or read-only.

use super::kit::{CLUSTER, DONE, Host, KINDS, Kit, host, lock, vm};
use super::script::{Fault, Lasting};
use mainstay_core::id::Generation;
use mainstay_core::io::{IoFault, StorageOutcome, StorageRequest, StorageValue};
use mainstay_core::wire::{HeartbeatRecord, PAGE_BYTES, RecordKey};

fn bytes(host: &Host, key: RecordKey) -> Vec<u8> {
    match host.read(key) {
        StorageOutcome::Ok(StorageValue::Bytes(bytes)) => bytes,
        other => panic!("{other:?}"),
    }
}

/// The sequence of host 1's heartbeat as another host reads it; none: it cannot be understood.
fn sequence(reader: &Host) -> Option<u64> {
    let bytes = bytes(reader, RecordKey::Heartbeat(host(1)));
    let decoded = HeartbeatRecord::decode(CLUSTER, &bytes).ok();
    decoded.map(|(stamp, _)| stamp.seq)
}

#[test]
fn a_torn_heartbeat_is_refused_and_never_absent_and_the_next_one_mends_it() {
    for kind in KINDS {
        let kit = Kit::new(kind);
        let (a, b) = (kit.host(1), kit.host(2));
        assert_eq!(a.perform(a.beat(1)), DONE);
        a.script.nth(0, Fault::Torn);
        let torn = a.perform(a.beat(2));
        assert!(a.script.clear(), "{kind:?}");
        assert_eq!(torn, StorageOutcome::Unknown(IoFault::Gone), "{kind:?}");
        assert_eq!(sequence(&b), None, "{kind:?}: damage is no sign of life");
        assert_eq!(a.perform(a.beat(3)), DONE, "{kind:?}");
        assert_eq!(sequence(&b), Some(3), "{kind:?}");
    }
}

#[test]
fn a_heartbeat_without_an_answer_is_unknown_and_may_land_late() {
    for kind in KINDS {
        for (fault, expected) in [
            (Fault::LostAnswer, Some(2)),
            (Fault::Late, Some(1)),
            (Fault::Error(nix::errno::Errno::EIO), Some(1)),
        ] {
            let kit = Kit::new(kind);
            let (a, b) = (kit.host(1), kit.host(2));
            assert_eq!(a.perform(a.beat(1)), DONE);
            let mut writes = 0;
            // The write is the operation below that changes something.
            let outcome = loop {
                a.script.nth(writes, fault);
                let outcome = a.perform(a.beat(2));
                if !a.script.clear() || matches!(outcome, StorageOutcome::Unknown(_)) {
                    break outcome;
                }
                writes += 1;
            };
            assert!(
                matches!(outcome, StorageOutcome::Unknown(_)),
                "{kind:?} {fault:?} {outcome:?}"
            );
            if fault != Fault::Error(nix::errno::Errno::EIO) {
                assert_eq!(sequence(&b), expected, "{kind:?} {fault:?}");
            }
            assert_eq!(a.perform(a.beat(3)), DONE, "{kind:?} {fault:?}");
            if a.script.land() > 0 {
                assert_eq!(sequence(&b), Some(2), "{kind:?}: it goes back");
            }
            assert_eq!(a.perform(a.beat(4)), DONE, "{kind:?}: its own, though old");
            assert_eq!(sequence(&b), Some(4), "{kind:?}");
        }
    }
}

#[test]
fn a_list_whose_writing_failed_is_the_old_or_the_new_one() {
    let faults = [
        Fault::Error(nix::errno::Errno::EIO),
        Fault::LostAnswer,
        Fault::Late,
        Fault::Torn,
    ];
    for kind in KINDS {
        for fault in faults {
            let mut met = 0;
            loop {
                let kit = Kit::new(kind);
                let (a, b) = (kit.host(1), kit.host(2));
                let key = RecordKey::Poweron(host(1));
                let put = |byte| a.perform(StorageRequest::Put(key.clone(), vec![byte; 9000]));
                assert_eq!(put(1), DONE);
                a.script.nth(met, fault);
                let outcome = put(2);
                if !a.script.clear() {
                    assert_eq!(outcome, DONE);
                    break;
                }
                let what = format!("{kind:?} {fault:?} of operation {met}: {outcome:?}");
                let read = match b.read(key.clone()) {
                    StorageOutcome::Ok(StorageValue::Bytes(bytes)) => bytes,
                    // A head that is torn may be of either half.
                    StorageOutcome::NotDone(_) if fault == Fault::Torn => Vec::new(),
                    other => panic!("{what}, read {other:?}"),
                };
                let one = |byte| read == vec![byte; 9000];
                assert!(read.is_empty() || one(1) || one(2), "{what}: a mixture");
                if matches!(outcome, StorageOutcome::NotDone(_)) {
                    assert!(one(1), "{what}");
                    assert_eq!(a.script.land(), 0, "{what}: nothing of it comes late");
                }
                if outcome == DONE {
                    assert!(one(2), "{what}");
                }
                assert_eq!(put(3), DONE, "it can be written again: {what}");
                if fault != Fault::Late {
                    assert_eq!(bytes(&b, key.clone()), vec![3; 9000], "{what}");
                }
                met += 1;
            }
            assert!(met >= 2, "{kind:?} {fault:?}: {met} positions");
        }
    }
}

#[test]
fn a_torn_page_damages_no_other_page() {
    for kind in KINDS {
        let kit = Kit::new(kind);
        let (a, b) = (kit.host(1), kit.host(2));
        let key = RecordKey::Protected(Generation(0));
        let pages = |byte, from: u32| {
            let pages = (from..from + 3).map(|page| (page, vec![byte; PAGE_BYTES]));
            StorageRequest::PutPages(key.clone(), pages.collect())
        };
        assert_eq!(a.perform(pages(1, 2)), DONE);
        let before = bytes(&b, key.clone());
        a.script.nth(0, Fault::Torn);
        let torn = a.perform(pages(2, 3));
        assert!(a.script.clear());
        assert!(
            matches!(torn, StorageOutcome::Unknown(_)),
            "{kind:?} {torn:?}"
        );
        let after = bytes(&b, key.clone());
        let page = |bytes: &[u8], n: usize| bytes[n * PAGE_BYTES..(n + 1) * PAGE_BYTES].to_vec();
        for n in [0, 1, 2, 4] {
            assert_eq!(page(&after, n), page(&before, n), "{kind:?} page {n}");
        }
        let torn = page(&after, 3);
        assert!(torn.contains(&1) && torn.contains(&2), "{kind:?}");
    }
}

/// What needs space, or changes something, by what it is.
fn changes(a: &Host) -> Vec<StorageRequest> {
    vec![
        StorageRequest::Link(lock(1), vec![1; 180]),
        StorageRequest::Link(RecordKey::VmLock(vm(2), Generation(1)), vec![1; 180]),
        StorageRequest::Put(RecordKey::Poweron(host(1)), vec![1; 500]),
        StorageRequest::Put(RecordKey::Protected(Generation(1)), vec![1; 500]),
        a.beat(2),
    ]
}

#[test]
fn read_only_storage_refuses_each_change_for_certain_and_is_read() {
    for kind in KINDS {
        let kit = Kit::new(kind);
        let (a, b) = (kit.host(1), kit.host(2));
        assert_eq!(a.perform(a.beat(1)), DONE);
        let before = kit.snapshot();
        a.script.lasting(Some(Lasting::ReadOnly));
        let refused = StorageOutcome::NotDone(IoFault::ReadOnly);
        for change in changes(&a) {
            assert_eq!(a.perform(change.clone()), refused, "{kind:?} {change:?}");
        }
        assert_eq!(sequence(&a), Some(1), "{kind:?}: it is read");
        assert_eq!(b.link(lock(1), 22), DONE, "{kind:?}: others go on");
        kit.restore(&before);
        a.script.lasting(None);
        for change in changes(&a) {
            assert_eq!(a.perform(change.clone()), DONE, "{kind:?} {change:?}");
        }
    }
}

#[test]
fn full_storage_refuses_what_needs_space_and_nothing_is_left_of_it() {
    for kind in KINDS {
        let kit = Kit::new(kind);
        let a = kit.host(1);
        assert_eq!(a.perform(a.beat(1)), DONE);
        let names = || match kit.snapshot() {
            super::kit::Snapshot::Files(files) => files.into_keys().collect(),
            super::kit::Snapshot::Sectors(_) => Vec::new(),
        };
        let before = names();
        a.script.lasting(Some(Lasting::Full));
        for change in changes(&a) {
            let outcome = a.perform(change.clone());
            let beat = matches!(change, StorageRequest::Renew(..));
            // A heartbeat needs no space in a file that is there.
            let expected = match beat && kind == mainstay_core::config::DatastoreKind::File {
                true => DONE,
                false => StorageOutcome::NotDone(IoFault::Full),
            };
            assert_eq!(outcome, expected, "{kind:?} {change:?}");
        }
        assert_eq!(names(), before, "{kind:?}");
        a.script.lasting(None);
        for change in changes(&a) {
            assert_eq!(a.perform(change.clone()), DONE, "{kind:?} {change:?}");
        }
    }
}

#[test]
fn storage_that_is_gone_is_said_to_be_gone_and_comes_back() {
    for kind in KINDS {
        let kit = Kit::new(kind);
        let a = kit.host(1);
        a.script.lasting(Some(Lasting::Gone));
        let gone = StorageOutcome::NotDone(IoFault::Gone);
        let reads = [
            StorageRequest::Read(lock(0)),
            StorageRequest::ListAllVmLocks,
        ];
        for request in changes(&a).into_iter().chain(reads) {
            assert_eq!(a.perform(request.clone()), gone, "{kind:?} {request:?}");
        }
        a.script.lasting(None);
        assert_eq!(a.perform(a.beat(1)), DONE, "{kind:?}");
        assert_eq!(a.link(lock(1), 1), DONE, "{kind:?}");
    }
}
