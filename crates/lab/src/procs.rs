//! The processes of a run: found by a mark in their environment, stopped and killed together, reaped.
//!
//! Invariant: no process is signalled unless its environment carries the mark of the run in question.

use crate::fail::{Context, Failure, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Environment variable that names the run.
pub const RUN: &str = "MAINSTAY_LAB_RUN";
/// Environment variable that names the host.
pub const HOST: &str = "MAINSTAY_LAB_HOST";

/// How long killed processes may take to be gone. They hold no hung I/O, so this is generous.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Looks in a row that find nothing before nothing is believed to be left.
const QUIET_LOOKS: u32 = 3;

/// What the environment of wanted processes has.
#[derive(Debug, Clone)]
pub struct Marker {
    wanted: Vec<Vec<u8>>,
}

impl Marker {
    /// Every process of a run.
    pub fn run(run: &str) -> Self {
        Self {
            wanted: vec![format!("{RUN}={run}").into_bytes()],
        }
    }

    /// Every process of one host of a run.
    pub fn host(run: &str, host: &str) -> Self {
        Self {
            wanted: vec![
                format!("{RUN}={run}").into_bytes(),
                format!("{HOST}={host}").into_bytes(),
            ],
        }
    }

    fn is_in(&self, environ: &[u8]) -> bool {
        self.wanted
            .iter()
            .all(|w| environ.split(|b| *b == 0).any(|entry| entry == w))
    }
}

/// Every live process with the mark, this one left out. A zombie has no environment, so it is not found.
pub fn marked(marker: &Marker) -> BTreeSet<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeSet::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .map(Pid::from_raw)
        .filter(|pid| *pid != Pid::this())
        .filter(|pid| fs::read(format!("/proc/{pid}/environ")).is_ok_and(|e| marker.is_in(&e)))
        .collect()
}

/// What a hard kill ended.
#[derive(Debug, Default, Clone)]
pub struct Killed {
    /// The command lines of the processes, with their numbers.
    pub processes: Vec<(Pid, String)>,
    /// Processes that were still there when patience ended.
    pub left: usize,
}

impl Killed {
    /// How many processes had this word as an argument.
    pub fn with_word(&self, word: &str) -> usize {
        self.processes
            .iter()
            .filter(|(_, line)| line.split(' ').any(|w| w == word))
            .count()
    }
}

/// Stops every process with the mark at once, then kills them, until none is left.
pub fn kill_marked(marker: &Marker) -> Killed {
    stop_marked(marker).kill()
}

/// Processes that were stopped together and not killed yet.
#[derive(Debug)]
pub struct Stopped {
    marker: Marker,
    processes: Vec<(Pid, String)>,
}

/// Stops every process with the mark; those that were born meanwhile too.
pub fn stop_marked(marker: &Marker) -> Stopped {
    let mut seen = BTreeSet::new();
    let mut processes = Vec::new();
    loop {
        let fresh: Vec<Pid> = marked(marker).difference(&seen).copied().collect();
        for pid in &fresh {
            // One that has just ended is as stopped as can be.
            let _ = kill(*pid, Signal::SIGSTOP);
            processes.push((*pid, command_line(*pid)));
        }
        seen.extend(&fresh);
        if fresh.is_empty() {
            return Stopped {
                marker: marker.clone(),
                processes,
            };
        }
    }
}

impl Stopped {
    /// Kills them and waits until they are gone.
    pub fn kill(self) -> Killed {
        let deadline = Instant::now() + GONE_WITHIN;
        let mut quiet = 0;
        let left = loop {
            let found = marked(&self.marker);
            for pid in &found {
                let _ = kill(*pid, Signal::SIGKILL);
            }
            reap();
            // A process has no environment for a moment while it executes another program.
            quiet = if found.is_empty() { quiet + 1 } else { 0 };
            if quiet == QUIET_LOOKS || Instant::now() >= deadline {
                break found.len();
            }
            std::thread::park_timeout(Duration::from_millis(2));
        };
        Killed {
            processes: self.processes,
            left,
        }
    }
}

/// A process's command line, blanks between the arguments.
pub fn command_line(pid: Pid) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .trim_end_matches('\0')
        .replace('\0', " ")
}

/// The fields of `/proc/PID/stat` after the name: the first is the state (field 3 in the manual page).
fn stat(pid: Pid) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// When a process started, in ticks since boot (field 22); none if there is no such process or only
/// its zombie.
pub fn start_time(pid: Pid) -> Option<u64> {
    let fields = stat(pid)?;
    if fields
        .first()
        .is_some_and(|state| state == "Z" || state == "X")
    {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// Whether the process that started then is there, or may be: only what is known to be gone is gone.
pub fn may_live(pid: Pid, start: u64) -> bool {
    match fs::metadata(format!("/proc/{pid}")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(_) => true,
        // This process may have no descriptor left for the look; then the next one tells.
        Ok(_) => stat(pid).is_none() || start_time(pid) == Some(start),
    }
}

/// Processor time that a process has used, in seconds (fields 14 and 15).
pub fn cpu_seconds(pid: Pid) -> Option<f64> {
    let fields = stat(pid)?;
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    let ticks = u32::try_from(ticks).ok()?;
    Some(f64::from(ticks) / f64::from(u32::try_from(per_second).ok()?.max(1)))
}

/// Resident memory of a process in KiB.
pub fn rss_kib(pid: Pid) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Proportional memory of a process in KiB: what it shares with others is divided among them. None where the
/// kernel does not say (before 4.14), or there is no such process.
pub fn pss_kib(pid: Pid) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Bytes that a process has read and written by system calls (`rchar` and `wchar`), files, sockets and pipes alike.
pub fn io_bytes(pid: Pid) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let value = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        line.trim().parse().ok()
    };
    Some((value("rchar:")?, value("wchar:")?))
}

