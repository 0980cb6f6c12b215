//! What a host of a run has of its own in the kernel: a network and mounts.
//!
//! Namespaces have no names: they live as long as the file descriptors held here and the processes in
//! them, so nothing is left of them when the run ends, however it ends.

use crate::fail::{Context, Failure, Result};
use crate::procs;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;

/// A network and a mount namespace.
#[derive(Debug)]
pub struct Namespace {
    net: File,
    mounts: File,
}

impl Namespace {
    /// Makes both. The mounts are those of the caller, and what is mounted on either side later stays there.
    ///
    /// # Errors
    /// When this user may not (root may; in a container, root with CAP_SYS_ADMIN).
    pub fn make() -> Result<Self> {
        let made = on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)?;
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            let open = |kind| {
                File::open(format!("/proc/thread-self/ns/{kind}"))
                    .map_err(|_| nix::errno::Errno::ENOENT)
            };
            Ok::<_, nix::Error>(Self {
                net: open("net")?,
                mounts: open("mnt")?,
            })
        })?;
        made.context("namespaces of the network and of mounts are refused")
            .map_err(|e| {
                e.remedy("run it as root; in a container, with CAP_SYS_ADMIN and CAP_NET_ADMIN")
            })
    }

    /// Another handle on the same namespaces: they live as long as either.
    ///
    /// # Errors
    /// When this process has no descriptors left.
    pub fn try_clone(&self) -> Result<Self> {
        let again = |file: &File| {
            file.try_clone()
                .context("cannot hold the namespaces of a host")
                .map_err(|e| e.remedy("raise the limit of open files (`ulimit -n`)"))
        };
        Ok(Self {
            net: again(&self.net)?,
            mounts: again(&self.mounts)?,
        })
    }

    /// The network namespace, for calls that name one by its descriptor.
    #[must_use]
    pub fn net(&self) -> &File {
        &self.net
    }

    /// Runs something on a thread inside. What it starts, mounts and opens stays there.
    ///
    /// # Errors
    /// When the namespaces cannot be entered, or the work panics.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let entered = on_own_thread(|| {
            // A thread that shares its root and working directory with others cannot change its mounts.
            unshare(CloneFlags::CLONE_FS)?;
            setns(self.net.as_fd(), CloneFlags::CLONE_NEWNET)?;
            setns(self.mounts.as_fd(), CloneFlags::CLONE_NEWNS)?;
            Ok::<_, nix::Error>(work())
        })?;
        entered.context("cannot enter the namespaces of a host")
    }

    /// Starts a program inside. [`procs::reap`] takes its status.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<()> {
        self.inside(|| procs::spawn(command))?
            .context("cannot start a process of a host")
    }
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| scope.spawn(work).join())
        .map_err(|_| Failure::new("work in the namespaces of a host failed"))
}
