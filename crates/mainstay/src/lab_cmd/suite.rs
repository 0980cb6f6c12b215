//! `mainstay lab suite`: every scenario that the lab can play, and a table of what became of each.

use super::{ClusterArgs, Signals, agree};
use crate::scenarios::{UNREADABLE, expand, line, load};
use crate::ui::Table;
use clap::Args;
use mainstay_lab::cluster::Options;
use mainstay_lab::fail::{Failure, Result};
use mainstay_lab::run::{Nobody, Run, unplayable};
use mainstay_sim::Scenario;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Labs at a time when nothing else is said: one for each core keeps timers honest.
fn default_jobs() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u16::try_from(cores).unwrap_or(1)
}

#[derive(Debug, Clone, Args)]
pub(super) struct SuiteArgs {
    /// Scenario files and directories
    #[arg(default_value = "scenarios", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Only as many as it takes to play each kind of fault once, the shortest ones
    #[arg(long)]
    cover: bool,
    /// With --cover: none longer than this many virtual seconds
    #[arg(long, value_name = "SECONDS", requires = "cover")]
    longest: Option<u64>,
    /// Say what would be played, and play nothing
    #[arg(long)]
    list: bool,
    /// Labs at a time [default: as many as there are cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    jobs: Option<u16>,
    /// Play each in the simulator too; a difference counts as a failure
    #[arg(long)]
    against_sim: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// A scenario of the suite.
#[derive(Debug, Clone)]
struct Item {
    path: PathBuf,
    scenario: Scenario,
    /// Kinds of faults that it plays.
    kinds: BTreeSet<&'static str>,
}

impl Item {
    fn seconds(&self) -> u64 {
        self.scenario.duration / 1_000_000_000
    }
}

/// What became of one.
#[derive(Debug)]
struct Played {
    path: PathBuf,
    kinds: usize,
    wall: Duration,
    /// What did not hold; empty: it passes.
    wrong: Vec<String>,
    differences: Option<usize>,
}

impl Played {
    fn passes(&self) -> bool {
        self.wrong.is_empty() && self.differences.unwrap_or(0) == 0
    }

    fn word(&self) -> &'static str {
        match (self.wrong.is_empty(), self.differences.unwrap_or(0)) {
            (true, 0) => "pass",
            (true, _) => "DIFFERS",
            (false, _) => "FAIL",
        }
    }
}

pub(super) fn run(args: &SuiteArgs, json: bool) -> Result<ExitCode> {
    let files = match expand(&args.files) {
        Ok(files) => files,
        Err(complaint) => return Ok(complaint.tell(json, UNREADABLE)),
    };
    let mut items = Vec::new();
    let mut left_out: Vec<(PathBuf, Vec<String>)> = Vec::new();
    for path in files {
        let scenario = match load(&path) {
            Ok(scenario) => scenario,
            Err(complaint) => return Ok(complaint.tell(json, UNREADABLE)),
        };
        let cannot = unplayable(&scenario);
        if cannot.is_empty() {
            let kinds = scenario.events.iter().map(|e| e.fault.name()).collect();
            items.push(Item {
                path,
                scenario,
                kinds,
            });
        } else {
            left_out.push((path, cannot));
        }
    }
    if args.cover {
        items = cover(items, args.longest);
    }
    if args.list {
        list(&items, &left_out, json);
        return Ok(ExitCode::SUCCESS);
    }
    let began = Instant::now();
    let played = play(items, args, json)?;
    tell(&played, &left_out, began.elapsed(), json);
    Ok(ExitCode::from(u8::from(!played.iter().all(Played::passes))))
}

