//! Hosts around one datastore and one VM, for the models of the right to run and of ownership: real agents of
//! which only the rooms in question are run, over a datastore, a guard and a hypervisor of a few lines.
//!
//! Time goes in ticks. Heartbeats, links and messages are on their way for as long as the exploration likes: that
//! an operation lands and that it is acknowledged are two steps, and one that was given up may land later. All
//! other operations are performed at once: the steps of a swap are the business of the model `chain`. The guard
//! takes all the time that its latency gives it.
//!
//! Here: what hosts and world are, how they begin, and how a state is judged. What answers the agents is in
//! [`surroundings`], what can happen next in [`explore`].

mod explore;
mod power;
mod print;
mod surroundings;

pub(super) use explore::Explored;
pub(super) use power::Device;

use crate::agent::{Agent, Command, Identity};
use crate::config::{ClusterConfig, DatastoreSpec, FenceClass, HostSpec, Settings, VmSpec};
use crate::election::Role;
use crate::event::HostState;
use crate::guard::Word;
use crate::id::{BootId, DatastoreId, Generation, HostId, InstanceId, OpId, VmId};
use crate::io::{Durable, FoundVm, Input, StorageOutcome, StorageRequest};
use crate::provision::{datastore_records, vm_record};
use crate::restart::{Restart, Step};
use crate::time::{Duration, Instant};
use crate::wire::{ProtectedVm, Rank, RecordKey};
use power::Question;
use print::{Kept, Prints};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::vec::Vec;
use std::{format, vec};

const CLUSTER: u64 = 1;
/// Ticks before the exploration begins: the agents have settled.
const BEFORE: u64 = 100;
/// The primary that owns the datastore in the beginning.
const FIRST: usize = 1;

/// What a host is there for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// It runs the VM, and follows that host. Its heartbeat comes when the exploration likes.
    Runs(usize),
    /// A primary whose heartbeat comes each tick.
    Steady,
    /// A primary whose heartbeat comes when the exploration likes.
    Leads,
    /// A primary that answers, may step down, and does nothing else.
    Answers,
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
    /// Of those, the VM's host's alone.
    pub(super) only_its_own: bool,
    /// Heartbeats of others are read and acknowledged in steps.
    pub(super) late_reads: bool,
    /// Ticks for which a message may be on its way; 0: none is sent.
    pub(super) mail: u64,
    /// The clock of the VM's host loses one tick of so many; 0: none.
    pub(super) slow: u64,
    /// With one, the VM's lock is broken by the power of its host alone.
    pub(super) device: Device,
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
    /// The datastore is put back to what it was in the beginning.
    pub(super) restores: u8,
    /// The VM's host becomes a primary, or follows the first primary again.
    pub(super) roles: u8,
    /// The first primary steps down, and gives its owner lock back.
    pub(super) steps_down: u8,
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

type Disk = BTreeMap<RecordKey, Arc<Kept>>;

#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) now: u64,
    pub(super) nodes: Vec<Arc<Node>>,
    prints: Vec<u64>,
    /// Hosts that did something since they were last looked at.
    changed: BTreeSet<usize>,
    disk: Disk,
    /// What it was in the beginning.
    snapshot: Arc<Disk>,
    /// As in the bounds.
    slow: u64,
    /// What the reads of a host show that come from a cache.
    cached: Vec<Option<Arc<Disk>>>,
    ops: Vec<Op>,
    questions: Vec<Question>,
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
    /// The VM's host and an owner, where nothing is late and nothing fails.
    pub(super) fn calm() -> Self {
        Self {
            parts: vec![Part::Runs(FIRST), Part::Steady],
            ticks: 0,
            freeze: 2,
            r#break: 2,
            guard: 0,
            late_beats: false,
            late_links: false,
            only_its_own: false,
            late_reads: false,
            mail: 0,
            slow: 0,
            device: Device::None,
            budget: Budget::default(),
            no_freeze: false,
            #[cfg(feature = "planted")]
            bug: None,
        }
    }

    fn config(&self) -> ClusterConfig {
        let by_power = self.device != Device::None;
        let settings = Settings {
            accept_late_writes: !by_power,
            fence_timeout: ticks(8),
            fence_retry: ticks(1),
            fence_boot_time: ticks(1),
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
            fence: match by_power {
                true => FenceClass::Open,
                false => FenceClass::Enforced,
            },
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
        now: Instant,
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
        let mut agent = Agent::new(me, config, durable, found, now).expect("an agent");
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
            peer.heard = company.then_some(at(1_000_000));
        }
        agent.role = match self.parts[n] {
            Part::Runs(primary) => follows(primary),
            Part::Steady | Part::Leads | Part::Answers => leads(),
        };
        if self.device != Device::None && agent.role.is_primary() {
            agent.set_fence_devices([id(0)].into());
        }
        agent
    }
}

