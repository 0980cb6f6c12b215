//! The guard's rules: which VMs to freeze, thaw and kill, from deadlines in shared memory.
//!
//! ```text
//!            register                deadline passed
//!   free ───────────────▶ running ───────────────────▶ lapsed ──▶ killed after `frozen_limit`
//!                            ▲                            │
//!                            └── agent: thaw (new generation, proven by swap)
//! ```
//! Deadline, state and generation of a VM are one atomic word (safety rule H17): the agent extends it
//! by compare-exchange from an unexpired value only, the guard alone sets *lapsed*, and only a thaw
//! under a new generation clears it. The guard does no storage or network I/O and decides nothing
//! about locks; it never thaws a word whose deadline has passed.

use crate::id::Generation;
use crate::io::GuardRequest;
use crate::time::{Duration, Instant};
use alloc::vec::Vec;

/// How a VM stands in the guard's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotState {
    /// Nobody uses the slot.
    Free,
    /// It may run until the deadline.
    Running,
    /// Its right has lapsed: it is frozen, or about to be.
    Lapsed,
}

/// The content of one word: 2 bits of state, 22 bits of generation, 40 bits of deadline in
/// milliseconds (34 years of boot time), rounded down to the safe side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Word(pub u64);

const GENERATION_BITS: u64 = 22;
const DEADLINE_BITS: u64 = 40;
const GENERATION_MASK: u64 = (1 << GENERATION_BITS) - 1;
const DEADLINE_MASK: u64 = (1 << DEADLINE_BITS) - 1;

impl Word {
    /// The word of a free slot.
    pub const FREE: Self = Self(0);

    /// Puts a word together.
    #[must_use]
    pub fn new(state: SlotState, generation: Generation, deadline: Instant) -> Self {
        let state = match state {
            SlotState::Free => 0,
            SlotState::Running => 1,
            SlotState::Lapsed => 2,
        };
        let generation = generation.0 & GENERATION_MASK;
        let deadline = deadline.as_millis().min(DEADLINE_MASK);
        Self(state << (GENERATION_BITS + DEADLINE_BITS) | generation << DEADLINE_BITS | deadline)
    }

    /// The state.
    #[must_use]
    pub fn state(self) -> SlotState {
        match self.0 >> (GENERATION_BITS + DEADLINE_BITS) {
            1 => SlotState::Running,
            2 => SlotState::Lapsed,
            _ => SlotState::Free,
        }
    }

    /// The low 22 bits of the generation.
    #[must_use]
    pub fn generation(self) -> Generation {
        Generation(self.0 >> DEADLINE_BITS & GENERATION_MASK)
    }

    /// True when the word is of this generation (compared in 22 bits).
    #[must_use]
    pub fn is_of(self, generation: Generation) -> bool {
        self.generation().0 == generation.0 & GENERATION_MASK
    }

    /// The deadline.
    #[must_use]
    pub fn deadline(self) -> Instant {
        Instant::from_nanos((self.0 & DEADLINE_MASK).saturating_mul(1_000_000))
    }

    /// The word after an extension, or none when the right has lapsed or is of another generation.
    #[must_use]
    pub fn extended(self, now: Instant, generation: Generation, deadline: Instant) -> Option<Self> {
        let valid =
            self.state() == SlotState::Running && self.is_of(generation) && now < self.deadline();
        valid.then(|| {
            Self::new(
                SlotState::Running,
                generation,
                deadline.max(self.deadline()),
            )
        })
    }

    /// The word when the agent itself gives the right up, or none when it is of another generation.
    #[must_use]
    pub fn lapsed(self, generation: Generation) -> Option<Self> {
        let valid = self.state() == SlotState::Running && self.is_of(generation);
        valid.then(|| Self::new(SlotState::Lapsed, generation, self.deadline()))
    }

    /// The word after a thaw, or none when the slot is of another generation or the new deadline has passed.
    /// The slot may still read *running* with a passed deadline: the guard has not looked yet.
    #[must_use]
    pub fn thawed(
        self,
        now: Instant,
        from: Generation,
        to: Generation,
        deadline: Instant,
    ) -> Option<Self> {
        let valid = self.state() != SlotState::Free && self.is_of(from) && now < deadline;
        valid.then(|| Self::new(SlotState::Running, to, deadline))
    }

