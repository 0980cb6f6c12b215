//! The chain of one lock: the real [`HeadRead`], [`Swap`] and [`Cleanup`] of several hosts, over a directory whose
//! links and removals may land late, twice or never, and whose readers may be overtaken between any two reads.
//!
//! Anybody may swap from what it read: who may break whose lock is decided elsewhere, and here the chain must
//! be a register with one value for each generation whoever writes it.

use super::{Case, Expect, run_all};
use crate::id::{BootId, Generation, Holder, HostId, InstanceId, Nonce, VmId};
use crate::io::{IoFault, StorageOutcome, StorageRequest, StorageValue};
use crate::lock::{Cleanup, HeadRead, LockName, Step, Swap, SwapOutcome};
use crate::time::Duration;
use crate::wire::{Desired, LockRecord, RecordKey, Stamp};
use stateright::{Model, Property};
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::String;
use std::vec::Vec;

const CLUSTER: u64 = 1;

/// What is taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Without {
    Nothing,
    PredecessorCheck,
    HeadCheck,
    Doubt,
    OwnNonce,
    StrayRemoval,
    Confirmation,
    DamageSeen,
    CleanUpUpwards,
    CleanUpStopsAtDoubt,
    KeptPredecessor,
    LookForFollowers,
}

/// How far it goes.
#[derive(Clone, Debug)]
struct Chain {
    hosts: usize,
    /// Swaps of all hosts together.
    swaps: u8,
    /// Links of unknown outcome.
    unknown: u8,
    /// Links that land once more, as a retransmission does.
    doubled: u8,
    /// Removals of unknown outcome.
    doubtful: u8,
    /// Agents that die and are started anew.
    deaths: u8,
    /// Reads that show a damaged record, as a torn one.
    damaged: u8,
    without: Without,
    /// The first host holds the lock, and all know it.
    held: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Doing {
    Resting,
    Reading {
        head: HeadRead,
        request: StorageRequest,
        /// The newest generation that was won when it last found nothing further.
        won_then: u64,
    },
    Knowing(LockRecord),
    Swapping {
        swap: Box<Swap>,
        from: (Generation, Nonce),
        request: StorageRequest,
    },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Host {
    /// The newest generation that it remembers.
    known: Generation,
    nonces: u64,
    doing: Doing,
    cleaning: Option<(Cleanup, StorageRequest)>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    directory: BTreeMap<u64, Vec<u8>>,
    hosts: Vec<Host>,
    /// What may land at any time.
    late: BTreeSet<(u64, Option<Vec<u8>>)>,
    /// The nonces under which generations were won.
    won: BTreeMap<u64, u64>,
    /// Who won generations.
    winners: BTreeSet<usize>,
    swaps: u8,
    unknown: u8,
    doubled: u8,
    doubtful: u8,
    deaths: u8,
    damaged: u8,
    removed_stray: bool,
    won_after_doubt: bool,
    /// A lock was given back by a swap that had lost its predecessor to the next holder.
    taken_at_once: bool,
    cleaned: bool,
    lost: bool,
    broken: Option<&'static str>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Action {
    Read(usize),
    Take(usize),
    GiveBack(usize),
    /// The operation under way is performed and acknowledged.
    Do(usize),
    /// It is performed, and its acknowledgement is lost.
    DoUnknown(usize),
    /// It is given up, and may land later.
    DoLate(usize),
    /// It is performed, and a copy of it may land once more.
    DoTwice(usize),
    /// What it reads is damaged.
    DoDamaged(usize),
    Clean(usize),
    CleanUnknown(usize),
    CleanLate(usize),
    Die(usize),
    Land(usize),
}

const TWICE: &str = "no generation is won twice";
const FORK: &str = "a generation is won only from the one that was the lock";
const BEHIND: &str = "nothing is won behind the head";
const STALE_END: &str = "an end that is read is the newest";
const REMOVED: &str = "the newest and its predecessor are removed by nobody";

fn name() -> LockName {
    LockName::Vm(VmId::new("v").expect("id"))
}

fn generation(key: &RecordKey) -> u64 {
    name().generation_of(key).expect("of this lock").0
}

fn stamp(host: usize) -> Stamp {
    Stamp {
        writer: id(host),
        boot: BootId(1),
        instance: InstanceId(1),
        seq: 1,
    }
}

fn id(host: usize) -> HostId {
    HostId::new(&format!("h{host}")).expect("id")
}

fn record(generation: Generation, nonce: u64, holder: Option<usize>) -> LockRecord {
    LockRecord {
        generation,
        nonce: Nonce(nonce),
        holder: holder.map(|host| Holder {
            host: id(host),
            boot: BootId(1),
        }),
        desired: if holder.is_some() {
            Desired::On
        } else {
            Desired::Off
        },
        freeze: Duration::from_secs(1),
        r#break: Duration::from_secs(2),
        given_back: None,
    }
}

impl Chain {
    fn read(&self, world: &mut World, n: usize) {
        let host = &mut world.hosts[n];
        let hint = (host.known > Generation(0)).then_some(host.known);
        let (mut head, request) = HeadRead::begin(name(), CLUSTER, hint);
        head.skip_predecessor = self.without == Without::HeadCheck;
        head.skip_confirm = self.without == Without::Confirmation;
        head.damaged_is_absent = self.without == Without::DamageSeen;
        host.doing = Doing::Reading {
            head,
            request,
            won_then: 0,
        };
    }

    fn swap(&self, world: &mut World, n: usize, from: &LockRecord, holder: Option<usize>) {
        world.swaps -= 1;
        let host = &mut world.hosts[n];
        host.nonces += 1;
        let nonce = (n as u64 + 1) * 100 + host.nonces;
        let new = record(from.generation.next(), nonce, holder);
        let from = (from.generation, from.nonce);
        let mut swap = Swap::begin(name(), CLUSTER, &stamp(n), from, new);
        swap.stubborn = holder.is_none();
        swap.skip_check = self.without == Without::PredecessorCheck;
        swap.skip_list = self.without == Without::HeadCheck;
        swap.trust_unknown = self.without == Without::Doubt;
        swap.any_nonce = self.without == Without::OwnNonce;
        swap.keep_stray = self.without == Without::StrayRemoval;
        swap.remove_predecessor = self.without == Without::KeptPredecessor;
        swap.remove_followed = self.without == Without::LookForFollowers;
        let request = swap.retry();
        host.doing = Doing::Swapping {
            swap: Box::new(swap),
            from,
            request,
        };
    }

    /// Hands an outcome to what the host does.
    fn feed(&self, world: &mut World, n: usize, outcome: &StorageOutcome) {
        let won = world.won.keys().next_back().copied().unwrap_or_default();
        let step = match &mut world.hosts[n].doing {
            Doing::Reading {
                head,
                request,
                won_then,
            } => {
                if *outcome == StorageOutcome::Ok(StorageValue::NotFound) {
                    *won_then = won;
                }
                let step = head.on_outcome(outcome);
                *request = head.retry();
                step
            }
            Doing::Swapping { swap, request, .. } => {
                let step = swap.on_outcome(outcome);
                *request = swap.retry();
                step
            }
            Doing::Resting | Doing::Knowing(_) => return,
        };
        match step {
            Step::Do(request) => {
                world.removed_stray |= matches!(request, StorageRequest::Remove(_));
            }
            Step::Wait | Step::Cleaned => {}
            Step::Head(read) => self.on_head(world, n, read),
            Step::Swapped(outcome) => self.on_swapped(world, n, &outcome),
        }
    }

    fn on_head(&self, world: &mut World, n: usize, read: Option<LockRecord>) {
        let host = &mut world.hosts[n];
        let Doing::Reading { won_then, .. } = host.doing else {
            return;
        };
        let Some(read) = read else {
            world.broken = Some(STALE_END);
            return;
        };
        // What no swap follows must be right; with all else, the swap that follows fails.
        let end = read.holder.is_none() && read.desired == Desired::Off;
        if end && read.generation.0 < won_then {
            world.broken = Some(STALE_END);
        }
        if read.generation < host.known {
            // An agent takes this for a datastore that went back, and does nothing there.
            host.doing = Doing::Resting;
            return;
        }
        host.known = read.generation;
        host.doing = Doing::Knowing(read);
    }

    fn on_swapped(&self, world: &mut World, n: usize, outcome: &SwapOutcome) {
        let host = &mut world.hosts[n];
        let doing = core::mem::replace(&mut host.doing, Doing::Resting);
        let Doing::Swapping { mut swap, from, .. } = doing else {
            return;
        };
        let made = swap.new_record().clone();
        if *outcome != SwapOutcome::Won {
            world.lost = true;
            return;
        }
        host.known = host.known.max(made.generation);
        let old = swap.take_old();
        let downwards = self.without == Without::CleanUpUpwards;
        if let Some((mut cleanup, request)) = Cleanup::begin(name(), old, downwards) {
            cleanup.ignore_doubt = self.without == Without::CleanUpStopsAtDoubt;
            host.cleaning = Some((cleanup, request));
        }
        host.doing = Doing::Knowing(made.clone());
        let newest = world.won.keys().next_back().copied().unwrap_or_default();
        let before = world.won.insert(made.generation.0, made.nonce.0);
        let parent = world.won.get(&from.0.0).copied();
        world.broken = if before.is_some_and(|nonce| nonce != made.nonce.0) {
            Some(TWICE)
        } else if parent.is_some_and(|nonce| nonce != from.1.0) {
            Some(FORK)
        } else if made.holder.is_some() && newest > made.generation.0 {
            Some(BEHIND)
        } else {
            None
        };
        let overtaken = !world.directory.contains_key(&from.0.0);
        world.taken_at_once |= made.holder.is_none() && overtaken;
        world.winners.insert(n);
        world.won_after_doubt |= world.unknown < self.unknown;
    }

    fn request(world: &World, n: usize) -> Option<&StorageRequest> {
        match &world.hosts[n].doing {
            Doing::Reading { request, .. } | Doing::Swapping { request, .. } => Some(request),
            Doing::Resting | Doing::Knowing(_) => None,
        }
    }

    /// Whether what was removed is the newest, or its predecessor. Not asked where another clause is taken away:
    /// there it is looked for what comes of it.
    fn removed(&self, before: &World, now: &World) -> bool {
        let asked = matches!(self.without, Without::Nothing | Without::LookForFollowers);
        let newest = before.directory.keys().next_back();
        let gone = |g: &&u64| !now.directory.contains_key(g);
        let mut removed = before.directory.keys().filter(gone);
        asked && removed.any(|g| newest.is_some_and(|newest| g + 1 >= *newest))
    }

    fn clean(world: &mut World, n: usize, outcome: &StorageOutcome) {
        let host = &mut world.hosts[n];
        world.cleaned = true;
        let Some((mut cleanup, _)) = host.cleaning.take() else {
            return;
        };
        if let Step::Do(request) = cleanup.on_outcome(outcome) {
            host.cleaning = Some((cleanup, request));
        }
    }
}

impl World {
    fn perform(&mut self, request: &StorageRequest) -> StorageValue {
        match request {
            StorageRequest::Read(key) => match self.directory.get(&generation(key)) {
                Some(bytes) => StorageValue::Bytes(bytes.clone()),
                None => StorageValue::NotFound,
            },
            StorageRequest::Link(key, bytes) => {
                if self.directory.contains_key(&generation(key)) {
                    return StorageValue::Exists;
                }
                self.directory.insert(generation(key), bytes.clone());
                StorageValue::Done
            }
            StorageRequest::Remove(key) => match self.directory.remove(&generation(key)) {
                Some(_) => StorageValue::Done,
                None => StorageValue::NotFound,
            },
            StorageRequest::ListVmLock(_) => {
                let all = self.directory.keys();
                StorageValue::Keys(all.map(|g| name().key(Generation(*g))).collect())
            }
            other => panic!("no operation on a lock: {other:?}"),
        }
    }

    fn postpone(&mut self, request: &StorageRequest) {
        self.late.insert(match request {
            StorageRequest::Link(key, bytes) => (generation(key), Some(bytes.clone())),
            StorageRequest::Remove(key) => (generation(key), None),
            other => panic!("a read does not land: {other:?}"),
        });
    }
}

const UNKNOWN: StorageOutcome = StorageOutcome::Unknown(IoFault::TimedOut);

impl Model for Chain {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let first = record(Generation(0), 1, None);
        let second = record(Generation(1), 2, Some(0));
        let host = Host {
            known: Generation(u64::from(self.held)),
            nonces: 0,
            doing: if self.held {
                Doing::Knowing(second.clone())
            } else {
                Doing::Resting
            },
            cleaning: None,
        };
        let both = [(first, stamp(9)), (second, stamp(0))];
        let there = both.iter().take(1 + usize::from(self.held));
        Vec::from([World {
            directory: there
                .clone()
                .map(|(r, by)| (r.generation.0, r.encode(CLUSTER, by)))
                .collect(),
            hosts: (0..self.hosts).map(|_| host.clone()).collect(),
            late: BTreeSet::new(),
            won: there.map(|(r, _)| (r.generation.0, r.nonce.0)).collect(),
            winners: BTreeSet::new(),
            swaps: self.swaps,
            unknown: self.unknown,
            doubled: self.doubled,
            doubtful: self.doubtful,
            deaths: self.deaths,
            damaged: self.damaged,
            removed_stray: false,
            won_after_doubt: false,
            taken_at_once: false,
            cleaned: false,
            lost: false,
            broken: None,
        }])
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_some() {
            return;
        }
        for (n, host) in world.hosts.iter().enumerate() {
            match &host.doing {
                Doing::Resting if world.swaps > 0 => actions.push(Action::Read(n)),
                Doing::Knowing(record) if world.swaps > 0 => {
                    actions.push(Action::Take(n));
                    if record.holder.as_ref().is_some_and(|h| h.host == id(n)) {
                        actions.push(Action::GiveBack(n));
                    } else {
                        actions.push(Action::Read(n));
                    }
                }
                Doing::Resting | Doing::Knowing(_) => {}
                Doing::Reading { request, .. } => {
                    actions.push(Action::Do(n));
                    if world.damaged > 0 && matches!(request, StorageRequest::Read(_)) {
                        actions.push(Action::DoDamaged(n));
                    }
                }
                Doing::Swapping { request, .. } => {
                    actions.push(Action::Do(n));
                    if matches!(request, StorageRequest::Link(..)) {
                        if world.unknown > 0 {
                            actions.extend([Action::DoUnknown(n), Action::DoLate(n)]);
                        }
                        if world.doubled > 0 {
                            actions.push(Action::DoTwice(n));
                        }
                    }
                }
            }
            if host.cleaning.is_some() {
                actions.push(Action::Clean(n));
                if world.doubtful > 0 {
                    actions.extend([Action::CleanUnknown(n), Action::CleanLate(n)]);
                }
            }
            if world.deaths > 0 {
                actions.push(Action::Die(n));
            }
        }
        actions.extend((0..world.late.len()).map(Action::Land));
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        match action {
            Action::Read(n) => self.read(&mut world, n),
            Action::Take(n) | Action::GiveBack(n) => {
                let Doing::Knowing(from) = world.hosts[n].doing.clone() else {
                    return None;
                };
                let holder = matches!(action, Action::Take(_)).then_some(n);
                self.swap(&mut world, n, &from, holder);
            }
            Action::Do(n) | Action::DoTwice(n) | Action::DoUnknown(n) => {
                let request = Self::request(before, n)?;
                let value = world.perform(request);
                let outcome = match action {
                    Action::DoUnknown(_) => {
                        world.unknown -= 1;
                        UNKNOWN
                    }
                    Action::DoTwice(_) => {
                        world.doubled -= 1;
                        world.postpone(request);
                        StorageOutcome::Ok(value)
                    }
                    _ => StorageOutcome::Ok(value),
                };
                self.feed(&mut world, n, &outcome);
            }
            Action::DoDamaged(n) => {
                world.damaged -= 1;
                let mut value = world.perform(Self::request(before, n)?);
                let StorageValue::Bytes(bytes) = &mut value else {
                    return None;
                };
                bytes.truncate(bytes.len() / 2);
                let won = world.won.keys().next_back().copied();
                if let Doing::Reading { won_then, .. } = &mut world.hosts[n].doing {
                    *won_then = won.unwrap_or_default();
                }
                self.feed(&mut world, n, &StorageOutcome::Ok(value));
            }
            Action::DoLate(n) => {
                world.unknown -= 1;
                world.postpone(Self::request(before, n)?);
                self.feed(&mut world, n, &UNKNOWN);
            }
            Action::Clean(n) => {
                let value = world.perform(&before.hosts[n].cleaning.as_ref()?.1);
                Self::clean(&mut world, n, &StorageOutcome::Ok(value));
            }
            Action::CleanUnknown(n) => {
                world.doubtful -= 1;
                world.perform(&before.hosts[n].cleaning.as_ref()?.1);
                Self::clean(&mut world, n, &UNKNOWN);
            }
            Action::CleanLate(n) => {
                world.doubtful -= 1;
                world.postpone(&before.hosts[n].cleaning.as_ref()?.1);
                Self::clean(&mut world, n, &UNKNOWN);
            }
            Action::Die(n) => {
                world.deaths -= 1;
                let under_way = Self::request(before, n);
                let writes = |r: &&StorageRequest| {
                    matches!(r, StorageRequest::Link(..) | StorageRequest::Remove(_))
                };
                if let Some(request) = under_way.filter(writes) {
                    world.postpone(request);
                }
                if let Some((_, request)) = &before.hosts[n].cleaning {
                    world.postpone(request);
                }
                world.hosts[n].doing = Doing::Resting;
                world.hosts[n].cleaning = None;
            }
            Action::Land(at) => {
                let landing = world.late.iter().nth(at)?.clone();
                world.late.remove(&landing);
                let key = name().key(Generation(landing.0));
                world.perform(&match landing.1 {
                    Some(bytes) => StorageRequest::Link(key, bytes),
                    None => StorageRequest::Remove(key),
                });
            }
        }
        if self.removed(before, &world) {
            world.broken = Some(REMOVED);
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        // As many as can.
        let all = |m: &Self, w: &World| w.winners.len() == m.hosts.min(usize::from(m.swaps));
        let doubt = |m: &Self, w: &World| m.unknown == 0 || w.won_after_doubt;
        Vec::from([
            Property::always(TWICE, |_, w: &World| w.broken != Some(TWICE)),
            Property::always(FORK, |_, w: &World| w.broken != Some(FORK)),
            Property::always(BEHIND, |_, w: &World| w.broken != Some(BEHIND)),
            Property::always(STALE_END, |_, w: &World| w.broken != Some(STALE_END)),
            Property::always(REMOVED, |_, w: &World| w.broken != Some(REMOVED)),
            Property::sometimes("each host wins", all),
            Property::sometimes("a swap is lost", |_, w: &World| w.lost),
            // Three more swaps must overtake the one whose link is behind the head.
            Property::sometimes("a stray is removed", |m: &Self, w: &World| {
                m.swaps < 4 || w.removed_stray
            }),
            Property::sometimes("old generations are removed", |_, w: &World| w.cleaned),
            Property::sometimes("a swap is won after a doubt", doubt),
            Property::sometimes(
                "a lock is taken before it is seen to be free",
                |_, w: &World| w.taken_at_once,
            ),
        ])
    }
}

fn small() -> Chain {
    Chain {
        hosts: 2,
        swaps: 3,
        unknown: 0,
        doubled: 0,
        doubtful: 0,
        deaths: 0,
        damaged: 0,
        without: Without::Nothing,
        held: false,
    }
}

fn held() -> Chain {
    Chain {
        held: true,
        ..small()
    }
}

fn name_of(c: &Chain) -> String {
    let mut name = format!("{} hosts, {} swaps", c.hosts, c.swaps);
    let counts = [
        (c.unknown, "unknown"),
        (c.doubled, "doubled"),
        (c.doubtful, "doubtful"),
        (c.deaths, "deaths"),
        (c.damaged, "damaged"),
    ];
    for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
        name += &format!(", {count} {what}");
    }
    name
}

/// What must hold, and what must be found when it is taken away.
pub(super) fn cases(bound: u32) -> Vec<Case> {
    let more = u8::try_from(bound.saturating_sub(1)).unwrap_or(u8::MAX);
    let swaps = 3 + more;
    let base = Chain { swaps, ..small() };
    let mut cases: Vec<Case> = [
        Chain {
            unknown: 1,
            swaps,
            ..held()
        },
        Chain {
            swaps: 1 + swaps,
            ..small()
        },
        Chain {
            doubled: 1,
            ..base.clone()
        },
        Chain {
            doubtful: 1,
            damaged: 1,
            ..base.clone()
        },
        Chain {
            deaths: 1,
            ..base.clone()
        },
        Chain {
            hosts: 3,
            swaps: 2 + more,
            ..held()
        },
    ]
    .into_iter()
    .map(|chain| Case::new("chain", name_of(&chain), Expect::Holds, chain))
    .collect();
    let without = |without: Without, name: &str, clause: &'static str, chain: Chain| Case {
        clause,
        ..Case::new(
            "chain",
            String::from(name),
            Expect::Breaks,
            Chain { without, ..chain },
        )
    };
    let four = Chain {
        swaps: 4,
        ..small()
    };
    let four_held = Chain { swaps: 4, ..held() };
    cases.extend([
        without(
            Without::PredecessorCheck,
            "NoPredecessorCheck",
            "a link is won only if its predecessor is still there (H11)",
            Chain {
                unknown: 1,
                ..four.clone()
            },
        ),
        without(
            Without::HeadCheck,
            "NoHeadCheck",
            "a link is won only if nothing is above it (H11)",
            Chain {
                unknown: 1,
                ..four.clone()
            },
        ),
        without(
            Without::Doubt,
            "UnknownIsWon",
            "a swap of unknown outcome is neither won nor lost",
            Chain {
                unknown: 1,
                ..four.clone()
            },
        ),
        without(
            Without::OwnNonce,
            "ForeignLinkIsOwn",
            "a link is the own one only if its nonce is",
            four.clone(),
        ),
        without(
            Without::Confirmation,
            "EndNotConfirmed",
            "a lock that is free and off is read once more before it is believed",
            four.clone(),
        ),
        without(
            Without::DamageSeen,
            "DamagedIsAbsent",
            "a damaged record hides what it holds",
            Chain {
                damaged: 1,
                ..small()
            },
        ),
        without(
            Without::CleanUpUpwards,
            "CleanUpDownwards",
            "old generations are removed from the lowest upwards (H11)",
            Chain {
                deaths: 1,
                ..four_held.clone()
            },
        ),
        without(
            Without::CleanUpStopsAtDoubt,
            "CleanUpGoesOn",
            "a clean-up ends at the first removal in doubt (H11)",
            Chain {
                doubtful: 1,
                deaths: 1,
                ..four_held
            },
        ),
        without(
            Without::KeptPredecessor,
            "PredecessorRemoved",
            "the newest generation and its predecessor are never removed (H11)",
            Chain {
                unknown: 1,
                ..four.clone()
            },
        ),
        without(
            Without::LookForFollowers,
            "FollowedRemoved",
            "a generation that another follows is removed by a clean-up alone (H11)",
            held(),
        ),
        Case {
            expect: Expect::NotFound(
                "the head is listed, and who remembers a stray looks for its predecessor",
            ),
            ..without(
                Without::StrayRemoval,
                "a stray is left",
                "a link behind the head is removed (H11)",
                four,
            )
        },
    ]);
    cases
}

#[test]
fn a_chain_is_a_register_and_each_clause_is_needed() {
    run_all(cases(1));
}
