//! What an agent says of itself, for `mainstay status`, `hosts` and `vms`.

use crate::config::Inequality;
use crate::event::HostState;
use crate::health::Issue;
use crate::id::{DatastoreId, Generation, HostId, VmId};
use crate::wire::RoleTag;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// An agent's view of its cluster.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The agent's host.
    pub host: HostId,
    /// What it is.
    pub role: RoleTag,
    /// The primary that it knows.
    pub primary: Option<HostId>,
    /// Timing profile.
    pub profile: String,
    /// Room for the guard beyond its stated worst latency, in milliseconds.
    pub margin_ms: u64,
    /// The rules between the timers, with this cluster's numbers.
    pub inequalities: Vec<Inequality>,
    /// Hosts as this agent sees them (only a primary knows more than itself and its primary).
    pub hosts: Vec<HostStatus>,
    /// Datastores as this agent sees them.
    pub datastores: Vec<DatastoreStatus>,
    /// VMs as this agent sees them.
    pub vms: Vec<VmStatus>,
    /// What is weaker than it should be, with remedies.
    pub issues: Vec<Issue>,
    /// Inputs that were ignored because they were damaged, foreign or stale, by kind.
    pub ignored: Vec<(String, u64)>,
}

/// A host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its id.
    pub host: HostId,
    /// What it is, if that is known.
    pub role: Option<RoleTag>,
    /// The verdict.
    pub state: HostState,
    /// Milliseconds since its last network heartbeat.
    pub heartbeat_age_ms: Option<u64>,
    /// VMs on it.
    pub vms: u32,
    /// Processor of VMs on it and capacity, in MHz.
    pub cpu_mhz: (u64, u64),
    /// Memory of VMs on it and capacity, in MiB.
    pub memory_mb: (u64, u64),
    /// Why the verdict is what it is.
    pub why: String,
}

/// A datastore.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DatastoreStatus {
    /// Its id.
    pub datastore: DatastoreId,
    /// True: this host's heartbeat there is fresh.
    pub usable: bool,
    /// Who owns its protected list, as far as this agent knows.
    pub owner: Option<HostId>,
    /// Protected VMs on it (the owner knows).
    pub protected: u32,
    /// Milliseconds until this host's right to run there ends.
    pub right_ms: u64,
    /// What it does with late writes.
    pub fence: String,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// A VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VmStatus {
    /// Its id.
    pub vm: VmId,
    /// Its home datastore.
    pub datastore: DatastoreId,
    /// Where it is, as far as this agent knows.
    pub host: Option<HostId>,
    /// How it stands: `running`, `frozen`, `starting`, `stopping`, `powered_off`, `restarting`, `waiting`, `abandoned`, `unknown`;
    /// `paused_on_error` when its hypervisor paused it on an I/O error, `killed_not_gone` when a thread of it outlives its kill.
    pub state: String,
    /// Its lock's generation.
    pub generation: Option<Generation>,
    /// On the protected list on disk.
    pub protected: bool,
    /// Why it is as it is.
    pub why: String,
}

/// The answer of `mainstay explain`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// What it is about.
    pub subject: String,
    /// What is the case, and why, in sentences.
    pub sentences: Vec<String>,
    /// The events that led here, oldest first.
    pub events: Vec<crate::event::Event>,
}
