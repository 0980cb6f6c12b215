//! What a host's power proves, and what contradicts it.

use super::{PowerOff, Signs};
use crate::agent::{Agent, planted};
use crate::event::HostState;
use crate::id::{DatastoreId, HostId};
use crate::time::Instant;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

impl Signs {
    /// From when on nothing was seen of the host.
    pub(super) fn quiet_from(&self, off: &PowerOff) -> Instant {
        let last = self.first.values().copied().max();
        last.map_or(off.done, |at| at.max(off.done))
    }
}

impl Agent {
    /// A host's device has called it off, and no sign of life came since.
    pub(crate) fn is_off(&self, host: &HostId) -> bool {
        let off = self.fencing.hosts.get(host).and_then(|fence| fence.off);
        off.is_some_and(|off| !off.over && !self.lives_since(host, &off))
    }

    /// A host that was off has been heard of since: it was switched on again.
    fn lives_since(&self, host: &HostId, off: &PowerOff) -> bool {
        let late = off.done + self.fence_settles();
        let heard = self.peers.get(host).and_then(|p| p.heard);
        let windows = self.stores.values().filter_map(|s| s.windows.get(host));
        let changed = windows.filter_map(crate::liveness::Window::changed).max();
        heard.max(changed).is_some_and(|at| at > late) && !planted!(self, FenceSignsIgnored)
    }

    /// A datastore is owned here on which the host's heartbeat has not been read since `from`.
    pub(super) fn owns_unread(&self, host: &HostId, from: Instant) -> bool {
        let unread = |(datastore, store): (&DatastoreId, &crate::store::Store)| {
            let window = store.windows.get(host);
            window.is_some_and(|w| w.last_issue() < from) && self.acting(datastore).is_some()
        };
        self.stores.iter().any(unread)
    }

    /// What speaks against a device that calls a host off: messages, answered pings, a heartbeat that goes on.
    pub(super) fn sign_of_life(
        &self,
        host: &HostId,
        off: &PowerOff,
        signs: &mut Signs,
    ) -> Option<String> {
        // What was on its way when the power went may come a little later.
        let late = off.done + self.timing().network_heartbeat;
        let peer = self.peers.get(host)?;
        if peer.heard.is_some_and(|at| at > late) {
            return Some(String::from("its network heartbeats come"));
        }
        if peer.ping_answered_at().is_some_and(|at| at > late) {
            return Some(String::from("it answers pings"));
        }
        for (datastore, store) in &self.stores {
            let changed = store.windows.get(host).and_then(|w| w.changed());
            let Some(at) = changed.filter(|at| *at > off.done) else {
                continue;
            };
            let first = *signs.first.entry(datastore.clone()).or_insert(at);
            if at > first {
                return Some(format!("its heartbeat on {datastore} goes on"));
            }
        }
        None
    }

    /// Proof by power that nothing of that host runs under a lock that was read at `read_done`: its device
    /// called it off when it was asked later than that, and its heartbeat there, read after that, stood still.
    /// What was locked before a host lost its power needs a new generation to run again, whatever the host does
    /// when it is back: such a proof is true for ever. The error says what is missing.
    pub(crate) fn power_proof(
        &self,
        datastore: &DatastoreId,
        host: &HostId,
        read_done: Instant,
    ) -> Result<(), String> {
        let Some(off) = self.fencing.hosts.get(host).and_then(|fence| fence.off) else {
            return Err(format!("it is not proven that the power of {host} is off"));
        };
        // Of two things at one moment nobody knows which was first.
        if read_done >= off.issued && !planted!(self, PowerProofOutlivesBoot) {
            return Err(format!(
                "the lock was read after the power of {host} was last asked for"
            ));
        }
        let store = self.stores.get(datastore);
        if let Some(why) = store.and_then(|s| s.quarantine.as_ref()) {
            return Err(why.clone());
        }
        let settled = off.done + self.fence_settles();
        let window = store.and_then(|s| s.windows.get(host));
        if window.is_none_or(|w| w.last_issue() < settled) {
            return Err(format!(
                "the heartbeat of {host} on {datastore} has not been read since its power is off"
            ));
        }
        Ok(())
    }

    /// An attempt to prove the host's death is under way that began after a lock was read at `read_done`: to
    /// read the lock again would void what it will prove. A host that is live again will prove nothing.
    pub(crate) fn awaits_power(&self, host: &HostId, read_done: Instant) -> bool {
        if self.peers.get(host).map(|p| p.state) == Some(HostState::Live) {
            return false;
        }
        let fence = self.fencing.hosts.get(host);
        let began = fence.and_then(|f| f.stage.began());
        began.is_some_and(|began| began >= read_done)
    }

    /// Fence devices of hosts are asked for, but not of all.
    pub(super) fn say_missing_devices(&mut self) {
        const ABOUT: &str = "missing devices";
        let cause = crate::event::IssueCause::FenceWeak;
        let has = |h: &&HostId| !self.fencing.devices.contains(*h);
        let missing: Vec<&str> = self
            .config
            .hosts
            .keys()
            .filter(|h| **h != self.me.host)
            .filter(has)
            .map(HostId::as_str)
            .collect();
        if self.fencing.devices.is_empty() || missing.is_empty() {
            self.withdraw(cause, ABOUT);
            return;
        }
        let text = format!(
            "this host has no fence device for {}: their death is proven by their lapsed right alone; add them to its fence file",
            missing.join(", ")
        );
        self.issue(cause, ABOUT, text);
    }
}
