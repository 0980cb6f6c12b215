//! Logs through `tracing` to a file of each day, of which a week is kept. Writing never blocks: lines
//! that the disk cannot take in time are dropped.

use std::path::Path;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_appender::rolling::{Builder, Rotation};
use tracing_subscriber::EnvFilter;

const DAYS: usize = 7;
/// Lines that may wait for the disk. Their places are held in memory from the start, in the guard's case locked
/// there: the library's own limit takes 4 MB of it.
const LINES: usize = 4096;

/// Begins to log for `name` in `dir`; the guard writes the rest when it is dropped.
pub(crate) fn start(dir: &Path, name: &str) -> Option<WorkerGuard> {
    let appender = Builder::new()
        .rotation(Rotation::DAILY)
        .filename_prefix(name)
        .filename_suffix("log")
        .max_log_files(DAYS)
        .build(dir)
        .ok()?;
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(LINES)
        .finish(appender);
    let filter = EnvFilter::try_from_env("MAINSTAY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A program that logs already keeps its own way.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(false)
        .try_init();
    Some(guard)
}

/// Makes a panic of any thread the end of the process: the other process starts it again, while one
/// that goes on without a thread would be silently weaker.
pub(crate) fn abort_on_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        before(info);
        tracing::error!(%info, "panic");
        std::process::abort();
    }));
}

/// An error with all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
