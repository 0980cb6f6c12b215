//! From the first reading that shows a dead host's last heartbeat to its lock being another's.
//!
//! Two agents of the core that do not hear each other, as when the network parted them: one owns the datastores, the
//! other would. The owner loses its power, and the other one takes its locks, each a datastore's owner lock. Those are
//! the locks that stand for the lock layer alone: the heartbeat's standing still is all that they wait for, where a VM's lock also
//! waits for the verdict about its host and for the order to start it. They are read, proven and swapped by the same
//! code as a VM's.

use crate::cluster::{CLUSTER, host, lay_out};
use crate::figures::Stillness;
use crate::shell::{Places, Saw, run};
use mainstay_core::config::{
    ClusterConfig, DatastoreKind, DatastoreSpec, HostSpec, Profile, Settings,
};
use mainstay_core::id::{DatastoreId, HostId};
use mainstay_core::io::{StorageOutcome, StorageRequest, StorageValue};
use mainstay_core::wire::{LockRecord, RecordKey};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What a takeover may take beyond `break`.
pub(crate) const BEYOND_BREAK: Duration = Duration::from_millis(500);
/// Elections end, and locks are read, within this and the profile's own times.
const SETTLES_WITHIN: Duration = Duration::from_secs(30);
/// A takeover that takes so much longer than `break` never comes.
const TAKEN_WITHIN: Duration = Duration::from_secs(20);

/// The host that owns, and that which takes over.
const OWNER: u32 = 1;
const OTHER: u32 = 2;

/// What one profile's locks took.
pub(crate) struct Taken {
    /// The profile's.
    pub(crate) r#break: Duration,
    /// Of each lock, in ascending order.
    pub(crate) took: Vec<Duration>,
}

