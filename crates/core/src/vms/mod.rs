//! The VMs of this host: taking their locks, starting, freezing, thawing, stopping them, and giving
//! the locks back.
//!
//! ```text
//!  wait for the right ─▶ swap ─▶ register with guard ─▶ prepare (no instruction) ─▶ resume ─▶ running
//!        ▲   │ a gap: swap again                                                       │   ▲
//!        └───┘                                            right lapsed: guard freezes  │   │ thaw, proven
//!  adopted ─▶ read lock ─▶ running / frozen                                            ▼   │ by a swap
//!  gone ◀─ release (swap to free) ◀─ every thread gone ◀─ killed ◀──────────────────── frozen
//! ```
//! A right to run belongs to one generation of one lock. Once it has lapsed that generation never
//! runs again; a swap that expects a generation makes it spent the moment it is issued.

mod freeze;
mod leave;
mod rearm;
mod start;
mod stop;

use crate::agent::{Agent, CommandError, planted};
use crate::config::VmSpec;
use crate::event::{IssueCause, StopReason};
use crate::id::{Generation, HostId, Nonce, VmId};
use crate::io::{ExitCause, Extension, FoundState, FoundVm, HypervisorRequest};
use crate::isolation::Asked;
use crate::lock::{LockName, Token};
use crate::tasks::TaskFor;
use crate::time::{Duration, Instant};
use crate::wire::{Desired, LockRecord, StartOrder, StartOutcome, VmReport, VmReportState};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Where a VM stands on this host.
#[derive(Clone, Hash, Debug)]
pub(crate) enum Phase {
    /// Reading its lock for a power-on by the user.
    Reading,
    /// Waiting for a valid right before the swap from this generation is issued.
    Waiting {
        from: (Generation, Nonce),
        since: Instant,
    },
    /// The swap to this host is out.
    Acquiring { token: Token },
    /// Telling the guard.
    Registering { record: LockRecord, token: Token },
    /// The hypervisor makes the process.
    Preparing {
        record: LockRecord,
        token: Token,
        lapsed: bool,
    },
    /// The first instruction may run.
    Resuming { record: LockRecord, lapsed: bool },
    /// It runs.
    Running { record: LockRecord },
    /// Found running by a restarted agent; its lock is being read.
    Adopting { generation: Generation },
    /// Frozen. `word` is the generation in the guard's memory; `record` the lock as last known.
    Frozen {
        word: Generation,
        record: Option<LockRecord>,
    },
    /// The swap that may thaw it is out.
    Thawing { word: Generation, token: Token },
    /// The guard is asked to thaw it under `record`.
    Unfreezing {
        word: Generation,
        record: LockRecord,
    },
    /// It is being killed; then the lock is released, or not when it is lost.
    Killing {
        reason: StopReason,
        release: Option<(Generation, Nonce, Desired)>,
    },
    /// The swap to free is out.
    Releasing {
        reason: StopReason,
        from: (Generation, Nonce),
        start_again: bool,
    },
}

/// How far a VM on this host is, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// It is being started.
    Coming,
    /// It runs.
    Runs,
    /// It is frozen, or about to be thawed.
    Frozen,
    /// It is being stopped.
    Going,
}

/// A VM on this host.
#[derive(Clone, Debug)]
pub(crate) struct LocalVm {
    pub(crate) spec: VmSpec,
    pub(crate) phase: Phase,
    /// The order that it was started for.
    order: Option<Box<(HostId, StartOrder)>>,
    /// What its lock says if nothing of it runs: what it said before, when its user starts it. Only what a
    /// primary starts again, or has run, should run elsewhere.
    unstarted: Desired,
    /// Stop as soon as that is possible, with this intent.
    stop: Option<(StopReason, Desired)>,
    /// Its user wants it on again after the stop that is under way.
    again: bool,
    /// Its process ended while a swap was out.
    exited: Option<ExitCause>,
    /// It was found by this agent; whether the request to run reached it before the last one died is
    /// not known, so it is sent (again) then.
    resume_at: Option<Instant>,
    /// What was certainly refused is not asked for again before then: storage that is full, a guard that
    /// does not run and a hypervisor that fails answer at once, however often they are asked.
    retry_at: Option<Instant>,
    /// Its hypervisor paused it on an I/O error: it runs no more, whatever its phase is.
    pub(crate) paused: bool,
    pub(crate) since: Instant,
}

