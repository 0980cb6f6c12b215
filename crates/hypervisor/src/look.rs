//! The guests of a host as somebody sees them who neither drives nor adopts them: an onlooker that judges a
//! run, or a person. Reads records and `/proc`, changes nothing.

use crate::cgroup;
use crate::freeze::{all_threads_gone, is_held, is_killed, is_stopped};
use crate::launch;
use crate::process::Process;
use std::path::Path;

/// A guest's process, by its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The VM's id.
    pub vm: String,
    /// The lock generation under which it was started.
    pub generation: u64,
    /// The driver that started it.
    pub driver: String,
    /// Its process.
    pub process: Process,
    /// It was let run; false is certain: it has executed no guest instruction.
    pub resumed: bool,
}

impl Seen {
    /// Whether a thread of it lives, a frozen one too.
    #[must_use]
    pub fn exists(&self) -> bool {
        !all_threads_gone(self.process.pid, self.process.start_time)
    }

    /// Whether it exists and was stopped: no thread of it executes, nor will when its storage answers.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        let told = || cgroup::own(&self.process).is_some_and(cgroup::is_told_to_freeze);
        self.exists() && (is_stopped(&self.process) || (told() && is_held(&self.process)))
    }
}

impl Seen {
    /// Whether a thread of it may execute a guest's instruction: it exists, was let run, and is neither frozen nor
    /// killed.
    #[must_use]
    pub fn executes(&self) -> bool {
        self.exists() && self.resumed && !self.is_frozen() && !is_killed(&self.process)
    }
}

/// The guests of a run directory, those gone since too as long as their record lies there.
#[must_use]
pub fn look(run_dir: &Path) -> Vec<Seen> {
    let records = launch::recorded(run_dir).into_iter();
    records
        .map(|record| Seen {
            resumed: record.is_resumed(),
            vm: record.vm,
            generation: record.generation,
            driver: record.driver,
            process: record.process,
        })
        .collect()
}
