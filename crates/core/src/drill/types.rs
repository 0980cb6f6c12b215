//! What is said of a drill: the forecast before it, marks while it runs, how far it is, and the messages
//! between agents that carry all of it.
//!
//! Times are counted from the beginning of the silence, by the clock of the host that tells them: what two
//! hosts tell differs by the time that a message takes, and by nothing else.

use crate::event::{HostState, StopReason};
use crate::id::{HostId, VmId};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What would happen if a host was lost now. A forecast: what changes until then, or goes wrong in the
/// middle, is not in it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Forecast {
    /// The host.
    pub host: HostId,
    /// The primary, which made the forecast.
    pub primary: HostId,
    /// The host is the primary: who would be elected in its place, if there is anybody.
    pub successor: Option<HostId>,
    /// Timing profile.
    pub profile: String,
    /// Its VMs are frozen at the latest then, in milliseconds after the loss.
    pub frozen_ms: u64,
    /// Another host is the primary at the earliest then, in milliseconds after the loss; 0 where the primary stays.
    pub elected_ms: u64,
    /// The verdict about the host comes at the earliest then, in milliseconds after the loss.
    pub verdict_ms: u64,
    /// A lock of it is broken at the earliest then, in milliseconds after the loss.
    pub lock_ms: u64,
    /// All times may be later by so much, in milliseconds: heartbeats are counted whole.
    pub later_by_ms: u64,
    /// Its VMs: those that are restarted, in that order, and then the others.
    pub vms: Vec<Foreseen>,
    /// Every VM that should be restarted has a host that takes it.
    pub all_come_back: bool,
    /// What is weaker than it should be now, with remedies.
    pub weaknesses: Vec<String>,
    /// Why a drill would be refused now.
    pub obstacles: Vec<Obstacle>,
    /// How long a drill lasts when nothing else is said, in milliseconds.
    pub time_ms: u64,
    /// The least and the most that may be said, in milliseconds.
    pub bounds_ms: (u64, u64),
}

/// What would become of one VM.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Foreseen {
    /// The VM.
    pub vm: VmId,
    /// It is on the protected list on disk.
    pub protected: bool,
    /// Its home datastore refuses late writes (fence class `enforced`).
    pub enforced: bool,
    /// What would become of it.
    pub outcome: Outcome,
}

/// What would become of a VM.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It would be restarted.
    Restarted {
        /// There.
        host: HostId,
        /// Asked for at the earliest then, in milliseconds after the loss.
        asked_ms: u64,
        /// Counted from 1: those of the second are asked for when some of the first run.
        wave: u32,
        /// Why there.
        why: String,
    },
    /// Nobody means it to be restarted: it is not protected, or its restart priority is disabled.
    Left {
        /// Which of the two.
        why: String,
    },
    /// It should be restarted, and would not be as things are.
    Stuck {
        /// Why, and what helps.
        why: String,
    },
}

/// Why a drill is refused.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Obstacle {
    /// What is in the way, and what to do about it.
    pub why: String,
    /// The one who asks may insist.
    pub may_insist: bool,
}

/// Something that happened in a drill.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// When, in milliseconds after the silence began, by the clock of the host that tells it.
    pub at_ms: u64,
    /// What.
    pub what: Marked,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Marked {
    /// A VM's right to run lapsed on the silent host, and its guard froze it.
    Frozen {
        /// The VM.
        vm: VmId,
    },
    /// The primary's verdict about the silent host changed.
    Verdict {
        /// What it is now.
        state: HostState,
    },
    /// Another host became the primary.
    Elected {
        /// That host.
        host: HostId,
    },
    /// The primary asked a host to start a VM.
    Asked {
        /// The VM.
        vm: VmId,
        /// The host.
        host: HostId,
    },
    /// A restart waits.
    Waits {
        /// The VM.
        vm: VmId,
        /// For what.
        why: String,
    },
    /// A host broke a VM's lock.
    Broken {
        /// The VM.
        vm: VmId,
        /// The new holder.
        host: HostId,
    },
    /// A VM runs.
    Started {
        /// The VM.
        vm: VmId,
        /// There.
        host: HostId,
    },
    /// A host could not start a VM.
    Failed {
        /// The VM.
        vm: VmId,
        /// Why.
        why: String,
    },
    /// A VM that nobody took runs on where it was.
    Thawed {
        /// The VM.
        vm: VmId,
        /// There.
        host: HostId,
    },
    /// A VM's process is gone.
    Stopped {
        /// The VM.
        vm: VmId,
        /// There.
        host: HostId,
        /// Why.
        reason: StopReason,
    },
}

