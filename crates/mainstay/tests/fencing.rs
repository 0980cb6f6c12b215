//! `mainstay fence test` against a scripted management controller.

mod kit;

use kit::{Files, text};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

const CONTROLLER: &str = r#"#!/bin/sh
while IFS='=' read -r key value; do
    case "$key" in
        action) action=$value ;;
        state) state=$value ;;
        broken) broken=$value ;;
        password) password=$value ;;
    esac
done
if [ -n "$broken" ]; then echo "no answer, $password" >&2; exit 1; fi
echo "$action" >> "$state.log"
case "$action" in
    status)
        if [ "$(cat "$state")" = on ]; then echo "Status: ON"; exit 0; fi
        echo "Status: OFF"
        exit 2 ;;
    off | on) printf '%s' "$action" > "$state"; echo "Success" ;;
    monitor) exit 0 ;;
    *) exit 1 ;;
esac
"#;

/// The files of host-1, which can ask the device of host-2.
struct Host {
    home: tempfile::TempDir,
}

impl Host {
    fn new(more: &str) -> Self {
        let home = tempfile::tempdir().expect("dir");
        let files = Files {
            datastores: &[("ds-1", "", "ds-1")],
            vm: None,
            cluster: r#"
[settings]
fence_timeout = "20s"
[[host]]
id = "host-2"
address = "127.0.0.2:7777"
cpu_mhz = 1000
memory_mb = 1000
"#,
            agent: "fence_file = \"fence.toml\"",
        };
        files.write(home.path());
        let host = Self { home };
        let fence = format!(
            "[[device]]\nhost = \"host-2\"\nagent = \"{}\"\n[device.options]\nstate = \"{}\"\npassword = \"hunter2\"\n{more}\n",
            host.path("fence_script").display(),
            host.path("power").display(),
        );
        for (name, text, mode) in [
            ("fence.toml", fence.as_str(), 0o600),
            ("fence_script", CONTROLLER, 0o755),
            ("power", "on", 0o644),
        ] {
            std::fs::write(host.path(name), text).expect("written");
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(host.path(name), mode).expect("mode");
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn test(&self, host: &str, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_mainstay"))
            .env("MAINSTAY_SOCKET", self.path("nobody.sock"))
            .stdin(Stdio::null())
            .args(["fence", "test", host, "--config"])
            .arg(self.path("agent.toml"))
            .args(more)
            .output()
            .expect("mainstay runs")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("power.log")).unwrap_or_default()
    }
}

#[test]
fn a_test_asks_for_the_power_and_switches_nothing() {
    let host = Host::new("");
    let output = host.test("host-2", &[]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert!(said.contains("the power is on"), "{said}");
    assert!(said.contains("to fence it"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
    assert_eq!(host.log(), "monitor\nstatus\n");
}

#[test]
fn a_device_that_does_not_answer_fails_the_test_without_its_password() {
    let host = Host::new("broken = true");
    let output = host.test("host-2", &[]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(
        error.contains("host-2 cannot be fenced from here"),
        "{error}"
    );
    assert!(
        error.contains("no answer") && !error.contains("hunter2"),
        "{error}"
    );
}

#[test]
fn a_power_cycle_is_insisted_on_and_done() {
    let host = Host::new("");
    for more in [&["--power-cycle"][..], &["--power-cycle", "--yes"]] {
        let refused = host.test("host-2", more);
        assert_eq!(refused.status.code(), Some(1), "nobody knows its VMs");
        assert!(!host.log().contains("off"), "{}", host.log());
    }
    let asks = host.test("host-2", &["--power-cycle", "--force"]);
    assert!(text(&asks.stderr).contains("add --yes"), "{asks:?}");
    let output = host.test("host-2", &["--power-cycle", "--force", "--yes", "--json"]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    let switched: Vec<serde_json::Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .filter(|value: &serde_json::Value| value.get("switched").is_some())
        .collect();
    let words: Vec<&str> = switched
        .iter()
        .filter_map(|v| v["switched"].as_str())
        .collect();
    assert_eq!(words, ["off", "on"]);
    let power = std::fs::read_to_string(host.path("power")).expect("power");
    assert_eq!(power, "on");
    let own = host.test("host-1", &["--power-cycle", "--force", "--yes"]);
    assert_eq!(own.status.code(), Some(1), "it has no device");
}

#[test]
fn a_fence_file_that_others_can_read_is_refused() {
    let host = Host::new("");
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(host.path("fence.toml"), open).expect("mode");
    let output = host.test("host-2", &[]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("chmod 600"), "{error}");
    assert_eq!(host.log(), "");
}
