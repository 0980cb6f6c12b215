//! Holds a run on real processes against the same scenario in the simulator: event by event, by what they say,
//! by their order and by their times.
//!
//! Two events are the same when their kind and all fields agree but those that count or explain
//! ([`LOOSE_FIELDS`]). The first such event of one run is held against the first of the other, and so on.

use mainstay_core::config::Timing;
use mainstay_core::event::EventKind;
use mainstay_core::time::Duration;
use mainstay_sim::{Body, Entry, RunResult, clock_text};
use serde_json::Value;
use std::collections::BTreeMap;

/// Fields that are not compared: they count what came before zero, or explain.
pub const LOOSE_FIELDS: [&str; 6] = ["generation", "attempt", "reason", "issue", "version", "why"];
/// Kinds that are not compared, and why.
pub const LOOSE_KINDS: [(&str, &str); 5] = [
    (
        "config.issue",
        "what is weaker on a machine (real-time rights, no watchdog) is not the scenario's",
    ),
    (
        "heartbeat.datastores",
        "which of equal datastores is chosen first depends on which is read first",
    ),
    (
        "host.vouched",
        "an owner helps against a heartbeat that is late, and on a busy machine more of them are",
    ),
    (
        "vm.restart.waiting",
        "whether there is something to wait for can hang on which of two answers comes first",
    ),
    ("fault", "what the scenario does is the same by definition"),
];

/// Beyond the heartbeats' phases: processes are started, disks answer, other work takes the processor.
const SLACK: Duration = Duration::from_millis(1000);
/// Waits between tries grow by a factor, so a difference at the first grows with the time since it: a tenth of that.
const GROWTH: i64 = 10;

/// How much later or earlier an event may come: the phase of a fault against the network heartbeat and against
/// the datastore heartbeat is another in each run, and timers count from those. To that a second is added for
/// what a real machine needs. It grows by a tenth of the time since the scenario's last event.
#[must_use]
pub fn tolerance(timing: &Timing) -> Duration {
    timing.network_heartbeat + timing.datastore_heartbeat + SLACK
}

/// The tolerance at a time: see [`tolerance`].
fn limit_at(base: i64, faults: &[i64], at: i64) -> i64 {
    let last = faults.iter().rev().find(|f| **f <= at).copied();
    base + (at - last.unwrap_or(0)).max(0) / GROWTH
}

/// A difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// The simulator has it, the lab does not.
    OnlySim {
        /// The event.
        event: String,
        /// When, in nanoseconds from zero.
        at: i64,
    },
    /// The lab has it, the simulator does not.
    OnlyLab {
        /// The event.
        event: String,
        /// When, in nanoseconds from zero.
        at: i64,
    },
    /// Both have it, too far apart.
    Time {
        /// The event.
        event: String,
        /// When in the simulator.
        sim: i64,
        /// When in the lab.
        lab: i64,
    },
    /// The simulator has the first long before the second, the lab has them the other way round.
    Order {
        /// The first in the simulator.
        first: String,
        /// The second in the simulator.
        second: String,
        /// By how much they lie apart in the simulator.
        sim: i64,
        /// By how much in the lab, the other way round.
        lab: i64,
    },
}

impl Difference {
    /// A word for its kind.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::OnlySim { .. } => "only in the simulator",
            Self::OnlyLab { .. } => "only in the lab",
            Self::Time { .. } => "another time",
            Self::Order { .. } => "another order",
        }
    }
}

fn seconds(nanos: i64) -> String {
    let ms = nanos / 1_000_000;
    format!("{}.{:03} s", ms / 1000, ms % 1000)
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = self.word();
        match self {
            Self::OnlySim { event, at } | Self::OnlyLab { event, at } => {
                write!(f, "{word:<22} {}  {event}", clock_text(*at))
            }
            Self::Time { event, sim, lab } => write!(
                f,
                "{word:<22} {} simulator, {} lab  {event}",
                clock_text(*sim),
                clock_text(*lab)
            ),
            Self::Order {
                first,
                second,
                sim,
                lab,
            } => write!(
                f,
                "{word:<22} {first} comes {} before {second} in the simulator, {} after it in the lab",
                seconds(*sim),
                seconds(*lab)
            ),
        }
    }
}

/// How two runs compare.
#[derive(Debug, Clone, Default)]
pub struct Agreement {
    /// Events that both have, within the tolerance.
    pub same: usize,
    /// The furthest that two of them lie apart.
    pub furthest: Duration,
    /// What differs, by time.
    pub differences: Vec<Difference>,
}

/// An event's words: its kind and the fields that are compared.
fn words(entry: &Entry) -> Option<String> {
    if !matches!(entry.body, Body::Event(_)) {
        return None;
    }
    let fields = entry.fields();
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let kind = fields.get("kind").map(text)?;
    if LOOSE_KINDS.iter().any(|(k, _)| *k == kind) {
        return None;
    }
    // Why a VM stopped is compared: it is what happened, not how it is explained.
    let compared = |key: &str| {
        key != "kind" && (!LOOSE_FIELDS.contains(&key) || (key == "reason" && kind == "vm.stopped"))
    };
    let mut said = kind.clone();
    for (key, value) in fields.iter().filter(|(k, _)| compared(k)) {
        said.push_str(&format!(" {key}={}", text(value)));
    }
    Some(said)
}

