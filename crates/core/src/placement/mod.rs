//! Where a VM is restarted: pure functions over a view of the cluster.
//!
//! [`plan`] chooses, `check` audits any plan without knowing how it was made, and each refusal says
//! why that host was not taken. Mandatory rules are never broken; among hosts that fit, one that failed
//! least often to start the VM is taken, and among those the one with the greatest share of memory left after the placement is taken, then the one with fewer VMs, so
//! that a lost host's VMs are spread.

use crate::config::{Rule, RuleKind, VmSpec};
use crate::id::{DatastoreId, HostId, VmId};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// A host that VMs may be placed on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Room {
    /// Processor capacity and use, in MHz.
    pub(crate) cpu_mhz: (u64, u64),
    /// Memory capacity and use, in MiB.
    pub(crate) memory_mb: (u64, u64),
    /// Datastores that it can use.
    pub(crate) datastores: BTreeSet<DatastoreId>,
    /// How many VMs are on it, those that are being started included.
    pub(crate) count: usize,
    /// Those of them that rules name, and those that are being started.
    pub(crate) vms: BTreeSet<VmId>,
    /// Starts under way there.
    pub(crate) starting: u32,
    /// Starts that may be under way there.
    pub(crate) starts_at_once: u32,
}

impl Room {
    /// As many starts are under way there as may be.
    fn busy(&self) -> Option<String> {
        (self.starting >= self.starts_at_once).then(|| {
            format!(
                "{} starts are under way there, as many as concurrent_restarts_per_host allows",
                self.starting
            )
        })
    }

    /// It cannot use the datastore.
    fn lacks(&self, datastore: &DatastoreId) -> Option<String> {
        (!self.datastores.contains(datastore)).then(|| format!("it cannot use {datastore} now"))
    }

    /// A VM is started there.
    pub(crate) fn take(&mut self, vm: &VmSpec) {
        self.cpu_mhz.1 = self.cpu_mhz.1.saturating_add(vm.cpu_mhz);
        self.memory_mb.1 = self.memory_mb.1.saturating_add(vm.memory_mb);
        self.count = self.count.saturating_add(1);
        self.vms.insert(vm.id.clone());
    }
}

/// The cluster as placement sees it: hosts that are connected and fit for starts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct View {
    pub(crate) hosts: BTreeMap<HostId, Room>,
    /// VMs that rules name, and that run on hosts which take no starts.
    pub(crate) elsewhere: BTreeSet<VmId>,
    /// VMs that waited for a host: they go there unless there is no room for them. True: what keeps it
    /// from taking them may pass, and is waited for.
    pub(crate) home: BTreeMap<VmId, (HostId, bool)>,
    /// How often a host could not start a VM since it was lost.
    pub(crate) failures: BTreeMap<(VmId, HostId), u32>,
}

/// What became of one VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Choice {
    /// It goes there; and why not to the others.
    Host(HostId, Vec<String>),
    /// No host fits; why, host by host.
    Nowhere(Vec<String>),
}

/// How well a host suits, best first: few failed starts, the one that the VM waited for, no wish broken,
/// much memory left, few VMs.
type Standing = (u32, bool, bool, core::cmp::Reverse<u64>, usize);

