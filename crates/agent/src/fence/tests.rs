//! Fence agents against a scripted management controller: a program that speaks their interface, and does what a
//! controller can do wrong.

use super::*;
use crate::config::FenceFile;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;

const TIMEOUT: Duration = Duration::from_secs(30);
const PASSWORD: &str = "correct-horse";

/// A management controller as a program: options on standard input, its power in a file.
const CONTROLLER: &str = r#"#!/bin/sh
while IFS='=' read -r key value; do
    case "$key" in
        action) action=$value ;;
        state) state=$value ;;
        log) log=$value ;;
        mode) mode=$value ;;
        password) password=$value ;;
    esac
done
echo "$$ args=$# action=$action password=$password" >> "$log"
case "$mode" in
    hangs) sleep 600 ;;
    bad_arguments) echo "Parse error: unknown option" >&2; exit 2 ;;
    refuses) echo "login failed: $password is wrong" >&2; exit 1 ;;
esac
case "$action" in
    status)
        if [ "$(cat "$state")" = on ]; then echo "Status: ON"; exit 0; fi
        echo "Status: OFF"
        exit 2 ;;
    off | on)
        [ "$mode" = stuck ] || printf '%s' "$action" > "$state"
        echo "Success: Powered $action" ;;
    monitor) exit 0 ;;
    list) echo "1,node-one"; echo "2,node-two" ;;
    *) exit 1 ;;
esac
"#;

/// A controller in a directory of its own.
struct Controller {
    dir: tempfile::TempDir,
}

impl Controller {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let controller = Self { dir };
        std::fs::write(controller.program(), CONTROLLER).expect("script");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(controller.program(), mode).expect("mode");
        controller.set("on");
        controller
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn program(&self) -> PathBuf {
        self.path("fence_script")
    }

    fn set(&self, power: &str) {
        std::fs::write(self.path("state"), power).expect("state");
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn text(&self, more: &str) -> String {
        let at = |name: &str| self.path(name).display().to_string();
        format!(
            "[[device]]\nhost = \"host-2\"\nagent = \"{}\"\n{more}\nstate = \"{}\"\nlog = \"{}\"\npassword = \"{PASSWORD}\"\n",
            at("fence_script"),
            at("state"),
            at("log"),
        )
    }

    /// The device that its fence file describes.
    fn device(&self, more: &str) -> FenceDevice {
        let file = self.path("fence.toml");
        std::fs::write(&file, self.text(more)).expect("fence file");
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&file, mode).expect("mode");
        let devices = FenceFile::read(&file).expect("sound").devices;
        devices.into_values().next().expect("a device")
    }
}

fn ask(device: &FenceDevice, request: FenceRequest) -> FenceOutcome {
    device.ask(request, TIMEOUT).outcome
}

#[test]
fn power_is_asked_for_and_switched() {
    let controller = Controller::new();
    let device = controller.device("[device.options]");
    assert_eq!(ask(&device, FenceRequest::Status), FenceOutcome::PowerOn);
    assert_eq!(ask(&device, FenceRequest::Off), FenceOutcome::Done);
    assert_eq!(ask(&device, FenceRequest::Status), FenceOutcome::PowerOff);
    assert_eq!(ask(&device, FenceRequest::On), FenceOutcome::Done);
    assert_eq!(ask(&device, FenceRequest::Status), FenceOutcome::PowerOn);
    assert!(device.monitor(TIMEOUT).is_ok());
    let log = controller.log();
    assert!(log.contains(&format!("password={PASSWORD}")), "{log}");
    assert!(
        log.lines().all(|line| line.contains("args=0")),
        "nothing is said on the command line: {log}"
    );
}

#[test]
fn the_word_of_a_device_that_does_nothing_is_no_power_state() {
    let controller = Controller::new();
    let device = controller.device("[device.options]\nmode = \"stuck\"");
    assert_eq!(ask(&device, FenceRequest::Off), FenceOutcome::Done);
    assert_eq!(ask(&device, FenceRequest::Status), FenceOutcome::PowerOn);
}

#[test]
fn an_agent_that_does_not_understand_its_arguments_says_nothing_of_the_power() {
    // Its exit status is that of "off".
    let controller = Controller::new();
    let device = controller.device("[device.options]\nmode = \"bad_arguments\"");
    let outcome = ask(&device, FenceRequest::Status);
    let FenceOutcome::Unknown(why) = outcome else {
        panic!("{outcome:?}");
    };
    assert!(
        why.contains("status 2") && why.contains("unknown option"),
        "{why}"
    );
}

