//! Management networks: who reaches whom, how late, and what is lost.

use super::{Happening, World};
use crate::clock::{MS, Nanos, SECOND};
use crate::scenario::Scenario;
use mainstay_core::id::OpId;
use mainstay_core::io::{Channel, Input, PingOutcome, PingTarget};
use mainstay_core::time::nanos;
use mainstay_core::wire::{Message, Stamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A connection that stands still for longer is reset.
const STREAM_PATIENCE: Nanos = 15 * SECOND;
/// One in so many messages goes through the wire format and must come back as it was.
const CODEC_SAMPLE: u64 = 64;

#[derive(Debug, Default)]
struct Held {
    since: Nanos,
    messages: VecDeque<(Box<Message>, u64)>,
}

/// The state of all management networks.
#[derive(Debug, Default)]
pub(super) struct Network {
    networks: Vec<Vec<usize>>,
    cut: BTreeSet<(usize, usize)>,
    groups: Option<Vec<usize>>,
    dropped: BTreeSet<(usize, usize)>,
    loss: Vec<u64>,
    loss_all: u64,
    delay: Vec<Nanos>,
    delay_all: Nanos,
    gateway_down: bool,
    /// When the last message of each stream arrives: streams keep their order.
    stream: BTreeMap<(usize, usize), Nanos>,
    held: BTreeMap<(usize, usize), Held>,
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

    /// A message from one host reaches the other, chance aside.
    pub(super) fn path(&self, from: usize, to: usize) -> bool {
        let common = self
            .attached(from)
            .any(|n| self.attached(to).any(|m| m == n));
        common && !self.dropped.contains(&(from, to)) && self.group(from) == self.group(to)
    }

    /// The gateway of a host's `index`th network answers it.
    fn gateway(&self, host: usize, index: usize) -> bool {
        let network = self.networks.get(host).and_then(|n| n.get(index)).copied();
        !self.gateway_down && self.attached(host).any(|n| Some(n) == network)
    }

    fn loss(&self, host: usize) -> u64 {
        self.loss_all.max(self.loss.get(host).copied().unwrap_or(0))
    }

    fn delay(&self, host: usize) -> Nanos {
        self.delay_all
            .max(self.delay.get(host).copied().unwrap_or(0))
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
        match host {
            None => self.loss_all = percent,
            Some(host) => self
                .loss
                .iter_mut()
                .skip(host)
                .take(1)
                .for_each(|l| *l = percent),
        }
    }

    pub(super) fn set_delay(&mut self, time: Nanos, host: Option<usize>) {
        match host {
            None => self.delay_all = time,
            Some(host) => self
                .delay
                .iter_mut()
                .skip(host)
                .take(1)
                .for_each(|d| *d = time),
        }
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
        match host {
            None => {
                self.groups = None;
                self.loss_all = 0;
                self.delay_all = 0;
                self.loss.fill(0);
                self.delay.fill(0);
            }
            Some(_) => {
                self.set_loss(0, host);
                self.set_delay(0, host);
            }
        }
    }
}

impl World<'_> {
    pub(super) fn send(&mut self, from: usize, to: usize, channel: Channel, message: Message) {
        let message = self.through_the_wire(from, message);
        let run = self.hosts[to].agent_run;
        if !self.net.path(from, to) || !self.hosts[to].powered {
            if channel == Channel::Stream {
                self.hold(from, to, message, run);
            }
            return;
        }
        match channel {
            Channel::Datagram => self.datagram(from, to, message),
            Channel::Stream => self.stream(from, to, message, run),
        }
    }

    fn late(&mut self, from: usize, to: usize) -> Nanos {
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

    fn lost(&mut self, from: usize, to: usize) -> bool {
        let percent = self.net.loss(from).max(self.net.loss(to));
        (percent > 0 && self.dice.net.percent(percent))
            || (self.stormy() && self.dice.net.below(1000) < self.scenario.weather.loss)
    }

    fn datagram(&mut self, from: usize, to: usize, message: Box<Message>) {
        let run = self.hosts[to].agent_run;
        if self.stormy() && self.dice.net.below(1000) < self.scenario.weather.duplication {
            let late = self.late(from, to) + self.dice.net.below(200) * MS;
            let message = message.clone();
            self.after(
                late,
                Happening::Deliver {
                    from,
                    to,
                    message,
                    channel: Channel::Datagram,
                    run,
                },
            );
        }
        if self.lost(from, to) {
            return;
        }
        let late = self.late(from, to);
        self.after(
            late,
            Happening::Deliver {
                from,
                to,
                message,
                channel: Channel::Datagram,
                run,
            },
        );
    }

    fn stream(&mut self, from: usize, to: usize, message: Box<Message>, run: u64) {
        let mut late = self.late(from, to);
        // A lost segment is sent again, later each time.
        let mut again = 200 * MS;
        while again < 4 * SECOND && self.lost(from, to) {
            late += again;
            again *= 2;
        }
        let last = self.net.stream.get(&(from, to)).copied().unwrap_or(0);
        let at = (self.now + late).max(last + 1);
        self.net.stream.insert((from, to), at);
        self.at(
            at,
            Happening::Deliver {
                from,
                to,
                message,
                channel: Channel::Stream,
                run,
            },
        );
    }

    /// What is sent into a cut connection waits in the sender's socket until it is reset.
    fn hold(&mut self, from: usize, to: usize, message: Box<Message>, run: u64) {
        let now = self.now;
        let held = self.net.held.entry((from, to)).or_insert_with(|| Held {
            since: now,
            messages: VecDeque::new(),
        });
        if now - held.since > STREAM_PATIENCE || held.messages.len() >= 256 {
            held.messages.clear();
            held.since = now;
        }
        held.messages.push_back((message, run));
    }

    /// Paths may have come back: connections go on, or were reset.
    pub(super) fn release_held(&mut self) {
        let pairs: Vec<(usize, usize)> = self.net.held.keys().copied().collect();
        for (from, to) in pairs {
            if !self.net.path(from, to) || !self.hosts[to].powered {
                continue;
            }
            let Some(held) = self.net.held.remove(&(from, to)) else {
                continue;
            };
            let reset = self.now - held.since > STREAM_PATIENCE || self.dice.net.percent(30);
            if reset || !self.hosts[from].powered {
                continue;
            }
            for (message, run) in held.messages {
                self.stream(from, to, message, run);
            }
        }
    }

    pub(super) fn deliver(
        &mut self,
        from: usize,
        to: usize,
        message: Box<Message>,
        channel: Channel,
        run: u64,
    ) {
        let host = &self.hosts[to];
        if !host.powered || host.agent.is_none() {
            return;
        }
        if !self.net.path(from, to) {
            if channel == Channel::Stream {
                self.hold(from, to, message, run);
            }
            return;
        }
        // A connection ends with the process at its other end.
        if channel == Channel::Stream && host.agent_run != run {
            return;
        }
        if host.paused {
            if channel == Channel::Stream || self.dice.net.percent(30) {
                let what = Happening::Deliver {
                    from,
                    to,
                    message,
                    channel,
                    run,
                };
                self.hosts[to].deferred.push(what);
            }
            return;
        }
        let from = self.hosts[from].id.clone();
        self.feed(
            to,
            Input::Message {
                from,
                message: *message,
            },
        );
    }

    pub(super) fn ping(&mut self, host: usize, op: OpId, target: &PingTarget) {
        let patience = nanos(self.scenario.config.settings.timing.network_heartbeat).min(SECOND);
        let (answers, lost) = match target {
            PingTarget::Isolation(index) => (self.net.gateway(host, *index), self.lost(host, host)),
            PingTarget::Host(id) => match self.host_index.get(id).copied() {
                Some(other) => {
                    let both = self.net.path(host, other) && self.net.path(other, host);
                    (
                        both && self.hosts[other].up(),
                        self.lost(host, other) || self.lost(other, host),
                    )
                }
                None => (false, false),
            },
        };
        let (wait, outcome) = if answers && !lost {
            (
                400_000 + self.dice.net.below(200_000),
                PingOutcome::Answered,
            )
        } else {
            (patience, PingOutcome::NoAnswer)
        };
        if matches!(target, PingTarget::Isolation(_)) && outcome == PingOutcome::Answered {
            self.hosts[host].gateway_pings.insert(op);
        }
        self.answer(host, wait, Input::Pinged(op, outcome));
    }

    fn through_the_wire(&mut self, from: usize, message: Message) -> Box<Message> {
        if self.dice.codec.below(CODEC_SAMPLE) == 0 {
            let host = &self.hosts[from];
            let stamp = Stamp {
                writer: host.id.clone(),
                boot: host.boot_id,
                instance: mainstay_core::id::InstanceId(host.agent_run),
                seq: self.seq,
            };
            let cluster = self.scenario.config.cluster_id;
            let back = Message::decode(cluster, &message.encode(cluster, &stamp));
            if back.as_ref().map(|(_, m)| m) != Ok(&message) {
                self.error = Some(format!("a message did not survive the wire: {message:?}"));
                self.ended = true;
            }
        }
        Box::new(message)
    }
}
