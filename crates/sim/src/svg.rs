//! A run as a picture: hosts as rows, VMs as bars, faults and verdicts marked.

use crate::clock::{Nanos, SECOND};
use crate::scenario::Scenario;
use crate::trace::{Body, Entry};
use crate::world::RunResult;
use mainstay_core::event::{EventKind, HostState};
use mainstay_core::id::{HostId, VmId};
use std::collections::BTreeMap;
use std::fmt::Write as _;

const LEFT: f64 = 120.0;
const WIDTH: f64 = 1200.0;
const RIGHT: f64 = 40.0;
const TOP: f64 = 64.0;
const BAR: f64 = 16.0;
const MARKS: f64 = 34.0;
const RUNNING: &str = "#2f7d4f";
const FROZEN: &str = "#7fb2d9";
const FAULT: &str = "#b3261e";
const VERDICT: &str = "#8a5a00";

/// A stretch of a VM's life on a host.
struct Bar {
    vm: VmId,
    from: Nanos,
    to: Nanos,
    frozen: bool,
}

/// A mark in a host's row.
struct Mark {
    at: Nanos,
    text: String,
    colour: &'static str,
}

#[derive(Default)]
struct Row {
    bars: Vec<Bar>,
    marks: Vec<Mark>,
}

struct Picture {
    rows: BTreeMap<HostId, Row>,
    everybody: Vec<Mark>,
    /// Where each VM runs: since when, and whether it is frozen.
    open: BTreeMap<(VmId, HostId), (Nanos, bool)>,
    zero: Nanos,
    end: Nanos,
}

impl Picture {
    fn close(&mut self, vm: &VmId, host: &HostId, at: Nanos) {
        if let Some((from, frozen)) = self.open.remove(&(vm.clone(), host.clone())) {
            let from = from.max(self.zero);
            if at > from {
                let row = self.rows.entry(host.clone()).or_default();
                row.bars.push(Bar {
                    vm: vm.clone(),
                    from,
                    to: at,
                    frozen,
                });
            }
        }
    }

    fn begin(&mut self, vm: &VmId, host: &HostId, at: Nanos, frozen: bool) {
        self.close(vm, host, at);
        self.open.insert((vm.clone(), host.clone()), (at, frozen));
    }

    fn mark(&mut self, host: &HostId, at: Nanos, text: String, colour: &'static str) {
        if at >= self.zero {
            self.rows
                .entry(host.clone())
                .or_default()
                .marks
                .push(Mark { at, text, colour });
        }
    }

    fn take(&mut self, entry: &Entry) {
        let at = entry.at;
        match &entry.body {
            Body::Event(EventKind::VmStarted { vm, host, .. }) => self.begin(vm, host, at, false),
            Body::Event(EventKind::VmFrozen { vm, host, .. }) => self.begin(vm, host, at, true),
            Body::Event(EventKind::VmThawed { vm, host, .. }) => self.begin(vm, host, at, false),
            Body::Event(EventKind::VmStopped { vm, host, .. }) => self.close(vm, host, at),
            Body::Event(EventKind::HostState { host, to, .. }) if *to != HostState::Live => {
                let verdict = serde_json::to_value(to).ok();
                let text = verdict
                    .and_then(|v| v.as_str().map(String::from))
                    .unwrap_or_default();
                self.mark(host, at, text, VERDICT);
            }
            Body::Event(EventKind::PrimaryElected { host }) => {
                self.mark(host, at, "primary".into(), "#444444");
            }
            Body::Fault { what, arguments } => {
                let host = arguments
                    .iter()
                    .find(|(k, _)| *k == "host")
                    .and_then(|(_, v)| v.as_str());
                let short = what.strip_prefix("host.").unwrap_or(what).to_string();
                match host.and_then(|h| HostId::new(h).ok()) {
                    Some(host) => self.mark(&host, at, short, FAULT),
                    None => self.everybody.push(Mark {
                        at,
                        text: (*what).into(),
                        colour: FAULT,
                    }),
                }
            }
            Body::Event(_) => {}
        }
    }

