//! The device of a `block` datastore: ranges of bytes, read and written past the page cache.

use crate::direct::Direct;
use crate::error::is_refusal;
use nix::errno::Errno;
use std::io;
use std::path::{Path, PathBuf};

/// A write that failed.
#[derive(Debug)]
pub(crate) struct WriteError {
    /// It certainly was not performed and never will be.
    pub(crate) refused: bool,
    pub(crate) error: io::Error,
}

impl WriteError {
    /// What the kernel answered to the write itself.
    pub(crate) fn of(error: io::Error) -> Self {
        let read_only = error.raw_os_error() == Some(Errno::EROFS as i32);
        let refused = is_refusal(&error) || read_only;
        Self { refused, error }
    }
}

/// What a region lies on. Ranges are whole sectors.
pub(crate) trait Disk: Send + Sync + std::fmt::Debug {
    /// Reads a range, by a fresh open.
    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>>;
    /// Writes a range through to stable storage. One sector is written whole or not at all.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), WriteError>;
    /// The device may answer from a cache of this host.
    fn is_cached(&self) -> bool {
        false
    }
    /// Its path, where it has one.
    fn path(&self) -> Option<&Path> {
        None
    }
}

/// A device, a logical volume, or a file that is used like one.
#[derive(Debug)]
pub(crate) struct Device {
    path: PathBuf,
    direct: Direct,
}

impl Device {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.into(),
            direct: Direct::default(),
        }
    }
}

impl Disk for Device {
    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        // Names of devices are links; each operation follows them anew.
        let path = std::fs::canonicalize(&self.path)?;
        self.direct.read_range(&path, offset, len)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let opened = std::fs::canonicalize(&self.path)
            .and_then(|path| self.direct.open_in_place(&path, true));
        let file = match opened {
            Ok(file) => file,
            Err(error) => {
                return Err(WriteError {
                    refused: true,
                    error,
                });
            }
        };
        self.direct
            .write_range(&file, bytes, offset)
            .map_err(WriteError::of)
    }

    fn is_cached(&self) -> bool {
        self.direct.is_refused()
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }
}
