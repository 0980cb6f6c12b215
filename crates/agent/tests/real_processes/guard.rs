//! The guard: it freezes at the deadline whatever the agent does, and both start each other again.

use crate::harness::{Cluster, is_frozen, kill, state_of, vm, wait_for};
use mainstay_agent::control::client::Client;

/// One host with one running VM; gives its guest's process.
pub(crate) fn with_a_running_vm() -> (Cluster, i32) {
    let mut cluster = Cluster::new(1, 1);
    cluster.start(1);
    cluster.wait_status(1, "a primary", |s| s.primary.clone());
    cluster.client(1).power_on(&vm(1)).expect("taken");
    wait_for("it counts", || (cluster.counter(1) > 3).then_some(()));
    let guests = cluster.guests(1);
    assert_eq!(guests.len(), 1);
    let guest = *guests.first().expect("one");
    (cluster, guest)
}

#[test]
fn a_vm_of_a_hung_agent_is_frozen_at_its_deadline_and_thawed_when_the_agent_goes_on() {
    let (cluster, guest) = with_a_running_vm();
    let agent = cluster.agent(1).pid.cast_signed();
    kill(agent, "STOP");
    wait_for("it is frozen", || is_frozen(guest).then_some(()));
    let frozen = cluster.counter(1);
    assert_eq!(
        state_of(agent),
        Some('T'),
        "a hung agent is reported, not killed"
    );
    kill(agent, "CONT");
    wait_for("it goes on", || {
        (cluster.counter(1) > frozen + 2).then_some(())
    });
    assert_eq!(cluster.guests(1), [guest], "the same process");
    wait_for("the event", || {
        let events = cluster.client(1).events(None, false).ok()?;
        let text = serde_json::to_string(&events.flatten().collect::<Vec<_>>()).ok()?;
        (text.contains("vm.frozen") && text.contains("vm.thawed")).then_some(())
    });
}

#[test]
fn a_killed_agent_is_started_again_and_its_vm_runs_on() {
    let (cluster, guest) = with_a_running_vm();
    let first = cluster.agent(1);
    kill(first.pid.cast_signed(), "KILL");
    let second = wait_for("another agent", || {
        Client::connect(&cluster.socket(1))
            .and_then(|c| c.ping())
            .ok()
            .filter(|p| p.pid != first.pid)
    });
    assert_eq!(second.guard_pid, first.guard_pid);
    cluster.wait_status(1, "adopted", |s| {
        s.vms
            .iter()
            .any(|v| v.vm == vm(1) && v.state == "running")
            .then_some(())
    });
    let now = cluster.counter(1);
    wait_for("it counts on", || {
        (cluster.counter(1) > now + 3).then_some(())
    });
    assert_eq!(cluster.guests(1), [guest], "the same process");
}

#[test]
fn a_vm_is_frozen_when_its_agent_is_dead_and_cannot_start() {
    let (cluster, guest) = with_a_running_vm();
    std::fs::remove_file(cluster.home(1).join("cert.key")).expect("removed");
    kill(cluster.agent(1).pid.cast_signed(), "KILL");
    wait_for("it is frozen", || is_frozen(guest).then_some(()));
}

#[test]
fn a_killed_guard_is_started_again_and_still_freezes() {
    let (cluster, guest) = with_a_running_vm();
    let first = cluster.agent(1).guard_pid.expect("guard");
    kill(first.cast_signed(), "KILL");
    let second = wait_for("another guard", || {
        cluster.agent(1).guard_pid.filter(|p| *p != first)
    });
    let now = cluster.counter(1);
    wait_for("it counts on", || {
        (cluster.counter(1) > now + 3).then_some(())
    });
    assert!(!is_frozen(guest));
    assert_ne!(first, second);
    let agent = cluster.agent(1).pid.cast_signed();
    kill(agent, "STOP");
    wait_for("the new guard freezes it", || {
        is_frozen(guest).then_some(())
    });
    kill(agent, "CONT");
}

#[test]
fn a_lost_table_freezes_everything_until_the_lock_is_proven() {
    let (cluster, guest) = with_a_running_vm();
    let first = cluster.agent(1).guard_pid.expect("guard");
    std::fs::remove_file(cluster.home(1).join("run/guard.shm")).expect("removed");
    wait_for("another guard", || {
        cluster.agent(1).guard_pid.filter(|p| *p != first)
    });
    wait_for("thawed by proof", || {
        let events = cluster.client(1).events(None, false).ok()?;
        let text = serde_json::to_string(&events.flatten().collect::<Vec<_>>()).ok()?;
        text.contains("vm.thawed").then_some(())
    });
    let now = cluster.counter(1);
    wait_for("it counts on", || {
        (cluster.counter(1) > now + 3).then_some(())
    });
    assert_eq!(cluster.guests(1), [guest], "the same process");
}

#[test]
fn a_planned_restart_of_the_whole_control_software_stops_no_vm() {
    let (mut cluster, guest) = with_a_running_vm();
    let ready = wait_for("it is ready", || {
        let now = cluster.client(1).prepare_restart().ok()?;
        now.ready.then_some(now)
    });
    assert!(ready.away_ms > 30_000, "{ready:?}");
    let old = cluster.agent(1);
    let guard = old.guard_pid.expect("a guard").cast_signed();
    // The agent first: a guard that ends is started again by its agent.
    kill(old.pid.cast_signed(), "TERM");
    wait_for("the agent is gone", || {
        is_gone(old.pid.cast_signed()).then_some(())
    });
    let stopped = std::time::Instant::now();
    let ordinary = std::time::Duration::from_secs(6);
    let counted = cluster.counter(1);
    wait_for("the ordinary right would have ended twice", || {
        (stopped.elapsed() > ordinary).then_some(())
    });
    assert!(!is_frozen(guest), "its right was made longer");
    assert!(cluster.counter(1) > counted, "it counts on");
    kill(guard, "TERM");
    wait_for("the guard is gone", || is_gone(guard).then_some(()));
    cluster.start(1);
    let now = cluster.counter(1);
    wait_for("it counts on", || {
        (cluster.counter(1) > now + 3).then_some(())
    });
    assert_eq!(cluster.guests(1), [guest], "the same process");
}

fn is_gone(pid: i32) -> bool {
    matches!(state_of(pid), None | Some('Z'))
}
