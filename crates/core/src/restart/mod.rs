//! Restarting VMs that should run and do not: finding them, proving that nothing of them can run,
//! placing them, ordering the start, and trying again.
//!
//! ```text
//!  protected, nobody reports it ─▶ read its lock ─▶ free, should run ──────────────▶ ready ─▶ ordered ─▶ runs
//!                                     │ free, switched off: off the list            ▲  ▲         │ failed
//!                                     │ held: waits for the holder's verdict,       │  │ retry   ▼
//!                                     └── and for the proof that its right lapsed ──┘  └── waits 2, 4, 8, 8, 8 min
//! ```
//! The lock decides, not the reports: every order names the one generation that was proven, and the
//! target's swap expects exactly it. Attempts are spent only by a hypervisor that could not start the
//! VM; a lock that is still held, or a host that was not ready, costs none.

use crate::agent::{Agent, planted};
use crate::config::{FenceClass, HostShutdown, RestartPriority, VmSpec};
use crate::election::Role;
use crate::event::{EventKind, HostState, StopReason, WaitCause};
use crate::id::{DatastoreId, Generation, HostId, VmId};
use crate::io::Channel;
use crate::lock::LockName;
use crate::placement::{Choice, Room, View, plan};
use crate::tasks::TaskFor;
use crate::time::{Duration, Instant};
use crate::wire::{
    Desired, LockRecord, Message, ProtectedVm, StartOrder, StartOutcome, StartResult, VmReportState,
};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// A VM that ran for less than this after a restart spends an attempt when it dies, as a failed start does.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// A restart under way.
#[derive(Clone, Debug)]
pub(crate) struct Restart {
    pub(crate) datastore: DatastoreId,
    /// Attempts that were spent.
    pub(crate) attempt: u32,
    pub(crate) step: Step,
    pub(crate) why: String,
    said: String,
    /// The last request that was said: a start that is tried again for free is not said again.
    requested: Option<(u32, HostId)>,
    order: u64,
    /// When it was first seen that the VM does not run.
    since: Instant,
    /// Since when the host for which it waits is back.
    home_back: Option<Instant>,
    /// How often hosts could not start it: another is asked first.
    failures: BTreeMap<HostId, u32>,
}

/// Where a restart stands.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Its lock is to be read, not before that moment.
    Look(Instant),
    /// Its lock is being read.
    Looking,
    /// The lock was read; it is held, or there is no room.
    Waiting {
        record: LockRecord,
        read_done: Instant,
        reread: Instant,
        /// What it was last found to wait for; asked again when that can have changed.
        checked: Option<Checked>,
    },
    /// A host was asked.
    Ordered { host: HostId, since: Instant },
    /// It runs again since then; forgotten when it has run for long enough.
    Runs { since: Instant },
    /// No more attempts.
    Abandoned,
}

impl Restart {
    /// Why a host's lock stands between this VM and its restart, if one does.
    pub(crate) fn held_by(&self, host: &HostId) -> Option<String> {
        match &self.step {
            Step::Waiting { record, .. }
                if record.holder.as_ref().is_some_and(|h| h.host == *host) =>
            {
                Some(self.why.clone())
            }
            _ => None,
        }
    }
}

/// What is certain to keep a restart waiting. Numbers and reasons are brought up to date with each
/// heartbeat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Checked {
    /// The verdict about the lock's holder, in that heartbeat.
    Holder(HostState, u64),
    /// No host had room when what is where was at that revision, in that heartbeat.
    NoRoom(u64, u64),
}

/// Why a restart cannot be asked for yet.
enum Wait {
    /// Over within a few heartbeats: shown in `explain` only.
    Passing(String),
    /// Worth an event.
    Worth(WaitCause, String),
}

impl Agent {
    fn restarts_from(&self) -> Option<Instant> {
        match &self.role {
            Role::Primary { restarts_from, .. } => Some(*restarts_from),
            Role::Electing { .. } | Role::Secondary { .. } => None,
        }
    }

    pub(crate) fn restarts_due(&self) -> Option<Instant> {
        self.restarts
            .values()
            .filter_map(|r| match &r.step {
                Step::Look(at) => Some(*at),
                Step::Waiting { reread, .. } => Some(*reread),
                _ => None,
            })
            .filter(|at| *at > self.now)
            .min()
    }