    fn x(&self, at: Nanos) -> f64 {
        let span = (self.end - self.zero).max(1) as f64;
        LEFT + (at.max(self.zero) - self.zero) as f64 / span * WIDTH
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Draws a run.
#[must_use]
pub fn timeline(scenario: &Scenario, result: &RunResult) -> String {
    let mut picture = Picture {
        rows: scenario
            .hosts
            .iter()
            .map(|h| (h.id.clone(), Row::default()))
            .collect(),
        everybody: Vec::new(),
        open: BTreeMap::new(),
        zero: result.zero,
        end: result.zero + result.virtual_time.max(SECOND),
    };
    for entry in &result.trace {
        picture.take(entry);
    }
    let open: Vec<(VmId, HostId)> = picture.open.keys().cloned().collect();
    for (vm, host) in open {
        let end = picture.end;
        picture.close(&vm, &host, end);
    }
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = draw(&picture, scenario, result, &mut out);
    out
}

fn draw(
    p: &Picture,
    scenario: &Scenario,
    result: &RunResult,
    out: &mut String,
) -> std::fmt::Result {
    let mut body = String::new();
    let mut y = TOP + MARKS;
    marks(p, &p.everybody, TOP + 12.0, &mut body)?;
    for setup in &scenario.hosts {
        let Some(row) = p.rows.get(&setup.id) else {
            continue;
        };
        let top = y;
        let mut lanes: Vec<&VmId> = row.bars.iter().map(|b| &b.vm).collect();
        lanes.sort();
        lanes.dedup();
        let height = MARKS + BAR * lanes.len().max(1) as f64 + 10.0;
        writeln!(
            body,
            "<line x1=\"0\" x2=\"{:.0}\" y1=\"{top:.1}\" y2=\"{top:.1}\" stroke=\"#cccccc\"/>\
             <text x=\"8\" y=\"{:.1}\" font-weight=\"bold\">{}</text>",
            LEFT + WIDTH + RIGHT,
            top + 20.0,
            escape(setup.id.as_str())
        )?;
        marks(p, &row.marks, top + 12.0, &mut body)?;
        for bar in &row.bars {
            let lane = lanes.iter().position(|l| **l == bar.vm).unwrap_or(0) as f64;
            let (x, end) = (p.x(bar.from), p.x(bar.to));
            let bar_y = top + MARKS + lane * BAR;
            let colour = if bar.frozen { FROZEN } else { RUNNING };
            let state = if bar.frozen { "frozen" } else { "running" };
            writeln!(
                body,
                "<rect x=\"{x:.1}\" y=\"{bar_y:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\" fill=\"{colour}\">\
                 <title>{} {state}</title></rect>",
                (end - x).max(1.5),
                BAR - 3.0,
                escape(bar.vm.as_str())
            )?;
            if end - x > 44.0 {
                let ink = if bar.frozen { "#10324a" } else { "#ffffff" };
                writeln!(
                    body,
                    "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10\" fill=\"{ink}\">{}{}</text>",
                    x + 4.0,
                    bar_y + 10.0,
                    escape(bar.vm.as_str()),
                    if bar.frozen { " frozen" } else { "" }
                )?;
            }
        }
        y += height;
    }
    let total = y + 30.0;
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0}\" height=\"{total:.0}\" viewBox=\"0 0 {0:.0} {total:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>",
        LEFT + WIDTH + RIGHT
    )?;
    let verdict = if result.pass() { "pass" } else { "FAIL" };
    writeln!(
        out,
        "<text x=\"8\" y=\"22\" font-size=\"16\" font-weight=\"bold\">{}</text>\
         <text x=\"8\" y=\"42\" fill=\"#555555\">seed {}, {}, {verdict}</text>",
        escape(&scenario.name),
        scenario.seed,
        scenario.config.settings.profile.name()
    )?;
    legend(out)?;
    axis(p, total, out)?;
    out.push_str(&body);
    writeln!(out, "</svg>")
}

fn legend(out: &mut String) -> std::fmt::Result {
    let mut x = LEFT + WIDTH - 330.0;
    for (colour, text) in [
        (RUNNING, "running"),
        (FROZEN, "frozen"),
        (FAULT, "fault"),
        (VERDICT, "verdict"),
    ] {
        writeln!(
            out,
            "<rect x=\"{x:.0}\" y=\"14\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{:.0}\" y=\"24\">{text}</text>",
            x + 17.0
        )?;
        x += 85.0;
    }
    Ok(())
}

/// Vertical lines at round times, at most a dozen.
fn axis(p: &Picture, bottom: f64, out: &mut String) -> std::fmt::Result {
    let seconds = (p.end - p.zero) / SECOND;
    let steps = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600, 7200];
    let step = steps
        .into_iter()
        .find(|s| seconds / s <= 12)
        .unwrap_or(14_400);
    let mut at = 0;
    while at <= seconds {
        let x = p.x(p.zero + at * SECOND);
        writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP:.0}\" y2=\"{:.0}\" stroke=\"#e6e6e6\"/>\
             <text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\" fill=\"#555555\">{}:{:02}</text>",
            bottom - 22.0,
            bottom - 8.0,
            at / 60,
            at % 60
        )?;
        at += step;
    }
    Ok(())
}

/// Marks side by side; one that would cover its neighbour goes to the second line.
fn marks(p: &Picture, marks: &[Mark], y: f64, out: &mut String) -> std::fmt::Result {
    let mut free = [0.0_f64; 2];
    for mark in marks {
        let x = p.x(mark.at);
        let width = mark.text.len() as f64 * 5.6 + 8.0;
        let line = free.iter().position(|f| x >= *f);
        let label_y = y + if line == Some(1) { 12.0 } else { 0.0 };
        writeln!(
            out,
            "<path d=\"M{x:.1} {:.1} l3.5 -6 h-7 z\" fill=\"{}\"><title>{} at {}</title></path>",
            y + 20.0,
            mark.colour,
            escape(&mark.text),
            crate::expect::clock_text(i64::try_from(mark.at.saturating_sub(p.zero)).unwrap_or(0))
        )?;
        // Without room for a word the triangle stays, with the word as its title.
        let Some(line) = line else { continue };
        if let Some(f) = free.get_mut(line) {
            *f = x + width;
        }
        writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{label_y:.1}\" font-size=\"10\" fill=\"{}\">{}</text>",
            x + 2.0,
            mark.colour,
            escape(&mark.text)
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_a_row_for_each_host_and_a_bar_for_each_stretch() {
        let text = "name = \"a <b>\"\nduration = \"60s\"\n[[datastore]]\nid = \"ds-1\"\n[[host]]\ncount = 3\n\
                    [[vm]]\nid = \"vm-1\"\nhost = \"host-1\"\n[[event]]\nat = \"20s\"\ndo = \"host.power_off\"\nhost = \"host-1\"\n";
        let scenario = crate::scenario::parse("x.toml", text).expect("sound");
        let svg = timeline(
            &scenario,
            &crate::world::run(&scenario, &Default::default()),
        );
        assert!(svg.contains("a &lt;b&gt;"), "names are escaped");
        assert_eq!(
            svg.matches("<title>vm-1 running</title>").count(),
            2,
            "on host-1 and elsewhere"
        );
        for text in ["host-1", "host-2", "host-3", "power_off", "dead"] {
            assert!(svg.contains(text), "{text}");
        }
    }
}
