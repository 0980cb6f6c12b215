//! What an isolated host does with its VMs: it stops one only where that helps, because another primary
//! owns the VM's datastore and restarts it (seed "vSphere 5.0 High Availability (HA)", "A host is
//! isolated when": applied if the VM is owned). Where no primary does, it looks again. A VM whose
//! datastore cannot be reached is frozen already and is not stopped on top.

use crate::agent::{Agent, planted};
use crate::config::{IsolationResponse, RestartPriority};
use crate::event::{EventKind, StopReason};
use crate::id::{DatastoreId, HostId, VmId};
use crate::io::HypervisorRequest;
use crate::lock::LockName;
use crate::tasks::TaskFor;
use crate::time::Instant;
use crate::vms::Standing;
use crate::wire::{Desired, LockRecord};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// A guest that was asked to shut down for a reason that is not its own: its end is no wish to stay off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) reason: StopReason,
    /// The request is out since then; none: the note of it is not on disk yet.
    pub(crate) sent: Option<Instant>,
    /// It is switched off then; none: only its own end is awaited.
    pub(crate) until: Option<Instant>,
    /// From then on its end is its own wish again.
    pub(crate) expires: Instant,
}

impl Agent {
    /// When a guest that was asked to shut down is switched off.
    pub(crate) fn asked_due(&self) -> Option<Instant> {
        self.asked
            .values()
            .map(|a| a.until.unwrap_or(a.expires))
            .filter(|at| *at > self.now)
            .min()
    }

    pub(super) fn run_response(&mut self) {
        self.run_asked();
        if self.isolation.declared.is_none() || self.now < self.isolation.next_round {
            return;
        }
        self.isolation.next_round = self.now + self.timing().poweron_poll;
        let mut owners: BTreeSet<DatastoreId> = BTreeSet::new();
        let vms: Vec<VmId> = self.vms.keys().cloned().collect();
        for vm in vms {
            match self.response_for(&vm) {
                Some(Ok(_)) => owners.extend(self.vms.get(&vm).map(|v| v.spec.datastore.clone())),
                Some(Err(why)) => self.skip(&vm, why),
                None => {}
            }
        }
        for datastore in owners {
            let purpose = TaskFor::Isolated(datastore.clone());
            if !self.has_task(&purpose) {
                self.read_lock(&datastore, LockName::Owner, purpose);
            }
        }
    }

    /// The response for a VM of this host, or why there is none; nothing when it is being stopped.
    fn response_for(&self, vm: &VmId) -> Option<Result<IsolationResponse, String>> {
        let local = self.vms.get(vm)?;
        let none = |why: &str| Some(Err(String::from(why)));
        let response = local
            .spec
            .isolation_response
            .unwrap_or(self.config.settings.isolation_response);
        if self.asked.get(vm).is_some_and(|a| a.until.is_some()) {
            return None;
        }
        match local.standing() {
            Standing::Going => return None,
            Standing::Coming => return none("it is only being started here"),
            Standing::Runs | Standing::Frozen => {}
        }
        if !self.config.settings.host_monitoring {
            return none("host_monitoring is off");
        }
        let disabled = local.spec.restart_priority == RestartPriority::Disabled;
        if disabled && !planted!(self, DisabledIsStopped) {
            return none("its restart priority is disabled: nobody would restart it");
        }
        if response == IsolationResponse::LeavePoweredOn {
            return none("its isolation response is to leave it powered on");
        }
        if local.standing() == Standing::Frozen {
            return none(
                "its datastore cannot be reached from here, so it is frozen already; it is not stopped on top",
            );
        }
        Some(Ok(response))
    }

    /// Says once, for each reason, why a VM is left alone.
    fn skip(&mut self, vm: &VmId, why: String) {
        if self.isolation.said.get(vm) == Some(&why) {
            return;
        }
        self.isolation.said.insert(vm.clone(), why.clone());
        let (vm, host) = (vm.clone(), self.me.host.clone());
        let reason = why.clone();
        self.emit(EventKind::IsolationSkipped { host, vm, reason }, why);
    }

    /// The owner lock of a datastore on which VMs wait for their response.
    pub(crate) fn on_isolated_owner(
        &mut self,
        datastore: &DatastoreId,
        record: Option<LockRecord>,
    ) {
        if self.isolation.declared.is_none() {
            return;
        }
        let owner = self.acting_elsewhere(datastore, record);
        let here: Vec<VmId> = self
            .vms
            .iter()
            .filter(|(_, v)| v.spec.datastore == *datastore)
            .map(|(id, _)| id.clone())
            .collect();
        for vm in here {
            let Some(Ok(response)) = self.response_for(&vm) else {
                continue;
            };
            match &owner {
                Ok(owner) => self.respond(&vm, response, owner),
                Err(why) => self.skip(&vm, why.clone()),
            }
        }
    }

