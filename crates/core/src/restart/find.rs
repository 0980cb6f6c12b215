//! Finds the VMs that should run and do not: what is on the protected lists, held against what hosts report.

use super::{Held, Restart, Step};
use crate::agent::{Agent, planted};
use crate::id::{DatastoreId, Generation, HostId, VmId};
use crate::time::{Duration, Instant};
use crate::wire::{ProtectedVm, VmReportState};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// A VM that ran for less than this after a restart spends an attempt when it dies, as a failed start does.
/// Counted until its host was last heard: a host says nothing of its own death, and in the classic timings
/// eleven seconds pass until its silence is noticed.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// A planted bug protects nothing after that.
const UNPROTECTED_AFTER: Duration = Duration::from_secs(60);

impl Agent {
    /// Holds what is protected against what runs: wherever something changed, and where time matters.
    pub(crate) fn reconcile(&mut self) {
        if !self.role.is_primary() {
            self.inventory.rest();
            return;
        }
        self.settle_vms();
        self.note_owned();
        let mut due = self.inventory.take_changed();
        due.extend(self.restarts.take_touched());
        let runs = |r: &Restart| matches!(r.step, Step::Runs { .. });
        due.extend(
            self.restarts
                .iter()
                .filter(|(_, r)| runs(r))
                .map(|(vm, _)| vm.clone()),
        );
        for vm in due {
            self.reconcile_vm(&vm);
        }
    }

    /// Follows which datastores are owned: what is on one that was lost is no business of this primary
    /// any more, and on one that was won everything is looked at.
    fn note_owned(&mut self) {
        let owned: BTreeMap<DatastoreId, Generation> = self
            .stores
            .keys()
            .filter_map(|d| Some((d.clone(), self.acting(d)?.generation)))
            .collect();
        if owned == self.inventory.owned {
            return;
        }
        self.restarts
            .retain(|_, r| owned.contains_key(&r.datastore));
        let won: Vec<DatastoreId> = owned
            .iter()
            .filter(|(d, g)| self.inventory.owned.get(*d) != Some(*g))
            .map(|(d, _)| d.clone())
            .collect();
        let mut all: Vec<VmId> = Vec::new();
        for datastore in &won {
            all.extend(
                self.acting(datastore)
                    .into_iter()
                    .flat_map(|a| a.list.keys())
                    .cloned(),
            );
        }
        if !won.is_empty() {
            let there = self.located().into_iter();
            let there = there.filter(|(_, place)| won.contains(&place.spec.datastore));
            all.extend(there.map(|(vm, _)| vm.clone()));
            self.inventory.tell.extend(self.peers.keys().cloned());
        }
        self.inventory.mark_all(all.into_iter());
        self.inventory.owned = owned;
    }

    /// The owned datastore on whose list the VM is.
    pub(crate) fn listed_on(&self, vm: &VmId) -> Option<DatastoreId> {
        let lists = |d: &DatastoreId| self.acting(d).is_some_and(|a| a.list.contains_key(vm));
        let home = match self.config.vms.get(vm) {
            Some(spec) => Some(&spec.datastore),
            None => self.locate(vm).map(|place| &place.spec.datastore),
        };
        match home {
            Some(home) => lists(home).then(|| home.clone()),
            // Neither configured nor reported: it may be on any list.
            None => self.inventory.owned.keys().find(|d| lists(d)).cloned(),
        }
    }

    fn reconcile_vm(&mut self, vm: &VmId) {
        let Some(place) = self.locate(vm) else {
            match self.listed_on(vm) {
                Some(datastore) => self.reconcile_missing(&datastore, vm),
                None => self.look_at_unowned(vm),
            }
            return;
        };
        let (state, host) = (place.state, place.host.clone());
        let late = planted!(self, LateStartUnprotected) && self.has_led_for(UNPROTECTED_AFTER);
        if !late
            && matches!(state, VmReportState::Running | VmReportState::Frozen)
            && self.acting(&place.spec.datastore).is_some()
        {
            let datastore = place.spec.datastore.clone();
            let protected = ProtectedVm {
                vm: vm.clone(),
                cpu_mhz: place.spec.cpu_mhz,
                memory_mb: place.spec.memory_mb,
                restart_priority: place.spec.restart_priority,
                last_host: Some(host.clone()),
            };
            self.want_protected(&datastore, protected);
        }
        if self.restarts.contains_key(vm) && self.listed_on(vm).is_some() {
            self.reconcile_present(vm, &host, state);
        }
    }

    /// Planted bug: it has been the primary for longer than that.
    fn has_led_for(&self, time: Duration) -> bool {
        self.restarts_from()
            .is_some_and(|from| self.now >= from + time)
    }

    /// A protected VM that no connected host reports.
    fn reconcile_missing(&mut self, datastore: &DatastoreId, vm: &VmId) {
        let now = self.now;
        match self.restarts.get(vm).map(|r| &r.step) {
            Some(Step::Runs { since, heard }) => {
                let (since, heard) = (*since, *heard);
                // A report or two may be on its way.
                if now.since(since) > 3 * self.timing().network_heartbeat {
                    self.fell_again(vm, heard.since(since));
                }
            }
            Some(_) => {}
            None => {
                self.restarts
                    .insert(vm.clone(), Restart::missed(datastore.clone(), now));
            }
        }
    }

