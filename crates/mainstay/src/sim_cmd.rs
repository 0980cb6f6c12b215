//! `mainstay sim`: scenarios, campaigns and the proof that a seed means one run.
//!
//! Threads and wall-clock time of the simulator live here; a run itself knows neither.

use clap::{Args, Subcommand};
use mainstay_sim::campaign::{self, Limits};
use mainstay_sim::{Options, RunResult, Scenario};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

const UNREADABLE: u8 = 2;
const UNPLAYABLE: u8 = 3;

/// The simulator's commands.
#[derive(Debug, Clone, Args)]
pub(crate) struct SimArgs {
    #[command(subcommand)]
    command: SimCommand,
}

#[derive(Debug, Clone, Subcommand)]
enum SimCommand {
    /// Play scenario files in virtual time
    Run(RunArgs),
    /// Play random clusters with random faults and judge them by every invariant
    Campaign(CampaignArgs),
    /// Show that a seed gives the same trace, byte for byte, in two processes
    Twice(TwiceArgs),
    /// Show that the campaign finds every planted bug
    #[cfg(feature = "planted")]
    Planted(PlantedArgs),
}

#[derive(Debug, Clone, Args)]
struct RunArgs {
    /// Scenario files; a directory stands for all *.toml files below it
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// Play with this seed instead of the file's
    #[arg(long)]
    seed: Option<u64>,
    /// Draw the run into this SVG file
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,
    #[command(flatten)]
    bug: BugArgs,
}

/// What a build that tests the testers may plant; empty in every other.
#[derive(Debug, Clone, Args)]
struct BugArgs {
    /// Plant this bug, by the name that `sim planted` prints
    #[cfg(feature = "planted")]
    #[arg(long, value_name = "NAME", value_parser = bug)]
    bug: Option<mainstay_core::planted::Bug>,
}

impl BugArgs {
    fn options(&self, stop_at_violation: bool) -> Options {
        Options {
            #[cfg(feature = "planted")]
            bug: self.bug,
            stop_at_violation,
        }
    }
}

#[cfg(feature = "planted")]
fn bug(name: &str) -> Result<mainstay_core::planted::Bug, String> {
    let bugs = mainstay_sim::planted::bugs;
    bugs()
        .find(|bug| format!("{bug:?}") == name)
        .ok_or_else(|| {
            let names: Vec<String> = bugs().map(|bug| format!("{bug:?}")).collect();
            format!("there is no such bug; the bugs are {}", names.join(", "))
        })
}

#[derive(Debug, Clone, Args)]
struct LimitArgs {
    /// Timing profile: classic, balanced or fast [default: drawn]
    #[arg(long, value_parser = ["classic", "balanced", "fast"])]
    profile: Option<String>,
    /// Number of hosts [default: 3 to 8, drawn]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=64))]
    hosts: Option<u64>,
    /// Number of VMs [default: 1 to 20, drawn]
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..=2000))]
    vms: Option<u64>,
    /// Virtual minutes of each run [default: 10]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: Option<u64>,
}

impl LimitArgs {
    fn limits(&self) -> Limits {
        let size = |n: Option<u64>| n.and_then(|n| usize::try_from(n).ok());
        Limits {
            profile: self.profile.clone(),
            hosts: size(self.hosts),
            vms: size(self.vms),
            minutes: self.minutes,
        }
    }

    /// The options that give the same runs again.
    fn replay(&self) -> String {
        let mut text = String::new();
        if let Some(profile) = &self.profile {
            text.push_str(&format!(" --profile {profile}"));
        }
        for (name, value) in [
            ("hosts", self.hosts),
            ("vms", self.vms),
            ("minutes", self.minutes),
        ] {
            if let Some(value) = value {
                text.push_str(&format!(" --{name} {value}"));
            }
        }
        text
    }
}

