//! A `file` datastore: opening it, and the primitives.

use crate::directory::{Directory, FileId, Mounted, NotWritten};
use crate::error::{OpenError, fault, is_refusal};
use crate::own::{self, OwnHeartbeat};
use crate::probe::{self, Probe};
use mainstay_core::id::{BootId, DatastoreId, HostId};
use mainstay_core::io::{IoFault, StorageOutcome, StorageRequest, StorageValue};
use mainstay_core::provision::MARKER_FILE;
use mainstay_core::wire::{
    DecodeError, HeartbeatRecord, LockRecord, MarkerRecord, PAGE_BYTES, PageWrite, RecordKey,
};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Beginning of the names of files that are being written. No id begins with a dot.
const TEMPORARY: &str = ".tmp.";

/// Makes temporary names of one process unique.
static NEXT_TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// A mounted `file` datastore of this cluster.
#[derive(Debug)]
pub struct FileDatastore {
    cluster: u64,
    id: DatastoreId,
    host: HostId,
    dir: PathBuf,
    marker: Mutex<FileId>,
    marker_bytes: Vec<u8>,
    files: Arc<dyn Directory>,
    own: Mutex<OwnHeartbeat>,
    /// The last operation found another datastore, or none, where this one was.
    is_astray: AtomicBool,
    /// Held by an agent, once it could be taken.
    probe: Mutex<Option<Probe>>,
}

/// The directory of a cluster's records on a datastore.
pub(crate) fn record_dir(mount: &Path, cluster: u64) -> PathBuf {
    mount.join(".mainstay").join(format!("{cluster:016x}"))
}

impl FileDatastore {
    /// Opens a datastore that has been added to the cluster, for `host`, and removes files that an
    /// earlier process of this host was writing when it died. That process must be gone.
    ///
    /// # Errors
    /// [`OpenError`]: the mount is missing, empty, foreign, damaged, or does not answer.
    pub fn open(
        mount: &Path,
        cluster: u64,
        id: &DatastoreId,
        host: &HostId,
    ) -> Result<Self, OpenError> {
        let datastore = Self::attach(mount, cluster, id, host)?;
        datastore.remove_strays();
        datastore.hold_probe();
        Ok(datastore)
    }

    /// Opens it beside an agent of the same host, whose unfinished files stay.
    pub(crate) fn attach(
        mount: &Path,
        cluster: u64,
        id: &DatastoreId,
        host: &HostId,
    ) -> Result<Self, OpenError> {
        Self::attach_on(Arc::new(Mounted::default()), mount, cluster, id, host)
    }

