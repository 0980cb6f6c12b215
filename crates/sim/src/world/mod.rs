//! The world: hosts, networks, datastores, guests and clocks in virtual time.

mod component;
mod config;
mod disk;
mod drill;
mod driver;
mod faults;
mod fence;
mod guard;
mod guest;
mod instances;
mod isolation;
mod judge;
mod list;
mod net;
mod operation;
mod paths;
mod settle;
mod stream;
#[cfg(test)]
mod tests;

use crate::arena::Arena;
use crate::clock::{Clock, MS, Nanos, SECOND};
use crate::expect::{Verdict, Watch};
use crate::invariants::{Judge, Labels, Violation};
use crate::scenario::{Names, Scenario};
use crate::trace::{Body, Entry};
use config::Wish;
use disk::{Disk, Write};
use driver::Kept;
use fence::Device;
use guard::Words;
use guest::Vm;
use instances::Instances;
use isolation::Response;
use judge::Shown;
use mainstay_core::Agent;
use mainstay_core::config::ClusterConfig;
use mainstay_core::event::EventKind;
use mainstay_core::guard::Guard;
use mainstay_core::id::{BootId, DatastoreId, HostId, OpId, VmId};
use mainstay_core::io::{Durable, ExitCause, FenceRequest, Input};
use mainstay_core::rng::Rng;
use mainstay_core::time::{Duration, Instant};
use mainstay_core::wire::RoleTag;
use net::{Network, Parcel};
use operation::Op;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

/// How to run a scenario.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Stop at the first violation.
    pub stop_at_violation: bool,
    /// A bug to plant into every agent, or into the guard.
    #[cfg(feature = "planted")]
    pub bug: Option<mainstay_core::planted::Bug>,
}

impl Options {
    /// Stops at the first violation, which is enough to call a seed bad.
    #[must_use]
    pub fn until_violation() -> Self {
        Self {
            stop_at_violation: true,
            #[cfg(feature = "planted")]
            bug: None,
        }
    }
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct RunResult {
    /// Everything that happened.
    pub trace: Vec<Entry>,
    /// True time of zero.
    pub zero: Nanos,
    /// The expectations.
    pub verdicts: Vec<Verdict>,
    /// Properties that did not hold.
    pub violations: Vec<Violation>,
    /// Why the run came to no end, if it did not.
    pub error: Option<String>,
    /// The hosts at the end, for people.
    pub hosts: Vec<String>,
    /// Virtual time after zero.
    pub virtual_time: Nanos,
    /// Events that the world played.
    pub steps: u64,
}

impl RunResult {
    /// All expectations hold, nothing was violated, and the run came to its end.
    #[must_use]
    pub fn pass(&self) -> bool {
        self.error.is_none() && self.violations.is_empty() && self.verdicts.iter().all(|v| v.pass)
    }
}

/// Something that will happen.
#[derive(Debug)]
enum Happening {
    AgentTimer {
        host: usize,
    },
    Deliver {
        from: usize,
        to: usize,
        parcel: Parcel,
        run: u64,
    },
    StreamMoves {
        from: usize,
        to: usize,
    },
    Input {
        host: usize,
        run: u64,
        input: Box<Input>,
    },
    Persist {
        host: usize,
        boot: u64,
        run: u64,
        op: OpId,
        kept: Kept,
    },
    Effect {
        op: usize,
        serial: u64,
    },
    Ack {
        op: usize,
        serial: u64,
    },
    GuardWake {
        host: usize,
    },
    GuardAct {
        host: usize,
        run: u64,
        vm: usize,
        what: guard::Act,
    },
    GuestTick {
        instance: usize,
        life: u64,
    },
    GuestLand {
        write: Box<Write>,
    },
    OpenImage {
        instance: usize,
    },
    Prepared {
        instance: usize,
    },
    FirstRun {
        instance: usize,
        op: OpId,
        run: u64,
    },
    Exit {
        instance: usize,
        cause: ExitCause,
    },
    Boot {
        host: usize,
        boot: u64,
    },
    AgentStart {
        host: usize,
        boot: u64,
    },
    GuardStart {
        host: usize,
        boot: u64,
    },
    HostStops {
        host: usize,
        boot: u64,
        reboot: bool,
    },
    /// A fence device does what it was told; who waits for its answer.
    Fence {
        asked: Option<(usize, u64, OpId)>,
        target: usize,
        request: FenceRequest,
    },
    DropImageLocks {
        host: usize,
        disk: usize,
        lost: u64,
    },
    Recheck {
        vm: usize,
    },
    Propose {
        wish: Box<Wish>,
    },
    PowerOn {
        vm: usize,
        host: Option<usize>,
        tries: u32,
    },
    Settle,
    Fault {
        index: usize,
    },
    Moment {
        index: usize,
    },
    Demand,
    End,
}

#[derive(Debug)]
struct Queued {
    at: Nanos,
    seq: u64,
    what: Happening,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.seq) == (other.at, other.seq)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    /// The earliest is the greatest: `BinaryHeap` gives the greatest first.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.seq).cmp(&(self.at, self.seq))
    }
}

