//! The files of the backing directory that the kernel knows through one mount, each held open by path only
//! (O_PATH), as a file server holds its handles: it stays the same file whoever renames or removes it.

use super::locked;
use fuser::{FileAttr, FileType, INodeNo};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a system call gives.
pub(super) type Result<T> = std::result::Result<T, Errno>;

/// The error number of a library error.
pub(super) fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO))
}

/// A file that the kernel knows.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// It, open by path only.
    pub(super) file: Arc<File>,
    /// How it was reached last, from the root of the mount; empty for the root itself.
    pub(super) path: Arc<Path>,
}

impl Node {
    /// A path that leads to this very file, whatever its name is now.
    pub(super) fn by_descriptor(&self) -> PathBuf {
        by_descriptor(&self.file)
    }

    /// Its attributes.
    pub(super) fn meta(&self) -> Result<Metadata> {
        self.file.metadata().map_err(|e| errno(&e))
    }
}

/// A path that leads to an open file.
pub(super) fn by_descriptor(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Opens an entry of a directory by path only.
pub(super) fn open_entry(dir: &File, name: &OsStr) -> Result<File> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(dir, name, flags, Mode::empty()).map(File::from)
}

struct Known {
    node: Node,
    /// How often the kernel was told of it, less what it has forgotten.
    lookups: u64,
}

/// The table of one mount. The root is number 1 and is never forgotten; every other file has its inode number.
pub(super) struct Nodes {
    root: Node,
    known: Mutex<HashMap<u64, Known>>,
}

impl Nodes {
    /// A table that knows the root.
    pub(super) fn new(root: File) -> Self {
        Self {
            root: Node {
                file: Arc::new(root),
                path: Path::new("").into(),
            },
            known: Mutex::default(),
        }
    }

    /// A file by its number. ESTALE when the kernel was never told of it.
    pub(super) fn get(&self, ino: INodeNo) -> Result<Node> {
        if ino == INodeNo::ROOT {
            return Ok(self.root.clone());
        }
        let known = locked(&self.known);
        let found = known.get(&ino.0).map(|k| k.node.clone());
        found.ok_or(Errno::ESTALE)
    }

    /// Enters a file that the kernel is about to be told of.
    pub(super) fn tell(&self, file: File, path: PathBuf) -> Result<FileAttr> {
        let meta = file.metadata().map_err(|e| errno(&e))?;
        let ino = INodeNo(meta.ino());
        let mut known = locked(&self.known);
        let path: Arc<Path> = path.into();
        let entry = known.entry(ino.0).or_insert_with(|| Known {
            node: Node {
                file: Arc::new(file),
                path: path.clone(),
            },
            lookups: 0,
        });
        entry.lookups += 1;
        entry.node.path = path;
        Ok(attr(ino, &meta))
    }

    /// A file has another name now.
    pub(super) fn renamed(&self, ino: u64, path: PathBuf) {
        if let Some(known) = locked(&self.known).get_mut(&ino) {
            known.node.path = path.into();
        }
    }

    /// The kernel has forgotten a file that often.
    pub(super) fn forget(&self, ino: INodeNo, lookups: u64) {
        let mut known = locked(&self.known);
        if let Some(entry) = known.get_mut(&ino.0) {
            entry.lookups = entry.lookups.saturating_sub(lookups);
            if entry.lookups == 0 {
                known.remove(&ino.0);
            }
        }
    }
}

/// A file's attributes as the kernel takes them.
pub(super) fn attr(ino: INodeNo, meta: &Metadata) -> FileAttr {
    let changed = u64::try_from(meta.ctime()).unwrap_or(0);
    let nanos = u32::try_from(meta.ctime_nsec()).unwrap_or(0);
    FileAttr {
        ino,
        size: meta.len(),
        blocks: meta.blocks(),
        atime: meta.accessed().unwrap_or(UNIX_EPOCH),
        mtime: meta.modified().unwrap_or(UNIX_EPOCH),
        ctime: UNIX_EPOCH + Duration::new(changed, nanos),
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::from_std(meta.file_type()).unwrap_or(FileType::RegularFile),
        perm: u16::try_from(meta.mode() & 0o7777).unwrap_or(0),
        nlink: u32::try_from(meta.nlink()).unwrap_or(u32::MAX),
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: u32::try_from(meta.rdev()).unwrap_or(0),
        blksize: 4096,
        flags: 0,
    }
}
