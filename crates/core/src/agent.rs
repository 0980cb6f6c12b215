//! The agent's state machine: what it knows, the order in which its rooms act, and what they ask for.

mod route;

use crate::config::{ClusterConfig, ConfigError, HostSpec, Timing, Topology};
use crate::drill::Drills;
use crate::election::Role;
use crate::event::{ElectionCause, Event, EventKind, IssueCause};
use crate::fencing::Fencing;
use crate::health::{Issue, LockChecks, OwnIssues, Said, Telling};
use crate::id::{BootId, DatastoreId, Generation, Holder, HostId, InstanceId, OpId, VmId};
use crate::inventory::{Inventory, Reporting};
use crate::io::{
    Channel, Durable, Extension, FoundVm, GuardRequest, HypervisorRequest, Input, Output,
    PingTarget, StorageRequest,
};
use crate::isolation::{Asked, Isolation};
use crate::liveness::{Judging, Peer};
use crate::membership::Membership;
use crate::ownership::{Own, Unowned};
use crate::restart::Restart;
use crate::rng::Rng;
use crate::session::{Handed, Session};
use crate::store::Store;
use crate::tasks::Tasks;
use crate::time::{Duration, Instant};
use crate::vmcp::Vmcp;
use crate::vms::LocalVm;
use crate::watched::Watched;
use crate::wire::{FORMAT_VERSION, Message, Rank, Stamp};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
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
    /// The host's admin shuts the operating system down: its VMs are stopped and their locks given back;
    /// [`Agent::may_leave`] says when that is done.
    Leave,
    /// Agent or guard are about to be restarted on purpose: VMs move to longer rights to run, so that none
    /// is frozen or taken over meanwhile; [`Agent::may_be_restarted`] says when that is done.
    PrepareRestart,
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
    /// The host takes no VMs at the moment.
    #[error(
        "this host is in maintenance or being shut down; power \"{0}\" on on another host, or let this one leave maintenance"
    )]
    Resting(VmId),
    /// A process of it is left here from before it was deleted.
    #[error(
        "a process of an earlier \"{0}\", which was deleted while it ran, is left on this host; end that process first"
    )]
    Leftover(VmId),
    /// The changes do not fit; the text says why.
    #[error("{0}")]
    Config(String),
    /// No primary is known to this agent.
    #[error(
        "this agent knows no primary at the moment, and only a primary changes the configuration; ask again in a few seconds"
    )]
    NoPrimary,
    /// This host is silent, in a drill.
    #[error(
        "{0} is silent on purpose, in a drill; ask another host, or end it first with `mainstay drill {0} --stop`"
    )]
    Silent(HostId),
    /// What was asked about a drill cannot be done; the text says why.
    #[error("{0}")]
    Drill(String),
    /// It is not here.
    #[error(
        "\"{0}\" does not run on this host; ask the host that runs it (`mainstay vms` shows which)"
    )]
    NotHere(VmId),
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
        datastore: DatastoreId,
        host: HostId,
    },
    ProbeLock {
        datastore: DatastoreId,
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
        target: PingTarget,
        issued: Instant,
    },
    Guard {
        vm: VmId,
    },
    Extend,
    Hypervisor {
        vm: VmId,
        what: Ask,
    },
    Fence {
        host: HostId,
        issued: Instant,
    },
    Persist,
    KeepConfig,
    Config {
        datastore: DatastoreId,
        generation: Generation,
    },
    Forget,
}

/// What the hypervisor was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    Prepare,
    Resume,
    Shutdown,
    Kill,
}

