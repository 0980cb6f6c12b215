//! The agent's process: sets everything up, then one loop that waits for an event, hands it to the
//! core, and performs what the core asks for, in that order.
//!
//! Never here: a decision about hosts, VMs or locks.

use crate::config::{AgentFile, ClusterFile, ClusterKey, FileError, Probe};
use crate::control::server::{self, Ask, ControlError};
use crate::control::{Pong, Readiness};
use crate::datastores::{Datastores, Opened};
use crate::events::EventLog;
use crate::guard_link::{GuardLink, Seen, Starter};
use crate::net::ping::{Target, icmp_available, ping};
use crate::net::stream::{Patience, Streamed, Streams, Tls, TlsError};
use crate::net::udp::{Link, Received, Udp};
use crate::net::{self, Addresses, OnNetwork, Rejects, isolation};
use crate::persist::{self, Kept, Persister};
use crate::twin::{Role, Seat, TwinError};
use crate::vms::{Report, Vms, VmsConfig};
use crate::weak::Source;
use crate::{clock, drivers, guard, logging, twin};
use mainstay_core::config::{ClusterConfig, ConfigError, nearest};
use mainstay_core::event::{Event, EventKind, IssueCause};
use mainstay_core::health::Issue;
use mainstay_core::id::{BootId, HostId, InstanceId, OpId, VmId};
use mainstay_core::io::{GuardRequest, HypervisorRequest, Input, Output, PingOutcome, PingTarget};
use mainstay_core::status::Status;
use mainstay_core::time::millis;
use mainstay_core::wire::{Message, Stamp, understood_by_writer};
use mainstay_core::{Agent, Command, Identity};
use mainstay_hypervisor::CgroupPlacement;
use ring::rand::{SecureRandom as _, SystemRandom};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Events that wait for the loop.
const QUEUE_LENGTH: usize = 8192;
/// Longest wait, so that the guard sees a sign of life.
const BEAT: Duration = Duration::from_millis(500);
/// Pings that run at once; more "cannot be sent".
const PINGS: usize = 64;
/// How long a start waits for datastores that answer.
const DATASTORE_PATIENCE: Duration = Duration::from_secs(1);

/// Why the agent did not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] FileError),
    /// The cluster's configuration as the core sees it.
    #[error(transparent)]
    Cluster(#[from] ConfigError),
    /// Another agent runs, or a file cannot be used.
    #[error(transparent)]
    Twin(#[from] TwinError),
    /// The TLS files.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// An address of this host cannot be used.
    #[error(
        "cannot listen at {address} ({what}); is it this host's address, and does another agent use it?"
    )]
    Address {
        /// The address.
        address: SocketAddr,
        /// UDP or TCP.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// There is no guard.
    #[error(
        "there is no guard, and without one no VM may run; see guard.stderr and guard.log in the log directory"
    )]
    Guard(#[source] io::Error),
    /// The boot id file holds no id.
    #[error("{path} does not hold a boot id; it must hold at least 16 hexadecimal digits")]
    Boot {
        /// The file.
        path: String,
    },
    /// Something of the system is missing.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn system(action: &'static str) -> impl Fn(io::Error) -> AgentError {
    move |source| AgentError::System { action, source }
}

