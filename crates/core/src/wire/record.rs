//! The records on a datastore, and the keys under which they lie.

use super::frame::{DecodeError, FrameKind, Stamp, decode, encode};
use crate::config::{ClusterConfig, RestartPriority};
use crate::event::StopReason;
use crate::id::{DatastoreId, Generation, Holder, HostId, Nonce, VmId};
use crate::time::Duration;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Where a record lies below `.mainstay/<cluster id>/` on a datastore.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum RecordKey {
    /// A host's heartbeat.
    Heartbeat(HostId),
    /// A host's powered-on list.
    Poweron(HostId),
    /// One generation of a VM's lock.
    VmLock(VmId, Generation),
    /// One generation of the lock on the datastore's protected list.
    OwnerLock(Generation),
    /// One of the two copies of the protected list of an owner generation (safety rule H19).
    Protected(Generation, u8),
    /// One of the two copies of the configuration of an owner generation, on its home datastore.
    Config(Generation, u8),
}

impl RecordKey {
    /// The record's file name.
    #[must_use]
    pub fn file_name(&self) -> String {
        match self {
            Self::Heartbeat(host) => format!("{host}-hb"),
            Self::Poweron(host) => format!("{host}-poweron"),
            Self::VmLock(vm, generation) => format!("{vm}.lock.{:016}", generation.0),
            Self::OwnerLock(generation) => format!("protectedlist.lock.{:016}", generation.0),
            Self::Protected(generation, copy) => {
                format!("protectedlist.{:016}.{copy}", generation.0)
            }
            Self::Config(generation, copy) => {
                format!("protectedlist.config.{:016}.{copy}", generation.0)
            }
        }
    }

    /// The record whose file has this name.
    #[must_use]
    pub fn from_file_name(name: &str) -> Option<Self> {
        if let Some(rest) = name.strip_prefix("protectedlist.lock.") {
            return Some(Self::OwnerLock(Generation(rest.parse().ok()?)));
        }
        if let Some(rest) = name.strip_prefix("protectedlist.config.") {
            let (generation, copy) = rest.split_once('.')?;
            return Some(Self::Config(
                Generation(generation.parse().ok()?),
                copy.parse().ok()?,
            ));
        }
        if let Some(rest) = name.strip_prefix("protectedlist.") {
            let (generation, copy) = rest.split_once('.')?;
            return Some(Self::Protected(
                Generation(generation.parse().ok()?),
                copy.parse().ok()?,
            ));
        }
        if let Some((vm, generation)) = name.rsplit_once(".lock.") {
            return Some(Self::VmLock(
                VmId::new(vm).ok()?,
                Generation(generation.parse().ok()?),
            ));
        }
        if let Some(host) = name.strip_suffix("-poweron") {
            return Some(Self::Poweron(HostId::new(host).ok()?));
        }
        Some(Self::Heartbeat(
            HostId::new(name.strip_suffix("-hb")?).ok()?,
        ))
    }
}

/// A host's sign of life on a datastore. It keeps all the host's locks there alive.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HeartbeatRecord {
    /// Right to run of this host's locks.
    pub freeze: Duration,
    /// Time after which its locks may be broken.
    pub r#break: Duration,
}

/// Whether a VM's user wants it on. Part of the lock's register, so that a power-off that is on disk
/// stops every restart that was on its way (the restart's swap fails).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Desired {
    /// It should run.
    On,
    /// Its user, or the guest itself, switched it off.
    #[default]
    Off,
}

/// One generation of a lock.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LockRecord {
    /// This generation.
    pub generation: Generation,
    /// Tells this swap from every other attempt.
    pub nonce: Nonce,
    /// Who holds it; none: free.
    pub holder: Option<Holder>,
    /// Should the VM run? (Not used by owner locks.)
    pub desired: Desired,
    /// Right to run under this generation.
    pub freeze: Duration,
    /// Time after which this generation may be broken.
    pub r#break: Duration,
    /// In a free generation: who gave it back, and why the VM had stopped there.
    pub given_back: Option<GivenBack>,
}

/// The mark that a host leaves when it gives a VM's lock back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GivenBack {
    /// The host.
    pub host: HostId,
    /// Why the VM had stopped there.
    pub reason: StopReason,
}

/// The VMs that a host runs on one datastore, and whether it is isolated.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PoweronRecord {
    /// The host says of itself that it is isolated.
    pub isolated: bool,
    /// The host is being shut down by its admin.
    pub leaving: bool,
    /// Its powered-on VMs, with the generation that each runs under.
    pub vms: Vec<(VmId, Generation)>,
}