/// Measures so many locks, taken over at once.
pub(crate) fn takeover(
    kind: DatastoreKind,
    profile: Profile,
    dir: &Path,
    locks: u32,
) -> Result<Taken, String> {
    let places = make(kind, profile, dir, locks)?;
    let timing = &places.config.settings.timing;
    let (saw, seen) = channel();
    let (owner_over, other_over) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut watch = Watch {
        seen,
        held: BTreeSet::new(),
        looked: BTreeSet::new(),
        still: BTreeMap::new(),
        taken: BTreeMap::new(),
    };
    let result = std::thread::scope(|scope| {
        let mut both = || -> Result<(), String> {
            let (owner_saw, other_saw) = (saw.clone(), saw.clone());
            let (places, owner_over, other_over) = (&places, &owner_over, &other_over);
            scope.spawn(move || run(OWNER, places, &owner_saw, owner_over));
            // It is elected first, and finds the locks free.
            watch.pass(4 * timing.datastore_heartbeat)?;
            scope.spawn(move || run(OTHER, places, &other_saw, other_over));
            let patience = timing.election_start + timing.election + SETTLES_WITHIN;
            let all = places.paths.len();
            watch.until("the owner's locks are known", patience, |w| {
                w.held.len() == all && w.looked.len() == all
            })?;
            // Heartbeats that change are seen before one stands still.
            watch.pass(4 * timing.datastore_heartbeat)?;
            owner_over.store(true, Ordering::SeqCst);
            let patience = timing.r#break + TAKEN_WITHIN;
            watch.until("the locks are taken", patience, |w| w.taken.len() == all)
        };
        let result = both();
        owner_over.store(true, Ordering::SeqCst);
        other_over.store(true, Ordering::SeqCst);
        result
    });
    result?;
    let r#break = timing.r#break;
    let mut took: Vec<Duration> = watch.taken.values().copied().collect();
    took.sort_unstable();
    if let Some(early) = took.iter().find(|took| **took <= r#break) {
        return Err(format!(
            "a lock was broken after {early:?}, before {break:?} had passed: nothing here counts"
        ));
    }
    for (id, path) in &places.paths {
        let found = holder(&places, id, path)?;
        if found != host(OTHER)? {
            return Err(format!(
                "the lock of {id} is {found}'s: nothing here counts"
            ));
        }
    }
    Ok(Taken { r#break, took })
}

/// What is known of both agents.
struct Watch {
    seen: Receiver<Saw>,
    /// Datastores that the owner owns.
    held: BTreeSet<DatastoreId>,
    /// Datastores whose lock the other one has read.
    looked: BTreeSet<DatastoreId>,
    /// The owner's heartbeats, as the other one reads them.
    still: BTreeMap<DatastoreId, Stillness>,
    /// What it took the other one to take them.
    taken: BTreeMap<DatastoreId, Duration>,
}

impl Watch {
    fn note(&mut self, saw: Saw) -> Result<(), String> {
        match saw {
            Saw::Lock(OTHER, id) => _ = self.looked.insert(id),
            Saw::Heartbeat(OTHER, id, bytes, done) => {
                self.still.entry(id).or_default().read(&bytes, done);
            }
            Saw::Won(OWNER, id, _) => _ = self.held.insert(id),
            Saw::Won(_, id, at) => {
                if !self.held.contains(&id) {
                    return Err(format!("the wrong host won {id} at first; run it again"));
                }
                let since = self.still.get(&id).and_then(Stillness::since);
                let since = since.ok_or("a lock was taken whose holder was never looked at")?;
                self.taken.insert(id, at.saturating_duration_since(since));
            }
            Saw::Failed(why) => return Err(why),
            Saw::Lock(..) | Saw::Heartbeat(..) => {}
        }
        Ok(())
    }

    /// Takes note until then.
    fn pass(&mut self, time: Duration) -> Result<(), String> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.seen.recv_timeout(left) {
                Ok(saw) => self.note(saw)?,
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err("nobody is left".to_owned()),
            }
        }
    }

    fn until(
        &mut self,
        what: &str,
        patience: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<(), String> {
        let end = Instant::now() + patience;
        while !done(self) {
            let left = end.saturating_duration_since(Instant::now());
            match self.seen.recv_timeout(left) {
                Ok(saw) => self.note(saw)?,
                Err(_) => {
                    return Err(format!(
                        "waited {patience:?} until {what}: {} owned, {} looked at, {} taken",
                        self.held.len(),
                        self.looked.len(),
                        self.taken.len()
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Two hosts, and so many datastores that both mount.
fn make(kind: DatastoreKind, profile: Profile, dir: &Path, locks: u32) -> Result<Places, String> {
    let runs = dir.join("run");
    fs::create_dir_all(&runs).map_err(|e| e.to_string())?;
    let ids: Result<Vec<DatastoreId>, String> = (1..=locks)
        .map(|n| DatastoreId::new(&format!("ds-{n}")).map_err(|e| e.to_string()))
        .collect();
    let ids = ids?;
    let spec = |n| -> Result<HostSpec, String> {
        Ok(HostSpec {
            id: host(n)?,
            cpu_mhz: 1000,
            memory_mb: 1000,
            datastores: ids.iter().cloned().collect(),
            maintenance: false,
            networks: Default::default(),
        })
    };
    let of = |id: &DatastoreId| DatastoreSpec {
        id: id.clone(),
        kind,
        fence: Default::default(),
        server: None,
    };
    let config = ClusterConfig::new(
        CLUSTER,
        Settings::of(profile),
        vec![spec(OWNER)?, spec(OTHER)?],
        ids.iter().map(of).collect(),
        vec![],
        vec![],
    )
    .map_err(|e| e.to_string())?;
    let mut paths = BTreeMap::new();
    for id in ids {
        let path = dir.join(id.as_str());
        lay_out(kind, &path, &config, &id)?;
        paths.insert(id, path);
    }
    Ok(Places {
        kind,
        config,
        paths,
        runs,
    })
}

/// Who holds a datastore's owner lock, as it is on disk.
fn holder(places: &Places, id: &DatastoreId, path: &Path) -> Result<HostId, String> {
    let store = places.open(OTHER, id, path)?;
    let listed = match store.perform(&StorageRequest::ListOwnerLock) {
        StorageOutcome::Ok(StorageValue::Keys(keys)) => keys,
        other => return Err(format!("the lock's generations: {other:?}")),
    };
    let generation = |key: RecordKey| match key {
        RecordKey::OwnerLock(generation) => Some(generation),
        _ => None,
    };
    let newest = listed.into_iter().filter_map(generation).max();
    let newest = newest.ok_or("the lock has no generation")?;
    let bytes = match store.perform(&StorageRequest::Read(RecordKey::OwnerLock(newest))) {
        StorageOutcome::Ok(StorageValue::Bytes(bytes)) => bytes,
        other => return Err(format!("the lock's newest generation: {other:?}")),
    };
    let (_, record) = LockRecord::decode(CLUSTER, &bytes).map_err(|e| e.to_string())?;
    let holder = record.holder.ok_or("the lock is free")?;
    Ok(holder.host)
}
