//! The whole path on real processes: a host dies, its VMs come back with their disks intact.
//! Needs nothing but this binary and the right to start processes.

use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Three hosts elect, protect, lose one and recover within a fifth of this on a slow machine.
const LIMIT: Duration = Duration::from_secs(120);

fn demo(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command
        .env_remove("MAINSTAY_SOCKET")
        .env("XDG_RUNTIME_DIR", home)
        .env("TMPDIR", home)
        .args(["demo", "--driver", "embedded", "--json"])
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// A demo that hangs is ended as a user would, so that it clears what it made.
fn end_within(child: &mut Child, limit: Duration) -> std::process::ExitStatus {
    let deadline = Instant::now() + limit;
    let mut asked = false;
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            assert!(!asked, "the demo had to be interrupted after {limit:?}");
            return status;
        }
        if Instant::now() > deadline && !asked {
            asked = true;
            interrupt(child);
        }
        assert!(
            Instant::now() < deadline + Duration::from_secs(30),
            "the demo does not end"
        );
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn interrupt(child: &Child) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("signal");
}

/// Nothing of a demo may be left: no file in its home, no process with a run below it.
fn assert_clean(home: &Path) {
    let files: Vec<_> = std::fs::read_dir(home)
        .expect("home")
        .flatten()
        .map(|e| e.path())
        .collect();
    let files: Vec<_> = files
        .into_iter()
        .filter(|f| !f.ends_with("out") && !f.ends_with("err"))
        .collect();
    assert!(files.is_empty(), "{files:?}");
    let needle = home.to_str().expect("text");
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let environ = String::from_utf8_lossy(&environ);
        assert!(
            !(environ.contains(needle) && environ.contains("MAINSTAY_LAB_RUN=")),
            "{:?} is left",
            entry.path()
        );
    }
}

fn spawn(home: &Path, arguments: &[&str]) -> Child {
    let file = |name: &str| std::fs::File::create(home.join(name)).expect("file");
    demo(home, arguments)
        .stdout(file("out"))
        .stderr(file("err"))
        .spawn()
        .expect("demo")
}

fn output(home: &Path) -> String {
    let read = |name: &str| std::fs::read_to_string(home.join(name)).unwrap_or_default();
    format!("{}\n{}", read("out"), read("err"))
}

fn failover(home: &Path) -> Value {
    let text = std::fs::read_to_string(home.join("out")).expect("out");
    let values = text
        .lines()
        .filter_map(|l| serde_json::from_str::<Value>(l).ok());
    values
        .filter_map(|v| v.get("failover").cloned())
        .next_back()
        .expect("a failover")
}

/// A part of a value; null where there is none.
fn part<'a>(value: &'a Value, key: &str) -> &'a Value {
    value.get(key).unwrap_or(&Value::Null)
}

fn assert_kept(home: &Path, was_primary: bool) {
    let failover = failover(home);
    assert_eq!(part(&failover, "was_primary"), was_primary);
    let vms = part(&failover, "vms").as_array().expect("VMs");
    assert!(!vms.is_empty(), "the victim ran no VM");
    for vm in vms {
        let (stopped, went_on) = (
            part(vm, "stopped_at").as_u64(),
            part(vm, "went_on_at").as_u64(),
        );
        assert!(went_on > stopped && stopped > Some(0), "{vm}");
        assert_ne!(part(vm, "started_on"), part(&failover, "killed"), "{vm}");
    }
}

#[test]
fn a_killed_secondarys_vms_come_back_with_their_counters() {
    let home = tempfile::tempdir().expect("dir");
    let mut child = spawn(home.path(), &["--once", "--profile", "fast"]);
    let status = end_within(&mut child, LIMIT);
    assert!(status.success(), "{}", output(home.path()));
    assert_kept(home.path(), false);
    assert_clean(home.path());
}

#[test]
fn a_killed_primarys_vms_come_back_with_their_counters() {
    let home = tempfile::tempdir().expect("dir");
    let mut child = spawn(
        home.path(),
        &["--once", "--profile", "fast", "--kill", "primary"],
    );
    let status = end_within(&mut child, LIMIT);
    assert!(status.success(), "{}", output(home.path()));
    assert_kept(home.path(), true);
    assert_clean(home.path());
}

/// Runs a command against the demo of `home` until it succeeds.
fn ask(home: &Path, arguments: &[&str]) -> String {
    let deadline = Instant::now() + LIMIT;
    loop {
        let output = Command::new(env!("CARGO_BIN_EXE_mainstay"))
            .env_remove("MAINSTAY_SOCKET")
            .env("XDG_RUNTIME_DIR", home)
            .env("TMPDIR", home)
            .args(arguments)
            .output()
            .expect("mainstay runs");
        if output.status.success() {
            return String::from_utf8_lossy(&output.stdout).into_owned();
        }
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            Instant::now() < deadline,
            "{arguments:?}: {error}\n{}",
            self::output(home)
        );
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

#[test]
fn a_demo_that_stays_up_can_be_asked_and_ends_with_nothing_left() {
    let home = tempfile::tempdir().expect("dir");
    let mut child = spawn(home.path(), &["--profile", "fast"]);
    let failed = || output(home.path());
    // The demo's own socket is there once its first failover is over.
    let killed = {
        let deadline = Instant::now() + LIMIT;
        loop {
            let found = std::fs::read_to_string(home.path().join("out")).unwrap_or_default();
            if found.lines().any(|l| l.contains("\"failover\"")) {
                break part(&failover(home.path()), "killed")
                    .as_str()
                    .expect("host")
                    .to_owned();
            }
            assert!(
                child.try_wait().expect("wait").is_none() && Instant::now() < deadline,
                "{}",
                failed()
            );
            std::thread::park_timeout(Duration::from_millis(50));
        }
    };
    let status: Value =
        serde_json::from_str(&ask(home.path(), &["status", "--json"])).expect("JSON");
    assert_eq!(
        part(&status, "role"),
        "primary",
        "the best informed host is asked"
    );
    assert_eq!(part(&status, "profile"), "fast");
    let vms = ask(home.path(), &["vms"]);
    assert!(vms.starts_with("VM") && vms.contains("vm-3"), "{vms}");
    assert!(ask(home.path(), &["explain", "vm-1"]).contains("vm-1"));
    assert!(ask(home.path(), &["explain", "host", &killed]).contains(&killed));
    assert!(
        ask(home.path(), &["events", "--last", "5", "--json"])
            .lines()
            .count()
            <= 5
    );
    ask(home.path(), &["demo", "start", &killed]);
    let back = |hosts: &str| {
        let hosts: Value = serde_json::from_str(hosts).expect("JSON");
        let host = hosts
            .as_array()
            .and_then(|all| all.iter().find(|h| *part(h, "host") == *killed))
            .cloned();
        host.is_some_and(|h| part(&h, "state") == "live")
    };
    let deadline = Instant::now() + LIMIT;
    while !back(&ask(home.path(), &["hosts", "--json"])) {
        assert!(
            Instant::now() < deadline,
            "{killed} does not come back: {}",
            failed()
        );
        std::thread::park_timeout(Duration::from_millis(100));
    }
    interrupt(&child);
    let status = end_within(&mut child, Duration::from_secs(30));
    assert!(status.success(), "{}", failed());
    assert_clean(home.path());
}
