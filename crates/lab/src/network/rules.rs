//! What the faults of a run make of a frame: a pure answer for each network, sender and receiver. The
//! words are those of the scenarios, and mean what they mean in the simulator's networks.
//!
//! # Never here
//! A device, a clock or a frame's contents; a random number that does not follow from the seed.

use mainstay_core::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// One end of a way through a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    /// A host, counted from 0.
    Host(usize),
    /// The gateway.
    Gateway,
}

impl End {
    fn host(self) -> Option<usize> {
        match self {
            Self::Host(host) => Some(host),
            Self::Gateway => None,
        }
    }
}

/// What becomes of a host's frames at its own end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Power {
    /// It sends and receives.
    On,
    /// It sends nothing; what reaches it waits.
    Paused,
    /// It sends and receives nothing.
    Off,
}

/// What becomes of a frame that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// No way leads there.
    Blocked,
    /// Chance took it.
    Lost,
    /// It is on its way for so long.
    Travels(Duration),
}

/// What becomes of a frame that reaches its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The way was closed while it travelled, or nobody is there.
    Blocked,
    /// The receiver is paused: it waits.
    Waits,
    /// The receiver gets it.
    Enters,
}

/// The faults in force.
#[derive(Debug)]
pub(super) struct Rules {
    networks: usize,
    power: Vec<Power>,
    cut: BTreeSet<(usize, usize)>,
    groups: Option<Vec<usize>>,
    dropped: BTreeSet<(usize, usize)>,
    /// Of each host's frames, in hundredths; what was set for all stays until it is healed there.
    loss: Vec<u64>,
    delay: Vec<Duration>,
    gateway_down: bool,
    seed: Rng,
    /// One for each way, so that the losses of one do not depend on what passes on others.
    dice: BTreeMap<(usize, End, End), Rng>,
}

impl Rules {
    /// No faults. All chance follows from the seed.
    pub(super) fn new(hosts: usize, networks: usize, seed: u64) -> Self {
        Self {
            networks,
            power: vec![Power::On; hosts],
            cut: BTreeSet::new(),
            groups: None,
            dropped: BTreeSet::new(),
            loss: vec![0; hosts],
            delay: vec![Duration::ZERO; hosts],
            gateway_down: false,
            seed: Rng::new(seed),
            dice: BTreeMap::new(),
        }
    }

    fn power_of(&self, end: End) -> Power {
        let host = end.host().and_then(|host| self.power.get(host));
        host.copied().unwrap_or(Power::On)
    }

    fn plugged(&self, network: usize, end: End) -> bool {
        match end {
            End::Host(host) => !self.cut.contains(&(host, network)),
            End::Gateway => !self.gateway_down,
        }
    }

    /// A way leads there. Groups and one-way drops are between hosts: a group of one reaches the gateway.
    fn link(&self, network: usize, from: End, to: End) -> bool {
        let together = |(from, to)| {
            let group = |host: usize| self.groups.as_ref().and_then(|groups| groups.get(host));
            !self.dropped.contains(&(from, to)) && group(from) == group(to)
        };
        self.plugged(network, from)
            && self.plugged(network, to)
            && from.host().zip(to.host()).is_none_or(together)
    }

    /// The greater of what was set for the two.
    fn worse<T: Copy + Ord + Default>(of: &[T], from: End, to: End) -> T {
        let at = |end: End| end.host().and_then(|host| of.get(host)).copied();
        at(from).max(at(to)).unwrap_or_default()
    }

    /// A frame was sent. Draws, where loss is set.
    pub(super) fn send(&mut self, network: usize, from: End, to: End) -> Fate {
        if self.power_of(from) != Power::On || !self.link(network, from, to) {
            return Fate::Blocked;
        }
        // The simulator draws once for the round trip to the gateway: on the way there.
        let percent = if from == End::Gateway {
            0
        } else {
            Self::worse(&self.loss, from, to)
        };
        if percent > 0 {
            let seed = &self.seed;
            let fork = || seed.fork(&format!("{network} {from:?} {to:?}"));
            let dice = self.dice.entry((network, from, to)).or_insert_with(fork);
            if dice.percent(percent) {
                return Fate::Lost;
            }
        }
        Fate::Travels(Self::worse(&self.delay, from, to))
    }

    /// A frame that travelled is there. What its sender does by now does not matter.
    pub(super) fn arrive(&self, network: usize, from: End, to: End) -> Arrival {
        if !self.link(network, from, to) {
            return Arrival::Blocked;
        }
        match self.power_of(to) {
            Power::On => Arrival::Enters,
            Power::Paused => Arrival::Waits,
            Power::Off => Arrival::Blocked,
        }
    }

    /// What becomes of a host's frames at its own end.
    pub(super) fn power(&self, host: usize) -> Power {
        self.power_of(End::Host(host))
    }

    /// Lets a host send and receive, or not.
    pub(super) fn set_power(&mut self, host: usize, power: Power) {
        met(&mut self.power, Some(host)).for_each(|p| *p = power);
    }

    /// Nothing passes between a host and one of its networks, or all of them.
    pub(super) fn cut(&mut self, host: usize, network: Option<usize>) {
        let met = (0..self.networks).filter(|n| network.is_none_or(|m| m == *n));
        self.cut.extend(met.map(|n| (host, n)));
    }

    /// Hosts in different groups do not reach each other. Hosts that no group names stay together in a
    /// group of their own.
    pub(super) fn partition(&mut self, groups: &[Vec<usize>]) {
        let of = |host: usize| {
            let named = groups.iter().position(|g| g.contains(&host));
            named.unwrap_or(groups.len())
        };
        self.groups = Some((0..self.power.len()).map(of).collect());
    }

    /// Nothing passes from one host to another.
    pub(super) fn drop_one_way(&mut self, from: usize, to: usize) {
        self.dropped.insert((from, to));
    }

    /// So many of a hundred frames are lost, of one host or of all.
    pub(super) fn set_loss(&mut self, percent: u64, host: Option<usize>) {
        met(&mut self.loss, host).for_each(|l| *l = percent);
    }

    /// Frames travel for so long, those of one host or all.
    pub(super) fn set_delay(&mut self, time: Duration, host: Option<usize>) {
        met(&mut self.delay, host).for_each(|d| *d = time);
    }

    /// The gateway answers, or is silent.
    pub(super) fn set_gateway(&mut self, up: bool) {
        self.gateway_down = !up;
    }

    /// Ends cuts, drops, loss and delay of a host or of all; partitions where no host is named; of one
    /// network only the cuts.
    pub(super) fn heal(&mut self, host: Option<usize>, network: Option<usize>) {
        self.cut.retain(|(h, n)| {
            host.is_some_and(|host| host != *h) || network.is_some_and(|m| m != *n)
        });
        if network.is_some() {
            return;
        }
        self.dropped
            .retain(|(a, b)| host.is_some_and(|h| h != *a && h != *b));
        if host.is_none() {
            self.groups = None;
        }
        self.set_loss(0, host);
        self.set_delay(Duration::ZERO, host);
    }
}

/// The places of the hosts that an event meets: one, or all.
fn met<T>(hosts: &mut [T], host: Option<usize>) -> impl Iterator<Item = &mut T> {
    let (skipped, taken) = host.map_or((0, usize::MAX), |host| (host, 1));
    hosts.iter_mut().skip(skipped).take(taken)
}

#[cfg(test)]
mod tests;
