//! The command line as a user meets it: help, completions, errors with remedies, leftovers.

mod kit;

use kit::{Files, text};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A user without a running demo: an empty place for notes.
fn mainstay(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command
        .env_remove("MAINSTAY_SOCKET")
        .env("XDG_RUNTIME_DIR", home)
        .env("TMPDIR", home)
        .stdin(Stdio::null());
    command
}

fn run(home: &Path, arguments: &[&str]) -> Output {
    mainstay(home)
        .args(arguments)
        .output()
        .expect("mainstay runs")
}

#[test]
fn every_subcommand_has_help() {
    let home = tempfile::tempdir().expect("dir");
    let commands: &[&[&str]] = &[
        &[],
        &["demo"],
        &["demo", "kill"],
        &["demo", "start"],
        &["status"],
        &["hosts"],
        &["vms"],
        &["events"],
        &["explain"],
        &["power-on"],
        &["power-off"],
        &["config", "export"],
        &["add", "host"],
        &["add", "vm"],
        &["remove", "host"],
        &["remove", "vm"],
        &["datastore", "add"],
        &["datastore", "format"],
        &["datastore", "inspect"],
        &["datastore", "check"],
        &["datastore", "repair"],
        &["fence", "test"],
        &["drill"],
        &["start-guard"],
        &["sim"],
        &["agent"],
        &["guard"],
        &["probe"],
        &["completions"],
    ];
    for command in commands {
        let mut arguments = command.to_vec();
        arguments.push("--help");
        let output = run(home.path(), &arguments);
        assert!(output.status.success(), "{command:?}");
        assert!(
            text(&output.stdout).contains("Usage: mainstay"),
            "{command:?}: {}",
            text(&output.stdout)
        );
    }
}

#[test]
fn completions_know_the_subcommands() {
    let home = tempfile::tempdir().expect("dir");
    for shell in ["bash", "zsh", "fish"] {
        let output = run(home.path(), &["completions", shell]);
        assert!(output.status.success());
        assert!(text(&output.stdout).contains("explain"), "{shell}");
    }
}

