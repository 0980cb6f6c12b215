//! What one agent makes of a fence device's answers. What becomes of VMs and hosts is in `scenarios/nasty`.

use super::{PowerOff, Signs, Stage};
use crate::agent::{Agent, Pending};
use crate::event::{EventKind, IssueCause};
use crate::id::{HostId, OpId};
use crate::io::{FenceOutcome, FenceRequest, Input, Output, PingOutcome, PingTarget};
use crate::liveness::{Seen, Window};
use crate::testing::{datastore, primary};
use crate::time::{Duration, Instant};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

fn other() -> HostId {
    HostId::new("host-2").expect("id")
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A primary that can ask the device of host-2, and has nothing to say.
fn fencer() -> Agent {
    let mut agent = primary(Vec::new());
    agent.set_fence_devices([other()].into());
    agent.out.clear();
    agent
}

/// The same, with an attempt that stands there and waits for an answer.
fn at(stage: impl FnOnce(Instant) -> Stage) -> (Agent, OpId) {
    let mut agent = fencer();
    let now = agent.now;
    agent.ask_device(&other(), FenceRequest::Status);
    let fence = agent.fence_mut(&other());
    fence.stage = stage(now);
    let op = fence.op.expect("asked");
    agent.out.clear();
    (agent, op)
}

/// What the agent asks of the device, and what it says of it, after an answer.
fn after(agent: &mut Agent, op: OpId, outcome: FenceOutcome) -> (Vec<FenceRequest>, Vec<String>) {
    let issued = match agent.pending.remove(&op) {
        Some(Pending::Fence { issued, .. }) => issued,
        other => panic!("{other:?}"),
    };
    agent.on_fenced(&other(), op, issued, outcome);
    drained(agent)
}

fn drained(agent: &mut Agent) -> (Vec<FenceRequest>, Vec<String>) {
    let (mut asked, mut said) = (Vec::new(), Vec::new());
    for output in agent.out.drain(..) {
        match output {
            Output::Fence(_, _, request) => asked.push(request),
            Output::Event(event) => match event.kind {
                EventKind::FenceConfirmed { .. } => said.push("confirmed".into()),
                EventKind::FenceFailed { reason, .. } => said.push(reason),
                EventKind::ConfigIssue { issue, .. } => said.push(issue),
                _ => {}
            },
            _ => {}
        }
    }
    (asked, said)
}

/// The heartbeat of host-2 has been read: that value, at that time.
fn read(agent: &mut Agent, value: u8, at: Instant) {
    let store = agent.stores.get_mut(&datastore()).expect("mounted");
    let (seen, named) = (Seen::Bytes(vec![value]), seconds(4));
    match store.windows.get_mut(&other()) {
        Some(window) => {
            window.read(seen, at, at, named);
        }
        None => {
            let window = Window::new(seen, at, at, named);
            store.windows.insert(other(), window);
        }
    }
}

#[test]
fn a_device_that_says_off_at_once_is_told_nothing() {
    let (mut agent, op) = at(|began| Stage::Asked { began });
    let (asked, said) = after(&mut agent, op, FenceOutcome::PowerOff);
    assert_eq!((asked, said), (vec![], vec![]));
    let fence = agent.fence_mut(&other());
    assert!(matches!(fence.stage, Stage::Settling { .. }), "{fence:?}");
    assert!(fence.off.is_none(), "nothing is proven yet");
}

#[test]
fn nothing_is_switched_when_nobody_needs_it_any_more() {
    let (mut agent, op) = at(|began| Stage::Asked { began });
    let (asked, said) = after(&mut agent, op, FenceOutcome::PowerOn);
    assert_eq!(asked, []);
    assert!(said.iter().any(|s| s.contains("called off")), "{said:?}");
}

#[test]
fn only_the_power_tells_whether_the_device_did_what_it_was_told() {
    let words = [
        FenceOutcome::Done,
        FenceOutcome::Unknown("no answer".into()),
        FenceOutcome::NotDone("no program".into()),
    ];
    for word in words {
        let (mut agent, op) = at(|began| Stage::Switching { began });
        let (asked, said) = after(&mut agent, op, word);
        assert_eq!((asked, said), (vec![FenceRequest::Status], vec![]));
    }
}

#[test]
fn a_host_that_stays_on_is_asked_for_again_until_the_time_is_up() {
    let (mut agent, op) = at(|began| Stage::Confirming {
        began,
        next: began,
        until: began + seconds(30),
    });
    let end = agent.now + seconds(30);
    let (asked, said) = after(&mut agent, op, FenceOutcome::PowerOn);
    assert_eq!((asked, said), (vec![], vec![]));
    agent.now += seconds(1);
    agent.run_fencing();
    assert_eq!(drained(&mut agent).0, [FenceRequest::Status]);
    agent.now = end;
    let op = agent.fence_mut(&other()).op.expect("asked");
    let (asked, said) = after(&mut agent, op, FenceOutcome::Unknown("it is silent".into()));
    assert_eq!(asked, []);
    assert_eq!(said, ["it is silent"]);
}

#[test]
fn an_answer_that_nobody_waits_for_changes_nothing() {
    let (mut agent, op) = at(|began| Stage::Asked { began });
    agent.fence_mut(&other()).op = None;
    let now = agent.now;
    agent.on_fenced(&other(), op, now, FenceOutcome::PowerOff);
    let fence = agent.fence_mut(&other());
    assert!(matches!(fence.stage, Stage::Asked { .. }), "{fence:?}");
    agent.take(Input::Fenced(OpId(99_999), FenceOutcome::PowerOff));
}

#[test]
fn a_quiet_host_is_off_after_two_heartbeats() {
    let mut agent = fencer();
    let done = agent.now;
    let off = PowerOff {
        issued: done,
        done,
        over: false,
    };
    agent.fence_mut(&other()).stage = Stage::Settling {
        began: done,
        off,
        signs: Signs::default(),
    };
    agent.now = done + agent.fence_settles() - Duration::from_millis(1);
    agent.run_fencing();
    assert!(!agent.is_off(&other()));
    agent.now += Duration::from_millis(1);
    agent.run_fencing();
    assert!(agent.is_off(&other()));
    assert_eq!(drained(&mut agent).1, ["confirmed"]);
}

#[test]
fn one_late_write_is_no_sign_of_life_and_two_are() {
    let mut agent = fencer();
    let now = agent.now;
    read(&mut agent, 1, now);
    let done = agent.now + seconds(1);
    let off = PowerOff {
        issued: done,
        done,
        over: false,
    };
    let mut signs = Signs::default();
    let mut sign = |agent: &Agent| agent.sign_of_life(&other(), &off, &mut signs);
    agent.now = done + seconds(1);
    assert_eq!(sign(&agent), None);
    let now = agent.now;
    read(&mut agent, 2, now);
    assert_eq!(sign(&agent), None, "it was on its way");
    agent.now += seconds(1);
    assert_eq!(sign(&agent), None);
    let now = agent.now;
    read(&mut agent, 3, now);
    let said = sign(&agent).expect("a sign of life");
    assert!(said.contains("ds-1"), "{said}");
}

#[test]
fn messages_and_answered_pings_are_signs_of_life() {
    let mut agent = fencer();
    let done = agent.now;
    let off = PowerOff {
        issued: done,
        done,
        over: false,
    };
    agent.now = done + seconds(2);
    let ping = |agent: &mut Agent, outcome| {
        let at = agent.now;
        agent.on_ping(PingTarget::Host(other()), at, outcome);
    };
    ping(&mut agent, PingOutcome::NoAnswer);
    let sign = |agent: &Agent| agent.sign_of_life(&other(), &off, &mut Signs::default());
    assert_eq!(sign(&agent), None);
    let mut pinged = agent.clone();
    ping(&mut pinged, PingOutcome::Answered);
    assert!(sign(&pinged).is_some());
    agent.note_heard(&other());
    assert!(sign(&agent).is_some());
    agent.fence_mut(&other()).off = Some(off);
    assert!(!agent.is_off(&other()), "it has been heard since");
}

#[test]
fn power_proves_the_end_of_what_was_locked_before_it_was_asked_for() {
    let mut agent = fencer();
    let issued = agent.now + seconds(10);
    let done = issued + seconds(1);
    agent.fence_mut(&other()).off = Some(PowerOff {
        issued,
        done,
        over: false,
    });
    agent.now = done + seconds(5);
    let before = issued - Duration::from_nanos(1);
    let proof = |agent: &Agent, read: Instant| agent.power_proof(&datastore(), &other(), read);
    let unread = proof(&agent, before).expect_err("its heartbeat was not read");
    assert!(unread.contains("has not been read"), "{unread}");
    read(&mut agent, 1, done);
    assert!(proof(&agent, before).is_err(), "read too early");
    read(&mut agent, 1, done + seconds(2));
    assert_eq!(proof(&agent, before), Ok(()));
    for late in [issued, issued + Duration::from_nanos(1)] {
        assert!(proof(&agent, late).is_err(), "the lock was not read before");
    }
    // It has booted again: that takes nothing back.
    agent.note_heard(&other());
    assert!(!agent.is_off(&other()));
    assert_eq!(proof(&agent, before), Ok(()));
}

#[test]
fn a_host_that_is_off_is_asked_for_again_for_locks_that_were_read_later() {
    let (mut agent, op) = at(|began| Stage::AskedAgain { began });
    let issued = agent.now;
    let known = issued - seconds(1);
    agent.fence_mut(&other()).off = Some(PowerOff {
        issued: known,
        done: known,
        over: false,
    });
    let mut on = agent.clone();
    after(&mut agent, op, FenceOutcome::PowerOff);
    let off = agent.fence_mut(&other()).off.expect("known");
    assert_eq!((off.issued, off.over), (issued, false));
    after(&mut on, op, FenceOutcome::PowerOn);
    let off = on.fence_mut(&other()).off.expect("what was proven stays");
    assert_eq!((off.issued, off.over), (known, true));
    assert!(!on.is_off(&other()));
}

#[test]
fn a_device_that_does_not_answer_is_asked_again_later_and_remembered() {
    let (mut agent, op) = at(|began| Stage::Asked { began });
    after(&mut agent, op, FenceOutcome::Unknown("silent".into()));
    assert!(agent.fence_mut(&other()).silent);
    let not_before = agent.fence_mut(&other()).not_before;
    let retry = agent.config.settings.fence_retry;
    assert_eq!(not_before, Some(agent.now + retry));
}

#[test]
fn a_device_that_calls_a_live_host_off_is_a_weakness() {
    let (mut agent, op) = at(|issued| Stage::Checked { issued });
    let (_, said) = after(&mut agent, op, FenceOutcome::PowerOff);
    assert_eq!(said, [""; 0], "it may just have gone");
    agent.now += seconds(5);
    agent.note_heard(&other());
    agent.run_fencing();
    let (_, said) = drained(&mut agent);
    assert!(
        said.iter().any(|s| s.contains("switches something else")),
        "{said:?}"
    );
    let weak = |i: &crate::health::Issue| i.cause == IssueCause::FenceWeak;
    assert!(agent.own_issues().iter().any(weak));
}

#[test]
fn hosts_without_a_device_are_named_where_others_have_one() {
    let mut agent = fencer();
    let weak = |agent: &Agent| {
        let issues = agent.own_issues().into_iter();
        issues.filter(|i| i.cause == IssueCause::FenceWeak).count()
    };
    assert_eq!(weak(&agent), 0);
    agent.set_fence_devices([agent.me.host.clone()].into());
    assert_eq!(weak(&agent), 1, "host-2 has none");
    agent.set_fence_devices([].into());
    assert_eq!(weak(&agent), 0, "nobody wants fencing");
}
