//! The rows that stand beside those of other systems: first VM, all of ten, all of a hundred.

use super::{Percentiles, Phase, Times};
use crate::run::Victim;
use mainstay_core::config::Profile;

/// A row: a profile, and what is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The timers.
    pub profile: Profile,
    /// What loses its power.
    pub victim: Victim,
}

impl Row {
    /// All rows, in their order.
    pub const ALL: [Self; 4] = [
        Self::of(Profile::Balanced, Victim::Secondary),
        Self::of(Profile::Balanced, Victim::Primary),
        Self::of(Profile::Fast, Victim::Secondary),
        Self::of(Profile::Fast, Victim::Primary),
    ];

    /// How many VMs the lost host has, in each column.
    pub const VMS: [usize; 2] = [10, 100];

    const fn of(profile: Profile, victim: Victim) -> Self {
        Self { profile, victim }
    }

    /// What it is, for a table.
    #[must_use]
    pub fn label(self) -> String {
        format!("{}, {} lost", self.profile.name(), self.victim.name())
    }
}

/// What all runs of a row and a number of VMs gave, in seconds from the power loss.
#[derive(Debug, Clone, PartialEq)]
pub struct RowTimes {
    /// The row.
    pub row: Row,
    /// How many VMs the lost host had.
    pub vms: usize,
    /// Until the first VM had written from another host, over the runs.
    pub first: Option<Percentiles>,
    /// Until the last had.
    pub all: Option<Percentiles>,
}

impl RowTimes {
    /// Those of these runs.
    #[must_use]
    pub fn of(row: Row, vms: usize, runs: &[Vec<Times>]) -> Self {
        let ends: Vec<(f64, f64)> = runs.iter().filter_map(|r| first_and_last(r)).collect();
        Self {
            row,
            vms,
            first: Percentiles::of(ends.iter().map(|(first, _)| *first)),
            all: Percentiles::of(ends.iter().map(|(_, last)| *last)),
        }
    }
}

/// Seconds until the first and until the last VM of a run was back; none when one did not come back.
#[must_use]
pub fn first_and_last(run: &[Times]) -> Option<(f64, f64)> {
    let totals: Option<Vec<f64>> = run.iter().map(|t| t.seconds(Phase::Total)).collect();
    let all = Percentiles::of(totals?)?;
    Some((all.min, all.max))
}
