//! Frames under way, where a delay is set: taken out when they are due, those of one moment in the order
//! in which they were put in. A delay that becomes shorter holds for what is sent from then on, and lets
//! it overtake.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Bytes under way at most: what a second of a full gigabit holds, halved.
const BYTES_MAX: usize = 64 << 20;

/// A frame under way, ordered by when it is due and when it was sent.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Travelling {
    due: Instant,
    sent: u64,
    /// The port that it came in at.
    pub(super) from: usize,
    /// The port that it leaves by.
    pub(super) to: usize,
    /// It.
    pub(super) bytes: Vec<u8>,
}

/// All frames under way.
#[derive(Debug, Default)]
pub(super) struct Transit {
    frames: BinaryHeap<Reverse<Travelling>>,
    sent: u64,
    bytes: usize,
}

impl Transit {
    /// Puts a copy of a frame under way; says whether there was room.
    pub(super) fn add(&mut self, due: Instant, from: usize, to: usize, frame: &[u8]) -> bool {
        if self.bytes + frame.len() > BYTES_MAX {
            return false;
        }
        self.bytes += frame.len();
        self.sent += 1;
        self.frames.push(Reverse(Travelling {
            due,
            sent: self.sent,
            from,
            to,
            bytes: frame.to_vec(),
        }));
        true
    }

    /// How many frames are under way.
    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    /// When the next frame is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.frames.peek().map(|Reverse(frame)| frame.due)
    }

    /// The next frame, if it is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Travelling> {
        self.next().filter(|due| *due <= now)?;
        let Reverse(frame) = self.frames.pop()?;
        self.bytes -= frame.bytes.len();
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn frames_come_when_they_are_due_in_the_order_sent() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut transit = Transit::default();
        for (ms, name) in [(20, b"b"), (10, b"a"), (20, b"c")] {
            assert!(transit.add(at(ms), 0, 1, name));
        }
        assert_eq!(transit.next(), Some(at(10)));
        assert_eq!(transit.take_due(at(9)), None);
        let mut came = Vec::new();
        while let Some(frame) = transit.take_due(at(20)) {
            came.extend(frame.bytes);
        }
        assert_eq!(came, b"abc");
        assert_eq!(transit.next(), None);
    }

    #[test]
    fn what_is_under_way_is_bounded_and_makes_room_again() {
        let now = Instant::now();
        let mut transit = Transit::default();
        let large = vec![0; BYTES_MAX / 2];
        assert!(transit.add(now, 0, 1, &large));
        assert!(transit.add(now, 0, 1, &large));
        assert!(!transit.add(now, 0, 1, &[0]));
        assert!(transit.take_due(now).is_some());
        assert!(transit.add(now, 0, 1, &[0]));
    }
}
