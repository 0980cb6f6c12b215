//! Keeps on local disk that a watchdog runs, and why it is about to reset this host, so that the agent can say
//! it after the reboot.
//!
//! ```text
//! state_dir/watchdog.json        while a watchdog runs; removed when it is let go
//!           watchdog-last.json   the same of an earlier boot, which ended without letting its watchdog go
//!           watchdog-told.json   what the agent has reported of that
//! ```
//! Never here: when the watchdog is fed.

use crate::clock;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const NOW: &str = "watchdog.json";
const LAST: &str = "watchdog-last.json";
const TOLD: &str = "watchdog-told.json";
/// Where systemd's journal listens, when it runs.
const JOURNAL: &str = "/run/systemd/journal/socket";
/// The kernel's log: the journal, the console and what a crashed kernel leaves behind have it.
pub(super) const KERNEL_LOG: &str = "/dev/kmsg";

/// What is kept while a watchdog runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Kept {
    /// The boot that it runs in.
    boot: String,
    /// The device.
    device: PathBuf,
    /// When the guard opened it, by the wall clock, for people.
    armed: String,
    /// Why it is fed no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reset: Option<Reset>,
    /// Whether the device said, in the boot after, that it had reset the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    has_reset: Option<bool>,
}

/// Why a watchdog is fed no more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Reset {
    /// When that was decided, by the wall clock, for people.
    at: String,
    why: String,
}

/// What there is to keep.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Keeping {
    /// The watchdog runs; whether it says that it reset the host before this boot.
    Armed(Option<bool>),
    /// It is about to be fed no more, for this reason.
    Resets(String),
    /// It is fed again.
    Averted,
    /// It was let go.
    LetGo,
}

/// The files.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) state_dir: PathBuf,
    pub(super) boot: String,
    pub(super) device: PathBuf,
}

impl Files {
    /// Keeps it: when this returns without an error, it is on disk.
    pub(super) fn keep(&self, keeping: &Keeping) -> io::Result<()> {
        match keeping {
            Keeping::Armed(has_reset) => self.arm(*has_reset),
            Keeping::Resets(why) => {
                let reset = Reset {
                    at: clock::wall(),
                    why: why.clone(),
                };
                self.write(Some(reset))
            }
            Keeping::Averted => self.write(None),
            Keeping::LetGo => {
                std::fs::remove_file(self.state_dir.join(NOW))?;
                File::open(&self.state_dir)?.sync_all()
            }
        }
    }

    fn arm(&self, has_reset: Option<bool>) -> io::Result<()> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.state_dir)?;
        // Of this boot it is an earlier guard's, which has the same device.
        if let Some(mut before) = read(&self.state_dir, NOW).filter(|k| k.boot != self.boot) {
            before.has_reset = has_reset;
            write(&self.state_dir, LAST, &before)?;
        }
        self.write(None)
    }

    fn write(&self, reset: Option<Reset>) -> io::Result<()> {
        let before = read(&self.state_dir, NOW).filter(|k| k.boot == self.boot);
        let kept = Kept {
            boot: self.boot.clone(),
            device: self.device.clone(),
            armed: before.map_or_else(clock::wall, |k| k.armed),
            reset,
            has_reset: None,
        };
        write(&self.state_dir, NOW, &kept)
    }
}

fn read(state_dir: &Path, name: &str) -> Option<Kept> {
    serde_json::from_slice(&std::fs::read(state_dir.join(name)).ok()?).ok()
}

fn write(state_dir: &Path, name: &str, kept: &Kept) -> io::Result<()> {
    let beside = state_dir.join(format!("{name}.new"));
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(&serde_json::to_vec(kept)?)?;
    file.sync_all()?;
    std::fs::rename(&beside, state_dir.join(name))?;
    File::open(state_dir)?.sync_all()
}

/// Tells whoever keeps logs on this host, and has them on disk: the kernel's log, this program's own, the journal.
/// A refusal is no reason to wait: the state directory has the reason already.
pub(super) fn announce(why: &str, kernel_log: &Path, log_dir: &Path) {
    let line =
        format!("<2>mainstay-guard: the watchdog is fed no more and resets this host: {why}\n");
    let told = OpenOptions::new()
        .write(true)
        .open(kernel_log)
        .and_then(|mut log| log.write_all(line.as_bytes()));
    if let Err(error) = told {
        tracing::warn!(%error, "{} does not take the reason", kernel_log.display());
    }
    // That file system alone: others may hang, and are why this is done.
    if let Ok(dir) = File::open(log_dir) {
        let _ = nix::unistd::syncfs(&dir);
    }
    if Path::new(JOURNAL).exists() {
        let synced = Command::new("journalctl")
            .arg("--sync")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        if let Ok(mut child) = synced {
            // It may hang with the disk; somebody must collect it when it ends.
            let _ = std::thread::Builder::new()
                .name("reaper".into())
                .spawn(move || child.wait());
        }
    }
}

