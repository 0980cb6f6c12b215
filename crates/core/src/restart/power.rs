//! Where proof of death by power is needed, and whether it is being collected (`fencing`).

use super::{Restart, Step};
use crate::agent::Agent;
use crate::config::FenceClass;
use crate::event::HostState;
use crate::id::{DatastoreId, HostId, VmId};
use crate::time::Instant;
use crate::wire::LockRecord;

impl Agent {
    /// The storage does not refuse late writes, and they are not accepted: locks there are broken only with
    /// proof of death.
    pub(super) fn must_be_off(&self, datastore: &DatastoreId) -> bool {
        let spec = self.config.datastores.get(datastore);
        let enforced = spec.is_some_and(|d| d.fence == FenceClass::Enforced);
        !enforced && !self.config.settings.accept_late_writes
    }

    /// An attempt to prove by its power that the lock's holder is dead is under way since after it was read.
    pub(super) fn awaits_power_of_holder(&self, record: &LockRecord, read_done: Instant) -> bool {
        let holder = record.holder.as_ref();
        holder.is_some_and(|h| self.awaits_power(&h.host, read_done))
    }

    /// A VM that would be restarted if it was proven by its power that this host is dead, and is not yet.
    /// `wanted`: one was found before, and its lock may be being read just now.
    pub(crate) fn needs_power_proof(&self, host: &HostId, wanted: bool) -> Option<VmId> {
        let helps = |(vm, restart): &(&VmId, &Restart)| match &restart.step {
            Step::Waiting {
                record, read_done, ..
            } => {
                let holds = record.holder.as_ref().is_some_and(|h| h.host == *host);
                holds
                    && self.policy_permits(vm, &restart.datastore).is_ok()
                    && self.power_helps(&restart.datastore, host, record, *read_done)
            }
            Step::Look(_) | Step::Looking { .. } => wanted && restart.is_held_by(host),
            Step::Ordered { .. } | Step::Runs { .. } | Step::Abandoned => false,
        };
        self.restarts.iter().find(helps).map(|(vm, _)| vm.clone())
    }

    /// Would proof by power do what the lapsed right of the lock's holder does not, or not yet?
    fn power_helps(
        &self,
        datastore: &DatastoreId,
        host: &HostId,
        record: &LockRecord,
        read_done: Instant,
    ) -> bool {
        let state = self.peers.get(host).map(|p| p.state);
        if state == Some(HostState::AgentUnreachable) {
            // It answers pings: its agent may be being restarted on purpose. It is left alone for as long as
            // anything may run there, and where its lapsed right is proof enough.
            let lapsed = self.window_proof(datastore, host, read_done, record.r#break);
            return self.must_be_off(datastore) && lapsed.is_ok();
        }
        self.proven(datastore, host, record, read_done).is_err()
    }
}