fn leads() -> Role {
    Role::Primary {
        restarts_from: at(0),
    }
}

/// A secondary whose primary is heard for ever.
fn follows(primary: usize) -> Role {
    Role::Secondary {
        primary: id(primary),
        rank: Rank {
            datastores: 1,
            host: id(primary),
        },
        heard: at(1_000_000),
        silent_at: at(1_000_000),
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
                agent: bounds.agent(who, Durable::default(), Vec::new(), at(1)),
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
            disk: disk.map(|(k, v)| (k, Arc::new(Kept::new(v)))).collect(),
            snapshot: Arc::default(),
            slow: bounds.slow,
            cached: vec![None; count],
            ops: Vec::new(),
            questions: Vec::new(),
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
            device: Device::None,
            no_freeze: false,
            ..bounds.clone()
        };
        while world.now < BEFORE {
            world.tick(&calm);
            for n in 0..count {
                world.drive(&calm, n, 2, |a| a.renew(&datastore(), ticks(1)));
                if n > 0 {
                    world.drive(&calm, n, 3, |a| a.observe(&datastore(), ticks(1)));
                }
            }
            world.drive(&calm, FIRST, 5, Agent::run_ownership);
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
        assert!(world.acts(FIRST), "it owns");
        world.protect(FIRST);
        world.renewed = (0..count).collect();
        world.observed.clear();
        world.lived = world.runs(0).into_iter().collect();
        world.reached.clear();
        world.budget = bounds.budget;
        world.snapshot = Arc::new(world.disk.clone());
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

    /// What the clock of a host shows.
    fn clock(&self, n: usize) -> Instant {
        let explored = self.now.saturating_sub(BEFORE);
        let lost = explored.checked_div(self.slow).filter(|_| n == 0);
        at(self.now - lost.unwrap_or(0))
    }

    fn leads(&self, n: usize) -> bool {
        self.nodes[n].agent.role.is_primary()
    }

    fn acts(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let mut right = node.agent.acting(&datastore()).is_some();
        // As of now, not as of the agent's last input.
        if let Some(store) = node.agent.stores.get(&datastore()) {
            right &= store.right.valid(self.clock(n));
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
        let (now, clock) = (self.now, self.clock(n));
        let repeated = self.numbered.entry((n, kind)).or_default();
        *repeated += 1;
        let numbers = ((now * 100 + kind) * 20 + *repeated) * 1000;
        let agent = &mut Arc::make_mut(&mut self.nodes[n]).agent;
        agent.model_at(clock, numbers);
        what(agent);
        agent.run_modelled();
        self.carry_out(bounds, n);
    }

    fn input(&mut self, n: usize, input: Input) {
        let agent = &mut Arc::make_mut(&mut self.nodes[n]).agent;
        agent.take(input);
        agent.run_modelled();
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
        let mut hasher = Prints::default();
        (self.now, &self.prints, &self.disk, &self.cached).hash(&mut hasher);
        (&self.ops, &self.mail, &self.renewed, &self.observed).hash(&mut hasher);
        self.questions.hash(&mut hasher);
        (&self.looked, &self.acted).hash(&mut hasher);
        (&self.budget, &self.lived, self.broken, &self.reached).hash(&mut hasher);
        self.print = hasher.finish();
    }
}

/// What decides, of a host. What it waits for follows from the operations that are under way, whose numbers
/// tell when they were asked for.
fn print_of(node: &Node) -> u64 {
    let mut hasher = Prints::default();
    let agent = &node.agent;
    let me = (agent.me.boot, agent.me.instance);
    (node.guest, node.word.0, node.off, me).hash(&mut hasher);
    (agent.role.is_primary(), &agent.fencing).hash(&mut hasher);
    let peers = agent.peers.values();
    peers.for_each(|p| p.state.hash(&mut hasher));
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
