//! The network: authenticated datagrams, TLS streams, pings.

pub(crate) mod isolation;
pub(crate) mod ping;
pub(crate) mod stream;
pub(crate) mod udp;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Inputs from the network that were refused, by kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rejects(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Rejects {
    /// Counts one.
    pub(crate) fn count(&self, kind: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let n = counts.entry(kind).or_default();
        *n = n.saturating_add(1);
        // Each power of two, so that a flood does not fill the log.
        if n.is_power_of_two() {
            tracing::warn!(kind, count = *n, "refused input from the network");
        }
    }

    /// All counts.
    pub(crate) fn all(&self) -> Vec<(String, u64)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(k, n)| ((*k).to_owned(), *n)).collect()
    }
}
