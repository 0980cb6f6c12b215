//! What a host and its primary tell each other of VMs whose storage is lost.

use crate::id::{DatastoreId, Generation, HostId, Nonce, VmId};
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Can another host run a VM?
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Ability {
    /// That one can: it uses the datastore, and has room.
    Yes(HostId),
    /// None can; why.
    No(String),
    /// The primary cannot tell; why.
    Unknown(String),
}

/// A host has stopped a VM for good, and cannot write that into the VM's lock.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct GivenUp {
    /// The VM.
    pub vm: VmId,
    /// Its home datastore.
    pub datastore: DatastoreId,
    /// The generation of its lock that the host gives up: nothing runs under it any more, ever.
    pub generation: Generation,
    /// That generation's nonce.
    pub nonce: Nonce,
    /// Every thread of its process is gone. False: it was killed and executes nothing any more, but a thread of
    /// it waits for its disk, and a write of it may still land.
    pub gone: bool,
}

/// A message of component protection.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum VmcpMessage {
    /// To the primary: could another host run these VMs of mine?
    Ask {
        /// The VMs, of one host.
        vms: Vec<VmId>,
    },
    /// The primary's answer.
    Answer {
        /// Each VM that was asked about.
        vms: Vec<(VmId, Ability)>,
    },
    /// To the primary: this VM has been stopped, and its lock cannot be written.
    GivenUp(GivenUp),
}
