//! Makes a guest's process and the record by which a later agent finds it.
//!
//! ```text
//! run_dir/VM.process.json  who it is (Record)       VM.exit  how it ended (Marker)
//!         VM.stderr VM.serial  logs                 VM.ctl VM.qmp VM.events  sockets
//! ```
//!
//! The guest leads a session of its own: otherwise the death of the agent would
//! make its process group an orphaned one, and the kernel sends SIGHUP and
//! SIGCONT to such a group when a member is stopped, which would thaw or kill a
//! frozen guest. Besides the record, its environment names it, so that a guest
//! started by an agent that died before writing the record is found too.
//!
//! Never asks for a parent death signal, never leaves the guest a descriptor of
//! the agent.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::setsid;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

mod scan;

use crate::cgroup::Groups;
use crate::process::Process;
use crate::{ExitCause, StartError, VmSpec, cgroup, launcher, memory, oom};

const RECORD_SUFFIX: &str = ".process.json";
const RESUMED_SUFFIX: &str = ".resumed";
const ENV_DRIVER: &str = "MAINSTAY_GUEST_DRIVER";
const ENV_VM: &str = "MAINSTAY_GUEST_VM";
const ENV_GENERATION: &str = "MAINSTAY_GUEST_GENERATION";
const ENV_RUN_DIR: &str = "MAINSTAY_GUEST_RUN_DIR";
const ENV_CGROUP: &str = "MAINSTAY_GUEST_CGROUP";
const ENV_MEMORY: &str = "MAINSTAY_GUEST_MEMORY_CGROUP";

/// Who a guest's process is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) driver: String,
    pub(crate) vm: String,
    pub(crate) generation: u64,
    pub(crate) boot_id: String,
    #[serde(skip)]
    pub(crate) run_dir: PathBuf,
    #[serde(flatten)]
    pub(crate) process: Process,
    /// The cgroup that counts when the kernel kills it for want of memory; may be the process's own.
    #[serde(default)]
    pub(crate) memory: Option<PathBuf>,
}

impl Record {
    /// A file of this guest in its run directory.
    pub(crate) fn file(&self, suffix: &str) -> PathBuf {
        self.run_dir.join(format!("{}{suffix}", self.vm))
    }

    pub(crate) fn marker(&self) -> Option<Marker> {
        let marker: Marker = read_json(&self.file(".exit"))?;
        (marker.pid == self.process.pid && marker.generation == self.generation).then_some(marker)
    }

    pub(crate) fn write_marker(&self, cause: &ExitCause) -> io::Result<()> {
        let (crashed, kind) = match cause {
            ExitCause::Clean => (None, MarkerKind::Plain),
            ExitCause::Crashed { detail } => (Some(detail.clone()), MarkerKind::Plain),
            ExitCause::Killed => (Some("killed".to_owned()), MarkerKind::Plain),
            ExitCause::Panicked => (Some("the guest panicked".to_owned()), MarkerKind::Panicked),
            ExitCause::OutOfMemory => (
                Some("killed for want of memory".to_owned()),
                MarkerKind::OutOfMemory,
            ),
        };
        let marker = Marker {
            pid: self.process.pid,
            generation: self.generation,
            crashed,
            kind,
        };
        write_json(&self.file(".exit"), &marker)
    }

    /// Whether the kernel has killed it for want of memory, as far as its cgroup shows.
    pub(crate) fn is_oom_killed(&self) -> bool {
        let kills = self.memory.as_deref().and_then(memory::oom_kills);
        kills.is_some_and(|kills| kills > 0)
    }

    /// Removes the cgroups of a guest that is gone.
    pub(crate) fn remove_cgroups(&self) {
        if let Some(dir) = &self.memory {
            memory::remove(dir);
        }
        if let Some(dir) = &self.process.cgroup {
            cgroup::remove(dir);
        }
    }

    /// Notes that the guest is about to be let run: written before the request is sent.
    pub(crate) fn mark_resumed(&self) -> io::Result<()> {
        write_json(&self.file(RESUMED_SUFFIX), &self.process)
    }

