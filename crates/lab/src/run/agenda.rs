//! What is to be done when.

use mainstay_core::time::Instant;
use std::collections::BTreeMap;

/// Something planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// An event of the scenario, by its place.
    Fault(usize),
    /// The moment of an expectation, by its place.
    Moment(usize),
    /// Look at the process tables.
    Look,
    /// A booting host has its network: it answers pings.
    NetworkUp { host: usize, boot: u64 },
    /// A host has booted.
    Boot { host: usize, boot: u64 },
    /// An agent that was stopped on purpose is started again.
    StartAgent { host: usize, boot: u64 },
    /// A host that is shut down loses its power.
    PowerGoes { host: usize, boot: u64, again: bool },
    /// The end of the run.
    End,
}

/// Things planned, by time; those of one time in the order in which they were planned.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    planned: BTreeMap<(Instant, u64), Due>,
    count: u64,
}

impl Agenda {
    pub(super) fn at(&mut self, at: Instant, due: Due) {
        self.count += 1;
        self.planned.insert((at, self.count), due);
    }

    /// When the next thing is due.
    pub(super) fn first(&self) -> Option<Instant> {
        self.planned.keys().next().map(|(at, _)| *at)
    }

    /// Takes the next thing, with the time at which it was due.
    pub(super) fn take(&mut self) -> Option<(Instant, Due)> {
        self.planned.pop_first().map(|((at, _), due)| (at, due))
    }
}
