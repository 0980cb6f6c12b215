//! What every driver promises, tested on each of them.
#![expect(clippy::indexing_slicing, reason = "a test may fail")]
#![expect(unreachable_pub, reason = "a module of a test program")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use mainstay_hypervisor::{
    CgroupPlacement, DriverError, ExitCause, Process, StartError, VmSpec, freeze, read_counter,
};

#[path = "contract/kit.rs"]
mod kit;
#[path = "contract/single.rs"]
mod single;

use kit::{Kind, Kit, wait_until};

/// One test of each driver for each of these functions.
macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod on_embedded {
            $(#[test] fn $name() { super::$name(super::Kind::Embedded); })*
        }
        mod on_qemu {
            $(#[test] fn $name() {
                if !super::kit::skipped(super::Kind::Qemu) { super::$name(super::Kind::Qemu); }
            })*
        }
    };
}

#[path = "contract/inside.rs"]
mod inside;

contract!(
    prepared_guest_executes_nothing_until_resume,
    guest_frozen_by_cgroup_stands_still_until_thawed,
    guest_frozen_by_signal_stands_still_until_thawed,
    image_in_use_is_locked_for_everybody_else,
    killed_guest_is_gone_and_its_image_counts_on,
    frozen_guest_dies_when_killed,
    guest_that_shuts_down_is_clean,
    guest_killed_from_outside_has_crashed,
    restarted_agent_adopts_a_running_guest,
    restarted_agent_adopts_a_frozen_guest,
    restarted_agent_resumes_a_prepared_guest,
    restarted_agent_learns_how_a_guest_ended_meanwhile,
    guest_without_a_record_is_found,
    record_of_a_reused_pid_is_not_acted_upon,
    guest_outlives_a_killed_agent_and_stays_frozen,
    missing_image_is_told_apart,
    one_vm_is_not_prepared_twice,
    unknown_vm_is_gone_and_takes_no_requests,
    forgotten_guest_leaves_only_logs,
    request_to_a_frozen_guest_returns,
);

fn prepared_guest_executes_nothing_until_resume(kind: Kind) {
    let mut kit = Kit::new(kind);
    kit.prepare(CgroupPlacement::Auto);
    kit.assert_still();
    assert_eq!(kit.counter(), 0);
    kit.driver.resume("vm").expect("resume");
    kit.assert_counts();
    kit.driver.resume("vm").expect("resume again");
    kit.assert_counts();
}

fn freezes(kind: Kind, cgroup: CgroupPlacement) {
    let mut kit = Kit::new(kind);
    let process = kit.start(cgroup);
    assert!(!freeze::is_stopped(&process) && !freeze::is_held(&process));
    kit.freeze(&process);
    kit.assert_still();
    assert!(!kit.driver.is_gone("vm"));
    freeze::thaw(&process).expect("thaw");
    kit.assert_counts();
}

fn guest_frozen_by_cgroup_stands_still_until_thawed(kind: Kind) {
    freezes(kind, CgroupPlacement::Auto);
}

fn guest_frozen_by_signal_stands_still_until_thawed(kind: Kind) {
    freezes(kind, CgroupPlacement::Off);
}

fn image_in_use_is_locked_for_everybody_else(kind: Kind) {
    let mut kit = Kit::new(kind);
    let process = kit.prepare(CgroupPlacement::Auto);
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    let other = VmSpec {
        vm: "other".to_owned(),
        run_dir: elsewhere.path().join("run"),
        ..kit.spec()
    };
    let assert_locked = || {
        // Either driver keeps either out.
        for kind in [Kind::Embedded, Kind::Qemu] {
            if kit::skipped(kind) {
                continue;
            }
            let driver = kit::driver(kind);
            let refused = driver.prepare(&other);
            if let Ok(process) = &refused {
                freeze::kill(process).expect("kill");
            }
            assert!(
                matches!(refused, Err(StartError::ImageLocked { .. })),
                "{kind:?}: {refused:?}"
            );
            assert!(driver.is_gone("other"));
        }
    };
    assert_locked();
    kit.driver.resume("vm").expect("resume");
    kit.assert_counts();
    assert_locked();
    kit.freeze(&process);
    assert_locked();
}

