//! `mainstay lab bench`: how long failovers take, and what agent and guard take at rest.

mod failover;
mod footprint;
mod peer;

use super::{ClusterArgs, Signals};
use crate::scenarios::line;
use clap::{Args, Subcommand, ValueEnum};
use mainstay_core::config::Profile;
use mainstay_lab::bench::Percentiles;
use mainstay_lab::cluster::Options;
use mainstay_lab::fail::{Failure, Result};
use mainstay_lab::run::Audience;
use mainstay_sim::Entry;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Clone, Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Clone, Subcommand)]
enum BenchCommand {
    /// Let hosts lose their power, and measure each phase until their VMs write again
    Failover(failover::FailoverArgs),
    /// Measure what agent and guard of each host take at rest
    Footprint(footprint::FootprintArgs),
}

/// What both have in common.
#[derive(Debug, Clone, Args)]
struct Common {
    /// Take agents, guards and guests from this `mainstay`, to compare builds [default: this program]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl Common {
    fn options(&self) -> Result<Options> {
        let options = self.cluster.options()?;
        let program = self.program.clone().unwrap_or(options.program);
        Ok(Options { program, ..options })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProfileArg {
    Fast,
    Balanced,
    Classic,
}

impl From<ProfileArg> for Profile {
    fn from(arg: ProfileArg) -> Self {
        match arg {
            ProfileArg::Fast => Self::Fast,
            ProfileArg::Balanced => Self::Balanced,
            ProfileArg::Classic => Self::Classic,
        }
    }
}

/// Measures go on as long as nobody ends them; nothing is told of what happens in between.
struct Silent<'a>(&'a Signals);

impl Silent<'_> {
    fn go_on(&self) -> Result<()> {
        if self.0.stopped() {
            return Err(Failure::interrupted());
        }
        Ok(())
    }
}

impl Audience for Silent<'_> {
    fn phase(&mut self, _: &str) {}
    fn entry(&mut self, _: &Entry, _: Option<u64>) {}
}

/// Runs a bench.
pub(super) fn run(args: &BenchArgs, json: bool) -> Result<ExitCode> {
    if cfg!(debug_assertions) && !json {
        line("a debug build: its figures are not the product's (cargo build --release)");
    }
    match &args.command {
        BenchCommand::Failover(args) => failover::run(args, json),
        BenchCommand::Footprint(args) => footprint::run(args, json),
    }
}

/// What else ran: the load of the machine over the last minute, processes that want a processor.
fn load() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Where the figures come from, in a line.
fn machine() -> String {
    let load = load().map_or_else(String::new, |l| {
        format!(", load of the last minute at the end {l:.1}")
    });
    format!("{} cores{load}", cores())
}

/// Percentiles for programs.
fn percentiles_json(p: Option<Percentiles>) -> Value {
    p.map_or(Value::Null, |p| {
        json!({ "count": p.count, "min": p.min, "median": p.median, "p90": p.p90, "p99": p.p99, "max": p.max })
    })
}
