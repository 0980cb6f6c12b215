//! `mainstay sim campaign`: many seeds, stopped and gone on with, and what they reached.

use super::state::{Origin, StateFile};
use super::sweep::{Failed, Played, Sweep, Tally};
use super::{BugArgs, JobArgs, LimitArgs, Seeds, seeds};
use crate::scenarios::{Complaint, STOPPED, UNREADABLE, complain, line, millis};
use clap::Args;
use mainstay_sim::campaign::{self, Drawn};
use mainstay_sim::{Coverage, Options, RunResult, Scenario};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Runs that a shrink may take.
const SHRINK_RUNS: u32 = 400;

#[derive(Debug, Clone, Args)]
pub(super) struct CampaignArgs {
    /// One seed (26), or a range with both ends in it (1..1000)
    #[arg(long, value_parser = seeds, default_value = "1..200")]
    seeds: Seeds,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    jobs: JobArgs,
    /// Go on after a violation
    #[arg(long)]
    keep_going: bool,
    /// Keep progress in this file, and go on from it when it is there
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Print how often everything was reached, defects first
    #[arg(long)]
    coverage: bool,
    /// Exit with 1 when something that can be reached was not
    #[arg(long)]
    coverage_required: bool,
    /// Remove faults from the first failing run (each, with --keep-going) as long as it fails, and
    /// write what is left as a scenario
    #[arg(long)]
    shrink: bool,
    /// Where --shrink writes to: a file, or with --keep-going a directory [default: shrunk.toml, shrunk]
    #[arg(long, value_name = "PATH")]
    shrink_to: Option<PathBuf>,
    #[command(flatten)]
    bug: BugArgs,
}

impl CampaignArgs {
    /// What decides which runs are played: all of a state file must be of the same.
    fn identity(&self) -> String {
        let Seeds { first, last } = self.seeds;
        let bug = self.bug.name();
        format!("--seeds {first}..{last}{}{bug}", self.limits.replay())
    }

    fn replay(&self, seed: u64) -> String {
        let (limits, bug) = (self.limits.replay(), self.bug.name());
        format!("mainstay sim campaign --seeds {seed}{limits}{bug}")
    }
}

/// A seed that failed, played once more.
struct Failing {
    seed: u64,
    scenario: Scenario,
    result: RunResult,
}

/// Sums up why a run failed; none: it passed.
pub(super) fn failed(result: &RunResult) -> Option<Failed> {
    if result.pass() {
        return None;
    }
    let first = result.violations.first().map(|v| v.what.clone());
    Some(Failed {
        properties: result
            .violations
            .iter()
            .map(|v| v.property.to_owned())
            .collect(),
        what: first.or_else(|| result.error.clone()).unwrap_or_default(),
    })
}

/// The first SIGINT or SIGTERM sets the flag, so that the seeds under way are finished; the second ends
/// the process at once.
fn stop_on_signals() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// Runs the command.
pub(super) fn run(args: &CampaignArgs, json: bool) -> ExitCode {
    match play(args, json) {
        Ok(code) => code,
        Err(complaint) => complaint.tell(json, UNREADABLE),
    }
}

fn play(args: &CampaignArgs, json: bool) -> Result<ExitCode, Complaint> {
    let began = Instant::now();
    let stop =
        stop_on_signals().map_err(|e| Complaint::new(format!("signals cannot be caught: {e}")))?;
    let state = match &args.state {
        Some(path) => {
            let origin = Origin::here(args.identity()).map_err(|e| {
                Complaint::new(format!("the program cannot read its own file: {e}"))
            })?;
            Some(StateFile::new(path, origin))
        }
        None => None,
    };
    let (before, wall_before) = match &state {
        Some(state) => state
            .load()
            .map_err(|e| Complaint::at(e.path().display(), &e))?,
        None => Default::default(),
    };
    if before.done.count() > 0 && !json {
        line(&format!(
            "going on after {} seeds of an earlier start",
            before.done.count()
        ));
    }
    let options = args.bug.options(true);
    let limits = args.limits.limits();
    let one = |seed: u64| {
        let drawn = campaign::draw_all(seed, &limits);
        played(&drawn, &options)
    };
    let wall = || wall_before + millis(began);
    let save = |tally: &Tally| state.as_ref().map_or(Ok(()), |s| s.save(tally, wall()));
    let sweep = Sweep {
        jobs: args.jobs.count(),
        seeds: args.seeds,
        keep_going: args.keep_going,
        show: !json && io::stderr().is_terminal(),
        play: &one,
        save: &save,
        stop: &stop,
    };
    let tally = sweep.run(before).map_err(|e| {
        let path = args.state.as_deref().unwrap_or(Path::new("-"));
        let what = format!("progress cannot be kept: {e}");
        Complaint::at(path.display(), what)
    })?;
    let failing = again(args, &tally, &options);
    report(args, &tally, &failing, wall(), json);
    let shrunk = !args.shrink || shrink_all(args, &failing, &options, &stop)?;
    Ok(verdict(args, &tally, shrunk))
}

fn played(drawn: &Drawn, options: &Options) -> Played {
    let result = mainstay_sim::run(&drawn.scenario, options);
    Played {
        virtual_ms: result.virtual_time / mainstay_sim::MS,
        failed: failed(&result),
        coverage: Coverage::of(drawn, &result),
    }
}

/// The failing seeds once more, with all that a reader wants to see: a seed gives the same run.
fn again(args: &CampaignArgs, tally: &Tally, options: &Options) -> Vec<Failing> {
    let few = if args.keep_going { usize::MAX } else { 1 };
    let limits = args.limits.limits();
    let seeds = tally.failures.keys().take(few);
    seeds
        .map(|seed| {
            let scenario = campaign::draw(*seed, &limits);
            let result = mainstay_sim::run(&scenario, options);
            Failing {
                seed: *seed,
                scenario,
                result,
            }
        })
        .collect()
}

