//! Streams between agents as TCP gives them: in order while a connection stands, and when it breaks,
//! nobody knows how much of what was under way has arrived. A stream runs over one management network and
//! is connected anew over another when that one is dead.

use super::net::{Parcel, STREAM_PATIENCE};
use super::{Happening, World};
use crate::clock::{MS, Nanos, SECOND};
use crate::invariants::Fact;
use mainstay_core::io::Input;
use mainstay_core::time::nanos;
use mainstay_core::wire::{Envelope, SessionId};
use std::collections::VecDeque;
use std::sync::Arc;

/// What the sender's side keeps to send again over the next connection.
const RECENT: usize = 4;
/// What a socket takes while its connection stands still.
const HELD: usize = 256;

/// The stream from one host to another.
#[derive(Debug, Default)]
pub(super) struct Connection {
    network: Option<usize>,
    /// When the last message arrives: streams keep their order.
    last: Nanos,
    /// The newest message that was sent for the first time.
    newest: Option<(SessionId, u64)>,
    recent: VecDeque<Arc<Envelope>>,
    /// What was sent into a dead connection, for which start of the receiver's agent, and since when.
    held: VecDeque<(Arc<Envelope>, u64)>,
    since: Nanos,
    /// The sender is about to notice that its connection is dead.
    moves: bool,
}