/// A host and the processes on it.
#[derive(Debug)]
struct Host {
    id: HostId,
    mounts: Vec<bool>,
    clock: Clock,
    powered: bool,
    /// From then on its operating system answers pings.
    pings_from: Nanos,
    paused: bool,
    /// Counts power-offs and boots: what was planned in an earlier boot does not happen.
    boot: u64,
    boot_id: BootId,
    agent: Option<Box<Agent>>,
    agent_run: u64,
    agent_hung: bool,
    /// Its agent is silent, in a drill.
    drilled: bool,
    /// Waits for the operations of its predecessor to end.
    agent_waits: bool,
    inbox: VecDeque<Input>,
    timer: Option<Nanos>,
    guard: Option<Guard>,
    guard_run: u64,
    guard_hung: bool,
    guard_wake: Option<Nanos>,
    guard_poke: bool,
    guard_busy: Nanos,
    words: Words,
    /// In the same memory: the limit that its agent last named.
    frozen_limit: Option<Duration>,
    /// The VMs whose rights were last extended on each datastore, with their places in the words.
    extended: BTreeMap<usize, Vec<(VmId, usize)>>,
    /// Until then the guard has not had its time since it was dead, hung or paused.
    doubt_until: Nanos,
    durable: Durable,
    /// What its agent has asked to keep is kept then.
    keeps_until: Nanos,
    /// The configuration on its local disk, if it changed.
    config: Option<Box<ClusterConfig>>,
    /// That configuration has it in maintenance since then.
    resting_since: Option<Nanos>,
    /// Its operating system is being shut down, and comes back if so.
    shutting: Option<bool>,
    /// Its agent is being restarted on purpose, and will be away for so long.
    restarting: Option<(Nanos, Option<u16>)>,
    /// The newest format version that its agent understands.
    formats: u16,
    /// What this start of its agent has seen of others' agents, by host.
    seen_formats: BTreeMap<usize, u16>,
    /// Changes that were asked for at its agent, by ticket.
    wishes: BTreeMap<u64, Wish>,
    in_flight: usize,
    deferred: Vec<Happening>,
    start_fails: u64,
    lost: Vec<u64>,
    role: Option<(RoleTag, Nanos)>,
    /// Its agent says that it is isolated: since when, and from when on it may stop VMs, on its clock.
    isolated: Option<(Instant, Instant)>,
    /// How its agent has answered its isolation, for each VM since it last started here.
    responses: BTreeMap<usize, Response>,
    /// VMs that its agent stops because their storage is lost here, since they last started.
    storage_stops: BTreeSet<usize>,
    /// Its agent, or what connects it with others, was last disturbed then.
    unrest: Nanos,
    /// When a message of another host, or the answer of an isolation address, last reached its agent.
    reached: Nanos,
    /// Pings that an isolation address has answered, on their way back.
    gateway_pings: BTreeSet<OpId>,
}

impl Host {
    fn up(&self) -> bool {
        self.powered && !self.paused
    }

    fn answers_pings(&self, now: Nanos) -> bool {
        self.up() && now >= self.pings_from
    }

    fn agent_listens(&self) -> bool {
        self.up() && self.agent.is_some() && !self.agent_hung
    }

    fn guard_works(&self) -> bool {
        self.guard.is_some() && !self.guard_hung
    }
}

#[derive(Debug)]
struct Dice {
    net: Rng,
    disk: Rng,
    tear: Rng,
    guard: Rng,
    guest: Rng,
    life: Rng,
    codec: Rng,
}

/// A run in progress.
#[derive(Debug)]
struct World<'s> {
    scenario: &'s Scenario,
    names: Names,
    options: Options,
    now: Nanos,
    zero: Option<Nanos>,
    heap: BinaryHeap<Queued>,
    seq: u64,
    steps: u64,
    dice: Dice,
    hosts: Arena<Host>,
    vms: Arena<Vm>,
    disks: Arena<Disk>,
    /// The fence devices, by host.
    devices: BTreeMap<usize, Device>,
    instances: Instances,
    ops: Arena<Option<Op>>,
    /// Renewals whose effect may be still to come, for each host and datastore.
    renewals: BTreeMap<(usize, usize), Vec<usize>>,
    /// The powered-on lists that hosts have written, for each host and datastore.
    shown: BTreeMap<(usize, usize), Shown>,
    free_ops: Vec<usize>,
    net: Network,
    host_index: BTreeMap<HostId, usize>,
    vm_index: BTreeMap<VmId, usize>,
    disk_index: BTreeMap<DatastoreId, usize>,
    judge: Judge,
    watch: Watch,
    trace: Vec<Entry>,
    error: Option<String>,
    ended: bool,
    first_primary: Option<Nanos>,
}

