//! The agent's events: a bounded ring for the control socket, and a file for people.

use crate::clock;
use crate::control::EventLine;
use mainstay_core::event::Event;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Events that are kept in memory.
const RING: usize = 4096;
/// Lines that wait for the disk; then they are lost from the file, not from the ring.
const QUEUE: usize = 4096;
const FILE_MAX_BYTES: u64 = 8 << 20;
/// How much of the file's end is read when the agent starts.
const TAIL_BYTES: u64 = 1 << 20;
const FILE: &str = "events.jsonl";
const OLD_FILE: &str = "events.1.jsonl";

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<EventLine>,
    next: u64,
}

/// The events.
#[derive(Clone, Debug)]
pub(crate) struct EventLog {
    ring: Arc<(Mutex<Ring>, Condvar)>,
    file: SyncSender<Box<EventLine>>,
}

impl EventLog {
    /// Goes on with the events of the agent before.
    pub(crate) fn start(dir: &Path) -> io::Result<Self> {
        let lines = tail(&dir.join(FILE));
        let next = lines.back().map_or(1, |l| l.n + 1);
        let (file, queue) = sync_channel(QUEUE);
        let dir = dir.to_owned();
        std::thread::Builder::new()
            .name("events".into())
            .spawn(move || write(&dir, &queue))?;
        Ok(Self {
            ring: Arc::new((Mutex::new(Ring { lines, next }), Condvar::new())),
            file,
        })
    }

    /// Adds an event; never waits for a disk or a reader.
    pub(crate) fn push(&self, event: Event) {
        let (ring, changed) = &*self.ring;
        let mut ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
        let line = EventLine {
            n: ring.next,
            wall: clock::wall(),
            event,
        };
        ring.next += 1;
        if ring.lines.len() == RING {
            ring.lines.pop_front();
        }
        ring.lines.push_back(line.clone());
        changed.notify_all();
        drop(ring);
        tracing::info!(n = line.n, event = ?line.event.kind, why = line.event.why, "event");
        let _ = self.file.try_send(Box::new(line));
    }

    /// The number of the first of the `last` events.
    pub(crate) fn first_of(&self, last: Option<u64>) -> u64 {
        let ring = self.ring.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.map_or(0, |n| ring.next.saturating_sub(n))
    }

    /// Some events from number `from` on; waits for at most `wait` when there is none yet.
    pub(crate) fn since(&self, from: u64, wait: Duration) -> Vec<EventLine> {
        let (ring, changed) = &*self.ring;
        let mut ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.next <= from && !wait.is_zero() {
            ring = changed
                .wait_timeout(ring, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        let first = ring.lines.partition_point(|l| l.n < from);
        ring.lines.iter().skip(first).take(256).cloned().collect()
    }
}

/// The last events of the file; damaged lines are left out.
fn tail(path: &Path) -> VecDeque<EventLine> {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let mut lines: VecDeque<EventLine> = VecDeque::new();
    for line in text
        .lines()
        .filter_map(|l| serde_json::from_str::<EventLine>(l).ok())
    {
        // Numbers must grow, or readers would miss events.
        if lines.back().is_none_or(|last| line.n > last.n) {
            lines.push_back(line);
        }
    }
    let surplus = lines.len().saturating_sub(RING);
    lines.drain(..surplus);
    lines
}

fn write(dir: &Path, queue: &Receiver<Box<EventLine>>) {
    let path = dir.join(FILE);
    while let Ok(line) = queue.recv() {
        if let Err(error) = append(dir, &path, &line) {
            tracing::warn!(%error, "cannot write {}", path.display());
        }
    }
}

fn append(dir: &Path, path: &PathBuf, line: &EventLine) -> io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|m| m.len() > FILE_MAX_BYTES) {
        std::fs::rename(path, dir.join(OLD_FILE))?;
    }
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)?
        .write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_core::event::{ElectionCause, EventKind};
    use mainstay_core::id::HostId;
    use mainstay_core::time::Instant;

    fn event() -> Event {
        let host = HostId::new("host-1").expect("id");
        Event {
            at: Instant::ZERO,
            kind: EventKind::ElectionStarted {
                host,
                cause: ElectionCause::AgentStarted,
            },
            why: "test".into(),
        }
    }

    #[test]
    fn numbers_go_on_after_a_restart_and_damaged_lines_are_left_out() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join(FILE);
        for n in [4, 5] {
            append(
                dir.path(),
                &path,
                &EventLine {
                    n,
                    wall: "then".into(),
                    event: event(),
                },
            )
            .expect("write");
            OpenOptions::new()
                .append(true)
                .open(&path)
                .expect("open")
                .write_all(b"{torn\n")
                .expect("write");
        }
        let log = EventLog::start(dir.path()).expect("log");
        log.push(event());
        let numbers: Vec<u64> = log.since(0, Duration::ZERO).iter().map(|l| l.n).collect();
        assert_eq!(numbers, [4, 5, 6]);
        assert_eq!(log.first_of(Some(2)), 5);
        assert_eq!(log.since(7, Duration::from_millis(1)), []);
    }

    #[test]
    fn the_ring_is_bounded() {
        let dir = tempfile::tempdir().expect("directory");
        let log = EventLog::start(dir.path()).expect("log");
        for _ in 0..RING + 10 {
            log.push(event());
        }
        let first = log.since(0, Duration::ZERO).first().map(|l| l.n);
        assert_eq!(first, Some(11));
    }
}
