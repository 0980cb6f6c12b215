//! `mainstay demo`: a whole cluster of real processes on one machine, a host killed the hard way, and
//! its VMs coming back with their disks intact.

mod bench;
mod cluster;
mod files;
mod net;
mod remote;
mod session;
mod story;
mod tell;

use crate::cli::Common;
use crate::fail::{Context, Failure, Result};
use crate::ui::{self, Tone};
use clap::{Args, Subcommand, ValueEnum};
use cluster::Cluster;
use files::Plan;
use mainstay_agent::config::DriverKind;
use mainstay_core::config::Profile;
use mainstay_lab::place::{Kind, Place};
use mainstay_lab::procs;
use session::{Happening, Session};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use tell::Teller;

/// Arguments of `demo`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct DemoArgs {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Kill a host of the running demo the hard way: agent, guard and guests at once
    Kill {
        /// The host, such as host-2
        host: String,
    },
    /// Switch a killed host of the running demo on again
    Start {
        /// The host, such as host-1
        host: String,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// End after one failover, with status 0 only if every VM came back
    #[arg(long)]
    once: bool,
    /// Number of hosts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=16))]
    hosts: u8,
    /// Number of VMs
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=64))]
    vms: u8,
    /// What runs the VMs; `auto`: QEMU where it is installed
    #[arg(long, value_enum, default_value_t = DriverArg::Auto)]
    driver: DriverArg,
    /// The timers: classic, balanced, fast
    #[arg(long, default_value = "balanced", value_parser = profile)]
    profile: Profile,
    /// Which host is killed
    #[arg(long, value_enum, default_value_t = Victim::Secondary)]
    kill: Victim,
    /// Where the demo's files go [default: the temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keep the files (configurations, logs, disks) when it ends
    #[arg(long)]
    keep: bool,
    /// Measure: one failover each of fresh clusters, and the median
    #[arg(long, conflicts_with = "once")]
    bench: bool,
    /// Number of failovers to measure
    #[arg(long, default_value_t = 10, requires = "bench", value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DriverArg {
    Auto,
    Embedded,
    Qemu,
}

/// Which host is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Victim {
    /// One that runs a VM.
    Secondary,
    /// The primary itself.
    Primary,
}

impl Victim {
    fn name(self) -> &'static str {
        match self {
            Self::Secondary => "secondary",
            Self::Primary => "primary",
        }
    }
}

fn profile(name: &str) -> std::result::Result<Profile, String> {
    Profile::from_name(name).ok_or_else(|| format!("it is one of {}", Profile::NAMES.join(", ")))
}

/// What a demo was asked to be, checked.
#[derive(Debug)]
pub(crate) struct Options {
    /// What is built.
    pub(crate) plan: Plan,
    /// The driver in words.
    pub(crate) driver_text: String,
    /// How it is told.
    pub(crate) tell: Teller,
    /// Which host is killed.
    pub(crate) victim: Victim,
    /// Failovers to measure.
    pub(crate) runs: u32,
    dir: Option<PathBuf>,
    keep: bool,
    place: Place,
    rights: std::result::Result<(), String>,
}

/// `mainstay demo ...`.
pub(crate) fn run(common: &Common, args: &DemoArgs) -> ExitCode {
    let result = match &args.action {
        Some(Action::Kill { host }) => act(common, remote::Request::Kill { host: host.clone() }),
        Some(Action::Start { host }) => act(common, remote::Request::Start { host: host.clone() }),
        None => play(common, &args.run),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // 128 + SIGINT, as shells have it.
        Err(failure) if failure.is_interrupted() => ExitCode::from(130),
        Err(failure) => crate::fail::report(&failure, common.json),
    }
}

fn act(common: &Common, request: remote::Request) -> Result<()> {
    let value = remote::ask(&request)?;
    if common.json {
        ui::json(&value);
        return Ok(());
    }
    match request {
        remote::Request::Kill { host } => ui::line(format_args!(
            "{host} is dead ({} VMs with it); the demo's terminal and `mainstay events` tell what follows",
            value
                .get("vms")
                .and_then(serde_json::Value::as_u64)
                .unwrap_or_default()
        )),
        remote::Request::Start { host } => ui::line(format_args!("{host} starts")),
    }
    Ok(())
}