/// An event as it is compared.
#[derive(Debug, Clone)]
struct Said {
    at: i64,
    kind: EventKind,
    words: String,
}

/// The events of a run from zero on, without what passes at once: see [`Brevity`].
fn said(result: &RunResult, brevity: Brevity) -> Vec<Said> {
    let mut all: Vec<Said> = Vec::new();
    for entry in &result.trace {
        let at = entry.since(result.zero);
        let (Body::Event(kind), Some(words)) = (&entry.body, words(entry)) else {
            continue;
        };
        if at < 0 {
            continue;
        }
        let kind = kind.clone();
        if is_thaw_of_nothing(&all, &kind) {
            continue;
        }
        match brevity.passed_over(&all, at, &kind) {
            Some((index, merged)) => {
                let before = all.remove(index);
                if let Some(kind) = merged {
                    let body = Body::Event(kind.clone());
                    let why = String::new();
                    let entry = Entry { at: 0, body, why };
                    let words = self::words(&entry).unwrap_or_default();
                    let at = before.at;
                    all.insert(index, Said { at, kind, words });
                }
            }
            None => all.push(Said { at, kind, words }),
        }
    }
    all
}

/// A VM goes on of which nobody said that it was stopped.
fn is_thaw_of_nothing(before: &[Said], kind: &EventKind) -> bool {
    let EventKind::VmThawed { vm, host, .. } = kind else {
        return false;
    };
    let last = before.iter().rev().find_map(|e| match &e.kind {
        EventKind::VmFrozen { vm: v, host: h, .. } if (v, h) == (vm, host) => Some(true),
        EventKind::VmThawed { vm: v, host: h, .. } if (v, h) == (vm, host) => Some(false),
        _ => None,
    });
    last != Some(true)
}

/// What passes at once, in nanoseconds. Two signs of life of a host that comes back may come in either order, and
/// a verdict may lie between them; a planned swap of a lock stops its VM for milliseconds, or not at all.
#[derive(Debug, Clone, Copy)]
struct Brevity {
    verdict: i64,
    freeze: i64,
}

impl Brevity {
    fn of(timing: &Timing) -> Self {
        let nanos = |d: Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
        Self {
            verdict: nanos(3 * timing.network_heartbeat),
            freeze: nanos(timing.network_heartbeat),
        }
    }

    /// The earlier event that this one ends so soon that both are passed over, and what stands for the two.
    fn passed_over(
        self,
        before: &[Said],
        at: i64,
        kind: &EventKind,
    ) -> Option<(usize, Option<EventKind>)> {
        let (index, earlier) =
            before
                .iter()
                .enumerate()
                .rev()
                .find(|(_, e)| match (&e.kind, kind) {
                    (
                        EventKind::HostState { observer, host, .. },
                        EventKind::HostState {
                            observer: o,
                            host: h,
                            ..
                        },
                    ) => (observer, host) == (o, h),
                    (
                        EventKind::VmFrozen { vm, host, .. },
                        EventKind::VmThawed { vm: v, host: h, .. },
                    ) => (vm, host) == (v, h),
                    _ => false,
                })?;
        match (&earlier.kind, kind) {
            (
                EventKind::HostState { from, .. },
                EventKind::HostState {
                    observer, host, to, ..
                },
            ) if at - earlier.at <= self.verdict => {
                let merged = EventKind::HostState {
                    observer: observer.clone(),
                    host: host.clone(),
                    from: *from,
                    to: *to,
                };
                Some((index, (from != to).then_some(merged)))
            }
            (EventKind::VmFrozen { .. }, EventKind::VmThawed { .. })
                if at - earlier.at <= self.freeze =>
            {
                Some((index, None))
            }
            _ => None,
        }
    }
}

/// Times of each event from zero on, by its words.
fn by_words(result: &RunResult, brevity: Brevity) -> BTreeMap<String, Vec<i64>> {
    let mut all: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for said in said(result, brevity) {
        all.entry(said.words).or_default().push(said.at);
    }
    all
}

