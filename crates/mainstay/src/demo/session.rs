//! One cluster and its audience: waits, tells events as they come, watches VMs come back.

use super::cluster::{Cluster, now};
use super::files::DemoHost;
use super::remote::{Request, Word};
use super::tell::Teller;
use crate::fail::{Failure, Result};
use crate::show::event_text;
use crate::ui::Tone;
use mainstay_agent::control::EventLine;
use mainstay_agent::control::client::Client;
use mainstay_core::event::{Event, EventKind, HostState};
use mainstay_core::id::{HostId, VmId};
use mainstay_core::status::Status;
use mainstay_core::time::Instant;
use mainstay_core::wire::RoleTag;
use mainstay_lab::procs::Killed;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

/// How often conditions are looked at: a counter on a disk grows every 100 ms.
const TICK: Duration = Duration::from_millis(10);
/// How long a counter's line waits for the event that says where the VM was started.
const EVENT_GRACE: Duration = Duration::from_millis(500);

/// What a session hears.
#[derive(Debug)]
pub(crate) enum Happening {
    /// An agent reports an event.
    Event(Box<EventLine>),
    /// Somebody asks something of the demo.
    Word(Word),
    /// Ctrl-C, SIGTERM or SIGHUP.
    Stop,
}

/// A VM that died with its host.
#[derive(Debug, Clone)]
pub(crate) struct Lost {
    /// The VM.
    pub(crate) vm: VmId,
    /// The counter on its disk when its host was dead.
    pub(crate) stopped_at: u64,
    /// Where and when it was started again, by the event.
    pub(crate) started: Option<(HostId, Duration)>,
    /// The first counter seen after it, and when that was written.
    pub(crate) back: Option<(u64, Duration)>,
    told: bool,
}

/// A host's death and what became of its VMs.
#[derive(Debug, Clone)]
pub(crate) struct Failover {
    /// The host.
    pub(crate) victim: HostId,
    /// When it was killed.
    pub(crate) at: Instant,
    /// Its VMs.
    pub(crate) lost: Vec<Lost>,
    /// Time to the verdict: dead.
    pub(crate) verdict: Option<Duration>,
    was_primary: bool,
}

impl Failover {
    /// Whether every VM counts again.
    pub(crate) fn done(&self) -> bool {
        self.lost.iter().all(|l| l.told)
    }

    /// Time until the last VM counted again.
    pub(crate) fn out_for(&self) -> Option<Duration> {
        let times: Option<Vec<Duration>> = self
            .lost
            .iter()
            .map(|l| l.back.map(|(_, after)| after))
            .collect();
        times?.into_iter().max()
    }

    /// Machine-readable.
    pub(crate) fn to_json(&self) -> Value {
        let seconds = |d: Duration| d.as_secs_f64();
        let vms: Vec<Value> = self
            .lost
            .iter()
            .map(|l| {
                json!({
                    "vm": l.vm,
                    "stopped_at": l.stopped_at,
                    "started_on": l.started.as_ref().map(|(host, _)| host),
                    "started_s": l.started.as_ref().map(|(_, after)| seconds(*after)),
                    "went_on_at": l.back.map(|(first, _)| first),
                    "out_for_s": l.back.map(|(_, after)| seconds(after)),
                })
            })
            .collect();
        json!({
            "killed": self.victim,
            "was_primary": self.was_primary,
            "verdict_s": self.verdict.map(seconds),
            "out_for_s": self.out_for().map(seconds),
            "vms": vms,
        })
    }

    fn learn(&mut self, event: &Event) {
        if event.at < self.at {
            return;
        }
        let after = event.at.since(self.at);
        match &event.kind {
            EventKind::HostState {
                host,
                to: HostState::Dead,
                ..
            } if *host == self.victim => {
                self.verdict.get_or_insert(after);
            }
            EventKind::VmStarted { vm, host, .. } => {
                if let Some(lost) = self
                    .lost
                    .iter_mut()
                    .find(|l| l.vm == *vm && l.started.is_none())
                {
                    lost.started = Some((host.clone(), after));
                }
            }
            _ => {}
        }
    }
}

/// One cluster and its audience.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    /// The cluster.
    pub(crate) cluster: Cluster,
    /// How it is told.
    pub(crate) tell: Teller,
    /// What died and came back.
    pub(crate) failovers: Vec<Failover>,
    /// Events are told as they come.
    pub(crate) telling_events: bool,
    /// Others may kill and start hosts.
    pub(crate) open: bool,
    heard: &'a Receiver<Happening>,
    to_self: Sender<Happening>,
    seen: BTreeSet<(Instant, String)>,
}

