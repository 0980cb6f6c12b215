//! The two layers with faults: files of a directory, sectors in memory. Each host has its own way to the same storage.

use super::script::{Fault, Kind, Script, lost, timed_out};
use crate::block::{Disk, WriteError};
use crate::directory::{Directory, FileId, Mounted, NotWritten};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a host has cached of a directory. Names that it knows of are opened anew all the same (close-to-open), and
/// a change of its own ends it, as with NFS.
#[derive(Debug)]
struct Cached {
    names: BTreeSet<OsString>,
    /// Names that it does not know of are not there for it when it opens them, either.
    hides: bool,
}

/// A host's way to a directory.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) script: Arc<Script>,
    real: Mounted,
    stale: Mutex<Option<Cached>>,
    aside: PathBuf,
    number: AtomicU64,
}

impl Files {
    /// `aside` is a directory on the same file system, for what is to come late.
    pub(super) fn new(script: Arc<Script>, aside: &Path) -> Self {
        Self {
            script,
            real: Mounted::default(),
            stale: Mutex::default(),
            aside: aside.into(),
            number: AtomicU64::new(0),
        }
    }

    /// From now on the host lists the names that are there now, until it changes one, and opens no others if it
    /// `hides` them.
    pub(super) fn cache(&self, directory: &Path, hides: bool) {
        let names = self.real.names(directory).expect("listed");
        let names = names.into_iter().collect();
        *locked(&self.stale) = Some(Cached { names, hides });
    }

    /// What is cached counts no more.
    pub(super) fn expire(&self) {
        *locked(&self.stale) = None;
    }

    fn is_hidden(&self, path: &Path) -> bool {
        let stale = locked(&self.stale);
        let name = path.file_name();
        let hides = |(cached, name): (&Cached, _)| cached.hides && !cached.names.contains(name);
        stale.as_ref().zip(name).is_some_and(hides)
    }

    /// The file under one more name, so that what is late finds it though its own name was removed.
    fn kept(&self, path: &Path) -> io::Result<PathBuf> {
        let n = self.number.fetch_add(1, Ordering::Relaxed);
        let kept = self.aside.join(format!("{:p}-{n}", self));
        fs::hard_link(path, &kept)?;
        Ok(kept)
    }

    /// An operation on names, which is performed whole or not at all.
    fn perform(
        &self,
        kind: Kind,
        now: impl FnOnce() -> io::Result<()>,
        later: impl FnOnce() -> io::Result<Box<dyn FnOnce() + Send>>,
    ) -> io::Result<()> {
        match self.script.meet(kind) {
            None | Some(Fault::Hang) => {
                now()?;
                self.expire();
                Ok(())
            }
            Some(Fault::Error(errno)) => Err(errno.into()),
            Some(Fault::Torn) => Err(lost()),
            Some(Fault::LostAnswer) => {
                now()?;
                Err(lost())
            }
            Some(Fault::Late) => {
                self.script.later(later()?);
                Err(timed_out())
            }
        }
    }
}

/// A read has no effect: whatever is planned, it fails.
fn failed(fault: Fault) -> io::Error {
    match fault {
        Fault::Error(errno) => errno.into(),
        _ => lost(),
    }
}

/// The part of a write that is performed when it is torn: up to the middle of what it changes.
fn torn<'a>(there: &[u8], bytes: &'a [u8]) -> &'a [u8] {
    let differs = |(n, byte): &(usize, &u8)| there.get(*n) != Some(*byte);
    let mut changed = bytes.iter().enumerate().filter(differs).map(|(n, _)| n);
    let first = changed.next().unwrap_or_default();
    let last = changed.next_back().unwrap_or(first);
    bytes.get(..(first + last).div_ceil(2)).unwrap_or_default()
}

fn absent() -> io::Error {
    nix::errno::Errno::ENOENT.into()
}

