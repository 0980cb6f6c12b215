//! Where everything lies in a region, and the bytes of its small records.
//!
//! ```text
//! 0            head                        one sector
//! 64 KiB       copy of the head            one sector
//! 124 KiB      for trial writes            one sector, which nobody reads
//! 128 KiB      heartbeats                  one sector for each host
//!              names of the registers      one sector each, written once
//!              marks of the registers      one sector each: the newest generation, as a hint
//!              registers                   one sector for each slot of each
//!              powered-on lists            two halves for each host
//!              protected lists             two halves for each of 8 owner generations
//!              configurations              two halves for each of 2 copies of 8 owner generations
//! ```
//! Register 0 is the owner lock, the next bind the places of hosts to their ids, the rest are the locks of VMs.
//! A half is a page with its head, and room for the record. Areas begin at multiples of 4,096 bytes.

use mainstay_core::id::{BootId, DatastoreId, Generation, HostId, InstanceId, VmId};
use mainstay_core::paxos::{Block, Sector};
use mainstay_core::wire::{DecodeError, FrameKind, PAGE_BYTES, RecordKey, Stamp, decode, encode};
use serde::{Deserialize, Serialize};

/// Format of the region. Another one is refused.
pub(crate) const REGION_FORMAT: u16 = 1;
/// Where the copy of the head lies: behind what partitioning tools write at the beginning of a device.
pub(crate) const HEAD_COPY: u64 = 64 << 10;
/// Where the areas begin.
const AREAS: u64 = 128 << 10;
/// The page before them, which is nobody's: for trial writes.
pub(crate) const TRIAL: u64 = AREAS - PAGE;
/// Owner generations whose lists lie side by side.
pub(crate) const LISTS: u64 = 8;
/// The smallest sector, in which every record of one sector fits.
pub(crate) const SECTOR_MIN: usize = 512;
/// The page that areas and halves are made of.
const PAGE: u64 = PAGE_BYTES as u64;

/// The size of a region and of its sectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Geometry {
    /// Bytes that the device writes as one: 512 or 4096.
    pub sector: u32,
    /// Hosts that find room: 1 to 256.
    pub hosts: u16,
    /// Slots of each host in each register: one for the agent, one for a command beside it, and more to go on
    /// with when a write in one of them is in doubt. 2 to 8.
    pub writers: u16,
    /// VMs that find room: 1 to 100,000.
    pub vms: u32,
    /// Room for a host's powered-on list, in bytes.
    pub poweron: u32,
    /// Room for a protected list, in bytes.
    pub list: u32,
    /// Room for the configuration, in bytes.
    pub config: u32,
}

impl Geometry {
    /// For 64 hosts and 8,000 VMs. A powered-on list has room for 2,048 VMs with the longest ids, a protected
    /// list for all VMs with both copies of each page, a configuration 4 MiB.
    #[must_use]
    pub fn new(sector: u32) -> Self {
        Self::sized(sector, 64, 8000)
    }

    /// For so many hosts and VMs.
    #[must_use]
    pub fn sized(sector: u32, hosts: u16, vms: u32) -> Self {
        let pages = |n: u32| n * 4096;
        Self {
            sector,
            hosts,
            writers: 3,
            vms,
            poweron: pages(2 + 2 * vms.min(2048).div_ceil(64)),
            list: pages(2 + 2 * (vms + vms / 8 + 64).div_ceil(16)),
            config: pages(64 + vms.div_ceil(8)).clamp(256 << 10, 4 << 20),
        }
    }

    pub(crate) fn is_sound(&self) -> bool {
        matches!(self.sector, 512 | 4096)
            && (1..=256).contains(&self.hosts)
            && (2..=8).contains(&self.writers)
            && (1..=100_000).contains(&self.vms)
            && [self.poweron, self.list, self.config]
                .iter()
                .all(|n| (4096..=8 << 20).contains(n) && n % 4096 == 0)
    }

    pub(crate) fn sector_len(&self) -> usize {
        usize::try_from(self.sector).unwrap_or(SECTOR_MIN)
    }

    pub(crate) fn registers(&self) -> u32 {
        1 + u32::from(self.hosts) + self.vms
    }