/// What wakes the loop.
enum Wake {
    Input(Input),
    Ask(Ask),
    Seen(Seen),
    Opened(Opened),
    SameId(HostId, SocketAddr),
    Issues(Source, Vec<String>),
    Stop(i32),
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// [`AgentError`]; VMs that run here go on until their rights end.
pub fn run_agent(config: &Path) -> Result<(), AgentError> {
    let file = AgentFile::read(config)?;
    let cluster_file = ClusterFile::read(&file.cluster)?;
    let written = cluster_file.cluster_config()?;
    file.check_against(config, &written)?;
    let key = ClusterKey::read(&file.key_file)?;
    let tls = Tls::read(&file)?;
    for dir in [&file.run_dir, &file.state_dir, &file.log_dir] {
        twin::private_dir(dir)?;
    }
    let seat = Seat::take(&file.run_dir, Role::Agent)?;
    twin::detach();
    let _log = logging::start(&file.log_dir, "agent");
    logging::abort_on_panic();
    let (cluster, kept_issues) = newest(written, &file);
    let started = Starting {
        config,
        file: &file,
        cluster_file: &cluster_file,
        cluster: &cluster,
        kept_issues,
        key,
        tls,
    };
    let result = started.start().map(|(mut shell, wakes)| shell.run(&wakes));
    if let Err(error) = &result {
        tracing::error!(error = logging::chain(error), "the agent ends");
    }
    seat.leave();
    result
}

/// The configuration to begin with: the one that was kept when it is newer than the admin's file, which
/// then counts no more; and what is to be said about it.
fn newest(written: ClusterConfig, file: &AgentFile) -> (ClusterConfig, Vec<String>) {
    let (kept, issue) = persist::load_config(&file.state_dir);
    let mut issues: Vec<String> = issue.into_iter().collect();
    let Some(kept) = kept.filter(|k| k.cluster_id == written.cluster_id && k.version > 0) else {
        return (written, issues);
    };
    let mut same = kept.clone();
    same.version = written.version;
    if same != written {
        issues.push(format!(
            "{} differs from version {} of the cluster's configuration, which was changed while it ran and is in force; change it with `mainstay config set`, or bring the file up to date",
            file.cluster.display(),
            kept.version
        ));
    }
    (kept, issues)
}

struct Starting<'a> {
    config: &'a Path,
    file: &'a AgentFile,
    cluster_file: &'a ClusterFile,
    cluster: &'a ClusterConfig,
    kept_issues: Vec<String>,
    key: ClusterKey,
    tls: Tls,
}

