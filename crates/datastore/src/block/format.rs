//! Making a region, and what is new on one: acts of an administrator.

use super::disk::{Device, Disk};
use super::layout::{
    Codec, ExtentHead, Geometry, LISTS, Mark, Name, REGION_FORMAT, RegionHead, Value,
};
use super::open::{NO_BOOT, random, write_heads};
use super::register::Decided;
use super::{BlockDatastore, HOST_ID_MAX_BYTES, Here};
use crate::error::{AddError, CreateError};
use mainstay_core::config::{ClusterConfig, HostSpec, VmSpec};
use mainstay_core::id::{DatastoreId, Generation, HostId};
use mainstay_core::paxos::{Ballot, Block};
use mainstay_core::provision::{datastore_records, vm_record};
use mainstay_core::wire::RecordKey;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Bytes that are written at once while a region is made.
const CHUNK: usize = 1 << 20;

/// What a new region begins with.
struct Contents {
    /// Registers with their names and first records.
    registers: Vec<(Name, Vec<u8>)>,
    heartbeats: Vec<Vec<u8>>,
    /// Other records.
    records: Vec<(RecordKey, Vec<u8>)>,
}

impl Contents {
    fn of(cluster: &ClusterConfig, id: &DatastoreId, by: &HostId) -> Self {
        let settings = &cluster.settings;
        let hosts = cluster.hosts.values().filter(|h| h.datastores.contains(id));
        let made = datastore_records(cluster.cluster_id, settings, hosts, by);
        let mut owner = Vec::new();
        let mut hosts = Vec::new();
        let mut heartbeats = Vec::new();
        let mut records = Vec::new();
        for (key, bytes) in made {
            match key {
                RecordKey::Heartbeat(host) => {
                    hosts.push((Name::Host(host), Vec::new()));
                    heartbeats.push(bytes);
                }
                RecordKey::OwnerLock(_) => owner.push((Name::Owner, bytes)),
                key => records.push((key, bytes)),
            }
        }
        let vms = cluster.vms.values().filter(|v| v.datastore == *id);
        let vms = vms.map(|v| {
            let (_, bytes) = vm_record(cluster.cluster_id, settings, &v.id, by);
            (Name::Vm(v.id.clone()), bytes)
        });
        Self {
            registers: owner.into_iter().chain(hosts).chain(vms).collect(),
            heartbeats,
            records,
        }
    }
}

fn other(text: impl Into<String>) -> io::Error {
    io::Error::other(text.into())
}

impl BlockDatastore {
    /// Makes the region, over whatever lies there (`look` first). The head comes last: without one nothing is
    /// used.
    ///
    /// # Errors
    /// [`CreateError::Io`]: the device cannot be written or is too small, or the cluster does not fit.
    pub fn format(
        path: &Path,
        cluster: &ClusterConfig,
        id: &DatastoreId,
        by: &HostId,
        geometry: Geometry,
    ) -> Result<RegionHead, CreateError> {
        Self::format_on(&Device::new(path), cluster, id, by, geometry).map_err(|source| {
            CreateError::Io {
                path: path.into(),
                source,
            }
        })
    }

    pub(crate) fn format_on(
        disk: &dyn Disk,
        cluster: &ClusterConfig,
        id: &DatastoreId,
        by: &HostId,
        geometry: Geometry,
    ) -> io::Result<RegionHead> {
        let contents = Contents::of(cluster, id, by);
        check_fit(&contents, geometry)?;
        let head = RegionHead {
            format: REGION_FORMAT,
            region: random()?,
            datastore: id.clone(),
            geometry,
        };
        let codec = Codec {
            cluster: cluster.cluster_id,
            region: head.region,
            stamp: Codec::stamp_of(by, NO_BOOT, random()?),
            sector: geometry.sector_len(),
        };
        let mut writer = Writer::new(disk, 0);
        // The old head goes first: an attempt that breaks off leaves no region.
        let first = geometry.heartbeat(0);
        writer.zeroes(first)?;
        write_registers(&mut writer, &codec, geometry, &contents)?;
        writer.zeroes(geometry.size())?;
        writer.flush()?;
        blank_extents(disk, &codec, geometry)?;
        for (key, bytes) in &contents.records {
            write_record(disk, &codec, geometry, key, bytes)?;
        }
        write_heads(disk, &codec, &head).map_err(|e| e.error)?;
        Ok(head)
    }

