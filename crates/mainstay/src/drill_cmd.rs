//! `mainstay drill`: what would happen if a host was lost, and a rehearsal of it with times.
//!
//! The agents decide and do everything; here it is asked for, confirmed, followed and added up. When this
//! program is killed the drill ends by its own time.

mod plan;
mod report;

use crate::cli::Common;
use crate::control::Target;
use crate::fail::{Context, Failure, Result};
use crate::ui::{self, Tone, line};
use clap::Args;
use mainstay_agent::control::client::Client;
use mainstay_core::config::{format_duration, parse_duration};
use mainstay_core::drill::{Forecast, Marked, Progress, Told};
use mainstay_core::id::{HostId, VmId};
use report::Report;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two looks at how far the drill is.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A drill that was called off is called off again after so long, until its host is back.
const STOP_AGAIN: Duration = Duration::from_millis(500);

/// Arguments of `drill`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["plan", "run", "stop"])))]
pub(crate) struct DrillArgs {
    /// The host whose loss is rehearsed
    host: String,
    /// Say what would happen if it was lost now; change nothing
    #[arg(long)]
    plan: bool,
    /// Do it: its agent falls silent, its VMs freeze and are restarted elsewhere
    #[arg(long)]
    run: bool,
    /// End a drill of it: its agent comes back
    #[arg(long)]
    stop: bool,
    /// The longest that the host is silent, such as 45s [default: twice what the restarts need, and 10 s]
    #[arg(long, value_name = "TIME", conflicts_with_all = ["plan", "stop"], value_parser = time)]
    time: Option<Duration>,
    /// Run it although another host is not well, or VMs would stand still until its end
    #[arg(long, conflicts_with_all = ["plan", "stop"])]
    force: bool,
    /// Do not ask whether its VMs may be interrupted
    #[arg(long, conflicts_with_all = ["plan", "stop"])]
    yes: bool,
}

fn time(text: &str) -> std::result::Result<Duration, String> {
    parse_duration(text).ok_or_else(|| String::from("a time is a number with a unit, such as 45s"))
}

/// `mainstay drill`.
pub(crate) fn run(common: &Common, args: &DrillArgs) -> Result<()> {
    let host = HostId::new(&args.host).map_err(Failure::new)?;
    let target = Target::find(common.socket.as_deref());
    // The agent of the host itself is silent in a drill, and cannot tell how the others are.
    let client = target.beside(&host).client()?;
    if args.stop {
        return stop(common, &client, &host);
    }
    let forecast = client.drill_plan(&host)?;
    if args.plan {
        if common.json {
            ui::json(&forecast);
        } else {
            plan::print(&forecast);
        }
        return Ok(());
    }
    if !common.json {
        plan::print_short(&forecast);
    }
    may_run(&forecast, args.force)?;
    confirm(common, args, &forecast)?;
    Drill {
        json: common.json,
        client,
        forecast,
        shown: BTreeMap::new(),
        host_told: false,
    }
    .run(args)
}

fn stop(common: &Common, client: &Client, host: &HostId) -> Result<()> {
    client.drill_stop(host)?;
    if common.json {
        ui::json(&json!({"host": host, "called_off": true}));
    } else {
        line(format_args!(
            "{host} was told to come back; `mainstay hosts` shows when it is heard, and its drill ends by its own time if the word is lost"
        ));
    }
    Ok(())
}

/// Refuses what the primary would refuse, before anybody is asked anything.
fn may_run(forecast: &Forecast, force: bool) -> Result<()> {
    let in_the_way = forecast.obstacles.iter().find(|o| !(force && o.may_insist));
    match in_the_way {
        None => Ok(()),
        Some(o) if o.may_insist => Err(Failure::new(format_args!(
            "no drill of {}: {}",
            forecast.host, o.why
        ))
        .remedy("insist with --force")),
        Some(o) => Err(Failure::new(format_args!(
            "no drill of {}: {}",
            forecast.host, o.why
        ))),
    }
}

fn confirm(common: &Common, args: &DrillArgs, forecast: &Forecast) -> Result<()> {
    let vms = forecast.vms.len();
    if args.yes || vms == 0 {
        return Ok(());
    }
    let interrupts = match vms {
        1 => String::from("1 VM that runs"),
        _ => format!("{vms} VMs that run"),
    };
    if common.json || !std::io::stdin().is_terminal() {
        return Err(Failure::new(format_args!(
            "a drill of {} interrupts {interrupts}, and nobody is here to be asked",
            forecast.host
        ))
        .remedy("add --yes"));
    }
    let mut out = anstream::stdout();
    let asked = write!(
        out,
        "{} ",
        Tone::Strong.paint(format_args!(
            "This interrupts {interrupts} on {}. Go on? [y/N]",
            forecast.host
        ))
    );
    asked
        .and_then(|()| out.flush())
        .context("cannot ask for a confirmation")?;
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.context("cannot read the answer")?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::new("nothing was done"))
}

/// A drill that is followed.
struct Drill {
    json: bool,
    client: Client,
    forecast: Forecast,
    /// How many marks of each host were shown.
    shown: BTreeMap<HostId, usize>,
    /// The drilled host told what happened on it.
    host_told: bool,
}

