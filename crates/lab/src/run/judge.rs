//! What must never be, judged from outside: by the process tables and the disks, never by an agent's opinion.
//!
//! S1, S1b (by the disks), S3 and S4 on every look, L1 and L2 at the end of a run whose faults are over, L3 by
//! the count of restarts. The simulator judges more, because it sees more.

use super::table::{self, Table};
use crate::cluster::Cluster;
use mainstay_core::config::{HostSpec, Rule, RuleKind, VmSpec};
use mainstay_core::event::{Event, EventKind, StopReason};
use mainstay_core::id::{HostId, VmId};
use mainstay_core::time::Duration;
use mainstay_core::wire::RoleTag;
use mainstay_sim::{Scenario, Violation};
use std::collections::{BTreeMap, BTreeSet};

/// The sentence that each property defends.
const SENTENCES: [(&str, &str); 7] = [
    ("S1", "at no instant do two instances of one VM run"),
    (
        "S1b",
        "no write of a replaced generation lands, and no counter goes back",
    ),
    (
        "S3",
        "what its user or its guest switched off is not restarted",
    ),
    ("S4", "mandatory rules are never broken by a placement"),
    (
        "L1",
        "when faults are over, each connected group has one primary",
    ),
    (
        "L2",
        "when faults are over, every protected VM that should run and has room runs",
    ),
    ("L3", "nothing is restarted for ever"),
];

pub(super) fn violation(property: &'static str, at: Duration, what: String) -> Violation {
    let sentence = SENTENCES.iter().find(|(name, _)| *name == property);
    Violation {
        property,
        sentence: sentence.map_or("", |(_, s)| s),
        at: u64::try_from(at.as_nanos()).unwrap_or(u64::MAX),
        what,
    }
}

/// What is known of what should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Wanted {
    /// Its user or its guest wants it off.
    off: bool,
    /// It was seen to be gone since.
    gone: bool,
    /// Its guest was asked, and may be stopped by something else before it has shut down.
    guest: bool,
}

/// Judges a run as it goes on.
#[derive(Debug)]
pub(super) struct Judge {
    wanted: BTreeMap<VmId, Wanted>,
    /// How often a user asked for each VM to run, heard or not.
    asked_on: BTreeMap<usize, u64>,
    ids: Vec<VmId>,
    protected: BTreeSet<VmId>,
    abandoned: BTreeSet<VmId>,
    attempts: BTreeMap<VmId, u32>,
    requested: BTreeMap<VmId, HostId>,
    retries: u32,
    violations: Vec<Violation>,
    said: BTreeSet<(&'static str, String)>,
}

impl Judge {
    pub(super) fn new(scenario: &Scenario) -> Self {
        Self {
            wanted: BTreeMap::new(),
            asked_on: BTreeMap::new(),
            ids: scenario.vms.iter().map(|v| v.id.clone()).collect(),
            protected: BTreeSet::new(),
            abandoned: BTreeSet::new(),
            attempts: BTreeMap::new(),
            requested: BTreeMap::new(),
            retries: scenario.config.settings.max_restart_attempts,
            violations: Vec::new(),
            said: BTreeSet::new(),
        }
    }

    fn broken(&mut self, property: &'static str, at: u64, what: String) {
        // What goes on being wrong is said once.
        if self.said.insert((property, what.clone())) {
            self.violations
                .push(violation(property, Duration::from_nanos(at), what));
        }
    }

    /// A user asks for a VM to run: from now on it is no wonder if it does.
    pub(super) fn asks_on(&mut self, vm: usize) {
        *self.asked_on.entry(vm).or_default() += 1;
        self.set(vm, Wanted::default());
    }

    /// How often a user has asked for a VM to run: tells which of two wishes is the later one.
    pub(super) fn asked_on(&self, vm: usize) -> u64 {
        self.asked_on.get(&vm).copied().unwrap_or(0)
    }

    /// A user's wish was accepted that was uttered at this count of [`Judge::asked_on`]. One to switch off counts
    /// only when nobody has asked for the contrary since: which of the two an agent heard first is not known.
    pub(super) fn wished(&mut self, vm: usize, on: bool, asked_on: u64) {
        if on || asked_on == self.asked_on(vm) {
            let wanted = Wanted {
                off: !on,
                ..Wanted::default()
            };
            self.set(vm, wanted);
        }
    }

