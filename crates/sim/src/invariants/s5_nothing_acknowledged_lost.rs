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

    fn missing(&self, datastore: usize, labels: &Labels) -> Option<String> {
        let list = self.lists.get(&datastore)?;
        let lost = self.protected.iter().find(|(vm, ds)| {
            **ds == datastore && self.wanted.contains(*vm) && !list.contains(*vm)
        })?;
        let (vm, ds) = (labels.vm(*lost.0), labels.datastore(datastore));
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
                self.protected.insert(*vm, *datastore);
                self.missing(*datastore, labels)
            }
            Fact::Protected { vm, yes: false, .. } => {
                self.protected.remove(vm);
                None
            }
            Fact::Desired { vm, on: true } => {
                self.wanted.insert(*vm);
                None
            }
            // Switched off: it leaves the list, and whoever switches it on protects it anew.
            Fact::Desired { vm, on: false } => {
                self.wanted.remove(vm);
                self.protected.remove(vm);
                None
            }
            Fact::List { datastore, vms } => {
                self.lists.insert(*datastore, (*vms).clone());
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
        let on = Fact::Desired { vm: 0, on: true };
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
        let off = Fact::Desired { vm: 0, on: false };
        assert_eq!(
            feed(
                &mut NothingLost::default(),
                &[on, with, protected, off, without]
            ),
            None
        );
    }
}
