//! What comes from one start of a peer's agent: each number once and in order.

use crate::time::{Duration, Instant};

/// What a number is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    /// The next one.
    New,
    /// It was taken before.
    Again,
    /// One before it has not arrived.
    Ahead,
    /// Of a session that the sender has given up.
    Former,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Incoming {
    epoch: u64,
    last: u64,
    /// Arrivals since the last acknowledgement.
    owed: u32,
    /// When a gap was last complained of, and at which number.
    complained: Option<(Instant, u64)>,
}

impl Incoming {
    /// Judges an arrival.
    pub(super) fn take(&mut self, epoch: u64, number: u64) -> Taken {
        if epoch < self.epoch {
            return Taken::Former;
        }
        if epoch > self.epoch {
            *self = Self {
                epoch,
                ..Self::default()
            };
        }
        if number > self.last + 1 {
            return Taken::Ahead;
        }
        self.owed += 1;
        if number <= self.last {
            return Taken::Again;
        }
        self.last = number;
        Taken::New
    }

    /// A gap is to be complained of now: not of the same one again within that time.
    pub(super) fn may_complain(&mut self, now: Instant, pause: Duration) -> bool {
        let recent = |(at, last)| last == self.last && now.since(at) < pause;
        if self.complained.is_some_and(recent) {
            return false;
        }
        self.complained = Some((now, self.last));
        true
    }

    pub(super) fn owed(&self) -> u32 {
        self.owed
    }

    /// The epoch and the last number that arrived, to be acknowledged now.
    pub(super) fn settle(&mut self) -> (u64, u64) {
        self.owed = 0;
        (self.epoch, self.last)
    }
}