#[derive(Debug, Clone, Args)]
struct CampaignArgs {
    /// One seed (26), or a range with both ends in it (1..1000)
    #[arg(long, value_parser = seeds, default_value = "1..200")]
    seeds: Seeds,
    #[command(flatten)]
    limits: LimitArgs,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// Go on after a violation
    #[arg(long)]
    keep_going: bool,
    /// Remove faults from the first failing run as long as it fails, and write what is left as a scenario
    #[arg(long)]
    shrink: bool,
    /// Where --shrink writes to
    #[arg(long, value_name = "FILE", default_value = "shrunk.toml")]
    shrink_to: PathBuf,
    #[command(flatten)]
    bug: BugArgs,
}

#[derive(Debug, Clone, Args)]
struct TwiceArgs {
    /// The seed
    #[arg(long)]
    seed: u64,
    #[command(flatten)]
    limits: LimitArgs,
}

#[cfg(feature = "planted")]
#[derive(Debug, Clone, Args)]
struct PlantedArgs {
    /// Seeds to try for each bug
    #[arg(long, value_parser = seeds, default_value = "1..500")]
    seeds: Seeds,
    /// Only bugs whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy)]
struct Seeds {
    first: u64,
    last: u64,
}

fn seeds(text: &str) -> Result<Seeds, String> {
    let number = |t: &str| {
        t.trim_start_matches('=')
            .parse::<u64>()
            .map_err(|e| format!("\"{t}\": {e}"))
    };
    let (first, last) = match text.split_once("..") {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    if last < first {
        return Err(format!(
            "{first}..{last} is empty; write the lower seed first"
        ));
    }
    Ok(Seeds { first, last })
}

/// Runs a command of the simulator.
pub(crate) fn run(args: SimArgs) -> ExitCode {
    match args.command {
        SimCommand::Run(args) => play(&args),
        SimCommand::Campaign(args) => sweep(&args),
        SimCommand::Twice(args) => twice(&args),
        #[cfg(feature = "planted")]
        SimCommand::Planted(args) => planted(&args),
    }
}

/// Prints a line; a reader that went away (`| head`) is no failure.
fn line(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end_matches('\n'));
}

fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Scenario files, those in directories too.
fn expand(paths: &[PathBuf]) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut waiting: Vec<PathBuf> = paths.iter().rev().cloned().collect();
    while let Some(path) = waiting.pop() {
        if !path.is_dir() {
            files.push(path);
            continue;
        }
        let mut inside: Vec<PathBuf> = std::fs::read_dir(&path)?
            .map(|e| e.map(|e| e.path()))
            .collect::<Result<_, _>>()?;
        inside.sort();
        inside.retain(|p| p.is_dir() || p.extension().is_some_and(|e| e == "toml"));
        waiting.extend(inside.into_iter().rev());
    }
    Ok(files)
}

fn load(path: &Path) -> Result<Scenario, String> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        format!(
            "{}: {e}; name a scenario file, or a directory of them",
            path.display()
        )
    })?;
    mainstay_sim::parse(&path.display().to_string(), &text).map_err(|e| e.to_string())
}

fn play(args: &RunArgs) -> ExitCode {
    let files = match expand(&args.files) {
        Ok(files) => files,
        Err(error) => {
            complain(&format!("error: {error}"));
            return ExitCode::from(UNREADABLE);
        }
    };
    let mut worst = 0_u8;
    let mut failed: Vec<String> = Vec::new();
    for path in &files {
        let mut scenario = match load(path) {
            Ok(scenario) => scenario,
            Err(error) => {
                complain(&format!("error: {error}"));
                return ExitCode::from(UNREADABLE);
            }
        };
        if let Some(seed) = args.seed {
            scenario.seed = seed;
        }
        let unplayable = scenario.unplayable();
        if !unplayable.is_empty() {
            complain(&format!(
                "{}: not playable here: {}",
                path.display(),
                unplayable.join(", ")
            ));
            worst = worst.max(UNPLAYABLE);
            continue;
        }
        let began = Instant::now();
        let result = mainstay_sim::run(&scenario, &args.bug.options(false));
        let wall = millis(began);
        if args.json {
            for text in mainstay_sim::json_lines(&result) {
                line(&text);
            }
            line(&mainstay_sim::result_json(&scenario, &result, wall));
        } else {
            let seed = args
                .seed
                .map(|s| format!(" --seed {s}"))
                .unwrap_or_default();
            let replay = format!("mainstay sim run {}{seed}", path.display());
            line(&mainstay_sim::people(&scenario, &result, &replay));
        }
        if let Some(file) = &args.timeline
            && let Err(error) = std::fs::write(file, mainstay_sim::timeline(&scenario, &result))
        {
            complain(&format!("error: {}: {error}", file.display()));
            return ExitCode::FAILURE;
        }
        if !result.pass() {
            worst = worst.max(1);
            failed.push(path.display().to_string());
        }
    }
    if files.len() > 1 && !args.json {
        line(&format!(
            "\n{} of {} scenarios pass",
            files.len() - failed.len(),
            files.len()
        ));
        for path in &failed {
            line(&format!("  failed: {path}"));
        }
    }
    ExitCode::from(worst)
}

