//! The properties that every run is judged by, one file each. They are fed with facts of the world
//! (the process table, the virtual disks, the records on the simulated datastores, effects that were
//! issued) and never with an agent's opinion of itself.

mod l1_one_primary;
mod l2_restarted;
mod l3_retries_end;
mod l4_protected;
mod s1_single_runner;
mod s1b_no_late_write;
mod s2_single_owner;
mod s3_intent;
mod s4_mandatory_rules;
mod s5_nothing_acknowledged_lost;
mod s6_stated_cause;
mod s7_streams;
mod s8_nothing_left;
mod s9_switched_off;

use crate::clock::Nanos;
use mainstay_core::event::{EventKind, StopReason};
use mainstay_core::id::Generation;
use mainstay_core::io::ExitCause;
use mainstay_core::wire::{Envelope, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// An instance that executes instructions at this moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Runner {
    pub(crate) host: usize,
    pub(crate) instance: usize,
    pub(crate) generation: Generation,
    /// Its host's guard works and has had its time; its host's clock is within the bound.
    pub(crate) guarded: bool,
    /// The storage would take its writes.
    pub(crate) can_write: bool,
}

/// Why a process was killed, as far as the world can confirm a cause.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct KillCause {
    /// No instruction of it was executed yet.
    pub(crate) never_ran: bool,
    /// Its user asked for it.
    pub(crate) user: bool,
    /// The disk shows a newer generation of its lock than the one that it runs under.
    pub(crate) lock_moved: bool,
    /// Its isolated host had said that it switches it off.
    pub(crate) isolated: bool,
    /// Its host had said that it stops it because its storage is lost there.
    pub(crate) storage: bool,
    /// It had been frozen for as long as the setting allows.
    pub(crate) frozen_limit: bool,
    /// It was being shut down by its own guest.
    pub(crate) guest: bool,
    /// Its host was being shut down by its admin.
    pub(crate) host_leaves: bool,
}

/// Something that is the case, seen by the world.
#[derive(Clone, Debug)]
pub(crate) enum Fact<'a> {
    /// More than one instance of a VM executes.
    Runners { vm: usize, runners: &'a [Runner] },
    /// An instance executes its first instruction, or its first under a new generation. `newest` is
    /// the newest generation of its lock on disk; `excused`: its host or guard had just been paused.
    Runs {
        vm: usize,
        host: usize,
        instance: usize,
        generation: Generation,
        newest: Generation,
        excused: bool,
        first: bool,
    },
    /// A guest's write reached the disk. `fenced`: the disk is bound to refuse late ones.
    WriteLanded {
        vm: usize,
        instance: usize,
        generation: Generation,
        fenced: bool,
    },
    /// A host acted as a datastore's owner under this generation of the owner lock.
    OwnerActs {
        host: usize,
        datastore: usize,
        generation: Option<Generation>,
        what: &'static str,
    },
    /// The newest generation of a VM's lock says whether the VM should run; `cause`: its user or its guest has
    /// switched it off since it last started.
    Desired { vm: usize, on: bool, cause: bool },
    /// A user's wish was accepted.
    Wish { vm: usize, on: bool },
    /// An agent said that a VM stopped. How its process ended there, and which causes the world knows: its
    /// user switched it off, its isolated host stops it, its host is shut down.
    Stopped {
        vm: usize,
        host: usize,
        reason: StopReason,
        exit: Option<ExitCause>,
        user: bool,
        isolated: bool,
        storage: bool,
        host_leaves: bool,
    },
    /// A host said that it stops a VM because its storage is lost there; `wrong`: what speaks against that.
    StorageResponse {
        vm: usize,
        host: usize,
        wrong: Option<String>,
    },
    /// An HA placement was carried out; `broken` names a mandatory rule that it breaks.
    Placed {
        vm: usize,
        host: usize,
        broken: Option<String>,
    },
    /// A protected list can be read: the newest one of a datastore, with its VMs.
    List {
        datastore: usize,
        vms: &'a BTreeSet<usize>,
    },
    /// The newest version of the configuration that is on its home datastore.
    ConfigOnDisk { version: u64 },
    /// A change of the configuration was acknowledged: it is in this version.
    ConfigAcknowledged { version: u64 },
    /// A VM was reported protected, or no longer.
    Protected {
        vm: usize,
        datastore: usize,
        yes: bool,
    },
    /// The guard froze a VM; `lapsed`: its deadline had passed on its host's clock.
    Frozen {
        vm: usize,
        host: usize,
        lapsed: bool,
    },
    /// An instance executes again under the generation that had lapsed.
    LapsedRuns {
        vm: usize,
        host: usize,
        generation: Generation,
    },
    /// A process was killed.
    Killed {
        vm: usize,
        host: usize,
        cause: KillCause,
    },
    /// A host declared itself isolated; for so long nothing had reached it.
    Isolated {
        host: usize,
        silent: Nanos,
        least: Nanos,
    },
    /// An isolated host stops a VM; `helps`: another host holds the lock of its datastore's owner; `wrong`: what
    /// speaks against it in its agent's configuration.
    Response {
        vm: usize,
        host: usize,
        helps: bool,
        wrong: Option<&'static str>,
    },
    /// An agent asks a guest to shut down; `cause`: the host has said that this is its response to its isolation,
    /// or its admin shuts it down.
    AskedDown { vm: usize, host: usize, cause: bool },
    /// A host is about to write on a datastore that it has a VM no longer; `left`: a process that has
    /// executed is there yet.
    GivenUp {
        vm: usize,
        host: usize,
        what: &'static str,
        left: bool,
    },
    /// An agent puts a message on its stream to another.
    StreamSent {
        from: usize,
        to: usize,
        envelope: &'a Envelope,
    },
    /// A message that came on a stream was given to the part of the agent that it is for.
    StreamHanded {
        from: usize,
        to: usize,
        session: SessionId,
        number: u64,
    },
    /// An event of an agent, which allows so many retries at that time.
    Said {
        event: &'a EventKind,
        vm: Option<usize>,
        retries: u32,
    },
    /// Liveness is demanded now: connected groups of working hosts, with the primaries in each.
    Groups {
        groups: &'a [(Vec<usize>, Vec<usize>)],
    },
    /// Liveness is demanded now: a protected VM that should run and could; `runs`: it does.
    ShouldRun { vm: usize, runs: bool, why: &'a str },
    /// Liveness is demanded now: a VM that runs where the owner of its datastore can see it; `listed`: it is
    /// on the list that a new owner would go by.
    ShouldBeListed { vm: usize, listed: bool },
}

/// A property that did not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Its short name: `S1`, `L2`, ...
    pub property: &'static str,
    /// The sentence that it defends.
    pub sentence: &'static str,
    /// True time since the start of the world.
    pub at: Nanos,
    /// What was seen.
    pub what: String,
}

