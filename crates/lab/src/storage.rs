//! The shared storage of a run: a file system in user space over a directory, that fails for one host or all.
//!
//! Each host mounts each datastore for itself, inside its mount namespace; threads of this process serve
//! the mounts. Two mounts of one backing directory are like two clients of one file server without caches:
//! what one has written the next read of the other sees, an exclusive link or create is won by one of them,
//! byte-range locks (POSIX and OFD, such as QEMU puts on its images) exclude across mounts.
//!
//! ```text
//!  host-1's namespace          this process                                     backing directory
//!  guest, agent --> mount --> serve --> gate --> backing (write, link, ...) --> of the datastore
//!                                        |  '--> locks, waiting (shared by all mounts)
//!                                      faults of this mount
//! ```
//!
//! A datastore of kind `block` is one large sparse file in such a directory.
//!
//! A caller that is signalled while it hangs stays until it is answered, SIGKILL included, as on an array
//! that is gone: its process is in state D until the path is healed or the host loses power.
//!
//! What it is not: `mmap` of shared files is not served, nor `flock` beyond one mount, nor extended
//! attributes; permissions are not checked, hosts are root. Bytes go to the backing file through the page
//! cache of this machine, which outlives every fault that a lab can play; whoever measures with durable
//! writes says so ([`MountSpec::write_through`]).
//!
//! # Never here
//! A wait for one mount on a thread that serves another; a descriptor that a child process inherits; an
//! effect after [`Mount::power_off`] has begun.

mod backing;
mod fault;
mod gate;
mod locks;
mod mount;
mod nodes;
mod request;
mod serve;
mod tally;
mod waiting;
mod writers;

pub use fault::Fault;
pub use mount::Mount;
pub use tally::Tally;

use crate::fail::{Context, Failure, Result};
use crate::namespace::Namespace;
use backing::{Entry, Open};
use gate::Gate;
use locks::{FileKey, Locks};
use mainstay_core::time::Instant;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nodes::Nodes;
use std::collections::HashMap;
use std::fmt;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use waiting::Waiters;
use writers::Writers;

/// What the kernel offers file systems in user space by.
const DEVICE: &str = "/dev/fuse";

/// Writes to different files go on side by side; those whose numbers agree by this wait for each other.
const ORDERS: u64 = 256;

/// One host's mount of one datastore.
#[derive(Debug, Clone)]
pub struct MountSpec {
    /// The host.
    pub host: String,
    /// The datastore.
    pub datastore: String,
    /// The directory that holds the datastore's files, as this process sees it.
    pub backing: PathBuf,
    /// Where the directory is seen, if that is not where this process is, and what stands for its device: each
    /// host has it from a client of its own then.
    pub seen: Option<(Arc<Namespace>, u64)>,
    /// The directory to mount on, as the host sees it; it exists.
    pub at: PathBuf,
    /// Whether locks exclude the other hosts, as on storage that enforces image locks; otherwise they
    /// exclude within this mount alone.
    pub image_locks: bool,
    /// Whether fsync, O_SYNC and O_DSYNC reach the disk below the backing directory. Without it they are
    /// answered when the bytes are in this machine's page cache: processes and whole hosts of a lab can die
    /// without losing them, the disk is not worn, and a write costs a fraction.
    pub write_through: bool,
    /// Whether the storage refuses the writes of a host that has lost its lock on a file to another one. Without
    /// image locks, it refuses those of a host after whose last open another one has opened the file and
    /// written; Mainstay's own records are let alone then.
    pub fenced: bool,
}

/// A write whose bytes are on the backing file.
#[derive(Debug)]
pub struct Write<'a> {
    /// The host that wrote.
    pub host: &'a str,
    /// The datastore.
    pub datastore: &'a str,
    /// The file, relative to the mount, by the name under which it was opened.
    pub path: &'a Path,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// What was written.
    pub data: &'a [u8],
    /// When, by CLOCK_BOOTTIME: read right after the bytes were there.
    pub at: Instant,
}

