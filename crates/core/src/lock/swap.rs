//! Swapping a lock from one generation to the next.
//!
//! ```text
//! link g+1 ──ok──▶ verify: is g still there? ──yes──▶ list: is one above g+1? ──no──▶ won
//!    │ exists          │ no (H11: our link is          │ yes (g was a stray)
//!    ▼                 ▼ a stray below the head)       ▼
//! read g+1 ─ other ─▶ lost ◀───────────────────────────┘
//!                                 unknown ─▶ read g+1 by path until decided; absent ─▶ link again
//! ```
//! The same bytes with the same nonce are linked again after an unknown outcome, so that whichever
//! link lands is ours. But the one that was given up may land when the other has been counted, and its
//! generation removed again: then the generation is back, far below the head, and whoever swaps from it
//! finds its predecessor in place. So the head is listed as well, and what was made far below it removed.

use super::{LockName, Step};
use crate::id::{Generation, Nonce};
use crate::io::{IoFault, StorageOutcome, StorageRequest, StorageValue};
use crate::wire::{LockRecord, RecordKey, Stamp};
use alloc::vec::Vec;

/// How a swap ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum SwapOutcome {
    /// The lock is at our record.
    Won,
    /// Another swap from the same generation won; ours never will.
    Lost,
    /// The storage certainly did not do it and never will.
    NotDone(IoFault),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Stage {
    Linking,
    Reading,
    Verifying,
    /// Looking whether the lock has gone further already.
    Listing,
    /// Lost with a stray of ours: remove it.
    RemovingStray,
}

/// A swap under way.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Swap {
    name: LockName,
    cluster: u64,
    from: Generation,
    from_nonce: Nonce,
    new: LockRecord,
    bytes: Vec<u8>,
    stage: Stage,
    /// An operation had an unknown outcome: from then on "not done" proves nothing.
    unsure: bool,
    /// Tries until it is decided, also when the storage certainly did nothing: giving a lock back.
    pub(crate) stubborn: bool,
    /// The predecessor is not looked at (planted bug).
    pub(crate) skip_check: bool,
    /// What is above does not count (planted bug).
    pub(crate) skip_list: bool,
    /// What lies under the own key is taken for the own record (planted bug).
    pub(crate) any_nonce: bool,
    /// A stray is left where it is (planted bug).
    pub(crate) keep_stray: bool,
    /// The predecessor is removed with what is below it (planted bug).
    pub(crate) remove_predecessor: bool,
    /// What is below the predecessor, when the swap was won.
    old: Vec<Generation>,
    /// An unknown outcome is taken as won (planted bug).
    pub(crate) trust_unknown: bool,
}

impl Swap {
    /// Begins a swap from generation `from` with that nonce to `new`, which must be the next one.
    pub(crate) fn begin(
        name: LockName,
        cluster: u64,
        stamp: &Stamp,
        (from, from_nonce): (Generation, Nonce),
        new: LockRecord,
    ) -> Self {
        assert!(
            new.generation == from.next(),
            "a swap makes the next generation"
        );
        let bytes = new.encode(cluster, stamp);
        Self {
            name,
            cluster,
            from,
            from_nonce,
            new,
            bytes,
            stage: Stage::Linking,
            unsure: false,
            stubborn: false,
            skip_check: false,
            skip_list: false,
            any_nonce: false,
            keep_stray: false,
            remove_predecessor: false,
            old: Vec::new(),
            trust_unknown: false,
        }
    }

    /// The record that the swap makes.
    pub(crate) fn new_record(&self) -> &LockRecord {
        &self.new
    }

    /// The generations that may be removed once the swap is won.
    pub(crate) fn take_old(&mut self) -> Vec<Generation> {
        core::mem::take(&mut self.old)
    }

    /// The operation that is to be issued (again).
    pub(crate) fn retry(&self) -> StorageRequest {
        match self.stage {
            Stage::Linking => {
                StorageRequest::Link(self.name.key(self.new.generation), self.bytes.clone())
            }
            Stage::Reading => StorageRequest::Read(self.name.key(self.new.generation)),
            Stage::Verifying => StorageRequest::Read(self.name.key(self.from)),
            Stage::Listing => self.name.list(),
            Stage::RemovingStray => StorageRequest::Remove(self.name.key(self.new.generation)),
        }
    }

    fn to(&mut self, stage: Stage) -> Step {
        self.stage = stage;
        Step::Do(self.retry())
    }