impl Directory for Files {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match self.script.meet(Kind::Read) {
            Some(fault) => Err(failed(fault)),
            None if self.is_hidden(path) => Err(absent()),
            None => self.real.read(path),
        }
    }

    fn look(&self, path: &Path) -> io::Result<Option<FileId>> {
        match self.script.meet(Kind::Read) {
            Some(fault) => Err(failed(fault)),
            None if self.is_hidden(path) => Err(absent()),
            None => self.real.look(path),
        }
    }

    fn write_in_place(&self, path: &Path, pieces: &[(u64, &[u8])]) -> Result<FileId, NotWritten> {
        match self.script.meet(Kind::Write) {
            None | Some(Fault::Hang) => self.real.write_in_place(path, pieces),
            Some(Fault::Error(errno)) if errno == nix::errno::Errno::EROFS => {
                Err(NotWritten::Unopened(errno.into()))
            }
            Some(Fault::Error(errno)) => Err(NotWritten::First(errno.into())),
            Some(Fault::LostAnswer) => {
                self.real.write_in_place(path, pieces)?;
                Err(NotWritten::Later(lost()))
            }
            Some(Fault::Torn) => {
                let file = fs::OpenOptions::new().write(true).open(path);
                let file = file.map_err(NotWritten::Unopened)?;
                if let Some((offset, bytes)) = pieces.first() {
                    let mut there = vec![0; bytes.len()];
                    let read =
                        fs::File::open(path).and_then(|file| file.read_at(&mut there, *offset));
                    there.truncate(read.map_err(NotWritten::Unopened)?);
                    let written = file.write_all_at(torn(&there, bytes), *offset);
                    written.map_err(NotWritten::First)?;
                }
                Err(NotWritten::First(lost()))
            }
            Some(Fault::Late) => {
                let path = path.to_owned();
                let pieces: Vec<(u64, Vec<u8>)> = pieces
                    .iter()
                    .map(|(at, bytes)| (*at, bytes.to_vec()))
                    .collect();
                self.script.later(move || {
                    let pieces: Vec<(u64, &[u8])> = pieces
                        .iter()
                        .map(|(at, bytes)| (*at, bytes.as_slice()))
                        .collect();
                    drop(Mounted::default().write_in_place(&path, &pieces));
                });
                Err(NotWritten::First(timed_out()))
            }
        }
    }

    fn create(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        match self.script.meet(Kind::Grow) {
            // Names of files that are being written are nobody's business, and no sign that the cache is old.
            None | Some(Fault::Hang) => self.real.create(path, bytes),
            Some(Fault::Error(errno)) => Err(errno.into()),
            // What is late is a file that nobody knows of.
            Some(Fault::LostAnswer | Fault::Late) => {
                self.real.create(path, bytes)?;
                Err(lost())
            }
            Some(Fault::Torn) => {
                let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
                self.real.create(path, half)?;
                Err(lost())
            }
        }
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let now = || self.real.link(from, to);
        self.perform(Kind::Write, now, || {
            let (kept, to) = (self.kept(from)?, to.to_owned());
            Ok(Box::new(move || drop(fs::hard_link(kept, to))))
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let now = || self.real.rename(from, to);
        self.perform(Kind::Write, now, || {
            let (kept, to) = (self.kept(from)?, to.to_owned());
            Ok(Box::new(move || drop(fs::rename(kept, to))))
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let now = || self.real.remove(path);
        self.perform(Kind::Write, now, || {
            let path = path.to_owned();
            Ok(Box::new(move || drop(fs::remove_file(path))))
        })
    }

    fn sync(&self, directory: &Path) -> io::Result<()> {
        match self.script.meet(Kind::Read) {
            Some(fault) => Err(failed(fault)),
            None => self.real.sync(directory),
        }
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        if let Some(fault) = self.script.meet(Kind::Read) {
            return Err(failed(fault));
        }
        match &*locked(&self.stale) {
            Some(cached) => Ok(cached.names.iter().cloned().collect()),
            None => self.real.names(directory),
        }
    }
}

/// Sectors that all hosts share.
#[derive(Debug, Default)]
pub(super) struct Sectors(Mutex<Vec<u8>>);

impl Sectors {
    fn write(&self, offset: u64, bytes: &[u8]) {
        let at = usize::try_from(offset).expect("an offset");
        let mut all = locked(&self.0);
        if all.len() < at + bytes.len() {
            all.resize(at + bytes.len(), 0);
        }
        all.splice(at..at + bytes.len(), bytes.iter().copied());
    }

    pub(super) fn copy(&self) -> Vec<u8> {
        locked(&self.0).clone()
    }

    pub(super) fn replace(&self, bytes: Vec<u8>) {
        *locked(&self.0) = bytes;
    }
}

/// A host's way to a device.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) script: Arc<Script>,
    sectors: Arc<Sectors>,
    /// What the host's reads show in place of what is there.
    stale: Mutex<Option<Vec<u8>>>,
}

impl Way {
    pub(super) fn new(script: Arc<Script>, sectors: Arc<Sectors>) -> Self {
        Self {
            script,
            sectors,
            stale: Mutex::default(),
        }
    }

    /// From now on reads show what is there now.
    pub(super) fn cache(&self) {
        *locked(&self.stale) = Some(self.sectors.copy());
    }

    /// What is cached counts no more.
    pub(super) fn expire(&self) {
        *locked(&self.stale) = None;
    }
}

impl Disk for Way {
    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        if let Some(fault) = self.script.meet(Kind::Read) {
            return Err(failed(fault));
        }
        let at = usize::try_from(offset).expect("an offset");
        let stale = locked(&self.stale);
        let now = locked(&self.sectors.0);
        let all = stale.as_ref().unwrap_or(&now);
        let end = (at + len).min(all.len());
        Ok(all.get(at..end).unwrap_or_default().to_vec())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
        // A device with thin provisioning needs space for any write.
        let fault = match self.script.meet(Kind::Grow) {
            None | Some(Fault::Hang) => {
                self.sectors.write(offset, bytes);
                return Ok(());
            }
            Some(fault) => fault,
        };
        let error = match fault {
            Fault::LostAnswer => {
                self.sectors.write(offset, bytes);
                lost()
            }
            Fault::Torn => {
                let at = usize::try_from(offset).expect("an offset");
                let there = locked(&self.sectors.0)
                    .get(at..at + bytes.len())
                    .map(<[u8]>::to_vec);
                self.sectors
                    .write(offset, torn(&there.unwrap_or_default(), bytes));
                lost()
            }
            Fault::Late => {
                let (sectors, bytes) = (Arc::clone(&self.sectors), bytes.to_vec());
                self.script.later(move || sectors.write(offset, &bytes));
                timed_out()
            }
            other => failed(other),
        };
        Err(WriteError::of(error))
    }
}
