//! An observer's window on a host's datastore heartbeat: how long one value has been seen to stand
//! still, on the observer's own clock (safety rule H12).

use crate::time::{Duration, Instant};
use alloc::vec::Vec;

/// What one reading of a heartbeat showed. A missing or damaged heartbeat is a value like any other:
/// it restarts the window when it appears and shortens nothing (safety rule H21).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// These bytes.
    Bytes(Vec<u8>),
    /// There was no such record.
    Missing,
}

/// The window on one host's heartbeat on one datastore.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    value: Seen,
    /// Completion of the first read that showed the value.
    first_done: Instant,
    /// Issue of the first read that showed it (only a planted bug counts from here).
    first_issue: Instant,
    /// Issue of the last read that showed it.
    last_issue: Instant,
    /// Completion of that read.
    last_done: Instant,
    /// `break` of the record that was seen.
    r#break: Duration,
    /// Completion of the read that last showed a change from another value.
    changed: Option<Instant>,
}

impl Window {
    /// The window after its first reading.
    pub(crate) fn new(value: Seen, issued: Instant, done: Instant, r#break: Duration) -> Self {
        Self {
            value,
            first_done: done,
            first_issue: issued,
            last_issue: issued,
            last_done: done,
            r#break,
            changed: None,
        }
    }

    /// Takes a further reading; true when the value changed.
    pub(crate) fn read(
        &mut self,
        value: Seen,
        issued: Instant,
        done: Instant,
        r#break: Duration,
    ) -> bool {
        if self.value == value {
            self.last_issue = self.last_issue.max(issued);
            self.last_done = done;
            return false;
        }
        *self = Self {
            changed: Some(done),
            ..Self::new(value, issued, done, r#break.max(self.r#break))
        };
        true
    }

    /// How long the value certainly stood still: from the completion of the first read that showed it
    /// to the issue of the last.
    pub(crate) fn length(&self) -> Duration {
        self.last_issue.since(self.first_done)
    }

    /// The same from the first issue to the last completion: too long (planted bug).
    pub(crate) fn length_too_wide(&self) -> Duration {
        self.last_done.since(self.first_issue)
    }

    /// Issue of the last read that showed the value.
    pub(crate) fn last_issue(&self) -> Instant {
        self.last_issue
    }

    /// Completion of the first read that showed the value.
    pub(crate) fn first_done(&self) -> Instant {
        self.first_done
    }

    /// The largest `break` that the holder's heartbeats named.
    pub(crate) fn break_named(&self) -> Duration {
        self.r#break
    }

    /// When a change was last seen: a sign of life.
    pub(crate) fn changed(&self) -> Option<Instant> {
        self.changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn slow_reads_do_not_stretch_the_window() {
        let b = Duration::from_secs(1);
        let mut w = Window::new(Seen::Bytes(vec![1]), at(0), at(900), b);
        assert!(!w.read(Seen::Bytes(vec![1]), at(1000), at(5000), b));
        assert_eq!(w.length(), Duration::from_millis(100));
    }

    #[test]
    fn any_change_restarts_it_also_to_missing() {
        let b = Duration::from_secs(1);
        let mut w = Window::new(Seen::Bytes(vec![1]), at(0), at(1), b);
        w.read(Seen::Bytes(vec![1]), at(9000), at(9001), b);
        assert!(w.read(Seen::Missing, at(9500), at(9501), b));
        assert_eq!(w.length(), Duration::ZERO);
        assert_eq!(w.changed(), Some(at(9501)));
    }
}
