//! What a drill has shown, added up.

use crate::fail::{Failure, Result};
use crate::ui::{self, Cell, Table, Tone, line};
use mainstay_core::drill::{Forecast, Mark, Marked, Outcome, Progress};
use mainstay_core::id::{HostId, VmId};
use serde::Serialize;
use std::time::Duration;

/// The report of a drill. Times are in milliseconds since the silence began.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    host: HostId,
    /// It was silent for so long.
    silent_ms: u64,
    /// Why it ended; none: its host was not heard since.
    ended: Option<String>,
    interrupted: bool,
    vms: Vec<Row>,
    /// Of those that came back elsewhere: half of them ran again then, and the last of them.
    median_ms: Option<u64>,
    worst_ms: Option<u64>,
    all_came_back: bool,
}

/// One VM.
#[derive(Debug, Serialize)]
struct Row {
    vm: VmId,
    frozen_ms: Option<u64>,
    asked_ms: Option<u64>,
    broken_ms: Option<u64>,
    started_ms: Option<u64>,
    /// Where it runs again.
    host: Option<HostId>,
    /// It was not taken, and goes on where it was.
    thawed_ms: Option<u64>,
    /// Where the forecast had it, and when it had it asked for.
    forecast_host: Option<HostId>,
    forecast_ms: Option<u64>,
    /// Why it waited, as was last said.
    waited: Option<String>,
    promised: bool,
}

/// The VMs that the forecast has come back.
pub(super) fn promised(forecast: &Forecast) -> impl Iterator<Item = &VmId> {
    let restarted = |o: &Outcome| matches!(o, Outcome::Restarted { .. });
    let vms = forecast.vms.iter();
    vms.filter(move |v| restarted(&v.outcome)).map(|v| &v.vm)
}

fn marks(progress: &Progress) -> impl Iterator<Item = &Mark> {
    progress.told.iter().flat_map(|told| &told.marks)
}

/// When and where a VM runs elsewhere again, for the first time.
pub(super) fn started<'a>(
    drilled: &HostId,
    progress: &'a Progress,
    vm: &VmId,
) -> Option<(u64, &'a HostId)> {
    let starts = marks(progress).filter_map(|mark| match &mark.what {
        Marked::Started { vm: of, host } if of == vm && host != drilled => Some((mark.at_ms, host)),
        _ => None,
    });
    starts.min_by_key(|(at, _)| *at)
}

fn first(progress: &Progress, is: impl Fn(&Marked) -> bool) -> Option<u64> {
    let found = marks(progress).filter(|mark| is(&mark.what));
    found.map(|mark| mark.at_ms).min()
}

impl Report {
    pub(super) fn new(forecast: &Forecast, progress: &Progress, interrupted: bool) -> Self {
        let vms: Vec<Row> = forecast
            .vms
            .iter()
            .map(|foreseen| {
                let vm = &foreseen.vm;
                let start = started(&forecast.host, progress, vm);
                let (forecast_host, forecast_ms) = match &foreseen.outcome {
                    Outcome::Restarted { host, asked_ms, .. } => {
                        (Some(host.clone()), Some(*asked_ms))
                    }
                    Outcome::Left { .. } | Outcome::Stuck { .. } => (None, None),
                };
                let waits = marks(progress).filter_map(|mark| match &mark.what {
                    Marked::Waits { vm: of, why } | Marked::Failed { vm: of, why } if of == vm => {
                        Some((mark.at_ms, why))
                    }
                    _ => None,
                });
                let of = |found: &VmId| found == vm;
                Row {
                    frozen_ms: first(progress, |m| matches!(m, Marked::Frozen { vm } if of(vm))),
                    asked_ms: first(
                        progress,
                        |m| matches!(m, Marked::Asked { vm, .. } if of(vm)),
                    ),
                    broken_ms: first(
                        progress,
                        |m| matches!(m, Marked::Broken { vm, .. } if of(vm)),
                    ),
                    started_ms: start.map(|(at, _)| at),
                    host: start.map(|(_, host)| host.clone()),
                    thawed_ms: first(
                        progress,
                        |m| matches!(m, Marked::Thawed { vm, .. } if of(vm)),
                    ),
                    promised: forecast_host.is_some(),
                    forecast_host,
                    forecast_ms,
                    waited: waits.max_by_key(|(at, _)| *at).map(|(_, why)| why.clone()),
                    vm: vm.clone(),
                }
            })
            .collect();
        let mut times: Vec<u64> = vms.iter().filter_map(|row| row.started_ms).collect();
        times.sort_unstable();
        Self {
            host: forecast.host.clone(),
            silent_ms: progress.for_ms,
            ended: progress.ended.clone(),
            interrupted,
            median_ms: times.get(times.len() / 2).copied(),
            worst_ms: times.last().copied(),
            all_came_back: vms.iter().all(|r| !r.promised || r.started_ms.is_some()),
            vms,
        }
    }

