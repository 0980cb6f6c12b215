//! The agent's state machine: routes inputs to the rooms that decide and orders their outputs.

use crate::config::{ClusterConfig, ConfigError, HostSpec, Timing};
use crate::election::Role;
use crate::event::{Event, EventKind};
use crate::id::{BootId, DatastoreId, Generation, Holder, HostId, InstanceId, Nonce, OpId, VmId};
use crate::io::{
    Channel, Durable, FoundVm, GuardOutcome, GuardRequest, HypervisorOutcome, HypervisorRequest,
    Input, Output, PingTarget, StorageOutcome, StorageRequest,
};
use crate::liveness::Peer;
use crate::lock::{Cleanup, HeadRead, LockName, Step, Swap, SwapOutcome};
use crate::ownership::Own;
use crate::restart::Restart;
use crate::rng::Rng;
use crate::store::Store;
use crate::time::{Duration, Instant};
use crate::vms::LocalVm;
use crate::wire::{Desired, LockRecord, Message, Rank, Stamp};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Events kept in memory for `explain`.
const JOURNAL_EVENTS: usize = 4000;

/// True when that bug is planted in this agent; always false in builds without the feature.
macro_rules! planted {
    ($agent:expr, $bug:ident) => {{
        #[cfg(feature = "planted")]
        {
            $agent.bug == Some(crate::planted::Bug::$bug)
        }
        #[cfg(not(feature = "planted"))]
        {
            false
        }
    }};
}
pub(crate) use planted;

/// Who an agent is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its host.
    pub host: HostId,
    /// Its host's boot.
    pub boot: BootId,
    /// This start of the agent.
    pub instance: InstanceId,
    /// Seed of everything random.
    pub seed: u64,
}

/// What an operator asks of one agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Power a VM on here.
    PowerOn(VmId),
    /// Power a VM off that runs here.
    PowerOff(VmId),
}

/// Why a command was refused. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// There is no such VM.
    #[error("there is no VM \"{0}\" in this cluster")]
    UnknownVm(VmId),
    /// This host does not mount its datastore.
    #[error("this host does not mount the datastore of \"{0}\"; power it on on a host that does")]
    NoDatastore(VmId),
    /// It is not here.
    #[error(
        "\"{0}\" does not run on this host; ask the host that runs it (`mainstay vms` shows which)"
    )]
    NotHere(VmId),
}

/// For whom a lock task works.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum TaskFor {
    /// A local VM; what follows depends on its phase.
    Vm(VmId),
    /// Taking or giving back a datastore's owner lock.
    Own(DatastoreId),
    /// The primary looks at the lock of a VM that nobody reports.
    Look(VmId),
    /// Looking for locks that name this host though it has no such VM.
    Orphan(DatastoreId, VmId),
    /// Removing old generations.
    Tidy,
}

#[derive(Clone, Debug)]
enum Machine {
    Head(HeadRead),
    Swap(Swap),
    Cleanup(Cleanup),
}

#[derive(Clone, Debug)]
pub(crate) struct Task {
    datastore: DatastoreId,
    name: LockName,
    work_for: TaskFor,
    machine: Machine,
    /// Waits until then before it tries again.
    retry_at: Option<Instant>,
}

/// What an operation under way is for, with the time of its issue.
#[derive(Clone, Debug)]
pub(crate) enum Pending {
    Renew {
        datastore: DatastoreId,
        seq: u64,
        issued: Instant,
    },
    Observe {
        datastore: DatastoreId,
        host: HostId,
        issued: Instant,
    },
    Poweron {
        datastore: DatastoreId,
    },
    PoweronRead {
        host: HostId,
    },
    Scan {
        datastore: DatastoreId,
    },
    List {
        datastore: DatastoreId,
        generation: Generation,
    },
    Task(u64),
    Ping {
        host: Option<HostId>,
    },
    Guard {
        vm: VmId,
    },
    Hypervisor {
        vm: VmId,
        resume: bool,
    },
    Persist,
    Forget,
}

