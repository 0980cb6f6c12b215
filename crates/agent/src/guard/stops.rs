//! What the guard has stopped, and whether it has been seen to be.

use crate::logging;
use mainstay_core::time::{Duration, Instant};
use mainstay_hypervisor::{Process, freeze};
use std::collections::BTreeMap;

/// A process that is not stopped after this is stopped again.
const STOP_AGAIN: Duration = Duration::from_millis(100);
/// A process that is told to stop fifty times and runs on will not stop: the watchdog has to. A busy host
/// needs milliseconds. Longer than this is of no use: in every profile other hosts may have started the VM by
/// then (`break` is 3 s after `freeze` at most), and the device's own time-out comes on top.
pub(super) const RUNS_ON: Duration = Duration::from_secs(5);

/// What became of a try to stop a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// No thread of it can execute.
    Done,
    /// Those that are not stopped wait in uninterruptible I/O and are stopped when that ends: until then
    /// they execute nothing. A hung datastore is no reason to reset a host whose other VMs are well.
    InIo,
    /// It executes.
    Runs,
}

#[derive(Debug)]
struct Stopped {
    process: Process,
    last: Stop,
    tried: Instant,
    /// Since when it is known to execute.
    runs_since: Option<Instant>,
}

/// All that was stopped, by slot.
#[derive(Debug)]
pub(super) struct Stops {
    all: BTreeMap<usize, Stopped>,
    stop: fn(&Process) -> Stop,
}

impl Default for Stops {
    fn default() -> Self {
        Self::by(stop)
    }
}

impl Stops {
    /// Stops by that way.
    pub(super) fn by(stop: fn(&Process) -> Stop) -> Self {
        Self {
            all: BTreeMap::new(),
            stop,
        }
    }

    /// Stops what is in a slot.
    pub(super) fn stop(&mut self, now: Instant, slot: usize, process: Process) {
        let last = (self.stop)(&process);
        let known = self.all.get(&slot).filter(|s| s.process == process);
        let runs_since = known.and_then(|s| s.runs_since).unwrap_or(now);
        let stopped = Stopped {
            process,
            last,
            tried: now,
            runs_since: (last == Stop::Runs).then_some(runs_since),
        };
        self.all.insert(slot, stopped);
    }

    /// Stops what is in a slot unless it was seen to be stopped, or was told so a moment ago.
    pub(super) fn keep_stopped(&mut self, now: Instant, slot: usize, process: Process) {
        let settled = |s: &Stopped| s.last == Stop::Done || now.since(s.tried) < STOP_AGAIN;
        let known = self.all.get(&slot).filter(|s| s.process == process);
        if !known.is_some_and(settled) {
            self.stop(now, slot, process);
        }
    }

    /// Those slots are kept in mind for which this says so.
    pub(super) fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        self.all.retain(|slot, _| keep(*slot));
    }

    /// The process of the slot may run.
    pub(super) fn forget(&mut self, slot: usize) {
        self.all.remove(&slot);
    }

    /// Whether something was told to stop and was not yet seen to be stopped.
    pub(super) fn any_runs(&self) -> bool {
        self.all.values().any(|s| s.last == Stop::Runs)
    }

    /// The slots whose processes execute although they were told to stop for longer than any busy host
    /// takes.
    pub(super) fn running_on(&self, now: Instant) -> Vec<usize> {
        let late = |s: &Stopped| {
            s.runs_since
                .is_some_and(|since| now.since(since) >= RUNS_ON)
        };
        let all = self.all.iter().filter(|(_, s)| late(s));
        all.map(|(slot, _)| *slot).collect()
    }
}

fn stop(process: &Process) -> Stop {
    if let Err(error) = freeze::freeze(process) {
        tracing::warn!(
            pid = process.pid,
            error = logging::chain(&error),
            "not frozen"
        );
    }
    if freeze::is_stopped(process) {
        Stop::Done
    } else if freeze::is_held(process) {
        Stop::InIo
    } else {
        Stop::Runs
    }
}
