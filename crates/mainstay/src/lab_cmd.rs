//! `mainstay lab`: scenarios on real processes, with a stopwatch.

mod agree;
mod bench;
mod rounds;
mod run;
mod soak;
mod suite;

use crate::fail;
use crate::scenarios::{STOPPED, line};
use clap::{Args, Subcommand, ValueEnum};
use mainstay_agent::config::DriverKind;
use mainstay_lab::cluster::Options;
use mainstay_lab::fail::{Context, Failure, Result};
use mainstay_lab::place::{Kind, Note, Place};
use mainstay_lab::procs;
use mainstay_lab::run::Stopper;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The lab's commands.
#[derive(Debug, Clone, Args)]
pub(crate) struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Clone, Subcommand)]
enum LabCommand {
    /// Play scenario files on real agents, guests, networks and storage
    Run(run::RunArgs),
    /// Play every scenario that the lab can play, and print a table
    Suite(suite::SuiteArgs),
    /// Random faults for a long time on one cluster; judged by disks and process tables, daemons watched for growth
    Soak(soak::SoakArgs),
    /// One random fault after the other, each followed by a look whether all VMs run again, and a table by fault
    Rounds(rounds::RoundsArgs),
    /// Say whether a lab can be had on this machine, or what is missing
    Check,
    /// Measure failovers, and what agents take at rest
    Bench(bench::BenchArgs),
    /// End what dead labs left, and remove it: processes, mounts, cgroups, files
    Clean,
}

/// How clusters are made.
#[derive(Debug, Clone, Args)]
struct ClusterArgs {
    /// What runs the VMs
    #[arg(long, value_enum, default_value_t = Driver::Embedded)]
    driver: Driver,
    /// Where files go [default: memory, where there is room in it, else the temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keep the files (configurations, logs, disks) of runs that pass too
    #[arg(long)]
    keep: bool,
    /// Each host reaches the datastores through a GlusterFS client of its own (needs the package glusterfs-server)
    #[arg(long)]
    gluster: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Driver {
    Embedded,
    Qemu,
}

impl ClusterArgs {
    fn options(&self) -> Result<Options> {
        Ok(Options {
            driver: match self.driver {
                Driver::Embedded => DriverKind::Embedded,
                Driver::Qemu => DriverKind::Qemu,
            },
            program: std::env::current_exe().context("cannot find this program's own file")?,
            dir: self.dir.clone(),
            keep: self.keep,
            gluster: self.gluster,
        })
    }
}

/// Runs a command of the lab; with `json` it prints one JSON object a line, errors too.
pub(crate) fn run(args: LabArgs, json: bool) -> ExitCode {
    match args.command {
        LabCommand::Run(args) => finish(json, run::run(&args, json)),
        LabCommand::Suite(args) => finish(json, suite::run(&args, json)),
        LabCommand::Soak(args) => finish(json, soak::run(&args, json)),
        LabCommand::Rounds(args) => finish(json, rounds::run(&args, json)),
        LabCommand::Check => finish(json, check(json)),
        LabCommand::Bench(args) => finish(json, bench::run(&args, json)),
        LabCommand::Clean => finish(json, clean(json)),
    }
}

fn finish(json: bool, result: Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(failure) if failure.is_interrupted() => {
            fail::report(&failure, json);
            ExitCode::from(STOPPED)
        }
        Err(failure) => fail::report(&failure, json),
    }
}

fn check(json: bool) -> Result<ExitCode> {
    mainstay_lab::cluster::available()?;
    if json {
        line(&serde_json::json!({ "lab": true }).to_string());
    } else {
        line("a lab can be had here");
    }
    Ok(ExitCode::SUCCESS)
}

fn clean(json: bool) -> Result<ExitCode> {
    let place = Place::of_user(Kind::Lab);
    adopt_orphans()?;
    let cleared = place.clear_leftovers();
    let running: Vec<_> = place.notes().into_iter().filter(Note::alive).collect();
    let left = cleared.iter().any(|c| !c.left.is_empty());
    let code = ExitCode::from(u8::from(left));
    if json {
        let runs: Vec<_> = running.iter().map(|n| &n.run).collect();
        line(&serde_json::json!({ "cleared": cleared, "running": runs }).to_string());
        return Ok(code);
    }
    for run in &cleared {
        line(&format!("dead lab {run}"));
    }
    for note in &running {
        line(&format!(
            "lab {} goes on (process {}): left alone",
            note.run, note.pid
        ));
    }
    if cleared.is_empty() {
        line("no dead lab has left anything");
    }
    Ok(code)
}

/// What the daemons of a dead host leave is reaped here: process 1 may take its time.
fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("cannot adopt orphans")
}

/// Ctrl-C, SIGTERM and SIGHUP end the runs that are going on; children that end are reaped at once.
#[derive(Debug, Clone, Default)]
struct Signals {
    runs: Arc<Mutex<Vec<Stopper>>>,
    stopped: Arc<AtomicBool>,
}

impl Signals {
    /// Listens from now on.
    fn listen() -> Result<Self> {
        adopt_orphans()?;
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP, SIGCHLD])
            .context("cannot listen for signals")?;
        let all = Self::default();
        let (runs, stopped) = (Arc::clone(&all.runs), all.flag());
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for signal in signals.forever() {
                    if signal == SIGCHLD {
                        procs::reap();
                        continue;
                    }
                    let runs = runs.lock().unwrap_or_else(PoisonError::into_inner);
                    stopped.store(true, Ordering::Release);
                    runs.iter().for_each(Stopper::stop);
                }
            })
            .map_err(|e| Failure::new(format_args!("cannot start a thread: {e}")))?;
        Ok(all)
    }

    /// This run ends with them.
    fn end(&self, run: Stopper) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if self.stopped() {
            run.stop();
        }
        runs.push(run);
    }

    /// Set when somebody wants an end: for what looks itself.
    fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stopped)
    }

    /// Somebody wants an end.
    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}
