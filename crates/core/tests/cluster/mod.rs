//! A small cluster around real agents: perfect network, storage in memory, guests that only exist.
//! For behaviour tests with explicit times; everything that goes wrong is the simulator's business.

use mainstay_core::config::{
    Change, ClusterConfig, DatastoreSpec, HostSpec, Profile, Settings, VmSpec,
};
use mainstay_core::drill::Answer;
use mainstay_core::event::{Event, EventKind};
use mainstay_core::id::{BootId, DatastoreId, HostId, InstanceId, OpId, VmId};
use mainstay_core::io::{
    Durable, ExitCause, FenceOutcome, GuardOutcome, GuardRequest, HypervisorOutcome,
    HypervisorRequest, Input, IoFault, Output, PingOutcome, PingTarget, StorageOutcome,
    StorageRequest, StorageValue,
};
use mainstay_core::time::{Duration, Instant};
use mainstay_core::wire::{Envelope, FORMAT_VERSION, LockRecord, Message, PAGE_BYTES, RecordKey};
use mainstay_core::{Agent, Command, Identity, provision};
use std::collections::{BTreeMap, BTreeSet};

/// Time that any effect takes.
const LATENCY: Duration = Duration::from_micros(200);

/// A cluster in memory.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) now: Instant,
    config: ClusterConfig,
    agents: BTreeMap<HostId, Agent>,
    queue: BTreeMap<(Instant, u64), (HostId, Input)>,
    sequence: u64,
    disks: BTreeMap<DatastoreId, BTreeMap<RecordKey, Vec<u8>>>,
    pub(crate) running: BTreeMap<VmId, HostId>,
    /// Hosts on which the next starts fail, and how often.
    pub(crate) failing_starts: u32,
    /// Reports of VMs that changed, from now on, that are lost.
    pub(crate) losing_changes: u32,
    /// Reports that came: whole ones, and the VMs in those of changes.
    pub(crate) whole_reports: usize,
    pub(crate) changed_vms: usize,
    /// Bytes of each write of a protected or powered-on list.
    pub(crate) list_writes: Vec<usize>,
    pub(crate) events: Vec<(Instant, HostId, EventKind)>,
    /// Configurations, from now on, that cannot be kept on local disk.
    pub(crate) losing_configs: u32,
    /// The version that each host keeps there.
    pub(crate) kept: BTreeMap<HostId, u64>,
    pub(crate) proposed: Vec<(HostId, u64, Result<u64, String>)>,
    pub(crate) drills: Vec<(HostId, u64, Result<Answer, String>)>,
    /// What goes wrong.
    pub(crate) broken: Broken,
    /// Links of VM locks, writes of powered-on lists and of local disks, and kills that were asked for.
    pub(crate) asked: Asked,
}

/// What certainly does not work, and says so at once.
#[derive(Debug, Default)]
pub(crate) struct Broken {
    pub(crate) pings: bool,
    pub(crate) lock_writes: bool,
    pub(crate) list_writes: bool,
    /// Writes of protected lists have their effect, and nobody is told.
    pub(crate) list_acks: bool,
    pub(crate) thaws: bool,
    pub(crate) local_disks: bool,
    pub(crate) kills: bool,
}

/// How often something was asked for.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) lock_writes: usize,
    pub(crate) list_writes: usize,
    pub(crate) local_disks: usize,
    pub(crate) kills: usize,
}

pub(crate) fn host(n: u32) -> HostId {
    HostId::new(&format!("host-{n}")).expect("id")
}

pub(crate) fn vm(n: u32) -> VmId {
    VmId::new(&format!("vm-{n}")).expect("id")
}

fn datastore(n: u32) -> DatastoreId {
    DatastoreId::new(&format!("ds-{n}")).expect("id")
}