/// Chooses a host for each VM, in the given order; each placement counts for the next.
pub(crate) fn plan(view: &View, rules: &[Rule], vms: &[VmSpec]) -> Vec<(VmId, Choice)> {
    let mut view = view.clone();
    let mut choices = Vec::new();
    for vm in vms {
        let home = view.home.get(&vm.id).map(|(home, _)| home);
        if let Some(why) = waits_for_home(&view, vm) {
            choices.push((vm.id.clone(), Choice::Nowhere(vec![why])));
            continue;
        }
        let mut refusals = Vec::new();
        let mut best: Option<(Standing, HostId)> = None;
        for (host, room) in &view.hosts {
            match fits(&view, host, room, rules, vm) {
                Err(why) => refusals.push(format!("{host}: {why}")),
                Ok(wishes_broken) => {
                    // More may be in use than there is: nothing is left then.
                    let (capacity, used) = room.memory_mb;
                    let left = capacity.saturating_sub(used.saturating_add(vm.memory_mb));
                    let share = left.saturating_mul(1000) / room.memory_mb.0.max(1);
                    let failures = view.failures.get(&(vm.id.clone(), host.clone()));
                    let rank = (
                        failures.copied().unwrap_or(0),
                        home.is_some_and(|h| h != host),
                        wishes_broken,
                        core::cmp::Reverse(share),
                        room.count,
                    );
                    if best.as_ref().is_none_or(|(r, _)| rank < *r) {
                        best = Some((rank, host.clone()));
                    }
                }
            }
        }
        match best {
            None => choices.push((vm.id.clone(), Choice::Nowhere(refusals))),
            Some((_, host)) => {
                if let Some(room) = view.hosts.get_mut(&host) {
                    room.take(vm);
                    room.starting += 1;
                }
                choices.push((vm.id.clone(), Choice::Host(host, refusals)));
            }
        }
    }
    choices
}

/// Why a VM waits for its host to be ready, instead of going elsewhere.
fn waits_for_home(view: &View, vm: &VmSpec) -> Option<String> {
    let (home, true) = view.home.get(&vm.id)? else {
        return None;
    };
    let why = match view.hosts.get(home) {
        None => Some(String::from("it takes no starts yet")),
        Some(room) => room.busy().or_else(|| room.lacks(&vm.datastore)),
    };
    Some(format!("{home}: {}", why?))
}

/// Can the VM go there? True in the answer: only by breaking a wish (a rule that is not mandatory).
fn fits(
    view: &View,
    host: &HostId,
    room: &Room,
    rules: &[Rule],
    vm: &VmSpec,
) -> Result<bool, String> {
    if let Some(why) = room.busy().or_else(|| room.lacks(&vm.datastore)) {
        return Err(why);
    }
    let free = |(capacity, used): (u64, u64)| capacity.saturating_sub(used);
    if free(room.memory_mb) < vm.memory_mb {
        return Err(format!(
            "{} MiB are free, {} are needed",
            free(room.memory_mb),
            vm.memory_mb
        ));
    }
    if free(room.cpu_mhz) < vm.cpu_mhz {
        return Err(format!(
            "{} MHz are free, {} are needed",
            free(room.cpu_mhz),
            vm.cpu_mhz
        ));
    }
    let mut wishes_broken = false;
    for rule in rules.iter().filter(|r| r.vms.contains(&vm.id)) {
        if let Some(why) = breaks(view, host, room, rule, &vm.id) {
            if rule.mandatory {
                return Err(why);
            }
            wishes_broken = true;
        }
    }
    Ok(wishes_broken)
}

fn breaks(view: &View, host: &HostId, room: &Room, rule: &Rule, vm: &VmId) -> Option<String> {
    let others = || rule.vms.iter().filter(|v| *v != vm);
    match rule.kind {
        RuleKind::AntiAffinity => others()
            .find(|v| room.vms.contains(*v))
            .map(|v| format!("{v} is there, and a rule keeps them apart")),
        RuleKind::Affinity => others()
            .find(|v| {
                let runs = |r: &Room| r.vms.contains(*v);
                let apart = view.elsewhere.contains(*v) || view.hosts.values().any(runs);
                !runs(room) && apart
            })
            .map(|v| format!("{v} is elsewhere, and a rule keeps them together")),
        RuleKind::HostAffinity => {
            (!rule.hosts.contains(host)).then(|| String::from("a rule names other hosts for it"))
        }
        RuleKind::HostAntiAffinity => rule
            .hosts
            .contains(host)
            .then(|| String::from("a rule keeps it off this host")),
    }
}

