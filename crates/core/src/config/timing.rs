//! The timers, the three profiles that set them all, and the inequalities that must hold between them.
//!
//! Sources: the classic profile is the timeline of the seeds ("vSphere 5.0 High Availability (HA)":
//! T0/T10/T25/T30, T0/T5, heartbeats each second); the others keep its shape with shorter times.
//! The inequalities are those of `docs/protocol.md`, "Inequalities".

use crate::time::Duration;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A named set of all timers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// The timeline of vSphere HA 5.0.
    Classic,
    /// Failover in about seven seconds.
    #[default]
    Balanced,
    /// Failover in about three seconds; wants quiet storage and a quiet network.
    Fast,
}

impl Profile {
    /// Names of all profiles, as they are written in a configuration.
    pub const NAMES: [&'static str; 3] = ["classic", "balanced", "fast"];

    /// The profile of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "classic" => Some(Self::Classic),
            "balanced" => Some(Self::Balanced),
            "fast" => Some(Self::Fast),
            _ => None,
        }
    }

    /// The profile's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Balanced => "balanced",
            Self::Fast => "fast",
        }
    }
}

/// Every timer. All are measured on the clock of the host that uses them.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Timing {
    /// Time between two network heartbeats, both ways between primary and secondary.
    pub network_heartbeat: Duration,
    /// Time between two datastore heartbeats, and between two reads where somebody watches.
    pub datastore_heartbeat: Duration,
    /// A secondary that has missed its primary for this long starts an election.
    pub election_start: Duration,
    /// How long an election lasts.
    pub election: Duration,
    /// From being elected to the first restarts: reports come in, lists are read.
    pub elected_to_restart: Duration,
    /// A secondary without any network pings its isolation addresses from here on (counted from the last heartbeat).
    pub isolation_ping: Duration,
    /// A secondary declares itself isolated (counted from the last heartbeat).
    pub isolation_declare: Duration,
    /// A primary that hears nobody declares itself isolated after this.
    pub primary_isolation_declare: Duration,
    /// Time between the declaration and the isolation response.
    pub isolation_policy_delay: Duration,
    /// The primary looks at a silent secondary's datastore heartbeats from here on.
    pub look_datastore: Duration,
    /// A silent secondary is called unreachable, and pinged.
    pub unreachable: Duration,
    /// A silent secondary without heartbeat datastores is called dead.
    pub dead_without_datastores: Duration,
    /// A silent secondary without datastore heartbeats is called dead, or its agent unreachable.
    pub dead: Duration,
    /// Time between two reads of the powered-on lists of hosts that are cut off.
    pub poweron_poll: Duration,
    /// A VM is frozen when its right to run has not been renewed for this long.
    pub freeze: Duration,
    /// A lock may be broken when its holder's heartbeat has stood still for longer than this.
    pub r#break: Duration,
    /// All paths down is declared after I/O has hung for this long.
    pub apd_timeout: Duration,
    /// VMs are restarted elsewhere this long after the declaration.
    pub apd_delay: Duration,
    /// Clocks run within 1 ± this many millionths of true time. Range 0 to 100,000.
    pub clock_drift_ppm: u32,
    /// The guard's worst latency: from a deadline to all of a host's lapsed VMs being stopped.
    pub guard_latency: Duration,
}

/// One rule between timers, with the numbers of a concrete table.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Inequality {
    /// The rule in words and symbols.
    pub rule: String,
    /// Its left side in milliseconds.
    pub left_ms: f64,
    /// Its right side in milliseconds.
    pub right_ms: f64,
    /// True when it holds.
    pub holds: bool,
}

impl Inequality {
    fn strictly_above(rule: &str, left: f64, right: f64) -> Self {
        Self {
            rule: rule.to_string(),
            left_ms: left,
            right_ms: right,
            holds: left > right,
        }
    }

    fn at_most(rule: &str, left: f64, right: f64) -> Self {
        Self {
            rule: rule.to_string(),
            left_ms: left,
            right_ms: right,
            holds: left <= right,
        }
    }
}

/// A table of timers that is not safe or not live.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[error("the timers break the rule \"{}\": {:.1} ms against {:.1} ms; raise or lower one of the timers that it names, or take a profile as it is", .0.rule, .0.left_ms, .0.right_ms)]
pub struct TimingError(pub Inequality);

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

impl Timing {
    /// How long a connection between two agents may stand still before it is closed and made anew, over
    /// another network where there is one: before anybody is called silent for it, and with time for TCP
    /// to send a segment again (its time-out is at least 200 ms on Linux).
    #[must_use]
    pub fn stream_limit(&self) -> Duration {
        (2 * self.network_heartbeat).max(Duration::from_millis(400))
    }

