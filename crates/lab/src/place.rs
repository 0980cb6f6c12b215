//! The well-known place where each run of the demo or the lab is noted, so that `mainstay status` finds it and
//! the next run can clear what a dead one left.
//!
//! Invariant: a directory is removed only when it holds the mark of the run that is cleared, a process
//! is ended only when its environment names that run, or when it is in the cgroup that does.

use crate::fail::{Context, Failure, Result};
use crate::{cgroup, procs};
use nix::unistd::{Pid, Uid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// File in a run's directory that holds the run's id.
pub(crate) const MARK: &str = "mainstay-run";

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `mainstay demo`.
    Demo,
    /// `mainstay lab`.
    Lab,
}

impl Kind {
    /// What the names of its directories and cgroups begin with.
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Demo => "mainstay-demo",
            Self::Lab => "mainstay-lab",
        }
    }
}

/// What is noted about a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Note {
    /// The run's id.
    pub run: String,
    /// The process that leads it.
    pub pid: i32,
    /// When that process started, in the kernel's ticks: tells it from a later one with its number.
    pub start: u64,
    /// The process namespace in which that number is the process's; see [`pid_namespace`].
    #[serde(default)]
    pub pid_namespace: Option<PathBuf>,
    /// Everything that the run wrote.
    pub dir: PathBuf,
    /// What it keeps in memory, if that is a directory of its own.
    #[serde(default)]
    pub memory: Option<PathBuf>,
    /// Control sockets of the hosts.
    pub hosts: BTreeMap<String, PathBuf>,
    /// Control socket of the run, if it has one.
    pub socket: PathBuf,
    /// The run's own cgroup, if it could make one.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
}

impl Note {
    /// Whether the process that wrote this still runs, or may: of one in another container that shares these
    /// notes nothing is known here.
    pub fn alive(&self) -> bool {
        let elsewhere = self.pid_namespace.is_some() && self.pid_namespace != pid_namespace();
        elsewhere || procs::may_live(Pid::from_raw(self.pid), self.start)
    }
}

/// The process namespace of this process, as the kernel names it.
#[must_use]
pub fn pid_namespace() -> Option<PathBuf> {
    fs::read_link("/proc/self/ns/pid").ok()
}

/// The directory of notes of one user.
#[derive(Debug, Clone)]
pub struct Place {
    dir: PathBuf,
    kind: Kind,
}

impl Place {
    /// The calling user's place. To be asked for before any user namespace is entered.
    pub fn of_user(kind: Kind) -> Self {
        let base = std::env::var_os("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|p| p.is_absolute() && p.is_dir())
            .unwrap_or_else(std::env::temp_dir);
        Self::in_dir(&base, Uid::effective(), kind)
    }

    fn in_dir(base: &Path, uid: Uid, kind: Kind) -> Self {
        Self {
            dir: base.join(format!("{}-{uid}", kind.prefix())),
            kind,
        }
    }

    fn make(&self) -> Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .context("cannot make the directory that notes runs")
            .map_err(|e| {
                e.at(self.dir.display()).remedy(
                    "make its parent writable, or set XDG_RUNTIME_DIR to a directory of yours",
                )
            })
    }

    /// Another user may have made a directory of this name in a shared temp dir: it is not trusted.
    fn trusted(&self) -> bool {
        fs::symlink_metadata(&self.dir).is_ok_and(|m| {
            m.is_dir()
                && m.uid() == Uid::effective().as_raw()
                && m.permissions().mode() & 0o022 == 0
        })
    }

    fn file(&self, run: &str) -> PathBuf {
        self.dir.join(format!("{run}.json"))
    }

