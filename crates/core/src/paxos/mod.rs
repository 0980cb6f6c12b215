//! Single-disk Disk Paxos (Gafni and Lamport, "Disk Paxos", 2003): a register of generations on storage that can
//! only read and write sectors. Each generation is decided once, by at most one value.
//!
//! A register has one sector for each *slot*, and each slot has one writer at a time. A slot's [`Block`] says
//! which generation its writer last knew to be decided (the *base*), and how far it came with the next one.
//! ```text
//! read all ─▶ write promise ─▶ read all ─▶ write accepted ─▶ read all ─▶ write decided ─▶ won, or lost to
//!                ▲                │ a higher promise            │
//!                └────────────────┴─────────────────────────────┘ again, under a higher ballot
//! ```
//! - Each reading begins after the write before it was acknowledged. One that shows another writer's higher
//!   promise ends the ballot.
//! - The value that was accepted under the highest ballot is proposed, the own one only where there is none.
//! - *Decided* is written before anyone is told: what a reader may go by is on the disk. It is never lost by an
//!   overwrite, because a block's base never goes back.
//! - There is no sector that two slots write, so no late write can undo another's.
//!
//! # Late writes (safety rule H20)
//! A write of unknown outcome may land over a later one of the same slot, and take back a promise. So a slot
//! with such a write is not used again in that register by that boot, until the write was *seen* on the disk: a
//! write takes effect at most once. [`Writers`] keeps count of that. The host goes on with its next slot, and
//! stays out when it has none left.
//!
//! # Never here
//! A sector that cannot be read taken for one that was never written (safety rule H21).

mod proposal;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use tests::cases;

pub use proposal::{Ask, Outcome, Proposal, Step, Written};

use crate::id::Generation;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The number of a try to decide a generation. The round decides, then the slot, then the writer: no two
/// processes ever have the same.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Ballot {
    /// One above the highest that the writer saw. 0: none.
    pub round: u64,
    /// The writer's slot.
    pub slot: u16,
    /// The writer: random, new with each process.
    pub incarnation: u64,
}

/// What the writer of a slot says in its sector.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Block<V> {
    /// The newest generation that the writer knew to be decided, with its value. None: there is none yet, and
    /// generation 0 is to be decided.
    pub base: Option<(Generation, V)>,
    /// No ballot below this one is taken part in, for the generation behind the base.
    pub promised: Ballot,
    /// What was last accepted for the generation behind the base, and under which ballot.
    pub accepted: Option<(Ballot, V)>,
    /// That value is decided.
    pub decided: bool,
}

impl<V> Block<V> {
    /// The generation that the block's ballots are about.
    #[must_use]
    pub fn next(&self) -> Generation {
        self.base
            .as_ref()
            .map_or(Generation(0), |(generation, _)| generation.next())
    }

    /// The newest generation that the block shows to be decided.
    fn newest(&self) -> Option<(Generation, &V)> {
        match &self.accepted {
            Some((_, value)) if self.decided => Some((self.next(), value)),
            _ => self.base.as_ref().map(|(g, v)| (*g, v)),
        }
    }

    /// The value of a generation, where the block shows it to be decided.
    fn value_of(&self, generation: Generation) -> Option<&V> {
        match &self.base {
            Some((base, value)) if *base == generation => Some(value),
            _ => self
                .newest()
                .filter(|(newest, _)| *newest == generation)
                .map(|(_, value)| value),
        }
    }
}

/// A slot's sector, as it was read.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Sector<V> {
    /// It was never written since the register was made.
    Blank,
    /// A sound block.
    Sound(Block<V>),
    /// Torn, damaged, foreign, or not readable: it may hold anything.
    Damaged,
}

impl<V> Sector<V> {
    fn block(&self) -> Option<&Block<V>> {
        match self {
            Self::Sound(block) => Some(block),
            Self::Blank | Self::Damaged => None,
        }
    }
}

/// The newest generation that the sectors show to be decided, with its value. A damaged sector may have hidden a
/// newer one ([`is_damaged`]).
#[must_use]
pub fn newest<V>(sectors: &[Sector<V>]) -> Option<(Generation, &V)> {
    sectors
        .iter()
        .filter_map(|s| s.block()?.newest())
        .max_by_key(|(generation, _)| *generation)
}

/// The value of a decided generation, as long as a slot still shows it: that of the newest always, mostly that
/// of its predecessor too.
#[must_use]
pub fn value_of<V>(sectors: &[Sector<V>], generation: Generation) -> Option<&V> {
    sectors.iter().find_map(|s| s.block()?.value_of(generation))
}

/// A sector of these cannot be read, so that nothing may be concluded from what the others do not show.
#[must_use]
pub fn is_damaged<V>(sectors: &[Sector<V>]) -> bool {
    sectors.iter().any(|s| matches!(s, Sector::Damaged))
}

/// The slots of one host in one register, and which of them have a write that may still land.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Writers<V> {
    slots: Vec<u16>,
    doubts: BTreeMap<u16, Vec<Block<V>>>,
}

impl<V: Clone + PartialEq> Writers<V> {
    /// These slots, in the order in which they are used. Nothing of this boot may be on its way to any of them.
    #[must_use]
    pub fn new(slots: Vec<u16>) -> Self {
        Self {
            slots,
            doubts: BTreeMap::new(),
        }
    }

    /// The slot to write; none: the host stays out of this register until a doubt is resolved or it has
    /// booted anew.
    #[must_use]
    pub fn usable(&self) -> Option<u16> {
        let sound = |slot: &&u16| !self.doubts.contains_key(*slot);
        self.slots.iter().find(sound).copied()
    }

    /// Goes on with one more slot when the others are in doubt.
    pub fn add(&mut self, slot: u16) {
        if !self.slots.contains(&slot) {
            self.slots.push(slot);
        }
    }

    /// That block may be written into that slot at any time from now on.
    pub fn doubt(&mut self, slot: u16, block: Block<V>) {
        self.doubts.entry(slot).or_default().push(block);
    }

    /// Ends the doubts about writes that these sectors show: each takes effect once. Answers how many ended in
    /// each slot.
    pub fn resolve(&mut self, sectors: &[Sector<V>]) -> BTreeMap<u16, u32> {
        let mut ended = BTreeMap::new();
        for (slot, blocks) in &mut self.doubts {
            if let Some(Sector::Sound(seen)) = sectors.get(usize::from(*slot)) {
                let before = blocks.len();
                blocks.retain(|block| block != seen);
                if blocks.len() < before {
                    let count = u32::try_from(before - blocks.len()).unwrap_or(u32::MAX);
                    ended.insert(*slot, count);
                }
            }
        }
        self.doubts.retain(|_, blocks| !blocks.is_empty());
        ended
    }

    /// True when no write is in doubt.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.doubts.is_empty()
    }
}
