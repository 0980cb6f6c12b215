//! The agent's whole contact with the world: what happened ([`Input`]) and what to do ([`Output`]).
//!
//! Every request that has an outcome carries an [`OpId`], and its completion carries it back. An
//! outcome may be *unknown*: the effect happened, did not happen, or will happen later. Unknown is a
//! case of its own, never folded into success or failure.

use crate::config::{ClusterConfig, VmSpec};
use crate::drill::Answer;
use crate::event::{Event, StopReason};
use crate::id::{DatastoreId, Generation, HostId, OpId, VmId};
use crate::time::Instant;
use crate::wire::{Envelope, Message, PageWrite, RecordKey};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// How a message travels.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Channel {
    /// UDP: may be lost, doubled, reordered.
    Datagram,
    /// TCP: each message once and in order while both agents live and reach each other.
    Stream,
}

/// Whom to ping.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum PingTarget {
    /// A host's management addresses.
    Host(HostId),
    /// One of the isolation addresses, by its place in the list that the driver gave
    /// ([`crate::Agent::set_isolation_addresses`]).
    Isolation(usize),
}

/// What a ping found. "Could not ping" is never read as "no answer".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum PingOutcome {
    /// An answer came.
    Answered,
    /// The probe went out and none came.
    NoAnswer,
    /// No probe could be sent (no right, no route): nothing is known.
    CannotProbe,
}

/// A primitive operation on a datastore. The driver performs it and decides nothing.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum StorageRequest {
    /// Reads a record whole, by path, uncached. Gives [`StorageValue::Bytes`] or not found.
    Read(RecordKey),
    /// Renews an existing record in place: opened by path, never created, checked by path after the
    /// write (safety rule H15). Only for heartbeats.
    Renew(RecordKey, Vec<u8>),
    /// Replaces a record as a whole (written beside it, then renamed).
    Put(RecordKey, Vec<u8>),
    /// Writes pages of an existing record in place, in this order: opened by path, never created, checked
    /// by path after the write (safety rule H15). Each page has [`crate::wire::PAGE_BYTES`]; one past the end
    /// makes the record longer. *Unknown* when some pages may be written and others not.
    PutPages(RecordKey, Vec<PageWrite>),
    /// Makes a record only if there is none under this key, atomically (exclusive link).
    Link(RecordKey, Vec<u8>),
    /// Removes a record.
    Remove(RecordKey),
    /// Does this host see the lock that another host's agent holds on its own probe file there, of the kind
    /// that hypervisors put on disk images? Gives [`StorageValue::Held`] or not found.
    ProbeLock(HostId),
    /// Lists the generations of one VM's lock.
    ListVmLock(VmId),
    /// Lists the keys of all VM locks.
    ListAllVmLocks,
    /// Lists the generations of the owner lock.
    ListOwnerLock,
    /// Lists the protected lists.
    ListProtected,
    /// Lists the copies of the configuration.
    ListConfig,
}

/// What a successful operation gives.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum StorageValue {
    /// Done.
    Done,
    /// A record's bytes.
    Bytes(Vec<u8>),
    /// Keys, in any order.
    Keys(Vec<RecordKey>),
    /// There is no such record.
    NotFound,
    /// There is one already (link only).
    Exists,
    /// The lock is held, as far as this host sees (probe only).
    Held(bool),
}

/// Why an operation did not succeed for certain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IoFault {
    /// The device or path is gone for good (ENXIO, EIO, ESTALE, ENODEV).
    Gone,
    /// No space.
    Full,
    /// Read-only.
    ReadOnly,
    /// It took longer than the driver waits.
    TimedOut,
    /// Not this cluster's datastore, or the directory is missing.
    Foreign,
    /// Another error.
    Other,
}

/// The outcome of a storage operation.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum StorageOutcome {
    /// It was performed.
    Ok(StorageValue),
    /// It was certainly not performed and never will be.
    NotDone(IoFault),
    /// It may have been performed, or may be later.
    Unknown(IoFault),
}

/// A renewed right to run.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Extension {
    /// The VM.
    pub vm: VmId,
    /// Its lock's generation.
    pub generation: Generation,
    /// New end of the right to run.
    pub deadline: Instant,
}