impl Marked {
    /// The VM that it is about.
    #[must_use]
    pub fn vm(&self) -> Option<&VmId> {
        match self {
            Self::Frozen { vm }
            | Self::Asked { vm, .. }
            | Self::Waits { vm, .. }
            | Self::Broken { vm, .. }
            | Self::Started { vm, .. }
            | Self::Failed { vm, .. }
            | Self::Thawed { vm, .. }
            | Self::Stopped { vm, .. } => Some(vm),
            Self::Verdict { .. } | Self::Elected { .. } => None,
        }
    }
}

/// How far a drill is, as one agent knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// The host.
    pub host: HostId,
    /// It has been silent for so long, or was, in milliseconds.
    pub for_ms: u64,
    /// Why it is over, once it is.
    pub ended: Option<String>,
    /// What hosts told, each in the order in which it happened there.
    pub told: Vec<Told>,
    /// The drill is over, and every host that told anything has told what came after.
    pub complete: bool,
}

/// What one host told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Told {
    /// That host.
    pub by: HostId,
    /// What.
    pub marks: Vec<Mark>,
}

/// The answer to what was asked about a drill.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// What would happen.
    Forecast(Box<Forecast>),
    /// The host has fallen silent, for so many milliseconds at the longest.
    Begun {
        /// That time.
        time_ms: u64,
    },
}

/// What agents say to each other of drills.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum DrillMessage {
    /// To the primary: what would happen if that host was lost?
    Plan {
        /// Tells this request from every other of the sender.
        ticket: u64,
        /// The host.
        host: HostId,
    },
    /// What would happen, or why that cannot be said.
    Forecast {
        /// The request's.
        ticket: u64,
        /// The forecast.
        forecast: Result<Box<Forecast>, String>,
    },
    /// To the primary: let that host fall silent.
    Run {
        /// Tells this request from every other of the sender.
        ticket: u64,
        /// The host.
        host: HostId,
        /// For so long, in milliseconds; none: as long as the forecast says.
        time_ms: Option<u64>,
        /// Whatever may be insisted on is insisted on.
        insists: bool,
    },
    /// It does not; why.
    Refused {
        /// The request's.
        ticket: u64,
        /// Why, and what to do.
        why: String,
    },
    /// From the primary to the host: fall silent.
    Begin {
        /// Who asked.
        asker: HostId,
        /// Its ticket.
        ticket: u64,
        /// For so long, in milliseconds.
        time_ms: u64,
    },
    /// From the host to all, by datagram: from now on I say nothing.
    Begun {
        /// Tells this drill from every other of the host.
        drill: u64,
        /// For so long at the longest, in milliseconds.
        time_ms: u64,
    },
    /// To the host, by datagram: come back.
    End,
    /// From the host to all, by datagram: I am back.
    Ended {
        /// The drill's.
        drill: u64,
        /// Why.
        why: String,
    },
    /// What happened since that host fell silent? By datagram.
    MarksWanted {
        /// The host.
        host: HostId,
        /// So many marks are known already.
        known: u32,
    },
    /// What happened.
    Marks {
        /// The host that is or was silent.
        host: HostId,
        /// So many came before these.
        after: u32,
        /// What happened next.
        marks: Vec<Mark>,
    },
}
