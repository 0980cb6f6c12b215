//! The powered-on lists of hosts that are cut off: what such a host says of itself through the datastores.

use super::Window;
use crate::agent::{Agent, Pending};
use crate::event::{HostState, IssueCause};
use crate::id::{DatastoreId, HostId};
use crate::io::{StorageOutcome, StorageRequest, StorageValue};
use crate::time::Instant;
use crate::wire::{HeartbeatRecord, PoweronRecord, RecordKey, Stamp};
use alloc::format;
use alloc::vec::Vec;

impl Agent {
    pub(crate) fn read_poweron_lists(&mut self) {
        if !self.role.is_primary() {
            return;
        }
        let now = self.now;
        let every = self.timing().poweron_poll;
        let unsettled = self.judging.unsettled.iter();
        let cut_off: Vec<HostId> = unsettled
            .filter_map(|h| Some((h, self.peers.get(h)?)))
            .filter(|(_, p)| {
                matches!(
                    p.state,
                    HostState::Unreachable
                        | HostState::Partitioned
                        | HostState::Isolated
                        | HostState::AgentUnreachable
                )
            })
            .map(|(h, _)| h.clone())
            .collect();
        if cut_off.is_empty() {
            return;
        }
        let mut due: Vec<DatastoreId> = Vec::new();
        for (datastore, store) in &mut self.stores {
            if now >= store.poweron_next_read {
                store.poweron_next_read = now + every;
                due.push(datastore.clone());
            }
        }
        for host in cut_off {
            // Where its heartbeat goes on, its list is kept too; elsewhere an old one may lie about.
            let lately = now
                - every
                    .max(self.timing().freeze)
                    .min(now.since(Instant::ZERO));
            let goes_on = |d: &&DatastoreId| {
                let window = self.stores.get(*d).and_then(|s| s.windows.get(&host));
                window
                    .and_then(Window::changed)
                    .is_some_and(|at| at >= lately)
            };
            let there: Vec<&DatastoreId> = due.iter().filter(goes_on).collect();
            for datastore in there {
                let request = StorageRequest::Read(RecordKey::Poweron(host.clone()));
                let pending = Pending::PoweronRead {
                    datastore: datastore.clone(),
                    host: host.clone(),
                };
                self.storage(datastore, request, pending);
            }
        }
    }

    /// The list on one datastore is newer than what is known of that host's lists. Where one cannot be
    /// written, an old one lies beside a heartbeat that goes on. Starts of an agent have no order: the start
    /// that writes the heartbeat beside the list is the present one.
    fn is_newer_list(&self, datastore: &DatastoreId, host: &HostId, stamp: &Stamp) -> bool {
        let known = self.peers.get(host).and_then(|p| p.poweron.as_ref());
        if let Some((known, _)) = known.filter(|(k, _)| k.instance == stamp.instance) {
            return stamp.seq >= known.seq;
        }
        let window = self.stores.get(datastore).and_then(|s| s.windows.get(host));
        let beside = window.and_then(|w| w.bytes()).and_then(|bytes| {
            let (beside, _) = HeartbeatRecord::decode(self.config.cluster_id, bytes).ok()?;
            Some(beside.instance)
        });
        beside == Some(stamp.instance)
    }

    pub(crate) fn on_poweron_read(
        &mut self,
        datastore: &DatastoreId,
        host: &HostId,
        outcome: &StorageOutcome,
    ) {
        let StorageOutcome::Ok(StorageValue::Bytes(bytes)) = outcome else {
            return;
        };
        let about = format_args!("list of {host}");
        match PoweronRecord::decode(self.config.cluster_id, bytes) {
            Ok((stamp, record)) => {
                if record.unreadable > 0 {
                    let unreadable = record.unreadable;
                    self.issue_found(IssueCause::RecordUnreadable, about, format!(
                        "the powered-on list of {host} is damaged: {unreadable} of its slots cannot be read, and a VM that it does not name may be on; {host} writes it anew when it can reach its datastores"
                    ));
                } else {
                    self.withdraw(IssueCause::RecordUnreadable, about);
                }
                let newer = self.is_newer_list(datastore, host, &stamp);
                if let Some(peer) = self.peers.get_mut(host).filter(|_| newer) {
                    peer.poweron = Some((stamp, record));
                }
            }
            Err(error) => self.issue_found(
                IssueCause::RecordUnreadable,
                about,
                format!("the powered-on list of {host} cannot be read: {error}"),
            ),
        }
    }
}
