//! From what was seen of a host's loss to the phases of each VM's failover, and what of it the timers took.

use crate::run::{Loss, Victim};
use mainstay_core::config::Timing;
use mainstay_core::event::{EventKind, HostState};
use mainstay_core::id::{DatastoreId, VmId};
use mainstay_core::time::Instant;

/// A part of a failover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Power loss to the verdict that the host is dead.
    Detection,
    /// Verdict to the request that a host start the VM.
    Ask,
    /// Request to the broken lock.
    LockWait,
    /// Broken lock to the report that the VM runs.
    Start,
    /// Power loss to the guest's first write from its new host.
    Total,
    /// What of the total came after the timers alone would have been done ([`due`]).
    Overhead,
}

/// All phases, in their order.
pub const PHASES: [Phase; 6] = [
    Phase::Detection,
    Phase::Ask,
    Phase::LockWait,
    Phase::Start,
    Phase::Total,
    Phase::Overhead,
];

impl Phase {
    /// Its words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Detection => "detection",
            Self::Ask => "ask",
            Self::LockWait => "lock wait",
            Self::Start => "start",
            Self::Total => "total",
            Self::Overhead => "overhead",
        }
    }
}

/// One VM's failover, in seconds. A phase is missing when its beginning or end was not seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Times {
    /// The VM.
    pub vm: VmId,
    seconds: [Option<f64>; PHASES.len()],
}

impl Times {
    /// How long a phase took. Overhead is below 0 where the timers' latest moment was not reached.
    #[must_use]
    pub fn seconds(&self, phase: Phase) -> Option<f64> {
        let at = PHASES.iter().position(|p| *p == phase)?;
        self.seconds.get(at).copied().flatten()
    }
}

/// Seconds from one moment to another, below 0 when it was before.
fn between(from: Instant, to: Instant) -> f64 {
    if to >= from {
        to.since(from).as_secs_f64()
    } else {
        -from.since(to).as_secs_f64()
    }
}

/// When the timers alone would have let a VM of this datastore start, by the last signs of life that this very
/// loss left: the later of
///
/// - the verdict's: a heartbeat interval and `dead` after the last network heartbeat that passed. For a lost primary
///   also its election's: an interval, `election_start`, `election` and `elected_to_restart` after the last that any
///   other host got;
/// - the lock's: a read interval and `break` after the last heartbeat on the datastore.
///
/// None when one of the signs was not seen.
#[must_use]
pub fn due(loss: &Loss, timing: &Timing, datastore: &DatastoreId) -> Option<Instant> {
    let first_silent = *loss.datagrams.values().min()?;
    let last_silent = *loss.datagrams.values().max()?;
    let verdict = match loss.victim {
        // A secondary sends its heartbeats to the primary alone, and little else to others: the last one counts.
        Victim::Secondary => last_silent + timing.network_heartbeat + timing.dead,
        Victim::Primary => {
            let silence = timing.network_heartbeat + timing.election_start;
            let elected = first_silent + silence + timing.election;
            let dead = last_silent + timing.network_heartbeat + timing.dead;
            (elected + timing.elected_to_restart).max(dead)
        }
    };
    let heartbeat = *loss.heartbeats.get(datastore)?;
    let lock = heartbeat + timing.datastore_heartbeat + timing.r#break;
    Some(verdict.max(lock))
}

/// The phases of each lost VM.
#[must_use]
pub fn times(loss: &Loss, timing: &Timing) -> Vec<Times> {
    let dead = |kind: &EventKind| matches!(kind, EventKind::HostState { host, to: HostState::Dead, .. } if *host == loss.host);
    let verdict = first(loss, loss.at, dead);
    let of_vm = |(vm, (datastore, back)): (&VmId, &(DatastoreId, Option<Instant>))| {
        let requested = verdict.and_then(|from| {
            first(
                loss,
                from,
                |kind| matches!(kind, EventKind::RestartRequested { vm: of, .. } if of == vm),
            )
        });
        let broken = requested.and_then(|from| {
            first(
                loss,
                from,
                |kind| matches!(kind, EventKind::LockBroken { vm: of, .. } if of == vm),
            )
        });
        let started = broken.and_then(|from| {
            first(
                loss,
                from,
                |kind| matches!(kind, EventKind::VmStarted { vm: of, .. } if of == vm),
            )
        });
        let took = |from: Option<Instant>, to: Option<Instant>| Some(between(from?, to?));
        Times {
            vm: vm.clone(),
            seconds: [
                took(Some(loss.at), verdict),
                took(verdict, requested),
                took(requested, broken),
                took(broken, started),
                took(Some(loss.at), *back),
                took(due(loss, timing, datastore), *back),
            ],
        }
    };
    loss.vms.iter().map(of_vm).collect()
}

