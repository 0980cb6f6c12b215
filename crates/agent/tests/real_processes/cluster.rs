//! The main path: a host dies and its VM goes on elsewhere, with its disk intact.

use crate::harness::{Cluster, host, vm, wait_for};
use mainstay_core::wire::RoleTag;
use std::time::{Duration, Instant};

#[test]
fn a_vm_of_a_killed_host_goes_on_elsewhere() {
    let mut cluster = Cluster::new(3, 3);
    for n in 1..=3 {
        cluster.start(n);
    }
    for n in 1..=3 {
        cluster.wait_status(n, "one primary", |s| {
            (s.primary == Some(host(3))).then_some(())
        });
    }
    assert_eq!(
        cluster.client(3).status().expect("status").role,
        RoleTag::Primary
    );
    for n in 1..=3 {
        cluster.client(n).power_on(&vm(n)).expect("taken");
    }
    cluster.wait_status(3, "all protected", |s| {
        (s.vms.len() == 3 && s.vms.iter().all(|v| v.protected && v.state == "running"))
            .then_some(())
    });
    for n in 1..=3 {
        wait_for("it counts", || (cluster.counter(n) > 5).then_some(()));
    }
    let before = cluster.counter(1);
    let killed = Instant::now();
    cluster.power_off(1);
    let at_death = cluster.counter(1);
    wait_for("the counter goes on", || {
        (cluster.counter(1) > at_death).then_some(())
    });
    let took = killed.elapsed();
    eprintln!(
        "counter went on after {took:?} ({before} -> {at_death} -> {})",
        cluster.counter(1)
    );
    assert!(at_death >= before);
    assert!(
        took > Duration::from_millis(4500),
        "its lock was broken too early: {took:?}"
    );
    let events: Vec<_> = cluster
        .client(3)
        .events(None, false)
        .expect("events")
        .flatten()
        .collect();
    for kind in ["host.state", "vm.restart.requested", "vm.protected"] {
        let text = serde_json::to_string(&events).expect("text");
        assert!(text.contains(kind), "{kind} is missing in {text}");
    }
    // The host comes back and finds its VM running elsewhere.
    cluster.new_boot(1);
    cluster.start(1);
    cluster.wait_status(1, "a secondary again", |s| {
        (s.primary == Some(host(3))).then_some(())
    });
    assert_eq!(cluster.guests(1), Vec::<i32>::new());
}
