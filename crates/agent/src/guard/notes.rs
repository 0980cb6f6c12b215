//! The guard's thread that writes: events for the agent, and what is kept on disk about the watchdog. The guard
//! itself never waits for a file.

use super::reset::{Files, Keeping, announce};
use crate::shm::Shm;
use mainstay_core::event::Event;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Places for notes; what a place holds is boxed, because all of them are in memory from the start.
pub(super) const QUEUE: usize = 1024;
/// Stack of the thread: all of it is locked in memory.
const STACK: usize = 128 << 10;
/// The file is begun anew at this size when the agent has taken all over.
const EVENTS_MAX_BYTES: u64 = 1 << 20;

/// What is written.
#[derive(Debug)]
pub(super) enum Note {
    Event(Box<Event>),
    /// Numbered from 1 on.
    Watchdog(u64, Box<Keeping>),
}

/// Sends what is kept about the watchdog, and knows whether it is on disk.
#[derive(Debug)]
pub(super) struct Keeper {
    notes: SyncSender<Note>,
    sent: u64,
    written: Arc<AtomicU64>,
}

impl Keeper {
    pub(super) fn new(notes: SyncSender<Note>, written: Arc<AtomicU64>) -> Self {
        Self {
            notes,
            sent: 0,
            written,
        }
    }

    /// Sends it to the disk; never waits.
    pub(super) fn keep(&mut self, keeping: Keeping) {
        self.sent += 1;
        // A full queue: the disk hangs, and what was to be kept is never said to be on it.
        let _ = self
            .notes
            .try_send(Note::Watchdog(self.sent, Box::new(keeping)));
    }

    /// Whether what was sent last is on disk.
    pub(super) fn is_kept(&self) -> bool {
        self.written.load(Ordering::Acquire) >= self.sent
    }
}

/// What the thread writes to.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) events: PathBuf,
    pub(super) log_dir: PathBuf,
    pub(super) kernel_log: PathBuf,
    pub(super) watchdog: Option<Files>,
    pub(super) shm: Arc<Shm>,
}

impl Writer {
    /// Starts the thread; the number is that of the last thing about the watchdog that is on disk.
    pub(super) fn start(self) -> io::Result<(SyncSender<Note>, Arc<AtomicU64>)> {
        let (notes, written) = sync_channel(QUEUE);
        let kept = Arc::new(AtomicU64::new(0));
        let done = Arc::clone(&kept);
        std::thread::Builder::new()
            .name("events".into())
            .stack_size(STACK)
            .spawn(move || self.write_all(&written, &done))?;
        Ok((notes, kept))
    }

    fn write_all(&self, notes: &Receiver<Note>, done: &AtomicU64) {
        while let Ok(note) = notes.recv() {
            match note {
                Note::Event(event) => {
                    if let Err(error) = append(&self.events, &self.shm, &event) {
                        tracing::warn!(%error, "cannot write {}", self.events.display());
                    }
                }
                Note::Watchdog(number, keeping) => {
                    let Some(files) = &self.watchdog else {
                        continue;
                    };
                    if let Err(error) = files.keep(&keeping) {
                        tracing::error!(%error, ?keeping, "cannot be kept in {}", files.state_dir.display());
                        continue;
                    }
                    if let Keeping::Resets(why) = keeping.as_ref() {
                        announce(why, &self.kernel_log, &self.log_dir);
                    }
                    done.store(number, Ordering::Release);
                }
            }
        }
    }
}

fn append(path: &Path, shm: &Shm, event: &Event) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)?;
    let length = file.metadata()?.len();
    if length > EVENTS_MAX_BYTES && length == shm.events_read() {
        file.set_len(0)?;
        shm.set_events_read(0);
    }
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    file.write_all(&line)
}
