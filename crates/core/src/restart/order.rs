//! Places the restarts that are ready, orders each start from its host, and follows what comes of it.

use super::{Held, Restart, Step};
use crate::agent::{Agent, planted};
use crate::config::VmSpec;
use crate::event::{EventKind, StopReason, WaitCause};
use crate::id::{HostId, VmId};
use crate::io::Channel;
use crate::placement::{Choice, Room, View, plan};
use crate::time::{Duration, Instant};
use crate::wire::{LockRecord, Message, StartOrder, StartOutcome, StartResult};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Longest time between two orders for a VM that a host could not start for now, as while the storage keeps
/// the image lock of a host that was lost. Each order makes two generations of its lock and as many events:
/// four a minute are a load that no storage notices, and a VM stands still for no longer than this once it
/// could be started.
const PUT_OFF_AT_MOST: Duration = Duration::from_secs(30);
/// Such a VM is tried again after this part of the time that it has been put off: a wait that ends is
/// noticed at most a quarter later, and one that lasts costs little.
const PUT_OFF_PART: u32 = 4;

impl Agent {
    /// When a VM is asked for again that its host could not start for now.
    fn put_off(&mut self, vm: &VmId) -> Instant {
        let (now, least) = (self.now, self.timing().network_heartbeat);
        let restart = self.restarts.get_mut(vm);
        let since = restart.map_or(now, |r| *r.put_off_since.get_or_insert(now));
        now + (now.since(since) / PUT_OFF_PART).clamp(least, PUT_OFF_AT_MOST.max(least))
    }

    /// A host came or went: what it held it may give up now, so that VMs that were put off are tried again
    /// as often as at first.
    pub(crate) fn begin_put_off_again(&mut self) {
        let now = self.now;
        let soon = now + self.timing().network_heartbeat;
        let waits = |r: &Restart| r.put_off_since.is_some() && matches!(r.step, Step::Look(_));
        let put_off = self.restarts.iter().filter(|(_, r)| waits(r));
        for vm in put_off.map(|(vm, _)| vm.clone()).collect::<Vec<VmId>>() {
            if let Some(restart) = self.restarts.get_mut(&vm)
                && let Step::Look(at) = &mut restart.step
            {
                restart.put_off_since = Some(now);
                *at = soon.min(*at);
            }
        }
    }

    /// What each host has left, with the starts that are on their way.
    pub(crate) fn view(&self) -> View {
        let mut view = View::default();
        let mut resting_hosts: Vec<&HostId> = Vec::new();
        let own = self.own_reported();
        let others = self.peers.iter().filter(|(_, p)| p.connected());
        let others = others.filter_map(|(h, p)| Some((h, p.report.as_ref()?)));
        for (host, report) in core::iter::once((&self.me.host, &own)).chain(others) {
            let going = if *host == self.me.host {
                self.leaving.is_some()
            } else {
                self.peers.get(host).is_some_and(|p| p.leaving)
            };
            let resting = self.config.hosts.get(host).is_none_or(|h| h.maintenance);
            if going {
                continue;
            }
            if resting && !planted!(self, RestingHostStarts) {
                // It takes no starts, but what runs there counts where rules keep VMs together.
                resting_hosts.push(host);
                continue;
            }
            let room = Room {
                cpu_mhz: report.cpu_mhz,
                memory_mb: report.memory_mb,
                datastores: report.datastores.iter().cloned().collect(),
                count: report.vms.len(),
                vms: BTreeSet::new(),
                starting: 0,
                starts_at_once: self.config.settings.concurrent_restarts_per_host,
            };
            view.hosts.insert(host.clone(), room);
        }
        // Only VMs that rules name need to be told apart.
        for vm in self.config.rules.iter().flat_map(|r| &r.vms) {
            let own = self.vms.contains_key(vm).then_some(&self.me.host);
            for host in own.into_iter().chain(self.inventory.hosts_of(vm)) {
                if let Some(room) = view.hosts.get_mut(host) {
                    room.vms.insert(vm.clone());
                } else if resting_hosts.contains(&host) {
                    view.elsewhere.insert(vm.clone());
                }
            }
        }
        for (vm, restart) in &self.restarts {
            let Step::Ordered { host, .. } = &restart.step else {
                continue;
            };
            let reported = self.inventory.hosts_of(vm).any(|h| h == host)
                || *host == self.me.host && self.vms.contains_key(vm);
            let (Some(spec), Some(room)) = (self.config.vms.get(vm), view.hosts.get_mut(host))
            else {
                continue;
            };
            room.starting += 1;
            if !reported {
                room.take(spec);
            }
        }
        view
    }

