//! When the watchdog is fed.
//!
//! ```text
//! runs on without a right  -> the reason to disk, then fed no more: the device resets the host
//! something may execute    -> fed once after each completed renewal of a right
//! nothing executes         -> fed: a host whose storage hangs has frozen what it had to freeze, and a reset
//!                             would take its other work along
//! ```
//! So a host on which agent and guard are both gone is reset one time-out of the device after the last completed
//! renewal at the latest, and one that keeps its promises never.

use super::notes::Keeper;
use super::reset::Keeping;
use super::stops::RUNS_ON;
use crate::watchdog::Watchdog;
use mainstay_core::time::{Duration, Instant};
use std::io;

/// The device is fed no longer than this for the sake of a reason that does not come to disk.
pub(super) const KEEPING_LIMIT: Duration = Duration::from_secs(2);
/// On top of all that may pass between two feedings of a host that keeps its promises: a second between two
/// feedings, and a guard that is started again.
const SPARE: Duration = Duration::from_secs(3);

/// What the guard knows when it may be time to feed.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    /// Names of VMs that execute although they may not and were told to stop for long.
    pub(super) running_on: Vec<String>,
    /// Something may execute: a right lasts, or what lost its right was not yet seen to be stopped.
    pub(super) executes: bool,
    /// How many renewals were completed; none: the agent counts none, because it is of an older version.
    pub(super) renewals: Option<u64>,
    /// The agent was stopped on purpose, and the rights that last were made longer for that.
    pub(super) planned_stop: bool,
}

/// The watchdog, and what it was fed for.
#[derive(Debug)]
pub(super) struct Feeding {
    watchdog: Option<Watchdog>,
    keeper: Keeper,
    /// The count of renewals for which it was fed last.
    fed_for: Option<u64>,
    /// Since when the reason of a reset is on its way to disk.
    resets_since: Option<Instant>,
    /// The `freeze` that the time-out was made for.
    freeze: Option<Duration>,
}

impl Feeding {
    /// `has_reset`: what the device says of the boot before.
    pub(super) fn new(
        watchdog: Option<Watchdog>,
        mut keeper: Keeper,
        has_reset: Option<bool>,
    ) -> Self {
        if watchdog.is_some() {
            keeper.keep(Keeping::Armed(has_reset));
        }
        Self {
            watchdog,
            keeper,
            fed_for: None,
            resets_since: None,
            freeze: None,
        }
    }

    /// Whether there is a device.
    pub(super) fn has_watchdog(&self) -> bool {
        self.watchdog.is_some()
    }

    /// Sees to it that the device does not reset the host while rights of that length last, and answers whether it
    /// does; none when that was answered before.
    pub(super) fn suits(&mut self, freeze: Duration) -> Option<bool> {
        let watchdog = self.watchdog.as_mut()?;
        if self.freeze.replace(freeze) == Some(freeze) {
            return None;
        }
        let wanted = freeze + RUNS_ON + KEEPING_LIMIT + SPARE;
        let time_out = watchdog.at_least(wanted);
        tracing::info!(?time_out, ?wanted, "the watchdog's time-out");
        Some(time_out.is_none_or(|time_out| time_out >= wanted))
    }

    /// Feeds the device if it is time and may be done.
    ///
    /// # Errors
    /// The device does not take it; it is given up.
    pub(super) fn look(&mut self, now: Instant, standing: &Standing) -> io::Result<()> {
        let Some(watchdog) = &mut self.watchdog else {
            return Ok(());
        };
        let may_feed = if standing.running_on.is_empty() {
            if self.resets_since.take().is_some() {
                self.keeper.keep(Keeping::Averted);
            }
            let renewed = standing.renewals.is_none() || standing.renewals != self.fed_for;
            !standing.executes || renewed || standing.planned_stop
        } else {
            let since = *self.resets_since.get_or_insert_with(|| {
                self.keeper.keep(Keeping::Resets(why(&standing.running_on)));
                now
            });
            // Until its reason is on disk there is no reset.
            !self.keeper.is_kept() && now.since(since) < KEEPING_LIMIT
        };
        if !may_feed || !watchdog.is_due(now) {
            return Ok(());
        }
        let fed = watchdog.feed(now);
        match fed {
            Ok(()) => self.fed_for = standing.renewals,
            Err(_) => self.watchdog = None,
        }
        fed
    }

    /// The guard ends. The device is let go where nothing executes here any more; else it goes on, for the guard
    /// that comes next, or to reset a host for which none comes. True: it was let go, and that is on its way to
    /// disk.
    ///
    /// # Errors
    /// The device does not take it, and resets this host.
    pub(super) fn end(&mut self, executes: bool) -> io::Result<bool> {
        if executes {
            return Ok(false);
        }
        let Some(watchdog) = self.watchdog.take() else {
            return Ok(false);
        };
        watchdog.let_go()?;
        self.keeper.keep(Keeping::LetGo);
        Ok(true)
    }

    /// Whether all that was to be kept is on disk.
    pub(super) fn is_kept(&self) -> bool {
        self.keeper.is_kept()
    }
}

fn why(running_on: &[String]) -> String {
    format!(
        "the right to run of {} has ended, and what was told to stop for {} s runs on: it might write to its disk \
         beside another host",
        running_on.join(", "),
        RUNS_ON.as_secs()
    )
}
