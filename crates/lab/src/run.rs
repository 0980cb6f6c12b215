//! One scenario on real processes, from the first agent to the last verdict.
//!
//! ```text
//! make --> settle --> zero --> play the events, hear the agents, look at disks and process tables --> judge
//! ```
//!
//! The agents' words are what is compared with expectations about events; what runs, and whether something was
//! broken, is judged by the disks and the process tables alone.

mod agenda;
mod disks;
mod faults;
mod jobs;
mod judge;
mod listen;
mod measure;
mod service;
mod settle;
mod table;

use crate::clock::now;
use crate::cluster::{Cluster, Options};
use crate::fail::{Failure, Result};
use agenda::{Agenda, Due};
pub use disks::{Breach, Disks, Stretch, Stroke};
use jobs::Answer;
use judge::Judge;
use listen::Ear;
use mainstay_core::event::Event;
use mainstay_core::id::{HostId, VmId};
use mainstay_core::time::{Duration, Instant};
use mainstay_sim::{Body, Check, Entry, Fault, Planned, RunResult, Scenario, Watch};
pub use measure::{AtRest, Loss, Victim};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use table::Table;

/// Between two looks at the process tables.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After the last moment of a run agents may still have something to tell of it.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What a run hears.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The agent of that host reports an event.
    Event(usize, Box<Event>),
    /// What was asked of an agent has been answered.
    Answer(Box<Answer>),
    /// Ctrl-C, SIGTERM or SIGHUP.
    Stop,
}

/// Ends a run from outside.
#[derive(Debug, Clone)]
pub struct Stopper(Sender<Heard>);

impl Stopper {
    /// The run ends at once, and clears up.
    pub fn stop(&self) {
        // A run that is over needs no end.
        drop(self.0.send(Heard::Stop));
    }
}

/// Who looks on while a scenario is played.
pub trait Audience {
    /// What is being done before the first event.
    fn phase(&mut self, text: &str);
    /// Something happened; `zero` is none before it. A fault that was refused comes once more, with the reason.
    fn entry(&mut self, entry: &Entry, zero: Option<u64>);
    /// The process tables were looked at, some times a second from zero on.
    fn looked(&mut self, _: &Look<'_>) {}
    /// Whether what it watched by itself is as it should be; files of a run are kept where it is not.
    fn content(&mut self) -> bool {
        true
    }
}

/// A look at the process tables.
#[derive(Debug)]
pub struct Look<'a> {
    /// When.
    pub since_zero: Duration,
    /// What was looked at.
    pub cluster: &'a Cluster,
    /// VMs that execute somewhere.
    pub running: usize,
    /// Properties found broken so far.
    pub broken: usize,
}

/// Nobody.
#[derive(Debug, Default, Clone, Copy)]
pub struct Nobody;

impl Audience for Nobody {
    fn phase(&mut self, _: &str) {}
    fn entry(&mut self, _: &Entry, _: Option<u64>) {}
}

/// What became of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Trace, verdicts and violations, as the simulator gives them.
    pub result: RunResult,
    /// Where files are that were kept.
    pub kept: Option<std::path::PathBuf>,
}

/// Names of what the lab cannot play in this scenario, each once: events, and properties of hosts or datastores.
#[must_use]
pub fn unplayable(scenario: &Scenario) -> Vec<String> {
    faults::unplayable(scenario)
}

/// A run in the making.
#[derive(Debug)]
pub struct Run<'a> {
    scenario: &'a Scenario,
    options: Options,
    heard: Receiver<Heard>,
    to_self: Sender<Heard>,
}

impl<'a> Run<'a> {
    /// A run of that scenario.
    #[must_use]
    pub fn new(scenario: &'a Scenario, options: Options) -> Self {
        let (to_self, heard) = channel();
        Self {
            scenario,
            options,
            heard,
            to_self,
        }
    }