impl Starting<'_> {
    fn identity(&self) -> Result<(Identity, String), AgentError> {
        let boot = guard::read_boot(self.file)?;
        let digits: String = boot
            .chars()
            .filter(char::is_ascii_hexdigit)
            .take(16)
            .collect();
        let number = u64::from_str_radix(&digits, 16)
            .ok()
            .filter(|_| digits.len() == 16);
        let Some(number) = number else {
            let path = self
                .file
                .boot_id_file
                .as_deref()
                .unwrap_or(Path::new("the kernel's boot_id"));
            return Err(AgentError::Boot {
                path: path.display().to_string(),
            });
        };
        let identity = Identity {
            host: self.file.host.clone(),
            boot: BootId(number),
            instance: InstanceId(random()?),
            seed: random()?,
        };
        Ok((identity, boot))
    }

    fn start(self) -> Result<(Shell, Receiver<Wake>), AgentError> {
        let file = self.file;
        let (identity, boot) = self.identity()?;
        let (wake, wakes) = sync_channel(QUEUE_LENGTH);
        let rejects = Rejects::default();
        let addresses: Addresses = self
            .cluster_file
            .hosts
            .iter()
            .map(|h| (h.id.clone(), h.by_network()))
            .collect();
        let (udp, streams) = self.network(&identity, &addresses, &rejects, &wake)?;
        let events = EventLog::start(&file.log_dir).map_err(system("start a thread"))?;
        let to_loop = wake.clone();
        let ask: server::Asker = Arc::new(move |ask| to_loop.try_send(Wake::Ask(ask)).is_ok());
        server::start(&file.control_socket(), ask, events.clone())?;
        handle_signals(&wake)?;

        let program = match &file.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().map_err(system("find this program"))?,
        };
        let starter = Starter {
            program,
            config: std::path::absolute(self.config)
                .map_err(system("find the current directory"))?,
            run_dir: file.run_dir.clone(),
            log_dir: file.log_dir.clone(),
            boot,
        };
        let link = Arc::new(GuardLink::attach(starter).map_err(AgentError::Guard)?);
        let drivers = drivers::make(file);
        probe_weaknesses(file, self.cluster_file, &drivers, &wake)?;
        let to_loop = wake.clone();
        // These threads may wait for the loop; it never waits for them.
        let report: Report = Arc::new(move |input| drop(to_loop.send(Wake::Input(input))));
        let vms_config = VmsConfig {
            cluster: self.cluster_file,
            default: file.driver,
            mounts: file.datastores.clone(),
            run_dir: file.run_dir.clone(),
            cgroup: file
                .cgroup_parent
                .clone()
                .map_or(CgroupPlacement::Auto, CgroupPlacement::Under),
        };
        let mut vms = Vms::new(vms_config, drivers, Arc::clone(&link), report);
        let (found, ends) = vms.adopt();

        let to_loop = wake.clone();
        let done = move |op, ok| drop(to_loop.send(Wake::Input(Input::Persisted(op, ok))));
        let persister =
            Persister::start(file.state_dir.clone(), done).map_err(system("start a thread"))?;
        let (durable, state_issue) = persist::load(&file.state_dir);
        let datastores = self.datastores(&wake)?;
        let now = clock::now();
        let mut agent = Agent::new(identity.clone(), self.cluster.clone(), durable, found, now)?;
        let named = self.cluster_file.isolation_addresses.clone();
        let own = addresses.get(&identity.host).cloned().unwrap_or_default();
        let isolation = isolation::addresses(&named, &self.cluster.settings, &own);
        agent.set_isolation_addresses(isolation.iter().map(ToString::to_string).collect());
        let watching = Arc::clone(&link);
        let to_loop = wake.clone();
        spawn("guard", move || {
            let report = |seen| drop(to_loop.send(Wake::Seen(seen)));
            if let Err(error) = watching.watch(&report) {
                report(Seen::Issues(vec![format!(
                    "the guard cannot be watched ({error}); restart the agent"
                )]));
            }
        })?;
        let mut shell = Shell {
            agent,
            pending: ends.into(),
            stamp: Stamp {
                writer: identity.host,
                boot: identity.boot,
                instance: identity.instance,
                seq: 0,
            },
            cluster_id: self.cluster.cluster_id,
            named_isolation_addresses: named,
            own_addresses: own,
            isolation_addresses: isolation,
            probe: file.probe,
            ping_timeout: ping_timeout(self.cluster),
            pings: Arc::default(),
            addresses,
            udp,
            streams,
            datastores,
            vms,
            persister,
            proposals: BTreeMap::new(),
            events,
            link,
            rejects,
            issues: BTreeMap::new(),
            wake,
        };
        let kept = self.kept_issues.iter().cloned();
        shell.set_issues(Source::State, state_issue.into_iter().chain(kept).collect());
        tracing::info!(
            host = %shell.stamp.writer,
            version = env!("CARGO_PKG_VERSION"),
            pid = std::process::id(),
            "agent started"
        );
        Ok((shell, wakes))
    }

    fn network(
        &self,
        identity: &Identity,
        addresses: &Addresses,
        rejects: &Rejects,
        wake: &SyncSender<Wake>,
    ) -> Result<(Udp, Streams), AgentError> {
        let me = &identity.host;
        let cluster = self.cluster.cluster_id;
        let hosts = addresses.keys().cloned();
        let link = Link::new(&self.key, cluster, me.clone(), identity.instance, hosts)
            .map_err(system("get random numbers"))?;
        let own = addresses.get(me).cloned().unwrap_or_default();
        let (to_loop, refused) = (wake.clone(), rejects.clone());
        let versions = Arc::new(Mutex::new(BTreeMap::<HostId, u16>::new()));
        let on_received = move |received| {
            let wake = match received {
                Received::SameId { host, address } => Wake::SameId(host, address),
                Received::Message { from, payload } => match Message::decode(cluster, &payload) {
                    Ok((stamp, message)) if stamp.writer == from => {
                        // Datagrams come all the time: streams need not be looked at.
                        if let Some(version) = understood_by_writer(&payload)
                            && let Ok(mut versions) = versions.lock()
                            && versions.insert(from.clone(), version) != Some(version)
                        {
                            let host = from.clone();
                            let shown = Input::Understands { host, version };
                            drop(to_loop.try_send(Wake::Input(shown)));
                        }
                        Wake::Input(Input::Message { from, message })
                    }
                    Ok(_) => return refused.count("datagram_wrong_writer"),
                    Err(_) => return refused.count("datagram_damaged"),
                },
            };
            if to_loop.try_send(wake).is_err() {
                refused.count("datagram_queue_full");
            }
        };
        let udp = Udp::start(&own, addresses.clone(), link, rejects.clone(), on_received).map_err(
            |(address, source)| AgentError::Address {
                address,
                what: "UDP",
                source,
            },
        )?;
        let to_loop = wake.clone();
        // A full queue holds the connection up, as TCP is meant to.
        let on_streamed = move |streamed| {
            let input = match streamed {
                Streamed::Message(from, envelope) => Input::Stream { from, envelope },
                Streamed::Renewed(to) => Input::StreamRenewed { to },
            };
            drop(to_loop.send(Wake::Input(input)));
        };
        let timing = &self.cluster.settings.timing;
        let patience = Patience {
            limit: timing.stream_limit(),
            delivery: timing.dead,
        };
        let streams = Streams::start(
            me,
            cluster,
            addresses,
            (&self.tls, patience),
            rejects.clone(),
            on_streamed,
        )
        .map_err(|(address, source)| AgentError::Address {
            address,
            what: "TCP",
            source,
        })?;
        Ok((udp, streams))
    }

    fn datastores(&self, wake: &SyncSender<Wake>) -> Result<Datastores, AgentError> {
        let to_loop = wake.clone();
        let done = move |op, outcome| drop(to_loop.send(Wake::Input(Input::Storage(op, outcome))));
        let to_loop = wake.clone();
        let opened = move |opened| drop(to_loop.send(Wake::Opened(opened)));
        let mut datastores = Datastores::start(
            &self.file.datastores,
            self.cluster.cluster_id,
            &self.file.host,
            self.cluster.settings.timing.freeze,
            done,
            opened,
        )
        .map_err(system("start a thread"))?;
        datastores.wait(DATASTORE_PATIENCE);
        Ok(datastores)
    }
}