fn killed_guest_is_gone_and_its_image_counts_on(kind: Kind) {
    let mut kit = Kit::new(kind);
    kit.start(CgroupPlacement::Auto);
    assert_eq!(kit.driver.wait_exit("vm", Duration::from_millis(1)), None);
    kit.driver.kill("vm").expect("kill");
    assert_eq!(kit.exit(), ExitCause::Killed);
    kit.driver.kill("vm").expect("kill what is gone");
    let before = read_counter(&kit.image())
        .expect("the image")
        .expect("a counter");
    if kind == Kind::Embedded {
        assert_eq!((before.generation, before.vm.as_str()), (7, "vm"));
        assert!(before.boottime_ns > 0);
    }
    let spec = VmSpec {
        generation: 8,
        ..kit.spec()
    };
    kit.try_prepare(&spec).expect("prepare again");
    kit.driver.resume("vm").expect("resume");
    wait_until("the counter goes on", || kit.counter() > before.counter);
    assert!(kit.counter() < before.counter + 1000);
}

fn frozen_guest_dies_when_killed(kind: Kind) {
    for cgroup in [CgroupPlacement::Auto, CgroupPlacement::Off] {
        let mut kit = Kit::new(kind);
        let process = kit.start(cgroup.clone());
        kit.freeze(&process);
        kit.driver.kill("vm").expect("kill");
        assert_eq!(kit.exit(), ExitCause::Killed);
        // Its directory is not left frozen for the next one.
        kit.start(cgroup);
    }
}

fn guest_that_shuts_down_is_clean(kind: Kind) {
    let mut kit = Kit::new(kind);
    kit.start(CgroupPlacement::Auto);
    kit.driver.request_shutdown("vm").expect("request");
    assert_eq!(kit.exit(), ExitCause::Clean);
}

fn guest_killed_from_outside_has_crashed(kind: Kind) {
    let mut kit = Kit::new(kind);
    let process = kit.start(CgroupPlacement::Auto);
    freeze::kill(&process).expect("kill");
    let ExitCause::Crashed { detail } = kit.exit() else {
        panic!("not crashed")
    };
    assert!(detail.contains("signal: 9"), "{detail}");
}

fn restarted_agent_adopts_a_running_guest(kind: Kind) {
    let mut kit = Kit::new(kind);
    let process = kit.start(CgroupPlacement::Auto);
    let found = kit.restart_agent();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].vm.as_str(), found[0].generation, &found[0].process),
        ("vm", 7, &process)
    );
    assert_eq!(found[0].exit, None);
    assert!(found[0].resumed);
    kit.assert_counts();
    kit.driver.request_shutdown("vm").expect("request");
    assert_eq!(kit.exit(), ExitCause::Clean);

    kit.start(CgroupPlacement::Auto);
    kit.restart_agent();
    kit.driver.kill("vm").expect("kill");
    assert_eq!(kit.exit(), ExitCause::Killed);

    let process = kit.start(CgroupPlacement::Auto);
    kit.restart_agent();
    freeze::kill(&process).expect("kill");
    assert!(matches!(kit.exit(), ExitCause::Crashed { .. }));
}

fn restarted_agent_adopts_a_frozen_guest(kind: Kind) {
    for cgroup in [CgroupPlacement::Auto, CgroupPlacement::Off] {
        let mut kit = Kit::new(kind);
        let process = kit.start(cgroup);
        kit.freeze(&process);
        let found = kit.restart_agent();
        assert_eq!(found.len(), 1);
        assert!(found[0].exit.is_none() && freeze::is_stopped(&found[0].process));
        kit.assert_still();
        freeze::thaw(&found[0].process).expect("thaw");
        kit.assert_counts();
        kit.driver.request_shutdown("vm").expect("request");
        assert_eq!(kit.exit(), ExitCause::Clean);
    }
}

