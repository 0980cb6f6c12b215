//! What operations do to the backing directory of one mount: plain system calls on open files and on
//! directories that are held open. Nothing here knows of faults but for one bit, whether space is used up.

use super::fault::Pass;
use super::locks::FileKey;
use super::nodes::{Node, Result, by_descriptor, errno, open_entry};
use super::tally::RECORDS;
use super::{Host, Write, locked};
use crate::clock::now;
use fuser::{FileAttr, INodeNo, TimeOrNow};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::statvfs::{Statvfs, fstatvfs};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, Whence};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

/// An open file of a mount.
#[derive(Debug)]
pub(super) struct Open {
    file: File,
    /// What its locks are kept under.
    pub(super) key: FileKey,
    path: Arc<Path>,
    flags: OFlag,
    /// It was made by this open.
    pub(super) is_new: bool,
    /// Which open this is, of all of the storage.
    number: u64,
}

/// The calling process of an operation, as far as new files are its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    /// Its user.
    pub(super) uid: u32,
    /// Its group.
    pub(super) gid: u32,
}

/// What of a file is to be changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Changes {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) accessed: Option<TimeOrNow>,
    pub(super) modified: Option<TimeOrNow>,
}

/// An entry of a directory: inode, type, name.
pub(super) type Entry = (u64, fuser::FileType, OsString);