    /// Holds what is protected against what runs: wherever something changed, and where time matters.
    pub(crate) fn reconcile(&mut self) {
        if !self.role.is_primary() {
            self.inventory.rest();
            return;
        }
        self.settle_vms();
        self.note_owned();
        let mut due = self.inventory.take_changed();
        due.extend(self.restarts.take_touched());
        let runs = |r: &Restart| matches!(r.step, Step::Runs { .. });
        due.extend(
            self.restarts
                .iter()
                .filter(|(_, r)| runs(r))
                .map(|(vm, _)| vm.clone()),
        );
        for vm in due {
            self.reconcile_vm(&vm);
        }
    }

    /// Follows which datastores are owned: what is on one that was lost is no business of this primary
    /// any more, and on one that was won everything is looked at.
    fn note_owned(&mut self) {
        let owned: BTreeMap<DatastoreId, Generation> = self
            .stores
            .keys()
            .filter_map(|d| Some((d.clone(), self.acting(d)?.generation)))
            .collect();
        if owned == self.inventory.owned {
            return;
        }
        self.restarts
            .retain(|_, r| owned.contains_key(&r.datastore));
        let won: Vec<DatastoreId> = owned
            .iter()
            .filter(|(d, g)| self.inventory.owned.get(*d) != Some(*g))
            .map(|(d, _)| d.clone())
            .collect();
        let mut all: Vec<VmId> = Vec::new();
        for datastore in &won {
            all.extend(
                self.acting(datastore)
                    .into_iter()
                    .flat_map(|a| a.list.keys())
                    .cloned(),
            );
        }
        if !won.is_empty() {
            let there = self.located().into_iter();
            let there = there.filter(|(_, place)| won.contains(&place.spec.datastore));
            all.extend(there.map(|(vm, _)| vm.clone()));
            self.inventory.tell.extend(self.peers.keys().cloned());
        }
        self.inventory.mark_all(all.into_iter());
        self.inventory.owned = owned;
    }

    /// The owned datastore on whose list the VM is.
    pub(crate) fn listed_on(&self, vm: &VmId) -> Option<DatastoreId> {
        let lists = |d: &DatastoreId| self.acting(d).is_some_and(|a| a.list.contains_key(vm));
        let home = match self.config.vms.get(vm) {
            Some(spec) => Some(&spec.datastore),
            None => self.locate(vm).map(|place| &place.spec.datastore),
        };
        match home {
            Some(home) => lists(home).then(|| home.clone()),
            // Neither configured nor reported: it may be on any list.
            None => self.inventory.owned.keys().find(|d| lists(d)).cloned(),
        }
    }

    fn reconcile_vm(&mut self, vm: &VmId) {
        let Some(place) = self.locate(vm) else {
            if let Some(datastore) = self.listed_on(vm) {
                self.reconcile_missing(&datastore, vm);
            }
            return;
        };
        let (state, host) = (place.state, place.host.clone());
        if matches!(state, VmReportState::Running | VmReportState::Frozen)
            && self.acting(&place.spec.datastore).is_some()
        {
            let datastore = place.spec.datastore.clone();
            let protected = ProtectedVm {
                vm: vm.clone(),
                cpu_mhz: place.spec.cpu_mhz,
                memory_mb: place.spec.memory_mb,
                restart_priority: place.spec.restart_priority,
                last_host: Some(host.clone()),
            };
            self.want_protected(&datastore, protected);
        }
        if self.restarts.contains_key(vm) && self.listed_on(vm).is_some() {
            self.reconcile_present(vm, &host, state);
        }
    }

    /// A protected VM that no connected host reports.
    fn reconcile_missing(&mut self, datastore: &DatastoreId, vm: &VmId) {
        let now = self.now;
        match self.restarts.get(vm).map(|r| &r.step) {
            Some(Step::Runs { since }) => {
                let since = *since;
                // A report or two may be on its way.
                if now.since(since) > 3 * self.timing().network_heartbeat {
                    self.fell_again(vm, since);
                }
            }
            Some(_) => {}
            None => {
                let restart = Restart {
                    datastore: datastore.clone(),
                    attempt: 0,
                    step: Step::Look(now),
                    why: String::from("no connected host reports it"),
                    said: String::new(),
                    home_back: None,
                    requested: None,
                    order: 0,
                    since: now,
                    failures: BTreeMap::new(),
                };
                self.restarts.insert(vm.clone(), restart);
            }
        }
    }

