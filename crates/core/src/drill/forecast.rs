//! What would happen if a host was lost now, and why a drill of it would be refused.

use super::{Forecast, Foreseen, LONGEST, Obstacle, Outcome};
use crate::agent::Agent;
use crate::config::FenceClass;
use crate::event::HostState;
use crate::id::{DatastoreId, HostId, VmId};
use crate::restart::{Rehearsed, Supposed};
use crate::time::{Duration, millis};
use crate::wire::Rank;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// A drill lasts so much longer than it takes until the last VM may be asked for: twice as long, and this
/// besides, so that slow starts are seen.
const SPARE: Duration = Duration::from_secs(10);
/// More names than this are counted instead.
const NAMES: usize = 5;

/// The first from the primary's timers.
struct Times {
    elected: Duration,
    verdict: Duration,
    lock: Duration,
    asked: Duration,
}

impl Agent {
    /// The forecast for a host, by its primary.
    ///
    /// # Errors
    /// A sentence: this agent is no primary, or there is no such host.
    pub(super) fn forecast(&self, host: &HostId) -> Result<Forecast, String> {
        if !self.role.is_primary() {
            return Err(format!(
                "{} is not the primary any more; ask again in a few seconds",
                self.me.host
            ));
        }
        self.check_host(host).map_err(|e| e.to_string())?;
        let successor = (*host == self.me.host).then(|| self.successor()).flatten();
        let supposed = Supposed {
            lost: host.clone(),
            successor: successor.clone(),
        };
        let times = self.times(host);
        let vms = self.foresee(&supposed, &times);
        let last = vms.iter().filter_map(|v| match v.outcome {
            Outcome::Restarted { asked_ms, .. } => Some(asked_ms),
            _ => None,
        });
        let last = Duration::from_millis(last.max().unwrap_or_else(|| millis(times.asked)));
        let t = self.timing();
        let later_by = t.network_heartbeat + 2 * t.datastore_heartbeat;
        let stuck = |v: &Foreseen| matches!(v.outcome, Outcome::Stuck { .. });
        let mut forecast = Forecast {
            host: host.clone(),
            primary: self.me.host.clone(),
            successor: successor.map(|(host, _)| host),
            profile: self.config.settings.profile.name().to_string(),
            frozen_ms: millis(t.freeze + t.guard_latency),
            elected_ms: millis(times.elected),
            verdict_ms: millis(times.verdict),
            lock_ms: millis(times.lock),
            later_by_ms: millis(later_by),
            all_come_back: !vms.iter().any(stuck),
            vms,
            weaknesses: self
                .issues(self.now)
                .iter()
                .map(ToString::to_string)
                .collect(),
            obstacles: Vec::new(),
            time_ms: millis((2 * last + SPARE).min(LONGEST)),
            bounds_ms: (millis(times.asked + later_by), millis(LONGEST)),
        };
        forecast.obstacles = self.obstacles(&forecast);
        Ok(forecast)
    }

    /// Who would be elected if this primary was lost, and the datastores that it can use.
    fn successor(&self) -> Option<(HostId, Vec<DatastoreId>)> {
        let fit = |(_, p): &(&HostId, &crate::liveness::Peer)| p.connected() && !p.leaving;
        let candidates = self.peers.iter().filter(fit).map(|(host, peer)| {
            let usable = peer.report.as_ref().map(|r| r.datastores.clone());
            let usable = usable.unwrap_or_default();
            let counted = if self.is_resting(host) {
                0
            } else {
                usable.len()
            };
            let rank = Rank {
                datastores: u32::try_from(counted).unwrap_or(u32::MAX),
                host: host.clone(),
            };
            (rank, usable)
        });
        let best = candidates.max_by(|(a, _), (b, _)| a.cmp(b));
        best.map(|(rank, usable)| (rank.host, usable))
    }

    /// The earliest moments after the loss of a host, from the timers.
    fn times(&self, host: &HostId) -> Times {
        let t = self.timing();
        let verdict = if self.topology.heartbeat_datastores(host).is_empty() {
            t.dead_without_datastores
        } else {
            t.dead
        };
        let lock = self.longest_break(&[]);
        let (elected, first) = if *host == self.me.host {
            let elected = t.election_start + t.election;
            (elected, elected + t.elected_to_restart)
        } else {
            (Duration::ZERO, Duration::ZERO)
        };
        Times {
            elected,
            verdict,
            lock,
            asked: verdict.max(lock).max(first),
        }
    }