    /// Whether it may have executed an instruction; false is certain. Where the record itself is
    /// missing, the note may be too.
    pub(crate) fn is_resumed(&self) -> bool {
        let noted = read_json::<Process>(&self.file(RESUMED_SUFFIX));
        let same =
            |p: Process| (p.pid, p.start_time) == (self.process.pid, self.process.start_time);
        noted.is_some_and(same) || !self.file(RECORD_SUFFIX).exists()
    }

    pub(crate) fn remove_files(&self) {
        for suffix in [
            ".exit",
            RESUMED_SUFFIX,
            ".ctl",
            ".qmp",
            ".events",
            RECORD_SUFFIX,
        ] {
            let _ = fs::remove_file(self.file(suffix));
        }
        self.remove_cgroups();
    }
}

/// How a guest ended, written while its process still exists.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Marker {
    pub(crate) pid: i32,
    pub(crate) generation: u64,
    /// `None`: the guest shut itself down.
    crashed: Option<String>,
    /// What kind of end that was; earlier versions wrote and knew none.
    #[serde(default)]
    kind: MarkerKind,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum MarkerKind {
    /// Clean, or a crash.
    #[default]
    Plain,
    Panicked,
    OutOfMemory,
}

impl Marker {
    pub(crate) fn cause(self) -> ExitCause {
        match (self.kind, self.crashed) {
            (MarkerKind::Panicked, _) => ExitCause::Panicked,
            (MarkerKind::OutOfMemory, _) => ExitCause::OutOfMemory,
            (MarkerKind::Plain, None) => ExitCause::Clean,
            (MarkerKind::Plain, Some(detail)) => ExitCause::Crashed { detail },
        }
    }
}

/// A process just made.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) child: Child,
    pub(crate) record: Record,
    /// What is weaker than asked for, a sentence each.
    pub(crate) weaknesses: Vec<String>,
}

/// Starts `command` as the guest of `spec`, in the run directory and with its input and output there.
pub(crate) fn launch(
    driver: &str,
    spec: &VmSpec,
    mut command: Command,
) -> Result<Launched, StartError> {
    let host = |action: &str| {
        let action = action.to_owned();
        move |source| StartError::Host { action, source }
    };
    let mut groups = Groups::make(spec);
    let path = |dir: &Option<PathBuf>| dir.clone().unwrap_or_default();
    command
        .current_dir(&spec.run_dir)
        .env("LC_ALL", "C")
        .env(ENV_DRIVER, driver)
        .env(ENV_VM, &spec.vm)
        .env(ENV_GENERATION, spec.generation.to_string())
        .env(ENV_RUN_DIR, &spec.run_dir)
        .env(ENV_CGROUP, path(&groups.own))
        .env(ENV_MEMORY, path(&groups.memory))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let log = spec.run_dir.join(format!("{}.stderr", spec.vm));
    let entrances = groups.entrances();
    let mut child = launcher::run(move || Ok(spawn(command, &log, &entrances)))
        .map_err(host("start a thread for the guest"))
        .flatten()
        .inspect_err(|_| groups.remove())?;
    let pid = child.id().cast_signed();
    // The agent may be protected from the OOM killer; its guests have a score of their own.
    groups
        .weaknesses
        .extend(oom::of_guest(pid, spec.oom_score_adj));
    groups.keep_what_lists(pid);
    let recorded = Process::of_pid(pid).and_then(|process| {
        let record = Record {
            driver: driver.to_owned(),
            vm: spec.vm.clone(),
            generation: spec.generation,
            boot_id: boot_id()?,
            run_dir: spec.run_dir.clone(),
            process: Process {
                cgroup: groups.own.clone(),
                ..process
            },
            memory: groups.memory.clone(),
        };
        write_json(&record.file(RECORD_SUFFIX), &record)?;
        Ok(record)
    });
    match recorded {
        Ok(record) => Ok(Launched {
            child,
            record,
            weaknesses: groups.weaknesses,
        }),
        Err(source) => {
            // It executes nothing yet, and is our unreaped child.
            let _ = child.kill();
            let _ = child.wait();
            groups.remove();
            Err(host("record the guest's process")(source))
        }
    }
}

