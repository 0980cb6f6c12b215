//! Mounting a datastore for a host, what a run does to that mount, and its end.
//!
//! The kernel's side of a mount is a connection. Aborting it (a forced unmount does) fails every call that
//! waits in it, so that processes which hang there can end; unmounting alone waits for them.

use super::fault::Fault;
use super::gate::Gate;
use super::nodes::Nodes;
use super::request::Served;
use super::{DEVICE, Host, MountSpec, Shared, available, locked};
use crate::fail::{Context, Failure, Result};
use crate::namespace::Namespace;
use fuser::{BackgroundSession, Config, Session, SessionACL};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Threads that take the operations of one mount. No fault holds one, so one would do; the second serves
/// while the first waits for a directory of the disk below that is not cached.
const THREADS: usize = 2;

/// With `write_through` a thread waits for the disk with each write, so that many share its flushes.
const THREADS_WRITING_THROUGH: usize = 32;

/// Larger buffers than this are mappings of their own.
const MAPPED_BYTES: i32 = 1 << 20;

/// Each thread of a mount reads into 16 MiB, of which it uses little. Once such a buffer was freed the C library
/// takes the next ones from its heap and fills them with zeroes, and a lab that makes mounts for an hour has
/// gigabytes of them. A fixed threshold keeps each a mapping, of which only what is used is memory.
fn map_large_buffers() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "no library in use wraps mallopt")]
    // SAFETY: it takes two numbers, and locks the allocator while it changes a parameter of it.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, MAPPED_BYTES);
    }
}

/// A datastore that a host has mounted. Dropping it ends it as [`Mount::power_off`] does, with its locks
/// released at once.
#[derive(Debug)]
pub struct Mount {
    host: Arc<Host>,
    namespace: Namespace,
    at: PathBuf,
    session: Option<BackgroundSession>,
    pace: Option<JoinHandle<()>>,
}

impl Mount {
    pub(super) fn make(
        storage: &Arc<Shared>,
        spec: &MountSpec,
        namespace: &Namespace,
    ) -> Result<Self> {
        available()?;
        map_large_buffers();
        let open_root = || {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            open(&spec.backing, flags, Mode::empty())
        };
        let root = match &spec.seen {
            Some((namespace, _)) => namespace.inside(open_root)?,
            None => open_root(),
        }
        .context("the backing directory of a datastore cannot be opened")
        .map_err(|e| e.at(spec.backing.display()))?;
        let number = storage.next_mount.fetch_add(1, Ordering::Relaxed);
        let host = Arc::new(Host {
            number,
            host: spec.host.clone(),
            datastore: spec.datastore.clone(),
            write_through: spec.write_through,
            lock_scope: if spec.image_locks { 0 } else { number },
            storage: Arc::clone(storage),
            gate: Gate::default(),
            nodes: Nodes::new(File::from(root)),
            files: Mutex::default(),
            listings: Mutex::default(),
            next_handle: AtomicU64::new(1),
            fenced: spec.fenced,
            device: spec.seen.as_ref().map(|(_, device)| *device),
            image_locks: spec.image_locks,
            failing_opens: Mutex::default(),
            counters: super::tally::Counters::default(),
        });
        // The standard library opens with O_CLOEXEC: no child keeps the connection alive.
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open(DEVICE)
            .context("the kernel's file systems in user space cannot be used")
            .map_err(|e| e.at(DEVICE))?;
        let mut made = Self {
            host: Arc::clone(&host),
            namespace: namespace.try_clone()?,
            at: spec.at.clone(),
            session: None,
            pace: None,
        };
        namespace
            .inside(|| mount_here(&device, spec))?
            .context("a datastore cannot be mounted")
            .map_err(|e| {
                e.at(spec.at.display()).remedy(
                    "the directory must exist on the host, and root must be allowed to mount",
                )
            })?;
        let mut config = Config::default();
        config.n_threads = Some(if spec.write_through {
            THREADS_WRITING_THROUGH
        } else {
            THREADS
        });
        config.acl = SessionACL::All;
        let served = Served(Arc::clone(&host));
        let session = Session::from_fd(served, device.into(), SessionACL::All, config)
            .and_then(Session::spawn)
            .context("a datastore cannot be served")
            .map_err(|e| e.at(spec.at.display()));
        if session.is_err() {
            // The first error is the one to tell.
            drop(namespace.inside(|| abort(&spec.at)));
        }
        made.session = Some(session?);
        made.pace = std::thread::Builder::new()
            .name("storage-pace".into())
            .spawn(move || host.gate.pace())
            .map(Some)
            .context("a thread for a datastore's delays cannot be started")?;
        Ok(made)
    }

