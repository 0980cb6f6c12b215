//! Which datastores this primary owns: it alone restarts the VMs there, and keeps the protected list.
//!
//! ```text
//!   none ─▶ reading the owner lock ─▶ free, mine, or its holder proven lapsed ─▶ swap
//!    ▲                                                                            │ won
//!    │ a gap in the right, not primary any more, a list write of unknown outcome  ▼
//!    └──────────────────── acting ◀── copied to the own file ◀── reading the list ┘
//! ```
//! An owner acts only while its own heartbeat there is fresh without a gap since before its swap; after
//! a gap only under a new owner generation (safety rule H5). A new owner breaks no VM lock for one
//! `break`, except its predecessor's and free ones (H6). A VM is called protected only when the list is
//! on disk and the owner still acts.

use crate::agent::{Agent, Pending, planted};
use crate::config::VmSpec;
use crate::event::{EventKind, IssueCause};
use crate::id::{DatastoreId, Generation, HostId, VmId};
use crate::io::{Channel, StorageOutcome, StorageRequest, StorageValue};
use crate::lock::{LockName, SwapOutcome, Token};
use crate::tasks::TaskFor;
use crate::time::Instant;
use crate::wire::{
    Desired, LockRecord, Message, ProtectedRecord, ProtectedTable, ProtectedVm, RecordKey,
};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// A list that is being loaded after the owner lock was won.
#[derive(Clone, Debug)]
enum Loading {
    Listing,
    /// Reading the list of this generation; those below it are left, the highest last.
    Reading {
        generation: Generation,
        left: Vec<Generation>,
    },
    /// Writing the copy into the own file.
    Copying,
}

/// An owner's state.
#[derive(Clone, Debug)]
pub(crate) struct Acting {
    pub(crate) generation: Generation,
    token: Token,
    pub(crate) won_at: Instant,
    pub(crate) predecessor: Option<HostId>,
    from: (Generation, crate::id::Nonce),
    loading: Option<Loading>,
    /// What is on disk.
    pub(crate) list: BTreeMap<VmId, ProtectedVm>,
    /// What should be: differs while a write is out or due.
    wanted: BTreeMap<VmId, ProtectedVm>,
    /// `wanted` may differ from `list`; false: it certainly does not.
    differs: bool,
    why_removed: BTreeMap<VmId, String>,
    writing: Option<BTreeMap<VmId, ProtectedVm>>,
    retry_at: Instant,
    /// The own file as it is on disk, or as the write that is out makes it.
    table: ProtectedTable,
    /// Lists of earlier owners, removed when the own copy is on disk.
    obsolete: Vec<Generation>,
    pub(crate) longest_break: crate::time::Duration,
    /// When this owner last vouched for a host.
    answers: BTreeMap<HostId, Instant>,
    /// Hosts against which there is a proof, since when: nobody vouches for them.
    proven: BTreeMap<HostId, Instant>,
}

impl Acting {
    /// For how much longer locks of a host are not broken because this owner vouched for it.
    pub(crate) fn vouched_lately(
        &self,
        host: &HostId,
        now: Instant,
        needed: crate::time::Duration,
    ) -> Option<crate::time::Duration> {
        let since = now.since(*self.answers.get(host)?);
        (since <= needed).then(|| needed.saturating_sub(since))
    }

    /// What is on the list that was on disk, and not on that one.
    fn not_in(&self, written: &BTreeMap<VmId, ProtectedVm>) -> Vec<VmId> {
        self.list
            .keys()
            .filter(|vm| !written.contains_key(*vm))
            .cloned()
            .collect()
    }
}

/// How this agent stands to one datastore's owner lock.
#[derive(Clone, Debug)]
pub(crate) enum Own {
    /// Not owned; looked at again then.
    None {
        next: Instant,
        holder: Option<HostId>,
    },
    /// Its lock is being read.
    Reading,
    /// Held by a host whose right has not been proven to have lapsed.
    Waiting {
        record: LockRecord,
        read_done: Instant,
        next: Instant,
    },
    /// The swap is out.
    Swapping {
        token: Token,
        predecessor: Option<HostId>,
        named: crate::time::Duration,
    },
    /// Owned.
    Acting(Box<Acting>),
    /// Being given back.
    Releasing,
}

