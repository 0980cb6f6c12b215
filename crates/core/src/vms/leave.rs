//! The host is shut down by its admin: its guests are asked to shut down, or are switched off, and their
//! locks are given back with a mark that says why. Whether they are restarted elsewhere or wait for the
//! host is the cluster's policy (`host_shutdown`), and the owner's business.

use crate::agent::Agent;
use crate::event::{AbdicationCause, EventKind, StopReason};
use crate::id::{HostId, VmId};
use crate::io::Channel;
use crate::wire::{Desired, Message};
use alloc::string::String;
use alloc::vec::Vec;

use super::Standing;

impl Agent {
    pub(crate) fn leave(&mut self) {
        if self.leaving.is_some() {
            return;
        }
        self.leaving = Some(self.now);
        let host = self.me.host.clone();
        self.emit(
            EventKind::HostLeaving { host },
            String::from("its admin shuts it down: its VMs are stopped and their locks given back"),
        );
        // Before anything stops: whoever restarts the VMs must know that this host is going.
        let others: Vec<HostId> = self.peers.keys().cloned().collect();
        for to in others {
            self.send(&to, Channel::Stream, Message::Leaving);
        }
        let vms: Vec<VmId> = self.vms.keys().cloned().collect();
        let timeout = self.config.settings.host_shutdown_timeout;
        for vm in vms {
            let Some(local) = self.vms.get(&vm) else {
                continue;
            };
            match local.standing() {
                Standing::Runs if local.spec.guest_agent => {
                    self.ask_to_shut_down(&vm, StopReason::HostShutdown, timeout);
                }
                Standing::Runs | Standing::Frozen | Standing::Coming => {
                    self.stop_for(&vm, StopReason::HostShutdown, Desired::On);
                }
                Standing::Going => {}
            }
        }
        self.step_down(AbdicationCause::HostLeaving, "this host is being shut down");
        self.want_poweron_list();
    }

    /// Nothing of a VM, and no lock that this host could still give back, keeps it from going down.
    #[must_use]
    pub fn may_leave(&self) -> bool {
        self.leaving.is_some() && self.vms.is_empty() && self.gives_nothing_back()
    }
}
