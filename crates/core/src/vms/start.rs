//! Taking a lock and starting a VM: nothing executes an instruction unless the right to run was valid
//! before the swap and without a gap since (safety rule H3).

use crate::agent::{Agent, Ask, planted};
use crate::event::{EventKind, IssueCause, StopReason};
use crate::id::{DatastoreId, HostId, VmId};
use crate::io::{Channel, GuardOutcome, GuardRequest, HypervisorOutcome, HypervisorRequest};
use crate::lock::{LockName, SwapOutcome, Token};
use crate::tasks::TaskFor;
use crate::time::Instant;
use crate::wire::{Desired, LockRecord, Message, StartOrder, StartOutcome, StartResult};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{LocalVm, Phase};

impl Agent {
    /// A start that the primary ordered; the primary's own host gets it without a message.
    pub(crate) fn on_start_order(&mut self, from: &HostId, order: StartOrder) {
        let id = order.spec.id.clone();
        if let Some(vm) = self.vms.get_mut(&id) {
            match &vm.phase {
                Phase::Running { record } => {
                    let outcome = StartOutcome::Started(record.generation);
                    self.answer(from, &order, outcome);
                }
                Phase::Killing { .. } | Phase::Releasing { .. } => {
                    let why =
                        String::from("an earlier instance of the VM is still being stopped here");
                    self.answer(from, &order, StartOutcome::NotReady(why));
                }
                // It runs here by a generation of its own, or did: nothing is started for this order.
                Phase::Adopting { .. }
                | Phase::Frozen { .. }
                | Phase::Thawing { .. }
                | Phase::Unfreezing { .. } => {
                    let why =
                        String::from("the VM is on this host already, and its lock is looked at");
                    self.answer(from, &order, StartOutcome::NotReady(why));
                }
                Phase::Reading
                | Phase::Waiting { .. }
                | Phase::Acquiring { .. }
                | Phase::Registering { .. }
                | Phase::Preparing { .. }
                | Phase::Resuming { .. } => {
                    vm.order = Some(Box::new((from.clone(), order)));
                    vm.unstarted = Desired::On;
                }
            }
            return;
        }
        let resting =
            self.own_spec().is_none_or(|s| s.maintenance) && !planted!(self, RestingHostStarts);
        if self.leaving.is_some() || resting {
            let why = String::from(if resting {
                "this host is in maintenance"
            } else {
                "this host is being shut down"
            });
            // Whoever ordered it may not know yet.
            self.tell_version(from);
            self.answer(from, &order, StartOutcome::NotReady(why));
            return;
        }
        let ready = self
            .stores
            .get(&order.spec.datastore)
            .map(|s| s.quarantine.clone());
        let refusal = match ready {
            _ if self.leftover.contains(&id) => Some(String::from(
                "a process of it is left on this host from before it was deleted",
            )),
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
        vm.order = Some(Box::new((from.clone(), order)));
        self.vms.insert(id.clone(), vm);
        self.report_dirty = true;
        self.acquire(&id);
    }

    pub(super) fn answer(&mut self, to: &HostId, order: &StartOrder, outcome: StartOutcome) {
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
    pub(super) fn answer_order(&mut self, id: &VmId, outcome: StartOutcome) {
        if let Some(order) = self.vms.get_mut(id).and_then(|v| v.order.take()) {
            let (from, order) = *order;
            if matches!(outcome, StartOutcome::Started(_)) {
                // On the same stream and before the answer, so that the primary never reads "started" while
                // the last report does not have the VM.
                self.send_report();
            }
            self.answer(&from, &order, outcome);
        }
    }

    pub(super) fn token(&self, datastore: &DatastoreId) -> Option<Token> {
        self.stores
            .get(datastore)
            .filter(|s| s.quarantine.is_none())
            .and_then(|s| s.right.token(self.now))
    }

    pub(super) fn unbroken(&self, datastore: &DatastoreId, token: Token) -> bool {
        self.stores
            .get(datastore)
            .is_some_and(|s| s.right.unbroken(token, self.now))
    }

    /// Issues the swap of a VM that waits, when the right is valid.
    pub(super) fn acquire(&mut self, id: &VmId) {
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
        for id in self.waiting_vms() {
            let Some(vm) = self.vms.get(&id) else {
                continue;
            };
            match &vm.phase {
                Phase::Reading if now >= vm.since + patience => {
                    let why = format!(
                        "its lock on {} could not be read for {} ms",
                        vm.spec.datastore,
                        patience.as_millis()
                    );
                    self.give_up_start(&id, why);
                }
                Phase::Waiting { since, .. } if now >= *since + patience => {
                    let why = format!(
                        "no heartbeat could be written on {} for {} ms",
                        vm.spec.datastore,
                        patience.as_millis()
                    );
                    self.give_up_start(&id, why);
                }
                Phase::Waiting { .. } => self.acquire(&id),
                Phase::Frozen { .. } => self.thaw(&id),
                Phase::Killing { .. } if vm.retry_at.is_some_and(|at| now >= at) => {
                    if let Some(vm) = self.vms.get_mut(&id) {
                        vm.retry_at = None;
                    }
                    self.hypervisor(&id, HypervisorRequest::Kill { vm: id.clone() });
                }
                Phase::Running { .. } if vm.resume_at.is_some_and(|at| now >= at) => {
                    if let Some(vm) = self.vms.get_mut(&id) {
                        vm.resume_at = None;
                    }
                    self.hypervisor(&id, HypervisorRequest::Resume { vm: id.clone() });
                }
                _ => {}
            }
        }
    }

    /// Ends a start before its swap was issued. A wish that waited longer than this may no longer be
    /// what the user wants: it is theirs to say again.
    pub(super) fn give_up_start(&mut self, id: &VmId, why: String) {
        let ordered = self.vms.get(id).is_some_and(|v| v.order.is_some());
        if !ordered {
            self.refuse(
                IssueCause::StartRefused,
                format!(
                    "{id} was not started here: {why}; power it on again when the datastore answers"
                ),
            );
        }
        if self.vms.get(id).is_some_and(LocalVm::to_be_off) {
            self.durable_dirty |= self.durable.wanted_off.remove(id);
            self.refuse(
                IssueCause::StopRefused,
                format!("{id} could not be switched off here: {why}; power it off again when the datastore answers"),
            );
        }
        self.answer_order(id, StartOutcome::NotReady(why));
        self.forget_start(id);
    }

    /// This host takes no starts any more: those that are on their way end before their first instruction,
    /// however long the storage has held them up.
    pub(crate) fn end_starts(&mut self, why: &str) {
        for id in self.vms.keys().cloned().collect::<Vec<VmId>>() {
            let Some(vm) = self.vms.get_mut(&id).filter(|v| v.stop.is_none()) else {
                continue;
            };
            let locked = match vm.phase {
                Phase::Reading | Phase::Waiting { .. } => false,
                Phase::Acquiring { .. } | Phase::Registering { .. } | Phase::Preparing { .. } => {
                    true
                }
                _ => continue,
            };
            if locked {
                vm.stop = Some((StopReason::StartAborted, vm.unstarted));
            }
            if vm.order.is_none() {
                let text = format!("{id} was not started here: {why}; power it on on another host");
                self.refuse(IssueCause::StartRefused, text);
            }
            if !locked {
                self.answer_order(&id, StartOutcome::NotReady(String::from(why)));
                self.forget_start(&id);
            }
        }
    }

    /// Ends a start. Its lock may be this host's already, from an earlier boot or by a swap that was won
    /// after a gap in the right: it is not kept from others (safety rule H26).
    pub(super) fn forget_start(&mut self, id: &VmId) {
        self.drop_tasks(&TaskFor::Vm(id.clone()));
        if let Some(vm) = self.vms.remove(id) {
            self.look_for_orphan(&vm.spec.datastore, id);
        }
        self.report_dirty = true;
    }

    /// A start that its user asked for and a gap in the right ended is begun again once its lock is
    /// given back: no owner knows of the wish, so nobody else would.
    fn user_start_again(&mut self, id: &VmId) {
        if let Some(vm) = self.vms.get_mut(id) {
            vm.again = vm.order.is_none() && vm.stop.is_none();
        }
    }

    /// A start that its user asked for has failed: nobody tries it again but its user. Before it is
    /// answered to whoever ordered it.
    pub(super) fn say_start_failed(&mut self, id: &VmId, why: &str) {
        if self.vms.get(id).is_some_and(|v| v.order.is_none()) {
            let text = format!("{id} could not be started: {why}; power it on again");
            self.refuse(IssueCause::StartRefused, text);
        }
    }

    pub(super) fn register(&mut self, id: &VmId, record: LockRecord, token: Token) {
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        let datastore = vm.spec.datastore.clone();
        let generation = record.generation;
        vm.phase = Phase::Registering { record, token };
        // A request from an earlier life of it says nothing of this one.
        self.forget_asked(id);
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

    pub(super) fn on_acquired(
        &mut self,
        id: &VmId,
        record: LockRecord,
        token: Token,
        outcome: &SwapOutcome,
    ) {
        let Some(vm) = self.vms.get(id) else { return };
        let datastore = vm.spec.datastore.clone();
        match outcome {
            SwapOutcome::Lost => {
                self.say_stop_lost(id);
                // Whoever has the lock now runs it by a newer wish.
                self.durable_dirty |= self.durable.wanted_off.remove(id);
                self.answer_order(id, StartOutcome::LockLost);
                let by_user = self.vms.remove(id).is_some_and(|v| v.order.is_none());
                self.report_dirty = true;
                if by_user {
                    self.refuse(
                        IssueCause::StartRefused,
                        format!("{id} was not started here: another host took its lock first"),
                    );
                }
            }
            SwapOutcome::NotDone(fault) => {
                let why = format!("the lock on {datastore} could not be written ({fault:?})");
                self.give_up_start(id, why);
            }
            SwapOutcome::Won => {
                let broken = vm.order.as_ref().and_then(|o| o.1.broken_from.clone());
                let (host, generation) = (self.me.host.clone(), record.generation);
                let vm_id = id.clone();
                match broken {
                    Some(from) => {
                        let why = format!(
                            "the right to run of {from} under generation {} was proven to have lapsed",
                            generation.0.saturating_sub(1)
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
                let stop = self.vms.get(id).and_then(|v| v.stop);
                if stop.is_none() {
                    // The lock says on: a wish from before it counts no more.
                    self.durable_dirty |= self.durable.wanted_off.remove(id);
                }
                if stop.is_some() {
                    self.stop_start(id, &record);
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
                        if let Some(order) = &mut vm.order {
                            order.1.broken_from = None;
                        }
                    }
                    self.acquire(id);
                }
            }
        }
    }

    /// It was switched off, or is not to run here any more, while its start was on its way.
    fn stop_start(&mut self, id: &VmId, record: &LockRecord) {
        let Some(vm) = self.vms.get(id) else { return };
        let Some((reason, desired)) = vm.stop else {
            return;
        };
        let prepared = matches!(vm.phase, Phase::Preparing { .. });
        let from = (record.generation, record.nonce);
        let why = String::from("it was switched off, or is not to run on this host");
        self.answer_order(id, StartOutcome::NotReady(why));
        if prepared {
            self.kill(id, reason, Some((from.0, from.1, desired)));
        } else {
            self.release(id, reason, from, desired);
        }
    }

    pub(crate) fn on_vm_guard(&mut self, id: &VmId, outcome: GuardOutcome) {
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        match vm.phase.clone() {
            Phase::Registering { record, .. }
                if outcome == GuardOutcome::Done && vm.stop.is_some() =>
            {
                self.guard_forget(GuardRequest::Remove { vm: id.clone() });
                self.stop_start(id, &record);
            }
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
                GuardOutcome::Lapsed | GuardOutcome::Refused(_) | GuardOutcome::NoGuard => {
                    let unstarted = vm.unstarted;
                    let why = if outcome == GuardOutcome::NoGuard {
                        let why = String::from("this host's guard does not run");
                        if self.vms.get(id).is_some_and(|v| v.order.is_none()) {
                            self.refuse(IssueCause::StartRefused, format!("{id} could not be started: {why}; power it on again when `mainstay status` does not name the guard"));
                        }
                        why
                    } else {
                        self.user_start_again(id);
                        String::from("the right to run ended before the start")
                    };
                    self.answer_order(id, StartOutcome::NotReady(why));
                    self.release(
                        id,
                        StopReason::StartAborted,
                        (record.generation, record.nonce),
                        unstarted,
                    );
                }
            },
            Phase::Unfreezing { word, record } => match outcome {
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
                GuardOutcome::Lapsed | GuardOutcome::Refused(_) | GuardOutcome::NoGuard => {
                    vm.phase = Phase::Frozen {
                        word,
                        record: Some(record),
                    };
                    self.retry_later(id);
                }
            },
            _ if outcome == GuardOutcome::Lapsed => self.on_right_refused(id),
            _ => {}
        }
    }

    pub(crate) fn on_vm_hypervisor(&mut self, id: &VmId, what: Ask, outcome: HypervisorOutcome) {
        if what == Ask::Shutdown {
            if !matches!(outcome, HypervisorOutcome::Done) {
                self.power_off_asked(id, "its guest cannot be asked to shut down");
            }
            return;
        }
        let resume = what == Ask::Resume;
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        let datastore = vm.spec.datastore.clone();
        let unstarted = vm.unstarted;
        match (vm.phase.clone(), outcome) {
            (Phase::Preparing { record, .. }, HypervisorOutcome::Done) if vm.stop.is_some() => {
                self.stop_start(id, &record);
            }
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
                    self.user_start_again(id);
                    self.answer_order(id, StartOutcome::NotReady(why));
                    self.kill(
                        id,
                        StopReason::StartAborted,
                        Some((record.generation, record.nonce, unstarted)),
                    );
                }
            }
            (Phase::Preparing { record, .. }, outcome) => {
                let answer = match outcome {
                    HypervisorOutcome::ImageLocked => StartOutcome::ImageLocked,
                    HypervisorOutcome::Failed(why) => StartOutcome::Failed(why),
                    HypervisorOutcome::Done => return,
                };
                self.say_start_failed(
                    id,
                    match &answer {
                        StartOutcome::Failed(why) => why,
                        _ => "the storage still holds the image lock of another host",
                    },
                );
                self.answer_order(id, answer);
                self.guard_forget(GuardRequest::Remove { vm: id.clone() });
                self.release(
                    id,
                    StopReason::StartAborted,
                    (record.generation, record.nonce),
                    unstarted,
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
                self.say_start_failed(id, &why);
                self.answer_order(id, StartOutcome::Failed(why));
                self.kill(
                    id,
                    StopReason::StartAborted,
                    Some((record.generation, record.nonce, Desired::On)),
                );
            }
            (Phase::Running { .. }, HypervisorOutcome::Failed(_)) if resume => {
                let again = self.now + self.timing().datastore_heartbeat;
                if let Some(vm) = self.vms.get_mut(id) {
                    vm.resume_at = Some(again);
                }
            }
            (Phase::Killing { .. }, HypervisorOutcome::Failed(_)) => self.retry_later(id),
            _ => {}
        }
    }

    /// The heartbeat on `datastore` was renewed: prolongs the right of every VM there.
    pub(crate) fn extend_vms(&mut self, datastore: &DatastoreId, counted: Instant) {
        let right = self.stores.get(datastore).map(|s| s.right.clone());
        if !right.is_some_and(|r| r.valid(self.now)) {
            return;
        }
        let (own, _) = self.constants();
        let here = self.vms.values().filter(|v| v.spec.datastore == *datastore);
        let extensions = here.filter_map(|v| v.extended(counted, own)).collect();
        self.extend(extensions);
    }

    /// The guard has extended rights to run. What it refused it froze, or is about to.
    pub(crate) fn on_extended(&mut self, outcome: GuardOutcome) {
        let GuardOutcome::Refused(refused) = outcome else {
            return;
        };
        for id in refused {
            self.on_right_refused(&id);
            // What follows from one is done before the next is looked at.
            self.run();
        }
    }

    /// The right under the current generation is over, as the guard sees it.
    fn on_right_refused(&mut self, id: &VmId) {
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        match &mut vm.phase {
            Phase::Running { record } => {
                let generation = record.generation;
                self.on_vm_lapsed(id, generation);
            }
            Phase::Adopting { generation } => {
                let generation = *generation;
                self.on_vm_lapsed(id, generation);
            }
            Phase::Preparing { lapsed, .. } | Phase::Resuming { lapsed, .. } => *lapsed = true,
            _ => {}
        }
    }
}