    /// Notes a run.
    ///
    /// # Errors
    /// When the directory cannot be made or written, or belongs to somebody else.
    pub fn write(&self, note: &Note) -> Result<()> {
        self.make()?;
        if !self.trusted() {
            return Err(
                Failure::new("the directory that notes runs belongs to somebody else")
                    .at(self.dir.display())
                    .remedy("have it removed, or set XDG_RUNTIME_DIR to a directory of yours"),
            );
        }
        let text = serde_json::to_string(note).context("cannot write the note of this run")?;
        let place = || self.dir.display().to_string();
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)
            .context("cannot note this run")
            .map_err(|e| e.at(place()))?;
        file.write_all(text.as_bytes())
            .context("cannot note this run")
            .map_err(|e| e.at(place()))?;
        file.persist(self.file(&note.run))
            .context("cannot note this run")
            .map_err(|e| e.at(place()))?;
        Ok(())
    }

    /// Takes a note away, and the directory with the last one.
    pub fn forget(&self, run: &str) {
        // What is left is a note of a dead run, which the next run clears.
        drop(fs::remove_file(self.file(run)));
        drop(fs::remove_dir(&self.dir));
    }

    /// All notes, newest first.
    pub fn notes(&self) -> Vec<Note> {
        if !self.trusted() {
            return Vec::new();
        }
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return Vec::new();
        };
        let mut notes: Vec<Note> = entries
            .filter_map(|entry| entry.ok())
            .filter(|entry| entry.path().extension().is_some_and(|e| e == "json"))
            .filter_map(|entry| serde_json::from_str(&fs::read_to_string(entry.path()).ok()?).ok())
            .collect();
        notes.sort_by_key(|n: &Note| std::cmp::Reverse(n.start));
        notes
    }

    /// The newest run that still goes on.
    pub fn running(&self) -> Option<Note> {
        self.notes().into_iter().find(Note::alive)
    }

    /// Ends what dead runs left and removes their files; says what was found of each. The note of a run of which
    /// something stays is kept, so that the next one tries again.
    pub fn clear_leftovers(&self) -> Vec<Cleared> {
        let dead = self.notes().into_iter().filter(|n| !n.alive());
        let dead = dead.filter(|n| sound_run_id(&n.run));
        dead.map(|note| {
            let cleared = self.clear(&note);
            if cleared.left.is_empty() {
                self.forget(&note.run);
            }
            cleared
        })
        .collect()
    }

    fn clear(&self, note: &Note) -> Cleared {
        let mut cleared = Cleared {
            run: note.run.clone(),
            ..Cleared::default()
        };
        let cgroup = note.cgroup.as_deref();
        let cgroup = cgroup.filter(|dir| cgroup::is_of(dir, self.kind, &note.run));
        let marker = procs::Marker::run(&note.run);
        cleared.processes = procs::marked(&marker).len();
        // All at once, and those as well that wrote a title over their environment.
        if let Some(dir) = cgroup {
            cgroup::kill_tree(dir);
        }
        let killed = procs::kill_marked(&marker);
        if killed.left > 0 {
            let what = format!("{} processes that outlive SIGKILL", killed.left);
            cleared.left.push(what);
        }
        if let Some(dir) = cgroup {
            cgroup::remove_tree(dir);
            cleared.found(dir);
        }
        for dir in [Some(&note.dir), note.memory.as_ref()]
            .into_iter()
            .flatten()
        {
            let existed = dir.exists();
            remove_run_dir(dir, &note.run);
            // Without a mark it is a run's that died as it made it, or somebody else's; an empty one of the
            // run's own name has nothing that could be lost.
            if dir.file_name().is_some_and(|n| *n == *self.name(&note.run)) {
                drop(fs::remove_dir(dir));
            }
            if existed && (!dir.exists() || has_mark(dir, &note.run)) {
                cleared.found(dir);
            }
        }
        cleared
    }

    /// What a run's directory is called.
    fn name(&self, run: &str) -> String {
        format!("{}-{run}", self.kind.prefix())
    }
}

/// What was found of a dead run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Cleared {
    /// The run's id.
    pub run: String,
    /// Processes that were ended.
    pub processes: usize,
    /// Directories and cgroups that were removed.
    pub removed: Vec<PathBuf>,
    /// What is still there.
    pub left: Vec<String>,
}

impl Cleared {
    /// There was something, and it was removed, or could not be.
    fn found(&mut self, dir: &Path) {
        if dir.exists() {
            self.left.push(dir.display().to_string());
        } else {
            self.removed.push(dir.to_owned());
        }
    }
}

impl std::fmt::Display for Cleared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} processes ended", self.run, self.processes)?;
        for dir in &self.removed {
            write!(f, ", {} removed", dir.display())?;
        }
        for what in &self.left {
            write!(f, ", STILL THERE: {what}")?;
        }
        Ok(())
    }
}

