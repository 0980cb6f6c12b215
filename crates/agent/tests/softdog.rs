//! The guard on a real kernel with a real watchdog: `softdog` in a guest of QEMU's. A slow test, run by
//!
//! ```text
//! mkdir kernel && cd kernel
//! apt-get download linux-image-6.1.0-56-cloud-amd64 busybox-static    # any kernel of Debian's for clouds
//! for package in *.deb; do dpkg-deb -x $package .; done
//! MAINSTAY_TEST_KERNEL=$PWD cargo test -p mainstay-agent --test softdog -- --ignored --nocapture
//! ```
//! Boot 1: the guard feeds it for longer than its time-out, and is killed with nobody to start it again. The kernel
//! resets the machine. Boot 2: the guard says how boot 1 ended, feeds it, is told to stop, lets it go, and the
//! machine outlives the time-out.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A boot takes seconds, the waits within it three minutes.
const PATIENCE: Duration = Duration::from_secs(480);

/// In the order in which they need each other.
const MODULES: [&str; 8] = [
    "virtio/virtio_ring.ko",
    "virtio/virtio.ko",
    "virtio/virtio_pci_legacy_dev.ko",
    "virtio/virtio_pci_modern_dev.ko",
    "virtio/virtio_pci.ko",
    "block/virtio_blk.ko",
    "watchdog/watchdog.ko",
    "watchdog/softdog.ko",
];

const AGENT: &str = r#"
host = "host-1"
cluster = "cluster.toml"
state_dir = "/disk/state"
run_dir = "/run/mainstay"
log_dir = "/run/log"
key_file = "key"
ca_file = "ca.pem"
cert_file = "cert.pem"
cert_key_file = "cert.key"
watchdog = "/dev/watchdog0"
"#;

const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev /run /disk
$b mount -t proc none /proc; $b mount -t sysfs none /sys
$b mount -t devtmpfs none /dev; $b mount -t tmpfs none /run
for module in MODULES; do
  case $module in
    softdog) $b insmod /modules/softdog.ko soft_margin=15 ;;
    *) [ -e /modules/$module.ko ] && $b insmod /modules/$module.ko ;;
  esac
done
$b mount -t ext4 /dev/vda /disk || $b poweroff -f
/guard guard --config /etc/agent.toml &
guard=$!
wait_for() { n=0; until eval "$1"; do n=$((n+1)); [ $n -gt 600 ] && echo "TEST: never: $1" && $b poweroff -f; $b sleep 0.1; done; }
wait_for "[ -e /disk/state/watchdog.json ]"
if [ -e /disk/second ]; then
  wait_for "[ -e /disk/state/watchdog-last.json ]"
  echo "TEST: last $($b cat /disk/state/watchdog-last.json)"
  $b kill -TERM $guard; wait $guard
  [ -e /disk/state/watchdog.json ] || echo "TEST: nothing is kept"
  $b sleep 30
  echo "TEST: let go"
  $b sync; $b poweroff -f
fi
echo > /disk/second; $b sync
$b sleep 30
echo "TEST: fed for twice the time-out"
$b kill -KILL $guard
$b sleep 120
echo "TEST: it was not reset"
$b poweroff -f
"#;

