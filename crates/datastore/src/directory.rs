//! What a `file` datastore lies on: the operations on files that it is made of, each by path.

use crate::direct::Direct;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Which file a path led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FileId {
    device: u64,
    pub(crate) inode: u64,
}

impl FileId {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
        }
    }
}

/// A write in place that failed.
#[derive(Debug)]
pub(crate) enum NotWritten {
    /// The file was not opened: certainly nothing was written.
    Unopened(io::Error),
    /// It is not a regular file: certainly nothing was written.
    NotAFile,
    /// The first piece failed.
    First(io::Error),
    /// A later piece failed, or the wait until all are on stable storage.
    Later(io::Error),
}

/// A mounted directory and what is in it.
pub(crate) trait Directory: Send + Sync + std::fmt::Debug {
    /// Reads a file whole, by a fresh open past the page cache.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Which file the path leads to; none: to one that has no name any more.
    fn look(&self, path: &Path) -> io::Result<Option<FileId>>;
    /// Writes pieces into an existing file, through to stable storage.
    fn write_in_place(&self, path: &Path, pieces: &[(u64, &[u8])]) -> Result<FileId, NotWritten>;
    /// Makes a new file of mode 0600, and waits until it is on stable storage.
    fn create(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Gives a file one more name, which must be free.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file another name, which may be that of another file.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Takes a name away.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Waits until the names in a directory are on stable storage.
    fn sync(&self, directory: &Path) -> io::Result<()>;
    /// The names in a directory.
    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>>;
    /// Reads may come from a cache of this host.
    fn is_cached(&self) -> bool {
        false
    }
}

/// A directory that is mounted on this host.
#[derive(Debug, Default)]
pub(crate) struct Mounted {
    direct: Direct,
}

impl Directory for Mounted {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.direct.read(path)
    }

    fn look(&self, path: &Path) -> io::Result<Option<FileId>> {
        let meta = fs::symlink_metadata(path)?;
        Ok((meta.nlink() > 0).then(|| FileId::of(&meta)))
    }

    fn write_in_place(&self, path: &Path, pieces: &[(u64, &[u8])]) -> Result<FileId, NotWritten> {
        // One piece goes through to stable storage by itself, many are flushed together.
        let at_once = pieces.len() == 1;
        let opened = self.direct.open_in_place(path, at_once).and_then(|file| {
            let meta = file.metadata()?;
            Ok((file, meta))
        });
        let (file, meta) = opened.map_err(NotWritten::Unopened)?;
        if !meta.is_file() {
            return Err(NotWritten::NotAFile);
        }
        for (n, (offset, bytes)) in pieces.iter().enumerate() {
            let written = self.direct.write_padded(&file, bytes, *offset);
            written.map_err(|error| match n {
                0 => NotWritten::First(error),
                _ => NotWritten::Later(error),
            })?;
        }
        if !at_once {
            file.sync_data().map_err(NotWritten::Later)?;
        }
        Ok(FileId::of(&meta))
    }

    fn create(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        write_new(path, bytes)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync(&self, directory: &Path) -> io::Result<()> {
        File::open(directory).and_then(|directory| directory.sync_all())
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        let entries = fs::read_dir(directory)?;
        entries.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn is_cached(&self) -> bool {
        self.direct.is_refused()
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
