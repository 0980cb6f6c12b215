use super::model::Bounds;
use super::proposal::Planted;
use super::*;
use crate::model::{Case, Expect, run_all};
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

/// Two hosts, the first with a second slot.
fn two() -> Bounds {
    Bounds {
        slots: vec![vec![0, 1], vec![2]],
        generations: 1,
        ballots: 2,
        tries: 2,
        ..Bounds::default()
    }
}

/// What must hold, and what must be found when it is taken away.
pub(crate) fn cases(bound: u32) -> Vec<Case> {
    let mut holds = vec![
        (
            "two hosts, two generations",
            Bounds {
                generations: 2,
                ..two()
            },
        ),
        (
            "late writes and a later generation",
            Bounds {
                unknown: 1,
                generations: 2,
                ballots: 1,
                ..two()
            },
        ),
        (
            "an agent dies",
            Bounds {
                deaths: 1,
                ballots: 1,
                ..two()
            },
        ),
        (
            "a host boots and goes on in its slot",
            Bounds {
                boots: 1,
                unknown: 1,
                ballots: 1,
                slots: vec![vec![0], vec![1]],
                ..two()
            },
        ),
        (
            "three hosts",
            Bounds {
                slots: vec![vec![0], vec![1], vec![2]],
                ballots: 1,
                tries: 1,
                ..two()
            },
        ),
    ];
    if bound > 1 {
        holds.extend([
            (
                "a write lands late, two ballots",
                Bounds {
                    unknown: 1,
                    ..two()
                },
            ),
            ("an agent dies, two ballots", Bounds { deaths: 1, ..two() }),
        ]);
        holds.push((
            "two unknown writes, a death",
            Bounds {
                unknown: 2,
                deaths: 1,
                ballots: 1,
                ..two()
            },
        ));
    }
    if bound > 2 {
        holds.push((
            "three hosts, two ballots each",
            Bounds {
                slots: vec![vec![0], vec![1], vec![2]],
                tries: 1,
                ..two()
            },
        ));
    }
    let case = |(name, bounds): (&str, Bounds)| {
        Case::new("paxos", String::from(name), Expect::Holds, bounds)
    };
    // A million states: not for the tests.
    holds.retain(|(name, _)| bound > 1 || !name.starts_with("late writes"));
    let mut cases: Vec<Case> = holds.into_iter().map(case).collect();
    cases.extend(planted());
    cases
}

/// With each clause of a proposal taken away.
fn planted() -> Vec<Case> {
    let none = Planted::default();
    let without = |name: &str, clause: &'static str, planted: Planted, bounds: Bounds| Case {
        clause,
        ..Case::new(
            "paxos",
            format!("paxos: {name}"),
            Expect::Breaks,
            Bounds { planted, ..bounds },
        )
    };
    let unknown = Bounds {
        unknown: 1,
        ..two()
    };
    let forgetful = Bounds {
        doubts_forgotten: true,
        ..two()
    };
    vec![
        without(
            "no second reading",
            "a value is decided after a reading that follows its write",
            Planted {
                no_second_reading: true,
                ..none
            },
            two(),
        ),
        without(
            "own value always",
            "what was accepted under the highest ballot is proposed",
            Planted {
                own_value_always: true,
                ..none
            },
            two(),
        ),
        without(
            "slot begun anew",
            "a process goes on from what its slot says (H20)",
            Planted {
                slot_begins_anew: true,
                ..none
            },
            Bounds {
                boots: 1,
                slots: vec![vec![0], vec![1]],
                ..two()
            },
        ),
        without(
            "doubt forgotten after an unknown write",
            "a slot with a write in doubt is not written again (H20)",
            none,
            Bounds {
                unknown: 1,
                ..forgetful.clone()
            },
        ),
        without(
            "doubt forgotten after a death",
            "a slot with a write in doubt is not written again (H20)",
            none,
            Bounds {
                deaths: 1,
                ..forgetful
            },
        ),
        without(
            "unknown is done",
            "a write of unknown outcome is not done until it is seen",
            Planted {
                unknown_is_done: true,
                ..none
            },
            unknown.clone(),
        ),
        without(
            "resolving reading counts",
            "sectors that were read before a late write was seen say nothing",
            Planted {
                doubt_read_counts: true,
                ..none
            },
            Bounds {
                // The rival's sector is read first.
                slots: vec![vec![1], vec![0]],
                ..unknown
            },
        ),
        Case {
            expect: Expect::NotFound(
                "what was only accepted was told to nobody, and who went on from it wrote it down too",
            ),
            ..without(
                "accepted forgotten",
                "a promise keeps what was accepted in its slot",
                Planted {
                    accepted_forgotten: true,
                    ..none
                },
                two(),
            )
        },
        without(
            "told early",
            "a generation is told to be decided when the disk says so",
            Planted {
                told_early: true,
                ..none
            },
            two(),
        ),
        without(
            "ballots collide",
            "no two processes have the same ballot",
            Planted {
                ballots_collide: true,
                ..none
            },
            two(),
        ),
    ]
}

