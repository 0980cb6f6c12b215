//! Right (b): an owner vouches for a host whose heartbeat on a datastore is late, so that slow storage
//! on one host does not pause its healthy VMs.
//!
//! ```text
//!   host: heartbeat late ─▶ asks (nonce) ──▶ owner: acts now, never for itself, no proof against it
//!         VMs that run go on until `request + freeze` ◀── answers, and remembers when
//! ```
//! An answer prolongs what runs; it never starts, thaws or accepts a VM (safety rules H3, H9). It counts
//! from before the request was sent, so that a late answer is harmless (H7). The owner breaks no lock of
//! a host for one `break` after its last answer to it; a new owner, which knows of no answers, waits that
//! long for everybody but its predecessor (H6, H8), which has used no such right since before it asked
//! for the owner lock, and takes no answer to what it asked before.

use crate::agent::{Agent, planted};
use crate::event::EventKind;
use crate::id::{DatastoreId, Generation, HostId, Nonce, VmId};
use crate::io::Channel;
use crate::time::Instant;
use crate::vms::Standing;
use crate::wire::Message;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::vec::Vec;

/// Requests of one host for one datastore whose answers are still taken: more than fit into `freeze`.
const REQUESTS_KEPT: usize = 16;

/// A host's requests for one datastore.
#[derive(Clone, Hash, Debug, Default)]
pub(crate) struct Vouched {
    /// Requests that may still be answered: their nonces, and when they were sent.
    asked: VecDeque<(Nonce, Instant)>,
    next: Option<Instant>,
    /// VMs may run by an answer until then.
    until: Option<Instant>,
    /// The owner that vouches, as it was last said.
    by: Option<HostId>,
}

impl Vouched {
    /// When nothing runs by an owner's word any more.
    pub(crate) fn over_at(&self) -> Option<Instant> {
        self.until
    }

    /// No answer to what was asked is taken any more.
    pub(crate) fn forgo(&mut self) {
        self.asked.clear();
    }
}

impl Agent {
    pub(crate) fn vouch_due(&self) -> Option<Instant> {
        if !self.role.is_secondary() {
            return None;
        }
        let late = self.timing().freeze / 2;
        self.stores
            .values()
            .filter_map(|s| {
                let stale = s.right.deadline()?;
                let from = stale - late;
                Some(s.vouched.next.map_or(from, |next| next.max(from)))
            })
            .filter(|at| *at > self.now)
            .min()
    }

    /// Asks the primary to vouch wherever the own heartbeat is late and VMs run.
    pub(crate) fn run_vouch(&mut self) {
        let Some(owner) = self.role.followed().cloned() else {
            return;
        };
        let now = self.now;
        let (late, again) = (self.timing().freeze / 2, self.timing().datastore_heartbeat);
        let mut stale: Vec<DatastoreId> = Vec::new();
        for (datastore, store) in &self.stores {
            let fresh = store.right.deadline().is_some_and(|d| now + late < d);
            let due = store.vouched.next.is_none_or(|next| now >= next);
            if !fresh && due {
                stale.push(datastore.clone());
            }
        }
        for datastore in stale {
            let here = |v: &&crate::vms::LocalVm| v.spec.datastore == datastore;
            let runs = self
                .vms
                .values()
                .filter(here)
                .any(|v| v.standing() == Standing::Runs);
            // Who may own the datastore has given up this right, and takes it up no more.
            if !runs || self.may_be_owner(&datastore) {
                continue;
            }
            let nonce = Nonce(self.nonces.next_u64());
            if let Some(store) = self.stores.get_mut(&datastore) {
                store.vouched.ask(nonce, now);
                store.vouched.next = Some(now + again);
            }
            let message = Message::AskVouch { datastore, nonce };
            self.send(&owner, Channel::Datagram, message);
        }
    }

