//! A `file` datastore: opening it, and the primitives.

use crate::direct::Direct;
use crate::error::{OpenError, fault, is_refusal};
use crate::probe::{self, Probe};
use mainstay_core::id::{DatastoreId, HostId};
use mainstay_core::io::{IoFault, StorageOutcome, StorageRequest, StorageValue};
use mainstay_core::provision::MARKER_FILE;
use mainstay_core::wire::{DecodeError, MarkerRecord, PAGE_BYTES, PageWrite, RecordKey};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Beginning of the names of files that are being written. No id begins with a dot.
const TEMPORARY: &str = ".tmp.";

/// Makes temporary names of one process unique.
static NEXT_TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// Which file a path led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
        }
    }
}

/// A mounted `file` datastore of this cluster.
#[derive(Debug)]
pub struct FileDatastore {
    cluster: u64,
    id: DatastoreId,
    host: HostId,
    dir: PathBuf,
    marker: Mutex<FileId>,
    marker_bytes: Vec<u8>,
    direct: Direct,
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
        let dir = record_dir(mount, cluster);
        let path = dir.join(MARKER_FILE);
        let direct = Direct::default();
        let io = |path: &Path, source| OpenError::Io {
            datastore: id.clone(),
            path: path.into(),
            source,
        };
        let marker_bytes = direct.read(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => absent(mount, cluster, id),
            _ => io(&path, e),
        })?;
        let meta = fs::symlink_metadata(&path).map_err(|e| io(&path, e))?;
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
            marker: Mutex::new(FileId::of(&meta)),
            marker_bytes,
            direct,
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
        self.direct.is_refused().then(|| {
            format!(
                "datastore \"{}\": its file system refuses O_DIRECT, so that reads may come from a cache \
                 of this host; use it only where the cache is coherent between hosts, or put the \
                 datastore on a file system with direct I/O",
                self.id
            )
        })
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
        if let Err(fault) = self.check_marker() {
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
        let found = match fs::symlink_metadata(&path) {
            Ok(meta) => FileId::of(&meta),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(IoFault::Foreign),
            Err(e) => return Err(fault(&e)),
        };
        let Ok(mut known) = self.marker.lock() else {
            return Err(IoFault::Other);
        };
        if found == *known {
            return Ok(());
        }
        // A remount gives the same file a new device number. This operation is refused all the same;
        // the next one may go on if it is the same marker.
        if found.inode == known.inode
            && self
                .direct
                .read(&path)
                .is_ok_and(|b| b == self.marker_bytes)
        {
            *known = found;
        }
        Err(IoFault::Foreign)
    }

    fn read(&self, key: &RecordKey) -> StorageOutcome {
        match self.direct.read(&self.path(key)) {
            Ok(bytes) => StorageOutcome::Ok(StorageValue::Bytes(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => match self.check_marker() {
                Ok(()) => StorageOutcome::Ok(StorageValue::NotFound),
                Err(fault) => StorageOutcome::NotDone(fault),
            },
            Err(e) => StorageOutcome::NotDone(fault(&e)),
        }
    }

    fn renew(&self, key: &RecordKey, bytes: &[u8]) -> StorageOutcome {
        let path = self.path(key);
        let (file, id) = match self.open_existing(&path, true) {
            Ok(opened) => opened,
            Err(fault) => return StorageOutcome::NotDone(fault),
        };
        if let Err(e) = self.direct.write_padded(&file, bytes, 0) {
            return StorageOutcome::Unknown(fault(&e));
        }
        self.confirm_write(&path, id)
    }

    fn put_pages(&self, key: &RecordKey, pages: &[PageWrite]) -> StorageOutcome {
        if pages.iter().any(|(_, bytes)| bytes.len() != PAGE_BYTES) {
            return StorageOutcome::NotDone(IoFault::Other);
        }
        let path = self.path(key);
        // One page goes through to stable storage by itself, many are flushed together.
        let (file, id) = match self.open_existing(&path, pages.len() == 1) {
            Ok(opened) => opened,
            Err(fault) => return StorageOutcome::NotDone(fault),
        };
        for (n, (page, bytes)) in pages.iter().enumerate() {
            let offset = u64::from(*page) * PAGE_BYTES as u64;
            match self.direct.write_padded(&file, bytes, offset) {
                Ok(()) => {}
                Err(e) if n == 0 && is_refusal(&e) => return StorageOutcome::NotDone(fault(&e)),
                Err(e) => return StorageOutcome::Unknown(fault(&e)),
            }
        }
        if pages.len() > 1
            && let Err(e) = file.sync_data()
        {
            return StorageOutcome::Unknown(fault(&e));
        }
        self.confirm_write(&path, id)
    }

    /// Opens a record for a write in place. What is not there is never made.
    fn open_existing(&self, path: &Path, at_once: bool) -> Result<(File, FileId), IoFault> {
        let opened = self.direct.open_in_place(path, at_once).and_then(|f| {
            let meta = f.metadata()?;
            Ok((f, meta))
        });
        match opened {
            Ok((file, meta)) if meta.is_file() => Ok((file, FileId::of(&meta))),
            Ok(_) => Err(IoFault::Foreign),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(IoFault::Foreign),
            Err(e) => Err(fault(&e)),
        }
    }

    /// A write in place counts only if the path still leads to the file that was written (safety rule H15).
    fn confirm_write(&self, path: &Path, written: FileId) -> StorageOutcome {
        match fs::symlink_metadata(path) {
            Ok(meta) if FileId::of(&meta) == written && meta.nlink() > 0 => {}
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
        let linked = fs::hard_link(&temporary, self.path(key));
        // A file that stays behind is removed at the next open.
        let _ = fs::remove_file(&temporary);
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
        match fs::rename(&temporary, self.path(key)) {
            Ok(()) => self.confirm_entry(),
            Err(e) => {
                let _ = fs::remove_file(&temporary);
                StorageOutcome::Unknown(fault(&e))
            }
        }
    }

    fn remove(&self, key: &RecordKey) -> StorageOutcome {
        match fs::remove_file(self.path(key)) {
            Ok(()) => self.confirm_entry(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                StorageOutcome::Ok(StorageValue::NotFound)
            }
            Err(e) => StorageOutcome::Unknown(fault(&e)),
        }
    }

    /// A changed directory entry counts when it is on stable storage, and still in this datastore.
    fn confirm_entry(&self) -> StorageOutcome {
        if let Err(e) = File::open(&self.dir).and_then(|d| d.sync_all()) {
            return StorageOutcome::Unknown(fault(&e));
        }
        match self.check_marker() {
            Ok(()) => StorageOutcome::Ok(StorageValue::Done),
            Err(fault) => StorageOutcome::Unknown(fault),
        }
    }

    fn list(&self, wanted: impl Fn(&RecordKey) -> bool) -> StorageOutcome {
        let names = fs::read_dir(&self.dir).and_then(|entries| {
            entries
                .map(|e| Ok(e?.file_name()))
                .collect::<io::Result<Vec<_>>>()
        });
        match names {
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

    /// A new file with these bytes on stable storage, not yet under any key.
    fn write_temporary(&self, bytes: &[u8]) -> io::Result<PathBuf> {
        let n = NEXT_TEMPORARY.fetch_add(1, Ordering::Relaxed);
        let name = format!("{TEMPORARY}{}.{}.{n}", self.host, std::process::id());
        let path = self.dir.join(name);
        let written = write_new(&path, bytes);
        if written.is_err() {
            let _ = fs::remove_file(&path);
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

/// Writes a new file of mode 0600 and waits until it is on stable storage.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
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
