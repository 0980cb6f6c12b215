//! Does a datastore enforce the locks that hypervisors put on disk images? Probed, not assumed.
//!
//! Each agent holds such a lock on a file of its own on each datastore. The primary asks its storage
//! whether it sees the lock of another host that is alive: where it does not, two hypervisors could open
//! one image, and only Mainstay's own locks stand between them.

use super::Issue;
use crate::agent::{Agent, Pending};
use crate::event::IssueCause;
use crate::id::{DatastoreId, HostId};
use crate::io::{StorageOutcome, StorageRequest, StorageValue};
use crate::time::Instant;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;

/// A lock must be missed so often before it is said: an agent that is being started has none yet.
const MISSED: u32 = 3;
/// Heartbeat intervals before a missed lock is looked for again.
const AGAIN_AFTER: u32 = 8;

#[derive(Clone, Debug)]
struct Check {
    next: Instant,
    asked: bool,
    missed: u32,
    /// Whose lock was not seen.
    open: Option<HostId>,
    /// Whose lock is looked for: the host after this one.
    last: Option<HostId>,
}

/// The checks by datastore.
#[derive(Clone, Debug, Default)]
pub(crate) struct LockChecks(BTreeMap<DatastoreId, Check>);

impl Agent {
    pub(super) fn check_image_locks(&mut self) {
        if !self.role.is_primary() {
            self.lock_checks.0.clear();
            return;
        }
        let now = self.now;
        let soon = now + AGAIN_AFTER * self.timing().network_heartbeat;
        let used: Vec<DatastoreId> = self.stores.keys().cloned().collect();
        self.lock_checks.0.retain(|d, _| used.contains(d));
        for datastore in used {
            let check = self
                .lock_checks
                .0
                .entry(datastore.clone())
                .or_insert(Check {
                    next: soon,
                    asked: false,
                    missed: 0,
                    open: None,
                    last: None,
                });
            if check.asked || now < check.next {
                continue;
            }
            let last = check.last.clone();
            let Some(host) = self.next_with(&datastore, last.as_ref()) else {
                continue;
            };
            let request = StorageRequest::ProbeLock(host.clone());
            let pending = Pending::ProbeLock {
                datastore: datastore.clone(),
                host,
            };
            if let Some(check) = self.lock_checks.0.get_mut(&datastore) {
                check.asked = true;
            }
            self.storage(&datastore, request, pending);
        }
    }

    /// The next host in turn that reports that it can use the datastore.
    fn next_with(&self, datastore: &DatastoreId, last: Option<&HostId>) -> Option<HostId> {
        let uses = |h: &&HostId| {
            self.peers.get(*h).is_some_and(|p| {
                let report = p.report.as_ref();
                p.connected() && report.is_some_and(|r| r.datastores.contains(datastore))
            })
        };
        let all = || self.peers.keys().filter(uses);
        let later = all().find(|h| last.is_none_or(|l| *h > l));
        later.or_else(|| all().next()).cloned()
    }

    pub(crate) fn on_lock_probed(
        &mut self,
        datastore: &DatastoreId,
        host: &HostId,
        outcome: &StorageOutcome,
    ) {
        let now = self.now;
        let rest = self.config.settings.image_lock_check_interval;
        let soon = AGAIN_AFTER * self.timing().network_heartbeat;
        let live = self
            .peers
            .get(host)
            .is_some_and(crate::liveness::Peer::connected);
        let Some(check) = self.lock_checks.0.get_mut(datastore) else {
            return;
        };
        check.asked = false;
        match outcome {
            StorageOutcome::Ok(StorageValue::Held(true)) => {
                (check.missed, check.open) = (0, None);
                check.last = Some(host.clone());
                check.next = now + rest;
            }
            StorageOutcome::Ok(StorageValue::Held(false)) if live => {
                check.missed += 1;
                check.next = now + soon;
                if check.missed >= MISSED {
                    check.open = Some(host.clone());
                    check.next = now + rest;
                }
            }
            // No such file: an older agent. Nothing was learnt.
            _ => {
                check.last = Some(host.clone());
                check.next = now + rest;
            }
        }
    }

    pub(super) fn image_lock_issues(&self) -> Vec<Issue> {
        let open = self.lock_checks.0.iter();
        open.filter_map(|(datastore, check)| Some((datastore, check.open.as_ref()?)))
            .map(|(datastore, host)| {
                Issue::of_cluster(
                    IssueCause::ImageLocksOpen,
                    format!(
                        "datastore {datastore} does not enforce image locks: {} does not see the lock that {host} holds there, so that nothing but Mainstay keeps two hypervisors from one disk; mount it with locks (NFS: version 4, or without nolock)",
                        self.me.host
                    ),
                )
            })
            .collect()
    }
}