/// A request to the guard's shared memory.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum GuardRequest {
    /// A VM is about to be made under this generation; freeze it at the deadline.
    Register {
        /// The VM.
        vm: VmId,
        /// Its lock's generation.
        generation: Generation,
        /// End of the right to run.
        deadline: Instant,
    },
    /// The rights of these VMs were renewed, with one heartbeat for all of them. Those that have lapsed are
    /// refused by name ([`GuardOutcome::Refused`]), the others are extended.
    Extend(Vec<Extension>),
    /// The lock was won again: run under the new generation if the deadline has not passed.
    Thaw {
        /// The VM.
        vm: VmId,
        /// The generation that lapsed.
        from: Generation,
        /// The generation that was won.
        to: Generation,
        /// End of its right to run.
        deadline: Instant,
    },
    /// The agent gives this generation up, so that the VM goes on under another: it is frozen until it is
    /// thawed under the next one.
    Lapse {
        /// The VM.
        vm: VmId,
        /// Its lock's generation.
        generation: Generation,
    },
    /// The VM is gone.
    Remove {
        /// The VM.
        vm: VmId,
    },
}

/// The guard's answer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum GuardOutcome {
    /// Done.
    Done,
    /// Refused: the right has lapsed, or the generation is another.
    Lapsed,
    /// Of a request for several VMs: these were refused as [`GuardOutcome::Lapsed`] says, the others done.
    Refused(Vec<VmId>),
    /// There is no guard: nothing may be started.
    NoGuard,
}

/// A request to the hypervisor.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum HypervisorRequest {
    /// Make the VM's process with its image open and locked, no instruction executed.
    Prepare {
        /// The VM.
        spec: VmSpec,
        /// The generation that it will run under.
        generation: Generation,
    },
    /// Let the first instruction run.
    Resume {
        /// The VM.
        vm: VmId,
    },
    /// Ask the guest to shut down.
    Shutdown {
        /// The VM.
        vm: VmId,
    },
    /// Kill the process. [`Input::VmExited`] follows when every thread is gone.
    Kill {
        /// The VM.
        vm: VmId,
    },
}

/// The hypervisor's answer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum HypervisorOutcome {
    /// Done.
    Done,
    /// The image's own lock is held by another process.
    ImageLocked,
    /// It failed; the text is for people.
    Failed(String),
}

/// What a host's fence device is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FenceRequest {
    /// Say whether the host has power; where the device can be asked who it switches, that first.
    Status,
    /// Take the host's power away.
    Off,
    /// Give it back.
    On,
}

/// What a fence device answered. Only a power status says anything about the host: a device that says that it
/// did what it was told proves nothing.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FenceOutcome {
    /// The host has power (status only).
    PowerOn,
    /// It has none (status only).
    PowerOff,
    /// The device says that it did what it was told (off and on only).
    Done,
    /// The device switches something else, which it calls by that name. Nothing was switched.
    Stranger(String),
    /// Nothing was asked or switched, for certain; the text is for people.
    NotDone(String),
    /// The device did not answer to the end: what it was told may be done, or may be done later.
    Unknown(String),
}

/// How a VM's process ended. Reported only once every thread of it is gone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitCause {
    /// The guest shut itself down.
    GuestShutdown,
    /// It crashed or was killed by somebody else.
    Crash,
    /// Killed at the agent's or guard's own wish.
    Killed,
    /// The guest's operating system panicked, and said so.
    Panicked,
    /// The host's kernel killed it because memory had run out.
    OutOfMemory,
}

/// What an agent keeps on local disk.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Durable {
    /// Highest generation seen of each VM lock, by datastore (safety rule H22).
    pub vm_generations: BTreeMap<(DatastoreId, VmId), Generation>,
    /// Highest generation seen of each owner lock.
    pub owner_generations: BTreeMap<DatastoreId, Generation>,
    /// VMs whose user wants them off and whose lock does not say so yet.
    pub wanted_off: BTreeSet<VmId>,
    /// The last primary: found again more quickly after a restart, and shown.
    pub last_primary: Option<HostId>,
    /// Guests that were asked to shut down, and why: their end is no wish of theirs to stay off.
    pub asked_down: BTreeMap<VmId, StopReason>,
}