impl Cluster {
    pub(crate) fn new(profile: Profile, hosts: u32, vms: u32) -> Self {
        let settings = Settings::of(profile);
        let mounts: BTreeSet<DatastoreId> = [datastore(1), datastore(2)].into();
        let host_specs: Vec<HostSpec> = (1..=hosts)
            .map(|n| HostSpec {
                id: host(n),
                cpu_mhz: 20_000,
                memory_mb: 65_536,
                datastores: mounts.clone(),
                maintenance: false,
                networks: Default::default(),
            })
            .collect();
        let stores: Vec<DatastoreSpec> = mounts
            .iter()
            .map(|d| DatastoreSpec {
                id: d.clone(),
                kind: Default::default(),
                fence: Default::default(),
                server: None,
            })
            .collect();
        let vm_specs: Vec<VmSpec> = (1..=vms)
            .map(|n| VmSpec {
                id: vm(n),
                datastore: datastore(1 + n % 2),
                cpu_mhz: 500,
                memory_mb: 512,
                restart_priority: Default::default(),
                isolation_response: None,
                depends_on: Vec::new(),
                guest_agent: true,
            })
            .collect();
        let mut disks = BTreeMap::new();
        for d in &stores {
            let mut disk: BTreeMap<RecordKey, Vec<u8>> =
                provision::datastore_records(1, &settings, host_specs.iter(), &host(1))
                    .into_iter()
                    .collect();
            for v in vm_specs.iter().filter(|v| v.datastore == d.id) {
                let (key, bytes) = provision::vm_record(1, &settings, &v.id, &host(1));
                disk.insert(key, bytes);
            }
            disks.insert(d.id.clone(), disk);
        }
        let config = ClusterConfig::new(1, settings, host_specs, stores, vm_specs, Vec::new())
            .expect("config");
        let mut cluster = Self {
            now: Instant::from_nanos(1_000_000_000),
            config,
            agents: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            disks,
            running: BTreeMap::new(),
            failing_starts: 0,
            losing_changes: 0,
            whole_reports: 0,
            changed_vms: 0,
            list_writes: Vec::new(),
            events: Vec::new(),
            losing_configs: 0,
            kept: BTreeMap::new(),
            proposed: Vec::new(),
            drills: Vec::new(),
            broken: Broken::default(),
            asked: Asked::default(),
        };
        for n in 1..=hosts {
            cluster.boot(n);
        }
        cluster
    }

    pub(crate) fn boot(&mut self, n: u32) {
        self.boot_with(n, self.config.clone());
    }

    /// Switches a host on whose file says another configuration.
    pub(crate) fn boot_with(&mut self, n: u32, config: ClusterConfig) {
        for disk in self.disks.values_mut() {
            let spec = config.hosts.values().filter(|h| h.id == host(n));
            let records = provision::datastore_records(1, &config.settings, spec, &host(n));
            for (key, bytes) in records {
                disk.entry(key).or_insert(bytes);
            }
        }
        let seed = u64::from(n) * 1000 + self.sequence;
        let identity = Identity {
            host: host(n),
            boot: BootId(seed),
            instance: InstanceId(seed),
            seed,
        };
        let agent =
            Agent::new(identity, config, Durable::default(), Vec::new(), self.now).expect("agent");
        self.agents.insert(host(n), agent);
        self.drain(&host(n));
        self.shown(n, FORMAT_VERSION);
        for other in self.agents.keys().cloned().collect::<Vec<_>>() {
            let input = Input::Understands {
                host: other,
                version: FORMAT_VERSION,
            };
            self.push(&host(n), input);
        }
    }

    /// Every agent learns which formats host `n` understands.
    pub(crate) fn shown(&mut self, n: u32, version: u16) {
        for to in self.agents.keys().cloned().collect::<Vec<_>>() {
            let host = host(n);
            self.push(&to, Input::Understands { host, version });
        }
    }

    /// The configuration with which the cluster began.
    pub(crate) fn config(&self) -> &ClusterConfig {
        &self.config
    }

    /// The configuration that is in force on host `n`.
    pub(crate) fn agent_config(&self, n: u32) -> &ClusterConfig {
        self.agents.get(&host(n)).expect("host").config()
    }

    pub(crate) fn agent(&mut self, n: u32) -> &mut Agent {
        self.agents.get_mut(&host(n)).expect("host")
    }

    /// Carries out what host `n`'s agent asked for.
    pub(crate) fn settle(&mut self, n: u32) {
        self.drain(&host(n));
    }

