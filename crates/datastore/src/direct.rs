//! Reads and writes past the page cache, with buffers aligned as O_DIRECT wants them.

use mainstay_core::wire::RECORD_MAX_BYTES;
use nix::fcntl::OFlag;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Alignment of buffers, lengths and offsets: the largest logical block that file systems ask for.
const BLOCK: usize = 4096;

/// A buffer whose used part begins at a multiple of [`BLOCK`].
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// Zeroes, `len` rounded up to whole blocks.
    fn zeroed(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(BLOCK);
        let bytes = vec![0; len + BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK);
        Self { bytes, start, len }
    }

    /// Zeroes, exactly so many.
    fn exact(len: usize) -> Self {
        Self {
            len,
            ..Self::zeroed(len)
        }
    }

    fn get(&self) -> &[u8] {
        self.bytes
            .get(self.start..self.start + self.len)
            .unwrap_or_default()
    }

    fn get_mut(&mut self) -> &mut [u8] {
        self.bytes
            .get_mut(self.start..self.start + self.len)
            .unwrap_or_default()
    }
}

/// Whether a file system takes O_DIRECT, found out by using it.
#[derive(Debug, Default)]
pub(crate) struct Direct {
    refused: AtomicBool,
}

impl Direct {
    /// True when the file system refused O_DIRECT.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    fn flags(&self) -> OFlag {
        let base = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        if self.is_refused() {
            base
        } else {
            base | OFlag::O_DIRECT
        }
    }

    /// Opens with O_DIRECT, or without where the file system refuses it.
    fn open(&self, options: &mut OpenOptions, extra: OFlag, path: &Path) -> io::Result<File> {
        let file = options
            .custom_flags((self.flags() | extra).bits())
            .open(path);
        match file {
            Err(e) if is_invalid(&e) && !self.is_refused() => {
                self.refused.store(true, Ordering::Relaxed);
                options
                    .custom_flags((self.flags() | extra).bits())
                    .open(path)
            }
            other => other,
        }
    }

    /// Reads a file whole.
    pub(crate) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match self.read_once(path) {
            // Some file systems take the flag at open and refuse the read.
            Err(e) if is_invalid(&e) && !self.is_refused() => {
                self.refused.store(true, Ordering::Relaxed);
                self.read_once(path)
            }
            other => other,
        }
    }

    fn read_once(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(OpenOptions::new().read(true), OFlag::empty(), path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let len = usize::try_from(meta.len()).unwrap_or(usize::MAX);
        // A longer file is no record; its beginning says so to the decoder.
        let mut buffer = Aligned::zeroed(len.min(RECORD_MAX_BYTES + BLOCK));
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut().get_mut(filled..).filter(|r| !r.is_empty()) {
            let n = file.read_at(rest, filled as u64)?;
            filled += n;
            // Short of a whole block is the end of the file; a direct read cannot go on from there.
            if n % BLOCK != 0 || n == 0 {
                break;
            }
        }
        Ok(buffer.get().get(..filled).unwrap_or_default().to_vec())
    }

    /// Does it take direct reads of that length? Where direct I/O is refused altogether, any.
    pub(crate) fn takes(path: &Path, len: usize) -> io::Result<bool> {
        let direct = Self::default();
        let file = direct.open(OpenOptions::new().read(true), OFlag::empty(), path)?;
        match file.read_at(Aligned::exact(len).get_mut(), 0) {
            Ok(_) => Ok(true),
            Err(e) if is_invalid(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Reads a range of a device or of a file that is used like one. It ends early at the end of the device.
    pub(crate) fn read_range(&self, path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let file = self.open(OpenOptions::new().read(true), OFlag::empty(), path)?;
        let mut buffer = Aligned::exact(len);
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut().get_mut(filled..).filter(|r| !r.is_empty()) {
            let n = file.read_at(rest, offset + filled as u64)?;
            filled += n;
            // A direct read cannot go on from within a sector.
            if n == 0 || n % 512 != 0 {
                break;
            }
        }
        Ok(buffer.get().get(..filled).unwrap_or_default().to_vec())
    }

    /// Writes whole sectors, in one write.
    pub(crate) fn write_range(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut buffer = Aligned::exact(bytes.len());
        buffer.get_mut().copy_from_slice(bytes);
        let written = file.write_at(buffer.get(), offset)?;
        if written != bytes.len() {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "short write"));
        }
        Ok(())
    }

    /// Opens an existing file for a write in place, on stable storage when it returns if `at_once`.
    pub(crate) fn open_in_place(&self, path: &Path, at_once: bool) -> io::Result<File> {
        let sync = if at_once {
            OFlag::O_DSYNC
        } else {
            OFlag::empty()
        };
        self.open(OpenOptions::new().write(true), sync, path)
    }

    /// Writes `bytes`, padded to whole blocks, at `offset` of the file, in one write.
    pub(crate) fn write_padded(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut buffer = Aligned::zeroed(bytes.len());
        if let Some(head) = buffer.get_mut().get_mut(..bytes.len()) {
            head.copy_from_slice(bytes);
        }
        let written = file.write_at(buffer.get(), offset).inspect_err(|e| {
            if is_invalid(e) {
                // The next write goes without; this one is not known to be performed.
                self.refused.store(true, Ordering::Relaxed);
            }
        })?;
        if written != buffer.get().len() {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "short write"));
        }
        Ok(())
    }
}

fn is_invalid(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::EINVAL)
}
