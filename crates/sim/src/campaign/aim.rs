//! Faults that are aimed at the protocol's own times.

mod partitions;

use super::drawing::Drawing;
use super::kinds::PROFILE;
use super::small;
use crate::clock::{MS, Nanos, SECOND};
use crate::scenario::{Fault, StorageFault};
use mainstay_core::config::{Change, Profile};
use mainstay_core::time::nanos;

/// Where a pattern begins, and what it is about.
#[derive(Clone, Copy)]
pub(super) struct Target {
    at: Nanos,
    host: usize,
    disk: usize,
}

/// Plays faults from the target's time on; answers when the last of them is over.
pub(super) type Pattern<'a> = fn(&mut Drawing<'a>, Target) -> Nanos;

/// The pattern that breaks nothing but in the weather in which what was given up lands.
const OLD_LINKS: &str = "old links land";
/// How many in a hundred of the seeds that aim in that weather play it.
const OLD_LINKS_IN_THEIR_WEATHER: u64 = 40;
/// VMs that a user moves about at a time.
const MOVED: usize = 8;
/// A host that lost its power is back by then.
const BOOT: Nanos = 40 * SECOND;

impl<'a> Drawing<'a> {
    /// All patterns, by name. A new one needs a line here and nothing else.
    pub(super) const PATTERNS: [(&'static str, Pattern<'a>); 19] = [
        ("back around the takeover", Self::back_around_the_takeover),
        ("agent hangs over the thaw", Self::agent_hangs_over_the_thaw),
        ("owners change quickly", Self::owners_change_quickly),
        ("watchers are restarted", Self::watchers_are_restarted),
        ("off and on", Self::off_and_on),
        (OLD_LINKS, Self::old_links_land),
        (
            "around the end of the right",
            Self::around_the_end_of_the_right,
        ),
        ("agent and guard die", Self::agent_and_guard_die),
        ("back around the verdict", Self::back_around_the_verdict),
        (
            "everybody loses the datastore",
            Self::everybody_loses_the_datastore,
        ),
        (
            "storage goes after the verdict",
            Self::storage_goes_after_the_verdict,
        ),
        (
            "owner falls silent in a partition",
            Self::owner_falls_silent_in_a_partition,
        ),
        (
            "off and on while storage hangs",
            Self::off_and_on_while_storage_hangs,
        ),
        ("starts meet a hang", Self::starts_meet_a_hang),
        (
            "an owner vouches in a partition",
            Self::an_owner_vouches_in_a_partition,
        ),
        ("vouched for with gaps", Self::vouched_for_with_gaps),
        ("back before the verdict", Self::back_before_the_verdict),
        ("the timers come down", Self::timers_come_down),
        ("storage is lost for long", Self::storage_lost_for_long),
    ];

    /// Plays one pattern, or a few in turn, several times.
    pub(super) fn aim(&mut self) {
        let few = if self.rng.percent(40) { 1 } else { 3 };
        let mut patterns: Vec<(&'static str, Pattern<'a>)> = (0..few)
            .map(|_| small(self.rng.below(Self::PATTERNS.len() as u64)))
            .filter_map(|drawn| Self::PATTERNS.get(drawn).copied())
            .collect();
        if self.given_up_lands
            && self.rng.percent(OLD_LINKS_IN_THEIR_WEATHER)
            && let Some(first) = patterns.first_mut()
        {
            *first = (OLD_LINKS, Self::old_links_land);
        }
        let (host, disk) = (self.host(), self.disk());
        let mut at = self.rng.between(3, 20) * SECOND;
        let spreads = self.rng.percent(60);
        for (name, pattern) in patterns.into_iter().cycle() {
            if at >= self.until {
                break;
            }
            if spreads && !self.patterns.is_empty() {
                at = self.spread(at);
            }
            let (host, disk) = if self.rng.percent(60) {
                (host, disk)
            } else {
                (self.host(), self.disk())
            };
            let over = pattern(self, Target { at, host, disk });
            *self.patterns.entry(name).or_default() += 1;
            at = over + self.rng.between(2, 25) * SECOND;
        }
    }

