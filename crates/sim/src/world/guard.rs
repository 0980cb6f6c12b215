//! Each host's guard: the core's rules over simulated shared memory, with a latency.

use super::{Happening, Host, World};
use crate::clock::{MS, Nanos};
use crate::invariants::{Fact, KillCause};
use mainstay_core::event::{EventKind, StopReason};
use mainstay_core::guard::{Guard, GuardAction, SlotState, Word, Words as _};
use mainstay_core::id::OpId;
use mainstay_core::io::{ExitCause, Extension, GuardOutcome, GuardRequest, Input};
use mainstay_core::time::{Duration, nanos};
use std::cell::Cell;

/// The memory that agent and guard share: one slot for each VM of the cluster.
#[derive(Debug, Default)]
pub(super) struct Words(Vec<Cell<u64>>);

impl Words {
    pub(super) fn new(slots: usize) -> Self {
        Self(vec![Cell::new(0); slots])
    }

    pub(super) fn store(&self, slot: usize, word: Word) {
        if let Some(cell) = self.0.get(slot) {
            cell.set(word.0);
        }
    }
}

impl mainstay_core::guard::Words for Words {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn load(&self, slot: usize) -> Word {
        self.0.get(slot).map_or(Word::FREE, |c| Word(c.get()))
    }
    fn compare_exchange(&self, slot: usize, old: Word, new: Word) -> bool {
        match self.0.get(slot) {
            Some(cell) if cell.get() == old.0 => {
                cell.set(new.0);
                true
            }
            _ => false,
        }
    }
}

/// What a guard does to a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Act {
    /// `lapsed`: the deadline had passed when the guard looked.
    Freeze {
        lapsed: bool,
    },
    Unfreeze,
    /// Frozen for that long or longer, if there is such a limit.
    Kill {
        limit: Option<Duration>,
    },
}