impl Host {
    pub(super) fn lookup(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr> {
        let dir = self.nodes.get(parent)?;
        self.nodes
            .tell(open_entry(&dir.file, name)?, dir.path.join(name))
    }

    /// Opens a file, with the access of these flags.
    pub(super) fn open(&self, ino: INodeNo, flags: i32) -> Result<u64> {
        let node = self.nodes.get(ino)?;
        if OFlag::from_bits_retain(flags) & OFlag::O_ACCMODE != OFlag::O_RDONLY {
            self.fail_if_asked(&node.path)?;
        }
        let flags = OFlag::from_bits_retain(flags);
        let access = flags & OFlag::O_ACCMODE;
        let file = OpenOptions::new()
            .read(access != OFlag::O_WRONLY)
            .write(access != OFlag::O_RDONLY)
            .open(node.by_descriptor())
            .map_err(|e| errno(&e))?;
        self.keep(file, node.path, flags, false)
    }

    /// Makes a file and opens it, or opens the one that another host has just made if the flags allow that.
    pub(super) fn create(
        &self,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        flags: i32,
        caller: Caller,
    ) -> Result<(FileAttr, u64)> {
        let dir = self.nodes.get(parent)?;
        let path = dir.path.join(name);
        self.fail_if_asked(&path)?;
        let flags = OFlag::from_bits_retain(flags);
        let open =
            (flags & (OFlag::O_ACCMODE | OFlag::O_TRUNC)) | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let made = openat(
            &*dir.file,
            name,
            open | OFlag::O_CREAT | OFlag::O_EXCL,
            Mode::from_bits_truncate(mode),
        );
        let is_new = made.is_ok();
        let file = match made {
            Ok(fd) => {
                let file = File::from(fd);
                own(&by_descriptor(&file), Some(mode), caller)?;
                file
            }
            Err(Errno::EEXIST) if !flags.contains(OFlag::O_EXCL) => {
                File::from(openat(&*dir.file, name, open, Mode::empty())?)
            }
            Err(other) => return Err(other),
        };
        let same = File::from(nix::fcntl::open(
            &by_descriptor(&file),
            OFlag::O_PATH | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?);
        let attr = self.nodes.tell(same, path.clone())?;
        Ok((attr, self.keep(file, path.into(), flags, is_new)?))
    }

    fn keep(&self, file: File, path: Arc<Path>, flags: OFlag, is_new: bool) -> Result<u64> {
        let meta = file.metadata().map_err(|e| errno(&e))?;
        let key = FileKey {
            scope: self.lock_scope,
            device: self.device.unwrap_or_else(|| meta.dev()),
            inode: meta.ino(),
        };
        let handle = self.next_handle();
        let open = Open {
            file,
            key,
            path,
            flags,
            is_new,
            number: self.storage.next_open.fetch_add(1, Ordering::Relaxed),
        };
        locked(&self.files).insert(handle, Arc::new(open));
        Ok(handle)
    }

    pub(super) fn read(&self, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>> {
        let open = self.opened(handle)?;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match open.file.read_at(rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(errno(&e)),
            }
        }
        bytes.truncate(filled);
        self.counters.read(&open.path, filled);
        Ok(bytes)
    }

    /// Whether another host has taken the file over.
    fn is_shut_out(&self, handle: u64, open: &Open) -> bool {
        if self.image_locks || open.path.starts_with(RECORDS) {
            return self.storage.locks.is_revoked(self.number, handle);
        }
        let file = (open.key.device, open.key.inode);
        let writers = &self.storage.writers;
        !writers.may_write(file, self.number, open.number)
    }

    /// Writes and tells the observer. Writes to one file come one after the other, by whichever mount.
    pub(super) fn write(&self, handle: u64, offset: u64, data: &[u8], pass: Pass) -> Result<u32> {
        let open = self.opened(handle)?;
        {
            let _in_order = self.storage.order(open.key);
            if self.fenced && self.is_shut_out(handle, &open) {
                return Err(Errno::EIO);
            }
            let offset = if open.flags.contains(OFlag::O_APPEND) {
                open.file.metadata().map_err(|e| errno(&e))?.len()
            } else {
                offset
            };
            if pass == Pass::InPlace && !has_space(&open.file, offset, data.len() as u64)? {
                return Err(Errno::ENOSPC);
            }
            open.file
                .write_all_at(data, offset)
                .map_err(|e| errno(&e))?;
            self.storage.observer.wrote(&Write {
                host: &self.host,
                datastore: &self.datastore,
                path: &open.path,
                offset,
                data,
                at: now(),
            });
        }
        self.counters.wrote(&open.path, data.len());
        if self.write_through && open.flags.intersects(OFlag::O_SYNC | OFlag::O_DSYNC) {
            open.file.sync_data().map_err(|e| errno(&e))?;
        }
        Ok(u32::try_from(data.len()).unwrap_or(u32::MAX))
    }

    pub(super) fn sync(&self, handle: u64) -> Result<()> {
        let open = self.opened(handle)?;
        self.counters.synced(&open.path);
        if self.write_through {
            open.file.sync_all().map_err(|e| errno(&e))?;
        }
        Ok(())
    }

    pub(super) fn sync_dir(&self, ino: INodeNo) -> Result<()> {
        if self.write_through {
            let dir = File::open(self.nodes.get(ino)?.by_descriptor());
            dir.and_then(|d| d.sync_all()).map_err(|e| errno(&e))?;
        }
        Ok(())
    }

    pub(super) fn fallocate(&self, handle: u64, offset: u64, len: u64, mode: i32) -> Result<()> {
        let open = self.opened(handle)?;
        let signed = |n: u64| i64::try_from(n).map_err(|_| Errno::EFBIG);
        nix::fcntl::fallocate(
            &open.file,
            FallocateFlags::from_bits_retain(mode),
            signed(offset)?,
            signed(len)?,
        )
    }

    pub(super) fn seek(&self, handle: u64, offset: i64, whence: i32) -> Result<i64> {
        let whence = match whence {
            nix::libc::SEEK_DATA => Whence::SeekData,
            nix::libc::SEEK_HOLE => Whence::SeekHole,
            _ => return Err(Errno::EINVAL),
        };
        // The position that this moves is used by nobody.
        nix::unistd::lseek(&self.opened(handle)?.file, offset, whence)
    }

    pub(super) fn change(
        &self,
        ino: INodeNo,
        handle: Option<u64>,
        changes: Changes,
    ) -> Result<FileAttr> {
        let node = self.nodes.get(ino)?;
        let path = node.by_descriptor();
        if let Some(size) = changes.size {
            let done = match handle {
                Some(handle) => self.opened(handle)?.file.set_len(size),
                None => OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .and_then(|f| f.set_len(size)),
            };
            done.map_err(|e| errno(&e))?;
        }
        if changes.uid.is_some() || changes.gid.is_some() {
            let (uid, gid) = (
                changes.uid.map(Uid::from_raw),
                changes.gid.map(Gid::from_raw),
            );
            nix::unistd::fchownat(AT_FDCWD, &path, uid, gid, AtFlags::empty())?;
        }
        if let Some(mode) = changes.mode {
            fs::set_permissions(&path, Permissions::from_mode(mode & 0o7777))
                .map_err(|e| errno(&e))?;
        }
        if changes.accessed.is_some() || changes.modified.is_some() {
            let (accessed, modified) = (time(changes.accessed), time(changes.modified));
            let follow = UtimensatFlags::FollowSymlink;
            utimensat(AT_FDCWD, &path, &accessed, &modified, follow)?;
        }
        Ok(super::nodes::attr(ino, &node.meta()?))
    }

    pub(super) fn make_dir(
        &self,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        caller: Caller,
    ) -> Result<FileAttr> {
        let dir = self.nodes.get(parent)?;
        nix::sys::stat::mkdirat(&*dir.file, name, Mode::from_bits_truncate(mode))?;
        self.made(&dir, name, Some(mode), caller)
    }

    pub(super) fn make_symlink(
        &self,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        caller: Caller,
    ) -> Result<FileAttr> {
        let dir = self.nodes.get(parent)?;
        nix::unistd::symlinkat(target, &*dir.file, name)?;
        self.made(&dir, name, None, caller)
    }

    fn made(
        &self,
        dir: &Node,
        name: &OsStr,
        mode: Option<u32>,
        caller: Caller,
    ) -> Result<FileAttr> {
        let file = open_entry(&dir.file, name)?;
        if mode.is_some() {
            own(&by_descriptor(&file), mode, caller)?;
        }
        self.nodes.tell(file, dir.path.join(name))
    }

    /// Gives a file one more name: exactly one of several that try the same name succeeds, by whichever mount.
    pub(super) fn link(&self, ino: INodeNo, parent: INodeNo, name: &OsStr) -> Result<FileAttr> {
        let (node, dir) = (self.nodes.get(ino)?, self.nodes.get(parent)?);
        let from = node.by_descriptor();
        let follow = AtFlags::AT_SYMLINK_FOLLOW;
        nix::unistd::linkat(AT_FDCWD, &from, &*dir.file, name, follow)?;
        let same = node.file.try_clone().map_err(|e| errno(&e))?;
        self.nodes.tell(same, dir.path.join(name))
    }

    pub(super) fn remove(&self, parent: INodeNo, name: &OsStr, is_dir: bool) -> Result<()> {
        let dir = self.nodes.get(parent)?;
        let what = if is_dir {
            UnlinkatFlags::RemoveDir
        } else {
            UnlinkatFlags::NoRemoveDir
        };
        nix::unistd::unlinkat(&*dir.file, name, what)
    }

    /// The space of the file system below.
    pub(super) fn space(&self) -> Result<Statvfs> {
        fstatvfs(&*self.nodes.get(INodeNo::ROOT)?.file)
    }

    pub(super) fn rename(
        &self,
        from: (INodeNo, &OsStr),
        to: (INodeNo, &OsStr),
        flags: u32,
    ) -> Result<()> {
        let (from_dir, to_dir) = (self.nodes.get(from.0)?, self.nodes.get(to.0)?);
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
        renameat2(&*from_dir.file, from.1, &*to_dir.file, to.1, flags)?;
        // Only the names that writes are reported under hang on this.
        if let Ok(meta) =
            open_entry(&to_dir.file, to.1).and_then(|f| f.metadata().map_err(|e| errno(&e)))
        {
            self.nodes.renamed(meta.ino(), to_dir.path.join(to.1));
        }
        Ok(())
    }

    /// Reads a directory whole.
    pub(super) fn entries(&self, ino: INodeNo) -> Result<Vec<Entry>> {
        let dir = self.nodes.get(ino)?;
        let mut found = vec![
            (ino.0, fuser::FileType::Directory, OsString::from(".")),
            (
                INodeNo::ROOT.0,
                fuser::FileType::Directory,
                OsString::from(".."),
            ),
        ];
        for entry in fs::read_dir(dir.by_descriptor()).map_err(|e| errno(&e))? {
            let entry = entry.map_err(|e| errno(&e))?;
            let kind = entry.file_type().ok().and_then(fuser::FileType::from_std);
            let kind = kind.unwrap_or(fuser::FileType::RegularFile);
            found.push((entry.ino(), kind, entry.file_name()));
        }
        Ok(found)
    }
}

/// Gives a new file to who made it, with its mode whatever the umask of this process is.
fn own(path: &Path, mode: Option<u32>, caller: Caller) -> Result<()> {
    if caller.uid != 0 || caller.gid != 0 {
        let (uid, gid) = (Uid::from_raw(caller.uid), Gid::from_raw(caller.gid));
        nix::unistd::fchownat(AT_FDCWD, path, Some(uid), Some(gid), AtFlags::empty())?;
    }
    if let Some(mode) = mode {
        fs::set_permissions(path, Permissions::from_mode(mode & 0o7777)).map_err(|e| errno(&e))?;
    }
    Ok(())
}

/// Whether all of these bytes have their space already: within the file and no hole.
fn has_space(file: &File, offset: u64, len: u64) -> Result<bool> {
    let end = offset.saturating_add(len);
    if end > file.metadata().map_err(|e| errno(&e))?.len() {
        return Ok(false);
    }
    let from = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
    let hole = nix::unistd::lseek(file, from, Whence::SeekHole)?;
    Ok(u64::try_from(hole).is_ok_and(|hole| hole >= end))
}

fn time(wanted: Option<TimeOrNow>) -> TimeSpec {
    match wanted {
        None => TimeSpec::UTIME_OMIT,
        Some(TimeOrNow::Now) => TimeSpec::UTIME_NOW,
        Some(TimeOrNow::SpecificTime(at)) => since_epoch(at),
    }
}

fn since_epoch(at: SystemTime) -> TimeSpec {
    TimeSpec::from_duration(at.duration_since(UNIX_EPOCH).unwrap_or_default())
}