    /// Makes the records of a VM that is new on that datastore.
    pub(crate) fn begin_lock(&mut self, n: u32, on: u32) {
        let (key, bytes) = provision::vm_record(1, &self.config.settings, &vm(n), &host(1));
        let disk = self.disks.get_mut(&datastore(1 + on % 2)).expect("disk");
        disk.insert(key, bytes);
    }

    /// The host loses power: agent and guests are gone.
    pub(crate) fn power_off(&mut self, n: u32) {
        self.agents.remove(&host(n));
        self.queue.retain(|_, (h, _)| *h != host(n));
        self.running.retain(|_, h| *h != host(n));
    }

    pub(crate) fn command(&mut self, n: u32, command: Command) {
        let now = self.now;
        self.agents
            .get_mut(&host(n))
            .expect("host")
            .command(now, command)
            .expect("accepted");
        self.drain(&host(n));
    }

    pub(crate) fn propose(&mut self, n: u32, change: Change) {
        let now = self.now;
        let agent = self.agents.get_mut(&host(n)).expect("host");
        agent.propose(now, vec![change]).expect("taken");
        self.drain(&host(n));
    }

    pub(crate) fn crash(&mut self, id: &VmId) {
        self.end(id, ExitCause::Crash);
    }

    pub(crate) fn end(&mut self, id: &VmId, cause: ExitCause) {
        let on = self.running.remove(id).expect("runs");
        let vm = id.clone();
        self.push(&on, Input::VmExited { vm, cause });
    }

    /// The lock records of a VM that are on disk.
    pub(crate) fn locks(&self, id: &VmId) -> Vec<LockRecord> {
        let cluster = self.config.cluster_id;
        let all = self.disks.values().flatten();
        let of_vm = all.filter(|(key, _)| matches!(key, RecordKey::VmLock(vm, _) if vm == id));
        of_vm
            .map(|(_, bytes)| LockRecord::decode(cluster, bytes).expect("a lock").1)
            .collect()
    }

    /// The guard of its host finds that its right to run has lapsed.
    pub(crate) fn lapse(&mut self, id: &VmId) {
        let started = self
            .events
            .iter()
            .rev()
            .find_map(|(.., event)| match event {
                EventKind::VmStarted { vm, generation, .. } if vm == id => Some(*generation),
                _ => None,
            });
        let on = self.running.get(id).expect("runs").clone();
        let lapsed = Input::VmLapsed {
            vm: id.clone(),
            generation: started.expect("started"),
        };
        self.push(&on, lapsed);
    }

    /// Puts other bytes in the place of the newest record of a VM's lock, and hands the old ones out.
    pub(crate) fn swap_newest_lock(&mut self, id: &VmId, bytes: Vec<u8>) -> Vec<u8> {
        let disks = self.disks.values_mut();
        let locks = disks.flat_map(|disk| disk.iter_mut());
        let newest = locks
            .filter_map(|(key, record)| match key {
                RecordKey::VmLock(vm, generation) if vm == id => Some((*generation, record)),
                _ => None,
            })
            .max_by_key(|(generation, _)| *generation);
        let (_, record) = newest.expect("a lock");
        std::mem::replace(record, bytes)
    }

    pub(crate) fn status(&self, n: u32) -> mainstay_core::status::Status {
        self.agents
            .get(&host(n))
            .expect("host")
            .status(self.now)
            .expect("status")
    }

    pub(crate) fn explain_vm(&self, n: u32, id: &VmId) -> mainstay_core::status::Explanation {
        self.agents
            .get(&host(n))
            .expect("host")
            .explain_vm(self.now, id)
            .expect("known")
    }

