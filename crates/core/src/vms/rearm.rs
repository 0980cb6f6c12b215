//! Longer rights to run for a planned restart of agent or guard, and back again (safety rule H18).
//!
//! The constants belong to a lock's generation, so that a VM moves to others by a swap to its next
//! generation: its right is given up, it is frozen for the moment that the swap takes, and thawed under
//! what it won. Raised: swapped first, then used. Lowered: used first, then swapped.

use crate::agent::{Agent, planted};
use crate::event::{AbdicationCause, ElectionCause, EventKind};
use crate::id::{Generation, VmId};
use crate::io::{Channel, GuardRequest};
use crate::time::{Duration, Instant};
use crate::wire::Message;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Phase;

/// VMs that are moved at once, so that few are paused at a time.
const AT_ONCE: usize = 4;
/// A restart that was announced and did not come within this is called off.
const CALLED_OFF: Duration = Duration::from_secs(300);

impl Agent {
    /// `freeze` and `break` for generations that are made now.
    pub(crate) fn constants(&self) -> (Duration, Duration) {
        let t = self.timing();
        if self.planned.is_none() {
            return (t.freeze, t.r#break);
        }
        let freeze = self.config.settings.planned_restart.max(t.freeze);
        // Three times the drift covers both clocks; a second covers the rounding of milliseconds.
        let drift = freeze * t.clock_drift_ppm / 1_000_000 * 3;
        let least = freeze + drift + t.guard_latency + Duration::from_secs(1);
        (freeze, least.max(t.r#break))
    }

    /// Before anything is decided under constants that have become shorter, the rights that were
    /// renewed under the longer ones are.
    pub(crate) fn shorten_rights(&mut self) {
        let (freeze, _) = self.constants();
        if freeze < self.freeze_in_use && !planted!(self, LongerRightKept) {
            for store in self.stores.values_mut() {
                store.right.shorten(freeze);
            }
        }
        self.freeze_in_use = freeze;
    }

    pub(crate) fn prepare_restart(&mut self) {
        let first = self.planned.is_none();
        // From here on this host is no candidate.
        self.planned = Some(self.now + CALLED_OFF);
        if first {
            let host = self.me.host.clone();
            let why = String::from(
                "agent or guard are restarted on purpose: the VMs here move to longer rights to run",
            );
            self.emit(EventKind::RestartPlanned { host }, why);
            self.step_down(
                AbdicationCause::PlannedRestart,
                "this agent is restarted on purpose",
            );
        }
    }

    /// All VMs here may run for long enough without this agent.
    #[must_use]
    pub fn may_be_restarted(&self, now: Instant) -> bool {
        let (freeze, _) = self.constants();
        let enough = freeze / 5 * 4;
        let covered = |v: &super::LocalVm| match &v.phase {
            Phase::Running { record } => {
                let right = self
                    .stores
                    .get(&v.spec.datastore)
                    .and_then(|s| s.right.deadline());
                record.freeze >= freeze && right.is_some_and(|d| now + enough < d)
            }
            _ => false,
        };
        self.planned.is_some() && self.vms.values().all(covered) && self.gives_nothing_back()
    }

    /// The time for which this agent and its guard may be away now without a VM being frozen.
    #[must_use]
    pub fn may_be_away(&self, now: Instant) -> Duration {
        let left = |v: &super::LocalVm| {
            let store = self.stores.get(&v.spec.datastore);
            store
                .and_then(|s| s.right.deadline())
                .map_or(Duration::ZERO, |d| d.since(now))
        };
        let longest = self.constants().0;
        self.vms.values().map(left).min().unwrap_or(longest)
    }

    /// Moves a few VMs whose generation has other constants than are wanted.
    pub(crate) fn run_rearm(&mut self) {
        let now = self.now;
        if self.planned.is_some_and(|until| now >= until) {
            self.planned = None;
        }
        let (freeze, r#break) = self.constants();
        let settled = 4 * self.timing().datastore_heartbeat;
        let mut other: Vec<(VmId, Generation)> = self
            .vms
            .values()
            .filter_map(|v| match &v.phase {
                Phase::Running { record } if record.freeze < freeze || record.r#break > r#break => {
                    Some((v, record.generation))
                }
                _ => None,
            })
            .filter(|(v, _)| v.stop.is_none() && now.since(v.since) >= settled)
            .filter(|(v, _)| {
                self.stores
                    .get(&v.spec.datastore)
                    .is_some_and(|s| s.right.deadline().is_some_and(|d| now + settled < d))
            })
            .map(|(v, generation)| (v.spec.id.clone(), generation))
            .take(AT_ONCE)
            .collect();
        if other.is_empty() {
            return;
        }
        let moving = self
            .vms
            .values()
            .filter(|v| matches!(v.phase, Phase::Frozen { .. } | Phase::Thawing { .. }))
            .count();
        other.truncate(AT_ONCE.saturating_sub(moving));
        for (vm, generation) in other {
            let request = GuardRequest::Lapse {
                vm: vm.clone(),
                generation,
            };
            self.guard(&vm, request);
        }
    }

    /// A primary makes room for another before it goes for a while.
    pub(crate) fn step_down(&mut self, cause: AbdicationCause, why: &str) {
        if !self.role.is_primary() {
            return;
        }
        let host = self.me.host.clone();
        self.emit(
            EventKind::PrimaryAbdicated { host, cause },
            format!("{why}: another is elected"),
        );
        self.give_up_ownership(why, true);
        self.drop_proposals(why);
        self.restarts.clear();
        self.end_watch();
        let others: Vec<crate::id::HostId> = self.peers.keys().cloned().collect();
        for to in others {
            self.send(&to, Channel::Stream, Message::StepDown);
        }
        self.begin_election(ElectionCause::SteppedDown, why);
    }

    /// The primary makes room: nobody waits for its silence.
    pub(crate) fn on_step_down(&mut self, from: &crate::id::HostId) {
        if self.role.followed() == Some(from) {
            self.begin_election(
                ElectionCause::PrimarySteppedDown,
                &format!("the primary {from} has stepped down"),
            );
        }
    }
}
