//! Restarting VMs that should run and do not: finding them, proving that nothing of them can run,
//! placing them, ordering the start, and trying again.
//!
//! ```text
//!  protected, nobody reports it ─▶ read its lock ─▶ free, should run ──────────────▶ ready ─▶ ordered ─▶ runs
//!                                     │ free, switched off: off the list            ▲  ▲         │ failed
//!                                     │ held: waits for the holder's verdict,       │  │ retry   ▼
//!                                     └── and for the proof that its right lapsed ──┘  └── waits 2, 4, 8, 8, 8 min
//! ```
//! The lock decides, not the reports: every order names the one generation that was proven, and the
//! target's swap expects exactly it. Attempts are spent only by a hypervisor that could not start the
//! VM; a lock that is still held, or a host that was not ready, costs none.

mod find;
mod order;
mod power;
mod proof;
mod rehearse;

pub(crate) use rehearse::{Rehearsed, Supposed};

use crate::agent::Agent;
use crate::config::VmSpec;
use crate::election::Role;
use crate::event::{EventKind, HostState, WaitCause};
use crate::id::{DatastoreId, HostId, VmId};
use crate::time::Instant;
use crate::wire::LockRecord;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// A restart under way.
#[derive(Clone, Debug)]
pub(crate) struct Restart {
    pub(crate) datastore: DatastoreId,
    /// Attempts that were spent.
    pub(crate) attempt: u32,
    pub(crate) step: Step,
    /// Who held its lock when that was last read.
    held: Held,
    pub(crate) why: String,
    said: String,
    /// The last request that was said: a start that is tried again for free is not said again.
    requested: Option<(u32, HostId)>,
    order: u64,
    /// When it was first seen that the VM does not run.
    since: Instant,
    /// Since when the host for which it waits is back.
    home_back: Option<Instant>,
    /// Since when hosts that were asked find it impossible for now, without an attempt.
    put_off_since: Option<Instant>,
    /// How often hosts could not start it: another is asked first.
    failures: BTreeMap<HostId, u32>,
}

/// Where a restart stands.
#[derive(Clone, Hash, Debug)]
pub(crate) enum Step {
    /// Its lock is to be read, not before that moment.
    Look(Instant),
    /// Its lock is being read, since then. `said`: it was said that this takes long.
    Looking { since: Instant, said: bool },
    /// The lock was read; it is held, or there is no room.
    Waiting {
        record: LockRecord,
        read_done: Instant,
        reread: Instant,
        /// What it was last found to wait for; asked again when that can have changed.
        checked: Option<Checked>,
    },
    /// A host was asked.
    Ordered { host: HostId, since: Instant },
    /// It runs again since then, and ran when its host was last heard; forgotten when that is long enough.
    Runs { since: Instant, heard: Instant },
    /// No more attempts.
    Abandoned,
}

/// Who holds the lock of a VM that is to be restarted, as far as that is known.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Held {
    /// It has not been read since the VM was missed.
    Unread,
    /// Nobody.
    Free,
    /// That host.
    By(HostId),
}

impl Restart {
    /// Of a VM that no connected host reports since `now`.
    pub(crate) fn missed(datastore: DatastoreId, now: Instant) -> Self {
        Self {
            datastore,
            attempt: 0,
            step: Step::Look(now),
            held: Held::Unread,
            why: String::from("no connected host reports it"),
            said: String::new(),
            requested: None,
            order: 0,
            since: now,
            home_back: None,
            put_off_since: None,
            failures: BTreeMap::new(),
        }
    }

    /// What decides, of all that is kept.
    #[cfg(test)]
    pub(crate) fn decides(&self) -> impl core::hash::Hash {
        (&self.step, self.attempt, self.order, self.put_off_since)
    }

    /// Its lock names that host, or did when it was last read.
    pub(crate) fn is_held_by(&self, host: &HostId) -> bool {
        !matches!(self.step, Step::Runs { .. })
            && matches!(&self.held, Held::By(holder) if holder == host)
    }

    /// Whom its lock names is not known yet.
    pub(crate) fn is_unread(&self) -> bool {
        !matches!(self.step, Step::Runs { .. }) && self.held == Held::Unread
    }
}

/// What is certain to keep a restart waiting. Numbers and reasons are brought up to date with each
/// heartbeat.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Checked {
    /// The verdict about the lock's holder, in that heartbeat.
    Holder(HostState, u64),
    /// No host had room when what is where was at that revision, in that heartbeat.
    NoRoom(u64, u64),
}

/// Why a restart cannot be asked for yet.
enum Wait {
    /// Over within a few heartbeats: shown in `explain` only.
    Passing(String),
    /// Worth an event.
    Worth(WaitCause, String),
}

impl Agent {
    fn restarts_from(&self) -> Option<Instant> {
        match &self.role {
            Role::Primary { restarts_from, .. } => Some(*restarts_from),
            Role::Electing { .. } | Role::Secondary { .. } => None,
        }
    }

    pub(crate) fn restarts_due(&self) -> Option<Instant> {
        let late = self.timing().dead;
        self.restarts
            .values()
            .filter_map(|r| match &r.step {
                Step::Look(at) => Some(*at),
                Step::Waiting { reread, .. } => Some(*reread),
                Step::Looking { since, said: false } => Some(*since + late),
                _ => None,
            })
            .filter(|at| *at > self.now)
            .min()
    }

