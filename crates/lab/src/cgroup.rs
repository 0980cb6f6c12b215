//! A cgroup of the run's own, where this user may make one: guests are frozen and killed whole there.

use crate::place::Kind;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A directory of cgroup v2, removed when dropped.
#[derive(Debug)]
pub struct RunCgroup {
    dir: PathBuf,
}

impl RunCgroup {
    /// Where that of a run is made, so that it can be noted before.
    #[must_use]
    pub fn place(kind: Kind, run: &str) -> Option<PathBuf> {
        let root = root()?;
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = own
            .lines()
            .find_map(|l| l.strip_prefix("0::/"))
            .unwrap_or_default();
        Some(root.join(own).join(name(kind, run)))
    }

    /// Makes one with a child for each host; none where this user has not the right.
    pub fn make(kind: Kind, run: &str, hosts: impl Iterator<Item = String>) -> Option<Self> {
        let dir = Self::place(kind, run)?;
        fs::create_dir(&dir).ok()?;
        let made = Self { dir };
        for host in hosts {
            fs::create_dir(made.dir.join(host)).ok()?;
        }
        Some(made)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.dir
    }
}

/// Where cgroup v2 is mounted.
#[must_use]
pub fn root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (_, at, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(at))
    })
}

impl Drop for RunCgroup {
    fn drop(&mut self) {
        remove_tree(&self.dir);
    }
}

fn name(kind: Kind, run: &str) -> String {
    format!("{}-{run}", kind.prefix())
}

/// Whether a directory is the cgroup of that run.
pub fn is_of(dir: &Path, kind: Kind, run: &str) -> bool {
    dir.file_name()
        .is_some_and(|file| *file == *name(kind, run))
        && dir.join("cgroup.procs").exists()
}

/// Ends every process in a cgroup and in those below it. Kernels before 5.14 cannot.
pub(crate) fn kill_tree(dir: &Path) {
    // What is left after it is found by its mark, or keeps the cgroup from being removed.
    drop(fs::write(dir.join("cgroup.kill"), "1"));
}

/// How long killed processes may take to leave their cgroup: a machine's memory is given back first.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// Removes a cgroup and those below it, when their last process has left; with those that guests have beside
/// them for their memory, where the memory controller is cgroup v1's.
pub fn remove_tree(dir: &Path) {
    if let Some(beside) = mainstay_hypervisor::memory_cgroup_beside(dir) {
        remove_when_empty(&beside);
    }
    remove_when_empty(dir);
}

fn remove_when_empty(dir: &Path) {
    let deadline = Instant::now() + EMPTY_WITHIN;
    while dir.exists() && Instant::now() < deadline {
        remove_empty(dir);
        if dir.exists() {
            crate::procs::reap();
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

/// A cgroup's files go with it and cannot be removed; one that is still in use stays.
fn remove_empty(dir: &Path) {
    if let Ok(entries) = fs::read_dir(dir) {
        for entry in entries
            .flatten()
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        {
            remove_empty(&entry.path());
        }
    }
    drop(fs::remove_dir(dir));
}