    /// A VM that is reported while a restart of it is under way.
    fn reconcile_present(&mut self, vm: &VmId, host: &HostId, state: VmReportState) {
        let now = self.now;
        let Some(restart) = self.restarts.get(vm) else {
            return;
        };
        match (&restart.step, state) {
            (Step::Runs { since }, _) if now.since(*since) >= STABLE_AFTER => {
                self.restarts.remove(vm);
            }
            (
                Step::Runs { .. } | Step::Ordered { .. },
                VmReportState::Starting | VmReportState::Stopping | VmReportState::Frozen,
            ) => {}
            (Step::Runs { .. }, VmReportState::Running) => {}
            (_, VmReportState::Running) => {
                if let Some(restart) = self.restarts.get_mut(vm) {
                    restart.why = format!("it runs on {host}");
                    restart.step = Step::Runs { since: now };
                }
            }
            // Somebody has it in hand: nothing is to be done, and nothing forgotten.
            (_, VmReportState::Starting | VmReportState::Stopping | VmReportState::Frozen) => {}
        }
    }

    /// It died again after a restart: too soon after counts as a failed start.
    fn fell_again(&mut self, vm: &VmId, since: Instant) {
        let now = self.now;
        let soon = now.since(since) < STABLE_AFTER;
        let Some(restart) = self.restarts.get_mut(vm) else {
            return;
        };
        restart.said.clear();
        let asked = restart.requested.take().map(|(_, host)| host);
        restart.step = Step::Look(now);
        if soon && restart.attempt > 0 {
            let host = asked.unwrap_or_else(|| self.me.host.clone());
            self.attempt_failed(
                vm,
                &host,
                String::from("it stopped right after its restart"),
            );
        } else if let Some(restart) = self.restarts.get_mut(vm) {
            restart.attempt = 0;
        }
    }

    /// Carries restarts on: reads locks, collects proofs, places and orders.
    pub(crate) fn run_restarts(&mut self) {
        let Some(from) = self.restarts_from() else {
            return;
        };
        let now = self.now;
        let mut ready: Vec<(VmSpec, LockRecord, Option<HostId>)> = Vec::new();
        let ids: Vec<VmId> = self
            .restarts
            .iter()
            .filter(|(_, r)| !self.rests(r))
            .map(|(vm, _)| vm.clone())
            .collect();
        for vm in ids {
            let Some(restart) = self.restarts.get(&vm) else {
                continue;
            };
            let datastore = restart.datastore.clone();
            if self.acting(&datastore).is_none() {
                continue;
            }
            match restart.step.clone() {
                Step::Look(at) if now >= at => self.look(&vm, &datastore),
                Step::Waiting {
                    record,
                    read_done,
                    reread,
                    checked,
                } => {
                    let may = self.may_restart(&vm, &datastore, &record, read_done);
                    // A proof that is there is used before the lock is read again, which voids it.
                    let proven = matches!(may, Ok((_, Some(_))))
                        && !matches!(checked, Some(Checked::NoRoom(..)));
                    if now >= reread
                        && !proven
                        && !self.awaits_heartbeat(&datastore, &record, read_done)
                    {
                        self.look(&vm, &datastore);
                        continue;
                    }
                    if may.is_err() {
                        self.note_checked(&vm, self.held_back(&record));
                    }
                    match may {
                        Ok((spec, broken)) if now >= from => ready.push((spec, record, broken)),
                        Ok(_) => {}
                        Err(Wait::Worth(cause, why)) => self.say_waiting(&vm, cause, &why),
                        Err(Wait::Passing(why)) => {
                            if let Some(restart) = self.restarts.get_mut(&vm) {
                                restart.why = why;
                            }
                        }
                    }
                }
                Step::Ordered { host, since } => self.check_order(&vm, &host, since),
                Step::Look(_) | Step::Looking | Step::Runs { .. } | Step::Abandoned => {}
            }
        }
        if !ready.is_empty() {
            self.order_starts(ready);
        }
    }

