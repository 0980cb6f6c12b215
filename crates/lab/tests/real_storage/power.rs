//! A host that loses power, and a lab that does.

use super::helper::{self, said};
use super::kit::{Lab, comes_true, number, skipped};
use mainstay_hypervisor::{Process, freeze};
use mainstay_lab::cgroup;
use mainstay_lab::procs::start_time;
use mainstay_lab::storage::Fault;
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[test]
fn what_waits_has_no_effect_after_power_off() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let mut host = lab.host("host-1");
    let file = Arc::new(host.open("disk"));
    file.write_all_at(&[1; 512], 0).unwrap();
    drop(host.open("other"));
    for fault in [Fault::Hang, Fault::Slow(Duration::from_secs(3600))] {
        let waiting = Arc::new(host.open("disk"));
        host.mount().set(Some(fault));
        let writer = host.hang(move || waiting.write_all_at(&[2; 512], 0));
        let (from, to) = (host.path("other"), host.path("new"));
        let maker = host.hang(move || fs::hard_link(from, to));
        let mount = host.mount.take().unwrap();
        mount.power_off(Duration::ZERO).unwrap();
        assert_ne!(number(writer.join().unwrap()), 0, "freed with an error");
        assert_ne!(number(maker.join().unwrap()), 0);
        host.mount = Some(lab.storage.mount(&lab.spec("host-1"), &host.ns).unwrap());
    }
    assert_ne!(number(file.write_at(&[3; 512], 0)), 0, "a file of before");
    assert_eq!(lab.log.all().len(), 1);
    assert!(!lab.backing("new").exists());
    assert_eq!(fs::read(lab.backing("disk")).unwrap(), [1; 512]);
    let path = host.path("disk");
    assert_eq!(
        host.run(|| fs::read(&path)).unwrap(),
        [1; 512],
        "mounted anew"
    );
}

/// Removed when the test ends, however it does.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        cgroup::remove_tree(&self.0);
    }
}

#[test]
fn a_frozen_process_whose_disk_hangs_executes_nothing_and_is_stopped_when_it_answers() {
    if skipped() {
        return;
    }
    let Some(groups) = cgroup::root() else {
        eprintln!("SKIPPED: no cgroup v2 file system is mounted");
        return;
    };
    let lab = Lab::new();
    let host = lab.host("host-1");
    let mut child = host.spawn(&mut helper::command("serve", &host.path("disk")));
    said(&mut child, "WRITES");
    let pid = i32::try_from(child.id()).unwrap();
    let group = Group(groups.join(format!("mainstay-test-{pid}")));
    fs::create_dir(&group.0).unwrap();
    fs::write(group.0.join("cgroup.procs"), pid.to_string()).unwrap();
    let process = Process {
        cgroup: Some(group.0.clone()),
        ..Process::of_pid(pid).unwrap()
    };
    assert!(!freeze::is_held(&process), "it is told nothing");
    host.mount().set(Some(Fault::Hang));
    comes_true("a write hangs", || host.mount().waiting().0 > 0);
    assert!(!freeze::is_held(&process), "its other threads could go on");
    freeze::freeze(&process).unwrap();
    comes_true("nothing of it executes", || freeze::is_held(&process));
    assert!(!freeze::is_stopped(&process), "a thread waits for the disk");
    host.mount().set(None);
    comes_true("all of it is stopped", || freeze::is_stopped(&process));
    let written = lab.log.all().len();
    freeze::thaw(&process).unwrap();
    comes_true("it goes on", || lab.log.all().len() > written);
    assert!(!freeze::is_held(&process));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_process_that_hangs_is_freed_by_power_off() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let mut host = lab.host("host-1");
    let mut child = host.spawn(&mut helper::command("write", &host.path("disk")));
    said(&mut child, "WRITES");
    host.mount().set(Some(Fault::Hang));
    comes_true("a write hangs", || host.mount().waiting().0 > 0);
    let process = Process::of_pid(child.id().cast_signed()).unwrap();
    assert!(!freeze::is_killed(&process), "it only waits");
    child.kill().unwrap();
    comes_true("none of its threads executes any more", || {
        freeze::is_killed(&process)
    });
    // It must not end: each look gives it the time of a system call, and there are many.
    for _ in 0..200 {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it hangs in the kernel"
        );
        std::thread::yield_now();
    }
    let start = Instant::now();
    host.mount
        .take()
        .unwrap()
        .power_off(Duration::ZERO)
        .unwrap();
    let off = start.elapsed();
    child.wait().unwrap();
    eprintln!(
        "power off took {off:?}, the process was gone after {:?}",
        start.elapsed()
    );
    assert!(start.elapsed() < Duration::from_secs(5));
    let landed = lab.log.all().len();
    drop(host);
    assert_eq!(lab.log.all().len(), landed);
}

#[test]
fn power_off_leaves_the_other_hosts_alone() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let (mut one, two) = (lab.host("host-1"), lab.host("host-2"));
    let file = two.open("disk");
    for _ in 0..5 {
        one.mount().set(Some(Fault::Hang));
        let path = one.path("disk");
        let hung = one.hang(move || fs::read(path));
        one.mount.take().unwrap().power_off(Duration::ZERO).unwrap();
        assert!(hung.join().unwrap().is_err());
        file.write_all_at(&[1; 512], 0).unwrap();
        one.mount = Some(lab.storage.mount(&lab.spec("host-1"), &one.ns).unwrap());
    }
}

#[test]
fn nothing_hangs_when_the_lab_itself_is_killed() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut lab = helper::command("lab", dir.path())
        .env("TMPDIR", dir.path())
        .spawn()
        .unwrap();
    let writer: i32 = said(&mut lab, "WRITER").parse().unwrap();
    let writer = Pid::from_raw(writer);
    assert!(start_time(writer).is_some());
    lab.kill().unwrap();
    lab.wait().unwrap();
    // Its write fails when the connection is closed, and it ends by itself.
    comes_true("what hung in its storage is gone", || {
        start_time(writer).is_none()
    });
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("mainstay-lab"), "{mounts}");
}

#[test]
fn a_process_of_a_host_inherits_nothing_of_the_storage() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host("host-1");
    let _open = host.open("disk");
    let list = host.run(|| {
        Command::new("ls")
            .args(["-l", "/proc/self/fd"])
            .output()
            .unwrap()
    });
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(list.contains("/proc/"), "{list}");
    for word in ["fuse", "ds-1", "disk", "mnt:", "net:"] {
        assert!(!list.contains(word), "{word}: {list}");
    }
}
