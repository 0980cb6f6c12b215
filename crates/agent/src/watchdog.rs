//! The host's watchdog: a device that resets the host when nobody feeds it.
//!
//! The guard feeds it after each look at the deadlines, so that a host on which the guard can no longer
//! freeze anything, because it and the agent are gone or the kernel hangs, is reset. The device's own
//! time-out says how soon (`/sys/class/watchdog/*/timeout`).

use mainstay_core::time::{Duration, Instant};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

/// Between two feedings: far more often than the shortest time-out that devices commonly have (10 s).
const FEED_EVERY: Duration = Duration::from_secs(1);

/// A device that this process feeds.
#[derive(Debug)]
pub(crate) struct Watchdog {
    device: File,
    fed: Option<Instant>,
}

impl Watchdog {
    /// Opens it: from now on it must be fed.
    ///
    /// # Errors
    /// The device is missing, or another process feeds it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let device = OpenOptions::new().write(true).open(path)?;
        Ok(Self { device, fed: None })
    }

    /// Feeds it, if it is time.
    ///
    /// # Errors
    /// The device does not take it.
    pub(crate) fn feed(&mut self, now: Instant) -> io::Result<()> {
        if self.fed.is_some_and(|at| now.since(at) < FEED_EVERY) {
            return Ok(());
        }
        self.device.write_all(b"\0")?;
        self.fed = Some(now);
        Ok(())
    }

    /// Lets it go, so that the host is not reset: the letter V before the end says so to the driver, unless
    /// that was loaded with `nowayout`.
    ///
    /// # Errors
    /// The device does not take it.
    pub(crate) fn let_go(mut self) -> io::Result<()> {
        self.device.write_all(b"V")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_fed_once_in_a_second_and_let_go_with_the_letter() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("watchdog");
        assert!(Watchdog::open(&path).is_err(), "no device is made");
        std::fs::write(&path, "").expect("a file");
        let mut watchdog = Watchdog::open(&path).expect("open");
        for ms in (0..2500).step_by(15) {
            let now = Instant::from_nanos(ms * 1_000_000);
            watchdog.feed(now).expect("fed");
        }
        watchdog.let_go().expect("let go");
        assert_eq!(std::fs::read(&path).expect("read"), b"\0\0\0V");
    }
}