impl Agent {
    /// The owner's state when it may act now.
    pub(crate) fn acting(&self, datastore: &DatastoreId) -> Option<&Acting> {
        match self.owned.get(datastore) {
            Some(Own::Acting(acting))
                if acting.loading.is_none() && self.holds(datastore, acting.token) =>
            {
                Some(acting)
            }
            _ => None,
        }
    }

    fn holds(&self, datastore: &DatastoreId, token: Token) -> bool {
        let Some(store) = self.stores.get(datastore) else {
            return false;
        };
        if planted!(self, OwnerResumes) {
            return store.right.valid(self.now);
        }
        store.quarantine.is_none() && store.right.unbroken(token, self.now)
    }

    pub(crate) fn ownership_due(&self) -> Option<Instant> {
        if !self.role.is_primary() {
            return None;
        }
        self.owned
            .values()
            .filter_map(|o| match o {
                Own::None { next, .. } => Some(*next),
                Own::Waiting { next, .. } => Some(*next),
                Own::Acting(a) if a.writing.is_none() && a.loading.is_none() && a.differs => {
                    Some(a.retry_at)
                }
                _ => None,
            })
            .filter(|at| *at > self.now)
            .min()
    }

    /// A primary that is alone owns nothing until a secondary joins or an isolation address answers.
    fn may_own(&self) -> Result<(), String> {
        if self.isolation.is_declared() {
            return Err(String::from("this host is isolated"));
        }
        if self.has_company() {
            return Ok(());
        }
        let lately = self.timing().primary_isolation_declare;
        if self
            .isolation
            .answered()
            .is_some_and(|at| self.now.since(at) <= lately)
        {
            return Ok(());
        }
        Err(String::from(
            "this primary is alone and no isolation address answers",
        ))
    }

    pub(crate) fn run_ownership(&mut self) {
        if !self.role.is_primary() {
            return;
        }
        let now = self.now;
        let allowed = self.may_own();
        if let Err(why) = &allowed {
            // Only after the time of the primary's own isolation: one lost ping gives nothing up.
            let patience = self.timing().primary_isolation_declare;
            if self
                .alone_since
                .is_some_and(|since| now.since(since) >= patience)
            {
                let why = why.clone();
                self.give_up_ownership(&why, true);
            }
        }
        for datastore in self.ownership_work() {
            if allowed.is_ok() || matches!(self.owned.get(&datastore), Some(Own::Acting(_))) {
                self.run_owned(&datastore);
            }
        }
    }

    /// The datastores about whose ownership something may be done now. Both maps are gone through side
    /// by side, for this is asked with each input.
    fn ownership_work(&self) -> Vec<DatastoreId> {
        let now = self.now;
        let mut owned = self.owned.iter().peekable();
        let mut work = Vec::new();
        for (datastore, store) in &self.stores {
            while owned.next_if(|(d, _)| *d < datastore).is_some() {}
            let own = owned.next_if(|(d, _)| *d == datastore).map(|(_, own)| own);
            let idle = match own {
                None | Some(Own::Waiting { .. }) => false,
                Some(Own::None { next, .. }) => now < *next,
                Some(Own::Reading | Own::Swapping { .. } | Own::Releasing) => true,
                Some(Own::Acting(acting)) => {
                    let lasts =
                        store.quarantine.is_none() && store.right.unbroken(acting.token, now);
                    lasts && !(acting.differs && acting.writing.is_none())
                }
            };
            if !idle {
                work.push(datastore.clone());
            }
        }
        work
    }

