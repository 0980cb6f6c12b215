//! One host of the lab: where its things lie, and its processes as a whole.

use crate::fail::{Context, Failure, Result};
use crate::storage::Mount;
use mainstay_core::id::{DatastoreId, HostId};
use mainstay_core::time::Duration;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// A running process is stopped in microseconds, on a busy machine in milliseconds.
const FROZEN_WITHIN: Duration = Duration::from_millis(20);

/// One of a host's two daemons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemon {
    /// The agent.
    Agent,
    /// The guard.
    Guard,
}

impl Daemon {
    /// Its name, as in the files of its run directory.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Guard => "guard",
        }
    }
}

/// One host of the lab.
#[derive(Debug)]
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// Its own directory.
    pub dir: PathBuf,
    /// Its sockets, its guard's memory and its guests' records.
    pub run_dir: PathBuf,
    /// The cgroup of all its processes.
    pub cgroup: PathBuf,
    /// It has power.
    pub powered: bool,
    /// It has power and does nothing.
    pub paused: bool,
    pub(super) mounts: BTreeMap<usize, Mount>,
}

impl Host {
    pub(super) fn new(id: HostId, dir: PathBuf, cgroup: PathBuf) -> Self {
        Self {
            id,
            run_dir: dir.join("run"),
            dir,
            cgroup,
            powered: false,
            paused: false,
            mounts: BTreeMap::new(),
        }
    }

    /// Its agent's configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("agent.toml")
    }

    /// Its agent's control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }

    /// Where it mounts a datastore, in its own mount namespace.
    #[must_use]
    pub fn mount_point(&self, datastore: &DatastoreId) -> PathBuf {
        self.dir.join("mnt").join(datastore.as_str())
    }

    pub(super) fn boot_id(&self) -> PathBuf {
        self.dir.join("boot_id")
    }

    pub(super) fn agents_cgroup(&self) -> PathBuf {
        self.cgroup.join("daemons")
    }

    pub(super) fn vms_cgroup(&self) -> PathBuf {
        self.cgroup.join("vms")
    }

    /// It has power and is not paused.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.powered && !self.paused
    }

    /// The process that signed in as the daemon, if it lives.
    #[must_use]
    pub fn daemon(&self, daemon: Daemon) -> Option<Pid> {
        let file = self.run_dir.join(format!("{}.pid", daemon.name()));
        let text = std::fs::read_to_string(file).ok()?;
        let (pid, start) = text.trim().split_once(' ')?;
        let pid = Pid::from_raw(pid.parse().ok()?);
        let start: u64 = start.parse().ok()?;
        (self.powered && crate::procs::start_time(pid) == Some(start)).then_some(pid)
    }

    /// Sends a signal to a daemon; nothing when it does not live.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&self, daemon: Daemon, signal: Signal) -> Result<()> {
        let Some(pid) = self.daemon(daemon) else {
            return Ok(());
        };
        kill(pid, signal).context(format_args!(
            "cannot signal the {} of {}",
            daemon.name(),
            self.id
        ))
    }

    /// Stops or lets go on everything that runs on it.
    pub(super) fn set_frozen(&self, frozen: bool) -> Result<()> {
        std::fs::write(
            self.cgroup.join("cgroup.freeze"),
            if frozen { "1" } else { "0" },
        )
        .context("cannot pause a host")
        .map_err(|e| e.at(self.cgroup.display()))
    }

    /// Waits until all its processes are stopped, but for those that wait for storage: they stop when that answers.
    pub(super) fn wait_frozen(&self) {
        let deadline = Instant::now() + FROZEN_WITHIN;
        while !self.says("frozen 1") && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_micros(200));
        }
    }

    /// Waits until none of its processes is left.
    pub(super) fn wait_empty(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.has_processes() {
            crate::procs::reap();
            if Instant::now() >= deadline {
                return Err(
                    Failure::new(format_args!("processes of {} outlive SIGKILL", self.id))
                        .at(self.cgroup.display())
                        .remedy("look at them with `ps`; storage that hangs keeps a process alive"),
                );
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        Ok(())
    }

    fn has_processes(&self) -> bool {
        self.says("populated 1")
    }

    fn says(&self, state: &str) -> bool {
        let events = std::fs::read_to_string(self.cgroup.join("cgroup.events"));
        events.is_ok_and(|text| text.lines().any(|l| l == state))
    }
}
