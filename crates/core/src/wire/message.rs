//! Messages between agents. Heartbeats and elections go by datagram, the rest by the stream between
//! a primary and its secondaries. Every message is safe to lose, to repeat and to deliver late.
//!
//! A new kind of message goes to the end of [`Message`], with a version of its own: the numbers of the
//! others are on the wire.

use super::facts::Facts;
use super::frame::{DecodeError, FrameKind, Stamp, Versions, decode_with_config, encode_as};
use crate::config::{Change, ClusterConfig, VmSpec};
use crate::drill::DrillMessage;
use crate::id::{DatastoreId, Generation, HostId, InstanceId, Nonce, VmId};
use crate::vmcp::VmcpMessage;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Standing in an election: more datastores win, then the lexically higher id
/// (seeds "VMware vSphere High Availability Basics", "vSphere 5.0 High Availability (HA)").
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Rank {
    /// Datastores that it has mounted and can use.
    pub datastores: u32,
    /// Its id.
    pub host: HostId,
}

/// What an agent is, as others see it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleTag {
    /// In an election, or about to be.
    Electing,
    /// Follows a primary.
    Secondary,
    /// Is the primary.
    Primary,
}

/// How a VM stands on the host that reports it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmReportState {
    /// Its lock is being taken or its process made.
    Starting,
    /// It runs.
    Running,
    /// It is frozen: its right to run has lapsed.
    Frozen,
    /// It is being stopped, or its lock released.
    Stopping,
}

/// One VM of a report.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct VmReport {
    /// The VM with all that is needed to protect it.
    pub spec: VmSpec,
    /// The generation that it is under.
    pub generation: Generation,
    /// How it stands.
    pub state: VmReportState,
}

/// A secondary's whole state, sent to its primary when it joins and when the primary asks for it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct HostReport {
    /// Grows by one with each report of one instance, whole or of changes; an older one is ignored.
    pub seq: u64,
    /// Processor capacity in MHz.
    pub cpu_mhz: u64,
    /// Memory capacity in MiB.
    pub memory_mb: u64,
    /// Datastores that it can use now.
    pub datastores: Vec<DatastoreId>,
    /// All VMs on it that are not stopped.
    pub vms: Vec<VmReport>,
}

/// What changed on a secondary since its report before, whose number is one lower.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ReportChanges {
    /// Counts with [`HostReport::seq`].
    pub seq: u64,
    /// Processor capacity in MHz.
    pub cpu_mhz: u64,
    /// Memory capacity in MiB.
    pub memory_mb: u64,
    /// Datastores that it can use now; none: as before.
    pub datastores: Option<Vec<DatastoreId>>,
    /// VMs that are new or stand otherwise than before.
    pub vms: Vec<VmReport>,
    /// VMs that it has no more.
    pub gone: Vec<VmId>,
}

/// The primary asks a host to take a VM's lock and to start it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct StartOrder {
    /// Tells this order from every other of this primary.
    pub order: u64,
    /// The VM.
    pub spec: VmSpec,
    /// The generation that was proven dead or free; the swap expects exactly it.
    pub expected: Generation,
    /// That generation's nonce.
    pub expected_nonce: Nonce,
    /// Whose lock is broken by it, if it was held.
    pub broken_from: Option<HostId>,
    /// Attempts so far, this one included.
    pub attempt: u32,
}

/// What became of an order.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum StartOutcome {
    /// It runs under this generation.
    Started(Generation),
    /// The lock had moved on: the proof is void.
    LockLost,
    /// The storage's own image lock is still held: try again, no attempt is spent.
    ImageLocked,
    /// The host could not even try (no right to run on the datastore, no guard): no attempt is spent.
    NotReady(String),
    /// The hypervisor could not start it.
    Failed(String),
}

/// The answer to a [`StartOrder`].
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct StartResult {
    /// The order.
    pub order: u64,
    /// The VM.
    pub vm: VmId,
    /// What became of it.
    pub outcome: StartOutcome,
}

