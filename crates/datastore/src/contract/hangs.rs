//! Operations below that hang, or are slow, at each position: what others do meanwhile, and what comes of it.

use super::kit::{DONE, EXISTS, Host, KINDS, Kit, NOT_FOUND, byte_of, host, lock, vm};
use super::script::Fault;
use mainstay_core::config::DatastoreKind;
use mainstay_core::id::Generation;
use mainstay_core::io::{StorageOutcome, StorageRequest};
use mainstay_core::wire::{PAGE_BYTES, RecordKey};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// Performs it on a thread of its own, where the n-th operation below hangs; calls `meanwhile` when it does. Answers
/// the outcome, and whether anything hung.
pub(super) fn hanging(
    host: &Host,
    n: usize,
    request: &StorageRequest,
    meanwhile: impl FnOnce(),
) -> (StorageOutcome, bool) {
    host.script.nth(n, Fault::Hang);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| host.perform(request.clone()));
        let hangs = host.script.wait_hung(|| running.is_finished());
        if hangs {
            meanwhile();
        }
        host.script.let_go();
        (running.join().expect("it ended"), hangs)
    })
}

fn slow_link(kind: DatastoreKind, n: usize) -> bool {
    let kit = Kit::new(kind);
    let (a, b, c) = (kit.host(1), kit.host(2), kit.host(3));
    let request = StorageRequest::Link(lock(1), vec![11; 180]);
    let mut second = None;
    let mut seen = None;
    let (first, hung) = hanging(&a, n, &request, || {
        second = Some(b.link(lock(1), 22));
        seen = byte_of(&c.read(lock(1)));
    });
    let what = format!("{kind:?}, operation {n} hangs: {first:?}, the other {second:?}");
    let Some(second) = second else {
        assert_eq!(first, DONE, "{what}");
        return hung;
    };
    assert!(seen.is_some(), "the others decide without it: {what}");
    assert_eq!(seen, Some(if second == DONE { 22 } else { 11 }), "{what}");
    assert!(second == DONE || second == EXISTS, "{what}");
    assert_eq!(first == DONE, seen == Some(11), "{what}");
    assert_eq!(
        byte_of(&b.read(lock(1))),
        seen,
        "what was seen stays: {what}"
    );
    hung
}

#[test]
fn who_is_slow_is_told_the_truth_at_last() {
    for kind in KINDS {
        let met = (0..100).take_while(|n| slow_link(kind, *n)).count();
        assert!((5..100).contains(&met), "{kind:?}: {met} positions");
    }
}

#[test]
fn a_link_that_goes_on_when_the_lock_has_gone_on_makes_no_head() {
    for kind in KINDS {
        for n in 0..30 {
            let kit = Kit::new(kind);
            let (a, b) = (kit.host(1), kit.host(2));
            let request = StorageRequest::Link(lock(1), vec![11; 180]);
            let (_, hung) = hanging(&a, n, &request, || {
                for generation in 1..=3 {
                    let outcome = b.link(lock(generation), 22);
                    assert!(outcome == DONE || outcome == EXISTS, "{outcome:?}");
                }
            });
            if !hung {
                assert!(n > 4);
                break;
            }
            assert_eq!(byte_of(&b.read(lock(3))), Some(22), "{kind:?} {n}");
            assert_eq!(b.read(lock(4)), NOT_FOUND, "{kind:?} {n}");
        }
    }
}

/// One of each kind of operation, of records that have nothing to do with each other.
fn all(host_: &Host) -> Vec<StorageRequest> {
    let page = (3, vec![7; PAGE_BYTES]);
    vec![
        host_.beat(2),
        StorageRequest::Link(lock(1), vec![1; 180]),
        StorageRequest::Link(RecordKey::VmLock(vm(2), Generation(1)), vec![1; 180]),
        StorageRequest::Put(RecordKey::Poweron(host(1)), vec![1; 9000]),
        StorageRequest::PutPages(RecordKey::Protected(Generation(0)), vec![page]),
        StorageRequest::Put(RecordKey::Config(Generation(1), 0), vec![1; 500]),
        StorageRequest::Read(lock(0)),
        StorageRequest::Read(RecordKey::Heartbeat(host(2))),
        StorageRequest::ListVmLock(vm(2)),
        StorageRequest::ListAllVmLocks,
        StorageRequest::ListConfig,
    ]
}

/// The request of that number hangs in its n-th operation below, and all others are performed meanwhile. Answers
/// whether it did hang.
fn others_go_on(kind: DatastoreKind, number: usize, n: usize) -> bool {
    let kit = Kit::new(kind);
    let a = kit.host(1);
    assert_eq!(a.perform(a.beat(1)), DONE);
    let mut others = all(&a);
    let request = others.remove(number);
    let (_, hung) = hanging(&a, n, &request, || {
        let (said, says) = channel();
        let store = Arc::clone(&a.store);
        let count = others.len();
        std::thread::spawn(move || {
            for other in others {
                let outcome = store.perform(&other);
                drop(said.send((other, outcome)));
            }
        });
        for _ in 0..count {
            let answer = says.recv_timeout(PATIENCE);
            let what = format!("{kind:?}: operation {n} of {request:?} hangs");
            let (other, outcome) = answer.unwrap_or_else(|_| panic!("{what}, another waits"));
            assert!(
                matches!(outcome, StorageOutcome::Ok(_)),
                "{what}: {other:?} {outcome:?}"
            );
        }
    });
    hung
}

#[test]
fn nothing_else_of_a_host_waits_for_what_hangs() {
    for kind in KINDS {
        let count = all(&Kit::new(kind).host(1)).len();
        for number in 0..count {
            let met = (0..60)
                .take_while(|n| others_go_on(kind, number, *n))
                .count();
            assert!((2..60).contains(&met), "{kind:?} {number}: {met} positions");
        }
    }
}
