//! Agent and guard as processes: locks, process id files, and whether the other one lives.

use mainstay_hypervisor::{Process, freeze};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Which of the two processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    Agent,
    Guard,
}

impl Role {
    /// The subcommand that runs it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Guard => "guard",
        }
    }
}

/// Why this process may not be the host's agent or guard.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TwinError {
    /// One runs.
    #[error("{} runs already for this host (process {}, {} is locked); stop it first, or give this one another run_dir", .role, .pid.map_or("unknown".to_owned(), |p| p.to_string()), .path.display())]
    Running {
        /// agent or guard.
        role: &'static str,
        /// Its process.
        pid: Option<i32>,
        /// The lock.
        path: PathBuf,
    },
    /// The one before is not gone.
    #[error(
        "process {pid}, the {role} before this one, is not gone after {waited_s} s (hung in storage?); repair the storage or restart the host"
    )]
    Predecessor {
        /// agent or guard.
        role: &'static str,
        /// Its process.
        pid: i32,
        /// How long was waited, in seconds.
        waited_s: u64,
    },
    /// A file cannot be used.
    #[error("cannot use {}; check that its directory is local and writable", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes a directory that only this user may enter.
pub(crate) fn private_dir(path: &Path) -> Result<(), TwinError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| TwinError::Io {
            path: path.into(),
            source,
        })
}

/// Held for as long as this process is the host's agent or guard.
#[derive(Debug)]
pub(crate) struct Seat {
    _lock: Flock<File>,
    pid_file: PathBuf,
}

/// How long a predecessor may take to be gone.
const PREDECESSOR_LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

impl Seat {
    /// Takes the seat: locks, waits until every thread of the predecessor is gone, signs in.
    pub(crate) fn take(run_dir: &Path, role: Role) -> Result<Self, TwinError> {
        let path = run_dir.join(format!("{}.lock", role.name()));
        let pid_file = run_dir.join(format!("{}.pid", role.name()));
        let io = |path: &Path, source| TwinError::Io {
            path: path.into(),
            source,
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| io(&path, e))?;
        let predecessor = read_pid(&pid_file);
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            if errno == nix::errno::Errno::EWOULDBLOCK {
                let pid = read_pid(&pid_file).map(|p| p.pid);
                TwinError::Running {
                    role: role.name(),
                    pid,
                    path: path.clone(),
                }
            } else {
                io(&path, errno.into())
            }
        })?;
        let me = own_process().map_err(|e| io(&pid_file, e))?;
        if let Some(old) = predecessor.filter(|p| p.pid != me.pid) {
            let start = std::time::Instant::now();
            while !freeze::all_threads_gone(old.pid, old.start_time) {
                if start.elapsed() > PREDECESSOR_LIMIT {
                    let waited_s = PREDECESSOR_LIMIT.as_secs();
                    return Err(TwinError::Predecessor {
                        role: role.name(),
                        pid: old.pid,
                        waited_s,
                    });
                }
                crate::clock::pause(std::time::Duration::from_millis(20));
            }
        }
        std::fs::write(&pid_file, format!("{} {}\n", me.pid, me.start_time))
            .map_err(|e| io(&pid_file, e))?;
        Ok(Self {
            _lock: lock,
            pid_file,
        })
    }

    /// Signs out, so that nobody takes this process for one that died.
    pub(crate) fn leave(&self) {
        let _ = std::fs::remove_file(&self.pid_file);
    }
}

/// The process that signed in there.
pub(crate) fn read_pid(path: &Path) -> Option<Process> {
    let text = std::fs::read_to_string(path).ok()?;
    let (pid, start_time) = text.trim().split_once(' ')?;
    Some(Process {
        pid: pid.parse().ok()?,
        start_time: start_time.parse().ok()?,
        cgroup: None,
    })
}

/// This process.
pub(crate) fn own_process() -> io::Result<Process> {
    let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    Process::of_pid(pid)
}

/// Takes this process out of the OOM killer's sight; false where the right is missing.
pub(crate) fn protect_from_oom() -> bool {
    let taken = own_process()
        .and_then(|me| mainstay_hypervisor::set_oom_score(me.pid, mainstay_hypervisor::PROTECTED));
    if let Err(error) = &taken {
        tracing::warn!(%error, "not protected from the OOM killer");
    }
    taken.is_ok()
}

/// Becomes a process that its starter's end does not touch.
pub(crate) fn detach() {
    // Refused to the leader of a process group, as a shell's job is: that one was started by a person.
    let _ = nix::unistd::setsid();
}

/// Waits longer after each start that did not last, so that a broken configuration burns no processor.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    last: Option<std::time::Instant>,
    failures: u32,
}

impl Backoff {
    /// True when the next start is due; call it only when the other process is gone.
    pub(crate) fn is_due(&mut self) -> bool {
        let Some(last) = self.last else {
            self.last = Some(std::time::Instant::now());
            return true;
        };
        let lived = last.elapsed();
        if lived.as_secs() >= 10 {
            self.failures = 0;
        }
        let pause = std::time::Duration::from_millis(200) * (1 << self.failures.min(6));
        if lived < pause {
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        self.last = Some(std::time::Instant::now());
        true
    }
}

/// A path for a socket that is short enough for the kernel (108 bytes), however long the directory's is.
/// The file keeps the short path good.
pub(crate) fn socket_path(path: &Path) -> io::Result<(Option<File>, PathBuf)> {
    use std::os::fd::AsRawFd as _;
    if path.as_os_str().len() < 100 {
        return Ok((None, path.to_owned()));
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok((None, path.to_owned()));
    };
    let dir = File::open(dir)?;
    let short = Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(name);
    Ok((Some(dir), short))
}
