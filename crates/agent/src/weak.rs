//! Where the weaknesses of this host that the agent's process sees come from.

use mainstay_core::event::IssueCause;

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
            Self::SameId => IssueCause::SameHostId,
            Self::State => IssueCause::StateNotKept,
            Self::Streams => IssueCause::StreamBroken,
            Self::Watchdog => IssueCause::NoWatchdog,
        }
    }
}