#[test]
fn wrong_usage_ends_with_status_2() {
    let home = tempfile::tempdir().expect("dir");
    for arguments in [
        &["frobnicate"][..],
        &["demo", "--hosts", "1"],
        &["demo", "--profile", "slow"],
        &["demo", "--runs", "3"],
        &["probe", "--listen", "nowhere"],
    ] {
        let output = run(home.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn an_agent_that_is_not_there_is_named_with_its_socket_and_the_remedy() {
    let home = tempfile::tempdir().expect("dir");
    let socket = home.path().join("none.sock");
    let socket = socket.to_str().expect("text");
    for command in [
        &["status"][..],
        &["hosts"],
        &["vms"],
        &["events"],
        &["explain", "vm-1"],
        &["power-off", "vm-1"],
        &["config", "export"],
        &[
            "add",
            "host",
            "host-4",
            "--address",
            "10.0.0.4:7777",
            "--cpu-mhz",
            "1",
            "--memory-mb",
            "1",
        ],
    ] {
        let output = run(home.path(), &[command, &["--socket", socket]].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(output.stdout.is_empty());
        assert!(error.contains(socket), "{error}");
        assert!(error.contains("remedy: "), "{error}");
        assert!(error.contains("mainstay demo"), "{error}");
    }
}

#[test]
fn with_json_errors_are_json_too() {
    let home = tempfile::tempdir().expect("dir");
    let output = run(
        home.path(),
        &["--json", "--socket", "/nonexistent/socket", "vms"],
    );
    assert_eq!(output.status.code(), Some(1));
    let value: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert!(value.get("error").is_some_and(serde_json::Value::is_string));
    assert_eq!(
        value.get("place").and_then(serde_json::Value::as_str),
        Some("/nonexistent/socket")
    );
    assert!(
        value
            .get("remedy")
            .is_some_and(serde_json::Value::is_string)
    );
}

#[test]
fn without_a_demo_nothing_can_be_killed() {
    let home = tempfile::tempdir().expect("dir");
    let output = run(home.path(), &["demo", "kill", "host-1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no demo of this user is running"));
}

fn write_cluster(home: &Path) -> String {
    std::fs::create_dir_all(home.join("ds-1")).expect("mount");
    let files = Files {
        datastores: &[("ds-1", "", "ds-1")],
        vm: Some("driver = \"embedded\""),
        cluster: "",
        agent: "",
    };
    files.write(home).display().to_string()
}

#[test]
fn a_datastore_is_added_once_and_what_is_new_later() {
    let home = tempfile::tempdir().expect("dir");
    let config = write_cluster(home.path());
    let add = |id: &str| run(home.path(), &["datastore", "add", id, "--config", &config]);
    let first = add("ds-1");
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert!(text(&first.stdout).contains("ds-1 was added"));
    let records = home.path().join("ds-1/.mainstay/00000000000000aa");
    let lock = records.join("vm-1.lock.0000000000000000");
    assert!(lock.exists());
    assert!(text(&add("ds-1").stdout).contains("nothing on it is missing"));
    let cluster = home.path().join("cluster.toml");
    let more = std::fs::read_to_string(&cluster)
        .expect("readable")
        .replace("vm-1", "vm-2");
    std::fs::write(&cluster, more).expect("written");
    let second = text(&add("ds-1").stdout);
    assert!(second.contains("vm-2.lock.0000000000000000"), "{second}");
    assert!(lock.exists(), "nothing is removed");
    let refused = add("ds-7");
    assert_eq!(refused.status.code(), Some(1));
    let error = text(&refused.stderr);
    assert!(error.contains("did you mean \"ds-1\"?"), "{error}");
}

#[test]
fn a_missing_configuration_is_named() {
    let home = tempfile::tempdir().expect("dir");
    for daemon in ["agent", "guard"] {
        let output = run(
            home.path(),
            &[daemon, "--config", "/nonexistent/agent.toml"],
        );
        assert!(!output.status.success(), "{daemon}");
        assert!(
            text(&output.stderr).contains("/nonexistent/agent.toml"),
            "{daemon}: {}",
            text(&output.stderr)
        );
    }
}

/// A directory with `program` under another name, and beside it a script that says how it was started.
fn beside(program: &str, name: &str, script: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    // On the same file system as the programs, so that a link does.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("dir");
    std::fs::hard_link(program, dir.path().join(name)).expect("link");
    let script = dir.path().join(script);
    std::fs::write(&script, "#!/bin/sh\necho \"$@\"\n").expect("script");
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).expect("mode");
    dir
}

#[test]
fn a_daemon_becomes_the_small_program_beside_and_a_stranger_hands_over_to_the_whole_one() {
    let said = |dir: &tempfile::TempDir, program: &str, arguments: &[&str]| {
        let output = Command::new(dir.path().join(program))
            .args(arguments)
            .output();
        let output = output.expect("runs");
        (text(&output.stdout), text(&output.stderr))
    };
    let missing = "/nonexistent/agent.toml";
    for (daemon, small) in [
        ("agent", env!("CARGO_BIN_EXE_mainstay-agent")),
        ("guard", env!("CARGO_BIN_EXE_mainstay-guard")),
    ] {
        let small_name = format!("other-{daemon}");
        let dir = beside(env!("CARGO_BIN_EXE_mainstay"), "other", &small_name);
        let asked = [daemon, "--config", missing];
        let (out, _) = said(&dir, "other", &asked);
        let start = format!("{daemon} --config {missing} --build ");
        let build = out.trim().strip_prefix(&start).expect("the build is named");
        let (out, error) = said(&dir, "other", &[&asked[..], &["--whole"]].concat());
        assert_eq!(out, "");
        assert!(error.contains(missing), "{daemon}: {error}");

        // From one build the small program runs by itself, from two the whole one does it.
        let dir = beside(small, &small_name, "other");
        let (out, error) = said(
            &dir,
            &small_name,
            &[&asked[..], &["--build", build]].concat(),
        );
        assert_eq!(out, "");
        assert!(error.contains(missing), "{daemon}: {error}");
        let (out, _) = said(&dir, &small_name, &[&asked[..], &["--build", "0"]].concat());
        assert_eq!(out.trim(), format!("{daemon} --config {missing} --whole"));
        let (out, error) = said(&dir, &small_name, &["--config", missing]);
        assert!(out.is_empty() && error.contains("usage: "), "{error}");
    }
}

/// A demo that was killed without a chance to clean up leaves a process, files and a note; the next
/// one clears them, also when it then refuses to start.
#[test]
fn a_demo_clears_what_a_dead_one_left_and_nothing_else() {
    let home = tempfile::tempdir().expect("dir");
    let run_id = format!("{:08x}", std::process::id());
    let dir = home.path().join(format!("mainstay-demo-{run_id}"));
    let notes = home
        .path()
        .join(format!("mainstay-demo-{}", nix::unistd::Uid::effective()));
    for path in [&dir, &notes] {
        std::fs::create_dir(path).expect("dir");
    }
    std::fs::write(dir.join("mainstay-run"), &run_id).expect("mark");
    let note = serde_json::json!({
        "run": run_id, "pid": 1, "start": u64::MAX, "dir": dir, "hosts": {}, "socket": dir.join("demo.sock"),
    });
    std::fs::write(notes.join(format!("{run_id}.json")), note.to_string()).expect("note");
    let sleeper = |run: &str| {
        Command::new("sleep")
            .arg("120")
            .env("MAINSTAY_LAB_RUN", run)
            .spawn()
            .expect("sleep")
    };
    let mut left = sleeper(&run_id);
    let mut other = sleeper("somebody");

    // A base directory that cannot be made ends the demo right after it has cleared.
    let output = run(
        home.path(),
        &[
            "demo",
            "--once",
            "--driver",
            "embedded",
            "--dir",
            "/proc/nowhere",
        ],
    );
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(
        text(&output.stdout).contains(&run_id),
        "{}",
        text(&output.stdout)
    );
    assert!(!dir.exists());
    assert!(!notes.exists());
    let deadline = Instant::now() + Duration::from_secs(10);
    while left.try_wait().expect("wait").is_none() {
        assert!(Instant::now() < deadline, "the leftover process lives");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    assert!(
        other.try_wait().expect("wait").is_none(),
        "a process without the mark was ended"
    );
    other.kill().expect("kill");
    drop(other.wait());
}

/// Standard error as one JSON object.
fn complaint(output: &Output) -> serde_json::Value {
    let told = text(&output.stderr);
    serde_json::from_str(&told).unwrap_or_else(|e| panic!("{e}: {told}"))
}

#[test]
fn errors_of_the_simulator_are_json_where_json_is_asked_for() {
    let home = tempfile::tempdir().expect("dir");
    let path = home.path().join("wrong.toml");
    let scenario = |event: &str| {
        format!(
            "name = \"x\"\nduration = \"1m\"\n[[datastore]]\nid = \"ds-1\"\n[[host]]\ncount = 2\n\
             [[vm]]\nid = \"vm-1\"\n[[event]]\nat = \"5s\"\ndo = \"{event}\"\nvm = \"vm-1\"\n"
        )
    };
    let file = path.to_str().expect("a path");
    std::fs::write(&path, scenario("vm.crsh")).expect("written");
    let output = run(home.path(), &["sim", "run", file, "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let told = complaint(&output);
    assert_eq!(told["place"], format!("{file}:11"), "{told}");
    assert_eq!(told["error"], "there is no event \"vm.crsh\"", "{told}");
    assert_eq!(told["remedy"], "did you mean \"vm.crash\"?", "{told}");
    let plain = run(home.path(), &["sim", "run", file]);
    let plain = text(&plain.stderr);
    assert!(
        plain.starts_with(&format!("error: {file}:11: there is no event")),
        "{plain}"
    );

    std::fs::write(&path, scenario("app.hang")).expect("written");
    let output = run(home.path(), &["--json", "sim", "run", file]);
    assert_eq!(output.status.code(), Some(3));
    assert!(complaint(&output)["error"].to_string().contains("app.hang"));

    let output = run(home.path(), &["sim", "run", "nowhere.toml", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(complaint(&output)["place"], "nowhere.toml");

    std::fs::write(&path, "no state").expect("written");
    let output = run(
        home.path(),
        &["sim", "campaign", "--seeds", "1", "--state", file, "--json"],
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(
        complaint(&output)["remedy"]
            .to_string()
            .contains("another file")
    );
}

#[test]
fn a_benchmark_that_does_not_exist_is_an_error_that_lists_those_that_do() {
    let home = tempfile::tempdir().expect("dir");
    let output = run(
        home.path(),
        &["sim", "bench", "--only", "nonsense", "--json"],
    );
    assert_eq!(output.status.code(), Some(2));
    let told = complaint(&output);
    assert_eq!(told["place"], "--only");
    assert!(
        told["remedy"].to_string().contains("8 hosts, 100 vms"),
        "{told}"
    );
}

#[test]
fn wrong_usage_is_told_as_json_where_json_is_asked_for() {
    let home = tempfile::tempdir().expect("dir");
    let output = run(
        home.path(),
        &["sim", "campaign", "--seeds", "9..1", "--json"],
    );
    assert_eq!(output.status.code(), Some(2));
    let told = complaint(&output);
    assert!(
        told["error"].to_string().contains("9..1 is empty"),
        "{told}"
    );
    assert!(told["remedy"].to_string().contains("--help"), "{told}");
    let plain = run(home.path(), &["sim", "campaign", "--seeds", "9..1"]);
    assert!(text(&plain.stderr).starts_with("error: "));
    let help = run(home.path(), &["sim", "--help", "--json"]);
    assert!(help.status.success() && text(&help.stdout).contains("Usage: mainstay"));
}
