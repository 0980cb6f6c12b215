//! A running demo cluster: hosts as groups of real processes that are started and killed together.
//!
//! Invariant: what a run made (processes, files, cgroups, its note) is gone when its [`Cluster`] is
//! dropped, whatever ended it; files stay only when they were asked for.

use super::files::{self, Built, DemoHost, DemoVm, Plan};
use super::net::{Network, PROBE_PORT};
use crate::fail::{Context, Failure, Result};
use mainstay_agent::control::client::Client;
use mainstay_core::id::{HostId, VmId};
use mainstay_core::time::Instant;
use mainstay_hypervisor::{Counter, read_counter};
use mainstay_lab::cgroup::RunCgroup;
use mainstay_lab::dir::{RunDir, hex, random};
use mainstay_lab::files::check_socket_names;
use mainstay_lab::place::{self, Kind, Note, Place};
use mainstay_lab::procs::{self, Killed, Marker};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The clock that agents' events carry: CLOCK_BOOTTIME, the same for all processes of this machine.
pub(crate) fn now() -> Instant {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(std::time::Duration::from)
        .unwrap_or_default();
    Instant::ZERO + time
}

/// A running demo cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    run: String,
    dir: RunDir,
    memory: Option<RunDir>,
    place: Place,
    network: Network,
    cgroup: Option<RunCgroup>,
    built: Built,
    up: BTreeMap<HostId, bool>,
    /// What is weaker here than on real hosts.
    pub(crate) weaker: Vec<String>,
}

/// What a hard kill of a host did.
#[derive(Debug)]
pub(crate) struct Death {
    /// When its first process was stopped.
    pub(crate) at: Instant,
    /// Its processes.
    pub(crate) killed: Killed,
}

impl Cluster {
    /// Writes everything and starts nothing. `rights` says why this user has not the rights of namespaces.
    pub(crate) fn build(
        place: &Place,
        base: Option<&Path>,
        plan: &Plan,
        rights: &std::result::Result<(), String>,
        keep: bool,
    ) -> Result<Self> {
        let run = hex(&random::<4>()?);
        let base = base.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let base = std::path::absolute(&base)
            .context("cannot use this directory")
            .map_err(|e| e.at(base.display()))?;
        let name = format!("{}-{run}", Kind::Demo.prefix());
        let dir = RunDir::make(&base.join(&name), &run)
            .context("cannot make the demo's directory")
            .map_err(|e| {
                e.at(base.display())
                    .remedy("name a directory that this user may write with --dir")
            })?;
        // A slow disk must not hold a guard up: sockets and its memory go to a file system in memory.
        let memory = RunDir::in_memory(&base, &name, &run);
        let sockets = memory.as_ref().unwrap_or(&dir).path();
        check_socket_names(sockets)?;
        let mut weaker = Vec::new();
        let network = network(plan.hosts, rights, &mut weaker)?;
        let hosts = (1..=plan.hosts).map(|n| format!("host-{n}"));
        let cgroup = RunCgroup::make(Kind::Demo, &run, hosts);
        let built = files::build(
            &files::Places {
                dir: dir.path(),
                sockets,
                cgroup: cgroup.as_ref().map(RunCgroup::path),
            },
            plan,
            &network,
        )?;
        let up = built.hosts.iter().map(|h| (h.id.clone(), false)).collect();
        let mut cluster = Self {
            run,
            dir,
            memory,
            place: place.clone(),
            network,
            cgroup,
            built,
            up,
            weaker,
        };
        if keep {
            cluster.keep_files();
        }
        cluster.note()?;
        if cluster.network.needs_probes() {
            cluster.start_probe(0)?;
        }
        Ok(cluster)
    }

    fn note(&self) -> Result<()> {
        let pid = Pid::this();
        self.place.write(&Note {
            run: self.run.clone(),
            pid: pid.as_raw(),
            start: procs::start_time(pid).unwrap_or_default(),
            pid_namespace: place::pid_namespace(),
            dir: self.dir().to_owned(),
            memory: self.memory.as_ref().map(|m| m.path().to_owned()),
            hosts: self
                .built
                .hosts
                .iter()
                .map(|h| (h.id.to_string(), h.socket()))
                .collect(),
            socket: self.socket(),
            cgroup: self.cgroup.as_ref().map(|c| c.path().to_owned()),
        })
    }

    /// The demo's own control socket.
    pub(crate) fn socket(&self) -> PathBuf {
        let dir = self.memory.as_ref().unwrap_or(&self.dir);
        dir.path().join("demo.sock")
    }

    /// Everything that it wrote.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Keeps the files when it ends.
    pub(crate) fn keep_files(&mut self) {
        self.dir.keep = true;
    }

    /// The timers in force.
    pub(crate) fn timing(&self) -> &mainstay_core::config::Timing {
        &self.built.config.settings.timing
    }

    /// Whether each host has a network of its own.
    pub(crate) fn has_namespaces(&self) -> bool {
        !self.network.needs_probes()
    }

    /// Address of a host.
    pub(crate) fn address(&self, host: &DemoHost) -> std::net::IpAddr {
        self.network.host(host.number)
    }

