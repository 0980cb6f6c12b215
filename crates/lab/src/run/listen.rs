//! Hears what the agents say, as long as they say it, and again when they are back.

use super::Heard;
use crate::fail::{Failure, Result};
use mainstay_agent::control::client::Client;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

/// How soon an agent that does not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Ends its thread, at the next answer, when it is dropped.
#[derive(Debug)]
pub(super) struct Ear {
    ends: Arc<AtomicBool>,
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
    }
}

/// Hands on every event of a host's agent. One that is started again is asked for all that it has; what was
/// heard before is known by its time and its words.
pub(super) fn listen(host: usize, socket: PathBuf, to: Sender<Heard>) -> Result<Ear> {
    let ends = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&ends);
    let hear = move || {
        while !ended.load(Ordering::Acquire) {
            if let Ok(events) = Client::connect(&socket).and_then(|c| c.events(None, true)) {
                for line in events.map_while(std::result::Result::ok) {
                    if to.send(Heard::Event(host, Box::new(line.event))).is_err() {
                        return;
                    }
                }
            }
            std::thread::park_timeout(ASK_AGAIN);
        }
    };
    std::thread::Builder::new()
        .name(format!("events of host {host}"))
        .spawn(hear)
        .map_err(|e| Failure::new(format_args!("cannot start a thread: {e}")))?;
    Ok(Ear { ends })
}