/// Compares two runs of one scenario.
#[must_use]
pub fn compare(sim: &RunResult, lab: &RunResult, timing: &Timing) -> Agreement {
    let brevity = Brevity::of(timing);
    let (ours, theirs) = (by_words(sim, brevity), by_words(lab, brevity));
    let limit = i64::try_from(tolerance(timing).as_nanos()).unwrap_or(i64::MAX);
    let is_fault = |e: &&Entry| matches!(e.body, Body::Fault { .. });
    let faults = sim.trace.iter().filter(is_fault);
    let faults: Vec<i64> = faults.map(|e| e.since(sim.zero)).collect();
    // Near the end one run may have what comes too late in the other.
    let end = i64::try_from(sim.virtual_time).unwrap_or(i64::MAX) - limit;
    let mut agreement = Agreement::default();
    let mut both: Vec<(i64, i64, &String)> = Vec::new();
    let mut found: Vec<(i64, Difference)> = Vec::new();
    let none = Vec::new();
    let names = ours
        .keys()
        .chain(theirs.keys().filter(|k| !ours.contains_key(*k)));
    for event in names {
        let (a, b) = (
            ours.get(event).unwrap_or(&none),
            theirs.get(event).unwrap_or(&none),
        );
        for (sim, lab) in a.iter().zip(b) {
            both.push((*sim, *lab, event));
            let limit = limit_at(limit, &faults, *sim.min(lab));
            if sim.abs_diff(*lab) > limit.unsigned_abs() {
                let (event, sim, lab) = (event.clone(), *sim, *lab);
                found.push((sim, Difference::Time { event, sim, lab }));
            } else {
                agreement.same += 1;
                let apart = Duration::from_nanos(sim.abs_diff(*lab));
                agreement.furthest = agreement.furthest.max(apart);
            }
        }
        // Of something that is tried again and again, one run may have a try more before the scenario goes on.
        let cut_off = |at: i64| {
            let next = faults.iter().find(|f| **f > at);
            !a.is_empty()
                && !b.is_empty()
                && next.is_some_and(|f| f - at <= limit_at(limit, &faults, at))
        };
        for at in a
            .iter()
            .skip(b.len())
            .filter(|at| **at <= end && !cut_off(**at))
        {
            let (event, at) = (event.clone(), *at);
            found.push((at, Difference::OnlySim { event, at }));
        }
        for at in b
            .iter()
            .skip(a.len())
            .filter(|at| **at <= end && !cut_off(**at))
        {
            let (event, at) = (event.clone(), *at);
            found.push((at, Difference::OnlyLab { event, at }));
        }
    }
    found.extend(orders(&mut both, limit, &faults));
    found.sort_by_key(|(at, _)| *at);
    agreement.differences = found.into_iter().map(|(_, d)| d).collect();
    agreement
}

/// Events that lie further apart than the tolerance, the other way round in each run; of each event the nearest
/// such other one.
fn orders(both: &mut [(i64, i64, &String)], limit: i64, faults: &[i64]) -> Vec<(i64, Difference)> {
    both.sort();
    let mut found = Vec::new();
    for (index, (sim, lab, second)) in both.iter().enumerate() {
        let limit = limit_at(limit, faults, *sim.min(lab));
        let before = both.get(..index).unwrap_or_default().iter().rev();
        let turned = before
            .filter(|(s, l, _)| sim - s > limit && l - lab > limit)
            .map(|(s, l, first)| (*sim - s, l - *lab, *first))
            .next();
        if let Some((apart, turned, first)) = turned {
            let difference = Difference::Order {
                first: first.clone(),
                second: (*second).clone(),
                sim: apart,
                lab: turned,
            };
            found.push((*sim, difference));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_core::event::EventKind;
    use mainstay_core::id::HostId;

    fn run(events: &[(u64, &str)]) -> RunResult {
        let entry = |(ms, host): &(u64, &str)| Entry {
            at: 1_000_000_000 + ms * 1_000_000,
            body: Body::Event(EventKind::PrimaryElected {
                host: HostId::new(host).expect("id"),
            }),
            why: String::new(),
        };
        RunResult {
            trace: events.iter().map(entry).collect(),
            zero: 1_000_000_000,
            verdicts: Vec::new(),
            violations: Vec::new(),
            error: None,
            hosts: Vec::new(),
            virtual_time: 60_000_000_000,
            steps: 0,
        }
    }

    fn words_of(sim: &[(u64, &str)], lab: &[(u64, &str)]) -> Vec<&'static str> {
        let timing = Timing::of(mainstay_core::config::Profile::Fast);
        let found = compare(&run(sim), &run(lab), &timing);
        found.differences.iter().map(Difference::word).collect()
    }

    #[test]
    fn what_comes_a_little_later_agrees() {
        let sim = [(100, "host-1"), (2000, "host-2")];
        let lab = [(1500, "host-1"), (900, "host-2")];
        assert_eq!(words_of(&sim, &lab), Vec::<&str>::new());
    }

    #[test]
    fn what_is_missing_late_or_turned_round_is_said() {
        let sim = [(100, "host-1"), (5000, "host-2")];
        assert_eq!(
            words_of(&sim, &[(100, "host-1")]),
            ["only in the simulator"]
        );
        let more = [(100, "host-1"), (5000, "host-2"), (5001, "host-3")];
        assert_eq!(words_of(&sim, &more), ["only in the lab"]);
        assert_eq!(
            words_of(&sim, &[(100, "host-1"), (6910, "host-2")]),
            ["another time"]
        );
        let turned = words_of(&sim, &[(100, "host-2"), (5000, "host-1")]);
        assert_eq!(turned, ["another time", "another time", "another order"]);
    }

    #[test]
    fn what_comes_at_the_very_end_of_one_run_may_be_missing_in_the_other() {
        assert_eq!(words_of(&[(59_900, "host-1")], &[]), Vec::<&str>::new());
    }
}
