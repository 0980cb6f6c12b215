//! What daemons take of their machine over a long time, and which of them take ever more.
//!
//! A process is judged by itself: a daemon that was restarted begins anew, with a warm-up of its own. Growth is
//! the difference of two medians, so that one large request at either end is not taken for a leak.
//!
//! # Never here
//! A process looked at; see [`super::sample`].

use std::collections::BTreeMap;
use std::time::Duration;

/// Samples at either end of a series whose median counts.
const AT_AN_END: usize = 5;

/// What a process had at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// When, counted from the first fault's zero.
    pub at: Duration,
    /// Resident memory in KiB that no file backs: pages of files are the kernel's to drop.
    pub memory_kib: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

impl Sample {
    fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Memory => self.memory_kib,
            Kind::Descriptors => self.descriptors,
            Kind::Threads => self.threads,
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Resident memory in KiB that no file backs.
    Memory,
    /// Open file descriptors.
    Descriptors,
    /// Threads.
    Threads,
}

impl Kind {
    /// All, in the order in which they are told.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Descriptors, Self::Threads];

    /// Its name, with the unit where it has one.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory_kib",
            Self::Descriptors => "descriptors",
            Self::Threads => "threads",
        }
    }
}

/// How much more a process may have at the end of a soak than after its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// A process is not judged before it has lived for so long.
    pub warm_up: Duration,
    /// Memory, in KiB.
    pub memory_kib: u64,
    /// File descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

impl Default for Bounds {
    /// A minute; 8 MiB, 32 descriptors, 16 threads: what a cluster of this size needs for a while when many
    /// things fail together is less, what a leak takes in some hours is more.
    fn default() -> Self {
        Self {
            warm_up: Duration::from_secs(60),
            memory_kib: 8 << 10,
            descriptors: 32,
            threads: 16,
        }
    }
}

impl Bounds {
    fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Memory => self.memory_kib,
            Kind::Descriptors => self.descriptors,
            Kind::Threads => self.threads,
        }
    }
}

/// A process that is watched.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Watched {
    /// Its host.
    pub host: String,
    /// `agent` or `guard`.
    pub daemon: &'static str,
    /// When it started, in the kernel's ticks: tells it from a later one with its number, and orders them.
    pub start: u64,
    /// Its number.
    pub pid: i32,
}

/// One measure of one process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measure {
    /// After the warm-up: the median of the first samples.
    pub first: u64,
    /// The median of the last samples.
    pub last: u64,
    /// The largest sample after the warm-up.
    pub peak: u64,
    /// Of a straight line through all samples after the warm-up, per hour.
    pub slope_per_hour: f64,
    /// It grew by more than its bound.
    pub too_much: bool,
}

/// What became of one process.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Which.
    pub process: Watched,
    /// How long it was watched.
    pub watched: Duration,
    /// By kind; none when it ended too soon after its warm-up to be judged.
    pub measures: Option<[(Kind, Measure); 3]>,
}

impl Row {
    /// What grew by more than its bound.
    pub fn grown(&self) -> impl Iterator<Item = (Kind, Measure)> {
        let all = self.measures.into_iter().flatten();
        all.filter(|(_, measure)| measure.too_much)
    }
}

/// All samples of a soak.
#[derive(Debug, Clone)]
pub struct Growth {
    bounds: Bounds,
    series: BTreeMap<Watched, Vec<Sample>>,
}

impl Growth {
    /// Nothing seen so far.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            series: BTreeMap::new(),
        }
    }

    /// Adds a sample; those of one process by time.
    pub fn add(&mut self, process: Watched, sample: Sample) {
        self.series.entry(process).or_default().push(sample);
    }

    /// Processes that took the place of another one of their host.
    #[must_use]
    pub fn began_anew(&self) -> usize {
        let mut places: Vec<(&str, &str)> = self.series.keys().map(place).collect();
        places.dedup();
        self.series.len() - places.len()
    }

    /// What became of each process, by host, daemon and age.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let row = |(process, samples): (&Watched, &Vec<Sample>)| Row {
            process: process.clone(),
            watched: lived(samples),
            measures: measures(samples, &self.bounds),
        };
        self.series.iter().map(row).collect()
    }

    /// No process grew by more than its bounds.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.rows().iter().all(|row| row.grown().next().is_none())
    }
}

fn place(process: &Watched) -> (&str, &str) {
    (process.host.as_str(), process.daemon)
}

fn lived(samples: &[Sample]) -> Duration {
    let ends = samples.first().zip(samples.last());
    ends.map(|(first, last)| last.at.saturating_sub(first.at))
        .unwrap_or_default()
}

