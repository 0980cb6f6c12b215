//! The arithmetic of the lock's benchmark (`benches/locks`), which is no test itself.

#[path = "../benches/locks/figures.rs"]
mod figures;

use figures::{Stillness, percentile};
use std::time::{Duration, Instant};

#[test]
fn percentiles_are_values_that_were_measured() {
    let ms = Duration::from_millis;
    let all: Vec<Duration> = (1..=200).map(ms).collect();
    let at = |percent| percentile(&all, percent);
    assert_eq!([0, 50, 99, 100].map(at), [ms(1), ms(100), ms(198), ms(200)]);
    assert_eq!(percentile(&[ms(7)], 99), ms(7));
    assert_eq!(percentile(&[], 50), Duration::ZERO);
}

#[test]
fn a_heartbeat_stands_still_since_the_first_reading_that_showed_the_last_value() {
    let start = Instant::now();
    let at = |n: u64| start + Duration::from_secs(n);
    let mut still = Stillness::default();
    assert_eq!(still.since(), None);
    still.read(b"one", at(1));
    still.read(b"one", at(2));
    assert_eq!(still.since(), Some(at(1)));
    still.read(b"two", at(3));
    still.read(b"two", at(4));
    assert_eq!(still.since(), Some(at(3)));
    // What was there before is another value than what is there now.
    still.read(b"one", at(5));
    assert_eq!(still.since(), Some(at(5)));
}