/// A message from one agent to another.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Message {
    /// Sign of life, both ways, by datagram.
    Heartbeat {
        /// What the sender is.
        role: RoleTag,
        /// Its standing.
        rank: Rank,
        /// The primary that it follows.
        primary: Option<HostId>,
        /// The sender's agent start.
        instance: InstanceId,
    },
    /// An election is on, and this is the sender's standing; by datagram.
    Candidate {
        /// The sender's standing.
        rank: Rank,
    },
    /// A secondary's state.
    Report(HostReport),
    /// What changed in it, sent on change and with each few heartbeats.
    Changes(ReportChanges),
    /// The primary missed a report: send the whole state.
    ReportWanted,
    /// Start a VM.
    Start(StartOrder),
    /// What became of it.
    Started(StartResult),
    /// The lock names you, but you do not report the VM: free it if you neither run nor start it.
    CheckLock {
        /// The VM.
        vm: VmId,
        /// Its datastore.
        datastore: DatastoreId,
        /// The generation that names the receiver.
        generation: Generation,
    },
    /// These VMs are on the protected list on disk.
    Protected {
        /// The VMs of the receiver that are protected.
        vms: Vec<VmId>,
    },
    /// My heartbeat on that datastore is late: do you, its owner, vouch for me? By datagram.
    AskVouch {
        /// The datastore.
        datastore: DatastoreId,
        /// Tells this request from every other.
        nonce: Nonce,
    },
    /// The owner vouches: what runs may run on, counted from the request. By datagram.
    Vouch {
        /// The datastore.
        datastore: DatastoreId,
        /// The request's.
        nonce: Nonce,
        /// The owner's generation.
        generation: Generation,
    },
    /// The sender's host is being shut down by its admin.
    Leaving,
    /// The sender was the primary and makes room for another.
    StepDown,
    /// Change the configuration (to a primary).
    Propose {
        /// Tells this request from every other of the sender.
        ticket: u64,
        /// The changes.
        changes: Vec<Change>,
    },
    /// What became of it: the version that is on disk, or why not.
    Proposed {
        /// The request's.
        ticket: u64,
        /// The outcome.
        outcome: Result<u64, String>,
    },
    /// The sender has this version of the configuration.
    ConfigVersion {
        /// The version.
        version: u64,
    },
    /// The cluster's configuration.
    Config(Box<ClusterConfig>),
    /// What has arrived on the stream, and which start of its agent the sender is; by datagram.
    Acknowledge {
        /// The sender's agent start.
        instance: InstanceId,
        /// The receiver's agent start as the sender knows it.
        of: Option<InstanceId>,
        /// The session of that start.
        epoch: u64,
        /// All numbers up to this one have arrived in it.
        up_to: u64,
        /// A later one has arrived: what is between them is to be sent again.
        again: bool,
    },
    /// How the sender's host is. Since version 2.
    Facts(Box<Facts>),
    /// What the sender's clock shows; by datagram. Since version 2.
    Clock {
        /// The sender's agent start.
        instance: InstanceId,
        /// Nanoseconds since some moment before it.
        at: u64,
    },
    /// About a drill. Since version 2.
    Drill(Box<DrillMessage>),
    /// About VMs whose storage is lost. Since version 2.
    Vmcp(Box<VmcpMessage>),
}

impl Message {
    /// The format version in which it could first be said: an agent that understands only an older one
    /// must not be sent it.
    #[must_use]
    pub fn version(&self) -> u16 {
        match self {
            Self::Facts(_) | Self::Clock { .. } | Self::Drill(_) | Self::Vmcp(_) => 2,
            Self::Config(config) if !config.places.is_empty() => 2,
            Self::Propose { changes, .. } if changes.iter().any(Change::names_places) => 2,
            _ => 1,
        }
    }

    /// Frames the message.
    #[must_use]
    pub fn encode(&self, cluster: u64, stamp: &Stamp) -> Vec<u8> {
        let versions = Versions::of(self.version());
        encode_as(FrameKind::Message, versions, cluster, stamp, self)
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else than a sound message of this cluster.
    pub fn decode(cluster: u64, bytes: &[u8]) -> Result<(Stamp, Self), DecodeError> {
        decode_with_config(FrameKind::Message, cluster, bytes)
    }
}
