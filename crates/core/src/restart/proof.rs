//! Whether a VM may be restarted now: reads its lock, and collects the proof that nothing of it can run.

use super::{Held, Step, Wait};
use crate::agent::{Agent, planted};
use crate::config::{FenceClass, HostShutdown, RestartPriority, Rule, RuleKind, VmSpec};
use crate::event::{HostState, StopReason, WaitCause};
use crate::id::{DatastoreId, HostId, VmId};
use crate::io::Channel;
use crate::lock::LockName;
use crate::tasks::TaskFor;
use crate::time::{Duration, Instant};
use crate::wire::{Desired, LockRecord, Message};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

impl Agent {
    pub(super) fn look(&mut self, vm: &VmId, datastore: &DatastoreId) {
        if self.has_task(&TaskFor::Look(vm.clone())) {
            return;
        }
        if let Some(restart) = self.restarts.get_mut(vm) {
            restart.step = Step::Looking {
                since: self.now,
                said: false,
            };
        }
        self.read_lock(
            datastore,
            LockName::Vm(vm.clone()),
            TaskFor::Look(vm.clone()),
        );
    }

    /// Its lock has been read for as long as a dead host takes, and nothing came of it.
    pub(super) fn say_look_is_late(&mut self, vm: &VmId, datastore: &DatastoreId) {
        let late = self.timing().dead.as_millis();
        let fault = self.stores.get(datastore).and_then(|s| s.fault);
        let fault = fault.map_or_else(String::new, |fault| format!(" ({fault:?})"));
        let why = format!("its lock on {datastore} could not be read for {late} ms{fault}");
        self.say_unreadable(vm, &why);
    }

    /// The newest record of its lock cannot be understood: nothing is concluded from an older one.
    pub(crate) fn on_look_damaged(&mut self, vm: &VmId, why: &str) {
        self.say_unreadable(vm, why);
    }

    fn say_unreadable(&mut self, vm: &VmId, why: &str) {
        if let Some(restart) = self.restarts.get_mut(vm)
            && let Step::Looking { said, .. } = &mut restart.step
        {
            *said = true;
            self.say_waiting(vm, WaitCause::LockUnreadable, why);
        }
    }

    /// The lock of a VM that nobody reports was read.
    pub(crate) fn on_look(&mut self, vm: &VmId, record: Option<LockRecord>) {
        let now = self.now;
        let reread = now + self.timing().poweron_poll;
        let ignore_intent = planted!(self, IntentIgnored);
        let Some(restart) = self.restarts.get_mut(vm) else {
            self.on_unowned_look(vm, record.as_ref());
            return;
        };
        if !matches!(restart.step, Step::Looking { .. }) {
            return;
        }
        let holder = record.as_ref().and_then(|r| r.holder.as_ref());
        restart.held = holder.map_or(Held::Free, |h| Held::By(h.host.clone()));
        let Some(record) = record else {
            restart.step = Step::Look(reread);
            return;
        };
        let datastore = restart.datastore.clone();
        // What a host had it under was on disk. This agent may never have read it, and so has nothing to remember
        // (safety rule H22).
        let reported = self.reported_generation(vm);
        if let Some((host, told)) = reported.filter(|(_, told)| *told > record.generation) {
            let why = format!(
                "{host} had it under generation {told} of its lock, and {datastore} shows {}, as after restoring a snapshot or from a cache; restore the newer records, or switch it on by hand when it certainly runs nowhere",
                record.generation
            );
            self.say_unreadable(vm, &why);
            if let Some(restart) = self.restarts.get_mut(vm) {
                restart.step = Step::Look(reread);
            }
            return;
        }
        if record.holder.is_none() && record.desired == Desired::Off && !ignore_intent {
            if self.locate(vm).is_some() {
                // It was switched on while the lock was being read, and may be protected again: a look that
                // took long must not take it off the list.
                if let Some(restart) = self.restarts.get_mut(vm) {
                    restart.step = Step::Look(reread);
                }
                return;
            }
            self.restarts.remove(vm);
            let why = String::from(
                "its lock is free and says that its user, or the guest, switched it off",
            );
            self.want_unprotected(&datastore, vm, why);
            return;
        }
        if let Some(holder) = record.holder.clone() {
            if holder.host == self.me.host {
                self.on_check_lock(vm, &datastore, record.generation);
            } else if self.peers.get(&holder.host).is_some_and(|p| p.connected()) {
                let message = Message::CheckLock {
                    vm: vm.clone(),
                    datastore: datastore.clone(),
                    generation: record.generation,
                };
                self.send(&holder.host, Channel::Stream, message);
            }
        }
        if let Some(restart) = self.restarts.get_mut(vm) {
            restart.step = Step::Waiting {
                record,
                read_done: now,
                reread,
                checked: None,
            };
        }
    }

