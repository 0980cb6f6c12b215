//! Winning a datastore's owner lock, losing it, and giving it back.

use super::list::Loading;
use super::{Acting, Own};
use crate::agent::{Agent, Pending, planted};
use crate::event::EventKind;
use crate::id::{DatastoreId, Generation, HostId};
use crate::io::StorageRequest;
use crate::lock::{LockName, SwapOutcome};
use crate::tasks::TaskFor;
use crate::wire::{Desired, LockRecord, ProtectedTable};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

impl Agent {
    pub(super) fn read_owner(&mut self, datastore: &DatastoreId) {
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
            self.owned.insert(datastore.clone(), Own::None { next });
            let mine = record.filter(|r| r.holder.as_ref().is_some_and(|h| h.host == self.me.host));
            if let Some(record) = mine {
                self.free_owner(datastore, (record.generation, record.nonce));
            }
            return;
        }
        let Some(record) = record else {
            self.owned.insert(datastore.clone(), Own::None { next });
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

    pub(super) fn take_over(
        &mut self,
        datastore: &DatastoreId,
        record: &LockRecord,
        predecessor: Option<HostId>,
    ) {
        let now = self.now;
        // What runs here by another owner's word must have ended first: an owner uses no such right.
        let store = self.stores.get(datastore);
        let until = store.and_then(|s| s.vouched.over_at());
        let keeps = planted!(self, OwnerKeepsVouch);
        if let Some(until) = until.filter(|u| now < *u && !keeps) {
            self.owned
                .insert(datastore.clone(), Own::None { next: until });
            return;
        }
        let Some(token) = self.stores.get(datastore).and_then(|s| s.right.token(now)) else {
            let next = now + self.timing().datastore_heartbeat;
            self.owned.insert(datastore.clone(), Own::None { next });
            return;
        };
        let swapping = Own::Swapping {
            token,
            predecessor,
            named: record.r#break,
        };
        self.owned.insert(datastore.clone(), swapping);
        // An answer that is still on its way would bring such a right back: this host may have stepped down, and
        // follow who gave it, before it learns that its swap was won.
        if let Some(store) = self.stores.get_mut(datastore)
            && !planted!(self, AnswerToOwner)
        {
            store.vouched.forgo();
        }
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
        let none = Own::None { next };
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
                if record.freeze < self.constants().0 {
                    // The timers were raised while the swap was out: this generation names shorter ones than
                    // the right that it would act by has (safety rule H18).
                    self.free_owner(datastore, (record.generation, record.nonce));
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

    /// The datastore is owned no more; nothing is written.
    pub(crate) fn lose(&mut self, datastore: &DatastoreId, why: &str) {
        let next = self.now + self.timing().datastore_heartbeat;
        let was = self.owned.insert(datastore.clone(), Own::None { next });
        let Some(Own::Acting(acting)) = was else {
            return;
        };
        let unannounced = acting.unannounced().cloned();
        self.unannounced
            .entry(datastore.clone())
            .or_default()
            .extend(unannounced);
        if acting.loading.is_none() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::election::Role;
    use crate::id::{Holder, Nonce};
    use crate::io::{FoundState, FoundVm, Output};
    use crate::testing;
    use crate::time::Duration;
    use crate::wire::{Message, Rank};

    fn record(agent: &Agent, holder: Option<Holder>) -> LockRecord {
        let (freeze, r#break) = agent.constants();
        LockRecord {
            generation: Generation(5),
            nonce: Nonce(50),
            holder,
            desired: Desired::Off,
            freeze,
            r#break,
            given_back: None,
        }
    }

    /// A primary whose swap of an owner lock is out, and what it makes of it when it has won.
    fn won(raise: impl FnOnce(&mut Settings)) -> Option<Own> {
        let mut agent = testing::primary(Vec::new());
        let (now, datastore) = (agent.now, testing::datastore());
        let (freeze, r#break) = agent.constants();
        let right = &mut agent.stores.get_mut(&datastore).expect("mounted").right;
        right.renewed(now, now, freeze);
        let swapping = Own::Swapping {
            token: right.token(now).expect("valid"),
            predecessor: None,
            named: r#break,
        };
        agent.owned.insert(datastore.clone(), swapping);
        let record = record(&agent, Some(agent.holder()));
        raise(&mut agent.config.settings);
        agent.on_own_swapped(&datastore, record, &SwapOutcome::Won);
        agent.owned.get(&datastore).cloned()
    }

    #[test]
    fn owner_lock_that_was_won_is_acted_under() {
        assert!(matches!(won(|_| {}), Some(Own::Acting(_))));
    }

    #[test]
    fn owner_lock_is_given_back_when_the_timers_were_raised_during_its_swap() {
        let raised = won(|s| s.timing.freeze += Duration::from_secs(1));
        assert!(matches!(raised, Some(Own::Releasing)), "{raised:?}");
    }

    /// A secondary whose heartbeat is late asks for an owner's word. Does it take the answer, when `meanwhile` came
    /// before it?
    fn takes_the_answer(meanwhile: impl FnOnce(&mut Agent, &Role)) -> bool {
        let state = FoundState::Running(Generation(3));
        let vm = testing::vm();
        let mut agent = testing::primary([FoundVm { vm, state }].into());
        let (datastore, owner) = (testing::datastore(), HostId::new("host-2").expect("id"));
        let freeze = agent.timing().freeze;
        let issued = agent.now;
        let right = &mut agent.stores.get_mut(&datastore).expect("mounted").right;
        right.renewed(issued, issued, freeze);
        agent.now = issued + freeze / 2;
        let follows = Role::Secondary {
            primary: owner.clone(),
            rank: Rank {
                datastores: 1,
                host: owner.clone(),
            },
            heard: agent.now,
            silent_at: agent.now + freeze,
        };
        let leads = core::mem::replace(&mut agent.role, follows.clone());
        agent.run_vouch();
        let mut outputs = core::iter::from_fn(|| agent.poll_output());
        let nonce = outputs.find_map(|output| match output {
            Output::Datagram {
                message: Message::AskVouch { nonce, .. },
                ..
            } => Some(nonce),
            _ => None,
        });
        meanwhile(&mut agent, &leads);
        agent.role = follows;
        agent.on_vouch(&owner, &datastore, nonce.expect("it asks"), Generation(7));
        let store = agent.stores.get(&datastore).expect("mounted");
        store.vouched.over_at().is_some()
    }

    #[test]
    fn answer_is_taken_by_a_secondary_that_asked_for_no_owner_lock() {
        assert!(takes_the_answer(|_, _| {}));
    }

    #[test]
    fn answer_is_not_taken_by_who_asked_for_the_owner_lock_meanwhile() {
        let asks_for_the_lock = |agent: &mut Agent, leads: &Role| {
            agent.role = leads.clone();
            let free = record(agent, None);
            agent.take_over(&testing::datastore(), &free, None);
            assert!(agent.may_be_owner(&testing::datastore()), "its swap is out");
        };
        assert!(!takes_the_answer(asks_for_the_lock));
    }
}