    /// Takes an outcome.
    pub(crate) fn on_outcome(&mut self, outcome: &StorageOutcome) -> Step {
        match (self.stage, outcome) {
            (Stage::Linking, StorageOutcome::Ok(StorageValue::Done)) => self.landed(),
            (Stage::Linking, StorageOutcome::Ok(_)) => self.to(Stage::Reading),
            (Stage::Linking, StorageOutcome::NotDone(_)) if self.stubborn && !self.unsure => {
                Step::Wait
            }
            (Stage::Linking, StorageOutcome::NotDone(fault)) if !self.unsure => {
                Step::Swapped(SwapOutcome::NotDone(*fault))
            }
            (Stage::Linking, StorageOutcome::NotDone(_) | StorageOutcome::Unknown(_)) => {
                self.unsure = true;
                if self.trust_unknown {
                    return Step::Swapped(SwapOutcome::Won);
                }
                self.stage = Stage::Reading;
                Step::Wait
            }
            (Stage::Reading, StorageOutcome::Ok(StorageValue::Bytes(bytes))) => {
                match LockRecord::decode(self.cluster, bytes) {
                    Ok((_, record)) if record.nonce == self.new.nonce || self.any_nonce => {
                        self.landed()
                    }
                    Ok(_) => Step::Swapped(SwapOutcome::Lost),
                    // A damaged record under our key: whose it is cannot be said.
                    Err(_) => Step::Wait,
                }
            }
            (Stage::Reading, StorageOutcome::Ok(_)) => self.to(Stage::Linking),
            (Stage::Verifying, StorageOutcome::Ok(StorageValue::Bytes(bytes))) => {
                match LockRecord::decode(self.cluster, bytes) {
                    Ok((_, record))
                        if record.nonce == self.from_nonce && record.generation == self.from =>
                    {
                        self.to(Stage::Listing)
                    }
                    Ok(_) => self.stray(),
                    Err(_) => Step::Wait,
                }
            }
            (Stage::Verifying, StorageOutcome::Ok(_)) => self.stray(),
            (Stage::Listing, StorageOutcome::Ok(StorageValue::Keys(keys))) => self.listed(keys),
            (Stage::Listing, _) => Step::Wait,
            (Stage::RemovingStray, _) => Step::Swapped(SwapOutcome::Lost),
            (
                Stage::Reading | Stage::Verifying,
                StorageOutcome::NotDone(_) | StorageOutcome::Unknown(_),
            ) => Step::Wait,
        }
    }

    /// The lock is ours unless it has gone further, by a swap from ours or long before it. Clean-up goes
    /// upwards: what is above and has left no successor of ours went on before, and what we made would be
    /// taken for the newest by whoever remembers its predecessor. A successor may have been made from ours,
    /// which cannot be taken back then. Who gave it back wanted no more: a host that takes a free lock at once
    /// takes nothing from it.
    fn listed(&mut self, keys: &[RecordKey]) -> Step {
        let own = self.new.generation;
        let there = keys.iter().filter_map(|k| self.name.generation_of(k));
        let there: Vec<Generation> = there.collect();
        let ignored = self.skip_check || self.skip_list;
        let further = !ignored && there.iter().any(|g| *g > own);
        if further && there.contains(&own) && !there.contains(&own.next()) {
            return self.stray();
        }
        if further && self.new.holder.is_some() {
            return Step::Swapped(SwapOutcome::Lost);
        }
        let with = self.remove_predecessor;
        let old = |g: &Generation| *g < self.from || with && *g == self.from;
        self.old = there.into_iter().filter(old).collect();
        Step::Swapped(SwapOutcome::Won)
    }

    /// What was made is behind the head.
    fn stray(&mut self) -> Step {
        if self.keep_stray {
            return Step::Swapped(SwapOutcome::Lost);
        }
        self.to(Stage::RemovingStray)
    }