    /// Adds what is missing: the places of new hosts, the locks of new VMs. Answers what was made.
    ///
    /// # Errors
    /// [`AddError::Open`] when this datastore is not there, [`AddError::Create`].
    pub fn add(
        path: &Path,
        cluster: &ClusterConfig,
        id: &DatastoreId,
        here: &Here,
    ) -> Result<Vec<RecordKey>, AddError> {
        let datastore = Self::open(path, cluster.cluster_id, id, here)?;
        let made = datastore.add_missing(cluster);
        made.map_err(|source| {
            let path = path.into();
            CreateError::Io { path, source }.into()
        })
    }

    pub(super) fn add_missing(&self, cluster: &ClusterConfig) -> io::Result<Vec<RecordKey>> {
        let contents = Contents::of(cluster, self.id(), &self.host);
        let beats: BTreeMap<Name, Vec<u8>> = contents
            .registers
            .iter()
            .filter(|(name, _)| matches!(name, Name::Host(_)))
            .map(|(name, _)| name.clone())
            .zip(contents.heartbeats)
            .collect();
        let mut made = Vec::new();
        for (name, record) in contents.registers {
            if self.bind(&name, &record, beats.get(&name))? {
                made.extend(match name {
                    Name::Vm(vm) => Some(RecordKey::VmLock(vm, Generation(0))),
                    Name::Host(host) => Some(RecordKey::Heartbeat(host)),
                    Name::Owner => None,
                });
            }
        }
        Ok(made)
    }

    /// Makes the lock of a VM that is about to be made. Answers whether it had none.
    ///
    /// # Errors
    /// As [`BlockDatastore::add`].
    pub fn add_vm(
        path: &Path,
        cluster: &ClusterConfig,
        vm: &VmSpec,
        here: &Here,
    ) -> Result<bool, AddError> {
        let datastore = Self::open(path, cluster.cluster_id, &vm.datastore, here)?;
        let (_, record) = vm_record(cluster.cluster_id, &cluster.settings, &vm.id, &here.host);
        let bound = datastore.bind(&Name::Vm(vm.id.clone()), &record, None);
        bound.map_err(|source| {
            let path = path.into();
            CreateError::Io { path, source }.into()
        })
    }

    /// Gives a host that is about to join its place. Run by a member: a host without a place writes no register.
    /// Answers whether it had none.
    ///
    /// # Errors
    /// As [`BlockDatastore::add`].
    pub fn add_host(
        path: &Path,
        cluster: &ClusterConfig,
        id: &DatastoreId,
        host: &HostSpec,
        here: &Here,
    ) -> Result<bool, AddError> {
        let datastore = Self::open(path, cluster.cluster_id, id, here)?;
        let only = std::iter::once(host);
        let made = datastore_records(cluster.cluster_id, &cluster.settings, only, &host.id);
        let mut beats = made.into_iter().filter_map(|(key, bytes)| match key {
            RecordKey::Heartbeat(_) => Some(bytes),
            _ => None,
        });
        let bound = datastore.bind(&Name::Host(host.id.clone()), &[], beats.next().as_ref());
        bound.map_err(|source| {
            let path = path.into();
            CreateError::Io { path, source }.into()
        })
    }

    /// Has a register named, and begun with that record. Answers whether it was not.
    pub(super) fn bind(
        &self,
        name: &Name,
        record: &[u8],
        heartbeat: Option<&Vec<u8>>,
    ) -> io::Result<bool> {
        let (names, damaged) = self.read_names()?;
        if let Some(register) = names.get(name) {
            self.begin_heartbeat(*register, heartbeat)?;
            return Ok(false);
        }
        if !damaged.is_empty() {
            return Err(other(
                "names of its registers are damaged; run `mainstay datastore repair` first",
            ));
        }
        check_name(name, self.head.geometry)?;
        let taken: Vec<u32> = names.values().copied().collect();
        self.bind_one_of_the_rest(&taken, name, record, heartbeat)
    }

