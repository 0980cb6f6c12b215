//! What goes wrong inside a guest: its agent names it, and the VM is restarted from its disk.

use crate::guard::with_a_running_vm;
use crate::harness::{Cluster, PATIENCE, kill, vm, wait_for};
use mainstay_core::event::{EventKind, StopReason};
use mainstay_hypervisor::inside::{self, LivingGuest};

fn guest(cluster: &Cluster) -> LivingGuest {
    inside::find(&cluster.home(1).join("run"), "vm-1").expect("a guest")
}

/// Waits until the VM was said to have stopped so, and runs again.
fn stopped_and_restarted(cluster: &Cluster, wanted: StopReason) {
    wait_for("the event", || {
        let client = mainstay_agent::control::client::Client::connect(&cluster.socket(1)).ok()?;
        let stopped = client.events(None, false).ok()?.flatten().any(|line| {
            matches!(&line.event.kind, EventKind::VmStopped { reason, .. } if *reason == wanted)
        });
        stopped.then_some(())
    });
    let before = cluster.counter(1);
    wait_for("it counts again", || {
        (cluster.counter(1) > before + 2).then_some(())
    });
}

#[test]
fn a_guest_that_panics_is_named_and_restarted() {
    let (cluster, _) = with_a_running_vm();
    protected(&cluster);
    guest(&cluster).panic().expect("panic");
    stopped_and_restarted(&cluster, StopReason::Panic);
}

#[test]
fn a_guest_killed_for_want_of_memory_is_named_and_restarted() {
    let (cluster, _) = with_a_running_vm();
    protected(&cluster);
    let inside = guest(&cluster);
    if inside.memory_cgroup().is_none() {
        eprintln!("SKIPPED: guests have no cgroup with the memory controller here");
        return;
    }
    // Its agent is not there to see it.
    kill(cluster.agent(1).pid.cast_signed(), "KILL");
    inside.oom_kill(PATIENCE).expect("an OOM kill");
    stopped_and_restarted(&cluster, StopReason::Oom);
    let told = cluster.client(1).explain_vm(&vm(1)).expect("an answer");
    let told = serde_json::to_string(&told).expect("text");
    assert!(told.contains("oom_kill counted in its cgroup"), "{told}");
}

fn protected(cluster: &Cluster) {
    cluster.wait_status(1, "it is protected", |s| {
        s.vms.iter().all(|v| v.protected).then_some(())
    });
}