    /// The holder's heartbeat has not been read since the lock was. To read the lock again before that
    /// would begin the proof anew each time where the storage is slow. A heartbeat that cannot be read
    /// hides a change of the lock for no longer than a dead host takes.
    pub(crate) fn awaits_heartbeat(
        &self,
        datastore: &DatastoreId,
        record: &LockRecord,
        read_done: Instant,
    ) -> bool {
        let window = record.holder.as_ref().and_then(|holder| {
            let store = self.stores.get(datastore)?;
            store.windows.get(&holder.host)
        });
        window.is_some_and(|w| w.last_issue() <= read_done)
            && self.now < read_done + self.timing().dead
    }

    /// May it be restarted now? The spec, and whose lock that breaks; or why not.
    pub(super) fn may_restart(
        &self,
        vm: &VmId,
        datastore: &DatastoreId,
        record: &LockRecord,
        read_done: Instant,
    ) -> Result<(VmSpec, Option<HostId>), Wait> {
        let (spec, broken) = self.permitted(vm, datastore, record)?;
        // The holder's own word that its generation is dead is better than what its heartbeat shows.
        if let Some(holder) = &broken
            && self.is_given_up(vm, record).is_none()
        {
            self.proven(datastore, holder, record, read_done)?;
        }
        Ok((spec, broken))
    }

    /// Do policy, dependencies and the verdict about its lock's holder let it be restarted? The spec, and
    /// whose lock that breaks; or why not.
    pub(super) fn permitted(
        &self,
        vm: &VmId,
        datastore: &DatastoreId,
        record: &LockRecord,
    ) -> Result<(VmSpec, Option<HostId>), Wait> {
        let spec = self.policy_permits(vm, datastore)?;
        let Some(holder) = &record.holder else {
            if let Some(why) = self.waits_for_its_host(record) {
                return Err(Wait::Worth(WaitCause::HostShutDown, why));
            }
            return Ok((spec, None));
        };
        self.verdict_permits(vm, datastore, record, &holder.host)?;
        Ok((spec, Some(holder.host.clone())))
    }

    /// Do policy and dependencies let it be restarted? The spec, or why not.
    pub(super) fn policy_permits(
        &self,
        vm: &VmId,
        datastore: &DatastoreId,
    ) -> Result<VmSpec, Wait> {
        let worth = |cause, why: &str| Err(Wait::Worth(cause, String::from(why)));
        let Some(acting) = self.acting(datastore) else {
            return Err(Wait::Passing(format!("{datastore} is not owned")));
        };
        let Some(listed) = acting.list.get(vm) else {
            return worth(WaitCause::NotProtected, "it is not protected");
        };
        let spec = self.config.vms.get(vm).cloned().unwrap_or_else(|| VmSpec {
            id: vm.clone(),
            datastore: datastore.clone(),
            cpu_mhz: listed.cpu_mhz,
            memory_mb: listed.memory_mb,
            restart_priority: listed.restart_priority,
            isolation_response: None,
            depends_on: Vec::new(),
            guest_agent: true,
        });
        if let Some(why) = self.waits_for_others(vm, &spec) {
            return Err(why);
        }
        if let Some(why) = self.waits_for_company(vm) {
            return Err(why);
        }
        if !self.config.settings.host_monitoring {
            return worth(WaitCause::MonitoringOff, "host_monitoring is off");
        }
        if spec.restart_priority == RestartPriority::Disabled {
            return worth(
                WaitCause::PriorityDisabled,
                "its restart priority is disabled",
            );
        }
        Ok(spec)
    }