/// An archive of files as the kernel takes it for its first file system (cpio, "newc").
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        let (name_len, content_len) = (name.len() + 1, content.len());
        let mut head = "070701".to_owned();
        for field in [
            self.0.len(), // each has another inode
            usize::try_from(mode).unwrap(),
            0,
            0,
            1,
            0,
            content_len,
            0,
            0,
            0,
            0,
            name_len,
            0,
        ] {
            write!(head, "{field:08x}").unwrap();
        }
        self.0.extend(head.bytes());
        self.0.extend(name.bytes());
        self.0.push(0);
        self.pad();
        self.0.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        let whole = self.0.len().next_multiple_of(4);
        self.0.resize(whole, 0);
    }

    fn dir(&mut self, name: &str) {
        self.add(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, from: &Path) {
        let content = std::fs::read(from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        self.add(name, 0o100_755, &content);
    }
}

fn one_below(dir: &Path, beginning: &str) -> PathBuf {
    let mut all = std::fs::read_dir(dir).unwrap().flatten();
    let found = all.find(|e| e.file_name().to_string_lossy().starts_with(beginning));
    found
        .unwrap_or_else(|| panic!("{} has no {beginning}", dir.display()))
        .path()
}

/// The libraries that a program needs, as `ldd` names them.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let said = Command::new("ldd").arg(program).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let words = said.split_whitespace();
    words
        .filter(|w| w.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

fn first_file_system(kernel: &Path) -> Vec<u8> {
    let mut archive = Archive::default();
    for dir in [
        "bin",
        "etc",
        "modules",
        "lib",
        "lib/x86_64-linux-gnu",
        "lib64",
    ] {
        archive.dir(dir);
    }
    let drivers = one_below(&kernel.join("lib/modules"), "").join("kernel/drivers");
    let mut names = Vec::new();
    for module in MODULES {
        let from = drivers.join(module);
        let name = from.file_stem().unwrap().to_str().unwrap().to_owned();
        if from.exists() {
            archive.file(&format!("modules/{name}.ko"), &from);
        }
        names.push(name);
    }
    archive.file("bin/busybox", &kernel.join("bin/busybox"));
    let program = Path::new(env!("CARGO_BIN_EXE_mainstay-node"));
    archive.file("guard", program);
    for library in libraries(program) {
        let name = library.strip_prefix("/").unwrap().to_str().unwrap();
        archive.file(name, &library);
    }
    archive.add("etc/agent.toml", 0o100_644, AGENT.as_bytes());
    let init = INIT.replace("MODULES", &names.join(" "));
    archive.add("init", 0o100_755, init.as_bytes());
    archive.add("TRAILER!!!", 0, &[]);
    archive.0
}

/// Runs the machine until it ends or resets itself, and gives what it said.
fn boot(kernel: &Path, dir: &Path) -> String {
    let image = one_below(&kernel.join("boot"), "vmlinuz-");
    let serial = dir.join("serial");
    let mut child = Command::new("qemu-system-x86_64")
        .args("-machine q35,accel=tcg -m 768 -nodefaults -display none".split(' '))
        .args("-no-reboot -append".split(' '))
        .arg("console=ttyS0 quiet panic=1")
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(dir.join("initrd"))
        .arg("-drive")
        .arg(format!(
            "file={},format=raw,if=virtio",
            dir.join("disk").display()
        ))
        .arg("-serial")
        .arg(format!("file:{}", serial.display()))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let said = String::from_utf8_lossy(&std::fs::read(&serial).unwrap()).into_owned();
    std::io::stderr().write_all(said.as_bytes()).unwrap();
    assert!(begun.elapsed() < PATIENCE, "it goes on and on");
    said
}

#[test]
#[ignore = "slow, and needs a kernel of Debian's: see the top of the file"]
fn a_real_watchdog_resets_a_machine_without_a_guard_and_is_let_go_by_one_that_ends() {
    let kernel =
        std::env::var_os("MAINSTAY_TEST_KERNEL").expect("MAINSTAY_TEST_KERNEL is a directory");
    let kernel = PathBuf::from(kernel);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("initrd"), first_file_system(&kernel)).unwrap();
    let disk = dir.path().join("disk");
    std::fs::File::create(&disk)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    let made = Command::new("mkfs.ext4").arg("-q").arg(&disk).status();
    assert!(made.unwrap().success());

    let first = boot(&kernel, dir.path());
    assert!(first.contains("TEST: fed for twice the time-out"));
    assert!(first.contains("softdog: Initiating system reboot"));
    assert!(!first.contains("TEST: it was not reset"));

    let second = boot(&kernel, dir.path());
    assert!(second.contains("TEST: last {\"boot\":"));
    assert!(second.contains("TEST: nothing is kept"));
    assert!(second.contains("TEST: let go"), "it was reset");
}
