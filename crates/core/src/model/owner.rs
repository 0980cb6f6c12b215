//! Two primaries and a host that runs the VM: the owner lock, vouching, and the breaking of the VM's lock by the
//! one or the other, with heartbeats that stop, and questions and answers that are late or lost.

use super::hosts::{Bounds, Budget, Explored, HANDOVER, Part, TAKEOVER, VOUCHED};
use super::{Case, Expect, run_all};
#[cfg(feature = "planted")]
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

fn small() -> Bounds {
    Bounds {
        ticks: 6,
        mail: 2,
        ..Bounds::calm()
    }
}

/// With a second primary, and the first one's heartbeat at will.
fn two(ticks: u64, leads: u8) -> Bounds {
    Bounds {
        parts: vec![Part::Runs(1), Part::Leads, Part::Steady],
        ticks,
        budget: Budget {
            leads,
            ..Budget::default()
        },
        ..small()
    }
}

/// The first primary vouches until it may no more, and the second one follows it as the datastore's owner.
fn successor(ticks: u64) -> Bounds {
    Bounds {
        budget: Budget::default(),
        ..heir(ticks)
    }
}

/// The VM's host becomes a primary when the first one steps down, and the second one may take over from it.
fn heir(ticks: u64) -> Bounds {
    Bounds {
        parts: vec![Part::Runs(1), Part::Answers, Part::Steady],
        ticks,
        // The second one has a tick to look at the VM's lock after it took the owner's.
        freeze: 3,
        r#break: 3,
        // What is asked in a tick is answered in that tick, or not at all.
        mail: 1,
        budget: Budget {
            roles: 2,
            steps_down: 1,
            ..Budget::default()
        },
        ..small()
    }
}

/// What must hold, and what must be found when it is taken away.
pub(super) fn cases(bound: u32) -> Vec<Case> {
    let more = u64::from(bound.saturating_sub(1));
    let one = Bounds {
        ticks: 6 + more,
        ..small()
    };
    let late = Bounds {
        late_links: true,
        ..one.clone()
    };
    let beats = Bounds {
        ticks: 3 + more,
        budget: Budget {
            beats: 1,
            ..Budget::default()
        },
        ..small()
    };
    let all = [
        ("one owner, the host's heartbeat is dead", one),
        ("one owner, links land late", late),
        ("one owner, the heartbeat comes back", beats),
        ("the VM's host becomes owner", heir(4 + more)),
        ("an owner follows one that vouched", successor(9 + more)),
        ("two owners, one after the other", two(7 + more, 0)),
        (
            "two owners, links and messages are late",
            Bounds {
                late_links: true,
                mail: 2,
                ..successor(8 + more)
            },
        ),
        (
            "two owners follow one that vouched",
            Bounds {
                parts: vec![Part::Runs(1), Part::Answers, Part::Leads, Part::Steady],
                ..successor(8 + more)
            },
        ),
    ];
    let case = |(name, bounds): (&str, Bounds)| {
        let reaches: &[&str] = match name {
            name if name.starts_with("two") => &[TAKEOVER, VOUCHED, HANDOVER],
            name if name.contains("follows") => &[TAKEOVER, VOUCHED, HANDOVER],
            name if name.contains("dead") => &[TAKEOVER, VOUCHED],
            _ => &[],
        };
        let model = Explored { bounds, reaches };
        Case::new("owner", String::from(name), Expect::Holds, model)
    };
    // Two owners that do all that they can take minutes.
    let all = all
        .into_iter()
        .filter(|(name, _)| bound > 1 || !name.starts_with("two"));
    let cases = all.map(case);
    #[cfg(feature = "planted")]
    let cases = cases.chain(planted());
    cases.collect()
}

/// With each bug that is planted in the agent.
#[cfg(feature = "planted")]
fn planted() -> Vec<Case> {
    use crate::planted::Bug;
    // An answer can be on its way for a tick, and still find the VM running.
    let slow = Bounds {
        freeze: 4,
        r#break: 4,
        ticks: 8,
        ..small()
    };
    let back = Bounds {
        budget: Budget {
            beats: 1,
            ..Budget::default()
        },
        ..small()
    };
    let all = [
        (Bug::VouchForgotten, small()),
        (Bug::NewestIsAnswered, slow.clone()),
        (Bug::VouchFromAnswer, slow),
        (Bug::VouchThaws, back),
        (Bug::OwnerResumes, two(6, 1)),
        (Bug::NewOwnerHurries, successor(6)),
        (Bug::AnswerAfterLapse, successor(10)),
        (Bug::OwnerKeepsVouch, heir(5)),
        (
            Bug::AnswerToOwner,
            Bounds {
                late_links: true,
                only_its_own: true,
                ..heir(5)
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
            ..Case::new("owner", format!("{bug:?}"), Expect::Breaks, model)
        }
    };
    all.into_iter().map(case).collect()
}

#[test]
fn one_owner_acts_and_each_clause_is_needed() {
    run_all(cases(1));
}
