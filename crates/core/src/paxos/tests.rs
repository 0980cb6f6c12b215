use super::model::{Bounds, search};
use super::proposal::Planted;
use super::*;
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

fn holds(bounds: &Bounds) -> super::model::Found {
    let found = search(bounds);
    assert_eq!(found.broken, None, "{found:?}");
    assert!(found.all_decided, "{found:?}");
    found
}

fn breaks(bounds: &Bounds, how: &str) {
    let found = search(bounds);
    assert_eq!(found.broken, Some(how), "{found:?}");
}

const TWO_VALUES: &str = "two values of one generation";

#[test]
fn two_hosts_never_decide_two_values() {
    let bounds = Bounds {
        generations: 2,
        ..two()
    };
    let found = holds(&bounds);
    assert_eq!(found.won_by, [true, true, false]);
}

#[test]
fn a_write_that_lands_late_or_never_decides_nothing_twice() {
    let found = holds(&Bounds {
        unknown: 1,
        ..two()
    });
    assert!(found.won_after_doubt, "it goes on with its next slot");
}

#[test]
fn late_writes_reach_no_later_generation() {
    holds(&Bounds {
        unknown: 1,
        generations: 2,
        ballots: 1,
        ..two()
    });
}

#[test]
fn an_agent_that_dies_leaves_nothing_that_decides_twice() {
    holds(&Bounds { deaths: 1, ..two() });
}

#[test]
fn a_host_that_boots_goes_on_in_its_slot() {
    let found = holds(&Bounds {
        boots: 1,
        unknown: 1,
        ballots: 1,
        slots: vec![vec![0], vec![1]],
        ..two()
    });
    assert!(found.won_by[0]);
}

#[test]
fn three_hosts_never_decide_two_values() {
    let found = holds(&Bounds {
        slots: vec![vec![0], vec![1], vec![2]],
        ballots: 1,
        tries: 1,
        ..two()
    });
    assert_eq!(found.won_by, [true; 3]);
}

#[test]
fn planted_phase_two_without_its_reading() {
    let planted = Planted {
        no_second_reading: true,
        ..Planted::default()
    };
    breaks(&Bounds { planted, ..two() }, TWO_VALUES);
}

#[test]
fn planted_the_own_value_whatever_others_accepted() {
    let planted = Planted {
        own_value_always: true,
        ..Planted::default()
    };
    breaks(&Bounds { planted, ..two() }, TWO_VALUES);
}

#[test]
fn planted_a_slot_and_its_ballots_begun_anew_after_a_start() {
    let planted = Planted {
        slot_begins_anew: true,
        ..Planted::default()
    };
    let bounds = Bounds {
        planted,
        boots: 1,
        slots: vec![vec![0], vec![1]],
        ..two()
    };
    let found = search(&bounds);
    assert!(found.broken.is_some(), "{found:?}");
}

#[test]
fn planted_a_slot_used_again_after_an_unknown_write() {
    let bounds = Bounds {
        doubts_forgotten: true,
        ..two()
    };
    let unknown = Bounds {
        unknown: 1,
        ..bounds.clone()
    };
    let dies = Bounds {
        deaths: 1,
        ..bounds
    };
    for bounds in [unknown, dies] {
        let found = search(&bounds);
        assert!(found.broken.is_some(), "{found:?}");
    }
}

#[test]
fn planted_an_unknown_write_taken_for_done() {
    let planted = Planted {
        unknown_is_done: true,
        ..Planted::default()
    };
    let bounds = Bounds {
        planted,
        unknown: 1,
        ..two()
    };
    assert!(search(&bounds).broken.is_some());
}

#[test]
fn planted_the_reading_that_resolved_a_doubt_counts() {
    let planted = Planted {
        doubt_read_counts: true,
        ..Planted::default()
    };
    let bounds = Bounds {
        planted,
        unknown: 1,
        // The rival's sector is read first.
        slots: vec![vec![1], vec![0]],
        ..two()
    };
    breaks(&bounds, TWO_VALUES);
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