    /// Attaches to it by these operations on files.
    pub(crate) fn attach_on(
        files: Arc<dyn Directory>,
        mount: &Path,
        cluster: u64,
        id: &DatastoreId,
        host: &HostId,
    ) -> Result<Self, OpenError> {
        let dir = record_dir(mount, cluster);
        let path = dir.join(MARKER_FILE);
        let io = |path: &Path, source| OpenError::Io {
            datastore: id.clone(),
            path: path.into(),
            source,
        };
        let marker_bytes = files.read(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => absent(mount, cluster, id),
            _ => io(&path, e),
        })?;
        let marker = files.look(&path).map_err(|e| io(&path, e))?;
        let marker = marker.ok_or_else(|| absent(mount, cluster, id))?;
        match MarkerRecord::decode(cluster, &marker_bytes) {
            Ok((_, marker)) if marker.datastore == *id => {}
            Ok((_, marker)) => {
                return Err(OpenError::OtherDatastore {
                    datastore: id.clone(),
                    found: marker.datastore,
                    mount: mount.into(),
                });
            }
            Err(DecodeError::Foreign { found, own }) => {
                return Err(OpenError::OtherCluster {
                    datastore: id.clone(),
                    mount: mount.into(),
                    found: format!("{found:016x}"),
                    own: format!("{own:016x}"),
                });
            }
            Err(source) => {
                return Err(OpenError::Damaged {
                    datastore: id.clone(),
                    path,
                    source,
                });
            }
        }
        Ok(Self {
            cluster,
            id: id.clone(),
            host: host.clone(),
            dir,
            marker: Mutex::new(marker),
            marker_bytes,
            files,
            own: Mutex::default(),
            is_astray: AtomicBool::new(false),
            probe: Mutex::new(None),
        })
    }

    /// The datastore's id.
    #[must_use]
    pub fn id(&self) -> &DatastoreId {
        &self.id
    }

    /// The cluster that it belongs to.
    #[must_use]
    pub fn cluster(&self) -> u64 {
        self.cluster
    }

    /// Where the records lie.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What is weaker here than it should be, with the remedy.
    #[must_use]
    pub fn weakness(&self) -> Option<String> {
        if self.is_astray.load(Ordering::Relaxed) {
            return Some(format!(
                "datastore \"{}\": what is at {} is not the datastore that was opened; mount that one there again",
                self.id,
                self.dir.display()
            ));
        }
        let cached = || {
            self.files.is_cached().then(|| {
                format!(
                    "datastore \"{}\": its file system refuses O_DIRECT, so that reads may come from a cache \
                     of this host; use it only where the cache is coherent between hosts, or put the \
                     datastore on a file system with direct I/O",
                    self.id
                )
            })
        };
        let cloned = self.own().weakness(&self.id, &self.host);
        cloned.or_else(cached)
    }

    fn own(&self) -> MutexGuard<'_, OwnHeartbeat> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock by which others see whether locks work here; tried again with each heartbeat.
    fn hold_probe(&self) {
        let Ok(mut probe) = self.probe.lock() else {
            return;
        };
        if probe.is_some() {
            return;
        }
        match Probe::take(&self.dir, &self.host) {
            Ok(taken) => *probe = Some(taken),
            Err(error) => tracing::debug!(datastore = %self.id, %error, "no probe lock"),
        }
    }

    fn probe_of(&self, host: &HostId) -> StorageOutcome {
        match probe::is_held(&self.dir, host) {
            Ok(Some(held)) => StorageOutcome::Ok(StorageValue::Held(held)),
            Ok(None) => StorageOutcome::Ok(StorageValue::NotFound),
            Err(error) => StorageOutcome::NotDone(fault(&error)),
        }
    }

    /// Performs one operation. Blocks for as long as the storage does.
    #[must_use]
    pub fn perform(&self, request: &StorageRequest) -> StorageOutcome {
        let checked = self.check_marker();
        if let Err(fault) = checked.and_then(|()| self.check_name(request)) {
            return StorageOutcome::NotDone(fault);
        }
        match request {
            StorageRequest::Read(key) => self.read(key),
            StorageRequest::Renew(key, bytes) => {
                let outcome = self.renew(key, bytes);
                self.hold_probe();
                outcome
            }
            StorageRequest::ProbeLock(host) => self.probe_of(host),
            StorageRequest::Put(key, bytes) => self.put(key, bytes),
            StorageRequest::PutPages(key, pages) => self.put_pages(key, pages),
            StorageRequest::Link(key, bytes) => self.link(key, bytes),
            StorageRequest::Remove(key) => self.remove(key),
            StorageRequest::ListVmLock(vm) => {
                self.list(|k| matches!(k, RecordKey::VmLock(v, _) if v == vm))
            }
            StorageRequest::ListAllVmLocks => self.list(|k| matches!(k, RecordKey::VmLock(..))),
            StorageRequest::ListOwnerLock => self.list(|k| matches!(k, RecordKey::OwnerLock(_))),
            StorageRequest::ListConfig => self.list(|k| matches!(k, RecordKey::Config(..))),
            StorageRequest::ListProtected => self.list(|k| matches!(k, RecordKey::Protected(..))),
        }
    }

    fn path(&self, key: &RecordKey) -> PathBuf {
        self.dir.join(key.file_name())
    }

    /// Is this still the datastore that was opened? An empty mount point or another export is not.
    fn check_marker(&self) -> Result<(), IoFault> {
        let path = self.dir.join(MARKER_FILE);
        let found = match self.files.look(&path) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(fault(&e)),
        };
        let Ok(mut known) = self.marker.lock() else {
            return Err(IoFault::Other);
        };
        let is_known = found == Some(*known);
        self.is_astray.store(!is_known, Ordering::Relaxed);
        if is_known {
            return Ok(());
        }
        // A remount gives the same file a new device number. This operation is refused all the same;
        // the next one may go on if it is the same marker.
        if let Some(found) = found.filter(|found| found.inode == known.inode)
            && self.files.read(&path).is_ok_and(|b| b == self.marker_bytes)
        {
            *known = found;
        }
        Err(IoFault::Foreign)
    }

    /// May this be done in the name of this host? Not while another machine writes its heartbeat (`own`). What is
    /// no record is of no agent, and is not looked at.
    fn check_name(&self, request: &StorageRequest) -> Result<(), IoFault> {
        let boot = match request {
            StorageRequest::Link(RecordKey::VmLock(..) | RecordKey::OwnerLock(_), bytes) => {
                match LockRecord::decode(self.cluster, bytes) {
                    Ok((stamp, _)) if stamp.writer == self.host => stamp.boot,
                    _ => return Ok(()),
                }
            }
            StorageRequest::Put(RecordKey::Poweron(host), _)
            | StorageRequest::PutPages(RecordKey::Poweron(host), _)
                if *host == self.host =>
            {
                return match self.own().has_stranger() {
                    true => Err(IoFault::Foreign),
                    false => Ok(()),
                };
            }
            _ => return Ok(()),
        };
        if self.own().is_known() {
            return Ok(());
        }
        let path = self.path(&RecordKey::Heartbeat(self.host.clone()));
        let there = self.files.read(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => IoFault::Foreign,
            _ => fault(&e),
        })?;
        match self.own().is_ours(self.cluster, boot, &there) {
            true => Ok(()),
            false => Err(IoFault::Foreign),
        }
    }

    fn read(&self, key: &RecordKey) -> StorageOutcome {
        match self.files.read(&self.path(key)) {
            Ok(bytes) => {
                if matches!(key, RecordKey::Heartbeat(host) if *host == self.host) {
                    self.own().saw(self.cluster, &bytes);
                }
                StorageOutcome::Ok(StorageValue::Bytes(bytes))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => match self.check_marker() {
                Ok(()) => StorageOutcome::Ok(StorageValue::NotFound),
                Err(fault) => StorageOutcome::NotDone(fault),
            },
            Err(e) => StorageOutcome::NotDone(fault(&e)),
        }
    }

    fn renew(&self, key: &RecordKey, bytes: &[u8]) -> StorageOutcome {
        let path = self.path(key);
        let issued = own::now();
        let record = HeartbeatRecord::decode(self.cluster, bytes).ok();
        let record = record.filter(|_| *key == RecordKey::Heartbeat(self.host.clone()));
        if let Some((stamp, record)) = &record {
            if let Err(fault) = self.look_before(&path, stamp.boot, record.freeze) {
                return StorageOutcome::NotDone(fault);
            }
            self.own().writes(bytes);
        }
        let written = match self.files.write_in_place(&path, &[(0, bytes)]) {
            Ok(written) => written,
            Err(NotWritten::First(e) | NotWritten::Later(e)) => {
                return StorageOutcome::Unknown(fault(&e));
            }
            Err(unwritten) => return StorageOutcome::NotDone(unwritten_fault(&unwritten)),
        };
        let outcome = self.confirm_write(&path, written);
        if record.is_some() && matches!(outcome, StorageOutcome::Ok(_)) {
            self.own().wrote(issued);
        }
        outcome
    }

    /// Looks whether this host's heartbeat may be written over.
    fn look_before(
        &self,
        path: &Path,
        boot: BootId,
        freeze: std::time::Duration,
    ) -> Result<(), IoFault> {
        if !self.own().needs_look(freeze) {
            return Ok(());
        }
        let there = self.files.read(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => IoFault::Foreign,
            _ => fault(&e),
        })?;
        match self.own().may_renew(self.cluster, boot, &there) {
            true => Ok(()),
            false => Err(IoFault::Foreign),
        }
    }

    fn put_pages(&self, key: &RecordKey, pages: &[PageWrite]) -> StorageOutcome {
        if pages.iter().any(|(_, bytes)| bytes.len() != PAGE_BYTES) {
            return StorageOutcome::NotDone(IoFault::Other);
        }
        let path = self.path(key);
        let pieces: Vec<(u64, &[u8])> = pages
            .iter()
            .map(|(page, bytes)| (u64::from(*page) * PAGE_BYTES as u64, bytes.as_slice()))
            .collect();
        match self.files.write_in_place(&path, &pieces) {
            Ok(written) => self.confirm_write(&path, written),
            Err(NotWritten::First(e)) if is_refusal(&e) => StorageOutcome::NotDone(fault(&e)),
            Err(NotWritten::First(e) | NotWritten::Later(e)) => StorageOutcome::Unknown(fault(&e)),
            Err(unwritten) => StorageOutcome::NotDone(unwritten_fault(&unwritten)),
        }
    }

    /// A write in place counts only if the path still leads to the file that was written (safety rule H15).
    fn confirm_write(&self, path: &Path, written: FileId) -> StorageOutcome {
        match self.files.look(path) {
            Ok(found) if found == Some(written) => {}
            Ok(_) => return StorageOutcome::Unknown(IoFault::Foreign),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return StorageOutcome::Unknown(IoFault::Foreign);
            }
            Err(e) => return StorageOutcome::Unknown(fault(&e)),
        }
        match self.check_marker() {
            Ok(()) => StorageOutcome::Ok(StorageValue::Done),
            Err(fault) => StorageOutcome::Unknown(fault),
        }
    }

    fn link(&self, key: &RecordKey, bytes: &[u8]) -> StorageOutcome {
        let temporary = match self.write_temporary(bytes) {
            Ok(path) => path,
            Err(e) => return StorageOutcome::NotDone(fault(&e)),
        };
        let linked = self.files.link(&temporary, &self.path(key));
        // A file that stays behind is removed at the next open.
        let _ = self.files.remove(&temporary);
        match linked {
            Ok(()) => self.confirm_entry(),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                StorageOutcome::Ok(StorageValue::Exists)
            }
            Err(e) => StorageOutcome::Unknown(fault(&e)),
        }
    }

    fn put(&self, key: &RecordKey, bytes: &[u8]) -> StorageOutcome {
        let temporary = match self.write_temporary(bytes) {
            Ok(path) => path,
            Err(e) => return StorageOutcome::NotDone(fault(&e)),
        };
        match self.files.rename(&temporary, &self.path(key)) {
            Ok(()) => self.confirm_entry(),
            Err(e) => {
                let _ = self.files.remove(&temporary);
                StorageOutcome::Unknown(fault(&e))
            }
        }
    }

    fn remove(&self, key: &RecordKey) -> StorageOutcome {
        match self.files.remove(&self.path(key)) {
            Ok(()) => self.confirm_entry(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                StorageOutcome::Ok(StorageValue::NotFound)
            }
            Err(e) => StorageOutcome::Unknown(fault(&e)),
        }
    }

    /// A changed directory entry counts when it is on stable storage, and still in this datastore.
    fn confirm_entry(&self) -> StorageOutcome {
        if let Err(e) = self.files.sync(&self.dir) {
            return StorageOutcome::Unknown(fault(&e));
        }
        match self.check_marker() {
            Ok(()) => StorageOutcome::Ok(StorageValue::Done),
            Err(fault) => StorageOutcome::Unknown(fault),
        }
    }

    fn list(&self, wanted: impl Fn(&RecordKey) -> bool) -> StorageOutcome {
        match self.files.names(&self.dir) {
            Ok(names) => StorageOutcome::Ok(StorageValue::Keys(
                names
                    .iter()
                    .filter_map(|n| RecordKey::from_file_name(n.to_str()?))
                    .filter(wanted)
                    .collect(),
            )),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                StorageOutcome::NotDone(IoFault::Foreign)
            }
            Err(e) => StorageOutcome::NotDone(fault(&e)),
        }
    }

    /// The name of a file that no other process writes, and that this host's next agent removes if it is left.
    pub(crate) fn temporary_name(&self) -> PathBuf {
        let n = NEXT_TEMPORARY.fetch_add(1, Ordering::Relaxed);
        let name = format!("{TEMPORARY}{}.{}.{n}", self.host, std::process::id());
        self.dir.join(name)
    }

    /// A new file with these bytes on stable storage, not yet under any key.
    fn write_temporary(&self, bytes: &[u8]) -> io::Result<PathBuf> {
        let path = self.temporary_name();
        let written = self.files.create(&path, bytes);
        if written.is_err() {
            let _ = self.files.remove(&path);
        }
        written.map(|()| path)
    }

    /// Removes what earlier processes of this host left. Files of this very process may be in use.
    fn remove_strays(&self) {
        let mine = format!("{TEMPORARY}{}.", self.host);
        let own = std::process::id().to_string();
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(rest) = name.to_str().and_then(|n| n.strip_prefix(&mine)) else {
                continue;
            };
            // Ids may have dots: `host.1` must not remove what `host` of process 1 writes, nor the reverse.
            let Some((pid, n)) = rest.split_once('.') else {
                continue;
            };
            let numbers = [pid, n]
                .iter()
                .all(|t| t.bytes().all(|b| b.is_ascii_digit()));
            if numbers && pid != own {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// The core's word for why nothing was written. What is not there is never made.
fn unwritten_fault(why: &NotWritten) -> IoFault {
    match why {
        NotWritten::Unopened(e) if e.kind() == io::ErrorKind::NotFound => IoFault::Foreign,
        NotWritten::NotAFile => IoFault::Foreign,
        NotWritten::Unopened(e) | NotWritten::First(e) | NotWritten::Later(e) => fault(e),
    }
}

/// Why there is no marker.
fn absent(mount: &Path, cluster: u64, id: &DatastoreId) -> OpenError {
    if !mount.is_dir() {
        return OpenError::NoMount {
            datastore: id.clone(),
            mount: mount.into(),
        };
    }
    let other = fs::read_dir(mount.join(".mainstay"))
        .ok()
        .and_then(|entries| entries.flatten().map(|e| e.file_name()).next());
    match other.and_then(|n| n.into_string().ok()) {
        Some(found) if found != format!("{cluster:016x}") => OpenError::OtherCluster {
            datastore: id.clone(),
            mount: mount.into(),
            found,
            own: format!("{cluster:016x}"),
        },
        _ => OpenError::NotAdded {
            datastore: id.clone(),
            mount: mount.into(),
        },
    }
}

#[cfg(test)]
mod tests;