    /// Which register it becomes is decided like a generation, so that of two that want one, one goes on to the
    /// next. Both go upwards and none is ever set free: whoever bound this name since `taken` was read is met
    /// before a free register, so that a name never gets two.
    pub(super) fn bind_one_of_the_rest(
        &self,
        taken: &[u32],
        name: &Name,
        record: &[u8],
        heartbeat: Option<&Vec<u8>>,
    ) -> io::Result<bool> {
        let hosts = u32::from(self.head.geometry.hosts);
        let candidates = match name {
            Name::Owner => 0..1,
            Name::Host(_) => 1..1 + hosts,
            Name::Vm(_) => 1 + hosts..self.head.geometry.registers(),
        };
        for register in candidates.filter(|r| !taken.contains(r)) {
            let value = Value {
                name: Some(name.clone()),
                record: record.to_vec(),
            };
            match self.decide(register, Generation(0), &value) {
                Decided::Won => {
                    self.begin_heartbeat(register, heartbeat)?;
                    self.write_name(register, name)?;
                    return Ok(true);
                }
                Decided::Other | Decided::Superseded => {
                    if self.name_of_another(register)? == *name {
                        self.begin_heartbeat(register, heartbeat)?;
                        return Ok(false);
                    }
                }
                Decided::NotDone(_) | Decided::Unknown(_) => {
                    return Err(other(
                        "no slot of this host is free, or its registers cannot be written; try again, on another host if need be",
                    ));
                }
            }
        }
        Err(other(
            "it has no room for more; make a larger region, and move to it",
        ))
    }

    /// The name of a register that another bound. Where it was not written, who bound it broke off, or is about
    /// to: it is finished.
    fn name_of_another(&self, register: u32) -> io::Result<Name> {
        let at = self.head.geometry.name(register);
        let written = self.disk.read(at, self.codec.sector)?;
        if let Ok(Some(name)) = self.codec.read_name(register, &written) {
            return Ok(name);
        }
        // No generation follows the first before the name is there, so the first still has it.
        let sectors = self.read_register(register)?;
        let value = mainstay_core::paxos::value_of(&sectors, Generation(0));
        let name = value.and_then(|value| value.name.clone());
        let name = name.ok_or_else(|| {
            other("a register that is in use has no name; run `mainstay datastore repair` first")
        })?;
        self.write_name(register, &name)?;
        Ok(name)
    }

    /// A new host's place begins with a record that its agent may write over. What an agent wrote stays.
    fn begin_heartbeat(&self, register: u32, heartbeat: Option<&Vec<u8>>) -> io::Result<()> {
        let (Some(beat), Some(place)) = (heartbeat, register.checked_sub(1)) else {
            return Ok(());
        };
        let at = self.head.geometry.heartbeat(place);
        let there = self.disk.read(at, self.codec.sector)?;
        if there.iter().any(|byte| *byte != 0) {
            return Ok(());
        }
        let mut sector = beat.clone();
        sector.resize(self.codec.sector, 0);
        self.disk.write(at, &sector).map_err(|e| e.error)
    }

    fn write_name(&self, register: u32, name: &Name) -> io::Result<()> {
        let bytes = self.codec.name(register, Some(name));
        let bytes = bytes.ok_or_else(|| other("its name does not fit a sector"))?;
        let at = self.head.geometry.name(register);
        self.disk.write(at, &bytes).map_err(|e| e.error)?;
        self.mark(register, name, Generation(0));
        Ok(())
    }
}

fn check_fit(contents: &Contents, geometry: Geometry) -> io::Result<()> {
    if !geometry.is_sound() {
        return Err(other(
            "such a region cannot be made: 512 or 4096 bytes in a sector, 1 to 256 hosts, 2 to 8 slots for each, 1 to 100,000 VMs",
        ));
    }
    let hosts = contents.heartbeats.len();
    let vms = contents.registers.len() - hosts - 1;
    if hosts > usize::from(geometry.hosts) || vms > usize::try_from(geometry.vms).unwrap_or(0) {
        return Err(other(format!(
            "the cluster has {hosts} hosts and {vms} VMs there, the region room for {} and {}; make it larger",
            geometry.hosts, geometry.vms
        )));
    }
    contents
        .registers
        .iter()
        .try_for_each(|(name, _)| check_name(name, geometry))
}

fn check_name(name: &Name, geometry: Geometry) -> io::Result<()> {
    match name {
        Name::Host(host) if geometry.sector == 512 && host.as_str().len() > HOST_ID_MAX_BYTES => {
            Err(other(format!(
                "host id \"{host}\" is longer than {HOST_ID_MAX_BYTES} bytes, which do not fit sectors of 512 bytes; use sectors of 4096 bytes"
            )))
        }
        _ => Ok(()),
    }
}

/// Writes a range from its beginning, in large pieces.
struct Writer<'a> {
    disk: &'a dyn Disk,
    at: u64,
    bytes: Vec<u8>,
}

