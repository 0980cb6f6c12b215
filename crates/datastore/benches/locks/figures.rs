//! The arithmetic of the lock's benchmark: percentiles, and since when a heartbeat stands still.

use std::time::{Duration, Instant};

/// The value at that percentage of values in ascending order, by nearest rank: none is made up.
pub(crate) fn percentile(ascending: &[Duration], percent: usize) -> Duration {
    let rank = (ascending.len() * percent).div_ceil(100).max(1);
    ascending.get(rank - 1).copied().unwrap_or_default()
}

/// A heartbeat as one observer reads it.
#[derive(Debug, Default)]
pub(crate) struct Stillness {
    value: Option<(Vec<u8>, Instant)>,
}

impl Stillness {
    /// A reading showed this, and was completed then. Readings come in the order of their completion.
    pub(crate) fn read(&mut self, bytes: &[u8], done: Instant) {
        let same = self.value.as_ref().is_some_and(|(known, _)| known == bytes);
        if !same {
            self.value = Some((bytes.to_vec(), done));
        }
    }

    /// When the first reading was completed that showed what the last one showed.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.value.as_ref().map(|(_, since)| *since)
    }
}
