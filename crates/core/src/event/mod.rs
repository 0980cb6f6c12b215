//! What is reported, and why. Each decision about a host or a VM leaves an event whose `why` says in
//! a sentence what it rests on; `mainstay explain` shows them.

mod cause;

pub use cause::{AbdicationCause, ElectionCause, IssueCause, WaitCause};

use crate::config::IsolationResponse;
use crate::id::{DatastoreId, Generation, HostId, VmId};
use crate::time::Instant;
use alloc::string::String;
use serde::{Deserialize, Serialize};

/// A primary's verdict about a host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Heartbeats come.
    Live,
    /// Silent; pinged.
    Unreachable,
    /// No sign of life at all.
    Dead,
    /// No network, but datastore heartbeats.
    Partitioned,
    /// Partitioned, and it says that it is alone.
    Isolated,
    /// Answers pings, but its agent does not.
    AgentUnreachable,
    /// In maintenance.
    Maintenance,
}

/// Why a VM stopped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// Its user switched it off.
    User,
    /// The guest shut itself down.
    Guest,
    /// Its process died unclean.
    Crash,
    /// Isolation response.
    Isolation,
    /// Component protection.
    Vmcp,
    /// Its lock was taken by another host.
    LockLost,
    /// The host lost power.
    Host,
    /// It was frozen for longer than `frozen_limit`.
    FrozenLimit,
    /// The start was given up half-way (its right lapsed before the first instruction).
    StartAborted,
    /// Its host was shut down by its admin.
    HostShutdown,
    /// Its guest's operating system panicked.
    Panic,
    /// Its host's kernel killed it because memory had run out.
    Oom,
}

impl StopReason {
    /// It ended without anybody's wish, and is to run again.
    #[must_use]
    pub fn is_failure(self) -> bool {
        matches!(
            self,
            Self::Crash | Self::FrozenLimit | Self::Panic | Self::Oom
        )
    }

