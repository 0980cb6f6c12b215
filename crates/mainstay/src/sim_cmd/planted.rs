//! `mainstay sim planted`: the campaign finds every bug that is planted on purpose.

use super::campaign::failed;
use super::sweep::{Failed, Played, Sweep, Tally};
use super::{JobArgs, Seeds, seeds};
use crate::scenarios::line;
use clap::Args;
use mainstay_core::planted::Bug;
use mainstay_sim::Options;
use mainstay_sim::campaign::{self, Limits};
use mainstay_sim::planted::{breaks, bugs, shown_by};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Half of what a campaign plays: most bugs show in the first pattern that is aimed at them, and two
/// short runs draw two clusters where a long one draws one.
const MINUTES: u64 = 10;
/// What a campaign plays: for the bugs that no short run shows.
const MOST_MINUTES: u64 = 20;
/// Clusters of 3 to 8 hosts: what breaks one protocol clause needs few hosts, and few are played faster.
const FEWEST_HOSTS: u64 = 3;
const SIZES: u64 = 6;

#[derive(Debug, Clone, Args)]
pub(super) struct PlantedArgs {
    /// Seeds to try for each bug
    #[arg(long, value_parser = seeds, default_value = "1..1000")]
    seeds: Seeds,
    /// Only bugs whose name contains this
    #[arg(long)]
    only: Option<String>,
    #[command(flatten)]
    jobs: JobArgs,
    /// Virtual minutes of each run [default: 10, and 20 where those show nothing]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: Option<u64>,
}

/// What shows a bug.
#[derive(Clone, Copy)]
enum By {
    /// The first seed that does.
    Seed(u64),
    /// A scenario that is made for it.
    Scenario(&'static str),
}

/// What came of the search for one bug.
struct Search {
    bug: Bug,
    /// What shows it, and the invariant.
    found: Option<(By, String)>,
    /// Seeds that were played.
    played: u64,
    seconds: f64,
}

impl PlantedArgs {
    fn limits(&self, seed: u64) -> Limits {
        Limits {
            hosts: usize::try_from(FEWEST_HOSTS + seed % SIZES).ok(),
            minutes: Some(self.length()),
            ..Limits::default()
        }
    }

    /// Virtual minutes of each run.
    fn length(&self) -> u64 {
        self.minutes.unwrap_or(MINUTES)
    }

    /// For a bug that no short run shows: the same seeds, played for longer.
    fn longer(&self) -> Option<Self> {
        self.minutes.is_none().then(|| Self {
            minutes: Some(MOST_MINUTES),
            ..self.clone()
        })
    }

    fn wants(&self, bug: Bug) -> bool {
        let only = self.only.as_deref().unwrap_or_default();
        format!("{bug:?}").contains(only)
    }

    /// The command that shows it again.
    fn replay(&self, bug: Bug, seed: u64) -> String {
        let limits = self.limits(seed);
        let hosts = limits.hosts.unwrap_or_default();
        let minutes = self.length();
        format!(
            "mainstay sim campaign --seeds {seed} --hosts {hosts} --minutes {minutes} --bug {bug:?}"
        )
    }

    /// The invariant that the bug breaks in a seed. What fails without the bug too, or is none of what
    /// the bug breaks, says nothing about it.
    fn shows(&self, bug: Bug, seed: u64) -> Option<Failed> {
        let scenario = campaign::draw(seed, &self.limits(seed));
        let options = Options {
            bug: Some(bug),
            ..Options::until_violation()
        };
        let mut failed = failed(&mainstay_sim::run(&scenario, &options))?;
        failed
            .properties
            .retain(|property| breaks(bug).contains(&property.as_str()));
        let clean = || mainstay_sim::run(&scenario, &Options::until_violation()).pass();
        (!failed.properties.is_empty() && clean()).then_some(failed)
    }

