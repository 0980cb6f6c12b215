//! What a contract test has: a driver, a run directory and an image, and guests that end with it.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use mainstay_hypervisor::{
    CgroupPlacement, EmbeddedDriver, EmbeddedOptions, ExitCause, Hypervisor, ImageKind, Process,
    QemuDriver, QemuOptions, StartError, VmSpec, freeze, make_image, read_counter,
};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_mainstay-guest");

/// Several machines under TCG start at once on a small host.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Five counts long.
const STILL: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Embedded,
    Qemu,
}

/// True when the tests of this driver cannot run here; a failure where they must.
pub fn skipped(kind: Kind) -> bool {
    if kind == Kind::Embedded
        || Command::new("qemu-system-x86_64")
            .arg("--version")
            .output()
            .is_ok()
    {
        return false;
    }
    assert!(
        std::env::var_os("MAINSTAY_REQUIRE_QEMU").is_none_or(|value| value != "1"),
        "MAINSTAY_REQUIRE_QEMU=1, but there is no QEMU; apt-get install qemu-system-x86"
    );
    eprintln!("SKIPPED: there is no qemu-system-x86_64; apt-get install qemu-system-x86");
    true
}

/// Whether the condition is met within [`PATIENCE`]. For what the kernel does with a process that was told
/// to stop or to end: nothing announces it, and it is done in less time than any pause would take.
fn comes_true(condition: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() >= PATIENCE {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    assert!(comes_true(condition), "{what}: not within {PATIENCE:?}");
}

/// Whether the condition on the content of a file is met within that time; looked at when it is written.
fn on_write(file: &Path, time: Duration, condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + time;
    let writes = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).expect("inotify");
    writes
        .add_watch(file, AddWatchFlags::IN_MODIFY)
        .expect("a watch");
    while !condition() {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).expect("less than a month");
        let mut written = [PollFd::new(writes.as_fd(), PollFlags::POLLIN)];
        if poll(&mut written, timeout).expect("poll") == 0 {
            return false;
        }
        writes.read_events().expect("what was written");
    }
    true
}

#[derive(Debug)]
pub struct Kit {
    kind: Kind,
    dir: tempfile::TempDir,
    pub driver: Box<dyn Hypervisor>,
    started: Vec<Process>,
}

impl Kit {
    pub fn new(kind: Kind) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        make_image(&dir.path().join("disk"), 1 << 20, ImageKind::Bootable).expect("an image");
        Self {
            kind,
            dir,
            driver: driver(kind),
            started: Vec::new(),
        }
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn image(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    pub fn spec(&self) -> VmSpec {
        VmSpec {
            vm: "vm".to_owned(),
            generation: 7,
            image: self.image(),
            memory_mb: 16,
            options: BTreeMap::new(),
            run_dir: self.run_dir(),
            cgroup: CgroupPlacement::Auto,
            oom_score_adj: 0,
        }
    }

    pub fn try_prepare(&mut self, spec: &VmSpec) -> Result<Process, StartError> {
        let process = self.driver.prepare(spec)?;
        self.started.push(process.clone());
        Ok(process)
    }

    pub fn prepare(&mut self, cgroup: CgroupPlacement) -> Process {
        let spec = VmSpec {
            cgroup,
            ..self.spec()
        };
        self.try_prepare(&spec).expect("prepare")
    }

    /// A guest that has counted.
    pub fn start(&mut self, cgroup: CgroupPlacement) -> Process {
        let process = self.prepare(cgroup);
        self.driver.resume("vm").expect("resume");
        self.assert_counts();
        process
    }

    /// To be ended with the test, though another process started it.
    pub fn also_ends(&mut self, process: Process) {
        self.started.push(process);
    }

    /// The agent ends and another begins, which adopts what it finds.
    pub fn restart_agent(&mut self) -> Vec<mainstay_hypervisor::Found> {
        self.driver = driver(self.kind);
        self.driver.find(&self.run_dir())
    }

    pub fn counter(&self) -> u64 {
        read_counter(&self.image())
            .expect("the image")
            .map_or(0, |counter| counter.counter)
    }

    pub fn assert_counts(&self) {
        let before = self.counter();
        let counts = on_write(&self.image(), PATIENCE, || self.counter() > before + 1);
        assert!(counts, "the guest counts: not within {PATIENCE:?}");
    }

    pub fn assert_still(&self) {
        let before = self.counter();
        let counts = on_write(&self.image(), STILL, || self.counter() != before);
        assert!(!counts, "the guest counts");
    }

    /// It counts no more, from soon on.
    pub fn assert_comes_to_rest(&self) {
        let start = Instant::now();
        loop {
            let before = self.counter();
            if !on_write(&self.image(), STILL, || self.counter() != before) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "the guest counts on");
        }
    }

    pub fn freeze(&self, process: &Process) {
        freeze::freeze(process).expect("freeze");
        wait_until("the guest is stopped", || freeze::is_stopped(process));
    }

    pub fn exit(&self) -> ExitCause {
        let exit = self
            .driver
            .wait_exit("vm", PATIENCE)
            .expect("the guest ends");
        assert!(self.driver.is_gone("vm"));
        exit.cause
    }
}

impl Drop for Kit {
    fn drop(&mut self) {
        // Knows them all, also one whose record a test removed.
        let last = driver(self.kind);
        last.find(&self.run_dir());
        for process in &self.started {
            // Most are gone already.
            let _ = freeze::kill(process);
            comes_true(|| freeze::all_threads_gone(process.pid, process.start_time));
            if let Some(dir) = &process.cgroup {
                let _ = std::fs::remove_dir(dir);
            }
        }
        // Looking at a guest that is gone removes its cgroups.
        last.find(&self.run_dir());
        last.is_gone("vm");
    }
}

pub fn driver(kind: Kind) -> Box<dyn Hypervisor> {
    match kind {
        Kind::Embedded => Box::new(embedded()),
        Kind::Qemu => Box::new(QemuDriver::new(QemuOptions::default())),
    }
}

pub fn embedded() -> EmbeddedDriver {
    EmbeddedDriver::new(EmbeddedOptions {
        program: Some(PROGRAM.into()),
        ..EmbeddedOptions::default()
    })
}