/// A small set that plays each kind of fault: always the scenario that adds most kinds for its length.
fn cover(items: Vec<Item>, longest: Option<u64>) -> Vec<Item> {
    let mut left: Vec<Item> = items
        .into_iter()
        .filter(|i| longest.is_none_or(|most| i.seconds() <= most))
        .collect();
    let mut missing: BTreeSet<&'static str> =
        left.iter().flat_map(|i| i.kinds.iter().copied()).collect();
    let mut chosen: Vec<Item> = Vec::new();
    while !missing.is_empty() {
        // Each lab takes some time to settle, whatever it plays then.
        let cost = |i: &Item| i.seconds() + 20;
        let adds = |i: &Item| u64::try_from(i.kinds.intersection(&missing).count()).unwrap_or(0);
        let best = left
            .iter()
            .enumerate()
            .filter(|(_, i)| adds(i) > 0)
            .max_by_key(|(index, i)| (adds(i) * 1_000_000 / cost(i), usize::MAX - index))
            .map(|(index, _)| index);
        let Some(best) = best else { break };
        let item = left.swap_remove(best);
        missing.retain(|kind| !item.kinds.contains(kind));
        chosen.push(item);
    }
    chosen.sort_by(|a, b| a.path.cmp(&b.path));
    chosen
}

fn list(items: &[Item], left_out: &[(PathBuf, Vec<String>)], json: bool) {
    if json {
        for item in items {
            line(
                &json!({"type": "scenario", "file": item.path, "virtual_s": item.seconds(), "faults": item.kinds})
                    .to_string(),
            );
        }
        for (path, why) in left_out {
            line(&json!({"type": "left_out", "file": path, "why": why}).to_string());
        }
        return;
    }
    let mut table = Table::new(&["SCENARIO", "SECONDS", "FAULTS"]);
    for item in items {
        let kinds: Vec<&str> = item.kinds.iter().copied().collect();
        table.row(vec![
            item.path.display().to_string().into(),
            item.seconds().to_string().into(),
            kinds.join(", ").into(),
        ]);
    }
    table.print();
    let seconds: u64 = items.iter().map(Item::seconds).sum();
    line(&format!(
        "{} scenarios of {seconds} seconds together; {} are left to the simulator",
        items.len(),
        left_out.len()
    ));
    for (path, why) in left_out {
        line(&format!("  {}: {}", path.display(), why.join(", ")));
    }
}

