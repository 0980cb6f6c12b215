//! What is weak at a host is listed for as long as it lasts, and said each time that it comes; what a
//! user asked for in vain is said each time and not listed.

use mainstay_core::config::{ClusterConfig, DatastoreSpec, HostSpec, Profile, Settings, VmSpec};
use mainstay_core::event::{EventKind, IssueCause};
use mainstay_core::id::{BootId, DatastoreId, Generation, HostId, InstanceId, OpId, VmId};
use mainstay_core::io::{
    Durable, ExitCause, GuardOutcome, HypervisorOutcome, HypervisorRequest, Input, IoFault, Output,
    PingOutcome, StorageOutcome, StorageRequest, StorageValue,
};
use mainstay_core::time::{Duration, Instant};
use mainstay_core::wire::{Desired, LockRecord, RecordKey};
use mainstay_core::{Agent, Command, Identity, provision};
use std::collections::{BTreeMap, VecDeque};

fn host(n: u8) -> HostId {
    HostId::new(&format!("host-{n}")).expect("id")
}

fn vm() -> VmId {
    VmId::new("vm-1").expect("id")
}

fn config() -> ClusterConfig {
    let home = DatastoreId::new("ds-1").expect("id");
    let spec = |n| HostSpec {
        id: host(n),
        cpu_mhz: 20_000,
        memory_mb: 65_536,
        datastores: [home.clone()].into(),
        maintenance: false,
        networks: Default::default(),
    };
    let datastore = DatastoreSpec {
        id: home.clone(),
        kind: Default::default(),
        fence: Default::default(),
        server: None,
    };
    let vm = VmSpec {
        id: vm(),
        datastore: home.clone(),
        cpu_mhz: 100,
        memory_mb: 64,
        restart_priority: Default::default(),
        isolation_response: None,
        depends_on: Vec::new(),
        guest_agent: true,
    };
    let settings = Settings::of(Profile::Balanced);
    ClusterConfig::new(
        1,
        settings,
        vec![spec(1), spec(2)],
        vec![datastore],
        vec![vm],
        Vec::new(),
    )
    .expect("config")
}

/// How a hypervisor fails to make a process.
#[derive(Clone, Copy, Debug)]
enum StartFailure {
    Refused,
    ProcessEnds,
}

/// One agent whose storage, pings and local disk do what the test says.
struct Host {
    agent: Agent,
    now: Instant,
    heartbeats: StorageOutcome,
    pings: PingOutcome,
    /// Can locks be listed?
    locks: bool,
    start: StartFailure,
    /// Whether links wait, and what waits.
    holds_links: bool,
    held: Vec<(OpId, StorageRequest)>,
    records: BTreeMap<RecordKey, Vec<u8>>,
    said: Vec<(IssueCause, String)>,
}

impl Host {
    fn new() -> Self {
        let identity = Identity {
            host: host(1),
            boot: BootId(1),
            instance: InstanceId(1),
            seed: 1,
        };
        let now = Instant::from_nanos(1_000_000_000);
        let agent =
            Agent::new(identity, config(), Durable::default(), Vec::new(), now).expect("agent");
        Self {
            agent,
            now,
            heartbeats: StorageOutcome::Ok(StorageValue::Done),
            pings: PingOutcome::Answered,
            locks: false,
            start: StartFailure::Refused,
            holds_links: false,
            held: Vec::new(),
            records: [provision::vm_record(1, &config().settings, &vm(), &host(1))].into(),
            said: Vec::new(),
        }
    }

    /// What the lock of the VM, which is free, says of it.
    fn last_said(&mut self, desired: Desired) {
        let key = RecordKey::VmLock(vm(), Generation(0));
        let (stamp, record) =
            LockRecord::decode(1, self.records.get(&key).expect("there")).expect("sound");
        let bytes = LockRecord { desired, ..record }.encode(1, &stamp);
        self.records.insert(key, bytes);
    }