    /// A guest took the request to shut down; see [`Judge::wished`].
    pub(super) fn guest_shuts_down(&mut self, vm: usize, asked_on: u64) {
        if asked_on == self.asked_on(vm) {
            let wanted = Wanted {
                off: true,
                gone: false,
                guest: true,
            };
            self.set(vm, wanted);
        }
    }

    fn set(&mut self, vm: usize, wanted: Wanted) {
        if let Some(id) = self.ids.get(vm) {
            self.wanted.insert(id.clone(), wanted);
        }
    }

    /// An agent said something.
    pub(super) fn heard(&mut self, event: &Event, at: u64) {
        match &event.kind {
            EventKind::VmProtected { vm, .. } => {
                self.protected.insert(vm.clone());
                self.abandoned.remove(vm);
            }
            EventKind::VmUnprotected { vm, .. } => {
                self.protected.remove(vm);
            }
            EventKind::RestartRequested { vm, host, .. } => {
                self.requested.insert(vm.clone(), host.clone());
                let attempts = self.attempts.entry(vm.clone()).or_default();
                *attempts += 1;
                // Another primary begins to count anew, and a VM may be lost more than once.
                let most = (self.retries + 1).saturating_mul(4);
                if *attempts > most {
                    let what = format!("{vm} was asked to start {attempts} times");
                    self.broken("L3", at, what);
                }
            }
            EventKind::RestartAbandoned { vm, .. } => {
                self.abandoned.insert(vm.clone());
            }
            EventKind::VmStarted { vm, .. } => {
                self.attempts.remove(vm);
            }
            EventKind::VmStopped { vm, reason, .. } => self.stopped(vm, *reason),
            _ => {}
        }
    }

    /// Something else than what was wished for ended a VM first: then it is what its host knew of the wish, or its
    /// guest, by what reached the disk.
    fn stopped(&mut self, vm: &VmId, reason: StopReason) {
        let Some(wanted) = self.wanted.get_mut(vm).filter(|w| w.off) else {
            return;
        };
        let as_wished = matches!(reason, StopReason::Guest | StopReason::User);
        if (wanted.guest && !as_wished) || (reason == StopReason::Host && !wanted.gone) {
            wanted.off = false;
        }
    }

    /// The process tables were looked at twice. At `late` hosts a guard need not have stopped yet what lapsed.
    pub(super) fn looked(
        &mut self,
        scenario: &Scenario,
        (before, table): (&Table, &Table),
        late: &BTreeSet<usize>,
        at: u64,
    ) {
        for what in table::doubles(before, table, late) {
            self.broken("S1", at, what);
        }
        let mut restarted = Vec::new();
        for (vm, wanted) in &mut self.wanted {
            let exists = !table.of(vm.as_str()).is_empty();
            if wanted.off && wanted.gone && exists {
                restarted.push(vm.clone());
            }
            wanted.gone |= wanted.off && !exists;
        }
        for vm in restarted {
            let what = format!("{vm} was switched off and exists again");
            self.broken("S3", at, what);
        }
        for rule in scenario.config.rules.iter().filter(|r| r.mandatory) {
            if let Some(what) = self.breaks(scenario, rule, table) {
                self.broken("S4", at, what);
            }
        }
    }

    /// A placement of HA that breaks a rule; a user may put a VM anywhere.
    fn breaks(&self, scenario: &Scenario, rule: &Rule, table: &Table) -> Option<String> {
        let host_id = |h: usize| scenario.hosts.get(h).map(|h| &h.id);
        let on = |vm: &VmId| -> Vec<usize> { table.facts(vm.as_str()).running };
        let placed = |vm: &VmId, host: usize| {
            self.requested
                .get(vm)
                .is_some_and(|h| Some(h) == host_id(host))
        };
        for vm in &rule.vms {
            for host in on(vm).into_iter().filter(|h| placed(vm, *h)) {
                let Some(id) = host_id(host) else { continue };
                let together = rule
                    .vms
                    .iter()
                    .filter(|other| *other != vm)
                    .any(|other| on(other).contains(&host));
                let broken = match rule.kind {
                    RuleKind::AntiAffinity => together,
                    RuleKind::HostAffinity => !rule.hosts.contains(id),
                    RuleKind::HostAntiAffinity => rule.hosts.contains(id),
                    RuleKind::Affinity => false,
                };
                if broken {
                    return Some(format!(
                        "HA started {vm} on {id} against a {:?} rule",
                        rule.kind
                    ));
                }
            }
        }
        None
    }