    /// What ends it from another thread.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(self.to_self.clone())
    }

    /// Plays it to its end.
    ///
    /// # Errors
    /// When this machine lacks something, or somebody stops it. What goes wrong with the cluster is in the outcome.
    pub fn play(self, audience: &mut dyn Audience) -> Result<Outcome> {
        let mut stage = Stage::raise(self, audience)?;
        let error = match stage.settle().and_then(|()| stage.perform()) {
            Err(failure) if failure.is_interrupted() => return Err(failure),
            Err(failure) => Some(failure.one_line()),
            Ok(()) => None,
        };
        let passed = error.is_none();
        let result = stage.close(error);
        let keep = !(passed && result.pass() && stage.audience.content());
        if keep {
            stage.cluster.keep_files();
        }
        let kept = (keep || stage.options.keep).then(|| stage.cluster.dir().to_owned());
        Ok(Outcome { result, kept })
    }
}

/// Everything about a run that goes on.
struct Stage<'a> {
    scenario: &'a Scenario,
    options: Options,
    cluster: Cluster,
    disks: Arc<Disks>,
    audience: &'a mut dyn Audience,
    heard: Receiver<Heard>,
    to_self: Sender<Heard>,
    /// When the lab began: entries count from it.
    base: Instant,
    zero: Option<Instant>,
    agenda: Agenda,
    trace: Vec<Entry>,
    said: BTreeSet<(Instant, String)>,
    ears: Vec<Option<Ear>>,
    watch: Watch,
    judge: Judge,
    table: Table,
    /// What is known of each host beyond the cluster's own.
    hosts: Vec<Standing>,
    homes: Vec<Option<usize>>,
    /// All VMs begin on such a host, whatever the scenario says.
    gather: Option<Victim>,
    protected: BTreeSet<VmId>,
    first_primary: Option<Instant>,
    primaries: BTreeSet<HostId>,
    /// Boots that have begun.
    booting: BTreeSet<(usize, u64)>,
    /// Processes, by id and start time, whose guests were made to hang: they do not hear.
    deaf: BTreeSet<(i32, u64)>,
}

/// What a run knows of a host.
#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    /// Counts its boots, so that what was planned for an earlier one is dropped.
    boot: u64,
    agent_hung: bool,
    /// When it, or its guard, last went on after a pause.
    went_on: Option<Instant>,
    /// Its admin shuts it down; true: to boot it again.
    leaving: Option<bool>,
    service: service::Service,
}

impl<'a> Stage<'a> {
    fn raise(run: Run<'a>, audience: &'a mut dyn Audience) -> Result<Self> {
        audience.phase("making hosts, networks and storage");
        let disks = Arc::new(Disks::default());
        let base = now();
        let observer: Arc<Disks> = Arc::clone(&disks);
        let cluster = Cluster::make(run.scenario, &run.options, observer)?;
        for vm in &run.scenario.vms {
            let known = run.scenario.config.vms.get(&vm.id);
            if let Some(spec) = known.or_else(|| run.scenario.created.get(&vm.id)) {
                disks.watch(&spec.datastore, &crate::cluster::image_path(&vm.id), &vm.id);
            }
        }
        let hosts = run.scenario.hosts.len();
        Ok(Self {
            watch: Watch::new(&run.scenario.expects),
            judge: Judge::new(run.scenario),
            homes: run.scenario.homes(),
            gather: None,
            scenario: run.scenario,
            options: run.options,
            cluster,
            disks,
            audience,
            heard: run.heard,
            to_self: run.to_self,
            base,
            zero: None,
            agenda: Agenda::default(),
            trace: Vec::new(),
            said: BTreeSet::new(),
            ears: (0..hosts).map(|_| None).collect(),
            table: Table::default(),
            hosts: vec![Standing::default(); hosts],
            protected: BTreeSet::new(),
            first_primary: None,
            primaries: BTreeSet::new(),
            booting: BTreeSet::new(),
            deaf: BTreeSet::new(),
        })
    }

    /// Time since the lab began, in nanoseconds.
    fn since_base(&self, at: Instant) -> u64 {
        u64::try_from(at.since(self.base).as_nanos()).unwrap_or(u64::MAX)
    }

    fn zero_nanos(&self) -> Option<u64> {
        self.zero.map(|z| self.since_base(z))
    }