impl<'a> Session<'a> {
    /// A session about a cluster that was built.
    pub(crate) fn new(
        cluster: Cluster,
        tell: Teller,
        heard: &'a Receiver<Happening>,
        to_self: Sender<Happening>,
    ) -> Self {
        Self {
            cluster,
            tell,
            failovers: Vec::new(),
            telling_events: false,
            open: false,
            heard,
            to_self,
            seen: BTreeSet::new(),
        }
    }

    /// Switches a host on and listens to its agent.
    pub(crate) fn start(&mut self, host: &DemoHost) -> Result<()> {
        self.cluster.start(host)?;
        let (socket, to) = (host.socket(), self.to_self.clone());
        let pid_file = host.config();
        let spawned = std::thread::Builder::new()
            .name(format!("events of {}", host.id))
            .spawn(move || follow(&socket, &pid_file, &to));
        spawned
            .map(drop)
            .map_err(|e| Failure::new(format_args!("cannot start a thread: {e}")))
    }

    /// Waits until `check` gives a value, telling what happens meanwhile.
    pub(crate) fn wait<T>(
        &mut self,
        limit: Duration,
        mut check: impl FnMut(&mut Self) -> Result<std::result::Result<T, String>>,
    ) -> Result<T> {
        let deadline = std::time::Instant::now() + limit;
        loop {
            let missing = match check(self)? {
                Ok(value) => return Ok(value),
                Err(missing) => missing,
            };
            if std::time::Instant::now() >= deadline {
                let waited = crate::ui::seconds(limit);
                return Err(Failure::new(format_args!("after {waited}, {missing}"))
                    .at(self.cluster.dir().display())
                    .remedy("the logs of each host lie in its directory there, below log/"));
            }
            self.hear(TICK)?;
        }
    }

    /// Hears what happens within `patience`.
    pub(crate) fn hear(&mut self, patience: Duration) -> Result<()> {
        let mut next = match self.heard.recv_timeout(patience) {
            Ok(happening) => Some(happening),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Err(Failure::interrupted()),
        };
        while let Some(happening) = next {
            match happening {
                Happening::Stop => return Err(Failure::interrupted()),
                Happening::Event(line) => self.take_event(&line),
                Happening::Word(word) => self.take_word(word),
            }
            next = self.heard.try_recv().ok();
        }
        self.look_at_disks();
        Ok(())
    }

    fn take_event(&mut self, line: &EventLine) {
        let event = &line.event;
        let (text, tone) = event_text(&event.kind);
        if !self.seen.insert((event.at, text.clone())) {
            return;
        }
        for failover in &mut self.failovers {
            failover.learn(event);
        }
        if !self.telling_events {
            return;
        }
        let last = self.failovers.iter().rev().find(|f| f.at <= event.at);
        if last.is_none() && !self.open {
            return;
        }
        let data = serde_json::to_value(line).unwrap_or_default();
        self.tell
            .happened(last.map(|f| event.at.since(f.at)), text, tone, &data);
        self.tell.why(&event.why);
    }

    fn take_word(&mut self, word: Word) {
        let answer = if self.open {
            self.obey(&word.request)
        } else {
            Err(Failure::new("the demo is still busy with its own failover")
                .remedy("try again in a moment"))
        };
        // Whoever asked may have gone.
        drop(word.answer.send(answer));
    }

    fn obey(&mut self, request: &Request) -> Result<Value> {
        match request {
            Request::Kill { host } => {
                let host = self.cluster.host(host)?;
                if !self.cluster.is_up(&host.id) {
                    return Err(Failure::new(format_args!("{} is off", host.id)).remedy(
                        format_args!("switch it on: mainstay demo start {}", host.id),
                    ));
                }
                self.kill(&host)
                    .map(|f| json!({ "killed": f.victim, "vms": f.lost.len() }))
            }
            Request::Start { host } => {
                let host = self.cluster.host(host)?;
                if self.cluster.is_up(&host.id) {
                    return Err(Failure::new(format_args!("{} is on", host.id)).remedy(
                        format_args!("kill it first: mainstay demo kill {}", host.id),
                    ));
                }
                self.start(&host)?;
                self.tell.happened(
                    None,
                    format_args!("{} is switched on again", host.id),
                    Tone::Plain,
                    &Value::Null,
                );
                Ok(json!({ "started": host.id }))
            }
        }
    }

