//! `mainstay lab bench footprint`.

use super::{Common, ProfileArg, Silent, cores, load, machine, percentiles_json};
use crate::lab_cmd::Signals;
use crate::scenarios::line;
use crate::ui::Table;
use clap::Args;
use mainstay_core::time::Duration;
use mainstay_lab::bench::{Percentiles, Plan, Share, shares};
use mainstay_lab::fail::Result;
use serde_json::json;
use std::process::ExitCode;

#[derive(Debug, Clone, Args)]
pub(super) struct FootprintArgs {
    /// The timers
    #[arg(long, value_enum, default_value_t = ProfileArg::Balanced)]
    profile: ProfileArg,
    /// Hosts
    #[arg(long, default_value_t = 8, value_name = "N")]
    hosts: usize,
    /// VMs, spread over the hosts
    #[arg(long, default_value_t = 100, value_name = "N")]
    vms: usize,
    /// How long is looked on
    #[arg(long, default_value_t = 60, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// How long the cluster rests before that
    #[arg(long, default_value_t = 10, value_name = "S")]
    settled: u64,
    #[command(flatten)]
    common: Common,
}

/// A line of the table: its name, its value, digits behind the point.
type Line = (&'static str, fn(&Share) -> Option<Percentiles>, usize);

const LINES: &[Line] = &[
    ("core, %", |s| Some(s.core_percent), 2),
    ("RSS, MB", |s| Some(s.rss_mb), 1),
    ("PSS, MB", |s| s.pss_mb, 1),
    ("network in, bytes/s", |s| Some(s.bytes_in), 0),
    ("network in, frames/s", |s| Some(s.packets_in), 1),
    ("network out, bytes/s", |s| Some(s.bytes_out), 0),
    ("network out, frames/s", |s| Some(s.packets_out), 1),
    (
        "datastores, operations/s",
        |s| Some(s.storage_operations),
        1,
    ),
    ("datastores read, bytes/s", |s| Some(s.storage_read), 0),
    (
        "datastores written, bytes/s",
        |s| Some(s.storage_written),
        0,
    ),
    ("system calls read, bytes/s", |s| s.io_read, 0),
    ("system calls written, bytes/s", |s| s.io_written, 0),
];

pub(super) fn run(args: &FootprintArgs, json: bool) -> Result<ExitCode> {
    let signals = Signals::listen()?;
    let plan = Plan {
        profile: args.profile.into(),
        hosts: args.hosts,
        vms: args.vms,
        seed: 1,
    };
    let times = (
        Duration::from_secs(args.settled),
        Duration::from_secs(args.seconds),
    );
    let rest = plan.rest(
        times,
        &args.common.options()?,
        &mut Silent(&signals),
        |stopper| signals.end(stopper),
    )?;
    let shares = shares(&rest);
    if json {
        for share in &shares {
            let mut object = serde_json::Map::new();
            object.insert("kind".into(), json!(share.kind.name()));
            for (name, value, _) in LINES {
                object.insert((*name).into(), percentiles_json(value(share)));
            }
            object.insert("cores".into(), json!(cores()));
            object.insert("load".into(), json!(load()));
            line(&serde_json::Value::Object(object).to_string());
        }
        return Ok(ExitCode::SUCCESS);
    }
    line(&format!(
        "agent and guard together, {} profile, {} hosts, {} VMs, over {} s; median over the hosts (greatest); {}",
        plan.profile.name(),
        args.hosts,
        args.vms,
        args.seconds,
        machine()
    ));
    let mut header = vec!["at rest"];
    header.extend(shares.iter().map(|s| s.kind.name()));
    let mut table = Table::new(&header);
    let mut seconds = vec!["CPU seconds/minute".into()];
    seconds.extend(shares.iter().map(|s| {
        let p = s.core_percent;
        format!("{:.2} ({:.2})", p.median * 0.6, p.max * 0.6).into()
    }));
    table.row(seconds);
    for (name, value, digits) in LINES {
        let mut row = vec![(*name).into()];
        row.extend(shares.iter().map(|s| match value(s) {
            Some(p) => format!("{:.digits$} ({:.digits$})", p.median, p.max).into(),
            None => "-".into(),
        }));
        table.row(row);
    }
    table.print();
    Ok(ExitCode::SUCCESS)
}
