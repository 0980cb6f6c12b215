//! `mainstay sim`: scenarios, campaigns and the proof that a seed means one run.
//!
//! Threads and wall-clock time of the simulator live here; a run itself knows neither.

mod bench;
mod campaign;
#[cfg(feature = "planted")]
mod planted;
mod state;
mod sweep;
mod twice;

use crate::scenarios::{Complaint, UNPLAYABLE, UNREADABLE, expand, line, load, millis};
use clap::{Args, Subcommand};
use mainstay_sim::Options;
use mainstay_sim::campaign::Limits;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

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
    Campaign(campaign::CampaignArgs),
    /// Show that a seed gives the same trace, byte for byte, in two processes
    Twice(twice::TwiceArgs),
    /// Measure the simulator on two clusters of fixed size, and hold it against its figures
    Bench(bench::BenchArgs),
    /// Show that the campaign finds every planted bug
    #[cfg(feature = "planted")]
    Planted(planted::PlantedArgs),
}

#[derive(Debug, Clone, Args)]
struct RunArgs {
    /// Scenario files; a directory stands for all *.toml files below it
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
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
impl BugArgs {
    /// The option, with a blank before it.
    fn name(&self) -> String {
        self.bug
            .map(|bug| format!(" --bug {bug:?}"))
            .unwrap_or_default()
    }
}

#[cfg(not(feature = "planted"))]
impl BugArgs {
    /// There is no such option in this build.
    fn name(&self) -> String {
        String::new()
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
    /// Number of hosts [default: 3 to 16, drawn]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=64))]
    hosts: Option<u64>,
    /// Number of VMs [default: 1 to 30, drawn]
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..=2000))]
    vms: Option<u64>,
    /// Virtual minutes of each run [default: 20]
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

    /// The options that give the same runs again, each with a blank before it.
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
struct JobArgs {
    /// Seeds that are played at a time [default: as many as there are cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
}

impl JobArgs {
    fn count(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.jobs.map_or_else(cores, usize::from)
    }
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

/// Runs a command of the simulator; with `json` it prints one JSON object a line, errors too.
pub(crate) fn run(args: SimArgs, json: bool) -> ExitCode {
    match args.command {
        SimCommand::Run(args) => play(&args, json),
        SimCommand::Campaign(args) => campaign::run(&args, json),
        SimCommand::Twice(args) => twice::run(&args, json),
        SimCommand::Bench(args) => bench::run(&args, json),
        #[cfg(feature = "planted")]
        SimCommand::Planted(args) => planted::run(&args, json),
    }
}

fn play(args: &RunArgs, json: bool) -> ExitCode {
    match play_all(args, json) {
        Ok(code) => code,
        Err(complaint) => complaint.tell(json, UNREADABLE),
    }
}

fn play_all(args: &RunArgs, json: bool) -> Result<ExitCode, Complaint> {
    let files = expand(&args.files)?;
    let mut worst = 0_u8;
    let mut failed: Vec<String> = Vec::new();
    for path in &files {
        let mut scenario = load(path)?;
        if let Some(seed) = args.seed {
            scenario.seed = seed;
        }
        let unplayable = scenario.unplayable();
        if !unplayable.is_empty() {
            let what = format!("not playable here: {}", unplayable.join(", "));
            Complaint::at(path.display(), what).tell(json, UNPLAYABLE);
            worst = worst.max(UNPLAYABLE);
            continue;
        }
        let began = Instant::now();
        let result = mainstay_sim::run(&scenario, &args.bug.options(false));
        let wall = millis(began);
        if json {
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
            return Ok(Complaint::at(file.display(), error).tell(json, 1));
        }
        if !result.pass() {
            worst = worst.max(1);
            failed.push(path.display().to_string());
        }
    }
    if files.len() > 1 && !json {
        line(&format!(
            "\n{} of {} scenarios pass",
            files.len() - failed.len(),
            files.len()
        ));
        for path in &failed {
            line(&format!("  failed: {path}"));
        }
    }
    Ok(ExitCode::from(worst))
}