/// What the network namespace of a process has received and sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes received.
    pub bytes_in: u64,
    /// Frames received.
    pub packets_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Frames sent.
    pub packets_out: u64,
}

/// The traffic of all devices but loopback in the network namespace of a process.
pub fn traffic(pid: Pid) -> Option<Traffic> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    Some(parse_traffic(&text))
}

/// `/proc/net/dev`: after a device's name, bytes and packets received stand first and second, those sent ninth
/// and tenth.
fn parse_traffic(text: &str) -> Traffic {
    let mut all = Traffic::default();
    for line in text.lines() {
        let Some((device, counts)) = line.split_once(':') else {
            continue;
        };
        if device.trim() == "lo" {
            continue;
        }
        let counts: Vec<u64> = counts
            .split_whitespace()
            .filter_map(|n| n.parse().ok())
            .collect();
        let count = |at: usize| counts.get(at).copied().unwrap_or_default();
        all.bytes_in += count(0);
        all.packets_in += count(1);
        all.bytes_out += count(8);
        all.packets_out += count(9);
    }
    all
}

/// Held while a child of our own is waited for, so that [`reap`] does not take its status away.
static WAITING: Mutex<()> = Mutex::new(());

fn waiting() -> std::sync::MutexGuard<'static, ()> {
    WAITING
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Runs a tool to its end.
///
/// # Errors
/// When it cannot be started.
pub fn run_tool(command: &mut Command) -> io::Result<Output> {
    let _held = waiting();
    command.output()
}

/// Lets a program that is about to be started write its output, and its errors, at the end of a log.
///
/// # Errors
/// When the log cannot be opened.
pub fn log_to(command: &mut Command, log: &Path) -> Result<()> {
    let at = |e: Failure| e.at(log.display());
    let out = File::options()
        .create(true)
        .append(true)
        .open(log)
        .context("cannot open a log")
        .map_err(at)?;
    let err = out.try_clone().context("cannot open a log").map_err(at)?;
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    Ok(())
}

/// Marks a program that is about to be started as one of a host of the run, with its output in a log.
///
/// # Errors
/// When the log cannot be opened.
pub fn make_hosts_own(command: &mut Command, run: &str, host: &str, log: &Path) -> Result<()> {
    // A group of its own: Ctrl-C reaches the run's leader alone, which then ends the hosts.
    command
        .env(RUN, run)
        .env(HOST, host)
        .env_remove("MAINSTAY_SOCKET")
        .process_group(0);
    log_to(command, log)
}

/// Starts a program that [`reap`] will take the status of.
///
/// # Errors
/// When it cannot be started.
pub fn spawn(command: &mut Command) -> io::Result<()> {
    // A start that fails is waited for inside `spawn`.
    let _held = waiting();
    command.spawn().map(drop)
}

/// Takes the status of every child that has ended, adopted ones too.
pub fn reap() {
    let _held = waiting();
    loop {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn a_mark_is_a_whole_entry() {
        let marker = Marker::host("ab12", "host-1");
        assert!(marker.is_in(b"PATH=/bin\0MAINSTAY_LAB_RUN=ab12\0MAINSTAY_LAB_HOST=host-1\0"));
        assert!(!marker.is_in(b"MAINSTAY_LAB_RUN=ab12\0MAINSTAY_LAB_HOST=host-11\0"));
        assert!(!marker.is_in(b"MAINSTAY_LAB_RUN=ab123\0MAINSTAY_LAB_HOST=host-1\0"));
        assert!(!marker.is_in(b""));
    }

    #[test]
    fn traffic_is_that_of_all_devices_but_loopback() {
        let text = "Inter-|   Receive                            |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n    \
                    lo: 999 9 0 0 0 0 0 0 999 9 0 0 0 0 0 0\n  \
                    eth0: 100 2 0 0 0 0 0 0 300 4 0 0 0 0 0 0\n  eth1:1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n";
        let expected = Traffic {
            bytes_in: 101,
            packets_in: 3,
            bytes_out: 301,
            packets_out: 5,
        };
        assert_eq!(parse_traffic(text), expected);
    }

    #[test]
    fn only_marked_processes_are_killed() {
        let sleeper = |run: &str| {
            Command::new("sleep")
                .arg("60")
                .env(RUN, run)
                .stdout(Stdio::null())
                .spawn()
                .expect("sleep")
        };
        let (mut ours, mut other) = (sleeper("0f0f0f01"), sleeper("0f0f0f02"));
        let deadline = Instant::now() + GONE_WITHIN;
        while marked(&Marker::run("0f0f0f01")).is_empty() {
            assert!(Instant::now() < deadline, "the process never shows");
            std::thread::yield_now();
        }
        let killed = kill_marked(&Marker::run("0f0f0f01"));
        assert_eq!(killed.left, 0);
        assert_eq!(killed.processes.len(), 1);
        assert_eq!(killed.with_word("60"), 1);
        assert_eq!(
            start_time(Pid::from_raw(i32::try_from(ours.id()).expect("pid"))),
            None
        );
        assert!(start_time(Pid::from_raw(i32::try_from(other.id()).expect("pid"))).is_some());
        drop(ours.wait());
        other.kill().expect("kill");
        drop(other.wait());
    }
}
