//! A host with a fence device, and an owner that breaks its VM's lock by its power alone: the device does what it is
//! told late, or is silent, and the host boots and runs the VM again meanwhile.

use super::hosts::{Bounds, Budget, Device, Explored, TAKEOVER};
use super::{Case, Expect, run_all};
#[cfg(feature = "planted")]
use std::format;
use std::string::String;
use std::vec::Vec;

fn small() -> Bounds {
    Bounds {
        ticks: 4,
        device: Device::Honest,
        budget: Budget {
            ons: 1,
            beats: 1,
            ..Budget::default()
        },
        ..Bounds::calm()
    }
}

/// With an answer that does not come.
fn silent() -> Bounds {
    let small = small();
    Bounds {
        budget: Budget {
            unknown: 1,
            ..small.budget
        },
        ..small
    }
}

/// What must hold, and what must be found when it is taken away.
pub(super) fn cases(bound: u32) -> Vec<Case> {
    let all = [
        ("the device is honest", small()),
        ("an answer does not come", silent()),
        (
            "the device does nothing",
            Bounds {
                device: Device::Deaf,
                ..small()
            },
        ),
    ];
    let case = |(name, bounds): (&str, Bounds)| {
        // That the host runs the VM again takes minutes.
        let ons = u8::from(bound > 1);
        let bounds = Bounds {
            ticks: 3 + u64::from(bound.saturating_sub(2)),
            budget: Budget {
                ons,
                ..bounds.budget
            },
            ..bounds
        };
        let reaches: &[&str] = match bounds.device {
            Device::Honest => &[TAKEOVER],
            _ => &[],
        };
        let model = Explored { bounds, reaches };
        Case::new("fence", String::from(name), Expect::Holds, model)
    };
    // What may be done later, though nobody waits for it, takes minutes too.
    let all = all
        .into_iter()
        .filter(|(_, bounds)| bound > 1 || bounds.budget.unknown == 0);
    let mut cases: Vec<Case> = all.map(case).collect();
    let model = Explored {
        bounds: Bounds {
            device: Device::Liar,
            ..small()
        },
        reaches: &[],
    };
    let liar = String::from("a device that lies");
    cases.push(Case {
        clause: "a fence device calls nothing off that runs and gives no sign of life (A11)",
        ..Case::new("fence", liar, Expect::Breaks, model)
    });
    #[cfg(feature = "planted")]
    cases.extend(planted());
    cases
}

/// With each bug that is planted in the agent.
#[cfg(feature = "planted")]
fn planted() -> impl Iterator<Item = Case> {
    use crate::planted::Bug;
    let deaf = Bounds {
        device: Device::Deaf,
        ..small()
    };
    let all = [
        (Bug::PowerProofOutlivesBoot, small()),
        (Bug::FenceUnconfirmed, deaf),
        (Bug::SilentDeviceIsDeath, silent()),
    ];
    all.into_iter().map(|(bug, bounds)| {
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
            ..Case::new("fence", format!("{bug:?}"), Expect::Breaks, model)
        }
    })
}

#[test]
fn power_proves_what_it_can_and_each_clause_is_needed() {
    run_all(cases(1));
}
