//! Removing old generations: from the lowest upwards, never the newest nor its predecessor, and not
//! further when one removal is in doubt (safety rule H11).

use super::{LockName, Step};
use crate::id::Generation;
use crate::io::{StorageOutcome, StorageRequest, StorageValue};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// A clean-up of one lock's chain.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Cleanup {
    name: LockName,
    left: VecDeque<Generation>,
    /// A doubt does not end it (planted bug).
    pub(crate) ignore_doubt: bool,
}

impl Cleanup {
    /// Begins the removal of these generations, all below the predecessor of one that was won; none: there
    /// is nothing to remove. `downwards`: from the highest (planted bug).
    pub(crate) fn begin(
        name: LockName,
        mut old: Vec<Generation>,
        downwards: bool,
    ) -> Option<(Self, StorageRequest)> {
        old.sort();
        if downwards {
            old.reverse();
        }
        let mut left = VecDeque::from(old);
        let first = StorageRequest::Remove(name.key(left.pop_front()?));
        let cleanup = Self {
            name,
            left,
            ignore_doubt: false,
        };
        Some((cleanup, first))
    }

    /// Takes an outcome.
    pub(crate) fn on_outcome(&mut self, outcome: &StorageOutcome) -> Step {
        let gone = matches!(
            outcome,
            StorageOutcome::Ok(StorageValue::Done | StorageValue::NotFound)
        );
        match self.left.pop_front().filter(|_| gone || self.ignore_doubt) {
            Some(generation) => Step::Do(StorageRequest::Remove(self.name.key(generation))),
            None => Step::Cleaned,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::IoFault;
    use crate::wire::RecordKey;

    #[test]
    fn the_oldest_goes_first_and_a_doubt_ends_it() {
        let old = [4, 3].map(Generation).to_vec();
        let remove = |g| StorageRequest::Remove(RecordKey::OwnerLock(Generation(g)));
        let (mut cleanup, first) =
            Cleanup::begin(LockName::Owner, old, false).expect("two to remove");
        assert_eq!(first, remove(3));
        let done = StorageOutcome::Ok(StorageValue::Done);
        let doubt = StorageOutcome::Unknown(IoFault::TimedOut);
        assert_eq!(cleanup.clone().on_outcome(&doubt), Step::Cleaned);
        assert_eq!(cleanup.on_outcome(&done), Step::Do(remove(4)));
        assert_eq!(cleanup.on_outcome(&done), Step::Cleaned);
        assert!(Cleanup::begin(LockName::Owner, Vec::new(), false).is_none());
    }
}
