//! The agent's side of a guard, one call at a time, for the benchmark that lets rights to run end under a real guard
//! (`benches/guard`). No part of the API: an agent does this by itself.
//!
//! Never here: the thread by which an agent freezes what its guard froze too late. The guard is measured alone.

use crate::config::{AgentFile, FileError};
use crate::guard::read_boot;
use crate::guard_link::{GuardLink, Starter, weaknesses};
use crate::{clock, drivers, twin};
use mainstay_core::guard::Words as _;
use mainstay_core::id::VmId;
use mainstay_core::io::{GuardOutcome, GuardRequest};
use mainstay_core::time::Instant;
use mainstay_hypervisor::{Process, freeze};
use std::io;
use std::path::Path;

/// This host's clock, by which deadlines are.
#[must_use]
pub fn now() -> Instant {
    clock::now()
}

/// This process in the place of the agent, and the guard that it started.
#[derive(Debug)]
pub struct AgentSide {
    link: GuardLink,
}

impl AgentSide {
    /// Starts a guard and waits for it. `agent_toml` is the file that it reads, `whole` the program that runs it, as
    /// `mainstay` does. When this process is gone the guard starts `program` of that file, as an agent.
    ///
    /// # Errors
    /// Those of the file and of its directories, and a guard that does not start in time.
    pub fn start(agent_toml: &Path, whole: &Path) -> io::Result<Self> {
        let file = AgentFile::read(agent_toml).map_err(io::Error::other)?;
        for dir in [&file.run_dir, &file.log_dir] {
            twin::private_dir(dir).map_err(io::Error::other)?;
        }
        let boot = read_boot(&file).map_err(io::Error::other)?;
        let link = GuardLink::attach(Starter {
            program: whole.into(),
            config: agent_toml.into(),
            run_dir: file.run_dir,
            log_dir: file.log_dir,
            boot,
        })?;
        Ok(Self { link })
    }

    /// Performs a request of the core, and gives a sign of life.
    #[must_use]
    pub fn perform(&self, request: &GuardRequest) -> GuardOutcome {
        let now = clock::now();
        self.link.shm().beat_agent(now);
        self.link.perform(now, request)
    }

    /// Names the process of a registered VM; false when the VM is not registered.
    #[must_use]
    pub fn bind(&self, vm: &VmId, process: &Process) -> bool {
        self.link.bind(vm, process)
    }

    /// The deadline of a registered VM as the guard knows it: in whole milliseconds, rounded down.
    #[must_use]
    pub fn deadline(&self, vm: &VmId) -> Option<Instant> {
        let shm = self.link.shm();
        shm.slot_of(vm).map(|slot| shm.load(slot).deadline())
    }

    /// What the guard was refused, and what else is weak about it, a sentence each. `run_dir` is the file's.
    #[must_use]
    pub fn weaknesses(&self, run_dir: &Path) -> Vec<String> {
        weaknesses(&self.link.shm(), run_dir)
    }

    /// Kills the guard. It freezes nothing more: end its guests first.
    pub fn end(self) {
        let shm = self.link.shm();
        shm.set_planned_stop();
        if let Some(guard) = shm.guard() {
            let process = Process {
                pid: guard.pid,
                start_time: guard.start_time,
                cgroup: None,
            };
            let _ = freeze::kill(&process);
        }
    }
}

/// Ends the guard and the guests of a benchmark that died: what a guard that finds its agent gone starts is this. The
/// caller removes the files.
///
/// # Errors
/// [`FileError`] of `agent.toml`.
pub fn clear_up(agent_toml: &Path) -> Result<(), FileError> {
    let file = AgentFile::read(agent_toml)?;
    if let Some(guard) = twin::read_pid(&file.run_dir.join("guard.pid")) {
        let _ = freeze::kill(&guard);
    }
    for driver in drivers::make(&file).values() {
        for found in driver.find(&file.run_dir) {
            let _ = driver.kill(&found.vm);
            let _ = driver.wait_exit(&found.vm, std::time::Duration::from_secs(5));
            driver.forget(&found.vm);
        }
    }
    Ok(())
}