    /// The run is over: liveness, where the scenario demands it.
    pub(super) fn end(&mut self, scenario: &Scenario, cluster: &Cluster, table: &Table, at: u64) {
        if !scenario.liveness {
            return;
        }
        let all = 0..scenario.hosts.len();
        let roles: Vec<(usize, RoleTag)> = all
            .filter(|h| {
                cluster
                    .hosts()
                    .get(*h)
                    .is_some_and(crate::cluster::Host::is_up)
            })
            .filter_map(|h| Some((h, cluster.client(h).ok()?.status().ok()?.role)))
            .collect();
        let primaries = roles.iter().filter(|(_, r)| *r == RoleTag::Primary).count();
        if primaries != 1 && !roles.is_empty() {
            self.broken("L1", at, format!("there are {primaries} primaries"));
        }
        let up: Vec<usize> = roles.iter().map(|(host, _)| *host).collect();
        let leads = |host: usize| roles.contains(&(host, RoleTag::Primary));
        for setup in &scenario.vms {
            let off = self.wanted.get(&setup.id).is_none_or(|w| w.off);
            let given_up = self.abandoned.contains(&setup.id);
            let protected = self.protected.contains(&setup.id);
            let runs = !table.facts(setup.id.as_str()).running.is_empty();
            // A primary owns only what it mounts.
            let owned = || {
                up.iter()
                    .any(|h| leads(*h) && mounts(scenario, &setup.id, *h))
            };
            let room = || up.iter().any(|h| has_room(scenario, table, &setup.id, *h));
            if !off && !given_up && protected && !runs && owned() && room() {
                let what = format!("{} does not run, and there is room", setup.id);
                self.broken("L2", at, what);
            }
        }
    }

    /// How much was broken so far.
    pub(super) fn broken_so_far(&self) -> usize {
        self.violations.len()
    }

    pub(super) fn violations(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.violations)
    }
}

fn spec_of<'a>(scenario: &'a Scenario, vm: &VmId) -> Option<&'a VmSpec> {
    let known = scenario.config.vms.get(vm);
    known.or_else(|| scenario.created.get(vm))
}

fn host_of(scenario: &Scenario, host: usize) -> Option<&HostSpec> {
    let setup = scenario.hosts.get(host)?;
    scenario.config.hosts.get(&setup.id)
}

/// Whether the host mounts the VM's home.
fn mounts(scenario: &Scenario, vm: &VmId, host: usize) -> bool {
    let both = spec_of(scenario, vm).zip(host_of(scenario, host));
    both.is_some_and(|(spec, host)| host.datastores.contains(&spec.datastore))
}

/// Whether the VM can be started on the host: its storage, its memory, what is mandatory.
fn has_room(scenario: &Scenario, table: &Table, vm: &VmId, host: usize) -> bool {
    let need = spec_of(scenario, vm).map_or(0, |spec| spec.memory_mb);
    let rules = scenario.config.rules.iter();
    mounts(scenario, vm, host)
        && free_memory(scenario, table, host) >= need
        && rules
            .filter(|rule| rule.mandatory && rule.vms.contains(vm))
            .all(|rule| allows(scenario, rule, table, (vm, host)))
}

fn allows(scenario: &Scenario, rule: &Rule, table: &Table, (vm, host): (&VmId, usize)) -> bool {
    let listed = || host_of(scenario, host).is_some_and(|h| rule.hosts.contains(&h.id));
    let others = rule.vms.iter().filter(|other| *other != vm);
    let at = |vm: &VmId| table.facts(vm.as_str()).running;
    match rule.kind {
        RuleKind::HostAffinity => listed(),
        RuleKind::HostAntiAffinity => !listed(),
        RuleKind::AntiAffinity => !others.map(at).any(|at| at.contains(&host)),
        RuleKind::Affinity => others.map(at).all(|at| at.iter().all(|h| *h == host)),
    }
}

/// Memory of a host that no VM has, in MiB.
pub(super) fn free_memory(scenario: &Scenario, table: &Table, host: usize) -> u64 {
    let here = |vm: &str| table.of(vm).iter().any(|i| i.host == host);
    let known = scenario.config.vms.values();
    let used: u64 = known
        .chain(scenario.created.values())
        .filter(|spec| here(spec.id.as_str()))
        .map(|spec| spec.memory_mb)
        .sum();
    let all = host_of(scenario, host).map_or(0, |h| h.memory_mb);
    all.saturating_sub(used)
}

#[cfg(test)]
mod tests;
