//! The surroundings of the agent that is measured: hosts that send heartbeats and reports, datastores
//! in memory that answer at once, a guard and a hypervisor that do what they are asked.

use crate::meter::{Cost, Meter, live_bytes};
use mainstay_core::config::{ClusterConfig, DatastoreSpec, HostSpec, Profile, Settings, VmSpec};
use mainstay_core::id::{BootId, DatastoreId, Generation, Holder, HostId, InstanceId, Nonce, VmId};
use mainstay_core::io::{
    Durable, FoundState, FoundVm, GuardOutcome, HypervisorOutcome, Input, Output, PingOutcome,
    PingTarget, StorageOutcome, StorageRequest, StorageValue,
};
use mainstay_core::time::{Duration, Instant};
use mainstay_core::wire::{
    Desired, Envelope, HeartbeatRecord, HostReport, LockRecord, Message, PAGE_BYTES, Rank,
    RecordKey, ReportChanges, RoleTag, SessionId, Stamp, StartOutcome, StartResult, VmReport,
    VmReportState,
};
use mainstay_core::{Agent, Identity, provision};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What every answer of the surroundings takes.
const LATENCY: Duration = Duration::from_millis(10);
/// Inputs that come within so long are handed in together; shorter than [`LATENCY`], so that no answer
/// belongs into the stretch that asked for it.
const STRETCH: Duration = Duration::from_millis(5);
/// Datastores that a host other than the primary of a large cluster mounts.
const MOUNTS: u32 = 8;
const VMS_A_DATASTORE: u32 = 1_000;
const CLUSTER: u64 = 1;
/// A secondary that has nothing to say reports once in so many heartbeats.
const BEATS_A_REPORT: u64 = 8;

/// What the measured agent is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    Primary,
    Secondary,
}

/// What happened since the last look.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    pub(crate) core: Cost,
    pub(crate) codec: Cost,
    pub(crate) inputs: u64,
    /// Heartbeats written to datastores and read there.
    pub(crate) heartbeats: u64,
    /// Whatever else was asked of datastores.
    pub(crate) other_storage: u64,
}

/// Another host, played.
#[derive(Debug)]
struct Neighbour {
    spec: HostSpec,
    vms: BTreeMap<VmId, (VmSpec, Generation)>,
    next_beat: Instant,
    beats: u64,
    report_seq: u64,
    /// Messages that it has sent on its stream.
    sent: u64,
    /// Epoch and number of the last stream message that it got, to be acknowledged.
    got: (u64, u64),
    owes: bool,
    /// The next report is whole.
    whole: bool,
    lost: bool,
}

/// The agent and all around it.
#[derive(Debug)]
pub(crate) struct World<'a> {
    meter: &'a Meter,
    agent: Option<Agent>,
    me: HostId,
    part: Part,
    settings: Settings,
    now: Instant,
    queue: BTreeMap<(Instant, u64), Incoming>,
    sequence: u64,
    neighbours: BTreeMap<HostId, Neighbour>,
    disks: BTreeMap<DatastoreId, BTreeMap<RecordKey, Vec<u8>>>,
    own_vms: u32,
    /// VMs of a lost host that do not run again yet.
    missing: BTreeSet<VmId>,
    spent: Spent,
}

/// The start of every agent.
const INSTANCE: InstanceId = InstanceId(7);

/// An input on its way; messages travel as bytes.
#[derive(Debug)]
enum Incoming {
    Bytes(HostId, Vec<u8>),
    StreamBytes(HostId, Vec<u8>),
    Other(Input),
}

fn host(n: u32) -> HostId {
    HostId::new(&format!("host-{n:05}")).expect("a sound id")
}

fn datastore(n: u32) -> DatastoreId {
    DatastoreId::new(&format!("ds-{n:03}")).expect("a sound id")
}

/// The datastores that a host mounts: all in a small cluster; else those of its rack. The highest host
/// mounts all, and so becomes the primary.
fn mounts(n: u32, hosts: u32, datastores: u32) -> BTreeSet<DatastoreId> {
    if datastores <= MOUNTS || n == hosts {
        return (1..=datastores).map(datastore).collect();
    }
    let racks = datastores / MOUNTS;
    let first = (n % racks) * MOUNTS;
    (1..=MOUNTS).map(|d| datastore(first + d)).collect()
}

