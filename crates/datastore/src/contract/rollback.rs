//! Agents over real datastores, in virtual time: a snapshot that was restored below them.

use super::kit::{HOSTS, Host, KINDS, Kit, Snapshot, ds, host, vm};
use mainstay_core::event::{EventKind, IssueCause};
use mainstay_core::id::{BootId, HostId, InstanceId, VmId};
use mainstay_core::io::{
    Durable, GuardOutcome, HypervisorOutcome, HypervisorRequest, Input, Output, PingOutcome,
    PingTarget,
};
use mainstay_core::time::{Duration, Instant};
use mainstay_core::wire::FORMAT_VERSION;
use mainstay_core::{Agent, Command, Identity};
use std::collections::BTreeMap;

/// Time that any effect takes.
const LATENCY: Duration = Duration::from_micros(200);

/// Agents with a perfect network, guests that only exist, and a real datastore.
struct Cluster {
    kit: Kit,
    now: Instant,
    hosts: BTreeMap<HostId, Host>,
    agents: BTreeMap<HostId, Agent>,
    queue: BTreeMap<(Instant, u64), (HostId, Input)>,
    sequence: u64,
    running: BTreeMap<VmId, HostId>,
    events: Vec<EventKind>,
}

impl Cluster {
    fn new(kit: Kit) -> Self {
        let mut cluster = Self {
            now: Instant::from_nanos(1_000_000_000),
            hosts: (1..=HOSTS).map(|n| (host(n), kit.host(n))).collect(),
            kit,
            agents: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            running: BTreeMap::new(),
            events: Vec::new(),
        };
        for n in 1..=HOSTS {
            let identity = Identity {
                host: host(n),
                boot: BootId(u64::from(100 + n)),
                instance: InstanceId(u64::from(n)),
                seed: u64::from(n),
            };
            let config = cluster.kit.config.clone();
            let agent = Agent::new(identity, config, Durable::default(), vec![], cluster.now);
            cluster.agents.insert(host(n), agent.expect("an agent"));
        }
        for n in 1..=HOSTS {
            for other in 1..=HOSTS {
                let input = Input::Understands {
                    host: host(other),
                    version: FORMAT_VERSION,
                };
                cluster.push(&host(n), input);
            }
            cluster.drain(&host(n));
        }
        cluster
    }

    fn push(&mut self, to: &HostId, input: Input) {
        self.sequence += 1;
        let at = (self.now + LATENCY, self.sequence);
        self.queue.insert(at, (to.clone(), input));
    }

    fn power_on(&mut self, n: u32, id: &VmId) {
        let agent = self.agents.get_mut(&host(n)).expect("a host");
        let taken = agent.command(self.now, Command::PowerOn(id.clone()));
        taken.expect("taken");
        self.drain(&host(n));
    }

    fn power_off_host(&mut self, n: u32) {
        self.agents.remove(&host(n));
        self.running.retain(|_, on| *on != host(n));
    }

    fn run_for(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        loop {
            let input = self.queue.keys().next().map(|(at, _)| *at);
            let timeouts = self.agents.iter();
            let timeout = timeouts.filter_map(|(h, a)| Some((a.poll_timeout()?, h.clone())));
            let timeout = timeout.min();
            let first = timeout.as_ref().map(|(at, _)| *at);
            let Some(next) = input.into_iter().chain(first).min().filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(next);
            let (to, what) = if input == Some(next) {
                let (_, taken) = self.queue.pop_first().expect("there");
                taken
            } else {
                (timeout.expect("there").1, Input::Timeout)
            };
            if let Some(agent) = self.agents.get_mut(&to) {
                agent.handle(self.now, what);
            }
            self.drain(&to);
        }
        self.now = end;
    }