impl<'a> Writer<'a> {
    fn new(disk: &'a dyn Disk, at: u64) -> Self {
        Self {
            disk,
            at,
            bytes: Vec::with_capacity(CHUNK),
        }
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() >= CHUNK {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        self.disk.write(self.at, &self.bytes).map_err(|e| e.error)?;
        self.at += self.bytes.len() as u64;
        self.bytes.clear();
        Ok(())
    }

    /// Zeroes up to that offset.
    fn zeroes(&mut self, to: u64) -> io::Result<()> {
        while let Some(left) = to
            .checked_sub(self.at + self.bytes.len() as u64)
            .filter(|left| *left > 0)
        {
            let len = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            self.push(&vec![0; len])?;
        }
        Ok(())
    }
}

/// The register that each name gets in a new region.
fn placed(geometry: Geometry, contents: &Contents) -> BTreeMap<u32, &(Name, Vec<u8>)> {
    let mut next_host = 1;
    let mut next_vm = 1 + u32::from(geometry.hosts);
    let mut placed = BTreeMap::new();
    for entry in &contents.registers {
        let register = match entry.0 {
            Name::Owner => 0,
            Name::Host(_) => {
                next_host += 1;
                next_host - 1
            }
            Name::Vm(_) => {
                next_vm += 1;
                next_vm - 1
            }
        };
        placed.insert(register, entry);
    }
    placed
}

fn write_registers(
    writer: &mut Writer<'_>,
    codec: &Codec,
    geometry: Geometry,
    contents: &Contents,
) -> io::Result<()> {
    let placed = placed(geometry, contents);
    let full = || other("a record does not fit a sector");
    for beat in &contents.heartbeats {
        let mut sector = beat.clone();
        sector.resize(codec.sector, 0);
        writer.push(&sector)?;
    }
    writer.zeroes(geometry.names())?;
    for register in 0..geometry.registers() {
        let name = placed.get(&register).map(|(name, _)| name);
        writer.push(&codec.name(register, name).ok_or_else(full)?)?;
    }
    writer.zeroes(geometry.marks())?;
    for register in 0..geometry.registers() {
        let mark = placed.get(&register).map(|(name, _)| Mark {
            name: name.clone(),
            newest: Generation(0),
        });
        writer.push(&codec.mark(register, mark.as_ref()).ok_or_else(full)?)?;
    }
    writer.zeroes(geometry.register(0))?;
    for register in 0..geometry.registers() {
        let begun = placed.get(&register).map(|(name, record)| Block {
            base: Some((
                Generation(0),
                Value {
                    name: Some(name.clone()),
                    record: record.clone(),
                },
            )),
            promised: Ballot::default(),
            accepted: None,
            decided: false,
        });
        for slot in 0..geometry.slots() {
            let block = begun.as_ref().filter(|_| slot == 0);
            writer.push(&codec.slot(register, slot, block).ok_or_else(full)?)?;
        }
    }
    Ok(())
}

/// The heads of all halves are sealed: zeroes are damage.
fn blank_extents(disk: &dyn Disk, codec: &Codec, geometry: Geometry) -> io::Result<()> {
    let nobody = HostId::new("nobody").map_err(|e| other(e.to_string()))?;
    let poweron = RecordKey::Poweron(nobody);
    let mut places: Vec<(RecordKey, Option<u32>)> = (0..u32::from(geometry.hosts))
        .map(|place| (poweron.clone(), Some(place)))
        .collect();
    for generation in (0..LISTS).map(Generation) {
        places.push((RecordKey::Protected(generation), None));
        places.extend([0, 1].map(|copy| (RecordKey::Config(generation, copy), None)));
    }
    let blank = ExtentHead {
        key: None,
        bytes: 0,
        sequence: 0,
    };
    for (key, place) in places {
        for half in [0, 1] {
            let at = geometry.half(&key, place, half);
            let head = codec.extent(half, &blank);
            if let (Some((at, _)), Some(head)) = (at, head) {
                disk.write(at, &head).map_err(|e| e.error)?;
            }
        }
    }
    Ok(())
}

/// A record in the first half of its extent.
fn write_record(
    disk: &dyn Disk,
    codec: &Codec,
    geometry: Geometry,
    key: &RecordKey,
    bytes: &[u8],
) -> io::Result<()> {
    let (at, room) = geometry
        .half(key, None, 0)
        .ok_or_else(|| other("a record that lies in no extent"))?;
    if bytes.len() > room {
        return Err(other("a first record does not fit its extent"));
    }
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(4096), 0);
    disk.write(at + 4096, &padded).map_err(|e| e.error)?;
    let head = ExtentHead {
        key: Some(key.clone()),
        bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        sequence: 1,
    };
    let head = codec
        .extent(0, &head)
        .ok_or_else(|| other("a head does not fit a sector"))?;
    disk.write(at, &head).map_err(|e| e.error)
}