    pub(super) fn print(&self) {
        line("");
        let mut table = Table::new(&[
            "VM",
            "frozen",
            "asked for",
            "lock broken",
            "runs again",
            "where",
            "forecast",
            "asked later by",
        ]);
        for row in &self.vms {
            table.row(row.cells(&self.host));
        }
        if !self.vms.is_empty() {
            table.print();
            line(Tone::Dim.paint(
                "seconds after the silence began, each by the clock of the host that did it",
            ));
        }
        for row in self.vms.iter().filter(|r| r.started_ms.is_none()) {
            if let Some(why) = &row.waited {
                line(Tone::Dim.paint(format_args!("{}: {why}", row.vm)));
            }
        }
        line("");
        if let (Some(median), Some(worst)) = (self.median_ms, self.worst_ms) {
            let (median, worst) = (at(Some(median)), at(Some(worst)));
            line(format_args!(
                "ran again after: median {median}, worst {worst}"
            ));
        }
        let silent = ui::seconds(Duration::from_millis(self.silent_ms));
        match &self.ended {
            Some(why) => line(format_args!("{} was silent for {silent}: {why}", self.host)),
            None => line(Tone::Bad.paint(format_args!(
                "{} was not heard since; `mainstay hosts` shows whether it is back",
                self.host
            ))),
        }
        let promised = self.vms.iter().filter(|r| r.promised).count();
        if self.all_came_back {
            line(Tone::Good.paint(format_args!(
                "Every VM that should come back runs again: {promised} of {promised}."
            )));
        }
    }

    /// What is wrong, if anything is.
    pub(super) fn verdict(&self) -> Result<()> {
        let missing: Vec<&str> = self
            .vms
            .iter()
            .filter(|r| r.promised && r.started_ms.is_none())
            .map(|r| r.vm.as_str())
            .collect();
        if !missing.is_empty() {
            let what = format!(
                "{} did not come back elsewhere in the drill of {}{}",
                missing.join(", "),
                self.host,
                if self.interrupted {
                    ", which was interrupted"
                } else {
                    ""
                }
            );
            return Err(Failure::new(what)
                .remedy("`mainstay vms` shows where they are, and `mainstay explain vm ID` what they waited for"));
        }
        if self.ended.is_none() {
            let what = format!("{} is not back from its drill", self.host);
            return Err(Failure::new(what).remedy(format_args!(
                "look at its agent's log; `mainstay drill {} --stop` calls it back",
                self.host
            )));
        }
        Ok(())
    }
}

/// A time in seconds with two digits, or that there is none.
fn at(ms: Option<u64>) -> String {
    ms.map_or_else(
        || String::from("-"),
        |ms| format!("{:.2} s", Duration::from_millis(ms).as_secs_f64()),
    )
}

impl Row {
    fn cells(&self, drilled: &HostId) -> Vec<Cell> {
        let (place, tone) = match (&self.host, self.thawed_ms) {
            (Some(host), _) => (host.to_string(), Tone::Good),
            (None, Some(_)) => (format!("{drilled}, as before"), Tone::Warn),
            (None, None) => (
                String::from("-"),
                if self.promised { Tone::Bad } else { Tone::Warn },
            ),
        };
        let late = self.asked_ms.zip(self.forecast_ms);
        let late = late.map(|(fact, forecast)| fact.saturating_sub(forecast));
        let forecast = match (&self.forecast_host, self.forecast_ms) {
            (Some(host), Some(ms)) => format!("{host}, asked for after {}", at(Some(ms))),
            _ => String::from("not restarted"),
        };
        vec![
            (&self.vm).into(),
            at(self.frozen_ms).into(),
            at(self.asked_ms).into(),
            at(self.broken_ms).into(),
            Cell::toned(at(self.started_ms.or(self.thawed_ms)), tone),
            Cell::toned(place, tone),
            forecast.into(),
            at(late).into(),
        ]
    }
}
