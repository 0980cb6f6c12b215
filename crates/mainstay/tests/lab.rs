//! The lab's command line where nothing is started: exit codes and complaints. Needs no rights.

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn lab(home: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mainstay"))
        .arg("lab")
        .args(arguments)
        .env_remove("MAINSTAY_SOCKET")
        .env("XDG_RUNTIME_DIR", home)
        .env("TMPDIR", home)
        .stdin(Stdio::null())
        .output()
        .expect("mainstay runs")
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A scenario file, and what `lab run` says to it.
fn run(text: &str, more: &[&str]) -> (String, Output) {
    let home = tempfile::tempdir().expect("dir");
    let file = home.path().join("scenario.toml");
    std::fs::write(&file, text).expect("scenario");
    let name = file.to_str().expect("text").to_owned();
    let mut arguments = vec!["run", name.as_str()];
    arguments.extend(more);
    let output = lab(home.path(), &arguments);
    (name, output)
}

const UNPLAYABLE: &str = r#"
name = "needs simulated clocks and agents of another version"
duration = "10s"

[[datastore]]
id = "ds-1"

[[host]]
count = 2
formats = 1

[[event]]
at = "1s"
do = "clock.drift"
host = "host-1"
ppm = 100
"#;

#[test]
fn what_the_lab_cannot_play_is_named_with_status_3() {
    let (file, output) = run(UNPLAYABLE, &[]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let said = complaint(&output);
    let named = ["clock.drift", "agents of another version"];
    for word in named.iter().chain([&file.as_str()]) {
        assert!(said.contains(word), "{said}");
    }
    assert!(output.stdout.is_empty(), "{output:?}");
}

#[test]
fn what_the_lab_cannot_play_is_named_for_programs_too() {
    let (file, output) = run(UNPLAYABLE, &["--json"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let said: serde_json::Value = serde_json::from_str(&complaint(&output)).expect("JSON");
    assert_eq!(said["place"], file.as_str());
    assert!(
        said["error"]
            .as_str()
            .expect("error")
            .contains("clock.drift")
    );
}

#[test]
fn what_cannot_be_read_is_told_with_file_and_line_and_status_2() {
    let (file, output) = run(
        "name = \"x\"\nduration = \"10s\"\n\n[[host]]\nwheels = 4\n",
        &[],
    );
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = complaint(&output);
    assert!(said.contains(&format!("{file}:5: ")), "{said}");
    assert!(said.contains("wheels"), "{said}");
}

#[test]
fn a_file_that_is_not_there_is_told_with_status_2() {
    let home = tempfile::tempdir().expect("dir");
    let output = lab(home.path(), &["run", "no-such-scenario.toml"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(complaint(&output).contains("no-such-scenario.toml"));
}

#[test]
fn a_soak_that_is_too_short_for_quiet_says_how_long_it_wants() {
    let home = tempfile::tempdir().expect("dir");
    let soak = [
        "soak",
        "--minutes",
        "1",
        "--seed",
        "1",
        "--profile",
        "classic",
    ];
    let output = lab(home.path(), &soak);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = complaint(&output);
    assert!(
        said.contains("too short") && said.contains("--minutes"),
        "{said}"
    );
}

#[test]
fn clean_has_nothing_to_do_where_nothing_ran() {
    let home = tempfile::tempdir().expect("dir");
    let output = lab(home.path(), &["clean"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("no dead lab has left anything"), "{said}");
}
