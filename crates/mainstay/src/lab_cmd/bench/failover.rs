//! `mainstay lab bench failover`.

use super::{Common, ProfileArg, Silent, cores, load, machine, peer, percentiles_json};
use crate::lab_cmd::Signals;
use crate::scenarios::line;
use crate::ui::Table;
use clap::{Args, ValueEnum};
use mainstay_lab::bench::{PHASES, Percentiles, Phase, Plan, Row, RowTimes, Times, strips};
use mainstay_lab::fail::{Context, Failure, Result};
use mainstay_lab::run::Victim;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Clone, Args)]
pub(super) struct FailoverArgs {
    /// The timers
    #[arg(long, value_enum, default_value_t = ProfileArg::Balanced)]
    profile: ProfileArg,
    /// Failovers, each of a fresh cluster
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) runs: u64,
    /// VMs, all on the host that is lost
    #[arg(long, default_value_t = 10, value_name = "N")]
    vms: usize,
    /// Hosts
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(super) hosts: usize,
    /// What loses its power
    #[arg(long, value_enum, default_value_t = Kill::Secondary)]
    kill: Kill,
    /// The seed of the first run; later runs count on from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Draw all runs into this SVG file
    #[arg(long, value_name = "FILE", conflicts_with = "rows")]
    svg: Option<PathBuf>,
    /// Measure the rows of the table that stands beside other systems' (balanced and fast, secondary and primary
    /// lost, 10 and 100 VMs), each so many runs
    #[arg(long, conflicts_with_all = ["profile", "vms", "kill"])]
    rows: bool,
    /// Measure the rows of this other system too, in the same namespaces and in the same run
    #[arg(long, value_enum, requires = "rows")]
    pub(super) peer: Option<Peer>,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Peer {
    /// Pacemaker and Corosync, as the distribution packages them
    Pacemaker,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kill {
    Secondary,
    Primary,
}

impl From<Kill> for Victim {
    fn from(kill: Kill) -> Self {
        match kill {
            Kill::Secondary => Self::Secondary,
            Kill::Primary => Self::Primary,
        }
    }
}

/// All runs of one plan.
struct Measured {
    runs: Vec<Vec<Times>>,
    /// Of how many VMs no end was seen, or whose disk says what must never be.
    failed: usize,
}

pub(super) fn run(args: &FailoverArgs, json: bool) -> Result<ExitCode> {
    let signals = Signals::listen()?;
    if args.rows {
        return rows(args, json, &signals);
    }
    let plan = Plan {
        profile: args.profile.into(),
        hosts: args.hosts,
        vms: args.vms,
        seed: args.seed,
    };
    let victim: Victim = args.kill.into();
    let measured = measure(args, plan, victim, json, &signals)?;
    let title = format!(
        "{} profile, {} of {} hosts lost with {} {} VMs, {} runs",
        plan.profile.name(),
        victim.name(),
        plan.hosts,
        plan.vms,
        args.common.options()?.driver.name(),
        args.runs
    );
    if json {
        summary_json(&title, &measured);
    } else {
        line("");
        line(&title);
        summary_table(&measured);
        line(&machine());
    }
    if let Some(file) = &args.svg {
        std::fs::write(file, strips(&title, &measured.runs))
            .context("cannot write the picture")
            .map_err(|e| e.at(file.display()))?;
    }
    Ok(verdict(measured.failed))
}

fn verdict(failed: usize) -> ExitCode {
    if failed > 0 {
        line(&format!(
            "{failed} VMs did not come back, or came back against the rules"
        ));
    }
    ExitCode::from(u8::from(failed > 0))
}

fn measure(
    args: &FailoverArgs,
    plan: Plan,
    victim: Victim,
    json: bool,
    signals: &Signals,
) -> Result<Measured> {
    let mut all = Measured {
        runs: Vec::new(),
        failed: 0,
    };
    for number in 1..=args.runs {
        let mut silent = Silent(signals);
        silent.go_on()?;
        let plan = Plan {
            seed: args.seed + number - 1,
            ..plan
        };
        let begun = |stopper| signals.end(stopper);
        let (loss, times) = plan.fail_over(victim, &args.common.options()?, &mut silent, begun)?;
        let without = times.iter().filter(|t| t.seconds(Phase::Total).is_none());
        all.failed += without.count() + loss.breaches.len();
        tell_run(number, &times, json);
        for breach in &loss.breaches {
            line(&format!("{}: {}", breach.property, breach.what));
        }
        all.runs.push(times);
    }
    Ok(all)
}

fn times_json(times: &Times) -> Map<String, Value> {
    let phases = PHASES.into_iter().map(|p| {
        let name = format!("{}_s", p.name().replace(' ', "_"));
        (name, json!(times.seconds(p)))
    });
    phases.collect()
}

fn tell_run(number: u64, times: &[Times], json: bool) {
    if json {
        for vm in times {
            let mut object = times_json(vm);
            object.insert("run".into(), json!(number));
            object.insert("vm".into(), json!(vm.vm));
            line(&Value::Object(object).to_string());
        }
        return;
    }
    let of = |phase: Phase| Percentiles::of(times.iter().filter_map(|t| t.seconds(phase)));
    let text = |p: Option<f64>| p.map_or_else(|| "-".to_owned(), |s| format!("{s:.3} s"));
    line(&format!(
        "run {number:>3}: verdict after {}, first VM {}, last {}, overhead median {}",
        text(of(Phase::Detection).map(|p| p.median)),
        text(of(Phase::Total).map(|p| p.min)),
        text(of(Phase::Total).map(|p| p.max)),
        text(of(Phase::Overhead).map(|p| p.median)),
    ));
}

fn of_phase(measured: &Measured, phase: Phase) -> Option<Percentiles> {
    let all = measured.runs.iter().flatten();
    Percentiles::of(all.filter_map(|t| t.seconds(phase)))
}

fn summary_json(title: &str, measured: &Measured) {
    let phases = PHASES.into_iter().map(|p| {
        let name = format!("{}_s", p.name().replace(' ', "_"));
        (name, percentiles_json(of_phase(measured, p)))
    });
    let phases: Map<String, Value> = phases.collect();
    line(
        &json!({ "summary": title, "phases": phases, "failed": measured.failed, "cores": cores(), "load": load() })
            .to_string(),
    );
}

fn summary_table(measured: &Measured) {
    let mut table = Table::new(&["phase", "min", "median", "p90", "p99", "max", "values"]);
    for phase in PHASES {
        let Some(p) = of_phase(measured, phase) else {
            table.row(vec![phase.name().into(), "-".into()]);
            continue;
        };
        let seconds = |s: f64| format!("{s:.3} s").into();
        table.row(vec![
            phase.name().into(),
            seconds(p.min),
            seconds(p.median),
            seconds(p.p90),
            seconds(p.p99),
            seconds(p.max),
            p.count.into(),
        ]);
    }
    table.print();
}

fn rows(args: &FailoverArgs, json: bool, signals: &Signals) -> Result<ExitCode> {
    let mut failed = 0;
    let mut all: Vec<RowTimes> = Vec::new();
    for row in Row::ALL {
        for vms in Row::VMS {
            if !json {
                line(&format!("{}, {vms} VMs", row.label()));
            }
            let plan = Plan {
                profile: row.profile,
                hosts: args.hosts,
                vms,
                seed: args.seed,
            };
            let measured = measure(args, plan, row.victim, json, signals)?;
            failed += measured.failed;
            all.push(RowTimes::of(row, vms, &measured.runs));
        }
    }
    if json {
        for times in &all {
            let object = json!({
                "row": times.row.label(),
                "vms": times.vms,
                "first_s": percentiles_json(times.first),
                "all_s": percentiles_json(times.all),
            });
            line(&object.to_string());
        }
        peer::run(args, json, signals)?;
        return Ok(verdict(failed));
    }
    line("");
    line(&format!(
        "seconds from the power loss to the first write elsewhere: median (least) of {} runs, {} hosts; {}",
        args.runs,
        args.hosts,
        machine()
    ));
    let [few, many] = Row::VMS;
    let mut table = Table::new(&["variant", "first VM", "all 10", "all of 100"]);
    for row in Row::ALL {
        let of = |vms: usize| all.iter().find(|t| t.row == row && t.vms == vms);
        let text = |p: Option<Percentiles>| match p {
            Some(p) => format!("{:.2} s ({:.2})", p.median, p.min),
            None => "-".to_owned(),
        };
        table.row(vec![
            row.label().into(),
            text(of(few).and_then(|t| t.first)).into(),
            text(of(few).and_then(|t| t.all)).into(),
            text(of(many).and_then(|t| t.all)).into(),
        ]);
    }
    table.print();
    peer::run(args, json, signals)?;
    if all.iter().any(|t| t.all.is_none()) {
        return Err(Failure::new("in one row no run came to its end"));
    }
    Ok(verdict(failed))
}