    /// The host for which a VM waited is back since less than `order_timeout`: it may not be ready yet.
    fn has_patience_with_home(&mut self, vm: &VmId) -> bool {
        let (now, limit) = (self.now, self.config.settings.order_timeout);
        let restart = self.restarts.get_mut(vm);
        restart.is_some_and(|r| now.since(*r.home_back.get_or_insert(now)) < limit)
    }

    /// `expected` are not ready yet, but soon: where room is scarce it is theirs when they come first.
    pub(super) fn order_starts(
        &mut self,
        ready: Vec<(VmSpec, LockRecord, Option<HostId>)>,
        expected: Vec<VmSpec>,
    ) {
        let mut ready: BTreeMap<VmId, (VmSpec, LockRecord, Option<HostId>)> = ready
            .into_iter()
            .map(|one| (one.0.id.clone(), one))
            .collect();
        let mut specs: Vec<VmSpec> = ready.values().map(|(s, ..)| s.clone()).collect();
        let expected = expected.into_iter();
        specs.extend(expected.filter(|s| !ready.contains_key(&s.id)));
        specs.sort_by(|a, b| {
            (a.restart_priority, core::cmp::Reverse(a.memory_mb), &a.id).cmp(&(
                b.restart_priority,
                core::cmp::Reverse(b.memory_mb),
                &b.id,
            ))
        });
        let mut view = self.view();
        for (spec, record, _) in ready.values() {
            if let Some(host) = self.waits_for(record) {
                let patient = self.has_patience_with_home(&spec.id);
                view.home.insert(spec.id.clone(), (host, patient));
            }
            // Where its disk failed it is started only when no other host can run it.
            let back = record.given_back.as_ref();
            if let Some(back) = back.filter(|b| b.reason == StopReason::Vmcp) {
                view.failures
                    .insert((spec.id.clone(), back.host.clone()), 1);
            }
            if let Some(restart) = self.restarts.get(&spec.id) {
                for (host, times) in &restart.failures {
                    view.failures
                        .insert((spec.id.clone(), host.clone()), *times);
                }
            }
        }
        let mut rules = alloc::borrow::Cow::Borrowed(&self.config.rules);
        if planted!(self, RulesAreWishes) {
            rules.to_mut().iter_mut().for_each(|r| r.mandatory = false);
        }
        let choices = plan(&view, &rules, &specs);
        for (vm, choice) in choices {
            let Some((spec, record, broken)) = ready.remove(&vm) else {
                continue;
            };
            match choice {
                Choice::Nowhere(refusals) => {
                    let (cause, why) = if refusals.is_empty() {
                        (WaitCause::NoHost, String::from("no host is connected"))
                    } else {
                        let why = format!("no host has room for it ({})", refusals.join("; "));
                        (WaitCause::NoRoom, why)
                    };
                    self.say_waiting(&vm, cause, &why);
                    self.note_checked(&vm, Some(self.no_room()));
                }
                Choice::Host(host, refusals) => self.order(spec, &record, broken, host, &refusals),
            }
        }
    }

