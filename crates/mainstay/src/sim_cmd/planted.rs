//! `mainstay sim planted`: the campaign finds every bug that is planted on purpose.

use super::campaign::failed;
use super::sweep::{Played, Sweep, Tally};
use super::{Seeds, line, seeds};
use clap::Args;
use mainstay_sim::Options;
use mainstay_sim::campaign::{self, Limits};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Half of what a campaign plays: most bugs show in the first pattern that is aimed at them, and two
/// short runs draw two clusters where a long one draws one.
const MINUTES: u64 = 10;

#[derive(Debug, Clone, Args)]
pub(super) struct PlantedArgs {
    /// Seeds to try for each bug
    #[arg(long, value_parser = seeds, default_value = "1..500")]
    seeds: Seeds,
    /// Only bugs whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// Virtual minutes of each run
    #[arg(long, default_value_t = MINUTES, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: u64,
}

pub(super) fn run(args: &PlantedArgs) -> ExitCode {
    let mut survived = 0;
    let limits = Limits {
        minutes: Some(args.minutes),
        ..Limits::default()
    };
    for bug in mainstay_sim::planted::bugs() {
        let name = format!("{bug:?}");
        if args
            .only
            .as_ref()
            .is_some_and(|only| !name.contains(only.as_str()))
        {
            continue;
        }
        let began = Instant::now();
        let options = Options {
            bug: Some(bug),
            ..Options::until_violation()
        };
        let clean = Options::until_violation();
        // What fails without the bug too says nothing about the bug.
        let play = |seed: u64| {
            let scenario = campaign::draw(seed, &limits);
            let result = mainstay_sim::run(&scenario, &options);
            let blamed = |_: &_| mainstay_sim::run(&scenario, &clean).pass();
            Played {
                failed: failed(&result).filter(blamed),
                ..Played::default()
            }
        };
        let sweep = Sweep {
            seeds: args.seeds,
            keep_going: false,
            show: false,
            play: &play,
            save: &|_| Ok(()),
            stop: &AtomicBool::new(false),
        };
        let tally = sweep.run(Tally::default()).unwrap_or_default();
        let found = tally.failures.iter().next();
        let property = found.map(|(_, f)| f.properties.first().unwrap_or(&f.what).clone());
        if found.is_none() {
            survived += 1;
        }
        let seed = found.map(|(seed, _)| *seed);
        if args.json {
            let text = serde_json::json!({
                "type": "planted", "bug": name, "seed": seed, "property": property, "seeds": tally.done.count(),
            });
            line(&text.to_string());
        } else {
            let seconds = began.elapsed().as_secs_f64();
            match (seed, property) {
                (Some(seed), Some(property)) => {
                    line(&format!(
                        "✓ {name:<26} seed {seed:>4}  {property:<4} {seconds:6.1} s"
                    ));
                }
                _ => line(&format!(
                    "✗ {name:<26} survived {} seeds  {seconds:6.1} s",
                    tally.done.count()
                )),
            }
        }
    }
    if survived == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