    /// Nothing is to be done about it now: neither has its time come, nor can what it waits for have
    /// changed.
    fn rests(&self, restart: &Restart) -> bool {
        match &restart.step {
            Step::Look(at) => self.now < *at,
            Step::Looking | Step::Runs { .. } | Step::Abandoned => true,
            Step::Ordered { .. } => false,
            Step::Waiting { reread, .. } if self.now >= *reread => false,
            Step::Waiting {
                record, checked, ..
            } => match checked {
                None => false,
                Some(Checked::Holder(..)) => *checked == self.held_back(record),
                Some(Checked::NoRoom(..)) => *checked == Some(self.no_room()),
            },
        }
    }

    /// The holder's heartbeat has not been read since the lock was. To read the lock again before that
    /// would begin the proof anew each time where the storage is slow. A heartbeat that cannot be read
    /// hides a change of the lock for no longer than a dead host takes.
    fn awaits_heartbeat(
        &self,
        datastore: &DatastoreId,
        record: &LockRecord,
        read_done: Instant,
    ) -> bool {
        let window = record.holder.as_ref().and_then(|holder| {
            let store = self.stores.get(datastore)?;
            store.windows.get(&holder.host)
        });
        window.is_some_and(|w| w.last_issue() <= read_done)
            && self.now < read_done + self.timing().dead
    }

    /// The verdict about the holder of its lock, when no lock is broken under that verdict.
    fn held_back(&self, record: &LockRecord) -> Option<Checked> {
        let holder = record.holder.as_ref()?;
        let state = self.peers.get(&holder.host)?.state;
        let certain = matches!(
            state,
            HostState::Live | HostState::Unreachable | HostState::Partitioned | HostState::Isolated
        );
        certain.then_some(Checked::Holder(state, self.beats))
    }

    fn no_room(&self) -> Checked {
        Checked::NoRoom(self.inventory.revision, self.beats)
    }

    fn note_checked(&mut self, vm: &VmId, found: Option<Checked>) {
        if let Some(restart) = self.restarts.get_mut(vm)
            && let Step::Waiting { checked, .. } = &mut restart.step
        {
            *checked = found;
        }
    }

    fn look(&mut self, vm: &VmId, datastore: &DatastoreId) {
        if self.has_task(&TaskFor::Look(vm.clone())) {
            return;
        }
        if let Some(restart) = self.restarts.get_mut(vm) {
            restart.step = Step::Looking;
        }
        self.read_lock(
            datastore,
            LockName::Vm(vm.clone()),
            TaskFor::Look(vm.clone()),
        );
    }

    /// The lock of a VM that nobody reports was read.
    pub(crate) fn on_look(&mut self, vm: &VmId, record: Option<LockRecord>) {
        let now = self.now;
        let reread = now + self.timing().poweron_poll;
        let ignore_intent = planted!(self, IntentIgnored);
        let Some(restart) = self.restarts.get_mut(vm) else {
            return;
        };
        if !matches!(restart.step, Step::Looking) {
            return;
        }
        let Some(record) = record else {
            restart.step = Step::Look(reread);
            return;
        };
        let datastore = restart.datastore.clone();
        if record.holder.is_none() && record.desired == Desired::Off && !ignore_intent {
            if self.locate(vm).is_some() {
                // It was switched on while the lock was being read, and may be protected again: a look that
                // took long must not take it off the list.
                if let Some(restart) = self.restarts.get_mut(vm) {
                    restart.step = Step::Look(reread);
                }
                return;
            }
            self.restarts.remove(vm);
            let why = String::from(
                "its lock is free and says that its user, or the guest, switched it off",
            );
            self.want_unprotected(&datastore, vm, why);
            return;
        }
        if let Some(holder) = record.holder.clone() {
            if holder.host == self.me.host {
                self.on_check_lock(vm, &datastore, record.generation);
            } else if self.peers.get(&holder.host).is_some_and(|p| p.connected()) {
                let message = Message::CheckLock {
                    vm: vm.clone(),
                    datastore: datastore.clone(),
                    generation: record.generation,
                };
                self.send(&holder.host, Channel::Stream, message);
            }
        }
        if let Some(restart) = self.restarts.get_mut(vm) {
            restart.step = Step::Waiting {
                record,
                read_done: now,
                reread,
                checked: None,
            };
        }
    }

