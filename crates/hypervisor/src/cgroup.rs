//! Decides where a guest's own cgroup v2 directory is, and uses its files.
//!
//! Needs no controller, only the core files `cgroup.freeze` and `cgroup.kill`.
//! Never touches a directory that it did not make, and never trusts one that
//! does not list the guest's process.

use std::fs;
use std::hash::Hasher;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::getuid;

use crate::process::Process;
use crate::{CgroupPlacement, VmSpec};

/// Makes the directory for a guest, or says why there is none.
pub(crate) fn create(spec: &VmSpec) -> Result<Option<PathBuf>, String> {
    let parent = match &spec.cgroup {
        CgroupPlacement::Off => return Ok(None),
        CgroupPlacement::Under(parent) => parent.clone(),
        CgroupPlacement::Auto => {
            let mount = mount_point().ok_or("no cgroup v2 file system is mounted")?;
            mount.join(format!("mainstay-{}", getuid()))
        }
    };
    let dir = parent.join(dir_name(&spec.run_dir, &spec.vm, spec.generation));
    fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    // A directory of a file system that is not cgroup v2 has no such file.
    if !dir.join("cgroup.freeze").exists() {
        let _ = fs::remove_dir(&dir);
        return Err(format!("{} has no cgroup.freeze", parent.display()));
    }
    // A guest of this name that was killed frozen leaves its directory so.
    set_frozen(&dir, false).map_err(|error| format!("{}: {error}", dir.display()))?;
    Ok(Some(dir))
}

/// Several hosts of a laboratory share a mount: the run directory tells them apart.
fn dir_name(run_dir: &Path, vm: &str, generation: u64) -> String {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(run_dir.as_os_str().as_encoded_bytes());
    format!("{:016x}-{vm}-{generation}", hasher.finish())
}

fn mount_point() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        if filesystem.split(' ').next() != Some("cgroup2") {
            return None;
        }
        mount.split(' ').nth(4).map(PathBuf::from)
    })
}

/// The process's own cgroup, if it is in it.
pub(crate) fn own(process: &Process) -> Option<&Path> {
    let dir = process.cgroup.as_deref()?;
    lists(dir, process.pid).then_some(dir)
}

/// Whether the directory lists the process.
pub(crate) fn lists(dir: &Path, pid: i32) -> bool {
    fs::read_to_string(dir.join("cgroup.procs"))
        .is_ok_and(|procs| procs.lines().any(|line| line.parse() == Ok(pid)))
}

pub(crate) fn set_frozen(dir: &Path, frozen: bool) -> io::Result<()> {
    fs::write(dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })
}

pub(crate) fn is_frozen(dir: &Path) -> bool {
    fs::read_to_string(dir.join("cgroup.events"))
        .is_ok_and(|events| events.lines().any(|line| line == "frozen 1"))
}

/// Somebody froze it; threads that wait for storage follow when that answers.
pub(crate) fn is_told_to_freeze(dir: &Path) -> bool {
    fs::read_to_string(dir.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
}

pub(crate) fn kill(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("cgroup.kill"), "1")
}

/// Removes the directory of a guest that is gone.
pub(crate) fn remove(dir: &Path) {
    // The kernel refuses while a process is in it, which is right.
    let _ = fs::remove_dir(dir);
}