    /// The word after a request about its VM, or none where that is refused. One that extends is about several
    /// VMs, and goes by [`Word::extended`] for each: here it is refused.
    #[must_use]
    pub fn after(self, now: Instant, request: &GuardRequest) -> Option<Self> {
        match request {
            GuardRequest::Register {
                generation,
                deadline,
                ..
            } => (now < *deadline).then(|| Self::new(SlotState::Running, *generation, *deadline)),
            GuardRequest::Extend(_) => None,
            GuardRequest::Thaw {
                from, to, deadline, ..
            } => self.thawed(now, *from, *to, *deadline),
            GuardRequest::Lapse { generation, .. } => self.lapsed(*generation),
            GuardRequest::Remove { .. } => Some(Self::FREE),
        }
    }
}

/// The shared memory as the guard uses it. The real one is an array of atomics.
pub trait Words {
    /// Number of slots.
    fn len(&self) -> usize;
    /// True when there is no slot.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Reads a slot.
    fn load(&self, slot: usize) -> Word;
    /// Replaces a slot's word if it is still `old`; true when it was.
    fn compare_exchange(&self, slot: usize, old: Word, new: Word) -> bool;
}

/// What the guard has to do with the process of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuardAction {
    /// Stop every thread.
    Freeze(usize),
    /// Let it go on.
    Unfreeze(usize),
    /// Kill it: it has been frozen for `frozen_limit`.
    Kill(usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    /// A guard that has just started does not know whether the process is stopped.
    Unsure,
    Running,
    Frozen {
        since: Instant,
        killed: bool,
    },
}

/// The guard's own state.
#[derive(Clone, Debug)]
pub struct Guard {
    frozen_limit: Option<Duration>,
    seen: Vec<Seen>,
}

impl Guard {
    /// A guard that has just started.
    #[must_use]
    pub fn new(frozen_limit: Option<Duration>) -> Self {
        Self {
            frozen_limit,
            seen: Vec::new(),
        }
    }

    /// The setting has changed.
    pub fn set_frozen_limit(&mut self, limit: Option<Duration>) {
        self.frozen_limit = limit;
    }

    /// Looks at every slot and says what to do. Call it at least at [`Guard::next`], and whenever the
    /// memory may have changed.
    pub fn poll(&mut self, now: Instant, words: &impl Words) -> Vec<GuardAction> {
        self.seen.resize(words.len(), Seen::Unsure);
        let mut actions = Vec::new();
        let limit = self.frozen_limit;
        for (slot, seen) in self.seen.iter_mut().enumerate() {
            let word = words.load(slot);
            match word.state() {
                // The slot may be used again before the next look: then nothing is known of its process.
                SlotState::Free => *seen = Seen::Unsure,
                SlotState::Running if word.deadline() <= now => {
                    let lapsed = Word::new(SlotState::Lapsed, word.generation(), word.deadline());
                    if words.compare_exchange(slot, word, lapsed) {
                        *seen = Seen::Frozen {
                            since: now,
                            killed: false,
                        };
                        actions.push(GuardAction::Freeze(slot));
                    }
                }
                SlotState::Running => {
                    if *seen != Seen::Running {
                        *seen = Seen::Running;
                        actions.push(GuardAction::Unfreeze(slot));
                    }
                }
                SlotState::Lapsed => match *seen {
                    Seen::Frozen { since, killed } => {
                        if !killed && limit.is_some_and(|l| now >= since + l) {
                            *seen = Seen::Frozen {
                                since,
                                killed: true,
                            };
                            actions.push(GuardAction::Kill(slot));
                        }
                    }
                    Seen::Unsure | Seen::Running => {
                        *seen = Seen::Frozen {
                            since: now,
                            killed: false,
                        };
                        actions.push(GuardAction::Freeze(slot));
                    }
                },
            }
        }
        actions
    }

    /// The next moment at which a deadline passes, if nothing changes before.
    #[must_use]
    pub fn next(&self, words: &impl Words) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for slot in 0..words.len() {
            let word = words.load(slot);
            let at = match word.state() {
                SlotState::Free => continue,
                SlotState::Running => word.deadline(),
                SlotState::Lapsed => match (self.seen.get(slot), self.frozen_limit) {
                    (
                        Some(Seen::Frozen {
                            since,
                            killed: false,
                        }),
                        Some(limit),
                    ) => *since + limit,
                    _ => continue,
                },
            };
            next = Some(next.map_or(at, |n| n.min(at)));
        }
        next
    }
}