impl LocalVm {
    /// Its right to run has lapsed, and nothing was asked about it since.
    pub(crate) fn is_frozen(&self) -> bool {
        matches!(self.phase, Phase::Frozen { .. })
    }

    /// What decides, of all that is kept.
    #[cfg(test)]
    pub(crate) fn decides(&self) -> impl core::hash::Hash {
        let wishes = (self.stop, self.again, self.unstarted, self.order.is_some());
        let times = (self.resume_at, self.retry_at, self.since);
        (&self.phase, wishes, self.exited, times)
    }

    fn new(spec: VmSpec, phase: Phase, now: Instant) -> Self {
        Self {
            spec,
            phase,
            order: None,
            unstarted: Desired::On,
            stop: None,
            again: false,
            exited: None,
            resume_at: None,
            retry_at: None,
            paused: false,
            since: now,
        }
    }

    pub(crate) fn generation(&self) -> Generation {
        match &self.phase {
            Phase::Registering { record, .. }
            | Phase::Preparing { record, .. }
            | Phase::Resuming { record, .. }
            | Phase::Running { record }
            | Phase::Unfreezing { record, .. } => record.generation,
            Phase::Adopting { generation } => *generation,
            Phase::Frozen { word, .. } | Phase::Thawing { word, .. } => *word,
            Phase::Waiting { from, .. } | Phase::Releasing { from, .. } => from.0,
            Phase::Killing { release, .. } => release.map_or(Generation(0), |(g, _, _)| g),
            Phase::Reading | Phase::Acquiring { .. } => Generation(0),
        }
    }

    /// Its user wants it off.
    pub(crate) fn to_be_off(&self) -> bool {
        matches!(self.stop, Some((reason, Desired::Off)) if reason != StopReason::StartAborted)
    }

    fn phase_standing(&self) -> Standing {
        match &self.phase {
            Phase::Reading
            | Phase::Waiting { .. }
            | Phase::Acquiring { .. }
            | Phase::Registering { .. }
            | Phase::Preparing { .. }
            | Phase::Resuming { .. } => Standing::Coming,
            Phase::Running { .. } | Phase::Adopting { .. } => Standing::Runs,
            Phase::Frozen { .. } | Phase::Thawing { .. } | Phase::Unfreezing { .. } => {
                Standing::Frozen
            }
            Phase::Killing { .. } | Phase::Releasing { .. } => Standing::Going,
        }
    }

    /// How far it is; what is to be stopped goes already.
    pub(crate) fn standing(&self) -> Standing {
        if self.stop.is_some() {
            return Standing::Going;
        }
        self.phase_standing()
    }

    /// Takes back a stop for that reason that has not begun.
    pub(crate) fn call_off(&mut self, reason: StopReason) {
        if self.stop.is_some_and(|(why, _)| why == reason)
            && self.phase_standing() != Standing::Going
        {
            self.stop = None;
        }
    }

    /// Its user wants it here again, once the stop that is under way has ended.
    pub(crate) fn is_to_be_here(&self) -> bool {
        self.again
    }

    pub(crate) fn report_state(&self) -> VmReportState {
        match self.phase_standing() {
            Standing::Coming => VmReportState::Starting,
            Standing::Runs if self.paused => VmReportState::Frozen,
            Standing::Runs => VmReportState::Running,
            Standing::Frozen => VmReportState::Frozen,
            Standing::Going => VmReportState::Stopping,
        }
    }

    /// How it stands, for the primary.
    pub(crate) fn report(&self) -> VmReport {
        VmReport {
            spec: self.spec.clone(),
            generation: self.generation(),
            state: self.report_state(),
        }
    }

    /// It waits for something that no completion announces: looked at with each input.
    pub(crate) fn waits(&self) -> bool {
        match &self.phase {
            Phase::Reading | Phase::Waiting { .. } | Phase::Frozen { .. } => true,
            Phase::Running { .. } => self.resume_at.is_some(),
            Phase::Killing { .. } => self.retry_at.is_some(),
            _ => false,
        }
    }

    /// True from the making of its process to its end.
    pub(crate) fn has_process(&self) -> bool {
        !matches!(
            self.phase,
            Phase::Reading
                | Phase::Waiting { .. }
                | Phase::Acquiring { .. }
                | Phase::Registering { .. }
                | Phase::Releasing { .. }
        )
    }

