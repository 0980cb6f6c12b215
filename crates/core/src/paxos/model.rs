//! An exhaustive small model of the real [`Proposal`] and [`Writers`]: hosts that propose, reads of one sector at
//! a time, writes that land late or never, lost acknowledgements, agents that die, hosts that boot anew.

use super::proposal::Planted;
use super::*;
use stateright::{Model, Property};
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

type Value = (u8, u64);

/// How far a model goes.
#[derive(Clone, Debug, Default)]
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

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Doing {
    Resting,
    Reading(Vec<Sector<Value>>),
    Writing(Block<Value>),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Host {
    writers: Writers<Value>,
    incarnation: u64,
    target: u64,
    tries: u8,
    proposal: Option<Proposal<Value>>,
    doing: Doing,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct World {
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

/// What may happen next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// A host begins a proposal, or reads on.
    Go(usize),
    /// A write lands and is acknowledged, in one step: between them nobody sees anything new.
    Write(usize),
    /// It lands, and its acknowledgement is lost.
    WriteUnknown(usize),
    /// It is given up, and may land later.
    WriteLate(usize),
    /// A late write lands.
    Land(usize),
    Die,
    Boot,
}

pub(super) const TWO_VALUES: &str = "a generation has one value";
pub(super) const GONE: &str = "what was told to be decided is on the disk";

impl Model for Bounds {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_some() {
            return;
        }
        for (n, host) in world.hosts.iter().enumerate() {
            match host.doing {
                Doing::Resting => {
                    let may = host.target < self.generations && host.tries < self.tries;
                    if may && host.writers.usable().is_some() {
                        actions.push(Action::Go(n));
                    }
                }
                Doing::Reading(_) => actions.push(Action::Go(n)),
                Doing::Writing(_) => {
                    actions.push(Action::Write(n));
                    if n == 0 && world.unknown > 0 {
                        actions.extend([Action::WriteUnknown(n), Action::WriteLate(n)]);
                    }
                }
            }
        }
        actions.extend((0..world.late.len()).map(Action::Land));
        if world.deaths > 0 && world.hosts[0].proposal.is_some() {
            actions.push(Action::Die);
        }
        if world.boots > 0 {
            actions.push(Action::Boot);
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        let mut world = match action {
            Action::Go(n) => world.go(n, self),
            Action::Write(n) => world.write(n, true, Written::Done, self),
            Action::WriteUnknown(n) => world.write(n, true, Written::Unknown, self),
            Action::WriteLate(n) => world.write(n, false, Written::Unknown, self),
            Action::Land(at) => {
                let (_, slot, block) = world.late.remove(at);
                world.sectors[usize::from(slot)] = Sector::Sound(block);
                world
            }
            Action::Die => world.die(self),
            Action::Boot => world.boot(),
        };
        world.judge();
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(TWO_VALUES, |_, w: &World| w.broken != Some(TWO_VALUES)),
            Property::always(GONE, |_, w: &World| w.broken != Some(GONE)),
            Property::sometimes("the first host wins", |_, w: &World| w.won_by(0)),
            Property::sometimes("the second host wins", |_, w: &World| w.won_by(1)),
            Property::sometimes("the third host wins", |_, w: &World| w.won_by(2)),
            Property::sometimes("all is decided", |m: &Self, w: &World| {
                w.told.len() as u64 == m.generations
            }),
            // With its next slot: so only where it has one.
            Property::sometimes("a host wins after a doubt", |m: &Self, w: &World| {
                let doubted = w.unknown < m.unknown && !w.hosts[0].writers.is_clean();
                let may = m.unknown > 0 && m.slots[0].len() > 1 && m.ballots > 1;
                !may || doubted && w.won_by(0)
            }),
        ]
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
    /// That host won a generation, or there is no such host.
    fn won_by(&self, n: usize) -> bool {
        let mut winners = self.told.values().map(|(host, _)| usize::from(*host));
        n >= self.hosts.len() || winners.any(|host| host == n)
    }

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

    /// What a host that rests, or reads, does next.
    fn go(mut self, n: usize, bounds: &Bounds) -> Self {
        let host = &mut self.hosts[n];
        let read = match &host.doing {
            Doing::Reading(read) => read.clone(),
            Doing::Resting | Doing::Writing(_) => {
                let slot = host.writers.usable().expect("it may propose");
                host.tries += 1;
                let value = host.value(n);
                let target = Generation(host.target);
                let mut proposal =
                    Proposal::begin(slot, host.incarnation, target, value, bounds.ballots);
                proposal.plant(bounds.planted);
                host.proposal = Some(proposal);
                Vec::new()
            }
        };
        self.read(n, read, bounds);
        self
    }

    /// What becomes of the write of a host: it lands or not, is acknowledged or not, may land later or not.
    fn write(mut self, n: usize, lands: bool, written: Written, bounds: &Bounds) -> Self {
        let host = &self.hosts[n];
        let Doing::Writing(block) = host.doing.clone() else {
            return self;
        };
        let slot = host.proposal.as_ref().expect("it writes for one").slot();
        if lands {
            self.sectors[usize::from(slot)] = Sector::Sound(block);
        } else {
            self.late.push((n, slot, block));
        }
        if written == Written::Unknown {
            self.unknown -= 1;
        }
        self.written(n, written, bounds)
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
                self.broken = Some(GONE);
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
            self.broken = Some(TWO_VALUES);
        }
    }

    /// The first host's agent dies, and another is started when all its threads are gone. What it was writing
    /// may land late; a journal that outlives agents, but not the boot, says where.
    fn die(&self, bounds: &Bounds) -> Self {
        let mut world = self.clone();
        world.deaths -= 1;
        let host = &mut world.hosts[0];
        let proposal = host.proposal.take().expect("it proposes");
        let slot = proposal.slot();
        if let Doing::Writing(block) = core::mem::replace(&mut host.doing, Doing::Resting) {
            if !bounds.doubts_forgotten {
                host.writers.doubt(slot, block.clone());
            }
            world.late.push((0, slot, block));
        } else if let Some(block) = proposal.doubt().filter(|_| !bounds.doubts_forgotten) {
            // It was looking for a write of unknown outcome.
            host.writers.doubt(slot, block.clone());
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
            self.broken = Some(GONE);
        }
        for (generation, value) in &self.told {
            let shown = value_of(&self.sectors, Generation(*generation));
            if shown.is_some_and(|shown| shown != value) {
                self.broken = Some(TWO_VALUES);
            }
        }
    }
}
