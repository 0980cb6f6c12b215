//! One VM, its host and an owner that may break its lock: heartbeats, freezing, thawing, breaking, releasing and
//! starting with late, lost and unknown operations, a host that crashes and boots, an agent that dies.

use super::hosts::{Bounds, Budget, Explored, TAKEOVER, THAW};
use super::{Case, Expect, run_all};
#[cfg(feature = "planted")]
use std::format;
use std::string::String;
use std::vec::Vec;

fn small() -> Bounds {
    Bounds {
        ticks: 5,
        late_beats: true,
        late_links: true,
        budget: Budget {
            beats: 2,
            ..Budget::default()
        },
        ..Bounds::calm()
    }
}

/// What must hold, and what must be found when it is taken away.
pub(super) fn cases(bound: u32) -> Vec<Case> {
    let more = u64::from(bound.saturating_sub(1));
    let small = || Bounds {
        ticks: 4 + more,
        ..small()
    };
    let budget = small().budget;
    // Where much else can happen, the tests have one heartbeat, with which a VM is thawed, or started after a boot.
    let few = if more > 0 { budget.beats } else { 1 };
    let all = [
        ("heartbeats and links land late", small()),
        (
            "an outcome is unknown",
            Bounds {
                ticks: 3 + more,
                budget: Budget {
                    unknown: 1,
                    beats: 1,
                    ..budget
                },
                ..small()
            },
        ),
        (
            "reads are late",
            Bounds {
                late_reads: true,
                late_links: false,
                budget: Budget { beats: 1, ..budget },
                ..small()
            },
        ),
        (
            "the guard takes a tick",
            Bounds {
                guard: 1,
                r#break: 3,
                ticks: 5 + more,
                late_links: false,
                ..small()
            },
        ),
        (
            "the user switches off and on",
            Bounds {
                ticks: 3 + more,
                late_beats: false,
                budget: Budget {
                    offs: 1,
                    ons: 1,
                    beats: few,
                    ..budget
                },
                ..small()
            },
        ),
        (
            "the host crashes and boots",
            Bounds {
                late_beats: false,
                late_links: more > 0,
                ticks: 4 + more.saturating_sub(1),
                budget: Budget {
                    crashes: 1,
                    ons: 1,
                    beats: few,
                    ..budget
                },
                ..small()
            },
        ),
        (
            "the agent dies",
            Bounds {
                late_beats: false,
                budget: Budget { kills: 1, ..budget },
                ..small()
            },
        ),
        (
            "reads come from a cache",
            Bounds {
                late_links: false,
                late_beats: false,
                ticks: 5 + more,
                budget: Budget {
                    stale: 1,
                    beats: 4,
                    ..budget
                },
                ..small()
            },
        ),
        (
            "the host's clock is slow",
            Bounds {
                slow: 4,
                r#break: 3,
                late_links: false,
                ticks: 6 + more,
                ..small()
            },
        ),
        (
            "the timers are raised",
            Bounds {
                late_links: false,
                ticks: 5 + more,
                budget: Budget {
                    raises: 1,
                    beats: few,
                    ..budget
                },
                ..small()
            },
        ),
    ];
    let case = |(name, bounds): (&str, Bounds)| {
        let model = Explored {
            bounds,
            reaches: &[TAKEOVER, THAW],
        };
        Case::new("right", String::from(name), Expect::Holds, model)
    };
    let mut cases: Vec<Case> = all.into_iter().map(case).collect();
    cases.extend(taken_away());
    #[cfg(feature = "planted")]
    cases.extend(planted());
    cases
}

/// Without what the agents need of what is around them.
fn taken_away() -> impl Iterator<Item = Case> {
    let calm = Bounds {
        late_beats: false,
        late_links: false,
        ..small()
    };
    let budget = calm.budget;
    let all = [
        (
            "NoFreeze",
            "a VM is frozen when its right to run has lapsed",
            Bounds {
                no_freeze: true,
                ..small()
            },
        ),
        (
            "`break` without the drift",
            "the first inequality allows for clocks that drift (A1)",
            Bounds {
                slow: 4,
                ticks: 6,
                ..calm.clone()
            },
        ),
        (
            "a snapshot is restored",
            "the storage keeps what it acknowledged (A7)",
            Bounds {
                budget: Budget {
                    restores: 1,
                    ..budget
                },
                ..calm.clone()
            },
        ),
    ];
    all.into_iter().map(|(name, clause, bounds)| {
        let model = Explored {
            bounds,
            reaches: &[],
        };
        Case {
            clause,
            ..Case::new("right", String::from(name), Expect::Breaks, model)
        }
    })
}

/// With each bug that is planted in the agent.
#[cfg(feature = "planted")]
fn planted() -> Vec<Case> {
    use crate::planted::Bug;
    let budget = small().budget;
    let calm = Bounds {
        late_beats: false,
        late_links: false,
        ..small()
    };
    // An acknowledgement can be two ticks late, and still find the VM running.
    let slow = Bounds {
        freeze: 4,
        r#break: 4,
        ticks: 7,
        late_links: false,
        ..small()
    };
    let all = [
        (Bug::ThawByRead, small()),
        (Bug::LockReadLast, small()),
        (Bug::RightFromAcknowledgement, slow),
        (Bug::BreakAtEquality, small()),
        (Bug::HeartbeatRepeats, calm.clone()),
        (
            Bug::BreakAtFreeze,
            Bounds {
                guard: 1,
                r#break: 3,
                ..calm.clone()
            },
        ),
        (
            Bug::WindowTooWide,
            Bounds {
                late_reads: true,
                ..calm.clone()
            },
        ),
        (
            Bug::ReadBackSkipped,
            Bounds {
                budget: Budget {
                    stale: 1,
                    beats: 4,
                    ..budget
                },
                ..calm.clone()
            },
        ),
    ];
    let case = |(bug, bounds): (Bug, Bounds)| {
        let bounds = Bounds {
            bug: Some(bug),
            ..bounds
        };
        let model = Explored {
            bounds,
            reaches: &[],
        };
        Case {
            clause: bug.clause(),
            ..Case::new("right", format!("{bug:?}"), Expect::Breaks, model)
        }
    };
    all.into_iter().map(case).collect()
}

#[test]
fn one_vm_runs_once_and_each_clause_is_needed() {
    run_all(cases(1));
}