    fn perform(&mut self, request: StorageRequest) -> StorageOutcome {
        let found = |is: &dyn Fn(&RecordKey) -> bool| {
            let keys = self.records.keys().filter(|k| is(k));
            StorageOutcome::Ok(StorageValue::Keys(keys.cloned().collect()))
        };
        match request {
            StorageRequest::Renew(..) => self.heartbeats.clone(),
            StorageRequest::ListVmLock(_) if self.locks => {
                found(&|k| matches!(k, RecordKey::VmLock(..)))
            }
            StorageRequest::ListVmLock(_) => StorageOutcome::NotDone(IoFault::Other),
            StorageRequest::ListAllVmLocks | StorageRequest::ListOwnerLock => found(&|_| false),
            StorageRequest::Read(key) => StorageOutcome::Ok(match self.records.get(&key) {
                Some(bytes) => StorageValue::Bytes(bytes.clone()),
                None => StorageValue::NotFound,
            }),
            StorageRequest::Link(key, bytes) => {
                self.records.insert(key, bytes);
                StorageOutcome::Ok(StorageValue::Done)
            }
            _ => StorageOutcome::Ok(StorageValue::Done),
        }
    }

    fn answer(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Storage(op, _, request @ StorageRequest::Link(..)) if self.holds_links => {
                self.held.push((op, request));
                None
            }
            Output::Storage(op, _, request) => Some(Input::Storage(op, self.perform(request))),
            Output::Ping(op, _) => Some(Input::Pinged(op, self.pings)),
            Output::Guard(op, _) => Some(Input::Guard(op, GuardOutcome::Done)),
            Output::Hypervisor(op, HypervisorRequest::Prepare { spec, .. }) => {
                Some(match self.start {
                    StartFailure::Refused => {
                        Input::Hypervisor(op, HypervisorOutcome::Failed("no such machine".into()))
                    }
                    StartFailure::ProcessEnds => Input::VmExited {
                        vm: spec.id,
                        cause: ExitCause::Crash,
                    },
                })
            }
            Output::Persist(op, _) => Some(Input::Persisted(op, true)),
            _ => None,
        }
    }

    /// What the agent put out, answered.
    fn answers(&mut self) -> Vec<Input> {
        let outputs: Vec<Output> = std::iter::from_fn(|| self.agent.poll_output()).collect();
        for output in &outputs {
            if let Output::Event(event) = output
                && let EventKind::ConfigIssue { issue, cause, .. } = &event.kind
            {
                self.said.push((*cause, issue.clone()));
            }
        }
        let answers = outputs.into_iter().filter_map(|o| self.answer(o));
        answers.collect()
    }

    /// Answers all that the agent asks for, at once. An agent that asks again at once for what it was
    /// refused never comes to an end.
    fn drain(&mut self) {
        let mut inputs: VecDeque<Input> = self.answers().into();
        let mut steps = 0;
        while let Some(input) = inputs.pop_front() {
            steps += 1;
            assert!(steps < 1_000, "asked again and again at once: {input:?}");
            self.agent.handle(self.now, input);
            inputs.extend(self.answers());
        }
    }

    fn run_for(&mut self, span: Duration) {
        let end = self.now + span;
        self.drain();
        while let Some(at) = self.agent.poll_timeout().filter(|at| *at <= end) {
            self.now = at.max(self.now);
            self.agent.handle(self.now, Input::Timeout);
            self.drain();
        }
        self.now = end;
    }

    fn listed(&self, cause: IssueCause) -> bool {
        self.agent.issues(self.now).iter().any(|i| i.cause == cause)
    }

    fn times(&self, cause: IssueCause) -> usize {
        self.said.iter().filter(|(c, _)| *c == cause).count()
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_weakness_is_listed_while_it_lasts_and_said_each_time_that_it_comes() {
    let mut host = Host::new();
    host.run_for(10 * SECOND);
    assert_eq!(host.times(IssueCause::HeartbeatNotWritten), 0);
    for time in 1..=2 {
        host.heartbeats = StorageOutcome::NotDone(IoFault::Full);
        host.run_for(5 * SECOND);
        host.heartbeats = StorageOutcome::Unknown(IoFault::TimedOut);
        host.run_for(5 * SECOND);
        assert!(host.listed(IssueCause::HeartbeatNotWritten));
        assert_eq!(
            host.times(IssueCause::HeartbeatNotWritten),
            time,
            "another fault is the same weakness"
        );
        host.heartbeats = StorageOutcome::Ok(StorageValue::Done);
        host.run_for(60 * SECOND);
        assert!(!host.listed(IssueCause::HeartbeatNotWritten), "over");
    }
}

#[test]
fn a_weakness_that_comes_and_goes_does_not_fill_the_journal() {
    let mut host = Host::new();
    for _ in 0..120 {
        host.heartbeats = StorageOutcome::NotDone(IoFault::Full);
        host.run_for(SECOND);
        host.heartbeats = StorageOutcome::Ok(StorageValue::Done);
        host.run_for(SECOND);
    }
    let times = host.times(IssueCause::HeartbeatNotWritten);
    assert!(
        (4..=9).contains(&times),
        "said {times} times in four minutes"
    );
}

#[test]
fn a_start_that_is_refused_is_said_each_time_and_no_weakness_of_the_host() {
    let mut host = Host::new();
    host.run_for(10 * SECOND);
    for time in 1..=2 {
        let asked = host.agent.command(host.now, Command::PowerOn(vm()));
        asked.expect("accepted");
        host.run_for(60 * SECOND);
        assert_eq!(host.times(IssueCause::StartRefused), time);
        assert!(!host.listed(IssueCause::StartRefused));
    }
}

#[test]
fn an_isolation_address_that_answers_again_is_no_weakness_though_the_list_was_set_meanwhile() {
    let mut host = Host::new();
    let names = || vec![String::from("gateway")];
    host.agent.set_isolation_addresses(names());
    host.pings = PingOutcome::CannotProbe;
    host.run_for(60 * SECOND);
    assert!(host.listed(IssueCause::CannotProbe));
    host.agent.set_isolation_addresses(names());
    host.pings = PingOutcome::Answered;
    host.run_for(60 * SECOND);
    assert!(!host.listed(IssueCause::CannotProbe));

    host.pings = PingOutcome::CannotProbe;
    host.run_for(60 * SECOND);
    host.agent.set_isolation_addresses(Vec::new());
    assert!(!host.listed(IssueCause::CannotProbe), "no address any more");
    assert!(host.listed(IssueCause::NoIsolationAddress));
    host.agent.set_isolation_addresses(names());
    assert!(!host.listed(IssueCause::NoIsolationAddress));
}

#[test]
fn a_start_that_is_given_up_keeps_no_lock() {
    let mut host = Host::new();
    (host.locks, host.holds_links) = (true, true);
    host.run_for(10 * SECOND);
    let asked = host.agent.command(host.now, Command::PowerOn(vm()));
    asked.expect("accepted");
    host.run_for(SECOND);
    // The right to run lapses while the swap is out, so that the generation that it makes may not run.
    host.heartbeats = StorageOutcome::Unknown(IoFault::TimedOut);
    host.run_for(10 * SECOND);
    host.holds_links = false;
    for (op, request) in std::mem::take(&mut host.held) {
        let outcome = host.perform(request);
        host.agent.handle(host.now, Input::Storage(op, outcome));
        host.drain();
    }
    let holder = |host: &Host, generation| {
        let record = host
            .records
            .get(&RecordKey::VmLock(vm(), Generation(generation)));
        let record = record.map(|bytes| LockRecord::decode(1, bytes).expect("sound").1);
        record.map(|r| r.holder.is_some())
    };
    assert_eq!(holder(&host, 1), Some(true), "its own, and not to be run");
    host.run_for(60 * SECOND);
    assert_eq!(host.times(IssueCause::StartRefused), 1);
    assert_eq!(holder(&host, 2), Some(false), "given back");
}

#[test]
fn a_start_that_its_user_asked_for_and_that_fails_leaves_the_intent_as_it_was() {
    for (before, failure) in [
        (Desired::Off, StartFailure::Refused),
        (Desired::On, StartFailure::Refused),
        (Desired::Off, StartFailure::ProcessEnds),
    ] {
        let mut host = Host::new();
        (host.locks, host.start) = (true, failure);
        host.last_said(before);
        host.run_for(10 * SECOND);
        let asked = host.agent.command(host.now, Command::PowerOn(vm()));
        asked.expect("accepted");
        host.run_for(60 * SECOND);
        assert_eq!(host.times(IssueCause::StartRefused), 1, "{failure:?}");
        let generation = |n| RecordKey::VmLock(vm(), Generation(n));
        let record = &host.records[&generation(2)];
        let record = LockRecord::decode(1, record).expect("sound").1;
        assert_eq!(record.holder, None, "given back");
        assert_eq!(record.desired, before, "{failure:?}: nothing of it ran");
    }
}