    /// Its host has stopped it for good, and still reports it because it cannot give the lock back.
    pub(crate) fn restart_given_up(
        &mut self,
        vm: &VmId,
        datastore: &DatastoreId,
        host: &HostId,
        news: bool,
    ) {
        let now = self.now;
        match self.restarts.get_mut(vm) {
            None => {
                let why = format!("{host} has stopped it, because its storage is lost there");
                let restart = Restart {
                    why,
                    ..Restart::missed(datastore.clone(), now)
                };
                self.restarts.insert(vm.clone(), restart);
            }
            Some(restart) if news && matches!(restart.step, Step::Runs { .. }) => {
                restart.said.clear();
                restart.put_off_since = None;
                restart.requested = None;
                restart.attempt = 0;
                restart.step = Step::Look(now);
                restart.held = Held::Unread;
            }
            Some(restart) => {
                if let (true, Step::Waiting { checked, .. }) = (news, &mut restart.step) {
                    *checked = None;
                }
            }
        }
    }

    /// A VM that is reported while a restart of it is under way.
    fn reconcile_present(&mut self, vm: &VmId, host: &HostId, state: VmReportState) {
        let now = self.now;
        let said = self.last_said(host);
        let Some(restart) = self.restarts.get(vm) else {
            return;
        };
        match (&restart.step, state) {
            (Step::Runs { since, .. }, _) if said.since(*since) >= STABLE_AFTER => {
                self.restarts.remove(vm);
            }
            (
                Step::Runs { .. } | Step::Ordered { .. },
                VmReportState::Starting | VmReportState::Stopping | VmReportState::Frozen,
            ) => {}
            (Step::Runs { since, heard }, VmReportState::Running) if said > *heard => {
                let since = *since;
                if let Some(restart) = self.restarts.get_mut(vm) {
                    restart.step = Step::Runs { since, heard: said };
                }
            }
            (Step::Runs { .. }, VmReportState::Running) => {}
            // Its user started it, after its attempts were used up: the next failure begins anew.
            (Step::Abandoned, VmReportState::Running) => {
                self.restarts.remove(vm);
            }
            (_, VmReportState::Running) => {
                if let Some(restart) = self.restarts.get_mut(vm) {
                    // Somebody else's start, or its old host's last word: no attempt of ours, if it ends at once.
                    let asked = restart.requested.as_ref();
                    if asked.is_none_or(|(_, asked)| asked != host) {
                        restart.attempt = 0;
                    }
                    restart.why = format!("it runs on {host}");
                    restart.step = Step::Runs {
                        since: now,
                        heard: now,
                    };
                }
            }
            // Somebody has it in hand: nothing is to be done, and nothing forgotten.
            (_, VmReportState::Starting | VmReportState::Stopping | VmReportState::Frozen) => {}
        }
    }

    /// When a host was last heard; what it reported was true until then.
    fn last_said(&self, host: &HostId) -> Instant {
        if *host == self.me.host {
            return self.now;
        }
        let heard = self.peers.get(host).and_then(|p| p.heard);
        heard.unwrap_or(self.now)
    }

    /// It died again when it had run for that long after a restart: too soon counts as a failed start.
    fn fell_again(&mut self, vm: &VmId, ran_for: Duration) {
        let now = self.now;
        let soon = ran_for < STABLE_AFTER;
        let Some(restart) = self.restarts.get_mut(vm) else {
            return;
        };
        restart.said.clear();
        restart.put_off_since = None;
        let asked = restart.requested.take().map(|(_, host)| host);
        restart.step = Step::Look(now);
        restart.held = Held::Unread;
        if soon && restart.attempt > 0 {
            let host = asked.unwrap_or_else(|| self.me.host.clone());
            self.attempt_failed(
                vm,
                &host,
                String::from("it stopped right after its restart"),
            );
        } else if let Some(restart) = self.restarts.get_mut(vm) {
            restart.attempt = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Held;
    use super::*;
    use crate::id::HostId;
    use crate::testing::{datastore, primary, vm};

    fn host(n: u32) -> HostId {
        HostId::new(&format!("host-{n}")).expect("id")
    }

    /// A primary that asked `host-1` for its first attempt; then `reports` says that the VM runs there, and a
    /// moment later nobody has it.
    fn said_to_run_on(reports: &HostId) -> Agent {
        let mut agent = primary(Vec::new());
        let now = agent.now;
        let restart = Restart {
            attempt: 1,
            step: Step::Ordered {
                host: host(1),
                since: now,
            },
            held: Held::Free,
            order: 7,
            requested: Some((1, host(1))),
            ..Restart::missed(datastore(), now)
        };
        agent.restarts.insert(vm(), restart);
        agent.reconcile_present(&vm(), reports, VmReportState::Running);
        let known = &agent.restarts.get(&vm()).expect("kept").step;
        assert!(matches!(known, Step::Runs { .. }), "{known:?}");
        agent.fell_again(&vm(), Duration::ZERO);
        agent
    }

    #[test]
    fn last_word_of_the_old_host_spends_no_attempt() {
        let agent = said_to_run_on(&host(2));
        let restart = agent.restarts.get(&vm()).expect("kept");
        assert_eq!(restart.attempt, 0);
        assert!(
            matches!(restart.step, Step::Look(at) if at == agent.now),
            "{:?}",
            restart.step
        );
    }

    #[test]
    fn vm_that_falls_right_after_its_restart_spends_an_attempt() {
        let agent = said_to_run_on(&host(1));
        let restart = agent.restarts.get(&vm()).expect("kept");
        assert_eq!(restart.attempt, 1);
        let wait = agent.config.settings.retry_delay(0);
        assert!(
            matches!(restart.step, Step::Look(at) if at == agent.now + wait),
            "{:?}",
            restart.step
        );
    }
}
