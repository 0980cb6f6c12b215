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

mod list;
mod owner_lock;
mod unowned;

use crate::agent::{Agent, planted};
use crate::id::{DatastoreId, Generation, HostId, VmId};
use crate::lock::Token;
use crate::time::Instant;
use crate::wire::{LockRecord, ProtectedTable, ProtectedVm};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use list::Loading;
pub(crate) use unowned::Unowned;

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

impl Own {
    /// What decides, of all that is kept.
    #[cfg(test)]
    pub(crate) fn decides(&self) -> impl core::hash::Hash {
        let acting = match self {
            Self::Acting(a) => Some((
                (a.generation, a.token, a.won_at, &a.predecessor),
                (a.loading.is_some(), a.longest_break),
                (&a.answers, &a.proven),
            )),
            _ => None,
        };
        let waiting = match self {
            Self::Waiting {
                record,
                read_done,
                next,
            } => Some((record, *read_done, *next)),
            _ => None,
        };
        let next = match self {
            Self::None { next } => Some(*next),
            _ => None,
        };
        let swapping = match self {
            Self::Swapping {
                token,
                predecessor,
                named,
            } => Some((*token, predecessor, *named)),
            _ => None,
        };
        let kind = core::mem::discriminant(self);
        (kind, acting, waiting, next, swapping)
    }
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

    /// What the write that is out puts on the list.
    fn unannounced(&self) -> impl Iterator<Item = &VmId> {
        let written = self.writing.iter().flat_map(BTreeMap::keys);
        written.filter(|vm| !self.list.contains_key(*vm))
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
    None { next: Instant },
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
    pub(crate) fn may_own(&self) -> Result<(), String> {
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
                self.owned
                    .insert(datastore.clone(), Own::None { next: now });
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
                } else if now >= next && !self.awaits_heartbeat(datastore, &record, read_done) {
                    self.read_owner(datastore);
                }
            }
            Some(Own::None { .. } | Own::Reading | Own::Swapping { .. } | Own::Releasing) => {}
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
}