    fn landed(&mut self) -> Step {
        self.to(if self.skip_check {
            Stage::Listing
        } else {
            Stage::Verifying
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{BootId, Holder, HostId, InstanceId};
    use crate::time::Duration;
    use crate::wire::Desired;

    fn record(generation: u64, nonce: u64) -> LockRecord {
        LockRecord {
            generation: Generation(generation),
            nonce: Nonce(nonce),
            holder: Some(Holder {
                host: HostId::new("a").expect("id"),
                boot: BootId(1),
            }),
            desired: Desired::On,
            freeze: Duration::from_secs(3),
            r#break: Duration::from_secs(5),
            given_back: None,
        }
    }

    fn stamp() -> Stamp {
        Stamp {
            writer: HostId::new("a").expect("id"),
            boot: BootId(1),
            instance: InstanceId(1),
            seq: 1,
        }
    }

    fn swap() -> Swap {
        swap_to(record(5, 50))
    }

    fn swap_to(new: LockRecord) -> Swap {
        let from = (Generation(4), Nonce(40));
        Swap::begin(LockName::Owner, 1, &stamp(), from, new)
    }

    /// Its link is there, and what it was made from.
    fn linked(mut swap: Swap) -> Swap {
        swap.on_outcome(&DONE);
        swap.on_outcome(&bytes(&record(4, 40)));
        swap
    }

    fn giving_back() -> Swap {
        linked(swap_to(LockRecord {
            holder: None,
            ..record(5, 50)
        }))
    }

    fn assert_lost_and_removed(mut swap: Swap, there: &[u64]) {
        let made = StorageRequest::Remove(LockName::Owner.key(Generation(5)));
        assert_eq!(swap.on_outcome(&keys(there)), Step::Do(made));
        assert_eq!(swap.on_outcome(&DONE), Step::Swapped(SwapOutcome::Lost));
    }

    fn bytes(r: &LockRecord) -> StorageOutcome {
        StorageOutcome::Ok(StorageValue::Bytes(r.encode(1, &stamp())))
    }

    fn keys(generations: &[u64]) -> StorageOutcome {
        let keys = generations
            .iter()
            .map(|g| LockName::Owner.key(Generation(*g)));
        StorageOutcome::Ok(StorageValue::Keys(keys.collect()))
    }

    const DONE: StorageOutcome = StorageOutcome::Ok(StorageValue::Done);
    const NOT_FOUND: StorageOutcome = StorageOutcome::Ok(StorageValue::NotFound);
    const UNKNOWN: StorageOutcome = StorageOutcome::Unknown(IoFault::TimedOut);

    #[test]
    fn a_link_is_won_only_while_its_predecessor_is_there() {
        let mut s = swap();
        assert!(matches!(
            s.on_outcome(&DONE),
            Step::Do(StorageRequest::Read(_))
        ));
        s.on_outcome(&bytes(&record(4, 40)));
        assert_eq!(
            s.on_outcome(&keys(&[4, 5])),
            Step::Swapped(SwapOutcome::Won)
        );

        let mut s = swap();
        s.on_outcome(&DONE);
        assert!(matches!(
            s.on_outcome(&NOT_FOUND),
            Step::Do(StorageRequest::Remove(_))
        ));
        assert_eq!(s.on_outcome(&DONE), Step::Swapped(SwapOutcome::Lost));
    }

    #[test]
    fn a_link_from_a_generation_that_came_back_is_lost() {
        let mut s = swap();
        s.on_outcome(&DONE);
        assert!(
            matches!(
                s.on_outcome(&bytes(&record(4, 40))),
                Step::Do(StorageRequest::ListOwnerLock)
            ),
            "the predecessor may be a stray itself"
        );
        assert_eq!(s.on_outcome(&UNKNOWN), Step::Wait);
        assert_lost_and_removed(s, &[4, 5, 7, 8]);
    }

    #[test]
    fn a_link_that_another_swap_went_on_from_stays() {
        let mut s = linked(swap());
        let gone_on = keys(&[4, 5, 6]);
        assert_eq!(s.on_outcome(&gone_on), Step::Swapped(SwapOutcome::Lost));
    }

    #[test]
    fn a_lock_that_is_given_back_may_be_taken_at_once() {
        let taken = keys(&[4, 5, 6]);
        let taken_and_removed = keys(&[7, 8]);
        for there in [taken, taken_and_removed] {
            assert_eq!(
                giving_back().on_outcome(&there),
                Step::Swapped(SwapOutcome::Won)
            );
        }
    }

    #[test]
    fn a_lock_that_went_on_before_cannot_be_given_back() {
        assert_lost_and_removed(giving_back(), &[4, 5, 9]);
    }

    #[test]
    fn an_unknown_link_is_read_until_decided() {
        let mut s = swap();
        assert_eq!(s.on_outcome(&UNKNOWN), Step::Wait);
        assert_eq!(s.on_outcome(&UNKNOWN), Step::Wait);
        assert!(
            matches!(s.on_outcome(&NOT_FOUND), Step::Do(StorageRequest::Link(..))),
            "nothing there: again"
        );
        assert!(matches!(
            s.on_outcome(&StorageOutcome::Ok(StorageValue::Exists)),
            Step::Do(StorageRequest::Read(_))
        ));
        assert!(
            matches!(
                s.on_outcome(&bytes(&record(5, 50))),
                Step::Do(StorageRequest::Read(_))
            ),
            "ours: verify"
        );
        s.on_outcome(&bytes(&record(4, 40)));
        assert_eq!(
            s.on_outcome(&keys(&[5, 4])),
            Step::Swapped(SwapOutcome::Won)
        );
    }

    #[test]
    fn another_nonce_under_the_next_generation_is_a_loss() {
        let mut s = swap();
        s.on_outcome(&StorageOutcome::Ok(StorageValue::Exists));
        assert_eq!(
            s.on_outcome(&bytes(&record(5, 51))),
            Step::Swapped(SwapOutcome::Lost)
        );
    }

    #[test]
    fn not_done_is_final_only_when_nothing_was_unknown_before() {
        let full = StorageOutcome::NotDone(IoFault::Full);
        assert_eq!(
            swap().on_outcome(&full),
            Step::Swapped(SwapOutcome::NotDone(IoFault::Full))
        );
        let mut s = swap();
        s.on_outcome(&UNKNOWN);
        s.on_outcome(&NOT_FOUND);
        assert_eq!(s.on_outcome(&full), Step::Wait);
    }
}
