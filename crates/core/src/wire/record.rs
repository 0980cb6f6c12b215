//! The records on a datastore, and the keys under which they lie.

use super::frame::{
    DecodeError, FrameKind, Stamp, Versions, body, decode, decode_with_config, encode, encode_as,
    open,
};
use super::table::{self, Entry, Table};
use crate::config::{ClusterConfig, RestartPriority};
use crate::event::StopReason;
use crate::id::{DatastoreId, Generation, Holder, HostId, Nonce, VmId};
use crate::time::Duration;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString as _};
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
    /// The protected list of an owner generation (safety rule H19).
    Protected(Generation),
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
            Self::Protected(generation) => format!("protectedlist.{:016}", generation.0),
            Self::Config(generation, copy) => {
                format!("protectedlist.config.{:016}.{copy}", generation.0)
            }
        }
    }

    /// The record whose file has this name; none: the file is none of an agent.
    #[must_use]
    pub fn from_file_name(name: &str) -> Option<Self> {
        if let Some(rest) = name.strip_prefix("protectedlist.lock.") {
            return Some(Self::OwnerLock(generation(rest)?));
        }
        if let Some(rest) = name.strip_prefix("protectedlist.config.") {
            let (digits, copy) = rest.split_once('.')?;
            let key = Self::Config(generation(digits)?, copy.parse().ok()?);
            // "+1" and "01" are numbers too, but none that an agent writes.
            return (key.file_name() == name).then_some(key);
        }
        if let Some(rest) = name.strip_prefix("protectedlist.") {
            return Some(Self::Protected(generation(rest)?));
        }
        if let Some((vm, digits)) = name.rsplit_once(".lock.") {
            return Some(Self::VmLock(VmId::new(vm).ok()?, generation(digits)?));
        }
        if let Some(host) = name.strip_suffix("-poweron") {
            return Some(Self::Poweron(HostId::new(host).ok()?));
        }
        Some(Self::Heartbeat(
            HostId::new(name.strip_suffix("-hb")?).ok()?,
        ))
    }
}

/// A generation as file names have it. What was not written by an agent is no record: a file with the name of
/// the last generation that there can be must not hide the lock's real head.
fn generation(digits: &str) -> Option<Generation> {
    let written = digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_digit());
    written.then(|| digits.parse().ok().map(Generation))?
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
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub enum Desired {
    /// It should run.
    On,
    /// Its user, or the guest itself, switched it off.
    #[default]
    Off,
}

/// One generation of a lock.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
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
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct GivenBack {
    /// The host.
    pub host: HostId,
    /// Why the VM had stopped there.
    pub reason: StopReason,
}

/// What a host says of itself in the head of its powered-on list. On disk each is one bit, and bits that
/// this version does not know are ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoweronFlags {
    /// It is isolated.
    pub isolated: bool,
    /// It is being shut down by its admin.
    pub leaving: bool,
}

impl PoweronFlags {
    const ISOLATED: u32 = 1;
    const LEAVING: u32 = 2;

    fn bits(self) -> u32 {
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        flag(self.isolated, Self::ISOLATED) | flag(self.leaving, Self::LEAVING)
    }

    fn from_bits(bits: u32) -> Self {
        Self {
            isolated: bits & Self::ISOLATED != 0,
            leaving: bits & Self::LEAVING != 0,
        }
    }
}

/// The VMs that a host runs, and what it says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PoweronRecord {
    /// What the host says of itself.
    pub flags: PoweronFlags,
    /// Its powered-on VMs, with the generation that each runs under, in the order of their ids.
    pub vms: Vec<(VmId, Generation)>,
    /// Slots that could not be read. When there are any, a VM that is not in the list may be on.
    pub unreadable: u32,
}

impl PoweronRecord {
    /// The list as a table in memory.
    pub(crate) fn table(&self) -> PoweronTable {
        Table::new(self.vms.iter().cloned()).0
    }

    /// The VMs by id.
    pub(crate) fn by_vm(&self) -> BTreeMap<VmId, (VmId, Generation)> {
        self.vms.iter().map(|v| (v.0.clone(), v.clone())).collect()
    }

    /// The list as a whole file, and the table that goes on writing it.
    #[must_use]
    pub fn begin(&self, cluster: u64, stamp: &Stamp) -> (PoweronTable, Vec<u8>) {
        let mut table = self.table();
        let file = table.file(cluster, stamp, self.flags.bits());
        (table, file)
    }