/// The agent of one host. A copy decides as the agent would, and its outputs are nobody's.
#[derive(Clone, Debug)]
pub struct Agent {
    pub(crate) me: Identity,
    pub(crate) config: ClusterConfig,
    pub(crate) topology: Topology,
    /// The datastores that carry this host's heartbeat for the primary's verdict.
    pub(crate) beacons: Vec<DatastoreId>,
    pub(crate) few_beacons: Option<String>,
    pub(crate) now: Instant,
    pub(crate) started: Instant,
    pub(crate) out: VecDeque<Output>,
    pub(crate) nonces: Rng,
    next_number: u64,
    pub(crate) pending: BTreeMap<OpId, Pending>,
    pub(crate) tasks: Tasks,
    pub(crate) stores: BTreeMap<DatastoreId, Store>,
    pub(crate) role: Role,
    pub(crate) peers: BTreeMap<HostId, Peer>,
    pub(crate) owned: BTreeMap<DatastoreId, Own>,
    /// VMs that an ownership which ended was putting on its list: they may be there, and nobody was told.
    pub(crate) unannounced: BTreeMap<DatastoreId, BTreeSet<VmId>>,
    pub(crate) vms: Watched<VmId, LocalVm>,
    /// VMs of which a process was found here though the configuration does not name them. Their locks are
    /// not given back while it is left.
    pub(crate) leftover: BTreeSet<VmId>,
    pub(crate) restarts: Watched<VmId, Restart>,
    pub(crate) inventory: Inventory,
    pub(crate) judging: Judging,
    pub(crate) reporting: Reporting,
    pub(crate) protected_here: BTreeSet<VmId>,
    pub(crate) durable: Durable,
    pub(crate) durable_dirty: bool,
    /// Generations were seen that are not on local disk; they go there with the next heartbeat, all at once.
    pub(crate) generations_seen: bool,
    persisting: bool,
    /// After a write to local disk that failed, none begins before then.
    persist_again: Instant,
    pub(crate) next_heartbeat: Instant,
    pub(crate) report_dirty: bool,
    pub(crate) beats: u64,
    pub(crate) alone_since: Option<Instant>,
    pub(crate) isolation: Isolation,
    pub(crate) membership: Membership,
    pub(crate) sessions: BTreeMap<HostId, Session>,
    /// Stream messages that rooms were given, if somebody keeps note.
    pub(crate) handed: Option<Vec<Handed>>,
    /// A restart is being prepared; called off at that time.
    pub(crate) planned: Option<Instant>,
    /// The rights of the datastores are at most that long.
    pub(crate) freeze_in_use: Duration,
    pub(crate) unowned: Unowned,
    /// The host is being shut down since then.
    pub(crate) leaving: Option<Instant>,
    /// Guests that were asked to shut down, not by their own wish.
    pub(crate) asked: BTreeMap<VmId, Asked>,
    pub(crate) journal: VecDeque<Event>,
    pub(crate) shell_issues: Vec<Issue>,
    pub(crate) ignored: BTreeMap<&'static str, u64>,
    pub(crate) own_issues: OwnIssues,
    /// Weaknesses of the cluster that this primary has said.
    pub(crate) said_of_cluster: BTreeSet<Said>,
    pub(crate) telling: Telling,
    pub(crate) lock_checks: LockChecks,
    pub(crate) drills: Drills,
    pub(crate) vmcp: Vmcp,
    pub(crate) fencing: Fencing,
    /// The newest format version that this agent understands.
    pub(crate) understands: u16,
    #[cfg(feature = "planted")]
    pub(crate) bug: Option<crate::planted::Bug>,
    /// Only the rooms of the model are run.
    #[cfg(test)]
    pub(crate) modelled: bool,
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
            topology: Topology::of(&config),
            beacons: config.heartbeat_datastores(&identity.host),
            few_beacons: None,
            config,
            now,
            started: now,
            out: VecDeque::new(),
            nonces,
            next_number: 1,
            pending: BTreeMap::new(),
            tasks: Tasks::default(),
            stores,
            role: Role::starting(now),
            peers,
            owned: BTreeMap::new(),
            unannounced: BTreeMap::new(),
            vms: Watched::new(),
            leftover: BTreeSet::new(),
            restarts: Watched::new(),
            inventory: Inventory::default(),
            judging: Judging::default(),
            reporting: Reporting::default(),
            protected_here: BTreeSet::new(),
            durable,
            durable_dirty: false,
            generations_seen: false,
            persisting: false,
            persist_again: now,
            next_heartbeat: now,
            report_dirty: true,
            beats: 0,
            alone_since: Some(now),
            isolation: Isolation::new(now),
            membership: Membership::default(),
            sessions: BTreeMap::new(),
            handed: None,
            planned: None,
            freeze_in_use: Duration::MAX,
            unowned: Unowned::default(),
            leaving: None,
            asked: BTreeMap::new(),
            journal: VecDeque::new(),
            shell_issues: Vec::new(),
            ignored: BTreeMap::new(),
            own_issues: OwnIssues::default(),
            said_of_cluster: BTreeSet::new(),
            telling: Telling::default(),
            lock_checks: LockChecks::default(),
            drills: Drills::default(),
            vmcp: Vmcp::default(),
            fencing: Fencing::default(),
            understands: FORMAT_VERSION,
            me: identity,
            #[cfg(feature = "planted")]
            bug: None,
            #[cfg(test)]
            modelled: false,
        };
        agent.adopt(found);
        agent.begin_election(ElectionCause::AgentStarted, "the agent started");
        agent.scan_orphans();
        agent.report_redundancy(None);
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
        if self.in_drill() {
            self.hear_nothing(now, input);
        } else {
            self.advance(now);
            self.take(input);
        }
        self.run();
    }

    /// Time goes on. An agent that was stopped for a while has heard nobody because it did not listen:
    /// that is no sign of anybody's death, nor of its own isolation.
    pub(crate) fn advance(&mut self, now: Instant) {
        let gap = now.since(self.now);
        self.now = self.now.max(now);
        self.shorten_rights();
        if gap > 3 * self.timing().network_heartbeat {
            self.listen_anew();
        }
    }

    /// Nobody was listened to until now.
    pub(crate) fn listen_anew(&mut self) {
        let now = self.now;
        for peer in self.peers.values_mut() {
            peer.listened_since = now;
        }
        self.isolation
            .note_gap(now, self.config.settings.timing.network_heartbeat);
        let silent_at = now + self.timing().network_heartbeat + self.timing().election_start;
        self.role.listens_from(silent_at);
        self.sessions_listen_from(now);
        for store in self.stores.values_mut() {
            store.path.listens_from(now);
        }
    }

    /// Does everything that is due; a silent host does nothing.
    pub(crate) fn run(&mut self) {
        if self.in_drill() {
            return;
        }
        #[cfg(test)]
        if self.modelled {
            self.run_modelled();
            return;
        }
        self.settle_vms();
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
            self.judging.begin_again();
        }
        self.judge_hosts();
        self.run_isolation();
        self.run_vmcp();
        self.run_vouch();
        self.run_ownership();
        self.run_membership();
        self.run_drills();
        self.run_vms();
        self.run_restarts();
        self.run_fencing();
        self.persist();
    }

    /// Once in each heartbeat interval.
    fn beat(&mut self) {
        self.beats += 1;
        self.durable_dirty |= self.generations_seen;
        self.send_heartbeats();
        self.run_sessions();
        self.relieve_resting_primary();
        self.ping_silent();
        self.ping_isolation_addresses();
        self.run_rearm();
        self.watch_unowned();
        self.begin_fencing();
        self.renew_beacons();
        self.watch_killed();
        self.audit_inventory();
        self.run_health();
        self.reconcile();
        self.tell_protected();
        if self.report_dirty || self.beats.is_multiple_of(8) {
            self.send_report();
        }
        if self.beats.is_multiple_of(8)
            && let Some(primary) = self.role.followed().cloned()
        {
            self.tell_version(&primary);
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When [`Input::Timeout`] is due next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if let Some(silence) = &self.drills.silence {
            return Some(silence.due());
        }
        let mut next = self.next_heartbeat;
        // What is due already was looked at in this step; if it still waits, another event ends that.
        let mut due = |at: Option<Instant>| {
            next = at.filter(|a| *a > self.now).map_or(next, |a| next.min(a));
        };
        due(self.tasks.next_retry());
        due(self.stores_due());
        due(self.role.due());
        due(self.verdict_due());
        due(self.isolation_due());
        due(self.vouch_due());
        due(self.vmcp_due());
        due(self.ownership_due());
        due(self.restarts_due());
        due(self.fencing_due());
        Some(next)
    }

    /// Takes an operator's request: checked completely before anything changes. Progress is seen in
    /// events and in the status.
    ///
    /// # Errors
    /// [`CommandError`]; then nothing was changed.
    pub fn command(&mut self, now: Instant, command: Command) -> Result<(), CommandError> {
        if matches!(command, Command::Leave | Command::PrepareRestart) {
            // What the host's admin does counts for more than a rehearsal.
            self.come_back(now, String::from("this host or its agent is about to go"));
        }
        self.check_not_silent()?;
        self.advance(now);
        match command {
            Command::PowerOn(vm) => self.power_on(&vm)?,
            Command::PowerOff(vm) => self.power_off(&vm)?,
            Command::Leave => self.leave(),
            Command::PrepareRestart => self.prepare_restart(),
        }
        self.run();
        Ok(())
    }

    /// The configuration that is in force.
    #[must_use]
    pub fn config(&self) -> &ClusterConfig {
        &self.config
    }

    /// Plants a bug (only in builds that test the testers).
    #[cfg(feature = "planted")]
    pub fn plant(&mut self, bug: crate::planted::Bug) {
        self.bug = Some(bug);
    }

    /// Adds to the list of weaknesses what the shell found (no O_DIRECT, no raw ICMP, ...).
    pub fn set_shell_issues(&mut self, issues: Vec<Issue>) {
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

    /// What decides an election. A host in maintenance stands last, as one without datastores: it leads
    /// where no other does, since else nobody could end the maintenance of the last hosts that are alive.
    /// It says so itself, because two primaries that judge each other by different configurations would
    /// both stay.
    pub(crate) fn rank(&self) -> Rank {
        let resting = self.is_resting(&self.me.host);
        let usable = self
            .stores
            .values()
            .filter(|s| !resting && s.usable(self.now, self.timing().r#break))
            .count();
        Rank {
            datastores: u32::try_from(usable).unwrap_or(u32::MAX),
            host: self.me.host.clone(),
        }
    }

    /// A model goes on at that time, with numbers that depend on the time alone: what happened in another
    /// order before is the same state.
    #[cfg(test)]
    pub(crate) fn model_at(&mut self, now: Instant, numbers: u64) {
        self.now = now;
        self.next_number = numbers;
        self.nonces = Rng::new(numbers ^ self.me.seed << 40);
        self.journal.clear();
        self.ignored.clear();
        self.shorten_rights();
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

    pub(crate) fn op(&mut self, pending: Pending) -> OpId {
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

    /// Prolongs rights to run: one request and one answer, however many VMs there are.
    pub(crate) fn extend(&mut self, extensions: Vec<Extension>) {
        if !extensions.is_empty() {
            let op = self.op(Pending::Extend);
            let request = GuardRequest::Extend(extensions);
            self.out.push_back(Output::Guard(op, request));
        }
    }

    /// A guard request whose answer nobody waits for.
    pub(crate) fn guard_forget(&mut self, request: GuardRequest) {
        let op = self.op(Pending::Forget);
        self.out.push_back(Output::Guard(op, request));
    }

    pub(crate) fn hypervisor(&mut self, vm: &VmId, request: HypervisorRequest) {
        let what = match request {
            HypervisorRequest::Prepare { .. } => Ask::Prepare,
            HypervisorRequest::Resume { .. } => Ask::Resume,
            HypervisorRequest::Shutdown { .. } => Ask::Shutdown,
            HypervisorRequest::Kill { .. } => Ask::Kill,
        };
        let op = self.op(Pending::Hypervisor {
            vm: vm.clone(),
            what,
        });
        self.out.push_back(Output::Hypervisor(op, request));
    }

    pub(crate) fn ping(&mut self, target: PingTarget) {
        let issued = self.now;
        let op = self.op(Pending::Ping {
            target: target.clone(),
            issued,
        });
        self.out.push_back(Output::Ping(op, target));
    }

    pub(crate) fn send(&mut self, to: &HostId, channel: Channel, message: Message) {
        match channel {
            Channel::Datagram => self.out.push_back(Output::Datagram {
                to: to.clone(),
                message,
            }),
            Channel::Stream => self.send_once(to, message),
        }
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

    pub(crate) fn ignore(&mut self, what: &'static str) {
        self.ignore_all(what, 1);
    }

    pub(crate) fn ignore_all(&mut self, what: &'static str, count: usize) {
        if count > 0 {
            *self.ignored.entry(what).or_default() += u64::try_from(count).unwrap_or(u64::MAX);
        }
    }

    /// What must survive this agent is on local disk, or could not be written there.
    fn persisted(&mut self, ok: bool) {
        const WRITTEN: &str = "written";
        self.persisting = false;
        if ok {
            self.withdraw(IssueCause::StateNotKept, WRITTEN);
            return;
        }
        self.durable_dirty = true;
        self.persist_again = self.now + self.timing().network_heartbeat;
        self.issue(IssueCause::StateNotKept, WRITTEN, String::from(
            "what this agent must remember cannot be written to this host's local disk: after a restart of the agent a power-off that was under way may be forgotten, and a datastore that was restored from a snapshot is not noticed; make room, or find out what is wrong with the disk",
        ));
    }

    fn persist(&mut self) {
        if self.durable_dirty && !self.persisting && self.now >= self.persist_again {
            (self.durable_dirty, self.generations_seen) = (false, false);
            self.persisting = true;
            let op = self.op(Pending::Persist);
            let durable = self.durable.clone();
            self.out.push_back(Output::Persist(op, durable));
        }
    }

    /// All that this agent wants to remember is on local disk.
    pub(crate) fn durable_is_on_disk(&self) -> bool {
        !self.durable_dirty && !self.persisting
    }

    /// The longest of a lock's, a heartbeat's and the own `break`.
    pub(crate) fn longest_break(&self, others: &[Duration]) -> Duration {
        let own = self.constants().1;
        if planted!(self, LongerBreakIgnored) {
            return own;
        }
        others.iter().copied().fold(own, Duration::max)
    }
}
