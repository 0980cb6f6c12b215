//! The core's swap over real datastores: each fault at each operation below, and a second host that wants the same.

use super::kit::{CLUSTER, Host, KINDS, Kit, host, vm};
use super::script::{Fault, Lasting};
use mainstay_core::config::DatastoreKind;
use mainstay_core::id::{BootId, Generation, Holder, Nonce};
use mainstay_core::io::{IoFault, StorageOutcome, StorageRequest};
use mainstay_core::lock_machines::{Machine, Next};
use mainstay_core::wire::{Desired, LockRecord};
use nix::errno::Errno;
use std::time::Duration;

/// Steps after which a machine that waits and waits is left alone.
const STEPS: usize = 60;

pub(super) fn record(generation: u64, nonce: u64, holder: Option<&Host>) -> LockRecord {
    LockRecord {
        generation: Generation(generation),
        nonce: Nonce(nonce),
        holder: holder.map(|h| Holder {
            host: host(h.n),
            boot: BootId(h.boot),
        }),
        desired: Desired::On,
        freeze: Duration::from_secs(3),
        r#break: Duration::from_secs(5),
        given_back: None,
    }
}

/// A machine with what it wants done next.
pub(super) struct Running {
    machine: Machine,
    request: Option<StorageRequest>,
}

impl Running {
    pub(super) fn read(known: Option<u64>) -> Self {
        let (machine, request) = Machine::read(&vm(1), CLUSTER, known.map(Generation));
        Self {
            machine,
            request: Some(request),
        }
    }

    pub(super) fn swap(by: &Host, from: &LockRecord, new: LockRecord) -> Self {
        let stamp = by.stamp(new.nonce.0);
        let from = (from.generation, from.nonce);
        let begun = Machine::swap(&vm(1), CLUSTER, &stamp, from, new);
        let (machine, request) = begun.expect("the next generation");
        Self {
            machine,
            request: Some(request),
        }
    }

    /// What is to be removed after a swap that was won.
    pub(super) fn cleanup(&mut self) -> Option<Self> {
        let (machine, request) = self.machine.cleanup()?;
        Some(Self {
            machine,
            request: Some(request),
        })
    }

    /// Performs one operation. None: it goes on, at once or later.
    pub(super) fn step(&mut self, host: &Host) -> Option<Next> {
        let request = self.request.take().or_else(|| self.machine.request());
        let outcome = host.perform(request.expect("it has not ended"));
        match self.machine.on_outcome(&outcome) {
            Next::Do(request) => self.request = Some(request),
            Next::Wait => {}
            end => return Some(end),
        }
        None
    }

    /// Performs all that it wants. None: it waits, and may for ever.
    pub(super) fn drive(&mut self, host: &Host) -> Option<Next> {
        (0..STEPS).find_map(|_| self.step(host))
    }
}

/// The lock as a host reads it; none: it cannot read it now.
pub(super) fn head(host: &Host, known: Option<u64>) -> Option<LockRecord> {
    match Running::read(known).drive(host)? {
        Next::Head(record) => Some(record.expect("the chain was begun")),
        other => panic!("a reading ended with {other:?}"),
    }
}

/// Swaps, and cleans up when it won.
pub(super) fn swap(by: &Host, from: &LockRecord, nonce: u64) -> Option<Next> {
    let new = record(from.generation.0 + 1, nonce, Some(by));
    let mut running = Running::swap(by, from, new);
    let end = running.drive(by);
    if end == Some(Next::Won)
        && let Some(mut cleanup) = running.cleanup()
    {
        cleanup.drive(by);
    }
    end
}

/// What happens to host 1 while it swaps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    Once(Fault),
    /// From the n-th operation below on its path is gone, until the other host has tried.
    Cut,
}

