//! A `block` datastore: one region on a shared device, a logical volume, or a file that is used like one.
//!
//! Locks are registers of generations that Disk Paxos decides (`mainstay_core::paxos`); nothing here needs more
//! of the device than that it reads and writes sectors. `layout` says where everything lies.
//!
//! A register shows its newest generation and the one before. Older ones count as removed, and to make one of
//! them again is what it is in a `file` datastore: a stray that is gone before anyone sees it (safety rule H11).
//!
//! # Never here
//! COMPARE AND WRITE, or any other command that not every device has; a sector that two hosts write, but for
//! hints and trials; a damaged sector taken for a blank one.

mod admin;
mod claim;
mod disk;
mod extent;
mod format;
pub(crate) mod layout;
mod look;
mod open;
mod register;
mod trial;

#[cfg(test)]
mod tests;

pub use admin::{Findings, Inspection, Place, Register, check, heartbeats, inspect};
pub(crate) use disk::Disk;
#[cfg(test)]
pub(crate) use disk::WriteError;
pub use layout::{Geometry, Name, RegionHead};
pub use look::{Found, look, sector_of, size_of};
pub use open::Here;
pub use trial::{Trial, trial};

use crate::error::fault;
use crate::own::{self, OwnHeartbeat};
use layout::{Codec, Mark, Value};
use mainstay_core::id::{BootId, DatastoreId, HostId};
use mainstay_core::io::{IoFault, StorageOutcome, StorageRequest, StorageValue};
use mainstay_core::paxos::Writers;
use mainstay_core::wire::RecordKey;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Longest id of a host on a region with sectors of 512 bytes, in which two records of a lock must fit.
pub const HOST_ID_MAX_BYTES: usize = 36;

/// A region of this cluster on a device.
#[derive(Debug)]
pub struct BlockDatastore {
    host: HostId,
    boot: BootId,
    incarnation: u64,
    run_dir: PathBuf,
    head: RegionHead,
    head_bytes: Vec<u8>,
    codec: Codec,
    disk: Arc<dyn Disk>,
    /// Registers by what they are for. A register never changes its name.
    names: Mutex<BTreeMap<Name, u32>>,
    claims: Mutex<Vec<Arc<claim::Claim>>>,
    /// What this process has in doubt, by register; held while one of them is decided.
    registers: Mutex<BTreeMap<u32, Arc<Mutex<Writers<Value>>>>>,
    heartbeat: Mutex<OwnHeartbeat>,
    /// The last operation found another region, or none, where this one was.
    is_astray: AtomicBool,
    /// Of each extent that this process wrote, by where it begins; held while its record is replaced.
    extents: Mutex<BTreeMap<u64, Arc<Mutex<()>>>>,
}

fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BlockDatastore {
    /// The datastore's id.
    #[must_use]
    pub fn id(&self) -> &DatastoreId {
        &self.head.datastore
    }

    /// The head of the region.
    #[must_use]
    pub fn head(&self) -> &RegionHead {
        &self.head
    }

    /// The device.
    pub(crate) fn path(&self) -> Option<&std::path::Path> {
        self.disk.path()
    }

    /// What is weaker here than it should be, with the remedy.
    #[must_use]
    pub fn weakness(&self) -> Option<String> {
        if self.is_astray.load(Ordering::Relaxed) {
            return Some(format!(
                "datastore \"{}\": what its device holds is not the region that was opened; correct its path in agent.toml, \
                 or start the agent anew if the region was made anew",
                self.id()
            ));
        }
        let cached = || {
            self.disk.is_cached().then(|| {
                format!(
                    "datastore \"{}\": its device refuses O_DIRECT, so that reads may come from a cache of this host; \
                     use a device, or a file on a file system with direct I/O",
                    self.id()
                )
            })
        };
        let cloned = locked(&self.heartbeat).weakness(self.id(), &self.host);
        cloned.or_else(cached)
    }

    /// Performs one operation. Blocks for as long as the storage does.
    #[must_use]
    pub fn perform(&self, request: &StorageRequest) -> StorageOutcome {
        let checked = self.check_head();
        if let Err(fault) = checked.and_then(|()| self.check_name(request)) {
            return StorageOutcome::NotDone(fault);
        }
        let outcome = match request {
            StorageRequest::Read(key) => self.read(key),
            StorageRequest::Renew(RecordKey::Heartbeat(host), bytes) if *host == self.host => {
                self.renew(bytes)
            }
            StorageRequest::Put(key, bytes) => self.put(key, bytes),
            StorageRequest::PutPages(key, pages) => self.put_pages(key, pages),
            StorageRequest::Link(key, bytes) => self.link(key, bytes),
            StorageRequest::Remove(key) => self.remove(key),
            StorageRequest::ListVmLock(vm) => self.list(&Name::Vm(vm.clone())),
            StorageRequest::ListOwnerLock => self.list(&Name::Owner),
            StorageRequest::ListAllVmLocks => self.list_all(),
            StorageRequest::ListProtected => self.list_extents(false),
            StorageRequest::ListConfig => self.list_extents(true),
            // There are no files to lock on a device.
            StorageRequest::ProbeLock(_) => StorageOutcome::Ok(StorageValue::NotFound),
            StorageRequest::Renew(..) => StorageOutcome::NotDone(IoFault::Other),
        };
        self.confirmed(outcome)
    }

    /// Is this still the region that was opened? Another device behind the same name is not.
    fn check_head(&self) -> Result<(), IoFault> {
        let found = self
            .disk
            .read(0, self.codec.sector)
            .map_err(|e| fault(&e))?;
        let is_known = found == self.head_bytes;
        self.is_astray.store(!is_known, Ordering::Relaxed);
        match is_known {
            true => Ok(()),
            false => Err(IoFault::Foreign),
        }
    }

    /// A change counts when it went to the region that was opened (safety rule H15).
    fn confirmed(&self, outcome: StorageOutcome) -> StorageOutcome {
        let StorageOutcome::Ok(value) = &outcome else {
            return outcome;
        };
        match (self.check_head(), value) {
            (Ok(()), _) => outcome,
            (Err(fault), StorageValue::Done) => StorageOutcome::Unknown(fault),
            (Err(fault), _) => StorageOutcome::NotDone(fault),
        }
    }

    fn read(&self, key: &RecordKey) -> StorageOutcome {
        match key {
            RecordKey::Heartbeat(host) => match self.place(host) {
                Ok(Some(place)) => {
                    let at = self.head.geometry.heartbeat(place);
                    match self.disk.read(at, self.codec.sector) {
                        Ok(bytes) => StorageOutcome::Ok(StorageValue::Bytes(bytes)),
                        Err(e) => StorageOutcome::NotDone(fault(&e)),
                    }
                }
                Ok(None) => StorageOutcome::Ok(StorageValue::NotFound),
                Err(fault) => StorageOutcome::NotDone(fault),
            },
            RecordKey::VmLock(vm, generation) => {
                self.read_generation(&Name::Vm(vm.clone()), *generation)
            }
            RecordKey::OwnerLock(generation) => self.read_generation(&Name::Owner, *generation),
            _ => self.read_extent(key),
        }
    }

    /// The place of a host among the heartbeats. Its register is the place's number and one.
    fn place(&self, host: &HostId) -> Result<Option<u32>, IoFault> {
        let register = self.find(&Name::Host(host.clone()))?;
        Ok(register.and_then(|register| register.checked_sub(1)))
    }

    fn renew(&self, bytes: &[u8]) -> StorageOutcome {
        let place = match self.place(&self.host) {
            Ok(Some(place)) => place,
            Ok(None) => return StorageOutcome::NotDone(IoFault::Foreign),
            Err(fault) => return StorageOutcome::NotDone(fault),
        };
        if bytes.len() > layout::SECTOR_MIN {
            return StorageOutcome::NotDone(IoFault::Other);
        }
        let at = self.head.geometry.heartbeat(place);
        let there = match self.disk.read(at, self.codec.sector) {
            Ok(there) => there,
            Err(e) => return StorageOutcome::NotDone(fault(&e)),
        };
        if !locked(&self.heartbeat).may_renew(self.codec.cluster, self.boot, &there) {
            return StorageOutcome::NotDone(IoFault::Foreign);
        }
        let mut sector = bytes.to_vec();
        sector.resize(self.codec.sector, 0);
        let issued = own::now();
        locked(&self.heartbeat).writes(&sector);
        // Nothing is held meanwhile: a renewal that hangs holds up no lock.
        match self.disk.write(at, &sector) {
            Ok(()) => {
                locked(&self.heartbeat).wrote(issued);
                StorageOutcome::Ok(StorageValue::Done)
            }
            Err(e) if e.refused => StorageOutcome::NotDone(fault(&e.error)),
            Err(e) => StorageOutcome::Unknown(fault(&e.error)),
        }
    }

    /// Another machine writes this host's heartbeat: nothing of this host's is written besides.
    fn has_stranger(&self) -> bool {
        locked(&self.heartbeat).has_stranger()
    }

    /// May a lock be taken, or a list be written, in the name of this host? Not while another machine writes its
    /// heartbeat, nor before that is known (`own`).
    fn check_name(&self, request: &StorageRequest) -> Result<(), IoFault> {
        match request {
            StorageRequest::Link(RecordKey::VmLock(..) | RecordKey::OwnerLock(_), _) => {}
            StorageRequest::Put(RecordKey::Poweron(_), _)
            | StorageRequest::PutPages(RecordKey::Poweron(_), _) => {
                return match self.has_stranger() {
                    true => Err(IoFault::Foreign),
                    false => Ok(()),
                };
            }
            _ => return Ok(()),
        }
        if locked(&self.heartbeat).is_known() {
            return Ok(());
        }
        let place = self.place(&self.host)?.ok_or(IoFault::Foreign)?;
        let at = self.head.geometry.heartbeat(place);
        let there = self.disk.read(at, self.codec.sector);
        let there = there.map_err(|e| fault(&e))?;
        match locked(&self.heartbeat).is_ours(self.codec.cluster, self.boot, &there) {
            true => Ok(()),
            false => Err(IoFault::Foreign),
        }
    }

    /// The register for something; none: it was never added. A damaged name hides what may be there.
    fn find(&self, name: &Name) -> Result<Option<u32>, IoFault> {
        if let Some(register) = locked(&self.names).get(name) {
            return Ok(Some(*register));
        }
        let (found, damaged) = self.read_names().map_err(|e| fault(&e))?;
        let register = found.get(name).copied();
        locked(&self.names).extend(found);
        match register {
            Some(register) => Ok(Some(register)),
            None if damaged.is_empty() => Ok(None),
            None => Err(IoFault::Other),
        }
    }

    /// All names, and the registers whose names cannot be read.
    fn read_names(&self) -> std::io::Result<(BTreeMap<Name, u32>, Vec<u32>)> {
        let geometry = self.head.geometry;
        let mut names = BTreeMap::new();
        let mut damaged = Vec::new();
        for (register, bytes) in (0..).zip(self.read_table(geometry.names())?) {
            match self.codec.read_name(register, &bytes) {
                Ok(Some(name)) => {
                    names.insert(name, register);
                }
                Ok(None) => {}
                Err(_) => match self.read_mark(register)? {
                    Some(mark) => {
                        names.insert(mark.name, register);
                    }
                    None => damaged.push(register),
                },
            }
        }
        Ok((names, damaged))
    }

    fn read_mark(&self, register: u32) -> std::io::Result<Option<Mark>> {
        let at = self.head.geometry.mark(register);
        let bytes = self.disk.read(at, self.codec.sector)?;
        Ok(self.codec.read_mark(register, &bytes).ok().flatten())
    }

    /// The sectors of a table with one for each register.
    fn read_table(&self, at: u64) -> std::io::Result<Vec<Vec<u8>>> {
        let sector = self.codec.sector;
        let count = usize::try_from(self.head.geometry.registers()).unwrap_or(usize::MAX);
        let bytes = self.disk.read(at, count * sector)?;
        if bytes.len() != count * sector {
            return Err(nix::errno::Errno::EIO.into());
        }
        Ok(bytes.chunks(sector).map(<[u8]>::to_vec).collect())
    }
}
