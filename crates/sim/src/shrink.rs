//! Makes a failing scenario smaller.

use crate::clock::MS;
use crate::scenario::{Scenario, parse, to_toml};
use crate::world::{Options, run};

/// Removes events, halves first and then one by one, as long as the same property still fails.
/// Gives the smallest scenario found and how many runs it took. The events that end all faults
/// stay when liveness was demanded: without them any fault that lasts would do.
#[must_use]
pub fn shrink(
    scenario: &Scenario,
    property: &str,
    options: &Options,
    limit: u32,
) -> (Scenario, u32) {
    let mut best = scenario.clone();
    let well_again = scenario.weather.until_ms * MS;
    let last = if scenario.liveness && property.starts_with('L') && well_again > 0 {
        scenario.events.partition_point(|e| e.at < well_again)
    } else {
        scenario.events.len()
    };
    let kept = scenario.events.len() - last;
    let mut runs = 0;
    // Played as it would be written and read, so that the file does what was seen: a VM whose making is
    // left out is not in the file at all, and one event needs another.
    let mut fails = |candidate: &Scenario| {
        runs += 1;
        let written = parse("shrunk.toml", &to_toml(candidate)).ok()?;
        let violations = run(&written, options).violations;
        let same = violations.iter().any(|v| v.property == property);
        same.then_some(written)
    };
    let mut size = last.div_ceil(2).max(1);
    let mut tries = 0;
    loop {
        let mut at = 0;
        let mut smaller = false;
        while at + kept < best.events.len() && tries < limit {
            let mut candidate = best.clone();
            let end = (at + size).min(candidate.events.len() - kept);
            candidate.events.drain(at..end);
            tries += 1;
            if let Some(written) = fails(&candidate) {
                best = written;
                smaller = true;
            } else {
                at += size;
            }
        }
        if tries >= limit || (size == 1 && !smaller) {
            break;
        }
        size = (size / 2).max(1);
    }
    (best, runs)
}