impl World<'_> {
    /// An agent sends a message on its stream to another.
    pub(super) fn send_on_stream(&mut self, from: usize, to: usize, envelope: Envelope) {
        let fact = Fact::StreamSent {
            from,
            to,
            envelope: &envelope,
        };
        self.judge.observe(self.now, &fact);
        let place = (envelope.session, envelope.number);
        let way = self.net.any_link(from, to);
        let connection = self.net.streams.entry((from, to)).or_default();
        let repeated = connection
            .newest
            .is_some_and(|(session, number)| session == place.0 && place.1 <= number);
        connection.network = connection.network.or(way);
        if !repeated {
            connection.newest = Some(place);
            // An act is done when it is sent for the first time.
            self.overhear(from, &envelope.message);
        }
        self.must_survive_the_wire(from, &envelope, |cluster, stamp| {
            let back = Envelope::decode(cluster, &envelope.encode(cluster, stamp));
            back.ok().map(|(_, envelope)| envelope)
        });
        let envelope = Arc::new(envelope);
        let run = self.hosts[to].agent_run;
        if !self.stream_stands(from, to) {
            self.hold(from, to, envelope, run);
            return;
        }
        if self.stormy() && self.dice.net.below(1000) < self.scenario.weather.reset {
            self.hold(from, to, envelope, run);
            self.reconnect(from, to);
            return;
        }
        self.put_on_stream(from, to, envelope, run);
    }

    /// The network that the stream runs over leads to its end, and somebody is there.
    fn stream_stands(&self, from: usize, to: usize) -> bool {
        let network = self.net.streams.get(&(from, to)).and_then(|c| c.network);
        network.is_some_and(|n| self.net.link(from, to, n)) && self.hosts[to].powered
    }

    fn put_on_stream(&mut self, from: usize, to: usize, envelope: Arc<Envelope>, run: u64) {
        let mut late = self.late(from, to);
        // A lost segment is sent again, later each time.
        let mut again = 200 * MS;
        while again < 4 * SECOND && self.lost(from, to) {
            late += again;
            again *= 2;
        }
        let now = self.now;
        let Some(connection) = self.net.streams.get_mut(&(from, to)) else {
            return;
        };
        let at = (now + late).max(connection.last + 1);
        connection.last = at;
        if connection.recent.len() >= RECENT {
            connection.recent.pop_front();
        }
        connection.recent.push_back(Arc::clone(&envelope));
        let parcel = Parcel::Stream(envelope);
        self.at(
            at,
            Happening::Deliver {
                from,
                to,
                parcel,
                run,
            },
        );
    }

    /// What is sent into a dead connection waits in the sender's socket until that is closed.
    fn hold(&mut self, from: usize, to: usize, envelope: Arc<Envelope>, run: u64) {
        let now = self.now;
        let Some(connection) = self.net.streams.get_mut(&(from, to)) else {
            return;
        };
        if connection.held.is_empty() {
            connection.since = now;
        }
        if now - connection.since > STREAM_PATIENCE || connection.held.len() >= HELD {
            connection.held.clear();
            connection.since = now;
        }
        connection.held.push_back((envelope, run));
        self.notice_dead_connection(from, to);
    }

    /// Where another network leads to the same host, the sender will move there.
    fn notice_dead_connection(&mut self, from: usize, to: usize) {
        let other = self.net.any_link(from, to).is_some() && self.hosts[to].powered;
        let limit = nanos(self.settings_of(from).timing.stream_limit());
        let Some(connection) = self.net.streams.get_mut(&(from, to)) else {
            return;
        };
        if other && !connection.moves {
            connection.moves = true;
            self.after(limit, Happening::StreamMoves { from, to });
        }
    }

    /// The sender has waited long enough for an answer on a connection.
    pub(super) fn stream_moves(&mut self, from: usize, to: usize) {
        if let Some(connection) = self.net.streams.get_mut(&(from, to)) {
            connection.moves = false;
        }
        if self.stream_stands(from, to) {
            self.release(from, to);
        } else if self.net.any_link(from, to).is_some() && self.hosts[to].powered {
            self.reconnect(from, to);
        }
    }

    /// A new connection, over a network that leads there. Of what was under way on the old one all is
    /// lost, or what its socket held is sent again, or also what had arrived already.
    fn reconnect(&mut self, from: usize, to: usize) {
        let fate = self.dice.net.below(3);
        let way = self.net.any_link(from, to);
        let run = self.hosts[to].agent_run;
        let Some(connection) = self.net.streams.get_mut(&(from, to)) else {
            return;
        };
        connection.network = way;
        let held = std::mem::take(&mut connection.held);
        let recent = std::mem::take(&mut connection.recent);
        if !self.hosts[from].powered {
            return;
        }
        if fate == 2 {
            for envelope in recent {
                self.put_on_stream(from, to, envelope, run);
            }
        }
        if fate > 0 {
            for (envelope, run) in held {
                self.put_on_stream(from, to, envelope, run);
            }
        }
        let to = self.hosts[to].id.clone();
        self.answer(from, MS, Input::StreamRenewed { to });
    }

    /// A connection that stood still goes on, or was closed meanwhile.
    fn release(&mut self, from: usize, to: usize) {
        let Some(connection) = self.net.streams.get_mut(&(from, to)) else {
            return;
        };
        if connection.held.is_empty() {
            return;
        }
        let old = self.now - connection.since > STREAM_PATIENCE;
        if old || self.dice.net.percent(30) {
            self.reconnect(from, to);
            return;
        }
        let Some(connection) = self.net.streams.get_mut(&(from, to)) else {
            return;
        };
        let held = std::mem::take(&mut connection.held);
        if self.hosts[from].powered {
            for (envelope, run) in held {
                self.put_on_stream(from, to, envelope, run);
            }
        }
    }

    /// Paths may have come back.
    pub(super) fn release_held(&mut self) {
        let waiting = |(pair, c): (&(usize, usize), &Connection)| {
            (!c.held.is_empty() && !c.moves).then_some(*pair)
        };
        let pairs: Vec<(usize, usize)> = self.net.streams.iter().filter_map(waiting).collect();
        for (from, to) in pairs {
            if self.stream_stands(from, to) {
                self.release(from, to);
            } else {
                self.notice_dead_connection(from, to);
            }
        }
    }

    /// A message reaches the other end of its stream, if there still is one.
    pub(super) fn deliver_on_stream(
        &mut self,
        from: usize,
        to: usize,
        envelope: Arc<Envelope>,
        run: u64,
    ) {
        let host = &self.hosts[to];
        if !host.powered || host.agent.is_none() {
            return;
        }
        if !self.stream_stands(from, to) {
            self.hold(from, to, envelope, run);
            return;
        }
        // A connection ends with the process at its other end.
        if host.agent_run != run {
            return;
        }
        if host.paused {
            self.keep_for_paused(from, to, Parcel::Stream(envelope), run);
            return;
        }
        self.show_formats(from, to, envelope.message.version());
        let from = self.hosts[from].id.clone();
        let envelope = Arc::unwrap_or_clone(envelope);
        self.feed(to, Input::Stream { from, envelope });
    }

    /// What the rooms of an agent were given from streams.
    pub(super) fn streams_handed(&mut self, to: usize) {
        let Some(agent) = &mut self.hosts[to].agent else {
            return;
        };
        for handed in agent.take_handed() {
            let Some(from) = self.host_index.get(&handed.from).copied() else {
                continue;
            };
            let fact = Fact::StreamHanded {
                from,
                to,
                session: handed.session,
                number: handed.number,
            };
            self.judge.observe(self.now, &fact);
        }
    }
}
