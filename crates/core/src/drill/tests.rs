//! What a silent host does: nothing that anybody else notices.

use crate::agent::{Agent, Pending};
use crate::event::EventKind;
use crate::id::{BootId, Generation, Holder, HostId, Nonce};
use crate::io::{
    FoundState, FoundVm, HypervisorRequest, Input, Output, StorageOutcome, StorageRequest,
    StorageValue,
};
use crate::testing::{datastore, primary, vm};
use crate::time::{Duration, Instant};
use crate::wire::{Desired, LockRecord, Message, RecordKey, RoleTag, Stamp};
use alloc::string::String;
use alloc::vec::Vec;

const SECOND: Duration = Duration::from_secs(1);

/// A primary that runs vm-1 under generation 4 and has just fallen silent for a minute.
fn silent() -> Agent {
    let found = FoundVm {
        vm: vm(),
        state: FoundState::Running(Generation(4)),
    };
    let mut agent = primary([found].into());
    drain(&mut agent);
    let now = agent.now;
    agent.handle(now, Input::Timeout);
    drain(&mut agent);
    agent.fall_silent(60 * SECOND, String::from("a test"));
    drain(&mut agent);
    agent
}

fn drain(agent: &mut Agent) -> Vec<Output> {
    core::iter::from_fn(|| agent.poll_output()).collect()
}

fn at(agent: &Agent, after: Duration) -> Instant {
    agent.started + after
}

fn give(agent: &mut Agent, after: Duration, input: Input) -> Vec<Output> {
    let now = at(agent, after);
    agent.handle(now, input);
    drain(agent)
}

fn lapsed() -> Input {
    Input::VmLapsed {
        vm: vm(),
        generation: Generation(4),
    }
}

/// The record of vm-1's lock that a host holds, or nobody.
fn lock(generation: u64, holder: Option<(&str, u64)>) -> Vec<u8> {
    let record = LockRecord {
        generation: Generation(generation),
        nonce: Nonce(generation),
        holder: holder.map(|(host, boot)| Holder {
            host: HostId::new(host).expect("id"),
            boot: BootId(boot),
        }),
        desired: Desired::On,
        freeze: SECOND,
        r#break: 2 * SECOND,
        given_back: None,
    };
    let stamp = Stamp {
        writer: HostId::new("host-2").expect("id"),
        boot: BootId(2),
        instance: crate::id::InstanceId(2),
        seq: generation,
    };
    record.encode(1, &stamp)
}

/// Answers the reading of the lock from these records until it has ended; gives everything else that was
/// asked for.
fn read_lock(
    agent: &mut Agent,
    mut outputs: Vec<Output>,
    records: &[(u64, Vec<u8>)],
) -> Vec<Output> {
    let mut others = Vec::new();
    let mut later = Duration::from_millis(10);
    while let Some(output) = outputs.pop() {
        let Output::Storage(op, _, request) = &output else {
            others.push(output);
            continue;
        };
        let value = match request {
            StorageRequest::Read(RecordKey::VmLock(_, generation)) => {
                let found = records.iter().find(|(g, _)| *g == generation.0);
                found.map_or(StorageValue::NotFound, |(_, r)| {
                    StorageValue::Bytes(r.clone())
                })
            }
            StorageRequest::ListVmLock(_) => StorageValue::Keys(
                records
                    .iter()
                    .map(|(g, _)| RecordKey::VmLock(vm(), Generation(*g)))
                    .collect(),
            ),
            other => panic!("a silent host asked its storage for {other:?}"),
        };
        let now = agent.now + later;
        later += Duration::from_millis(1);
        agent.handle(now, Input::Storage(*op, StorageOutcome::Ok(value)));
        outputs.extend(drain(agent));
    }
    others
}

fn kills(outputs: &[Output]) -> bool {
    let kill = |o: &Output| matches!(o, Output::Hypervisor(_, HypervisorRequest::Kill { .. }));
    outputs.iter().any(kill)
}

#[test]
fn a_silent_host_says_writes_and_decides_nothing_until_its_time_is_up() {
    let mut agent = silent();
    let from = HostId::new("host-2").expect("id");
    let heartbeat = || Message::Heartbeat {
        role: RoleTag::Primary,
        rank: crate::wire::Rank {
            datastores: 9,
            host: HostId::new("host-2").expect("id"),
        },
        primary: None,
        instance: crate::id::InstanceId(2),
    };
    for n in 1..59_u32 {
        assert_eq!(give(&mut agent, n * SECOND, Input::Timeout), []);
        let from = from.clone();
        let message = heartbeat();
        assert_eq!(
            give(&mut agent, n * SECOND, Input::Message { from, message }),
            []
        );
    }
    assert!(agent.role.is_primary(), "it heard of no better one");
    let outputs = give(&mut agent, 60 * SECOND, Input::Timeout);
    let ended = |o: &Output| matches!(o, Output::Event(e) if matches!(e.kind, EventKind::DrillEnded { .. }));
    assert!(ended(outputs.first().expect("something")), "{outputs:?}");
    assert!(!agent.in_drill());
}

#[test]
fn answers_to_what_was_asked_before_are_looked_at_with_the_time_that_it_is_then() {
    let mut agent = silent();
    let renewal = agent.pending.iter().find_map(|(op, p)| match p {
        Pending::Renew { .. } => Some(*op),
        _ => None,
    });
    let op = renewal.expect("a heartbeat was under way");
    let done = Input::Storage(op, StorageOutcome::Ok(StorageValue::Done));
    assert_eq!(give(&mut agent, SECOND / 10, done), []);
    let valid = |agent: &Agent| {
        let store = agent.stores.get(&datastore()).expect("mounted");
        store.right.valid(agent.now)
    };
    assert!(!valid(&agent), "nothing is concluded while it is silent");
    give(&mut agent, 60 * SECOND, Input::Timeout);
    assert!(!valid(&agent), "a right that has lapsed by now");
}

#[test]
fn a_frozen_vm_is_ended_when_another_host_took_its_lock_and_not_before() {
    let mut agent = silent();
    let looks = give(&mut agent, 3 * SECOND, lapsed());
    let own = lock(4, Some(("host-1", 1)));
    let others = read_lock(&mut agent, looks, &[(4, own.clone())]);
    assert!(!kills(&others), "nobody took it: {others:?}");
    let looks = give(&mut agent, 6 * SECOND, Input::Timeout);
    let taken = lock(5, Some(("host-2", 2)));
    let others = read_lock(&mut agent, looks, &[(4, own.clone()), (5, taken.clone())]);
    assert!(kills(&others), "{others:?}");
    let says = |o: &Output| matches!(o, Output::Datagram { .. } | Output::Stream { .. });
    assert!(!others.iter().any(says), "{others:?}");
}

#[test]
fn a_frozen_vm_whose_lock_was_taken_and_given_back_is_ended_too() {
    let mut agent = silent();
    let looks = give(&mut agent, 3 * SECOND, lapsed());
    let own = lock(4, Some(("host-1", 1)));
    let taken = lock(5, Some(("host-2", 2)));
    let records = [(4, own), (5, taken), (6, lock(6, None))];
    let others = read_lock(&mut agent, looks, &records);
    assert!(
        kills(&others),
        "its storage may keep the image from others: {others:?}"
    );
}