    /// The invariant that the bug breaks in the scenario that is made for it, if there is one.
    fn shown_by_scenario(bug: Bug) -> Option<(&'static str, String)> {
        let (name, text) = shown_by(bug)?;
        let scenario = mainstay_sim::parse(name, text).ok()?;
        let options = Options {
            bug: Some(bug),
            ..Options::until_violation()
        };
        let failed = failed(&mainstay_sim::run(&scenario, &options))?;
        let ours = |p: &&String| breaks(bug).contains(&p.as_str());
        let property = failed.properties.iter().find(ours)?.clone();
        let clean = mainstay_sim::run(&scenario, &Options::default()).pass();
        clean.then_some((name, property))
    }

    fn search(&self, bug: Bug) -> Search {
        let began = Instant::now();
        if let Some((name, property)) = Self::shown_by_scenario(bug) {
            return Search {
                bug,
                found: Some((By::Scenario(name), property)),
                played: 0,
                seconds: began.elapsed().as_secs_f64(),
            };
        }
        let play = |seed: u64| Played {
            failed: self.shows(bug, seed),
            ..Played::default()
        };
        let sweep = Sweep {
            seeds: self.seeds,
            jobs: self.jobs.count(),
            keep_going: false,
            show: false,
            play: &play,
            save: &|_| Ok(()),
            stop: &AtomicBool::new(false),
        };
        let tally = sweep.run(Tally::default()).unwrap_or_default();
        let found = tally.failures.iter().next();
        Search {
            bug,
            found: found.map(|(seed, f)| {
                (
                    By::Seed(*seed),
                    f.properties.first().cloned().unwrap_or_default(),
                )
            }),
            played: tally.done.count(),
            seconds: began.elapsed().as_secs_f64(),
        }
    }

    fn tell(&self, search: &Search, json: bool) {
        let (bug, clause) = (search.bug, search.bug.clause());
        let name = format!("{bug:?}");
        let (seed, scenario) = match search.found.as_ref().map(|(by, _)| *by) {
            Some(By::Seed(seed)) => (Some(seed), None),
            Some(By::Scenario(name)) => (None, Some(name)),
            None => (None, None),
        };
        let property = search.found.as_ref().map(|(_, property)| property.as_str());
        if json {
            let text = serde_json::json!({
                "type": "planted", "bug": name, "clause": clause, "breaks": breaks(bug),
                "seed": seed, "scenario": scenario, "property": property, "seeds": search.played,
                "replay": seed.map(|seed| self.replay(bug, seed)),
            });
            line(&text.to_string());
            return;
        }
        let (mark, property) = match property {
            Some(property) => ("✓", property),
            None => ("✗", "-"),
        };
        let seed = seed.map_or_else(|| "-".to_owned(), |seed| seed.to_string());
        let seconds = search.seconds;
        line(&format!(
            "{mark} {name:<24} {property:<9} {seed:>5} {seconds:>7.1} s  {clause}{}",
            scenario.map_or_else(String::new, |name| format!(" (scenarios/{name}.toml)"))
        ));
    }
}

pub(super) fn run(args: &PlantedArgs, json: bool) -> ExitCode {
    if !json {
        line("  bug                      invariant  seed      time  the clause that it takes away");
    }
    let mut survived = Vec::new();
    let mut tried = 0;
    for bug in bugs().filter(|bug| args.wants(*bug)) {
        let longer = args.longer();
        let mut by = args;
        let mut search = by.search(bug);
        if let Some(longer) = longer.as_ref().filter(|_| search.found.is_none()) {
            by = longer;
            search = by.search(bug);
        }
        by.tell(&search, json);
        tried += 1;
        if search.found.is_none() {
            survived.push(format!("{bug:?}"));
        }
    }
    if !json {
        let Seeds { first, last } = args.seeds;
        let found = tried - survived.len();
        line(&format!(
            "{found} of {tried} bugs found in seeds {first} to {last}"
        ));
        for name in &survived {
            line(&format!(
                "  survived: {name}; aim a pattern at the clause (crates/sim/src/campaign/aim.rs)"
            ));
        }
    }
    if survived.is_empty() && tried > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
