//! What a QEMU leaves behind that is killed while its disk hangs, by the ways in which it can use that disk: figures,
//! printed. `cargo test -p mainstay-lab --test real_storage -- --ignored --nocapture killed_qemu`.
//!
//! `docs/guard.md` has what was found, and why the driver uses `aio=threads,cache=none`.

use super::helper::in_the_way;
use super::kit::{Host, Lab, comes_true, skipped};
use mainstay_hypervisor::{ImageKind, make_image, read_counter};
use mainstay_lab::storage::Fault;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a killed process may take to be gone before it counts as what remains.
const GONE: Duration = Duration::from_secs(3);
/// How long QEMU may take to answer.
const ANSWER: Duration = Duration::from_secs(3);

/// How QEMU uses a disk, as its options say it. `native` needs O_DIRECT.
const WAYS: [(&str, &str); 5] = [
    ("threads", "none"),
    ("threads", "writethrough"),
    ("native", "none"),
    ("io_uring", "none"),
    ("io_uring", "writethrough"),
];

#[derive(Debug)]
struct Remains {
    /// The monitor answers while the disk hangs.
    answers: bool,
    /// States of the threads that outlive SIGKILL, the leader's first; empty: it is gone.
    threads: String,
    /// The image is locked all the same.
    locked: bool,
    /// From the host's end to the end of the process.
    gone_after: Duration,
}

/// A machine that boots from the image and counts onto it.
fn qemu(host: &Host, qmp: &Path, (aio, cache): (&str, &str)) -> Child {
    let drive = format!(
        "file={},format=raw,if=none,id=d0,cache={cache},aio={aio},file.locking=on",
        host.path("disk").display()
    );
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args("-machine q35,accel=tcg -m 32 -nodefaults -display none -drive".split(' '))
        .arg(drive)
        .args(["-device", "virtio-blk-pci,drive=d0,bootindex=0", "-qmp"])
        .arg(format!("unix:{},server=on,wait=off", qmp.display()))
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    host.spawn(&mut command)
}

/// Whether the monitor says how the machine is.
fn answers(qmp: &Path) -> bool {
    let ask = || {
        let stream = UnixStream::connect(qmp).ok()?;
        stream.set_read_timeout(Some(ANSWER)).ok()?;
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
        lines.next()?.ok()?;
        for command in ["qmp_capabilities", "query-status"] {
            writeln!(&stream, "{{\"execute\":\"{command}\"}}").ok()?;
            lines.next()?.ok()?;
        }
        Some(())
    };
    ask().is_some()
}

/// The states of the threads that are not gone, the leader's first.
fn threads(pid: u32) -> String {
    let state = |task: &Path| {
        let stat = std::fs::read_to_string(task.join("stat")).ok()?;
        stat.rsplit(')').next()?.trim().chars().next()
    };
    let Some(leader) = state(Path::new(&format!("/proc/{pid}"))) else {
        return String::new();
    };
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let others = tasks.into_iter().flatten().flatten();
    let others = others.filter(|task| task.file_name() != pid.to_string().as_str());
    let others: String = others.filter_map(|task| state(&task.path())).collect();
    if others.is_empty() && leader == 'Z' {
        return String::new();
    }
    format!("{leader}{others}")
}

fn remains(way: (&str, &str)) -> Remains {
    let lab = Lab::new();
    let image = lab.backing("disk");
    make_image(&image, 1 << 20, ImageKind::Bootable).unwrap();
    let count = || read_counter(&image).unwrap().map_or(0, |c| c.counter);
    let (mut one, two) = (lab.host("host-1"), lab.host("host-2"));
    let probe = two.open("disk");
    let qmp = lab.backing("qmp");
    let mut child = qemu(&one, &qmp, way);
    comes_true("it counts", || count() > 2);
    one.mount().set(Some(Fault::Hang));
    comes_true("its disk hangs", || one.mount().waiting().0 > 0);
    let answers = answers(&qmp);
    child.kill().unwrap();
    let killed = Instant::now();
    while !threads(child.id()).is_empty() && killed.elapsed() < GONE {
        std::thread::park_timeout(Duration::from_millis(5));
    }
    let left = threads(child.id());
    let locked = in_the_way(&probe, 100, 200).is_some();
    let freed = Instant::now();
    one.mount.take().unwrap().power_off(Duration::ZERO).unwrap();
    child.wait().unwrap();
    Remains {
        answers,
        threads: left,
        locked,
        gone_after: freed.elapsed(),
    }
}

#[test]
#[ignore = "figures"]
fn what_a_killed_qemu_leaves() {
    if skipped() {
        return;
    }
    println!(
        "aio       cache         QMP answers  threads left  image locked  gone after the power"
    );
    for way in WAYS {
        let found = remains(way);
        println!(
            "{:<9} {:<13} {:<12} {:<13} {:<13} {:?}",
            way.0, way.1, found.answers, found.threads, found.locked, found.gone_after
        );
        if way == ("threads", "none") {
            assert!(
                found.answers,
                "the driver's monitor works while a disk hangs"
            );
        }
        assert!(
            found.threads.is_empty() || found.locked,
            "what may still write keeps the image locked: {way:?} {found:?}"
        );
    }
}
