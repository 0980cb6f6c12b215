//! An exhaustive small model of the real [`Proposal`] and [`Writers`]: hosts that propose, reads of one sector at
//! a time, writes that land late or never, lost acknowledgements, agents that die, hosts that boot anew.

use super::proposal::Planted;
use super::*;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashSet};
use std::hash::{Hash, Hasher};
use std::vec;
use std::vec::Vec;

type Value = (u8, u64);

/// How far a model goes.
#[derive(Clone, Default)]
pub(super) struct Bounds {
    /// Slots of each host.
    pub(super) slots: Vec<Vec<u16>>,
    pub(super) generations: u64,
    /// Ballots of one proposal.
    pub(super) ballots: u32,
    /// Proposals of one process for one generation.
    pub(super) tries: u8,
    /// Writes of the first host whose outcome stays unknown.
    pub(super) unknown: u8,
    /// Times that the first host's agent dies and is started anew.
    pub(super) deaths: u8,
    /// Times that the first host boots anew.
    pub(super) boots: u8,
    pub(super) planted: Planted,
    /// A slot is used again whatever is on its way to it (planted).
    pub(super) doubts_forgotten: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Doing {
    Resting,
    Reading(Vec<Sector<Value>>),
    Writing(Block<Value>),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Host {
    writers: Writers<Value>,
    incarnation: u64,
    target: u64,
    tries: u8,
    proposal: Option<Proposal<Value>>,
    doing: Doing,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct World {
    sectors: Vec<Sector<Value>>,
    hosts: Vec<Host>,
    /// Writes that may land at any time, of which host, into which slot.
    late: Vec<(usize, u16, Block<Value>)>,
    /// What was told to be decided.
    told: BTreeMap<u64, Value>,
    unknown: u8,
    deaths: u8,
    boots: u8,
    broken: Option<&'static str>,
}

/// What a search found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) states: usize,
    pub(super) broken: Option<&'static str>,
    /// A host won after a proposal of its own had an unknown outcome.
    pub(super) won_after_doubt: bool,
    pub(super) won_by: [bool; 3],
    pub(super) all_decided: bool,
}

/// Searches depth-first, which keeps few states at once, until there is no further state, or a broken one.
pub(super) fn search(bounds: &Bounds) -> Found {
    let mut found = Found::default();
    let mut seen = HashSet::new();
    let mut queue = vec![World::new(bounds)];
    while let Some(world) = queue.pop() {
        found.states += 1;
        assert!(found.states < 30_000_000, "the bounds are too wide");
        found.note(&world, bounds);
        if world.broken.is_some() {
            found.broken = world.broken;
            return found;
        }
        for next in world.steps(bounds) {
            let mut hasher = DefaultHasher::new();
            next.hash(&mut hasher);
            // 64 bits for a few million states: two that share one are not to be expected.
            if seen.insert(hasher.finish()) {
                queue.push(next);
            }
        }
    }
    found
}

impl Found {
    fn note(&mut self, world: &World, bounds: &Bounds) {
        for (host, _) in world.told.values() {
            if let Some(won) = self.won_by.get_mut(usize::from(*host)) {
                *won = true;
            }
        }
        let doubted = world.unknown < bounds.unknown && !world.hosts[0].writers.is_clean();
        self.won_after_doubt |= doubted && world.told.values().any(|(host, _)| *host == 0);
        self.all_decided |= world.told.len() as u64 == bounds.generations;
    }
}

impl Host {
    /// What its process wants: no two processes the same.
    fn value(&self, n: usize) -> Value {
        (
            u8::try_from(n).expect("a few hosts"),
            self.incarnation * 10 + self.target,
        )
    }
}

impl World {
    fn new(bounds: &Bounds) -> Self {
        let slots = bounds.slots.iter().flatten().max().map_or(0, |s| s + 1);
        let sectors = vec![Sector::Blank; usize::from(slots)];
        let host = |(n, slots): (usize, &Vec<u16>)| Host {
            writers: Writers::new(slots.clone()),
            incarnation: n as u64 * 100,
            target: 0,
            tries: 0,
            proposal: None,
            doing: Doing::Resting,
        };
        Self {
            sectors,
            hosts: bounds.slots.iter().enumerate().map(host).collect(),
            late: Vec::new(),
            told: BTreeMap::new(),
            unknown: bounds.unknown,
            deaths: bounds.deaths,
            boots: bounds.boots,
            broken: None,
        }
    }

    fn steps(&self, bounds: &Bounds) -> Vec<Self> {
        let mut next = Vec::new();
        for n in 0..self.hosts.len() {
            self.step(n, bounds, &mut next);
        }
        for at in 0..self.late.len() {
            let mut world = self.clone();
            let (_, slot, block) = world.late.remove(at);
            world.sectors[usize::from(slot)] = Sector::Sound(block);
            next.push(world);
        }
        if self.deaths > 0 && self.hosts[0].proposal.is_some() {
            next.push(self.die(bounds));
        }
        if self.boots > 0 {
            next.push(self.boot());
        }
        for world in &mut next {
            world.judge();
        }
        next
    }

    fn step(&self, n: usize, bounds: &Bounds, next: &mut Vec<Self>) {
        let mut world = self.clone();
        let host = &mut world.hosts[n];
        match host.doing.clone() {
            Doing::Resting => {
                let Some(slot) = host.writers.usable() else {
                    return;
                };
                if host.target >= bounds.generations || host.tries >= bounds.tries {
                    return;
                }
                host.tries += 1;
                let value = host.value(n);
                let target = Generation(host.target);
                let mut proposal =
                    Proposal::begin(slot, host.incarnation, target, value, bounds.ballots);
                proposal.plant(bounds.planted);
                host.proposal = Some(proposal);
                world.read(n, Vec::new(), bounds);
                next.push(world);
            }
            Doing::Reading(read) => {
                world.read(n, read, bounds);
                next.push(world);
            }
            // That it lands and is acknowledged is one step: between them nobody sees anything new.
            Doing::Writing(block) => {
                let slot = host.proposal.as_ref().expect("it writes for one").slot();
                let mut landed = world;
                landed.sectors[usize::from(slot)] = Sector::Sound(block.clone());
                next.push(landed.clone().written(n, Written::Done, bounds));
                if n == 0 && self.unknown > 0 {
                    landed.unknown -= 1;
                    next.push(landed.written(n, Written::Unknown, bounds));
                    let mut late = self.clone();
                    late.unknown -= 1;
                    late.late.push((n, slot, block));
                    next.push(late.written(n, Written::Unknown, bounds));
                }
            }
        }
    }

    /// Reads the next sector, and with it all before it that nobody can change meanwhile.
    fn read(&mut self, n: usize, mut read: Vec<Sector<Value>>, bounds: &Bounds) {
        loop {
            let at = u16::try_from(read.len()).expect("a few slots");
            let Some(sector) = self.sectors.get(read.len()) else {
                break;
            };
            read.push(sector.clone());
            let late = self.late.iter().any(|(_, slot, _)| *slot == at);
            if late || !bounds.slots[n].contains(&at) {
                break;
            }
        }
        let host = &mut self.hosts[n];
        if read.len() < self.sectors.len() {
            host.doing = Doing::Reading(read);
            return;
        }
        host.writers.resolve(&read);
        let proposal = host.proposal.as_mut().expect("it reads for one");
        let step = proposal.on_read(&read);
        self.take(n, step, bounds);
    }

    fn written(mut self, n: usize, written: Written, bounds: &Bounds) -> Self {
        let proposal = self.hosts[n].proposal.as_mut().expect("it writes for one");
        let step = proposal.on_written(written);
        self.take(n, step, bounds);
        self
    }

    fn take(&mut self, n: usize, step: Step<Value>, bounds: &Bounds) {
        let host = &mut self.hosts[n];
        let outcome = match step {
            Step::Ask(Ask::ReadAll) => {
                host.doing = Doing::Reading(Vec::new());
                return;
            }
            Step::Ask(Ask::Write(block)) => {
                host.doing = Doing::Writing(block);
                return;
            }
            Step::Done(outcome) => outcome,
        };
        let proposal = host.proposal.take().expect("it ended");
        host.doing = Doing::Resting;
        if let Some(block) = proposal.doubt().filter(|_| !bounds.doubts_forgotten) {
            host.writers.doubt(proposal.slot(), block.clone());
        }
        let value = match outcome {
            Outcome::Won => Some(host.value(n)),
            Outcome::Lost(value) => Some(value),
            Outcome::Superseded => None,
            Outcome::NoPredecessor => {
                self.broken = Some("a generation that was told to be decided is gone");
                return;
            }
            Outcome::NotDone | Outcome::Unknown => return,
        };
        let target = host.target;
        host.target += 1;
        host.tries = 0;
        if let Some(value) = value
            && *self.told.entry(target).or_insert(value) != value
        {
            self.broken = Some("two values of one generation");
        }
    }

    /// The first host's agent dies, and another is started when all its threads are gone. What it was writing
    /// may land late; a journal that outlives agents, but not the boot, says where.
    fn die(&self, bounds: &Bounds) -> Self {
        let mut world = self.clone();
        world.deaths -= 1;
        let host = &mut world.hosts[0];
        let slot = host.proposal.take().expect("it proposes").slot();
        if let Doing::Writing(block) = core::mem::replace(&mut host.doing, Doing::Resting) {
            if !bounds.doubts_forgotten {
                host.writers.doubt(slot, block.clone());
            }
            world.late.push((0, slot, block));
        }
        host.incarnation += 1;
        host.target = 0;
        host.tries = 0;
        world
    }

    /// The first host boots anew: nothing of its earlier boot lands any more.
    fn boot(&self) -> Self {
        let mut world = self.clone();
        world.boots -= 1;
        world.late.retain(|(of, _, _)| *of != 0);
        let host = &mut world.hosts[0];
        host.writers = Writers::new(host.writers.slots.clone());
        host.incarnation += 1;
        host.target = 0;
        host.tries = 0;
        host.proposal = None;
        host.doing = Doing::Resting;
        world
    }

    /// What was told must be on the disk, whoever looks.
    fn judge(&mut self) {
        let told = self.told.keys().next_back().map(|g| Generation(*g));
        let shown = newest(&self.sectors).map(|(generation, _)| generation);
        if self.broken.is_none() && told > shown {
            self.broken = Some("a generation that was told to be decided is gone");
        }
        for (generation, value) in &self.told {
            let shown = value_of(&self.sectors, Generation(*generation));
            if shown.is_some_and(|shown| shown != value) {
                self.broken = Some("two values of one generation");
            }
        }
    }
}