    fn drain(&mut self, of: &HostId) {
        while let Some(output) = self.agents.get_mut(of).and_then(Agent::poll_output) {
            match output {
                Output::Datagram { to, message } => {
                    let from = of.clone();
                    self.push(&to, Input::Message { from, message });
                }
                Output::Stream { to, envelope } => {
                    let from = of.clone();
                    self.push(&to, Input::Stream { from, envelope });
                }
                Output::Ping(op, target) => {
                    let answers = match target {
                        PingTarget::Host(host) => self.agents.contains_key(&host),
                        PingTarget::Isolation(_) => true,
                    };
                    let outcome = match answers {
                        true => PingOutcome::Answered,
                        false => PingOutcome::NoAnswer,
                    };
                    self.push(of, Input::Pinged(op, outcome));
                }
                // No host here has a fence device.
                Output::Fence(..) => {}
                Output::Storage(op, on, request) => {
                    assert_eq!(on, ds());
                    let outcome = self.hosts.get(of).expect("a host").perform(request);
                    self.push(of, Input::Storage(op, outcome));
                }
                Output::Guard(op, _) => self.push(of, Input::Guard(op, GuardOutcome::Done)),
                Output::Hypervisor(op, request) => {
                    if let HypervisorRequest::Resume { vm } = request {
                        let before = self.running.insert(vm.clone(), of.clone());
                        assert_eq!(before, None, "{vm} runs twice");
                    }
                    self.push(of, Input::Hypervisor(op, HypervisorOutcome::Done));
                }
                Output::Persist(op, _) | Output::PersistConfig(op, _) => {
                    self.push(of, Input::Persisted(op, true));
                }
                Output::Event(event) => self.events.push(event.kind),
                Output::Proposed(..) | Output::Drill(..) => {}
            }
        }
    }

    /// An agent says that the datastore went back, or that the lock is older than what a host ran under.
    fn says_went_back(&self) -> bool {
        let statuses = self.agents.values().filter_map(|a| a.status(self.now));
        let mut issues = statuses.flat_map(|status| status.issues);
        let quarantined = issues.any(|issue| issue.cause == IssueCause::LockWentBack);
        let waits = |event: &EventKind| matches!(event, EventKind::RestartWaiting { reason, .. } if reason.contains("as after restoring a snapshot"));
        quarantined || self.events.iter().any(waits)
    }
}

/// A cluster whose vm-1 was restarted once: first it ran on host 1, now on `running`. With a snapshot from before.
fn restarted(kind: mainstay_core::config::DatastoreKind) -> (Cluster, Snapshot, HostId) {
    let mut cluster = Cluster::new(Kit::new(kind));
    cluster.run_for(40);
    cluster.power_on(1, &vm(1));
    cluster.run_for(20);
    assert_eq!(
        cluster.running.get(&vm(1)),
        Some(&host(1)),
        "{:?}",
        cluster.events
    );
    let snapshot = cluster.kit.snapshot();
    cluster.power_off_host(1);
    cluster.run_for(60);
    let on = cluster.running.get(&vm(1)).cloned();
    let on = on.unwrap_or_else(|| panic!("{kind:?}: restarted, {:#?}", cluster.events));
    (cluster, snapshot, on)
}

#[test]
fn agents_fail_over_on_either_kind() {
    for kind in KINDS {
        let (mut cluster, _, on) = restarted(kind);
        assert_ne!(on, host(1));
        let last = if on == host(2) { 3 } else { 2 };
        cluster.power_off_host(if last == 2 { 3 } else { 2 });
        cluster.run_for(120);
        assert_eq!(cluster.running.get(&vm(1)), Some(&host(last)), "{kind:?}");
        assert!(!cluster.says_went_back(), "{kind:?}");
    }
}

#[test]
fn a_snapshot_that_was_restored_is_noticed_and_nothing_is_started_from_it() {
    for kind in KINDS {
        // The primary never read the generation under which vm-1 runs now: it was told.
        let (mut cluster, snapshot, on) = restarted(kind);
        assert!(!cluster.says_went_back(), "{kind:?}");
        cluster.kit.restore(&snapshot);
        // To the old records vm-1 runs on host 1, which is dead: only what agents remember says otherwise.
        cluster.run_for(30);
        assert_eq!(
            cluster.running.get(&vm(1)),
            Some(&on),
            "{kind:?}: it is not touched"
        );
        let gone = if on == host(2) { 2 } else { 3 };
        cluster.power_off_host(gone);
        cluster.run_for(120);
        assert!(cluster.says_went_back(), "{kind:?}: {:#?}", cluster.events);
        assert_eq!(
            cluster.running.get(&vm(1)),
            None,
            "{kind:?}: a person decides"
        );
    }
}
