//! What only one driver can show, and what concerns no driver.

use std::process::{Command, Stdio};
use std::time::Duration;

use mainstay_hypervisor::{
    Acceleration, CgroupPlacement, ExitCause, Hypervisor, Process, QemuDriver, QemuOptions,
    StartError, freeze,
};

use crate::kit::{self, Kind, Kit, wait_until};

/// A program that says it is QEMU and then does this.
fn false_qemu(dir: &std::path::Path, action: &str) -> QemuDriver {
    let program = dir.join("qemu");
    let script = format!(
        "#!/bin/sh\ncase $1 in --version) echo QEMU emulator version 9.0.0;; *) {action};; esac\n"
    );
    std::fs::write(&program, script).expect("a program");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, executable).expect("its mode");
    QemuDriver::new(QemuOptions {
        program,
        acceleration: Some(Acceleration::Tcg),
        start_timeout: Duration::from_millis(300),
        ..QemuOptions::default()
    })
}

#[test]
fn qemu_that_does_not_answer_is_killed() {
    let kit = Kit::new(Kind::Qemu);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let driver = false_qemu(dir.path(), "exec sleep 1000");
    let refused = driver.prepare(&kit.spec());
    assert!(
        matches!(refused, Err(StartError::Failed { .. })),
        "{refused:?}"
    );
    assert!(driver.is_gone("vm") && driver.find(&kit.run_dir()).is_empty());
}

#[test]
fn qemu_that_fails_is_quoted() {
    let kit = Kit::new(Kind::Qemu);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let start = |words: &str| {
        let driver = false_qemu(dir.path(), &format!("echo '{words}' >&2; exit 1"));
        driver.prepare(&kit.spec()).expect_err("not to start")
    };
    let error = start("no such machine");
    assert!(
        matches!(error, StartError::Failed { ref detail } if detail == "no such machine"),
        "{error}"
    );
    let error = start("cannot set up guest memory: Cannot allocate memory");
    assert!(
        matches!(error, StartError::NotEnoughMemory { needed_mb: 16 }),
        "{error}"
    );
}

#[test]
fn qemu_says_when_it_does_not_use_kvm() {
    if kit::skipped(Kind::Qemu) {
        return;
    }
    let driver = QemuDriver::new(QemuOptions::default());
    let acceleration = driver.acceleration().expect("a QEMU");
    let weaknesses = driver.weaknesses();
    eprintln!("{acceleration:?} {weaknesses:?}");
    assert_eq!(
        acceleration == Acceleration::Tcg,
        weaknesses
            .iter()
            .any(|text| text.contains("KVM does not work"))
    );
}

/// The sleep states of ACPI, as a guest writes them to its power management register on QEMU's machines.
#[derive(Clone, Copy)]
enum Sleep {
    /// S3: suspended to memory.
    Memory = 1,
    /// S4: suspended to its disk; the machine goes off.
    Disk = 2,
}

/// The image of a guest that suspends itself as soon as it runs: `out 0x604, SLP_EN | state << 10; hlt`.
fn suspends_itself(kit: &Kit, state: Sleep) {
    const ENABLE: u16 = 1 << 13;
    let [low, high] = (ENABLE | (state as u16) << 10).to_le_bytes();
    let mut sector = [0; 512];
    let code = [
        0xba, 0x04, 0x06, 0xb8, low, high, 0xef, 0xfa, 0xf4, 0xeb, 0xfd,
    ];
    sector[..code.len()].copy_from_slice(&code);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let image = std::fs::OpenOptions::new().write(true).open(kit.image());
    let written =
        image.and_then(|file| std::os::unix::fs::FileExt::write_all_at(&file, &sector, 0));
    written.expect("an image");
}

#[test]
fn guest_that_suspends_to_memory_lives() {
    if kit::skipped(Kind::Qemu) {
        return;
    }
    let mut kit = Kit::new(Kind::Qemu);
    suspends_itself(&kit, Sleep::Memory);
    kit.prepare(CgroupPlacement::Auto);
    kit.driver.resume("vm").expect("resume");
    let ended = kit.driver.wait_exit("vm", Duration::from_secs(2));
    assert_eq!(ended, None, "it may be woken: nobody restarts it");
}

#[test]
fn guest_that_suspends_to_its_disk_is_clean() {
    if kit::skipped(Kind::Qemu) {
        return;
    }
    let mut kit = Kit::new(Kind::Qemu);
    suspends_itself(&kit, Sleep::Disk);
    kit.prepare(CgroupPlacement::Auto);
    kit.driver.resume("vm").expect("resume");
    assert_eq!(kit.exit(), ExitCause::Clean);
}

#[test]
fn qemu_that_ends_by_itself_has_crashed() {
    if kit::skipped(Kind::Qemu) {
        return;
    }
    for (signal, says) in [("ABRT", "signal: 6"), ("TERM", "")] {
        let mut kit = Kit::new(Kind::Qemu);
        let process = kit.start(CgroupPlacement::Auto);
        let pid = process.pid.to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(sent.is_ok_and(|status| status.success()));
        let cause = kit.exit();
        assert!(
            matches!(cause, ExitCause::Crashed { ref detail } if detail.contains(says)),
            "{signal}: {cause:?}"
        );
    }
}

#[test]
fn embedded_guest_that_aborts_has_crashed() {
    let kit = Kit::new(Kind::Embedded);
    let driver = kit::embedded();
    driver.prepare(&kit.spec()).expect("prepare");
    driver.crash("vm").expect("crash");
    let exit = driver.wait_exit("vm", kit::PATIENCE).expect("an exit");
    assert!(
        matches!(exit.cause, ExitCause::Crashed { ref detail } if detail.contains("signal: 6")),
        "{exit:?}"
    );
}

#[test]
fn process_whose_leader_is_a_zombie_is_not_gone() {
    let mut child = Command::new(kit::PROGRAM)
        .arg("leaderless")
        .stdin(Stdio::piped())
        .spawn()
        .expect("a process");
    let process = Process::of_pid(i32::try_from(child.id()).expect("a pid")).expect("the process");
    let leader_is_zombie = || {
        std::fs::read_to_string(format!("/proc/{0}/task/{0}/stat", process.pid))
            .is_ok_and(|s| s.contains(") Z "))
    };
    wait_until("the leader is a zombie", leader_is_zombie);
    assert!(!freeze::all_threads_gone(process.pid, process.start_time));
    freeze::freeze(&process).expect("freeze");
    wait_until("the other thread is stopped", || {
        freeze::is_stopped(&process)
    });
    assert!(!freeze::all_threads_gone(process.pid, process.start_time));
    freeze::kill(&process).expect("kill");
    wait_until("all threads are gone", || {
        freeze::all_threads_gone(process.pid, process.start_time)
    });
    child.wait().expect("the process");
}
