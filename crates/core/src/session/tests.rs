use super::*;
use crate::rng::Rng;
use crate::time::Duration;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

fn vote(n: u64) -> Message {
    Message::Propose {
        ticket: n,
        changes: Vec::new(),
    }
}

fn number_of(message: &Message) -> u64 {
    match message {
        Message::Propose { ticket, .. } => *ticket,
        other => panic!("{other:?}"),
    }
}

fn at(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

/// A wire that loses, doubles and delays, between one sender and one receiver.
fn deliver_over_bad_wire(seed: u64) -> Vec<u64> {
    let mut dice = Rng::new(seed);
    let (mut out, mut incoming) = (Outgoing::new(), Incoming::default());
    let mut wire: BTreeSet<(Instant, u64, u64)> = BTreeSet::new();
    let mut acks: BTreeSet<(Instant, u64)> = BTreeSet::new();
    let mut handed = Vec::new();
    let mut last = 0;
    for step in 0_u64.. {
        let now = at(step * 10);
        let rough = step < 3000;
        if rough && dice.percent(5) {
            last += 1;
            out.queue(vote(last));
        }
        let mut due = out.take_waiting(now);
        if out.is_late(now, Duration::from_millis(150)) {
            due.extend(out.again(now));
        }
        for (number, message) in due {
            for _ in 0..dice.between(1, 2) {
                if !(rough && dice.percent(30)) {
                    let arrives = now + Duration::from_millis(dice.below(300));
                    wire.insert((arrives, number, number_of(&message)));
                }
            }
        }
        let arrived: Vec<_> = wire.range(..(now, 0, 0)).copied().collect();
        for entry in arrived {
            wire.remove(&entry);
            let (_, number, content) = entry;
            if incoming.take(1, number) == Taken::New {
                handed.push(content);
            }
        }
        if incoming.owed() > 0 {
            let (epoch, up_to) = incoming.settle();
            assert_eq!(epoch, 1);
            if !(rough && dice.percent(30)) {
                acks.insert((now + Duration::from_millis(dice.below(300)), up_to));
            }
        }
        let heard: Vec<_> = acks.range(..(now, 0)).copied().collect();
        for ack in heard {
            acks.remove(&ack);
            out.acknowledged(ack.1);
        }
        if !rough && out.is_idle() {
            break;
        }
        assert!(step < 20_000, "seed {seed}: {last} sent, {handed:?}");
    }
    assert_eq!(handed.len() as u64, last, "seed {seed}");
    handed
}

#[test]
fn every_message_arrives_once_and_in_order_over_a_wire_that_loses_doubles_and_delays() {
    for seed in 1..=60 {
        let handed = deliver_over_bad_wire(seed);
        assert!(handed.iter().copied().eq(1..=handed.len() as u64), "{seed}");
        assert!(handed.len() > 20, "{seed}: the wire was hardly used");
    }
}

#[test]
fn what_makes_an_older_message_worthless_replaces_it_only_while_that_waits() {
    let mut out = Outgoing::new();
    out.queue(Message::ConfigVersion { version: 1 });
    let sent = out.take_waiting(at(0));
    assert_eq!(sent, [(1, Message::ConfigVersion { version: 1 })]);
    // Number 1 means what it meant for ever.
    for version in 2..=600 {
        assert!(!out.queue(Message::ConfigVersion { version }));
    }
    assert_eq!(
        out.take_waiting(at(1)),
        [(2, Message::ConfigVersion { version: 600 })]
    );
    assert_eq!(out.again(at(2)).first(), sent.first());
}

#[test]
fn a_queue_without_room_drops_its_oldest_and_says_so() {
    let mut out = Outgoing::new();
    let dropped = (1..=2000).filter(|n| out.queue(vote(*n))).count();
    let mut contents: Vec<u64> = Vec::new();
    let mut numbers: Vec<u64> = Vec::new();
    while !out.is_idle() {
        for (number, message) in out.take_waiting(at(0)) {
            numbers.push(number);
            contents.push(number_of(&message));
        }
        out.acknowledged(numbers.last().copied().expect("sent"));
    }
    let left = u64::try_from(contents.len()).expect("few");
    assert!(dropped > 0 && dropped == 2000 - contents.len());
    assert!(contents.iter().copied().eq(2001 - left..=2000));
    assert!(numbers.iter().copied().eq(1..=left));
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_says_nothing() {
    let mut out = Outgoing::new();
    out.queue(vote(1));
    out.take_waiting(at(0));
    out.acknowledged(7);
    assert!(!out.is_idle());
    out.acknowledged(1);
    assert!(out.is_idle());
}

#[test]
fn repetitions_come_later_each_time_until_something_is_acknowledged() {
    let mut out = Outgoing::new();
    out.queue(vote(1));
    out.queue(vote(2));
    out.take_waiting(at(0));
    let patience = Duration::from_millis(100);
    assert!(!out.is_late(at(99), patience));
    assert!(out.is_late(at(100), patience));
    out.again(at(100));
    assert!(!out.is_late(at(299), patience));
    assert!(out.is_late(at(300), patience));
    out.acknowledged(1);
    assert!(out.is_late(at(200), patience));
}

#[test]
fn a_session_that_was_given_up_begins_again_and_its_rest_is_void() {
    let mut incoming = Incoming::default();
    assert_eq!(incoming.take(1, 1), Taken::New);
    assert_eq!(incoming.take(1, 3), Taken::Ahead);
    assert!(incoming.may_complain(at(0), Duration::from_millis(50)));
    assert!(!incoming.may_complain(at(10), Duration::from_millis(50)));
    assert_eq!(incoming.take(2, 1), Taken::New);
    assert_eq!(incoming.take(1, 2), Taken::Former);
    assert_eq!(incoming.take(2, 1), Taken::Again);
    assert_eq!(incoming.settle(), (2, 1));
    assert_eq!(incoming.owed(), 0);
}

#[test]
fn a_replaced_agent_is_not_taken_for_a_new_one() {
    let doubted = Duration::from_millis(300);
    let mut session = Session::new(at(0));
    session.out.queue(vote(1));
    assert_eq!(session.meet(at(1), InstanceId(7), doubted), Some(0));
    session.out.take_waiting(at(1));
    // Its successor gets nothing of what was meant for it.
    assert_eq!(session.meet(at(2), InstanceId(8), doubted), Some(1));
    assert!(session.out.is_idle());
    assert_eq!(session.meet(at(302), InstanceId(7), doubted), None);
    assert_eq!(session.remote, Some(InstanceId(8)));
}

#[test]
fn an_agent_that_a_late_message_of_its_predecessor_replaced_comes_back_where_it_was() {
    let doubted = Duration::from_millis(300);
    let mut session = Session::new(at(0));
    session.meet(at(0), InstanceId(8), doubted);
    assert_eq!(session.incoming.take(1, 1), Taken::New);
    assert_eq!(session.incoming.take(1, 2), Taken::New);
    // Of the start before, which was not known here.
    assert!(session.meet(at(1), InstanceId(7), doubted).is_some());
    assert_eq!(session.meet(at(301), InstanceId(8), doubted), None);
    assert!(session.meet(at(302), InstanceId(8), doubted).is_some());
    assert_eq!(session.incoming.take(1, 2), Taken::Again);
    assert_eq!(session.incoming.take(1, 3), Taken::New);
    assert_eq!(session.meet(at(303), InstanceId(7), doubted), None);
}

#[test]
fn a_start_that_was_replaced_many_starts_ago_is_not_taken_for_a_new_one() {
    let doubted = Duration::from_secs(3);
    let mut session = Session::new(at(0));
    for n in 1..=40 {
        let met = session.meet(at(n * 10_000), InstanceId(n), doubted);
        assert!(met.is_some(), "start {n} is new");
    }
    let late = session.meet(at(400_001), InstanceId(1), doubted);
    assert_eq!(late, None, "what it left in a connection");
    assert_eq!(session.remote, Some(InstanceId(40)));
}
