//! How far two hosts' clocks drift apart.
//!
//! The rights to run rest on clocks that are off by `clock_drift_ppm` at most (`docs/protocol.md`). Each
//! secondary shows its clock to the primary in datagrams; the one that was on its way for the shortest
//! time, in each `clock_check_interval`, stands for the interval. Two clocks that keep the bound drift
//! apart by twice it at most.
//!
//! Where all datagrams are late, the best of an interval is late too, and by how much is not known: it is
//! taken to be off by what lies between it and the next best, and two measurements in a row must agree.

use crate::id::InstanceId;
use crate::time::{Duration, Instant};

/// One clock against another: local minus remote, in nanoseconds, and when.
#[derive(Clone, Copy, Debug)]
struct Sample {
    apart: i128,
    at: Instant,
}

/// The best sample of an interval.
#[derive(Clone, Copy, Debug)]
struct Best {
    sample: Sample,
    /// How much longer the next best was on its way; none: it was the only one.
    spread: Option<i128>,
    /// When the interval began.
    began: Instant,
}

impl Best {
    /// It, or the new one if that was on its way for a shorter time: what took longer looks later.
    fn with(self, new: Sample) -> Self {
        let longer = new.apart - self.sample.apart;
        if longer < 0 {
            return Self {
                sample: new,
                spread: Some(-longer),
                ..self
            };
        }
        let spread = Some(self.spread.map_or(longer, |s| s.min(longer)));
        Self { spread, ..self }
    }
}

/// A peer's clock against this host's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drift {
    instance: Option<InstanceId>,
    /// The best of the interval before.
    before: Option<Best>,
    /// The best of this interval.
    best: Option<Best>,
    /// What was measured last.
    last: Option<i64>,
    /// In what the last two measurements agree.
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
        let first = Best {
            sample,
            spread: None,
            began: now,
        };
        let best = self.best.map_or(first, |best| best.with(sample));
        self.best = Some(best);
        if now.since(best.began) < interval {
            return;
        }
        if let Some(measured) = self.before.and_then(|b| measured(&b, &best, interval)) {
            let agreed = self.last.map(|last| match (last < 0, measured < 0) {
                (true, true) => last.max(measured),
                (false, false) => last.min(measured),
                _ => 0,
            });
            (self.last, self.ppm) = (Some(measured), agreed.or(self.ppm));
        }
        self.before = Some(best);
        self.best = None;
    }

    /// How much faster than this host's clock the peer's runs, in millionths; negative: slower.
    pub(crate) fn ppm(&self) -> Option<i64> {
        self.ppm
    }
}

/// How much faster the peer's clock ran from one interval to the next, in millionths, at least: what the
/// delays may have added is left out. None where too little is known.
fn measured(before: &Best, best: &Best, interval: Duration) -> Option<i64> {
    let passed = best.sample.at.since(before.sample.at);
    // Of two bests that lie close together, a delay says more than the drift.
    if passed < interval / 2 {
        return None;
    }
    let passed = i128::try_from(passed.as_nanos()).ok()?.max(1);
    let gained = before.sample.apart - best.sample.apart;
    let unsure = before.spread?.saturating_add(best.spread?);
    let sure = gained.abs().saturating_sub(unsure).max(0) * gained.signum();
    i64::try_from(sure.saturating_mul(1_000_000) / passed).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    const INTERVAL: Duration = Duration::from_secs(300);

    /// A peer whose clock is `ppm` off, heard each eight seconds with delays of up to so many nanoseconds.
    fn heard(ppm: i64, seed: u64, delay: u64) -> Option<i64> {
        let mut dice = Rng::new(seed);
        let mut drift = Drift::default();
        for s in (0..1200_u64).step_by(8) {
            let sent = s * 1_000_000_000;
            let off = i128::from(sent) * i128::from(ppm) / 1_000_000;
            let remote = u64::try_from(i128::from(sent) + off + 5_000_000_000).expect("positive");
            let now = Instant::from_nanos(sent + dice.below(delay) + 100_000);
            drift.shown(InstanceId(1), remote, now, INTERVAL);
        }
        drift.ppm()
    }

    #[test]
    fn a_drift_is_measured_through_delays() {
        for (seed, ppm) in [(1, 0), (2, 900), (3, -900), (4, 5_000), (5, -60_000)] {
            let found = heard(ppm, seed, 1_000_000_000).expect("measured");
            let (least, most) = (ppm.abs() * 4 / 5 - 900, ppm.abs() + 400);
            assert!(
                (least..most).contains(&found.abs()) && found * ppm >= 0,
                "{ppm}: {found}"
            );
        }
    }

    #[test]
    fn a_network_that_delays_everything_is_no_drift() {
        let found = (0..1000).filter_map(|seed| heard(0, seed, 4_000_000_000));
        let alarms = found.filter(|ppm| ppm.abs() > 2000).count();
        assert_eq!(alarms, 0, "of 1000 networks");
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