    fn order(
        &mut self,
        spec: VmSpec,
        record: &LockRecord,
        broken: Option<HostId>,
        host: HostId,
        refusals: &[String],
    ) {
        let vm = spec.id.clone();
        let given_up = self.is_given_up(&vm, record);
        if let (Some(from), None) = (&broken, given_up) {
            self.note_proven(&spec.datastore, from);
        }
        let number = self.number();
        let now = self.now;
        let left = spec
            .depends_on
            .iter()
            .find(|on| self.is_never_restarted(on) && self.restarts.contains_key(*on));
        let alone = left.map_or_else(String::new, |on| {
            format!("; it depends on {on}, and waits not for that one, whose restart priority is disabled")
        });
        let best = if self.waits_for(record).as_ref() == Some(&host) {
            format!("{host}, on which it ran, is back")
        } else {
            format!("{host} has the most room")
        };
        let by_power = broken.as_ref().is_some_and(|from| self.is_off(from));
        let Some(restart) = self.restarts.get_mut(&vm) else {
            return;
        };
        restart.attempt += 1;
        restart.order = number;
        restart.step = Step::Ordered {
            host: host.clone(),
            since: now,
        };
        let proof = match (&broken, given_up) {
            (Some(from), Some(true)) => format!(
                "{from} has stopped it, because its storage is lost there, and says that nothing of it is left under generation {}",
                record.generation
            ),
            (Some(from), Some(false)) => format!(
                "{from} has killed it, because its storage is lost there, and runs nothing under generation {} any more; the storage refuses its late writes",
                record.generation
            ),
            (Some(from), None) if by_power => format!(
                "{from} lost it: its power is off since generation {} was read",
                record.generation
            ),
            (Some(from), None) => format!(
                "{from} lost it, and its right to run under generation {} has lapsed",
                record.generation
            ),
            (None, _) => String::from("its lock is free and it should run"),
        };
        let others = if refusals.is_empty() {
            String::new()
        } else {
            format!("; not on {}", refusals.join("; not on "))
        };
        let least = restart.failures.get(&host).copied().unwrap_or(0);
        let failed = restart.failures.iter().filter(|(_, times)| **times > least);
        let failed: Vec<&str> = failed.map(|(host, _)| host.as_str()).collect();
        let failed = match failed.is_empty() {
            true => String::new(),
            false => format!("; {} could not start it", failed.join(", ")),
        };
        restart.why = format!("{proof}; {best}{others}{failed}{alone}");
        let (attempt, why) = (restart.attempt, restart.why.clone());
        let said = restart.requested.replace((attempt, host.clone()));
        if said != Some((attempt, host.clone())) {
            self.emit(
                EventKind::RestartRequested {
                    vm,
                    host: host.clone(),
                    attempt,
                },
                why,
            );
        }
        let order = StartOrder {
            order: number,
            spec,
            expected: record.generation,
            expected_nonce: record.nonce,
            broken_from: broken,
            attempt,
        };
        if host == self.me.host {
            self.on_start_order(&host, order);
        } else {
            self.send(&host, Channel::Stream, Message::Start(order));
        }
    }

    /// An order whose host was lost or says nothing is taken back; the lock tells what came of it.
    pub(super) fn check_order(&mut self, vm: &VmId, host: &HostId, since: Instant) {
        let now = self.now;
        let lost = *host != self.me.host && !self.peers.get(host).is_some_and(|p| p.connected());
        let late = now.since(since) >= self.config.settings.order_timeout;
        if (lost || late)
            && let Some(restart) = self.restarts.get_mut(vm)
        {
            restart.why = format!(
                "{host} was asked to start it and {}",
                if lost { "was lost" } else { "said nothing" }
            );
            restart.attempt = restart.attempt.saturating_sub(1);
            restart.step = Step::Look(now);
            if !lost {
                *restart.failures.entry(host.clone()).or_insert(0) += 1;
            }
            self.inventory.revision += 1;
        }
    }

    pub(crate) fn on_start_result(&mut self, from: &HostId, result: StartResult) {
        let now = self.now;
        let soon = now + self.timing().network_heartbeat;
        let Some(restart) = self.restarts.get_mut(&result.vm) else {
            return;
        };
        if restart.order != result.order || !matches!(restart.step, Step::Ordered { .. }) {
            return;
        }
        // Whatever became of it, there may be room for another.
        self.inventory.revision += 1;
        match result.outcome {
            StartOutcome::Started(generation) => {
                restart.put_off_since = None;
                restart.why = format!("it was started on {from} under generation {generation}");
                restart.step = Step::Runs {
                    since: now,
                    heard: now,
                };
                self.reconcile();
            }
            StartOutcome::LockLost => {
                restart.attempt = restart.attempt.saturating_sub(1);
                restart.step = Step::Look(soon);
            }
            StartOutcome::ImageLocked => {
                restart.attempt = restart.attempt.saturating_sub(1);
                let again = self.put_off(&result.vm);
                self.look_again(&result.vm, again);
                self.say_waiting(&result.vm, WaitCause::ImageLocked, "the storage still holds the image lock of the host that was lost; tried again and again, no attempt is spent");
            }
            StartOutcome::NotReady(why) => {
                // No attempt is spent, but another host is asked first.
                restart.attempt = restart.attempt.saturating_sub(1);
                *restart.failures.entry(from.clone()).or_insert(0) += 1;
                let again = self.put_off(&result.vm);
                self.look_again(&result.vm, again);
                let why = format!("{from} was not ready: {why}");
                self.say_waiting(&result.vm, WaitCause::HostNotReady, &why);
            }
            StartOutcome::Failed(why) => self.attempt_failed(&result.vm, from, why),
        }
    }

