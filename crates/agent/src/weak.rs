//! Where the weaknesses of this host that the agent's process sees come from.

use mainstay_core::event::IssueCause;
use mainstay_core::id::HostId;
use mainstay_core::time::{Duration, Instant};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// An agent that uses another's id and is not heard for so long is stopped, or has an id of its own: one that
/// lives sends heartbeats every second at the latest.
const SAME_ID_GONE: Duration = Duration::from_secs(60);

/// What found them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Source {
    /// Own addresses that are missing.
    Addresses,
    /// The datastores' mounts.
    Datastores,
    /// The guard, and the way to it.
    Guard,
    /// The drivers.
    Hypervisor,
    /// Hosts that came or went while the agent runs.
    Members,
    /// Pings.
    Network,
    /// How the boot before this one ended.
    Reset,
    /// Another agent with this host's id.
    SameId,
    /// What is kept on local disk.
    State,
    /// Streams that cannot be made.
    Streams,
    /// The watchdog.
    Watchdog,
}

impl Source {
    /// The class that its weaknesses are reported under.
    pub(crate) fn cause(self) -> IssueCause {
        match self {
            Self::Addresses | Self::Members => IssueCause::AddressMissing,
            Self::Datastores => IssueCause::DatastoreWeak,
            Self::Guard => IssueCause::GuardWeak,
            Self::Hypervisor => IssueCause::HypervisorWeak,
            Self::Network => IssueCause::CannotProbe,
            Self::Reset => IssueCause::HostWasReset,
            Self::SameId => IssueCause::SameHostId,
            Self::State => IssueCause::StateNotKept,
            Self::Streams => IssueCause::StreamBroken,
            Self::Watchdog => IssueCause::NoWatchdog,
        }
    }
}

/// Agents that use an id which is not theirs, and when each was heard last.
#[derive(Debug, Default)]
pub(crate) struct SameIds(BTreeMap<(HostId, SocketAddr), Instant>);

impl SameIds {
    /// One was heard.
    pub(crate) fn heard(&mut self, now: Instant, host: &HostId, address: SocketAddr) {
        self.0.insert((host.clone(), address), now);
    }

    /// What is to be said of those that are still there.
    pub(crate) fn issues(&mut self, now: Instant) -> Vec<String> {
        self.0.retain(|_, heard| now.since(*heard) < SAME_ID_GONE);
        let all = self.0.keys().map(|(host, address)| {
            format!(
                "another agent uses the host id \"{host}\" at {address}; stop it, or give it an id of its own \
                 in its agent.toml"
            )
        });
        all.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_agent_with_the_same_id_is_said_until_it_is_silent() {
        let at = |s: u64| Instant::from_nanos(s * 1_000_000_000);
        let host = HostId::new("host-1").expect("id");
        let address = "192.0.2.9:7777".parse().expect("address");
        let mut all = SameIds::default();
        assert!(all.issues(at(1)).is_empty());
        for s in 1..=100 {
            all.heard(at(s), &host, address);
            assert_eq!(all.issues(at(s)).len(), 1);
        }
        let issues = all.issues(at(159));
        assert!(issues[0].contains("192.0.2.9:7777"), "{issues:?}");
        assert!(all.issues(at(160)).is_empty(), "it is silent");
    }
}
