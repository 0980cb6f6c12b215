//! Exactly-once delivery between two agents, over connections that break and paths that change
//! (seed "Components of High Availability").
//!
//! ```text
//!   send ──▶ waiting ──▶ in flight: numbered, on the wire ──▶ acknowledged
//!               │              │ not acknowledged in time, or the connection was made anew:
//!               │              └──▶ sent again, under the same number, in the same order
//!               └── the peer's agent was started again, or nothing came from it for `dead`:
//!                   the session ends, and what was not acknowledged is dropped
//! ```
//! A session is one direction between one start of an agent and one start of another. The receiver hands
//! on each number once and in order: a lower number is a repetition, a higher one shows a loss and has
//! the rest sent again. Numbers are acknowledged together, once in a heartbeat interval.
//!
//! What a session drops when it ends was meant for a process that is gone, or for a host that has been
//! judged meanwhile. No message relies on arriving (`wire::Message`): orders are repeated after their own
//! time-outs under their own numbers, reports are whole and come again, proposals are answered or not.
//!
//! Never here: what a message means.

mod incoming;
mod outgoing;
#[cfg(test)]
mod tests;

use crate::agent::{Agent, planted};
use crate::id::{HostId, InstanceId};
use crate::io::{Channel, Output};
use crate::time::{Duration, Instant};
use crate::wire::{Envelope, Message, SessionId};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use incoming::{Incoming, Taken};
use outgoing::Outgoing;

/// Former starts of a peer's agent that are remembered, so that what they still had under way is not
/// taken for a new start. A kernel sends what a dead process left in a connection for some minutes, behind a
/// network that is cut; an agent that dies at once each time is started less often than this meanwhile.
const RETIRED: usize = 64;
/// Heartbeat intervals without a sign of the start that is taken for the present one before another that
/// is heard takes its place again: what a dead agent had under way may have come after its successor.
const DOUBTED_AFTER: u32 = 3;
/// Messages taken since the last acknowledgement that bring the next one at once.
const ACKNOWLEDGE_AFTER: u32 = 16;
/// Heartbeat intervals without an acknowledgement before all in flight is sent again. Acknowledgements go
/// out once in an interval, so one of them may be lost without a repetition.
const RESEND_AFTER: u32 = 3;

/// A stream message that a room was given, for whoever tests that each is given once and in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Handed {
    /// The sender.
    pub from: HostId,
    /// The session.
    pub session: SessionId,
    /// The place in it.
    pub number: u64,
}

/// Both directions between this agent and one peer.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// The peer's start of its agent, once something came from it.
    remote: Option<InstanceId>,
    /// Those before, with what has come from each.
    retired: VecDeque<(InstanceId, Incoming)>,
    /// When something last came from that start, or was first wanted from it.
    sign: Instant,
    out: Outgoing,
    incoming: Incoming,
}

impl Session {
    fn new(now: Instant) -> Self {
        Self {
            remote: None,
            retired: VecDeque::new(),
            sign: now,
            out: Outgoing::new(),
            incoming: Incoming::default(),
        }
    }

    /// Something came from that start of the peer's agent. Gives how many messages were dropped with the
    /// session to another start; none at all: it has been replaced, and its successor is heard.
    ///
    /// Starts have no order by which to tell the newer one: only that the older one falls silent.
    fn meet(&mut self, now: Instant, instance: InstanceId, doubted: Duration) -> Option<usize> {
        if self.remote == Some(instance) {
            self.sign = now;
            return Some(0);
        }
        let known = self.retired.iter().position(|(r, _)| *r == instance);
        if known.is_some() && now.since(self.sign) <= doubted {
            return None;
        }
        self.sign = now;
        let back = known.and_then(|at| self.retired.remove(at));
        let incoming = back.map_or_else(Incoming::default, |(_, incoming)| incoming);
        let before = core::mem::replace(&mut self.incoming, incoming);
        let Some(old) = self.remote.replace(instance) else {
            return Some(0);
        };
        if self.retired.len() >= RETIRED {
            self.retired.pop_front();
        }
        self.retired.push_back((old, before));
        Some(self.out.end())
    }
}

