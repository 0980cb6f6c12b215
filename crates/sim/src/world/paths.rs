//! The faults between hosts and their storage, and the image locks that a storage drops and gives back with them.

use super::{Happening, World};
use crate::clock::{MS, Nanos};
use crate::scenario::StorageFault;
use mainstay_core::io::{IoFault, StorageOutcome};
use std::collections::BTreeSet;

/// What stands between a host and a datastore.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Faults {
    pub(super) hang: bool,
    pub(super) gone: bool,
    pub(super) read_only: bool,
    pub(super) full: bool,
    pub(super) slow: Nanos,
}

impl Faults {
    fn add(&mut self, fault: StorageFault) {
        match fault {
            StorageFault::Apd => self.hang = true,
            StorageFault::Pdl => self.gone = true,
            StorageFault::Slow(time) => self.slow = time,
            StorageFault::ReadOnly => self.read_only = true,
            StorageFault::Full => self.full = true,
        }
    }
}

impl World<'_> {
    /// A path changed: what waited for it goes on, what hangs from now on waits.
    pub(super) fn paths_changed(&mut self, disk: usize) {
        for host in 0..self.hosts.len() {
            let faults = self.disks[disk].faults(host);
            self.note_loss(disk, host, faults);
            let since = self.disks[disk].hang_since.get(host).copied().unwrap_or(0);
            let begins = faults.hang && since == 0;
            if begins || !faults.hang {
                let value = if begins { self.now } else { 0 };
                self.disks[disk]
                    .hang_since
                    .iter_mut()
                    .skip(host)
                    .take(1)
                    .for_each(|s| *s = value);
            }
        }
        let parked = std::mem::take(&mut self.disks[disk].parked);
        for index in parked {
            let Some(op) = &mut self.ops[index] else {
                continue;
            };
            let faults = self.disks[disk].faults(op.host);
            if faults.hang && !faults.gone {
                self.disks[disk].parked.push(index);
                continue;
            }
            op.parked = false;
            let serial = op.serial;
            let wait = self.dice.disk.below(20) * MS + self.dice.disk.below(MS);
            let what = if op.effect_over {
                Happening::Ack { op: index, serial }
            } else {
                Happening::Effect { op: index, serial }
            };
            if faults.gone && !op.effect_over {
                op.effect_over = true;
                op.outcome = Some(StorageOutcome::Unknown(IoFault::Gone));
                self.after(wait, Happening::Ack { op: index, serial });
            } else {
                self.after(wait, what);
            }
        }
        for write in std::mem::take(&mut self.disks[disk].parked_writes) {
            let wait = self.dice.guest.below(30 * MS);
            self.after(
                wait,
                Happening::GuestLand {
                    write: Box::new(write),
                },
            );
        }
        for instance in std::mem::take(&mut self.disks[disk].parked_opens) {
            let wait = self.dice.guest.below(30 * MS);
            self.after(wait, Happening::OpenImage { instance });
        }
    }

    pub(super) fn datastore_fault(
        &mut self,
        disk: usize,
        host: Option<usize>,
        fault: StorageFault,
    ) {
        self.disks[disk].met(host).for_each(|f| f.add(fault));
        self.paths_changed(disk);
        if matches!(fault, StorageFault::Apd | StorageFault::Pdl)
            && let Some(host) = host
        {
            self.storage_lost(host, disk);
        }
    }

    pub(super) fn datastore_heal(&mut self, disk: usize, host: Option<usize>) {
        let healed = self.disks[disk].met(host);
        healed.for_each(|f| *f = Faults::default());
        for host in 0..self.hosts.len() {
            self.storage_back(host, disk);
        }
        self.paths_changed(disk);
    }

    /// The storage has lost a host and drops its image locks after its expiry.
    pub(super) fn storage_lost(&mut self, host: usize, disk: usize) {
        let Some(lost) = self.hosts[host].lost.get_mut(disk) else {
            return;
        };
        *lost += 1;
        let lost = *lost;
        let wait = self.disks[disk].expiry;
        self.after(wait, Happening::DropImageLocks { host, disk, lost });
    }

    pub(super) fn drop_image_locks(&mut self, host: usize, disk: usize, lost: u64) {
        if self.hosts[host].lost.get(disk) != Some(&lost) {
            return;
        }
        let images = self.disks[disk].images.clone();
        for (vm, instance) in images {
            if self.instances[instance].host == host {
                self.disks[disk].images.remove(&vm);
            }
        }
    }

    /// The storage hears the host again: a client reclaims what nobody else has taken.
    pub(super) fn storage_back(&mut self, host: usize, disk: usize) {
        let faults = self.disks[disk].faults(host);
        if faults.hang || faults.gone || !self.hosts[host].up() {
            return;
        }
        if let Some(lost) = self.hosts[host].lost.get_mut(disk) {
            *lost += 1;
        }
        // A client that comes back after a reboot has lost what its processes had open.
        let instances = &self.instances;
        self.disks[disk]
            .images
            .retain(|_, i| instances[*i].host != host || instances[*i].exists());
        let mine: BTreeSet<(usize, usize)> = self
            .instances
            .living_on(host)
            .filter(|(_, i)| i.opened && self.vms[i.vm].disk == disk)
            .filter(|(index, i)| self.vms[i.vm].newest_open == Some(*index))
            .map(|(index, i)| (i.vm, index))
            .collect();
        for (vm, instance) in mine {
            self.disks[disk].images.entry(vm).or_insert(instance);
        }
    }
}
