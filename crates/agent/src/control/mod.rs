//! The control socket: how the command line talks to an agent on its own host.
//!
//! A connection carries one request as a line of JSON. Each answer is a line: `{"ok": VALUE}` or
//! `{"error": "what is wrong and what to do"}`. `events` answers one line for each event and ends by
//! closing the connection, or never when it follows.

pub mod client;
pub(crate) mod server;

use crate::config::ClusterFile;
use mainstay_core::config::Change;
use mainstay_core::event::Event;
use mainstay_core::id::{DatastoreId, HostId, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Longest request line.
pub const REQUEST_MAX_BYTES: usize = 64 << 10;

/// What the command line asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The agent's view of the cluster.
    Status,
    /// Events, oldest first.
    Events {
        /// Go on with new ones as they come.
        #[serde(default)]
        follow: bool,
        /// At most this many old ones; all that the agent still has when it is left out.
        #[serde(default)]
        last: Option<u64>,
    },
    /// Why a VM is as it is.
    ExplainVm {
        /// The VM.
        id: VmId,
    },
    /// Why a host is judged as it is.
    ExplainHost {
        /// The host.
        id: HostId,
    },
    /// Power a VM on here.
    PowerOn {
        /// The VM.
        vm: VmId,
    },
    /// Power a VM off that runs here.
    PowerOff {
        /// The VM.
        vm: VmId,
    },
    /// This host is being shut down: stop its VMs and give their locks back. Answers with a [`Leaving`]; asked
    /// again until it is ready.
    Leave,
    /// Agent or guard are about to be restarted on purpose: move VMs to longer rights to run. Answers with a
    /// [`Readiness`]; asked again until it is ready.
    PrepareRestart,
    /// The configuration that is in force here.
    Config,
    /// The same as a `cluster.toml` would say it, and where this host mounts the datastores: an [`InForce`].
    InForce,
    /// Change the configuration; answers with the version that is on disk.
    Change {
        /// The changes: all or none.
        changes: Vec<Change>,
    },
    /// What would happen if a host was lost? Answers with a [`mainstay_core::drill::Answer`].
    DrillPlan {
        /// The host.
        host: HostId,
    },
    /// Let a host fall silent, as if it was lost. Answers with a [`mainstay_core::drill::Answer`] when it is.
    DrillRun {
        /// The host.
        host: HostId,
        /// For so long, in milliseconds; as long as its forecast says when it is left out.
        #[serde(default)]
        time_ms: Option<u64>,
        /// Also against what may be insisted on.
        #[serde(default)]
        insists: bool,
    },
    /// Let a host come back.
    DrillStop {
        /// The host.
        host: HostId,
    },
    /// How far is the last drill of a host? Answers with a [`mainstay_core::drill::Progress`].
    DrillProgress {
        /// The host.
        host: HostId,
    },
    /// Is somebody there?
    Ping,
}

/// The answer to [`Request::InForce`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct InForce {
    /// The agent's host.
    pub host: HostId,
    /// Its boot, as records on datastores name it.
    pub boot: u64,
    /// The version of the configuration.
    pub version: u64,
    /// What a `cluster.toml` that is up to date says.
    pub file: ClusterFile,
    /// The mount point of each datastore on that host.
    pub mounts: BTreeMap<DatastoreId, PathBuf>,
}

/// The answer to [`Request::Leave`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Leaving {
    /// The agent's host.
    pub host: HostId,
    /// Nothing of its VMs is left there, and their locks are given back: the host may be shut down.
    pub ready: bool,
}

/// The answer to [`Request::PrepareRestart`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Readiness {
    /// The agent's host.
    pub host: HostId,
    /// Agent and guard may be restarted now.
    pub ready: bool,
    /// They may be away for so long, in milliseconds.
    pub away_ms: u64,
}

/// The answer to [`Request::Ping`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pong {
    /// The agent's host.
    pub host: HostId,
    /// The agent's process id.
    pub pid: u32,
    /// The guard's process id, when there is one.
    pub guard_pid: Option<u32>,
    /// The agent's version.
    pub version: String,
}

/// An event as it is logged and answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventLine {
    /// Running number of this agent's events.
    pub n: u64,
    /// Wall-clock time (RFC 3339), for people only: no decision uses it.
    pub wall: String,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

/// An answer line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer<T> {
    /// The answer.
    Ok(T),
    /// What is wrong and what to do.
    Error(String),
}
