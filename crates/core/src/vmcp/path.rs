//! What a host's own operations on a datastore show of its path there: it answers, it hangs, or its device
//! is gone.
//!
//! ```text
//!            an operation is asked for              nothing answered for `apd_timeout`
//!   answers ───────────────────────────▶ waits ──────────────────────────────────────▶ all paths down
//!      ▲                                   │ "gone", and nothing else for `freeze`
//!      │ anything answers                  └──────────────────────────────────────────▶ permanent device loss
//!      └────────────────────────────────────────────────────────────────────────────── (either)
//! ```
//! An answer is any outcome that came over the path, a refusal too: what is full or read-only is there. A
//! time-out, "gone", and a datastore that is not mounted or not the right one, are none. A device counts as lost only when it was gone for as long as VMs may run without
//! a renewal: a path that flips between errors and success is shorter than that and costs nobody anything.

use crate::io::{IoFault, StorageOutcome};
use crate::time::{Duration, Instant};

/// How a path is lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Loss {
    /// All paths down: operations hang, or end without an answer in time. It may come back.
    Apd,
    /// Permanent device loss: operations fail at once, as there is no such device any more.
    Pdl,
}

impl Loss {
    /// In words, for people.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Apd => "all paths down",
            Self::Pdl => "permanent device loss",
        }
    }
}

/// After how long a path that does not answer is lost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Silence is all paths down then.
    pub(crate) apd: Duration,
    /// "Gone" is permanent device loss then.
    pub(crate) pdl: Duration,
}

/// A host's path to a datastore.
#[derive(Clone, Debug, Default)]
pub(crate) struct Path {
    /// When the first operation was asked for since the path last answered.
    asked: Option<Instant>,
    /// When an operation first ended as "gone" since then.
    gone: Option<Instant>,
    /// It was found lost, then.
    lost: Option<(Loss, Instant)>,
    /// It answered after it had been found lost, and nobody took note of that yet.
    back: Option<Loss>,
    /// It began or ended to fail as gone, and nobody took note of that yet.
    news: bool,
}

impl Path {
    /// An operation is asked for.
    pub(crate) fn asks(&mut self, now: Instant) {
        self.asked.get_or_insert(now);
    }

    /// An operation ended.
    pub(crate) fn ended(&mut self, now: Instant, outcome: &StorageOutcome) {
        match outcome {
            StorageOutcome::NotDone(IoFault::Gone) | StorageOutcome::Unknown(IoFault::Gone) => {
                self.asked.get_or_insert(now);
                self.news |= self.gone.is_none();
                self.gone.get_or_insert(now);
            }
            StorageOutcome::NotDone(IoFault::TimedOut | IoFault::Foreign)
            | StorageOutcome::Unknown(IoFault::TimedOut | IoFault::Foreign) => {}
            StorageOutcome::Ok(_) | StorageOutcome::NotDone(_) | StorageOutcome::Unknown(_) => {
                self.news |= self.gone.is_some();
                (self.asked, self.gone) = (None, None);
                if let Some((loss, _)) = self.lost.take() {
                    self.back = Some(loss);
                }
            }
        }
    }

    /// True once after it began or ended to fail as gone.
    pub(crate) fn take_news(&mut self) -> bool {
        core::mem::take(&mut self.news)
    }

    /// What it was, once after it answered again.
    pub(crate) fn take_back(&mut self) -> Option<Loss> {
        self.back.take()
    }

    /// The agent was stopped until now, and heard no answer because it did not listen: all counts anew.
    pub(crate) fn listens_from(&mut self, now: Instant) {
        if self.asked.is_some() {
            *self = Self {
                asked: Some(now),
                ..Self::default()
            };
        }
    }

    /// Its operations fail as gone, whether or not that has lasted.
    pub(crate) fn fails(&self) -> bool {
        self.gone.is_some()
    }

    /// It is found lost, and since when.
    pub(crate) fn lost(&self) -> Option<(Loss, Instant)> {
        self.lost
    }

    /// When it is found lost if it does not answer before, and how.
    fn verdict(&self, patience: Patience) -> Option<(Loss, Instant)> {
        if let Some(gone) = self.gone {
            return Some((Loss::Pdl, gone + patience.pdl));
        }
        self.asked.map(|asked| (Loss::Apd, asked + patience.apd))
    }