fn report(args: &CampaignArgs, tally: &Tally, failing: &[Failing], wall_ms: u64, json: bool) {
    for failure in failing {
        if json {
            let Failing {
                scenario, result, ..
            } = failure;
            line(&mainstay_sim::result_json(scenario, result, wall_ms));
        } else {
            line(&failure_text(
                failure,
                &args.replay(failure.seed),
                args.keep_going,
            ));
        }
    }
    let complete = tally.is_complete(args.seeds, args.keep_going);
    let seconds = (wall_ms as f64 / 1000.0).max(0.001);
    let virtual_s = tally.virtual_ms as f64 / 1000.0;
    let rate = virtual_s / seconds;
    let count = tally.done.count();
    if json {
        let mut coverage = tally.coverage.json();
        if let Some(fields) = coverage.as_object_mut() {
            fields.insert("type".into(), "coverage".into());
        }
        line(&coverage.to_string());
        let text = serde_json::json!({
            "type": "campaign", "first": args.seeds.first, "last": args.seeds.last, "seeds": count,
            "failures": failing.iter().map(|f| f.seed).collect::<Vec<_>>(), "complete": complete,
            "virtual_s": virtual_s, "wall_s": seconds, "rate": rate,
        });
        line(&text.to_string());
        return;
    }
    tell_coverage(args, &tally.coverage);
    let failures = failing.len();
    line(&format!(
        "{count} seeds, {failures} with a violation; {virtual_s:.0} virtual seconds in {seconds:.1} s: {rate:.0} virtual seconds a second"
    ));
    if !complete {
        let on = match &args.state {
            Some(path) => format!("start it again with --state {} to go on", path.display()),
            None => "what was played is lost; --state FILE would keep it".into(),
        };
        line(&format!("stopped before its end; {on}"));
    }
}

/// The whole table, or for a campaign without --coverage its defects in a few lines.
fn tell_coverage(args: &CampaignArgs, coverage: &Coverage) {
    if args.coverage || args.coverage_required {
        line(&coverage.people());
        return;
    }
    if args.seeds.first == args.seeds.last {
        return;
    }
    let rows = coverage.rows();
    let defects: Vec<String> = rows
        .iter()
        .filter(|row| row.is_defect())
        .map(|row| format!("{} {}", row.group.name(), row.item))
        .collect();
    let names = match defects.len() {
        0 => String::new(),
        _ => format!(": {}", defects.join(", ")),
    };
    line(&format!(
        "coverage: {} of {} things are defects{names} (--coverage shows all)",
        defects.len(),
        rows.len()
    ));
}

fn verdict(args: &CampaignArgs, tally: &Tally, shrunk: bool) -> ExitCode {
    let defects = tally.coverage.rows().iter().any(|row| row.is_defect());
    if !tally.is_complete(args.seeds, args.keep_going) || !shrunk {
        ExitCode::from(STOPPED)
    } else if !tally.failures.is_empty() || (args.coverage_required && defects) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Shrinks every failing run that has no file yet; false: stopped before the last.
fn shrink_all(
    args: &CampaignArgs,
    failing: &[Failing],
    options: &Options,
    stop: &AtomicBool,
) -> Result<bool, Complaint> {
    for failure in failing {
        if stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let to = if args.keep_going {
            let folder = args.shrink_to.as_deref().unwrap_or(Path::new("shrunk"));
            std::fs::create_dir_all(folder).map_err(|e| Complaint::at(folder.display(), e))?;
            let file = folder.join(format!("seed-{}.toml", failure.seed));
            if args.state.is_some() && file.exists() {
                continue;
            }
            file
        } else {
            let file = args.shrink_to.as_deref();
            file.unwrap_or(Path::new("shrunk.toml")).to_owned()
        };
        shrink(failure, options, &to)?;
    }
    Ok(true)
}

fn shrink(failure: &Failing, options: &Options, to: &Path) -> Result<(), Complaint> {
    let Some(violation) = failure.result.violations.first() else {
        return Ok(());
    };
    let (small, runs) =
        mainstay_sim::shrink(&failure.scenario, violation.property, options, SHRINK_RUNS);
    let text = mainstay_sim::to_toml(&small);
    std::fs::write(to, text).map_err(|e| Complaint::at(to.display(), e))?;
    complain(&format!(
        "seed {}: shrunk from {} events to {} in {runs} runs; replay: mainstay sim run {}",
        failure.seed,
        failure.scenario.events.len(),
        small.events.len(),
        to.display()
    ));
    Ok(())
}

fn failure_text(failure: &Failing, replay: &str, short: bool) -> String {
    let result = &failure.result;
    let mut text = format!("seed {}: {}\n", failure.seed, failure.scenario.name);
    let ms = |t: u64| {
        let signed = |t: u64| i64::try_from(t).unwrap_or(i64::MAX);
        mainstay_sim::clock_text(signed(t) - signed(result.zero))
    };
    for v in &result.violations {
        text.push_str(&format!(
            "✗ {} at {}: {}\n  ({})\n",
            v.property,
            ms(v.at),
            v.what,
            v.sentence
        ));
    }
    if let Some(error) = &result.error {
        text.push_str(&format!("✗ {error}\n"));
    }
    if !short {
        for host in &result.hosts {
            text.push_str(&format!("  {host}\n"));
        }
        text.push_str("last events:\n");
        let from = result.trace.len().saturating_sub(50);
        for entry in result.trace.iter().skip(from) {
            text.push_str(&format!("{}\n", entry.text(result.zero)));
        }
    }
    text.push_str(&format!("replay: {replay}\n"));
    text
}
