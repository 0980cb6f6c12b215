//! What seeds draw, without playing them.

use super::*;
use crate::scenario::EVENTS;

#[test]
fn every_event_that_the_simulator_plays_is_drawn() {
    let mut drawn: BTreeSet<&'static str> = BTreeSet::new();
    for seed in 1..=300 {
        let scenario = draw(seed, &Limits::default());
        drawn.extend(scenario.events.iter().map(|planned| planned.fault.name()));
    }
    let playable = EVENTS.iter().filter(|event| event.playable);
    let missing: Vec<&str> = playable
        .map(|event| event.name)
        // A device that lies is outside what a proof by power assumes; scenarios play it.
        .filter(|name| *name != "fence_device.lies")
        .filter(|name| !drawn.contains(name))
        .collect();
    assert_eq!(missing, [""; 0], "add a kind to the table in kinds.rs");
}

#[test]
fn most_clusters_are_small_and_some_are_of_sixteen_hosts() {
    let sizes: Vec<usize> = (1..=300)
        .map(|seed| draw(seed, &Limits::default()).hosts.len())
        .collect();
    let small = sizes.iter().filter(|n| **n <= 8).count();
    assert!(small * 2 >= sizes.len(), "{small} of {}", sizes.len());
    assert_eq!(sizes.iter().min(), Some(&3));
    assert_eq!(sizes.iter().max(), Some(&16));
}

#[test]
fn faults_go_on_for_most_of_the_run_and_end_before_it_does() {
    let mut late = 0;
    for seed in 1..=100 {
        let scenario = draw(seed, &Limits::default());
        assert_eq!(scenario.duration, MINUTES * 60 * SECOND);
        assert!(scenario.liveness, "seed {seed}");
        let calm = scenario.weather.until_ms * MS;
        assert!(calm * 10 >= scenario.duration * 6, "seed {seed}");
        let half = scenario.duration / 2;
        late += u32::from(scenario.events.iter().any(|e| (half..calm).contains(&e.at)));
    }
    assert!(
        late > 90,
        "{late} of 100 seeds have faults in the second half"
    );
}

#[test]
fn names_of_kinds_and_patterns_are_apart() {
    let names: Vec<&str> = kinds().chain(patterns()).collect();
    let apart: BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(names.len(), apart.len());
}