    /// Where the host sees it.
    #[must_use]
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Changes what is wrong with it; none heals. When this returns, no operation that came under the old
    /// state is still under way, and what waited and may go on now has been carried out, in the order in
    /// which it came, and answered.
    pub fn set(&self, fault: Option<Fault>) {
        self.host.gate.set(fault);
    }

    /// Lets opens for writing of a file, or of all files of a directory, fail with EIO as long as `left` is above zero;
    /// each counts it down. The path is relative to the mount; mounts may share the count.
    pub fn fail_opens(&self, below: &Path, left: Arc<AtomicU64>) {
        let mut failing = locked(&self.host.failing_opens);
        failing.retain(|(_, left)| left.load(Ordering::Acquire) > 0);
        failing.push((below.into(), left));
    }

    /// The storage does not hear the host any more, be it paused or cut off: after `keep_locks` its locks are
    /// anybody's who asks, and its writes to a file of which somebody else has taken them fail with EIO where the
    /// storage fences ([`MountSpec::fenced`]).
    pub fn lose(&self, keep_locks: Duration) {
        let until = Instant::now() + keep_locks;
        self.host.storage.locks.expire(self.host.number, until);
    }

    /// The storage hears the host again, which keeps the locks that nobody else has taken.
    pub fn find_again(&self) {
        self.host.storage.locks.reclaim(self.host.number);
    }

    /// What the host's agent and guard have asked for since it was mounted.
    #[must_use]
    pub fn tally(&self) -> super::Tally {
        self.host.counters.tally()
    }

    /// How many operations wait for the fault to change or to be due, and how many answers are kept back.
    #[must_use]
    pub fn waiting(&self) -> (usize, usize) {
        self.host.gate.waiting()
    }

    /// The host lost power: what waits is dropped without effect, nothing has an effect any more, and
    /// processes that hang in the mount are let go, so that those that were killed can end. The storage keeps
    /// the host's locks for `keep_locks` from now, as storage does until it gives a silent client up.
    ///
    /// Processes that still run see errors from here on. Stop them before
    /// ([`crate::procs::stop_marked`]) and kill them after: they act on nothing, and what they close as they
    /// die gives up no lock. Killed before, they would release their locks in an orderly way.
    ///
    /// # Errors
    /// When the mount cannot be aborted: somebody else unmounted it, or mounted something over it.
    pub fn power_off(mut self, keep_locks: Duration) -> Result<()> {
        self.end(keep_locks)
    }

    fn end(&mut self, keep_locks: Duration) -> Result<()> {
        let Some(session) = self.session.take() else {
            return Ok(());
        };
        let let_go = self.host.gate.close();
        let until = Instant::now() + keep_locks;
        self.host.storage.locks.expire(self.host.number, until);
        self.host.storage.waiters.notify();
        let at = self.at.clone();
        let aborted = self.namespace.inside(move || abort(&at))?;
        // Their callers are gone from the connection by now, so that no answer of an error reaches them.
        drop(let_go);
        if let Some(pace) = self.pace.take() {
            pace.join()
                .map_err(|_| Failure::new("the thread of a datastore's delays failed"))?;
        }
        aborted
            .context("a datastore cannot be unmounted")
            .map_err(|e| e.at(self.at.display()))?;
        session
            .join()
            .context("a datastore was not served to its end")
            .map_err(|e| e.at(self.at.display()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // It is gone with the namespace in any case.
        drop(self.end(Duration::ZERO));
    }
}

/// Mounts in the namespace of the calling thread.
fn mount_here(device: &File, spec: &MountSpec) -> nix::Result<()> {
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
        device.as_raw_fd()
    );
    let source = format!("mainstay-lab:{}:{}", spec.host, spec.datastore);
    mount(
        Some(source.as_str()),
        &spec.at,
        Some("fuse"),
        MsFlags::MS_NODEV | MsFlags::MS_NOSUID,
        Some(options.as_str()),
    )
}

/// Aborts the connection of the mount there and takes the mount away, whoever still uses it.
fn abort(at: &Path) -> nix::Result<()> {
    match umount2(at, MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW) {
        // Aborted, but files are open: the mount goes with the last of them.
        Err(Errno::EBUSY) => umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW),
        other => other,
    }
}
