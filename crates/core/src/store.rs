//! A datastore as this agent uses it: its own heartbeat there and the right that it gives, the
//! windows on other hosts' heartbeats, and the powered-on list.
//!
//! One renewal is under way at a time; what was written is never written again. The observer reads
//! its own heartbeat back by the same way, and a window counts only when a value that was written
//! inside it came back (safety rule H14).

#[cfg(test)]
mod tests;

use crate::agent::{Agent, Pending, planted};
use crate::event::IssueCause;
use crate::id::{DatastoreId, Generation, HostId, VmId};
use crate::io::{IoFault, StorageOutcome, StorageRequest, StorageValue};
use crate::liveness::{Seen, Window};
use crate::lock::Right;
use crate::orphans::Scan;
use crate::time::{Duration, Instant};
use crate::vmcp::Path;
use crate::vms::Standing;
use crate::vouch::Vouched;
use crate::wire::{HeartbeatRecord, PoweronFlags, PoweronRecord, PoweronTable, RecordKey};
use alloc::collections::btree_map::Entry;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Own writes whose time of issue is kept, for the read-back.
const WRITES_KEPT: usize = 32;
/// A window counts when it is longer than `break`, not when it is as long.
const JUST_OVER: Duration = Duration::from_millis(1);

/// One datastore.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) right: Right,
    /// What an owner's word adds to it.
    pub(crate) vouched: Vouched,
    writing: bool,
    next_write: Instant,
    reading: BTreeSet<HostId>,
    next_poll: Instant,
    writes: VecDeque<(u64, Instant)>,
    /// Time of issue of the newest own write that was read back.
    read_back: Option<Instant>,
    /// The newest own write that was acknowledged, by its time of issue; and the same at the time when the reading of
    /// the own heartbeat that is under way, or was last, was issued.
    acknowledged: Option<Instant>,
    to_be_shown: Option<Instant>,
    /// Time of issue of the newest reading of the own heartbeat that showed what was acknowledged by then.
    fresh: Option<Instant>,
    pub(crate) windows: BTreeMap<HostId, Window>,
    /// When an operation last succeeded.
    last_ok: Option<Instant>,
    /// The last heartbeat was refused: what is read there may be good, but nothing can be written.
    refuses: bool,
    pub(crate) fault: Option<IoFault>,
    /// What the operations of this host show of its path there.
    pub(crate) path: Path,
    pub(crate) quarantine: Option<String>,
    poweron_wanted: Option<PoweronRecord>,
    poweron_written: Option<PoweronRecord>,
    /// The file that is on disk; none: the next write begins a new one.
    poweron_table: Option<PoweronTable>,
    poweron_writing: bool,
    /// What is wanted may differ from what was written.
    poweron_due: bool,
    /// After a write that failed, none begins before then.
    poweron_again: Instant,
    pub(crate) poweron_next_read: Instant,
    pub(crate) scan: Scan,
}