fn play(common: &Common, args: &RunArgs) -> Result<()> {
    // Before the first thread, and before a user namespace makes this user look like root.
    let place = Place::of_user(Kind::Demo);
    let tell = if common.json {
        Teller::Json
    } else {
        Teller::People
    };
    for run in place.clear_leftovers() {
        tell.fact(
            "cleared",
            format_args!("what the dead demo {} had left", run.run),
            Tone::Dim,
        );
    }
    let rights = net::take_rights();
    let (driver, driver_text) = choose_driver(args.driver)?;
    let plan = Plan {
        hosts: args.hosts,
        vms: args.vms,
        driver,
        profile: args.profile,
    };
    let options = Options {
        plan,
        driver_text,
        tell,
        victim: args.kill,
        runs: args.runs,
        dir: args.dir.clone(),
        keep: args.keep,
        place,
        rights,
    };
    nix::sys::prctl::set_child_subreaper(true).context("cannot adopt orphans")?;
    let (to_self, heard) = channel();
    listen_for_signals(to_self.clone())?;
    if args.bench {
        return bench::run(&options, &heard, &to_self);
    }
    let cluster = build(&options)?;
    story::introduce(&cluster, &options, tell);
    let mut session = Session::new(cluster, tell, &heard, to_self.clone());
    let result = perform(&mut session, &options, args.once, to_self);
    match &result {
        Err(failure) if failure.is_interrupted() => {
            tell.line("");
            tell.line(
                Tone::Dim
                    .paint("ending: every process of the demo is killed, its files are removed"),
            );
        }
        Err(_) => session.cluster.keep_files(),
        Ok(()) => {}
    }
    let dir = session.cluster.dir().to_owned();
    drop(session);
    if options.keep {
        tell.fact("kept", dir.display(), Tone::Plain);
    }
    match result {
        Err(failure) if failure.is_interrupted() && !args.once => Ok(()),
        Err(failure) if !failure.is_interrupted() => Err(failure.remedy(format_args!(
            "the demo's files and logs are kept in {}",
            dir.display()
        ))),
        other => other,
    }
}

fn perform(
    session: &mut Session<'_>,
    options: &Options,
    once: bool,
    to_self: Sender<Happening>,
) -> Result<()> {
    story::set_up(session)?;
    let failover = story::fail_over(session, options.victim)?;
    story::sum_up(session, &failover);
    if once {
        Ok(())
    } else {
        story::stay(session, to_self)
    }
}

/// Builds a cluster as asked.
pub(crate) fn build(options: &Options) -> Result<Cluster> {
    Cluster::build(
        &options.place,
        options.dir.as_deref(),
        &options.plan,
        &options.rights,
        options.keep,
    )
}

fn choose_driver(asked: DriverArg) -> Result<(DriverKind, String)> {
    let qemu = find_program("qemu-system-x86_64");
    let embedded = "embedded: a guest is a process that counts onto its disk";
    match (asked, qemu) {
        (DriverArg::Embedded, _) => Ok((DriverKind::Embedded, embedded.into())),
        (DriverArg::Auto | DriverArg::Qemu, Some(path)) => {
            let text = format!(
                "QEMU ({}): a guest is a machine whose boot sector counts onto its disk",
                path.display()
            );
            Ok((DriverKind::Qemu, text))
        }
        (DriverArg::Auto, None) => Ok((
            DriverKind::Embedded,
            format!("{embedded} (QEMU is not installed)"),
        )),
        (DriverArg::Qemu, None) => Err(Failure::new("qemu-system-x86_64 is not installed")
            .remedy("apt-get install qemu-system-x86, or use --driver embedded")),
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Children that end are reaped at once; signals that end become a word to the session.
fn listen_for_signals(to: Sender<Happening>) -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP, SIGCHLD])
        .context("cannot listen for signals")?;
    let spawned = std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if signal == SIGCHLD {
                    procs::reap();
                } else if to.send(Happening::Stop).is_err() {
                    return;
                }
            }
        });
    spawned.map(drop).context("cannot start a thread")
}