    /// Does the verdict about its lock's holder let a VM be restarted? Or why not.
    fn verdict_permits(
        &self,
        vm: &VmId,
        datastore: &DatastoreId,
        record: &LockRecord,
        host: &HostId,
    ) -> Result<(), Wait> {
        let Some(peer) = self.peers.get(host) else {
            if *host == self.me.host {
                return Err(Wait::Passing(String::from(
                    "its lock names this host, which gives it back",
                )));
            }
            return Err(Wait::Worth(
                WaitCause::HolderUnknown,
                format!(
                    "its lock names {host}, which is not in the cluster's configuration; let {host} join again, so that its heartbeat is watched, and remove it when this VM runs elsewhere"
                ),
            ));
        };
        let enforced = self
            .config
            .datastores
            .get(datastore)
            .is_some_and(|d| d.fence == FenceClass::Enforced);
        match self.is_given_up(vm, record) {
            Some(true) => return Ok(()),
            Some(false) if enforced || self.config.settings.accept_late_writes => return Ok(()),
            Some(false) => {
                return Err(Wait::Worth(
                    WaitCause::LateWrites,
                    format!(
                        "{host} has killed it, but a thread of it waits for its disk, and {datastore} does not refuse its late writes; it is restarted when it is gone"
                    ),
                ));
            }
            None => {}
        }
        match peer.state {
            HostState::Dead => {}
            HostState::AgentUnreachable if enforced => {}
            HostState::AgentUnreachable => {
                return Err(Wait::Worth(
                    WaitCause::HolderUnreachable,
                    format!(
                        "the agent of {host} is unreachable but the host answers pings, and {datastore} does not refuse late writes"
                    ),
                ));
            }
            // A host in maintenance is down for its admin's reasons; the window proves the rest.
            HostState::Maintenance if self.silent_for_dead(peer) => {}
            HostState::Maintenance if !peer.connected() => {
                return Err(Wait::Passing(format!(
                    "{host} holds its lock and does not follow this primary: {}",
                    peer.why
                )));
            }
            HostState::Live | HostState::Maintenance => {
                return Err(Wait::Passing(format!(
                    "{host} holds its lock and is live; it is asked to give it back"
                )));
            }
            HostState::Unreachable if self.now >= self.judged_by(peer) => {
                return Err(Wait::Worth(
                    WaitCause::HolderUnreachable,
                    format!(
                        "{host} holds its lock, and nothing shows whether it is dead: {}",
                        peer.why
                    ),
                ));
            }
            HostState::Unreachable => {
                return Err(Wait::Passing(format!(
                    "{host} holds its lock and is being judged: {}",
                    peer.why
                )));
            }
            HostState::Partitioned | HostState::Isolated => {
                return Err(Wait::Worth(
                    WaitCause::HolderCutOff,
                    format!(
                        "{host} holds its lock and is {}: {}",
                        Self::state_name(peer.state),
                        peer.why
                    ),
                ));
            }
        }
        if self.must_be_off(datastore) && !self.is_off(host) {
            return Err(Wait::Worth(
                WaitCause::LateWrites,
                format!(
                    "{datastore} does not refuse late writes of {host}; its lock is broken only with proof of death (power fencing), or with accept_late_writes"
                ),
            ));
        }
        Ok(())
    }

