//! Hosts around one datastore and one VM, for the models of the right to run and of ownership: real agents of
//! which only the rooms in question are run, over a datastore, a guard and a hypervisor of a few lines.
//!
//! Time goes in ticks. Heartbeats, links and messages are on their way for as long as the exploration likes: that
//! an operation lands and that it is acknowledged are two steps, and one that was given up may land later. All
//! other operations are performed at once: the steps of a swap are the business of the model `chain`. The guard
//! takes all the time that its latency gives it.

use crate::agent::{Agent, Command, Identity};
use crate::config::{ClusterConfig, DatastoreSpec, FenceClass, HostSpec, Settings, VmSpec};
use crate::election::Role;
use crate::event::{EventKind, HostState};
use crate::guard::{SlotState, Word};
use crate::id::{BootId, DatastoreId, Generation, HostId, InstanceId, OpId, VmId};
use crate::io::{
    Durable, ExitCause, FoundState, FoundVm, GuardOutcome, GuardRequest, HypervisorOutcome,
    HypervisorRequest, Input, IoFault, Output, StorageOutcome, StorageRequest, StorageValue,
};
use crate::provision::{datastore_records, vm_record};
use crate::restart::{Restart, Step};
use crate::time::{Duration, Instant};
use crate::wire::{Message, ProtectedVm, Rank, RecordKey};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::vec::Vec;
use std::{format, vec};

const CLUSTER: u64 = 1;
/// Ticks before the exploration begins: the agents have settled.
const BEFORE: u64 = 100;

/// What a host is there for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// It runs the VM, and follows that host. Its heartbeat comes when the exploration likes.
    Runs(usize),
    /// A primary whose heartbeat comes each tick.
    Steady,
    /// A primary whose heartbeat comes when the exploration likes.
    Leads,
}

/// How far a model goes, and with what.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub(super) parts: Vec<Part>,
    /// Ticks that are explored.
    pub(super) ticks: u64,
    pub(super) freeze: u64,
    pub(super) r#break: u64,
    /// Ticks that the guard is late.
    pub(super) guard: u64,
    /// The VM's host: heartbeats are written and acknowledged in steps.
    pub(super) late_beats: bool,
    /// Links are made and acknowledged in steps.
    pub(super) late_links: bool,
    /// Heartbeats of others are read and acknowledged in steps.
    pub(super) late_reads: bool,
    /// Ticks for which a message may be on its way; 0: none is sent.
    pub(super) mail: u64,
    pub(super) budget: Budget,
    /// Nothing freezes a VM (planted).
    pub(super) no_freeze: bool,
    #[cfg(feature = "planted")]
    pub(super) bug: Option<crate::planted::Bug>,
}

/// How often something happens at most.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Budget {
    /// Operations whose outcome stays unknown to the agent.
    pub(super) unknown: u8,
    /// The VM's host loses its power and boots.
    pub(super) crashes: u8,
    /// The agent of the VM's host dies and is started anew.
    pub(super) kills: u8,
    /// The user switches the VM off.
    pub(super) offs: u8,
    /// The user switches the VM on where it was.
    pub(super) ons: u8,
    /// Times that a primary's reads of heartbeats come from a cache from then on.
    pub(super) stale: u8,
    /// The VM's host raises its `freeze` and `break`.
    pub(super) raises: u8,
    /// Heartbeats of the VM's host.
    pub(super) beats: u8,
    /// Heartbeats of a primary that is not steady.
    pub(super) leads: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Guest {
    None,
    Prepared,
    Runs(Generation),
    Frozen,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) agent: Agent,
    pub(super) guest: Guest,
    word: Word,
    durable: Durable,
    /// Off, since it lost its power.
    off: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Op {
    host: usize,
    id: OpId,
    request: StorageRequest,
    landed: Option<StorageOutcome>,
    /// Nobody waits for it any more.
    given_up: bool,
}

type Disk = BTreeMap<RecordKey, Arc<Vec<u8>>>;