fn measures(samples: &[Sample], bounds: &Bounds) -> Option<[(Kind, Measure); 3]> {
    let warm = samples.first()?.at + bounds.warm_up;
    let steady: Vec<Sample> = samples.iter().copied().filter(|s| s.at >= warm).collect();
    // The ends must not overlap: what they have in common cannot show a difference.
    if steady.len() < 2 * AT_AN_END {
        return None;
    }
    Some(Kind::ALL.map(|kind| (kind, measure(&steady, kind, bounds.of(kind)))))
}

fn measure(steady: &[Sample], kind: Kind, bound: u64) -> Measure {
    let values: Vec<u64> = steady.iter().map(|s| s.of(kind)).collect();
    let (begin, end) = (
        values.iter().take(AT_AN_END),
        values.iter().rev().take(AT_AN_END),
    );
    let (first, last) = (median(begin), median(end));
    Measure {
        first,
        last,
        peak: values.iter().copied().max().unwrap_or(0),
        slope_per_hour: slope_per_hour(steady, kind),
        too_much: last.saturating_sub(first) > bound,
    }
}

fn median<'a>(values: impl Iterator<Item = &'a u64>) -> u64 {
    let mut values: Vec<u64> = values.copied().collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

/// By least squares.
fn slope_per_hour(steady: &[Sample], kind: Kind) -> f64 {
    const HOUR: f64 = 3600.0;
    let points: Vec<(f64, f64)> = steady
        .iter()
        .map(|s| (s.at.as_secs_f64() / HOUR, float(s.of(kind))))
        .collect();
    let count = points.len().max(1);
    let mean =
        |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / float(count as u64);
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let across: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    let along: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    if along > 0.0 { across / along } else { 0.0 }
}

/// Exact up to 2^53; nothing measured here comes near.
fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(daemon: &'static str, start: u64) -> Watched {
        Watched {
            host: "host-1".into(),
            daemon,
            start,
            pid: 100,
        }
    }

    /// Ten minutes, a sample every five seconds.
    fn series(growth: &mut Growth, process: &Watched, memory_kib: impl Fn(u64) -> u64) {
        for seconds in (0..600).step_by(5) {
            let sample = Sample {
                at: Duration::from_secs(seconds),
                memory_kib: memory_kib(seconds),
                descriptors: 20,
                threads: 6,
            };
            growth.add(process.clone(), sample);
        }
    }

    #[test]
    fn a_leak_is_named_with_its_slope() {
        let mut growth = Growth::new(Bounds::default());
        series(&mut growth, &process("agent", 1), |s| 10_000 + 20 * s);
        series(&mut growth, &process("guard", 1), |_| 4_000);
        assert!(!growth.holds());
        let rows = growth.rows();
        let grown: Vec<_> = rows.iter().map(|r| r.grown().collect::<Vec<_>>()).collect();
        assert_eq!(grown[1], []);
        let [(Kind::Memory, memory)] = grown[0].as_slice() else {
            panic!("{grown:?}");
        };
        assert_eq!((memory.first, memory.last), (11_400, 21_700));
        assert_eq!(memory.peak, 21_900);
        assert!((memory.slope_per_hour - 72_000.0).abs() < 1.0, "{memory:?}");
    }

    #[test]
    fn what_grows_in_the_warm_up_or_for_a_moment_is_no_leak() {
        let mut growth = Growth::new(Bounds::default());
        series(&mut growth, &process("agent", 1), |s| {
            10_000 + 500 * s.min(60)
        });
        series(&mut growth, &process("agent", 2), |s| {
            if s == 595 { 90_000 } else { 10_000 }
        });
        assert!(growth.holds(), "{:?}", growth.rows());
        assert_eq!(growth.began_anew(), 1);
    }

    #[test]
    fn a_process_that_lived_shortly_is_not_judged() {
        let mut growth = Growth::new(Bounds::default());
        for seconds in [0, 5, 70, 75] {
            let sample = Sample {
                at: Duration::from_secs(seconds),
                memory_kib: seconds << 20,
                descriptors: seconds,
                threads: seconds,
            };
            growth.add(process("agent", 1), sample);
        }
        assert!(growth.holds());
        assert_eq!(growth.rows()[0].measures, None);
        assert_eq!(growth.rows()[0].watched, Duration::from_secs(75));
    }

    #[test]
    fn descriptors_and_threads_have_bounds_of_their_own() {
        let mut growth = Growth::new(Bounds::default());
        for seconds in (0..600).step_by(5) {
            let sample = Sample {
                at: Duration::from_secs(seconds),
                memory_kib: 10_000,
                descriptors: 20 + seconds / 10,
                threads: 6 + seconds / 20,
            };
            growth.add(process("agent", 1), sample);
        }
        let rows = growth.rows();
        let kinds: Vec<Kind> = rows[0].grown().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [Kind::Descriptors, Kind::Threads]);
    }
}
