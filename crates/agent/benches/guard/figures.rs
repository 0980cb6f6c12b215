//! From the last instructions of guests to the figures of a row.

use std::time::Duration;

/// How long a guest ran on after its deadline, in one round each.
#[derive(PartialEq, Eq, Debug, Default)]
pub(crate) struct Figures {
    /// In ascending order; zero: its last instruction was before the deadline.
    late: Vec<Duration>,
    /// Rounds in which a guest executed nothing at all: nothing was measured.
    idle: usize,
}

impl Figures {
    /// Takes one guest's round: when it was let go on, its deadline, and when it executed its last instruction, in
    /// nanoseconds of one clock.
    pub(crate) fn add(&mut self, let_on: u64, deadline: u64, last: u64) {
        if last < let_on {
            self.idle += 1;
            return;
        }
        let late = Duration::from_nanos(last.saturating_sub(deadline));
        let at = self.late.partition_point(|known| *known <= late);
        self.late.insert(at, late);
    }

    /// The value at that percentage, by nearest rank: no value is made up. With fewer than 100 values the 99th is
    /// the greatest. None: there is no value.
    pub(crate) fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.late.len() * percent).div_ceil(100).max(1);
        self.late.get(rank - 1).copied()
    }

    /// How many values there are.
    pub(crate) fn values(&self) -> usize {
        self.late.len()
    }

    /// In how many of them the guest executed something after its deadline.
    pub(crate) fn ran_on(&self) -> usize {
        self.late.iter().filter(|late| !late.is_zero()).count()
    }

    /// Rounds without a value.
    pub(crate) fn idle(&self) -> usize {
        self.idle
    }
}
