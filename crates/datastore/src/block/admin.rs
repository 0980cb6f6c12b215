//! Looking at a region, checking and mending it: acts of an administrator, without a slot.

use super::disk::{Device, Disk};
use super::layout::{Codec, HEAD_COPY, LISTS, Mark, Name, RegionHead, read_head};
use super::open::NO_BOOT;
use mainstay_core::id::{Generation, HostId};
use mainstay_core::paxos::{Sector, newest};
use mainstay_core::wire::{HeartbeatRecord, RecordKey, Stamp};
use std::io;
use std::path::Path;

/// Damages that are told one by one; of more only the number is told.
const TOLD: usize = 64;

/// A host's place in a region.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Its number, from 0.
    pub place: u32,
    /// The host.
    pub host: HostId,
    /// Who wrote its heartbeat last; none: it is damaged.
    pub heartbeat: Option<Stamp>,
}

/// A register, as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Register {
    /// What it is for.
    pub name: Name,
    /// Its newest generation; none: no slot shows one.
    pub newest: Option<Generation>,
    /// Slots that cannot be read. When there are any, no generation of it can be made.
    pub damaged: u32,
}

/// What a region holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspection {
    /// Its head.
    pub head: RegionHead,
    /// The places that are taken.
    pub places: Vec<Place>,
    /// The owner lock and the locks of VMs.
    pub locks: Vec<Register>,
}

/// What a check or a repair found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Findings {
    /// Records whose checksums were verified.
    pub records: u64,
    /// What a repair can mend, or has mended.
    pub mendable: Vec<String>,
    /// What it cannot, with the remedy.
    pub lasting: Vec<String>,
    /// Further damages that are not told one by one.
    pub more: u64,
}

impl Findings {
    /// Nothing is damaged.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.mendable.is_empty() && self.lasting.is_empty() && self.more == 0
    }

    fn mendable(&mut self, text: String) {
        if self.mendable.len() < TOLD {
            self.mendable.push(text);
        } else {
            self.more += 1;
        }
    }

    fn lasting(&mut self, text: String) {
        if self.lasting.len() < TOLD {
            self.lasting.push(text);
        } else {
            self.more += 1;
        }
    }
}

/// A region that is looked at.
pub(super) struct Visit<'a> {
    disk: &'a dyn Disk,
    head: RegionHead,
    codec: Codec,
}

/// What a region holds.
///
/// # Errors
/// The device cannot be read, or its head is damaged.
pub fn inspect(path: &Path, cluster: u64) -> io::Result<Inspection> {
    Visit::begin(&Device::new(path), cluster)?.inspect()
}

/// Verifies every checksum; with `mend`, restores the head from its copy or the copy from the head, names of
/// registers from their marks, and marks.
///
/// # Errors
/// The device cannot be read or written, or head and copy are both damaged.
pub fn check(path: &Path, cluster: u64, mend: bool) -> io::Result<Findings> {
    check_on(&Device::new(path), cluster, mend)
}

pub(super) fn check_on(disk: &dyn Disk, cluster: u64, mend: bool) -> io::Result<Findings> {
    let mut findings = Findings::default();
    let visit = Visit::begin(disk, cluster)?;
    visit.heads(&mut findings, mend)?;
    visit.heartbeats(&mut findings)?;
    for register in 0..visit.head.geometry.registers() {
        visit.register(register, &mut findings, mend)?;
    }
    visit.extents(&mut findings)?;
    Ok(findings)
}