#[test]
fn credentials_are_in_no_message() {
    let controller = Controller::new();
    let device = controller.device("[device.options]\nmode = \"refuses\"");
    let outcome = format!("{:?}", ask(&device, FenceRequest::Off));
    assert!(
        outcome.contains("login failed") && !outcome.contains(PASSWORD),
        "{outcome}"
    );
    assert!(!format!("{device:?}").contains(PASSWORD), "{device:?}");
}

#[test]
fn an_agent_that_hangs_is_killed_with_all_that_it_started() {
    let controller = Controller::new();
    let device = controller.device("[device.options]\nmode = \"hangs\"");
    let answered = device.ask(FenceRequest::Status, Duration::from_secs(1));
    assert!(
        matches!(answered.outcome, FenceOutcome::Unknown(_)),
        "{answered:?}"
    );
    assert!(answered.took < TIMEOUT, "{answered:?}");
    let log = controller.log();
    let pid = log.split(' ').next().expect("its number");
    let gone = || !Path::new("/proc").join(pid).exists();
    let (_sender, pause) = channel::<()>();
    let began = Instant::now();
    while !gone() {
        assert!(began.elapsed() < TIMEOUT, "process {pid} is left");
        let _ = pause.recv_timeout(Duration::from_millis(10));
    }
}

#[test]
fn a_device_that_names_another_machine_is_told() {
    let controller = Controller::new();
    let right = controller.device("name = \"node-two\"\n[device.options]\nplug = \"2\"");
    assert_eq!(ask(&right, FenceRequest::Status), FenceOutcome::PowerOn);
    let wrong = controller.device("name = \"node-two\"\n[device.options]\nplug = \"1\"");
    let outcome = ask(&wrong, FenceRequest::Status);
    assert_eq!(outcome, FenceOutcome::Stranger("node-one".into()));
    let none = controller.device("name = \"node-two\"\n[device.options]\nplug = \"7\"");
    let outcome = ask(&none, FenceRequest::Status);
    assert!(matches!(outcome, FenceOutcome::NotDone(_)), "{outcome:?}");
}

#[test]
fn what_cannot_be_run_has_done_nothing() {
    let controller = Controller::new();
    let device = controller.device("[device.options]");
    std::fs::remove_file(controller.program()).expect("removed");
    for request in [FenceRequest::Status, FenceRequest::Off] {
        let outcome = ask(&device, request);
        assert!(matches!(outcome, FenceOutcome::NotDone(_)), "{outcome:?}");
    }
}

#[test]
fn answers_come_from_another_thread() {
    let controller = Controller::new();
    let device = controller.device("[device.options]");
    let host = device.host.clone();
    let fences = Fences::new(BTreeMap::from([(host.clone(), device)]));
    let (answers, answer) = channel();
    let done = move |input| drop(answers.send(input));
    let at_once = fences.perform(OpId(7), &host, FenceRequest::Status, TIMEOUT, done);
    assert_eq!(at_once, None);
    let answer = answer.recv_timeout(TIMEOUT).expect("an answer");
    assert_eq!(answer, Input::Fenced(OpId(7), FenceOutcome::PowerOn));
    let other = HostId::new("host-9").expect("id");
    let at_once = fences.perform(OpId(8), &other, FenceRequest::Off, TIMEOUT, |_| {});
    let not_done = |i: &Input| matches!(i, Input::Fenced(OpId(8), FenceOutcome::NotDone(_)));
    assert!(at_once.as_ref().is_some_and(not_done), "{at_once:?}");
}

/// One of Debian's agents, where it is installed.
#[test]
fn an_agent_of_the_distribution_is_understood() {
    let dir = tempfile::tempdir().expect("directory");
    let status = dir.path().join("power");
    std::fs::write(&status, "on").expect("power");
    let text = format!(
        "[[device]]\nhost = \"host-2\"\nagent = \"fence_dummy\"\n[device.options]\nstatus_file = \"{}\"\n",
        status.display()
    );
    let file = FenceFile::from_text(Path::new("fence.toml"), &text).expect("sound");
    let device = file.devices.into_values().next().expect("a device");
    if !device.program.exists() {
        eprintln!("skipped: fence_dummy is not installed (package fence-agents)");
        return;
    }
    assert_eq!(ask(&device, FenceRequest::Status), FenceOutcome::PowerOn);
    assert_eq!(ask(&device, FenceRequest::Off), FenceOutcome::Done);
    assert_eq!(ask(&device, FenceRequest::Status), FenceOutcome::PowerOff);
    assert_eq!(ask(&device, FenceRequest::On), FenceOutcome::Done);
    assert_eq!(ask(&device, FenceRequest::Status), FenceOutcome::PowerOn);
    assert!(device.monitor(TIMEOUT).is_ok());
}