fn random() -> Result<u64, AgentError> {
    let mut bytes = [0; 8];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| AgentError::System {
            action: "get random numbers",
            source: io::Error::other("none"),
        })?;
    Ok(u64::from_le_bytes(bytes).max(1))
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), AgentError> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map(drop)
        .map_err(system("start a thread"))
}

fn handle_signals(wake: &SyncSender<Wake>) -> Result<(), AgentError> {
    let all = [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT];
    let mut signals = signal_hook::iterator::Signals::new(all).map_err(system("handle signals"))?;
    let to_loop = wake.clone();
    spawn("signals", move || {
        for signal in signals.forever() {
            drop(to_loop.send(Wake::Stop(signal)));
        }
    })
}

/// Between heartbeat and verdict there is time for a few probes; a slow network gets at least 300 ms.
fn ping_timeout(cluster: &ClusterConfig) -> Duration {
    (cluster.settings.timing.network_heartbeat * 2)
        .clamp(Duration::from_millis(300), Duration::from_secs(2))
}

/// Looks, on a thread of its own, for what is weaker here than it should be.
fn probe_weaknesses(
    file: &AgentFile,
    cluster: &ClusterFile,
    drivers: &drivers::Drivers,
    wake: &SyncSender<Wake>,
) -> Result<(), AgentError> {
    let mut network = Vec::new();
    match file.probe {
        Probe::Icmp if !icmp_available() => network.push(
            "hosts cannot be pinged: ICMP needs CAP_NET_RAW or net.ipv4.ping_group_range; until then a \
             silent host is never told from an unreachable agent by a ping"
                .to_owned(),
        ),
        Probe::Icmp => {}
        Probe::Udp { .. } => network.push(
            "pings go to a responder of Mainstay's own instead of the host's network (probe = udp): for \
             demonstrations"
                .to_owned(),
        ),
    }
    let no_watchdog = file.watchdog.is_none().then(|| {
        "this host has no watchdog: when its kernel hangs, or agent and guard are both gone, nothing resets \
         it; name a device that the guard feeds (watchdog = \"/dev/watchdog0\" in agent.toml; modprobe \
         softdog where there is no other)"
            .to_owned()
    });
    let used: Vec<_> = drivers
        .iter()
        .filter(|(kind, _)| {
            cluster
                .vms
                .iter()
                .any(|v| v.driver.unwrap_or(file.driver) == **kind)
        })
        .map(|(_, driver)| Arc::clone(driver))
        .collect();
    let to_loop = wake.clone();
    spawn("weaknesses", move || {
        drop(to_loop.send(Wake::Issues(Source::Network, network)));
        let watchdog = no_watchdog.into_iter().collect();
        drop(to_loop.send(Wake::Issues(Source::Watchdog, watchdog)));
        let all = used.iter().flat_map(|d| d.weaknesses()).collect();
        drop(to_loop.send(Wake::Issues(Source::Hypervisor, all)));
    })
}

