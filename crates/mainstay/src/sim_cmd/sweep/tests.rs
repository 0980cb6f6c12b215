//! Ranges, stopping, going on, and the first failure.

use super::*;

static NEVER: AtomicBool = AtomicBool::new(false);

fn ranges(seeds: &[u64]) -> Ranges {
    let mut ranges = Ranges::default();
    for seed in seeds {
        ranges.insert(*seed);
    }
    ranges
}

fn play(seed: u64) -> Played {
    let failed = seed.is_multiple_of(7).then(|| Failed {
        properties: vec!["S1".into()],
        what: format!("seed {seed}"),
    });
    Played {
        virtual_ms: seed,
        failed,
        coverage: Coverage::default(),
    }
}

fn sweep(keep_going: bool, stop: &AtomicBool, tally: Tally) -> Tally {
    let sweep = Sweep {
        jobs: 2,
        seeds: Seeds { first: 1, last: 40 },
        keep_going,
        show: false,
        play: &play,
        save: &|_| Ok(()),
        stop,
    };
    sweep.run(tally).expect("nothing is written")
}

#[test]
fn ranges_join_where_they_touch() {
    assert_eq!(ranges(&[5, 1, 2, 9, 3, 8, 3]).0, [(1, 3), (5, 5), (8, 9)]);
    assert_eq!(ranges(&[3, 1, 2]).0, [(1, 3)]);
    assert_eq!(
        ranges(&[u64::MAX, u64::MAX - 1]).0,
        [(u64::MAX - 1, u64::MAX)]
    );
    let some = ranges(&[1, 2, 4]);
    assert!(some.has(2) && !some.has(3) && some.has(4));
    assert_eq!((some.count(), some.first_missing(1)), (3, Some(3)));
}

#[test]
fn all_seeds_are_played_once() {
    let tally = sweep(true, &NEVER, Tally::default());
    assert_eq!(tally.done.0, [(1, 40)]);
    assert_eq!(tally.virtual_ms, 820);
    let failures: Vec<u64> = tally.failures.keys().copied().collect();
    assert_eq!(failures, [7, 14, 21, 28, 35]);
}

#[test]
fn without_keep_going_every_seed_below_the_first_failing_one_is_played() {
    let tally = sweep(false, &NEVER, Tally::default());
    assert_eq!(tally.lowest_failure(), Some(7));
    assert_eq!(tally.done.first_missing(1).map(|seed| seed > 7), Some(true));
    assert!(tally.is_complete(Seeds { first: 1, last: 40 }, false));
    assert!(!tally.is_complete(Seeds { first: 1, last: 40 }, true));
}

#[test]
fn a_sweep_that_was_stopped_goes_on_to_the_same_end() {
    let whole = sweep(true, &NEVER, Tally::default());
    let stop = AtomicBool::new(false);
    let stops = |seed| {
        if seed == 11 {
            stop.store(true, Ordering::Relaxed);
        }
        play(seed)
    };
    let first = Sweep {
        jobs: 2,
        seeds: Seeds { first: 1, last: 40 },
        keep_going: true,
        show: false,
        play: &stops,
        save: &|_| Ok(()),
        stop: &stop,
    };
    let part = first.run(Tally::default()).expect("nothing is written");
    assert!(
        part.done.has(11) && part.done.count() < 40,
        "{:?}",
        part.done
    );
    assert!(!part.is_complete(first.seeds, true));
    assert_eq!(sweep(true, &NEVER, part), whole);
}

#[test]
fn what_cannot_be_kept_ends_the_sweep() {
    let sweep = Sweep {
        jobs: 2,
        seeds: Seeds { first: 1, last: 40 },
        keep_going: true,
        show: false,
        play: &play,
        save: &|_| Err(io::Error::other("full")),
        stop: &NEVER,
    };
    let error = sweep.run(Tally::default()).expect_err("it cannot be kept");
    assert_eq!(error.to_string(), "full");
}