    /// The reason as a lock on a datastore says it. Agents of format version 2 know none that came after
    /// [`StopReason::HostShutdown`]; what they have to know of the later ones is that the VM crashed.
    #[must_use]
    pub fn on_disk(self) -> Self {
        match self {
            Self::Panic | Self::Oom => Self::Crash,
            other => other,
        }
    }
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum EventKind {
    /// A primary's verdict about a host changed.
    #[serde(rename = "host.state")]
    HostState {
        /// The primary.
        observer: HostId,
        /// The host.
        host: HostId,
        /// Verdict before.
        from: HostState,
        /// Verdict after.
        to: HostState,
    },
    /// A host began an election.
    #[serde(rename = "election.started")]
    ElectionStarted {
        /// The host.
        host: HostId,
        /// Why.
        cause: ElectionCause,
    },
    /// A host is the primary.
    #[serde(rename = "primary.elected")]
    PrimaryElected {
        /// The host.
        host: HostId,
    },
    /// A primary gave way to a better one.
    #[serde(rename = "primary.abdicated")]
    PrimaryAbdicated {
        /// The host.
        host: HostId,
        /// Why.
        cause: AbdicationCause,
    },
    /// Agent or guard of a host are restarted on purpose.
    #[serde(rename = "agent.restart.planned")]
    RestartPlanned {
        /// The host.
        host: HostId,
    },
    /// A host is being shut down by its admin.
    #[serde(rename = "host.leaving")]
    HostLeaving {
        /// The host.
        host: HostId,
    },
    /// A host falls silent on purpose, as if it was lost.
    #[serde(rename = "drill.started")]
    DrillStarted {
        /// The host.
        host: HostId,
    },
    /// It is back.
    #[serde(rename = "drill.ended")]
    DrillEnded {
        /// The host.
        host: HostId,
    },
    /// A host chose other datastores for its heartbeat.
    #[serde(rename = "heartbeat.datastores")]
    BeaconsChanged {
        /// The host.
        host: HostId,
        /// The datastores, by id.
        datastores: String,
    },
    /// A host has another version of the cluster's configuration in force.
    #[serde(rename = "config.changed")]
    ConfigChanged {
        /// The host.
        host: HostId,
        /// The version.
        version: u64,
    },
    /// The owner of a datastore vouches for a host whose heartbeat there is late.
    #[serde(rename = "host.vouched")]
    HostVouched {
        /// The host.
        host: HostId,
        /// The owner.
        owner: HostId,
        /// The datastore.
        datastore: DatastoreId,
    },
    /// A host is cut off: it hears nobody, and no isolation address answers.
    #[serde(rename = "isolation.declared")]
    IsolationDeclared {
        /// The host.
        host: HostId,
    },
    /// A host is cut off no more.
    #[serde(rename = "isolation.ended")]
    IsolationEnded {
        /// The host.
        host: HostId,
    },
    /// An isolated host stops a VM, or asks its guest to shut down.
    #[serde(rename = "isolation.response")]
    IsolationResponse {
        /// The host.
        host: HostId,
        /// The VM.
        vm: VmId,
        /// What it does.
        action: IsolationResponse,
    },
    /// An isolated host leaves a VM alone.
    #[serde(rename = "isolation.skipped")]
    IsolationSkipped {
        /// The host.
        host: HostId,
        /// The VM.
        vm: VmId,
        /// Why.
        reason: String,
    },
    /// A primary owns a datastore.
    #[serde(rename = "datastore.owned")]
    DatastoreOwned {
        /// The primary.
        host: HostId,
        /// The datastore.
        datastore: DatastoreId,
    },
    /// A primary owns a datastore no more.
    #[serde(rename = "datastore.released")]
    DatastoreReleased {
        /// The host that owned it.
        host: HostId,
        /// The datastore.
        datastore: DatastoreId,
    },
    /// A VM is on the protected list on disk.
    #[serde(rename = "vm.protected")]
    VmProtected {
        /// The VM.
        vm: VmId,
        /// Its datastore.
        datastore: DatastoreId,
    },
    /// A VM is on the list no more.
    #[serde(rename = "vm.unprotected")]
    VmUnprotected {
        /// The VM.
        vm: VmId,
        /// Why.
        reason: String,
    },
    /// A host was asked to start a VM.
    #[serde(rename = "vm.restart.requested")]
    RestartRequested {
        /// The VM.
        vm: VmId,
        /// The host.
        host: HostId,
        /// Attempt, counted from 1.
        attempt: u32,
    },
    /// A restart failed.
    #[serde(rename = "vm.restart.failed")]
    RestartFailed {
        /// The VM.
        vm: VmId,
        /// The host.
        host: HostId,
        /// Attempt, counted from 1.
        attempt: u32,
        /// Why.
        reason: String,
    },
    /// A restart waits.
    #[serde(rename = "vm.restart.waiting")]
    RestartWaiting {
        /// The VM.
        vm: VmId,
        /// For what.
        reason: String,
        /// The class of the reason.
        cause: WaitCause,
    },
    /// A restart was given up.
    #[serde(rename = "vm.restart.abandoned")]
    RestartAbandoned {
        /// The VM.
        vm: VmId,
        /// Attempts made.
        attempt: u32,
        /// Why.
        reason: String,
    },
    /// A host took a free lock, or one of its own.
    #[serde(rename = "lock.acquired")]
    LockAcquired {
        /// The VM.
        vm: VmId,
        /// The host.
        host: HostId,
        /// The generation that it made.
        generation: Generation,
    },
    /// A host took a lost host's lock.
    #[serde(rename = "lock.broken")]
    LockBroken {
        /// The VM.
        vm: VmId,
        /// The new holder.
        host: HostId,
        /// The generation that it made.
        generation: Generation,
        /// The old holder.
        from: HostId,
    },
    /// A host found that its lock was taken.
    #[serde(rename = "lock.lost")]
    LockLost {
        /// The VM.
        vm: VmId,
        /// The host that held it.
        host: HostId,
        /// The generation that it had held.
        generation: Generation,
    },
    /// A host gave a lock back.
    #[serde(rename = "lock.released")]
    LockReleased {
        /// The VM.
        vm: VmId,
        /// The host.
        host: HostId,
        /// The generation that it made.
        generation: Generation,
    },
    /// A VM runs.
    #[serde(rename = "vm.started")]
    VmStarted {
        /// The VM.
        vm: VmId,
        /// The host.
        host: HostId,
        /// The generation that it runs under.
        generation: Generation,
    },
    /// A VM's process is gone.
    #[serde(rename = "vm.stopped")]
    VmStopped {
        /// The VM.
        vm: VmId,
        /// The host.
        host: HostId,
        /// Why.
        reason: StopReason,
    },
    /// A VM was frozen by the guard.
    #[serde(rename = "vm.frozen")]
    VmFrozen {
        /// The VM.
        vm: VmId,
        /// The host.
        host: HostId,
        /// Why.
        reason: String,
    },
    /// A VM runs again under a new generation.
    #[serde(rename = "vm.thawed")]
    VmThawed {
        /// The VM.
        vm: VmId,
        /// The host.
        host: HostId,
        /// Why.
        reason: String,
    },
    /// A primary begins to prove a host's death by its power: its fence device is asked, and told to switch off.
    #[serde(rename = "fence.requested")]
    FenceRequested {
        /// The host that is to be off.
        host: HostId,
        /// The primary.
        by: HostId,
        /// Why.
        reason: String,
    },
    /// A host's power is off, and nothing was heard of it since: it is dead.
    #[serde(rename = "fence.confirmed")]
    FenceConfirmed {
        /// The host.
        host: HostId,
        /// The primary.
        by: HostId,
        /// What it rests on.
        reason: String,
    },
    /// Nothing was proven by a host's power.
    #[serde(rename = "fence.failed")]
    FenceFailed {
        /// The host.
        host: HostId,
        /// The primary.
        by: HostId,
        /// Why.
        reason: String,
    },
    /// Something about the cluster is weaker than it should be.
    #[serde(rename = "config.issue")]
    ConfigIssue {
        /// What, and the remedy.
        issue: String,
        /// The class of the weakness.
        cause: IssueCause,
        /// The host that found it.
        host: HostId,
    },
    /// All paths of a host to a datastore are down.
    #[serde(rename = "vmcp.apd")]
    VmcpApd {
        /// The host.
        host: HostId,
        /// The datastore.
        datastore: DatastoreId,
    },
    /// A datastore is lost for a host.
    #[serde(rename = "vmcp.pdl")]
    VmcpPdl {
        /// The host.
        host: HostId,
        /// The datastore.
        datastore: DatastoreId,
    },
    /// A datastore that was lost for a host answers it again.
    #[serde(rename = "vmcp.cleared")]
    VmcpCleared {
        /// The host.
        host: HostId,
        /// The datastore.
        datastore: DatastoreId,
    },
    /// A host stops a VM whose storage is lost there, so that another host runs it.
    #[serde(rename = "vmcp.response")]
    VmcpResponse {
        /// The host.
        host: HostId,
        /// The VM.
        vm: VmId,
    },
    /// A host leaves a VM alone though its storage is lost there.
    #[serde(rename = "vmcp.skipped")]
    VmcpSkipped {
        /// The host.
        host: HostId,
        /// The VM.
        vm: VmId,
        /// Why.
        reason: String,
    },
    /// A hypervisor paused a VM because an operation on its disk failed.
    #[serde(rename = "vm.io_error")]
    VmIoError {
        /// The VM.
        vm: VmId,
        /// The host.
        host: HostId,
        /// How it failed.
        reason: String,
    },
    /// A VM is stopped and started anew where it was.
    #[serde(rename = "vm.reset")]
    VmReset {
        /// The VM.
        vm: VmId,
        /// The host.
        host: HostId,
        /// Why.
        reason: String,
    },
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// When, on the reporting host's clock.
    pub at: Instant,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
    /// What it rests on, in a sentence.
    pub why: String,
}

impl EventKind {
    /// The VM that it is about.
    #[must_use]
    pub fn vm(&self) -> Option<&VmId> {
        match self {
            Self::VmProtected { vm, .. }
            | Self::VmUnprotected { vm, .. }
            | Self::RestartRequested { vm, .. }
            | Self::RestartFailed { vm, .. }
            | Self::RestartWaiting { vm, .. }
            | Self::RestartAbandoned { vm, .. }
            | Self::LockAcquired { vm, .. }
            | Self::LockBroken { vm, .. }
            | Self::LockLost { vm, .. }
            | Self::LockReleased { vm, .. }
            | Self::VmStarted { vm, .. }
            | Self::VmStopped { vm, .. }
            | Self::VmFrozen { vm, .. }
            | Self::VmThawed { vm, .. }
            | Self::IsolationResponse { vm, .. }
            | Self::IsolationSkipped { vm, .. }
            | Self::VmcpResponse { vm, .. }
            | Self::VmcpSkipped { vm, .. }
            | Self::VmIoError { vm, .. }
            | Self::VmReset { vm, .. } => Some(vm),
            Self::HostState { .. }
            | Self::ElectionStarted { .. }
            | Self::PrimaryElected { .. }
            | Self::PrimaryAbdicated { .. }
            | Self::RestartPlanned { .. }
            | Self::HostLeaving { .. }
            | Self::DrillStarted { .. }
            | Self::DrillEnded { .. }
            | Self::BeaconsChanged { .. }
            | Self::ConfigChanged { .. }
            | Self::HostVouched { .. }
            | Self::IsolationDeclared { .. }
            | Self::IsolationEnded { .. }
            | Self::DatastoreOwned { .. }
            | Self::DatastoreReleased { .. }
            | Self::VmcpApd { .. }
            | Self::VmcpPdl { .. }
            | Self::VmcpCleared { .. }
            | Self::FenceRequested { .. }
            | Self::FenceConfirmed { .. }
            | Self::FenceFailed { .. }
            | Self::ConfigIssue { .. } => None,
        }
    }

