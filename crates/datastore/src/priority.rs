//! The I/O priority of the threads that write and read heartbeats, over the load of guests: a heartbeat that waits
//! behind a guest's backup costs its host the right to run.
//!
//! Where the scheduler of a device takes no account of priorities, and that can be known, it is said.

use nix::libc;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// `IOPRIO_WHO_PROCESS` of `linux/ioprio.h`; with the number 0 it is the thread that calls.
const WHO_PROCESS: libc::c_int = 1;
/// Bits of the level below those of the class.
const CLASS_SHIFT: libc::c_int = 13;
const REAL_TIME: libc::c_int = 1;
const BEST_EFFORT: libc::c_int = 2;
/// The highest level of a class is 0; a real-time one in the middle leaves room for what an admin puts above.
const REAL_TIME_LEVEL: libc::c_int = 4;

/// Schedulers that serve a higher class first (`Documentation/block/`; mq-deadline since Linux 5.14).
const HEEDING: [&str; 2] = ["bfq", "mq-deadline"];

/// What a thread's I/O got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Got {
    /// Before all ordinary I/O.
    RealTime,
    /// The first of the ordinary ones: the right for more is missing.
    FirstOfOrdinary,
    /// Nothing.
    Nothing,
}

/// Puts the I/O of the calling thread before that of others, as far as it may.
pub(crate) fn raise() -> Got {
    let real_time = REAL_TIME << CLASS_SHIFT | REAL_TIME_LEVEL;
    if set(real_time).is_ok() {
        return Got::RealTime;
    }
    match set(BEST_EFFORT << CLASS_SHIFT) {
        Ok(()) => Got::FirstOfOrdinary,
        Err(error) => {
            tracing::debug!(%error, "no I/O priority");
            Got::Nothing
        }
    }
}

fn set(priority: libc::c_int) -> io::Result<()> {
    #[expect(unsafe_code, reason = "no library in use wraps ioprio_set")]
    // SAFETY: the call takes three numbers and no memory.
    let done = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, priority) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What is to be said of heartbeats that go without the right.
pub(crate) fn refusal(got: Got) -> Option<String> {
    let instead = match got {
        Got::RealTime => return None,
        Got::FirstOfOrdinary => "they go first among ordinary I/O instead",
        Got::Nothing => "they wait with the rest",
    };
    Some(format!(
        "the heartbeats of this host may not go before its guests' I/O ({instead}): allow CAP_SYS_NICE"
    ))
}

/// The disk and its scheduler, where that gives heartbeats at this path no priority; none where it does, or where
/// nobody can know: network file systems, volumes and loop devices, whose disks have schedulers of their own.
pub(crate) fn ignored_at(path: &Path) -> Option<(String, String)> {
    let meta = fs::metadata(path).ok()?;
    let device = if meta.file_type().is_block_device() {
        meta.rdev()
    } else {
        meta.dev()
    };
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    ignored_by(&PathBuf::from(format!("/sys/dev/block/{major}:{minor}")))
}

fn ignored_by(device: &Path) -> Option<(String, String)> {
    // A partition has the queue of its disk.
    let disk = [device.to_owned(), device.join("..")]
        .into_iter()
        .find(|disk| disk.join("queue/scheduler").exists())?;
    let stacked = fs::read_dir(disk.join("slaves")).is_ok_and(|mut all| all.next().is_some());
    if stacked || disk.join("loop").exists() {
        return None;
    }
    let text = fs::read_to_string(disk.join("queue/scheduler")).ok()?;
    let scheduler = in_force(&text)?;
    let name = fs::canonicalize(&disk).ok()?;
    let name = name.file_name()?.to_string_lossy().into_owned();
    (!HEEDING.contains(&scheduler)).then(|| (name, scheduler.to_owned()))
}

/// The scheduler that is in force: the one in brackets, or the only one.
fn in_force(text: &str) -> Option<&str> {
    let mut all = text.split_whitespace();
    let chosen = |name: &&str| name.starts_with('[');
    let name = all.clone().find(chosen).or_else(|| all.next())?;
    Some(name.trim_matches(['[', ']']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn got() -> libc::c_long {
        #[expect(unsafe_code, reason = "no library in use wraps ioprio_get")]
        // SAFETY: the call takes two numbers and no memory.
        unsafe {
            libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0)
        }
    }

    #[test]
    fn a_thread_s_io_goes_first_as_far_as_it_may() {
        let thread = std::thread::spawn(|| (raise(), got()));
        let (raised, priority) = thread.join().expect("joined");
        let class = priority >> CLASS_SHIFT;
        match raised {
            Got::RealTime => assert_eq!((class, priority & 7), (1, 4)),
            Got::FirstOfOrdinary => assert_eq!((class, priority & 7), (2, 0)),
            Got::Nothing => {}
        }
        assert_ne!(got() >> CLASS_SHIFT, 1, "other threads keep theirs");
    }

    #[test]
    fn a_refusal_is_said_with_the_remedy() {
        assert_eq!(refusal(Got::RealTime), None);
        for refused in [Got::FirstOfOrdinary, Got::Nothing] {
            let said = refusal(refused).expect("said");
            assert!(said.contains("CAP_SYS_NICE"), "{said}");
        }
    }

    #[test]
    fn a_scheduler_is_named_only_where_it_is_known_to_take_no_account_of_priorities() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = dir.path().join("vdx");
        fs::create_dir_all(disk.join("queue")).expect("made");
        fs::create_dir(disk.join("slaves")).expect("made");
        fs::create_dir(disk.join("vdx1")).expect("made");
        let with = |schedulers: &str| {
            fs::write(disk.join("queue/scheduler"), schedulers).expect("written");
            (ignored_by(&disk), ignored_by(&disk.join("vdx1")))
        };
        let named = |scheduler: &str| Some(("vdx".to_owned(), scheduler.to_owned()));
        assert_eq!(
            with("[none] mq-deadline kyber bfq\n"),
            (named("none"), named("none"))
        );
        assert_eq!(with("none\n").0, named("none"));
        assert_eq!(with("none mq-deadline [kyber]\n").0, named("kyber"));
        assert_eq!(with("none [mq-deadline] kyber\n"), (None, None));
        assert_eq!(with("mq-deadline [bfq]\n"), (None, None));
        fs::create_dir(disk.join("slaves/sda")).expect("made");
        assert_eq!(with("[none]\n"), (None, None), "a volume's disks decide");
        assert_eq!(ignored_by(&dir.path().join("0:57")), None, "no disk at all");
    }
}