    fn foresee(&self, supposed: &Supposed, times: &Times) -> Vec<Foreseen> {
        let patience = self.config.settings.dependency_timeout;
        let of = |vm: VmId, rehearsed: Rehearsed| {
            let datastore = self
                .config
                .vms
                .get(&vm)
                .map(|spec| &spec.datastore)
                .or_else(|| self.locate(&vm).map(|place| &place.spec.datastore));
            let outcome = match rehearsed {
                Rehearsed::Restarted {
                    host,
                    wave,
                    after_dependency,
                    why,
                } => {
                    let waits = if after_dependency {
                        patience
                    } else {
                        Duration::ZERO
                    };
                    Outcome::Restarted {
                        host,
                        asked_ms: millis(times.asked + waits),
                        wave,
                        why,
                    }
                }
                Rehearsed::Left(why) => Outcome::Left { why },
                Rehearsed::Stuck(why) => Outcome::Stuck { why },
            };
            let fence = datastore
                .and_then(|d| self.config.datastores.get(d))
                .map(|d| d.fence);
            Foreseen {
                protected: self.listed_on(&vm).is_some(),
                enforced: fence == Some(FenceClass::Enforced),
                vm,
                outcome,
            }
        };
        let rehearsed = self.rehearse(supposed).into_iter();
        rehearsed.map(|(vm, outcome)| of(vm, outcome)).collect()
    }

    /// Why a drill would be refused now, the worst first.
    fn obstacles(&self, forecast: &Forecast) -> Vec<Obstacle> {
        let mut all: Vec<Obstacle> = Vec::new();
        let mut say = |may_insist, why: String| all.push(Obstacle { why, may_insist });
        let host = &forecast.host;
        let takes_vms = |h: &&HostId| *h != host && !self.is_resting(h);
        if self.config.hosts.keys().filter(takes_vms).count() == 0 {
            say(
                false,
                format!(
                    "{host} is the only host that takes VMs: nothing could be restarted elsewhere; add another host, or let one leave maintenance"
                ),
            );
        }
        if !self.config.settings.host_monitoring {
            say(
                false,
                String::from(
                    "high availability is off, so that nobody reacts to the loss of a host; `mainstay config set host_monitoring true`",
                ),
            );
        }
        if self.is_resting(host) {
            say(
                false,
                format!(
                    "{host} is in maintenance: its VMs are not meant to be restarted from there; `mainstay maintenance exit {host}` first"
                ),
            );
        }
        if let Some(why) = self.is_not_well(host) {
            say(
                false,
                format!("{host} is not well itself: {why}; wait until it is live"),
            );
        }
        let silent = |h: &&HostId| self.drills.is_under_way(h, self.now);
        if let Some(other) = self.config.hosts.keys().find(silent) {
            say(
                false,
                format!(
                    "{other} is in a drill; end that first with `mainstay drill {other} --stop`"
                ),
            );
        }
        let old = |p: &crate::liveness::Peer| p.understands.is_none_or(|v| v < 2);
        if self.peers.get(host).is_some_and(old) {
            say(
                false,
                format!(
                    "the agent of {host} is of an older version, which knows no drills; upgrade it"
                ),
            );
        }
        let others = self.config.hosts.keys().filter(takes_vms);
        for (other, why) in others.filter_map(|h| Some((h, self.is_not_well(h)?))) {
            say(
                true,
                format!(
                    "{other} is not well ({why}), and a real failure during a drill would be worse; wait until every host is live"
                ),
            );
        }
        let open: Vec<&str> = stuck(forecast, |v| !v.enforced);
        if !open.is_empty() && !self.config.settings.accept_late_writes {
            say(
                true,
                format!(
                    "{} on datastores that do not refuse late writes (fence class open): nobody would take over from a host whose death is not proven, and they would stand still until the drill ends",
                    names(&open)
                ),
            );
        } else if !open.is_empty() {
            say(
                true,
                format!(
                    "{} on datastores that do not refuse late writes (fence class open), and the silent host answers pings: they are taken over only from a dead one, and would stand still until the drill ends",
                    names(&open)
                ),
            );
        }
        let without: Vec<&str> = stuck(forecast, |v| v.enforced);
        let first = forecast.vms.iter().find_map(|v| match &v.outcome {
            Outcome::Stuck { why } if v.enforced => Some(why),
            _ => None,
        });
        if let Some(why) = first {
            say(
                true,
                format!(
                    "{} would not come back elsewhere, and would stand still until the drill ends: {why}; make room, or change what keeps them",
                    names(&without)
                ),
            );
        }
        all
    }

    /// Why a host is not live, if it is not.
    fn is_not_well(&self, host: &HostId) -> Option<String> {
        if *host == self.me.host {
            let leaving = self.leaving.is_some();
            return leaving.then(|| String::from("it is being shut down"));
        }
        let peer = self.peers.get(host)?;
        if peer.leaving {
            return Some(String::from("it is being shut down"));
        }
        let judged = matches!(peer.state, HostState::Live | HostState::Maintenance);
        if judged && !peer.connected() {
            return Some(String::from("it does not follow this primary yet"));
        }
        (!judged).then(|| format!("{}: {}", Self::state_name(peer.state), peer.why))
    }
}

/// The VMs that should come back and would not, of which that holds.
fn stuck(forecast: &Forecast, which: impl Fn(&Foreseen) -> bool) -> Vec<&str> {
    let vms = forecast.vms.iter();
    vms.filter(|v| matches!(v.outcome, Outcome::Stuck { .. }) && which(v))
        .map(|v| v.vm.as_str())
        .collect()
}

/// A few names, and how many more there are.
fn names(all: &[&str]) -> String {
    let shown = all.iter().take(NAMES).copied().collect::<Vec<&str>>();
    match all.len().saturating_sub(NAMES) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
