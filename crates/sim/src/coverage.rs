//! What a campaign reached: how often each event, verdict, reason and fault came up, held against
//! everything that the code can say. What was never reached is a defect of the campaign or of the code.
//!
//! The lists of what should be reached come from the enums themselves, so that a new value shows up
//! with a zero by itself. What cannot be reached in the simulator stands in a table of exceptions with
//! its reason; an exception that is reached all the same is a defect too, so that the table stays true.

mod exceptions;
mod names;
#[cfg(test)]
mod tests;

use crate::campaign::{self, Drawn};
use crate::scenario::EVENTS;
use crate::trace::Body;
use crate::world::RunResult;
use exceptions::exception;
use mainstay_core::event::{
    AbdicationCause, ElectionCause, EventKind, HostState, IssueCause, StopReason, WaitCause,
};
use mainstay_core::id::{HostId, VmId};
use names::{kinds_of, name_of, names_of};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Kinds of events that were reported.
    Event,
    /// Changes of a primary's verdict about a host, `from -> to`.
    Verdict,
    /// Reasons for which VMs stopped.
    Stop,
    /// Steps in the life of a VM on a host, `from -> to`.
    Vm,
    /// What restarts waited for.
    Waiting,
    /// Weaknesses that were reported.
    Issue,
    /// Why elections began.
    Election,
    /// Why primaries gave way.
    Abdication,
    /// Faults and wishes that were played.
    Fault,
    /// Kinds of faults that seeds were given.
    Kind,
    /// Patterns that were aimed.
    Aim,
}

impl Group {
    /// All groups, in the order of a report.
    pub const ALL: [Self; 11] = [
        Self::Event,
        Self::Verdict,
        Self::Stop,
        Self::Vm,
        Self::Waiting,
        Self::Issue,
        Self::Election,
        Self::Abdication,
        Self::Fault,
        Self::Kind,
        Self::Aim,
    ];

    /// Its name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Verdict => "verdict",
            Self::Stop => "stop",
            Self::Vm => "vm",
            Self::Waiting => "waiting",
            Self::Issue => "issue",
            Self::Election => "election",
            Self::Abdication => "abdication",
            Self::Fault => "fault",
            Self::Kind => "kind",
            Self::Aim => "aim",
        }
    }

    /// Everything of this group that the code knows.
    fn known(self) -> Vec<String> {
        let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        match self {
            Self::Event => own(kinds_of::<EventKind>()),
            Self::Verdict => steps(names_of::<HostState>()),
            Self::Stop => own(names_of::<StopReason>()),
            Self::Vm => own(&VM_STEPS),
            Self::Waiting => own(names_of::<WaitCause>()),
            Self::Issue => own(names_of::<IssueCause>()),
            Self::Election => own(names_of::<ElectionCause>()),
            Self::Abdication => own(names_of::<AbdicationCause>()),
            Self::Fault => {
                let playable = EVENTS.iter().filter(|event| event.playable);
                playable.map(|event| event.name.to_owned()).collect()
            }
            Self::Kind => campaign::kinds().map(str::to_owned).collect(),
            Self::Aim => campaign::patterns().map(str::to_owned).collect(),
        }
    }
}

/// Steps in the life of a VM on a host. `none -> stopped` is a start that was given up.
const VM_STEPS: [&str; 7] = [
    "none -> running",
    "none -> stopped",
    "running -> frozen",
    "running -> stopped",
    "frozen -> running",
    "frozen -> stopped",
    "stopped -> running",
];

/// Every step from one name to another.
fn steps(names: &[&str]) -> Vec<String> {
    let pairs = names
        .iter()
        .flat_map(|from| names.iter().map(move |to| (from, to)));
    pairs
        .filter(|(from, to)| from != to)
        .map(|(from, to)| format!("{from} -> {to}"))
        .collect()
}

/// How something stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Never reached: a defect.
    Missing,
    /// Reached, though the table of exceptions says that it cannot be, for this reason: a defect of the table.
    Unexpected(&'static str),
    /// Reached.
    Reached,
    /// Never reached, for this reason.
    Excepted(&'static str),
}

/// One line of a report.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// What is counted.
    pub group: Group,
    /// Of what.
    pub item: String,
    /// How often.
    pub count: u64,
    /// What that means.
    pub standing: Standing,
}

impl Row {
    /// A zero that should not be one, or the other way round.
    #[must_use]
    pub fn is_defect(&self) -> bool {
        matches!(self.standing, Standing::Missing | Standing::Unexpected(_))
    }
}

/// Counts of a run, or of many.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Coverage {
    counts: BTreeMap<Group, BTreeMap<String, u64>>,
}