/// A VM that a starting agent finds on its host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundVm {
    /// The VM.
    pub vm: VmId,
    /// What the guard's memory says of it.
    pub state: FoundState,
}

/// What the guard's memory says of a VM that was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FoundState {
    /// Registered under this generation, its right valid when read.
    Running(Generation),
    /// Registered under this generation, lapsed, frozen.
    Lapsed(Generation),
    /// Registered but its first instruction never ran.
    Prepared(Generation),
    /// Not registered: it was frozen before the agent started.
    Unregistered,
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// The time of [`crate::Agent::poll_timeout`] came. Spurious ones do nothing.
    Timeout,
    /// A datagram came; its sender is authenticated.
    Message {
        /// The sender.
        from: HostId,
        /// The message.
        message: Message,
    },
    /// A message came on a stream; its sender is authenticated. It may have come before.
    Stream {
        /// The sender.
        from: HostId,
        /// The message.
        envelope: Envelope,
    },
    /// A host's agent understands formats up to that version, as its messages show. To be said before the
    /// first message that shows it.
    Understands {
        /// The host.
        host: HostId,
        /// The version.
        version: u16,
    },
    /// The stream to a host was connected anew: what was sent on the old connection may be lost. To be
    /// said once the new one carries messages; it only makes repetitions come sooner.
    StreamRenewed {
        /// The other end.
        to: HostId,
    },
    /// A ping ended.
    Pinged(OpId, PingOutcome),
    /// A storage operation ended.
    Storage(OpId, StorageOutcome),
    /// The guard answered.
    Guard(OpId, GuardOutcome),
    /// The hypervisor answered.
    Hypervisor(OpId, HypervisorOutcome),
    /// A fence device answered.
    Fenced(OpId, FenceOutcome),
    /// Local state is on disk (true) or could not be written.
    Persisted(OpId, bool),
    /// A VM's process is gone with every thread.
    VmExited {
        /// The VM.
        vm: VmId,
        /// How it ended.
        cause: ExitCause,
    },
    /// The guard froze a VM because its right to run had lapsed.
    VmLapsed {
        /// The VM.
        vm: VmId,
        /// The generation that lapsed.
        generation: Generation,
    },
    /// The hypervisor paused a VM because an operation on its disk failed, or it goes on after that.
    VmIo {
        /// The VM.
        vm: VmId,
        /// Why it was paused; none: it goes on.
        fault: Option<IoFault>,
    },
}

/// Something to do, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Send a message by datagram, over every network that leads to the receiver.
    Datagram {
        /// The receiver.
        to: HostId,
        /// The message.
        message: Message,
    },
    /// Send a message on the stream to that host, over any one network. It may be lost with a connection,
    /// and must not overtake another.
    Stream {
        /// The receiver.
        to: HostId,
        /// The message.
        envelope: Envelope,
    },
    /// Ping.
    Ping(OpId, PingTarget),
    /// Perform a storage operation, on a thread of the datastore's own.
    Storage(OpId, DatastoreId, StorageRequest),
    /// Write the guard's shared memory.
    Guard(OpId, GuardRequest),
    /// Ask the hypervisor.
    Hypervisor(OpId, HypervisorRequest),
    /// Ask the fence device of that host ([`crate::Agent::set_fence_devices`]), within `fence_timeout`.
    Fence(OpId, HostId, FenceRequest),
    /// Write local state atomically.
    Persist(OpId, Durable),
    /// Write the cluster's configuration to local disk atomically; [`Input::Persisted`] answers. An agent
    /// is started with the newest of this and the file that its admin wrote.
    PersistConfig(OpId, Box<ClusterConfig>),
    /// What became of the changes that [`crate::Agent::propose`] gave this ticket: the version that has
    /// them and is on disk, or why they were not made.
    Proposed(u64, Result<u64, String>),
    /// The answer to what [`crate::Agent::plan_drill`] or [`crate::Agent::run_drill`] gave this ticket, or
    /// why there is none.
    Drill(u64, Result<Answer, String>),
    /// Report an event.
    Event(Event),
}
