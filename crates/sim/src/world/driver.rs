//! Drives the agents as the agent's process does: hands in what happened, carries out what they ask
//! for, in order, and wakes them when they want to be woken.

use super::{Happening, World};
use crate::clock::{MS, Nanos};
use mainstay_core::config::ClusterConfig;
use mainstay_core::guard::{SlotState, Word, Words as _};
use mainstay_core::id::{Generation, InstanceId, OpId};
use mainstay_core::io::{Durable, FoundState, FoundVm, Input, Output};
use mainstay_core::time::Instant;
use mainstay_core::wire::Message;
use mainstay_core::{Agent, Identity};
use std::collections::BTreeMap;

/// Inputs that a hung agent's sockets keep.
const INBOX: usize = 4096;

/// What an agent keeps on its host's own disk.
#[derive(Debug)]
pub(super) enum Kept {
    State(Box<Durable>),
    Config(Box<ClusterConfig>),
}

impl World<'_> {
    /// Hands an input in after a while, if the agent that asked still lives then.
    pub(super) fn answer(&mut self, host: usize, wait: Nanos, input: Input) {
        let run = self.hosts[host].agent_run;
        self.after(
            wait,
            Happening::Input {
                host,
                run,
                input: Box::new(input),
            },
        );
    }

    pub(super) fn feed(&mut self, host: usize, input: Input) {
        let h = &mut self.hosts[host];
        if !h.powered || h.agent.is_none() {
            return;
        }
        if !h.agent_listens() {
            if h.inbox.len() < INBOX {
                h.inbox.push_back(input);
            }
            return;
        }
        let now = h.clock.local(self.now);
        if let Input::VmExited { vm, .. } = &input
            && let Some(vm) = self.vm_index.get(vm).copied()
            && !self.hosts[host].drilled
        {
            for instance in self.instances.of_vm(vm).to_vec() {
                if self.instances[instance].host == host {
                    self.instances[instance].untold = None;
                }
            }
        }
        let h = &mut self.hosts[host];
        let reaches = match &input {
            Input::Message { .. } | Input::Stream { .. } => true,
            Input::Pinged(op, _) => h.gateway_pings.remove(op),
            _ => false,
        };
        if reaches {
            h.reached = self.now;
        }
        let by_stream = matches!(input, Input::Stream { .. });
        if let Some(agent) = &mut h.agent {
            agent.handle(now, input);
        }
        if by_stream {
            self.streams_handed(host);
        }
        self.drain(host);
    }

    /// Carries out what the agent asks for, in its order, and plans its next wake-up.
    pub(super) fn drain(&mut self, host: usize) {
        while let Some(output) = self.hosts[host]
            .agent
            .as_mut()
            .and_then(|a| a.poll_output())
        {
            self.carry_out(host, output);
        }
        self.leave_when_ready(host);
        self.name_frozen_limit(host);
        let h = &mut self.hosts[host];
        let Some(wake) = h.agent.as_ref().and_then(|a| a.poll_timeout()) else {
            return;
        };
        let at = h.clock.when(wake).max(self.now);
        if h.timer.is_none_or(|planned| at < planned) {
            h.timer = Some(at);
            self.at(at, Happening::AgentTimer { host });
        }
    }

    fn carry_out(&mut self, host: usize, output: Output) {
        match output {
            Output::Datagram { to, message } => {
                self.overhear(host, &message);
                if let Some(to) = self.host_index.get(&to).copied() {
                    self.send_datagram(host, to, message);
                }
            }
            Output::Stream { to, envelope } => {
                if let Some(to) = self.host_index.get(&to).copied() {
                    self.send_on_stream(host, to, envelope);
                }
            }
            Output::Ping(op, target) => self.ping(host, op, &target),
            Output::Storage(op, datastore, request) => self.storage(host, op, &datastore, request),
            Output::Guard(op, request) => self.guard_request(host, op, request),
            Output::Hypervisor(op, request) => self.hypervisor(host, op, request),
            Output::Fence(op, target, request) => self.fence(host, op, &target, request),
            Output::Persist(op, durable) => {
                self.persist(host, op, Kept::State(Box::new(durable)));
            }
            Output::PersistConfig(op, config) => self.persist(host, op, Kept::Config(config)),
            Output::Proposed(ticket, outcome) => self.proposed(host, ticket, outcome),
            Output::Drill(_, answer) => self.drill_answered(&answer),
            Output::Event(event) => self.said(host, event),
        }
    }

    fn persist(&mut self, host: usize, op: OpId, kept: Kept) {
        let wait = self.dice.life.between(300_000, 2_000_000);
        let (boot, run) = (self.hosts[host].boot, self.hosts[host].agent_run);
        // One after the other, as the agent's thread for it does: what is newer is never overtaken.
        let at = self.hosts[host].keeps_until.max(self.now + wait);
        self.hosts[host].keeps_until = at;
        self.at(
            at,
            Happening::Persist {
                host,
                boot,
                run,
                op,
                kept,
            },
        );
    }

    /// What an agent keeps has reached its host's own disk.
    pub(super) fn persisted(&mut self, host: usize, boot: u64, run: u64, op: OpId, kept: Kept) {
        let now = self.now;
        let h = &mut self.hosts[host];
        if !h.powered || h.boot != boot {
            return;
        }
        match kept {
            Kept::State(durable) => h.durable = *durable,
            Kept::Config(config) => {
                let rests = config.hosts.get(&h.id).is_some_and(|spec| spec.maintenance);
                h.resting_since = rests.then_some(h.resting_since.unwrap_or(now));
                h.config = Some(config);
            }
        }
        if h.agent_run == run {
            self.feed(host, Input::Persisted(op, true));
        }
    }

    pub(super) fn agent_timer(&mut self, host: usize) {
        let now = self.now;
        let h = &mut self.hosts[host];
        if h.timer != Some(now) && h.timer.is_none_or(|at| at > now) {
            return;
        }
        h.timer = None;
        if !h.agent_listens() {
            return;
        }
        let local = h.clock.local(now);
        let due = h
            .agent
            .as_ref()
            .and_then(|a| a.poll_timeout())
            .is_some_and(|at| at <= local);
        if due {
            self.feed(host, Input::Timeout);
        } else {
            self.drain(host);
        }
    }

    pub(super) fn agent_start(&mut self, host: usize, boot: u64) {
        let h = &mut self.hosts[host];
        if !h.powered || h.boot != boot || h.agent.is_some() {
            return;
        }
        if h.in_flight > 0 {
            h.agent_waits = true;
            return;
        }
        h.agent_run += 1;
        h.unrest = self.now;
        h.agent_hung = false;
        h.drilled = false;
        h.inbox.clear();
        h.timer = None;
        h.seen_formats.clear();
        let identity = Identity {
            host: h.id.clone(),
            boot: h.boot_id,
            instance: InstanceId(self.dice.life.next_u64()),
            seed: self.dice.life.next_u64(),
        };
        let (found, ends) = self.found(host);
        let h = &mut self.hosts[host];
        let now = h.clock.local(self.now);
        let made = Agent::new(
            identity,
            match &h.config {
                Some(kept) => kept.as_ref().clone(),
                None => self.scenario.config.clone(),
            },
            h.durable.clone(),
            found,
            now,
        );
        match made {
            Ok(agent) => h.agent = Some(Box::new(agent)),
            Err(error) => {
                self.error = Some(error.to_string());
                self.ended = true;
                return;
            }
        }
        let names = self.isolation_addresses(host);
        let formats = self.hosts[host].formats;
        let devices = self.fence_devices();
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.set_isolation_addresses(names);
            agent.set_fence_devices(devices);
            agent.note_handed();
            agent.understand_up_to(formats);
        }
        self.isolation_over(host);
        self.hosts[host].wishes.clear();
        self.hosts[host].restarting = None;
        self.hosts[host].gateway_pings.clear();
        #[cfg(feature = "planted")]
        if let (Some(bug), Some(agent)) = (self.options.bug, &mut self.hosts[host].agent) {
            agent.plant(bug);
        }
        self.drain(host);
        for end in ends {
            self.answer(host, MS, end);
        }
        self.arm_guard(host);
        if self.hosts[host].guard.is_none() {
            let wait = self.restart_wait(true);
            self.after(wait, Happening::GuardStart { host, boot });
        }
    }

    /// The gateway of each of the host's management networks.
    fn isolation_addresses(&self, host: usize) -> Vec<String> {
        let setup = self.scenario.hosts.get(host);
        let networks = setup.map(|s| s.networks.as_slice()).unwrap_or_default();
        let name = |n: &usize| self.scenario.networks.get(*n).map_or("?", String::as_str);
        networks
            .iter()
            .map(|n| format!("the gateway of {}", name(n)))
            .collect()
    }

    /// The VMs that a starting agent finds, and the ends that nobody was told of; a VM without a
    /// deadline is frozen before anything else.
    fn found(&mut self, host: usize) -> (Vec<FoundVm>, Vec<Input>) {
        let (mut found, mut ends) = (Vec::new(), Vec::new());
        let now = self.hosts[host].clock.local(self.now);
        // The last of each VM, in the order of the VMs.
        let mut last: BTreeMap<usize, usize> = BTreeMap::new();
        for index in self.instances.on_host(host) {
            let i = &self.instances[*index];
            if i.exists() || i.untold.is_some() {
                last.insert(i.vm, *index);
            }
        }
        for (vm, instance) in last {
            let i = &self.instances[instance];
            let (resumed, ended) = (i.resumed, i.untold);
            if let Some(cause) = ended {
                self.instances[instance].untold = None;
                if self.hosts[host].words.load(vm).state() == SlotState::Free {
                    continue;
                }
                let id = self.vms[vm].id.clone();
                ends.push(Input::VmExited { vm: id, cause });
            }
            let word = self.hosts[host].words.load(vm);
            let state = match word.state() {
                // Whatever became of its right: it never ran.
                _ if !resumed && ended.is_none() => FoundState::Prepared(word.generation()),
                SlotState::Free => {
                    if !self.unregistered_runs_on() {
                        // As the shell does: the core thaws such a VM from generation 0.
                        let word = Word::new(SlotState::Lapsed, Generation(0), Instant::ZERO);
                        self.hosts[host].words.store(vm, word);
                        self.hosts[host].guard_poke = true;
                        let i = &mut self.instances[instance];
                        (i.frozen, i.frozen_at) = (true, Some(now));
                        self.vm_changed(vm);
                    }
                    FoundState::Unregistered
                }
                SlotState::Running if word.deadline() > now => {
                    FoundState::Running(word.generation())
                }
                SlotState::Running | SlotState::Lapsed => FoundState::Lapsed(word.generation()),
            };
            found.push(FoundVm {
                vm: self.vms[vm].id.clone(),
                state,
            });
        }
        (found, ends)
    }

    /// The world's part of a planted bug: nobody freezes what has no deadline.
    pub(super) fn unregistered_runs_on(&self) -> bool {
        #[cfg(feature = "planted")]
        {
            self.options.bug == Some(mainstay_core::planted::Bug::UnregisteredRunsOn)
        }
        #[cfg(not(feature = "planted"))]
        {
            false
        }
    }

    pub(super) fn agent_kill(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        if !h.powered || h.agent.is_none() {
            return;
        }
        h.agent = None;
        h.agent_run += 1;
        h.agent_hung = false;
        h.inbox.clear();
        h.timer = None;
        let boot = h.boot;
        let twin = h.guard_works();
        let wait = self.restart_wait(twin);
        self.after(wait, Happening::AgentStart { host, boot });
        self.lose_words_with_both(host);
    }

    /// Its service manager stops the agent, and starts it again after that time.
    pub(super) fn agent_stop(&mut self, host: usize, away: Nanos) {
        let h = &mut self.hosts[host];
        h.agent = None;
        h.agent_run += 1;
        h.inbox.clear();
        h.timer = None;
        let boot = h.boot;
        self.after(away, Happening::AgentStart { host, boot });
    }

    pub(super) fn agent_hang(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        if h.powered && h.agent.is_some() {
            h.agent_hung = true;
        }
    }

    pub(super) fn agent_resume(&mut self, host: usize) {
        if !self.hosts[host].agent_hung {
            return;
        }
        self.hosts[host].agent_hung = false;
        self.wake_agent(host);
        self.revive(host);
    }

    /// The agent goes on with what has piled up; its timers and its sockets in an order that is drawn.
    pub(super) fn wake_agent(&mut self, host: usize) {
        self.hosts[host].timer = None;
        if !self.hosts[host].agent_listens() {
            return;
        }
        if self.dice.life.percent(50) {
            self.feed(host, Input::Timeout);
        }
        let inbox = std::mem::take(&mut self.hosts[host].inbox);
        for input in inbox {
            self.feed(host, input);
        }
        self.drain(host);
    }

    /// What a host says of itself on the wire.
    pub(super) fn overhear(&mut self, host: usize, message: &Message) {
        match message {
            Message::Heartbeat { role, .. } => self.hosts[host].role = Some((*role, self.now)),
            Message::Start(order) => self.owner_orders(host, order),
            _ => {}
        }
    }
}
