//! How far two hosts' clocks drift apart.
//!
//! The rights to run rest on clocks that are off by `clock_drift_ppm` at most (`docs/protocol.md`). Each
//! secondary shows its clock to the primary in datagrams; the one that was on its way for the shortest
//! time, in each `clock_check_interval`, stands for the interval. Two clocks that keep the bound drift
//! apart by twice it at most.

use crate::id::InstanceId;
use crate::time::{Duration, Instant};

/// One clock against another: local minus remote, in nanoseconds, and when.
#[derive(Clone, Copy, Debug)]
struct Sample {
    apart: i128,
    at: Instant,
}

/// A peer's clock against this host's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drift {
    instance: Option<InstanceId>,
    /// The best of the interval before.
    before: Option<Sample>,
    /// The best of this interval, and when it began.
    best: Option<(Sample, Instant)>,
    ppm: Option<i64>,
}

impl Drift {
    /// The peer's clock showed `remote` nanoseconds.
    pub(crate) fn shown(
        &mut self,
        instance: InstanceId,
        remote: u64,
        now: Instant,
        interval: Duration,
    ) {
        if self.instance != Some(instance) {
            // Another start may count from another moment.
            *self = Self {
                instance: Some(instance),
                ..Self::default()
            };
        }
        let local = i128::try_from(now.since(Instant::ZERO).as_nanos()).unwrap_or(i128::MAX);
        let sample = Sample {
            apart: local - i128::from(remote),
            at: now,
        };
        let (best, began) = match self.best {
            None => (sample, now),
            // What took longer looks later.
            Some((best, began)) if sample.apart < best.apart => (sample, began),
            Some(kept) => kept,
        };
        self.best = Some((best, began));
        if now.since(began) < interval {
            return;
        }
        if let Some(before) = self.before {
            let passed = i128::try_from(best.at.since(before.at).as_nanos()).unwrap_or(i128::MAX);
            // Of two bests that lie close together, a delay says more than the drift.
            if passed >= i128::try_from(interval.as_nanos() / 2).unwrap_or(i128::MAX) {
                let ppm = (before.apart - best.apart).saturating_mul(1_000_000) / passed.max(1);
                self.ppm = i64::try_from(ppm).ok();
            }
        }
        self.before = Some(best);
        self.best = None;
    }

    /// How much faster than this host's clock the peer's runs, in millionths; negative: slower.
    pub(crate) fn ppm(&self) -> Option<i64> {
        self.ppm
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    const INTERVAL: Duration = Duration::from_secs(300);

    /// A peer whose clock is `ppm` off, heard each eight seconds with delays of up to a second.
    fn measured(ppm: i64, seed: u64) -> Option<i64> {
        let mut dice = Rng::new(seed);
        let mut drift = Drift::default();
        for s in (0..1200_u64).step_by(8) {
            let sent = s * 1_000_000_000;
            let off = i128::from(sent) * i128::from(ppm) / 1_000_000;
            let remote = u64::try_from(i128::from(sent) + off + 5_000_000_000).expect("positive");
            let now = Instant::from_nanos(sent + dice.below(1_000_000_000) + 100_000);
            drift.shown(InstanceId(1), remote, now, INTERVAL);
        }
        drift.ppm()
    }

    #[test]
    fn a_drift_is_measured_through_delays() {
        for (seed, ppm) in [(1, 0), (2, 900), (3, -900), (4, 5_000), (5, -60_000)] {
            let found = measured(ppm, seed).expect("measured");
            assert!((found - ppm).abs() < 400 + ppm.abs() / 10, "{ppm}: {found}");
        }
    }

    #[test]
    fn a_new_start_is_measured_anew() {
        let mut drift = Drift::default();
        for s in 0..1000 {
            drift.shown(
                InstanceId(s / 250),
                0,
                Instant::from_nanos(s * 1_000_000_000),
                INTERVAL,
            );
        }
        assert_eq!(drift.ppm(), None);
    }
}
