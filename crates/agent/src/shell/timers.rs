//! What the shell waits for, by the timers of the cluster; they may change while it runs.

use super::Shell;
use crate::net::stream::Patience;
use mainstay_core::config::Timing;
use std::time::Duration;

/// Between heartbeat and verdict there is time for a few probes; a slow network gets at least 300 ms.
pub(super) fn ping_timeout(timing: &Timing) -> Duration {
    (timing.network_heartbeat * 2).clamp(Duration::from_millis(300), Duration::from_secs(2))
}

impl Shell {
    /// The configuration may say other timers than before: pings, streams and datastores follow them.
    pub(super) fn renew_timers(&mut self) {
        let timing = &self.agent.config().settings.timing;
        self.ping_timeout = ping_timeout(timing);
        self.streams.set_patience(Patience::of(timing));
        self.datastores.set_hung_after(timing.freeze);
    }
}
