//! Links under faults: each fault at each operation below, for both kinds.

use super::kit::{DONE, EXISTS, Host, KINDS, Kit, byte_of, lock, vm};
use super::script::Fault;
use mainstay_core::config::DatastoreKind;
use mainstay_core::id::Generation;
use mainstay_core::io::{IoFault, StorageOutcome};
use mainstay_core::wire::RecordKey;
use nix::errno::Errno;

const A: u8 = 11;
const B: u8 = 22;

/// When what is late lands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lands {
    /// Before another host tries.
    Before,
    /// After that.
    After,
    /// When the lock has gone on.
    Last,
}

/// The other host tries until it is told something certain. None: it never is.
fn insist(other: &Host, generation: u64, byte: u8) -> Option<StorageOutcome> {
    let mut tries = (0..5).map(|_| other.link(lock(generation), byte));
    tries.find(|outcome| matches!(outcome, StorageOutcome::Ok(_)))
}

/// Host 1 meets a fault in its n-th operation below while it makes generation 1, then host 2 tries to. Answers whether
/// the fault was met.
fn contend(kind: DatastoreKind, n: usize, fault: Fault, lands: Lands) -> bool {
    let kit = Kit::new(kind);
    let (a, b, c) = (kit.host(1), kit.host(2), kit.host(3));
    a.script.nth(n, fault);
    let first = a.link(lock(1), A);
    if !a.script.clear() {
        assert_eq!(first, DONE, "nothing failed");
        return false;
    }
    let what = format!("{kind:?}, {fault:?} of operation {n}, lands {lands:?}: {first:?}");
    if lands == Lands::Before {
        a.script.land();
    }
    let Some(second) = insist(&b, 1, B) else {
        // What a torn sector of a register had promised is known to nobody.
        let is_torn = (kind, fault) == (DatastoreKind::Block, Fault::Torn);
        assert!(
            is_torn && matches!(first, StorageOutcome::Unknown(_)),
            "{what}"
        );
        let unread = StorageOutcome::NotDone(IoFault::Other);
        assert_eq!(c.read(lock(1)), unread, "damage is not absence: {what}");
        let other = RecordKey::VmLock(vm(2), Generation(1));
        assert_eq!(
            b.link(other, B),
            DONE,
            "another lock is not touched: {what}"
        );
        return true;
    };
    let seen = byte_of(&c.read(lock(1)));
    assert_eq!(
        seen,
        Some(if second == DONE { B } else { A }),
        "{what}, {second:?}"
    );
    if lands == Lands::After {
        a.script.land();
        assert_eq!(
            byte_of(&c.read(lock(1))),
            seen,
            "what was seen stays: {what}"
        );
    }
    match first {
        StorageOutcome::Ok(_) => assert_eq!((&first, &second), (&DONE, &EXISTS), "{what}"),
        StorageOutcome::NotDone(_) => assert_eq!(second, DONE, "never done: {what}"),
        StorageOutcome::Unknown(_) => {}
    }
    // As the core does: it tries again with the same record, and reads what is there.
    let again = a.link(lock(1), A);
    if again == DONE {
        assert_eq!(seen, Some(A), "{what}, then {again:?}");
    }
    assert_eq!(insist(&c, 2, 33), Some(DONE), "the lock goes on: {what}");
    a.script.land();
    for host in [&a, &b, &c] {
        assert_eq!(byte_of(&host.read(lock(2))), Some(33), "{what}");
        assert_eq!(byte_of(&host.read(lock(1))), seen, "{what}");
    }
    true
}

fn sweep(fault: Fault, lands: &[Lands]) {
    for kind in KINDS {
        for lands in lands {
            let met = (0..100)
                .take_while(|n| contend(kind, *n, fault, *lands))
                .count();
            assert!(
                (2..100).contains(&met),
                "{kind:?} {fault:?}: {met} positions"
            );
        }
    }
}

#[test]
fn a_failed_operation_below_never_makes_two_winners() {
    for errno in [
        Errno::EIO,
        Errno::ENXIO,
        Errno::ESTALE,
        Errno::ENOSPC,
        Errno::EROFS,
    ] {
        sweep(Fault::Error(errno), &[Lands::Before]);
    }
}

#[test]
fn a_lost_acknowledgement_is_unknown_and_not_a_failure() {
    sweep(Fault::LostAnswer, &[Lands::Before]);
}

#[test]
fn a_write_that_lands_after_its_deadline_undoes_nothing() {
    sweep(Fault::Late, &[Lands::Before, Lands::After, Lands::Last]);
}

#[test]
fn a_torn_write_is_never_half_a_record() {
    sweep(Fault::Torn, &[Lands::Before]);
}

#[test]
fn errors_of_the_kernel_keep_their_meaning() {
    for kind in KINDS {
        let meanings = [
            (Errno::EIO, IoFault::Gone),
            (Errno::ENXIO, IoFault::Gone),
            (Errno::ESTALE, IoFault::Gone),
            (Errno::ENODEV, IoFault::Gone),
            (Errno::ETIMEDOUT, IoFault::TimedOut),
            (Errno::EACCES, IoFault::Other),
        ];
        for (errno, meaning) in meanings {
            let kit = Kit::new(kind);
            let a = kit.host(1);
            a.script.nth(0, Fault::Error(errno));
            let outcome = a.read(lock(0));
            assert_eq!(
                outcome,
                StorageOutcome::NotDone(meaning),
                "{kind:?} {errno}"
            );
        }
    }
}