    /// May it be restarted now? The spec, and whose lock that breaks; or why not.
    fn may_restart(
        &self,
        vm: &VmId,
        datastore: &DatastoreId,
        record: &LockRecord,
        read_done: Instant,
    ) -> Result<(VmSpec, Option<HostId>), Wait> {
        let worth = |cause, why: &str| Err(Wait::Worth(cause, String::from(why)));
        let Some(acting) = self.acting(datastore) else {
            return Err(Wait::Passing(format!("{datastore} is not owned")));
        };
        let Some(listed) = acting.list.get(vm) else {
            return worth(WaitCause::NotProtected, "it is not protected");
        };
        let spec = self.config.vms.get(vm).cloned().unwrap_or_else(|| VmSpec {
            id: vm.clone(),
            datastore: datastore.clone(),
            cpu_mhz: listed.cpu_mhz,
            memory_mb: listed.memory_mb,
            restart_priority: listed.restart_priority,
            isolation_response: None,
            depends_on: Vec::new(),
            guest_agent: true,
        });
        if let Some(why) = self.waits_for_others(vm, &spec) {
            return Err(why);
        }
        if !self.config.settings.host_monitoring {
            return worth(WaitCause::MonitoringOff, "host_monitoring is off");
        }
        if spec.restart_priority == RestartPriority::Disabled {
            return worth(
                WaitCause::PriorityDisabled,
                "its restart priority is disabled",
            );
        }
        let Some(holder) = &record.holder else {
            if let Some(why) = self.waits_for_its_host(record) {
                return Err(Wait::Worth(WaitCause::HostShutDown, why));
            }
            return Ok((spec, None));
        };
        let host = &holder.host;
        let Some(peer) = self.peers.get(host) else {
            if *host == self.me.host {
                return Err(Wait::Passing(String::from(
                    "its lock names this host, which gives it back",
                )));
            }
            return Err(Wait::Worth(
                WaitCause::HolderUnknown,
                format!("its lock names {host}, which is not in the cluster's configuration"),
            ));
        };
        let enforced = self
            .config
            .datastores
            .get(datastore)
            .is_some_and(|d| d.fence == FenceClass::Enforced);
        match peer.state {
            HostState::Dead => {}
            HostState::AgentUnreachable if enforced => {}
            HostState::AgentUnreachable => {
                return Err(Wait::Worth(
                    WaitCause::HolderUnreachable,
                    format!(
                        "the agent of {host} is unreachable but the host answers pings, and {datastore} does not refuse late writes"
                    ),
                ));
            }
            // A host in maintenance is down for its admin's reasons; the window proves the rest.
            HostState::Maintenance if self.silent_for_dead(peer) => {}
            HostState::Live | HostState::Maintenance => {
                return Err(Wait::Passing(format!(
                    "{host} holds its lock and is live; it is asked to give it back"
                )));
            }
            HostState::Unreachable => {
                return Err(Wait::Passing(format!(
                    "{host} holds its lock and is being judged: {}",
                    peer.why
                )));
            }
            HostState::Partitioned | HostState::Isolated => {
                return Err(Wait::Worth(
                    WaitCause::HolderCutOff,
                    format!(
                        "{host} holds its lock and is {}: {}",
                        Self::state_name(peer.state),
                        peer.why
                    ),
                ));
            }
        }
        if !enforced && !self.config.settings.accept_late_writes {
            return Err(Wait::Worth(
                WaitCause::LateWrites,
                format!(
                    "{datastore} does not refuse late writes of {host}; its lock is broken only with proof of death (power fencing), or with accept_late_writes"
                ),
            ));
        }
        self.window_proof(datastore, host, read_done, record.r#break)
            .map_err(Wait::Passing)?;
        let needed = acting.longest_break.max(record.r#break);
        if let Some(wait) = acting.vouched_lately(host, self.now, needed) {
            return Err(Wait::Passing(format!(
                "this owner vouched for {host} and breaks none of its locks for another {} ms",
                wait.as_millis()
            )));
        }
        let waited = self.now.since(acting.won_at);
        let waits = acting.predecessor.as_ref() != Some(host) && waited <= needed;
        if waits && !planted!(self, NewOwnerHurries) {
            return Err(Wait::Passing(format!(
                "a new owner breaks no lock for {} ms; {} ms have passed",
                needed.as_millis(),
                waited.as_millis()
            )));
        }
        Ok((spec, Some(host.clone())))
    }

    /// The host that gave a free lock back when its admin shut it down, when VMs wait for such a host.
    fn waits_for(&self, record: &LockRecord) -> Option<HostId> {
        let back = record.given_back.as_ref()?;
        let waits = self.config.settings.host_shutdown == HostShutdown::Wait
            && back.reason == StopReason::HostShutdown
            && self.config.hosts.contains_key(&back.host);
        waits.then(|| back.host.clone())
    }

    fn waits_for_its_host(&self, record: &LockRecord) -> Option<String> {
        let host = self.waits_for(record)?;
        let back = if host == self.me.host {
            self.leaving.is_none()
        } else {
            self.peers
                .get(&host)
                .is_some_and(|p| p.connected() && !p.leaving)
        };
        (!back).then(|| {
            format!("its host {host} was shut down by its admin, and VMs wait for their host (host_shutdown = wait)")
        })
    }

    /// A VM whose dependencies should run and do not yet, waits for them, but not for ever.
    fn waits_for_others(&self, vm: &VmId, spec: &VmSpec) -> Option<Wait> {
        let since = self.restarts.get(vm)?.since;
        if spec.depends_on.is_empty()
            || self.now.since(since) >= self.config.settings.dependency_timeout
        {
            return None;
        }
        let missing = spec.depends_on.iter().find(|on| {
            self.restarts
                .get(*on)
                .is_some_and(|r| !matches!(r.step, Step::Abandoned | Step::Runs { .. }))
        })?;
        Some(Wait::Worth(
            WaitCause::Dependency,
            format!("it depends on {missing}, which does not run yet"),
        ))
    }

    /// Nothing has been heard of a host, and no ping answered, for as long as a dead host takes.
    fn silent_for_dead(&self, peer: &crate::liveness::Peer) -> bool {
        let t = self.timing();
        self.now >= peer.silent_from(t.network_heartbeat) + t.dead && !peer.answers_pings()
    }

    /// Says once for what a restart waits.
    fn say_waiting(&mut self, vm: &VmId, cause: WaitCause, why: &str) {
        let Some(restart) = self.restarts.get_mut(vm) else {
            return;
        };
        // Numbers change with each look; the sentence without them is the reason.
        let reason: String = why.chars().filter(|c| !c.is_ascii_digit()).collect();
        restart.why = why.to_string();
        if restart.said == reason {
            return;
        }
        restart.said = reason;
        self.emit(
            EventKind::RestartWaiting {
                vm: vm.clone(),
                reason: why.to_string(),
                cause,
            },
            why.to_string(),
        );
    }

    /// What each host has left, with the starts that are on their way.
    fn view(&self) -> View {
        let mut view = View::default();
        let own = self.own_reported();
        let others = self.peers.iter().filter(|(_, p)| p.connected());
        let others = others.filter_map(|(h, p)| Some((h, p.report.as_ref()?)));
        for (host, report) in core::iter::once((&self.me.host, &own)).chain(others) {
            let going = if *host == self.me.host {
                self.leaving.is_some()
            } else {
                self.peers.get(host).is_some_and(|p| p.leaving)
            };
            let resting = self.config.hosts.get(host).is_none_or(|h| h.maintenance);
            if going || (resting && !planted!(self, RestingHostStarts)) {
                continue;
            }
            let room = Room {
                cpu_mhz: report.cpu_mhz,
                memory_mb: report.memory_mb,
                datastores: report.datastores.iter().cloned().collect(),
                count: report.vms.len(),
                vms: BTreeSet::new(),
                starting: 0,
                starts_at_once: self.config.settings.concurrent_restarts_per_host,
            };
            view.hosts.insert(host.clone(), room);
        }
        // Only VMs that rules name need to be told apart.
        for vm in self.config.rules.iter().flat_map(|r| &r.vms) {
            let own = self.vms.contains_key(vm).then_some(&self.me.host);
            for host in own.into_iter().chain(self.inventory.hosts_of(vm)) {
                if let Some(room) = view.hosts.get_mut(host) {
                    room.vms.insert(vm.clone());
                }
            }
        }
        for (vm, restart) in &self.restarts {
            let Step::Ordered { host, .. } = &restart.step else {
                continue;
            };
            let reported = self.inventory.hosts_of(vm).any(|h| h == host)
                || *host == self.me.host && self.vms.contains_key(vm);
            let (Some(spec), Some(room)) = (self.config.vms.get(vm), view.hosts.get_mut(host))
            else {
                continue;
            };
            room.starting += 1;
            if !reported {
                room.take(spec);
            }
        }
        view
    }

    /// The host for which a VM waited is back since less than `order_timeout`: it may not be ready yet.
    fn has_patience_with_home(&mut self, vm: &VmId) -> bool {
        let (now, limit) = (self.now, self.config.settings.order_timeout);
        let restart = self.restarts.get_mut(vm);
        restart.is_some_and(|r| now.since(*r.home_back.get_or_insert(now)) < limit)
    }

    fn order_starts(&mut self, mut ready: Vec<(VmSpec, LockRecord, Option<HostId>)>) {
        ready.sort_by(|(a, ..), (b, ..)| {
            (a.restart_priority, core::cmp::Reverse(a.memory_mb), &a.id).cmp(&(
                b.restart_priority,
                core::cmp::Reverse(b.memory_mb),
                &b.id,
            ))
        });
        let specs: Vec<VmSpec> = ready.iter().map(|(s, ..)| s.clone()).collect();
        let mut view = self.view();
        for (spec, record, _) in &ready {
            if let Some(host) = self.waits_for(record) {
                let patient = self.has_patience_with_home(&spec.id);
                view.home.insert(spec.id.clone(), (host, patient));
            }
            if let Some(restart) = self.restarts.get(&spec.id) {
                for (host, times) in &restart.failures {
                    view.failures
                        .insert((spec.id.clone(), host.clone()), *times);
                }
            }
        }
        let choices = plan(&view, &self.config.rules, &specs);
        for ((spec, record, broken), (vm, choice)) in ready.into_iter().zip(choices) {
            match choice {
                Choice::Nowhere(refusals) => {
                    let (cause, why) = if refusals.is_empty() {
                        (WaitCause::NoHost, String::from("no host is connected"))
                    } else {
                        let why = format!("no host has room for it ({})", refusals.join("; "));
                        (WaitCause::NoRoom, why)
                    };
                    self.say_waiting(&vm, cause, &why);
                    self.note_checked(&vm, Some(self.no_room()));
                }
                Choice::Host(host, refusals) => self.order(spec, &record, broken, host, &refusals),
            }
        }
    }

    fn order(
        &mut self,
        spec: VmSpec,
        record: &LockRecord,
        broken: Option<HostId>,
        host: HostId,
        refusals: &[String],
    ) {
        let vm = spec.id.clone();
        if let Some(from) = &broken {
            self.note_proven(&spec.datastore, from);
        }
        let number = self.number();
        let now = self.now;
        let best = if self.waits_for(record).as_ref() == Some(&host) {
            format!("{host}, on which it ran, is back")
        } else {
            format!("{host} has the most room")
        };
        let Some(restart) = self.restarts.get_mut(&vm) else {
            return;
        };
        restart.attempt += 1;
        restart.order = number;
        restart.step = Step::Ordered {
            host: host.clone(),
            since: now,
        };
        let proof = match &broken {
            Some(from) => format!(
                "{from} lost it, and its right to run under generation {} has lapsed",
                record.generation
            ),
            None => String::from("its lock is free and it should run"),
        };
        let others = if refusals.is_empty() {
            String::new()
        } else {
            format!("; not on {}", refusals.join("; not on "))
        };
        let least = restart.failures.get(&host).copied().unwrap_or(0);
        let failed = restart.failures.iter().filter(|(_, times)| **times > least);
        let failed: Vec<&str> = failed.map(|(host, _)| host.as_str()).collect();
        let failed = match failed.is_empty() {
            true => String::new(),
            false => format!("; {} could not start it", failed.join(", ")),
        };
        restart.why = format!("{proof}; {best}{others}{failed}");
        let (attempt, why) = (restart.attempt, restart.why.clone());
        let said = restart.requested.replace((attempt, host.clone()));
        if said != Some((attempt, host.clone())) {
            self.emit(
                EventKind::RestartRequested {
                    vm,
                    host: host.clone(),
                    attempt,
                },
                why,
            );
        }
        let order = StartOrder {
            order: number,
            spec,
            expected: record.generation,
            expected_nonce: record.nonce,
            broken_from: broken,
            attempt,
        };
        if host == self.me.host {
            self.on_start_order(&host, order);
        } else {
            self.send(&host, Channel::Stream, Message::Start(order));
        }
    }

    /// An order whose host was lost or says nothing is taken back; the lock tells what came of it.
    fn check_order(&mut self, vm: &VmId, host: &HostId, since: Instant) {
        let now = self.now;
        let lost = *host != self.me.host && !self.peers.get(host).is_some_and(|p| p.connected());
        let late = now.since(since) >= self.config.settings.order_timeout;
        if (lost || late)
            && let Some(restart) = self.restarts.get_mut(vm)
        {
            restart.why = format!(
                "{host} was asked to start it and {}",
                if lost { "was lost" } else { "said nothing" }
            );
            restart.attempt = restart.attempt.saturating_sub(1);
            restart.step = Step::Look(now);
            if !lost {
                *restart.failures.entry(host.clone()).or_insert(0) += 1;
            }
            self.inventory.revision += 1;
        }
    }

    pub(crate) fn on_start_result(&mut self, from: &HostId, result: StartResult) {
        let now = self.now;
        let soon = now + self.timing().network_heartbeat;
        let Some(restart) = self.restarts.get_mut(&result.vm) else {
            return;
        };
        if restart.order != result.order || !matches!(restart.step, Step::Ordered { .. }) {
            return;
        }
        // Whatever became of it, there may be room for another.
        self.inventory.revision += 1;
        match result.outcome {
            StartOutcome::Started(generation) => {
                restart.why = format!("it was started on {from} under generation {generation}");
                restart.step = Step::Runs { since: now };
                self.reconcile();
            }
            StartOutcome::LockLost => {
                restart.attempt = restart.attempt.saturating_sub(1);
                restart.step = Step::Look(soon);
            }
            StartOutcome::ImageLocked => {
                restart.attempt = restart.attempt.saturating_sub(1);
                restart.step = Step::Look(soon);
                self.say_waiting(&result.vm, WaitCause::ImageLocked, "the storage still holds the image lock of the host that was lost; tried again at each heartbeat, no attempt is spent");
            }
            StartOutcome::NotReady(why) => {
                restart.attempt = restart.attempt.saturating_sub(1);
                restart.step = Step::Look(soon);
                let why = format!("{from} was not ready: {why}");
                self.say_waiting(&result.vm, WaitCause::HostNotReady, &why);
            }
            StartOutcome::Failed(why) => self.attempt_failed(&result.vm, from, why),
        }
    }

    fn attempt_failed(&mut self, vm: &VmId, host: &HostId, reason: String) {
        let now = self.now;
        let limit = self.config.settings.max_restart_attempts;
        let Some(restart) = self.restarts.get_mut(vm) else {
            return;
        };
        let attempt = restart.attempt;
        *restart.failures.entry(host.clone()).or_insert(0) += 1;
        let delay = self.config.settings.retry_delay(attempt.saturating_sub(1));
        let ended = attempt > limit && !planted!(self, RetriesForEver);
        restart.step = if ended {
            Step::Abandoned
        } else {
            Step::Look(now + delay)
        };
        restart.why = reason.clone();
        let (vm, host) = (vm.clone(), host.clone());
        self.emit(
            EventKind::RestartFailed {
                vm: vm.clone(),
                host,
                attempt,
                reason: reason.clone(),
            },
            reason,
        );
        if ended {
            let reason =
                format!("{limit} retries after the first attempt failed (max_restart_attempts)");
            self.emit(
                EventKind::RestartAbandoned {
                    vm,
                    attempt,
                    reason: reason.clone(),
                },
                reason,
            );
        }
    }
}