impl Store {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            right: Right::default(),
            vouched: Vouched::default(),
            writing: false,
            next_write: now,
            reading: BTreeSet::new(),
            next_poll: now,
            writes: VecDeque::new(),
            read_back: None,
            acknowledged: None,
            to_be_shown: None,
            fresh: None,
            windows: BTreeMap::new(),
            last_ok: None,
            refuses: false,
            fault: None,
            path: Path::default(),
            quarantine: None,
            poweron_wanted: None,
            poweron_written: None,
            poweron_table: None,
            poweron_writing: false,
            poweron_due: false,
            poweron_again: now,
            poweron_next_read: now,
            scan: Scan::new(now),
        }
    }

    /// What decides, of all that is kept: the own writes follow from what is on the datastore.
    #[cfg(test)]
    pub(crate) fn decides(&self) -> impl core::hash::Hash {
        (
            &self.right,
            &self.vouched,
            (self.writing, self.next_write, self.next_poll),
            &self.reading,
            self.read_back,
            (self.acknowledged, self.to_be_shown, self.fresh),
            &self.windows,
            &self.quarantine,
        )
    }

    /// Takes note of how an operation went.
    pub(crate) fn note(&mut self, now: Instant, outcome: &StorageOutcome) {
        self.path.ended(now, outcome);
        match outcome {
            StorageOutcome::Ok(_) => {
                self.last_ok = Some(now);
                self.fault = None;
            }
            StorageOutcome::NotDone(fault) | StorageOutcome::Unknown(fault) => {
                self.fault = Some(*fault)
            }
        }
    }

    /// What stands still is read when it has done so for long enough, and not up to an interval later; also where a
    /// reading was on its way at that moment, as it often is: `break` is a whole number of intervals. Of what changes
    /// the next read comes long before.
    ///
    /// `host` was read, by a reading that was issued then. A window proves nothing without a reading of the own heartbeat
    /// that was issued with its last one: while one of the own is on its way, none is hurried.
    fn read_again_when_enough(
        &mut self,
        host: &HostId,
        issued: Instant,
        me: &HostId,
        own_break: Duration,
    ) {
        if self.reading.contains(me) {
            return;
        }
        let enough = |w: &Window| w.first_done() + w.break_named().max(own_break) + JUST_OVER;
        let early = |w: &&Window| w.last_issue() < enough(w);
        let next = if host == me {
            // Of those that were read with it, or while it was on its way, and only of those: what is not read, or
            // cannot be, would hurry the next reading each time.
            let with_it = |w: &&Window| w.last_issue() >= issued;
            let alone = |w: &&Window| w.last_issue() > issued;
            let read = self.windows.values().filter(with_it);
            read.filter(|w| early(w) || alone(w)).map(enough).min()
        } else {
            self.windows.get(host).filter(early).map(enough)
        };
        self.next_poll = next.map_or(self.next_poll, |at| at.min(self.next_poll));
    }

    /// Mounted, answering and taking writes.
    pub(crate) fn usable(&self, now: Instant, within: Duration) -> bool {
        self.quarantine.is_none()
            && !self.refuses
            && !self.path.fails()
            && self.last_ok.is_some_and(|ok| now.since(ok) <= within)
    }
}

impl Agent {
    /// Takes note of how an operation on a datastore went that is not one of its heartbeats.
    pub(crate) fn note_outcome(&mut self, datastore: &DatastoreId, outcome: &StorageOutcome) {
        let now = self.now;
        if let Some(store) = self.stores.get_mut(datastore) {
            store.note(now, outcome);
        }
    }

    pub(crate) fn stores_due(&self) -> Option<Instant> {
        let write = self
            .stores
            .iter()
            .filter(|(d, s)| !s.writing && self.writes_heartbeat(d))
            .map(|(_, s)| s.next_write);
        let poll = self.stores.values().map(|s| s.next_poll);
        write.chain(poll).min()
    }

    /// Heartbeats are written where they were chosen to be, where a VM's lock may be held, and by who may
    /// become an owner. Where the last one was refused they are written until one is not, for that alone
    /// shows that the datastore can be used again.
    pub(crate) fn writes_heartbeat(&self, datastore: &DatastoreId) -> bool {
        !self.role.is_secondary()
            || self.reporting.has_vms_on(datastore)
            || self.beacons.contains(datastore)
            || self.stores.get(datastore).is_some_and(|s| s.refuses)
    }

    pub(crate) fn run_stores(&mut self) {
        let interval = self.timing().datastore_heartbeat;
        let now = self.now;
        let due = |(d, s): &(&DatastoreId, &Store)| {
            now >= s.next_poll
                || s.poweron_due && now >= s.poweron_again
                || !s.writing && now >= s.next_write && self.writes_heartbeat(d)
        };
        let names: Vec<DatastoreId> = self
            .stores
            .iter()
            .filter(due)
            .map(|(d, _)| d.clone())
            .collect();
        for datastore in names {
            if self.writes_heartbeat(&datastore) {
                self.renew(&datastore, interval);
            }
            self.observe(&datastore, interval);
            self.write_poweron(&datastore);
        }
        self.read_poweron_lists();
        self.scan_orphans();
    }

