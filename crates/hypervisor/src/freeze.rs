//! Stops, continues and kills a guest's process from outside; the guard's tools.
//!
//! With its own cgroup v2 directory a guest is frozen and killed by that, else
//! by signals. A cgroup is used only while it lists the process: one that an
//! administrator moved is still stopped, by signal. Neither call waits for its
//! effect; a thread in uninterruptible I/O stops only when that I/O ends, and
//! [`is_stopped`] says false until then.
//!
//! Never signals a process with another start time, never trusts a zombie
//! leader while one of its threads lives.

use std::io;

use nix::sys::signal::Signal;

use crate::cgroup;
use crate::process::{self, PidFd, Process};

/// Why a process was not frozen, thawed or killed; its state is then unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FreezeError {
    /// It is gone, or the pid belongs to another process.
    #[error("process {pid} is gone")]
    Gone {
        /// The pid.
        pid: i32,
    },
    /// The kernel refused.
    #[error("process {pid} could not be reached")]
    Refused {
        /// The pid.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Stops every thread of the process.
///
/// # Errors
/// [`FreezeError`].
pub fn freeze(process: &Process) -> Result<(), FreezeError> {
    let pidfd = open(process)?;
    if let Some(dir) = cgroup::own(process)
        && cgroup::set_frozen(dir, true).is_ok()
        // It may have been moved out in between.
        && cgroup::own(process).is_some()
    {
        return Ok(());
    }
    signal(process, &pidfd, Signal::SIGSTOP)
}

/// Lets every thread go on, however it was stopped.
///
/// # Errors
/// [`FreezeError`].
pub fn thaw(process: &Process) -> Result<(), FreezeError> {
    let pidfd = open(process)?;
    if let Some(dir) = cgroup::own(process) {
        cgroup::set_frozen(dir, false).map_err(|source| FreezeError::Refused {
            pid: process.pid,
            source,
        })?;
    }
    signal(process, &pidfd, Signal::SIGCONT)
}

/// Kills the process, also a frozen one; whether it is gone tells [`all_threads_gone`].
///
/// # Errors
/// [`FreezeError`].
pub fn kill(process: &Process) -> Result<(), FreezeError> {
    let pidfd = open(process)?;
    if let Some(dir) = cgroup::own(process) {
        // Not in kernels before 5.14; the signal below is enough there.
        let _ = cgroup::kill(dir);
    }
    match pidfd.signal(Signal::SIGKILL) {
        Ok(_) => Ok(()),
        Err(source) => Err(FreezeError::Refused {
            pid: process.pid,
            source,
        }),
    }
}

/// Whether no thread of the process can execute: all stopped or dead, or its cgroup frozen.
///
/// True for one that is gone; false for one that cannot be looked at.
#[must_use]
pub fn is_stopped(process: &Process) -> bool {
    each_is(process, |state| matches!(state, b'T' | b't'))
}

/// Like [`is_stopped`], where threads in uninterruptible I/O count too: they
/// execute nothing, and once they were told to stop they do so when it ends.
///
/// A cgroup counts as frozen only when its last thread is. Until then those that are look like sleepers; but
/// telling a cgroup to freeze wakes every sleeper, and it sleeps again only in the freezer's trap.
#[must_use]
pub fn is_held(process: &Process) -> bool {
    // Asked before the threads are looked at: whoever thaws it meanwhile is seen as one who let it run.
    let told = cgroup::own(process).is_some_and(cgroup::is_told_to_freeze);
    each_is(process, |state| {
        matches!(state, b'T' | b't' | b'D') || (told && state == b'S')
    })
}

/// Whether SIGKILL has reached every thread that is not gone: none of them executes an instruction of its own any
/// more. One that waits for its storage is gone only when that answers.
#[must_use]
pub fn is_killed(process: &Process) -> bool {
    process::is_killed(process.pid, process.start_time).unwrap_or(false)
}

fn each_is(process: &Process, wanted: impl Fn(u8) -> bool) -> bool {
    let Ok(threads) = process::threads(process.pid, process.start_time) else {
        return false;
    };
    match threads {
        None => true,
        Some(threads) => {
            threads
                .iter()
                .all(|thread| thread.is_dead() || wanted(thread.state))
                || cgroup::own(process).is_some_and(cgroup::is_frozen)
        }
    }
}

/// Whether every thread of that process is gone; zombies are, a reused pid is.
#[must_use]
pub fn all_threads_gone(pid: i32, start_time: u64) -> bool {
    process::all_threads_gone(pid, start_time)
}

fn open(process: &Process) -> Result<PidFd, FreezeError> {
    let pid = process.pid;
    match PidFd::open(pid, process.start_time) {
        Ok(Some(pidfd)) => Ok(pidfd),
        Ok(None) => Err(FreezeError::Gone { pid }),
        Err(source) => Err(FreezeError::Refused { pid, source }),
    }
}

fn signal(process: &Process, pidfd: &PidFd, signal: Signal) -> Result<(), FreezeError> {
    let pid = process.pid;
    match pidfd.signal(signal) {
        Ok(true) => Ok(()),
        Ok(false) => Err(FreezeError::Gone { pid }),
        Err(source) => Err(FreezeError::Refused { pid, source }),
    }
}
