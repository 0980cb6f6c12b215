//! `mainstay start-guard` as a hook or a wrapper of QEMU meets it.

mod kit;

use kit::{Files, text};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Host(tempfile::TempDir);

impl Host {
    /// One whose datastore has been added.
    fn new() -> Self {
        let host = Self(tempfile::tempdir().expect("a directory"));
        std::fs::create_dir(host.at("ds-1")).expect("made");
        let files = Files {
            datastores: &[("ds-1", "", "ds-1")],
            vm: Some(""),
            cluster: "",
            agent: "",
        };
        files.write(host.0.path());
        std::fs::write(host.at("ds-1/vm-1.raw"), "").expect("an image");
        let added = host.mainstay(&["datastore", "add", "ds-1"], &[]);
        assert!(added.status.success(), "{}", said(&added).1);
        host
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn mainstay(&self, command: &[&str], more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_mainstay"))
            .args(command)
            .arg("--config")
            .arg(self.at("agent.toml"))
            .args(more)
            .stdin(Stdio::null())
            .output()
            .expect("mainstay runs")
    }

    fn start(&self, more: &[&str]) -> Output {
        self.mainstay(&["start-guard"], more)
    }
}

fn said(output: &Output) -> (String, String) {
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_vm_without_the_lock_is_refused_with_the_reason_and_what_is_not_mainstay_s_is_not() {
    let host = Host::new();
    let refused = host.start(&["vm-1"]);
    assert_eq!(refused.status.code(), Some(1));
    let (_, why) = said(&refused);
    assert!(why.contains("vm-1") && why.contains("power-on"), "{why}");
    let other = host.start(&["someone-elses"]);
    assert!(other.status.success(), "{}", said(&other).1);
    assert_eq!(host.start(&[]).status.code(), Some(1), "nothing is named");
}

#[test]
fn a_wrapped_command_is_run_only_when_no_image_in_it_is_refused() {
    let host = Host::new();
    let drive = |name: &str| format!("file={},format=raw", host.at(name).display());
    let refused = host.start(&["--", "echo", "-drive", &drive("ds-1/vm-1.raw")]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(said(&refused).0, "", "it was not run");
    let other = drive("other.raw");
    let run = host.start(&["--", "echo", "-drive", &other]);
    assert!(run.status.success(), "{}", said(&run).1);
    assert_eq!(said(&run).0.trim(), format!("-drive {other}"));
}

#[test]
fn a_file_that_hangs_is_a_refusal_in_time() {
    let host = Host::new();
    // A datastore's files are opened so that a pipe in their place hangs nobody; this one is read by the same process.
    let marker = host.at("cluster.toml");
    std::fs::remove_file(&marker).expect("removed");
    // Whoever opens it for reading waits for one who writes.
    let made = Command::new("mkfifo").arg(&marker).status();
    assert!(made.expect("mkfifo runs").success());
    let begun = Instant::now();
    let refused = host.start(&["vm-1", "--timeout", "1"]);
    assert_eq!(refused.status.code(), Some(1));
    let (_, why) = said(&refused);
    assert!(why.contains("not answered for 1 s"), "{why}");
    assert!(begun.elapsed() < Duration::from_secs(60));
    end_of_waiting(&marker);
}

/// Lets the process go on that was left behind.
fn end_of_waiting(fifo: &Path) {
    let opened = std::fs::OpenOptions::new().write(true).open(fifo);
    drop(opened.expect("somebody waits"));
}

#[test]
fn a_configuration_that_is_wrong_is_a_refusal_with_its_place() {
    let host = Host::new();
    std::fs::write(host.at("cluster.toml"), "nonsense = 1").expect("written");
    let refused = host.start(&["vm-1"]);
    assert_eq!(refused.status.code(), Some(1));
    let (_, why) = said(&refused);
    assert!(why.contains("cluster.toml"), "{why}");
}
