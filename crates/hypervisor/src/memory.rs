//! Where the kernel counts that it killed a guest for want of memory: a cgroup of the guest's own that has
//! the memory controller.
//!
//! With cgroup v2 that is the guest's own directory, once its parent hands the controller down. Where the
//! controller belongs to v1, it is a directory at the same place of that hierarchy. The kernel adds one to
//! `oom_kill` of the cgroup of the process that it kills, whosever limit was reached, the host's own too.
//!
//! Never sets a limit, and never takes over the count of another guest.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cgroup;
use crate::{CgroupPlacement, VmSpec};

/// Files that hold `oom_kill N`: of v2, of v1.
const COUNTS: [&str; 2] = ["memory.events", "memory.oom_control"];

/// Makes the directory for a guest whose own v2 directory is `own`; `None` where no cgroups are wanted.
pub(crate) fn create(own: Option<&Path>, spec: &VmSpec) -> Result<Option<PathBuf>, String> {
    let parent = match &spec.cgroup {
        CgroupPlacement::Off => return Ok(None),
        CgroupPlacement::Under(parent) => twin(parent),
        CgroupPlacement::Auto => v1_mount().map(|mount| mount.join(cgroup::auto_name())),
    };
    let missing = match own {
        None => "there is no cgroup v2 directory".to_owned(),
        Some(own) => match hand_down(own) {
            Ok(()) => return fresh(own).map(|()| Some(own.to_owned())),
            Err(reason) => reason,
        },
    };
    let parent = parent.ok_or(missing)?;
    let dir = parent.join(cgroup::dir_name(spec));
    // The same words for all guests: they are a weakness of the host.
    make(&dir).map_err(|reason| format!("below {}: {reason}", parent.display()))?;
    Ok(Some(dir))
}

/// The place in the memory controller's v1 hierarchy that corresponds to a directory of cgroup v2; `None` where
/// that controller is not v1's.
#[must_use]
pub fn memory_cgroup_beside(dir: &Path) -> Option<PathBuf> {
    twin(dir)
}

fn twin(dir: &Path) -> Option<PathBuf> {
    let below = dir.strip_prefix(cgroup::mount_point()?).ok()?.to_owned();
    Some(v1_mount()?.join(below))
}

fn v1_mount() -> Option<PathBuf> {
    cgroup::mount_of(|kind, options| {
        kind == "cgroup" && options.split(',').any(|option| option == "memory")
    })
}

/// Asks the parent of a v2 directory to hand the memory controller down, if it does not do so already.
fn hand_down(own: &Path) -> Result<(), String> {
    let has_count = || own.join(COUNTS[0]).exists();
    if has_count() {
        return Ok(());
    }
    let parent = own.parent().unwrap_or(own);
    let control = parent.join("cgroup.subtree_control");
    match fs::write(&control, "+memory") {
        Ok(()) if has_count() => Ok(()),
        Ok(()) => Err(format!(
            "there is no {} below {}",
            COUNTS[0],
            parent.display()
        )),
        Err(error) => Err(format!("+memory into {}: {error}", control.display())),
    }
}

/// Makes a v1 directory. What an earlier guest of this name left, with its count, goes first.
fn make(dir: &Path) -> Result<(), String> {
    remove(dir);
    fs::create_dir_all(dir).map_err(|error| error.to_string())?;
    fresh(dir).inspect_err(|_| remove(dir))
}

/// A directory that counts, and has counted nothing yet.
fn fresh(dir: &Path) -> Result<(), String> {
    match oom_kills(dir) {
        Some(0) => Ok(()),
        Some(_) => Err("the directory of an earlier guest cannot be removed".to_owned()),
        None => Err("kills are not counted".to_owned()),
    }
}

/// How many processes of this cgroup the kernel killed for want of memory; `None` when it cannot be read.
pub(crate) fn oom_kills(dir: &Path) -> Option<u64> {
    COUNTS.iter().find_map(|file| {
        let text = fs::read_to_string(dir.join(file)).ok()?;
        text.lines().find_map(|line| {
            let (name, count) = line.split_once(' ')?;
            (name == "oom_kill").then(|| count.trim().parse().ok())?
        })
    })
}

/// Removes the directory of a guest that is gone; the kernel refuses while a process is in it.
pub(crate) fn remove(dir: &Path) {
    let _ = fs::remove_dir(dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_read_from_either_hierarchy() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(oom_kills(dir.path()), None);
        fs::write(
            dir.path().join("memory.oom_control"),
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        )
        .unwrap();
        assert_eq!(oom_kills(dir.path()), Some(2));
        fs::write(
            dir.path().join("memory.events"),
            "low 0\nhigh 0\nmax 9\noom 4\noom_kill 1\noom_group_kill 3\n",
        )
        .unwrap();
        assert_eq!(oom_kills(dir.path()), Some(1), "of v2 where there is one");
        fs::write(dir.path().join("memory.events"), "oom 4\n").unwrap();
        fs::write(dir.path().join("memory.oom_control"), "under_oom 0\n").unwrap();
        assert_eq!(oom_kills(dir.path()), None, "old kernels do not count");
    }

    #[test]
    fn the_controller_is_handed_down_only_where_that_shows() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("guest");
        fs::create_dir(&own).unwrap();
        let refused = hand_down(&own).unwrap_err();
        assert!(refused.contains("memory.events"), "{refused}");
        fs::write(own.join("memory.events"), "oom_kill 0\n").unwrap();
        assert_eq!(hand_down(&own), Ok(()));
        assert_eq!(fresh(&own), Ok(()));
        fs::write(own.join("memory.events"), "oom_kill 1\n").unwrap();
        assert!(fresh(&own).is_err(), "the kill of another guest");
    }
}
