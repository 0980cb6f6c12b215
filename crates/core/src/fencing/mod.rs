//! Power fencing: a host's death proven by its fence device, beside the proof by its lapsed right to run
//! (`docs/protocol.md`, "Fencing").
//!
//! ```text
//!   wanted ─▶ power? ──on──▶ told to switch off ─▶ power? ──off──▶ no sign of life since? ──▶ confirmed
//!               │ off                                │ on, unknown: asked again          │ signs
//!               └────────────────────────────────────┼───────────────▶                  ▼
//!                                                    └── until `fence_timeout` ──────▶ failed, tried again later
//! ```
//! The device's word that it did what it was told proves nothing; only the power's status does, and only about
//! what was locked before it was asked for. A host that gives signs of life after its device has called it off
//! was not switched off: another machine was.
//!
//! Never here: a break of a lock. What is proven here is looked at where locks are broken (`restart`).

mod attempt;
mod check;
mod policy;
mod proof;
#[cfg(test)]
mod tests;

use crate::agent::{Agent, Pending};
use crate::id::{DatastoreId, HostId, OpId};
use crate::io::{FenceRequest, Output};
use crate::time::{Duration, Instant};
use alloc::collections::{BTreeMap, BTreeSet};

/// What this agent knows of other hosts' power.
#[derive(Clone, Hash, Debug, Default)]
pub(crate) struct Fencing {
    /// The hosts whose fence devices this host can ask.
    devices: BTreeSet<HostId>,
    hosts: BTreeMap<HostId, Fence>,
    /// The device that was last looked at while all was well, and when the next is.
    checked: Option<(HostId, Instant)>,
}

/// The power of one host.
#[derive(Clone, Hash, Debug, Default)]
struct Fence {
    stage: Stage,
    /// The answer that is waited for.
    op: Option<OpId>,
    /// Since when it is to be switched off, without a gap.
    wanted_since: Option<Instant>,
    /// The next attempt begins no earlier.
    not_before: Option<Instant>,
    /// It was off, for certain.
    off: Option<PowerOff>,
    /// It is to be given its power back, and has not been yet.
    on_again: bool,
    /// When its device was last asked in vain: with its host, it may have been without power.
    silent: bool,
}

/// That a host was off at some moment between two.
#[derive(Clone, Copy, Hash, Debug)]
struct PowerOff {
    /// When its power's status was asked for: what it had locked by then ended with its power.
    issued: Instant,
    /// When the first answer came that called it off.
    done: Instant,
    /// It has been called on since.
    over: bool,
}

/// Where an attempt to prove a host's death by its power stands.
#[derive(Clone, Hash, Debug, Default)]
enum Stage {
    /// There is none.
    #[default]
    Idle,
    /// Its device was asked for its power, before it is told anything.
    Asked { began: Instant },
    /// It was off when it was last asked; asked again, for a lock that was read since.
    AskedAgain { began: Instant },
    /// Its device was told to switch it off.
    Switching { began: Instant },
    /// Its device is asked for its power, or will be then, until it calls it off.
    Confirming {
        began: Instant,
        next: Instant,
        until: Instant,
    },
    /// It was off; a sign of life from now on would show that something else was.
    Settling {
        began: Instant,
        off: PowerOff,
        signs: Signs,
    },
    /// Its device is looked at while all is well.
    Checked { issued: Instant },
    /// Its device calls it off although it is live: heard of again after this, something else is meant.
    Doubted { since: Instant },
}

impl Stage {
    /// When the attempt began that is under way.
    fn began(&self) -> Option<Instant> {
        match self {
            Self::Asked { began }
            | Self::AskedAgain { began }
            | Self::Switching { began }
            | Self::Confirming { began, .. }
            | Self::Settling { began, .. } => Some(*began),
            Self::Idle | Self::Checked { .. } | Self::Doubted { .. } => None,
        }
    }
}

/// What was seen of a host since its device called it off.
#[derive(Clone, Hash, Debug, Default)]
struct Signs {
    /// The first change of its heartbeat on each datastore. One write may have been on its way when the power
    /// went; a second one may not.
    first: BTreeMap<DatastoreId, Instant>,
}

impl Agent {
    /// Names the hosts whose fence devices this host can ask, as the shell's configuration says.
    pub fn set_fence_devices(&mut self, devices: BTreeSet<HostId>) {
        self.fencing.hosts.retain(|host, _| devices.contains(host));
        self.fencing.devices = devices;
        self.say_missing_devices();
    }

    /// The hosts whose fence devices this host can ask.
    #[must_use]
    pub fn fence_devices(&self) -> &BTreeSet<HostId> {
        &self.fencing.devices
    }

    /// Time without a sign of life after which a host that its device calls off is: a live one would have sent
    /// two heartbeats of each kind, and been pinged.
    fn fence_settles(&self) -> Duration {
        let t = self.timing();
        2 * t.network_heartbeat.max(t.datastore_heartbeat)
    }

    /// Asks a host's device.
    fn ask_device(&mut self, host: &HostId, request: FenceRequest) {
        let op = self.op(Pending::Fence {
            host: host.clone(),
            issued: self.now,
        });
        self.fence_mut(host).op = Some(op);
        self.out.push_back(Output::Fence(op, host.clone(), request));
    }

    fn fence_mut(&mut self, host: &HostId) -> &mut Fence {
        self.fencing.hosts.entry(host.clone()).or_default()
    }

    /// A device's answer, or the end of a pause, that is waited for.
    pub(crate) fn fencing_due(&self) -> Option<Instant> {
        if !self.role.is_primary() {
            return None;
        }
        let settles = self.fence_settles();
        let due = |fence: &Fence| match &fence.stage {
            Stage::Confirming { next, .. } if fence.op.is_none() => Some(*next),
            Stage::Settling { off, signs, .. } => Some(signs.quiet_from(off) + settles),
            _ => None,
        };
        let due = self.fencing.hosts.values().filter_map(due);
        due.filter(|at| *at > self.now).min()
    }
}