fn restarted_agent_resumes_a_prepared_guest(kind: Kind) {
    let mut kit = Kit::new(kind);
    let process = kit.prepare(CgroupPlacement::Auto);
    kit.freeze(&process);
    let found = kit.restart_agent();
    assert!(
        found.iter().all(|f| !f.resumed),
        "nobody has asked for it yet"
    );
    freeze::thaw(&process).expect("thaw");
    kit.assert_still();
    assert_eq!(kit.counter(), 0, "a thaw alone executes nothing");
    kit.driver.resume("vm").expect("resume");
    kit.assert_counts();
}

fn restarted_agent_learns_how_a_guest_ended_meanwhile(kind: Kind) {
    let mut kit = Kit::new(kind);
    kit.start(CgroupPlacement::Auto);
    // Whoever asked is gone before the guest is off.
    kit.driver.request_shutdown("vm").expect("request");
    kit.restart_agent();
    assert_eq!(kit.exit(), ExitCause::Clean);

    let process = kit.start(CgroupPlacement::Auto);
    kit.driver = kit::driver(kind);
    freeze::kill(&process).expect("kill");
    wait_until("the guest is gone", || {
        freeze::all_threads_gone(process.pid, process.start_time)
    });
    let found = kit.restart_agent();
    assert!(matches!(
        found[0].exit.as_ref().expect("an exit").cause,
        ExitCause::Crashed { .. }
    ));
    assert!(matches!(kit.exit(), ExitCause::Crashed { .. }));
}

fn guest_without_a_record_is_found(kind: Kind) {
    let mut kit = Kit::new(kind);
    let process = kit.start(CgroupPlacement::Auto);
    std::fs::remove_file(kit.run_dir().join("vm.process.json")).expect("its record");
    let found = kit.restart_agent();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].generation, &found[0].process), (7, &process));
    assert!(found[0].resumed, "in doubt it has run");
    let refused = kit.try_prepare(&kit.spec());
    assert!(
        matches!(refused, Err(StartError::Exists { .. })),
        "{refused:?}"
    );
}

fn record_of_a_reused_pid_is_not_acted_upon(kind: Kind) {
    let mut kit = Kit::new(kind);
    let process = kit.start(CgroupPlacement::Auto);
    kit.driver.kill("vm").expect("kill");
    kit.exit();
    let record = kit.run_dir().join("vm.process.json");
    let text = std::fs::read_to_string(&record).expect("its record");
    let me = i32::try_from(std::process::id()).expect("a pid");
    let text = text.replace(
        &format!("\"pid\":{}", process.pid),
        &format!("\"pid\":{me}"),
    );
    // This process may have begun in the very clock tick in which the guest did.
    let text = text.replace(
        &format!("\"start_time\":{}", process.start_time),
        "\"start_time\":1",
    );
    std::fs::write(&record, text).expect("a forged record");
    let found = kit.restart_agent();
    assert_eq!(found[0].process.pid, me);
    assert!(found[0].exit.is_some());
    kit.driver.kill("vm").expect("nothing to kill");
    assert!(kit.driver.is_gone("vm"));
    let other = Process {
        pid: me,
        start_time: 1,
        ..process
    };
    assert!(matches!(
        freeze::freeze(&other),
        Err(freeze::FreezeError::Gone { .. })
    ));
    assert!(matches!(
        freeze::kill(&other),
        Err(freeze::FreezeError::Gone { .. })
    ));
}