impl World<'_> {
    /// The guard's worst latency, of which it never takes all.
    pub(super) fn guard_worst(&self, host: usize) -> Nanos {
        let promised = self.scenario.config.settings.timing.guard_latency;
        nanos(promised.min(self.settings_of(host).timing.guard_latency))
    }

    /// The agent writes the setting into the shared memory, where its guard reads it.
    pub(super) fn name_frozen_limit(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        let Some(agent) = &h.agent else { return };
        let limit = agent.config().settings.frozen_limit;
        if h.frozen_limit == limit {
            return;
        }
        h.frozen_limit = limit;
        if let Some(guard) = &mut h.guard {
            guard.set_frozen_limit(limit);
        }
        self.arm_guard(host);
    }

    fn guard_wait(&mut self, host: usize) -> Nanos {
        let quick = self.dice.guard.between(200_000, 5 * MS);
        let slow = self.scenario.weather.guard_slow.min(100);
        if self.stormy() && slow > 0 {
            // Half for noticing, a tenth for acting: together below the stated worst case.
            let worst = self.guard_worst(host);
            return quick.max(self.dice.guard.below(worst * slow / 100 * 8 / 10));
        }
        quick
    }

    /// Plans the guard's next look, if it has one to take.
    pub(super) fn arm_guard(&mut self, host: usize) {
        let h = &self.hosts[host];
        if !h.powered || !h.guard_works() {
            return;
        }
        let Some(guard) = &h.guard else { return };
        let due = if h.guard_poke {
            Some(self.now)
        } else {
            guard.next(&h.words).map(|at| h.clock.when(at))
        };
        let Some(due) = due else { return };
        let planned = h.guard_wake;
        let busy = h.guard_busy;
        if planned.is_some_and(|p| p <= due.max(self.now)) {
            return;
        }
        let wait = self.guard_wait(host);
        let at = due.max(self.now).max(busy) + wait;
        if planned.is_some_and(|p| p <= at) {
            return;
        }
        self.hosts[host].guard_wake = Some(at);
        self.at(at, Happening::GuardWake { host });
    }

    pub(super) fn guard_wake(&mut self, host: usize) {
        let now = self.now;
        let h = &mut self.hosts[host];
        if h.guard_wake.is_none_or(|at| at > now) {
            return;
        }
        h.guard_wake = None;
        if !h.powered || !h.guard_works() {
            return;
        }
        let local = h.clock.local(now);
        let Host {
            guard: Some(guard),
            words,
            ..
        } = h
        else {
            return;
        };
        let limit = h.frozen_limit;
        let due = h.guard_poke || guard.next(words).is_some_and(|at| at <= local);
        let actions = if due {
            guard.poll(local, words)
        } else {
            Vec::new()
        };
        let planned: Vec<(usize, Act)> = actions
            .into_iter()
            .map(|action| match action {
                GuardAction::Freeze(slot) => {
                    let lapsed = words.load(slot).deadline() <= local;
                    (slot, Act::Freeze { lapsed })
                }
                GuardAction::Unfreeze(slot) => (slot, Act::Unfreeze),
                GuardAction::Kill(slot) => (slot, Act::Kill { limit }),
            })
            .collect();
        h.guard_poke = false;
        let run = h.guard_run;
        let mut at = now;
        for (vm, what) in planned {
            at += self.dice.guard.between(20_000, 500_000);
            self.at(
                at,
                Happening::GuardAct {
                    host,
                    run,
                    vm,
                    what,
                },
            );
        }
        self.hosts[host].guard_busy = at;
        self.arm_guard(host);
    }

    pub(super) fn guard_act(&mut self, host: usize, run: u64, vm: usize, what: Act) {
        let h = &self.hosts[host];
        if !h.powered || h.guard_run != run || h.guard.is_none() {
            return;
        }
        if h.guard_hung {
            self.hosts[host].deferred.push(Happening::GuardAct {
                host,
                run,
                vm,
                what,
            });
            return;
        }
        match what {
            Act::Freeze { lapsed } => {
                #[cfg(feature = "planted")]
                if self.options.bug == Some(mainstay_core::planted::Bug::NoFreeze) {
                    return;
                }
                let word = self.hosts[host].words.load(vm);
                self.freeze(host, vm, "its right to run ended", lapsed);
                if word.state() == SlotState::Lapsed {
                    let vm = self.vms[vm].id.clone();
                    self.answer(
                        host,
                        MS,
                        Input::VmLapsed {
                            vm,
                            generation: word.generation(),
                        },
                    );
                }
            }
            Act::Unfreeze => self.unfreeze(host, vm),
            Act::Kill { limit } => {
                for instance in self.instances_on(host, vm) {
                    let cause = KillCause {
                        frozen_limit: limit.is_some_and(|l| self.frozen_for(instance) >= l),
                        ..self.kill_cause(instance)
                    };
                    self.judge
                        .observe(self.now, &Fact::Killed { vm, host, cause });
                    let (id, at) = (self.vms[vm].id.clone(), self.hosts[host].id.clone());
                    let kind = EventKind::VmStopped {
                        vm: id,
                        host: at,
                        reason: StopReason::FrozenLimit,
                    };
                    if self.hosts[host].agent.is_none() {
                        self.log(
                            kind,
                            "frozen for longer than frozen_limit; killed by the guard",
                        );
                    }
                    self.kill(instance, ExitCause::Killed);
                }
            }
        }
    }

    /// How long the process has been frozen on its host's clock, and the moment between the guard's look
    /// and its act.
    fn frozen_for(&self, instance: usize) -> Duration {
        let i = &self.instances[instance];
        let h = &self.hosts[i.host];
        let now = h.clock.local(self.now);
        let acts = Duration::from_nanos(self.guard_worst(i.host));
        let frozen = i.frozen_at.filter(|_| i.frozen);
        frozen.map_or(Duration::ZERO, |at| now.since(at) + acts)
    }

    fn freeze(&mut self, host: usize, vm: usize, reason: &str, lapsed: bool) {
        let mut any = false;
        let mut lapsed = lapsed;
        for instance in self.instances_on(host, vm) {
            any |= self.instances[instance].executes();
            lapsed |= std::mem::take(&mut self.instances[instance].given_up);
            let at = self.hosts[host].clock.local(self.now);
            let i = &mut self.instances[instance];
            let since = i.frozen_at.filter(|_| i.frozen);
            (i.frozen, i.frozen_at) = (true, since.or(Some(at)));
            if self.hosts[host].words.load(vm).state() == SlotState::Lapsed {
                self.instances[instance].lapsed = Some(self.instances[instance].generation);
            }
        }
        if any {
            self.judge
                .observe(self.now, &Fact::Frozen { vm, host, lapsed });
            let (id, at) = (self.vms[vm].id.clone(), self.hosts[host].id.clone());
            self.log(
                EventKind::VmFrozen {
                    vm: id,
                    host: at,
                    reason: reason.into(),
                },
                "frozen by the guard",
            );
        }
        self.vm_changed(vm);
    }

    fn unfreeze(&mut self, host: usize, vm: usize) {
        for instance in self.instances_on(host, vm) {
            if !self.instances[instance].frozen {
                continue;
            }
            self.instances[instance].frozen = false;
            if self.instances[instance].executes() {
                let generation = self.instances[instance].generation;
                let again = self.instances[instance].lapsed.take() == Some(generation);
                if again {
                    let fact = Fact::LapsedRuns {
                        vm,
                        host,
                        generation,
                    };
                    self.judge.observe(self.now, &fact);
                }
                self.executes_now(instance);
            }
        }
        self.vm_changed(vm);
    }

    /// The agent writes the shared memory: at once, whether or not the guard looks.
    pub(super) fn guard_request(&mut self, host: usize, op: OpId, request: GuardRequest) {
        let now = self.hosts[host].clock.local(self.now);
        let id = match &request {
            GuardRequest::Extend(extensions) => return self.extend(host, op, extensions),
            GuardRequest::Register { vm, .. }
            | GuardRequest::Thaw { vm, .. }
            | GuardRequest::Lapse { vm, .. }
            | GuardRequest::Remove { vm } => vm,
        };
        let Some(vm) = self.vm_index.get(id).copied() else {
            return;
        };
        let next = self.hosts[host].words.load(vm).after(now, &request);
        let registers = matches!(request, GuardRequest::Register { .. });
        let outcome = match next {
            _ if registers && self.hosts[host].guard.is_none() => GuardOutcome::NoGuard,
            Some(word) => {
                self.hosts[host].words.store(vm, word);
                GuardOutcome::Done
            }
            None => GuardOutcome::Lapsed,
        };
        if outcome == GuardOutcome::Done {
            // The guard looks every few milliseconds: it misses no use of a slot, and none that ended.
            self.hosts[host].guard_poke = true;
            if matches!(request, GuardRequest::Lapse { .. }) {
                for instance in self.instances_on(host, vm) {
                    self.instances[instance].given_up = true;
                }
            }
            if let GuardRequest::Thaw { to, .. } = &request {
                for instance in self.instances_on(host, vm) {
                    self.instances[instance].generation = *to;
                }
            }
            self.arm_guard(host);
        }
        self.answer(host, 5_000, Input::Guard(op, outcome));
    }

    /// Renewed rights are written one by one; those that had lapsed are named in the answer.
    fn extend(&mut self, host: usize, op: OpId, extensions: &[Extension]) {
        let first = extensions.first().and_then(|e| self.vm_index.get(&e.vm));
        let disk = first.map_or(0, |vm| self.vms[*vm].disk);
        let h = &mut self.hosts[host];
        let now = h.clock.local(self.now);
        // Nearly always the same VMs as half a second ago, in the same order.
        let known = h.extended.entry(disk).or_default();
        let mut extended = 0;
        let mut refused = Vec::new();
        for extension in extensions {
            let same = known.get(extended).filter(|(id, _)| *id == extension.vm);
            let slot = match same {
                Some((_, slot)) => *slot,
                None => {
                    let Some(slot) = self.vm_index.get(&extension.vm).copied() else {
                        continue;
                    };
                    known.truncate(extended);
                    known.push((extension.vm.clone(), slot));
                    slot
                }
            };
            extended += 1;
            let old = h.words.load(slot);
            match old.extended(now, extension.generation, extension.deadline) {
                Some(word) => h.words.store(slot, word),
                None => refused.push(extension.vm.clone()),
            }
        }
        let outcome = if refused.is_empty() {
            GuardOutcome::Done
        } else {
            GuardOutcome::Refused(refused)
        };
        self.answer(host, 5_000, Input::Guard(op, outcome));
    }

    pub(super) fn guard_start(&mut self, host: usize, boot: u64) {
        let h = &mut self.hosts[host];
        if !h.powered || h.boot != boot || h.guard.is_some() {
            return;
        }
        h.guard = Some(Guard::new(h.frozen_limit));
        h.guard_run += 1;
        h.guard_hung = false;
        h.guard_wake = None;
        h.guard_poke = true;
        // A guard that starts without deadlines freezes what it finds.
        for vm in 0..self.vms.len() {
            if self.hosts[host].words.load(vm).state() == SlotState::Free
                && !self.unregistered_runs_on()
            {
                self.freeze(host, vm, "found without a deadline", true);
            }
        }
        self.doubt(host);
        self.arm_guard(host);
        if self.hosts[host].agent.is_none() {
            let wait = self.dice.life.between(100, 1000) * MS;
            self.after(wait, Happening::AgentStart { host, boot });
        }
    }

    pub(super) fn guard_kill(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        if !h.powered || h.guard.is_none() {
            return;
        }
        h.guard = None;
        h.guard_run += 1;
        h.guard_hung = false;
        h.guard_wake = None;
        let boot = h.boot;
        let twin = h.agent.is_some() && !h.agent_hung;
        let wait = self.restart_wait(twin);
        self.after(wait, Happening::GuardStart { host, boot });
        self.lose_words_with_both(host);
    }

    /// Shared memory goes when its last process goes: then nobody knows the deadlines (rule H16).
    pub(super) fn lose_words_with_both(&mut self, host: usize) {
        let h = &self.hosts[host];
        if h.agent.is_none()
            && h.guard.is_none()
            && self.scenario.liveness
            && self.dice.life.percent(50)
        {
            self.hosts[host].words = Words::new(self.vms.len());
        }
    }

    /// A twin restarts it within a second; without one, the service manager does after some seconds.
    pub(super) fn restart_wait(&mut self, twin: bool) -> Nanos {
        if twin {
            self.dice.life.between(100, 1000) * MS
        } else {
            self.dice.life.between(2000, 5000) * MS
        }
    }

    /// The guard of `host` has not had its time yet: what runs there is not its fault until it has.
    pub(super) fn doubt(&mut self, host: usize) {
        let until = self.now + self.guard_worst(host) + 10 * MS;
        self.hosts[host].doubt_until = until;
        for vm in 0..self.vms.len() {
            if !self.instances_on(host, vm).is_empty() {
                self.at(until + 1, Happening::Recheck { vm });
            }
        }
    }

    /// The protocol's assumptions hold for this host now.
    pub(super) fn guarded(&self, host: usize) -> bool {
        let h = &self.hosts[host];
        let bound = i64::from(self.settings_of(host).timing.clock_drift_ppm);
        h.guard_works() && self.now >= h.doubt_until && h.clock.ppm().abs() <= bound
    }

    pub(super) fn guard_resume(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        if !h.guard_hung {
            return;
        }
        h.guard_hung = false;
        h.guard_poke = true;
        h.guard_wake = None;
        let deferred = std::mem::take(&mut h.deferred);
        for what in deferred {
            match what {
                Happening::GuardAct { .. } => self.after(MS, what),
                other => self.hosts[host].deferred.push(other),
            }
        }
        self.doubt(host);
        self.arm_guard(host);
        self.revive(host);
    }

    /// A process that can work again restarts its dead twin.
    pub(super) fn revive(&mut self, host: usize) {
        let h = &self.hosts[host];
        let boot = h.boot;
        let wait = self.dice.life.between(100, 1000) * MS;
        if h.agent.is_none() && self.hosts[host].guard_works() {
            self.after(wait, Happening::AgentStart { host, boot });
        } else if h.guard.is_none() && h.agent.is_some() && !h.agent_hung {
            self.after(wait, Happening::GuardStart { host, boot });
        }
    }
}