/// Names for messages.
#[derive(Clone, Debug, Default)]
pub(crate) struct Labels {
    pub(crate) hosts: Vec<String>,
    pub(crate) vms: Vec<String>,
    pub(crate) datastores: Vec<String>,
}

impl Labels {
    pub(crate) fn host(&self, index: usize) -> &str {
        self.hosts.get(index).map_or("?", String::as_str)
    }
    pub(crate) fn vm(&self, index: usize) -> &str {
        self.vms.get(index).map_or("?", String::as_str)
    }
    pub(crate) fn datastore(&self, index: usize) -> &str {
        self.datastores.get(index).map_or("?", String::as_str)
    }
}

/// One property.
trait Invariant: std::fmt::Debug + Send {
    fn name(&self) -> &'static str;
    fn sentence(&self) -> &'static str;
    /// Takes a fact; a text says how the property is broken.
    fn observe(&mut self, at: Nanos, fact: &Fact<'_>, labels: &Labels) -> Option<String>;
}

/// All properties of one run.
#[derive(Debug)]
pub(crate) struct Judge {
    properties: Vec<Box<dyn Invariant>>,
    labels: Labels,
    pub(crate) violations: Vec<Violation>,
}

impl Judge {
    pub(crate) fn new(labels: Labels) -> Self {
        let properties: Vec<Box<dyn Invariant>> = vec![
            Box::<s1_single_runner::SingleRunner>::default(),
            Box::<s1b_no_late_write::NoLateWrite>::default(),
            Box::<s2_single_owner::SingleOwner>::default(),
            Box::<s3_intent::Intent>::default(),
            Box::<s4_mandatory_rules::MandatoryRules>::default(),
            Box::<s5_nothing_acknowledged_lost::NothingLost>::default(),
            Box::<s6_stated_cause::StatedCause>::default(),
            Box::<s7_streams::Streams>::default(),
            Box::<s8_nothing_left::NothingLeft>::default(),
            Box::<s9_switched_off::SwitchedOff>::default(),
            Box::<l1_one_primary::OnePrimary>::default(),
            Box::<l2_restarted::Restarted>::default(),
            Box::<l3_retries_end::RetriesEnd>::default(),
            Box::<l4_protected::Protected>::default(),
        ];
        Self {
            properties,
            labels,
            violations: Vec::new(),
        }
    }

    pub(crate) fn observe(&mut self, at: Nanos, fact: &Fact<'_>) {
        for property in &mut self.properties {
            if let Some(what) = property.observe(at, fact, &self.labels) {
                // One violation of a kind is enough for a run; the rest follows from it.
                if self
                    .violations
                    .iter()
                    .any(|v| v.property == property.name())
                {
                    continue;
                }
                let (property, sentence) = (property.name(), property.sentence());
                self.violations.push(Violation {
                    property,
                    sentence,
                    at,
                    what,
                });
            }
        }
    }
}

/// A map from a VM to what is known of it.
type PerVm<T> = BTreeMap<usize, T>;

#[cfg(test)]
mod testing {
    use super::*;

    pub(super) fn labels() -> Labels {
        let named = |stem: &str| (1..=4).map(|n| format!("{stem}-{n}")).collect();
        Labels {
            hosts: named("host"),
            vms: named("vm"),
            datastores: named("ds"),
        }
    }

    /// Feeds facts one second apart and gives the first complaint.
    pub(super) fn feed(property: &mut dyn Invariant, facts: &[Fact<'_>]) -> Option<String> {
        let mut at = 0;
        facts.iter().find_map(|fact| {
            at += crate::clock::SECOND;
            property.observe(at, fact, &labels())
        })
    }
}