    /// The host that it is about.
    #[must_use]
    pub fn host(&self) -> Option<&HostId> {
        match self {
            Self::HostState { host, .. }
            | Self::ElectionStarted { host, .. }
            | Self::PrimaryElected { host }
            | Self::PrimaryAbdicated { host, .. }
            | Self::RestartPlanned { host }
            | Self::HostLeaving { host }
            | Self::DrillStarted { host }
            | Self::DrillEnded { host }
            | Self::BeaconsChanged { host, .. }
            | Self::ConfigChanged { host, .. }
            | Self::HostVouched { host, .. }
            | Self::IsolationDeclared { host }
            | Self::IsolationEnded { host }
            | Self::IsolationResponse { host, .. }
            | Self::IsolationSkipped { host, .. }
            | Self::DatastoreOwned { host, .. }
            | Self::DatastoreReleased { host, .. }
            | Self::RestartRequested { host, .. }
            | Self::RestartFailed { host, .. }
            | Self::LockAcquired { host, .. }
            | Self::LockBroken { host, .. }
            | Self::LockLost { host, .. }
            | Self::LockReleased { host, .. }
            | Self::VmStarted { host, .. }
            | Self::VmStopped { host, .. }
            | Self::VmFrozen { host, .. }
            | Self::VmThawed { host, .. }
            | Self::VmcpApd { host, .. }
            | Self::VmcpPdl { host, .. }
            | Self::VmcpCleared { host, .. }
            | Self::VmcpResponse { host, .. }
            | Self::VmcpSkipped { host, .. }
            | Self::VmIoError { host, .. }
            | Self::VmReset { host, .. }
            | Self::FenceRequested { host, .. }
            | Self::FenceConfirmed { host, .. }
            | Self::FenceFailed { host, .. }
            | Self::ConfigIssue { host, .. } => Some(host),
            Self::VmProtected { .. }
            | Self::VmUnprotected { .. }
            | Self::RestartWaiting { .. }
            | Self::RestartAbandoned { .. } => None,
        }
    }
}
