//! What a process on a host does, in this test program started again.

use super::kit::{Lab, comes_true, open};
use mainstay_hypervisor::launcher;
use mainstay_lab::storage::Fault;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const WHAT: &str = "MAINSTAY_TEST_HELPER";

/// A process that does `what` with `path`.
pub fn command(what: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["helper", "--exact", "--ignored", "--nocapture"])
        .env(WHAT, format!("{what} {}", path.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

/// Waits until the process has said this, and gives the rest of the line.
pub fn said(child: &mut Child, word: &str) -> String {
    let output = BufReader::new(child.stdout.as_mut().unwrap());
    for line in output.lines() {
        if let Some((_, rest)) = line.unwrap().split_once(word) {
            return rest.trim().into();
        }
    }
    panic!("the process ended without {word}");
}

pub fn main() {
    let what = std::env::var(WHAT).expect("started by a test");
    let (what, path) = what.split_once(' ').unwrap();
    let path = Path::new(path);
    match what {
        "lock" => {
            let file = open(path).unwrap();
            lock(&file, libc::F_WRLCK, 100, 4).unwrap();
            say("LOCKED");
            until_stdin_ends();
        }
        "wait" => {
            let file = open(path).unwrap();
            say("WAITS");
            let range = range(libc::F_WRLCK, 100, 4);
            fcntl(&file, FcntlArg::F_OFD_SETLKW(&range)).unwrap();
            say("LOCKED");
            until_stdin_ends();
        }
        "write" => {
            let file = open(path).unwrap();
            say("WRITES");
            // The end of its storage is its own.
            let mut sectors = (0u64..8).cycle();
            while let Some(n) = sectors.next()
                && file.write_all_at(&[1; 512], n * 512).is_ok()
            {}
        }
        "serve" => {
            // Threads that sleep, beside one that writes.
            let file = open(path).unwrap();
            let (_held, asked) = std::sync::mpsc::channel::<()>();
            std::thread::spawn(move || asked.recv());
            say("WRITES");
            while file.write_all_at(&[1; 512], 0).is_ok() {}
        }
        "launch" => {
            launcher::prepare();
            let _kept = open(path).unwrap();
            say("OPEN");
            let start = || Command::new("/bin/true").status();
            let mut lines = std::io::stdin().lines();
            lines.next().unwrap().unwrap();
            assert!(launcher::run(start).unwrap().success());
            say("APART");
            lines.next().unwrap().unwrap();
            assert!(start().unwrap().success());
            say("BESIDE");
        }
        "lab" => {
            let lab = Lab::new();
            let host = lab.host("host-1");
            let mut child = host.spawn(&mut command("write", &host.path("disk")));
            said(&mut child, "WRITES");
            host.mount().set(Some(Fault::Hang));
            comes_true("the write hangs", || host.mount().waiting().0 > 0);
            say(&format!("WRITER {}", child.id()));
            until_stdin_ends();
        }
        other => panic!("{other}"),
    }
    // Nobody reads what the test harness would say now.
    std::process::exit(0);
}

fn say(word: &str) {
    println!("{word}");
    std::io::stdout().flush().unwrap();
}

fn until_stdin_ends() {
    drop(std::io::stdin().read_to_end(&mut Vec::new()));
}

pub fn range(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap(),
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

/// Takes or gives up an OFD lock without waiting.
pub fn lock(file: &File, kind: i32, start: i64, len: i64) -> nix::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind, start, len))).map(drop)
}

/// The lock that is in the way of an exclusive one, if any: its kind and range.
pub fn in_the_way(file: &File, start: i64, len: i64) -> Option<(i32, i64, i64)> {
    let mut found = range(libc::F_WRLCK, start, len);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found)).unwrap();
    let kind = i32::from(found.l_type);
    (kind != libc::F_UNLCK).then_some((kind, found.l_start, found.l_len))
}
