//! Plays many seeds on all cores and adds up what came of them.

use super::Seeds;
use crate::scenarios::complain;
use mainstay_sim::Coverage;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Progress is kept this often: what a SIGKILL costs at most.
const SAVE_EVERY: Duration = Duration::from_secs(2);
/// Progress is told after so many seeds.
const TELL_EVERY: u64 = 50;

/// Seeds that were played: ranges with both ends in them, in order, apart from each other.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    pub(super) fn insert(&mut self, seed: u64) {
        let at = self.0.partition_point(|(_, last)| *last < seed);
        if self.0.get(at).is_some_and(|(first, _)| *first <= seed) {
            return;
        }
        self.0.insert(at, (seed, seed));
        // Neighbours that touch become one.
        for left in [at, at.saturating_sub(1)] {
            if let (Some(a), Some(b)) = (self.0.get(left).copied(), self.0.get(left + 1).copied())
                && a.1.checked_add(1) == Some(b.0)
            {
                self.0.splice(left..left + 2, [(a.0, b.1)]);
            }
        }
    }

    pub(super) fn has(&self, seed: u64) -> bool {
        self.first_missing(seed) != Some(seed)
    }

    /// The first seed from `seed` on that was not played; none: there is no such number.
    pub(super) fn first_missing(&self, seed: u64) -> Option<u64> {
        let inside = self.0.iter().find(|(a, b)| (*a..=*b).contains(&seed));
        match inside {
            Some((_, last)) => last.checked_add(1),
            None => Some(seed),
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|(a, b)| b - a + 1).sum()
    }
}

/// What failed in a seed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Failed {
    /// Properties that did not hold, by their short names; empty: the run came to no end.
    pub(super) properties: Vec<String>,
    /// What happened, in a sentence.
    pub(super) what: String,
}

/// One seed, played.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Played {
    pub(super) virtual_ms: u64,
    pub(super) failed: Option<Failed>,
    pub(super) coverage: Coverage,
}

/// What came of all seeds so far.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Tally {
    pub(super) done: Ranges,
    pub(super) virtual_ms: u64,
    pub(super) failures: BTreeMap<u64, Failed>,
    pub(super) coverage: Coverage,
}

impl Tally {
    fn add(&mut self, seed: u64, played: Played) {
        self.done.insert(seed);
        self.virtual_ms += played.virtual_ms;
        self.coverage.add(&played.coverage);
        if let Some(failed) = played.failed {
            self.failures.insert(seed, failed);
        }
    }

    fn lowest_failure(&self) -> Option<u64> {
        self.failures.keys().next().copied()
    }

    /// Every seed that was to be played was: all, or those up to the first that failed.
    pub(super) fn is_complete(&self, seeds: Seeds, keep_going: bool) -> bool {
        let last = match self.lowest_failure() {
            Some(failure) if !keep_going => failure,
            _ => seeds.last,
        };
        self.done
            .first_missing(seeds.first)
            .is_none_or(|seed| seed > last)
    }
}

/// What is to be played, and how.
pub(super) struct Sweep<'a> {
    pub(super) seeds: Seeds,
    /// Seeds that are played at a time.
    pub(super) jobs: usize,
    /// Go on after a failure. Without it every seed below the first failing one is played.
    pub(super) keep_going: bool,
    /// Tell how it goes.
    pub(super) show: bool,
    pub(super) play: &'a (dyn Fn(u64) -> Played + Sync),
    /// Keeps what there is so far.
    pub(super) save: &'a (dyn Fn(&Tally) -> io::Result<()> + Sync),
    /// Set from outside: end with the seeds under way.
    pub(super) stop: &'a AtomicBool,
}

struct Desk {
    tally: Tally,
    saved: Instant,
    error: Option<io::Error>,
}

impl Sweep<'_> {
    /// Plays what `tally` does not have yet.
    ///
    /// # Errors
    /// When progress cannot be kept; the seeds under way were played all the same.
    pub(super) fn run(&self, tally: Tally) -> io::Result<Tally> {
        // Before the first seed: a file that cannot be written is said at once.
        (self.save)(&tally)?;
        let before = tally.done.clone();
        let next = AtomicU64::new(self.seeds.first);
        let lowest = AtomicU64::new(tally.lowest_failure().unwrap_or(u64::MAX));
        let began = Instant::now();
        let already_ms = tally.virtual_ms;
        let desk = Mutex::new(Desk {
            tally,
            saved: began,
            error: None,
        });
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                scope.spawn(|| {
                    while let Some(seed) = self.next_seed(&next, &lowest, &before) {
                        let played = (self.play)(seed);
                        if played.failed.is_some() {
                            lowest.fetch_min(seed, Ordering::Relaxed);
                        }
                        let mut desk = desk.lock().unwrap_or_else(PoisonError::into_inner);
                        self.file(&mut desk, seed, played);
                        self.tell(&desk.tally, already_ms, began);
                        if desk.error.is_some() {
                            break;
                        }
                    }
                });
            }
        });
        let desk = desk.into_inner().unwrap_or_else(PoisonError::into_inner);
        match desk.error {
            Some(error) => Err(error),
            None => (self.save)(&desk.tally).map(|()| desk.tally),
        }
    }

    fn next_seed(&self, next: &AtomicU64, lowest: &AtomicU64, before: &Ranges) -> Option<u64> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > self.seeds.last || (!self.keep_going && seed > lowest.load(Ordering::Relaxed))
            {
                return None;
            }
            if !before.has(seed) {
                return Some(seed);
            }
        }
    }

    fn file(&self, desk: &mut Desk, seed: u64, played: Played) {
        let failed = played.failed.is_some();
        desk.tally.add(seed, played);
        if failed || desk.saved.elapsed() >= SAVE_EVERY {
            desk.saved = Instant::now();
            desk.error = desk.error.take().or((self.save)(&desk.tally).err());
        }
    }

    fn tell(&self, tally: &Tally, already_ms: u64, began: Instant) {
        let done = tally.done.count();
        if self.show && done.is_multiple_of(TELL_EVERY) {
            let seconds = began.elapsed().as_secs_f64().max(0.001);
            let rate = (tally.virtual_ms - already_ms) as f64 / 1000.0 / seconds;
            let failures = tally.failures.len();
            complain(&format!(
                "{done} seeds, {failures} failures, {rate:.0} x real time"
            ));
        }
    }
}

#[cfg(test)]
mod tests;
