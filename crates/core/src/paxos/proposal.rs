//! One try to decide one generation with a value of one's own.

use super::{Ballot, Block, Sector, is_damaged, newest, value_of};
use crate::id::Generation;

/// What is to be done next.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Ask<V> {
    /// Read the sectors of all slots, each after this was asked. Answer: [`Proposal::on_read`] or
    /// [`Proposal::on_read_failed`].
    ReadAll,
    /// Write this into the own slot, through to stable storage. Answer: [`Proposal::on_written`].
    Write(Block<V>),
}

/// What became of a write.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Written {
    /// It is on stable storage.
    Done,
    /// It certainly was not performed and never will be.
    Refused,
    /// It may have been performed, or may be later.
    Unknown,
}

/// How a proposal ended.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Outcome<V> {
    /// The generation is decided with the own value, and the disk shows it.
    Won,
    /// The generation is decided with another value, and the disk shows it.
    Lost(V),
    /// The generation was decided long ago, and no slot shows its value any more.
    Superseded,
    /// The generation before it is not decided.
    NoPredecessor,
    /// The own value is certainly not decided by this proposal and never will be.
    NotDone,
    /// The own value may be decided, or may be later, by this host or another.
    Unknown,
}

/// What a proposal wants.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Step<V> {
    /// Do this.
    Ask(Ask<V>),
    /// It ended.
    Done(Outcome<V>),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Stage {
    /// Before the first write.
    Looking,
    /// Phase 1: promise written, or being read against the others.
    Promising,
    /// Phase 2.
    Accepting,
    /// Decided; being written down.
    Recording,
}

/// Clauses that a test takes away, to see that it notices. All stand elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Planted {
    /// Phase 2 ends without reading the others again.
    pub(super) no_second_reading: bool,
    /// The own value is proposed whatever others accepted.
    pub(super) own_value_always: bool,
    /// A process takes its slot for a blank one: what the one before promised and accepted is forgotten, and
    /// ballots begin anew.
    pub(super) slot_begins_anew: bool,
    /// A write of unknown outcome counts as done.
    pub(super) unknown_is_done: bool,
    /// A damaged sector passes for a blank one.
    pub(super) damaged_is_blank: bool,
    /// The reading that resolved a doubt counts as the one after the write.
    pub(super) doubt_read_counts: bool,
    /// A promise forgets what was accepted in its slot.
    pub(super) accepted_forgotten: bool,
    /// A generation is told to be decided before the disk says so.
    pub(super) told_early: bool,
    /// Two processes may have the same ballot.
    pub(super) ballots_collide: bool,
}

/// One try.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Proposal<V> {
    slot: u16,
    incarnation: u64,
    generation: Generation,
    value: V,
    ballots_left: u32,
    stage: Stage,
    /// What was last written into the own slot, or is being written.
    own: Option<Block<V>>,
    /// What was in it before.
    before: Option<Block<V>>,
    /// The write of `own` has an unknown outcome.
    in_doubt: bool,
    planted: Planted,
}

impl<V: Clone + PartialEq> Proposal<V> {
    /// Begins; then [`Ask::ReadAll`] is to be done. At most `ballots` are tried while others interfere.
    ///
    /// `slot` is written by nobody else, and nothing that was written into it before is still on its way.
    #[must_use]
    pub fn begin(
        slot: u16,
        incarnation: u64,
        generation: Generation,
        value: V,
        ballots: u32,
    ) -> Self {
        Self {
            slot,
            incarnation,
            generation,
            value,
            ballots_left: ballots,
            stage: Stage::Looking,
            own: None,
            before: None,
            in_doubt: false,
            planted: Planted::default(),
        }
    }

    /// The slot that it writes.
    #[must_use]
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// Once it has ended: this write of the own slot may land at any time, so that the slot must not be written
    /// again ([`super::Writers::doubt`]).
    #[must_use]
    pub fn doubt(&self) -> Option<&Block<V>> {
        self.own.as_ref().filter(|_| self.in_doubt)
    }

    #[cfg(test)]
    pub(super) fn plant(&mut self, planted: Planted) {
        self.planted = planted;
    }

    /// Takes a reading of all sectors, by slot.
    pub fn on_read(&mut self, sectors: &[Sector<V>]) -> Step<V> {
        if self.planted.slot_begins_anew && self.stage == Stage::Looking {
            let mut forgotten = sectors.to_vec();
            if let Some(own) = forgotten.get_mut(usize::from(self.slot)) {
                *own = Sector::Blank;
            }
            return self.take_reading(&forgotten);
        }
        self.take_reading(sectors)
    }

    fn take_reading(&mut self, sectors: &[Sector<V>]) -> Step<V> {
        let here = sectors.get(usize::from(self.slot)).and_then(Sector::block);
        let seen = here.is_some() && here == self.own.as_ref();
        let landed = self.in_doubt && seen;
        self.in_doubt &= !seen;
        if let Some(settled) = self.settled(sectors) {
            return Step::Done(settled);
        }
        if is_damaged(sectors) && !self.planted.damaged_is_blank {
            return self.give_up();
        }
        if self.stage == Stage::Looking {
            return self.promise(sectors);
        }
        if !seen {
            // In doubt and not there; or acknowledged and not there: a stale reading, a second writer, or an
            // older write that landed over it.
            self.in_doubt = true;
            return Step::Done(Outcome::Unknown);
        }
        if landed && !self.planted.doubt_read_counts {
            // It landed. But sectors that were read before it did say nothing.
            return self.acknowledged();
        }
        if self.is_outbid(sectors) {
            return self.promise(sectors);
        }
        match self.stage {
            Stage::Looking | Stage::Promising => self.accept(sectors),
            Stage::Accepting if self.planted.told_early => {
                self.stage = Stage::Recording;
                self.acknowledged()
            }
            Stage::Accepting | Stage::Recording => self.record(),
        }
    }

