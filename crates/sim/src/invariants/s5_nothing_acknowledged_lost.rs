//! S5: no acknowledged configuration or protection change is ever lost: what was reported protected
//! is on the newest protected list on disk. Source: `docs/protocol.md`, protected lists.

use super::{Fact, Invariant, Labels};
use crate::clock::Nanos;
use std::collections::{BTreeMap, BTreeSet};

/// Judges the newest list of each datastore against what was reported.
#[derive(Debug, Default)]
pub(super) struct NothingLost {
    /// VM to datastore, for VMs that were reported protected.
    protected: BTreeMap<usize, usize>,
    /// VMs whose lock says that they should run.
    wanted: BTreeSet<usize>,
    lists: BTreeMap<usize, BTreeSet<usize>>,
    /// VMs that were reported protected, should run, and are not on the newest list of their datastore:
    /// kept up to date, because a look at all VMs with each change would cost the square of their number.
    lost: BTreeMap<usize, BTreeSet<usize>>,
    /// The newest version of the configuration that was acknowledged, and the one on disk.
    acknowledged: u64,
    on_disk: u64,
}

impl NothingLost {
    fn config_lost(&self) -> Option<String> {
        (self.on_disk < self.acknowledged).then(|| {
            format!(
                "version {} of the configuration was acknowledged, but its datastore has {}",
                self.acknowledged, self.on_disk
            )
        })
    }

    fn protect(&mut self, vm: usize, datastore: Option<usize>) {
        let before = match datastore {
            Some(datastore) => self.protected.insert(vm, datastore),
            None => self.protected.remove(&vm),
        };
        if let Some(before) = before.filter(|b| Some(*b) != datastore) {
            self.note(vm, before);
        }
        self.look_at(vm);
    }

    fn look_at(&mut self, vm: usize) {
        if let Some(datastore) = self.protected.get(&vm) {
            self.note(vm, *datastore);
        }
    }

    /// Notes whether the VM is lost on that datastore.
    fn note(&mut self, vm: usize, datastore: usize) {
        let here = self.protected.get(&vm) == Some(&datastore) && self.wanted.contains(&vm);
        let list = self.lists.get(&datastore);
        let lost = self.lost.entry(datastore).or_default();
        if here && list.is_some_and(|list| !list.contains(&vm)) {
            lost.insert(vm);
        } else {
            lost.remove(&vm);
        }
    }

    fn take_list(&mut self, datastore: usize, vms: &BTreeSet<usize>) {
        let before = self.lists.insert(datastore, vms.clone());
        let changed: Vec<usize> = match &before {
            Some(before) if before == vms => Vec::new(),
            Some(before) => before.symmetric_difference(vms).copied().collect(),
            None => self.protected.keys().copied().collect(),
        };
        for vm in changed {
            self.look_at(vm);
        }
    }

    fn missing(&self, datastore: usize, labels: &Labels) -> Option<String> {
        let lost = self.lost.get(&datastore)?.first()?;
        let (vm, ds) = (labels.vm(*lost), labels.datastore(datastore));
        Some(format!(
            "{vm} was reported protected, but the newest list on {ds} does not have it"
        ))
    }
}

impl Invariant for NothingLost {
    fn name(&self) -> &'static str {
        "S5"
    }

    fn sentence(&self) -> &'static str {
        "no acknowledged configuration or protection change is ever lost"
    }

    fn observe(&mut self, _: Nanos, fact: &Fact<'_>, labels: &Labels) -> Option<String> {
        match fact {
            Fact::Protected {
                vm,
                datastore,
                yes: true,
            } => {
                // Of a VM that was switched off meanwhile it says nothing: it is on its way off the list.
                if self.wanted.contains(vm) {
                    self.protect(*vm, Some(*datastore));
                }
                self.missing(*datastore, labels)
            }
            Fact::Protected { vm, yes: false, .. } => {
                self.protect(*vm, None);
                None
            }
            Fact::Desired { vm, on: true, .. } => {
                self.wanted.insert(*vm);
                self.look_at(*vm);
                None
            }
            // Switched off: it leaves the list, and whoever switches it on protects it anew.
            Fact::Desired { vm, on: false, .. } => {
                self.wanted.remove(vm);
                self.protect(*vm, None);
                None
            }
            Fact::List { datastore, vms } => {
                self.take_list(*datastore, vms);
                self.missing(*datastore, labels)
            }
            Fact::ConfigOnDisk { version } => {
                self.on_disk = *version;
                self.config_lost()
            }
            Fact::ConfigAcknowledged { version } => {
                self.acknowledged = self.acknowledged.max(*version);
                self.config_lost()
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::feed;
    use super::*;

    #[test]
    fn an_acknowledged_configuration_that_is_not_on_disk_is_a_violation() {
        let (disk, said) = (
            |version| Fact::ConfigOnDisk { version },
            |version| Fact::ConfigAcknowledged { version },
        );
        let good = [disk(1), said(1), disk(2), disk(3)];
        assert_eq!(feed(&mut NothingLost::default(), &good), None);
        assert!(feed(&mut NothingLost::default(), &[disk(1), said(2)]).is_some());
        assert!(feed(&mut NothingLost::default(), &[disk(2), said(2), disk(1)]).is_some());
    }

    #[test]
    fn a_list_without_a_protected_vm_is_a_violation() {
        let (full, empty) = (BTreeSet::from([0]), BTreeSet::new());
        let on = Fact::Desired {
            vm: 0,
            on: true,
            cause: true,
        };
        let protected = Fact::Protected {
            vm: 0,
            datastore: 0,
            yes: true,
        };
        let with = Fact::List {
            datastore: 0,
            vms: &full,
        };
        let without = Fact::List {
            datastore: 0,
            vms: &empty,
        };
        let lost = [on.clone(), with.clone(), protected.clone(), without.clone()];
        assert!(feed(&mut NothingLost::default(), &lost).is_some());
        let early = [on.clone(), without.clone(), protected.clone()];
        assert!(feed(&mut NothingLost::default(), &early).is_some());
        let off = Fact::Desired {
            vm: 0,
            on: false,
            cause: true,
        };
        let unprotected = [
            on.clone(),
            with.clone(),
            protected.clone(),
            off.clone(),
            without.clone(),
        ];
        assert_eq!(feed(&mut NothingLost::default(), &unprotected), None);
        // Reported after it was switched off, by an owner that had not heard of it yet.
        let late = [on.clone(), off, with, protected, without, on];
        assert_eq!(feed(&mut NothingLost::default(), &late), None);
    }
}