#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) now: u64,
    pub(super) nodes: Vec<Arc<Node>>,
    prints: Vec<u64>,
    /// Hosts that did something since they were last looked at.
    changed: BTreeSet<usize>,
    disk: Disk,
    /// What the reads of a host show that come from a cache.
    cached: Vec<Option<Arc<Disk>>>,
    ops: Vec<Op>,
    /// To whom, from whom, since when.
    mail: BTreeSet<(usize, usize, u64, Post)>,
    renewed: BTreeSet<usize>,
    observed: BTreeSet<usize>,
    looked: BTreeSet<usize>,
    acted: BTreeSet<usize>,
    numbered: BTreeMap<(usize, u64), u64>,
    budget: Budget,
    /// Generations under which the VM has run.
    lived: BTreeSet<Generation>,
    pub(super) reached: BTreeSet<&'static str>,
    pub(super) broken: Option<&'static str>,
    print: u64,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Post {
    Ask(u64),
    Answer(u64, u64),
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.print.hash(state);
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        self.print == other.print
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Action {
    Tick,
    Renew(usize),
    Observe(usize),
    /// A primary reads the VM's lock.
    Look(usize),
    /// A primary does what it can about owner locks and restarts.
    Act(usize),
    Land(usize),
    Acknowledge(usize),
    /// An operation's outcome stays unknown; it may land later if it has not.
    Lose(usize),
    Deliver(usize),
    Crash(usize),
    Boot(usize),
    Kill(usize),
    Off(usize),
    On(usize),
    Stale(usize),
    Raise(usize),
}

pub(super) const TWICE: &str = "one host runs the VM";
pub(super) const LIVES: &str = "a generation runs once";
pub(super) const OWNERS: &str = "one owner acts";

pub(super) const TAKEOVER: &str = "another host runs the VM";
pub(super) const THAW: &str = "it is thawed, and nobody took over";
pub(super) const VOUCHED: &str = "it runs on by an owner's word";
pub(super) const HANDOVER: &str = "another owner acts";

pub(super) fn datastore() -> DatastoreId {
    DatastoreId::new("d").expect("id")
}

pub(super) fn vm() -> VmId {
    VmId::new("v").expect("id")
}

fn id(host: usize) -> HostId {
    HostId::new(&format!("h{host}")).expect("id")
}

fn ticks(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn at(tick: u64) -> Instant {
    Instant::ZERO + ticks(tick)
}

impl Agent {
    /// What an agent does after each input, as far as the models go.
    pub(crate) fn run_modelled(&mut self) {
        self.settle_vms();
        self.run_tasks();
        self.run_vouch();
        self.run_vms();
    }
}

impl Bounds {
    fn config(&self) -> ClusterConfig {
        let settings = Settings {
            accept_late_writes: true,
            ..Settings::default()
        };
        let host = |n: usize, datastores: &[DatastoreId]| HostSpec {
            id: id(n),
            cpu_mhz: 1000,
            memory_mb: 1000,
            datastores: datastores.iter().cloned().collect(),
            maintenance: false,
            networks: Default::default(),
        };
        let all = 0..self.parts.len();
        // One more, which is company for primaries.
        let hosts = all.map(|n| host(n, &[datastore()])).chain([host(9, &[])]);
        let store = DatastoreSpec {
            id: datastore(),
            kind: Default::default(),
            fence: FenceClass::Enforced,
            server: None,
        };
        let spec = VmSpec {
            id: vm(),
            datastore: datastore(),
            cpu_mhz: 100,
            memory_mb: 100,
            restart_priority: Default::default(),
            isolation_response: None,
            depends_on: Vec::new(),
            guest_agent: true,
        };
        let hosts: Vec<HostSpec> = hosts.collect();
        let config = ClusterConfig::new(CLUSTER, settings, hosts, vec![store], vec![spec], vec![]);
        let mut config = config.expect("sound");
        // In ticks, the inequalities of the timers hold in a way of their own (`right`).
        let t = &mut config.settings.timing;
        t.freeze = ticks(self.freeze);
        t.r#break = ticks(self.r#break);
        t.datastore_heartbeat = ticks(1);
        t.network_heartbeat = ticks(1);
        t.poweron_poll = ticks(1);
        config
    }

    /// The agent of a host in that boot and start, at that time.
    fn agent(
        &self,
        (n, boot, instance): (usize, BootId, InstanceId),
        durable: Durable,
        found: Vec<FoundVm>,
        now: u64,
    ) -> Agent {
        let me = Identity {
            host: id(n),
            boot,
            instance,
            seed: n as u64 + 1,
        };
        let mut config = self.config();
        let timing = config.settings.timing.clone();
        config.settings.timing = Settings::default().timing;
        let mut agent = Agent::new(me, config, durable, found, at(now)).expect("an agent");
        agent.modelled = true;
        agent.config.settings.timing = timing;
        #[cfg(feature = "planted")]
        {
            agent.bug = self.bug;
        }
        agent.alone_since = None;
        for (host, peer) in &mut agent.peers {
            let company = *host == id(9);
            peer.state = if company {
                HostState::Live
            } else {
                HostState::Dead
            };
            peer.follows = company;
            peer.heard = company.then_some(at(now));
        }
        agent.role = match self.parts[n] {
            Part::Runs(primary) => Role::Secondary {
                primary: id(primary),
                rank: Rank {
                    datastores: 1,
                    host: id(primary),
                },
                heard: at(1_000_000),
                silent_at: at(1_000_000),
            },
            Part::Steady | Part::Leads => Role::Primary {
                restarts_from: at(0),
            },
        };
        agent
    }
}

impl World {
    /// The VM runs on the first host, the first primary owns the datastore, and all is quiet.
    pub(super) fn new(bounds: &Bounds) -> Self {
        let config = bounds.config();
        let hosts = config.hosts.values();
        let mounting = hosts.filter(|h| !h.datastores.is_empty());
        let records = datastore_records(CLUSTER, &config.settings, mounting, &id(9));
        let (key, lock) = vm_record(CLUSTER, &config.settings, &vm(), &id(9));
        let disk = records.into_iter().chain([(key, lock)]);
        let node = |n: usize| {
            let who = (n, BootId(1), InstanceId(n as u64 * 100 + 1));
            Arc::new(Node {
                agent: bounds.agent(who, Durable::default(), Vec::new(), 1),
                guest: Guest::None,
                word: Word::FREE,
                durable: Durable::default(),
                off: false,
            })
        };
        let count = bounds.parts.len();
        let mut world = Self {
            now: 1,
            nodes: (0..count).map(node).collect(),
            prints: vec![0; count],
            changed: (0..count).collect(),
            disk: disk.map(|(k, v)| (k, Arc::new(v))).collect(),
            cached: vec![None; count],
            ops: Vec::new(),
            mail: BTreeSet::new(),
            renewed: BTreeSet::new(),
            observed: BTreeSet::new(),
            looked: BTreeSet::new(),
            acted: BTreeSet::new(),
            numbered: BTreeMap::new(),
            budget: Budget::default(),
            lived: BTreeSet::new(),
            reached: BTreeSet::new(),
            broken: None,
            print: 0,
        };
        let calm = Bounds {
            late_beats: false,
            late_links: false,
            late_reads: false,
            mail: 0,
            no_freeze: false,
            ..bounds.clone()
        };
        let leader = 1;
        while world.now < BEFORE {
            world.tick(&calm);
            for n in 0..count {
                world.drive(&calm, n, 2, |a| a.renew(&datastore(), ticks(1)));
                if n > 0 {
                    world.drive(&calm, n, 3, |a| a.observe(&datastore(), ticks(1)));
                }
            }
            world.drive(&calm, leader, 5, Agent::run_ownership);
            if world.now == 3 {
                world.drive(&calm, 0, 7, |a| {
                    a.command(at(3), Command::PowerOn(vm())).expect("taken");
                });
            }
        }
        for n in 1..count {
            let agent = &mut Arc::make_mut(&mut world.nodes[n]).agent;
            let mut missed = Restart::missed(datastore(), at(BEFORE));
            missed.step = Step::Look(at(1_000_000));
            agent.restarts.insert(vm(), missed);
        }
        assert!(matches!(world.nodes[0].guest, Guest::Runs(_)), "it runs");
        assert!(world.acts(leader), "it owns");
        world.protect(leader);
        world.renewed = (0..count).collect();
        world.observed.clear();
        world.lived = world.runs(0).into_iter().collect();
        world.reached.clear();
        world.budget = bounds.budget;
        world.seal();
        world
    }

    /// The VM is on the protected list, on disk too.
    fn protect(&mut self, n: usize) {
        let agent = &mut Arc::make_mut(&mut self.nodes[n]).agent;
        let protected = ProtectedVm {
            vm: vm(),
            cpu_mhz: 100,
            memory_mb: 100,
            restart_priority: Default::default(),
            last_host: Some(id(0)),
        };
        if let Some(crate::ownership::Own::Acting(acting)) = agent.owned.get_mut(&datastore()) {
            acting.list.insert(vm(), protected);
        }
    }

    /// The generation under which a host runs the VM now.
    pub(super) fn runs(&self, n: usize) -> Option<Generation> {
        match self.nodes[n].guest {
            Guest::Runs(generation) => Some(generation),
            _ => None,
        }
    }

    fn acts(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let mut right = node.agent.acting(&datastore()).is_some();
        // As of now, not as of the agent's last input.
        if let Some(store) = node.agent.stores.get(&datastore()) {
            right &= store.right.valid(at(self.now));
        }
        right && !node.off
    }

    /// Lets an agent do something, and carries out what it asks for. `kind` tells steps of one tick apart.
    pub(super) fn drive(
        &mut self,
        bounds: &Bounds,
        n: usize,
        kind: u64,
        what: impl FnOnce(&mut Agent),
    ) {
        if self.nodes[n].off {
            return;
        }
        self.changed.insert(n);
        let now = self.now;
        let repeated = self.numbered.entry((n, kind)).or_default();
        *repeated += 1;
        let numbers = ((now * 100 + kind) * 20 + *repeated) * 1000;
        let agent = &mut Arc::make_mut(&mut self.nodes[n]).agent;
        agent.model_at(at(now), numbers);
        what(agent);
        agent.run_modelled();
        self.carry_out(bounds, n);
    }

    fn input(&mut self, n: usize, input: Input) {
        let agent = &mut Arc::make_mut(&mut self.nodes[n]).agent;
        agent.take(input);
        agent.run_modelled();
    }

    fn carry_out(&mut self, bounds: &Bounds, n: usize) {
        while let Some(output) = Arc::make_mut(&mut self.nodes[n]).agent.poll_output() {
            match output {
                Output::Storage(id, _, request) => self.storage(bounds, n, id, request),
                Output::Guard(op, request) => {
                    let outcome = self.guard(n, request);
                    self.input(n, Input::Guard(op, outcome));
                }
                Output::Hypervisor(op, request) => self.hypervisor(n, op, &request),
                Output::Datagram { to, message } if bounds.mail > 0 => self.post(n, &to, &message),
                Output::Persist(op, durable) => {
                    Arc::make_mut(&mut self.nodes[n]).durable = durable;
                    self.input(n, Input::Persisted(op, true));
                }
                Output::Event(event) => self.note(n, &event.kind),
                _ => {}
            }
        }
        // Nothing waits for the local disk here.
        let node = Arc::make_mut(&mut self.nodes[n]);
        node.durable = node.agent.durable.clone();
    }

    fn note(&mut self, n: usize, event: &EventKind) {
        match event {
            EventKind::VmStarted { .. } if n > 0 => drop(self.reached.insert(TAKEOVER)),
            EventKind::VmThawed { .. } if !self.reached.contains(TAKEOVER) => {
                self.reached.insert(THAW);
            }
            EventKind::HostVouched { .. } => drop(self.reached.insert(VOUCHED)),
            EventKind::DatastoreOwned { .. } if n > 1 => drop(self.reached.insert(HANDOVER)),
            _ => {}
        }
    }

    fn storage(&mut self, bounds: &Bounds, n: usize, id: OpId, request: StorageRequest) {
        let own = |key: &RecordKey| *key == RecordKey::Heartbeat(self::id(n));
        let later = match &request {
            StorageRequest::Renew(..) => bounds.late_beats && n == 0,
            StorageRequest::Link(..) => bounds.late_links,
            StorageRequest::Read(key @ RecordKey::Heartbeat(_)) => bounds.late_reads && !own(key),
            _ => false,
        };
        if later {
            self.ops.push(Op {
                host: n,
                id,
                request,
                landed: None,
                given_up: false,
            });
            return;
        }
        let value = self.perform(n, &request);
        self.input(n, Input::Storage(id, StorageOutcome::Ok(value)));
    }

    fn perform(&mut self, n: usize, request: &StorageRequest) -> StorageValue {
        let there = |disk: &Disk, key: &RecordKey| match disk.get(key) {
            Some(bytes) => StorageValue::Bytes(bytes.to_vec()),
            None => StorageValue::NotFound,
        };
        let keys = |disk: &Disk, wanted: fn(&RecordKey) -> bool| {
            StorageValue::Keys(disk.keys().filter(|k| wanted(k)).cloned().collect())
        };
        match request {
            StorageRequest::Read(key @ RecordKey::Heartbeat(_)) => {
                there(self.cached[n].as_deref().unwrap_or(&self.disk), key)
            }
            StorageRequest::Read(key) => there(&self.disk, key),
            StorageRequest::Renew(key, bytes) | StorageRequest::Put(key, bytes) => {
                self.disk.insert(key.clone(), Arc::new(bytes.clone()));
                StorageValue::Done
            }
            StorageRequest::Link(key, _) if self.disk.contains_key(key) => StorageValue::Exists,
            StorageRequest::Link(key, bytes) => {
                self.disk.insert(key.clone(), Arc::new(bytes.clone()));
                StorageValue::Done
            }
            StorageRequest::Remove(key) => match self.disk.remove(key) {
                Some(_) => StorageValue::Done,
                None => StorageValue::NotFound,
            },
            StorageRequest::ListVmLock(_) | StorageRequest::ListAllVmLocks => {
                keys(&self.disk, |k| matches!(k, RecordKey::VmLock(..)))
            }
            StorageRequest::ListOwnerLock => {
                keys(&self.disk, |k| matches!(k, RecordKey::OwnerLock(_)))
            }
            StorageRequest::ListProtected => {
                keys(&self.disk, |k| matches!(k, RecordKey::Protected(_)))
            }
            StorageRequest::ListConfig => StorageValue::Keys(Vec::new()),
            StorageRequest::ProbeLock(_) => StorageValue::Held(true),
            StorageRequest::PutPages(..) => StorageValue::Done,
        }
    }

    /// The guard's memory: the real word, written at once.
    fn guard(&mut self, n: usize, request: GuardRequest) -> GuardOutcome {
        let now = at(self.now);
        let node = Arc::make_mut(&mut self.nodes[n]);
        let next = match &request {
            GuardRequest::Extend(all) => {
                let extended = all.first().and_then(|e| {
                    let next = node.word.extended(now, e.generation, e.deadline);
                    next.ok_or(e.vm.clone())
                        .map_or_else(|vm| Some(Err(vm)), |w| Some(Ok(w)))
                });
                return match extended {
                    Some(Ok(word)) => {
                        node.word = word;
                        GuardOutcome::Done
                    }
                    Some(Err(vm)) => GuardOutcome::Refused(vec![vm]),
                    None => GuardOutcome::Done,
                };
            }
            GuardRequest::Register {
                generation,
                deadline,
                ..
            } => Some(Word::new(SlotState::Running, *generation, *deadline)),
            GuardRequest::Thaw {
                from, to, deadline, ..
            } => node.word.thawed(now, *from, *to, *deadline),
            GuardRequest::Lapse { generation, .. } => node.word.lapsed(*generation),
            GuardRequest::Remove { .. } => Some(Word::FREE),
        };
        let Some(word) = next else {
            return GuardOutcome::Lapsed;
        };
        node.word = word;
        match request {
            GuardRequest::Thaw { to, .. } if node.guest != Guest::None => self.live(n, to),
            GuardRequest::Lapse { .. } => node.guest = Guest::Frozen,
            _ => {}
        }
        GuardOutcome::Done
    }

    /// From now on a host's guest runs under that generation.
    fn live(&mut self, n: usize, generation: Generation) {
        Arc::make_mut(&mut self.nodes[n]).guest = Guest::Runs(generation);
        if !self.lived.insert(generation) {
            self.broken = self.broken.or(Some(LIVES));
        }
    }

    fn hypervisor(&mut self, n: usize, op: OpId, request: &HypervisorRequest) {
        let node = Arc::make_mut(&mut self.nodes[n]);
        match request {
            HypervisorRequest::Prepare { .. } => node.guest = Guest::Prepared,
            HypervisorRequest::Resume { .. } if node.guest == Guest::Prepared => {
                if node.word.state() == SlotState::Running {
                    let generation = node.word.generation();
                    self.live(n, generation);
                } else {
                    node.guest = Guest::Frozen;
                }
            }
            HypervisorRequest::Kill { vm } => {
                node.guest = Guest::None;
                let vm = vm.clone();
                self.input(n, Input::Hypervisor(op, HypervisorOutcome::Done));
                let cause = ExitCause::Killed;
                self.input(n, Input::VmExited { vm, cause });
                return;
            }
            _ => {}
        }
        self.input(n, Input::Hypervisor(op, HypervisorOutcome::Done));
    }

    fn post(&mut self, from: usize, to: &HostId, message: &Message) {
        let Some(to) = (0..self.nodes.len()).find(|n| id(*n) == *to) else {
            return;
        };
        self.mail.insert(match message {
            Message::AskVouch { nonce, .. } => (to, from, self.now, Post::Ask(nonce.0)),
            Message::Vouch {
                nonce, generation, ..
            } => (to, from, self.now, Post::Answer(nonce.0, generation.0)),
            _ => return,
        });
    }

    /// Time goes on by one tick: what has lapsed for longer than the guard may take is frozen.
    fn tick(&mut self, bounds: &Bounds) {
        self.now += 1;
        let now = self.now;
        self.mail.retain(|(_, _, sent, _)| sent + bounds.mail > now);
        self.renewed.clear();
        self.observed.clear();
        self.looked.clear();
        self.acted.clear();
        self.numbered.clear();
        for n in 0..self.nodes.len() {
            self.guard_looks(bounds, n);
            self.drive(bounds, n, 1, |_| {});
            if bounds.parts[n] == Part::Steady {
                self.drive(bounds, n, 2, |a| a.renew(&datastore(), ticks(1)));
            }
        }
    }

    fn guard_looks(&mut self, bounds: &Bounds, n: usize) {
        let word = self.nodes[n].word;
        let late = word.deadline() + ticks(bounds.guard) < at(self.now);
        if bounds.no_freeze || self.nodes[n].off || word.state() != SlotState::Running || !late {
            return;
        }
        let node = Arc::make_mut(&mut self.nodes[n]);
        let generation = word.generation();
        node.word = Word::new(SlotState::Lapsed, generation, word.deadline());
        if matches!(node.guest, Guest::Runs(_)) {
            node.guest = Guest::Frozen;
        }
        self.drive(bounds, n, 8, |a| {
            let vm = vm();
            a.take(Input::VmLapsed { vm, generation });
        });
    }

    fn acknowledge(&mut self, bounds: &Bounds, op: Op, outcome: StorageOutcome) {
        let kind = match &op.request {
            StorageRequest::Renew(..) => 10,
            StorageRequest::Link(..) => 11,
            _ => 12,
        };
        let input = Input::Storage(op.id, outcome);
        self.drive(bounds, op.host, kind, |a| a.take(input));
    }

    fn deliver(&mut self, bounds: &Bounds, (to, from, _, post): (usize, usize, u64, Post)) {
        let datastore = datastore();
        let message = match post {
            Post::Ask(nonce) => Message::AskVouch {
                datastore,
                nonce: crate::id::Nonce(nonce),
            },
            Post::Answer(nonce, generation) => Message::Vouch {
                datastore,
                nonce: crate::id::Nonce(nonce),
                generation: Generation(generation),
            },
        };
        let from = id(from);
        self.drive(bounds, to, 13, |a| a.on_message(&from, message));
    }

    /// The agent is gone; what it had under way may land. The next one finds what runs.
    fn start_agent(&mut self, bounds: &Bounds, n: usize, boots: bool) {
        for op in self.ops.iter_mut().filter(|op| op.host == n) {
            op.given_up = true;
        }
        let now = self.now;
        let node = Arc::make_mut(&mut self.nodes[n]);
        let (boot, instance) = (node.agent.me.boot, node.agent.me.instance);
        let boot = BootId(boot.0 + u64::from(boots));
        let found = match (node.word.state(), node.guest) {
            (_, Guest::None) => None,
            (SlotState::Running, Guest::Runs(_)) => {
                Some(FoundState::Running(node.word.generation()))
            }
            (SlotState::Free, _) => Some(FoundState::Unregistered),
            _ => Some(FoundState::Lapsed(node.word.generation())),
        };
        let found = found.map(|state| FoundVm { vm: vm(), state });
        let who = (n, boot, InstanceId(instance.0 + 1));
        let found = found.into_iter().collect();
        node.agent = bounds.agent(who, node.durable.clone(), found, now);
        node.off = false;
        self.drive(bounds, n, 14, |_| {});
    }

    pub(super) fn actions(&self, bounds: &Bounds, actions: &mut Vec<Action>) {
        if self.broken.is_some() {
            return;
        }
        let left = &self.budget;
        // A primary looks at each heartbeat in each tick, before or after anything else.
        let all_observed = (1..self.nodes.len()).all(|n| self.observed.contains(&n));
        if self.now < BEFORE + bounds.ticks && all_observed {
            actions.push(Action::Tick);
        }
        for (n, node) in self.nodes.iter().enumerate() {
            if node.off {
                actions.push(Action::Boot(n));
                continue;
            }
            let beats = match bounds.parts[n] {
                Part::Runs(_) => left.beats,
                Part::Leads => left.leads,
                Part::Steady => 0,
            };
            if beats > 0 && !self.renewed.contains(&n) {
                actions.push(Action::Renew(n));
            }
            if n > 0 {
                if !self.observed.contains(&n) {
                    actions.push(Action::Observe(n));
                }
                if !self.looked.contains(&n) {
                    actions.push(Action::Look(n));
                }
                if !self.acted.contains(&n) {
                    actions.push(Action::Act(n));
                }
                if left.stale > 0 {
                    actions.push(Action::Stale(n));
                }
                continue;
            }
            let faults = [
                (left.crashes, Action::Crash(n)),
                (left.kills, Action::Kill(n)),
                (left.offs, Action::Off(n)),
                (left.ons, Action::On(n)),
                (left.raises, Action::Raise(n)),
            ];
            let faults = faults.into_iter().filter(|(left, _)| *left > 0);
            actions.extend(faults.map(|(_, fault)| fault));
        }
        for (n, op) in self.ops.iter().enumerate() {
            if op.landed.is_none() {
                actions.push(Action::Land(n));
            } else {
                actions.push(Action::Acknowledge(n));
            }
            if !op.given_up && left.unknown > 0 {
                actions.push(Action::Lose(n));
            }
        }
        actions.extend((0..self.mail.len()).map(Action::Deliver));
    }

    pub(super) fn next(&self, bounds: &Bounds, action: &Action) -> Option<Self> {
        let mut world = self.clone();
        world.changed.extend(faulty(action));
        let now = at(world.now);
        match *action {
            Action::Tick => {
                world.tick(bounds);
            }
            Action::Renew(n) => {
                world.renewed.insert(n);
                match bounds.parts[n] {
                    Part::Runs(_) => world.budget.beats -= 1,
                    Part::Leads | Part::Steady => world.budget.leads -= 1,
                }
                world.drive(bounds, n, 2, |a| a.renew(&datastore(), ticks(1)));
            }
            Action::Observe(n) => {
                world.observed.insert(n);
                world.drive(bounds, n, 3, |a| a.observe(&datastore(), ticks(1)));
            }
            Action::Look(n) => {
                world.looked.insert(n);
                world.drive(bounds, n, 4, |a| {
                    if let Some(restart) = a.restarts.get_mut(&vm()) {
                        restart.step = Step::Look(now);
                    }
                    a.run_restarts();
                });
            }
            Action::Act(n) => {
                world.acted.insert(n);
                world.drive(bounds, n, 5, |a| {
                    a.run_ownership();
                    a.run_restarts();
                });
                // A new owner has the list from its predecessor.
                world.protect(n);
            }
            Action::Land(at) => {
                let op = world.ops.get(at)?.clone();
                let value = world.perform(op.host, &op.request);
                if op.given_up {
                    world.ops.remove(at);
                } else {
                    world.ops[at].landed = Some(StorageOutcome::Ok(value));
                }
            }
            Action::Acknowledge(at) => {
                let op = world.ops.remove(at);
                let outcome = op.landed.clone()?;
                world.acknowledge(bounds, op, outcome);
            }
            Action::Lose(at) => {
                world.budget.unknown -= 1;
                let op = world.ops.get(at)?.clone();
                if op.landed.is_some() || !is_write(&op.request) {
                    world.ops.remove(at);
                } else {
                    world.ops[at].given_up = true;
                }
                let unknown = StorageOutcome::Unknown(IoFault::TimedOut);
                world.acknowledge(bounds, op, unknown);
            }
            Action::Deliver(at) => {
                let post = world.mail.iter().nth(at)?.clone();
                world.mail.remove(&post);
                world.deliver(bounds, post);
            }
            Action::Crash(n) => {
                world.budget.crashes -= 1;
                world.ops.retain(|op| op.host != n || op.landed.is_none());
                let node = Arc::make_mut(&mut world.nodes[n]);
                (node.guest, node.word, node.off) = (Guest::None, Word::FREE, true);
                for op in world.ops.iter_mut().filter(|op| op.host == n) {
                    op.given_up = true;
                }
            }
            Action::Boot(n) => world.start_agent(bounds, n, true),
            Action::Kill(n) => {
                world.budget.kills -= 1;
                world.ops.retain(|op| op.host != n || op.landed.is_none());
                world.start_agent(bounds, n, false);
            }
            Action::Off(n) => {
                world.budget.offs -= 1;
                world.drive(bounds, n, 6, |a| drop(a.power_off(&vm())));
            }
            Action::On(n) => {
                world.budget.ons -= 1;
                world.drive(bounds, n, 7, |a| drop(a.power_on(&vm())));
            }
            Action::Stale(n) => {
                world.budget.stale -= 1;
                world.cached[n] = Some(Arc::new(world.disk.clone()));
            }
            Action::Raise(n) => {
                world.budget.raises -= 1;
                world.drive(bounds, n, 9, |a| {
                    let timing = &mut a.config.settings.timing;
                    timing.freeze += ticks(2);
                    timing.r#break += ticks(2);
                });
            }
        }
        world.seal();
        // A primary that found nothing to do may do so later: that is no state of its own.
        let idle = matches!(action, Action::Look(_) | Action::Act(_))
            && (&world.prints, &world.ops, &world.mail) == (&self.prints, &self.ops, &self.mail)
            && world.disk == self.disk;
        (world.print != self.print && !idle).then_some(world)
    }

    /// Judges the state, and says in one number what it is.
    fn seal(&mut self) {
        let running = (0..self.nodes.len()).filter(|n| self.runs(*n).is_some());
        if running.count() > 1 {
            self.broken = Some(TWICE);
        }
        let acting = (0..self.nodes.len()).filter(|n| self.acts(*n));
        if acting.count() > 1 {
            self.broken = self.broken.or(Some(OWNERS));
        }
        self.ops.sort_by_key(|op| (op.host, op.id));
        for n in core::mem::take(&mut self.changed) {
            self.prints[n] = print_of(&self.nodes[n]);
        }
        let mut hasher = DefaultHasher::new();
        (self.now, &self.prints, &self.disk, &self.cached).hash(&mut hasher);
        (&self.ops, &self.mail, &self.renewed, &self.observed).hash(&mut hasher);
        (&self.looked, &self.acted).hash(&mut hasher);
        (&self.budget, &self.lived, self.broken, &self.reached).hash(&mut hasher);
        self.print = hasher.finish();
    }
}

/// The host to which something happens that its agent does not see.
fn faulty(action: &Action) -> Option<usize> {
    match *action {
        Action::Crash(n) | Action::Boot(n) | Action::Kill(n) => Some(n),
        _ => None,
    }
}

fn is_write(request: &StorageRequest) -> bool {
    matches!(
        request,
        StorageRequest::Renew(..) | StorageRequest::Link(..)
    )
}

/// What decides, of a host. What it waits for follows from the operations that are under way, whose numbers
/// tell when they were asked for.
fn print_of(node: &Node) -> u64 {
    let mut hasher = DefaultHasher::new();
    let agent = &node.agent;
    let me = (agent.me.boot, agent.me.instance);
    (node.guest, node.word.0, node.off, me).hash(&mut hasher);
    let stores = agent.stores.values();
    stores.for_each(|s| s.decides().hash(&mut hasher));
    let vms = agent.vms.values();
    vms.for_each(|v| v.decides().hash(&mut hasher));
    let restarts = agent.restarts.values();
    restarts.for_each(|r| r.decides().hash(&mut hasher));
    let owned = agent.owned.values();
    owned.for_each(|o| o.decides().hash(&mut hasher));
    let kept = &agent.durable;
    let generations = (&kept.vm_generations, &kept.owner_generations);
    let known = (generations, &kept.wanted_off);
    let timing = (agent.timing().freeze, agent.timing().r#break);
    (known, timing, &agent.tasks).hash(&mut hasher);
    hasher.finish()
}
