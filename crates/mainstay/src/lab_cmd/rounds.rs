//! `mainstay lab rounds`: one random fault after the other on several clusters at a time, and a table by fault.

mod progress;

use super::soak::keep;
use super::{ClusterArgs, Driver, Signals};
use crate::scenarios::line;
use crate::ui::{Cell, Table, Tone};
use clap::Args;
use clap::builder::PossibleValuesParser;
use mainstay_core::config::{DatastoreKind, Profile};
use mainstay_lab::dir::random;
use mainstay_lab::fail::{Failure, Result};
use mainstay_lab::rounds::{Count, Rounds, Wish, draw};
use mainstay_lab::run::{Outcome, Run};
use progress::Progress;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Embedded guests are small processes.
const EMBEDDED_VMS: u32 = 6;
/// QEMU machines take a quarter of a GiB of memory each, and the processor of those that boot at once.
const QEMU_VMS: u32 = 2;

#[derive(Debug, Clone, Args)]
pub(super) struct RoundsArgs {
    /// How many, over all clusters
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Clusters at a time; the rounds are shared among them
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    jobs: u32,
    /// Everything random follows from it; the same seed plays the same rounds [default: a random one]
    #[arg(long)]
    seed: Option<u64>,
    /// Hosts of each cluster
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=16))]
    hosts: u32,
    /// VMs of each cluster [default: 6, with QEMU 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    vms: Option<u32>,
    /// Timing profile
    #[arg(long, default_value = "fast", value_parser = PossibleValuesParser::new(["classic", "balanced", "fast"]))]
    profile: String,
    /// What the datastores are
    #[arg(long, default_value = "file", value_parser = PossibleValuesParser::new(["file", "block"]))]
    kind: String,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl RoundsArgs {
    fn vms(&self) -> u32 {
        self.vms.unwrap_or(match self.cluster.driver {
            Driver::Embedded => EMBEDDED_VMS,
            Driver::Qemu => QEMU_VMS,
        })
    }

    /// The rounds of each cluster.
    fn draw(&self, seed: u64) -> Result<Vec<Rounds>> {
        let profile = Profile::from_name(&self.profile).unwrap_or_default();
        let jobs = self.jobs.min(self.rounds);
        let of = |job: u32| self.rounds / jobs + u32::from(job < self.rounds % jobs);
        let wish = |job: u32| Wish {
            seed: seed + u64::from(job),
            rounds: of(job),
            hosts: self.hosts,
            vms: self.vms(),
            profile,
            kind: match self.kind.as_str() {
                "block" => DatastoreKind::Block,
                _ => DatastoreKind::File,
            },
        };
        (0..jobs).map(|job| draw(&wish(job))).collect()
    }

    /// The command that plays the same rounds again.
    fn again(&self, seed: u64) -> String {
        let driver = match self.cluster.driver {
            Driver::Embedded => "",
            Driver::Qemu => " --driver qemu",
        };
        let gluster = if self.cluster.gluster {
            " --gluster"
        } else {
            ""
        };
        format!(
            "mainstay lab rounds --rounds {} --jobs {} --seed {seed} --hosts {} --vms {} --profile {} --kind {}{driver}{gluster}",
            self.rounds,
            self.jobs,
            self.hosts,
            self.vms(),
            self.profile,
            self.kind
        )
    }
}

pub(super) fn run(args: &RoundsArgs, json: bool) -> Result<ExitCode> {
    let seed = match args.seed {
        Some(seed) => seed,
        // Short enough to be typed again.
        None => u64::from(u32::from_be_bytes(random::<4>()?)),
    };
    let drawn = args.draw(seed)?;
    let again = args.again(seed);
    let longest = drawn.iter().map(|r| r.scenario.duration).max().unwrap_or(0);
    let takes = Duration::from_nanos(longest);
    if json {
        line(
            &json!({"type": "plan", "rounds": args.rounds, "takes_s": takes.as_secs(), "again": again})
                .to_string(),
        );
    } else {
        line(&format!(
            "{} rounds on {} clusters; takes {} minutes and some seconds to begin with",
            args.rounds,
            drawn.len(),
            takes.as_secs().div_ceil(60)
        ));
        line(&format!("again: {again}"));
    }
    let began = Instant::now();
    let outcomes = play(args, &drawn, &Progress::new(&drawn, json))?;
    let mut counts = BTreeMap::new();
    let mut wrong = Vec::new();
    for (rounds, outcome) in drawn.iter().zip(&outcomes) {
        rounds.count(&outcome.result, &mut counts);
        wrong.extend(complaints(rounds, outcome)?);
    }
    let told = Told {
        counts: &counts,
        wrong: &wrong,
        wall: began.elapsed(),
        again,
    };
    match json {
        true => told.json(),
        false => told.people(),
    }
    Ok(ExitCode::from(u8::from(!wrong.is_empty())))
}

