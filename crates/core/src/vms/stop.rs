//! Stopping a VM and giving its lock back: released only when every thread is gone, and from the
//! moment of the release nothing runs under that generation (safety rule H4).

use crate::agent::{Agent, planted};
use crate::event::{EventKind, IssueCause, StopReason};
use crate::id::{Generation, Nonce, VmId};
use crate::io::{ExitCause, GuardRequest, HypervisorRequest};
use crate::lock::{LockName, SwapOutcome};
use crate::tasks::TaskFor;
use crate::wire::{Desired, GivenBack, LockRecord, StartOutcome};
use alloc::format;
use alloc::string::String;

use super::{LocalVm, Phase};

/// The end of the VM is said when its process is gone, and not only when its lock says so: a release may take as
/// long as the storage is lost.
fn said_at_once(reason: StopReason) -> bool {
    reason.is_failure() || reason == StopReason::Vmcp
}

impl Agent {
    pub(super) fn kill(
        &mut self,
        id: &VmId,
        reason: StopReason,
        release: Option<(Generation, Nonce, Desired)>,
    ) {
        let Some(vm) = self.vms.get_mut(id) else {
            return;
        };
        vm.phase = Phase::Killing { reason, release };
        vm.retry_at = None;
        vm.since = self.now;
        self.report_dirty = true;
        self.hypervisor(id, HypervisorRequest::Kill { vm: id.clone() });
        if planted!(self, OffTheListTooEarly) {
            self.want_poweron_list();
        }
        if let Some((generation, nonce, desired)) = release
            && planted!(self, ReleasedBeforeGone)
        {
            self.release(id, reason, (generation, nonce), desired);
        }
    }