/// The loop and all that it drives.
struct Shell {
    agent: Agent,
    /// Completions that are there at once; handed in before anything else.
    pending: VecDeque<Input>,
    stamp: Stamp,
    cluster_id: u64,
    named_isolation_addresses: Vec<IpAddr>,
    own_addresses: Vec<OnNetwork>,
    isolation_addresses: Vec<isolation::Address>,
    probe: Probe,
    ping_timeout: Duration,
    pings: Arc<AtomicUsize>,
    addresses: Addresses,
    udp: Udp,
    streams: Streams,
    datastores: Datastores,
    vms: Vms,
    persister: Persister,
    /// Who waits for the outcome of a change.
    proposals: BTreeMap<u64, SyncSender<Result<u64, String>>>,
    events: EventLog,
    link: Arc<GuardLink>,
    rejects: Rejects,
    issues: BTreeMap<Source, Vec<String>>,
    wake: SyncSender<Wake>,
}

impl Shell {
    fn run(&mut self, wakes: &Receiver<Wake>) {
        self.drain();
        loop {
            self.link.shm().beat_agent(clock::now());
            let limit = self.agent.config().settings.frozen_limit;
            self.link.shm().set_frozen_limit(limit);
            while let Some(input) = self.pending.pop_front() {
                self.handle(input);
            }
            let due = self.agent.poll_timeout().map(|at| at.since(clock::now()));
            let wait = due.unwrap_or(BEAT).min(BEAT);
            match wakes.recv_timeout(wait) {
                Ok(Wake::Stop(signal)) => return self.stop(signal),
                Ok(wake) => self.on_wake(wake),
                Err(RecvTimeoutError::Timeout) => {}
                // The loop holds a sender itself, so this cannot be.
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self
                .agent
                .poll_timeout()
                .is_some_and(|at| at <= clock::now())
            {
                self.handle(Input::Timeout);
            }
            if let Some(issues) = self.datastores.changed_issues() {
                self.set_issues(Source::Datastores, issues);
            }
        }
    }

    fn stop(&self, signal: i32) {
        self.link.shm().set_planned_stop();
        tracing::warn!(
            signal,
            "the agent stops; VMs run on and freeze when their rights end, until the agent is started again"
        );
    }

    fn on_wake(&mut self, wake: Wake) {
        match wake {
            Wake::Input(input) => self.handle(input),
            Wake::Ask(ask) => self.answer(ask),
            Wake::Seen(Seen::Lapsed(vm, generation)) => {
                self.handle(Input::VmLapsed { vm, generation })
            }
            Wake::Seen(Seen::Event(event)) => self.events.push(event),
            Wake::Seen(Seen::Issues(issues)) => self.set_issues(Source::Guard, issues),
            Wake::Opened(opened) => self.datastores.opened(opened),
            Wake::Issues(source, issues) => self.set_issues(source, issues),
            Wake::SameId(host, address) => self.on_same_id(&host, address),
            Wake::Stop(_) => {}
        }
    }

    fn on_same_id(&mut self, host: &HostId, address: SocketAddr) {
        let issue = format!(
            "another agent uses the host id \"{host}\" at {address}; stop it, or give it an id of its own \
             in its agent.toml"
        );
        let mut all = self
            .issues
            .get(&Source::SameId)
            .cloned()
            .unwrap_or_default();
        if !all.contains(&issue) {
            let kind = EventKind::ConfigIssue {
                issue: issue.clone(),
                cause: IssueCause::SameHostId,
                host: self.stamp.writer.clone(),
            };
            let why = "its datagrams are authentic, but of another agent instance".to_owned();
            self.events.push(Event {
                at: clock::now(),
                kind,
                why,
            });
            all.push(issue);
            self.set_issues(Source::SameId, all);
        }
    }

    fn set_issues(&mut self, source: Source, issues: Vec<String>) {
        for issue in &issues {
            if !self
                .issues
                .get(&source)
                .is_some_and(|old| old.contains(issue))
            {
                tracing::warn!(?source, issue, "weakness");
            }
        }
        self.issues.insert(source, issues);
        let host = &self.stamp.writer;
        let all = self.issues.iter().flat_map(|(source, issues)| {
            issues.iter().map(|text| Issue {
                cause: source.cause(),
                host: Some(host.clone()),
                text: text.clone(),
            })
        });
        self.agent.set_shell_issues(all.collect());
        self.drain();
    }

    fn handle(&mut self, input: Input) {
        self.datastores.completed(&input);
        self.agent.handle(clock::now(), input);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.agent.poll_output() {
            self.perform(output);
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Datagram { to, message } => {
                let bytes = message.encode(self.cluster_id, &self.next_stamp());
                self.udp.send(&to, &bytes);
            }
            Output::Stream { to, envelope } => {
                let bytes = envelope.encode(self.cluster_id, &self.next_stamp());
                self.streams.send(&to, bytes);
            }
            Output::Ping(op, target) => self.ping(op, &target),
            Output::Storage(op, datastore, request) => {
                if let Err(outcome) = self.datastores.submit(op, &datastore, request) {
                    self.pending.push_back(Input::Storage(op, outcome));
                }
            }
            Output::Guard(op, request) => {
                let outcome = self.link.perform(clock::now(), &request);
                if let GuardRequest::Remove { vm } = &request {
                    self.vms.forget(vm);
                }
                self.pending.push_back(Input::Guard(op, outcome));
            }
            Output::Hypervisor(op, request) => {
                log_request(&request);
                self.vms.perform(op, request);
            }
            Output::Persist(op, durable) => {
                if !self.persister.submit(op, Kept::State(durable)) {
                    self.pending.push_back(Input::Persisted(op, false));
                }
            }
            Output::PersistConfig(op, config) => {
                self.renew_isolation_addresses();
                if !self.persister.submit(op, Kept::Config(config)) {
                    self.pending.push_back(Input::Persisted(op, false));
                }
            }
            Output::Proposed(ticket, outcome) => {
                if let Some(to) = self.proposals.remove(&ticket) {
                    drop(to.try_send(outcome));
                }
            }
            Output::Event(event) => self.events.push(event),
        }
    }

    fn next_stamp(&mut self) -> Stamp {
        self.stamp.seq += 1;
        self.stamp.clone()
    }

    fn ping(&mut self, op: OpId, target: &PingTarget) {
        let (probe, timeout) = (self.probe, self.ping_timeout);
        let work: Box<dyn FnOnce() -> PingOutcome + Send> = match target {
            PingTarget::Host(host) => {
                let of_host = self.addresses.get(host).into_iter().flatten();
                let targets: Vec<Target> = of_host.map(|(_, a)| a.ip().into()).collect();
                Box::new(move || ping(&targets, probe, timeout))
            }
            PingTarget::Isolation(index) => {
                let address = self.isolation_addresses.get(*index).copied();
                let unknown = PingOutcome::CannotProbe;
                Box::new(move || address.map_or(unknown, |a| a.probe(probe, timeout)))
            }
        };
        let (to_loop, running) = (self.wake.clone(), Arc::clone(&self.pings));
        let cannot = Input::Pinged(op, PingOutcome::CannotProbe);
        if running.fetch_add(1, Ordering::AcqRel) >= PINGS {
            running.fetch_sub(1, Ordering::AcqRel);
            self.pending.push_back(cannot);
            return;
        }
        let started = spawn("ping", move || {
            let outcome = work();
            running.fetch_sub(1, Ordering::AcqRel);
            drop(to_loop.send(Wake::Input(Input::Pinged(op, outcome))));
        });
        if started.is_err() {
            self.pings.fetch_sub(1, Ordering::AcqRel);
            self.pending.push_back(cannot);
        }
    }

    /// The settings may name other isolation addresses than before.
    fn renew_isolation_addresses(&mut self) {
        let settings = &self.agent.config().settings;
        let now = isolation::addresses(
            &self.named_isolation_addresses,
            settings,
            &self.own_addresses,
        );
        if now != self.isolation_addresses {
            let names = now.iter().map(ToString::to_string).collect();
            self.isolation_addresses = now;
            self.agent.set_isolation_addresses(names);
        }
    }

    fn status(&mut self) -> Result<Status, String> {
        // A network may have come, or gone, since the last look.
        self.set_issues(Source::Addresses, net::missing(&self.own_addresses));
        let status = self.agent.status(clock::now());
        let mut status = status.ok_or("the agent has no status yet; try again")?;
        status.ignored.extend(self.rejects.all());
        Ok(status)
    }

    /// Answers the control socket; a client that went away meanwhile gets nothing.
    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Status(to) => drop(to.try_send(self.status())),
            Ask::Ping(to) => drop(to.try_send(Pong {
                host: self.stamp.writer.clone(),
                pid: std::process::id(),
                guard_pid: self.link.guard_pid(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            })),
            Ask::ExplainVm(vm, to) => {
                let explained = self.agent.explain_vm(clock::now(), &vm);
                drop(to.try_send(explained.ok_or_else(|| self.no_vm(&vm))));
            }
            Ask::ExplainHost(host, to) => {
                let known = self.addresses.keys().map(HostId::as_str);
                let explained = self.agent.explain_host(clock::now(), &host);
                drop(to.try_send(explained.ok_or_else(|| absent("host", host.as_str(), known))));
            }
            Ask::PowerOn(vm, to) => drop(to.try_send(self.command(Command::PowerOn(vm)))),
            Ask::PowerOff(vm, to) => drop(to.try_send(self.command(Command::PowerOff(vm)))),
            Ask::PrepareRestart(to) => drop(to.try_send(self.prepare_restart())),
            Ask::Leave(to) => drop(to.try_send(self.command(Command::Leave))),
            Ask::Config(to) => drop(to.try_send(self.agent.config().clone())),
            Ask::Change(changes, to) => match self.agent.propose(clock::now(), changes) {
                Ok(ticket) => {
                    self.proposals.insert(ticket, to);
                    self.drain();
                }
                Err(error) => {
                    drop(to.try_send(Err(error.to_string())));
                    self.drain();
                }
            },
        }
    }

