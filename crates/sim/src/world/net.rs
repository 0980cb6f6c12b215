//! Management networks: who reaches whom, how late, and what is lost.

use super::stream::Connection;
use super::{Happening, World};
use crate::clock::{MS, Nanos, SECOND};
use crate::scenario::Scenario;
use mainstay_core::id::OpId;
use mainstay_core::io::{Input, PingOutcome, PingTarget};
use mainstay_core::time::nanos;
use mainstay_core::wire::{Envelope, Message, Stamp};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;

/// A connection that stands still for longer is reset.
pub(super) const STREAM_PATIENCE: Nanos = 15 * SECOND;
/// One in so many messages goes through the wire format and must come back as it was.
const CODEC_SAMPLE: u64 = 64;

/// What travels.
#[derive(Clone, Debug)]
pub(super) enum Parcel {
    Datagram(Box<Message>),
    Stream(Arc<Envelope>),
}

/// The state of all management networks.
#[derive(Debug, Default)]
pub(super) struct Network {
    networks: Vec<Vec<usize>>,
    cut: BTreeSet<(usize, usize)>,
    groups: Option<Vec<usize>>,
    dropped: BTreeSet<(usize, usize)>,
    /// Of each host's messages, in hundredths; what was set for all stays until it is healed there.
    loss: Vec<u64>,
    delay: Vec<Nanos>,
    gateway_down: bool,
    pub(super) streams: BTreeMap<(usize, usize), Connection>,
    latency: Vec<Vec<Nanos>>,
}

impl Network {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let hosts = scenario.hosts.len();
        Self {
            networks: scenario.hosts.iter().map(|h| h.networks.clone()).collect(),
            loss: vec![0; hosts],
            delay: vec![0; hosts],
            ..Self::default()
        }
    }

    /// Draws the latency of each ordered pair.
    pub(super) fn draw(&mut self, dice: &mut mainstay_core::rng::Rng) {
        let hosts = self.networks.len();
        self.latency = (0..hosts)
            .map(|_| (0..hosts).map(|_| dice.between(100_000, 300_000)).collect())
            .collect();
    }

    fn attached(&self, host: usize) -> impl Iterator<Item = usize> + '_ {
        let all = self
            .networks
            .get(host)
            .map(Vec::as_slice)
            .unwrap_or_default();
        all.iter()
            .copied()
            .filter(move |n| !self.cut.contains(&(host, *n)))
    }

    fn group(&self, host: usize) -> Option<usize> {
        self.groups.as_ref()?.get(host).copied()
    }

    /// A message from one host reaches the other over that network, chance aside.
    pub(super) fn link(&self, from: usize, to: usize, network: usize) -> bool {
        self.attached(from).any(|n| n == network)
            && self.attached(to).any(|n| n == network)
            && !self.dropped.contains(&(from, to))
            && self.group(from) == self.group(to)
    }

    /// A network over which a message from one host reaches the other, chance aside.
    pub(super) fn any_link(&self, from: usize, to: usize) -> Option<usize> {
        if self.dropped.contains(&(from, to)) || self.group(from) != self.group(to) {
            return None;
        }
        self.attached(from)
            .find(|n| self.attached(to).any(|m| m == *n))
    }

    /// A message from one host reaches the other, chance aside.
    pub(super) fn path(&self, from: usize, to: usize) -> bool {
        self.any_link(from, to).is_some()
    }

    /// The gateway of a host's `index`th network answers it.
    fn gateway(&self, host: usize, index: usize) -> bool {
        let network = self.networks.get(host).and_then(|n| n.get(index)).copied();
        !self.gateway_down && self.attached(host).any(|n| Some(n) == network)
    }

    fn loss(&self, host: usize) -> u64 {
        self.loss.get(host).copied().unwrap_or(0)
    }

    fn delay(&self, host: usize) -> Nanos {
        self.delay.get(host).copied().unwrap_or(0)
    }

    fn pair(&self, from: usize, to: usize) -> Nanos {
        self.latency
            .get(from)
            .and_then(|row| row.get(to))
            .copied()
            .unwrap_or(200_000)
    }

    pub(super) fn cut(&mut self, host: usize, network: Option<usize>) {
        let all = self.networks.get(host).cloned().unwrap_or_default();
        self.cut.extend(
            all.into_iter()
                .filter(|n| network.is_none_or(|m| m == *n))
                .map(|n| (host, n)),
        );
    }

    /// Hosts that no group names stay together in a group of their own.
    pub(super) fn partition(&mut self, groups: &[Vec<usize>]) {
        let of = |host: usize| {
            groups
                .iter()
                .position(|g| g.contains(&host))
                .unwrap_or(groups.len())
        };
        self.groups = Some((0..self.networks.len()).map(of).collect());
    }

    pub(super) fn drop_way(&mut self, from: usize, to: usize) {
        self.dropped.insert((from, to));
    }

    pub(super) fn set_loss(&mut self, percent: u64, host: Option<usize>) {
        met(&mut self.loss, host).for_each(|l| *l = percent);
    }

    pub(super) fn set_delay(&mut self, time: Nanos, host: Option<usize>) {
        met(&mut self.delay, host).for_each(|d| *d = time);
    }

    pub(super) fn set_gateway(&mut self, up: bool) {
        self.gateway_down = !up;
    }

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
        self.set_delay(0, host);
    }
}

