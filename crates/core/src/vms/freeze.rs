//! Freezing and thawing: a lapsed generation never runs again; only a swap that was won while the
//! right held lets the VM go on (safety rules H1, H9).

use crate::agent::{Agent, planted};
use crate::event::{EventKind, IssueCause, StopReason};
use crate::id::{Generation, VmId};
use crate::io::GuardRequest;
use crate::lock::{LockName, SwapOutcome, Token};
use crate::tasks::TaskFor;
use crate::wire::{Desired, LockRecord, StartOutcome};
use alloc::format;
use alloc::string::String;

use super::Phase;

impl Agent {
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
        if !matches!(vm.phase, Phase::Killing { .. }) {
            vm.since = self.now;
        }
    }

    /// Tries to thaw a frozen VM: only by winning a swap of its lock while the right holds.
    pub(super) fn thaw(&mut self, id: &VmId) {
        let Some(vm) = self.vms.get(id) else { return };
        let Phase::Frozen { word, record } = &vm.phase else {
            return;
        };
        if vm.retry_at.is_some_and(|at| self.now < at) {
            return;
        }
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

    /// Planted bug: asks the guard to let a frozen VM go on under the generation that lapsed.
    pub(crate) fn unfreeze_as_it_was(&mut self, id: &VmId, deadline: crate::time::Instant) {
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        if let Phase::Frozen {
            word,
            record: Some(record),
        } = vm.phase.clone()
        {
            vm.phase = Phase::Unfreezing { word, record };
            let request = GuardRequest::Thaw {
                vm: id.clone(),
                from: word,
                to: word,
                deadline,
            };
            self.guard(id, request);
        }
    }

    pub(super) fn on_thaw_swapped(
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
                self.retry_later(id);
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
                let unbroken = self.unbroken(&datastore, token) || planted!(self, ThawAfterGap);
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
                    vm.phase = Phase::Unfreezing { word, record };
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

    /// What was refused is asked for again at the next heartbeat.
    pub(super) fn retry_later(&mut self, id: &VmId) {
        let at = self.now + self.timing().datastore_heartbeat;
        if let Some(vm) = self.vms.get_mut(id) {
            vm.retry_at = Some(at);
        }
    }

    pub(crate) fn lock_lost(&mut self, id: &VmId, generation: Generation) {
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
        self.say_stop_lost(id);
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
                self.give_up_start(id, String::from("its lock was never begun, or is gone"));
            } else {
                self.retry_later(id);
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
            Phase::Reading
                if vm.to_be_off() && record.holder.is_none() && record.desired == Desired::Off =>
            {
                // Switched off before its start began, and the lock says so already.
                self.durable_dirty |= self.durable.wanted_off.remove(id);
                self.vms.remove(id);
                self.report_dirty = true;
            }
            Phase::Reading if record.holder.is_none() || mine => {
                if vm.order.is_none() {
                    vm.unstarted = record.desired;
                }
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
                self.say_stop_lost(id);
                self.durable_dirty |= self.durable.wanted_off.remove(id);
                self.answer_order(id, StartOutcome::LockLost);
                self.vms.remove(id);
                self.report_dirty = true;
                self.refuse(IssueCause::StartRefused, format!(
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
                        vm.phase = Phase::Unfreezing { word, record };
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
}