    fn prepare_restart(&mut self) -> Result<Readiness, String> {
        self.command(Command::PrepareRestart)?;
        let now = clock::now();
        Ok(Readiness {
            host: self.stamp.writer.clone(),
            ready: self.agent.may_be_restarted(now),
            away_ms: millis(self.agent.may_be_away(now)),
        })
    }

    fn command(&mut self, command: Command) -> Result<(), String> {
        let result = self
            .agent
            .command(clock::now(), command)
            .map_err(|e| e.to_string());
        self.drain();
        result
    }

    fn no_vm(&self, vm: &VmId) -> String {
        let status = self.agent.status(clock::now());
        let known = status.iter().flat_map(|s| &s.vms).map(|v| v.vm.as_str());
        absent("VM", vm.as_str(), known)
    }
}

fn absent<'a>(what: &str, id: &str, known: impl Iterator<Item = &'a str>) -> String {
    let near = nearest(id, known)
        .map(|n| format!("; did you mean \"{n}\"?"))
        .unwrap_or_default();
    format!("there is no {what} \"{id}\" in this cluster{near}")
}

fn log_request(request: &HypervisorRequest) {
    match request {
        HypervisorRequest::Prepare { spec, generation } => {
            tracing::info!(vm = %spec.id, %generation, "prepare")
        }
        HypervisorRequest::Resume { vm } => tracing::info!(%vm, "resume"),
        HypervisorRequest::Shutdown { vm } => tracing::info!(%vm, "shut down"),
        HypervisorRequest::Kill { vm } => tracing::info!(%vm, "kill"),
    }
}