    /// Slots of a register.
    pub(crate) fn slots(&self) -> u16 {
        self.hosts.saturating_mul(self.writers)
    }

    fn area(&self, sectors: u64) -> u64 {
        (sectors * u64::from(self.sector)).next_multiple_of(PAGE)
    }

    pub(crate) fn heartbeat(&self, place: u32) -> u64 {
        AREAS + u64::from(place) * u64::from(self.sector)
    }

    pub(crate) fn names(&self) -> u64 {
        AREAS + self.area(u64::from(self.hosts))
    }

    pub(crate) fn name(&self, register: u32) -> u64 {
        self.names() + u64::from(register) * u64::from(self.sector)
    }

    pub(crate) fn marks(&self) -> u64 {
        self.names() + self.area(u64::from(self.registers()))
    }

    pub(crate) fn mark(&self, register: u32) -> u64 {
        self.marks() + u64::from(register) * u64::from(self.sector)
    }

    pub(crate) fn register(&self, register: u32) -> u64 {
        let first = self.marks() + self.area(u64::from(self.registers()));
        first + u64::from(register) * u64::from(self.slots()) * u64::from(self.sector)
    }

    pub(crate) fn slot(&self, register: u32, slot: u16) -> u64 {
        self.register(register) + u64::from(slot) * u64::from(self.sector)
    }

    fn lists_begin(&self) -> u64 {
        self.register(self.registers()).next_multiple_of(PAGE)
    }

    /// Where a half of an extent begins, and how many bytes of a record it has room for. None: such a record
    /// lies in no extent.
    pub(crate) fn half(
        &self,
        key: &RecordKey,
        place: Option<u32>,
        half: u8,
    ) -> Option<(u64, usize)> {
        let powerons = self.lists_begin();
        let size = |room: u32| 2 * (PAGE + u64::from(room));
        let lists = powerons + u64::from(self.hosts) * size(self.poweron);
        let configs = lists + LISTS * size(self.list);
        let (begin, index, room) = match key {
            RecordKey::Poweron(_) => (powerons, u64::from(place?), self.poweron),
            RecordKey::Protected(g) => (lists, g.0 % LISTS, self.list),
            RecordKey::Config(g, copy) => {
                let copy = u64::from(*copy % 2);
                (configs, 2 * (g.0 % LISTS) + copy, self.config)
            }
            _ => return None,
        };
        let at = begin + index * size(room) + u64::from(half % 2) * (PAGE + u64::from(room));
        Some((at, usize::try_from(room).ok()?))
    }

    /// Bytes of the whole region.
    #[must_use]
    pub fn size(&self) -> u64 {
        let size = |room: u32| 2 * (PAGE + u64::from(room));
        self.lists_begin()
            + u64::from(self.hosts) * size(self.poweron)
            + LISTS * size(self.list)
            + 2 * LISTS * size(self.config)
    }
}

/// The head of a region.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RegionHead {
    /// Format of the region.
    pub format: u16,
    /// Random, new with each format: part of every record's seal.
    pub region: u64,
    /// The datastore.
    pub datastore: DatastoreId,
    /// Sizes.
    pub geometry: Geometry,
}

/// What a register is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Name {
    /// The lock on the protected list.
    Owner,
    /// A host's place: its heartbeat, its slots, its powered-on list.
    Host(HostId),
    /// The lock of a VM.
    Vm(VmId),
}

/// What one generation of a register holds.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub(crate) struct Value {
    /// In generation 0: what the register is for from then on.
    pub(crate) name: Option<Name>,
    pub(crate) record: Vec<u8>,
}

/// The newest generation of a register, as its last writer knew it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) name: Name,
    pub(crate) newest: Generation,
}

/// What a half of an extent holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ExtentHead {
    /// None: the record was removed.
    pub(crate) key: Option<RecordKey>,
    pub(crate) bytes: u32,
    /// The half with the higher one counts.
    pub(crate) sequence: u64,
}

/// Reads and writes the small records of one region. What was meant for another region or another place is
/// foreign.
#[derive(Clone, Debug)]
pub(crate) struct Codec {
    pub(crate) cluster: u64,
    pub(crate) region: u64,
    pub(crate) stamp: Stamp,
    pub(crate) sector: usize,
}