/// The heartbeats of the region on a device, as bytes, and the longest `break` that they name: a host that lives
/// changes its own before that. None: there is no region of that cluster.
///
/// # Errors
/// The device cannot be read.
pub fn heartbeats(
    path: &Path,
    cluster: u64,
) -> io::Result<Option<(Vec<Vec<u8>>, std::time::Duration)>> {
    let device = Device::new(path);
    let Ok(visit) = Visit::begin(&device, cluster) else {
        return Ok(None);
    };
    let beats: Vec<Vec<u8>> = visit
        .taken()?
        .into_iter()
        .map(|(place, _)| visit.heartbeat(place))
        .collect::<io::Result<_>>()?;
    let longest = beats
        .iter()
        .filter_map(|bytes| HeartbeatRecord::decode(cluster, bytes).ok())
        .map(|(_, record)| record.r#break)
        .max();
    Ok(Some((beats, longest.unwrap_or_default())))
}

impl<'a> Visit<'a> {
    pub(super) fn begin(disk: &'a dyn Disk, cluster: u64) -> io::Result<Self> {
        let read = |at| -> io::Result<_> { Ok(read_head(cluster, &disk.read(at, 4096)?)) };
        let head = match (read(0)?, read(HEAD_COPY)?) {
            (Ok(head), _) | (Err(_), Ok(head)) => head,
            (Err(error), Err(_)) => return Err(io::Error::other(error)),
        };
        let by = HostId::new("repair").map_err(io::Error::other)?;
        let codec = Codec {
            cluster,
            region: head.region,
            stamp: Codec::stamp_of(&by, NO_BOOT, 0),
            sector: head.geometry.sector_len(),
        };
        Ok(Self { disk, head, codec })
    }

    /// The head that was found.
    pub(super) fn into_head(self) -> RegionHead {
        self.head
    }

    fn sector(&self, at: u64) -> io::Result<Vec<u8>> {
        self.disk.read(at, self.codec.sector)
    }

    fn heartbeat(&self, place: u32) -> io::Result<Vec<u8>> {
        self.sector(self.head.geometry.heartbeat(place))
    }

    fn name(&self, register: u32) -> io::Result<Option<Name>> {
        let geometry = self.head.geometry;
        let name = self.sector(geometry.name(register))?;
        Ok(match self.codec.read_name(register, &name) {
            Ok(name) => name,
            Err(_) => {
                let mark = self.sector(geometry.mark(register))?;
                let mark = self.codec.read_mark(register, &mark).ok().flatten();
                mark.map(|mark| mark.name)
            }
        })
    }

    /// The places that are taken.
    fn taken(&self) -> io::Result<Vec<(u32, HostId)>> {
        let mut taken = Vec::new();
        for place in 0..u32::from(self.head.geometry.hosts) {
            if let Some(Name::Host(host)) = self.name(1 + place)? {
                taken.push((place, host));
            }
        }
        Ok(taken)
    }

    fn slots(&self, register: u32) -> io::Result<Vec<Sector<super::layout::Value>>> {
        let geometry = self.head.geometry;
        let sector = self.codec.sector;
        let len = usize::from(geometry.slots()) * sector;
        let bytes = self.disk.read(geometry.register(register), len)?;
        let slots = (0..geometry.slots()).zip(bytes.chunks(sector));
        Ok(slots
            .map(|(slot, bytes)| self.codec.read_slot(register, slot, bytes))
            .collect())
    }

    pub(super) fn inspect(&self) -> io::Result<Inspection> {
        let mut places = Vec::new();
        for (place, host) in self.taken()? {
            let bytes = self.heartbeat(place)?;
            let heartbeat = HeartbeatRecord::decode(self.codec.cluster, &bytes);
            places.push(Place {
                place,
                host,
                heartbeat: heartbeat.ok().map(|(stamp, _)| stamp),
            });
        }
        let mut locks = Vec::new();
        for register in 0..self.head.geometry.registers() {
            let Some(name @ (Name::Owner | Name::Vm(_))) = self.name(register)? else {
                continue;
            };
            let slots = self.slots(register)?;
            let damaged = slots.iter().filter(|s| matches!(s, Sector::Damaged));
            locks.push(Register {
                name,
                newest: newest(&slots).map(|(generation, _)| generation),
                damaged: u32::try_from(damaged.count()).unwrap_or(u32::MAX),
            });
        }
        Ok(Inspection {
            head: self.head.clone(),
            places,
            locks,
        })
    }

    fn heads(&self, findings: &mut Findings, mend: bool) -> io::Result<()> {
        for (at, other, what) in [
            (0, HEAD_COPY, "the head of the region"),
            (HEAD_COPY, 0, "the copy of the head"),
        ] {
            findings.records += 1;
            let bytes = self.sector(at)?;
            let sound = self.sector(other)?;
            if read_head(self.codec.cluster, &sound).is_err() {
                continue;
            }
            let damaged = read_head(self.codec.cluster, &bytes).is_err();
            // Of two that are sound and differ, the head counts: it is written last.
            if damaged || (at != 0 && bytes != sound) {
                findings.mendable(format!("{what} (byte {at})"));
                if mend {
                    self.disk.write(at, &sound).map_err(|e| e.error)?;
                }
            }
        }
        Ok(())
    }

    fn heartbeats(&self, findings: &mut Findings) -> io::Result<()> {
        for (place, host) in self.taken()? {
            findings.records += 1;
            let bytes = self.heartbeat(place)?;
            if let Err(error) = HeartbeatRecord::decode(self.codec.cluster, &bytes) {
                findings.lasting(format!(
                    "the heartbeat of {host}: {error}; its agent writes it anew when it runs"
                ));
            }
        }
        Ok(())
    }

    fn register(&self, register: u32, findings: &mut Findings, mend: bool) -> io::Result<()> {
        let geometry = self.head.geometry;
        findings.records += 2 + u64::from(geometry.slots());
        let slots = self.slots(register)?;
        let name = self.sector(geometry.name(register))?;
        let name = self.codec.read_name(register, &name);
        let mark = self.sector(geometry.mark(register))?;
        let mark = self.codec.read_mark(register, &mark);
        let known = match (&name, &mark) {
            (Ok(name), _) => name.clone(),
            (Err(_), Ok(mark)) => mark.as_ref().map(|mark| mark.name.clone()),
            (Err(_), Err(_)) => None,
        };
        let of = known
            .as_ref()
            .map_or_else(|| format!("register {register}"), describe);
        if let Err(error) = &name {
            if known.is_some() {
                findings.mendable(format!("the name of {of}: {error}"));
                let bytes = self.codec.name(register, known.as_ref());
                self.write_if(mend, geometry.name(register), bytes)?;
            } else {
                findings.lasting(format!(
                    "the name of {of} and its mark: {error}; no VM or host can be added until the region is made anew"
                ));
            }
        }
        if let (Err(error), Ok(_)) = (&mark, &name) {
            findings.mendable(format!("the mark of {of}: {error}"));
            let newest = newest(&slots).map(|(generation, _)| generation);
            let mark = known
                .zip(newest)
                .map(|(name, newest)| Mark { name, newest });
            let bytes = self.codec.mark(register, mark.as_ref());
            self.write_if(mend, geometry.mark(register), bytes)?;
        }
        for (slot, _) in slots
            .iter()
            .enumerate()
            .filter(|(_, s)| matches!(s, Sector::Damaged))
        {
            findings.lasting(format!(
                "slot {slot} of {of} is damaged: what its writer promised is lost, so that no further generation can be decided; move what it is for to another datastore"
            ));
        }
        Ok(())
    }

    fn write_if(&self, mend: bool, at: u64, bytes: Option<Vec<u8>>) -> io::Result<()> {
        match bytes.filter(|_| mend) {
            Some(bytes) => self.disk.write(at, &bytes).map_err(|e| e.error),
            None => Ok(()),
        }
    }

    fn extents(&self, findings: &mut Findings) -> io::Result<()> {
        let mut places: Vec<(RecordKey, Option<u32>)> = Vec::new();
        for (place, host) in self.taken()? {
            places.push((RecordKey::Poweron(host), Some(place)));
        }
        for generation in (0..LISTS).map(Generation) {
            places.push((RecordKey::Protected(generation), None));
            places.extend([0, 1].map(|copy| (RecordKey::Config(generation, copy), None)));
        }
        for (key, place) in places {
            for half in [0, 1] {
                let Some((at, _)) = self.head.geometry.half(&key, place, half) else {
                    continue;
                };
                findings.records += 1;
                if let Err(error) = self.codec.read_extent(half, &self.sector(at)?) {
                    findings.lasting(format!(
                        "half {half} of the extent that holds {}: {error}; its writer's next whole record replaces it",
                        key.file_name()
                    ));
                }
            }
        }
        Ok(())
    }
}

fn describe(name: &Name) -> String {
    match name {
        Name::Owner => "the owner lock".to_owned(),
        Name::Host(host) => format!("the place of {host}"),
        Name::Vm(vm) => format!("the lock of {vm}"),
    }
}