    /// When to look next.
    pub(crate) fn due(&self, patience: Patience) -> Option<Instant> {
        let (loss, at) = self.verdict(patience)?;
        let known = self.lost.is_some_and(|(known, _)| known == loss);
        (!known).then_some(at)
    }

    /// The path was found lost just now: said once. A device that turns out to be gone after its paths were
    /// down is another finding.
    pub(crate) fn judge(&mut self, now: Instant, patience: Patience) -> Option<Loss> {
        let (loss, _) = self.verdict(patience)?;
        if self.due(patience).is_none_or(|at| now < at) {
            return None;
        }
        self.lost = Some((loss, now));
        Some(loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::StorageValue;

    const PATIENCE: Patience = Patience {
        apd: Duration::from_secs(10),
        pdl: Duration::from_secs(3),
    };

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    const OK: StorageOutcome = StorageOutcome::Ok(StorageValue::Done);
    const GONE: StorageOutcome = StorageOutcome::NotDone(IoFault::Gone);
    const TIMED_OUT: StorageOutcome = StorageOutcome::Unknown(IoFault::TimedOut);

    #[test]
    fn silence_is_all_paths_down_after_its_time_and_said_once() {
        let mut path = Path::default();
        path.asks(at(0));
        path.asks(at(500));
        path.ended(at(5000), &TIMED_OUT);
        assert_eq!(path.judge(at(9_999), PATIENCE), None);
        assert_eq!(path.due(PATIENCE), Some(at(10_000)));
        assert_eq!(path.judge(at(10_000), PATIENCE), Some(Loss::Apd));
        assert_eq!(path.judge(at(20_000), PATIENCE), None);
        assert_eq!(path.lost(), Some((Loss::Apd, at(10_000))));
        path.ended(at(21_000), &OK);
        assert_eq!(path.take_back(), Some(Loss::Apd));
        assert_eq!(path.take_back(), None);
        assert_eq!((path.lost(), path.due(PATIENCE)), (None, None));
    }

    #[test]
    fn gone_is_a_loss_only_when_nothing_else_was_said_for_its_time() {
        let mut path = Path::default();
        for second in 0..20 {
            path.asks(at(second * 1000));
            path.ended(at(second * 1000), &GONE);
            assert_eq!(path.judge(at(second * 1000 + 900), PATIENCE), None);
            assert!(path.fails());
            path.ended(at(second * 1000 + 950), &OK);
            assert!(!path.fails());
            assert_eq!(path.take_back(), None);
            assert!(path.take_news(), "others hear of it");
        }
        path.ended(at(30_000), &GONE);
        path.ended(at(31_000), &GONE);
        assert_eq!(path.judge(at(32_999), PATIENCE), None);
        assert_eq!(path.judge(at(33_000), PATIENCE), Some(Loss::Pdl));
    }

    #[test]
    fn a_device_that_is_gone_after_its_paths_were_down_is_told_apart() {
        let mut path = Path::default();
        path.asks(at(0));
        assert_eq!(path.judge(at(10_000), PATIENCE), Some(Loss::Apd));
        path.ended(at(12_000), &GONE);
        assert_eq!(path.judge(at(14_999), PATIENCE), None);
        assert_eq!(path.judge(at(15_000), PATIENCE), Some(Loss::Pdl));
    }

    #[test]
    fn what_refuses_is_there() {
        for fault in [IoFault::Full, IoFault::ReadOnly, IoFault::Other] {
            let mut path = Path::default();
            path.asks(at(0));
            path.ended(at(1), &StorageOutcome::NotDone(fault));
            assert_eq!(path.judge(at(60_000), PATIENCE), None, "{fault:?}");
        }
    }

    #[test]
    fn an_agent_that_was_stopped_has_not_listened() {
        let mut path = Path::default();
        path.asks(at(0));
        assert_eq!(path.judge(at(10_000), PATIENCE), Some(Loss::Apd));
        path.listens_from(at(60_000));
        assert_eq!(path.judge(at(69_999), PATIENCE), None);
        assert_eq!(path.judge(at(70_000), PATIENCE), Some(Loss::Apd));
    }
}
