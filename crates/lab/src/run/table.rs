//! The process tables of all hosts together: which instances of which VM exist, and which of them execute.

use crate::cluster::Cluster;
use mainstay_hypervisor::Seen;
use mainstay_sim::VmFacts;
use std::collections::BTreeMap;

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
                let executes = it.is_up() && seen.resumed && !seen.is_frozen();
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
/// which the first did.
pub(super) fn doubles(first: &Table, second: &Table) -> Vec<String> {
    let still = |vm: &str, instance: &Instance| {
        let same = |other: &&Instance| {
            other.host == instance.host && other.seen.process == instance.seen.process
        };
        second.of(vm).iter().find(same).is_some_and(|o| o.executes)
    };
    let many = |(vm, all): (&String, &Vec<Instance>)| {
        let run: Vec<&Instance> = all.iter().filter(|i| i.executes && still(vm, i)).collect();
        let said =
            |i: &&Instance| format!("host {} (generation {})", i.host + 1, i.seen.generation);
        let list: Vec<String> = run.iter().map(said).collect();
        (run.len() > 1).then(|| format!("{vm} runs on {}", list.join(" and ")))
    };
    first.vms().filter_map(many).collect()
}
