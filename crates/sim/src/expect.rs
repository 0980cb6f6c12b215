//! What a scenario expects, and whether it came true.

use crate::clock::{MS, Nanos, SECOND};
use crate::trace::Entry;
use serde_json::{Map, Value};

/// How a VM must stand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Want {
    /// An unfrozen instance runs on one of these hosts.
    RunningOn(Vec<usize>),
    /// An unfrozen instance runs.
    Running,
    /// An instance is frozen and none runs.
    Frozen,
    /// There is no instance.
    PoweredOff,
}

/// What is checked.
#[derive(Clone, PartialEq, Debug)]
pub enum Check {
    /// A VM's state at a moment.
    State {
        /// The moment.
        by: Nanos,
        /// The VM.
        vm: usize,
        /// The state.
        want: Want,
    },
    /// An event falls into a window.
    Event {
        /// The window; none: the whole run.
        between: Option<(Nanos, Nanos)>,
        /// Its kind.
        kind: String,
        /// Its fields.
        fields: Map<String, Value>,
    },
    /// No such event falls into a window.
    Never {
        /// The window; none: the whole run.
        between: Option<(Nanos, Nanos)>,
        /// Its kind.
        kind: String,
        /// Its fields.
        fields: Map<String, Value>,
    },
}

/// An expectation.
#[derive(Clone, PartialEq, Debug)]
pub struct Expect {
    /// As people read it.
    pub text: String,
    /// What is checked.
    pub check: Check,
}

/// What became of an expectation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// The expectation.
    pub text: String,
    /// It holds.
    pub pass: bool,
    /// When it first became true, or was first broken, counted from zero.
    pub at: Option<i64>,
}

/// How the instances of a VM stand at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VmFacts {
    /// Hosts with an unfrozen instance.
    pub running: Vec<usize>,
    /// Instances that are frozen.
    pub frozen: usize,
    /// All instances.
    pub instances: usize,
}

impl Want {
    /// Whether the instances stand like this.
    #[must_use]
    pub fn holds(&self, facts: &VmFacts) -> bool {
        match self {
            Self::RunningOn(hosts) => facts.running.iter().any(|h| hosts.contains(h)),
            Self::Running => !facts.running.is_empty(),
            Self::Frozen => facts.running.is_empty() && facts.frozen > 0,
            Self::PoweredOff => facts.instances == 0,
        }
    }
}

/// Follows the state expectations while a run goes on.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    first: Vec<Option<Nanos>>,
    at_moment: Vec<Option<bool>>,
}

impl Watch {
    /// Nothing has come true yet.
    #[must_use]
    pub fn new(expects: &[Expect]) -> Self {
        Self {
            first: vec![None; expects.len()],
            at_moment: vec![None; expects.len()],
        }
    }

    /// The instances of `vm` stand like this from `t` (counted from zero) on.
    pub fn changed(&mut self, expects: &[Expect], vm: usize, t: Nanos, facts: &VmFacts) {
        for (expect, first) in expects.iter().zip(&mut self.first) {
            if let Check::State {
                vm: about, want, ..
            } = &expect.check
                && *about == vm
                && first.is_none()
                && want.holds(facts)
            {
                *first = Some(t);
            }
        }
    }

    /// The moment of expectation `index` has come.
    pub fn moment(&mut self, expects: &[Expect], index: usize, facts: &VmFacts) {
        if let (
            Some(Expect {
                check: Check::State { want, .. },
                ..
            }),
            Some(slot),
        ) = (expects.get(index), self.at_moment.get_mut(index))
        {
            *slot = Some(want.holds(facts));
        }
    }

    /// Everything that was expected, judged at the end of a run.
    #[must_use]
    pub fn judge(&self, expects: &[Expect], trace: &[Entry], zero: Nanos) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for (i, expect) in expects.iter().enumerate() {
            let (pass, at) = match &expect.check {
                Check::State { .. } => {
                    let pass = self.at_moment.get(i).copied().flatten() == Some(true);
                    (pass, self.first.get(i).copied().flatten().map(signed))
                }
                Check::Event {
                    between,
                    kind,
                    fields,
                } => {
                    let at = find(trace, zero, *between, kind, fields);
                    (at.is_some(), at)
                }
                Check::Never {
                    between,
                    kind,
                    fields,
                } => {
                    let at = find(trace, zero, *between, kind, fields);
                    (at.is_none(), at)
                }
            };
            verdicts.push(Verdict {
                text: expect.text.clone(),
                pass,
                at,
            });
        }
        verdicts
    }
}

fn signed(t: Nanos) -> i64 {
    i64::try_from(t).unwrap_or(i64::MAX)
}

fn find(
    trace: &[Entry],
    zero: Nanos,
    between: Option<(Nanos, Nanos)>,
    kind: &str,
    fields: &Map<String, Value>,
) -> Option<i64> {
    let (low, high) = between.unwrap_or((0, Nanos::MAX));
    trace.iter().find_map(|entry| {
        let t = signed(entry.at) - signed(zero);
        if t < signed(low) || t > signed(high) {
            return None;
        }
        let mut found = entry.fields();
        found.insert("why".into(), Value::from(entry.why.as_str()));
        let same = |key: &str, want: &Value| found.get(key).is_some_and(|have| alike(have, want));
        let fits = found.get("kind").and_then(Value::as_str) == Some(kind)
            && fields.iter().all(|(key, want)| same(key, want));
        fits.then_some(t)
    })
}

/// Texts fit when they are equal or, for sentences, when the wanted one is part of it.
fn alike(have: &Value, want: &Value) -> bool {
    match (have, want) {
        (Value::String(have), Value::String(want)) => {
            have == want || (have.contains(' ') && have.contains(want.as_str()))
        }
        _ => have == want,
    }
}

/// A time as people read it: `mm:ss.mmm`, with a sign before zero.
#[must_use]
pub fn clock_text(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let t = nanos.unsigned_abs();
    format!(
        "{sign}{:02}:{:02}.{:03}",
        t / (60 * SECOND),
        t / SECOND % 60,
        t / MS % 1000
    )
}