fn guest_outlives_a_killed_agent_and_stays_frozen(kind: Kind) {
    let mut kit = Kit::new(kind);
    let name = kit.driver.name();
    let mut agent = Command::new(kit::PROGRAM)
        .args([
            "agent".as_ref(),
            name.as_ref(),
            kit.run_dir().as_os_str(),
            kit.image().as_os_str(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("an agent");
    let mut line = String::new();
    BufReader::new(agent.stdout.take().expect("its output"))
        .read_line(&mut line)
        .expect("a pid");
    let process = Process::of_pid(line.trim().parse().expect("a pid")).expect("the guest");
    kit.also_ends(process.clone());
    kit.assert_counts();
    kit.freeze(&process);
    agent.kill().expect("kill the agent");
    agent.wait().expect("the agent");
    kit.assert_still();
    assert!(freeze::is_stopped(&process) && freeze::is_held(&process));
    let found = kit.restart_agent();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].process, process);
    freeze::thaw(&process).expect("thaw");
    kit.assert_counts();
    kit.driver.request_shutdown("vm").expect("request");
    assert_eq!(kit.exit(), ExitCause::Clean);
}

fn missing_image_is_told_apart(kind: Kind) {
    let mut kit = Kit::new(kind);
    let spec = VmSpec {
        image: kit.image().with_file_name("none"),
        ..kit.spec()
    };
    let refused = kit.try_prepare(&spec);
    assert!(
        matches!(refused, Err(StartError::ImageMissing { .. })),
        "{refused:?}"
    );
    let spec = VmSpec {
        vm: "../vm".to_owned(),
        ..kit.spec()
    };
    assert!(matches!(
        kit.try_prepare(&spec),
        Err(StartError::Invalid { .. })
    ));
}

fn one_vm_is_not_prepared_twice(kind: Kind) {
    let mut kit = Kit::new(kind);
    let process = kit.prepare(CgroupPlacement::Auto);
    let refused = kit.try_prepare(&kit.spec());
    assert!(
        matches!(refused, Err(StartError::Exists { pid }) if pid == process.pid),
        "{refused:?}"
    );
    // Nor by an agent that has not yet looked for it.
    kit.driver = kit::driver(kind);
    let refused = kit.try_prepare(&kit.spec());
    assert!(
        matches!(refused, Err(StartError::Exists { pid }) if pid == process.pid),
        "{refused:?}"
    );
}

fn unknown_vm_is_gone_and_takes_no_requests(kind: Kind) {
    let kit = Kit::new(kind);
    assert!(kit.driver.is_gone("vm"));
    assert_eq!(kit.driver.wait_exit("vm", Duration::ZERO), None);
    assert!(matches!(
        kit.driver.resume("vm"),
        Err(DriverError::Unknown { .. })
    ));
    assert!(kit.driver.find(&kit.run_dir()).is_empty());
}

fn forgotten_guest_leaves_only_logs(kind: Kind) {
    let mut kit = Kit::new(kind);
    let process = kit.start(CgroupPlacement::Auto);
    kit.driver.forget("vm");
    assert!(!kit.driver.is_gone("vm"), "a living guest is not forgotten");
    kit.driver.kill("vm").expect("kill");
    kit.exit();
    kit.driver.forget("vm");
    assert!(kit.restart_agent().is_empty());
    for entry in std::fs::read_dir(kit.run_dir()).expect("the run directory") {
        let name = entry
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("a name");
        assert!(
            [".stderr", ".serial"].iter().any(|log| name.ends_with(log)),
            "{name}"
        );
    }
    assert!(process.cgroup.is_none_or(|dir| !dir.exists()));
}

fn request_to_a_frozen_guest_returns(kind: Kind) {
    let mut kit = Kit::new(kind);
    let process = kit.start(CgroupPlacement::Auto);
    kit.freeze(&process);
    // Sent or refused, but not waited for without a limit; the guest is well afterwards.
    let start = std::time::Instant::now();
    for _ in 0..2 {
        match kit.driver.resume("vm") {
            Ok(()) | Err(DriverError::Unresponsive { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(start.elapsed() < kit::PATIENCE);
    kit.assert_still();
    freeze::thaw(&process).expect("thaw");
    kit.assert_counts();
    kit.driver.request_shutdown("vm").expect("request");
    assert_eq!(kit.exit(), ExitCause::Clean);
}