    /// Its right with a heartbeat that counts from then, and is good for at most `freeze`.
    pub(crate) fn extended(&self, counted: Instant, freeze: Duration) -> Option<Extension> {
        let (generation, own) = self.extends()?;
        Some(Extension {
            vm: self.spec.id.clone(),
            generation,
            deadline: counted + own.min(freeze),
        })
    }

    fn extends(&self) -> Option<(Generation, Duration)> {
        match &self.phase {
            Phase::Preparing {
                record,
                lapsed: false,
                ..
            }
            | Phase::Resuming {
                record,
                lapsed: false,
            }
            | Phase::Running { record }
            | Phase::Unfreezing { record, .. } => Some((record.generation, record.freeze)),
            // The constants of an adopted generation are read with its lock; until then this agent's own
            // `freeze` bounds it, as it bounds the others (`extended`).
            Phase::Adopting { generation } => Some((*generation, Duration::MAX)),
            _ => None,
        }
    }
}

impl Agent {
    // What the user wants.

    pub(crate) fn power_on(&mut self, id: &VmId) -> Result<(), CommandError> {
        let Some(spec) = self.config.vms.get(id).cloned() else {
            return Err(CommandError::UnknownVm(id.clone()));
        };
        if !self.stores.contains_key(&spec.datastore) {
            return Err(CommandError::NoDatastore(id.clone()));
        }
        let resting = self.own_spec().is_none_or(|s| s.maintenance);
        let ends = |v: &LocalVm| matches!(v.stop, Some((StopReason::StartAborted, _)));
        let begins = self.vms.get(id).is_none_or(ends);
        if (resting || self.leaving.is_some()) && begins {
            return Err(CommandError::Resting(id.clone()));
        }
        if self.leftover.contains(id) {
            return Err(CommandError::Leftover(id.clone()));
        }
        self.durable_dirty |= self.durable.wanted_off.remove(id);
        let reuse = planted!(self, GenerationReused);
        if let Some(vm) = self.vms.get_mut(id) {
            // The last wish counts: a stop that has not begun is called off, one that has is followed by a start.
            vm.stop = None;
            vm.again = matches!(vm.phase, Phase::Killing { .. });
            if let Phase::Releasing {
                start_again, from, ..
            } = &mut vm.phase
            {
                *start_again = true;
                if reuse {
                    let from = *from;
                    self.reuse_generation(id, from);
                }
            }
            return Ok(());
        }
        self.start_reading(spec);
        Ok(())
    }

    /// Starts a VM here that its user wanted on while it was being stopped, if this host takes VMs still.
    pub(super) fn start_again(&mut self, spec: VmSpec) {
        let resting = self.own_spec().is_none_or(|s| s.maintenance);
        if resting || self.leaving.is_some() {
            self.refuse(
                IssueCause::StartRefused,
                format!(
                    "{} was not started again here: this host went into maintenance or is being shut down; power it on on another host",
                    spec.id
                ),
            );
            return;
        }
        self.start_reading(spec);
    }

    pub(super) fn start_reading(&mut self, spec: VmSpec) {
        let (id, datastore) = (spec.id.clone(), spec.datastore.clone());
        self.vms
            .insert(id.clone(), LocalVm::new(spec, Phase::Reading, self.now));
        self.report_dirty = true;
        self.read_lock(&datastore, LockName::Vm(id.clone()), TaskFor::Vm(id));
    }

    /// Planted bug: starts again under a generation whose release has an unknown outcome.
    pub(super) fn reuse_generation(&mut self, id: &VmId, from: (Generation, Nonce)) {
        let Some(vm) = self.vms.get(id) else { return };
        let datastore = vm.spec.datastore.clone();
        let Some(token) = self.token(&datastore) else {
            return;
        };
        let record = LockRecord {
            generation: from.0,
            nonce: from.1,
            holder: Some(self.holder()),
            desired: Desired::On,
            freeze: self.timing().freeze,
            r#break: self.timing().r#break,
            given_back: None,
        };
        self.drop_tasks(&TaskFor::Vm(id.clone()));
        self.register(id, record, token);
    }

    pub(crate) fn power_off(&mut self, id: &VmId) -> Result<(), CommandError> {
        if !self.config.vms.contains_key(id) {
            return Err(CommandError::UnknownVm(id.clone()));
        }
        let Some(vm) = self.vms.get_mut(id) else {
            return Err(CommandError::NotHere(id.clone()));
        };
        if let Phase::Releasing { start_again, .. } = &mut vm.phase {
            *start_again = false;
        }
        vm.again = false;
        vm.stop = Some((StopReason::User, Desired::Off));
        // Should this agent die half-way, the next one still knows what the user wants.
        self.durable.wanted_off.insert(id.clone());
        self.durable_dirty = true;
        self.stop_when_possible(id);
        Ok(())
    }