impl Agent {
    /// Keeps note of every stream message that a room is given, for [`Agent::take_handed`].
    pub fn note_handed(&mut self) {
        self.handed = Some(Vec::new());
    }

    /// The stream messages that rooms were given since the last call, in that order.
    pub fn take_handed(&mut self) -> Vec<Handed> {
        self.handed
            .as_mut()
            .map(core::mem::take)
            .unwrap_or_default()
    }

    fn session(&mut self, peer: &HostId) -> &mut Session {
        let now = self.now;
        self.sessions
            .entry(peer.clone())
            .or_insert_with(|| Session::new(now))
    }

    /// Sends a message once, in order with the others to that host.
    pub(crate) fn send_once(&mut self, to: &HostId, message: Message) {
        let now = self.now;
        let session = self.session(to);
        if session.out.is_idle() {
            // Its silence before was nobody's concern.
            session.sign = session.sign.max(now);
        }
        if session.out.queue(message) {
            self.ignore("stream message without room in the queue");
        }
        self.pump(to);
    }

    /// Sends what may be sent for the first time.
    fn pump(&mut self, to: &HostId) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(to) else {
            return;
        };
        let (Some(remote), epoch) = (session.remote, session.out.epoch()) else {
            return;
        };
        let due = session.out.take_waiting(now);
        self.put_on_the_wire(to, remote, epoch, due);
    }

    fn put_on_the_wire(
        &mut self,
        to: &HostId,
        remote: InstanceId,
        epoch: u64,
        due: Vec<(u64, Message)>,
    ) {
        let session = SessionId {
            from: self.me.instance,
            to: remote,
            epoch,
        };
        for (number, message) in due {
            self.out.push_back(Output::Stream {
                to: to.clone(),
                envelope: Envelope {
                    session,
                    number,
                    message,
                },
            });
        }
    }

    fn send_again(&mut self, to: &HostId) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(to) else {
            return;
        };
        let (Some(remote), epoch) = (session.remote, session.out.epoch()) else {
            return;
        };
        let again = session.out.again(now);
        self.put_on_the_wire(to, remote, epoch, again);
    }

    /// The connection to a peer was made anew: what was under way on the old one may be lost. Where one
    /// breaks again and again, all that is in flight must not go out each time.
    pub(crate) fn on_stream_renewed(&mut self, to: &HostId) {
        let (now, interval) = (self.now, self.timing().network_heartbeat);
        let Some(session) = self.sessions.get_mut(to) else {
            return;
        };
        if session.out.overdue(now, interval / 2) {
            self.send_again(to);
        } else {
            session.out.doubt();
        }
    }

    /// Something came from that start of a peer's agent. False: it has been replaced, and what comes from
    /// it is void.
    pub(crate) fn meet(&mut self, peer: &HostId, instance: InstanceId) -> bool {
        let now = self.now;
        let doubted = DOUBTED_AFTER * self.timing().network_heartbeat;
        match self.session(peer).meet(now, instance, doubted) {
            Some(dropped) => {
                self.ignore_all(
                    "stream message for an agent that was started again",
                    dropped,
                );
                self.pump(peer);
                true
            }
            None => {
                self.ignore("message of an agent that was replaced");
                false
            }
        }
    }

    /// A stream message came.
    pub(crate) fn on_stream(&mut self, from: &HostId, envelope: Envelope) {
        if *from == self.me.host || !self.peers.contains_key(from) {
            self.on_message(from, envelope.message);
            return;
        }
        // Whatever becomes of the message: this host is reached.
        self.note_company();
        let Envelope {
            session: id,
            number,
            message,
        } = envelope;
        if !self.meet(from, id.from) {
            return;
        }
        if id.to != self.me.instance {
            // Meant for an earlier start of this agent; the sender does not know of this one yet.
            self.ignore("stream message for an agent that was started again");
            self.acknowledge(from, false);
            return;
        }
        let (now, interval) = (self.now, self.timing().network_heartbeat);
        let taken = self.session(from).incoming.take(id.epoch, number);
        let give = match taken {
            Taken::New => true,
            Taken::Again => planted!(self, StreamDoubled),
            Taken::Ahead => {
                if self.session(from).incoming.may_complain(now, interval / 2) {
                    self.acknowledge(from, true);
                }
                false
            }
            Taken::Former => {
                self.ignore("message of a stream session that was given up");
                false
            }
        };
        if self.session(from).incoming.owed() >= ACKNOWLEDGE_AFTER {
            self.acknowledge(from, false);
        }
        if give {
            if let Some(handed) = &mut self.handed {
                handed.push(Handed {
                    from: from.clone(),
                    session: id,
                    number,
                });
            }
            self.note_instance(from, id.from);
            self.on_message(from, message);
        }
    }

    /// Tells a peer which start of this agent it talks to, and what has arrived.
    fn acknowledge(&mut self, to: &HostId, again: bool) {
        let instance = self.me.instance;
        let session = self.session(to);
        let of = session.remote;
        let (epoch, up_to) = session.incoming.settle();
        let message = Message::Acknowledge {
            instance,
            of,
            epoch,
            up_to,
            again,
        };
        self.send(to, Channel::Datagram, message);
    }

    /// A peer says what has arrived there.
    pub(crate) fn on_acknowledge(
        &mut self,
        from: &HostId,
        instance: InstanceId,
        of: Option<InstanceId>,
        (epoch, up_to): (u64, u64),
        again: bool,
    ) {
        if !self.meet(from, instance) {
            return;
        }
        if of != Some(self.me.instance) {
            // It does not know this start of the agent yet.
            self.acknowledge(from, false);
            return;
        }
        let (now, interval) = (self.now, self.timing().network_heartbeat);
        let session = self.session(from);
        if session.out.epoch() != epoch {
            return;
        }
        session.out.acknowledged(up_to);
        if again && session.out.overdue(now, interval / 2) {
            self.send_again(from);
        }
        self.pump(from);
    }

    /// Once in each heartbeat interval: acknowledgements, repetitions, sessions that end.
    pub(crate) fn run_sessions(&mut self) {
        let now = self.now;
        let t = self.timing();
        let (patience, silence) = (RESEND_AFTER * t.network_heartbeat, t.dead);
        let peers: Vec<HostId> = self
            .sessions
            .iter()
            .filter(|(_, s)| !s.out.is_idle() || s.incoming.owed() > 0)
            .map(|(h, _)| h.clone())
            .collect();
        for peer in peers {
            let session = self.session(&peer);
            let idle = session.out.is_idle();
            let unknown = session.remote.is_none();
            if !idle && now.since(session.sign) > silence {
                let dropped = session.out.end();
                self.ignore_all("stream message for a host that is silent", dropped);
            } else if session.out.is_in_doubt() || session.out.is_late(now, patience) {
                self.send_again(&peer);
            }
            let session = self.session(&peer);
            if session.incoming.owed() > 0 || (unknown && !idle) {
                self.acknowledge(&peer, false);
            }
        }
    }

    /// Gives up the sessions to hosts that are no members any more. They are kept in mind: a host that
    /// joins again would take numbers that begin anew in the same session for repetitions.
    pub(crate) fn end_sessions_without_a_member(&mut self) {
        for (host, session) in &mut self.sessions {
            if !self.config.hosts.contains_key(host) && !session.out.is_idle() {
                session.out.end();
            }
        }
    }

    /// This agent did not listen for a while: nobody's silence counts.
    pub(crate) fn sessions_listen_from(&mut self, now: Instant) {
        for session in self.sessions.values_mut() {
            session.sign = now;
        }
    }
}
