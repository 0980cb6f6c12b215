use super::*;
use mainstay_core::time::Instant;

fn scenario() -> Scenario {
    let text = r#"
name = "a judge's"
duration = "1m"

[[datastore]]
id = "ds-1"

[[datastore]]
id = "ds-2"

[[host]]
id = "host-1"

[[host]]
id = "host-2"
datastores = ["ds-1"]

[[vm]]
id = "vm-1"
host = "host-1"
datastore = "ds-2"

[[vm]]
id = "vm-2"
host = "host-1"
datastore = "ds-1"
"#;
    mainstay_sim::parse("judge.toml", text).expect("scenario")
}

fn id(vm: usize) -> VmId {
    VmId::new(&format!("vm-{}", vm + 1)).expect("id")
}

fn is_off(judge: &Judge, vm: usize) -> bool {
    judge.wanted.get(&id(vm)).is_some_and(|w| w.off)
}

fn stopped(judge: &mut Judge, vm: usize, reason: StopReason) {
    let host = HostId::new("host-1").expect("id");
    let kind = EventKind::VmStopped {
        vm: id(vm),
        host: host.clone(),
        reason,
    };
    judge.heard(
        &Event {
            at: Instant::from_nanos(1),
            kind,
            why: String::new(),
        },
        1,
    );
}

#[test]
fn a_wish_to_switch_off_that_is_answered_after_the_contrary_was_asked_says_nothing() {
    let mut judge = Judge::new(&scenario());
    let before = judge.asked_on(0);
    judge.wished(0, false, before);
    assert!(is_off(&judge, 0));
    judge.asks_on(0);
    judge.wished(0, false, before);
    assert!(!is_off(&judge, 0));
    judge.wished(0, false, judge.asked_on(0));
    assert!(is_off(&judge, 0));
}

#[test]
fn a_guest_that_is_stopped_before_it_has_shut_down_may_run_again() {
    for (reason, off) in [
        (StopReason::Guest, true),
        (StopReason::Crash, false),
        (StopReason::LockLost, false),
        (StopReason::Host, false),
    ] {
        let mut judge = Judge::new(&scenario());
        judge.guest_shuts_down(0, 0);
        stopped(&mut judge, 0, reason);
        assert_eq!(is_off(&judge, 0), off, "{reason:?}");
    }
    let mut judge = Judge::new(&scenario());
    judge.wished(0, false, 0);
    stopped(&mut judge, 0, StopReason::Crash);
    assert!(is_off(&judge, 0), "what its user wants is on the disk");
}

#[test]
fn there_is_room_only_where_the_home_is_mounted() {
    let (scenario, table) = (scenario(), Table::default());
    assert!(has_room(&scenario, &table, &id(0), 0));
    assert!(!has_room(&scenario, &table, &id(0), 1));
    assert!(has_room(&scenario, &table, &id(1), 1));
}