/// What is to be said of the boot before this one, if it ended while its watchdog ran, and nobody has said it yet.
pub(crate) fn of_last_boot(state_dir: &Path, boot: &str) -> Option<String> {
    let of_another = |name| read(state_dir, name).filter(|kept| kept.boot != boot);
    // The guard, which starts meanwhile, makes the second of the first.
    let last = of_another(LAST).or_else(|| of_another(NOW))?;
    if read(state_dir, TOLD).is_some_and(|told| told.boot == last.boot) {
        return None;
    }
    if let Err(error) = write(state_dir, TOLD, &last) {
        tracing::warn!(%error, "the end of the boot before will be reported again");
    }
    let _ = std::fs::remove_file(state_dir.join(LAST));
    Some(sentence(&last))
}

fn sentence(last: &Kept) -> String {
    let device = last.device.display();
    if let Some(Reset { at, why }) = &last.reset {
        return format!(
            "this host reset itself by its watchdog {device}, decided at {at}: {why}; its VMs were restarted where \
             there was room"
        );
    }
    let armed = &last.armed;
    match last.has_reset {
        Some(true) => format!(
            "this host was reset by its watchdog {device} (fed since {armed}), and nobody was left to say why: agent \
             and guard were both gone, or the kernel hung; look at the logs of the boot before"
        ),
        Some(false) | None => format!(
            "this host went down while its watchdog {device} ran (fed since {armed}): power loss, a crash, or a reset \
             by the watchdog because agent and guard were both gone; look at the logs of the boot before"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path, boot: &str) -> Files {
        Files {
            state_dir: dir.join("state"),
            boot: boot.to_owned(),
            device: "/dev/watchdog0".into(),
        }
    }

    #[test]
    fn the_reason_of_a_reset_is_said_once_after_the_reboot() {
        let dir = tempfile::tempdir().expect("directory");
        let state = dir.path().join("state");
        let first = files(dir.path(), "one");
        first.keep(&Keeping::Armed(None)).expect("kept");
        first
            .keep(&Keeping::Resets("vm-1 runs on".to_owned()))
            .expect("kept");
        assert_eq!(of_last_boot(&state, "one"), None, "it is this boot's");
        let second = files(dir.path(), "two");
        second.keep(&Keeping::Armed(Some(true))).expect("kept");
        let said = of_last_boot(&state, "two").expect("said");
        assert!(said.contains("vm-1 runs on"), "{said}");
        assert_eq!(of_last_boot(&state, "two"), None, "once");
    }

    #[test]
    fn it_is_said_once_also_when_the_agent_is_there_before_the_guard() {
        let dir = tempfile::tempdir().expect("directory");
        let state = dir.path().join("state");
        files(dir.path(), "one")
            .keep(&Keeping::Armed(None))
            .expect("kept");
        let said = of_last_boot(&state, "two").expect("said");
        assert!(said.contains("went down"), "{said}");
        files(dir.path(), "two")
            .keep(&Keeping::Armed(Some(true)))
            .expect("kept");
        assert_eq!(of_last_boot(&state, "two"), None);
    }

    #[test]
    fn a_reset_that_was_averted_and_a_watchdog_that_was_let_go_are_not_reported() {
        let dir = tempfile::tempdir().expect("directory");
        let state = dir.path().join("state");
        let first = files(dir.path(), "one");
        let keep = |files: &Files, keeping| files.keep(&keeping).expect("kept");
        keep(&first, Keeping::Armed(None));
        keep(&first, Keeping::Resets("vm-1 runs on".to_owned()));
        keep(&first, Keeping::Averted);
        let second = files(dir.path(), "two");
        keep(&second, Keeping::Armed(Some(true)));
        let said = of_last_boot(&state, "two").expect("said");
        assert!(
            said.contains("nobody was left") && !said.contains("vm-1"),
            "{said}"
        );
        keep(&second, Keeping::LetGo);
        keep(&files(dir.path(), "three"), Keeping::Armed(Some(false)));
        assert_eq!(
            of_last_boot(&state, "three"),
            None,
            "a shutdown is no reset"
        );
    }

    #[test]
    fn a_guard_that_is_started_again_keeps_when_the_watchdog_was_armed() {
        let dir = tempfile::tempdir().expect("directory");
        let first = files(dir.path(), "one");
        first.keep(&Keeping::Armed(None)).expect("kept");
        let armed = read(&first.state_dir, NOW).expect("kept").armed;
        let mut later = read(&first.state_dir, NOW).expect("kept");
        later.armed = "then".to_owned();
        write(&first.state_dir, NOW, &later).expect("written");
        first.keep(&Keeping::Armed(None)).expect("kept");
        assert_ne!(armed, "then");
        assert_eq!(read(&first.state_dir, NOW).expect("kept").armed, "then");
        assert_eq!(of_last_boot(&first.state_dir, "one"), None);
    }
}
