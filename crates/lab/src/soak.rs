//! A soak: random faults for a long time on one cluster, judged by disks and process tables, with the daemons
//! watched for growth.
//!
//! # Never here
//! A fault that is not in the scenario: what a soak plays, `mainstay lab run` plays again from a file.

mod draw;
mod growth;
mod sample;

use crate::run::{Audience, Look};
pub use draw::{Wish, draw};
pub use growth::{Bounds, Growth, Kind, Measure, Row, Sample, Watched};
use mainstay_core::event::EventKind;
use mainstay_sim::{Body, Entry};
use std::collections::BTreeMap;
use std::time::Duration;

/// Between two samples of the daemons.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// Between two words about how it goes.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What happened so far, counted from zero.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tally {
    /// Faults and users' wishes that were played, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Of those, how many were refused or met nobody.
    pub refused: u64,
    /// VMs that agents said they had started.
    pub starts: u64,
    /// Restarts that a primary asked for.
    pub restarts: u64,
    /// Locks of lost hosts that were taken.
    pub locks_broken: u64,
    /// VMs that a guard froze.
    pub frozen: u64,
    /// Daemons that took the place of another one of their host.
    pub daemons_anew: usize,
    /// VMs that run now.
    pub running: usize,
    /// Properties found broken.
    pub broken: usize,
}

impl Tally {
    /// All faults that were played.
    #[must_use]
    pub fn played(&self) -> u64 {
        self.faults.values().sum()
    }
}

/// Watches a run as a soak.
pub struct Soak<'a> {
    growth: Growth,
    tally: Tally,
    next_sample: Duration,
    next_word: Duration,
    phase: &'a mut dyn FnMut(&str),
    progress: &'a mut dyn FnMut(Duration, &Tally),
}

impl std::fmt::Debug for Soak<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Soak")
            .field("tally", &self.tally)
            .finish_non_exhaustive()
    }
}

impl<'a> Soak<'a> {
    /// Nothing has happened yet. `phase` is told what is done before zero; `progress` hears every minute how it
    /// goes.
    pub fn new(
        bounds: Bounds,
        phase: &'a mut dyn FnMut(&str),
        progress: &'a mut dyn FnMut(Duration, &Tally),
    ) -> Self {
        Self {
            growth: Growth::new(bounds),
            tally: Tally::default(),
            next_sample: Duration::ZERO,
            next_word: TELL_EVERY,
            phase,
            progress,
        }
    }

    /// What happened.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// What the daemons took.
    #[must_use]
    pub fn growth(&self) -> &Growth {
        &self.growth
    }

    fn count(&mut self, kind: &EventKind) {
        let count = match kind {
            EventKind::VmStarted { .. } => &mut self.tally.starts,
            EventKind::RestartRequested { .. } => &mut self.tally.restarts,
            EventKind::LockBroken { .. } => &mut self.tally.locks_broken,
            EventKind::VmFrozen { .. } => &mut self.tally.frozen,
            _ => return,
        };
        *count += 1;
    }
}

impl Audience for Soak<'_> {
    fn phase(&mut self, text: &str) {
        (self.phase)(text);
    }

    fn entry(&mut self, entry: &Entry, zero: Option<u64>) {
        if zero.is_none_or(|zero| entry.at < zero) {
            return;
        }
        match &entry.body {
            // One that is refused is told once more, with the reason.
            Body::Fault { .. } if !entry.why.is_empty() => self.tally.refused += 1,
            Body::Fault { what, .. } => *self.tally.faults.entry(what).or_default() += 1,
            Body::Event(kind) => self.count(kind),
        }
    }

    fn looked(&mut self, look: &Look<'_>) {
        self.tally.running = look.running;
        self.tally.broken = look.broken;
        if look.since_zero >= self.next_sample {
            self.next_sample = look.since_zero + SAMPLE_EVERY;
            for (process, sample) in sample::look(look.cluster, look.since_zero) {
                self.growth.add(process, sample);
            }
            self.tally.daemons_anew = self.growth.began_anew();
        }
        if look.since_zero >= self.next_word {
            self.next_word += TELL_EVERY;
            (self.progress)(look.since_zero, &self.tally);
        }
    }

    fn content(&mut self) -> bool {
        self.growth.holds()
    }
}
