//! Every process that a VM ever had, found by VM and by host without a look at all of them.

use super::guest::Instance;
use crate::arena::Arena;
use std::ops::{Index, IndexMut};

/// The table. An index stays valid for the whole run.
#[derive(Debug, Default)]
pub(super) struct Instances {
    all: Arena<Instance>,
    by_vm: Vec<Vec<usize>>,
    by_host: Vec<Vec<usize>>,
}

impl Instances {
    pub(super) fn new(vms: usize, hosts: usize) -> Self {
        Self {
            all: Arena::default(),
            by_vm: vec![Vec::new(); vms],
            by_host: vec![Vec::new(); hosts],
        }
    }

    /// Adds one and gives its index.
    pub(super) fn push(&mut self, instance: Instance) -> usize {
        let (vm, host) = (instance.vm, instance.host);
        let index = self.all.push(instance);
        let all = &self.all;
        for list in [self.by_vm.get_mut(vm), self.by_host.get_mut(host)] {
            let Some(list) = list else { continue };
            // One that is gone, and whose end was told, matters to nobody any more.
            list.retain(|i| all[*i].exists() || all[*i].untold.is_some());
            list.push(index);
        }
        index
    }

    /// Those of a VM that matter, oldest first.
    pub(super) fn of_vm(&self, vm: usize) -> &[usize] {
        self.by_vm.get(vm).map_or(&[], Vec::as_slice)
    }

    /// Those on a host that matter, oldest first.
    pub(super) fn on_host(&self, host: usize) -> &[usize] {
        self.by_host.get(host).map_or(&[], Vec::as_slice)
    }

    /// Processes of a VM that are not gone.
    pub(super) fn living(&self, vm: usize) -> impl Iterator<Item = (usize, &Instance)> {
        self.of_vm(vm)
            .iter()
            .map(|i| (*i, &self.all[*i]))
            .filter(|(_, i)| i.exists())
    }

    /// Processes on a host that are not gone.
    pub(super) fn living_on(&self, host: usize) -> impl Iterator<Item = (usize, &Instance)> {
        self.on_host(host)
            .iter()
            .map(|i| (*i, &self.all[*i]))
            .filter(|(_, i)| i.exists())
    }
}

impl Index<usize> for Instances {
    type Output = Instance;
    fn index(&self, index: usize) -> &Instance {
        &self.all[index]
    }
}

impl IndexMut<usize> for Instances {
    fn index_mut(&mut self, index: usize) -> &mut Instance {
        &mut self.all[index]
    }
}