/// Host 1 swaps and meets trouble at the n-th operation below, then host 2 swaps from the same generation. Answers
/// whether the trouble was met.
fn contend(kind: DatastoreKind, n: usize, trouble: Trouble, late_last: bool) -> bool {
    let kit = Kit::new(kind);
    let (a, b, c) = (kit.host(1), kit.host(2), kit.host(3));
    let begin = head(&c, None).expect("read");
    let mut swap_a = Running::swap(&a, &begin, record(1, 11, Some(&a)));
    let fault = match trouble {
        Trouble::Once(fault) => fault,
        Trouble::Cut => Fault::Error(Errno::EIO),
    };
    a.script.nth(n, fault);
    let mut met = false;
    let mut first = None;
    for _ in 0..STEPS {
        first = swap_a.step(&a);
        if !met && a.script.was_hit() {
            met = true;
            if trouble == Trouble::Cut {
                a.script.lasting(Some(Lasting::Gone));
            }
        }
        if first.is_some() {
            break;
        }
    }
    a.script.clear();
    if !met {
        assert_eq!(first, Some(Next::Won));
        return false;
    }
    if !late_last {
        a.script.land();
    }
    let second = swap(&b, &begin, 22);
    let what = format!("{kind:?} {trouble:?} at {n}: {first:?}, then {second:?}");
    a.script.lasting(None);
    let is_torn = (kind, trouble) == (DatastoreKind::Block, Trouble::Once(Fault::Torn));
    if is_torn && !matches!(second, Some(Next::Won | Next::Lost)) {
        // What a torn sector of a register had promised is known to nobody: the lock stands still.
        assert_ne!(first, Some(Next::Won), "{what}");
        assert_eq!(head(&c, None), None, "nothing is concluded from it: {what}");
        return true;
    }
    let first = first.or_else(|| swap_a.drive(&a));
    let what = format!("{what}, at last {first:?}");
    let winners = [&first, &second].map(|end| *end == Some(Next::Won));
    assert_ne!(winners[0], winners[1], "exactly one wins: {what}");
    let losers_end = if winners[0] { &second } else { &first };
    assert!(
        matches!(losers_end, Some(Next::Lost | Next::NotDone(_))),
        "{what}"
    );
    let nonce = Nonce(if winners[0] { 11 } else { 22 });
    for known in [None, Some(0), Some(1)] {
        let seen = head(&c, known).expect("read");
        assert_eq!(
            (seen.generation, seen.nonce),
            (Generation(1), nonce),
            "{what}"
        );
    }
    a.script.land();
    let seen = head(&b, None).expect("read");
    assert_eq!(seen.nonce, nonce, "what was seen stays: {what}");
    assert_eq!(swap(&c, &seen, 33), Some(Next::Won), "it goes on: {what}");
    a.script.land();
    assert_eq!(head(&a, Some(1)).expect("read").nonce, Nonce(33), "{what}");
    true
}

fn sweep(trouble: Trouble, late_last: bool) {
    for kind in KINDS {
        let met = (0..200)
            .take_while(|n| contend(kind, *n, trouble, late_last))
            .count();
        assert!(
            (3..200).contains(&met),
            "{kind:?} {trouble:?}: {met} positions"
        );
    }
}

#[test]
fn exactly_one_swap_wins_whatever_fails_once() {
    sweep(Trouble::Once(Fault::Error(Errno::EIO)), false);
    sweep(Trouble::Once(Fault::Error(Errno::ENOSPC)), false);
}

#[test]
fn exactly_one_swap_wins_though_an_acknowledgement_is_lost() {
    sweep(Trouble::Once(Fault::LostAnswer), false);
}

#[test]
fn exactly_one_swap_wins_though_a_write_lands_late() {
    sweep(Trouble::Once(Fault::Late), false);
    sweep(Trouble::Once(Fault::Late), true);
}

#[test]
fn exactly_one_swap_wins_though_a_write_is_torn() {
    sweep(Trouble::Once(Fault::Torn), false);
}

#[test]
fn exactly_one_swap_wins_when_a_path_is_cut_in_the_middle() {
    sweep(Trouble::Cut, false);
}

#[test]
fn a_swap_on_storage_that_refuses_is_not_done_and_never_shows_up() {
    for kind in KINDS {
        let refusals = [
            (Lasting::Full, IoFault::Full),
            (Lasting::ReadOnly, IoFault::ReadOnly),
            (Lasting::Gone, IoFault::Gone),
        ];
        for (lasting, fault) in refusals {
            let kit = Kit::new(kind);
            let (a, b) = (kit.host(1), kit.host(2));
            let begin = head(&a, None).expect("read");
            a.script.lasting(Some(lasting));
            assert_eq!(
                swap(&a, &begin, 11),
                Some(Next::NotDone(fault)),
                "{kind:?} {lasting:?}"
            );
            a.script.lasting(None);
            assert_eq!(a.script.land(), 0, "{kind:?} {lasting:?}");
            assert_eq!(head(&b, None), Some(begin.clone()), "{kind:?} {lasting:?}");
            assert_eq!(
                swap(&a, &begin, 12),
                Some(Next::Won),
                "{kind:?} {lasting:?}"
            );
        }
    }
}

#[test]
fn a_swap_by_a_clone_is_not_done() {
    for kind in KINDS {
        let kit = Kit::new(kind);
        let (one, clone) = (kit.host(1), kit.booted(1, 999));
        assert!(matches!(one.perform(one.beat(1)), StorageOutcome::Ok(_)));
        let begin = head(&one, None).expect("read");
        assert_eq!(swap(&one, &begin, 11), Some(Next::Won));
        let held = head(&clone, None).expect("read");
        // As an agent does that finds a lock of its host without the VM: it gives it back.
        let back = Running::swap(&clone, &held, record(2, 12, None)).drive(&clone);
        assert_eq!(back, Some(Next::NotDone(IoFault::Foreign)), "{kind:?}");
        assert_eq!(head(&one, None), Some(held), "{kind:?}");
    }
}