/// The agent of one host.
#[derive(Debug)]
pub struct Agent {
    pub(crate) me: Identity,
    pub(crate) config: ClusterConfig,
    pub(crate) now: Instant,
    pub(crate) started: Instant,
    pub(crate) out: VecDeque<Output>,
    pub(crate) nonces: Rng,
    next_number: u64,
    pub(crate) pending: BTreeMap<OpId, Pending>,
    pub(crate) tasks: BTreeMap<u64, Task>,
    pub(crate) stores: BTreeMap<DatastoreId, Store>,
    pub(crate) role: Role,
    pub(crate) peers: BTreeMap<HostId, Peer>,
    pub(crate) owned: BTreeMap<DatastoreId, Own>,
    pub(crate) vms: BTreeMap<VmId, LocalVm>,
    pub(crate) restarts: BTreeMap<VmId, Restart>,
    pub(crate) protected_here: BTreeSet<VmId>,
    pub(crate) durable: Durable,
    pub(crate) durable_dirty: bool,
    persisting: bool,
    pub(crate) next_heartbeat: Instant,
    pub(crate) report_dirty: bool,
    pub(crate) report_seq: u64,
    pub(crate) beats: u64,
    pub(crate) alone_since: Option<Instant>,
    pub(crate) isolation_answered: Option<Instant>,
    pub(crate) isolation_pinging: bool,
    pub(crate) journal: VecDeque<Event>,
    pub(crate) shell_issues: Vec<String>,
    pub(crate) ignored: BTreeMap<&'static str, u64>,
    pub(crate) said: BTreeSet<String>,
    #[cfg(feature = "planted")]
    pub(crate) bug: Option<crate::planted::Bug>,
}

impl Agent {
    /// An agent that has just started on a host where `found` VMs are left from an earlier instance.
    /// All processes of that earlier instance must be gone (safety rule H16).
    ///
    /// # Errors
    /// [`ConfigError`] when the host is not part of the cluster or the timers contradict each other.
    pub fn new(
        identity: Identity,
        config: ClusterConfig,
        durable: Durable,
        found: Vec<FoundVm>,
        now: Instant,
    ) -> Result<Self, ConfigError> {
        config.settings.timing.check()?;
        let Some(spec) = config.hosts.get(&identity.host) else {
            return Err(ConfigError::NotMember(identity.host));
        };
        let stores = spec
            .datastores
            .iter()
            .map(|d| (d.clone(), Store::new(now)))
            .collect();
        let others = config.hosts.keys().filter(|h| **h != identity.host);
        let peers = others.map(|h| (h.clone(), Peer::new(now))).collect();
        let nonces = Rng::new(identity.seed ^ identity.instance.0).fork("nonce");
        let mut agent = Self {
            config,
            now,
            started: now,
            out: VecDeque::new(),
            nonces,
            next_number: 1,
            pending: BTreeMap::new(),
            tasks: BTreeMap::new(),
            stores,
            role: Role::starting(now),
            peers,
            owned: BTreeMap::new(),
            vms: BTreeMap::new(),
            restarts: BTreeMap::new(),
            protected_here: BTreeSet::new(),
            durable,
            durable_dirty: false,
            persisting: false,
            next_heartbeat: now,
            report_dirty: true,
            report_seq: 0,
            beats: 0,
            alone_since: Some(now),
            isolation_answered: None,
            isolation_pinging: false,
            journal: VecDeque::new(),
            shell_issues: Vec::new(),
            ignored: BTreeMap::new(),
            said: BTreeSet::new(),
            me: identity,
            #[cfg(feature = "planted")]
            bug: None,
        };
        agent.adopt(found);
        agent.begin_election("the agent started");
        agent.scan_orphans();
        Ok(agent)
    }

    /// Takes what happened.
    ///
    /// # Panics
    /// When the outputs of the call before were not drained.
    pub fn handle(&mut self, now: Instant, input: Input) {
        assert!(
            self.out.is_empty() || self.now == self.started,
            "drain poll_output before the next input"
        );
        self.now = self.now.max(now);
        match input {
            Input::Timeout => {}
            Input::Message { from, message } => self.on_message(&from, message),
            Input::Pinged(op, outcome) => match self.pending.remove(&op) {
                Some(Pending::Ping { host }) => self.on_ping(host, outcome),
                _ => self.ignore("stale ping"),
            },
            Input::Storage(op, outcome) => match self.pending.remove(&op) {
                Some(pending) => self.on_storage(pending, &outcome),
                None => self.ignore("stale storage completion"),
            },
            Input::Guard(op, outcome) => match self.pending.remove(&op) {
                Some(Pending::Guard { vm }) => self.on_guard(&vm, outcome),
                _ => self.ignore("stale guard answer"),
            },
            Input::Hypervisor(op, outcome) => match self.pending.remove(&op) {
                Some(Pending::Hypervisor { vm, resume }) => {
                    self.on_hypervisor(&vm, resume, outcome)
                }
                _ => self.ignore("stale hypervisor answer"),
            },
            Input::Persisted(op, ok) => {
                self.pending.remove(&op);
                self.persisting = false;
                self.durable_dirty |= !ok;
            }
            Input::VmExited { vm, cause } => self.on_vm_exited(&vm, cause),
            Input::VmLapsed { vm, generation } => self.on_vm_lapsed(&vm, generation),
        }
        self.run();
    }