    /// Kills a host the hard way and begins to watch its VMs.
    pub(crate) fn kill(&mut self, host: &DemoHost) -> Result<Failover> {
        let homes = self.homes();
        let was_primary = self.primary().is_some_and(|p| p == host.id);
        let death = self.cluster.kill(host)?;
        let lost: Vec<Lost> = homes
            .into_iter()
            .filter(|(_, home)| *home == host.id)
            .map(|(vm, _)| Lost {
                stopped_at: self.cluster.counter(&vm).map_or(0, |c| c.counter),
                vm,
                started: None,
                back: None,
                told: false,
            })
            .collect();
        let text = format!(
            "killing {} ({} at once)",
            host.id,
            describe(&death.killed, lost.len())
        );
        let data = json!({ "killed": host.id, "processes": death.killed.processes.len() });
        self.tell
            .happened(Some(Duration::ZERO), text, Tone::Bad, &data);
        for lost in &lost {
            self.tell.why(&format!(
                "the disk of {} stands still at {}",
                lost.vm, lost.stopped_at
            ));
        }
        let failover = Failover {
            victim: host.id.clone(),
            at: death.at,
            lost,
            verdict: None,
            was_primary,
        };
        self.failovers.push(failover.clone());
        Ok(failover)
    }

    /// Looks for counters that went on.
    fn look_at_disks(&mut self) {
        let mut news = Vec::new();
        for failover in &mut self.failovers {
            for lost in failover.lost.iter_mut().filter(|l| !l.told) {
                if lost.back.is_none()
                    && let Some(counter) = self.cluster.counter(&lost.vm)
                    && counter.counter > lost.stopped_at
                {
                    // The guest's own note of the time is more exact than ours, where it makes one.
                    let written = match counter.boottime_ns {
                        0 => now(),
                        ns => Instant::from_nanos(ns),
                    };
                    lost.back = Some((counter.counter, written.since(failover.at)));
                }
                let waited = |after: Duration| now().since(failover.at) > after + EVENT_GRACE;
                if let Some((first, after)) = lost.back
                    && (lost.started.is_some() || waited(after))
                {
                    lost.told = true;
                    news.push((after, lost.clone(), first));
                }
            }
        }
        for (after, lost, first) in news {
            let place = lost
                .started
                .as_ref()
                .map_or(String::new(), |(host, _)| format!(", on {host}"));
            let text = format!(
                "the disk of {} goes on where it stopped: {}, then {first}{place}",
                lost.vm, lost.stopped_at
            );
            let data = json!({ "vm": lost.vm, "stopped_at": lost.stopped_at, "went_on_at": first });
            self.tell.happened(Some(after), text, Tone::Good, &data);
        }
    }

    /// The status of each host that is on and answers.
    pub(crate) fn statuses(&self) -> Vec<(DemoHost, Status)> {
        let ask = |host: &DemoHost| {
            self.cluster
                .client(host)
                .and_then(|c: Client| Ok(c.status()?))
                .ok()
        };
        self.cluster
            .up()
            .filter_map(|host| Some((host.clone(), ask(host)?)))
            .collect()
    }

    /// Where each VM runs, by what the hosts say of themselves.
    pub(crate) fn homes(&self) -> BTreeMap<VmId, HostId> {
        let mut homes = BTreeMap::new();
        for (host, status) in self.statuses() {
            for vm in status
                .vms
                .iter()
                .filter(|v| v.host.as_ref() == Some(&host.id))
            {
                if matches!(vm.state.as_str(), "running" | "frozen") {
                    homes.insert(vm.vm.clone(), host.id.clone());
                }
            }
        }
        homes
    }

    /// The host that is the primary and knows it.
    pub(crate) fn primary(&self) -> Option<HostId> {
        self.statuses()
            .into_iter()
            .find(|(_, s)| s.role == RoleTag::Primary)
            .map(|(h, _)| h.id)
    }
}

/// `agent, guard and 1 guest`.
fn describe(killed: &Killed, vms: usize) -> String {
    let mut parts = Vec::new();
    for word in ["agent", "guard"] {
        if killed.with_word(word) > 0 {
            parts.push(word.to_owned());
        }
    }
    parts.push(match vms {
        0 => "no guest".into(),
        1 => "1 guest".into(),
        n => format!("{n} guests"),
    });
    match parts.pop() {
        Some(last) if !parts.is_empty() => format!("{} and {last}", parts.join(", ")),
        Some(last) => last,
        None => String::new(),
    }
}

/// Hands on the events of one agent for as long as the demo's files are there; an agent that is
/// started again is listened to again.
fn follow(socket: &Path, config: &Path, to: &Sender<Happening>) {
    let mut quiet = 0_u32;
    // An agent that was not there for ten seconds belongs to a host that is off.
    while quiet < 200 && config.exists() {
        if let Ok(events) = Client::connect(socket).and_then(|c| c.events(None, true)) {
            quiet = 0;
            for event in events.map_while(std::result::Result::ok) {
                if to.send(Happening::Event(Box::new(event))).is_err() {
                    return;
                }
            }
        }
        quiet += 1;
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