fn configuration(hosts: u32, vms: u32) -> (ClusterConfig, BTreeMap<VmId, HostId>) {
    let datastores = (vms / VMS_A_DATASTORE).next_multiple_of(MOUNTS).max(2);
    let datastores = if vms < 2 * VMS_A_DATASTORE {
        2
    } else {
        datastores
    };
    let host_specs: Vec<HostSpec> = (1..=hosts)
        .map(|n| HostSpec {
            id: host(n),
            cpu_mhz: 400_000,
            memory_mb: 1 << 20,
            datastores: mounts(n, hosts, datastores),
            maintenance: false,
            networks: Default::default(),
        })
        .collect();
    let stores: Vec<DatastoreSpec> = (1..=datastores)
        .map(|n| DatastoreSpec {
            id: datastore(n),
            kind: Default::default(),
            fence: Default::default(),
            server: None,
        })
        .collect();
    let mut places = BTreeMap::new();
    let mut vm_specs = Vec::new();
    for n in 1..=vms {
        let on = 1 + n % hosts;
        let mounted: Vec<DatastoreId> = mounts(on, hosts, datastores).into_iter().collect();
        let turn = usize::try_from(n / hosts).expect("small") % mounted.len();
        let id = VmId::new(&format!("vm-{n:06}")).expect("a sound id");
        places.insert(id.clone(), host(on));
        vm_specs.push(VmSpec {
            id,
            datastore: mounted.get(turn).expect("within").clone(),
            cpu_mhz: 1_000,
            memory_mb: 2_048,
            restart_priority: Default::default(),
            isolation_response: None,
            depends_on: Vec::new(),
            guest_agent: true,
        });
    }
    let settings = Settings::of(Profile::Balanced);
    let config = ClusterConfig::new(CLUSTER, settings, host_specs, stores, vm_specs, Vec::new())
        .expect("a sound configuration");
    (config, places)
}

impl<'a> World<'a> {
    /// A cluster in which every VM runs already, and the agent has just started.
    pub(crate) fn new(hosts: u32, vms: u32, part: Part, meter: &'a Meter) -> Self {
        let (config, places) = configuration(hosts, vms);
        let me = match part {
            Part::Primary => host(hosts),
            Part::Secondary => host(1),
        };
        let now = Instant::from_nanos(1_000_000_000);
        let beat = config.settings.timing.network_heartbeat;
        let neighbours: BTreeMap<HostId, Neighbour> = config
            .hosts
            .values()
            .enumerate()
            .filter(|(_, spec)| spec.id != me)
            .map(|(n, spec)| {
                let share = beat * u32::try_from(n).expect("few hosts") / hosts;
                let neighbour = Neighbour {
                    spec: spec.clone(),
                    vms: BTreeMap::new(),
                    next_beat: now + share,
                    // Their reports are spread as their starts were.
                    beats: u64::try_from(n).expect("few hosts"),
                    report_seq: 0,
                    sent: 0,
                    got: (0, 0),
                    owes: false,
                    whole: true,
                    lost: false,
                };
                (spec.id.clone(), neighbour)
            })
            .collect();
        let mut world = Self {
            meter,
            agent: None,
            me: me.clone(),
            part,
            settings: config.settings.clone(),
            now,
            queue: BTreeMap::new(),
            sequence: 0,
            neighbours,
            disks: BTreeMap::new(),
            own_vms: 0,
            missing: BTreeSet::new(),
            spent: Spent::default(),
        };
        let found = world.fill(&config, &places);
        let identity = Identity {
            host: me,
            boot: BootId(7),
            instance: INSTANCE,
            seed: 7,
        };
        let (agent, cost) =
            meter.measure(|| Agent::new(identity, config, Durable::default(), found, now));
        world.spent.core.add(cost);
        world.agent = Some(agent.expect("a sound start"));
        let outputs = world.drain();
        world.answer(outputs);
        world
    }