    /// The other host that owns the datastore, and whose heartbeat there goes on.
    fn acting_elsewhere(
        &self,
        datastore: &DatastoreId,
        record: Option<LockRecord>,
    ) -> Result<HostId, String> {
        let holder = record.and_then(|r| r.holder).map(|h| h.host);
        if planted!(self, IsolationWithoutOwner) {
            return Ok(self.me.host.clone());
        }
        let Some(holder) = holder.filter(|h| *h != self.me.host) else {
            return Err(format!(
                "no primary owns {datastore}, so that nobody would restart it; checked again"
            ));
        };
        let fresh = self.stores.get(datastore).is_some_and(|s| {
            s.windows
                .get(&holder)
                .and_then(crate::liveness::Window::changed)
                .is_some_and(|at| self.now.since(at) <= self.timing().freeze)
        });
        if fresh {
            Ok(holder)
        } else {
            Err(format!(
                "{holder} owns {datastore} but its heartbeat there stands still, so that nobody would restart it; checked again"
            ))
        }
    }

    fn respond(&mut self, vm: &VmId, response: IsolationResponse, owner: &HostId) {
        let Some(local) = self.vms.get(vm) else {
            return;
        };
        let (can_ask, datastore) = (local.spec.guest_agent, local.spec.datastore.clone());
        let softly = response == IsolationResponse::ShutDown && can_ask;
        let mut why =
            format!("this host is isolated, and {owner} owns {datastore} and restarts it");
        if response == IsolationResponse::ShutDown && !can_ask {
            why.push_str("; its guest cannot be asked to shut down");
        }
        let action = if softly {
            IsolationResponse::ShutDown
        } else {
            IsolationResponse::PowerOff
        };
        let (host, id) = (self.me.host.clone(), vm.clone());
        self.emit(
            EventKind::IsolationResponse {
                host,
                vm: id,
                action,
            },
            why,
        );
        if softly {
            let timeout = self.config.settings.isolation_shutdown_timeout;
            self.ask_to_shut_down(vm, StopReason::Isolation, timeout);
        } else {
            self.stop_for(vm, StopReason::Isolation, Desired::On);
        }
    }

    // Guests that are asked to shut down.

    /// Notes on local disk that the guest's end will not be its own wish, then asks it to shut down,
    /// and switches it off when it has not done so in time.
    pub(crate) fn ask_to_shut_down(
        &mut self,
        vm: &VmId,
        reason: StopReason,
        timeout: crate::time::Duration,
    ) {
        let until = self.now + timeout;
        let asked = Asked {
            reason,
            sent: None,
            until: Some(until),
            expires: until + timeout,
        };
        self.asked.insert(vm.clone(), asked);
        self.durable.asked_down.insert(vm.clone(), reason);
        self.durable_dirty = true;
    }

    fn run_asked(&mut self) {
        let now = self.now;
        let noted = self.durable_is_on_disk();
        let (mut ask, mut late, mut over) = (Vec::new(), Vec::new(), Vec::new());
        for (vm, asked) in &mut self.asked {
            if asked.sent.is_none() && asked.until.is_some() && noted {
                asked.sent = Some(now);
                ask.push(vm.clone());
            }
            if asked.until.is_some_and(|until| now >= until) {
                late.push(vm.clone());
            }
            if asked.until.is_none() && now >= asked.expires {
                over.push(vm.clone());
            }
        }
        for vm in over {
            self.forget_asked(&vm);
        }
        for vm in ask {
            self.hypervisor(&vm, HypervisorRequest::Shutdown { vm: vm.clone() });
        }
        for vm in late {
            let frozen = self.vms.get(&vm).map(|v| v.standing()) == Some(Standing::Frozen);
            let again = now + self.timing().poweron_poll;
            match self.asked.get_mut(&vm) {
                // It cannot obey, and it does no harm: looked at again.
                Some(asked) if frozen => asked.until = Some(again),
                _ => self.power_off_asked(&vm, "it has not shut down in time"),
            }
        }
    }

    /// The guest cannot be asked, or did not obey: it is switched off.
    pub(crate) fn power_off_asked(&mut self, vm: &VmId, why: &str) {
        let Some(asked) = self.asked.get_mut(vm) else {
            return;
        };
        asked.until = None;
        let reason = asked.reason;
        if reason == StopReason::Isolation {
            let (host, id) = (self.me.host.clone(), vm.clone());
            let action = IsolationResponse::PowerOff;
            self.emit(
                EventKind::IsolationResponse {
                    host,
                    vm: id,
                    action,
                },
                String::from(why),
            );
        }
        self.stop_for(vm, reason, Desired::On);
    }

    /// Isolation has ended: who was asked may still shut down and is restarted then; nobody is switched
    /// off any more, and nobody else is asked.
    pub(super) fn stop_responding(&mut self) {
        let mut unasked = Vec::new();
        for (vm, asked) in &mut self.asked {
            if asked.reason == StopReason::Isolation {
                asked.until = None;
                if asked.sent.is_none() {
                    unasked.push(vm.clone());
                }
            }
        }
        for vm in unasked {
            self.forget_asked(&vm);
        }
        // A stop that has not begun is called off.
        for vm in self.vms.values_mut() {
            vm.call_off(StopReason::Isolation);
        }
    }

    /// Whatever the guest was asked for is over.
    pub(crate) fn forget_asked(&mut self, vm: &VmId) {
        self.asked.remove(vm);
        self.durable_dirty |= self.durable.asked_down.remove(vm).is_some();
    }
}