    /// Carries restarts on: reads locks, collects proofs, places and orders.
    pub(crate) fn run_restarts(&mut self) {
        let Some(from) = self.restarts_from() else {
            return;
        };
        let now = self.now;
        let mut ready: Vec<(VmSpec, LockRecord, Option<HostId>)> = Vec::new();
        let ids: Vec<VmId> = self
            .restarts
            .iter()
            .filter(|(_, r)| !self.rests(r))
            .map(|(vm, _)| vm.clone())
            .collect();
        for vm in ids {
            let Some(restart) = self.restarts.get(&vm) else {
                continue;
            };
            let datastore = restart.datastore.clone();
            if self.acting(&datastore).is_none() {
                continue;
            }
            match restart.step.clone() {
                Step::Look(at) if now >= at => self.look(&vm, &datastore),
                Step::Waiting {
                    record,
                    read_done,
                    reread,
                    checked,
                } => {
                    let may = self.may_restart(&vm, &datastore, &record, read_done);
                    // A proof that is there is used before the lock is read again, which voids it.
                    let proven = matches!(may, Ok((_, Some(_))))
                        && !matches!(checked, Some(Checked::NoRoom(..)));
                    if now >= reread
                        && !proven
                        && !self.awaits_heartbeat(&datastore, &record, read_done)
                        && !self.awaits_power_of_holder(&record, read_done)
                    {
                        self.look(&vm, &datastore);
                        continue;
                    }
                    if may.is_err() {
                        self.note_checked(&vm, self.held_back(&record));
                    }
                    match may {
                        Ok((spec, broken)) if now >= from => ready.push((spec, record, broken)),
                        Ok(_) => {}
                        Err(Wait::Worth(cause, why)) => self.say_waiting(&vm, cause, &why),
                        Err(Wait::Passing(why)) => {
                            if let Some(restart) = self.restarts.get_mut(&vm) {
                                restart.why = why;
                            }
                        }
                    }
                }
                Step::Ordered { host, since } => self.check_order(&vm, &host, since),
                Step::Looking { since, said: false } if now >= since + self.timing().dead => {
                    self.say_look_is_late(&vm, &datastore);
                }
                Step::Look(_) | Step::Looking { .. } | Step::Runs { .. } | Step::Abandoned => {}
            }
        }
        if !ready.is_empty() {
            let expected = self.expected_soon(from);
            self.order_starts(ready, expected);
        }
    }

    /// VMs that may be restarted but for the proof about the holder of their lock, who is dead: it takes a reading or
    /// two. What is ready before, and comes after them, leaves them their room; for no longer than a dead host takes.
    fn expected_soon(&self, from: Instant) -> Vec<VmSpec> {
        let (now, patience) = (self.now, self.timing().dead);
        let read = |r: &Restart| matches!(r.step, Step::Looking { .. } | Step::Waiting { .. });
        let lost = |r: &Restart| match &r.held {
            Held::By(host) => {
                let peer = self.peers.get(host);
                peer.is_some_and(|p| p.state == HostState::Dead)
            }
            Held::Unread | Held::Free => false,
        };
        let expected = self
            .restarts
            .iter()
            .filter(|(_, r)| read(r) && lost(r) && now.since(r.since.max(from)) < patience);
        expected
            .filter_map(|(vm, r)| self.policy_permits(vm, &r.datastore).ok())
            .collect()
    }

    /// Nothing is to be done about it now: neither has its time come, nor can what it waits for have
    /// changed.
    fn rests(&self, restart: &Restart) -> bool {
        match &restart.step {
            Step::Look(at) => self.now < *at,
            Step::Looking { since, said } => *said || self.now < *since + self.timing().dead,
            Step::Runs { .. } | Step::Abandoned => true,
            Step::Ordered { .. } => false,
            Step::Waiting { reread, .. } if self.now >= *reread => false,
            Step::Waiting {
                record, checked, ..
            } => match checked {
                None => false,
                Some(Checked::Holder(..)) => *checked == self.held_back(record),
                Some(Checked::NoRoom(..)) => *checked == Some(self.no_room()),
            },
        }
    }

    /// The verdict about the holder of its lock, when no lock is broken under that verdict.
    fn held_back(&self, record: &LockRecord) -> Option<Checked> {
        let holder = record.holder.as_ref()?;
        let state = self.peers.get(&holder.host)?.state;
        let certain = matches!(
            state,
            HostState::Live | HostState::Unreachable | HostState::Partitioned | HostState::Isolated
        );
        certain.then_some(Checked::Holder(state, self.beats))
    }

    fn no_room(&self) -> Checked {
        Checked::NoRoom(self.inventory.revision, self.beats)
    }

    fn note_checked(&mut self, vm: &VmId, found: Option<Checked>) {
        if let Some(restart) = self.restarts.get_mut(vm)
            && let Step::Waiting { checked, .. } = &mut restart.step
        {
            *checked = found;
        }
    }

    /// Says once for what a restart waits.
    fn say_waiting(&mut self, vm: &VmId, cause: WaitCause, why: &str) {
        let Some(restart) = self.restarts.get_mut(vm) else {
            return;
        };
        // Numbers change with each look; the sentence without them is the reason.
        let reason: String = why.chars().filter(|c| !c.is_ascii_digit()).collect();
        restart.why = why.to_string();
        if restart.said == reason {
            return;
        }
        restart.said = reason;
        self.emit(
            EventKind::RestartWaiting {
                vm: vm.clone(),
                reason: why.to_string(),
                cause,
            },
            why.to_string(),
        );
    }
}