/// Plays a scenario from the start of all hosts to its end.
#[must_use]
pub fn run(scenario: &Scenario, options: &Options) -> RunResult {
    let mut world = World::new(scenario, options.clone());
    world.start();
    world.play();
    world.finish()
}

impl<'s> World<'s> {
    fn new(scenario: &'s Scenario, options: Options) -> Self {
        let root = Rng::new(scenario.seed);
        let dice = Dice {
            net: root.fork("network"),
            disk: root.fork("storage"),
            tear: root.fork("tear"),
            guard: root.fork("guard"),
            guest: root.fork("guest"),
            life: root.fork("life"),
            codec: root.fork("codec"),
        };
        let names = scenario.names();
        let labels = Labels {
            hosts: names.hosts.clone(),
            vms: names.vms.clone(),
            datastores: names.datastores.clone(),
        };
        let index = |n: usize| 0..n;
        Self {
            scenario,
            names,
            options,
            now: 0,
            zero: None,
            heap: BinaryHeap::new(),
            seq: 0,
            steps: 0,
            dice,
            hosts: Arena::default(),
            vms: Arena::default(),
            disks: Arena::default(),
            devices: BTreeMap::new(),
            instances: Instances::new(scenario.vms.len(), scenario.hosts.len()),
            ops: Arena::default(),
            renewals: BTreeMap::new(),
            shown: BTreeMap::new(),
            free_ops: Vec::new(),
            net: Network::new(scenario),
            host_index: scenario
                .hosts
                .iter()
                .map(|h| h.id.clone())
                .zip(index(scenario.hosts.len()))
                .collect(),
            vm_index: scenario
                .vms
                .iter()
                .map(|v| v.id.clone())
                .zip(index(scenario.vms.len()))
                .collect(),
            disk_index: scenario
                .datastores
                .iter()
                .map(|d| d.id.clone())
                .zip(index(scenario.datastores.len()))
                .collect(),
            judge: Judge::new(labels),
            watch: Watch::new(&scenario.expects),
            trace: Vec::new(),
            error: None,
            ended: false,
            first_primary: None,
        }
    }

    fn at(&mut self, at: Nanos, what: Happening) {
        self.seq += 1;
        self.heap.push(Queued {
            at: at.max(self.now),
            seq: self.seq,
            what,
        });
    }

    fn after(&mut self, wait: Nanos, what: Happening) {
        self.at(self.now.saturating_add(wait), what);
    }

    fn play(&mut self) {
        let mut at_once = 0_u32;
        while let Some(next) = self.heap.pop() {
            at_once = if next.at > self.now { 0 } else { at_once + 1 };
            if at_once > AT_ONCE_LIMIT {
                self.error = Some(format!(
                    "time stands still: {:?} again and again",
                    next.what
                ));
                break;
            }
            self.now = next.at;
            self.steps += 1;
            self.dispatch(next.what);
            let stop = self.options.stop_at_violation && !self.judge.violations.is_empty();
            if self.ended || stop {
                break;
            }
        }
    }

    /// What belongs to a paused host waits until it goes on.
    fn sleeper(&self, what: &Happening) -> Option<usize> {
        let host = match what {
            Happening::AgentTimer { host }
            | Happening::Input { host, .. }
            | Happening::Persist { host, .. }
            | Happening::GuardWake { host }
            | Happening::GuardAct { host, .. }
            | Happening::Boot { host, .. }
            | Happening::AgentStart { host, .. }
            | Happening::GuardStart { host, .. }
            | Happening::HostStops { host, .. } => *host,
            Happening::GuestTick { instance, .. }
            | Happening::OpenImage { instance }
            | Happening::Prepared { instance }
            | Happening::FirstRun { instance, .. }
            | Happening::Exit { instance, .. } => self.instances[*instance].host,
            _ => return None,
        };
        (self.hosts[host].powered && self.hosts[host].paused).then_some(host)
    }

