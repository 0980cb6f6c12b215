//! Finds out what QEMU can do on this host, by trying it.
//!
//! Whether KVM works is decided by a throw-away machine that really runs:
//! `/dev/kvm` may open, and QEMU answer, on hosts where it aborts at the first
//! instruction or the guest never gets anywhere. Answers are kept for the life
//! of the process. Never leaves a machine behind.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::process::{PidFd, Process};
use crate::{ImageKind, StartError, launcher, make_image};

/// `-action shutdown=pause` came with it.
const OLDEST: (u32, u32) = (6, 0);
const REMEDY: &str = "apt-get install qemu-system-x86";

/// With KVM a boot sector counts after a fraction of a second.
const KVM_TIMEOUT: Duration = Duration::from_secs(5);

/// How guests are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// By the processor.
    Kvm,
    /// By translation; works everywhere, slowly.
    Tcg,
}

/// Whether QEMU is there and new enough.
pub(super) fn version(program: &Path) -> Result<(), StartError> {
    static KNOWN: Mutex<BTreeMap<PathBuf, (u32, u32)>> = Mutex::new(BTreeMap::new());
    let name = program.display().to_string();
    let known = KNOWN
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(program)
        .copied();
    let found = match known {
        Some(found) => found,
        None => {
            let mut command = Command::new(program);
            command.arg("--version").stdin(Stdio::null());
            let output = match launcher::run(move || command.output()) {
                Ok(output) => output,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(StartError::Missing {
                        program: name,
                        remedy: REMEDY.to_owned(),
                    });
                }
                Err(source) => {
                    return Err(StartError::Host {
                        action: format!("start {name}"),
                        source,
                    });
                }
            };
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let Some(found) = parse_version(&text) else {
                return Err(StartError::Failed {
                    detail: format!("{name} --version said {text:?}"),
                });
            };
            // Only an answer is kept: QEMU may be installed while the agent runs.
            KNOWN
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(program.to_owned(), found);
            found
        }
    };
    if found < OLDEST {
        let text = |(major, minor)| format!("{major}.{minor}");
        return Err(StartError::TooOld {
            program: name,
            found: text(found),
            needed: text(OLDEST),
            remedy: REMEDY.to_owned(),
        });
    }
    Ok(())
}

/// Whether a machine runs with KVM, or why not.
pub(super) fn kvm(program: &Path) -> Result<(), String> {
    static KNOWN: Mutex<BTreeMap<PathBuf, Result<(), String>>> = Mutex::new(BTreeMap::new());
    // Held while it probes: the others want the same answer.
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known
        .entry(program.to_owned())
        .or_insert_with(|| {
            let program = program.to_owned();
            launcher::run(move || try_kvm(&program)).unwrap_or_else(|e| Err(e.to_string()))
        })
        .clone()
}

fn try_kvm(program: &Path) -> io::Result<Result<(), String>> {
    if let Err(error) = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        return Ok(Err(format!("/dev/kvm: {error}")));
    }
    let dir = std::env::temp_dir().join(format!("mainstay-kvm-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir(&dir)?;
    let result = try_kvm_in(program, &dir);
    let _ = fs::remove_dir_all(&dir);
    result
}

fn try_kvm_in(program: &Path, dir: &Path) -> io::Result<Result<(), String>> {
    make_image(&dir.join("disk"), 1 << 20, ImageKind::Bootable)?;
    let (serial, log) = (dir.join("serial"), dir.join("log"));
    let mut child = Command::new(program)
        .current_dir(dir)
        .args([
            "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "16",
        ])
        .args([
            "-no-user-config",
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "file:serial",
        ])
        .args(["-drive", "file=disk,format=raw,if=virtio"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log)?)
        .spawn()?;
    let process = Process::of_pid(child.id().cast_signed())?;
    let pidfd = PidFd::open(process.pid, process.start_time)?;
    let start = Instant::now();
    let result = loop {
        if fs::metadata(&serial).is_ok_and(|serial| serial.len() > 0) {
            break Ok(());
        }
        if let Some(status) = child.try_wait()? {
            let mut words = String::new();
            fs::File::open(&log)?.read_to_string(&mut words)?;
            let first = words
                .lines()
                .find(|line| !line.contains("warning"))
                .unwrap_or_default();
            break Err(format!("a trial machine ended with {status}: {first}"));
        }
        if start.elapsed() > KVM_TIMEOUT {
            break Err(format!(
                "a trial machine executed nothing in {KVM_TIMEOUT:?}"
            ));
        }
        if let Some(pidfd) = &pidfd {
            pidfd.wait(Duration::from_millis(10));
        }
    };
    let _ = child.kill();
    child.wait()?;
    Ok(result)
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let version = text.split_once("version ")?.1;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_distributions_are_read() {
        assert_eq!(
            parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\n"),
            Some((7, 2))
        );
        assert_eq!(
            parse_version("QEMU emulator version 10.0.0\n"),
            Some((10, 0))
        );
        assert_eq!(parse_version("something else"), None);
    }

    #[test]
    fn an_old_or_missing_qemu_is_named_with_its_remedy() {
        let missing = version(Path::new("no-such-qemu")).unwrap_err();
        assert!(
            matches!(missing, StartError::Missing { ref remedy, .. } if remedy.contains("apt-get"))
        );
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("qemu");
        fs::write(&old, "#!/bin/sh\necho QEMU emulator version 5.2.0\n").unwrap();
        fs::set_permissions(&old, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let old = version(&old).unwrap_err();
        assert!(
            matches!(old, StartError::TooOld { ref found, .. } if found == "5.2"),
            "{old}"
        );
    }
}
