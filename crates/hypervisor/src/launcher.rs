//! Threads that share no open file with the rest of the program; processes are started by them.
//!
//! A new process begins with a copy of the files that its starter has open, and closes those when it executes its
//! program. On a file system in user space each close is a request (FLUSH) that waits for the answer: a process
//! started beside an operation that hangs on one datastore would hang too, whatever it was started for.
//!
//! Never here: what is started. What is done here neither logs nor uses a file that was opened elsewhere, for the
//! number of that file names another one here, or none.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread::Builder;

use nix::sched::{CloneFlags, unshare};

type Job = Box<dyn FnOnce() + Send>;

/// A child is forked on it, which runs little more than system calls until it executes its program.
const STACK_BYTES: usize = 256 * 1024;

static JOBS: OnceLock<Option<Sender<Job>>> = OnceLock::new();

/// Makes the launcher, from whose threads [`run`] works from then on.
///
/// Called once, before anything is opened that may hang: what is open now stays open for as long as the program
/// runs. Without it, or where the system refuses it, [`run`] works on the thread that calls it.
pub fn prepare() {
    JOBS.get_or_init(|| {
        let (jobs, next) = channel::<Job>();
        let (ready, is_ready) = sync_channel(1);
        let thread = Builder::new()
            .name("launcher".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let apart = unshare(CloneFlags::CLONE_FILES).is_ok();
                let _ = ready.send(apart);
                if !apart {
                    return;
                }
                while let Ok(job) = next.recv() {
                    // A thread made here shares the files of this one. Each job has its own: one that waits for
                    // something holds up no other.
                    let _ = Builder::new()
                        .name("launch".into())
                        .stack_size(STACK_BYTES)
                        .spawn(job);
                }
            });
        let apart = thread.is_ok() && is_ready.recv() == Ok(true);
        apart.then_some(jobs)
    });
}

/// Does something where no file of a datastore is open, and waits for it.
///
/// Everything that it opens for a process, it opens itself; see the module for what it must not do.
///
/// # Errors
///
/// What the action says; or that the system gave no thread, and nothing was done.
pub fn run<T: Send + 'static>(
    action: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let Some(Some(jobs)) = JOBS.get() else {
        return action();
    };
    let (done, outcome) = sync_channel(1);
    let job = Box::new(move || {
        let _ = done.send(action());
    });
    // Without a thread the job is dropped, and with it the end that it would have answered by.
    let _ = jobs.send(job);
    outcome
        .recv()
        .unwrap_or_else(|_| Err(io::Error::other("the launcher could start no thread")))
}