    fn note(&mut self, at: Instant, body: Body, why: String) {
        let entry = Entry {
            at: self.since_base(at),
            body,
            why,
        };
        let zero = self.zero_nanos();
        self.audience.entry(&entry, zero);
        self.trace.push(entry);
    }

    /// Hears one thing, or nothing until then.
    fn hear(&mut self, deadline: Instant) -> Result<()> {
        match self.heard.recv_timeout(deadline.since(now())) {
            Ok(heard) => self.take(heard),
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(Failure::interrupted()),
        }
    }

    /// Waits until then, hearing.
    fn wait_until(&mut self, deadline: Instant) -> Result<()> {
        while now() < deadline {
            self.hear(deadline)?;
        }
        Ok(())
    }

    fn take(&mut self, heard: Heard) -> Result<()> {
        match heard {
            Heard::Stop => return Err(Failure::interrupted()),
            Heard::Event(host, event) => self.take_event(host, *event),
            Heard::Answer(answer) => self.take_answer(*answer),
        }
        Ok(())
    }

    fn take_event(&mut self, host: usize, event: Event) {
        let text = serde_json::to_string(&event.kind).unwrap_or_default();
        if event.at < self.base || !self.said.insert((event.at, format!("{host} {text}"))) {
            return;
        }
        self.learn(&event);
        self.judge.heard(&event, self.since_base(event.at));
        self.note(event.at, Body::Event(event.kind), event.why);
    }

    /// Plays everything that is planned, from zero to the end.
    fn perform(&mut self) -> Result<()> {
        let zero = self.zero.unwrap_or_else(now);
        for (index, planned) in self.scenario.events.iter().enumerate() {
            self.agenda
                .at(zero + Duration::from_nanos(planned.at), Due::Fault(index));
        }
        for (index, expect) in self.scenario.expects.iter().enumerate() {
            if let Check::State { by, .. } = expect.check {
                let by = by.min(self.scenario.duration);
                self.agenda
                    .at(zero + Duration::from_nanos(by), Due::Moment(index));
            }
        }
        self.agenda.at(zero, Due::Look);
        let end = zero + Duration::from_nanos(self.scenario.duration);
        self.agenda.at(end, Due::End);
        while let Some(at) = self.agenda.first() {
            if now() < at {
                // What is heard may plan something that is due before.
                self.hear(at)?;
                continue;
            }
            match self.agenda.take() {
                None | Some((_, Due::End)) => break,
                Some((at, due)) => self.do_now(at, due)?,
            }
        }
        self.judge.end(
            self.scenario,
            &self.cluster,
            &self.table,
            self.since_base(end),
        );
        self.wait_until(end + LAST_WORDS)
    }

    fn do_now(&mut self, at: Instant, due: Due) -> Result<()> {
        match due {
            Due::Fault(index) => {
                if let Some(Planned { fault, .. }) = self.scenario.events.get(index) {
                    self.play(&fault.clone())?;
                }
            }
            Due::Moment(index) => self.moment(index),
            Due::Look => {
                self.look();
                self.serve(now())?;
                self.agenda.at((at + LOOK_EVERY).max(now()), Due::Look);
            }
            Due::NetworkUp { host, boot } => {
                if self.standing(host).boot == boot {
                    self.cluster.network().plug(host, true)?;
                }
            }
            Due::Boot { host, boot } => self.booted(host, boot)?,
            Due::StartAgent { host, boot } => {
                if self.standing(host).boot == boot && self.cluster.host(host)?.powered {
                    self.change_standing(host, |s| s.service.stopped = false);
                    self.cluster.start_agent(host)?;
                }
            }
            Due::PowerGoes { host, boot, again } => {
                if self.standing(host).boot == boot {
                    self.power_off(host)?;
                    if again {
                        self.power_on(host);
                    }
                }
            }
            Due::End => {}
        }
        Ok(())
    }

    fn standing(&self, host: usize) -> Standing {
        self.hosts.get(host).copied().unwrap_or_default()
    }