    /// Stops a VM of this host for that reason, unless it is being stopped already.
    pub(crate) fn stop_for(&mut self, id: &VmId, reason: StopReason, desired: Desired) {
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        if vm.standing() == Standing::Going {
            return;
        }
        vm.again = false;
        vm.stop = Some((reason, desired));
        self.stop_when_possible(id);
    }

    /// Stops a VM of this host for that reason, and starts it here again when it is gone.
    pub(crate) fn stop_and_start_again(&mut self, id: &VmId, reason: StopReason) {
        self.stop_for(id, reason, Desired::On);
        if let Some(vm) = self.vms.get_mut(id) {
            vm.again = matches!(vm.phase, Phase::Killing { .. });
        }
    }

    /// Asks the hypervisor to let a VM go on that it paused on an I/O error.
    pub(crate) fn let_go_on(&mut self, id: &VmId) {
        let now = self.now;
        if let Some(vm) = self.vms.get_mut(id)
            && matches!(vm.phase, Phase::Running { .. })
        {
            vm.resume_at = Some(now);
        }
    }

    /// Carries a wished stop out if the phase allows it; otherwise the phase's end does.
    pub(super) fn stop_when_possible(&mut self, id: &VmId) {
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        let Some((reason, desired)) = vm.stop else {
            return;
        };
        let release = match &vm.phase {
            Phase::Running { record }
            | Phase::Frozen {
                record: Some(record),
                ..
            } => Some((record.generation, record.nonce, desired)),
            // A user's wish is written into the lock once it is held; any other ends the start here.
            Phase::Reading | Phase::Waiting { .. } if desired == Desired::On => {
                let why = String::from("it is not to run on this host any more");
                self.answer_order(id, StartOutcome::NotReady(why));
                self.forget_start(id);
                return;
            }
            _ => return,
        };
        self.kill(id, reason, release);
    }

    // Adoption by a restarted agent.

    pub(crate) fn adopt(&mut self, found: Vec<FoundVm>) {
        for FoundVm { vm: id, state } in found {
            let Some(spec) = self.config.vms.get(&id).cloned() else {
                self.issue(IssueCause::VmUnknown, &id, format!("{id} runs here but is not in the configuration; it is left frozen or running as found until its right ends"));
                self.leftover.insert(id);
                continue;
            };
            let datastore = spec.datastore.clone();
            let unregistered = if planted!(self, UnregisteredRunsOn) {
                Phase::Adopting {
                    generation: Generation(0),
                }
            } else {
                Phase::Frozen {
                    word: Generation(0),
                    record: None,
                }
            };
            let phase = match state {
                FoundState::Running(generation) => Phase::Adopting { generation },
                FoundState::Lapsed(generation) => Phase::Frozen {
                    word: generation,
                    record: None,
                },
                FoundState::Prepared(_) => Phase::Killing {
                    reason: StopReason::StartAborted,
                    release: None,
                },
                FoundState::Unregistered => unregistered,
            };
            if let Some(reason) = self.durable.asked_down.get(&id) {
                let expires = self.now + self.config.settings.isolation_shutdown_timeout;
                let asked = Asked {
                    reason: *reason,
                    sent: Some(self.now),
                    until: None,
                    expires,
                };
                self.asked.insert(id.clone(), asked);
            }
            let adopting = matches!(phase, Phase::Adopting { .. });
            let killing = matches!(phase, Phase::Killing { .. });
            let mut vm = LocalVm::new(spec, phase, self.now);
            vm.resume_at = Some(self.now);
            self.vms.insert(id.clone(), vm);
            if adopting {
                self.read_lock(
                    &datastore,
                    LockName::Vm(id.clone()),
                    TaskFor::Vm(id.clone()),
                );
            }
            if killing {
                // Its lock is freed as an orphan once it is gone.
                if let Some(store) = self.stores.get_mut(&datastore) {
                    store.scan.again(self.now);
                }
                self.hypervisor(&id, HypervisorRequest::Kill { vm: id.clone() });
            }
        }
        self.want_poweron_list();
    }
}
