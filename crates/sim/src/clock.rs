//! A host's own clock: an offset and a rate against true time.

use mainstay_core::time::Instant;

/// Nanoseconds of true time, from the start of the world.
pub type Nanos = u64;

/// One microsecond.
pub(crate) const MICROSECOND: Nanos = 1_000;
/// One millisecond.
pub const MS: Nanos = 1_000_000;
/// One second.
pub const SECOND: Nanos = 1_000_000_000;

const MILLION: i128 = 1_000_000;

/// Piecewise linear: the rate changes with `clock.drift`, the reading never jumps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    since: Nanos,
    reading: Nanos,
    ppm: i64,
}

impl Clock {
    pub(crate) fn new(reading: Nanos, ppm: i64) -> Self {
        Self {
            since: 0,
            reading,
            ppm,
        }
    }

    /// A clock that begins to count at true time `t`.
    pub(crate) fn starting(t: Nanos, reading: Nanos, ppm: i64) -> Self {
        Self {
            since: t,
            reading,
            ppm,
        }
    }

    /// What the host reads at true time `t`.
    pub(crate) fn local(&self, t: Nanos) -> Instant {
        if self.ppm == 0 {
            return Instant::from_nanos(self.reading + t.saturating_sub(self.since));
        }
        let passed = i128::from(t.saturating_sub(self.since));
        let local = passed * (MILLION + i128::from(self.ppm)) / MILLION;
        Instant::from_nanos(self.reading + u64::try_from(local).unwrap_or(0))
    }

    /// The first true time at which the host reads at least `local`.
    pub(crate) fn when(&self, local: Instant) -> Nanos {
        let ahead = local.as_nanos().saturating_sub(self.reading);
        if self.ppm == 0 {
            return self.since.saturating_add(ahead);
        }
        let ahead = i128::from(ahead);
        let rate = MILLION + i128::from(self.ppm);
        let passed = (ahead * MILLION + rate - 1) / rate;
        self.since
            .saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    /// Runs at another rate from true time `t` on.
    pub(crate) fn set_rate(&mut self, t: Nanos, ppm: i64) {
        let reading = self.local(t).as_nanos();
        *self = Self {
            since: t,
            reading,
            ppm,
        };
    }

    pub(crate) fn ppm(&self) -> i64 {
        self.ppm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moment_found_for_a_reading_is_the_first_that_shows_it() {
        for ppm in [-100_000, -1000, -1, 0, 1, 999, 100_000] {
            let mut clock = Clock::new(77 * SECOND, ppm);
            for local in [
                77 * SECOND,
                77 * SECOND + 1,
                78 * SECOND + 12_345,
                500 * SECOND,
            ] {
                let local = Instant::from_nanos(local);
                let t = clock.when(local);
                assert!(clock.local(t) >= local, "{ppm} {local:?}");
                assert!(t == 0 || clock.local(t - 1) < local, "{ppm} {local:?}");
            }
            let before = clock.local(10 * SECOND);
            clock.set_rate(10 * SECOND, -ppm);
            assert_eq!(
                clock.local(10 * SECOND),
                before,
                "a change of rate is no jump"
            );
        }
    }
}
