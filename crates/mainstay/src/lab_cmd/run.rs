//! `mainstay lab run`: scenarios, one after the other, and what became of each.

use super::{ClusterArgs, Signals, agree};
use crate::scenarios::{Complaint, UNPLAYABLE, UNREADABLE, expand, line, load, millis};
use clap::Args;
use mainstay_lab::fail::{Failure, Result};
use mainstay_lab::run::{Audience, Run, unplayable};
use mainstay_sim::{Entry, Scenario};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

#[derive(Debug, Clone, Args)]
pub(super) struct RunArgs {
    /// Scenario files; a directory stands for all *.toml files below it
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Play with this seed instead of the file's
    #[arg(long)]
    seed: Option<u64>,
    /// Draw the run into this SVG file
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,
    /// Play it in the simulator too, and report where order or timing differ
    #[arg(long)]
    against_sim: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Tells people what happens as it happens.
struct Teller {
    quiet: bool,
}

impl Audience for Teller {
    fn phase(&mut self, text: &str) {
        if !self.quiet {
            line(&format!("            {text}"));
        }
    }

    fn entry(&mut self, entry: &Entry, zero: Option<u64>) {
        if let Some(zero) = zero.filter(|_| !self.quiet) {
            line(&entry.text(zero));
        }
    }
}

pub(super) fn run(args: &RunArgs, json: bool) -> Result<ExitCode> {
    let files = match expand(&args.files) {
        Ok(files) => files,
        Err(complaint) => return Ok(complaint.tell(json, UNREADABLE)),
    };
    let signals = Signals::listen()?;
    let mut worst = 0_u8;
    let mut failed: Vec<String> = Vec::new();
    for path in &files {
        let mut scenario = match load(path) {
            Ok(scenario) => scenario,
            Err(complaint) => return Ok(complaint.tell(json, UNREADABLE)),
        };
        if let Some(seed) = args.seed {
            scenario.seed = seed;
        }
        let cannot = unplayable(&scenario);
        if !cannot.is_empty() {
            let what = format!("not playable in the lab: {}", cannot.join(", "));
            Complaint::at(path.display(), what).tell(json, UNPLAYABLE);
            worst = worst.max(UNPLAYABLE);
            continue;
        }
        if signals.stopped() {
            return Err(Failure::interrupted());
        }
        let replay = format!("mainstay lab run {}", path.display());
        if !one(&scenario, args, json, &signals, &replay)? {
            worst = worst.max(1);
            failed.push(path.display().to_string());
        }
    }
    if files.len() > 1 && !json {
        let passed = files.len() - failed.len();
        line(&format!("\n{passed} of {} scenarios pass", files.len()));
        for path in &failed {
            line(&format!("  failed: {path}"));
        }
    }
    Ok(ExitCode::from(worst))
}

fn one(
    scenario: &Scenario,
    args: &RunArgs,
    json: bool,
    signals: &Signals,
    replay: &str,
) -> Result<bool> {
    if !json {
        line(&format!("{} (seed {})", scenario.name, scenario.seed));
    }
    let began = Instant::now();
    let run = Run::new(scenario, args.cluster.options()?);
    signals.end(run.stopper());
    let outcome = run.play(&mut Teller { quiet: json })?;
    let result = &outcome.result;
    if json {
        for text in mainstay_sim::json_lines(result) {
            line(&text);
        }
        line(&mainstay_sim::result_json(scenario, result, millis(began)));
    } else {
        line(&mainstay_sim::verdicts(result));
        let word = if result.pass() { "pass" } else { "FAIL" };
        line(&format!(
            "{word}: after {:.1} s",
            began.elapsed().as_secs_f64()
        ));
        if !result.pass() {
            line(&format!("again: {replay}"));
        }
        if let Some(dir) = &outcome.kept {
            line(&format!("files and logs are kept in {}", dir.display()));
        }
    }
    if let Some(file) = &args.timeline
        && let Err(error) = std::fs::write(file, mainstay_sim::timeline(scenario, result))
    {
        return Err(Failure::new(error).at(file.display()));
    }
    let agrees = !args.against_sim || agree::tell(scenario, result, json);
    Ok(result.pass() && agrees)
}
