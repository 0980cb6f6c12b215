//! The agent's loop: waits for an event, hands it to the core, and performs what the core asks for, in
//! that order.
//!
//! Never here: a decision about hosts, VMs or locks.

mod answers;
mod error;
mod inbox;
mod issues;
mod members;
mod start;
mod surroundings;
mod timers;

pub use error::AgentError;
pub use start::{here, run_agent};

use crate::clock;
use crate::config::{ClusterFile, Probe};
use crate::control::server::{Ask, Drilled};
use crate::datastores::{Datastores, Opened};
use crate::events::EventLog;
use crate::fence::Fences;
use crate::guard_link::{GuardLink, Seen};
use crate::net::ping::{Target, ping};
use crate::net::stream::Streams;
use crate::net::udp::Udp;
use crate::net::{Addresses, OnNetwork, Rejects, isolation};
use crate::persist::{Kept, Persister};
use crate::vms::Vms;
use crate::weak::{SameIds, Source};
use error::spawn;
use mainstay_core::Agent;
use mainstay_core::id::{HostId, OpId};
use mainstay_core::io::{GuardRequest, HypervisorRequest, Input, Output, PingOutcome, PingTarget};
use mainstay_core::time::Instant;
use mainstay_core::wire::Stamp;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;
use surroundings::Surroundings;

/// Longest wait, so that the guard sees a sign of life.
const BEAT: Duration = Duration::from_millis(500);
/// Pings that run at once; more "cannot be sent".
const PINGS: usize = 64;

/// What wakes the loop.
enum Wake {
    Input(Input),
    Ask(Ask),
    Seen(Seen),
    Opened(Opened),
    SameId(HostId, SocketAddr),
    Issues(Source, Vec<String>),
    Surroundings(Surroundings),
    Trouble(HostId, Option<String>),
    Stop(i32),
}

/// The loop and all that it drives.
struct Shell {
    agent: Agent,
    /// Completions that are there at once; handed in before anything else.
    pending: VecDeque<Input>,
    stamp: Stamp,
    cluster_id: u64,
    /// What is in force, as a `cluster.toml`.
    file: ClusterFile,
    named_isolation_addresses: Vec<IpAddr>,
    own_addresses: Vec<OnNetwork>,
    surroundings: Surroundings,
    isolation_addresses: Vec<isolation::Address>,
    probe: Probe,
    ping_timeout: Duration,
    pings: Arc<AtomicUsize>,
    addresses: Addresses,
    udp: Udp,
    streams: Streams,
    datastores: Datastores,
    vms: Vms,
    fences: Fences,
    persister: Persister,
    /// Who waits for the outcome of a change, and until when at the longest.
    proposals: BTreeMap<u64, (SyncSender<Result<u64, String>>, Instant)>,
    /// Who waits for an answer about a drill; the core answers each.
    drills: BTreeMap<u64, Drilled>,
    events: EventLog,
    link: Arc<GuardLink>,
    rejects: Rejects,
    issues: BTreeMap<Source, Vec<String>>,
    same_ids: SameIds,
    /// What keeps messages from other hosts.
    stream_troubles: BTreeMap<HostId, String>,
    wake: SyncSender<Box<Wake>>,
}

