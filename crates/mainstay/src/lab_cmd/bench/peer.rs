//! The rows of another system, beside Mainstay's: measured in the same namespaces, in the same run.

use super::failover::{FailoverArgs, Peer};
use super::{machine, percentiles_json};
use crate::lab_cmd::Signals;
use crate::scenarios::line;
use crate::ui::Table;
use mainstay_lab::bench::{Percentiles, Row as Ours};
use mainstay_lab::fail::Result;
use mainstay_lab::peer::{self, Options, Report, Row, Variant};
use serde_json::json;
use std::time::Duration;

/// How long a cluster is watched at rest.
const REST: Duration = Duration::from_secs(30);

/// Measures the peer that was asked for, if one was; where it is not installed, says so.
pub(super) fn run(args: &FailoverArgs, json: bool, signals: &Signals) -> Result<()> {
    let Some(Peer::Pacemaker) = args.peer else {
        return Ok(());
    };
    if let Err(missing) = peer::available() {
        line(&match json {
            true => json!({ "peer": "pacemaker", "skipped": missing.one_line() }).to_string(),
            false => format!("\nPacemaker is skipped: {}", missing.one_line()),
        });
        return Ok(());
    }
    let cluster = args.common.options()?;
    let options = Options {
        resources: Ours::VMS.to_vec(),
        runs: usize::try_from(args.runs).unwrap_or(usize::MAX),
        hosts: args.hosts.max(3),
        rest: Some(REST),
        dir: cluster.dir,
        keep: cluster.keep,
        stop: signals.flag(),
        ..Options::default()
    };
    let report = peer::measure(&options, &mut |text| {
        if !json {
            line(text);
        }
    })?;
    if json {
        tell_programs(&report);
    } else {
        tell_people(&report, args);
    }
    Ok(())
}

fn first(row: &Row) -> Option<Percentiles> {
    Percentiles::of(row.samples.iter().map(|s| s.first_s))
}

fn all(row: &Row) -> Option<Percentiles> {
    Percentiles::of(row.samples.iter().map(|s| s.all_s))
}

fn tell_programs(report: &Report) {
    for row in &report.rows {
        let object = json!({
            "peer": "pacemaker",
            "row": row.variant.label(),
            "resources": row.resources,
            "first_s": percentiles_json(first(row)),
            "all_s": percentiles_json(all(row)),
            "rest": row.rest,
        });
        line(&object.to_string());
    }
    for (variant, why) in &report.skipped {
        let object = json!({ "peer": "pacemaker", "row": variant.label(), "skipped": why });
        line(&object.to_string());
    }
}

fn tell_people(report: &Report, args: &FailoverArgs) {
    line(&format!(
        "\n{}; seconds from the power loss to the start elsewhere: median (least) of {} runs; {}",
        report.versions.join(", "),
        args.runs,
        machine()
    ));
    let [few, many] = Ours::VMS;
    let mut table = Table::new(&["variant", "first resource", "all 10", "all of 100"]);
    for variant in Variant::ALL {
        let of = |n: usize| {
            let mut rows = report.rows.iter();
            rows.find(|r| r.variant == variant && r.resources == n)
        };
        let text = |p: Option<Percentiles>| match p {
            Some(p) => format!("{:.2} s ({:.2})", p.median, p.min),
            None => "-".to_owned(),
        };
        table.row(vec![
            variant.label().into(),
            text(of(few).and_then(first)).into(),
            text(of(few).and_then(all)).into(),
            text(of(many).and_then(all)).into(),
        ]);
    }
    table.print();
    for (variant, why) in &report.skipped {
        line(&format!("{} is skipped: {why}", variant.label()));
    }
    let mut table = Table::new(&["AT REST", "RESOURCES", "CPU S/MIN", "RSS MIB", "PSS MIB"]);
    for row in &report.rows {
        for rest in &row.rest {
            table.row(vec![
                format!("{}, {}", row.variant.name(), rest.host).into(),
                row.resources.to_string().into(),
                format!("{:.2}", rest.daemons_cpu_s).into(),
                (rest.rss_kib / 1024).to_string().into(),
                (rest.pss_kib / 1024).to_string().into(),
            ]);
        }
    }
    line("");
    table.print();
}
