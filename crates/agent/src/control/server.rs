//! The server of the control socket: a thread for each connection, so that no client ever holds the
//! agent's loop up.

use super::{Answer, InForce, Leaving, Pong, REQUEST_MAX_BYTES, Readiness, Request};
use crate::events::EventLog;
use crate::twin::{self, TwinError};
use mainstay_core::config::{Change, ClusterConfig};
use mainstay_core::drill::{self, Progress};
use mainstay_core::id::{HostId, VmId};
use mainstay_core::status::{Explanation, Status};
use serde::Serialize;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

const CONNECTIONS: usize = 32;
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
const LOOP_TIMEOUT: Duration = Duration::from_secs(5);
/// What the core says when its own limit has passed is waited for so much longer.
const OUTCOME_MARGIN: Duration = Duration::from_secs(2);
/// An agent gives a question about a drill up when the primary has not answered for as long as a dead host
/// takes; one that falls silent itself answers when it is back. Nobody waits for longer than this.
const DRILL_TIMEOUT: Duration = Duration::from_secs(150);
const BUSY: &str = "the agent is busy; try again, and see its log if this stays";
/// How often a follower looks whether its client is still there.
const FOLLOW_LOOK: Duration = Duration::from_secs(1);

/// Why the control socket cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Somebody listens there.
    #[error("the control socket {} is in use by another process; stop it, or give this agent another run_dir", .0.display())]
    InUse(PathBuf),
    /// The system refuses it.
    #[error("cannot listen at {}; check that run_dir is local and writable", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory.
    #[error(transparent)]
    Twin(#[from] TwinError),
}

/// Who waits for the answer about a drill.
pub(crate) type Drilled = SyncSender<Result<drill::Answer, String>>;

/// A question for the agent's loop.
#[derive(Debug)]
pub(crate) enum Ask {
    Status(SyncSender<Result<Status, String>>),
    ExplainVm(VmId, SyncSender<Result<Explanation, String>>),
    ExplainHost(HostId, SyncSender<Result<Explanation, String>>),
    PowerOn(VmId, SyncSender<Result<(), String>>),
    PowerOff(VmId, SyncSender<Result<(), String>>),
    Leave(SyncSender<Result<Leaving, String>>),
    PrepareRestart(SyncSender<Result<Readiness, String>>),
    Config(SyncSender<ClusterConfig>),
    InForce(SyncSender<InForce>),
    Change(Proposal),
    DrillPlan(HostId, Drilled),
    DrillRun(HostId, Option<Duration>, bool, Drilled),
    DrillStop(HostId, SyncSender<Result<(), String>>),
    DrillProgress(HostId, SyncSender<Result<Progress, String>>),
    Ping(SyncSender<Pong>),
}

/// Changes that a client asks for.
#[derive(Debug)]
pub(crate) struct Proposal {
    pub(crate) changes: Vec<Change>,
    pub(crate) outcome: SyncSender<Result<u64, String>>,
    /// Told how long the outcome may take.
    taken: SyncSender<Duration>,
    /// By the loop, or by the one who waits and gives it up: one of them is first.
    claimed: Arc<AtomicBool>,
}

impl Proposal {
    /// Takes it, with the longest time that its outcome may need; false when whoever asked was told that
    /// nothing is changed, and so it must be.
    pub(crate) fn take(&self, limit: Duration) -> bool {
        let first = !self.claimed.swap(true, Ordering::AcqRel);
        if first {
            // There is room for it.
            let _ = self.taken.try_send(limit);
        }
        first
    }
}

/// Hands a question to the loop; false when it cannot take one now.
pub(crate) type Asker = Arc<dyn Fn(Ask) -> bool + Send + Sync>;

/// Listens at `path`.
pub(crate) fn start(path: &Path, ask: Asker, events: EventLog) -> Result<(), ControlError> {
    let io = |source| ControlError::Io {
        path: path.into(),
        source,
    };
    let (dir, short) = twin::socket_path(path).map_err(io)?;
    match UnixStream::connect(&short) {
        Ok(_) => return Err(ControlError::InUse(path.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        // Left by an agent that died.
        Err(_) => std::fs::remove_file(path).map_err(io)?,
    }
    let listener = UnixListener::bind(&short).map_err(io)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
    drop(dir);
    let open = Arc::new(AtomicUsize::new(0));
    let accept = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                crate::clock::pause(Duration::from_millis(50));
                continue;
            };
            let connection = Connection {
                stream,
                ask: Arc::clone(&ask),
                events: events.clone(),
            };
            connection.start(&open);
        }
    };
    std::thread::Builder::new()
        .name("control".into())
        .spawn(accept)
        .map_err(io)?;
    Ok(())
}

