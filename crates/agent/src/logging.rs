//! Logs through `tracing` to a file of each day, of which a week is kept. Writing never blocks: lines
//! that the disk cannot take in time are dropped.

use std::path::Path;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_appender::rolling::{Builder, Rotation};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

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
    let asked = std::env::var("MAINSTAY_LOG").ok();
    let (wanted, problem) = wanted(asked.as_deref());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(false)
        .with_filter(wanted);
    // A program that logs already keeps its own way.
    let _ = tracing_subscriber::registry().with(lines).try_init();
    if let Some(problem) = problem {
        tracing::warn!("{problem}");
    }
    Some(guard)
}

/// What is logged: `MAINSTAY_LOG` names a level, or targets with levels (`warn,mainstay_agent=debug`). What it does
/// not say well is answered with the default and a word about it.
fn wanted(asked: Option<&str>) -> (Targets, Option<String>) {
    let default = Targets::new().with_default(LevelFilter::INFO);
    match asked.map(str::parse::<Targets>) {
        None => (default, None),
        Some(Ok(targets)) => (targets, None),
        Some(Err(error)) => {
            let asked = asked.unwrap_or_default();
            let problem = format!(
                "MAINSTAY_LOG is \"{asked}\", which cannot be read ({error}); logging from level info on. Say a level (error, \
                 warn, info, debug, trace), or targets with levels: warn,mainstay_agent=debug"
            );
            (default, Some(problem))
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn what_is_logged_is_asked_for_by_level_and_target() {
        let (info, problem) = wanted(None);
        assert!(info.would_enable("mainstay_agent", &Level::INFO));
        assert!(!info.would_enable("mainstay_agent", &Level::DEBUG));
        assert_eq!(problem, None);
        let (some, problem) = wanted(Some("warn,mainstay_agent::net=debug"));
        assert!(some.would_enable("mainstay_agent::net", &Level::DEBUG));
        assert!(!some.would_enable("mainstay_agent", &Level::INFO));
        assert_eq!(problem, None);
    }

    #[test]
    fn what_cannot_be_read_is_said_and_logs_as_ever() {
        let (info, problem) = wanted(Some("mainstay_agent=loud"));
        assert!(info.would_enable("mainstay_agent", &Level::INFO));
        let problem = problem.expect("a problem");
        assert!(problem.contains("mainstay_agent=loud"), "{problem}");
    }
}
