//! What one agent does about VMs whose storage is lost.

use super::*;
use crate::id::{BootId, Generation, Holder, Nonce};
use crate::io::{FoundState, FoundVm, HypervisorRequest, Output, StorageOutcome, StorageValue};
use crate::testing::{datastore, primary, vm};
use crate::time::Duration;
use crate::vms::Phase;
use crate::wire::{LockRecord, VmReportState};
use alloc::vec;

fn host(id: &str) -> HostId {
    HostId::new(id).expect("id")
}

fn lock() -> LockRecord {
    LockRecord {
        generation: Generation(4),
        nonce: Nonce(4),
        holder: Some(Holder {
            host: host("host-1"),
            boot: BootId(1),
        }),
        desired: Desired::On,
        freeze: Duration::from_secs(3),
        r#break: Duration::from_millis(4500),
        given_back: None,
    }
}

/// The agent of host-1, which follows host-2, and on which vm-1 runs.
fn secondary() -> Agent {
    let found = FoundVm {
        vm: vm(),
        state: FoundState::Running(Generation(4)),
    };
    let mut agent = primary(vec![found]);
    agent.vms.get_mut(&vm()).expect("found").phase = Phase::Running { record: lock() };
    agent.role = Role::Secondary {
        primary: host("host-2"),
        rank: crate::wire::Rank {
            datastores: 1,
            host: host("host-2"),
        },
        heard: agent.now,
        silent_at: agent.now + 600 * SECOND,
    };
    agent
        .peers
        .get_mut(&host("host-2"))
        .expect("a peer")
        .understands = Some(2);
    agent.out.clear();
    agent
}

fn set(agent: &mut Agent, key: &str, value: &str) {
    agent.config.settings.set(key, value).expect("a setting");
}

/// The datastore hangs for so long.
fn hang(agent: &mut Agent, time: Duration) {
    let store = agent.stores.get_mut(&datastore()).expect("mounted");
    store.path = Path::default();
    store.path.asks(agent.now);
    agent.now += time;
    agent.run_vmcp();
}

fn kinds(agent: &mut Agent) -> Vec<EventKind> {
    let outputs = core::mem::take(&mut agent.out).into_iter();
    let events = outputs.filter_map(|o| match o {
        Output::Event(event) => Some(event.kind),
        _ => None,
    });
    events.collect()
}

fn killed(agent: &Agent) -> bool {
    let kills = |o: &Output| matches!(o, Output::Hypervisor(_, HypervisorRequest::Kill { .. }));
    agent.out.iter().any(kills)
}