    /// Is it proven that nothing of the holder runs under the lock that was read? Or why not yet.
    pub(super) fn proven(
        &self,
        datastore: &DatastoreId,
        host: &HostId,
        record: &LockRecord,
        read_done: Instant,
    ) -> Result<(), Wait> {
        // Whichever proof is there first. One by power needs neither the time that a right lasts nor an owner's
        // memory of whom it vouched for.
        let power = self.power_proof(datastore, host, read_done);
        if power.is_ok() || self.must_be_off(datastore) {
            return power.map_err(Wait::Passing);
        }
        self.window_proof(datastore, host, read_done, record.r#break)
            .map_err(Wait::Passing)?;
        if let Some(why) = self.owner_waits(datastore, host, record.r#break) {
            return Err(Wait::Passing(why));
        }
        Ok(())
    }

    /// Why this owner breaks no lock of that host yet, whatever its heartbeat shows.
    fn owner_waits(
        &self,
        datastore: &DatastoreId,
        host: &HostId,
        named: Duration,
    ) -> Option<String> {
        let acting = self.acting(datastore)?;
        let needed = acting.longest_break.max(named);
        let forgets = planted!(self, VouchForgotten);
        if let Some(wait) = acting
            .vouched_lately(host, self.now, needed)
            .filter(|_| !forgets)
        {
            return Some(format!(
                "this owner vouched for {host} and breaks none of its locks for another {} ms",
                wait.as_millis()
            ));
        }
        let waited = self.now.since(acting.won_at);
        let waits = acting.predecessor.as_ref() != Some(host) && waited <= needed;
        (waits && !planted!(self, NewOwnerHurries)).then(|| {
            format!(
                "a new owner breaks no lock for {} ms; {} ms have passed",
                needed.as_millis(),
                waited.as_millis()
            )
        })
    }

    /// The host that gave a free lock back when its admin shut it down, when VMs wait for such a host.
    pub(super) fn waits_for(&self, record: &LockRecord) -> Option<HostId> {
        let back = record.given_back.as_ref()?;
        let waits = self.config.settings.host_shutdown == HostShutdown::Wait
            && back.reason == StopReason::HostShutdown
            && self.config.hosts.contains_key(&back.host);
        waits.then(|| back.host.clone())
    }

    fn waits_for_its_host(&self, record: &LockRecord) -> Option<String> {
        let host = self.waits_for(record)?;
        let back = if host == self.me.host {
            self.leaving.is_none()
        } else {
            self.peers
                .get(&host)
                .is_some_and(|p| p.connected() && !p.leaving)
                && !self.is_resting(&host)
        };
        (!back).then(|| {
            format!("its host {host} was shut down by its admin, and VMs wait for their host (host_shutdown = wait)")
        })
    }

    /// A VM whose dependencies should run and do not yet, waits for them, but not for ever.
    fn waits_for_others(&self, vm: &VmId, spec: &VmSpec) -> Option<Wait> {
        let since = self.restarts.get(vm)?.since;
        if spec.depends_on.is_empty()
            || self.now.since(since) >= self.config.settings.dependency_timeout
        {
            return None;
        }
        let missing = spec.depends_on.iter().find(|on| {
            self.restarts
                .get(*on)
                .is_some_and(|r| !matches!(r.step, Step::Abandoned | Step::Runs { .. }))
                && !self.is_never_restarted(on)
        })?;
        Some(Wait::Worth(
            WaitCause::Dependency,
            format!("it depends on {missing}, which does not run yet"),
        ))
    }

    /// A mandatory rule keeps it together with a VM that no host reports, and whose lock names a host that
    /// is not dead: it runs there for all that is known, and a new primary has not its report yet.
    fn waits_for_company(&self, vm: &VmId) -> Option<Wait> {
        if planted!(self, RulesAreWishes) {
            return None;
        }
        let together = |r: &&Rule| r.mandatory && r.kind == RuleKind::Affinity;
        let rules = self.config.rules.iter().filter(together);
        let mut others = rules.filter(|r| r.vms.contains(vm)).flat_map(|r| &r.vms);
        others.find_map(|other| {
            if other == vm || self.locate(other).is_some() {
                return None;
            }
            let Some(restart) = self.restarts.get(other) else {
                // Its host's report was given up in this very step.
                return self.listed_on(other).map(|_| {
                    Wait::Passing(format!(
                        "a rule keeps it together with {other}, which no host reports"
                    ))
                });
            };
            let looks = match restart.step {
                Step::Look(_) | Step::Looking { said: false, .. } | Step::Waiting { .. } => true,
                // It has a host, gets none, or cannot be looked at.
                Step::Ordered { .. }
                | Step::Runs { .. }
                | Step::Abandoned
                | Step::Looking { said: true, .. } => false,
            };
            if !looks {
                return None;
            }
            let holder = match &restart.held {
                Held::Free => return None,
                Held::Unread => {
                    return Some(Wait::Passing(format!(
                        "a rule keeps it together with {other}, whose lock is being read"
                    )));
                }
                Held::By(host) => host,
            };
            let Some(peer) = self.peers.get(holder) else {
                return (*holder == self.me.host).then(|| {
                    Wait::Passing(format!(
                        "a rule keeps it together with {other}, whose lock names this host"
                    ))
                });
            };
            let name = Self::state_name(peer.state);
            let why = format!(
                "a rule keeps it together with {other}, whose lock names {holder}, which is {name}"
            );
            match peer.state {
                HostState::Dead | HostState::AgentUnreachable => None,
                HostState::Maintenance if self.silent_for_dead(peer) => None,
                HostState::Live | HostState::Maintenance => Some(Wait::Passing(why)),
                HostState::Unreachable if self.now < self.judged_by(peer) => {
                    Some(Wait::Passing(why))
                }
                HostState::Unreachable | HostState::Partitioned | HostState::Isolated => {
                    Some(Wait::Worth(WaitCause::NoRoom, why))
                }
            }
        })
    }

    /// Nobody restarts it, so that nobody need wait for it.
    pub(super) fn is_never_restarted(&self, vm: &VmId) -> bool {
        let spec = self.config.vms.get(vm);
        spec.is_some_and(|v| v.restart_priority == RestartPriority::Disabled)
    }

    /// When the verdict about a silent host is late: it takes `dead` where storage and pings answer, and
    /// some readings more where the storage is slow.
    fn judged_by(&self, peer: &crate::liveness::Peer) -> Instant {
        let t = self.timing();
        peer.silent_from(t.network_heartbeat) + 2 * t.dead
    }

    /// Nothing has been heard of a host, and no ping answered, for as long as a dead host takes.
    fn silent_for_dead(&self, peer: &crate::liveness::Peer) -> bool {
        let t = self.timing();
        self.now >= peer.silent_from(t.network_heartbeat) + t.dead && !peer.answers_pings()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Restart;
    use super::*;
    use crate::testing::{datastore, primary, vm};

    /// Does vm-1 wait, when a mandatory rule keeps it together with a VM that is missed too, and whose lock
    /// is held so?
    fn waits(held: Held, state: HostState) -> bool {
        let mut agent = primary(Vec::new());
        let (now, other) = (agent.now, VmId::new("vm-2").expect("id"));
        agent.config.rules.push(Rule {
            kind: RuleKind::Affinity,
            mandatory: true,
            vms: [vm(), other.clone()].into(),
            hosts: Default::default(),
        });
        let host = HostId::new("host-2").expect("id");
        agent.peers.get_mut(&host).expect("a peer").state = state;
        agent.restarts.insert(
            other,
            Restart {
                held,
                ..Restart::missed(datastore(), now)
            },
        );
        agent.waits_for_company(&vm()).is_some()
    }

    #[test]
    fn a_vm_that_a_rule_keeps_with_another_waits_until_it_is_known_where_that_one_runs() {
        let by = || Held::By(HostId::new("host-2").expect("id"));
        assert!(waits(by(), HostState::Live), "its report is on its way");
        assert!(waits(by(), HostState::Partitioned), "it runs there");
        assert!(waits(Held::Unread, HostState::Live), "nobody knows yet");
        assert!(!waits(by(), HostState::Dead), "it goes where this one goes");
        assert!(!waits(Held::Free, HostState::Live), "nothing of it runs");
    }
}
