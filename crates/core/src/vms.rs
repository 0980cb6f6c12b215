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

use crate::agent::{Agent, CommandError, TaskFor, planted};
use crate::config::VmSpec;
use crate::event::{EventKind, StopReason};
use crate::id::{DatastoreId, Generation, HostId, Nonce, VmId};
use crate::io::{
    Channel, ExitCause, FoundState, FoundVm, GuardOutcome, GuardRequest, HypervisorOutcome,
    HypervisorRequest,
};
use crate::lock::{LockName, SwapOutcome, Token};
use crate::time::{Duration, Instant};
use crate::wire::{
    Desired, LockRecord, Message, StartOrder, StartOutcome, StartResult, VmReportState,
};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Where a VM stands on this host.
#[derive(Clone, Debug)]
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
    Unfreezing { record: LockRecord },
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

/// A VM on this host.
#[derive(Clone, Debug)]
pub(crate) struct LocalVm {
    pub(crate) spec: VmSpec,
    pub(crate) phase: Phase,
    /// The order that it was started for.
    order: Option<(HostId, StartOrder)>,
    /// Stop as soon as that is possible, with this intent.
    stop: Option<(StopReason, Desired)>,
    /// Its process ended while a swap was out.
    exited: Option<ExitCause>,
    pub(crate) since: Instant,
}