    /// Puts VMs on their hosts and their locks on the disks; gives the VMs of the own host.
    fn fill(&mut self, config: &ClusterConfig, places: &BTreeMap<VmId, HostId>) -> Vec<FoundVm> {
        for id in config.datastores.keys() {
            let mounted = config.hosts.values().filter(|h| h.datastores.contains(id));
            let records = provision::datastore_records(CLUSTER, &self.settings, mounted, &self.me);
            self.disks.insert(id.clone(), records.into_iter().collect());
        }
        let mut found = Vec::new();
        for spec in config.vms.values() {
            let place = places.get(&spec.id).expect("placed").clone();
            let generation = Generation(1);
            if place == self.me {
                found.push(FoundVm {
                    vm: spec.id.clone(),
                    state: FoundState::Running(generation),
                });
            } else if let Some(neighbour) = self.neighbours.get_mut(&place) {
                neighbour
                    .vms
                    .insert(spec.id.clone(), (spec.clone(), generation));
            }
            self.write_lock(spec, generation, &place);
        }
        self.own_vms = u32::try_from(found.len()).expect("few VMs");
        found
    }

    fn write_lock(&mut self, spec: &VmSpec, generation: Generation, on: &HostId) {
        let record = LockRecord {
            generation,
            nonce: Nonce(generation.0),
            holder: Some(Holder {
                host: on.clone(),
                boot: BootId(7),
            }),
            desired: Desired::On,
            given_back: None,
            freeze: self.settings.timing.freeze,
            r#break: self.settings.timing.r#break,
        };
        let bytes = record.encode(CLUSTER, &stamp(on, 1));
        if let Some(disk) = self.disks.get_mut(&spec.datastore) {
            disk.insert(RecordKey::VmLock(spec.id.clone(), generation), bytes);
        }
    }

    pub(crate) fn interval(&self) -> Duration {
        self.settings.timing.network_heartbeat
    }

    pub(crate) fn own_vms(&self) -> u32 {
        self.own_vms
    }

    /// What was spent since the last look.
    /// How many the host that is measured mounts.
    pub(crate) fn datastores(&self) -> usize {
        self.disks.len()
    }