    /// The sectors could not be read.
    pub fn on_read_failed(&mut self) -> Step<V> {
        self.give_up()
    }

    /// Takes the outcome of a write.
    pub fn on_written(&mut self, written: Written) -> Step<V> {
        match written {
            Written::Done => self.acknowledged(),
            Written::Unknown if self.planted.unknown_is_done => self.acknowledged(),
            Written::Refused => {
                self.own = self.before.take();
                self.give_up()
            }
            Written::Unknown => {
                self.in_doubt = true;
                Step::Ask(Ask::ReadAll)
            }
        }
    }

    /// The sectors show that the generation is decided, or that it cannot be yet.
    fn settled(&self, sectors: &[Sector<V>]) -> Option<Outcome<V>> {
        let newest = newest(sectors).map(|(generation, _)| generation);
        if newest < Some(self.generation) {
            let predecessor = self.generation.0.checked_sub(1).map(Generation);
            let gap = newest != predecessor && self.stage == Stage::Looking;
            return (gap && !is_damaged(sectors)).then_some(Outcome::NoPredecessor);
        }
        Some(match value_of(sectors, self.generation) {
            Some(value) if *value == self.value => Outcome::Won,
            Some(value) => Outcome::Lost(value.clone()),
            None => Outcome::Superseded,
        })
    }

    /// The blocks that are about this generation.
    fn rivals<'a>(&self, sectors: &'a [Sector<V>]) -> impl Iterator<Item = &'a Block<V>> {
        let generation = self.generation;
        sectors
            .iter()
            .filter_map(Sector::block)
            .filter(move |block| block.next() == generation)
    }

    fn is_outbid(&self, sectors: &[Sector<V>]) -> bool {
        let mine = self.own.as_ref().map(|block| block.promised);
        let highest = self.rivals(sectors).map(|block| block.promised).max();
        highest > mine
    }

    fn promise(&mut self, sectors: &[Sector<V>]) -> Step<V> {
        let Some(left) = self.ballots_left.checked_sub(1) else {
            return self.give_up();
        };
        self.ballots_left = left;
        let here = sectors
            .get(usize::from(self.slot))
            .and_then(Sector::block)
            .filter(|block| block.next() == self.generation);
        let highest = self.rivals(sectors).map(|block| block.promised.round).max();
        let apart = !self.planted.ballots_collide;
        let promised = Ballot {
            round: highest.unwrap_or(0).saturating_add(1),
            slot: if apart { self.slot } else { 0 },
            incarnation: if apart { self.incarnation } else { 0 },
        };
        self.stage = Stage::Promising;
        self.write(Block {
            base: newest(sectors).map(|(generation, value)| (generation, value.clone())),
            promised,
            accepted: here
                .and_then(|block| block.accepted.clone())
                .filter(|_| !self.planted.accepted_forgotten),
            decided: false,
        })
    }

    fn accept(&mut self, sectors: &[Sector<V>]) -> Step<V> {
        let accepted = self
            .rivals(sectors)
            .filter_map(|block| block.accepted.as_ref())
            .max_by_key(|(ballot, _)| *ballot)
            .filter(|_| !self.planted.own_value_always);
        let value = accepted.map_or_else(|| self.value.clone(), |(_, value)| value.clone());
        let Some(own) = self.own.clone() else {
            return self.give_up();
        };
        self.stage = Stage::Accepting;
        self.write(Block {
            accepted: Some((own.promised, value)),
            ..own
        })
    }

    fn record(&mut self) -> Step<V> {
        let Some(own) = self.own.clone() else {
            return self.give_up();
        };
        self.stage = Stage::Recording;
        self.write(Block {
            decided: true,
            ..own
        })
    }

    fn write(&mut self, block: Block<V>) -> Step<V> {
        self.before = self.own.replace(block.clone());
        Step::Ask(Ask::Write(block))
    }

    /// The last write is on stable storage.
    fn acknowledged(&mut self) -> Step<V> {
        if self.stage == Stage::Accepting && self.planted.no_second_reading {
            return self.record();
        }
        if self.stage != Stage::Recording {
            return Step::Ask(Ask::ReadAll);
        }
        let decided = self.own.as_ref().and_then(|block| block.accepted.clone());
        Step::Done(match decided {
            Some((_, value)) if value == self.value => Outcome::Won,
            Some((_, value)) => Outcome::Lost(value),
            None => Outcome::Unknown,
        })
    }

    /// Nothing more is tried. What was accepted stays in the slot, under later ballots too, and others may
    /// complete it.
    fn give_up(&self) -> Step<V> {
        let accepted = self.own.as_ref().and_then(|block| block.accepted.as_ref());
        let offered = accepted.is_some_and(|(_, value)| *value == self.value);
        Step::Done(if self.in_doubt || offered {
            Outcome::Unknown
        } else {
            Outcome::NotDone
        })
    }
}