/// Audits a plan: what it breaks, whoever made it.
#[cfg(test)]
fn check(view: &View, rules: &[Rule], vms: &[VmSpec], choices: &[(VmId, Choice)]) -> Vec<String> {
    let mut findings = Vec::new();
    let mut view = view.clone();
    for (id, choice) in choices {
        let Choice::Host(host, _) = choice else {
            continue;
        };
        let (Some(vm), Some(room)) = (
            vms.iter().find(|v| v.id == *id),
            view.hosts.get(host).cloned(),
        ) else {
            findings.push(format!(
                "{id} is placed on {host}, which is not in the view"
            ));
            continue;
        };
        if let Err(why) = fits(&view, host, &room, rules, vm) {
            findings.push(format!("{id} on {host}: {why}"));
        }
        if let Some(room) = view.hosts.get_mut(host) {
            room.take(vm);
            room.starting += 1;
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(n: u8) -> HostId {
        HostId::new(&format!("host-{n}")).expect("id")
    }

    fn vm_id(n: u8) -> VmId {
        VmId::new(&format!("vm-{n}")).expect("id")
    }

    fn ds(n: u8) -> DatastoreId {
        DatastoreId::new(&format!("ds-{n}")).expect("id")
    }

    fn spec(n: u8, memory_mb: u64) -> VmSpec {
        VmSpec {
            id: vm_id(n),
            datastore: ds(1),
            cpu_mhz: 100,
            memory_mb,
            restart_priority: crate::config::RestartPriority::Medium,
            isolation_response: None,
            depends_on: Vec::new(),
            guest_agent: true,
        }
    }

    fn room(memory_mb: u64, used: u64) -> Room {
        Room {
            cpu_mhz: (10_000, 0),
            memory_mb: (memory_mb, used),
            datastores: [ds(1)].into(),
            count: 0,
            vms: BTreeSet::new(),
            starting: 0,
            starts_at_once: 32,
        }
    }

    fn view(rooms: &[(u8, Room)]) -> View {
        View {
            hosts: rooms.iter().map(|(n, r)| (host(*n), r.clone())).collect(),
            ..View::default()
        }
    }

    fn placed(choices: &[(VmId, Choice)]) -> Vec<Option<HostId>> {
        choices
            .iter()
            .map(|(_, c)| match c {
                Choice::Host(h, _) => Some(h.clone()),
                Choice::Nowhere(_) => None,
            })
            .collect()
    }

    #[test]
    fn host_that_could_not_start_a_vm_is_taken_only_after_the_others() {
        let mut view = view(&[(1, room(4000, 0)), (2, room(1000, 0)), (3, room(500, 0))]);
        let mut fail = |n, times| view.failures.insert((vm_id(7), host(n)), times);
        fail(1, 1);
        let first = placed(&plan(&view, &[], &[spec(7, 100), spec(8, 100)]));
        assert_eq!(first, [Some(host(2)), Some(host(1))]);
        let mut fail = |n, times| view.failures.insert((vm_id(7), host(n)), times);
        fail(2, 1);
        fail(3, 2);
        // All of them failed: the least often, and of those the one with the most room.
        assert_eq!(placed(&plan(&view, &[], &[spec(7, 100)])), [Some(host(1))]);
        view.home.insert(vm_id(7), (host(2), true));
        assert_eq!(placed(&plan(&view, &[], &[spec(7, 100)])), [Some(host(2))]);
    }

    #[test]
    fn vms_of_a_lost_host_are_spread() {
        let view = view(&[(1, room(1000, 0)), (2, room(1000, 0))]);
        let vms: Vec<VmSpec> = (0..4).map(|n| spec(n, 100)).collect();
        let hosts = placed(&plan(&view, &[], &vms));
        assert_eq!(hosts.iter().filter(|h| **h == Some(host(1))).count(), 2);
    }

    #[test]
    fn a_vm_that_waited_for_its_host_goes_there_unless_it_has_no_room_for_it() {
        let mut view = view(&[(1, room(1000, 0)), (2, room(9000, 0))]);
        view.home.insert(vm_id(1), (host(1), true));
        assert_eq!(placed(&plan(&view, &[], &[spec(1, 100)])), [Some(host(1))]);
        assert_eq!(placed(&plan(&view, &[], &[spec(1, 1100)])), [Some(host(2))]);
        // Starts that are under way there end soon; they are not waited for without end.
        view.hosts.get_mut(&host(1)).expect("there").starting = 32;
        assert_eq!(placed(&plan(&view, &[], &[spec(1, 100)])), [None]);
        view.home.insert(vm_id(1), (host(1), false));
        assert_eq!(placed(&plan(&view, &[], &[spec(1, 100)])), [Some(host(2))]);
        view.hosts.remove(&host(1));
        assert_eq!(placed(&plan(&view, &[], &[spec(1, 100)])), [Some(host(2))]);
    }

    #[test]
    fn a_host_with_more_in_use_than_it_has_is_full_and_comes_last() {
        let view = view(&[
            (1, room(1000, 1500)),
            (2, room(1000, 999)),
            (3, room(7, u64::MAX)),
        ]);
        assert_eq!(placed(&plan(&view, &[], &[spec(1, 1)])), [Some(host(2))]);
        assert_eq!(placed(&plan(&view, &[], &[spec(1, 0)])), [Some(host(2))]);
        assert_eq!(placed(&plan(&view, &[], &[spec(1, u64::MAX)])), [None]);
    }

    #[test]
    fn a_vm_that_fits_nowhere_is_told_why_host_by_host() {
        let view = view(&[(1, room(1000, 950))]);
        let choices = plan(&view, &[], &[spec(1, 100)]);
        assert_eq!(
            choices[0].1,
            Choice::Nowhere(alloc::vec![String::from(
                "host-1: 50 MiB are free, 100 are needed"
            )])
        );
    }

    #[test]
    fn a_mandatory_rule_is_kept_and_a_wish_is_kept_when_it_can_be() {
        let rule = |mandatory| Rule {
            kind: RuleKind::AntiAffinity,
            mandatory,
            vms: [vm_id(1), vm_id(2)].into(),
            hosts: BTreeSet::new(),
        };
        let one = view(&[(1, room(1000, 0))]);
        let vms = [spec(1, 100), spec(2, 100)];
        assert_eq!(
            placed(&plan(&one, &[rule(true)], &vms)),
            [Some(host(1)), None]
        );
        assert_eq!(
            placed(&plan(&one, &[rule(false)], &vms)),
            [Some(host(1)), Some(host(1))]
        );
        let two = view(&[(1, room(9000, 0)), (2, room(1000, 0))]);
        assert_eq!(
            placed(&plan(&two, &[rule(false)], &vms)),
            [Some(host(1)), Some(host(2))]
        );
    }

    proptest! {
        #[test]
        fn every_plan_passes_the_audit(
            rooms in proptest::collection::vec((100u64..2000, 0u64..1000), 1..5),
            sizes in proptest::collection::vec(1u64..600, 1..12),
            apart in proptest::collection::btree_set(0u8..12, 0..4),
        ) {
            let rooms: Vec<(u8, Room)> = rooms.iter().enumerate()
                .map(|(n, (m, u))| (u8::try_from(n).expect("small"), room(*m, (*u).min(*m)))).collect();
            let view = view(&rooms);
            let vms: Vec<VmSpec> = sizes.iter().enumerate()
                .map(|(n, m)| spec(u8::try_from(n).expect("small"), *m)).collect();
            let rules = [Rule {
                kind: RuleKind::AntiAffinity,
                mandatory: true,
                vms: apart.iter().map(|n| vm_id(*n)).collect(),
                hosts: BTreeSet::new(),
            }];
            let choices = plan(&view, &rules, &vms);
            prop_assert_eq!(check(&view, &rules, &vms, &choices), Vec::<String>::new());
        }
    }
}