    /// The table of a profile (`design`: section "Timing profiles").
    #[must_use]
    pub fn of(profile: Profile) -> Self {
        let s = Duration::from_secs;
        let ms = Duration::from_millis;
        match profile {
            Profile::Classic => Self {
                network_heartbeat: s(1),
                datastore_heartbeat: s(1),
                election_start: s(10),
                election: s(15),
                elected_to_restart: s(10),
                isolation_ping: s(25),
                isolation_declare: s(30),
                primary_isolation_declare: s(5),
                isolation_policy_delay: s(0),
                look_datastore: s(3),
                unreachable: s(10),
                dead_without_datastores: s(15),
                dead: s(18),
                poweron_poll: s(5),
                freeze: s(12),
                r#break: s(15),
                apd_timeout: s(140),
                apd_delay: s(180),
                clock_drift_ppm: 1000,
                guard_latency: ms(500),
            },
            Profile::Balanced => Self {
                network_heartbeat: ms(500),
                datastore_heartbeat: ms(500),
                election_start: s(3),
                election: s(2),
                elected_to_restart: s(1),
                isolation_ping: s(6),
                isolation_declare: s(8),
                primary_isolation_declare: s(3),
                isolation_policy_delay: s(0),
                look_datastore: s(1),
                unreachable: s(3),
                dead_without_datastores: s(5),
                dead: s(6),
                poweron_poll: s(2),
                freeze: s(3),
                r#break: ms(4500),
                apd_timeout: s(10),
                apd_delay: s(15),
                clock_drift_ppm: 1000,
                guard_latency: ms(500),
            },
            Profile::Fast => Self {
                network_heartbeat: ms(200),
                datastore_heartbeat: ms(200),
                election_start: s(1),
                election: ms(600),
                elected_to_restart: ms(300),
                isolation_ping: s(2),
                isolation_declare: s(3),
                primary_isolation_declare: ms(1200),
                isolation_policy_delay: s(0),
                look_datastore: ms(400),
                unreachable: s(1),
                dead_without_datastores: ms(1800),
                dead: ms(2400),
                poweron_poll: s(1),
                freeze: ms(1200),
                r#break: ms(1800),
                apd_timeout: s(5),
                apd_delay: s(5),
                clock_drift_ppm: 1000,
                guard_latency: ms(400),
            },
        }
    }

    /// Every inequality with its numbers, those that hold too: the computed margin is shown to people.
    #[must_use]
    pub fn inequalities(&self) -> Vec<Inequality> {
        let e = f64::from(self.clock_drift_ppm) / 1e6;
        let heartbeat = ms(self.datastore_heartbeat);
        alloc::vec![
            Inequality::strictly_above(
                "break x (1 - drift) > freeze x (1 + drift) + guard_latency",
                ms(self.r#break) * (1.0 - e),
                ms(self.freeze) * (1.0 + e) + ms(self.guard_latency),
            ),
            Inequality::at_most(
                "break + 2 x datastore_heartbeat <= dead",
                ms(self.r#break) + 2.0 * heartbeat,
                ms(self.dead),
            ),
            Inequality::strictly_above(
                "freeze > 2 x datastore_heartbeat",
                ms(self.freeze),
                2.0 * heartbeat
            ),
            Inequality::at_most(
                "look_datastore <= unreachable",
                ms(self.look_datastore),
                ms(self.unreachable)
            ),
            Inequality::at_most(
                "unreachable <= dead_without_datastores",
                ms(self.unreachable),
                ms(self.dead_without_datastores),
            ),
            Inequality::at_most(
                "dead_without_datastores <= dead",
                ms(self.dead_without_datastores),
                ms(self.dead),
            ),
            Inequality::at_most(
                "2 x network_heartbeat <= election_start",
                2.0 * ms(self.network_heartbeat),
                ms(self.election_start),
            ),
            Inequality::at_most(
                "2 x network_heartbeat <= election",
                2.0 * ms(self.network_heartbeat),
                ms(self.election),
            ),
            Inequality::at_most(
                "isolation_ping <= isolation_declare",
                ms(self.isolation_ping),
                ms(self.isolation_declare),
            ),
            Inequality::at_most(
                "break <= apd_timeout",
                ms(self.r#break),
                ms(self.apd_timeout)
            ),
            Inequality::strictly_above("network_heartbeat > 0", ms(self.network_heartbeat), 0.0),
            Inequality::strictly_above("datastore_heartbeat > 0", heartbeat, 0.0),
            Inequality::strictly_above("poweron_poll > 0", ms(self.poweron_poll), 0.0),
        ]
    }

    /// Refuses a table in which an inequality does not hold.
    ///
    /// # Errors
    /// [`TimingError`] with the first inequality that fails.
    pub fn check(&self) -> Result<(), TimingError> {
        match self.inequalities().into_iter().find(|i| !i.holds) {
            Some(broken) => Err(TimingError(broken)),
            None => Ok(()),
        }
    }

    /// Room that is left for the guard beyond its stated worst latency.
    #[must_use]
    pub fn margin(&self) -> Duration {
        let e = f64::from(self.clock_drift_ppm) / 1e6;
        let room =
            ms(self.r#break) * (1.0 - e) - ms(self.freeze) * (1.0 + e) - ms(self.guard_latency);
        Duration::from_secs_f64(room.max(0.0) / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_profiles_are_safe_with_room_to_spare() {
        for profile in [Profile::Classic, Profile::Balanced, Profile::Fast] {
            let timing = Timing::of(profile);
            assert_eq!(timing.check(), Ok(()), "{profile:?}");
            assert!(
                timing.margin() > Duration::from_millis(100),
                "{profile:?}: {:?}",
                timing.margin()
            );
        }
    }

    #[test]
    fn equality_of_break_and_freeze_is_refused_with_the_rule_in_the_message() {
        let mut timing = Timing::of(Profile::Balanced);
        timing.r#break = timing.freeze;
        let error = timing.check().expect_err("unsafe");
        assert!(error.to_string().contains("break x (1 - drift)"), "{error}");
    }

    #[test]
    fn a_verdict_faster_than_the_lock_is_refused() {
        let mut timing = Timing::of(Profile::Balanced);
        timing.dead = Duration::from_secs(5);
        assert!(timing.check().is_err());
    }
}