impl LocalVm {
    fn new(spec: VmSpec, phase: Phase, now: Instant) -> Self {
        Self {
            spec,
            phase,
            order: None,
            stop: None,
            exited: None,
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

    pub(crate) fn report_state(&self) -> VmReportState {
        match &self.phase {
            Phase::Reading
            | Phase::Waiting { .. }
            | Phase::Acquiring { .. }
            | Phase::Registering { .. }
            | Phase::Preparing { .. }
            | Phase::Resuming { .. } => VmReportState::Starting,
            Phase::Running { .. } | Phase::Adopting { .. } => VmReportState::Running,
            Phase::Frozen { .. } | Phase::Thawing { .. } | Phase::Unfreezing { .. } => {
                VmReportState::Frozen
            }
            Phase::Killing { .. } | Phase::Releasing { .. } => VmReportState::Stopping,
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
            // The constants of an adopted generation are read with its lock; until then the shortest known.
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
        self.durable_dirty |= self.durable.wanted_off.remove(id);
        let reuse =
            planted!(self, GenerationReused) && self.swap_is_unsure(&TaskFor::Vm(id.clone()));
        if let Some(vm) = self.vms.get_mut(id) {
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

    fn start_reading(&mut self, spec: VmSpec) {
        let (id, datastore) = (spec.id.clone(), spec.datastore.clone());
        self.vms
            .insert(id.clone(), LocalVm::new(spec, Phase::Reading, self.now));
        self.report_dirty = true;
        self.read_lock(&datastore, LockName::Vm(id.clone()), TaskFor::Vm(id));
    }

    /// Planted bug: starts again under a generation whose release has an unknown outcome.
    fn reuse_generation(&mut self, id: &VmId, from: (Generation, Nonce)) {
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
        vm.stop = Some((StopReason::User, Desired::Off));
        // Should this agent die half-way, the next one still knows what the user wants.
        self.durable.wanted_off.insert(id.clone());
        self.durable_dirty = true;
        self.stop_when_possible(id);
        Ok(())
    }

    /// Carries a wished stop out if the phase allows it; otherwise the phase's end does.
    fn stop_when_possible(&mut self, id: &VmId) {
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
            Phase::Reading | Phase::Waiting { .. } => {
                self.vms.remove(id);
                self.drop_tasks(&TaskFor::Vm(id.clone()));
                self.report_dirty = true;
                return;
            }
            _ => return,
        };
        self.kill(id, reason, release);
    }

    // Starting.

    /// A start that the primary ordered; the primary's own host gets it without a message.
    pub(crate) fn on_start_order(&mut self, from: &HostId, order: StartOrder) {
        let id = order.spec.id.clone();
        if let Some(vm) = self.vms.get_mut(&id) {
            match &vm.phase {
                Phase::Running { record } => {
                    let outcome = StartOutcome::Started(record.generation);
                    self.answer(from, &order, outcome);
                }
                Phase::Killing { .. } | Phase::Releasing { .. } | Phase::Frozen { .. } => {
                    let why =
                        String::from("an earlier instance of the VM is still being stopped here");
                    self.answer(from, &order, StartOutcome::NotReady(why));
                }
                _ => vm.order = Some((from.clone(), order)),
            }
            return;
        }
        let ready = self
            .stores
            .get(&order.spec.datastore)
            .map(|s| s.quarantine.clone());
        let refusal = match ready {
            None => Some(format!("this host does not mount {}", order.spec.datastore)),
            Some(Some(why)) => Some(why),
            Some(None) => None,
        };
        if let Some(why) = refusal {
            self.answer(from, &order, StartOutcome::NotReady(why));
            return;
        }
        let phase = Phase::Waiting {
            from: (order.expected, order.expected_nonce),
            since: self.now,
        };
        let mut vm = LocalVm::new(order.spec.clone(), phase, self.now);
        vm.order = Some((from.clone(), order));
        self.vms.insert(id.clone(), vm);
        self.report_dirty = true;
        self.acquire(&id);
    }

    fn answer(&mut self, to: &HostId, order: &StartOrder, outcome: StartOutcome) {
        let result = StartResult {
            order: order.order,
            vm: order.spec.id.clone(),
            outcome,
        };
        if *to == self.me.host {
            self.on_start_result(&to.clone(), result);
        } else {
            self.send(to, Channel::Stream, Message::Started(result));
        }
    }

    /// Answers the order that a VM was started for, once.
    fn answer_order(&mut self, id: &VmId, outcome: StartOutcome) {
        if let Some((from, order)) = self.vms.get_mut(id).and_then(|v| v.order.take()) {
            if matches!(outcome, StartOutcome::Started(_)) {
                // On the same stream and before the answer, so that the primary never reads "started" while
                // the last report does not have the VM.
                self.send_report();
            }
            self.answer(&from, &order, outcome);
        }
    }

    fn token(&self, datastore: &DatastoreId) -> Option<Token> {
        self.stores
            .get(datastore)
            .filter(|s| s.quarantine.is_none())
            .and_then(|s| s.right.token(self.now))
    }

    fn unbroken(&self, datastore: &DatastoreId, token: Token) -> bool {
        self.stores
            .get(datastore)
            .is_some_and(|s| s.right.unbroken(token, self.now))
    }

    /// Issues the swap of a VM that waits, when the right is valid.
    fn acquire(&mut self, id: &VmId) {
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        let Phase::Waiting { from, .. } = vm.phase else {
            return;
        };
        let datastore = vm.spec.datastore.clone();
        let Some(token) = self.token(&datastore) else {
            return;
        };
        if let Some(vm) = self.vms.get_mut(id) {
            vm.phase = Phase::Acquiring { token };
        }
        let holder = Some(self.holder());
        self.swap_lock(
            &datastore,
            LockName::Vm(id.clone()),
            TaskFor::Vm(id.clone()),
            from,
            holder,
            Desired::On,
        );
    }

    /// Looks after VMs that wait for something that no completion announces.
    pub(crate) fn run_vms(&mut self) {
        let now = self.now;
        let patience = 3 * self.timing().freeze;
        let ids: Vec<VmId> = self.vms.keys().cloned().collect();
        for id in ids {
            let Some(vm) = self.vms.get(&id) else {
                continue;
            };
            match &vm.phase {
                Phase::Waiting { since, .. } if now >= *since + patience => {
                    let why = format!(
                        "no heartbeat could be written on {} for {} ms",
                        vm.spec.datastore,
                        patience.as_millis()
                    );
                    self.answer_order(&id, StartOutcome::NotReady(why));
                    self.vms.remove(&id);
                    self.report_dirty = true;
                }
                Phase::Waiting { .. } => self.acquire(&id),
                Phase::Frozen { .. } => self.thaw(&id),
                _ => {}
            }
        }
    }

    fn register(&mut self, id: &VmId, record: LockRecord, token: Token) {
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        let datastore = vm.spec.datastore.clone();
        let generation = record.generation;
        vm.phase = Phase::Registering { record, token };
        let deadline = self
            .stores
            .get(&datastore)
            .and_then(|s| s.right.deadline())
            .unwrap_or(self.now);
        self.guard(
            id,
            GuardRequest::Register {
                vm: id.clone(),
                generation,
                deadline,
            },
        );
    }

    pub(crate) fn on_vm_swapped(&mut self, id: &VmId, record: LockRecord, outcome: &SwapOutcome) {
        let Some(vm) = self.vms.get(id) else { return };
        match vm.phase.clone() {
            Phase::Acquiring { token } => self.on_acquired(id, record, token, outcome),
            Phase::Thawing { word, token } => {
                self.on_thaw_swapped(id, word, token, record, outcome)
            }
            Phase::Releasing {
                reason,
                from,
                start_again,
            } => {
                self.on_released(id, reason, from, start_again, record, outcome);
            }
            _ => {}
        }
    }

    fn on_acquired(&mut self, id: &VmId, record: LockRecord, token: Token, outcome: &SwapOutcome) {
        let Some(vm) = self.vms.get(id) else { return };
        let datastore = vm.spec.datastore.clone();
        match outcome {
            SwapOutcome::Lost => {
                self.answer_order(id, StartOutcome::LockLost);
                let by_user = self.vms.remove(id).is_some_and(|v| v.order.is_none());
                self.report_dirty = true;
                if by_user {
                    self.issue(format!(
                        "{id} was not started here: another host took its lock first"
                    ));
                }
            }
            SwapOutcome::NotDone(fault) => {
                let why = format!("the lock on {datastore} could not be written ({fault:?})");
                self.answer_order(id, StartOutcome::NotReady(why));
                self.vms.remove(id);
                self.report_dirty = true;
            }
            SwapOutcome::Won => {
                let broken = vm.order.as_ref().and_then(|(_, o)| o.broken_from.clone());
                let (host, generation) = (self.me.host.clone(), record.generation);
                let vm_id = id.clone();
                match broken {
                    Some(from) => {
                        let why = format!(
                            "the right to run of {from} under generation {} was proven to have lapsed",
                            generation.0 - 1
                        );
                        self.emit(
                            EventKind::LockBroken {
                                vm: vm_id,
                                host,
                                generation,
                                from,
                            },
                            why,
                        );
                    }
                    None => {
                        let why = String::from("the lock was free, or this host's own");
                        self.emit(
                            EventKind::LockAcquired {
                                vm: vm_id,
                                host,
                                generation,
                            },
                            why,
                        );
                    }
                }
                if self.vms.get(id).is_some_and(|v| v.stop.is_some()) {
                    self.release(
                        id,
                        StopReason::User,
                        (record.generation, record.nonce),
                        Desired::Off,
                    );
                } else if self.unbroken(&datastore, token) || planted!(self, StartAfterGap) {
                    self.register(id, record, token);
                } else {
                    // A gap between the swap and now: only a new generation may run.
                    let now = self.now;
                    if let Some(vm) = self.vms.get_mut(id) {
                        vm.phase = Phase::Waiting {
                            from: (record.generation, record.nonce),
                            since: now,
                        };
                        if let Some((_, order)) = &mut vm.order {
                            order.broken_from = None;
                        }
                    }
                    self.acquire(id);
                }
            }
        }
    }

    pub(crate) fn on_vm_guard(&mut self, id: &VmId, outcome: GuardOutcome) {
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        match vm.phase.clone() {
            Phase::Registering { record, token } => match outcome {
                GuardOutcome::Done => {
                    let spec = vm.spec.clone();
                    let generation = record.generation;
                    vm.phase = Phase::Preparing {
                        record,
                        token,
                        lapsed: false,
                    };
                    self.want_poweron_list();
                    self.hypervisor(id, HypervisorRequest::Prepare { spec, generation });
                }
                GuardOutcome::Lapsed | GuardOutcome::NoGuard => {
                    let why = if outcome == GuardOutcome::NoGuard {
                        String::from("this host's guard does not run")
                    } else {
                        String::from("the right to run ended before the start")
                    };
                    self.answer_order(id, StartOutcome::NotReady(why));
                    self.release(
                        id,
                        StopReason::StartAborted,
                        (record.generation, record.nonce),
                        Desired::On,
                    );
                }
            },
            Phase::Unfreezing { record, .. } => match outcome {
                GuardOutcome::Done => {
                    let (host, vm_id) = (self.me.host.clone(), id.clone());
                    let why = format!(
                        "its lock was swapped to generation {} while the right to run held",
                        record.generation
                    );
                    vm.phase = Phase::Running { record };
                    vm.since = self.now;
                    self.report_dirty = true;
                    self.emit(
                        EventKind::VmThawed {
                            vm: vm_id,
                            host,
                            reason: why.clone(),
                        },
                        why,
                    );
                    self.stop_when_possible(id);
                }
                GuardOutcome::Lapsed | GuardOutcome::NoGuard => {
                    let word = record.generation;
                    vm.phase = Phase::Frozen {
                        word,
                        record: Some(record),
                    };
                }
            },
            Phase::Running { record } if outcome == GuardOutcome::Lapsed => {
                // The extension was refused: the guard froze it, or is about to.
                let generation = record.generation;
                self.on_vm_lapsed(id, generation);
            }
            Phase::Adopting { generation } if outcome == GuardOutcome::Lapsed => {
                self.on_vm_lapsed(id, generation)
            }
            Phase::Preparing { record, token, .. } if outcome == GuardOutcome::Lapsed => {
                vm.phase = Phase::Preparing {
                    record,
                    token,
                    lapsed: true,
                };
            }
            Phase::Resuming { record, .. } if outcome == GuardOutcome::Lapsed => {
                vm.phase = Phase::Resuming {
                    record,
                    lapsed: true,
                };
            }
            _ => {}
        }
    }

    pub(crate) fn on_vm_hypervisor(&mut self, id: &VmId, resume: bool, outcome: HypervisorOutcome) {
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        let datastore = vm.spec.datastore.clone();
        match (vm.phase.clone(), outcome) {
            (
                Phase::Preparing {
                    record,
                    token,
                    lapsed,
                },
                HypervisorOutcome::Done,
            ) if !resume => {
                let whole = self.unbroken(&datastore, token) && !lapsed;
                if whole || planted!(self, StartAfterGap) {
                    if let Some(vm) = self.vms.get_mut(id) {
                        vm.phase = Phase::Resuming {
                            record,
                            lapsed: false,
                        };
                    }
                    self.hypervisor(id, HypervisorRequest::Resume { vm: id.clone() });
                } else {
                    let why = String::from("the right to run ended before the first instruction");
                    self.answer_order(id, StartOutcome::NotReady(why));
                    self.kill(
                        id,
                        StopReason::StartAborted,
                        Some((record.generation, record.nonce, Desired::On)),
                    );
                }
            }
            (Phase::Preparing { record, .. }, outcome) => {
                let answer = match outcome {
                    HypervisorOutcome::ImageLocked => StartOutcome::ImageLocked,
                    HypervisorOutcome::Failed(why) => StartOutcome::Failed(why),
                    HypervisorOutcome::Done => return,
                };
                if self.vms.get(id).is_some_and(|v| v.order.is_none()) {
                    self.issue(format!("{id} could not be started: {answer:?}"));
                }
                self.answer_order(id, answer);
                self.guard_forget(GuardRequest::Remove { vm: id.clone() });
                self.release(
                    id,
                    StopReason::StartAborted,
                    (record.generation, record.nonce),
                    Desired::On,
                );
            }
            (Phase::Resuming { record, lapsed }, HypervisorOutcome::Done) if resume => {
                let generation = record.generation;
                vm.since = self.now;
                vm.phase = if lapsed {
                    Phase::Frozen {
                        word: generation,
                        record: Some(record),
                    }
                } else {
                    Phase::Running { record }
                };
                let (vm_id, host) = (id.clone(), self.me.host.clone());
                self.report_dirty = true;
                self.emit(
                    EventKind::VmStarted { vm: vm_id, host, generation },
                    format!("its lock is held in generation {generation} and the right to run was unbroken since the swap"),
                );
                self.answer_order(id, StartOutcome::Started(generation));
                self.stop_when_possible(id);
            }
            (Phase::Resuming { record, .. }, outcome) if resume => {
                let why = match outcome {
                    HypervisorOutcome::Failed(why) => why,
                    HypervisorOutcome::Done | HypervisorOutcome::ImageLocked => {
                        String::from("it could not be resumed")
                    }
                };
                self.answer_order(id, StartOutcome::Failed(why));
                self.kill(
                    id,
                    StopReason::StartAborted,
                    Some((record.generation, record.nonce, Desired::On)),
                );
            }
            (Phase::Killing { .. }, HypervisorOutcome::Failed(_)) => {
                self.hypervisor(id, HypervisorRequest::Kill { vm: id.clone() });
            }
            _ => {}
        }
    }

    /// The heartbeat on `datastore` was renewed: prolongs the right of every VM there.
    pub(crate) fn extend_vms(&mut self, datastore: &DatastoreId, counted: Instant) {
        let right = self.stores.get(datastore).map(|s| s.right.clone());
        if !right.is_some_and(|r| r.valid(self.now)) {
            return;
        }
        let own = self.timing().freeze;
        let here: Vec<(VmId, Generation, Duration)> = self
            .vms
            .values()
            .filter(|v| v.spec.datastore == *datastore)
            .filter_map(|v| {
                v.extends()
                    .map(|(g, freeze)| (v.spec.id.clone(), g, freeze.min(own)))
            })
            .collect();
        for (vm, generation, freeze) in here {
            let deadline = counted + freeze;
            self.guard(
                &vm,
                GuardRequest::Extend {
                    vm: vm.clone(),
                    generation,
                    deadline,
                },
            );
        }
    }

    // Freezing and thawing.

    pub(crate) fn on_vm_lapsed(&mut self, id: &VmId, generation: Generation) {
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        if vm.generation() != generation {
            return;
        }
        self.report_dirty = true;
        vm.phase = match vm.phase.clone() {
            Phase::Running { record } => Phase::Frozen {
                word: generation,
                record: Some(record),
            },
            Phase::Unfreezing { record, .. } => Phase::Frozen {
                word: generation,
                record: Some(record),
            },
            Phase::Adopting { generation } => Phase::Frozen {
                word: generation,
                record: None,
            },
            Phase::Preparing { record, token, .. } => Phase::Preparing {
                record,
                token,
                lapsed: true,
            },
            Phase::Resuming { record, .. } => Phase::Resuming {
                record,
                lapsed: true,
            },
            other => other,
        };
        vm.since = self.now;
    }

    /// Tries to thaw a frozen VM: only by winning a swap of its lock while the right holds.
    fn thaw(&mut self, id: &VmId) {
        let Some(vm) = self.vms.get(id) else { return };
        let Phase::Frozen { word, record } = &vm.phase else {
            return;
        };
        let (word, datastore) = (*word, vm.spec.datastore.clone());
        let purpose = TaskFor::Vm(id.clone());
        if self.has_task(&purpose) {
            return;
        }
        let Some(token) = self.token(&datastore) else {
            return;
        };
        let reread = planted!(self, ThawByRead);
        match record {
            Some(record) if !reread => {
                let from = (record.generation, record.nonce);
                if let Some(vm) = self.vms.get_mut(id) {
                    vm.phase = Phase::Thawing { word, token };
                }
                let holder = Some(self.holder());
                self.swap_lock(
                    &datastore,
                    LockName::Vm(id.clone()),
                    purpose,
                    from,
                    holder,
                    Desired::On,
                );
            }
            _ => self.read_lock(&datastore, LockName::Vm(id.clone()), purpose),
        }
    }

    fn on_thaw_swapped(
        &mut self,
        id: &VmId,
        word: Generation,
        token: Token,
        record: LockRecord,
        outcome: &SwapOutcome,
    ) {
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        let datastore = vm.spec.datastore.clone();
        let now = self.now;
        match outcome {
            SwapOutcome::Lost => self.lock_lost(id, word),
            SwapOutcome::NotDone(_) => {
                // Certainly not performed; the same generation may be tried again.
                vm.phase = Phase::Frozen { word, record: None };
            }
            SwapOutcome::Won => {
                if let Some(cause) = vm.exited.take() {
                    let from = (record.generation, record.nonce);
                    vm.phase = Phase::Frozen {
                        word,
                        record: Some(record),
                    };
                    self.on_gone(id, cause, Some(from));
                    return;
                }
                if vm.stop.is_some() {
                    vm.phase = Phase::Frozen {
                        word,
                        record: Some(record),
                    };
                    self.stop_when_possible(id);
                    return;
                }
                let unbroken = self.unbroken(&datastore, token);
                let deadline = self
                    .stores
                    .get(&datastore)
                    .and_then(|s| s.right.deadline())
                    .unwrap_or(now);
                let Some(vm) = self.vms.get_mut(id) else {
                    return;
                };
                if unbroken {
                    let to = record.generation;
                    vm.phase = Phase::Unfreezing { record };
                    self.guard(
                        id,
                        GuardRequest::Thaw {
                            vm: id.clone(),
                            from: word,
                            to,
                            deadline,
                        },
                    );
                } else {
                    vm.phase = Phase::Frozen {
                        word,
                        record: Some(record),
                    };
                }
            }
        }
    }

    fn lock_lost(&mut self, id: &VmId, generation: Generation) {
        let (vm, host) = (id.clone(), self.me.host.clone());
        let why = format!("another host, or a release, made a generation after {generation}");
        self.emit(
            EventKind::LockLost {
                vm,
                host,
                generation,
            },
            why,
        );
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        if let Some(cause) = vm.exited.take() {
            self.on_gone(id, cause, None);
        } else {
            self.kill(id, StopReason::LockLost, None);
        }
    }

    /// The lock of a VM that is read for a start, an adoption or a thaw.
    pub(crate) fn on_vm_head(&mut self, id: &VmId, record: Option<LockRecord>) {
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        let Some(record) = record else {
            if matches!(vm.phase, Phase::Reading) {
                self.vms.remove(id);
                self.report_dirty = true;
            }
            return;
        };
        let mine = record
            .holder
            .as_ref()
            .is_some_and(|h| h.host == self.me.host);
        let this_boot = record
            .holder
            .as_ref()
            .is_some_and(|h| h.host == self.me.host && h.boot == self.me.boot);
        match vm.phase.clone() {
            Phase::Reading if record.holder.is_none() || mine => {
                vm.phase = Phase::Waiting {
                    from: (record.generation, record.nonce),
                    since: self.now,
                };
                self.acquire(id);
            }
            Phase::Reading => {
                let holder = record
                    .holder
                    .map(|h| h.host)
                    .unwrap_or_else(|| self.me.host.clone());
                self.vms.remove(id);
                self.report_dirty = true;
                self.issue(format!(
                    "{id} was not started here: {holder} holds its lock; power it off there first"
                ));
            }
            Phase::Adopting { generation } if this_boot && record.generation == generation => {
                vm.phase = Phase::Running { record };
                self.stop_when_possible(id);
            }
            Phase::Adopting { generation } => self.lock_lost(id, generation),
            Phase::Frozen { word, .. } if this_boot => {
                let datastore = vm.spec.datastore.clone();
                if planted!(self, ThawByRead) {
                    let deadline = self
                        .stores
                        .get(&datastore)
                        .and_then(|s| s.right.deadline())
                        .unwrap_or(self.now);
                    if let Some(vm) = self.vms.get_mut(id) {
                        vm.phase = Phase::Unfreezing { record };
                    }
                    self.guard(
                        id,
                        GuardRequest::Thaw {
                            vm: id.clone(),
                            from: word,
                            to: word,
                            deadline,
                        },
                    );
                    return;
                }
                vm.phase = Phase::Frozen {
                    word,
                    record: Some(record),
                };
                self.stop_when_possible(id);
                self.thaw(id);
            }
            Phase::Frozen { word, .. } => self.lock_lost(id, word),
            _ => {}
        }
    }

    // Stopping.

    fn kill(
        &mut self,
        id: &VmId,
        reason: StopReason,
        release: Option<(Generation, Nonce, Desired)>,
    ) {
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        vm.phase = Phase::Killing { reason, release };
        vm.since = self.now;
        self.report_dirty = true;
        self.hypervisor(id, HypervisorRequest::Kill { vm: id.clone() });
    }

    pub(crate) fn on_vm_exited(&mut self, id: &VmId, cause: ExitCause) {
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        match vm.phase.clone() {
            Phase::Killing { reason, release } => {
                self.guard_forget(GuardRequest::Remove { vm: id.clone() });
                match release {
                    Some((generation, nonce, desired)) => {
                        self.release(id, reason, (generation, nonce), desired)
                    }
                    None => self.gone(id, reason),
                }
            }
            Phase::Preparing { record, .. }
            | Phase::Resuming { record, .. }
            | Phase::Running { record } => {
                if vm.order.is_some() {
                    self.answer_order(
                        id,
                        StartOutcome::Failed(String::from(
                            "its process ended while it was started",
                        )),
                    );
                }
                self.on_gone(id, cause, Some((record.generation, record.nonce)));
            }
            Phase::Unfreezing { record, .. } => {
                self.on_gone(id, cause, Some((record.generation, record.nonce)))
            }
            Phase::Frozen {
                record: Some(record),
                ..
            } => {
                self.on_gone(id, cause, Some((record.generation, record.nonce)));
            }
            Phase::Frozen { record: None, .. } | Phase::Adopting { .. } => {
                // Its lock has not been read yet, and there is nothing left to run: look for it as an orphan.
                let datastore = vm.spec.datastore.clone();
                self.drop_tasks(&TaskFor::Vm(id.clone()));
                self.on_gone(id, cause, None);
                self.on_check_lock(id, &datastore, Generation(0));
            }
            Phase::Thawing { .. } => vm.exited = Some(cause),
            Phase::Reading
            | Phase::Waiting { .. }
            | Phase::Acquiring { .. }
            | Phase::Registering { .. }
            | Phase::Releasing { .. } => {}
        }
    }

    /// Its process is gone without this agent's wish.
    fn on_gone(&mut self, id: &VmId, cause: ExitCause, from: Option<(Generation, Nonce)>) {
        let (reason, desired) = match cause {
            ExitCause::GuestShutdown => (StopReason::Guest, Desired::Off),
            ExitCause::Crash => (StopReason::Crash, Desired::On),
            ExitCause::Killed => (StopReason::FrozenLimit, Desired::On),
        };
        let wished = self.vms.get(id).and_then(|v| v.stop);
        let (reason, desired) = wished.unwrap_or((reason, desired));
        self.guard_forget(GuardRequest::Remove { vm: id.clone() });
        match from {
            Some(from) => self.release(id, reason, from, desired),
            None => self.gone(id, reason),
        }
    }

    /// Gives the lock back. From here on nothing runs under that generation.
    fn release(
        &mut self,
        id: &VmId,
        reason: StopReason,
        from: (Generation, Nonce),
        desired: Desired,
    ) {
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        let datastore = vm.spec.datastore.clone();
        vm.phase = Phase::Releasing {
            reason,
            from,
            start_again: false,
        };
        vm.since = self.now;
        self.report_dirty = true;
        self.want_poweron_list();
        if matches!(reason, StopReason::Crash | StopReason::FrozenLimit) {
            self.say_stopped(id, reason);
        }
        self.swap_lock(
            &datastore,
            LockName::Vm(id.clone()),
            TaskFor::Vm(id.clone()),
            from,
            None,
            desired,
        );
    }

    fn on_released(
        &mut self,
        id: &VmId,
        reason: StopReason,
        from: (Generation, Nonce),
        start_again: bool,
        record: LockRecord,
        outcome: &SwapOutcome,
    ) {
        match outcome {
            SwapOutcome::NotDone(_) => {
                // Certainly not performed: tried again at the next heartbeat, from the same generation.
                let Some(vm) = self.vms.get(id) else { return };
                let datastore = vm.spec.datastore.clone();
                let desired = record.desired;
                self.swap_lock(
                    &datastore,
                    LockName::Vm(id.clone()),
                    TaskFor::Vm(id.clone()),
                    from,
                    None,
                    desired,
                );
                return;
            }
            SwapOutcome::Won => {
                let (vm, host, generation) = (id.clone(), self.me.host.clone(), record.generation);
                let why = format!(
                    "nothing of the VM is left on this host ({reason:?}); it should be {:?}",
                    record.desired
                );
                self.emit(
                    EventKind::LockReleased {
                        vm,
                        host,
                        generation,
                    },
                    why,
                );
            }
            SwapOutcome::Lost => {}
        }
        let spec = self.vms.get(id).map(|v| v.spec.clone());
        match reason {
            StopReason::Crash | StopReason::FrozenLimit | StopReason::StartAborted => {
                self.vms.remove(id);
                self.report_dirty = true;
            }
            _ => self.gone(id, reason),
        }
        self.durable_dirty |= self.durable.wanted_off.remove(id);
        if let (true, Some(spec)) = (start_again, spec) {
            self.start_reading(spec);
        }
    }

    fn gone(&mut self, id: &VmId, reason: StopReason) {
        self.say_stopped(id, reason);
        self.vms.remove(id);
        self.report_dirty = true;
        self.want_poweron_list();
    }

    fn say_stopped(&mut self, id: &VmId, reason: StopReason) {
        let (vm, host) = (id.clone(), self.me.host.clone());
        let why = match reason {
            StopReason::User => {
                "its user switched it off; every thread is gone and the lock says so"
            }
            StopReason::Guest => "the guest shut itself down; the lock says so",
            StopReason::Crash => "its process died unclean",
            StopReason::LockLost => "another host holds its lock: it must not run here",
            StopReason::FrozenLimit => {
                "it was frozen for longer than frozen_limit, or the guard killed it"
            }
            StopReason::StartAborted => "its start was given up before the first instruction",
            StopReason::Isolation => "isolation response",
            StopReason::Vmcp => "component protection",
            StopReason::Host => "the host stopped",
        };
        self.emit(EventKind::VmStopped { vm, host, reason }, String::from(why));
    }

    // Adoption by a restarted agent.

    pub(crate) fn adopt(&mut self, found: Vec<FoundVm>) {
        for FoundVm { vm: id, state } in found {
            let Some(spec) = self.config.vms.get(&id).cloned() else {
                self.issue(format!("{id} runs here but is not in the configuration; it is left frozen or running as found until its right ends"));
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
            let adopting = matches!(phase, Phase::Adopting { .. });
            let killing = matches!(phase, Phase::Killing { .. });
            self.vms
                .insert(id.clone(), LocalVm::new(spec, phase, self.now));
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
                    store.rescan(self.now);
                }
                self.hypervisor(&id, HypervisorRequest::Kill { vm: id.clone() });
            }
        }
        self.want_poweron_list();
    }
}
