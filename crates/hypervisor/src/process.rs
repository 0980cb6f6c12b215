//! Decides which process is meant: pid and start time together, never the pid alone.
//!
//! A pid that was reused has another start time. A [`PidFd`] is opened first and
//! the start time read afterwards, so that it refers to the process checked.
//! Never signals by number.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

/// One process of a guest, told apart from a later one with its pid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its pid, which is its thread group's.
    pub pid: i32,
    /// Its start time in clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub start_time: u64,
    /// Its own cgroup v2 directory, when it has one.
    pub cgroup: Option<PathBuf>,
}

impl Process {
    /// The process with this pid as it is now, without a cgroup.
    ///
    /// # Errors
    /// When there is none.
    pub fn of_pid(pid: i32) -> io::Result<Self> {
        let stat = Stat::read(Path::new(&format!("/proc/{pid}/stat")))?;
        Ok(Self {
            pid,
            start_time: stat.start_time,
            cgroup: None,
        })
    }
}

/// The fields of a `stat` file that matter here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stat {
    pub(crate) state: u8,
    flags: u64,
    pub(crate) start_time: u64,
}

impl Stat {
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        Self::parse(&fs::read(path)?)
    }

    /// Reads the text of such a file.
    pub(crate) fn parse(text: &[u8]) -> io::Result<Self> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed stat file");
        // The name, field 2, may hold anything; the last parenthesis ends it.
        let end = text
            .iter()
            .rposition(|byte| *byte == b')')
            .ok_or_else(malformed)?;
        let rest = text.get(end + 1..).unwrap_or_default();
        let mut fields = rest
            .split(|byte| *byte == b' ')
            .filter(|field| !field.is_empty());
        let state = fields
            .next()
            .and_then(|field| field.first())
            .copied()
            .ok_or_else(malformed)?;
        let number = |field: Option<&[u8]>| {
            field
                .and_then(|field| std::str::from_utf8(field).ok())
                .and_then(|field| field.parse().ok())
                .ok_or_else(malformed)
        };
        let flags = number(fields.nth(5))?; // field 9; fields 1 to 3 are consumed
        let start_time = number(fields.nth(12))?; // field 22
        Ok(Self {
            state,
            flags,
            start_time,
        })
    }

    /// A thread in this state executes nothing any more.
    pub(crate) fn is_dead(self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// It is dead, or in the kernel's exit, from which it does not return.
    fn is_leaving(self) -> bool {
        /// `PF_EXITING`.
        const EXITING: u64 = 0x4;
        self.is_dead() || self.flags & EXITING != 0
    }
}

/// Whether an error of `/proc` means that the process is not there.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// The states of the threads of `pid`, or `None` when that process is gone.
///
/// # Errors
/// When `/proc` could not be read, which tells nothing about the process.
pub(crate) fn threads(pid: i32, start_time: u64) -> io::Result<Option<Vec<Stat>>> {
    match Stat::read(Path::new(&format!("/proc/{pid}/stat"))) {
        Ok(stat) if stat.start_time != start_time => return Ok(None),
        Ok(_) => {}
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    }
    let entries = match fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut states = Vec::new();
    for entry in entries {
        match entry.and_then(|entry| Stat::read(&entry.path().join("stat"))) {
            Ok(stat) => states.push(stat),
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(states))
}

/// Whether every thread of that process is gone, or is about to be because of SIGKILL.
///
/// # Errors
/// When `/proc` could not be read, which tells nothing about the process.
pub(crate) fn is_killed(pid: i32, start_time: u64) -> io::Result<bool> {
    let entries = match fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(true),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        // The signal first: whoever takes it off to die of it is seen to die.
        let pending = fs::read(entry.path().join("status")).map(|text| is_kill_pending(&text));
        match (pending, Stat::read(&entry.path().join("stat"))) {
            (Ok(pending), Ok(stat)) if pending || stat.is_leaving() => {}
            (Ok(_), Ok(_)) => return Ok(false),
            (Err(error), _) | (_, Err(error)) if is_absent(&error) => {}
            (Err(error), _) | (_, Err(error)) => return Err(error),
        }
    }
    let leader = Stat::read(Path::new(&format!("/proc/{pid}/stat")));
    Ok(leader.is_ok_and(|stat| stat.start_time == start_time))
}