    fn dispatch(&mut self, what: Happening) {
        if let Some(host) = self.sleeper(&what) {
            self.hosts[host].deferred.push(what);
            return;
        }
        match what {
            Happening::AgentTimer { host } => self.agent_timer(host),
            Happening::Deliver {
                from,
                to,
                parcel,
                run,
            } => self.deliver(from, to, parcel, run),
            Happening::StreamMoves { from, to } => self.stream_moves(from, to),
            Happening::Input { host, run, input } => {
                if self.hosts[host].agent_run == run {
                    self.feed(host, *input);
                }
            }
            Happening::Persist {
                host,
                boot,
                run,
                op,
                kept,
            } => self.persisted(host, boot, run, op, kept),
            Happening::Propose { wish } => self.propose(*wish),
            Happening::PowerOn { vm, host, tries } => self.power_on_new(vm, host, tries),
            Happening::Effect { op, serial } => self.storage_effect(op, serial),
            Happening::Ack { op, serial } => self.storage_ack(op, serial),
            Happening::GuardWake { host } => self.guard_wake(host),
            Happening::GuardAct {
                host,
                run,
                vm,
                what,
            } => self.guard_act(host, run, vm, what),
            Happening::GuestTick { instance, life } => self.guest_tick(instance, life),
            Happening::GuestLand { write } => self.guest_land(*write),
            Happening::OpenImage { instance } => self.open_image(instance),
            Happening::Prepared { instance } => self.prepared(instance),
            Happening::FirstRun { instance, op, run } => self.first_run(instance, op, run),
            Happening::Exit { instance, cause } => self.exit(instance, cause),
            Happening::Boot { host, boot } => self.boot(host, boot),
            Happening::AgentStart { host, boot } => self.agent_start(host, boot),
            Happening::GuardStart { host, boot } => self.guard_start(host, boot),
            Happening::HostStops { host, boot, reboot } => self.host_stops(host, boot, reboot),
            Happening::Fence {
                asked,
                target,
                request,
            } => self.device_acts(asked, target, request),
            Happening::DropImageLocks { host, disk, lost } => {
                self.drop_image_locks(host, disk, lost)
            }
            Happening::Recheck { vm } => self.vm_changed(vm),
            Happening::Settle => self.settle(),
            Happening::Fault { index } => self.planned(index),
            Happening::Moment { index } => self.moment(index),
            Happening::Demand => self.demand(),
            Happening::End => self.ended = true,
        }
    }

    fn log(&mut self, kind: EventKind, why: impl Into<String>) {
        self.trace.push(Entry {
            at: self.now,
            body: Body::Event(kind),
            why: why.into(),
        });
    }

    /// Weather applies from zero until it calms down.
    fn stormy(&self) -> bool {
        let until = self.scenario.weather.until_ms;
        self.zero
            .is_some_and(|zero| self.now >= zero && (until == 0 || self.now < zero + until * MS))
    }

    fn finish(self) -> RunResult {
        let zero = self.zero.unwrap_or(self.now);
        let verdicts = self.watch.judge(&self.scenario.expects, &self.trace, zero);
        let mut hosts = self.host_table();
        hosts.extend(self.disk_table());
        RunResult {
            verdicts,
            violations: self.judge.violations,
            error: self.error,
            hosts,
            virtual_time: self.now.saturating_sub(zero),
            steps: self.steps,
            zero,
            trace: self.trace,
        }
    }

    fn host_table(&self) -> Vec<String> {
        self.hosts
            .iter()
            .enumerate()
            .map(|(index, host)| {
                let power = match (host.powered, host.paused) {
                    (false, _) => "off",
                    (true, true) => "paused",
                    (true, false) => "on",
                };
                let process = |alive: bool, hung: bool| match (alive, hung) {
                    (false, _) => "dead",
                    (true, true) => "hung",
                    (true, false) => "runs",
                };
                let role = match host.role {
                    Some((RoleTag::Primary, _)) => "primary",
                    Some((RoleTag::Secondary, _)) => "secondary",
                    Some((RoleTag::Electing, _)) => "electing",
                    None => "-",
                };
                let vms: Vec<String> = self
                    .instances
                    .living_on(index)
                    .map(|(_, i)| format!("{}@{}{}", self.vms[i.vm].id, i.generation, i.mark()))
                    .collect();
                format!(
                    "{:<10} power {power:<6} agent {:<4} guard {:<4} {role:<9} clock {:+} ppm  {}",
                    host.id.as_str(),
                    process(host.agent.is_some(), host.agent_hung || host.drilled),
                    process(host.guard.is_some(), host.guard_hung),
                    host.clock.ppm(),
                    vms.join(" ")
                )
            })
            .collect()
    }
}

/// Events at one moment after which the run is called stuck.
const AT_ONCE_LIMIT: u32 = 100_000;
/// Longest time that a cluster may take to settle before zero.
const SETTLE_LIMIT: Nanos = 600 * SECOND;
