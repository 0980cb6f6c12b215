//! The process tables of all hosts together: which instances of which VM exist, and which of them execute.

use crate::cluster::Cluster;
use mainstay_hypervisor::Seen;
use mainstay_sim::VmFacts;
use std::collections::{BTreeMap, BTreeSet};

/// An instance of a VM.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) host: usize,
    pub(super) seen: Seen,
    /// It executes guest instructions as far as this look can tell.
    pub(super) executes: bool,
}

/// One look at all of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    vms: BTreeMap<String, Vec<Instance>>,
}

impl Table {
    /// Looks now. What is seen of two hosts was so at two moments.
    pub(super) fn look(cluster: &Cluster) -> Self {
        let mut vms: BTreeMap<String, Vec<Instance>> = BTreeMap::new();
        for (host, it) in cluster.hosts().iter().enumerate() {
            for seen in cluster.guests(host) {
                let executes = it.is_up() && seen.executes();
                let instance = Instance {
                    host,
                    executes,
                    seen,
                };
                vms.entry(instance.seen.vm.clone())
                    .or_default()
                    .push(instance);
            }
        }
        Self { vms }
    }

    pub(super) fn of(&self, vm: &str) -> &[Instance] {
        self.vms.get(vm).map(Vec::as_slice).unwrap_or_default()
    }

    /// All VMs with an instance.
    pub(super) fn vms(&self) -> impl Iterator<Item = (&String, &Vec<Instance>)> {
        self.vms.iter()
    }

    pub(super) fn facts(&self, vm: &str) -> VmFacts {
        let all = self.of(vm);
        VmFacts {
            running: all.iter().filter(|i| i.executes).map(|i| i.host).collect(),
            frozen: all.iter().filter(|i| !i.executes && i.seen.resumed).count(),
            instances: all.len(),
        }
    }
}

/// VMs of which two instances execute at one moment: the second was seen to execute between two looks at
/// which the first did. Those at `late` hosts do not count.
pub(super) fn doubles(first: &Table, second: &Table, late: &BTreeSet<usize>) -> Vec<String> {
    let still = |vm: &str, instance: &Instance| {
        let same = |other: &&Instance| {
            other.host == instance.host && other.seen.process == instance.seen.process
        };
        second.of(vm).iter().find(same).is_some_and(|o| o.executes)
    };
    let many = |(vm, all): (&String, &Vec<Instance>)| {
        let counts = |i: &&Instance| i.executes && !late.contains(&i.host) && still(vm, i);
        let run: Vec<&Instance> = all.iter().filter(counts).collect();
        let said =
            |i: &&Instance| format!("host {} (generation {})", i.host + 1, i.seen.generation);
        let list: Vec<String> = run.iter().map(said).collect();
        (run.len() > 1).then(|| format!("{vm} runs on {}", list.join(" and ")))
    };
    first.vms().filter_map(many).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_hypervisor::Process;

    /// What was seen of vm-1 at these hosts, and whether it executed there.
    fn table(seen: &[(usize, bool)]) -> Table {
        let instance = |(host, executes): &(usize, bool)| Instance {
            host: *host,
            executes: *executes,
            seen: Seen {
                vm: "vm-1".to_owned(),
                generation: *host as u64,
                driver: "embedded".to_owned(),
                process: Process {
                    pid: 100 + i32::try_from(*host).expect("a few hosts"),
                    start_time: 1,
                    cgroup: None,
                },
                resumed: true,
            },
        };
        let all = seen.iter().map(instance).collect();
        Table {
            vms: [("vm-1".to_owned(), all)].into(),
        }
    }

    #[test]
    fn two_that_execute_between_two_looks_are_one_too_many() {
        let (both, none) = (table(&[(0, true), (1, true)]), BTreeSet::new());
        assert_eq!(
            doubles(&both, &both, &none),
            ["vm-1 runs on host 1 (generation 0) and host 2 (generation 1)"]
        );
        for other in [[(0, true), (1, false)], [(0, false), (1, true)]] {
            let other = table(&other);
            assert!(doubles(&both, &other, &none).is_empty());
            assert!(doubles(&other, &both, &none).is_empty());
        }
    }

    #[test]
    fn what_runs_before_its_guard_has_had_its_time_does_not_count() {
        let both = table(&[(0, true), (1, true)]);
        assert!(doubles(&both, &both, &[1].into()).is_empty());
        assert!(!doubles(&both, &both, &[2].into()).is_empty());
    }
}
