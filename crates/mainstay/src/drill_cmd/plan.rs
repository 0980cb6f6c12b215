//! A forecast, as people read it.

use crate::ui::{self, Cell, Table, Tone, line};
use mainstay_core::drill::{Forecast, Foreseen, Outcome};
use std::time::Duration;

fn seconds(ms: u64) -> String {
    ui::seconds(Duration::from_millis(ms))
}

/// The whole forecast.
pub(super) fn print(forecast: &Forecast) {
    let host = Tone::Strong.paint(&forecast.host);
    line(format_args!(
        "If {host} was lost now, as {}, the primary, foresees it (profile {}):",
        forecast.primary, forecast.profile
    ));
    line("");
    times(forecast);
    line("");
    vms(forecast);
    line("");
    room(forecast);
    if !forecast.weaknesses.is_empty() {
        line("");
        line(Tone::Warn.paint("weaker than it should be now"));
        for weakness in &forecast.weaknesses {
            line(format_args!("  - {weakness}"));
        }
    }
    line("");
    drill(forecast);
    line("");
    line(Tone::Dim.paint(
        "This is a forecast: it holds for the cluster as it is now, with every start succeeding, and leaves out how long guests take to start.",
    ));
}

/// What an admin who runs a drill should see once more.
pub(super) fn print_short(forecast: &Forecast) {
    vms(forecast);
    room(forecast);
}

fn times(forecast: &Forecast) {
    let row = |when: u64, what: String| line(format_args!("  {:>7}  {what}", seconds(when)));
    let at_latest = seconds(forecast.frozen_ms);
    let mut rows = vec![(
        forecast.lock_ms,
        String::from("its locks may be broken, when its heartbeats have stood still for so long"),
    )];
    match &forecast.successor {
        Some(next) => rows.push((
            forecast.elected_ms,
            format!(
                "{} is the primary and gone: {next} is elected",
                forecast.host
            ),
        )),
        None if forecast.host == forecast.primary => rows.push((
            forecast.elected_ms,
            format!(
                "{} is the primary, and there is nobody to be elected",
                forecast.host
            ),
        )),
        None => {}
    }
    rows.push((
        forecast.verdict_ms,
        format!("{} is judged lost", forecast.host),
    ));
    rows.sort();
    line(format_args!(
        "  {at_latest:>7}  its VMs run no more, at the latest: their rights to run have ended"
    ));
    for (when, what) in rows {
        row(when, what);
    }
    line(Tone::Dim.paint(format_args!(
        "  from the loss on, at the earliest; at most {} later",
        seconds(forecast.later_by_ms)
    )));
}

fn vms(forecast: &Forecast) {
    if forecast.vms.is_empty() {
        line(format_args!("No VM is on {}.", forecast.host));
        return;
    }
    let waves = forecast
        .vms
        .iter()
        .any(|v| matches!(v.outcome, Outcome::Restarted { wave, .. } if wave > 1));
    let mut table = Table::new(&["", "VM", "restarted on", "asked for after", "why"]);
    for (n, foreseen) in forecast.vms.iter().enumerate() {
        table.row(row(n + 1, foreseen, waves));
    }
    if ui::room_for_sentences() {
        table.print();
    } else {
        table.without_last().print();
        let stays = |v: &&Foreseen| !matches!(v.outcome, Outcome::Restarted { .. });
        for foreseen in forecast.vms.iter().filter(stays) {
            if let Outcome::Left { why } | Outcome::Stuck { why } = &foreseen.outcome {
                line(Tone::Dim.paint(format_args!("{}: {why}", foreseen.vm)));
            }
        }
    }
}

fn row(place: usize, foreseen: &Foreseen, waves: bool) -> Vec<Cell> {
    let vm = foreseen.vm.to_string();
    match &foreseen.outcome {
        Outcome::Restarted {
            host,
            asked_ms,
            wave,
            why,
        } => {
            let after = match wave {
                1 => seconds(*asked_ms),
                _ => format!("{} and starts before it", seconds(*asked_ms)),
            };
            let after = if waves {
                format!("{after} (wave {wave})")
            } else {
                after
            };
            vec![
                place.into(),
                vm.into(),
                Cell::toned(host, Tone::Good),
                after.into(),
                Cell::toned(short(why), Tone::Dim),
            ]
        }
        Outcome::Left { why } => {
            let nowhere = Cell::toned("left as it is", Tone::Warn);
            let why = Cell::toned(why, Tone::Dim);
            vec!["-".into(), vm.into(), nowhere, "-".into(), why]
        }
        Outcome::Stuck { why } => {
            let nowhere = Cell::toned("nowhere", Tone::Bad);
            let why = Cell::toned(why, Tone::Bad);
            vec!["-".into(), vm.into(), nowhere, "-".into(), why]
        }
    }
}

/// Why that host, without the proof that a forecast only supposes.
fn short(why: &str) -> &str {
    why.split_once("; ").map_or(why, |(_, rest)| rest)
}

fn count(forecast: &Forecast, which: impl Fn(&Outcome) -> bool) -> usize {
    forecast.vms.iter().filter(|v| which(&v.outcome)).count()
}

fn room(forecast: &Forecast) {
    let back = count(forecast, |o| matches!(o, Outcome::Restarted { .. }));
    let left = count(forecast, |o| matches!(o, Outcome::Left { .. }));
    let stuck = count(forecast, |o| matches!(o, Outcome::Stuck { .. }));
    if forecast.vms.is_empty() {
        return;
    }
    if forecast.all_come_back {
        line(Tone::Good.paint(format_args!(
            "The other hosts have room for all that should come back: {back} of {} VMs.",
            forecast.vms.len()
        )));
    } else {
        line(Tone::Bad.paint(format_args!(
            "{stuck} of {} VMs would not come back.",
            forecast.vms.len()
        )));
    }
    if left > 0 {
        line(Tone::Warn.paint(format_args!(
            "{left} would be left as they are, because nobody means them to be restarted."
        )));
    }
}

fn drill(forecast: &Forecast) {
    let host = &forecast.host;
    match forecast.obstacles.as_slice() {
        [] => line(format_args!(
            "A drill (`mainstay drill {host} --run`) would let its agent fall silent for {} at the longest and interrupt {} VMs.",
            seconds(forecast.time_ms),
            forecast.vms.len()
        )),
        obstacles => {
            line(Tone::Warn.paint("A drill would be refused now:"));
            for obstacle in obstacles {
                let how = if obstacle.may_insist {
                    " (or --force)"
                } else {
                    ""
                };
                line(format_args!("  - {}{how}", obstacle.why));
            }
        }
    }
    line(Tone::Dim.paint(format_args!(
        "In a drill {host} still answers pings: it is called agent unreachable, not dead. Nothing is taken over then on datastores that do not refuse late writes. Where they lock images, a VM starts one or two heartbeats later than here."
    )));
}
