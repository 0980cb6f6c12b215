//! QEMU on the shared storage: its image locks, and a machine whose disk hangs.

use super::helper::in_the_way;
use super::kit::{Host, Lab, comes_true, skipped};
use mainstay_hypervisor::{ImageKind, make_image, read_counter};
use mainstay_lab::procs::start_time;
use mainstay_lab::storage::Fault;
use nix::unistd::Pid;
use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn qemu_is_missing() -> bool {
    let missing = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .is_err();
    if missing {
        eprintln!("SKIPPED: there is no qemu-system-x86_64; apt-get install qemu-system-x86");
    }
    missing
}

/// A machine that boots from the image and counts onto it.
fn qemu(host: &Host) -> Child {
    let drive = format!(
        "file={},format=raw,if=none,id=d0,cache=none,aio=threads,file.locking=on",
        host.path("disk").display()
    );
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args("-machine q35,accel=tcg -m 32 -nodefaults -display none -drive".split(' '))
        .arg(drive)
        .args(["-device", "virtio-blk-pci,drive=d0,bootindex=0"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    host.spawn(&mut command)
}

fn is_gone(child: &Child) -> bool {
    start_time(Pid::from_raw(i32::try_from(child.id()).unwrap())).is_none()
}

fn locked(probe: &File) -> bool {
    in_the_way(probe, 100, 200).is_some()
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_second_qemu_on_another_host_is_refused() {
    if skipped() || qemu_is_missing() {
        return;
    }
    let lab = Lab::new();
    make_image(&lab.backing("disk"), 1 << 20, ImageKind::Bootable).unwrap();
    let (one, two) = (lab.host("host-1"), lab.host("host-2"));
    let probe = two.open("disk");
    let first = qemu(&one);
    comes_true("the first has its locks", || {
        assert!(!is_gone(&first));
        locked(&probe)
    });
    let second = qemu(&two).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success());
    assert!(text.contains("lock"), "{text}");
    end(first);
    comes_true("its locks are free", || !locked(&probe));
    let third = qemu(&two);
    comes_true("it starts elsewhere", || locked(&probe));
    end(third);
}

#[test]
fn a_qemu_that_hangs_in_its_disk_goes_with_the_power_and_counts_on_elsewhere() {
    if skipped() || qemu_is_missing() {
        return;
    }
    let lab = Lab::new();
    let image = lab.backing("disk");
    make_image(&image, 1 << 20, ImageKind::Bootable).unwrap();
    let count = || read_counter(&image).unwrap().map_or(0, |c| c.counter);
    let (mut one, two) = (lab.host("host-1"), lab.host("host-2"));
    let probe = two.open("disk");
    let mut first = qemu(&one);
    comes_true("it counts", || count() > 2);

    one.mount().set(Some(Fault::Hang));
    comes_true("its disk hangs", || one.mount().waiting().0 > 0);
    let last = count();
    first.kill().unwrap();
    assert!(locked(&probe), "the storage has not heard of its end");

    let keep = Duration::from_millis(300);
    let start = Instant::now();
    one.mount.take().unwrap().power_off(keep).unwrap();
    first.wait().unwrap();
    eprintln!("QEMU was gone after {:?}", start.elapsed());
    comes_true("its locks are given up", || !locked(&probe));
    assert!(start.elapsed() >= keep);
    assert_eq!(count(), last, "what hung has not landed");

    let second = qemu(&two);
    comes_true("it goes on elsewhere", || count() > last);
    end(second);
    let writers: Vec<String> = lab.log.all().into_iter().map(|w| w.host).collect();
    assert!(
        writers.is_sorted(),
        "no write of host-1 after one of host-2"
    );
}
