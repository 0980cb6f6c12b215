//! The one clock of a run: all its processes are on one machine.

use mainstay_core::time::Instant;
use nix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME, which agents' events carry.
#[must_use]
pub fn now() -> Instant {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(std::time::Duration::from)
        .unwrap_or_default();
    Instant::ZERO + time
}