/// Deadlines are kept in whole milliseconds, rounded down: up to this much of a right is given away.
pub const DEADLINE_GRAIN: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    struct Table(Vec<Cell<u64>>);

    impl Words for Table {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn load(&self, slot: usize) -> Word {
            Word(self.0[slot].get())
        }
        fn compare_exchange(&self, slot: usize, old: Word, new: Word) -> bool {
            let same = self.0[slot].get() == old.0;
            if same {
                self.0[slot].set(new.0);
            }
            same
        }
    }

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    fn table(word: Word) -> Table {
        Table(alloc::vec![Cell::new(word.0)])
    }

    #[test]
    fn a_word_keeps_its_three_parts() {
        let word = Word::new(SlotState::Lapsed, Generation(77), at(123_456_789));
        assert_eq!(
            (word.state(), word.generation(), word.deadline()),
            (SlotState::Lapsed, Generation(77), at(123_456_789))
        );
    }

    #[test]
    fn nothing_is_registered_whose_deadline_has_passed() {
        let register = GuardRequest::Register {
            vm: crate::id::VmId::new("vm-1").expect("id"),
            generation: Generation(1),
            deadline: at(10),
        };
        let registered = Word::new(SlotState::Running, Generation(1), at(10));
        assert_eq!(Word::FREE.after(at(9), &register), Some(registered));
        assert_eq!(Word::FREE.after(at(10), &register), None);
    }

    #[test]
    fn a_vm_is_frozen_at_its_deadline_and_not_before() {
        let words = table(Word::new(SlotState::Running, Generation(1), at(1000)));
        let mut guard = Guard::new(None);
        assert_eq!(
            guard.poll(at(999), &words),
            [GuardAction::Unfreeze(0)],
            "a new guard makes sure that it runs"
        );
        assert_eq!(guard.next(&words), Some(at(1000)));
        assert_eq!(guard.poll(at(1000), &words), [GuardAction::Freeze(0)]);
        assert_eq!(guard.poll(at(1001), &words), []);
        assert_eq!(words.load(0).state(), SlotState::Lapsed);
    }

    #[test]
    fn an_extension_from_an_expired_value_is_refused() {
        let word = Word::new(SlotState::Running, Generation(1), at(1000));
        assert!(word.extended(at(999), Generation(1), at(2000)).is_some());
        assert_eq!(word.extended(at(1000), Generation(1), at(2000)), None);
        assert_eq!(word.extended(at(999), Generation(2), at(2000)), None);
        let lapsed = Word::new(SlotState::Lapsed, Generation(1), at(5000));
        assert_eq!(lapsed.extended(at(999), Generation(1), at(9000)), None);
    }

    #[test]
    fn only_a_thaw_under_a_new_generation_lets_a_frozen_vm_go_on() {
        let words = table(Word::new(SlotState::Running, Generation(1), at(1000)));
        let mut guard = Guard::new(None);
        guard.poll(at(1000), &words);
        let lapsed = words.load(0);
        assert_eq!(
            lapsed.thawed(at(1500), Generation(1), Generation(2), at(1400)),
            None,
            "deadline passed"
        );
        let thawed = lapsed
            .thawed(at(1500), Generation(1), Generation(2), at(3000))
            .expect("valid");
        assert!(words.compare_exchange(0, lapsed, thawed));
        assert_eq!(guard.poll(at(1600), &words), [GuardAction::Unfreeze(0)]);
        assert_eq!(guard.poll(at(3000), &words), [GuardAction::Freeze(0)]);
    }

    #[test]
    fn a_restarted_guard_freezes_what_has_lapsed_again() {
        let words = table(Word::new(SlotState::Lapsed, Generation(1), at(1000)));
        assert_eq!(
            Guard::new(None).poll(at(5000), &words),
            [GuardAction::Freeze(0)]
        );
    }

    #[test]
    fn frozen_limit_kills_once() {
        let words = table(Word::new(SlotState::Running, Generation(1), at(1000)));
        let mut guard = Guard::new(Some(Duration::from_secs(5)));
        guard.poll(at(1000), &words);
        assert_eq!(guard.next(&words), Some(at(6000)));
        assert_eq!(guard.poll(at(6000), &words), [GuardAction::Kill(0)]);
        assert_eq!(guard.poll(at(7000), &words), []);
    }
}