impl Shell {
    fn run(&mut self, wakes: &Receiver<Box<Wake>>) {
        self.drain();
        loop {
            self.link.shm().beat_agent(clock::now());
            let limit = self.agent.config().settings.frozen_limit;
            self.link.shm().set_frozen_limit(limit);
            let freeze = self.agent.config().settings.timing.freeze;
            self.link.shm().set_freeze(freeze);
            while let Some(input) = self.pending.pop_front() {
                self.handle(input);
            }
            let due = self.agent.poll_timeout().map(|at| at.since(clock::now()));
            let wait = due.unwrap_or(BEAT).min(BEAT);
            match wakes.recv_timeout(wait) {
                Ok(wake) => match *wake {
                    Wake::Stop(signal) => return self.stop(signal),
                    wake => self.on_wake(wake),
                },
                Err(RecvTimeoutError::Timeout) => {}
                // The loop holds a sender itself, so this cannot be.
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self
                .agent
                .poll_timeout()
                .is_some_and(|at| at <= clock::now())
            {
                self.handle(Input::Timeout);
            }
            if let Some(issues) = self.datastores.changed_issues() {
                self.set_issues(Source::Datastores, issues);
            }
            self.look_at_same_ids();
        }
    }

    fn stop(&self, signal: i32) {
        self.link.shm().set_planned_stop();
        tracing::warn!(
            signal,
            "the agent stops; VMs run on and freeze when their rights end, until the agent is started again"
        );
    }

    fn on_wake(&mut self, wake: Wake) {
        match wake {
            Wake::Input(input) => self.handle(input),
            Wake::Ask(ask) => self.answer(ask),
            Wake::Seen(Seen::Lapsed(vm, generation)) => {
                self.handle(Input::VmLapsed { vm, generation })
            }
            Wake::Seen(Seen::Event(event)) => self.events.push(event),
            Wake::Seen(Seen::Issues(issues)) => self.set_issues(Source::Guard, issues),
            Wake::Opened(opened) => self.datastores.opened(opened),
            Wake::Issues(source, issues) => self.set_issues(source, issues),
            Wake::Surroundings(seen) => self.on_surroundings(seen),
            Wake::Trouble(to, what) => self.on_trouble(to, what),
            Wake::SameId(host, address) => self.on_same_id(&host, address),
            Wake::Stop(_) => {}
        }
    }

    fn handle(&mut self, input: Input) {
        self.datastores.completed(&input);
        self.agent.handle(clock::now(), input);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.agent.poll_output() {
            self.perform(output);
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Datagram { to, message } => {
                let bytes = message.encode(self.cluster_id, &self.next_stamp());
                self.udp.send(&to, &bytes);
            }
            Output::Stream { to, envelope } => {
                let bytes = envelope.encode(self.cluster_id, &self.next_stamp());
                self.streams.send(&to, bytes);
            }
            Output::Ping(op, target) => self.ping(op, &target),
            Output::Storage(op, datastore, request) => {
                if let Err(outcome) = self.datastores.submit(op, &datastore, request) {
                    self.pending.push_back(Input::Storage(op, outcome));
                }
            }
            Output::Guard(op, request) => {
                let outcome = self.link.perform(clock::now(), &request);
                if let GuardRequest::Remove { vm } = &request {
                    self.vms.forget(vm);
                }
                self.pending.push_back(Input::Guard(op, outcome));
            }
            Output::Hypervisor(op, request) => {
                log_request(&request);
                self.vms.perform(op, request);
            }
            Output::Fence(op, host, request) => {
                let timeout = self.agent.config().settings.fence_timeout;
                let to_loop = self.wake.clone();
                let done = move |input| drop(to_loop.send(Box::new(Wake::Input(input))));
                let at_once = self.fences.perform(op, &host, request, timeout, done);
                self.pending.extend(at_once);
            }
            Output::Persist(op, durable) => self.persist(op, Kept::State(durable)),
            Output::PersistConfig(op, config) => {
                self.renew_isolation_addresses();
                self.renew_timers();
                self.renew_members();
                self.persist(op, Kept::Config(config));
            }
            Output::Proposed(ticket, outcome) => {
                if let Some((to, _)) = self.proposals.remove(&ticket) {
                    drop(to.try_send(outcome));
                }
            }
            Output::Drill(ticket, answer) => {
                if let Some(to) = self.drills.remove(&ticket) {
                    drop(to.try_send(answer));
                }
            }
            Output::Event(event) => self.events.push(event),
        }
    }

    fn persist(&mut self, op: OpId, kept: Kept) {
        if !self.persister.submit(op, kept) {
            self.pending.push_back(Input::Persisted(op, false));
        }
    }

    fn next_stamp(&mut self) -> Stamp {
        self.stamp.seq += 1;
        self.stamp.clone()
    }

    fn ping(&mut self, op: OpId, target: &PingTarget) {
        let (probe, timeout) = (self.probe, self.ping_timeout);
        let work: Box<dyn FnOnce() -> PingOutcome + Send> = match target {
            PingTarget::Host(host) => {
                let of_host = self.addresses.get(host).into_iter().flatten();
                let targets: Vec<Target> = of_host.map(|(_, a)| a.ip().into()).collect();
                Box::new(move || ping(&targets, probe, timeout))
            }
            PingTarget::Isolation(index) => {
                let address = self.isolation_addresses.get(*index).copied();
                let unknown = PingOutcome::CannotProbe;
                Box::new(move || address.map_or(unknown, |a| a.probe(probe, timeout)))
            }
        };
        let (to_loop, running) = (self.wake.clone(), Arc::clone(&self.pings));
        let cannot = Input::Pinged(op, PingOutcome::CannotProbe);
        if running.fetch_add(1, Ordering::AcqRel) >= PINGS {
            running.fetch_sub(1, Ordering::AcqRel);
            self.pending.push_back(cannot);
            return;
        }
        let started = spawn("ping", move || {
            let outcome = work();
            running.fetch_sub(1, Ordering::AcqRel);
            drop(to_loop.send(Box::new(Wake::Input(Input::Pinged(op, outcome)))));
        });
        if started.is_err() {
            self.pings.fetch_sub(1, Ordering::AcqRel);
            self.pending.push_back(cannot);
        }
    }
}

fn log_request(request: &HypervisorRequest) {
    match request {
        HypervisorRequest::Prepare { spec, generation } => {
            tracing::info!(vm = %spec.id, %generation, "prepare")
        }
        HypervisorRequest::Resume { vm } => tracing::info!(%vm, "resume"),
        HypervisorRequest::Shutdown { vm } => tracing::info!(%vm, "shut down"),
        HypervisorRequest::Kill { vm } => tracing::info!(%vm, "kill"),
    }
}
