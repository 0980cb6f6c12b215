//! Owners that lose their datastores while hosts are apart, and what they vouch for.

use super::super::drawing::Drawing;
use super::super::small;
use super::Target;
use crate::clock::{MS, Nanos};
use crate::scenario::Fault;
use mainstay_core::time::nanos;

impl Drawing<'_> {
    /// Two sides of at least two hosts each; the best host is the last of the second.
    fn sides(&mut self) -> (Vec<usize>, Vec<usize>) {
        let side = small(self.rng.between(2, self.hosts as u64 - 2));
        let mut far = self.ranked();
        let near = far.split_off(self.hosts - side);
        (far, near)
    }

    /// In a partition, the old primary's storage hangs until the other side takes its datastore, or
    /// has taken it. When it returns, VMs fail on the old primary's side.
    pub(super) fn owner_falls_silent_in_a_partition(&mut self, t: Target) -> Nanos {
        if self.hosts < 4 {
            return self.owners_change_quickly(t);
        }
        // The best host stays primary of its side; the others elect one of theirs.
        let (far, near) = self.sides();
        let best = self.best();
        let groups = vec![far, near];
        self.push(t.at, Fault::NetworkPartition { groups });
        let timing = &self.settings.timing;
        let elected = nanos(timing.election_start) + 2 * nanos(timing.election);
        let silent = t.at + elected + self.near(self.lapse(), 50, 50);
        let interval = nanos(timing.datastore_heartbeat);
        let back = silent
            + self.lapse()
            + if self.rng.percent(60) {
                self.rng.below(4 * interval / MS) * MS
            } else {
                self.near(self.lapse(), 70, 100)
            };
        for disk in 0..self.datastores {
            self.hang(silent, back, disk, Some(best));
        }
        let mut when = back;
        if self.vms > 0 {
            for _ in 0..self.rng.between(2, 6) {
                when += self.rng.between(200, 2000) * MS;
                let vm = self.vm();
                self.push(when, Fault::VmCrash { vm });
            }
        }
        when += self.near(self.dead(), 50, 50);
        self.push(
            when,
            Fault::NetworkHeal {
                host: None,
                network: None,
            },
        );
        when
    }

    /// In a partition, the old primary vouches for hosts whose heartbeats are dead; then its own storage
    /// hangs, and the other side, to which those hosts are long dead, takes the datastore over. Its last
    /// answers may take long.
    pub(super) fn an_owner_vouches_in_a_partition(&mut self, t: Target) -> Nanos {
        if self.hosts < 4 {
            return self.vouched_for_with_gaps(t);
        }
        let (far, mut near) = self.sides();
        let groups = vec![far, near.clone()];
        let best = near.pop().unwrap_or_default();
        self.push(t.at, Fault::NetworkPartition { groups });
        let timing = &self.settings.timing;
        let elected = nanos(timing.election_start) + 2 * nanos(timing.election);
        let hangs = t.at + elected + self.near(self.lapse(), 50, 50);
        let silent = hangs + self.dead() + self.near(self.lapse(), 20, 150);
        let over = silent + 3 * self.lapse() + self.near(self.dead(), 50, 50);
        for disk in 0..self.datastores {
            for host in &near {
                self.hang(hangs, over, disk, Some(*host));
            }
            self.hang(silent, over, disk, Some(best));
        }
        if self.rng.percent(70) {
            self.answers_grow_late(hangs, silent, &near);
        }
        self.push(
            over,
            Fault::NetworkHeal {
                host: None,
                network: None,
            },
        );
        over
    }

    /// Slower and slower, each step shorter than `freeze`, so that answers never cease to come until the
    /// last of them: it was given at the end of the owner's own right, to a request that was early.
    fn answers_grow_late(&mut self, hangs: Nanos, silent: Nanos, hosts: &[usize]) {
        let freeze = self.freeze();
        let request = freeze * self.rng.between(35, 60) / 100;
        let last = silent + freeze * self.rng.between(85, 100) / 100;
        let settles = hangs + self.lapse();
        let mut steps = vec![(hangs, freeze * self.rng.between(5, 15) / 100)];
        steps.push((settles.max(silent - freeze), request));
        steps.push((last - request, freeze * self.rng.between(70, 95) / 100));
        steps.push((
            last - request / 2,
            freeze * self.rng.between(120, 165) / 100,
        ));
        for (at, time) in steps {
            for host in hosts {
                let host = Some(*host);
                let time = time / MS * MS;
                self.push(at, Fault::NetworkDelay { time, host });
            }
        }
    }

    /// A host's heartbeat is dead while its network lives, but for gaps of about `freeze`.
    pub(super) fn vouched_for_with_gaps(&mut self, t: Target) -> Nanos {
        let mut when = t.at;
        for _ in 0..self.rng.between(1, 4) {
            when += self.near(self.lapse(), 50, 100);
            let end = when + self.near(self.freeze(), 50, 60);
            self.cut(when, end, t.host);
            when = end;
        }
        let over = when + self.near(self.lapse(), 50, 100);
        self.hang(t.at, over, t.disk, Some(t.host));
        over
    }
}
