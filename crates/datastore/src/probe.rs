//! A lock of the kind that hypervisors put on disk images, held for as long as the agent lives, by which
//! other hosts see whether this storage shows them such locks at all.
//!
//! QEMU's file driver (`block/file-posix.c`) locks bytes 100 and 200 and some behind them, by open file
//! descriptions (`F_OFD_SETLK`).

use mainstay_core::id::HostId;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

const FIRST: i64 = 100;
const BYTES: i64 = 104;

fn path(dir: &Path, host: &HostId) -> PathBuf {
    dir.join(format!("{host}.probe"))
}

fn range(kind: i32) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: FIRST,
        l_len: BYTES,
        l_pid: 0,
    }
}

/// The lock of this host's agent.
#[derive(Debug)]
pub(crate) struct Probe {
    _file: File,
}

impl Probe {
    /// Takes it.
    ///
    /// # Errors
    /// The file cannot be made, or another process has the lock.
    pub(crate) fn take(dir: &Path, host: &HostId) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path(dir, host))?;
        fcntl(&file, FcntlArg::F_OFD_SETLK(&range(libc::F_WRLCK)))?;
        Ok(Self { _file: file })
    }
}

/// Do such locks work at all on the file system of this file: is one that is held seen?
///
/// # Errors
/// They are refused, or not seen.
pub(crate) fn works(file: &Path) -> io::Result<()> {
    let open = || OpenOptions::new().read(true).write(true).open(file);
    let holder = open()?;
    fcntl(&holder, FcntlArg::F_OFD_SETLK(&range(libc::F_WRLCK)))?;
    let mut other = range(libc::F_WRLCK);
    fcntl(&open()?, FcntlArg::F_OFD_GETLK(&mut other))?;
    if i32::from(other.l_type) == libc::F_UNLCK {
        return Err(io::Error::other("a lock that is held is not seen"));
    }
    Ok(())
}

/// Does this host see that lock of another host's agent? None: that host has never held one.
///
/// # Errors
/// The file cannot be opened or asked about.
pub(crate) fn is_held(dir: &Path, host: &HostId) -> io::Result<Option<bool>> {
    let file = match OpenOptions::new()
        .read(true)
        .write(true)
        .open(path(dir, host))
    {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut other = range(libc::F_WRLCK);
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut other))?;
    Ok(Some(i32::from(other.l_type) != libc::F_UNLCK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_seen_while_it_is_held() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = HostId::new("host-1").expect("id");
        assert_eq!(is_held(dir.path(), &host).expect("asked"), None);
        let probe = Probe::take(dir.path(), &host).expect("taken");
        assert_eq!(is_held(dir.path(), &host).expect("asked"), Some(true));
        assert!(Probe::take(dir.path(), &host).is_err());
        drop(probe);
        assert_eq!(is_held(dir.path(), &host).expect("asked"), Some(false));
        works(&path(dir.path(), &host)).expect("they work here");
    }
}
