//! Sets the agent up: files, network, datastores, drivers and guard, and then its loop.

use super::error::{AgentError, spawn, system};
use super::inbox::Inbox;
use super::surroundings::{self, Surroundings};
use super::{Shell, Wake, members, timers};
use crate::config::{AgentFile, ClusterFile, ClusterKey, FenceFile, Probe};
use crate::control::server;
use crate::datastores::{Datastores, image_roots};
use crate::events::EventLog;
use crate::fence::Fences;
use crate::guard_link::{GuardLink, Seen, Starter};
use crate::net::ping::icmp_available;
use crate::net::stream::{Patience, Streamed, Streams, Tls};
use crate::net::udp::{Link, Udp};
use crate::net::{Addresses, Rejects, isolation};
use crate::persist::{self, Persister};
use crate::twin::{Role, Seat};
use crate::vms::{Report, Vms, VmsConfig};
use crate::weak::{SameIds, Source};
use crate::{clock, drivers, guard, logging, twin};
use mainstay_core::config::{ClusterConfig, Places};
use mainstay_core::id::{BootId, InstanceId};
use mainstay_core::io::Input;
use mainstay_core::wire::Stamp;
use mainstay_core::{Agent, Identity};
use mainstay_datastore::Here;
use mainstay_hypervisor::{CgroupPlacement, launcher};
use ring::rand::{SecureRandom as _, SystemRandom};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Events that wait for the loop. All places are in memory from the start, so what they hold is boxed.
const QUEUE_LENGTH: usize = 8192;
/// How long a start waits for datastores that answer.
const DATASTORE_PATIENCE: Duration = Duration::from_secs(1);

/// Runs the agent until it is told to stop.
///
/// # Errors
/// [`AgentError`]; VMs that run here go on until their rights end.
pub fn run_agent(config: &Path) -> Result<(), AgentError> {
    launcher::prepare();
    let file = AgentFile::read(config)?;
    let cluster_file = ClusterFile::read(&file.cluster)?;
    let written = cluster_file.cluster_config()?;
    file.check_against(config, &written)?;
    let key = ClusterKey::read(&file.key_file)?;
    let tls = Tls::read(&file)?;
    let fences = fence_file(&file, &written)?;
    for dir in [&file.run_dir, &file.state_dir, &file.log_dir] {
        twin::private_dir(dir)?;
    }
    let seat = Seat::take(&file.run_dir, Role::Agent)?;
    twin::detach();
    let _log = logging::start(&file.log_dir, "agent");
    logging::abort_on_panic();
    let (cluster, kept_issues) = newest(written, &file);
    let cluster_file = cluster_file.in_force(&cluster);
    let started = Starting {
        config,
        file: &file,
        cluster_file: &cluster_file,
        cluster: &cluster,
        kept_issues,
        key,
        tls,
        fences,
    };
    let result = started.start().map(|(mut shell, wakes)| shell.run(&wakes));
    if let Err(error) = &result {
        tracing::error!(error = logging::chain(error), "the agent ends");
    }
    seat.leave();
    result
}

/// The fence devices that this host can ask; none where no file is named.
fn fence_file(file: &AgentFile, cluster: &ClusterConfig) -> Result<FenceFile, AgentError> {
    let Some(path) = &file.fence_file else {
        return Ok(FenceFile::default());
    };
    let fences = FenceFile::read(path)?;
    fences.check_against(path, cluster)?;
    Ok(fences)
}

