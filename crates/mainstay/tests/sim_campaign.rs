//! A campaign as its user meets it: stopped, gone on with, refused.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longer than any of these campaigns takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

fn campaign(seeds: &str, state: Option<&Path>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.args([
        "sim",
        "campaign",
        "--seeds",
        seeds,
        "--keep-going",
        "--json",
    ]);
    command.args([
        "--minutes",
        "2",
        "--hosts",
        "3",
        "--vms",
        "3",
        "--profile",
        "fast",
    ]);
    if let Some(state) = state {
        command.arg("--state").arg(state);
    }
    command.stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The lines of a campaign without what depends on the machine.
fn lines(output: &Output) -> Vec<Value> {
    let parse = |line: &str| -> Value { serde_json::from_str(line).expect(line) };
    let mut lines: Vec<Value> = text(&output.stdout).lines().map(parse).collect();
    for line in &mut lines {
        if let Some(fields) = line.as_object_mut() {
            fields.retain(|key, _| !matches!(key.as_str(), "wall_s" | "wall_ms" | "rate"));
        }
    }
    lines
}

#[test]
fn a_campaign_that_was_stopped_ends_as_one_that_was_not() {
    const SEEDS: &str = "1..24";
    let folder = tempfile::tempdir().expect("folder");
    let whole = campaign(SEEDS, None).output().expect("mainstay runs");
    assert!(whole.status.success(), "{}", text(&whole.stderr));

    let state = folder.path().join("state.json");
    let mut part = campaign(SEEDS, Some(&state));
    let child = part.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().expect("mainstay runs");
    let deadline = Instant::now() + LIMIT;
    // The file is there before the first seed, and signals are caught before that.
    while !state.exists() {
        assert!(Instant::now() < deadline, "no state file");
        assert!(child.try_wait().expect("wait").is_none(), "ended early");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    let pid = i32::try_from(child.id()).expect("a pid");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it runs");
    let stopped = child.wait_with_output().expect("it ends");
    assert_eq!(stopped.status.code(), Some(4), "{}", text(&stopped.stderr));
    let last = lines(&stopped).pop().expect("a summary");
    assert_eq!(last["complete"], false);
    assert!(last["seeds"].as_u64().expect("a number") < 24, "{last}");

    let rest = campaign(SEEDS, Some(&state))
        .output()
        .expect("mainstay runs");
    assert!(rest.status.success(), "{}", text(&rest.stderr));
    assert_eq!(lines(&rest), lines(&whole));
    let kinds: Vec<Value> = lines(&whole).iter().map(|l| l["type"].clone()).collect();
    assert_eq!(kinds, ["coverage", "campaign"]);

    // Nothing is left to do, and it says the same once more.
    let again = campaign(SEEDS, Some(&state))
        .output()
        .expect("mainstay runs");
    assert_eq!(lines(&again), lines(&whole));
}

#[test]
fn a_state_file_of_other_options_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().expect("folder");
    let state = folder.path().join("state.json");
    let first = campaign("1..2", Some(&state))
        .output()
        .expect("mainstay runs");
    assert!(first.status.success(), "{}", text(&first.stderr));
    let other = campaign("1..3", Some(&state))
        .output()
        .expect("mainstay runs");
    assert_eq!(other.status.code(), Some(2));
    let error = text(&other.stderr);
    for part in [
        "state.json",
        "--seeds 1..2",
        "--seeds 1..3",
        "remove the file",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn required_coverage_fails_a_campaign_that_reaches_too_little() {
    let mut command = campaign("1", None);
    let output = command.arg("--coverage-required").output();
    let output = output.expect("mainstay runs");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let coverage = lines(&output).swap_remove(0);
    let defects = coverage["defects"].as_array().expect("a list").len();
    assert!(defects > 0, "one seed cannot reach everything");
    assert_eq!(coverage["counts"]["event"]["vm.migrated"], Value::Null);
    assert!(coverage["counts"]["event"]["vm.started"].as_u64() > Some(0));
}