    /// An admin spreads the VMs anew, since failovers have brought them together on a few hosts, where
    /// the next faults would not meet them.
    fn spread(&mut self, at: Nanos) -> Nanos {
        for vm in 0..self.vms {
            let off = at + self.rng.below(2000) * MS;
            let on = off + self.rng.between(2000, 6000) * MS;
            self.push(off, Fault::VmPowerOff { vm });
            let host = Some(self.host());
            self.push(on, Fault::VmPowerOn { vm, host });
            // Where that host cannot take it.
            self.push(on + 3 * SECOND, Fault::VmPowerOn { vm, host: None });
        }
        at + 15 * SECOND
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

    /// Until the next heal.
    fn slow(&mut self, at: Nanos, delay: Nanos, disk: usize, host: usize) {
        self.push(
            at,
            Fault::Datastore {
                fault: StorageFault::Slow(delay / MS * MS),
                datastore: disk,
                host: Some(host),
            },
        );
    }

    pub(super) fn cut(&mut self, at: Nanos, end: Nanos, host: usize) {
        self.push(
            at,
            Fault::NetworkCut {
                host,
                network: None,
            },
        );
        self.push(
            end,
            Fault::NetworkHeal {
                host: Some(host),
                network: None,
            },
        );
    }

    fn near(&mut self, mark: Nanos, percent_below: u64, percent_above: u64) -> Nanos {
        mark * self.rng.between(100 - percent_below, 100 + percent_above) / 100
    }

    fn freeze(&self) -> Nanos {
        nanos(self.settings.timing.freeze)
    }

    fn lapse(&self) -> Nanos {
        nanos(self.settings.timing.r#break)
    }

    fn dead(&self) -> Nanos {
        nanos(self.settings.timing.dead)
    }

    /// The storage of one host, or of many, hangs and the network goes: each comes back around the
    /// takeover, of which the primary's slow storage may make a long affair.
    fn back_around_the_takeover(&mut self, t: Target) -> Nanos {
        let interval = nanos(self.settings.timing.datastore_heartbeat);
        let victims = if self.rng.percent(50) {
            vec![t.host]
        } else {
            self.all_but_the_best()
        };
        let best = self.best();
        let mut over = t.at;
        for host in victims {
            let end = t.at
                + if self.rng.percent(50) {
                    self.near(self.dead(), 40, 60)
                } else {
                    self.dead() - interval + self.rng.below(4 * interval / MS) * MS
                };
            self.hang(t.at, end, t.disk, Some(host));
            let heal = end + self.rng.below(2000) * MS;
            self.cut(t.at, heal, host);
            over = over.max(heal);
        }
        if self.rng.percent(50) {
            let delay = self.freeze() * self.rng.between(10, 60) / 100;
            self.slow(t.at, delay, t.disk, best);
            self.push(
                over,
                Fault::DatastoreHeal {
                    datastore: Some(t.disk),
                    host: Some(best),
                },
            );
        }
        over
    }

    /// The hosts, from the one that loses an election against all others to the one that wins.
    fn ranked(&self) -> Vec<usize> {
        let mut hosts: Vec<usize> = (0..self.hosts).collect();
        // As ids are compared: host-9 is better than host-10.
        hosts.sort_by_key(|host| (host + 1).to_string());
        hosts
    }

    /// The host that wins elections, where it mounts what the others do.
    fn best(&self) -> usize {
        self.ranked().last().copied().unwrap_or(0)
    }

    /// The best host stays primary, with somebody to follow it; the others may suffer.
    fn all_but_the_best(&self) -> Vec<usize> {
        let mut hosts = self.ranked();
        hosts.truncate(self.hosts.saturating_sub(2).max(1));
        hosts
    }

    /// Hosts are cut off some time after their storage, and their storage comes back just before they
    /// would be called dead: the proof against them is old by then, and slow storage makes the primary's
    /// last reading of their heartbeats older than its reading of their locks.
    fn back_before_the_verdict(&mut self, t: Target) -> Nanos {
        let delay = self.freeze() * self.rng.between(20, 45) / 100;
        let best = self.best();
        let victims = if self.rng.percent(30) && t.host != best {
            vec![t.host]
        } else {
            self.all_but_the_best()
        };
        for disk in 0..self.datastores {
            self.slow(t.at, delay, disk, best);
        }
        let mut over = t.at;
        for host in victims {
            let hangs = t.at + delay;
            let cut = hangs + self.freeze() * self.rng.between(10, 80) / 100;
            let verdict = cut + nanos(self.settings.timing.network_heartbeat) + self.dead();
            let back = verdict - self.rng.below(2 * delay / MS) * MS;
            for disk in 0..self.datastores {
                self.hang(hangs, back, disk, Some(host));
            }
            let heal = verdict + self.near(self.lapse(), 50, 50);
            self.cut(cut, heal, host);
            over = over.max(heal);
        }
        for disk in 0..self.datastores {
            let heal = Fault::DatastoreHeal {
                datastore: Some(disk),
                host: Some(best),
            };
            self.push(over, heal);
        }
        over
    }

    /// The agent hangs while its storage does, and wakes around the thaw.
    fn agent_hangs_over_the_thaw(&mut self, t: Target) -> Nanos {
        let host = t.host;
        let end = t.at + self.near(self.lapse(), 40, 80);
        self.hang(t.at, end, t.disk, Some(host));
        let hang = t.at + self.rng.below(self.freeze() / MS) * MS;
        self.push(hang, Fault::AgentHang { host });
        let wake = end + self.rng.below(self.dead() / MS) * MS;
        self.push(wake, Fault::AgentResume { host });
        wake
    }

    /// The primary is cut off again and again.
    fn owners_change_quickly(&mut self, t: Target) -> Nanos {
        let mut when = t.at;
        for _ in 0..self.rng.between(2, 5) {
            let victim = if self.rng.percent(60) {
                self.best()
            } else {
                self.host()
            };
            let end = when + self.near(self.lapse(), 30, 150);
            self.cut(when, end, victim);
            if self.rng.percent(60) {
                self.hang(when, end, t.disk, Some(victim));
            }
            when = end + self.rng.below(self.lapse() / MS) * MS;
        }
        when
    }

    /// Agents are restarted while they watch a silent host.
    fn watchers_are_restarted(&mut self, t: Target) -> Nanos {
        let end = t.at + self.near(self.dead(), 50, 200);
        self.cut(t.at, end, t.host);
        let back = t.at + self.near(self.lapse(), 50, 50);
        self.hang(t.at, back, t.disk, Some(t.host));
        for _ in 0..self.rng.between(2, 8) {
            let host = self.host();
            let when = t.at + self.rng.below((end - t.at) / MS) * MS;
            self.push(when, Fault::AgentKill { host });
        }
        end
    }

    /// The rights to run were long, and become short; soon after, agents that have seen nothing of the
    /// long ones judge a host that has (safety rule H18).
    fn timers_come_down(&mut self, t: Target) -> Nanos {
        let low = t.at + 2 * BOOT + self.rng.below(5000) * MS;
        self.profile(t.at, Profile::Classic);
        self.profile(low, self.settings.profile);
        let best = self.best();
        let forgets = low + self.rng.between(500, 2000) * MS;
        self.push(forgets, Fault::AgentKill { host: best });
        let mut over = low;
        for host in self.all_but_the_best() {
            if self.rng.percent(70) {
                let lost = low + self.rng.between(800, 3500) * MS;
                let end = lost + self.dead() + self.near(4 * self.lapse(), 30, 60);
                for disk in 0..self.datastores {
                    self.hang(lost, end, disk, Some(host));
                }
                self.cut(lost, end, host);
                over = over.max(end);
            }
        }
        over
    }

    fn profile(&mut self, at: Nanos, profile: Profile) {
        let change = Change::Set {
            key: PROFILE.into(),
            value: profile.name().into(),
        };
        self.push(
            at,
            Fault::Config {
                name: "config.set",
                changes: vec![change],
                host: None,
            },
        );
    }

    /// One host, or everybody, loses a datastore for as long as component protection waits, or about that; now
    /// and then its device is gone instead.
    fn storage_lost_for_long(&mut self, t: Target) -> Nanos {
        let timing = &self.settings.timing;
        let waits = nanos(timing.apd_timeout) + nanos(timing.apd_delay);
        let length = self.near(waits, 40, 60);
        let host = self.rng.percent(70).then_some(t.host);
        let end = t.at + length;
        if self.rng.percent(25) {
            let fault = Fault::Datastore {
                fault: StorageFault::Pdl,
                datastore: t.disk,
                host,
            };
            self.push(t.at, fault);
            let heal = Fault::DatastoreHeal {
                datastore: Some(t.disk),
                host,
            };
            self.push(end, heal);
        } else {
            self.hang(t.at, end, t.disk, host);
        }
        if self.rng.percent(20) {
            let cut = t.at + self.rng.below(length / MS) * MS;
            self.cut(cut, end, t.host);
        }
        end
    }

    /// A user switches off and on, quickly.
    fn off_and_on(&mut self, t: Target) -> Nanos {
        let mut when = t.at;
        if self.vms > 0 {
            let vm = self.vm();
            for _ in 0..self.rng.between(2, 6) {
                self.push(when, Fault::VmPowerOff { vm });
                when += self.rng.between(20, 4000) * MS;
                self.push(when, Fault::VmPowerOn { vm, host: None });
                when += self.rng.between(20, 6000) * MS;
            }
        }
        if self.rng.percent(50) {
            let (host, back) = (t.host, when + 2 * self.dead());
            self.push(when, Fault::HostPowerOff { host });
            self.push(back, Fault::HostPowerOn { host });
        }
        when
    }

    /// A host's VMs freeze and thaw, and at once it loses everything: what it gave up of the links of those
    /// swaps lands when it is back, and others have taken the locks some generations further.
    fn old_links_land(&mut self, t: Target) -> Nanos {
        let host = t.host;
        let thaws = t.at + self.near(self.freeze(), 0, 40) + 500 * MS;
        let lost = thaws + self.rng.between(1500, 4500) * MS;
        let mut over = lost + self.dead() + self.rng.between(2000, 5000) * MS;
        let others = self.hosts as u64 - 1;
        for vm in 0..self.vms.min(MOVED) {
            let there = Some((host + 1 + small(self.rng.below(others))) % self.hosts);
            let mut when = over;
            for _ in 0..2 {
                self.push(when, Fault::VmPowerOff { vm });
                when += self.rng.between(100, 800) * MS;
                self.push(when, Fault::VmPowerOn { vm, host: there });
                when += self.rng.between(2000, 3000) * MS;
            }
        }
        over += 8 * SECOND;
        for disk in 0..self.datastores {
            self.hang(t.at, thaws, disk, Some(host));
            self.hang(lost, over, disk, Some(host));
        }
        let heal = over + self.rng.below(1000) * MS;
        self.cut(lost, heal, host);
        over
    }

    /// Storage comes and goes just around the end of the right to run.
    fn around_the_end_of_the_right(&mut self, t: Target) -> Nanos {
        let interval = nanos(self.settings.timing.datastore_heartbeat);
        let mut when = t.at;
        for _ in 0..self.rng.between(3, 10) {
            let length = self.near(self.freeze(), 30, 30);
            self.hang(when, when + length, t.disk, Some(t.host));
            when += length + self.rng.between(1, 2 * interval / MS) * MS;
        }
        when
    }

    /// Agent and guard die together while the storage hangs.
    fn agent_and_guard_die(&mut self, t: Target) -> Nanos {
        let host = t.host;
        let end = t.at + self.near(self.lapse(), 30, 60);
        self.hang(t.at, end, t.disk, Some(host));
        let kill = t.at + self.rng.below(self.lapse() / MS) * MS;
        self.push(kill, Fault::AgentKill { host });
        let second = kill + self.rng.below(300) * MS;
        self.push(second, Fault::GuardKill { host });
        end
    }

    /// A host loses power and comes back at about the time of its verdict.
    fn back_around_the_verdict(&mut self, t: Target) -> Nanos {
        let host = t.host;
        let end = t.at + self.near(self.dead(), 90, 40);
        self.push(t.at, Fault::HostPowerOff { host });
        self.push(end, Fault::HostPowerOn { host });
        end + BOOT
    }

    /// The whole datastore hangs, and the primary dies while it does.
    fn everybody_loses_the_datastore(&mut self, t: Target) -> Nanos {
        let end = t.at + self.near(self.lapse(), 50, 200);
        self.hang(t.at, end, t.disk, None);
        if self.rng.percent(50) {
            let host = small(self.hosts as u64 - 1);
            let dies = t.at + self.rng.below(self.lapse() / MS) * MS;
            self.push(dies, Fault::HostPowerOff { host });
            self.push(end + self.dead(), Fault::HostPowerOn { host });
        }
        end + self.dead()
    }

    /// Hosts were judged long ago, and live; then their storage goes, one datastore after the other.
    /// Only the window of its heartbeat is left between a host's VMs and a second instance, and its
    /// last acknowledgements may have come late.
    fn storage_goes_after_the_verdict(&mut self, t: Target) -> Nanos {
        let mut over = t.at;
        for host in self.all_but_the_best() {
            let mut when = t.at + self.dead() + self.near(self.dead(), 50, 50);
            for disk in 0..self.datastores {
                if self.rng.percent(80) {
                    let delay = self.freeze() * self.rng.between(65, 95) / 100;
                    self.slow(when, delay, disk, host);
                    when += delay * self.rng.between(100, 500) / 100;
                }
                let end = when + self.lapse() + self.near(self.lapse(), 80, 100);
                self.hang(when, end, disk, Some(host));
                when = end + self.rng.between(500, 5000) * MS;
            }
            self.cut(t.at, when, host);
            over = over.max(when);
        }
        over
    }

    /// A user switches off, and on again while nobody can say whether the lock was given back.
    fn off_and_on_while_storage_hangs(&mut self, t: Target) -> Nanos {
        if self.vms == 0 {
            return self.around_the_end_of_the_right(t);
        }
        let vm = self.vm();
        let mut when = t.at;
        for _ in 0..self.rng.between(2, 6) {
            self.push(when, Fault::VmPowerOff { vm });
            let hangs = when + self.rng.below(6000) * MS;
            let end = hangs + self.near(self.freeze(), 80, 50);
            self.hang(hangs, end, t.disk, None);
            let mut on = hangs;
            for _ in 0..3 {
                on += self.rng.below(self.freeze() / MS) * MS;
                self.push(on, Fault::VmPowerOn { vm, host: None });
            }
            when = end.max(on) + self.rng.between(1000, 8000) * MS;
        }
        when
    }

    /// Many VMs fail together; hosts fall silent while they take locks for some of them, and are back
    /// after others have judged them. Slow storage makes the moment between effect and answer long.
    fn starts_meet_a_hang(&mut self, t: Target) -> Nanos {
        let mut over = t.at;
        for vm in 0..self.vms {
            let when = t.at + SECOND + self.rng.below(20) * MS;
            self.push(when, Fault::VmCrash { vm });
        }
        for host in self.all_but_the_best() {
            let delay = self.rng.between(5, 80) * MS;
            let hangs = t.at + SECOND + delay * self.rng.between(100, 1000) / 100;
            for disk in 0..self.datastores {
                self.slow(t.at, delay, disk, host);
                let back = hangs + self.dead() + self.near(self.lapse(), 60, 60);
                self.hang(hangs, back, disk, Some(host));
                over = over.max(back);
            }
        }
        let heal = over + self.near(self.lapse(), 50, 50);
        for host in self.all_but_the_best() {
            self.cut(t.at + SECOND + 100 * MS, heal, host);
        }
        heal
    }
}