fn play(items: Vec<Item>, args: &SuiteArgs, json: bool) -> Result<Vec<Played>> {
    let signals = Signals::listen()?;
    let options = args.cluster.options()?;
    // The longest first: the last to end is then a short one.
    let mut items = items;
    items.sort_by_key(|i| std::cmp::Reverse(i.scenario.duration));
    let waiting = Mutex::new(VecDeque::from(items));
    let done = Mutex::new(Vec::new());
    let failure: Mutex<Option<Failure>> = Mutex::new(None);
    let work = || {
        loop {
            let next = lock(&waiting).pop_front();
            let Some(item) = next.filter(|_| !signals.stopped()) else {
                return;
            };
            match one(&item, &options, args.against_sim, &signals) {
                Ok(played) => {
                    if !json {
                        told(&played);
                    }
                    lock(&done).push(played);
                }
                Err(error) => {
                    lock(&waiting).clear();
                    lock(&failure).get_or_insert(error);
                    return;
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.unwrap_or_else(default_jobs) {
            scope.spawn(work);
        }
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    if signals.stopped() {
        return Err(Failure::interrupted());
    }
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by(|a: &Played, b| a.path.cmp(&b.path));
    Ok(done)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn one(item: &Item, options: &Options, against_sim: bool, signals: &Signals) -> Result<Played> {
    let began = Instant::now();
    let run = Run::new(&item.scenario, options.clone());
    signals.end(run.stopper());
    let outcome = run.play(&mut Nobody)?;
    let result = &outcome.result;
    let mut wrong: Vec<String> = result
        .verdicts
        .iter()
        .filter(|v| !v.pass)
        .map(|v| v.text.clone())
        .collect();
    wrong.extend(
        result
            .violations
            .iter()
            .map(|v| format!("{}: {}", v.property, v.what)),
    );
    wrong.extend(result.error.clone());
    let mut differences = None;
    if against_sim {
        let (agreement, _, _) = agree::against_sim(&item.scenario, result);
        differences = Some(agreement.differences.len());
        wrong.extend(agreement.differences.iter().map(|d| format!("~ {d}")));
    }
    if let Some(dir) = outcome.kept.filter(|_| !result.pass()) {
        wrong.push(format!("files and logs are kept in {}", dir.display()));
    }
    let only_differs = result.pass();
    let played = Played {
        path: item.path.clone(),
        kinds: item.kinds.len(),
        wall: began.elapsed(),
        wrong: if only_differs {
            Vec::new()
        } else {
            wrong.clone()
        },
        differences,
    };
    if only_differs && !wrong.is_empty() {
        differs(&played, &wrong);
    }
    Ok(played)
}

fn differs(played: &Played, how: &[String]) {
    line(&format!(
        "~ {} differs from the simulator:",
        played.path.display()
    ));
    for text in how {
        line(&format!("    {text}"));
    }
}

fn told(played: &Played) {
    let mark = if played.passes() { "✓" } else { "✗" };
    line(&format!(
        "{mark} {} ({:.0} s)",
        played.path.display(),
        played.wall.as_secs_f64()
    ));
    for text in &played.wrong {
        line(&format!("    {text}"));
    }
}

fn tell(played: &[Played], left_out: &[(PathBuf, Vec<String>)], wall: Duration, json: bool) {
    let passed = played.iter().filter(|p| p.passes()).count();
    if json {
        for one in played {
            line(
                &json!({
                    "type": "played",
                    "file": one.path,
                    "result": one.word(),
                    "wall_s": one.wall.as_secs_f64(),
                    "wrong": one.wrong,
                    "differences": one.differences,
                })
                .to_string(),
            );
        }
        line(
            &json!({
                "type": "suite",
                "played": played.len(),
                "passed": passed,
                "left_out": left_out.len(),
                "wall_s": wall.as_secs_f64(),
            })
            .to_string(),
        );
        return;
    }
    line("");
    let mut table = Table::new(&[
        "SCENARIO",
        "RESULT",
        "SECONDS",
        "KINDS OF FAULTS",
        "DIFFERENCES",
    ]);
    for one in played {
        table.row(vec![
            one.path.display().to_string().into(),
            one.word().into(),
            format!("{:.0}", one.wall.as_secs_f64()).into(),
            one.kinds.to_string().into(),
            one.differences
                .map_or("-".to_owned(), |d| d.to_string())
                .into(),
        ]);
    }
    table.print();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for (_, why) in left_out {
        *reasons.entry(why.join(", ")).or_default() += 1;
    }
    line(&format!(
        "{passed} of {} pass, in {:.0} s; {} are left to the simulator",
        played.len(),
        wall.as_secs_f64(),
        left_out.len()
    ));
    for (why, count) in reasons {
        line(&format!("  {count} with {why}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str, seconds: u64, events: &[&str]) -> Item {
        let mut text =
            format!("name = \"{name}\"\nduration = \"{seconds}s\"\n[[host]]\ncount = 3\n");
        for event in events {
            text.push_str(&format!("[[event]]\nat = \"1s\"\n{event}\n"));
        }
        let scenario = mainstay_sim::parse(name, &text).expect("scenario");
        Item {
            path: name.into(),
            kinds: scenario.events.iter().map(|e| e.fault.name()).collect(),
            scenario,
        }
    }

    #[test]
    fn the_cover_has_every_kind_and_prefers_short_scenarios() {
        let (down, up) = ("do = \"gateway.down\"", "do = \"gateway.up\"");
        let off = "do = \"host.power_off\"\nhost = \"host-1\"";
        let items = vec![
            item("long", 600, &[down, up, off]),
            item("short", 20, &[down, up]),
            item("same", 20, &[down]),
            item("off", 30, &[off]),
        ];
        let names = |items: Vec<Item>| -> Vec<String> {
            items.iter().map(|i| i.path.display().to_string()).collect()
        };
        assert_eq!(names(cover(items.clone(), None)), ["off", "short"]);
        assert_eq!(names(cover(items, Some(20))), ["short"]);
    }
}
