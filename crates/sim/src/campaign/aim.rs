//! Faults that are aimed at the protocol's own times.

use super::{Drawing, small};
use crate::clock::{MS, Nanos, SECOND};
use crate::scenario::{Fault, StorageFault};
use mainstay_core::time::nanos;

impl Drawing<'_> {
    /// Plays one pattern, several times.
    pub(super) fn aim(&mut self) {
        let pattern = self.rng.below(9);
        let (host, disk) = (self.host(), self.disk());
        let mut at = self.rng.between(3, 20) * SECOND;
        while at < self.until {
            let (host, disk) = if self.rng.percent(60) {
                (host, disk)
            } else {
                (self.host(), self.disk())
            };
            let over = self.pattern(pattern, at, host, disk);
            at = over + self.rng.between(2, 25) * SECOND;
        }
    }

    fn hang(&mut self, at: Nanos, end: Nanos, disk: usize, host: Option<usize>) {
        self.push(
            at,
            Fault::Datastore {
                fault: StorageFault::Apd,
                datastore: disk,
                host,
            },
        );
        self.push(
            end,
            Fault::DatastoreHeal {
                datastore: Some(disk),
                host,
            },
        );
    }

    fn near(&mut self, mark: Nanos, percent_below: u64, percent_above: u64) -> Nanos {
        mark * self.rng.between(100 - percent_below, 100 + percent_above) / 100
    }

    fn pattern(&mut self, pattern: u64, at: Nanos, host: usize, disk: usize) -> Nanos {
        let t = &self.settings.timing;
        let (freeze, lapse) = (nanos(t.freeze), nanos(t.r#break));
        let (dead, interval) = (nanos(t.dead), nanos(t.datastore_heartbeat));
        match pattern {
            // One host's storage hangs and its network goes: it comes back around the takeover.
            0 => {
                let end = at + self.near(dead, 40, 60);
                self.hang(at, end, disk, Some(host));
                self.push(
                    at,
                    Fault::NetworkCut {
                        host,
                        network: None,
                    },
                );
                let heal = end + self.rng.below(2000) * MS;
                self.push(
                    heal,
                    Fault::NetworkHeal {
                        host: Some(host),
                        network: None,
                    },
                );
                heal
            }
            // The agent hangs while its storage does, and wakes around the thaw.
            1 => {
                let end = at + self.near(lapse, 40, 80);
                self.hang(at, end, disk, Some(host));
                let hang = at + self.rng.below(freeze / MS) * MS;
                self.push(hang, Fault::AgentHang { host });
                let wake = end + self.rng.below(dead / MS) * MS;
                self.push(wake, Fault::AgentResume { host });
                wake
            }
            // The primary is cut off again and again: owners change quickly.
            2 => {
                let mut when = at;
                for _ in 0..self.rng.between(2, 5) {
                    let victim = if self.rng.percent(60) {
                        self.hosts - 1
                    } else {
                        self.host()
                    };
                    let end = when + self.near(lapse, 30, 150);
                    self.push(
                        when,
                        Fault::NetworkCut {
                            host: victim,
                            network: None,
                        },
                    );
                    if self.rng.percent(60) {
                        self.hang(when, end, disk, Some(victim));
                    }
                    self.push(
                        end,
                        Fault::NetworkHeal {
                            host: Some(victim),
                            network: None,
                        },
                    );
                    when = end + self.rng.below(lapse / MS) * MS;
                }
                when
            }
            // Agents are restarted while they watch a silent host.
            3 => {
                let end = at + self.near(dead, 50, 200);
                self.push(
                    at,
                    Fault::NetworkCut {
                        host,
                        network: None,
                    },
                );
                let back = at + self.near(lapse, 50, 50);
                self.hang(at, back, disk, Some(host));
                for _ in 0..self.rng.between(2, 8) {
                    let watcher = self.host();
                    let when = at + self.rng.below((end - at) / MS) * MS;
                    self.push(when, Fault::AgentKill { host: watcher });
                }
                self.push(
                    end,
                    Fault::NetworkHeal {
                        host: Some(host),
                        network: None,
                    },
                );
                end
            }
            // A user switches off and on, quickly.
            4 if self.vms > 0 => {
                let vm = self.vm();
                let mut when = at;
                for _ in 0..self.rng.between(2, 6) {
                    self.push(when, Fault::VmPowerOff { vm });
                    when += self.rng.between(20, 4000) * MS;
                    self.push(when, Fault::VmPowerOn { vm, host: None });
                    when += self.rng.between(20, 6000) * MS;
                }
                if self.rng.percent(50) {
                    self.push(when, Fault::HostPowerOff { host });
                    self.push(when + 2 * dead, Fault::HostPowerOn { host });
                }
                when
            }
            // Storage comes and goes just around the end of the right to run.
            5 => {
                let mut when = at;
                for _ in 0..self.rng.between(3, 10) {
                    let length = self.near(freeze, 30, 30);
                    self.hang(when, when + length, disk, Some(host));
                    when += length + self.rng.between(1, 2 * interval / MS) * MS;
                }
                when
            }
            // Agent and guard die together while the storage hangs.
            6 => {
                let end = at + self.near(lapse, 30, 60);
                self.hang(at, end, disk, Some(host));
                let kill = at + self.rng.below(lapse / MS) * MS;
                self.push(kill, Fault::AgentKill { host });
                let second = kill + self.rng.below(300) * MS;
                self.push(second, Fault::GuardKill { host });
                end
            }
            // A host loses power and comes back at about the time of its verdict.
            7 => {
                let end = at + self.near(dead, 90, 40);
                self.push(at, Fault::HostPowerOff { host });
                self.push(end, Fault::HostPowerOn { host });
                end + small_boot()
            }
            // The whole datastore hangs, and the primary dies while it does.
            _ => {
                let end = at + self.near(lapse, 50, 200);
                self.hang(at, end, disk, None);
                if self.rng.percent(50) {
                    let victim = small(self.hosts as u64 - 1);
                    let dies = at + self.rng.below(lapse / MS) * MS;
                    self.push(dies, Fault::HostPowerOff { host: victim });
                    self.push(end + dead, Fault::HostPowerOn { host: victim });
                }
                end + dead
            }
        }
    }
}

fn small_boot() -> Nanos {
    40 * SECOND
}
