//! A host's service manager: when agent and guard are both dead, neither of which can start the other any more, it
//! starts the agent, which starts its guard.

use super::Stage;
use crate::cluster::{Daemon, Host};
use crate::fail::Result;
use mainstay_core::time::{Duration, Instant};

/// Service managers wait some seconds before they start again what died; the simulator's take 2 to 5.
const RESTART_AFTER: Duration = Duration::from_secs(3);

/// What the service manager of a host knows of its daemons.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Service {
    /// A daemon was seen to live since the last start: one that has not signed in yet is not dead.
    started: bool,
    /// Since when none lives.
    dead_since: Option<Instant>,
    /// Its admin stopped the agent, and will start it.
    pub(super) stopped: bool,
}

impl Service {
    /// Looks at whether a daemon lives. True: start the agent now.
    fn sees(&mut self, lives: bool, at: Instant) -> bool {
        if lives {
            (self.started, self.dead_since) = (true, None);
            return false;
        }
        if !self.started || self.stopped {
            return false;
        }
        let since = *self.dead_since.get_or_insert(at);
        let due = at >= since + RESTART_AFTER;
        if due {
            *self = Self::default();
        }
        due
    }
}

impl Stage<'_> {
    /// Lets the service managers of all hosts that are up look at their daemons.
    pub(super) fn serve(&mut self, at: Instant) -> Result<()> {
        for host in 0..self.hosts.len() {
            let it = self.cluster.host(host)?;
            // An operating system that shuts down starts nothing.
            if !Host::is_up(it) || self.standing(host).leaving.is_some() {
                continue;
            }
            let lives = [Daemon::Agent, Daemon::Guard]
                .iter()
                .any(|d| it.daemon(*d).is_some());
            let mut start = false;
            self.change_standing(host, |s| start = s.service.sees(lives, at));
            if start {
                self.cluster.start_agent(host)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn daemons_that_both_died_are_started_once_after_a_while() {
        let mut service = Service::default();
        assert!(!service.sees(false, at(0)) && !service.sees(false, at(9)));
        assert!(!service.sees(true, at(10)));
        assert!(!service.sees(false, at(11)) && !service.sees(false, at(13)));
        assert!(service.sees(false, at(14)));
        assert!(!service.sees(false, at(30)), "they have not signed in yet");
    }

    #[test]
    fn one_that_lives_starts_the_other_and_what_was_stopped_stays_so() {
        let mut service = Service::default();
        assert!(!service.sees(true, at(1)) && !service.sees(false, at(2)));
        assert!(!service.sees(true, at(4)) && !service.sees(false, at(5)));
        service.stopped = true;
        assert!(!service.sees(false, at(60)));
    }
}