/// One failing seed.
struct Failure {
    seed: u64,
    scenario: Scenario,
    result: RunResult,
}

struct Sweep {
    done: u64,
    virtual_s: f64,
    failures: Vec<Failure>,
}

/// Plays all seeds on all cores; `play` says whether a run failed. Without `keep_going` every seed below the first failing one is played.
fn sweep_seeds(
    seeds: Seeds,
    limits: &Limits,
    play: &(dyn Fn(&Scenario) -> (RunResult, bool) + Sync),
    keep_going: bool,
    show: bool,
) -> Sweep {
    let next = AtomicU64::new(seeds.first);
    let lowest = AtomicU64::new(u64::MAX);
    let quiet = AtomicBool::new(!show);
    let state = Mutex::new(Sweep {
        done: 0,
        virtual_s: 0.0,
        failures: Vec::new(),
    });
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > seeds.last || (!keep_going && seed > lowest.load(Ordering::Relaxed)) {
                        break;
                    }
                    let scenario = campaign::draw(seed, limits);
                    let (result, fails) = play(&scenario);
                    let Ok(mut state) = state.lock() else { break };
                    state.done += 1;
                    state.virtual_s += result.virtual_time as f64 / 1e9;
                    if fails {
                        lowest.fetch_min(seed, Ordering::Relaxed);
                        state.failures.push(Failure {
                            seed,
                            scenario,
                            result,
                        });
                    }
                    if state.done.is_multiple_of(50) && !quiet.load(Ordering::Relaxed) {
                        let rate = state.virtual_s / began.elapsed().as_secs_f64().max(0.001);
                        complain(&format!(
                            "{} seeds, {} failures, {rate:.0} x real time",
                            state.done,
                            state.failures.len()
                        ));
                    }
                }
            });
        }
    });
    let mut sweep = state
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    sweep.failures.sort_by_key(|f| f.seed);
    sweep
}