    /// A host whose heartbeat is late asks this one, which may own the datastore.
    pub(crate) fn on_ask_vouch(&mut self, from: &HostId, datastore: &DatastoreId, nonce: Nonce) {
        let now = self.now;
        let generation = if planted!(self, AnswerAfterLapse) {
            self.acting_at_all(datastore)
        } else {
            self.acting(datastore).map(|a| a.generation)
        };
        let Some(generation) = generation else {
            return;
        };
        if !self.note_answer(datastore, from, now) {
            return;
        }
        let message = Message::Vouch {
            datastore: datastore.clone(),
            nonce,
            generation,
        };
        self.send(from, Channel::Datagram, message);
    }

    /// The owner answered.
    pub(crate) fn on_vouch(
        &mut self,
        from: &HostId,
        datastore: &DatastoreId,
        nonce: Nonce,
        generation: Generation,
    ) {
        let now = self.now;
        let Some(store) = self.stores.get_mut(datastore) else {
            return;
        };
        let newest = store.vouched.asked.back().map(|(_, sent)| *sent);
        let mut issued = store.vouched.sent(nonce);
        if planted!(self, NewestIsAnswered) {
            issued = newest;
        }
        let Some(issued) = issued.filter(|_| self.role.followed() == Some(from)) else {
            self.ignore("late vouch");
            return;
        };
        let counted = if planted!(self, VouchFromAnswer) {
            now
        } else {
            issued
        };
        let until = counted + self.timing().freeze;
        let said = self
            .stores
            .get_mut(datastore)
            .map(|s| s.vouched.granted(until, from))
            .unwrap_or(true);
        if !said {
            let (host, owner) = (self.me.host.clone(), from.clone());
            let why = format!(
                "the heartbeat of {host} on {datastore} is late; {owner} owns the datastore under generation {generation} and has heard from it: its VMs go on"
            );
            self.emit(
                EventKind::HostVouched {
                    host,
                    owner,
                    datastore: datastore.clone(),
                },
                why,
            );
        }
        self.prolong(datastore, counted);
        if planted!(self, VouchThaws) {
            self.thaw_by_vouch(datastore, until);
        }
    }

    /// Prolongs the right of the VMs that run there, and of no others.
    fn prolong(&mut self, datastore: &DatastoreId, counted: Instant) {
        let own = self.timing().freeze;
        let here = self.vms.values().filter(|v| v.spec.datastore == *datastore);
        let running = here.filter(|v| v.standing() == Standing::Runs);
        let extensions = running.filter_map(|v| v.extended(counted, own)).collect();
        self.extend(extensions);
    }

    /// Planted bug: an answer lets a frozen VM go on under the generation that lapsed.
    fn thaw_by_vouch(&mut self, datastore: &DatastoreId, deadline: Instant) {
        let frozen: Vec<VmId> = self
            .vms
            .values()
            .filter(|v| v.spec.datastore == *datastore && v.standing() == Standing::Frozen)
            .map(|v| v.spec.id.clone())
            .collect();
        for vm in frozen {
            self.unfreeze_as_it_was(&vm, deadline);
        }
    }

    /// The own heartbeat was renewed: nobody needs to vouch.
    pub(crate) fn vouch_not_needed(&mut self, datastore: &DatastoreId) {
        if let Some(store) = self.stores.get_mut(datastore) {
            store.vouched.asked.clear();
            store.vouched.next = None;
            store.vouched.by = None;
        }
    }
}

impl Vouched {
    fn ask(&mut self, nonce: Nonce, now: Instant) {
        if self.asked.len() >= REQUESTS_KEPT {
            self.asked.pop_front();
        }
        self.asked.push_back((nonce, now));
    }

    /// When the request was sent; it and older ones are answered with this.
    fn sent(&mut self, nonce: Nonce) -> Option<Instant> {
        let at = self.asked.iter().position(|(n, _)| *n == nonce)?;
        self.asked.drain(..=at).next_back().map(|(_, sent)| sent)
    }

    /// Takes an answer; true when that owner's word has been told of already.
    fn granted(&mut self, until: Instant, by: &HostId) -> bool {
        self.until = Some(self.until.map_or(until, |u| u.max(until)));
        let known = self.by.as_ref() == Some(by);
        self.by = Some(by.clone());
        known
    }
}