    pub(crate) fn on_vm_exited(&mut self, id: &VmId, cause: ExitCause) {
        self.withdraw(IssueCause::KilledNotGone, id);
        self.forget_io_error(id);
        let Some(vm) = self.vms.get_mut(id) else {
            if self.leftover.remove(id) {
                self.withdraw(IssueCause::VmUnknown, id);
                let now = self.now;
                for store in self.stores.values_mut() {
                    store.scan.again(now);
                }
            }
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
            Phase::Preparing { record, .. } | Phase::Resuming { record, .. } => {
                let never_ran = matches!(vm.phase, Phase::Preparing { .. });
                let stays_off = never_ran && vm.stop.is_none() && vm.unstarted == Desired::Off;
                let from = (record.generation, record.nonce);
                let why = "its process ended while it was started";
                self.say_start_failed(id, why);
                self.answer_order(id, StartOutcome::Failed(String::from(why)));
                if stays_off {
                    self.guard_forget(GuardRequest::Remove { vm: id.clone() });
                    self.release(id, StopReason::StartAborted, from, Desired::Off);
                } else {
                    self.on_gone(id, cause, Some(from));
                }
            }
            Phase::Running { record } => {
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
                if cause == ExitCause::GuestShutdown && !self.asked.contains_key(id) {
                    // The orphan's release must not turn the guest's own wish into a restart.
                    self.durable_dirty |= self.durable.wanted_off.insert(id.clone());
                }
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
    pub(super) fn on_gone(
        &mut self,
        id: &VmId,
        cause: ExitCause,
        from: Option<(Generation, Nonce)>,
    ) {
        let (reason, desired) = match cause {
            ExitCause::GuestShutdown => (StopReason::Guest, Desired::Off),
            ExitCause::Crash if planted!(self, CrashIsOff) => (StopReason::Crash, Desired::Off),
            ExitCause::Crash => (StopReason::Crash, Desired::On),
            ExitCause::Killed => (StopReason::FrozenLimit, Desired::On),
            ExitCause::Panicked => (StopReason::Panic, Desired::On),
            ExitCause::OutOfMemory => (StopReason::Oom, Desired::On),
        };
        let asked = self
            .asked
            .get(id)
            .filter(|_| cause == ExitCause::GuestShutdown);
        let asked = asked.map(|a| (a.reason, Desired::On));
        let wished = self.vms.get(id).and_then(|v| v.stop).or(asked);
        let (reason, desired) = wished.unwrap_or((reason, desired));
        self.forget_asked(id);
        self.guard_forget(GuardRequest::Remove { vm: id.clone() });
        match from {
            Some(from) => self.release(id, reason, from, desired),
            None => self.gone(id, reason),
        }
    }

    /// Gives the lock back. From here on nothing runs under that generation.
    pub(super) fn release(
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
        // What its user wished in the meantime counts, whatever the release began with.
        let (reason, desired) = match vm.stop {
            Some(wished @ (_, Desired::Off)) => wished,
            _ => (reason, desired),
        };
        vm.phase = Phase::Releasing {
            reason,
            from,
            start_again: vm.again,
        };
        vm.since = self.now;
        self.report_dirty = true;
        self.want_poweron_list();
        if said_at_once(reason) {
            self.say_stopped(id, reason);
        }
        let given_back = GivenBack {
            host: self.me.host.clone(),
            reason: reason.on_disk(),
        };
        self.swap_lock_noting(
            &datastore,
            LockName::Vm(id.clone()),
            TaskFor::Vm(id.clone()),
            from,
            None,
            desired,
            Some(given_back),
        );
    }

    pub(super) fn on_released(
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
                self.release_again(id, from, &record);
                return;
            }
            SwapOutcome::Won => {
                let late = self.vms.get(id).is_some_and(LocalVm::to_be_off);
                if late && record.desired == Desired::On {
                    // Switched off while the release was out: the lock is free, and must say so.
                    let now = (record.generation, record.nonce);
                    if let Some(vm) = self.vms.get_mut(id) {
                        vm.phase = Phase::Releasing {
                            reason,
                            from: now,
                            start_again,
                        };
                    }
                    self.release_again(id, now, &record);
                    return;
                }
                self.say_released(id, &record);
            }
            SwapOutcome::Lost => self.say_stop_lost(id),
        }
        let spec = self.vms.get(id).map(|v| v.spec.clone());
        if said_at_once(reason) || reason == StopReason::StartAborted {
            // It was said when the release began.
            self.vms.remove(id);
            self.report_dirty = true;
        } else {
            self.gone(id, reason);
        }
        self.durable_dirty |= self.durable.wanted_off.remove(id);
        if let (true, Some(spec)) = (start_again, spec) {
            self.start_again(spec);
        }
    }

    /// Gives back, once more, from a generation that nothing runs under any more; with the intent of now.
    fn release_again(&mut self, id: &VmId, from: (Generation, Nonce), record: &LockRecord) {
        let Some(vm) = self.vms.get(id) else { return };
        let datastore = vm.spec.datastore.clone();
        let desired = if vm.to_be_off() {
            Desired::Off
        } else {
            record.desired
        };
        self.swap_lock_noting(
            &datastore,
            LockName::Vm(id.clone()),
            TaskFor::Vm(id.clone()),
            from,
            None,
            desired,
            record.given_back.clone(),
        );
    }

    /// Another host has taken the lock: a power-off that was accepted here cannot be carried out here.
    pub(super) fn say_stop_lost(&mut self, id: &VmId) {
        if self.vms.get(id).is_some_and(LocalVm::to_be_off) {
            self.refuse(
                IssueCause::StopRefused,
                format!("{id} was to be switched off here, but another host has taken its lock: power it off there"),
            );
        }
    }

    /// Says that the lock is free, and what follows for the VM.
    pub(crate) fn say_released(&mut self, id: &VmId, record: &LockRecord) {
        let (vm, host, generation) = (id.clone(), self.me.host.clone(), record.generation);
        let should = match record.desired {
            Desired::On => {
                "it should run, and where it is protected it is restarted where there is room"
            }
            Desired::Off => "it should be off, and is restarted by nobody",
        };
        let why = format!("nothing of the VM is left on this host; {should}");
        self.emit(
            EventKind::LockReleased {
                vm,
                host,
                generation,
            },
            why,
        );
    }

    pub(super) fn gone(&mut self, id: &VmId, reason: StopReason) {
        self.say_stopped(id, reason);
        self.vms.remove(id);
        self.report_dirty = true;
        self.want_poweron_list();
    }

    pub(super) fn say_stopped(&mut self, id: &VmId, reason: StopReason) {
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
            StopReason::Vmcp => {
                "component protection: its storage was lost on this host, or was lost for too long"
            }
            StopReason::Host => "the host stopped",
            StopReason::HostShutdown => "its host is being shut down by its admin",
            StopReason::Panic => "its guest's operating system panicked",
            StopReason::Oom => {
                "its host's kernel killed it for want of memory (oom_kill counted in its cgroup); give the host more memory, or fewer VMs"
            }
        };
        self.emit(EventKind::VmStopped { vm, host, reason }, String::from(why));
    }
}