/// Sees every write of every host, in order for each file.
pub trait Observer: Send + Sync {
    /// A write has taken effect. The next write to the file waits for the return, so it should be quick; it
    /// must not use a mount nor change a fault.
    fn wrote(&self, write: &Write<'_>);
}

/// The storage that the hosts of a run share.
#[derive(Debug, Clone)]
pub struct Storage(Arc<Shared>);

/// What all mounts have in common.
struct Shared {
    observer: Arc<dyn Observer>,
    locks: Locks,
    waiters: Arc<Waiters>,
    orders: Vec<Mutex<()>>,
    next_mount: AtomicU64,
    writers: Writers,
    next_open: AtomicU64,
}

/// One host's side of a datastore, as long as it is mounted.
struct Host {
    number: u64,
    host: String,
    datastore: String,
    write_through: bool,
    lock_scope: u64,
    storage: Arc<Shared>,
    gate: Gate,
    nodes: Nodes,
    files: Mutex<HashMap<u64, Arc<Open>>>,
    listings: Mutex<HashMap<u64, Vec<Entry>>>,
    next_handle: AtomicU64,
    failing_opens: Mutex<Vec<(PathBuf, Arc<AtomicU64>)>>,
    fenced: bool,
    /// In the place of the device of its files, where each host sees another.
    device: Option<u64>,
    image_locks: bool,
    counters: tally::Counters,
}

/// Says whether file systems in user space can be mounted here.
///
/// # Errors
/// When this user is not root, or the kernel or the container gives no `/dev/fuse`.
pub fn available() -> Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        return Err(Failure::new("the lab's shared storage is mounted as root")
            .remedy("run it as root, or with sudo"));
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map(drop)
        .context("the kernel's file systems in user space cannot be used")
        .map_err(|e| {
            e.at(DEVICE).remedy(
                "load the kernel's module (`modprobe fuse`); in a container, pass the device in \
                 (`--device /dev/fuse`)",
            )
        })
}

impl Storage {
    /// Storage without a mount, whose writes this observer sees. Raises this process's limit of open files
    /// to what it may have: each file that a host knows is held open.
    #[must_use]
    pub fn new(observer: Arc<dyn Observer>) -> Self {
        // Where that is refused, the first file too many says so.
        if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
            && soft < hard
        {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
        Self(Arc::new(Shared {
            observer,
            locks: Locks::default(),
            waiters: Arc::default(),
            orders: (0..ORDERS).map(|_| Mutex::default()).collect(),
            next_mount: AtomicU64::new(1),
            writers: Writers::default(),
            next_open: AtomicU64::new(1),
        }))
    }

    /// Mounts a datastore for a host, visible inside its namespace alone. It is unmounted when the
    /// [`Mount`] is dropped, and is gone with the namespace or with this process.
    ///
    /// # Errors
    /// When this may not be done here (see [`available`]), or one of the two directories is missing.
    pub fn mount(&self, spec: &MountSpec, namespace: &Namespace) -> Result<Mount> {
        Mount::make(&self.0, spec, namespace)
    }

    /// How many callers wait for a lock that another holds; at some moments those that just try again are
    /// not among them.
    #[must_use]
    pub fn waiting_for_locks(&self) -> usize {
        self.0.waiters.count()
    }
}

impl Shared {
    /// Held while a write to a file takes effect and is reported.
    fn order(&self, file: FileKey) -> Option<MutexGuard<'_, ()>> {
        let index = usize::try_from(file.inode % ORDERS).unwrap_or(0);
        self.orders.get(index).map(locked)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("locks", &self.locks)
            .finish_non_exhaustive()
    }
}

impl Host {
    fn next_handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    fn opened(&self, handle: u64) -> nodes::Result<Arc<Open>> {
        locked(&self.files)
            .get(&handle)
            .cloned()
            .ok_or(Errno::EBADF)
    }

    /// EIO when opens of this file are to fail, once for each time that was asked for.
    fn fail_if_asked(&self, path: &Path) -> nodes::Result<()> {
        let fails = |(below, left): &(PathBuf, Arc<AtomicU64>)| {
            let one_less = |left: u64| left.checked_sub(1);
            path.starts_with(below)
                && left
                    .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less)
                    .is_ok()
        };
        match locked(&self.failing_opens).iter().any(fails) {
            true => Err(Errno::EIO),
            false => Ok(()),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("host", &self.host)
            .field("datastore", &self.datastore)
            .finish_non_exhaustive()
    }
}

// What these locks hold is consistent between any two statements, so that a panic elsewhere spoils nothing.

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
