//! What is sent to one peer: numbered, kept until it is acknowledged.

use crate::config::CONCURRENT_RESTARTS_MAX;
use crate::time::{Duration, Instant};
use crate::wire::Message;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Messages on the wire that are not acknowledged yet.
const IN_FLIGHT: usize = 256;
/// Messages behind them: as many orders as may be under way to one host, and what else is said meanwhile.
/// When there is no room, the oldest of them goes.
const WAITING: usize = CONCURRENT_RESTARTS_MAX as usize + IN_FLIGHT;
/// The time before a repetition doubles up to so often while nothing is acknowledged.
const DOUBLINGS: u32 = 3;

#[derive(Clone, Debug)]
struct InFlight {
    number: u64,
    sent: Instant,
    message: Message,
}

#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    epoch: u64,
    next: u64,
    in_flight: VecDeque<InFlight>,
    waiting: VecDeque<Message>,
    repetitions: u32,
    /// The connection was made anew since the last repetition, and that was too recent for another.
    renewed: bool,
}

/// The newer message says all that the older one says.
fn replaces(newer: &Message, older: &Message) -> bool {
    match newer {
        Message::Report(_) => matches!(older, Message::Report(_) | Message::Changes(_)),
        Message::ReportWanted
        | Message::Protected { .. }
        | Message::ConfigVersion { .. }
        | Message::Config(_) => core::mem::discriminant(newer) == core::mem::discriminant(older),
        _ => false,
    }
}

impl Outgoing {
    pub(super) fn new() -> Self {
        Self {
            epoch: 1,
            next: 1,
            in_flight: VecDeque::new(),
            waiting: VecDeque::new(),
            repetitions: 0,
            renewed: false,
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Nothing waits, and all has been acknowledged.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.waiting.is_empty()
    }

    /// Takes a message; true when another one was dropped for it. One that waits, and that this one makes
    /// worthless, is dropped silently.
    pub(super) fn queue(&mut self, message: Message) -> bool {
        self.waiting.retain(|older| !replaces(&message, older));
        let full = self.waiting.len() >= WAITING;
        if full {
            self.waiting.pop_front();
        }
        self.waiting.push_back(message);
        full
    }

    /// Numbers what there is room for, to be sent now.
    pub(super) fn take_waiting(&mut self, now: Instant) -> Vec<(u64, Message)> {
        let mut due = Vec::new();
        while self.in_flight.len() < IN_FLIGHT {
            let Some(message) = self.waiting.pop_front() else {
                break;
            };
            let number = self.next;
            self.next += 1;
            due.push((number, message.clone()));
            self.in_flight.push_back(InFlight {
                number,
                sent: now,
                message,
            });
        }
        due
    }

    /// All numbers up to this one have arrived. A number that was never sent says nothing.
    pub(super) fn acknowledged(&mut self, up_to: u64) {
        if up_to >= self.next {
            return;
        }
        while self.in_flight.front().is_some_and(|m| m.number <= up_to) {
            self.in_flight.pop_front();
            self.repetitions = 0;
        }
    }

    /// The oldest message in flight was sent so long ago, or longer.
    pub(super) fn overdue(&self, now: Instant, time: Duration) -> bool {
        let oldest = self.in_flight.front();
        oldest.is_some_and(|m| now.since(m.sent) >= time)
    }

    /// It is time to send again what is in flight: later each time.
    pub(super) fn is_late(&self, now: Instant, patience: Duration) -> bool {
        self.overdue(now, patience * (1 << self.repetitions.min(DOUBLINGS)))
    }

    /// What is in flight may be lost with a connection: it is to be sent again soon.
    pub(super) fn doubt(&mut self) {
        self.renewed = !self.in_flight.is_empty();
    }

    /// It is to be sent again because of that.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.renewed
    }

    /// All that is in flight, to be sent again now.
    pub(super) fn again(&mut self, now: Instant) -> Vec<(u64, Message)> {
        self.repetitions += 1;
        self.renewed = false;
        self.in_flight
            .iter_mut()
            .map(|m| {
                m.sent = now;
                (m.number, m.message.clone())
            })
            .collect()
    }

    /// Gives the session up; the next message begins another. Tells how many messages were dropped.
    pub(super) fn end(&mut self) -> usize {
        let dropped = self.in_flight.len() + self.waiting.len();
        let epoch = self.epoch + 1;
        *self = Self {
            epoch,
            ..Self::new()
        };
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_orders_as_may_be_under_way_find_room_before_any_is_acknowledged() {
        let mut out = Outgoing::new();
        let mut sent = 0;
        for _ in 0..CONCURRENT_RESTARTS_MAX {
            assert!(!out.queue(Message::StepDown), "one was dropped");
            sent += out.take_waiting(Instant::ZERO).len();
        }
        while !out.is_idle() {
            out.acknowledged(out.next - 1);
            sent += out.take_waiting(Instant::ZERO).len();
        }
        assert_eq!(u32::try_from(sent), Ok(CONCURRENT_RESTARTS_MAX));
    }
}