/// The first event of a kind that is not before a moment.
fn first(loss: &Loss, from: Instant, wanted: impl Fn(&EventKind) -> bool) -> Option<Instant> {
    let mut events = loss.events.iter().filter(|(at, _)| *at >= from);
    events.find(|(_, kind)| wanted(kind)).map(|(at, _)| *at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_core::config::Profile;
    use mainstay_core::id::{Generation, HostId};
    use std::collections::BTreeMap;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    fn host(name: &str) -> HostId {
        HostId::new(name).expect("id")
    }

    fn datastore() -> DatastoreId {
        DatastoreId::new("ds-1").expect("id")
    }

    fn loss(victim: Victim) -> Loss {
        let vm = VmId::new("vm-1").expect("id");
        let requested = |attempt| EventKind::RestartRequested {
            vm: vm.clone(),
            host: host("host-2"),
            attempt,
        };
        let events = vec![
            // Of an earlier story.
            (at(9_500), requested(1)),
            (
                at(12_650),
                EventKind::HostState {
                    observer: host("host-3"),
                    host: host("host-1"),
                    from: HostState::Unreachable,
                    to: HostState::Dead,
                },
            ),
            (at(12_660), requested(1)),
            (
                at(12_680),
                EventKind::LockBroken {
                    vm: vm.clone(),
                    host: host("host-2"),
                    generation: Generation(4),
                    from: host("host-1"),
                },
            ),
            (
                at(12_730),
                EventKind::VmStarted {
                    vm: vm.clone(),
                    host: host("host-2"),
                    generation: Generation(4),
                },
            ),
        ];
        Loss {
            at: at(10_000),
            host: host("host-1"),
            victim,
            datagrams: [(host("host-2"), at(9_800)), (host("host-3"), at(9_900))].into(),
            heartbeats: [(datastore(), at(9_950))].into(),
            events,
            vms: BTreeMap::from([(vm, (datastore(), Some(at(12_725))))]),
            breaches: Vec::new(),
        }
    }

    #[test]
    fn overhead_is_counted_from_the_later_of_verdict_and_lock() {
        let timing = Timing::of(Profile::Fast);
        let mut loss = loss(Victim::Secondary);
        // 9,900 + 200 + 2,400 against 9,950 + 200 + 1,800.
        assert_eq!(due(&loss, &timing, &datastore()), Some(at(12_500)));
        loss.heartbeats.insert(datastore(), at(10_900));
        assert_eq!(due(&loss, &timing, &datastore()), Some(at(12_900)));
        loss.heartbeats.clear();
        assert_eq!(due(&loss, &timing, &datastore()), None);
    }

    #[test]
    fn a_lost_primary_has_its_election_before() {
        let mut timing = Timing::of(Profile::Fast);
        let loss = loss(Victim::Primary);
        // 9,800 + 200 + 1,000 + 600 + 300 is before the verdict, 9,900 + 200 + 2,400.
        assert_eq!(due(&loss, &timing, &datastore()), Some(at(12_500)));
        timing.election_start *= 2;
        assert_eq!(due(&loss, &timing, &datastore()), Some(at(12_900)));
    }

    #[test]
    fn phases_follow_each_other() {
        let timing = Timing::of(Profile::Fast);
        let all = times(&loss(Victim::Secondary), &timing);
        let [one] = all.as_slice() else {
            panic!("one VM");
        };
        let ms = PHASES.map(|p| one.seconds(p).map(|s| (s * 1000.0).round()));
        let expected = [2650.0, 10.0, 20.0, 50.0, 2725.0, 225.0];
        assert_eq!(ms, expected.map(Some));
    }

    #[test]
    fn what_was_not_seen_has_no_time() {
        let mut loss = loss(Victim::Secondary);
        loss.events.truncate(3);
        loss.vms.values_mut().for_each(|(_, back)| *back = None);
        let all = times(&loss, &Timing::of(Profile::Fast));
        let seen: Vec<bool> = PHASES
            .iter()
            .map(|p| all[0].seconds(*p).is_some())
            .collect();
        assert_eq!(seen, [true, true, false, false, false, false]);
    }
}