impl Drill {
    fn run(mut self, args: &DrillArgs) -> Result<()> {
        let interrupted = interrupted().context("cannot watch for Ctrl-C")?;
        let host = self.forecast.host.clone();
        let config = self.client.config()?;
        let time_ms = self.client.drill_run(&host, args.time, args.force)?;
        let time = Duration::from_millis(time_ms);
        if self.json {
            ui::json(&json!({"drill": "begun", "host": host, "time_ms": time_ms}));
        } else {
            line(format_args!(
                "{host} is silent now, for {} at the longest; Ctrl-C ends the drill",
                format_duration(time)
            ));
        }
        let begun = Instant::now();
        // A host that is back needs some heartbeats until it is heard and has told what it knows.
        let patience = time + 2 * config.settings.timing.dead + Duration::from_secs(10);
        let mut called_off: Option<Instant> = None;
        let mut was_interrupted = false;
        let progress = loop {
            let progress = self.client.drill_progress(&host)?;
            self.show(&progress);
            if progress.complete || begun.elapsed() > patience {
                break progress;
            }
            let stops = if interrupted.load(Ordering::SeqCst) {
                if !was_interrupted {
                    self.say(
                        Tone::Warn,
                        "interrupted: the drill ends, and its host comes back",
                    );
                }
                was_interrupted = true;
                true
            } else {
                self.all_run(&progress)
            };
            let due = called_off.is_none_or(|at| at.elapsed() > STOP_AGAIN);
            if stops && progress.ended.is_none() && due {
                if called_off.is_none() && !was_interrupted {
                    self.say(
                        Tone::Good,
                        "all that should come back runs again: the drill ends",
                    );
                }
                called_off = Some(Instant::now());
                self.client.drill_stop(&host)?;
            }
            std::thread::park_timeout(LOOK_AGAIN);
        };
        let report = Report::new(&self.forecast, &progress, was_interrupted);
        if self.json {
            ui::json(&json!({"report": report}));
        } else {
            report.print();
        }
        report.verdict()
    }

    /// Everything that the forecast promised runs elsewhere.
    fn all_run(&self, progress: &Progress) -> bool {
        let promised = report::promised(&self.forecast);
        let mut promised = promised.peekable();
        promised.peek().is_some()
            && promised.all(|vm| report::started(&self.forecast.host, progress, vm).is_some())
    }

    fn say(&self, tone: Tone, text: &str) {
        if !self.json {
            line(tone.paint(text));
        }
    }

    /// Shows what is new.
    fn show(&mut self, progress: &Progress) {
        let mut new = Vec::new();
        for Told { by, marks } in &progress.told {
            let shown = self.shown.entry(by.clone()).or_default();
            new.extend(marks.iter().skip(*shown).map(|mark| (by, mark)));
            *shown = marks.len();
        }
        // What the silent host tells comes last: it tells it when it is back.
        new.sort_by_key(|(by, mark)| (**by == self.forecast.host, mark.at_ms));
        for (by, mark) in new {
            let ours = |vm: &VmId| self.forecast.vms.iter().any(|v| v.vm == *vm);
            if !mark.what.vm().is_none_or(ours) {
                continue;
            }
            if self.json {
                ui::json(&json!({"at_ms": mark.at_ms, "by": by, "what": mark.what}));
            } else {
                let host = &self.forecast.host;
                if by == host && !std::mem::replace(&mut self.host_told, true) {
                    line(Tone::Dim.paint(format_args!("what happened on {host} itself:")));
                }
                let (text, tone) = told(host, &mark.what);
                line(format_args!(
                    "{:>7}  {}",
                    ui::seconds(Duration::from_millis(mark.at_ms)),
                    tone.paint(text)
                ));
            }
        }
    }
}

/// A mark in words.
fn told(drilled: &HostId, what: &Marked) -> (String, Tone) {
    match what {
        Marked::Frozen { vm } => (format!("{vm} stands still on {drilled}"), Tone::Warn),
        Marked::Verdict { state } => {
            let (word, tone) = crate::show::verdict(*state);
            (format!("{drilled} is called {word}"), tone)
        }
        Marked::Elected { host } => (format!("{host} is the primary"), Tone::Good),
        Marked::Asked { vm, host } => (format!("{host} is asked to start {vm}"), Tone::Plain),
        Marked::Waits { vm, why } => (format!("{vm} waits: {why}"), Tone::Warn),
        Marked::Broken { vm, host } => (format!("{host} takes the lock of {vm}"), Tone::Plain),
        Marked::Started { vm, host } => (format!("{vm} runs on {host}"), Tone::Good),
        Marked::Failed { vm, why } => (format!("{vm} was not started: {why}"), Tone::Bad),
        Marked::Thawed { vm, host } => (format!("{vm} goes on, on {host}"), Tone::Good),
        Marked::Stopped { vm, host, .. } => (
            format!("what was left of {vm} on {host} is gone"),
            Tone::Dim,
        ),
    }
}

/// Set by the first Ctrl-C or SIGTERM; the second ends this program at once, and the drill ends by its time.
fn interrupted() -> std::io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&flag))?;
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(flag)
}
