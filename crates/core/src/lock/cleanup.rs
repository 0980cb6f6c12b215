//! Removing old generations: from the lowest upwards, never the newest nor its predecessor, and not
//! further when one removal is in doubt (safety rule H11).

use super::{LockName, Step};
use crate::id::Generation;
use crate::io::{StorageOutcome, StorageRequest, StorageValue};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// A clean-up of one lock's chain.
#[derive(Clone, Debug)]
pub(crate) struct Cleanup {
    name: LockName,
    /// Generations below this one may go.
    below: Generation,
    left: Option<VecDeque<Generation>>,
}

impl Cleanup {
    /// Begins the clean-up after a swap from `predecessor` was won.
    pub(crate) fn begin(name: LockName, predecessor: Generation) -> (Self, StorageRequest) {
        let request = name.list();
        (
            Self {
                name,
                below: predecessor,
                left: None,
            },
            request,
        )
    }

    /// Takes an outcome.
    pub(crate) fn on_outcome(&mut self, outcome: &StorageOutcome) -> Step {
        match (outcome, &mut self.left) {
            (StorageOutcome::Ok(StorageValue::Keys(keys)), left @ None) => {
                let mut old: Vec<Generation> = keys
                    .iter()
                    .filter_map(|k| self.name.generation_of(k))
                    .filter(|g| *g < self.below)
                    .collect();
                old.sort();
                *left = Some(old.into());
            }
            (StorageOutcome::Ok(StorageValue::Done | StorageValue::NotFound), Some(_)) => {}
            _ => return Step::Cleaned,
        }
        match self.left.as_mut().and_then(VecDeque::pop_front) {
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
        let (mut cleanup, _) = Cleanup::begin(LockName::Owner, Generation(5));
        let keys = [6, 3, 5, 4]
            .map(|g| RecordKey::OwnerLock(Generation(g)))
            .to_vec();
        let done = StorageOutcome::Ok(StorageValue::Done);
        let remove = |g| Step::Do(StorageRequest::Remove(RecordKey::OwnerLock(Generation(g))));
        assert_eq!(
            cleanup.on_outcome(&StorageOutcome::Ok(StorageValue::Keys(keys))),
            remove(3)
        );
        assert_eq!(cleanup.clone().on_outcome(&done), remove(4));
        assert_eq!(
            cleanup.on_outcome(&StorageOutcome::Unknown(IoFault::TimedOut)),
            Step::Cleaned
        );
    }
}