    /// Does everything that is due.
    fn run(&mut self) {
        self.run_tasks();
        self.run_stores();
        self.run_election();
        if self.now >= self.next_heartbeat {
            // From the moment that was planned, so that a late wake-up does not shift the beat.
            let interval = self.timing().network_heartbeat;
            self.next_heartbeat += interval;
            if self.now >= self.next_heartbeat {
                self.next_heartbeat = self.now + interval;
            }
            self.beat();
        }
        self.judge_hosts();
        self.run_ownership();
        self.run_vms();
        self.run_restarts();
        self.persist();
    }

    /// Once in each heartbeat interval.
    fn beat(&mut self) {
        self.beats += 1;
        self.send_heartbeats();
        self.ping_silent();
        self.reconcile();
        if self.report_dirty || self.beats.is_multiple_of(8) {
            self.send_report();
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When [`Input::Timeout`] is due next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let mut next = self.next_heartbeat;
        // What is due already was looked at in this step; if it still waits, another event ends that.
        let mut due = |at: Option<Instant>| {
            next = at.filter(|a| *a > self.now).map_or(next, |a| next.min(a));
        };
        due(self.tasks.values().filter_map(|t| t.retry_at).min());
        due(self.stores_due());
        due(self.role.due());
        due(self.verdict_due());
        due(self.ownership_due());
        due(self.restarts_due());
        Some(next)
    }

    /// Takes an operator's request: checked completely before anything changes. Progress is seen in
    /// events and in the status.
    ///
    /// # Errors
    /// [`CommandError`]; then nothing was changed.
    pub fn command(&mut self, now: Instant, command: Command) -> Result<(), CommandError> {
        self.now = self.now.max(now);
        match command {
            Command::PowerOn(vm) => self.power_on(&vm)?,
            Command::PowerOff(vm) => self.power_off(&vm)?,
        }
        self.run();
        Ok(())
    }

    /// Plants a bug (only in builds that test the testers).
    #[cfg(feature = "planted")]
    pub fn plant(&mut self, bug: crate::planted::Bug) {
        self.bug = Some(bug);
    }

    /// Adds to the list of weaknesses what the shell found (no O_DIRECT, no raw ICMP, ...).
    pub fn set_shell_issues(&mut self, issues: Vec<String>) {
        self.shell_issues = issues;
    }

    // What the rooms share.

    pub(crate) fn timing(&self) -> &Timing {
        &self.config.settings.timing
    }

    pub(crate) fn host(&self) -> &HostId {
        &self.me.host
    }

    /// This host's entry in the configuration.
    pub(crate) fn own_spec(&self) -> Option<&HostSpec> {
        self.config.hosts.get(&self.me.host)
    }

    pub(crate) fn holder(&self) -> Holder {
        Holder {
            host: self.me.host.clone(),
            boot: self.me.boot,
        }
    }

    pub(crate) fn rank(&self) -> Rank {
        let usable = self
            .stores
            .values()
            .filter(|s| s.usable(self.now, self.timing().r#break))
            .count();
        Rank {
            datastores: u32::try_from(usable).unwrap_or(u32::MAX),
            host: self.me.host.clone(),
        }
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub(crate) fn stamp(&mut self) -> Stamp {
        let seq = self.number();
        Stamp {
            writer: self.me.host.clone(),
            boot: self.me.boot,
            instance: self.me.instance,
            seq,
        }
    }

    fn op(&mut self, pending: Pending) -> OpId {
        let op = OpId(self.number());
        self.pending.insert(op, pending);
        op
    }

    pub(crate) fn storage(
        &mut self,
        datastore: &DatastoreId,
        request: StorageRequest,
        pending: Pending,
    ) {
        let op = self.op(pending);
        self.out
            .push_back(Output::Storage(op, datastore.clone(), request));
    }

    pub(crate) fn guard(&mut self, vm: &VmId, request: GuardRequest) {
        let op = self.op(Pending::Guard { vm: vm.clone() });
        self.out.push_back(Output::Guard(op, request));
    }

    /// A guard request whose answer nobody waits for.
    pub(crate) fn guard_forget(&mut self, request: GuardRequest) {
        let op = self.op(Pending::Forget);
        self.out.push_back(Output::Guard(op, request));
    }

    pub(crate) fn hypervisor(&mut self, vm: &VmId, request: HypervisorRequest) {
        let resume = matches!(request, HypervisorRequest::Resume { .. });
        let op = self.op(Pending::Hypervisor {
            vm: vm.clone(),
            resume,
        });
        self.out.push_back(Output::Hypervisor(op, request));
    }

    pub(crate) fn ping(&mut self, target: PingTarget) {
        let host = match &target {
            PingTarget::Host(host) => Some(host.clone()),
            PingTarget::IsolationAddress => None,
        };
        let op = self.op(Pending::Ping { host });
        self.out.push_back(Output::Ping(op, target));
    }

    pub(crate) fn send(&mut self, to: &HostId, channel: Channel, message: Message) {
        self.out.push_back(Output::Send {
            to: to.clone(),
            channel,
            message,
        });
    }

    pub(crate) fn emit(&mut self, kind: EventKind, why: String) {
        let event = Event {
            at: self.now,
            kind,
            why,
        };
        if self.journal.len() >= JOURNAL_EVENTS {
            self.journal.pop_front();
        }
        self.journal.push_back(event.clone());
        self.out.push_back(Output::Event(event));
    }

    /// Reports a weakness once.
    pub(crate) fn issue(&mut self, issue: String) {
        if self.said.insert(issue.clone()) {
            let host = self.me.host.clone();
            self.emit(
                EventKind::ConfigIssue {
                    issue: issue.clone(),
                    host,
                },
                issue,
            );
        }
    }

    pub(crate) fn ignore(&mut self, what: &'static str) {
        *self.ignored.entry(what).or_default() += 1;
    }

    fn persist(&mut self) {
        if self.durable_dirty && !self.persisting {
            self.durable_dirty = false;
            self.persisting = true;
            let op = self.op(Pending::Persist);
            let durable = self.durable.clone();
            self.out.push_back(Output::Persist(op, durable));
        }
    }

    fn on_guard(&mut self, vm: &VmId, outcome: GuardOutcome) {
        self.on_vm_guard(vm, outcome);
    }

    fn on_hypervisor(&mut self, vm: &VmId, resume: bool, outcome: HypervisorOutcome) {
        self.on_vm_hypervisor(vm, resume, outcome);
    }

    fn on_storage(&mut self, pending: Pending, outcome: &StorageOutcome) {
        match pending {
            Pending::Renew {
                datastore,
                seq,
                issued,
            } => self.on_renewed(&datastore, seq, issued, outcome),
            Pending::Observe {
                datastore,
                host,
                issued,
            } => self.on_observed(&datastore, &host, issued, outcome),
            Pending::Poweron { datastore } => self.on_poweron_written(&datastore, outcome),
            Pending::PoweronRead { host } => self.on_poweron_read(&host, outcome),
            Pending::Scan { datastore } => self.on_scanned(&datastore, outcome),
            Pending::List {
                datastore,
                generation,
            } => self.on_list(&datastore, generation, outcome),
            Pending::Task(number) => self.step_task(number, outcome),
            Pending::Ping { .. }
            | Pending::Guard { .. }
            | Pending::Hypervisor { .. }
            | Pending::Persist
            | Pending::Forget => self.ignore("completion of another kind"),
        }
    }

    fn on_message(&mut self, from: &HostId, message: Message) {
        if *from == self.me.host {
            self.issue(format!(
                "a message came from another agent that calls itself {from} as well; give each host an id of its own"
            ));
            return;
        }
        if !self.peers.contains_key(from) {
            self.ignore("message of a host that is not in the cluster");
            return;
        }
        match message {
            Message::Heartbeat {
                role,
                rank,
                primary,
                instance,
            } => {
                self.on_heartbeat(from, role, rank, primary, instance);
            }
            Message::Candidate { rank } => self.on_candidate(from, rank),
            Message::Report(report) => self.on_report(from, report),
            Message::Start(order) => self.on_start_order(from, order),
            Message::Started(result) => self.on_start_result(from, result),
            Message::CheckLock {
                vm,
                datastore,
                generation,
            } => self.on_check_lock(&vm, &datastore, generation),
            Message::Protected { vms } => self.protected_here = vms.into_iter().collect(),
        }
    }

    // Lock tasks.

    /// Begins reading a lock.
    pub(crate) fn read_lock(&mut self, datastore: &DatastoreId, name: LockName, work_for: TaskFor) {
        let hint = match &name {
            LockName::Vm(vm) => self
                .durable
                .vm_generations
                .get(&(datastore.clone(), vm.clone()))
                .copied(),
            LockName::Owner => self.durable.owner_generations.get(datastore).copied(),
        };
        let (head, request) = HeadRead::begin(name.clone(), self.config.cluster_id, hint);
        self.begin_task(datastore, name, work_for, Machine::Head(head), request);
    }

    /// Begins a swap of a lock from that generation to `holder`.
    pub(crate) fn swap_lock(
        &mut self,
        datastore: &DatastoreId,
        name: LockName,
        work_for: TaskFor,
        from: (Generation, Nonce),
        holder: Option<Holder>,
        desired: Desired,
    ) {
        let new = LockRecord {
            generation: from.0.next(),
            nonce: Nonce(self.nonces.next_u64()),
            holder,
            desired,
            freeze: self.timing().freeze,
            r#break: self.timing().r#break,
        };
        let stamp = self.stamp();
        let mut swap = Swap::begin(name.clone(), self.config.cluster_id, &stamp, from, new);
        // A lock that is given back, and one that names this host already, is not let go half-way.
        swap.stubborn = swap.new_record().holder.is_none();
        swap.skip_check = planted!(self, NoPredecessorCheck);
        swap.trust_unknown = planted!(self, UnknownIsWon);
        let request = swap.retry();
        self.begin_task(datastore, name, work_for, Machine::Swap(swap), request);
    }

    fn begin_task(
        &mut self,
        datastore: &DatastoreId,
        name: LockName,
        work_for: TaskFor,
        machine: Machine,
        request: StorageRequest,
    ) {
        let number = self.number();
        let task = Task {
            datastore: datastore.clone(),
            name,
            work_for,
            machine,
            retry_at: None,
        };
        self.tasks.insert(number, task);
        self.storage(datastore, request, Pending::Task(number));
    }

    /// True while a task works for that purpose.
    pub(crate) fn has_task(&self, work_for: &TaskFor) -> bool {
        self.tasks.values().any(|t| t.work_for == *work_for)
    }

    /// True while a swap of unknown outcome works for that purpose.
    pub(crate) fn swap_is_unsure(&self, work_for: &TaskFor) -> bool {
        self.tasks.values().any(|t| {
            t.work_for == *work_for && matches!(&t.machine, Machine::Swap(s) if s.is_unsure())
        })
    }

    /// Ends the tasks of that purpose: their completions are ignored. Only for readings, or when the
    /// caller never relies on the swapped generation again.
    pub(crate) fn drop_tasks(&mut self, work_for: &TaskFor) {
        self.tasks.retain(|_, t| t.work_for != *work_for);
    }

    fn run_tasks(&mut self) {
        let now = self.now;
        let due: Vec<u64> = self
            .tasks
            .iter()
            .filter(|(_, t)| t.retry_at.is_some_and(|at| at <= now))
            .map(|(n, _)| *n)
            .collect();
        for number in due {
            let Some(task) = self.tasks.get_mut(&number) else {
                continue;
            };
            task.retry_at = None;
            let datastore = task.datastore.clone();
            let request = match &task.machine {
                Machine::Head(head) => head.retry(),
                Machine::Swap(swap) => swap.retry(),
                Machine::Cleanup(_) => continue,
            };
            self.storage(&datastore, request, Pending::Task(number));
        }
    }

    fn step_task(&mut self, number: u64, outcome: &StorageOutcome) {
        let retry_at = self.now + self.timing().datastore_heartbeat;
        let Some(task) = self.tasks.get_mut(&number) else {
            return;
        };
        if let Some(store) = self.stores.get_mut(&task.datastore) {
            store.note(self.now, outcome);
        }
        let step = match &mut task.machine {
            Machine::Head(head) => head.on_outcome(outcome),
            Machine::Swap(swap) => swap.on_outcome(outcome),
            Machine::Cleanup(cleanup) => cleanup.on_outcome(outcome),
        };
        match step {
            Step::Do(request) => {
                let datastore = task.datastore.clone();
                self.storage(&datastore, request, Pending::Task(number));
            }
            Step::Wait => task.retry_at = Some(retry_at),
            Step::Cleaned => {
                self.tasks.remove(&number);
            }
            Step::Head(record) => {
                let Some(task) = self.tasks.remove(&number) else {
                    return;
                };
                self.on_head(task, record);
            }
            Step::Swapped(outcome) => {
                let Some(task) = self.tasks.remove(&number) else {
                    return;
                };
                self.on_swapped(task, &outcome);
            }
        }
    }

    fn on_head(&mut self, task: Task, record: Option<LockRecord>) {
        if let Some(record) = &record {
            if !self.remember(&task.datastore, &task.name, record.generation) {
                // Rolled back: the datastore is in quarantine and nothing is decided from it.
                return;
            }
        } else {
            self.issue(format!(
                "datastore {}: the lock of {:?} was never begun or its records are gone; add it again with `mainstay datastore add`",
                task.datastore, task.name
            ));
        }
        match task.work_for {
            TaskFor::Vm(vm) => self.on_vm_head(&vm, record),
            TaskFor::Own(datastore) => self.on_own_head(&datastore, record),
            TaskFor::Look(vm) => self.on_look(&vm, record),
            TaskFor::Orphan(datastore, vm) => self.on_orphan_head(&datastore, &vm, record),
            TaskFor::Tidy => {}
        }
    }

    fn on_swapped(&mut self, task: Task, outcome: &SwapOutcome) {
        let Machine::Swap(swap) = task.machine else {
            return;
        };
        let record = swap.new_record().clone();
        if *outcome == SwapOutcome::Won {
            self.remember(&task.datastore, &task.name, record.generation);
            let keep = if planted!(self, CleanupTooMuch) {
                record.generation
            } else {
                Generation(record.generation.0.saturating_sub(1))
            };
            let (cleanup, request) = Cleanup::begin(task.name.clone(), keep);
            self.begin_task(
                &task.datastore,
                task.name,
                TaskFor::Tidy,
                Machine::Cleanup(cleanup),
                request,
            );
        }
        match task.work_for {
            TaskFor::Vm(vm) => self.on_vm_swapped(&vm, record, outcome),
            TaskFor::Own(datastore) => self.on_own_swapped(&datastore, record, outcome),
            TaskFor::Orphan(..) | TaskFor::Look(_) | TaskFor::Tidy => {}
        }
    }

    /// Remembers a generation; false when the lock went backwards (safety rule H22).
    fn remember(
        &mut self,
        datastore: &DatastoreId,
        name: &LockName,
        generation: Generation,
    ) -> bool {
        let known = match name {
            LockName::Vm(vm) => self
                .durable
                .vm_generations
                .entry((datastore.clone(), vm.clone()))
                .or_default(),
            LockName::Owner => self
                .durable
                .owner_generations
                .entry(datastore.clone())
                .or_default(),
        };
        if generation < *known {
            let text = format!(
                "datastore {datastore}: the lock of {name:?} went back from generation {known} to {generation}, as after restoring a snapshot; nothing is started there until a person confirms the datastore"
            );
            if let Some(store) = self.stores.get_mut(datastore) {
                store.quarantine = Some(text.clone());
            }
            self.issue(text);
            return false;
        }
        if generation > *known {
            *known = generation;
            self.durable_dirty = true;
        }
        true
    }

    /// The longest of a lock's, a heartbeat's and the own `break`.
    pub(crate) fn longest_break(&self, others: &[Duration]) -> Duration {
        others
            .iter()
            .copied()
            .fold(self.timing().r#break, Duration::max)
    }
}