/// Reads a request line.
///
/// # Errors
/// What is wrong with it, for whoever sent it.
pub(crate) fn parse(line: &[u8]) -> Result<Request, String> {
    serde_json::from_slice(line).map_err(|error| {
        format!("this is no request: {error}; send one line such as {{\"cmd\":\"status\"}}")
    })
}

struct Connection {
    stream: UnixStream,
    ask: Asker,
    events: EventLog,
}

impl Connection {
    fn start(mut self, open: &Arc<AtomicUsize>) {
        if open.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS {
            open.fetch_sub(1, Ordering::AcqRel);
            let _ = self.stream.set_nonblocking(true);
            let _ = self
                .refuse("too many connections to the control socket; close some `events --follow`");
            return;
        }
        let mine = Arc::clone(open);
        let started = std::thread::Builder::new()
            .name("client".into())
            .spawn(move || {
                // A client that went away is nobody's problem.
                let _ = self.serve();
                mine.fetch_sub(1, Ordering::AcqRel);
            });
        if started.is_err() {
            open.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn serve(&mut self) -> io::Result<()> {
        self.stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
        let line = match self.read_line()? {
            Ok(line) => line,
            Err(why) => return self.refuse(&why),
        };
        let request = match parse(&line) {
            Ok(request) => request,
            Err(why) => return self.refuse(&why),
        };
        match request {
            Request::Status => self.ask_checked(Ask::Status),
            Request::Ping => self.ask(Ask::Ping),
            Request::ExplainVm { id } => self.ask_checked(|to| Ask::ExplainVm(id, to)),
            Request::ExplainHost { id } => self.ask_checked(|to| Ask::ExplainHost(id, to)),
            Request::PowerOn { vm } => self.order(|to| Ask::PowerOn(vm, to)),
            Request::PowerOff { vm } => self.order(|to| Ask::PowerOff(vm, to)),
            Request::Leave => self.order(Ask::Leave),
            Request::PrepareRestart => self.order(Ask::PrepareRestart),
            Request::Config => self.ask(Ask::Config),
            Request::InForce => self.ask(Ask::InForce),
            Request::Change { changes } => self.change(changes),
            Request::DrillPlan { host } => self.drill(|to| Ask::DrillPlan(host, to)),
            Request::DrillRun {
                host,
                time_ms,
                insists,
            } => {
                let time = time_ms.map(Duration::from_millis);
                self.drill(|to| Ask::DrillRun(host, time, insists, to))
            }
            Request::DrillStop { host } => self.order(|to| Ask::DrillStop(host, to)),
            Request::DrillProgress { host } => self.ask_checked(|to| Ask::DrillProgress(host, to)),
            Request::Events { follow, last } => self.events(follow, last),
        }
    }

    /// One line, within a bound of length and time.
    fn read_line(&mut self) -> io::Result<Result<Vec<u8>, String>> {
        let deadline = Instant::now() + CLIENT_TIMEOUT;
        let mut line = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Err("no request came within 10 s".into()));
            }
            self.stream.set_read_timeout(Some(left))?;
            let n = match self.stream.read(&mut buffer) {
                Ok(n) => n,
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    0
                }
                Err(e) => return Err(e),
            };
            let part = buffer.get(..n).unwrap_or_default();
            if let Some(end) = part.iter().position(|b| *b == b'\n') {
                line.extend_from_slice(part.get(..end).unwrap_or_default());
                return Ok(Ok(line));
            }
            line.extend_from_slice(part);
            if line.len() > REQUEST_MAX_BYTES {
                return Ok(Err("the request is longer than 64 KiB".into()));
            }
            if n == 0 {
                // The end of the input ends the line as well.
                return Ok(if line.is_empty() {
                    Err("there was no request".into())
                } else {
                    Ok(line)
                });
            }
        }
    }

    fn loop_answer<T>(
        &self,
        late: &str,
        ask: impl FnOnce(SyncSender<T>) -> Ask,
    ) -> Result<T, String> {
        let (to, answer) = sync_channel(1);
        if !(self.ask)(ask(to)) {
            return Err(BUSY.to_owned());
        }
        answer
            .recv_timeout(LOOP_TIMEOUT)
            .map_err(|_| late.to_owned())
    }

    fn ask<T: Serialize>(&mut self, ask: impl FnOnce(SyncSender<T>) -> Ask) -> io::Result<()> {
        match self.loop_answer(BUSY, ask) {
            Ok(value) => self.answer(&Answer::Ok(value)),
            Err(why) => self.refuse(&why),
        }
    }

    fn ask_checked<T: Serialize>(
        &mut self,
        ask: impl FnOnce(SyncSender<Result<T, String>>) -> Ask,
    ) -> io::Result<()> {
        let answer = self.loop_answer(BUSY, ask);
        self.answer_checked(answer.and_then(|checked| checked))
    }

    /// Like [`Self::ask_checked`] for what does something: a loop that is late may still do it.
    fn order<T: Serialize>(
        &mut self,
        ask: impl FnOnce(SyncSender<Result<T, String>>) -> Ask,
    ) -> io::Result<()> {
        const LATE: &str = "the agent is busy: whether it will still do this is not known; look at `mainstay status`, \
                            and ask again";
        let answer = self.loop_answer(LATE, ask);
        self.answer_checked(answer.and_then(|checked| checked))
    }

    /// What the primary is asked about a drill.
    fn drill(&mut self, ask: impl FnOnce(Drilled) -> Ask) -> io::Result<()> {
        const LATE: &str = "no answer came: whether a drill that was asked for has begun is not known; look at \
                            `mainstay hosts`, and call it off with `mainstay drill HOST --stop`";
        let (to, answer) = sync_channel(1);
        if !(self.ask)(ask(to)) {
            return self.refuse(BUSY);
        }
        let answer = answer.recv_timeout(DRILL_TIMEOUT);
        self.answer_checked(answer.unwrap_or_else(|_| Err(LATE.to_owned())))
    }

    /// A change waits for the primary and its disk, for as long as the core waits for them.
    fn change(&mut self, changes: Vec<Change>) -> io::Result<()> {
        const NOT_TAKEN: &str =
            "the agent is busy, and nothing was changed; ask again, and see its log if this stays";
        const LATE: &str = "the primary, or the disk that it writes to, does not answer: whether the change was made \
                            is not known; look at the configuration's version (`mainstay status`), and ask again";
        let (taken, is_taken) = sync_channel(1);
        let claimed = Arc::new(AtomicBool::new(false));
        let (outcome, becomes) = sync_channel(1);
        let proposal = Proposal {
            changes,
            outcome,
            taken,
            claimed: Arc::clone(&claimed),
        };
        if !(self.ask)(Ask::Change(proposal)) {
            return self.refuse(NOT_TAKEN);
        }
        let limit = match is_taken.recv_timeout(LOOP_TIMEOUT) {
            Ok(limit) => limit,
            Err(_) if !claimed.swap(true, Ordering::AcqRel) => return self.refuse(NOT_TAKEN),
            // It was taken in this moment.
            Err(_) => is_taken.recv_timeout(LOOP_TIMEOUT).unwrap_or_default(),
        };
        let outcome = becomes.recv_timeout(limit.saturating_add(OUTCOME_MARGIN));
        self.answer_checked(outcome.unwrap_or_else(|_| Err(LATE.to_owned())))
    }

    fn answer_checked<T: Serialize>(&mut self, answer: Result<T, String>) -> io::Result<()> {
        match answer {
            Ok(value) => self.answer(&Answer::Ok(value)),
            Err(why) => self.refuse(&why),
        }
    }

    fn events(&mut self, follow: bool, last: Option<u64>) -> io::Result<()> {
        let mut next = self.events.first_of(last);
        loop {
            let lines = self
                .events
                .since(next, if follow { FOLLOW_LOOK } else { Duration::ZERO });
            if lines.is_empty() {
                if !follow || self.is_gone() {
                    return Ok(());
                }
                continue;
            }
            for line in lines {
                next = line.n + 1;
                self.answer(&Answer::Ok(line))?;
            }
        }
    }

    /// A client that reads on sends nothing more; one that is gone gives an end.
    fn is_gone(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd as _;
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
    }

    fn refuse(&mut self, why: &str) -> io::Result<()> {
        self.answer(&Answer::<()>::Error(why.to_owned()))
    }

    fn answer<T: Serialize>(&mut self, answer: &Answer<T>) -> io::Result<()> {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        self.stream.write_all(&line)
    }
}

#[cfg(test)]
mod tests;