/// Run ids are hexadecimal; anything else did not come from here.
fn sound_run_id(run: &str) -> bool {
    run.len() == 8 && run.chars().all(|c| c.is_ascii_hexdigit())
}

/// Removes a run's directory if it has the run's mark.
pub fn remove_run_dir(dir: &Path, run: &str) {
    if has_mark(dir, run) {
        // A file that cannot be removed is reported by who looks for it; the rest goes.
        drop(fs::remove_dir_all(dir));
    }
}

fn has_mark(dir: &Path, run: &str) -> bool {
    fs::read_to_string(dir.join(MARK)).is_ok_and(|mark| mark.trim() == run)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(run: &str, dir: &Path, pid: i32, start: u64) -> Note {
        Note {
            run: run.into(),
            pid,
            start,
            pid_namespace: pid_namespace(),
            dir: dir.into(),
            hosts: BTreeMap::new(),
            socket: dir.join("demo.sock"),
            cgroup: None,
            memory: None,
        }
    }

    #[test]
    fn leftovers_of_dead_runs_go_and_nothing_else_does() {
        let base = tempfile::tempdir().expect("dir");
        let place = Place::in_dir(base.path(), Uid::effective(), Kind::Demo);
        let me = Pid::this();
        let dead = base.path().join("dead");
        let unmarked = base.path().join("unmarked");
        let alive = base.path().join("alive");
        for dir in [&dead, &unmarked, &alive] {
            fs::create_dir(dir).expect("dir");
        }
        fs::write(dead.join(MARK), "0000dead\n").expect("mark");
        fs::write(alive.join(MARK), "000a11fe").expect("mark");
        let start = procs::start_time(me).expect("start");
        place
            .write(&note("0000dead", &dead, me.as_raw(), start + 1))
            .expect("note");
        place
            .write(&note("00000bad", &unmarked, me.as_raw(), start + 1))
            .expect("note");
        place
            .write(&note("000a11fe", &alive, me.as_raw(), start))
            .expect("note");

        let half_made = base.path().join("mainstay-demo-00000ba1");
        fs::create_dir(&half_made).expect("dir");
        place
            .write(&note("00000ba1", &half_made, me.as_raw(), start + 1))
            .expect("note");
        let mut cleared = place.clear_leftovers();
        cleared.sort_by(|a, b| a.run.cmp(&b.run));
        assert_eq!(cleared.len(), 3);
        assert_eq!(
            (cleared[0].run.as_str(), &cleared[0].removed),
            ("00000ba1", &vec![half_made.clone()])
        );
        assert!(!half_made.exists());
        assert_eq!(cleared[1].run, "00000bad");
        assert_eq!(cleared[1].removed, Vec::<PathBuf>::new());
        assert_eq!(
            (cleared[2].run.as_str(), &cleared[2].removed),
            ("0000dead", &vec![dead.clone()])
        );
        assert!(
            cleared
                .iter()
                .all(|c| c.left.is_empty() && c.processes == 0)
        );
        assert!(!dead.exists());
        assert!(
            unmarked.exists(),
            "a directory without the mark is not ours"
        );
        assert!(alive.exists());
        assert_eq!(place.running().expect("running").run, "000a11fe");
        place.forget("000a11fe");
        assert!(place.running().is_none());
        assert!(!place.dir.exists());
    }

    #[test]
    fn of_a_run_in_another_process_namespace_nothing_is_known() {
        let me = Pid::this();
        let dead = procs::start_time(me).expect("start") + 1;
        let mut note = note("0000dead", Path::new("/nowhere"), me.as_raw(), dead);
        assert!(!note.alive());
        note.pid_namespace = Some("pid:[1]".into());
        assert!(note.alive());
        note.pid_namespace = None;
        assert!(!note.alive());
    }

    #[test]
    fn a_directory_that_others_can_write_is_not_trusted() {
        let base = tempfile::tempdir().expect("dir");
        let place = Place::in_dir(base.path(), Uid::effective(), Kind::Demo);
        place
            .write(&note("0000dead", base.path(), 1, 0))
            .expect("note");
        fs::set_permissions(&place.dir, fs::Permissions::from_mode(0o777)).expect("mode");
        assert!(place.notes().is_empty());
        assert!(place.write(&note("0000dead", base.path(), 1, 0)).is_err());
    }
}
