//! The note by which the next lab finds what is left of a dead one.

use crate::cgroup::RunCgroup;
use crate::fail::Result;
use crate::place::{self, Kind, Note, Place};
use crate::procs;
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The note of a run: taken away with it, also when the run is not made to its end.
#[derive(Debug)]
pub(crate) struct Noted {
    place: Place,
    run: String,
    /// Something of the run is left, for the next lab to clear.
    pub(crate) stays: bool,
}

impl Noted {
    /// Writes it, before the first thing of the run is made.
    ///
    /// # Errors
    /// When the user's place for notes cannot be written.
    pub(crate) fn write(notes: &Place, run: &str, dir: &Path) -> Result<Self> {
        let pid = Pid::this();
        notes.write(&Note {
            run: run.to_owned(),
            pid: pid.as_raw(),
            start: procs::start_time(pid).unwrap_or_default(),
            pid_namespace: place::pid_namespace(),
            dir: dir.to_owned(),
            memory: None,
            hosts: BTreeMap::new(),
            socket: PathBuf::new(),
            cgroup: RunCgroup::place(Kind::Lab, run),
        })?;
        Ok(Self {
            place: notes.clone(),
            run: run.to_owned(),
            stays: false,
        })
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if !self.stays {
            self.place.forget(&self.run);
        }
    }
}