/// The configuration to begin with: the one that was kept when it is newer than the admin's file, which
/// then counts no more; and what is to be said about it.
fn newest(written: ClusterConfig, file: &AgentFile) -> (ClusterConfig, Vec<String>) {
    let (kept, issue) = persist::load_config(&file.state_dir, written.cluster_id);
    let mut issues: Vec<String> = issue.into_iter().collect();
    let Some(kept) = kept.filter(|k| k.version > 0) else {
        return (written, issues);
    };
    let mut same = kept.clone();
    same.version = written.version;
    // A file says them in its own places.
    same.places = Places::default();
    if same != written {
        issues.push(format!(
            "{} differs from version {} of the cluster's configuration, which was changed while it ran and is in force; change it with `mainstay config set`, or bring the file up to date (`mainstay config export` prints it)",
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
    fences: FenceFile,
}

impl Starting<'_> {
    fn identity(&self) -> Result<(Identity, String), AgentError> {
        let boot = guard::read_boot(self.file)?;
        let number = boot_number(self.file, &boot)?;
        let identity = Identity {
            host: self.file.host.clone(),
            boot: number,
            instance: InstanceId(random()?),
            seed: random()?,
        };
        Ok((identity, boot))
    }

    fn start(self) -> Result<(Shell, Receiver<Box<Wake>>), AgentError> {
        let file = self.file;
        let (identity, boot) = self.identity()?;
        let of_boot = boot.clone();
        let (wake, wakes) = sync_channel(QUEUE_LENGTH);
        let rejects = Rejects::default();
        let addresses = members::addresses(self.cluster_file);
        let (udp, streams) = self.network(&identity, &addresses, &rejects, &wake)?;
        let events = EventLog::start(&file.log_dir).map_err(system("start a thread"))?;
        let to_loop = wake.clone();
        let ask: server::Asker =
            Arc::new(move |ask| to_loop.try_send(Box::new(Wake::Ask(ask))).is_ok());
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
        let report: Report =
            Arc::new(move |input| drop(to_loop.send(Box::new(Wake::Input(input)))));
        let vms_config = VmsConfig {
            cluster: self.cluster_file,
            default: file.driver,
            mounts: file.datastores.clone(),
            image_roots: image_roots(&file.datastores, self.cluster),
            run_dir: file.run_dir.clone(),
            cgroup: file
                .cgroup_parent
                .clone()
                .map_or(CgroupPlacement::Auto, CgroupPlacement::Under),
            oom_score_adj: file.guest_oom_score_adj.get(),
        };
        let mut vms = Vms::new(vms_config, drivers, Arc::clone(&link), report);
        let (found, ends) = vms.adopt();

        let to_loop = wake.clone();
        let done =
            move |op, ok| drop(to_loop.send(Box::new(Wake::Input(Input::Persisted(op, ok)))));
        let persister =
            Persister::start(file.state_dir.clone(), done).map_err(system("start a thread"))?;
        let (durable, state_issue) = persist::load(&file.state_dir);
        let datastores = self.datastores(&wake, identity.boot)?;
        let now = clock::now();
        let mut agent = Agent::new(identity.clone(), self.cluster.clone(), durable, found, now)?;
        let named = self.cluster_file.isolation_addresses.clone();
        let own = addresses.get(&identity.host).cloned().unwrap_or_default();
        let surroundings = Surroundings::default().look(&own);
        let isolation =
            isolation::addresses(&named, &self.cluster.settings, &surroundings.gateways);
        let fences = Fences::new(self.fences.devices.clone());
        agent.set_fence_devices(fences.hosts());
        agent.set_isolation_addresses(isolation.iter().map(ToString::to_string).collect());
        let watching = Arc::clone(&link);
        let to_loop = wake.clone();
        spawn("guard", move || {
            let report = |seen| drop(to_loop.send(Box::new(Wake::Seen(seen))));
            if let Err(error) = watching.watch(&report) {
                report(Seen::Issues(vec![format!(
                    "the guard cannot be watched ({error}); restart the agent"
                )]));
            }
        })?;
        surroundings::watch(own.clone(), wake.clone())?;
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
            file: self.cluster_file.clone(),
            named_isolation_addresses: named,
            own_addresses: own,
            surroundings,
            isolation_addresses: isolation,
            probe: file.probe,
            ping_timeout: timers::ping_timeout(&self.cluster.settings.timing),
            pings: Arc::default(),
            addresses,
            udp,
            streams,
            datastores,
            vms,
            fences,
            persister,
            proposals: BTreeMap::new(),
            drills: BTreeMap::new(),
            events,
            link,
            rejects,
            issues: BTreeMap::new(),
            same_ids: SameIds::default(),
            stream_troubles: BTreeMap::new(),
            wake,
        };
        // Said once: by the first agent of this boot, as long as it runs.
        if let Some(ended) = guard::reset::of_last_boot(&file.state_dir, &of_boot) {
            shell.set_issues(Source::Reset, vec![ended]);
        }
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
        wake: &SyncSender<Box<Wake>>,
    ) -> Result<(Udp, Streams), AgentError> {
        let me = &identity.host;
        let cluster = self.cluster.cluster_id;
        let hosts = addresses.keys().cloned();
        let link = Link::new(&self.key, cluster, me.clone(), identity.instance, hosts)
            .map_err(system("get random numbers"))?;
        let own = addresses.get(me).cloned().unwrap_or_default();
        let inbox = Arc::new(Inbox::new(cluster, wake.clone(), rejects.clone()));
        let on_received = move |received| inbox.take(received);
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
            let wake = match streamed {
                Streamed::Message(from, envelope) => Wake::Input(Input::Stream { from, envelope }),
                Streamed::Renewed(to) => Wake::Input(Input::StreamRenewed { to }),
                Streamed::Trouble(to, what) => Wake::Trouble(to, what),
            };
            drop(to_loop.send(Box::new(wake)));
        };
        let patience = Patience::of(&self.cluster.settings.timing);
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

    fn datastores(
        &self,
        wake: &SyncSender<Box<Wake>>,
        boot: BootId,
    ) -> Result<Datastores, AgentError> {
        let to_loop = wake.clone();
        let done = move |op, outcome| {
            drop(to_loop.send(Box::new(Wake::Input(Input::Storage(op, outcome)))))
        };
        let to_loop = wake.clone();
        let opened = move |opened| drop(to_loop.send(Box::new(Wake::Opened(opened))));
        let kind = |id| self.cluster.datastores.get(id).map(|spec| spec.kind);
        let mounts = self.file.datastores.iter();
        let mounts = mounts
            .map(|(id, path)| (id.clone(), (kind(id).unwrap_or_default(), path.clone())))
            .collect();
        let here = Here {
            host: self.file.host.clone(),
            boot,
            run_dir: self.file.run_dir.clone(),
        };
        let mut datastores = Datastores::start(
            &mounts,
            self.cluster.cluster_id,
            &here,
            self.cluster.settings.timing.freeze,
            done,
            opened,
        )
        .map_err(system("start a thread"))?;
        datastores.wait(DATASTORE_PATIENCE);
        Ok(datastores)
    }
}

/// The boot that a boot id stands for: its first 16 hexadecimal digits.
fn boot_number(file: &AgentFile, boot: &str) -> Result<BootId, AgentError> {
    let digits: String = boot
        .chars()
        .filter(char::is_ascii_hexdigit)
        .take(16)
        .collect();
    let number = u64::from_str_radix(&digits, 16)
        .ok()
        .filter(|_| digits.len() == 16);
    number.map(BootId).ok_or_else(|| {
        let path = file.boot_id_file.as_deref();
        let path = path.unwrap_or(Path::new("the kernel's boot_id"));
        AgentError::Boot {
            path: path.display().to_string(),
        }
    })
}

/// This machine, as datastores know it, for a command that runs beside its agent. Makes the run directory where
/// no agent has.
///
/// # Errors
/// [`AgentError`]: there is no boot id, or no run directory can be made.
pub fn here(file: &AgentFile) -> Result<Here, AgentError> {
    twin::private_dir(&file.run_dir)?;
    let boot = guard::read_boot(file)?;
    Ok(Here {
        host: file.host.clone(),
        boot: boot_number(file, &boot)?,
        run_dir: file.run_dir.clone(),
    })
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

fn handle_signals(wake: &SyncSender<Box<Wake>>) -> Result<(), AgentError> {
    let all = [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT];
    let mut signals = signal_hook::iterator::Signals::new(all).map_err(system("handle signals"))?;
    let to_loop = wake.clone();
    spawn("signals", move || {
        for signal in signals.forever() {
            drop(to_loop.send(Box::new(Wake::Stop(signal))));
        }
    })
}

/// Looks, on a thread of its own, for what is weaker here than it should be.
fn probe_weaknesses(
    file: &AgentFile,
    cluster: &ClusterFile,
    drivers: &drivers::Drivers,
    wake: &SyncSender<Box<Wake>>,
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
        drop(to_loop.send(Box::new(Wake::Issues(Source::Network, network))));
        let watchdog = no_watchdog.into_iter().collect();
        drop(to_loop.send(Box::new(Wake::Issues(Source::Watchdog, watchdog))));
        let all = used.iter().flat_map(|d| d.weaknesses()).collect();
        drop(to_loop.send(Box::new(Wake::Issues(Source::Hypervisor, all))));
    })
}