    fn change_standing(&mut self, host: usize, change: impl FnOnce(&mut Standing)) {
        if let Some(standing) = self.hosts.get_mut(host) {
            change(standing);
        }
    }

    /// A host, or its guard, that stood still goes on.
    fn goes_on(&mut self, host: usize) {
        self.change_standing(host, |s| s.went_on = Some(now()));
    }

    fn moment(&mut self, index: usize) {
        self.look();
        if let Some(Check::State { vm, .. }) = self.scenario.expects.get(index).map(|e| &e.check)
            && let Some(setup) = self.scenario.vms.get(*vm)
        {
            let facts = self.table.facts(setup.id.as_str());
            self.watch.moment(&self.scenario.expects, index, &facts);
        }
    }

    /// Hears the guards of agents that hang: nobody else says what they did.
    fn hear_guards(&mut self) {
        let hung = |(index, standing): (usize, &Standing)| standing.agent_hung.then_some(index);
        let hung: Vec<usize> = self.hosts.iter().enumerate().filter_map(hung).collect();
        for host in hung {
            let run_dir = self.cluster.host(host).map(|h| h.run_dir.clone());
            let events = run_dir.map(|dir| mainstay_agent::guard_events(&dir));
            for event in events.unwrap_or_default() {
                self.take_event(host, event);
            }
        }
    }

    /// Hosts whose guards may not have had the time yet to stop what lapsed while they stood still: what runs there
    /// for so long is what the protocol leaves to the storage.
    fn late_guards(&self, at: Instant) -> BTreeSet<usize> {
        let latency = self.scenario.config.settings.timing.guard_latency;
        let late = |standing: &Standing| standing.went_on.is_some_and(|on| at < on + latency);
        let hosts = self.hosts.iter().enumerate();
        hosts
            .filter_map(|(host, standing)| late(standing).then_some(host))
            .collect()
    }

    /// Looks at the process tables: expectations, and what must never be.
    fn look(&mut self) {
        self.hear_guards();
        let at = now();
        let before = std::mem::replace(&mut self.table, Table::look(&self.cluster));
        let t = self.since_base(at);
        let late = self.late_guards(at);
        self.judge
            .looked(self.scenario, (&before, &self.table), &late, t);
        let Some(zero) = self.zero.filter(|z| at >= *z) else {
            return;
        };
        let since = u64::try_from(at.since(zero).as_nanos()).unwrap_or(u64::MAX);
        for (index, vm) in self.scenario.vms.iter().enumerate() {
            let facts = self.table.facts(vm.id.as_str());
            self.watch
                .changed(&self.scenario.expects, index, since, &facts);
        }
        let runs = |vm: &&mainstay_sim::VmSetup| {
            let facts = self.table.facts(vm.id.as_str());
            !facts.running.is_empty()
        };
        let look = Look {
            since_zero: Duration::from_nanos(since),
            cluster: &self.cluster,
            running: self.scenario.vms.iter().filter(runs).count(),
            broken: self.judge.broken_so_far() + self.disks.breached(),
        };
        self.audience.looked(&look);
    }

    /// Judges it all.
    fn close(&mut self, error: Option<String>) -> RunResult {
        let zero = self.zero_nanos().unwrap_or(0);
        self.trace.sort_by_key(|e| e.at);
        let verdicts = self.watch.judge(&self.scenario.expects, &self.trace, zero);
        let base = self.base;
        let disks = self.disks.breaches().into_iter();
        let disks = disks.map(|b| judge::violation(b.property, b.at.since(base), b.what));
        let mut violations = self.judge.violations();
        violations.extend(disks);
        RunResult {
            trace: std::mem::take(&mut self.trace),
            zero,
            verdicts,
            violations,
            error,
            hosts: Vec::new(),
            virtual_time: self.scenario.duration,
            steps: 0,
        }
    }

    fn fault_entry(&mut self, fault: &Fault, why: String) {
        let arguments = fault.arguments(&self.scenario.names());
        let body = Body::Fault {
            what: fault.name(),
            arguments,
        };
        self.note(now(), body, why);
    }
}
