//! Runs one program with a time limit: its input, its end and what it said.

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::io::{self, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// More of what a program says is read and forgotten.
const OUTPUT_MAX_BYTES: u64 = 64 << 10;
/// What a killed program has said is waited for so long: something that it started may hold its output open.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Fence agents call programs such as ipmitool.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What became of a program.
#[derive(Debug)]
pub(super) struct Ran {
    /// Its exit status; none: it was killed.
    pub(super) code: Option<i32>,
    pub(super) out: String,
    pub(super) err: String,
    pub(super) timed_out: bool,
}

/// Runs a program that reads `input`, and kills it with all that it started in its process group at the deadline.
///
/// # Errors
/// When it could not be started: nothing was done.
pub(super) fn run(program: &Path, input: &str, deadline: Instant) -> io::Result<Ran> {
    let mut child = Command::new(program)
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("LC_ALL", "C.UTF-8")
        .envs(std::env::var_os("HOME").map(|home| ("HOME", home)))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let out = reader(child.stdout.take());
    let err = reader(child.stderr.take());
    if let Some(mut stdin) = child.stdin.take() {
        // It fits into the pipe, so that this never waits; a program that does not read it says so by its end.
        let _ = stdin.write_all(input.as_bytes());
    }
    let group = i32::try_from(child.id()).ok().map(Pid::from_raw);
    let (ended, may_reap) = wait(child);
    let left = deadline.saturating_duration_since(Instant::now());
    let timed_out = ended.recv_timeout(left).is_err();
    if timed_out && let Some(group) = group {
        // It is not reaped before it may be, so that the number still means it.
        let _ = killpg(group, Signal::SIGKILL);
    }
    drop(may_reap);
    let code = ended.recv_timeout(LAST_WORDS).ok().flatten();
    let words = |from: &Receiver<String>| from.recv_timeout(LAST_WORDS).unwrap_or_default();
    Ok(Ran {
        code: code.filter(|_| !timed_out),
        out: words(&out),
        err: words(&err),
        timed_out,
    })
}

/// Waits for the end of a process on a thread of its own: says when it has ended, reaps it when it is allowed to, and
/// then tells its exit status.
fn wait(mut child: Child) -> (Receiver<Option<i32>>, Sender<()>) {
    let (says, ended) = channel();
    let (may_reap, waits) = channel::<()>();
    std::thread::spawn(move || {
        if let Ok(pid) = i32::try_from(child.id()) {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            while waitid(Id::Pid(Pid::from_raw(pid)), flags) == Err(nix::Error::EINTR) {}
        }
        let _ = says.send(None);
        // Ends when the sender is dropped.
        let _ = waits.recv();
        let code = child.wait().ok().and_then(|status| status.code());
        let _ = says.send(code);
    });
    (ended, may_reap)
}

/// Reads to the end on a thread of its own, and gives the beginning of it.
fn reader(from: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (says, said) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            let _ = from.by_ref().take(OUTPUT_MAX_BYTES).read_to_end(&mut bytes);
            let _ = io::copy(&mut from, &mut io::sink());
        }
        drop(says.send(String::from_utf8_lossy(&bytes).into_owned()));
    });
    said
}