    pub(crate) fn take_cost(&mut self) -> Spent {
        std::mem::take(&mut self.spent)
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.stretch();
        }
    }

    /// A host with VMs falls silent; gives how many it had.
    pub(crate) fn lose_host(&mut self) -> usize {
        let Some(lost) = self.neighbours.values_mut().next() else {
            return 0;
        };
        lost.lost = true;
        self.missing = std::mem::take(&mut lost.vms).into_keys().collect();
        self.missing.len()
    }

    /// Goes on until what the lost host ran runs again, for five minutes at most.
    pub(crate) fn run_until_restarted(&mut self) -> Duration {
        let from = self.now;
        while !self.missing.is_empty() && self.now.since(from) < Duration::from_secs(300) {
            self.stretch();
        }
        self.now.since(from)
    }

    /// Ends the world and says how many bytes of heap the agent had.
    pub(crate) fn drop_and_weigh(mut self) -> u64 {
        let agent = self.agent.take();
        drop(self);
        let before = live_bytes();
        drop(agent);
        before.saturating_sub(live_bytes())
    }

    /// One stretch of time: what comes in it is decoded, handed in and answered.
    fn stretch(&mut self) {
        let end = self.now + STRETCH;
        self.neighbours_speak(end);
        let later = self.queue.split_off(&(end, 0));
        let due = std::mem::replace(&mut self.queue, later);
        let wake = self.agent.as_ref().and_then(Agent::poll_timeout);
        if due.is_empty() && wake.is_none_or(|at| at >= end) {
            self.now = end;
            return;
        }
        self.spent.inputs += u64::try_from(due.len()).expect("few inputs");
        let bytes = due.values().any(|i| !matches!(i, Incoming::Other(_)));
        let decode = || {
            let decoded = due.into_iter().map(|((at, _), incoming)| match incoming {
                Incoming::Other(input) => (at, input),
                Incoming::Bytes(from, bytes) => {
                    let (_, message) = Message::decode(CLUSTER, &bytes).expect("sound");
                    (at, Input::Message { from, message })
                }
                Incoming::StreamBytes(from, bytes) => {
                    let (_, envelope) = Envelope::decode(CLUSTER, &bytes).expect("sound");
                    (at, Input::Stream { from, envelope })
                }
            });
            decoded.collect::<VecDeque<_>>()
        };
        let inputs = if bytes {
            let (inputs, cost) = self.meter.measure(decode);
            self.spent.codec.add(cost);
            inputs
        } else {
            decode()
        };
        let outputs = self.drive(inputs, end);
        self.now = end;
        self.encode(&outputs);
        self.answer(outputs);
    }

    /// Hands the inputs in at their times, and the timeouts between them.
    fn drive(
        &mut self,
        mut inputs: VecDeque<(Instant, Input)>,
        end: Instant,
    ) -> Vec<(Instant, Output)> {
        let Some(agent) = self.agent.as_mut() else {
            return Vec::new();
        };
        let mut outputs = Vec::with_capacity(1 << 16);
        let (_, cost) = self.meter.measure(|| {
            loop {
                let next = inputs.front().map(|(at, _)| *at);
                let wake = agent.poll_timeout().filter(|at| *at < end);
                let (at, input) = match (next, wake) {
                    (Some(at), Some(wake)) if wake < at => (wake, Input::Timeout),
                    (Some(_), _) => match inputs.pop_front() {
                        Some(input) => input,
                        None => break,
                    },
                    (None, Some(wake)) => (wake, Input::Timeout),
                    (None, None) => break,
                };
                agent.handle(at, input);
                while let Some(output) = agent.poll_output() {
                    outputs.push((at, output));
                }
            }
        });
        self.spent.core.add(cost);
        outputs
    }

    fn drain(&mut self) -> Vec<(Instant, Output)> {
        let mut outputs = Vec::new();
        while let Some(output) = self.agent.as_mut().and_then(Agent::poll_output) {
            outputs.push((self.now, output));
        }
        outputs
    }

    /// What the driver does with messages before they leave.
    fn encode(&mut self, outputs: &[(Instant, Output)]) {
        let is_message = |(_, o): &(Instant, Output)| {
            matches!(o, Output::Datagram { .. } | Output::Stream { .. })
        };
        if !outputs.iter().any(is_message) {
            return;
        }
        let stamp = stamp(&self.me, 1);
        let (_, cost) = self.meter.measure(|| {
            for (_, output) in outputs {
                if let Output::Datagram { message, .. } = output {
                    std::hint::black_box(message.encode(CLUSTER, &stamp));
                }
                if let Output::Stream { envelope, .. } = output {
                    std::hint::black_box(envelope.encode(CLUSTER, &stamp));
                }
            }
        });
        self.spent.codec.add(cost);
    }

    fn push(&mut self, at: Instant, incoming: Incoming) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), incoming);
    }

    fn push_on_stream(&mut self, at: Instant, from: HostId, message: Message) {
        let Some(neighbour) = self.neighbours.get_mut(&from) else {
            return;
        };
        neighbour.sent += 1;
        let session = SessionId {
            from: INSTANCE,
            to: INSTANCE,
            epoch: 1,
        };
        let envelope = Envelope {
            session,
            number: neighbour.sent,
            message,
        };
        let bytes = envelope.encode(CLUSTER, &stamp(&from, 1));
        self.push(at, Incoming::StreamBytes(from, bytes));
    }

    fn neighbours_speak(&mut self, end: Instant) {
        let interval = self.interval();
        let mut said: Vec<(Instant, HostId, Message)> = Vec::new();
        let primary = host(u32::try_from(self.neighbours.len()).expect("few") + 1);
        for (id, neighbour) in &mut self.neighbours {
            let leads = self.part == Part::Secondary && *id == primary;
            while neighbour.next_beat < end {
                let at = neighbour.next_beat;
                neighbour.next_beat += interval;
                neighbour.beats += 1;
                let silent = neighbour.lost || (self.part == Part::Secondary && !leads);
                if silent {
                    continue;
                }
                said.push((at, id.clone(), heartbeat(neighbour, leads, &primary)));
                if std::mem::take(&mut neighbour.owes) {
                    said.push((at, id.clone(), acknowledge(neighbour)));
                }
                if !leads
                    && (neighbour.report_seq == 0 || neighbour.beats.is_multiple_of(BEATS_A_REPORT))
                {
                    said.push((at, id.clone(), report(neighbour, &[])));
                }
            }
        }
        for (at, from, message) in said {
            if matches!(message, Message::Report(_) | Message::Changes(_)) {
                self.push_on_stream(at, from, message);
            } else {
                let bytes = message.encode(CLUSTER, &stamp(&from, 1));
                self.push(at, Incoming::Bytes(from, bytes));
            }
        }
    }

    /// Does what the agent asked for.
    fn answer(&mut self, outputs: Vec<(Instant, Output)>) {
        for (at, output) in outputs {
            let at = at + LATENCY;
            let input = match output {
                Output::Storage(op, on, request) => {
                    match &request {
                        StorageRequest::Read(RecordKey::Heartbeat(_))
                        | StorageRequest::Renew(..) => self.spent.heartbeats += 1,
                        _ => self.spent.other_storage += 1,
                    }
                    let value = self.perform(&on, request, at);
                    Input::Storage(op, StorageOutcome::Ok(value))
                }
                Output::Guard(op, _) => Input::Guard(op, GuardOutcome::Done),
                Output::Hypervisor(op, _) => Input::Hypervisor(op, HypervisorOutcome::Done),
                Output::Persist(op, _) | Output::PersistConfig(op, _) => Input::Persisted(op, true),
                Output::Proposed(..) | Output::Drill(..) | Output::Fence(..) => continue,
                Output::Ping(op, PingTarget::Host(host)) => {
                    let lost = self.neighbours.get(&host).is_some_and(|n| n.lost);
                    let outcome = if lost {
                        PingOutcome::NoAnswer
                    } else {
                        PingOutcome::Answered
                    };
                    Input::Pinged(op, outcome)
                }
                Output::Ping(op, PingTarget::Isolation(_)) => {
                    Input::Pinged(op, PingOutcome::Answered)
                }
                Output::Datagram { .. } => continue,
                Output::Stream { to, envelope } => {
                    if let Some(neighbour) = self.neighbours.get_mut(&to).filter(|n| !n.lost) {
                        neighbour.got = (envelope.session.epoch, envelope.number);
                        neighbour.owes = true;
                    }
                    self.on_message(at, &to, envelope.message);
                    continue;
                }
                Output::Event(event) => {
                    if let mainstay_core::event::EventKind::VmStarted { vm, .. } = event.kind {
                        self.missing.remove(&vm);
                    }
                    continue;
                }
            };
            self.push(at, Incoming::Other(input));
        }
    }

    /// A neighbour starts what it is asked to start, and says so after its report.
    fn on_message(&mut self, at: Instant, to: &HostId, message: Message) {
        let order = match message {
            Message::Start(order) => order,
            Message::ReportWanted => {
                if let Some(neighbour) = self.neighbours.get_mut(to).filter(|n| !n.lost) {
                    neighbour.whole = true;
                    let message = report(neighbour, &[]);
                    self.push_on_stream(at, to.clone(), message);
                }
                return;
            }
            _ => return,
        };
        let generation = order.expected.next();
        self.write_lock(&order.spec, generation, to);
        let Some(neighbour) = self.neighbours.get_mut(to).filter(|n| !n.lost) else {
            return;
        };
        self.missing.remove(&order.spec.id);
        let vm = order.spec.id.clone();
        neighbour.vms.insert(vm.clone(), (order.spec, generation));
        let news = report(neighbour, std::slice::from_ref(&vm));
        let result = Message::Started(StartResult {
            order: order.order,
            vm,
            outcome: StartOutcome::Started(generation),
        });
        for message in [news, result] {
            self.push_on_stream(at, to.clone(), message);
        }
    }

    fn perform(&mut self, on: &DatastoreId, request: StorageRequest, at: Instant) -> StorageValue {
        let beat = self.settings.timing.datastore_heartbeat;
        let Some(disk) = self.disks.get_mut(on) else {
            return StorageValue::NotFound;
        };
        let keys = |disk: &BTreeMap<RecordKey, Vec<u8>>, is: &dyn Fn(&RecordKey) -> bool| {
            StorageValue::Keys(disk.keys().filter(|k| is(k)).cloned().collect())
        };
        match request {
            StorageRequest::Read(RecordKey::Heartbeat(of)) if of != self.me => {
                // Written by its host at its own beat.
                let seq = at.as_nanos() / u64::try_from(beat.as_nanos()).expect("short");
                let lost = self.neighbours.get(&of).is_some_and(|n| n.lost);
                let seq = if lost { 0 } else { seq };
                let record = HeartbeatRecord {
                    freeze: self.settings.timing.freeze,
                    r#break: self.settings.timing.r#break,
                };
                StorageValue::Bytes(record.encode(CLUSTER, &stamp(&of, seq)))
            }
            StorageRequest::Read(key) => disk
                .get(&key)
                .map_or(StorageValue::NotFound, |b| StorageValue::Bytes(b.clone())),
            StorageRequest::Renew(key, bytes) | StorageRequest::Put(key, bytes) => {
                disk.insert(key, bytes);
                StorageValue::Done
            }
            StorageRequest::PutPages(key, pages) => match disk.get_mut(&key) {
                Some(record) => {
                    for (page, bytes) in pages {
                        let at = usize::try_from(page).expect("small") * PAGE_BYTES;
                        record.resize(record.len().max(at + PAGE_BYTES), 0);
                        record.splice(at..at + PAGE_BYTES, bytes);
                    }
                    StorageValue::Done
                }
                None => StorageValue::NotFound,
            },
            StorageRequest::Link(key, bytes) => {
                if disk.contains_key(&key) {
                    return StorageValue::Exists;
                }
                disk.insert(key, bytes);
                StorageValue::Done
            }
            StorageRequest::Remove(key) => {
                disk.remove(&key);
                StorageValue::Done
            }
            StorageRequest::ListVmLock(vm) => {
                let range = RecordKey::VmLock(vm.clone(), Generation(0))
                    ..=RecordKey::VmLock(vm, Generation(u64::MAX));
                StorageValue::Keys(disk.range(range).map(|(k, _)| k.clone()).collect())
            }
            StorageRequest::ListAllVmLocks => keys(disk, &|k| matches!(k, RecordKey::VmLock(..))),
            StorageRequest::ListOwnerLock => keys(disk, &|k| matches!(k, RecordKey::OwnerLock(_))),
            StorageRequest::ProbeLock(_) => StorageValue::Held(true),
            StorageRequest::ListConfig => keys(disk, &|k| matches!(k, RecordKey::Config(..))),
            StorageRequest::ListProtected => keys(disk, &|k| matches!(k, RecordKey::Protected(..))),
        }
    }
}

