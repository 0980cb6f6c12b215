//! A VM that was stopped where its lock cannot be written: its host says to the owner that it gave it up, and a
//! process that outlives its kill is a state of its own.
//!
//! What the host gives up is a generation. From its kill on it extends no right under it, and from its release on
//! it starts nothing under it (safety rule H4): that the generation is dead is a fact that no later event
//! changes. The owner's order expects exactly that generation, so that it is void if the lock moved on meanwhile,
//! by the host's own release that landed after all, for instance.

use super::{GivenUp, VmcpMessage};
use crate::agent::Agent;
use crate::event::{IssueCause, StopReason};
use crate::id::{Generation, HostId, Nonce, VmId};
use crate::vms::{LocalVm, Phase};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

impl Agent {
    /// Says again to the primary which VMs this host has given up, as long as it cannot write that.
    pub(super) fn tell_given_up(&mut self) {
        let now = self.now;
        if self.vmcp.next_tell.is_some_and(|at| now < at) {
            return;
        }
        let Some(primary) = self.role.followed().cloned() else {
            return;
        };
        let given_up: Vec<GivenUp> = self
            .vms
            .values()
            .filter_map(|v| self.given_up_here(v))
            .collect();
        if given_up.is_empty() {
            return;
        }
        self.vmcp.next_tell = Some(now + self.timing().datastore_heartbeat * 2);
        for what in given_up {
            self.say_vmcp(&primary, VmcpMessage::GivenUp(what));
        }
    }

    /// What this host gives up of a VM that should run elsewhere, and whose lock it cannot write.
    pub(super) fn given_up_here(&self, vm: &LocalVm) -> Option<GivenUp> {
        let store = self.stores.get(&vm.spec.datastore)?;
        store.path.lost()?;
        // Its user wants it here again, or off: nobody else is to start it.
        if vm.is_to_be_here() || vm.to_be_off() {
            return None;
        }
        let (generation, nonce, gone) = match &vm.phase {
            Phase::Releasing { reason, from, .. }
                if *reason == StopReason::Vmcp || reason.is_failure() =>
            {
                (from.0, from.1, true)
            }
            // Its right has ended by now as well, whatever the kill has come to.
            Phase::Killing {
                reason: StopReason::Vmcp,
                release: Some((generation, nonce, _)),
            } if self.now >= vm.since + self.constants().1 => (*generation, *nonce, false),
            _ => return None,
        };
        Some(self.giving_up(vm, (generation, nonce), gone))
    }

    fn giving_up(&self, vm: &LocalVm, from: (Generation, Nonce), gone: bool) -> GivenUp {
        GivenUp {
            vm: vm.spec.id.clone(),
            datastore: vm.spec.datastore.clone(),
            generation: from.0,
            nonce: from.1,
            gone,
        }
    }

    /// Planted bug: says that the VM was given up, and lets it run.
    pub(super) fn tell_given_up_alive(&mut self, vm: &VmId) {
        let told = self.vms.get(vm).and_then(|v| match &v.phase {
            Phase::Running { record } => {
                Some(self.giving_up(v, (record.generation, record.nonce), true))
            }
            _ => None,
        });
        if let (Some(primary), Some(told)) = (self.role.followed().cloned(), told) {
            self.say_vmcp(&primary, VmcpMessage::GivenUp(told));
        }
    }

    /// A VM was killed longer ago than its right to run could have lasted, and is not gone: a thread of it waits
    /// for its disk.
    pub(crate) fn is_stuck(&self, vm: &LocalVm) -> bool {
        matches!(vm.phase, Phase::Killing { .. }) && self.now >= vm.since + self.timing().freeze
    }

    /// How a VM stands whose storage is lost, where that says more than its host's report.
    pub(crate) fn storage_state(&self, vm: &VmId, host: &HostId) -> Option<(&'static str, String)> {
        let here = self.vms.get(vm).filter(|_| *host == self.me.host);
        let told = self.vmcp.given_up.get(vm);
        let told = told.filter(|(by, what)| by == host && !what.gone && here.is_none());
        if here.is_some_and(|v| self.is_stuck(v)) || told.is_some() {
            return Some((
                "killed_not_gone",
                format!(
                    "{host} has killed it, and a thread of its process waits for its disk: it executes nothing, and keeps the disk image locked"
                ),
            ));
        }
        here.filter(|v| v.paused).map(|_| {
            (
                "paused_on_error",
                String::from("its hypervisor paused it on an I/O error of its disk"),
            )
        })
    }

    /// Names the VMs that were killed and are not gone; to be called once in each heartbeat interval.
    pub(crate) fn watch_killed(&mut self) {
        let stuck: Vec<VmId> = self
            .vms
            .values()
            .filter(|v| self.is_stuck(v))
            .map(|v| v.spec.id.clone())
            .collect();
        for vm in stuck {
            self.issue_found(IssueCause::KilledNotGone, &vm, format!(
                "{vm} was killed and is not gone: a thread of its process waits for its disk, and keeps the disk image locked; it executes nothing, and its lock is given back when it is gone; restore the storage path of this host, or switch the host off if it does not come back"
            ));
        }
    }
}