/// The places of the hosts that an event meets: one, or all.
fn met<T>(hosts: &mut [T], host: Option<usize>) -> impl Iterator<Item = &mut T> {
    let (skipped, taken) = host.map_or((0, usize::MAX), |host| (host, 1));
    hosts.iter_mut().skip(skipped).take(taken)
}

impl World<'_> {
    /// An agent sends a datagram to another, over every network at once.
    pub(super) fn send_datagram(&mut self, from: usize, to: usize, message: Message) {
        self.must_survive_the_wire(from, &message, |cluster, stamp| {
            let back = Message::decode(cluster, &message.encode(cluster, stamp));
            back.ok().map(|(_, message)| message)
        });
        if self.net.path(from, to) && self.hosts[to].powered {
            self.datagram(from, to, Box::new(message));
        }
    }

    pub(super) fn late(&mut self, from: usize, to: usize) -> Nanos {
        let base = self.net.pair(from, to) + self.dice.net.below(50_000);
        let slow = self.net.delay(from).max(self.net.delay(to));
        let weather = self.scenario.weather;
        let storm = if self.stormy() && self.dice.net.below(1000) < weather.delay {
            self.dice.net.below(weather.delay_ms.max(1)) * MS
        } else {
            0
        };
        base + slow + storm
    }

    pub(super) fn lost(&mut self, from: usize, to: usize) -> bool {
        let percent = self.net.loss(from).max(self.net.loss(to));
        (percent > 0 && self.dice.net.percent(percent))
            || (self.stormy() && self.dice.net.below(1000) < self.scenario.weather.loss)
    }

    fn datagram(&mut self, from: usize, to: usize, message: Box<Message>) {
        let run = self.hosts[to].agent_run;
        let on_the_way = |message| Happening::Deliver {
            from,
            to,
            parcel: Parcel::Datagram(message),
            run,
        };
        if self.stormy() && self.dice.net.below(1000) < self.scenario.weather.duplication {
            let late = self.late(from, to) + self.dice.net.below(200) * MS;
            self.after(late, on_the_way(message.clone()));
        }
        if self.lost(from, to) {
            return;
        }
        let late = self.late(from, to);
        self.after(late, on_the_way(message));
    }

    pub(super) fn deliver(&mut self, from: usize, to: usize, parcel: Parcel, run: u64) {
        match parcel {
            Parcel::Datagram(message) => self.deliver_datagram(from, to, message, run),
            Parcel::Stream(envelope) => self.deliver_on_stream(from, to, envelope, run),
        }
    }

    /// A message shows which formats its sender understands, and the receiver must understand its own.
    pub(super) fn show_formats(&mut self, from: usize, to: usize, version: u16) {
        let (shown, understood) = (self.hosts[from].formats, self.hosts[to].formats);
        if version > understood {
            self.fail(format!(
                "{} was sent a message of version {version} and understands {understood}",
                self.hosts[to].id
            ));
        }
        if self.hosts[to].seen_formats.insert(from, shown) != Some(shown) {
            let host = self.hosts[from].id.clone();
            let version = shown;
            self.feed(to, Input::Understands { host, version });
        }
    }

    /// The simulation ends: something happened that must never.
    pub(super) fn fail(&mut self, error: String) {
        self.error = Some(error);
        self.ended = true;
    }

    fn deliver_datagram(&mut self, from: usize, to: usize, message: Box<Message>, run: u64) {
        let host = &self.hosts[to];
        if !host.powered || host.agent.is_none() || !self.net.path(from, to) {
            return;
        }
        if host.paused {
            // Its socket keeps some.
            if self.dice.net.percent(30) {
                self.keep_for_paused(from, to, Parcel::Datagram(message), run);
            }
            return;
        }
        self.show_formats(from, to, message.version());
        let from = self.hosts[from].id.clone();
        let message = *message;
        self.feed(to, Input::Message { from, message });
    }

    pub(super) fn ping(&mut self, host: usize, op: OpId, target: &PingTarget) {
        let patience = nanos(self.settings_of(host).timing.network_heartbeat).min(SECOND);
        let (answers, lost) = match target {
            PingTarget::Isolation(index) => (self.net.gateway(host, *index), self.lost(host, host)),
            PingTarget::Host(id) => match self.host_index.get(id).copied() {
                Some(other) => {
                    let both = self.net.path(host, other) && self.net.path(other, host);
                    (
                        both && self.hosts[other].answers_pings(self.now),
                        self.lost(host, other) || self.lost(other, host),
                    )
                }
                None => (false, false),
            },
        };
        let other = match target {
            PingTarget::Host(id) => self.host_index.get(id).copied(),
            PingTarget::Isolation(_) => None,
        };
        let other = other.unwrap_or(host);
        let wait = self.late(host, other) + self.late(other, host);
        let (wait, outcome) = if answers && !lost && wait < patience {
            (wait, PingOutcome::Answered)
        } else {
            (patience, PingOutcome::NoAnswer)
        };
        if matches!(target, PingTarget::Isolation(_)) && outcome == PingOutcome::Answered {
            self.hosts[host].gateway_pings.insert(op);
        }
        self.answer(host, wait, Input::Pinged(op, outcome));
    }

    fn stamp_of(&self, host: usize) -> Stamp {
        let host = &self.hosts[host];
        Stamp {
            writer: host.id.clone(),
            boot: host.boot_id,
            instance: mainstay_core::id::InstanceId(host.agent_run),
            seq: self.seq,
        }
    }

    /// What its receiver reads is what was sent, tried on a sample. `carried` writes it for a cluster, with
    /// a stamp, and reads it back.
    pub(super) fn must_survive_the_wire<T: PartialEq + Debug>(
        &mut self,
        from: usize,
        sent: &T,
        carried: impl FnOnce(u64, &Stamp) -> Option<T>,
    ) {
        if self.dice.codec.below(CODEC_SAMPLE) != 0 {
            return;
        }
        let cluster = self.scenario.config.cluster_id;
        if carried(cluster, &self.stamp_of(from)).as_ref() != Some(sent) {
            self.fail(format!("a message did not survive the wire: {sent:?}"));
        }
    }

    /// What reaches a paused host's socket waits there.
    pub(super) fn keep_for_paused(&mut self, from: usize, to: usize, parcel: Parcel, run: u64) {
        self.hosts[to].deferred.push(Happening::Deliver {
            from,
            to,
            parcel,
            run,
        });
    }
}
