//! What the lab does to guests, on real machines; embedded guests take the same way to the driver, whose
//! contract tests have them.

use mainstay_hypervisor::{
    CgroupPlacement, ExitCause, Hypervisor, ImageKind, QemuDriver, QemuOptions, VmSpec, freeze,
    make_image, read_counter,
};
use mainstay_lab::fail::Result;
use mainstay_lab::guests;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Several machines under TCG start at once on a small host.
const PATIENCE: Duration = Duration::from_secs(60);

struct Host {
    dir: tempfile::TempDir,
    driver: QemuDriver,
}

impl Host {
    /// A host without a VM; none where there is no QEMU.
    fn new() -> Option<Self> {
        let there = std::process::Command::new("qemu-system-x86_64")
            .arg("--version")
            .output()
            .is_ok();
        if !there {
            let needed = std::env::var_os("MAINSTAY_REQUIRE_QEMU").is_some_and(|v| v == "1");
            assert!(!needed, "MAINSTAY_REQUIRE_QEMU=1, but there is no QEMU");
            eprintln!("SKIPPED: there is no qemu-system-x86_64; apt-get install qemu-system-x86");
            return None;
        }
        Some(Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            driver: QemuDriver::new(QemuOptions::default()),
        })
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn counter(&self) -> u64 {
        let counter = read_counter(&self.dir.path().join("disk")).expect("the image");
        counter.map_or(0, |counter| counter.counter)
    }

    fn start(&self) {
        let image = self.dir.path().join("disk");
        if !image.exists() {
            make_image(&image, 1 << 20, ImageKind::Bootable).expect("an image");
        }
        let spec = VmSpec {
            vm: "vm".to_owned(),
            generation: 1,
            image,
            memory_mb: 16,
            options: std::collections::BTreeMap::new(),
            run_dir: self.run_dir(),
            cgroup: CgroupPlacement::Auto,
            oom_score_adj: 0,
        };
        self.driver.prepare(&spec).expect("prepare");
        self.driver.resume("vm").expect("resume");
        let (start, before) = (Instant::now(), self.counter());
        while self.counter() == before {
            assert!(start.elapsed() < PATIENCE, "the guest does not count");
            std::thread::yield_now();
        }
    }

    fn ends(&self) -> ExitCause {
        let exit = self.driver.wait_exit("vm", PATIENCE);
        exit.expect("the guest ends").cause
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Most are gone already.
        let _ = self.driver.kill("vm");
        self.driver.wait_exit("vm", PATIENCE);
        self.driver.forget("vm");
    }
}

type Fault = fn(&Path, &str) -> Result<bool>;

const FAULTS: [Fault; 5] = [
    guests::crash,
    guests::hang,
    guests::panic,
    guests::shutdown,
    guests::oom_kill,
];

#[test]
fn nothing_happens_where_the_vm_is_not() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for fault in FAULTS {
        assert!(!fault(dir.path(), "vm").expect("no guest is no error"));
    }
}

#[test]
fn each_end_is_named_by_the_driver() {
    let Some(host) = Host::new() else { return };
    let ends: [(Fault, &str); 3] = [
        (guests::crash, "Crashed"),
        (guests::panic, "Panicked"),
        (guests::shutdown, "Clean"),
    ];
    for (fault, named) in ends {
        host.start();
        assert!(fault(&host.run_dir(), "vm").expect("done"));
        let cause = format!("{:?}", host.ends());
        assert!(cause.starts_with(named), "{cause}");
        assert!(!fault(&host.run_dir(), "vm").expect("it is gone"));
    }
}

#[test]
fn the_kernel_kills_a_guest_for_want_of_memory() {
    let Some(host) = Host::new() else { return };
    host.start();
    match guests::oom_kill(&host.run_dir(), "vm") {
        Ok(killed) => {
            assert!(killed);
            assert_eq!(host.ends(), ExitCause::OutOfMemory);
        }
        Err(error) => {
            assert!(error.to_string().contains("memory controller"), "{error}");
            eprintln!("SKIPPED: {error}");
        }
    }
}

#[test]
fn a_frozen_guest_is_left_alone_but_crashes() {
    let Some(host) = Host::new() else { return };
    host.start();
    let found = host.driver.find(&host.run_dir());
    let process = &found.first().expect("the guest").process;
    freeze::freeze(process).expect("freeze");
    let start = Instant::now();
    while !freeze::is_stopped(process) {
        assert!(start.elapsed() < PATIENCE, "it is not frozen");
        std::thread::yield_now();
    }
    for fault in [
        guests::hang,
        guests::panic,
        guests::shutdown,
        guests::oom_kill,
    ] {
        assert!(!fault(&host.run_dir(), "vm").expect("nothing is no error"));
    }
    freeze::thaw(process).expect("thaw");
    let before = host.counter();
    let start = Instant::now();
    while host.counter() < before + 3 {
        assert!(start.elapsed() < PATIENCE, "it does not go on");
        std::thread::yield_now();
    }
    freeze::freeze(process).expect("freeze");
    assert!(guests::crash(&host.run_dir(), "vm").expect("crash"));
    assert!(matches!(host.ends(), ExitCause::Crashed { .. }));
}
