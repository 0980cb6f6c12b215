//! A host's right to run by its datastore heartbeat, right (a) of the protocol: it counts from the
//! moment before a renewal was issued, and a gap in it is remembered.

use crate::time::{Duration, Instant};

/// Names one unbroken stretch of a right. Taken before a swap is issued, compared before the first
/// instruction: a gap in between shows (safety rules H3 and H5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Token(u64);

/// The right to run on one datastore.
#[derive(Clone, Hash, Debug, Default)]
pub(crate) struct Right {
    deadline: Option<Instant>,
    /// When the newest renewal was issued.
    counted: Option<Instant>,
    stretch: u64,
}

impl Right {
    /// Takes a verified renewal that was issued at `issued`.
    pub(crate) fn renewed(&mut self, now: Instant, issued: Instant, freeze: Duration) {
        let new = issued + freeze;
        if self.deadline.is_none_or(|d| now >= d) {
            self.stretch += 1;
        }
        self.deadline = Some(self.deadline.map_or(new, |d| d.max(new)));
        self.counted = Some(self.counted.map_or(issued, |c| c.max(issued)));
    }

    /// From now on generations are made for a right of at most `freeze`: what they run by must not come
    /// from the time when it was longer (safety rule H18). Rights that VMs already have stay as they are,
    /// for the locks of those VMs name the longer constants.
    pub(crate) fn shorten(&mut self, freeze: Duration) {
        self.deadline = self
            .deadline
            .zip(self.counted)
            .map(|(deadline, counted)| deadline.min(counted + freeze));
    }

    /// True while the right lasts.
    pub(crate) fn valid(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|d| now < d)
    }

    /// The stretch that lasts now.
    pub(crate) fn token(&self, now: Instant) -> Option<Token> {
        self.valid(now).then_some(Token(self.stretch))
    }

    /// True when the right has lasted without a gap since the token was taken.
    pub(crate) fn unbroken(&self, token: Token, now: Instant) -> bool {
        self.valid(now) && token == Token(self.stretch)
    }

    /// End of the right.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    const FREEZE: Duration = Duration::from_millis(3000);

    #[test]
    fn the_right_counts_from_the_issue() {
        let mut right = Right::default();
        right.renewed(at(2900), at(0), FREEZE);
        assert!(right.valid(at(2999)));
        assert!(!right.valid(at(3000)));
    }

    #[test]
    fn a_gap_ends_the_stretch_even_when_a_renewal_follows() {
        let mut right = Right::default();
        right.renewed(at(1), at(0), FREEZE);
        let token = right.token(at(10)).expect("valid");
        right.renewed(at(2000), at(1999), FREEZE);
        assert!(right.unbroken(token, at(4000)));
        right.renewed(at(6000), at(5990), FREEZE);
        assert!(right.valid(at(6001)));
        assert!(!right.unbroken(token, at(6001)));
    }

    #[test]
    fn a_right_that_was_longer_is_not_handed_on_to_shorter_constants() {
        let mut right = Right::default();
        right.renewed(at(1), at(0), 20 * FREEZE);
        let token = right.token(at(1)).expect("valid");
        right.shorten(FREEZE);
        assert!(right.unbroken(token, at(2999)));
        assert!(!right.valid(at(3000)));
        right.renewed(at(4000), at(3999), FREEZE);
        assert!(!right.unbroken(token, at(4000)), "there was a gap");
    }

    #[test]
    fn a_renewal_acknowledged_after_its_own_end_gives_nothing() {
        let mut right = Right::default();
        right.renewed(at(9000), at(0), FREEZE);
        assert!(!right.valid(at(9000)));
    }
}
