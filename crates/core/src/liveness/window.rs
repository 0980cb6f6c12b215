//! An observer's window on a host's datastore heartbeat: how long one value has been seen to stand
//! still, on the observer's own clock (safety rule H12).

use crate::time::{Duration, Instant};
use alloc::vec::Vec;

/// What one reading of a heartbeat showed. A missing or damaged heartbeat is a value like any other:
/// it restarts the window when it appears and shortens nothing (safety rule H21).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Seen {
    /// These bytes.
    Bytes(Vec<u8>),
    /// There was no such record.
    Missing,
}

/// The window on one host's heartbeat on one datastore.
#[derive(Clone, Hash, Debug)]
pub(crate) struct Window {
    value: Seen,
    /// Completion of the first read that showed the value.
    first_done: Instant,
    /// Issue of the first read that showed it (only a planted bug counts from here).
    first_issue: Instant,
    /// Issue of the last read that showed it.
    last_issue: Instant,
    /// Issue of the read before that one, when that showed it too.
    issue_before: Option<Instant>,
    /// Completion of the last read.
    last_done: Instant,
    /// `break` of the record that was seen.
    r#break: Duration,
    /// A longer one that was named before, and until when rights may last that began under it.
    longer: Option<(Duration, Instant)>,
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
            issue_before: None,
            last_done: done,
            r#break,
            longer: None,
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
            if issued > self.last_issue {
                self.issue_before = Some(self.last_issue);
                self.last_issue = issued;
            }
            self.last_done = done;
            return false;
        }
        *self = Self {
            changed: Some(done),
            longer: self.longer_after(issued, done, r#break),
            ..Self::new(value, issued, done, r#break)
        };
        true
    }

    /// How long the value certainly stood still: from the completion of the first read that showed it
    /// to the issue of the last.
    pub(crate) fn length(&self) -> Duration {
        self.length_to(self.last_issue)
    }

    /// The same, by the read that was issued then.
    pub(crate) fn length_to(&self, end: Instant) -> Duration {
        end.since(self.first_done)
    }

    /// Issue of the newer one of the last two reads that was issued no later than `by`. What is read beside this heartbeat
    /// is there a moment later: until then the read before it stands.
    pub(crate) fn last_issue_by(&self, by: Instant) -> Option<Instant> {
        let last = Some(self.last_issue).filter(|at| *at <= by);
        last.or(self.issue_before.filter(|at| *at <= by))
    }

    /// The same from the first issue to the last completion: too long (planted bug).
    pub(crate) fn length_too_wide(&self) -> Duration {
        self.last_done.since(self.first_issue)
    }

    /// The heartbeat that was last read, if there was one.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        match &self.value {
            Seen::Bytes(bytes) => Some(bytes),
            Seen::Missing => None,
        }
    }

    /// Issue of the last read that showed the value.
    pub(crate) fn last_issue(&self) -> Instant {
        self.last_issue
    }

    /// Completion of the first read that showed the value.
    pub(crate) fn first_done(&self) -> Instant {
        self.first_done
    }

    /// The largest `break` that the holder's heartbeats named and by which something may still run.
    pub(crate) fn break_named(&self) -> Duration {
        self.named_at(self.last_issue)
    }

    /// The same, as of then.
    pub(crate) fn named_at(&self, at: Instant) -> Duration {
        let longer = self.longer.filter(|(_, until)| at < *until);
        longer.map_or(self.r#break, |(longer, _)| longer.max(self.r#break))
    }

    /// The holder may have named the longer `break` until the first read that showed another, and what
    /// runs by it ends within that time from then on.
    fn longer_after(
        &self,
        issued: Instant,
        done: Instant,
        named: Duration,
    ) -> Option<(Duration, Instant)> {
        let before = self.named_at(issued);
        let still = self.longer.filter(|(_, until)| issued < *until);
        if self.r#break <= named {
            return still.filter(|(longer, _)| *longer > named);
        }
        let until = done + self.r#break;
        let until = still.map_or(until, |(_, known)| known.max(until));
        Some((before, until))
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

    /// Reads a new value each second, with the `break` that it names.
    fn named(breaks: &[u64]) -> Window {
        let s = Duration::from_secs;
        let seen = |n: usize| Seen::Bytes(vec![u8::try_from(n).unwrap_or(u8::MAX)]);
        let first = breaks.first().copied().unwrap_or_default();
        let mut window = Window::new(seen(0), at(0), at(1), s(first));
        for (n, named) in breaks.iter().enumerate().skip(1) {
            let second = n as u64 * 1000;
            window.read(seen(n), at(second), at(second + 1), s(*named));
        }
        window
    }

    #[test]
    fn a_longer_break_counts_for_its_own_length_after_it_was_named_last() {
        let s = Duration::from_secs;
        let mut w = named(&[60, 4, 4]);
        let last = Seen::Bytes(vec![2]);
        w.read(last.clone(), at(61_000), at(61_001), s(4));
        assert_eq!(w.break_named(), s(60), "it was on disk until 1,001 ms");
        w.read(last, at(61_001), at(61_002), s(4));
        assert_eq!(w.break_named(), s(4));
    }

    #[test]
    fn steps_down_end_with_the_last_right_of_each() {
        let s = Duration::from_secs;
        let mut w = named(&[10, 9, 4]);
        let last = Seen::Bytes(vec![2]);
        w.read(last.clone(), at(11_000), at(11_001), s(4));
        assert_eq!(w.break_named(), s(10), "nine were named until 2,001 ms");
        w.read(last, at(11_001), at(11_002), s(4));
        assert_eq!(w.break_named(), s(4));
        assert_eq!(named(&[4, 60]).break_named(), s(60));
        assert_eq!(named(&[60, 4, 60, 70]).break_named(), s(70));
    }
}