    /// Reads the list.
    ///
    /// # Errors
    /// [`DecodeError`] when the file is no powered-on list of this cluster; damaged slots are counted.
    pub fn decode(cluster: u64, bytes: &[u8]) -> Result<(Stamp, Self), DecodeError> {
        let contents = table::read::<(VmId, Generation)>(cluster, bytes)?;
        let record = Self {
            flags: PoweronFlags::from_bits(contents.flags),
            vms: contents.entries.into_values().collect(),
            unreadable: contents.lost,
        };
        Ok((contents.stamp, record))
    }
}

/// A powered-on list as its host keeps it: 2,048 VMs with ids of up to 42 bytes take 34 pages
/// (139,264 bytes); a longer id takes two slots. One copy of each page: a slot that is damaged when its
/// host dies in the middle of a write makes the list incomplete, and says so.
pub type PoweronTable = Table<(VmId, Generation)>;

impl Entry for (VmId, Generation) {
    const KIND: FrameKind = FrameKind::Poweron;
    const SLOT_BYTES: usize = 64;
    const TWINS: bool = false;

    fn vm(&self) -> &VmId {
        &self.0
    }

    fn slots(vm: &VmId) -> u32 {
        // A slot's payload has 50 bytes, the generation 8.
        if vm.as_str().len() <= 42 { 1 } else { 2 }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.1.0.to_le_bytes().to_vec();
        bytes.extend_from_slice(self.0.as_str().as_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (generation, vm) = bytes.split_first_chunk::<8>()?;
        let vm = VmId::new(core::str::from_utf8(vm).ok()?).ok()?;
        Some((vm, Generation(u64::from_le_bytes(*generation))))
    }
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

impl Entry for ProtectedVm {
    const KIND: FrameKind = FrameKind::Protected;
    const SLOT_BYTES: usize = 256;
    const TWINS: bool = true;

    fn vm(&self) -> &VmId {
        &self.vm
    }

    fn slots(_: &VmId) -> u32 {
        1
    }

    fn to_bytes(&self) -> Vec<u8> {
        // Serialising our own types into memory cannot fail; an empty slot would fail its decoding.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }
}

/// A protected list as its owner keeps it (safety rule H19).
pub type ProtectedTable = Table<ProtectedVm>;

/// The protected list of a datastore, as it was read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProtectedRecord {
    /// The VMs.
    pub vms: BTreeMap<VmId, ProtectedVm>,
    /// Slots of which nothing could be read: VMs may be missing.
    pub lost: u32,
    /// Slots whose newest copy could not be read, so that the one before it was taken.
    pub fallen_back: u32,
}

impl ProtectedRecord {
    /// The file of an empty list.
    #[must_use]
    pub fn empty(cluster: u64, stamp: &Stamp) -> Vec<u8> {
        ProtectedTable::new([]).0.file(cluster, stamp, 0)
    }

    /// Reads the list.
    ///
    /// # Errors
    /// [`DecodeError`] when the file is no protected list of this cluster; damaged slots are counted.
    pub fn decode(cluster: u64, bytes: &[u8]) -> Result<(Stamp, Self), DecodeError> {
        let contents = table::read::<ProtectedVm>(cluster, bytes)?;
        let record = Self {
            vms: contents.entries,
            lost: contents.lost,
            fallen_back: contents.fallen_back,
        };
        Ok((contents.stamp, record))
    }
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

impl HeartbeatRecord {
    /// Frames this record of an agent that understands formats up to that version.
    pub(crate) fn encode_by(&self, understood: u16, cluster: u64, stamp: &Stamp) -> Vec<u8> {
        let versions = Versions { of: 1, understood };
        encode_as(FrameKind::Heartbeat, versions, cluster, stamp, self)
    }
}

/// A generation of a lock in version 1, which did not say who gave it back.
#[derive(Serialize, Deserialize)]
struct FirstLock {
    generation: Generation,
    nonce: Nonce,
    holder: Option<Holder>,
    desired: Desired,
    freeze: Duration,
    r#break: Duration,
}

impl LockRecord {
    /// Frames this record: in version 1 as long as that can say it.
    #[must_use]
    pub fn encode(&self, cluster: u64, stamp: &Stamp) -> Vec<u8> {
        if self.given_back.is_some() {
            return encode_as(FrameKind::Lock, Versions::of(2), cluster, stamp, self);
        }
        let first = FirstLock {
            generation: self.generation,
            nonce: self.nonce,
            holder: self.holder.clone(),
            desired: self.desired,
            freeze: self.freeze,
            r#break: self.r#break,
        };
        encode(FrameKind::Lock, cluster, stamp, &first)
    }

    /// Reads this record.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else than a sound record of this kind and cluster.
    pub fn decode(cluster: u64, bytes: &[u8]) -> Result<(Stamp, Self), DecodeError> {
        let (version, payload) = open(FrameKind::Lock, cluster, bytes)?;
        if version > 1 {
            return body(payload);
        }
        let (stamp, first) = body::<FirstLock>(payload)?;
        let record = Self {
            generation: first.generation,
            nonce: first.nonce,
            holder: first.holder,
            desired: first.desired,
            freeze: first.freeze,
            r#break: first.r#break,
            given_back: None,
        };
        Ok((stamp, record))
    }
}

/// The cluster's configuration on its home datastore.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConfigRecord {
    /// The configuration.
    pub config: Box<ClusterConfig>,
}

impl ConfigRecord {
    /// Frames this record: in version 1 as long as that can say it.
    #[must_use]
    pub fn encode(&self, cluster: u64, stamp: &Stamp) -> Vec<u8> {
        let version = if self.config.places.is_empty() { 1 } else { 2 };
        encode_as(
            FrameKind::Config,
            Versions::of(version),
            cluster,
            stamp,
            self,
        )
    }

    /// Reads this record.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else than a sound record of this kind and cluster, and for a configuration
    /// that contradicts itself.
    pub fn decode(cluster: u64, bytes: &[u8]) -> Result<(Stamp, Self), DecodeError> {
        let (stamp, record) = decode_with_config::<Self>(FrameKind::Config, cluster, bytes)?;
        if record.config.cluster_id != cluster {
            return Err(DecodeError::Foreign {
                found: record.config.cluster_id,
                own: cluster,
            });
        }
        let sound = record.config.check();
        sound.map_err(|error| DecodeError::Unsound(error.to_string()))?;
        Ok((stamp, record))
    }
}

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
    fn a_configuration_that_contradicts_itself_or_is_of_another_cluster_is_refused() {
        let host = crate::config::HostSpec {
            id: HostId::new("host-1").expect("id"),
            cpu_mhz: 1,
            memory_mb: 1,
            datastores: Default::default(),
            maintenance: false,
            networks: Default::default(),
        };
        let settings = crate::config::Settings::default();
        let config =
            ClusterConfig::new(9, settings, [host].into(), [].into(), [].into(), [].into());
        let sound = config.expect("sound");
        let decode = |config: &ClusterConfig| {
            let config = Box::new(config.clone());
            ConfigRecord::decode(9, &ConfigRecord { config }.encode(9, &stamp()))
        };
        assert!(decode(&sound).is_ok());
        let mut unsafe_timers = sound.clone();
        let timers = &mut unsafe_timers.settings.timing;
        timers.freeze = timers.r#break;
        let error = decode(&unsafe_timers).expect_err("refused");
        assert!(matches!(error, DecodeError::Unsound(_)), "{error}");
        let mut foreign = sound;
        foreign.cluster_id = 8;
        let wanted = DecodeError::Foreign { found: 8, own: 9 };
        assert_eq!(decode(&foreign), Err(wanted));
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
            RecordKey::Protected(Generation(3)),
            RecordKey::Config(Generation(3), 1),
        ] {
            assert_eq!(RecordKey::from_file_name(&key.file_name()), Some(key));
        }
        assert_eq!(RecordKey::from_file_name("notes.txt"), None);
    }

    #[test]
    fn a_file_that_no_agent_names_so_is_no_generation_of_a_lock() {
        for name in [
            "vm-1.lock.18446744073709551615",
            "vm-1.lock.99999999999999999",
            "vm-1.lock.77",
            "vm-1.lock.+000000000000077",
            "protectedlist.lock.18446744073709551615",
            "protectedlist.18446744073709551615",
            "protectedlist.config.18446744073709551615.1",
            "protectedlist.config.0000000000000003.+1",
            "protectedlist.config.0000000000000003.01",
        ] {
            assert_eq!(RecordKey::from_file_name(name), None, "{name}");
        }
        let last = RecordKey::OwnerLock(Generation::MAX);
        assert_eq!(RecordKey::from_file_name(&last.file_name()), Some(last));
        assert!(Generation(u64::MAX).next() == Generation(u64::MAX));
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