fn stamp(writer: &HostId, seq: u64) -> Stamp {
    Stamp {
        writer: writer.clone(),
        boot: BootId(7),
        instance: INSTANCE,
        seq,
    }
}

fn acknowledge(neighbour: &Neighbour) -> Message {
    let (epoch, up_to) = neighbour.got;
    Message::Acknowledge {
        instance: INSTANCE,
        of: Some(INSTANCE),
        epoch,
        up_to,
        again: false,
    }
}

fn heartbeat(neighbour: &Neighbour, leads: bool, primary: &HostId) -> Message {
    Message::Heartbeat {
        role: if leads {
            RoleTag::Primary
        } else {
            RoleTag::Secondary
        },
        rank: Rank {
            datastores: u32::try_from(neighbour.spec.datastores.len()).expect("few"),
            host: neighbour.spec.id.clone(),
        },
        primary: Some(primary.clone()),
        instance: INSTANCE,
    }
}

/// What a secondary says to its primary about itself: all at first, then what changed.
fn report(neighbour: &mut Neighbour, changed: &[VmId]) -> Message {
    neighbour.report_seq += 1;
    let entry = |(spec, generation): &(VmSpec, Generation)| VmReport {
        spec: spec.clone(),
        generation: *generation,
        state: VmReportState::Running,
    };
    let whole = std::mem::take(&mut neighbour.whole);
    let (seq, spec) = (neighbour.report_seq, &neighbour.spec);
    let (cpu_mhz, memory_mb) = (spec.cpu_mhz, spec.memory_mb);
    if whole {
        return Message::Report(HostReport {
            seq,
            cpu_mhz,
            memory_mb,
            datastores: spec.datastores.iter().cloned().collect(),
            vms: neighbour.vms.values().map(entry).collect(),
        });
    }
    let changed = changed.iter().filter_map(|vm| neighbour.vms.get(vm));
    Message::Changes(ReportChanges {
        seq,
        cpu_mhz,
        memory_mb,
        datastores: None,
        vms: changed.map(entry).collect(),
        gone: Vec::new(),
    })
}