/// A VM on a protected list: all that a new primary needs to restart it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProtectedVm {
    /// The VM.
    pub vm: VmId,
    /// Processor need in MHz.
    pub cpu_mhz: u64,
    /// Memory need in MiB.
    pub memory_mb: u64,
    /// Its place in the order.
    pub restart_priority: RestartPriority,
    /// The host on which it ran when it was listed.
    pub last_host: Option<HostId>,
}

/// The protected list of a datastore.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ProtectedRecord {
    /// Grows with each write under one owner generation.
    pub seq: u64,
    /// The VMs.
    pub vms: Vec<ProtectedVm>,
}

macro_rules! record {
    ($type:ty, $kind:expr) => {
        impl $type {
            /// Frames this record.
            #[must_use]
            pub fn encode(&self, cluster: u64, stamp: &Stamp) -> Vec<u8> {
                encode($kind, cluster, stamp, self)
            }

            /// Reads this record.
            ///
            /// # Errors
            /// [`DecodeError`] for anything else than a sound record of this kind and cluster.
            pub fn decode(cluster: u64, bytes: &[u8]) -> Result<(Stamp, Self), DecodeError> {
                decode($kind, cluster, bytes)
            }
        }
    };
}

record!(HeartbeatRecord, FrameKind::Heartbeat);
record!(LockRecord, FrameKind::Lock);
record!(PoweronRecord, FrameKind::Poweron);
record!(ProtectedRecord, FrameKind::Protected);

/// The cluster's configuration on its home datastore.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConfigRecord {
    /// The configuration.
    pub config: Box<ClusterConfig>,
}

record!(ConfigRecord, FrameKind::Config);

/// A datastore's own identity, written once when it is added to the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MarkerRecord {
    /// The datastore.
    pub datastore: DatastoreId,
    /// Grows when a person confirms a datastore that went backwards.
    pub epoch: u64,
}

record!(MarkerRecord, FrameKind::Marker);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{BootId, InstanceId};
    use proptest::prelude::*;

    fn stamp() -> Stamp {
        Stamp {
            writer: HostId::new("host-1").expect("id"),
            boot: BootId(1),
            instance: InstanceId(2),
            seq: 3,
        }
    }

    fn lock() -> LockRecord {
        LockRecord {
            generation: Generation(4),
            nonce: Nonce(5),
            holder: Some(Holder {
                host: HostId::new("host-1").expect("id"),
                boot: BootId(1),
            }),
            desired: Desired::On,
            freeze: Duration::from_secs(3),
            r#break: Duration::from_millis(4500),
            given_back: None,
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let bytes = lock().encode(9, &stamp());
        assert_eq!(LockRecord::decode(9, &bytes), Ok((stamp(), lock())));
        let mut padded = bytes;
        padded.resize(4096, 0);
        assert_eq!(LockRecord::decode(9, &padded), Ok((stamp(), lock())));
    }

    #[test]
    fn a_foreign_torn_or_damaged_record_is_told_apart() {
        let bytes = lock().encode(9, &stamp());
        assert!(matches!(
            LockRecord::decode(8, &bytes),
            Err(DecodeError::Foreign { found: 9, own: 8 })
        ));
        assert!(matches!(
            HeartbeatRecord::decode(9, &bytes),
            Err(DecodeError::Kind { .. })
        ));
        assert!(matches!(
            LockRecord::decode(9, &bytes[..bytes.len() - 1]),
            Err(DecodeError::Torn { .. })
        ));
        let mut damaged = bytes.clone();
        damaged[30] ^= 1;
        assert_eq!(LockRecord::decode(9, &damaged), Err(DecodeError::Checksum));
        let mut newer = bytes;
        newer[4] = 99;
        assert!(matches!(
            LockRecord::decode(9, &newer),
            Err(DecodeError::Version { found: 99 })
        ));
        assert_eq!(
            LockRecord::decode(9, b"something else entirely"),
            Err(DecodeError::Magic)
        );
    }

    #[test]
    fn file_names_lead_back_to_their_keys() {
        let host = HostId::new("host-1").expect("id");
        let vm = VmId::new("vm-1.lock").expect("id");
        for key in [
            RecordKey::Heartbeat(host.clone()),
            RecordKey::Poweron(host),
            RecordKey::VmLock(vm, Generation(77)),
            RecordKey::OwnerLock(Generation(0)),
            RecordKey::Protected(Generation(3), 1),
            RecordKey::Config(Generation(3), 1),
        ] {
            assert_eq!(RecordKey::from_file_name(&key.file_name()), Some(key));
        }
        assert_eq!(RecordKey::from_file_name("notes.txt"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = LockRecord::decode(1, &bytes);
            let mut framed = lock().encode(1, &stamp());
            for (i, b) in bytes.iter().enumerate() {
                let at = (i * 7 + usize::from(*b)) % framed.len();
                framed[at] ^= *b;
            }
            let _ = LockRecord::decode(1, &framed);
        }
    }
}