    fn push(&mut self, to: &HostId, input: Input) {
        self.sequence += 1;
        self.queue
            .insert((self.now + LATENCY, self.sequence), (to.clone(), input));
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let message = self.queue.keys().next().map(|(at, _)| *at);
            let timeout = self
                .agents
                .iter()
                .filter_map(|(h, a)| Some((a.poll_timeout()?, h.clone())))
                .min();
            let next = match (message, &timeout) {
                (Some(m), Some((t, _))) => m.min(*t),
                (Some(m), None) => m,
                (None, Some((t, _))) => *t,
                (None, None) => break,
            };
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            if message == Some(next) {
                let (_, (to, input)) = self.queue.pop_first().expect("there");
                if let Some(agent) = self.agents.get_mut(&to) {
                    agent.handle(self.now, input);
                }
                self.drain(&to);
            } else if let Some((_, to)) = timeout {
                self.agents
                    .get_mut(&to)
                    .expect("there")
                    .handle(self.now, Input::Timeout);
                self.drain(&to);
            }
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
                Output::Stream { to, envelope } => self.deliver(of, &to, envelope),
                Output::Ping(op, target) => {
                    let answered = match target {
                        PingTarget::Host(host) => self.agents.contains_key(&host),
                        PingTarget::Isolation(_) => true,
                    };
                    let outcome = if self.broken.pings {
                        PingOutcome::CannotProbe
                    } else if answered {
                        PingOutcome::Answered
                    } else {
                        PingOutcome::NoAnswer
                    };
                    self.push(of, Input::Pinged(op, outcome));
                }
                Output::Storage(op, on, request) => self.perform(of, op, &on, request),
                Output::Guard(op, request) => {
                    let thaw = matches!(request, GuardRequest::Thaw { .. });
                    let outcome = match thaw && self.broken.thaws {
                        true => GuardOutcome::NoGuard,
                        false => GuardOutcome::Done,
                    };
                    self.push(of, Input::Guard(op, outcome));
                }
                Output::Hypervisor(op, request) => self.hypervise(of, op, request),
                Output::Persist(op, _) => {
                    self.asked.local_disks += 1;
                    self.push(of, Input::Persisted(op, !self.broken.local_disks));
                }
                Output::PersistConfig(op, config) => {
                    let kept = self.losing_configs == 0;
                    self.losing_configs = self.losing_configs.saturating_sub(1);
                    if kept {
                        self.kept.insert(of.clone(), config.version);
                    }
                    self.push(of, Input::Persisted(op, kept));
                }
                Output::Proposed(ticket, outcome) => {
                    self.proposed.push((of.clone(), ticket, outcome))
                }
                Output::Drill(ticket, answer) => self.drills.push((of.clone(), ticket, answer)),
                Output::Fence(op, ..) => {
                    let none = FenceOutcome::NotDone("there is no fence device".into());
                    self.push(of, Input::Fenced(op, none));
                }
                Output::Event(Event { at, kind, .. }) => self.events.push((at, of.clone(), kind)),
            }
        }
    }

    fn deliver(&mut self, of: &HostId, to: &HostId, envelope: Envelope) {
        match &envelope.message {
            Message::Changes(changes) if self.losing_changes > 0 && !changes.vms.is_empty() => {
                self.losing_changes -= 1;
                return;
            }
            Message::Changes(changes) => self.changed_vms += changes.vms.len(),
            Message::Report(_) => self.whole_reports += 1,
            _ => {}
        }
        let from = of.clone();
        self.push(to, Input::Stream { from, envelope });
    }

    fn perform(&mut self, of: &HostId, op: OpId, on: &DatastoreId, request: StorageRequest) {
        match &request {
            StorageRequest::Put(RecordKey::Protected(_) | RecordKey::Poweron(_), bytes) => {
                self.list_writes.push(bytes.len());
            }
            StorageRequest::PutPages(_, pages) => {
                self.list_writes
                    .push(pages.iter().map(|(_, bytes)| bytes.len()).sum());
            }
            _ => {}
        }
        let list = matches!(
            &request,
            StorageRequest::Put(RecordKey::Poweron(_), _)
                | StorageRequest::PutPages(RecordKey::Poweron(_), _)
        );
        let lock = matches!(&request, StorageRequest::Link(RecordKey::VmLock(..), _));
        self.asked.list_writes += usize::from(list);
        self.asked.lock_writes += usize::from(lock);
        if list && self.broken.list_writes || lock && self.broken.lock_writes {
            let full = StorageOutcome::NotDone(IoFault::Full);
            self.push(of, Input::Storage(op, full));
            return;
        }
        let lost = self.broken.list_acks
            && matches!(
                &request,
                StorageRequest::PutPages(RecordKey::Protected(_), _)
            );
        let disk = self.disks.get_mut(on).expect("datastore");
        let value = match request {
            StorageRequest::Read(key) => disk
                .get(&key)
                .map_or(StorageValue::NotFound, |b| StorageValue::Bytes(b.clone())),
            StorageRequest::Renew(key, bytes) => match disk.get_mut(&key) {
                Some(old) => {
                    *old = bytes;
                    StorageValue::Done
                }
                None => StorageValue::NotFound,
            },
            StorageRequest::Put(key, bytes) => {
                disk.insert(key, bytes);
                StorageValue::Done
            }
            StorageRequest::PutPages(key, pages) => match disk.get_mut(&key) {
                Some(record) => {
                    for (page, bytes) in pages {
                        let at = page as usize * PAGE_BYTES;
                        record.resize(record.len().max(at + PAGE_BYTES), 0);
                        record.splice(at..at + PAGE_BYTES, bytes);
                    }
                    StorageValue::Done
                }
                None => StorageValue::NotFound,
            },
            StorageRequest::Link(key, bytes) => {
                if let std::collections::btree_map::Entry::Vacant(slot) = disk.entry(key) {
                    slot.insert(bytes);
                    StorageValue::Done
                } else {
                    StorageValue::Exists
                }
            }
            StorageRequest::Remove(key) => {
                disk.remove(&key);
                StorageValue::Done
            }
            StorageRequest::ListVmLock(id) => {
                keys(disk, |k| matches!(k, RecordKey::VmLock(v, _) if *v == id))
            }
            StorageRequest::ListAllVmLocks => keys(disk, |k| matches!(k, RecordKey::VmLock(..))),
            StorageRequest::ListOwnerLock => keys(disk, |k| matches!(k, RecordKey::OwnerLock(_))),
            StorageRequest::ProbeLock(_) => StorageValue::Held(true),
            StorageRequest::ListConfig => keys(disk, |k| matches!(k, RecordKey::Config(..))),
            StorageRequest::ListProtected => keys(disk, |k| matches!(k, RecordKey::Protected(..))),
        };
        let outcome = if lost {
            self.broken.list_acks = false;
            StorageOutcome::Unknown(IoFault::TimedOut)
        } else {
            StorageOutcome::Ok(value)
        };
        self.push(of, Input::Storage(op, outcome));
    }

    fn hypervise(&mut self, of: &HostId, op: OpId, request: HypervisorRequest) {
        let outcome = match request {
            HypervisorRequest::Prepare { .. } if self.failing_starts > 0 => {
                self.failing_starts -= 1;
                HypervisorOutcome::Failed(String::from("planned"))
            }
            HypervisorRequest::Prepare { .. } | HypervisorRequest::Shutdown { .. } => {
                HypervisorOutcome::Done
            }
            HypervisorRequest::Resume { vm } => {
                let before = self.running.insert(vm.clone(), of.clone());
                assert_eq!(before, None, "{vm} runs twice");
                HypervisorOutcome::Done
            }
            HypervisorRequest::Kill { .. } if self.broken.kills => {
                self.asked.kills += 1;
                HypervisorOutcome::Failed(String::from("planned"))
            }
            HypervisorRequest::Kill { vm } => {
                self.asked.kills += 1;
                self.running.remove(&vm);
                self.push(
                    of,
                    Input::VmExited {
                        vm,
                        cause: ExitCause::Killed,
                    },
                );
                HypervisorOutcome::Done
            }
        };
        self.push(of, Input::Hypervisor(op, outcome));
    }

    /// When an event like that first happened at or after `from`.
    pub(crate) fn first(&self, from: Instant, is: impl Fn(&EventKind) -> bool) -> Option<Duration> {
        self.events
            .iter()
            .find(|(at, _, e)| *at >= from && is(e))
            .map(|(at, ..)| at.since(from))
    }

    pub(crate) fn count(&self, from: Instant, is: impl Fn(&EventKind) -> bool) -> usize {
        self.events
            .iter()
            .filter(|(at, _, e)| *at >= from && is(e))
            .count()
    }
}

fn keys(disk: &BTreeMap<RecordKey, Vec<u8>>, is: impl Fn(&RecordKey) -> bool) -> StorageValue {
    StorageValue::Keys(disk.keys().filter(|k| is(k)).cloned().collect())
}