    fn run_owned(&mut self, datastore: &DatastoreId) {
        let now = self.now;
        let valid = self
            .stores
            .get(datastore)
            .is_some_and(|s| s.right.valid(now) && s.quarantine.is_none());
        match self.owned.get(datastore) {
            None => {
                self.owned.insert(
                    datastore.clone(),
                    Own::None {
                        next: now,
                        holder: None,
                    },
                );
            }
            Some(Own::Acting(acting)) if !self.holds(datastore, acting.token) => {
                if planted!(self, OwnerResumes) {
                    return;
                }
                self.lose(datastore, "its own heartbeat there was late: it may act again only under a new generation");
            }
            Some(Own::Acting(acting)) => {
                let due = acting.loading.is_none() && acting.writing.is_none() && acting.differs;
                if due && now >= acting.retry_at {
                    if acting.wanted == acting.list {
                        if let Some(acting) = self.acting_mut(datastore) {
                            acting.differs = false;
                        }
                    } else {
                        self.write_list(datastore);
                    }
                }
            }
            Some(Own::None { next, .. }) if valid && now >= *next => self.read_owner(datastore),
            Some(Own::Waiting {
                record,
                read_done,
                next,
            }) => {
                let (record, read_done, next) = (record.clone(), *read_done, *next);
                let Some(holder) = record.holder.clone() else {
                    return;
                };
                if valid
                    && self
                        .window_proof(datastore, &holder.host, read_done, record.r#break)
                        .is_ok()
                {
                    self.take_over(datastore, &record, Some(holder.host));
                } else if now >= next {
                    self.read_owner(datastore);
                }
            }
            Some(Own::None { .. } | Own::Reading | Own::Swapping { .. } | Own::Releasing) => {}
        }
    }

    fn read_owner(&mut self, datastore: &DatastoreId) {
        self.owned.insert(datastore.clone(), Own::Reading);
        self.read_lock(datastore, LockName::Owner, TaskFor::Own(datastore.clone()));
    }

    pub(crate) fn on_own_head(&mut self, datastore: &DatastoreId, record: Option<LockRecord>) {
        if !matches!(self.owned.get(datastore), Some(Own::Reading)) {
            return;
        }
        let now = self.now;
        let next = now + self.timing().poweron_poll;
        if !self.role.is_primary() {
            self.owned
                .insert(datastore.clone(), Own::None { next, holder: None });
            let mine = record.filter(|r| r.holder.as_ref().is_some_and(|h| h.host == self.me.host));
            if let Some(record) = mine {
                self.free_owner(datastore, (record.generation, record.nonce));
            }
            return;
        }
        let Some(record) = record else {
            self.owned
                .insert(datastore.clone(), Own::None { next, holder: None });
            return;
        };
        match &record.holder {
            None => self.take_over(datastore, &record, None),
            Some(h) if h.host == self.me.host => self.take_over(datastore, &record, None),
            Some(_) => {
                self.owned.insert(
                    datastore.clone(),
                    Own::Waiting {
                        record,
                        read_done: now,
                        next,
                    },
                );
            }
        }
    }

    fn take_over(
        &mut self,
        datastore: &DatastoreId,
        record: &LockRecord,
        predecessor: Option<HostId>,
    ) {
        let now = self.now;
        // What runs here by another owner's word must have ended first: an owner uses no such right.
        let store = self.stores.get(datastore);
        if let Some(until) = store.and_then(|s| s.vouched.over_at()).filter(|u| now < *u) {
            self.owned.insert(
                datastore.clone(),
                Own::None {
                    next: until,
                    holder: None,
                },
            );
            return;
        }
        let Some(token) = self.stores.get(datastore).and_then(|s| s.right.token(now)) else {
            let next = now + self.timing().datastore_heartbeat;
            self.owned
                .insert(datastore.clone(), Own::None { next, holder: None });
            return;
        };
        let swapping = Own::Swapping {
            token,
            predecessor,
            named: record.r#break,
        };
        self.owned.insert(datastore.clone(), swapping);
        let from = (record.generation, record.nonce);
        let holder = Some(self.holder());
        self.swap_lock(
            datastore,
            LockName::Owner,
            TaskFor::Own(datastore.clone()),
            from,
            holder,
            Desired::Off,
        );
    }

    pub(crate) fn on_own_swapped(
        &mut self,
        datastore: &DatastoreId,
        record: LockRecord,
        outcome: &SwapOutcome,
    ) {
        let now = self.now;
        let next = now + self.timing().datastore_heartbeat;
        let none = Own::None { next, holder: None };
        match self.owned.get(datastore).cloned() {
            Some(Own::Swapping {
                token,
                predecessor,
                named,
            }) if *outcome == SwapOutcome::Won => {
                if !self.role.is_primary() {
                    let from = (record.generation, record.nonce);
                    self.free_owner(datastore, from);
                    return;
                }
                if !self.holds(datastore, token) {
                    self.owned.insert(datastore.clone(), none);
                    return;
                }
                let acting = Acting {
                    generation: record.generation,
                    token,
                    won_at: now,
                    predecessor,
                    from: (record.generation, record.nonce),
                    loading: Some(Loading::Listing),
                    list: BTreeMap::new(),
                    wanted: BTreeMap::new(),
                    differs: false,
                    why_removed: BTreeMap::new(),
                    writing: None,
                    retry_at: now,
                    table: ProtectedTable::default(),
                    obsolete: Vec::new(),
                    longest_break: self.longest_break(&[named]),
                    answers: BTreeMap::new(),
                    proven: BTreeMap::new(),
                };
                self.owned
                    .insert(datastore.clone(), Own::Acting(Box::new(acting)));
                let pending = Pending::List {
                    datastore: datastore.clone(),
                    generation: record.generation,
                };
                self.storage(datastore, StorageRequest::ListProtected, pending);
            }
            Some(Own::Swapping { .. } | Own::Releasing) => {
                self.owned.insert(datastore.clone(), none);
            }
            _ => {}
        }
    }

    /// This host is the datastore's owner, or may become it by a swap that is out.
    pub(crate) fn may_be_owner(&self, datastore: &DatastoreId) -> bool {
        matches!(
            self.owned.get(datastore),
            Some(Own::Acting(_) | Own::Swapping { .. })
        )
    }

    /// The generation that this host last owned the datastore under, lapsed or not (planted bug).
    pub(crate) fn acting_at_all(&self, datastore: &DatastoreId) -> Option<Generation> {
        match self.owned.get(datastore) {
            Some(Own::Acting(acting)) => Some(acting.generation),
            _ => self.durable.owner_generations.get(datastore).copied(),
        }
    }

    /// Remembers that this owner vouches for a host now; false when it must not.
    pub(crate) fn note_answer(
        &mut self,
        datastore: &DatastoreId,
        to: &HostId,
        now: Instant,
    ) -> bool {
        let changed = self
            .stores
            .get(datastore)
            .and_then(|s| s.windows.get(to))
            .and_then(crate::liveness::Window::changed);
        let forgets = planted!(self, AnswerAfterLapse);
        let Some(acting) = self.acting_mut(datastore) else {
            return forgets;
        };
        // A heartbeat after the proof is a new life: what was proven of the old one stays proven.
        let proven = acting.proven.get(to).copied();
        if proven.is_some_and(|at| changed.is_none_or(|c| c <= at)) {
            return false;
        }
        acting.proven.remove(to);
        acting.answers.insert(to.clone(), now);
        true
    }

    /// There is a proof against a host: from now on nobody vouches for it.
    pub(crate) fn note_proven(&mut self, datastore: &DatastoreId, host: &HostId) {
        let now = self.now;
        if let Some(acting) = self.acting_mut(datastore) {
            acting.proven.insert(host.clone(), now);
        }
    }

    /// No owner lock of this host is out or on its way back.
    pub(crate) fn gives_nothing_back(&self) -> bool {
        let busy = |o: &Own| matches!(o, Own::Acting(_) | Own::Swapping { .. } | Own::Releasing);
        !self.owned.values().any(busy)
    }

    fn acting_mut(&mut self, datastore: &DatastoreId) -> Option<&mut Acting> {
        match self.owned.get_mut(datastore) {
            Some(Own::Acting(acting)) => Some(acting),
            _ => None,
        }
    }

    /// An answer about the protected list.
    pub(crate) fn on_list(
        &mut self,
        datastore: &DatastoreId,
        of: Generation,
        outcome: &StorageOutcome,
    ) {
        let now = self.now;
        if let Some(store) = self.stores.get_mut(datastore) {
            store.note(now, outcome);
        }
        // Answers to an ownership that was lost meanwhile say nothing about this one.
        let Some(acting) = self.acting_mut(datastore).filter(|a| a.generation == of) else {
            return;
        };
        if acting.writing.is_some() {
            self.on_list_written(datastore, outcome);
            return;
        }
        let own = acting.generation;
        match (acting.loading.clone(), outcome) {
            (Some(Loading::Listing), StorageOutcome::Ok(StorageValue::Keys(keys))) => {
                let mut lists: Vec<Generation> = keys
                    .iter()
                    .filter_map(|k| match k {
                        RecordKey::Protected(g) if *g < own => Some(*g),
                        _ => None,
                    })
                    .collect();
                lists.sort();
                acting.obsolete = lists.clone();
                self.read_lists(datastore, lists);
            }
            (Some(Loading::Reading { generation, left }), StorageOutcome::Ok(value)) => {
                self.on_list_read(datastore, generation, left, value);
            }
            (Some(Loading::Copying), StorageOutcome::Ok(StorageValue::Done)) => {
                acting.loading = None;
                let host = self.me.host.clone();
                let why = String::from(
                    "the lock on its protected list was won, the list read and copied",
                );
                self.emit(
                    EventKind::DatastoreOwned {
                        host,
                        datastore: datastore.clone(),
                    },
                    why,
                );
                self.drop_old_lists(datastore);
                self.reconcile();
            }
            // Nothing is known of the list: begin again under a new generation.
            _ => self.lose(datastore, "its protected list could not be read or written"),
        }
    }

    /// Reads the lists from the highest owner generation downwards until one can be read.
    fn read_lists(&mut self, datastore: &DatastoreId, mut left: Vec<Generation>) {
        let Some(generation) = left.pop() else {
            self.copy_list(datastore, ProtectedRecord::default());
            return;
        };
        let Some(acting) = self.acting_mut(datastore) else {
            return;
        };
        let of = acting.generation;
        acting.loading = Some(Loading::Reading { generation, left });
        let request = StorageRequest::Read(RecordKey::Protected(generation));
        self.storage(
            datastore,
            request,
            Pending::List {
                datastore: datastore.clone(),
                generation: of,
            },
        );
    }

    fn on_list_read(
        &mut self,
        datastore: &DatastoreId,
        generation: Generation,
        left: Vec<Generation>,
        value: &StorageValue,
    ) {
        let StorageValue::Bytes(bytes) = value else {
            self.read_lists(datastore, left);
            return;
        };
        match ProtectedRecord::decode(self.config.cluster_id, bytes) {
            Ok((_, record)) => {
                let (lost, older) = (record.lost, record.fallen_back);
                if lost > 0 {
                    self.issue(IssueCause::RecordUnreadable, format!("datastore {datastore}: {lost} slots of the protected list of owner generation {generation} cannot be read; VMs that were in them are protected again when their hosts report them"));
                }
                if older > 0 {
                    self.issue(IssueCause::RecordUnreadable, format!("datastore {datastore}: {older} slots of the protected list of owner generation {generation} are damaged; their other copies were taken"));
                }
                self.copy_list(datastore, record);
            }
            Err(error) => {
                self.issue(IssueCause::RecordUnreadable, format!("datastore {datastore}: a protected list of owner generation {generation} cannot be read: {error}"));
                self.read_lists(datastore, left);
            }
        }
    }

    /// Begins the own file: whole, under the own generation, so that nothing that an earlier owner still
    /// has on its way can reach it.
    fn copy_list(&mut self, datastore: &DatastoreId, record: ProtectedRecord) {
        let record = if planted!(self, ListNotCopied) {
            ProtectedRecord::default()
        } else {
            record
        };
        let stamp = self.stamp();
        let cluster = self.config.cluster_id;
        let Some(acting) = self.acting_mut(datastore) else {
            return;
        };
        let (mut table, refused) = ProtectedTable::new(record.vms.values().cloned());
        acting.list = record.vms;
        acting.list.retain(|vm, _| !refused.contains(vm));
        acting.wanted = acting.list.clone();
        acting.loading = Some(Loading::Copying);
        let file = table.file(cluster, &stamp, 0);
        acting.table = table;
        let generation = acting.generation;
        let request = StorageRequest::Put(RecordKey::Protected(generation), file);
        let pending = Pending::List {
            datastore: datastore.clone(),
            generation,
        };
        self.storage(datastore, request, pending);
    }

    /// The own copy is on disk, so nobody reads the lists of earlier owners again.
    fn drop_old_lists(&mut self, datastore: &DatastoreId) {
        let Some(acting) = self.acting_mut(datastore) else {
            return;
        };
        for generation in core::mem::take(&mut acting.obsolete) {
            let request = StorageRequest::Remove(RecordKey::Protected(generation));
            self.storage(datastore, request, Pending::Forget);
        }
    }

    /// Writes the pages of what changed, each over its older copy: whatever becomes of this write, what
    /// was acknowledged before stays (safety rule H19).
    fn write_list(&mut self, datastore: &DatastoreId) {
        let early = planted!(self, ProtectedTooEarly);
        let in_place = planted!(self, ListInPlace);
        let Some(acting) = self.acting_mut(datastore) else {
            return;
        };
        let refused = acting.table.set(&acting.wanted);
        for vm in &refused {
            acting.wanted.remove(vm);
        }
        let changed = acting.wanted != acting.list;
        if changed {
            if in_place {
                acting.table.forget_twins();
            }
            acting.writing = Some(acting.wanted.clone());
            let generation = acting.generation;
            let key = RecordKey::Protected(generation);
            let request = StorageRequest::PutPages(key, acting.table.changed_pages());
            let pending = Pending::List {
                datastore: datastore.clone(),
                generation,
            };
            self.storage(datastore, request, pending);
        }
        if let Some(vm) = refused.first() {
            let more = refused.len();
            self.issue(IssueCause::ListFull, format!("datastore {datastore}: its protected list is full; {more} VMs there are not protected, {vm} first; move VMs to another datastore"));
        }
        if early && changed {
            self.announce_list(datastore);
        }
    }

    /// Says what the list that was written changes.
    fn announce_list(&mut self, datastore: &DatastoreId) {
        let Some(acting) = self.acting_mut(datastore) else {
            return;
        };
        let Some(written) = acting.writing.clone() else {
            return;
        };
        let added: Vec<VmId> = written
            .keys()
            .filter(|v| !acting.list.contains_key(*v))
            .cloned()
            .collect();
        let removed = acting.not_in(&written);
        let mut reasons = core::mem::take(&mut acting.why_removed);
        acting.list = written;
        for vm in added.iter().chain(&removed) {
            let here = self.vms.contains_key(vm).then(|| self.me.host.clone());
            let hosts: Vec<HostId> = self.inventory.hosts_of(vm).cloned().collect();
            self.inventory.tell.extend(hosts.into_iter().chain(here));
            self.inventory.mark(vm);
        }
        for vm in added {
            let why = format!("it is on the protected list of {datastore} on disk");
            self.emit(
                EventKind::VmProtected {
                    vm,
                    datastore: datastore.clone(),
                },
                why,
            );
        }
        for vm in removed {
            let reason = reasons.remove(&vm).unwrap_or_default();
            self.emit(
                EventKind::VmUnprotected {
                    vm,
                    reason: reason.clone(),
                },
                reason,
            );
        }
        self.tell_protected();
    }

    fn on_list_written(&mut self, datastore: &DatastoreId, outcome: &StorageOutcome) {
        let now = self.now;
        let retry = now + self.timing().datastore_heartbeat;
        let acts = self.acting(datastore).is_some();
        match outcome {
            StorageOutcome::Ok(StorageValue::Done) if acts => {
                self.announce_list(datastore);
                if let Some(acting) = self.acting_mut(datastore) {
                    acting.writing = None;
                }
            }
            StorageOutcome::NotDone(fault) if acts => {
                let fault = *fault;
                if let Some(acting) = self.acting_mut(datastore) {
                    acting.writing = None;
                    acting.table.not_written();
                    acting.retry_at = retry;
                }
                self.issue(IssueCause::ListNotWritten, format!("datastore {datastore}: the protected list cannot be written ({fault:?}); new VMs there are not protected until it can"));
            }
            // It may land late: only another generation has a file that it cannot touch (H19).
            _ => {
                self.announce_doubt(datastore);
                self.lose(
                    datastore,
                    "a write of its protected list has an unknown outcome",
                );
            }
        }
    }

    /// What was to be removed may be gone: whoever owns the list next cannot know why.
    fn announce_doubt(&mut self, datastore: &DatastoreId) {
        let Some(acting) = self.acting_mut(datastore) else {
            return;
        };
        let Some(written) = acting.writing.take() else {
            return;
        };
        let reasons = core::mem::take(&mut acting.why_removed);
        for vm in acting.not_in(&written) {
            let reason = reasons.get(&vm).cloned().unwrap_or_default();
            let why = format!(
                "{reason}; whether its removal is on disk is not known, and the list is read again"
            );
            self.emit(EventKind::VmUnprotected { vm, reason }, why);
        }
    }

    /// Tells the hosts that are waiting for it which of their VMs are protected.
    pub(crate) fn tell_protected(&mut self) {
        let protected = |agent: &Self, vm: &VmId, spec: &VmSpec| {
            agent
                .acting(&spec.datastore)
                .is_some_and(|a| a.list.contains_key(vm))
        };
        for to in core::mem::take(&mut self.inventory.tell) {
            if to == self.me.host {
                let here = self.vms.iter();
                let here = here.filter(|(vm, v)| protected(self, vm, &v.spec));
                self.protected_here = here.map(|(vm, _)| vm.clone()).collect();
                continue;
            }
            let Some(peer) = self.peers.get(&to).filter(|p| p.connected()) else {
                continue;
            };
            let there = peer.report.iter().flat_map(|r| &r.vms);
            let there = there.filter(|(vm, v)| protected(self, vm, &v.spec));
            let vms = there.map(|(vm, _)| vm.clone()).collect();
            self.send(&to, Channel::Stream, Message::Protected { vms });
        }
    }

    /// Adds a VM to the list of a datastore that is owned.
    pub(crate) fn want_protected(&mut self, datastore: &DatastoreId, vm: ProtectedVm) {
        let Some(acting) = self.acting_mut(datastore) else {
            return;
        };
        if acting.wanted.get(&vm.vm) != Some(&vm) {
            acting.wanted.insert(vm.vm.clone(), vm);
            acting.differs = true;
        }
    }

    /// Takes a VM off the list.
    pub(crate) fn want_unprotected(&mut self, datastore: &DatastoreId, vm: &VmId, why: String) {
        let Some(acting) = self.acting_mut(datastore) else {
            return;
        };
        if acting.wanted.remove(vm).is_some() {
            acting.why_removed.insert(vm.clone(), why);
            acting.differs = true;
        }
        // A host may still report it.
        self.inventory.mark(vm);
    }

    /// The datastore is owned no more; nothing is written.
    pub(crate) fn lose(&mut self, datastore: &DatastoreId, why: &str) {
        let next = self.now + self.timing().datastore_heartbeat;
        let was = self
            .owned
            .insert(datastore.clone(), Own::None { next, holder: None });
        if let Some(Own::Acting(acting)) = was
            && acting.loading.is_none()
        {
            let host = self.me.host.clone();
            self.emit(
                EventKind::DatastoreReleased {
                    host,
                    datastore: datastore.clone(),
                },
                String::from(why),
            );
        }
    }

    /// Stops acting everywhere at once, then gives the locks back.
    pub(crate) fn give_up_ownership(&mut self, why: &str, free: bool) {
        let datastores: Vec<DatastoreId> = self.owned.keys().cloned().collect();
        for datastore in datastores {
            let from = match self.owned.get(&datastore) {
                Some(Own::Acting(acting)) => Some(acting.from),
                Some(Own::Reading | Own::Waiting { .. }) => {
                    self.drop_tasks(&TaskFor::Own(datastore.clone()));
                    None
                }
                // A swap that is out is given back when it is decided.
                Some(Own::Swapping { .. } | Own::Releasing) => continue,
                Some(Own::None { .. }) | None => continue,
            };
            self.lose(&datastore, why);
            if let (Some(from), true) = (from, free) {
                self.free_owner(&datastore, from);
            }
        }
    }

    /// A secondary gives back owner locks that an earlier agent of this host left: its heartbeat would
    /// keep them alive, and the primary would own nothing.
    pub(crate) fn free_leftover_ownership(&mut self) {
        let datastores: Vec<DatastoreId> = self.stores.keys().cloned().collect();
        for datastore in datastores {
            if matches!(self.owned.get(&datastore), None | Some(Own::None { .. })) {
                self.read_owner(&datastore);
            }
        }
    }

    fn free_owner(&mut self, datastore: &DatastoreId, from: (Generation, crate::id::Nonce)) {
        self.owned.insert(datastore.clone(), Own::Releasing);
        self.swap_lock(
            datastore,
            LockName::Owner,
            TaskFor::Own(datastore.clone()),
            from,
            None,
            Desired::Off,
        );
    }
}