fn sweep(args: &CampaignArgs) -> ExitCode {
    let began = Instant::now();
    let limits = args.limits.limits();
    let options = args.bug.options(true);
    let show = !args.json && std::io::stderr().is_terminal();
    let play = |scenario: &Scenario| {
        let result = mainstay_sim::run(scenario, &options);
        let fails = !result.pass();
        (result, fails)
    };
    let mut sweep = sweep_seeds(args.seeds, &limits, &play, args.keep_going, show);
    if !args.keep_going {
        sweep.failures.truncate(1);
    }
    let seconds = began.elapsed().as_secs_f64().max(0.001);
    let rate = sweep.virtual_s / seconds;
    for failure in &sweep.failures {
        let replay = format!(
            "mainstay sim campaign --seeds {}{}",
            failure.seed,
            args.limits.replay()
        );
        if args.json {
            let wall = millis(began);
            line(&mainstay_sim::result_json(
                &failure.scenario,
                &failure.result,
                wall,
            ));
        } else {
            line(&failure_text(failure, &replay, args.keep_going));
        }
    }
    if args.json {
        let text = serde_json::json!({
            "type": "campaign", "first": args.seeds.first, "last": args.seeds.last, "seeds": sweep.done,
            "failures": sweep.failures.iter().map(|f| f.seed).collect::<Vec<_>>(),
            "virtual_s": sweep.virtual_s, "wall_s": seconds, "rate": rate,
        });
        line(&text.to_string());
    } else {
        line(&format!(
            "{} seeds, {} with a violation; {:.0} virtual seconds in {seconds:.1} s: {rate:.0} virtual seconds a second",
            sweep.done,
            sweep.failures.len(),
            sweep.virtual_s
        ));
    }
    if args.shrink
        && let Some(failure) = sweep.failures.first()
        && let Some(violation) = failure.result.violations.first()
    {
        let (small, runs) =
            mainstay_sim::shrink(&failure.scenario, violation.property, &options, 400);
        let text = mainstay_sim::to_toml(&small);
        if let Err(error) = std::fs::write(&args.shrink_to, text) {
            complain(&format!("error: {}: {error}", args.shrink_to.display()));
            return ExitCode::FAILURE;
        }
        complain(&format!(
            "shrunk from {} events to {} in {runs} runs; replay: mainstay sim run {}",
            failure.scenario.events.len(),
            small.events.len(),
            args.shrink_to.display()
        ));
    }
    if sweep.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn failure_text(failure: &Failure, replay: &str, short: bool) -> String {
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

/// The whole trace of one seed as bytes: what `twice` compares.
fn twice(args: &TwiceArgs) -> ExitCode {
    if std::env::var_os("MAINSTAY_SIM_TRACE").is_some() {
        let scenario = campaign::draw(args.seed, &args.limits.limits());
        let result = mainstay_sim::run(&scenario, &Options::default());
        for text in mainstay_sim::json_lines(&result) {
            line(&text);
        }
        line(&mainstay_sim::result_json(&scenario, &result, 0));
        line(&format!(
            "{{\"type\":\"steps\",\"steps\":{}}}",
            result.steps
        ));
        return ExitCode::SUCCESS;
    }
    let once = || -> std::io::Result<Vec<u8>> {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args(["sim", "twice", "--seed", &args.seed.to_string()]);
        command.args(args.limits.replay().split_whitespace());
        let output = command.env("MAINSTAY_SIM_TRACE", "1").output()?;
        if !output.status.success() {
            return Err(std::io::Error::other(
                String::from_utf8_lossy(&output.stderr).into_owned(),
            ));
        }
        Ok(output.stdout)
    };
    let (first, second) = match (once(), once()) {
        (Ok(first), Ok(second)) => (first, second),
        (Err(error), _) | (_, Err(error)) => {
            complain(&format!("error: {error}"));
            return ExitCode::FAILURE;
        }
    };
    if first == second {
        line(&format!(
            "seed {}: two processes, the same {} bytes",
            args.seed,
            first.len()
        ));
        return ExitCode::SUCCESS;
    }
    let (first, second) = (
        String::from_utf8_lossy(&first),
        String::from_utf8_lossy(&second),
    );
    let different = first
        .lines()
        .zip(second.lines())
        .enumerate()
        .find(|(_, (a, b))| a != b);
    match different {
        Some((number, (a, b))) => {
            line(&format!(
                "seed {}: line {} differs\n  {a}\n  {b}",
                args.seed,
                number + 1
            ));
        }
        None => line(&format!("seed {}: one trace is longer", args.seed)),
    }
    ExitCode::FAILURE
}

#[cfg(feature = "planted")]
fn planted(args: &PlantedArgs) -> ExitCode {
    let mut survived = 0;
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
        let play = |scenario: &Scenario| {
            let result = mainstay_sim::run(scenario, &options);
            let fails = !result.pass() && mainstay_sim::run(scenario, &clean).pass();
            (result, fails)
        };
        let sweep = sweep_seeds(args.seeds, &Limits::default(), &play, false, false);
        let found = sweep.failures.first();
        let property = found.map(|f| {
            let first = f.result.violations.first();
            first.map_or_else(
                || f.result.error.clone().unwrap_or_default(),
                |v| v.property.to_string(),
            )
        });
        if found.is_none() {
            survived += 1;
        }
        let seed = found.map(|f| f.seed);
        if args.json {
            let text = serde_json::json!({
                "type": "planted", "bug": name, "seed": seed, "property": property, "seeds": sweep.done,
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
                    sweep.done
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