    /// The isolation address.
    pub(crate) fn gateway(&self) -> std::net::IpAddr {
        self.network.gateway()
    }

    /// All hosts.
    pub(crate) fn hosts(&self) -> &[DemoHost] {
        &self.built.hosts
    }

    /// Hosts that are switched on.
    pub(crate) fn up(&self) -> impl Iterator<Item = &DemoHost> {
        self.built.hosts.iter().filter(|h| self.is_up(&h.id))
    }

    /// Whether a host is switched on.
    pub(crate) fn is_up(&self, host: &HostId) -> bool {
        self.up.get(host).copied().unwrap_or_default()
    }

    /// All VMs.
    pub(crate) fn vms(&self) -> &[DemoVm] {
        &self.built.vms
    }

    /// A host by its id.
    ///
    /// # Errors
    /// When there is none; names the nearest.
    pub(crate) fn host(&self, id: &str) -> Result<DemoHost> {
        self.built
            .hosts
            .iter()
            .find(|h| h.id.as_str() == id)
            .cloned()
            .ok_or_else(|| {
                let ids: Vec<&str> = self.built.hosts.iter().map(|h| h.id.as_str()).collect();
                Failure::new(format_args!("this demo has no host \"{id}\""))
                    .remedy(format_args!("name one of {}", ids.join(", ")))
            })
    }

    /// A client of a host's agent, if that answers.
    pub(crate) fn client(&self, host: &DemoHost) -> Result<Client> {
        Ok(Client::connect(&host.socket())?)
    }

    /// The last counter on a VM's disk.
    pub(crate) fn counter(&self, vm: &VmId) -> Option<Counter> {
        let vm = self.built.vms.iter().find(|v| v.id == *vm)?;
        read_counter(&vm.image).ok().flatten()
    }

    /// Switches a host on: a new boot, its cable plugged, its agent started (which starts the guard).
    pub(crate) fn start(&mut self, host: &DemoHost) -> Result<()> {
        host.new_boot()?;
        self.network.set_link(host.number, true)?;
        if self.network.needs_probes() {
            self.start_probe(host.number)?;
        }
        let mut command = self.command(host.id.as_str(), &host.logs().join("agent.out"))?;
        command.arg("agent").arg("--config").arg(host.config());
        self.network.spawn(host.number, &mut command)?;
        self.up.insert(host.id.clone(), true);
        Ok(())
    }

    /// A responder for one host, or for the isolation address (0).
    fn start_probe(&self, number: u8) -> Result<()> {
        let (name, address) = match number {
            0 => ("network".to_owned(), self.network.gateway()),
            n => (format!("host-{n}"), self.network.host(n)),
        };
        let mut command = self.command(&name, &self.dir().join(format!("probe-{name}.out")))?;
        command
            .arg("probe")
            .arg("--listen")
            .arg(format!("{address}:{PROBE_PORT}"));
        self.network.spawn(number.max(1), &mut command)
    }

    fn command(&self, host: &str, output: &Path) -> Result<Command> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(program);
        command.current_dir(self.dir());
        procs::make_hosts_own(&mut command, &self.run, host, output)?;
        Ok(command)
    }

    /// Kills a host the hard way: every process of it stops at once, its cable goes dead, it is gone.
    pub(crate) fn kill(&mut self, host: &DemoHost) -> Result<Death> {
        let at = now();
        let stopped = procs::stop_marked(&Marker::host(&self.run, host.id.as_str()));
        let link = self.network.set_link(host.number, false);
        let killed = stopped.kill();
        self.up.insert(host.id.clone(), false);
        link?;
        if killed.left > 0 {
            return Err(Failure::new(format_args!(
                "{} processes of {} outlive SIGKILL",
                killed.left, host.id
            ))
            .remedy("look at them with `ps`; storage that hangs keeps a process alive"));
        }
        Ok(Death { at, killed })
    }

    /// Live processes of a host with their command lines.
    pub(crate) fn processes(&self, host: &DemoHost) -> Vec<(Pid, String)> {
        let pids = procs::marked(&Marker::host(&self.run, host.id.as_str()));
        pids.into_iter()
            .map(|pid| (pid, procs::command_line(pid)))
            .collect()
    }
}

/// Namespaces where they can be had, loopback addresses elsewhere.
fn network(
    hosts: u8,
    rights: &std::result::Result<(), String>,
    weaker: &mut Vec<String>,
) -> Result<Network> {
    let reason = match rights {
        Err(reason) => reason.clone(),
        Ok(()) => match Network::namespaces(hosts) {
            Ok(network) => return Ok(network),
            Err(error) => error.one_line(),
        },
    };
    weaker.push(format!(
        "hosts share this machine's network, because {reason}: each has a loopback address and a probe process \
         that dies with it, so a dead host is still told from a cut one, but cables cannot be cut"
    ));
    let seed = u64::from_le_bytes(random::<8>()?);
    Ok(Network::loopback(seed))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        procs::kill_marked(&Marker::run(&self.run));
        self.cgroup = None;
        self.memory = None;
        self.place.forget(&self.run);
    }
}