    pub(crate) fn renew(&mut self, datastore: &DatastoreId, interval: Duration) {
        let now = self.now;
        match self.stores.get(datastore) {
            Some(s) if !s.writing && now >= s.next_write => {}
            _ => return,
        }
        let mut stamp = self.stamp();
        if planted!(self, HeartbeatRepeats) && self.role.is_secondary() {
            stamp.seq = 1;
        }
        let seq = stamp.seq;
        let (freeze, r#break) = self.constants();
        let record = HeartbeatRecord { freeze, r#break };
        let bytes = record.encode_by(self.understands, self.config.cluster_id, &stamp);
        if let Some(store) = self.stores.get_mut(datastore) {
            store.writing = true;
            store.path.asks(now);
            store.next_write += interval;
            if store.next_write <= now {
                store.next_write = now + interval;
            }
            store.writes.push_back((seq, now));
            if store.writes.len() > WRITES_KEPT {
                store.writes.pop_front();
            }
        }
        let key = RecordKey::Heartbeat(self.me.host.clone());
        let pending = Pending::Renew {
            datastore: datastore.clone(),
            seq,
            issued: now,
        };
        self.storage(datastore, StorageRequest::Renew(key, bytes), pending);
    }

    pub(crate) fn on_renewed(
        &mut self,
        datastore: &DatastoreId,
        _seq: u64,
        issued: Instant,
        outcome: &StorageOutcome,
    ) {
        let now = self.now;
        let (freeze, _) = self.constants();
        let counted = if planted!(self, RightFromAcknowledgement) {
            now
        } else {
            issued
        };
        let Some(store) = self.stores.get_mut(datastore) else {
            return;
        };
        store.writing = false;
        store.note(now, outcome);
        store.refuses = matches!(outcome, StorageOutcome::NotDone(_));
        match outcome {
            StorageOutcome::Ok(StorageValue::Done) => {
                store.acknowledged = store.acknowledged.max(Some(issued));
                store.right.renewed(now, counted, freeze);
                self.withdraw(IssueCause::HeartbeatNotWritten, datastore);
                self.withdraw(IssueCause::RecordsMissing, datastore);
                self.vouch_not_needed(datastore);
                self.extend_vms(datastore, counted);
            }
            StorageOutcome::Ok(_) => {
                if let Some(store) = self.stores.get_mut(datastore) {
                    store.fault = Some(IoFault::Foreign);
                }
                self.issue(IssueCause::RecordsMissing, datastore, format!(
                    "datastore {datastore}: this host's heartbeat record is missing; add the host to the datastore with `mainstay datastore add`"
                ));
            }
            StorageOutcome::NotDone(fault) | StorageOutcome::Unknown(fault) => {
                let fault = *fault;
                self.issue(IssueCause::HeartbeatNotWritten, datastore, format!("datastore {datastore}: heartbeat not written ({fault:?}); check the storage path of this host"));
            }
        }
    }

    pub(crate) fn observe(&mut self, datastore: &DatastoreId, interval: Duration) {
        let now = self.now;
        let watch_all = self.watches_all();
        let primary = self.role.followed().cloned();
        let Some(store) = self.stores.get_mut(datastore) else {
            return;
        };
        if now < store.next_poll {
            return;
        }
        store.next_poll += interval;
        if store.next_poll <= now {
            store.next_poll = now + interval;
        }
        let wanted: Vec<HostId> = self
            .topology
            .mounted_by(datastore)
            .iter()
            .filter(|h| watch_all || **h == self.me.host || Some(*h) == primary.as_ref())
            .filter(|h| store.reading.insert((*h).clone()))
            .cloned()
            .collect();
        if wanted.contains(&self.me.host) {
            store.to_be_shown = store.acknowledged;
        }
        if !wanted.is_empty() {
            store.path.asks(now);
        }
        for host in wanted {
            let key = RecordKey::Heartbeat(host.clone());
            let pending = Pending::Observe {
                datastore: datastore.clone(),
                host,
                issued: now,
            };
            self.storage(datastore, StorageRequest::Read(key), pending);
        }
    }

    pub(crate) fn on_observed(
        &mut self,
        datastore: &DatastoreId,
        host: &HostId,
        issued: Instant,
        outcome: &StorageOutcome,
    ) {
        let now = self.now;
        let own = *host == self.me.host;
        let cluster = self.config.cluster_id;
        let instance = self.me.instance;
        let (_, own_break) = self.constants();
        let Some(store) = self.stores.get_mut(datastore) else {
            return;
        };
        store.reading.remove(host);
        store.note(now, outcome);
        let value = match outcome {
            StorageOutcome::Ok(StorageValue::Bytes(bytes)) => Seen::Bytes(bytes.clone()),
            StorageOutcome::Ok(StorageValue::NotFound) => Seen::Missing,
            // Nothing was learnt: unknown, never dead.
            _ => return,
        };
        let mut named = Duration::ZERO;
        let mut damaged = None;
        let mut understood = None;
        if let Seen::Bytes(bytes) = &value {
            match HeartbeatRecord::decode(cluster, bytes) {
                Ok((stamp, record)) => {
                    named = record.r#break;
                    understood = crate::wire::understood_by_writer(bytes);
                    if own && stamp.instance == instance {
                        let back = store
                            .writes
                            .iter()
                            .find(|(seq, _)| *seq == stamp.seq)
                            .map(|(_, at)| *at);
                        store.read_back = store.read_back.max(back);
                        if back.is_some() && back >= store.to_be_shown {
                            store.fresh = store.fresh.max(Some(issued));
                        }
                    }
                }
                Err(error) => damaged = Some(error),
            }
        }
        match store.windows.entry(host.clone()) {
            Entry::Occupied(known) => _ = known.into_mut().read(value, issued, now, named),
            Entry::Vacant(new) => _ = new.insert(Window::new(value, issued, now, named)),
        }
        store.read_again_when_enough(host, issued, &self.me.host, own_break);
        if let Some(version) = understood.filter(|_| !own) {
            self.on_understands(host, version);
        }
        let about = format_args!("{datastore} heartbeat of {host}");
        match damaged {
            Some(error) => {
                let text = format!(
                    "datastore {datastore}: the heartbeat of {host} cannot be read: {error}"
                );
                self.issue_found(IssueCause::RecordUnreadable, about, text);
            }
            None => self.withdraw(IssueCause::RecordUnreadable, about),
        }
    }

    /// Proof that the holder's right under the generation that was read at `read_done` has lapsed: its
    /// heartbeat stood still for longer than `break`, the last reading being younger than the lock's
    /// (safety rules H2, H12, H14). The error says what is missing.
    pub(crate) fn window_proof(
        &self,
        datastore: &DatastoreId,
        holder: &HostId,
        read_done: Instant,
        lock_break: Duration,
    ) -> Result<Duration, String> {
        let Some(store) = self.stores.get(datastore) else {
            return Err(format!("this host does not mount {datastore}"));
        };
        if let Some(why) = &store.quarantine {
            return Err(why.clone());
        }
        let Some(window) = store.windows.get(holder) else {
            return Err(format!(
                "the heartbeat of {holder} on {datastore} has not been read"
            ));
        };
        if window.last_issue() <= read_done && !planted!(self, LockReadLast) {
            return Err(format!(
                "the heartbeat of {holder} on {datastore} has not been read since the lock was"
            ));
        }
        // Reads may have begun to come from a cache meanwhile: at the window's end they must show what was last
        // written. Until the own heartbeat is there that was asked for with the last reading, the one before counts.
        let mut end = store.fresh.and_then(|at| window.last_issue_by(at));
        if planted!(self, ReadBackSkipped) {
            end = Some(window.last_issue());
        }
        let Some(end) = end.filter(|at| *at > read_done || planted!(self, LockReadLast)) else {
            return Err(format!(
                "this host's own last heartbeat on {datastore} has not been read back since"
            ));
        };
        let length = if planted!(self, WindowTooWide) {
            window.length_too_wide()
        } else {
            window.length_to(end)
        };
        let needed = if planted!(self, BreakAtFreeze) {
            self.timing().freeze
        } else {
            self.longest_break(&[lock_break, window.named_at(end)])
        };
        let equal = planted!(self, BreakAtEquality) && length == needed;
        if length <= needed && !equal {
            return Err(format!(
                "the heartbeat of {holder} on {datastore} has stood still for {} ms of {} ms",
                length.as_millis(),
                needed.as_millis()
            ));
        }
        if store.read_back.is_none_or(|at| at < window.first_done()) {
            return Err(format!(
                "this host's own heartbeat on {datastore} has not been read back meanwhile"
            ));
        }
        Ok(length)
    }

    // The powered-on list.

    /// Says which VMs are on; the list is written to the host's heartbeat datastores when it changed.
    pub(crate) fn want_poweron_list(&mut self) {
        let early = planted!(self, OffTheListTooEarly);
        let vms: Vec<(VmId, Generation)> = self
            .vms
            .values()
            .filter(|v| v.has_process() && !(early && v.standing() == Standing::Going))
            .map(|v| (v.spec.id.clone(), v.generation()))
            .collect();
        // Wherever a heartbeat is written, so that a list is never older than the heartbeat beside it.
        let chosen: Vec<DatastoreId> = self
            .stores
            .keys()
            .filter(|d| self.writes_heartbeat(d))
            .cloned()
            .collect();
        let isolated = self.isolation.is_declared();
        let leaving = self.leaving.is_some();
        for (datastore, store) in &mut self.stores {
            if chosen.contains(datastore) {
                store.poweron_due = true;
                store.poweron_wanted = Some(PoweronRecord {
                    flags: PoweronFlags { isolated, leaving },
                    vms: vms.clone(),
                    unreadable: 0,
                });
            } else {
                // An old list is not written late: the next one here is a new one.
                store.poweron_due = false;
                store.poweron_wanted = None;
            }
        }
    }

    /// Writes the pages that changed. A new file is begun by a new agent, after a write that may not be
    /// on disk, and for other flags: a rename is atomic, so the flags are never torn.
    fn write_poweron(&mut self, datastore: &DatastoreId) {
        let cluster = self.config.cluster_id;
        let Some(store) = self.stores.get_mut(datastore) else {
            return;
        };
        if !store.poweron_due || store.poweron_writing || self.now < store.poweron_again {
            return;
        }
        store.poweron_due = false;
        if store.poweron_wanted.is_none() || store.poweron_wanted == store.poweron_written {
            return;
        }
        let stamp = self.stamp();
        let Some(store) = self.stores.get_mut(datastore) else {
            return;
        };
        let Some(record) = store.poweron_wanted.clone() else {
            return;
        };
        let known = store.poweron_written.replace(record.clone());
        let same_flags = known.is_some_and(|k| k.flags == record.flags);
        store.poweron_writing = true;
        let key = RecordKey::Poweron(self.me.host.clone());
        let request = match store.poweron_table.as_mut().filter(|_| same_flags) {
            Some(table) => {
                table.set(&record.by_vm());
                StorageRequest::PutPages(key, table.changed_pages())
            }
            None => {
                let (table, file) = record.begin(cluster, &stamp);
                store.poweron_table = Some(table);
                StorageRequest::Put(key, file)
            }
        };
        let pending = Pending::Poweron {
            datastore: datastore.clone(),
        };
        self.storage(datastore, request, pending);
    }

    pub(crate) fn on_poweron_written(&mut self, datastore: &DatastoreId, outcome: &StorageOutcome) {
        let now = self.now;
        let again = now + self.timing().datastore_heartbeat;
        let Some(store) = self.stores.get_mut(datastore) else {
            return;
        };
        store.poweron_writing = false;
        store.note(now, outcome);
        if !matches!(outcome, StorageOutcome::Ok(StorageValue::Done)) {
            store.poweron_written = None;
            store.poweron_table = None;
            store.poweron_due = true;
            store.poweron_again = again;
        }
    }
}