impl Codec {
    pub(crate) fn stamp_of(host: &HostId, boot: BootId, incarnation: u64) -> Stamp {
        Stamp {
            writer: host.clone(),
            boot,
            instance: InstanceId(incarnation),
            seq: 0,
        }
    }

    /// None: it does not fit a sector.
    fn sealed<T: Serialize>(
        &self,
        kind: FrameKind,
        place: (u32, u16),
        body: &T,
    ) -> Option<Vec<u8>> {
        let mut bytes = encode(kind, self.cluster, &self.stamp, &(self.region, place, body));
        if bytes.len() > self.sector {
            return None;
        }
        bytes.resize(self.sector, 0);
        Some(bytes)
    }

    fn opened<T: serde::de::DeserializeOwned>(
        &self,
        kind: FrameKind,
        place: (u32, u16),
        bytes: &[u8],
    ) -> Result<T, DecodeError> {
        let (_, (region, found, body)) = decode::<(u64, (u32, u16), T)>(kind, self.cluster, bytes)?;
        if region != self.region {
            return Err(DecodeError::Foreign {
                found: region,
                own: self.region,
            });
        }
        if found != place {
            return Err(DecodeError::Body);
        }
        Ok(body)
    }

    /// A slot's sector.
    pub(crate) fn slot(
        &self,
        register: u32,
        slot: u16,
        block: Option<&Block<Value>>,
    ) -> Option<Vec<u8>> {
        self.sealed(FrameKind::RegisterSlot, (register, slot), &block)
    }

    pub(crate) fn read_slot(&self, register: u32, slot: u16, bytes: &[u8]) -> Sector<Value> {
        let place = (register, slot);
        match self.opened::<Option<Block<Value>>>(FrameKind::RegisterSlot, place, bytes) {
            Ok(Some(block)) => Sector::Sound(block),
            Ok(None) => Sector::Blank,
            Err(_) => Sector::Damaged,
        }
    }

    pub(crate) fn name(&self, register: u32, name: Option<&Name>) -> Option<Vec<u8>> {
        self.sealed(FrameKind::RegisterName, (register, 0), &name)
    }

    pub(crate) fn read_name(
        &self,
        register: u32,
        bytes: &[u8],
    ) -> Result<Option<Name>, DecodeError> {
        self.opened(FrameKind::RegisterName, (register, 0), bytes)
    }

    pub(crate) fn mark(&self, register: u32, mark: Option<&Mark>) -> Option<Vec<u8>> {
        self.sealed(FrameKind::RegisterName, (register, 1), &mark)
    }

    pub(crate) fn read_mark(
        &self,
        register: u32,
        bytes: &[u8],
    ) -> Result<Option<Mark>, DecodeError> {
        self.opened(FrameKind::RegisterName, (register, 1), bytes)
    }

    pub(crate) fn extent(&self, half: u8, head: &ExtentHead) -> Option<Vec<u8>> {
        self.sealed(FrameKind::ExtentHead, (0, u16::from(half)), head)
    }

    pub(crate) fn read_extent(&self, half: u8, bytes: &[u8]) -> Result<ExtentHead, DecodeError> {
        self.opened(FrameKind::ExtentHead, (0, u16::from(half)), bytes)
    }
}

/// A region's head as a sector.
pub(crate) fn head_bytes(cluster: u64, stamp: &Stamp, head: &RegionHead) -> Vec<u8> {
    let mut bytes = encode(FrameKind::RegionHead, cluster, stamp, head);
    bytes.resize(head.geometry.sector_len().max(bytes.len()), 0);
    bytes
}

/// Reads a region's head.
pub(crate) fn read_head(cluster: u64, bytes: &[u8]) -> Result<RegionHead, DecodeError> {
    let (_, head) = decode::<RegionHead>(FrameKind::RegionHead, cluster, bytes)?;
    if head.format != REGION_FORMAT {
        return Err(DecodeError::Version { found: head.format });
    }
    if !head.geometry.is_sound() {
        return Err(DecodeError::Body);
    }
    Ok(head)
}