fn answer(agent: &mut Agent, ability: Ability) {
    agent.on_abilities(vec![(vm(), ability)]);
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_primary_is_asked_when_the_delay_is_over_and_not_before() {
    let mut agent = secondary();
    hang(&mut agent, 10 * SECOND);
    let found = EventKind::VmcpApd {
        host: host("host-1"),
        datastore: datastore(),
    };
    assert!(kinds(&mut agent).contains(&found));
    assert!(agent.vmcp.asked.is_empty());
    answer(&mut agent, Ability::Yes(host("host-2")));
    assert!(!killed(&agent), "not due, whoever answers");
    agent.now += 15 * SECOND;
    agent.run_vmcp();
    assert!(agent.vmcp.asked.contains_key(&vm()));
    assert!(!killed(&agent), "nothing is known yet");
    answer(&mut agent, Ability::Yes(host("host-2")));
    assert!(killed(&agent));
}

#[test]
fn conservative_wants_to_know_and_aggressive_does_not_but_what_is_known_to_be_in_vain_neither_does()
{
    let unknown = || Ability::Unknown(String::from("x"));
    let no = || Ability::No(String::from("x"));
    let yes = || Ability::Yes(host("host-2"));
    let cases = [
        ("restart_conservative", yes(), true),
        ("restart_conservative", unknown(), false),
        ("restart_conservative", no(), false),
        ("restart_aggressive", yes(), true),
        ("restart_aggressive", unknown(), true),
        ("restart_aggressive", no(), false),
        ("warn", yes(), false),
        ("disabled", yes(), false),
    ];
    for (response, ability, kills) in cases {
        let mut agent = secondary();
        set(&mut agent, "apd_response", response);
        hang(&mut agent, 26 * SECOND);
        agent.now += 15 * SECOND;
        answer(&mut agent, ability.clone());
        assert_eq!(killed(&agent), kills, "{response} {ability:?}");
    }
}

#[test]
fn silence_of_the_primary_is_no_answer_until_it_lasts() {
    let mut agent = secondary();
    set(&mut agent, "apd_response", "restart_aggressive");
    hang(&mut agent, 10 * SECOND);
    agent.now += 15 * SECOND;
    agent.run_vmcp();
    agent.now += SECOND;
    agent.run_vmcp();
    assert!(!killed(&agent));
    agent.now += 2 * SECOND;
    agent.run_vmcp();
    assert!(killed(&agent), "election_start without an answer");
}

#[test]
fn a_path_that_is_back_calls_off_what_has_not_begun_and_resets_only_where_that_is_wished() {
    for (reaction, resets) in [("none", false), ("reset", true)] {
        let mut agent = secondary();
        set(&mut agent, "apd_cleared_response", reaction);
        hang(&mut agent, 12 * SECOND);
        let local = agent.vms.get_mut(&vm()).expect("here");
        local.phase = Phase::Frozen {
            word: Generation(4),
            record: Some(lock()),
        };
        let now = agent.now;
        let store = agent.stores.get_mut(&datastore()).expect("mounted");
        store.note(now, &StorageOutcome::Ok(StorageValue::Done));
        agent.out.clear();
        agent.run_vmcp();
        assert_eq!(killed(&agent), resets, "{reaction}");
        let kinds = kinds(&mut agent);
        let reset = |k: &EventKind| matches!(k, EventKind::VmReset { .. });
        assert_eq!(kinds.iter().any(reset), resets, "{reaction}");
        let cleared = |k: &EventKind| matches!(k, EventKind::VmcpCleared { .. });
        assert!(kinds.iter().any(cleared), "{reaction}");
    }
}

#[test]
fn what_is_given_up_is_told_when_it_is_gone_or_when_its_right_has_ended() {
    let mut agent = secondary();
    hang(&mut agent, 12 * SECOND);
    agent.now += 15 * SECOND;
    answer(&mut agent, Ability::Yes(host("host-2")));
    let given_up = |agent: &Agent| {
        let local = agent.vms.get(&vm()).expect("here");
        agent
            .given_up_here(local)
            .map(|g| (g.generation, g.nonce, g.gone))
    };
    assert_eq!(given_up(&agent), None, "it may execute for a moment");
    agent.now += 4 * SECOND;
    assert_eq!(given_up(&agent), None);
    assert_eq!(
        agent
            .storage_state(&vm(), &host("host-1"))
            .expect("stuck")
            .0,
        "killed_not_gone"
    );
    agent.now += SECOND;
    assert_eq!(given_up(&agent), Some((Generation(4), Nonce(4), false)));
    agent.on_vm_exited(&vm(), crate::io::ExitCause::Killed);
    assert_eq!(given_up(&agent), Some((Generation(4), Nonce(4), true)));
    // Its user wants it off: nobody is to start it.
    agent.power_off(&vm()).expect("taken");
    assert_eq!(given_up(&agent), None);
}

#[test]
fn a_vm_that_is_paused_on_an_error_is_reported_as_one_that_does_not_run() {
    let mut agent = secondary();
    agent.on_vm_io(&vm(), Some(IoFault::Gone));
    let state = |agent: &Agent| agent.vms.get(&vm()).expect("here").report_state();
    assert_eq!(state(&agent), VmReportState::Frozen);
    assert_eq!(
        agent
            .storage_state(&vm(), &host("host-1"))
            .expect("paused")
            .0,
        "paused_on_error"
    );
    agent.now += 3 * SECOND;
    answer(&mut agent, Ability::Yes(host("host-2")));
    assert!(killed(&agent));
    let mut agent = secondary();
    agent.on_vm_io(&vm(), Some(IoFault::Gone));
    agent.on_vm_io(&vm(), None);
    assert_eq!(state(&agent), VmReportState::Running);
    agent.now += 3 * SECOND;
    answer(&mut agent, Ability::Yes(host("host-2")));
    assert!(!killed(&agent), "it goes on");
}

#[test]
fn an_error_ends_with_the_process_that_met_it() {
    let mut agent = secondary();
    set(&mut agent, "pdl_response", "restart");
    agent.on_vm_io(&vm(), Some(IoFault::Gone));
    let lock = lock();
    agent.on_vm_exited(&vm(), crate::io::ExitCause::Crash);
    // The same host starts it again, before it has looked at its VMs' storage.
    agent.vms.get_mut(&vm()).expect("here").phase = Phase::Running { record: lock };
    let state = agent.vms.get(&vm()).expect("here").report_state();
    assert_eq!(state, VmReportState::Running);
    agent.now += 30 * SECOND;
    agent.run_vmcp();
    answer(&mut agent, Ability::Yes(host("host-2")));
    assert!(!killed(&agent), "its storage has not failed since");
}

#[test]
fn a_primary_that_does_not_own_the_datastore_knows_only_whether_somebody_reaches_it() {
    let mut agent = primary(Vec::new());
    let asker = host("host-2");
    let ability = |agent: &mut Agent| agent.able(&asker, &[vm()]).remove(0).1;
    assert!(matches!(ability(&mut agent), Ability::No(_)), "nobody does");
    let now = agent.now;
    let store = agent.stores.get_mut(&datastore()).expect("mounted");
    store.note(now, &StorageOutcome::Ok(StorageValue::Done));
    assert!(
        matches!(ability(&mut agent), Ability::Unknown(_)),
        "this host does"
    );
}

#[test]
fn only_the_generation_that_the_holder_named_is_given_up() {
    let mut agent = primary(Vec::new());
    let what = |gone| GivenUp {
        vm: vm(),
        datastore: datastore(),
        generation: Generation(4),
        nonce: Nonce(4),
        gone,
    };
    let held = |n, by: &str| LockRecord {
        generation: Generation(n),
        holder: Some(Holder {
            host: host(by),
            boot: BootId(1),
        }),
        ..lock()
    };
    assert_eq!(agent.is_given_up(&vm(), &held(4, "host-2")), None);
    for gone in [false, true] {
        agent
            .vmcp
            .given_up
            .insert(vm(), (host("host-2"), what(gone)));
        assert_eq!(agent.is_given_up(&vm(), &held(4, "host-2")), Some(gone));
        assert_eq!(agent.is_given_up(&vm(), &held(5, "host-2")), None);
        assert_eq!(agent.is_given_up(&vm(), &held(4, "host-1")), None);
        let other = LockRecord {
            nonce: Nonce(9),
            ..held(4, "host-2")
        };
        assert_eq!(agent.is_given_up(&vm(), &other), None);
    }
}