/// Starts the process, where nothing is open that it would have to close.
fn spawn(mut command: Command, log: &Path, entrances: &[PathBuf]) -> Result<Child, StartError> {
    let failed = |action: String| move |source| StartError::Host { action, source };
    let log = File::create(log).map_err(failed("write the guest's log".to_owned()))?;
    command.stderr(log);
    let open = |procs: &PathBuf| File::options().write(true).open(procs);
    let doors: Vec<File> = entrances.iter().flat_map(open).collect();
    let in_child = move || {
        setsid()?;
        // A core file of guest memory would fill the run directory.
        let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
        for procs in &doors {
            // Whether it worked is seen by the parent.
            let _ = nix::unistd::write(procs, b"0");
        }
        Ok(())
    };
    #[expect(unsafe_code, reason = "the guest needs a session of its own")]
    // SAFETY: between fork and exec the closure only makes system calls
    // (setsid, setrlimit, write); it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(in_child);
    }
    let start = format!("start {}", command.get_program().display());
    command.spawn().map_err(failed(start))
}

/// Checks what every driver needs, makes the run directory and its path absolute.
pub(crate) fn check(spec: &VmSpec) -> Result<VmSpec, StartError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !(1..=64).contains(&spec.vm.len())
        || !spec.vm.chars().all(plain)
        || !spec.vm.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        let expected = "1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit";
        return Err(StartError::Invalid {
            what: "the VM's id",
            value: spec.vm.clone(),
            expected,
        });
    }
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|source| StartError::Host {
            action: "find the current directory".to_owned(),
            source,
        })
    };
    let spec = VmSpec {
        image: absolute(&spec.image)?,
        run_dir: absolute(&spec.run_dir)?,
        ..spec.clone()
    };
    fs::create_dir_all(&spec.run_dir).map_err(|source| StartError::Host {
        action: format!("make {}", spec.run_dir.display()),
        source,
    })?;
    match fs::metadata(&spec.image) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(StartError::ImageMissing { image: spec.image })
        }
        Err(source) => Err(StartError::Host {
            action: format!("look at {}", spec.image.display()),
            source,
        }),
        Ok(_) => Ok(spec),
    }
}

/// The last thing a guest's process said.
pub(crate) fn last_words(record: &Record) -> String {
    let log = fs::read(record.file(".stderr")).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let words: Vec<&str> = log
        .lines()
        .rev()
        .filter(|line| !line.trim().is_empty())
        .take(2)
        .collect();
    words.into_iter().rev().collect::<Vec<_>>().join("; ")
}

/// The guests of a run directory that this driver started since the host's boot, gone or not.
pub(crate) fn records(driver: &str, run_dir: &Path) -> Vec<Record> {
    let Ok(run_dir) = std::path::absolute(run_dir) else {
        return Vec::new();
    };
    let Ok(boot_id) = boot_id() else {
        return Vec::new();
    };
    let mut records: Vec<Record> = Vec::new();
    for record in recorded(&run_dir) {
        if record.driver != driver {
            continue;
        }
        if record.boot_id == boot_id {
            records.push(record);
        } else {
            record.remove_files();
        }
    }
    for found in scan::unrecorded(driver, &run_dir, &boot_id) {
        let same = |record: &Record| record.vm == found.vm;
        match records.iter_mut().find(|record| same(record)) {
            Some(record) if record.process.pid == found.process.pid => {}
            // The record is of a guest before this one.
            Some(record) => *record = found,
            None => records.push(found),
        }
    }
    records
}

/// The records that lie in a run directory, whoever wrote them.
pub(crate) fn recorded(run_dir: &Path) -> Vec<Record> {
    let entries = fs::read_dir(run_dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(RECORD_SUFFIX))
        .filter_map(|entry| {
            Some(Record {
                run_dir: run_dir.to_owned(),
                ..read_json::<Record>(&entry.path())?
            })
        })
        .collect()
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Replaces the file as a whole; it need not survive the host.
fn write_json<T: Serialize>(path: &Path, content: &T) -> io::Result<()> {
    let mut temporary = OsString::from(path);
    temporary.push(".new");
    let mut file = File::create(&temporary)?;
    serde_json::to_writer(&mut file, content)?;
    file.flush()?;
    fs::rename(&temporary, path)
}