impl Coverage {
    /// What one run reached.
    #[must_use]
    pub fn of(drawn: &Drawn, result: &RunResult) -> Self {
        let mut coverage = Self::default();
        for kind in &drawn.kinds {
            coverage.count(Group::Kind, kind, 1);
        }
        for (name, times) in &drawn.patterns {
            coverage.count(Group::Aim, name, *times);
        }
        let mut lives: BTreeMap<(&VmId, &HostId), &'static str> = BTreeMap::new();
        for entry in &result.trace {
            match &entry.body {
                Body::Fault { what, .. } => coverage.count(Group::Fault, what, 1),
                Body::Event(kind) => {
                    coverage.event(kind);
                    coverage.life(kind, &mut lives);
                }
            }
        }
        coverage
    }

    fn count(&mut self, group: Group, item: &str, times: u64) {
        let items = self.counts.entry(group).or_default();
        match items.get_mut(item) {
            Some(count) => *count += times,
            None => {
                items.insert(item.to_owned(), times);
            }
        }
    }

    fn event(&mut self, kind: &EventKind) {
        let (name, cause) = name_of(kind);
        self.count(Group::Event, &name, 1);
        if let Some((group, item)) = cause {
            self.count(group, &item, 1);
        }
    }

    /// The step that an event is in the life of a VM on a host.
    fn life<'a>(
        &mut self,
        kind: &'a EventKind,
        lives: &mut BTreeMap<(&'a VmId, &'a HostId), &'static str>,
    ) {
        let (vm, host, to) = match kind {
            EventKind::VmStarted { vm, host, .. } | EventKind::VmThawed { vm, host, .. } => {
                (vm, host, "running")
            }
            EventKind::VmFrozen { vm, host, .. } => (vm, host, "frozen"),
            EventKind::VmStopped { vm, host, .. } => (vm, host, "stopped"),
            _ => return,
        };
        let from = lives.insert((vm, host), to).unwrap_or("none");
        if from != to {
            self.count(Group::Vm, &format!("{from} -> {to}"), 1);
        }
    }

    /// Adds the counts of another run or campaign.
    pub fn add(&mut self, other: &Self) {
        for (group, items) in &other.counts {
            for (item, times) in items {
                self.count(*group, item, *times);
            }
        }
    }

    /// How often an item was reached.
    #[must_use]
    pub fn times(&self, group: Group, item: &str) -> u64 {
        let items = self.counts.get(&group);
        items
            .and_then(|items| items.get(item))
            .copied()
            .unwrap_or(0)
    }

    /// Everything that could be counted, defects first, then group by group in the code's order.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        for group in Group::ALL {
            let known = group.known();
            let also = self.counts.get(&group).into_iter().flatten();
            let also = also.map(|(item, _)| item).filter(|i| !known.contains(*i));
            let also: Vec<String> = also.cloned().collect();
            for item in known.into_iter().chain(also) {
                let count = self.times(group, &item);
                let standing = match (exception(group, &item), count) {
                    (None, 0) => Standing::Missing,
                    (None, _) => Standing::Reached,
                    (Some(why), 0) => Standing::Excepted(why),
                    (Some(why), _) => Standing::Unexpected(why),
                };
                rows.push(Row {
                    group,
                    item,
                    count,
                    standing,
                });
            }
        }
        rows.sort_by_key(|row| !row.is_defect());
        rows
    }

    /// The report as one JSON object: counts by group, and the defects by name.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let mut groups = serde_json::Map::new();
        let mut defects = Vec::new();
        let mut excepted = Vec::new();
        for row in self.rows() {
            let items = groups
                .entry(row.group.name())
                .or_insert_with(|| serde_json::json!({}));
            if let Some(items) = items.as_object_mut() {
                items.insert(row.item.clone(), row.count.into());
            }
            let named = |why: &str| serde_json::json!({"group": row.group.name(), "item": row.item, "why": why});
            match row.standing {
                Standing::Missing => defects.push(named("never reached")),
                Standing::Unexpected(why) => {
                    defects.push(named(&format!("reached, but excepted: {why}")));
                }
                Standing::Excepted(why) => excepted.push(named(why)),
                Standing::Reached => {}
            }
        }
        serde_json::json!({"counts": groups, "defects": defects, "excepted": excepted})
    }

    /// The report for people, defects first.
    #[must_use]
    pub fn people(&self) -> String {
        let rows = self.rows();
        let defects = rows.iter().filter(|row| row.is_defect()).count();
        let mut text = format!("coverage: {} things, {defects} defects\n", rows.len());
        for row in &rows {
            let (mark, why) = match row.standing {
                Standing::Missing => ("✗", "  never reached: a defect".to_owned()),
                Standing::Unexpected(why) => ("✗", format!("  reached, but excepted: {why}")),
                Standing::Reached => (" ", String::new()),
                Standing::Excepted(why) => ("-", format!("  {why}")),
            };
            let (group, item, count) = (row.group.name(), &row.item, row.count);
            text.push_str(&format!("{mark} {group:<10} {item:<34} {count:>9}{why}\n"));
        }
        text
    }
}
