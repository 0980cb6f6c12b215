//! Agent and guard killed at once: what becomes of the VM, and of the host, with a watchdog and without one
//! (`docs/guard.md`). The watchdog is a file, which gets what a device would.

use crate::guard::with_a_running_vm;
use crate::harness::{Cluster, is_frozen, kill, state_of, wait_for};
use mainstay_agent::config::{AgentFile, OomScore};
use mainstay_core::event::IssueCause;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// `freeze` of the balanced profile, and what a busy machine may take on top.
const RIGHT_IS_OVER: Duration = Duration::from_secs(5);

/// Kills both of them; none sees the end of the other.
fn kill_both(cluster: &Cluster) {
    let agent = cluster.agent(1);
    let both = [
        agent.pid.cast_signed(),
        agent.guard_pid.expect("a guard").cast_signed(),
    ];
    for signal in ["STOP", "KILL"] {
        both.iter().for_each(|pid| kill(*pid, signal));
    }
    wait_for("both are gone", || {
        let gone = |pid: &i32| matches!(state_of(*pid), None | Some('Z'));
        both.iter().all(gone).then_some(())
    });
}

fn wait_until_its_right_is_over() {
    let begun = Instant::now();
    wait_for("its right is over", || {
        (begun.elapsed() > RIGHT_IS_OVER).then_some(())
    });
}

#[test]
fn without_a_watchdog_the_vm_runs_on_until_one_of_them_is_back_and_is_then_proven() {
    let (mut cluster, guest) = with_a_running_vm();
    kill_both(&cluster);
    wait_until_its_right_is_over();
    let counted = cluster.counter(1);
    wait_for("nobody stops it", || {
        (cluster.counter(1) > counted).then_some(())
    });
    assert!(!is_frozen(guest));
    // As a service manager does.
    cluster.start(1);
    wait_for("frozen, and thawed by proof", || {
        let events = cluster.client(1).events(None, false).ok()?;
        let text = serde_json::to_string(&events.flatten().collect::<Vec<_>>()).ok()?;
        (text.contains("vm.frozen") && text.contains("vm.thawed")).then_some(())
    });
    let counted = cluster.counter(1);
    wait_for("it counts on", || {
        (cluster.counter(1) > counted + 2).then_some(())
    });
    assert_eq!(cluster.guests(1), [guest], "the same process");
}

fn watchdog(cluster: &Cluster) -> PathBuf {
    cluster.home(1).join("watchdog")
}

fn with_a_watchdog() -> Cluster {
    let cluster = Cluster::new(1, 1);
    std::fs::write(watchdog(&cluster), "").expect("a file");
    let mut agent = AgentFile::read(&cluster.config(1)).expect("agent.toml");
    agent.watchdog = Some(watchdog(&cluster));
    agent.guest_oom_score_adj = OomScore::try_from(250).expect("a score");
    agent.write(&cluster.config(1)).expect("agent.toml");
    cluster
}

#[test]
fn with_a_watchdog_it_is_fed_no_more_and_the_boot_after_says_so() {
    let mut cluster = with_a_watchdog();
    cluster.start(1);
    cluster.wait_status(1, "a primary", |s| s.primary.clone());
    cluster
        .client(1)
        .power_on(&crate::harness::vm(1))
        .expect("taken");
    wait_for("it counts", || (cluster.counter(1) > 3).then_some(()));
    let device = watchdog(&cluster);
    let fed = || std::fs::read(&device).expect("read");
    let now = fed().len();
    wait_for("it is fed", || (fed().len() > now + 2).then_some(()));
    kill_both(&cluster);
    let last = fed();
    wait_until_its_right_is_over();
    assert_eq!(fed(), last, "the device resets the host");
    assert!(!last.contains(&b'V'), "it was not let go");
    // It does.
    cluster.power_off(1);
    cluster.new_boot(1);
    cluster.start(1);
    let reset = |s: &mainstay_core::status::Status| {
        let mut issues = s.issues.iter();
        let issue = issues.find(|i| i.cause == IssueCause::HostWasReset)?;
        Some(issue.text.clone())
    };
    let said = cluster.wait_status(1, "it is said", reset);
    assert!(said.contains("went down while its watchdog"), "{said}");
    let events: Vec<_> = cluster
        .client(1)
        .events(None, false)
        .expect("events")
        .flatten()
        .collect();
    let text = serde_json::to_string(&events).expect("text");
    assert!(text.contains("host_was_reset"), "{text}");
    // A guard that is told to stop when there is nothing left to watch lets it go.
    let agent = cluster.agent(1);
    kill(agent.pid.cast_signed(), "TERM");
    wait_for("the agent is gone", || {
        matches!(state_of(agent.pid.cast_signed()), None | Some('Z')).then_some(())
    });
    kill(agent.guard_pid.expect("a guard").cast_signed(), "TERM");
    // Each guard writes from the file's beginning on.
    wait_for("it is let go", || fed().contains(&b'V').then_some(()));
    wait_for("and that is kept", || {
        (!cluster.home(1).join("state/watchdog.json").exists()).then_some(())
    });
    cluster.new_boot(1);
    cluster.start(1);
    let status = cluster.wait_status(1, "a primary", |s| s.primary.is_some().then(|| s.clone()));
    assert_eq!(reset(&status), None, "that was no reset");
}

fn oom_score(pid: i32) -> i32 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("a score");
    text.trim().parse().expect("a number")
}

#[test]
fn guests_have_the_oom_score_that_was_chosen_and_agent_and_guard_none_or_it_is_said() {
    let mut cluster = with_a_watchdog();
    let agent = cluster.start(1);
    cluster.wait_status(1, "a primary", |s| s.primary.clone());
    cluster
        .client(1)
        .power_on(&crate::harness::vm(1))
        .expect("taken");
    wait_for("it counts", || (cluster.counter(1) > 3).then_some(()));
    for guest in cluster.guests(1) {
        assert_eq!(oom_score(guest), 250);
    }
    let guard = agent.guard_pid.expect("a guard");
    for (what, pid) in [("the agent", agent.pid), ("the guard", guard)] {
        if oom_score(pid.cast_signed()) == -1000 {
            continue;
        }
        let wanted = format!("{what} may be taken by the OOM killer");
        cluster.wait_status(1, "the refusal is said", |s| {
            s.issues
                .iter()
                .any(|i| i.cause == IssueCause::GuardWeak && i.text.contains(&wanted))
                .then_some(())
        });
    }
}

#[test]
fn each_of_the_two_starts_the_other_again_within_a_second() {
    let (cluster, guest) = with_a_running_vm();
    let pids = || {
        let now = cluster.agent(1);
        now.guard_pid.map(|guard| [now.pid, guard])
    };
    for which in 0..2 {
        // The busiest machine is not busy three times.
        let quickest = (0..3).map(|_| {
            let before = wait_for("both", pids);
            let [killed, role] = match which {
                0 => [before[0].to_string(), "agent".to_owned()],
                _ => [before[1].to_string(), "guard".to_owned()],
            };
            let file = cluster.home(1).join(format!("run/{role}.pid"));
            let begun = Instant::now();
            kill(killed.parse().expect("a number"), "KILL");
            wait_for("another", || {
                let now = std::fs::read_to_string(&file).ok()?;
                (now.split(' ').next()? != killed).then_some(())
            });
            begun.elapsed()
        });
        let quickest = quickest.min().expect("three");
        assert!(quickest < Duration::from_secs(1), "{which}: {quickest:?}");
    }
    assert_eq!(cluster.guests(1), [guest], "the same process");
}