/// Plays all clusters at once.
fn play(args: &RoundsArgs, drawn: &[Rounds], progress: &Progress) -> Result<Vec<Outcome>> {
    let signals = Signals::listen()?;
    let options = args.cluster.options()?;
    let one = |number: usize, rounds: &Rounds| {
        let run = Run::new(&rounds.scenario, options.clone());
        signals.end(run.stopper());
        run.play(&mut progress.of(number, rounds))
    };
    let outcomes: Vec<Result<Outcome>> = std::thread::scope(|scope| {
        let begin = |(number, rounds)| scope.spawn(move || one(number, rounds));
        let runs: Vec<_> = drawn.iter().enumerate().map(begin).collect();
        let join = |run: std::thread::ScopedJoinHandle<'_, Result<Outcome>>| {
            run.join().unwrap_or_else(|_| {
                Err(Failure::new(
                    "a thread of the lab ended by a fault of its own",
                ))
            })
        };
        runs.into_iter().map(join).collect()
    });
    if signals.stopped() {
        return Err(Failure::interrupted());
    }
    outcomes.into_iter().collect()
}

/// What did not hold in one cluster, a sentence each; its scenario and trace are kept then.
fn complaints(rounds: &Rounds, outcome: &Outcome) -> Result<Vec<String>> {
    let result = &outcome.result;
    let broken = result.violations.iter();
    let mut wrong: Vec<String> = broken
        .map(|v| {
            let at = Duration::from_nanos(v.at.saturating_sub(result.zero));
            let at = at.as_secs_f64();
            format!("{} at {at:.1} s: {} ({})", v.property, v.what, v.sentence)
        })
        .collect();
    // Of rounds that were not played nothing can be said.
    let missed = result.verdicts.iter().filter(|v| !v.pass);
    let missed = missed.filter(|_| result.error.is_none());
    wrong.extend(missed.map(|v| format!("not so: {}", v.text)));
    let error = result.error.iter();
    wrong.extend(error.map(|e| {
        format!(
            "{e}; not all of its {} rounds were played",
            rounds.rounds.len()
        )
    }));
    if let Some(dir) = outcome.kept.as_ref().filter(|_| !wrong.is_empty()) {
        let file: PathBuf = dir.join("rounds.toml");
        keep(&rounds.scenario, result, &file)?;
        wrong.push(format!(
            "again, this cluster alone: mainstay lab run {}",
            file.display()
        ));
    }
    Ok(wrong)
}

/// All that is told at the end.
struct Told<'a> {
    counts: &'a BTreeMap<String, Count>,
    wrong: &'a [String],
    wall: Duration,
    again: String,
}

impl Told<'_> {
    fn sum(&self) -> Count {
        let mut sum = Count::default();
        for count in self.counts.values() {
            sum.played += count.played;
            sum.held += count.held;
            sum.taken_over += count.taken_over;
            sum.locks_broken += count.locks_broken;
            sum.frozen += count.frozen;
        }
        sum
    }

    fn people(&self) {
        let mut table = Table::new(&[
            "FAULT",
            "ROUNDS",
            "ALL VMS RAN",
            "WITH A TAKEOVER",
            "LOCKS BROKEN",
            "VMS FROZEN",
        ]);
        let mut row = |what: &str, count: &Count| {
            let tone = match count.held == count.played {
                true => Tone::Plain,
                false => Tone::Bad,
            };
            table.row(vec![
                what.into(),
                count.played.to_string().into(),
                Cell::toned(count.held, tone),
                count.taken_over.to_string().into(),
                count.locks_broken.to_string().into(),
                count.frozen.to_string().into(),
            ]);
        };
        for (what, count) in self.counts {
            row(what, count);
        }
        row("all", &self.sum());
        table.print();
        for text in self.wrong {
            line(&format!("✗ {text}"));
        }
        let word = if self.wrong.is_empty() {
            "pass"
        } else {
            "FAIL"
        };
        line(&format!("{word}: after {:.1} s", self.wall.as_secs_f64()));
        if !self.wrong.is_empty() {
            line(&format!("again: {}", self.again));
        }
    }

    fn json(&self) {
        let values = |count: &Count| {
            json!({
                "rounds": count.played,
                "held": count.held,
                "taken_over": count.taken_over,
                "locks_broken": count.locks_broken,
                "frozen": count.frozen,
            })
        };
        for (what, count) in self.counts {
            line(&json!({"type": "fault", "fault": what, "count": values(count)}).to_string());
        }
        let result = if self.wrong.is_empty() {
            "pass"
        } else {
            "FAIL"
        };
        line(
            &json!({
                "type": "rounds",
                "result": result,
                "count": values(&self.sum()),
                "wrong": self.wrong,
                "wall_s": self.wall.as_secs_f64(),
                "again": self.again,
            })
            .to_string(),
        );
    }
}
