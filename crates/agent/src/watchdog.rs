//! The host's watchdog: a device that resets the host when nobody feeds it.
//!
//! What the guard asks of one is [`Device`]; [`Kernel`] is Linux's (`Documentation/watchdog/watchdog-api.rst`).
//! When it is fed, the guard decides (`guard/feeding.rs`).

use mainstay_core::time::{Duration, Instant};
use nix::libc;
use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// Between two feedings: far more often than the shortest time-out that devices commonly have (10 s).
const FEED_EVERY: Duration = Duration::from_secs(1);

/// A device that resets the host when it is not fed in time. It runs from the moment at which it is opened, and
/// goes on when it is closed without having been let go.
pub(crate) trait Device: Debug + Send {
    /// Begins its time-out anew.
    ///
    /// # Errors
    /// It does not take it.
    fn feed(&mut self) -> io::Result<()>;

    /// Says that its end is meant, so that closing it ends the time-out: "magic close". A driver that was loaded
    /// with `nowayout` goes on all the same.
    ///
    /// # Errors
    /// It does not take it.
    fn let_go(&mut self) -> io::Result<()>;

    /// Its time-out; none where it does not say.
    fn time_out(&self) -> Option<Duration>;

    /// Asks for another time-out, in whole seconds, and answers the one that it took.
    ///
    /// # Errors
    /// It has a fixed one, or none so long.
    fn set_time_out(&mut self, wanted: Duration) -> io::Result<Duration>;

    /// Whether it says that it reset the host before this boot; none where it does not say.
    fn has_reset(&self) -> Option<bool>;
}

/// A device file of Linux's.
#[derive(Debug)]
pub(crate) struct Kernel(File);

/// Requests and flags of `linux/watchdog.h`.
mod linux {
    use nix::libc::c_int;
    nix::ioctl_read!(wdioc_getbootstatus, b'W', 2, c_int);
    nix::ioctl_readwrite!(wdioc_settimeout, b'W', 6, c_int);
    nix::ioctl_read!(wdioc_gettimeout, b'W', 7, c_int);
    /// `WDIOF_CARDRESET`: the card previously reset the CPU.
    pub(super) const CARD_RESET: c_int = 0x20;
}

impl Kernel {
    /// Opens it: from now on it must be fed.
    ///
    /// # Errors
    /// The device is missing, or another process feeds it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().write(true).open(path).map(Self)
    }

    fn number(
        &self,
        read: unsafe fn(libc::c_int, *mut libc::c_int) -> nix::Result<libc::c_int>,
        number: libc::c_int,
    ) -> io::Result<libc::c_int> {
        let mut number = number;
        #[expect(
            unsafe_code,
            reason = "no library in use wraps the watchdog's requests"
        )]
        // SAFETY: each request that this is called with reads and writes one int, which lives until it returns;
        // the descriptor is open.
        unsafe { read(self.0.as_raw_fd(), &raw mut number) }?;
        Ok(number)
    }
}

fn seconds(number: libc::c_int) -> Duration {
    Duration::from_secs(u64::try_from(number).unwrap_or(0))
}

impl Device for Kernel {
    fn feed(&mut self) -> io::Result<()> {
        self.0.write_all(b"\0")
    }

    fn let_go(&mut self) -> io::Result<()> {
        self.0.write_all(b"V")
    }

    fn time_out(&self) -> Option<Duration> {
        self.number(linux::wdioc_gettimeout, 0).ok().map(seconds)
    }

    fn set_time_out(&mut self, wanted: Duration) -> io::Result<Duration> {
        let whole = wanted.as_secs() + u64::from(wanted.subsec_nanos() > 0);
        let wanted = libc::c_int::try_from(whole).map_err(io::Error::other)?;
        self.number(linux::wdioc_settimeout, wanted).map(seconds)
    }

    fn has_reset(&self) -> Option<bool> {
        let status = self.number(linux::wdioc_getbootstatus, 0).ok()?;
        Some(status & linux::CARD_RESET != 0)
    }
}

/// A device that this process feeds.
#[derive(Debug)]
pub(crate) struct Watchdog {
    device: Box<dyn Device>,
    fed: Option<Instant>,
}

impl Watchdog {
    /// Takes a device that was opened.
    pub(crate) fn new(device: Box<dyn Device>) -> Self {
        Self { device, fed: None }
    }

    /// True when another feeding is due.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.fed.is_none_or(|at| now.since(at) >= FEED_EVERY)
    }

    /// Feeds it.
    ///
    /// # Errors
    /// The device does not take it.
    pub(crate) fn feed(&mut self, now: Instant) -> io::Result<()> {
        self.device.feed()?;
        self.fed = Some(now);
        Ok(())
    }

    /// Sees to it that its time-out is at least that long, and answers what it is; none where the device does not
    /// say. A longer one stays: it is the admin's.
    pub(crate) fn at_least(&mut self, wanted: Duration) -> Option<Duration> {
        let time_out = self.device.time_out()?;
        if time_out >= wanted {
            return Some(time_out);
        }
        match self.device.set_time_out(wanted) {
            Ok(taken) => Some(taken),
            Err(error) => {
                tracing::warn!(%error, ?time_out, ?wanted, "the watchdog takes no longer time-out");
                Some(time_out)
            }
        }
    }

    /// Lets it go, so that the host is not reset.
    ///
    /// # Errors
    /// The device does not take it.
    pub(crate) fn let_go(mut self) -> io::Result<()> {
        self.device.let_go()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_fed_once_in_a_second_and_let_go_with_the_letter() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("watchdog");
        assert!(Kernel::open(&path).is_err(), "no device is made");
        std::fs::write(&path, "").expect("a file");
        let mut watchdog = Watchdog::new(Box::new(Kernel::open(&path).expect("open")));
        for ms in (0..2500).step_by(15) {
            let now = Instant::from_nanos(ms * 1_000_000);
            if watchdog.is_due(now) {
                watchdog.feed(now).expect("fed");
            }
        }
        watchdog.let_go().expect("let go");
        assert_eq!(std::fs::read(&path).expect("read"), b"\0\0\0V");
    }

    #[test]
    fn a_file_that_is_no_watchdog_says_nothing_of_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("watchdog");
        std::fs::write(&path, "").expect("a file");
        let device = Kernel::open(&path).expect("open");
        assert_eq!((device.time_out(), device.has_reset()), (None, None));
        let mut watchdog = Watchdog::new(Box::new(device));
        assert_eq!(watchdog.at_least(Duration::from_secs(60)), None);
    }
}