#[test]
fn a_generation_has_one_value_and_each_clause_is_needed() {
    run_all(cases(1));
}

type Read = Vec<Sector<u8>>;

fn block(base: Option<(u64, u8)>, accepted: Option<u8>, decided: bool) -> Sector<u8> {
    let ballot = Ballot {
        round: 1,
        slot: 1,
        incarnation: 9,
    };
    Sector::Sound(Block {
        base: base.map(|(g, v)| (Generation(g), v)),
        promised: ballot,
        accepted: accepted.map(|v| (ballot, v)),
        decided,
    })
}

/// Runs a proposal of slot 0 against sectors that nobody else writes.
fn run(proposal: &mut Proposal<u8>, sectors: &mut Read) -> Outcome<u8> {
    let mut step = proposal.on_read(sectors);
    loop {
        step = match step {
            Step::Done(outcome) => return outcome,
            Step::Ask(Ask::ReadAll) => proposal.on_read(sectors),
            Step::Ask(Ask::Write(block)) => {
                sectors[usize::from(proposal.slot())] = Sector::Sound(block);
                proposal.on_written(Written::Done)
            }
        }
    }
}

fn propose(generation: u64) -> Proposal<u8> {
    Proposal::begin(0, 1, Generation(generation), 7, 3)
}

#[test]
fn generations_follow_each_other() {
    let mut sectors: Read = vec![Sector::Blank, Sector::Blank];
    assert_eq!(run(&mut propose(0), &mut sectors), Outcome::Won);
    assert_eq!(run(&mut propose(2), &mut sectors), Outcome::NoPredecessor);
    assert_eq!(run(&mut propose(1), &mut sectors), Outcome::Won);
    assert_eq!(newest(&sectors), Some((Generation(1), &7)));
    assert_eq!(value_of(&sectors, Generation(0)), Some(&7));
    sectors[1] = block(Some((4, 1)), Some(2), true);
    assert_eq!(run(&mut propose(5), &mut sectors), Outcome::Lost(2));
    assert_eq!(run(&mut propose(3), &mut sectors), Outcome::Superseded);
}

#[test]
fn what_another_accepted_is_completed() {
    let mut sectors: Read = vec![Sector::Blank, block(Some((4, 1)), Some(2), false)];
    assert_eq!(newest(&sectors), Some((Generation(4), &1)));
    assert_eq!(run(&mut propose(5), &mut sectors), Outcome::Lost(2));
    assert_eq!(newest(&sectors), Some((Generation(5), &2)));
}

#[test]
fn a_damaged_sector_is_no_blank_one() {
    let mut sectors: Read = vec![Sector::Blank, Sector::Damaged];
    assert_eq!(run(&mut propose(0), &mut sectors), Outcome::NotDone);
    assert_eq!(run(&mut propose(3), &mut sectors), Outcome::NotDone);
    assert_eq!(sectors[0], Sector::Blank, "nothing was written");
    // The other had won generation 0.
    let planted = Planted {
        damaged_is_blank: true,
        ..Planted::default()
    };
    let mut blind = propose(0);
    blind.plant(planted);
    assert_eq!(run(&mut blind, &mut sectors), Outcome::Won);
}

#[test]
fn a_promise_that_is_not_there_any_more_ends_the_use_of_the_slot() {
    let mut sectors: Read = vec![Sector::Blank, Sector::Blank];
    let mut proposal = propose(0);
    let Step::Ask(Ask::Write(promise)) = proposal.on_read(&sectors) else {
        panic!("it promises first");
    };
    assert_eq!(proposal.on_written(Written::Done), Step::Ask(Ask::ReadAll));
    let step = proposal.on_read(&sectors);
    assert_eq!(step, Step::Done(Outcome::Unknown), "a stale reading");
    let mut writers = Writers::new(vec![0, 1]);
    writers.doubt(0, proposal.doubt().expect("in doubt").clone());
    assert_eq!(writers.usable(), Some(1));
    sectors[0] = Sector::Sound(promise);
    assert_eq!(writers.resolve(&sectors), [(0, 1)].into());
    assert_eq!(writers.usable(), Some(0));
}

#[test]
fn what_was_refused_before_anything_was_offered_is_not_done() {
    let sectors: Read = vec![Sector::Blank];
    let mut proposal = propose(0);
    proposal.on_read(&sectors);
    let refused = proposal.on_written(Written::Refused);
    assert_eq!(refused, Step::Done(Outcome::NotDone));
    let mut proposal = propose(0);
    let Step::Ask(Ask::Write(promise)) = proposal.on_read(&sectors) else {
        panic!("it promises first");
    };
    proposal.on_written(Written::Done);
    let step = proposal.on_read(&[Sector::Sound(promise)]);
    assert!(matches!(step, Step::Ask(Ask::Write(_))), "{step:?}");
    let refused = proposal.on_written(Written::Refused);
    assert_eq!(refused, Step::Done(Outcome::NotDone));
    assert_eq!(proposal.doubt(), None);
}
