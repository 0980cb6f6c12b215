//! Classes of reasons. An event's sentence is for people and has names and numbers in it; its `cause`
//! is one of a closed list, for programs that count, filter or alert.

use serde::{Deserialize, Serialize};

/// Why a host began an election.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ElectionCause {
    /// Its agent started and knows no primary.
    AgentStarted,
    /// The primary that it followed has been silent for `election_start`.
    PrimarySilent,
    /// The primary that it followed stepped down.
    PrimarySteppedDown,
    /// The primary that it followed is in maintenance, or left the cluster.
    PrimaryResting,
    /// It was the primary and stepped down.
    SteppedDown,
}

/// Why a primary gave way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AbdicationCause {
    /// Another primary is heard that would win an election.
    BetterPrimary,
    /// Its host is in maintenance, or left the cluster.
    Resting,
    /// Its host is being shut down.
    HostLeaving,
    /// Its agent is restarted on purpose.
    PlannedRestart,
    /// VMs are on a datastore that it cannot own, and another host uses more of them.
    LacksDatastores,
}

/// What a restart waits for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitCause {
    /// The VM is not on the protected list.
    NotProtected,
    /// `host_monitoring` is off.
    MonitoringOff,
    /// Its host was shut down by its admin, and VMs wait for such a host.
    HostShutDown,
    /// A VM that it depends on does not run yet.
    Dependency,
    /// The VM's restart priority is `disabled`.
    PriorityDisabled,
    /// The lock's holder is no host of the configuration.
    HolderUnknown,
    /// The holder is silent, and nothing shows that it is dead: it answers pings without an agent where the
    /// storage takes late writes, or it can neither be pinged nor judged by its datastore heartbeats.
    HolderUnreachable,
    /// The holder is partitioned or isolated, and still alive by its datastore heartbeat.
    HolderCutOff,
    /// The holder is dead, but the storage takes late writes and nothing proves its death.
    LateWrites,
    /// No host has room for the VM under the mandatory rules.
    NoRoom,
    /// No host is connected.
    NoHost,
    /// The storage still keeps the image lock of the host that was lost.
    ImageLocked,
    /// The host that was asked could not start it yet.
    HostNotReady,
    /// This primary does not own the VM's datastore.
    DatastoreNotOwned,
    /// Its lock cannot be read: the newest record is damaged, or the storage does not answer.
    LockUnreadable,
}

/// What kind of weakness a `config.issue` names. Agents tell each other by number: new ones come last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IssueCause {
    /// A start that a user asked for came to nothing.
    StartRefused,
    /// A VM runs that the configuration does not know.
    VmUnknown,
    /// The host has no isolation address.
    NoIsolationAddress,
    /// An isolation address does not answer while other hosts are heard.
    IsolationAddressSilent,
    /// Isolation addresses cannot be pinged from this host.
    CannotProbe,
    /// Two agents use one host id.
    SameHostId,
    /// Records of a datastore, a host or a VM are missing; they were never added, or are gone.
    RecordsMissing,
    /// A lock went back to an older generation.
    LockWentBack,
    /// A record on a datastore is damaged or foreign.
    RecordUnreadable,
    /// The protected list of a datastore is full.
    ListFull,
    /// The configuration cannot be kept on local disk.
    ConfigNotKept,
    /// The protected list of a datastore cannot be written.
    ListNotWritten,
    /// The host has fewer heartbeat datastores than it should.
    FewHeartbeatDatastores,
    /// The host has one management network.
    OneNetwork,
    /// The datastore heartbeat cannot be written.
    HeartbeatNotWritten,
    /// The agent hangs, or goes on after it did.
    AgentHangs,
    /// `host_monitoring` is off: no host failure is reacted to.
    MonitoringOff,
    /// Fewer than two hosts take VMs.
    OneHost,
    /// VMs are on datastores that one host mounts.
    NoSharedDatastore,
    /// VMs are not restarted because their priority says so.
    RestartDisabled,
    /// Late writes of lost hosts are accepted.
    LateWritesAccepted,
    /// Two hosts' clocks run apart faster than the rights to run allow.
    ClockDrift,
    /// An agent is of an older version.
    OldAgent,
    /// A host has another configuration, and perhaps another timing profile.
    ConfigDiffers,
    /// A datastore does not show one host the image locks of another.
    ImageLocksOpen,
    /// The host has no watchdog.
    NoWatchdog,
    /// The guard is not fully protected from the rest of its host, or not well.
    GuardWeak,
    /// The hypervisor lacks something.
    HypervisorWeak,
    /// A datastore cannot be opened, or is used in a weaker way.
    DatastoreWeak,
    /// What the agent keeps on local disk could not be read, or cannot be written.
    StateNotKept,
    /// An address of this host is missing.
    AddressMissing,
    /// A power-off that a user asked for came to nothing.
    StopRefused,
    /// Nobody owns a datastore that VMs are on.
    DatastoreNotOwned,
    /// Messages do not reach another host, though it is there.
    StreamBroken,
    /// A VM was killed, and a thread of it is left that waits for its disk.
    KilledNotGone,
    /// The host was reset by its watchdog, or went down without a word while that ran.
    HostWasReset,
    /// A host cannot be fenced, or its fence device switches something else.
    FenceWeak,
}