    fn look_again(&mut self, vm: &VmId, at: Instant) {
        if let Some(restart) = self.restarts.get_mut(vm) {
            restart.step = Step::Look(at);
        }
    }

    pub(super) fn attempt_failed(&mut self, vm: &VmId, host: &HostId, reason: String) {
        let now = self.now;
        let limit = self.config.settings.max_restart_attempts;
        let Some(restart) = self.restarts.get_mut(vm) else {
            return;
        };
        let attempt = restart.attempt;
        // The host that could not start it gives the lock back.
        restart.held = Held::Free;
        restart.put_off_since = None;
        *restart.failures.entry(host.clone()).or_insert(0) += 1;
        let delay = self.config.settings.retry_delay(attempt.saturating_sub(1));
        let spent = attempt > limit || planted!(self, GivenUpEarly);
        let ended = spent && !planted!(self, RetriesForEver);
        restart.step = if ended {
            Step::Abandoned
        } else {
            Step::Look(now + delay)
        };
        restart.why = reason.clone();
        let (vm, host) = (vm.clone(), host.clone());
        self.emit(
            EventKind::RestartFailed {
                vm: vm.clone(),
                host,
                attempt,
                reason: reason.clone(),
            },
            reason,
        );
        if ended {
            let reason =
                format!("{limit} retries after the first attempt failed (max_restart_attempts)");
            self.emit(
                EventKind::RestartAbandoned {
                    vm,
                    attempt,
                    reason: reason.clone(),
                },
                reason,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Held, Restart};
    use super::*;
    use crate::agent::Command;
    use crate::id::{BootId, Generation, Holder, Nonce};
    use crate::io::{FoundState, FoundVm};
    use crate::testing::{datastore, primary, vm};
    use crate::time::Duration;
    use crate::wire::Desired;
    use alloc::vec;

    /// A primary that has asked its own host to start the VM: the step of the restart when that has taken
    /// the order, and what happens next has happened.
    fn asked(mut agent: Agent, next: impl FnOnce(&mut Agent)) -> Step {
        let (host, now) = (agent.me.host.clone(), agent.now);
        let restart = Restart {
            attempt: 1,
            step: Step::Ordered {
                host: host.clone(),
                since: now,
            },
            held: Held::Free,
            order: 7,
            ..Restart::missed(datastore(), now)
        };
        agent.restarts.insert(vm(), restart);
        let order = StartOrder {
            order: 7,
            spec: agent.config.vms.get(&vm()).cloned().expect("configured"),
            expected: Generation(4),
            expected_nonce: Nonce(4),
            broken_from: None,
            attempt: 1,
        };
        agent.on_start_order(&host, order);
        next(&mut agent);
        agent.restarts.get(&vm()).expect("kept").step.clone()
    }

    #[test]
    fn order_for_a_vm_that_a_restarted_agent_has_just_found_is_answered_at_once() {
        let found = FoundVm {
            vm: vm(),
            state: FoundState::Running(Generation(4)),
        };
        let step = asked(primary(vec![found]), |_| {});
        assert!(matches!(step, Step::Look(_)), "{step:?}");
    }

    #[test]
    fn order_is_answered_when_the_lock_that_was_being_read_is_anothers() {
        let mut agent = primary(Vec::new());
        let now = agent.now;
        agent.command(now, Command::PowerOn(vm())).expect("taken");
        let step = asked(agent, |agent| {
            let lock = LockRecord {
                generation: Generation(5),
                nonce: Nonce(5),
                holder: Some(Holder {
                    host: HostId::new("host-2").expect("id"),
                    boot: BootId(2),
                }),
                desired: Desired::On,
                freeze: Duration::from_secs(3),
                r#break: Duration::from_secs(5),
                given_back: None,
            };
            agent.on_vm_head(&vm(), Some(lock));
        });
        assert!(matches!(step, Step::Look(_)), "{step:?}");
    }
}
