//! Decides where a guest's own cgroup v2 directory is, and uses its files.
//!
//! To freeze and to kill it needs no controller, only the core files `cgroup.freeze` and `cgroup.kill`.
//! Never touches a directory that it did not make, and never trusts one that
//! does not list the guest's process.

use std::fs;
use std::hash::Hasher;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::getuid;

use crate::process::Process;
use crate::{CgroupPlacement, VmSpec, memory};

/// The directories of one guest: its own of v2, and the one that counts kills for want of memory, which may be
/// the same.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    pub(crate) own: Option<PathBuf>,
    pub(crate) memory: Option<PathBuf>,
    /// What could not be had, a sentence each.
    pub(crate) weaknesses: Vec<String>,
}

impl Groups {
    /// Makes what can be made.
    pub(crate) fn make(spec: &VmSpec) -> Self {
        let mut groups = Self::default();
        match create(spec) {
            Ok(own) => groups.own = own,
            Err(reason) => groups.weaknesses.push(format!(
                "no cgroup for guests ({reason}); they are frozen by signals"
            )),
        }
        match memory::create(groups.own.as_deref(), spec) {
            Ok(memory) => groups.memory = memory,
            Err(reason) => groups.say_uncounted(&reason),
        }
        groups
    }

    fn say_uncounted(&mut self, reason: &str) {
        self.weaknesses.push(format!(
            "no memory cgroup for guests ({reason}); one that the kernel kills for want of memory is called crashed"
        ));
    }

    /// The files by which a process enters.
    pub(crate) fn entrances(&self) -> Vec<PathBuf> {
        let beside = self
            .memory
            .iter()
            .filter(|dir| self.own.as_ref() != Some(*dir));
        let all = self.own.iter().chain(beside);
        all.map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// Gives up the directories that the process is not in.
    pub(crate) fn keep_what_lists(&mut self, pid: i32) {
        if let Some(dir) = self.own.take_if(|dir| !lists(dir, pid)) {
            self.weaknesses.push(format!(
                "{} refuses processes; guests are frozen by signals",
                above(&dir)
            ));
            remove(&dir);
        }
        if let Some(dir) = self.memory.take_if(|dir| !lists(dir, pid)) {
            self.say_uncounted(&format!("{} refuses processes", above(&dir)));
            memory::remove(&dir);
        }
    }

    pub(crate) fn remove(&self) {
        for dir in self.memory.iter().chain(&self.own) {
            remove(dir);
        }
    }
}

/// The directory that guests are below: what is weak there is so for all of them.
fn above(dir: &Path) -> std::path::Display<'_> {
    dir.parent().unwrap_or(dir).display()
}

/// Makes the directory for a guest, or says why there is none.
fn create(spec: &VmSpec) -> Result<Option<PathBuf>, String> {
    let parent = match &spec.cgroup {
        CgroupPlacement::Off => return Ok(None),
        CgroupPlacement::Under(parent) => parent.clone(),
        CgroupPlacement::Auto => {
            let mount = mount_point().ok_or("no cgroup v2 file system is mounted")?;
            mount.join(auto_name())
        }
    };
    let dir = parent.join(dir_name(spec));
    // What an earlier guest of this name left, unless the kernel still needs it.
    let _ = fs::remove_dir(&dir);
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

/// The directory that all guests of this user are in where no other was given.
pub(crate) fn auto_name() -> String {
    format!("mainstay-{}", getuid())
}

/// Several hosts of a laboratory share a mount: the run directory tells them apart.
pub(crate) fn dir_name(spec: &VmSpec) -> String {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(spec.run_dir.as_os_str().as_encoded_bytes());
    format!("{:016x}-{}-{}", hasher.finish(), spec.vm, spec.generation)
}

pub(crate) fn mount_point() -> Option<PathBuf> {
    mount_of(|kind, _| kind == "cgroup2")
}

/// The first mount whose kind of file system and options are the wanted ones.
pub(crate) fn mount_of(wanted: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = filesystem.split(' ');
        let (kind, options) = (fields.next()?, fields.nth(1)?);
        let at = mount.split(' ').nth(4)?;
        wanted(kind, options).then(|| PathBuf::from(at))
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