/// Whether the `status` file of a thread shows SIGKILL among what is pending for it, or for its process.
fn is_kill_pending(status: &[u8]) -> bool {
    const KILL: u64 = 1 << (libc::SIGKILL - 1);
    let masks = status.split(|byte| *byte == b'\n').filter_map(|line| {
        let mask = line
            .strip_prefix(b"SigPnd:")
            .or(line.strip_prefix(b"ShdPnd:"))?;
        u64::from_str_radix(std::str::from_utf8(mask).ok()?.trim(), 16).ok()
    });
    masks.fold(0, |all, mask| all | mask) & KILL != 0
}

/// Whether every thread of that process is gone; one that cannot be looked at is not.
pub(crate) fn all_threads_gone(pid: i32, start_time: u64) -> bool {
    // One whose first thread lives is not gone, and needs no look at its other threads, of which there may be
    // hundreds.
    if let Ok(stat) = Stat::read(Path::new(&format!("/proc/{pid}/stat")))
        && stat.start_time == start_time
        && !stat.is_dead()
    {
        return false;
    }
    match threads(pid, start_time) {
        Ok(None) => true,
        Ok(Some(threads)) => threads.iter().all(|thread| thread.is_dead()),
        Err(_) => false,
    }
}

/// A handle that keeps meaning one process, whatever becomes of its pid.
#[derive(Debug)]
pub(crate) struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process; `None` when it is gone or reaped.
    pub(crate) fn open(pid: i32, start_time: u64) -> io::Result<Option<Self>> {
        #[expect(unsafe_code, reason = "no library in use wraps pidfd_open")]
        // SAFETY: the call takes two integers and touches no memory of ours.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let Ok(raw) = i32::try_from(raw) else {
            return Err(io::Error::other("pidfd_open gave no descriptor"));
        };
        if raw < 0 {
            let error = io::Error::last_os_error();
            return if is_absent(&error) {
                Ok(None)
            } else {
                Err(error)
            };
        }
        #[expect(unsafe_code, reason = "a descriptor from a raw system call")]
        // SAFETY: the kernel has just given us this descriptor; nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        match Stat::read(Path::new(&format!("/proc/{pid}/stat"))) {
            Ok(stat) if stat.start_time == start_time => Ok(Some(Self(fd))),
            Ok(_) => Ok(None),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a signal; false when the process is gone.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<bool> {
        #[expect(unsafe_code, reason = "no library in use wraps pidfd_send_signal")]
        // SAFETY: the descriptor is open; a null siginfo asks for the one that kill(2) makes.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if result == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        if is_absent(&error) {
            Ok(false)
        } else {
            Err(error)
        }
    }

    /// Waits until all threads have ended, at most `timeout`.
    pub(crate) fn wait(&self, timeout: Duration) {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        // A failure only ends the wait early; callers look at the threads anyway.
        let _ = poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], timeout);
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_with_another_start_time_is_gone() {
        let me = Process::of_pid(std::process::id().cast_signed()).unwrap();
        assert!(!all_threads_gone(me.pid, me.start_time));
        assert!(all_threads_gone(me.pid, me.start_time + 1));
        assert!(PidFd::open(me.pid, me.start_time + 1).unwrap().is_none());
        assert!(PidFd::open(me.pid, me.start_time).unwrap().is_some());
    }

    #[test]
    fn a_process_that_lives_is_not_killed() {
        let me = Process::of_pid(std::process::id().cast_signed()).unwrap();
        assert!(!is_killed(me.pid, me.start_time).unwrap());
    }

    #[test]
    fn only_a_kill_that_is_pending_counts() {
        let status = |own: u64, shared: u64| {
            format!(
                "Name:\tguest\nSigQ:\t0/9\nSigPnd:\t{own:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{:016x}\n",
                0x100
            )
        };
        let stop = 1 << (libc::SIGSTOP - 1);
        assert!(!is_kill_pending(status(0, 0).as_bytes()));
        assert!(!is_kill_pending(status(stop, stop).as_bytes()));
        assert!(is_kill_pending(status(0x100, 0).as_bytes()));
        assert!(is_kill_pending(status(0, 0x100 | stop).as_bytes()));
    }

    #[test]
    fn a_thread_in_the_kernels_exit_is_leaving() {
        let stat = |flags: u64| {
            format!("42 (a) (guest) D 1 2 3 4 5 {flags} 0 0 0 0 0 0 0 0 20 0 1 0 777 0 0\n")
        };
        let read = |flags| Stat::parse(stat(flags).as_bytes()).unwrap();
        assert!(!read(0x40_0000).is_leaving());
        assert!(read(0x40_0004).is_leaving());
        assert_eq!(read(0x40_0004).start_time, 777);
        assert!(Stat::parse(b"42 (guest) D 1 2").is_err());
    }
}
