//! `mainstay demo --bench`: failovers of fresh clusters, one after the other, and their median.

use super::session::{Failover, Happening, Session};
use super::story::{self, Rest};
use super::tell::Teller;
use super::{Options, build};
use crate::fail::{Failure, Result};
use crate::ui::{self, Table, Tone};
use serde_json::json;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

/// How long agents at rest are measured.
const REST: Duration = Duration::from_secs(20);

/// Runs them all and prints each run and the medians.
pub(crate) fn run(
    options: &Options,
    heard: &Receiver<Happening>,
    to_self: &Sender<Happening>,
) -> Result<()> {
    let json = options.tell == Teller::Json;
    let mut runs = Vec::new();
    let mut rest = None;
    for number in 1..=options.runs {
        let cluster = build(options)?;
        let mut session = Session::new(cluster, Teller::Silent, heard, to_self.clone());
        let result = one(&mut session, options, rest.is_none());
        let (failover, measured) = result.inspect_err(|error| {
            if !error.is_interrupted() {
                session.cluster.keep_files();
            }
        })?;
        rest = rest.or(measured);
        if json {
            ui::json(&json!({ "run": number, "failover": failover.to_json() }));
        } else {
            let part =
                |d: Option<Duration>| d.map_or("-".into(), |d| format!("{:.2} s", d.as_secs_f64()));
            ui::line(format_args!(
                "run {number:>3}: {} killed, verdict after {}, last counter going on after {}",
                failover.victim,
                part(failover.verdict),
                part(failover.out_for()),
            ));
        }
        runs.push(failover);
    }
    report(options, &runs, rest.as_ref(), json);
    Ok(())
}

fn one(
    session: &mut Session<'_>,
    options: &Options,
    measure: bool,
) -> Result<(Failover, Option<Rest>)> {
    story::set_up(session)?;
    let rest = if measure {
        Some(story::measure_rest(session, REST)?)
    } else {
        None
    };
    let failover = story::fail_over(session, options.victim)?;
    if failover.out_for().is_none() {
        return Err(Failure::new("a VM did not come back"));
    }
    Ok((failover, rest))
}

/// The middle value; of two middle ones the mean.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *values.get(values.len() / 2 - 1)?;
    Some(f64::midpoint(lower, upper))
}

fn report(options: &Options, runs: &[Failover], rest: Option<&Rest>, json: bool) {
    let times = |part: fn(&Failover) -> Option<Duration>| {
        runs.iter()
            .filter_map(part)
            .map(|d| d.as_secs_f64())
            .collect::<Vec<f64>>()
    };
    let (verdicts, outs) = (times(|f| f.verdict), times(Failover::out_for));
    let worst = |values: &[f64]| values.iter().copied().reduce(f64::max);
    let best = |values: &[f64]| values.iter().copied().reduce(f64::min);
    if json {
        ui::json(&json!({
            "profile": options.plan.profile.name(),
            "driver": options.driver_text,
            "killed": options.victim.name(),
            "runs": runs.len(),
            "verdict_median_s": median(verdicts),
            "out_for_median_s": median(outs),
            "at_rest": rest,
        }));
        return;
    }
    let text = |value: Option<f64>| value.map_or("-".into(), |v| format!("{v:.2} s"));
    ui::line("");
    let of = format!(
        "{} profile, {} killed, {} runs",
        options.plan.profile.name(),
        options.victim.name(),
        runs.len()
    );
    ui::line(Tone::Strong.paint(of));
    let mut table = Table::new(&["from the kill to", "median", "best", "worst"]);
    for (name, values) in [("verdict", verdicts), ("last counter going on", outs)] {
        let (best, worst) = (best(&values), worst(&values));
        table.row(vec![
            name.into(),
            text(median(values)).into(),
            text(best).into(),
            text(worst).into(),
        ]);
    }
    table.print();
    if let Some(rest) = rest {
        let mib = rest.rss_kib / 1024;
        ui::line(format_args!(
            "agent and guard of one of {} hosts at rest: {mib} MiB resident, {:.2} processor seconds per minute \
             (over {:.0} s)",
            options.plan.hosts, rest.cpu_s_per_min, rest.measured_s
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
