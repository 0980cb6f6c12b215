//! Swapping a lock from one generation to the next.
//!
//! ```text
//! link g+1 ──ok──▶ verify: is g still there? ──yes──▶ list: is one above g+1? ──no──▶ won
//!    │ exists          │ no (H11): list, is g+2 there? │ yes (g was a stray)
//!    ▼                 ├─ no ─▶ remove our stray ─▶ lost ◀─┘
//! read g+1             └─ yes ─▶ lost; or won, where it gave back and g+2 is the newest
//!    └─ other ─▶ lost             unknown ─▶ read g+1 by path until decided; absent ─▶ link again
//! ```
//! The same bytes with the same nonce are linked again after an unknown outcome, so that whichever
//! link lands is ours. But the one that was given up may land when the other has been counted, and its
//! generation removed again: then the generation is back, far below the head, and whoever swaps from it
//! finds its predecessor in place. So the head is listed as well, and what was made far below it removed.
//!
//! A missing predecessor has two reasons. Our link is a stray, made after our generation was used and removed; or
//! another swap went on from it and cleaned up before we looked, and then it may be the predecessor of the newest,
//! which nobody may remove. A generation that follows ours leaves it open which of them it is, so ours is left where
//! it is. Only when that one is the newest nobody has removed ours before, for that takes a win of the one after it.

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
    /// The same without a predecessor: ours is a stray, or another swap went on from it and cleaned up.
    Unsupported,
    /// Opening what that listing did not show, which may be older than what it is asked about.
    Following(Generation),
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
    /// What has lost its predecessor is removed, whatever follows it (planted bug).
    pub(crate) remove_followed: bool,
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
            remove_followed: false,
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
            Stage::Listing | Stage::Unsupported => self.name.list(),
            Stage::Following(generation) => StorageRequest::Read(self.name.key(generation)),
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
                    Ok(_) => self.unsupported(),
                    Err(_) => Step::Wait,
                }
            }
            (Stage::Verifying, StorageOutcome::Ok(_)) => self.unsupported(),
            (Stage::Listing, StorageOutcome::Ok(StorageValue::Keys(keys))) => self.listed(keys),
            (Stage::Unsupported, StorageOutcome::Ok(StorageValue::Keys(keys))) => {
                self.on_followers(keys)
            }
            (Stage::Following(generation), StorageOutcome::Ok(StorageValue::NotFound)) => {
                if generation == self.new.generation.next() {
                    return self.stray();
                }
                Step::Swapped(SwapOutcome::Won)
            }
            (Stage::Following(_), StorageOutcome::Ok(_)) => Step::Swapped(SwapOutcome::Lost),
            (Stage::Listing | Stage::Unsupported | Stage::Following(_), _) => Step::Wait,
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
        let there = self.generations(keys);
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

    fn generations(&self, keys: &[RecordKey]) -> Vec<Generation> {
        let there = keys.iter().filter_map(|k| self.name.generation_of(k));
        there.collect()
    }

    /// What it was made from is not there any more.
    fn unsupported(&mut self) -> Step {
        if self.remove_followed {
            return self.stray();
        }
        self.to(Stage::Unsupported)
    }

    /// Without its predecessor ours is removed only where nothing follows it. What follows may have been made from
    /// ours, or from the one that was in its place before: whoever removed that one had won the generation
    /// two above. So where there is none, the lock was given back before it was taken, and the swap has done all
    /// that it was to do. A swap that takes the lock has lost it either way.
    fn on_followers(&mut self, keys: &[RecordKey]) -> Step {
        let own = self.new.generation;
        let there = self.generations(keys);
        if !there.contains(&own.next()) {
            return self.to(Stage::Following(own.next()));
        }
        let newest = there.iter().all(|g| *g <= own.next());
        if newest && there.contains(&own) && self.new.holder.is_none() {
            return self.to(Stage::Following(own.next().next()));
        }
        Step::Swapped(SwapOutcome::Lost)
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

    /// Its link is there, and what it was made from is not.
    fn unsupported(mut swap: Swap) -> Swap {
        swap.on_outcome(&DONE);
        let list = Step::Do(StorageRequest::ListOwnerLock);
        assert_eq!(swap.on_outcome(&NOT_FOUND), list, "has another gone on?");
        swap
    }

    fn free() -> LockRecord {
        LockRecord {
            holder: None,
            ..record(5, 50)
        }
    }

    fn giving_back() -> Swap {
        linked(swap_to(free()))
    }

    fn read(generation: u64) -> Step {
        let key = LockName::Owner.key(Generation(generation));
        Step::Do(StorageRequest::Read(key))
    }

    fn assert_lost_and_removed(mut swap: Swap, there: &[u64]) {
        assert_removed_and_lost(swap.on_outcome(&keys(there)), swap);
    }

    fn assert_removed_and_lost(step: Step, mut swap: Swap) {
        let made = StorageRequest::Remove(LockName::Owner.key(Generation(5)));
        assert_eq!(step, Step::Do(made));
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

        for there in [&[5, 7, 8], &[6, 7, 8]] {
            let mut s = unsupported(swap());
            let followed = s.on_outcome(&keys(there));
            if there.contains(&6) {
                assert_eq!(followed, Step::Swapped(SwapOutcome::Lost));
            } else {
                assert_eq!(followed, read(6), "the listing may be old");
                assert_removed_and_lost(s.on_outcome(&NOT_FOUND), s);
            }
        }
    }

    #[test]
    fn what_another_swap_went_on_from_is_removed_by_nobody_who_missed_it() {
        for swap in [swap(), swap_to(free())] {
            let mut s = unsupported(swap);
            assert_eq!(s.on_outcome(&UNKNOWN), Step::Wait);
            assert_eq!(s.retry(), StorageRequest::ListOwnerLock);
            let gone_on = keys(&[5, 6, 7]);
            assert_eq!(s.on_outcome(&gone_on), Step::Swapped(SwapOutcome::Lost));
        }
        let mut taken = unsupported(swap());
        let gone_on = keys(&[5, 6]);
        assert_eq!(taken.on_outcome(&gone_on), Step::Swapped(SwapOutcome::Lost));
        let mut s = unsupported(swap());
        assert_eq!(s.on_outcome(&keys(&[4, 5])), read(6), "an old listing");
        assert_eq!(s.on_outcome(&UNKNOWN), Step::Wait);
        let six = bytes(&record(6, 60));
        assert_eq!(s.on_outcome(&six), Step::Swapped(SwapOutcome::Lost));
    }

    #[test]
    fn a_lock_that_was_taken_and_cleaned_up_had_been_given_back() {
        let taken = || {
            let mut s = unsupported(swap_to(free()));
            assert_eq!(s.on_outcome(&keys(&[5, 6])), read(7), "is 6 the newest?");
            s
        };
        let mut s = taken();
        assert_eq!(s.on_outcome(&NOT_FOUND), Step::Swapped(SwapOutcome::Won));
        assert_eq!(s.take_old(), [], "the next holder cleans up");
        let mut s = taken();
        let seven = bytes(&record(7, 70));
        assert_eq!(
            s.on_outcome(&seven),
            Step::Swapped(SwapOutcome::Lost),
            "another 5 may have been removed before this one was made"
        );
        let mut s = unsupported(swap_to(free()));
        let removed = s.on_outcome(&keys(&[6]));
        assert_eq!(removed, Step::Swapped(SwapOutcome::Lost), "it is not there");
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
