//! Drills through the core's public interface: what is foretold, what happens, what is refused.

use crate::cluster::{Cluster, host, vm};
use mainstay_core::config::{Change, Profile, RestartPriority, VmSpec};
use mainstay_core::drill::{Answer, Forecast, Marked, Outcome, Progress};
use mainstay_core::event::{EventKind, HostState};
use mainstay_core::time::{Duration, Instant};
use mainstay_core::{Command, CommandError};

const SECOND: Duration = Duration::from_secs(1);

/// Hosts of which the last is the primary; VMs are spread over all.
fn settled(hosts: u32, vms: u32) -> Cluster {
    let mut c = Cluster::new(Profile::Balanced, hosts, vms);
    c.run_for(60 * SECOND);
    for n in 1..=vms {
        c.command(1 + n % hosts, Command::PowerOn(vm(n)));
    }
    c.run_for(60 * SECOND);
    assert_eq!(c.running.len(), vms as usize, "{:#?}", c.events);
    c
}

/// Asks agent `at` for the forecast of a host.
fn plan(c: &mut Cluster, at: u32, of: u32) -> Forecast {
    let now = c.now;
    let ticket = c.agent(at).plan_drill(now, &host(of)).expect("taken");
    c.settle(at);
    c.run_for(2 * SECOND);
    let answer = c
        .drills
        .iter()
        .rev()
        .find(|(h, t, _)| (h, *t) == (&host(at), ticket));
    match answer.expect("an answer").2.clone().expect("a forecast") {
        Answer::Forecast(forecast) => *forecast,
        other => panic!("{other:?}"),
    }
}

/// Asks agent `at` for a drill of a host.
fn run(
    c: &mut Cluster,
    at: u32,
    of: u32,
    time: Option<Duration>,
    insists: bool,
) -> Result<Answer, String> {
    let now = c.now;
    let asked = c.agent(at).run_drill(now, &host(of), time, insists);
    c.settle(at);
    let ticket = asked.map_err(|e| e.to_string())?;
    c.run_for(SECOND);
    let answer = c
        .drills
        .iter()
        .rev()
        .find(|(h, t, _)| (h, *t) == (&host(at), ticket));
    answer.expect("an answer").2.clone()
}

/// How far a drill is, asked at agent `at` for a while.
fn progress(c: &mut Cluster, at: u32, of: u32) -> Progress {
    for _ in 0..20 {
        let now = c.now;
        c.agent(at)
            .drill_progress(now, &host(of))
            .expect("heard of");
        c.settle(at);
        c.run_for(SECOND / 2);
    }
    let now = c.now;
    let found = c
        .agent(at)
        .drill_progress(now, &host(of))
        .expect("heard of");
    c.settle(at);
    found
}

/// The guard of a VM's host freezes it.
fn freeze(c: &mut Cluster, n: u32) {
    c.lapse(&vm(n));
    c.run_for(SECOND / 10);
    c.running.remove(&vm(n));
}

fn refusal(answer: Result<Answer, String>) -> String {
    answer.expect_err("it is refused")
}

fn has(c: &Cluster, is: impl Fn(&EventKind) -> bool) -> bool {
    c.count(Instant::ZERO, is) > 0
}

fn started(kind: &EventKind) -> bool {
    matches!(kind, EventKind::DrillStarted { .. })
}

#[test]
fn a_forecast_names_a_host_and_a_time_for_each_vm_and_changes_nothing() {
    let mut c = settled(3, 6);
    let before = c.status(3);
    let forecast = plan(&mut c, 3, 2);
    assert_eq!((forecast.host, forecast.primary), (host(2), host(3)));
    assert_eq!(forecast.successor, None);
    assert_eq!(forecast.vms.len(), 2);
    for foreseen in &forecast.vms {
        match &foreseen.outcome {
            Outcome::Restarted {
                host: to,
                asked_ms,
                wave,
                ..
            } => {
                assert_ne!(*to, host(2));
                assert_eq!((*asked_ms, *wave), (6000, 1));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(
        forecast.all_come_back && forecast.obstacles.is_empty(),
        "{:?}",
        forecast.obstacles
    );
    let after = c.status(3);
    assert_eq!(before.vms, after.vms);
    assert!(!has(&c, |e| matches!(
        e,
        EventKind::RestartRequested { .. }
    )));
    assert!(!has(&c, started));
}

#[test]
fn a_forecast_is_the_same_wherever_it_is_asked_for() {
    let mut c = settled(3, 3);
    for of in 1..=3 {
        let at_primary = plan(&mut c, 3, of);
        for at in 1..=2 {
            let mut elsewhere = plan(&mut c, at, of);
            // Weaknesses are counted with time.
            elsewhere.weaknesses.clone_from(&at_primary.weaknesses);
            assert_eq!(elsewhere, at_primary);
        }
    }
    let primary = plan(&mut c, 1, 3);
    assert_eq!(primary.successor, Some(host(2)));
    assert_eq!(primary.elected_ms, 5000);
}

#[test]
fn what_a_forecast_says_is_what_happens_when_the_host_is_lost() {
    let mut c = settled(4, 8);
    let forecast = plan(&mut c, 4, 2);
    let killed = c.now;
    c.power_off(2);
    c.run_for(30 * SECOND);
    for foreseen in forecast.vms {
        let Outcome::Restarted {
            host: to, asked_ms, ..
        } = foreseen.outcome
        else {
            panic!("{foreseen:?}");
        };
        assert_eq!(c.running.get(&foreseen.vm), Some(&to));
        let asked = c.first(
            killed,
            |e| matches!(e, EventKind::RestartRequested { vm, .. } if *vm == foreseen.vm),
        );
        let asked = asked.expect("asked for").as_millis();
        let later = u128::from(asked_ms)..=u128::from(asked_ms + forecast.later_by_ms);
        assert!(later.contains(&asked), "{asked} ms, not {later:?}");
    }
}

#[test]
fn vms_of_a_drilled_host_come_back_elsewhere_and_the_drill_is_told_of() {
    let mut c = settled(3, 3);
    let begun = c.now;
    let answer = run(&mut c, 1, 2, Some(20 * SECOND), false);
    assert_eq!(answer, Ok(Answer::Begun { time_ms: 20_000 }));
    c.run_for(3 * SECOND);
    freeze(&mut c, 1);
    let silent = c.agent(2).plan_drill(begun, &host(1));
    assert_eq!(silent, Err(CommandError::Silent(host(2))));
    assert!(
        c.status(2).hosts[1]
            .why
            .contains("a drill: it is silent on purpose")
    );
    c.run_for(6 * SECOND);
    assert_ne!(c.running.get(&vm(1)), Some(&host(2)));
    assert!(has(
        &c,
        |e| matches!(e, EventKind::HostState { host: h, to: HostState::AgentUnreachable, .. } if *h == host(2))
    ));
    c.run_for(20 * SECOND);
    let ended = c.first(begun, |e| matches!(e, EventKind::DrillEnded { .. }));
    let ended = ended.expect("it ended").as_millis();
    assert!((20_000..20_100).contains(&ended), "{ended}");
    assert_eq!(c.status(3).hosts[1].state, HostState::Live);
    let told = progress(&mut c, 1, 2);
    assert!(
        told.complete && told.ended == Some("its time is up".into()),
        "{told:#?}"
    );
    let marks: Vec<_> = told.told.iter().flat_map(|t| &t.marks).collect();
    for wanted in [
        Marked::Frozen { vm: vm(1) },
        Marked::Verdict {
            state: HostState::AgentUnreachable,
        },
    ] {
        assert!(
            marks.iter().any(|m| m.what == wanted),
            "{wanted:?} in {marks:#?}"
        );
    }
    let at = |is: fn(&Marked) -> bool| marks.iter().find(|m| is(&m.what)).map(|m| m.at_ms);
    let asked = at(|m| matches!(m, Marked::Asked { .. })).expect("asked for");
    let broken = at(|m| matches!(m, Marked::Broken { .. })).expect("broken");
    let runs = at(|m| matches!(m, Marked::Started { .. })).expect("started");
    assert!((6000..7500).contains(&asked), "{asked}");
    assert!((asked..8000).contains(&broken) && (broken..8000).contains(&runs));
}

#[test]
fn a_drill_of_the_primary_elects_another() {
    let mut c = settled(3, 3);
    assert!(run(&mut c, 1, 3, Some(30 * SECOND), false).is_ok());
    c.run_for(3 * SECOND);
    freeze(&mut c, 2);
    c.run_for(20 * SECOND);
    let elected =
        |e: &EventKind| matches!(e, EventKind::PrimaryElected { host: h } if *h == host(2));
    assert!(has(&c, elected));
    assert_eq!(c.running.values().filter(|h| **h == host(3)).count(), 0);
    c.run_for(30 * SECOND);
    let told = progress(&mut c, 1, 3);
    assert!(told.complete, "{told:#?}");
    let marks: Vec<_> = told.told.iter().flat_map(|t| &t.marks).collect();
    assert!(
        marks
            .iter()
            .any(|m| m.what == Marked::Elected { host: host(2) })
    );
}

#[test]
fn a_drill_ends_when_it_is_called_off_anywhere() {
    let mut c = settled(3, 3);
    let begun = c.now;
    assert!(run(&mut c, 3, 2, Some(60 * SECOND), false).is_ok());
    let second = refusal(run(&mut c, 3, 1, None, true));
    assert!(second.contains("host-2 is in a drill"), "{second}");
    let now = c.now;
    c.agent(1).stop_drill(now, &host(2)).expect("taken");
    c.settle(1);
    c.run_for(SECOND);
    let ended = c.first(begun, |e| matches!(e, EventKind::DrillEnded { .. }));
    assert!(ended.is_some_and(|at| at < 4 * SECOND), "{ended:?}");
    assert!(!has(&c, |e| matches!(
        e,
        EventKind::RestartRequested { .. }
    )));
    c.run_for(10 * SECOND);
    assert!(run(&mut c, 3, 1, None, false).is_ok(), "{:?}", c.drills);
}

#[test]
fn a_host_that_is_shut_down_in_a_drill_leaves_as_it_does_otherwise() {
    let mut c = settled(3, 3);
    assert!(run(&mut c, 3, 2, Some(60 * SECOND), false).is_ok());
    let now = c.now;
    let refused = c.agent(2).command(now, Command::PowerOff(vm(1)));
    assert_eq!(refused, Err(CommandError::Silent(host(2))));
    let refused = c.agent(2).propose(now, Vec::new());
    assert_eq!(refused, Err(CommandError::Silent(host(2))));
    c.command(2, Command::Leave);
    c.run_for(5 * SECOND);
    assert!(has(&c, |e| matches!(e, EventKind::DrillEnded { .. })));
    assert!(has(&c, |e| matches!(e, EventKind::HostLeaving { .. })));
}

#[test]
fn drills_that_show_nothing_or_are_dangerous_are_refused_with_the_remedy() {
    let mut c = settled(3, 3);
    let typo = c
        .agent(1)
        .plan_drill(Instant::ZERO, &host(22))
        .expect_err("no such host");
    assert!(
        typo.to_string().contains("did you mean \"host-2\"?"),
        "{typo}"
    );
    let short = refusal(run(&mut c, 1, 2, Some(SECOND), true));
    assert!(short.contains("lasts between 7500 ms"), "{short}");
    let long = refusal(run(&mut c, 1, 2, Some(7200 * SECOND), true));
    assert!(long.contains("3600000 ms"), "{long}");
    let off = |value: &str| Change::Set {
        key: "host_monitoring".into(),
        value: value.into(),
    };
    c.propose(3, off("false"));
    c.run_for(5 * SECOND);
    let why = refusal(run(&mut c, 1, 2, None, true));
    assert!(why.contains("config set host_monitoring true"), "{why}");
    c.propose(3, off("true"));
    let rest = |on| Change::Maintenance { host: host(2), on };
    c.propose(3, rest(true));
    c.run_for(5 * SECOND);
    let why = refusal(run(&mut c, 1, 2, None, true));
    assert!(why.contains("maintenance exit host-2"), "{why}");
    c.propose(3, rest(false));
    c.run_for(5 * SECOND);
    c.power_off(1);
    c.run_for(20 * SECOND);
    let why = refusal(run(&mut c, 3, 2, None, false));
    assert!(
        why.contains("host-1 is not well") && why.contains("--force"),
        "{why}"
    );
    let gone = refusal(run(&mut c, 3, 1, None, true));
    assert!(gone.contains("host-1 is not well itself"), "{gone}");
    assert!(!has(&c, started));
    assert!(run(&mut c, 3, 2, None, true).is_ok());
}

#[test]
fn the_only_host_that_takes_vms_is_not_drilled() {
    let mut c = settled(2, 1);
    c.propose(
        2,
        Change::Maintenance {
            host: host(1),
            on: true,
        },
    );
    c.run_for(5 * SECOND);
    let why = refusal(run(&mut c, 2, 2, None, true));
    assert!(why.contains("is the only host that takes VMs"), "{why}");
}

/// A VM, and what is changed about it.
type VmChange = (u32, fn(&mut VmSpec));

/// Changes VMs of the running cluster.
fn change_vms(c: &mut Cluster, changes: &[VmChange]) {
    for (n, change) in changes {
        let mut spec = c.agent_config(3).vms.get(&vm(*n)).expect("known").clone();
        change(&mut spec);
        c.propose(3, Change::PutVm(spec));
        c.run_for(SECOND);
    }
    c.run_for(10 * SECOND);
}

fn outcome(forecast: &Forecast, n: u32) -> &Outcome {
    let found = forecast.vms.iter().find(|v| v.vm == vm(n));
    &found.expect("foreseen").outcome
}

#[test]
fn what_nobody_restarts_and_what_nobody_has_room_for_are_told_apart() {
    let mut c = settled(3, 9);
    change_vms(
        &mut c,
        &[
            (1, |v| v.restart_priority = RestartPriority::Disabled),
            (4, |v| v.memory_mb = 1 << 20),
        ],
    );
    let forecast = plan(&mut c, 1, 2);
    assert!(
        matches!(outcome(&forecast, 1), Outcome::Left { why } if why.contains("disabled")),
        "{forecast:?}"
    );
    assert!(
        matches!(outcome(&forecast, 4), Outcome::Stuck { why } if why.contains("MiB are free")),
        "{forecast:?}"
    );
    assert!(matches!(outcome(&forecast, 7), Outcome::Restarted { .. }));
    assert!(!forecast.all_come_back);
    let why = refusal(run(&mut c, 1, 2, None, false));
    assert!(
        why.contains("vm-4 would not come back") && why.contains("--force"),
        "{why}"
    );
}

#[test]
fn starts_that_wait_for_others_come_in_later_waves() {
    let mut c = settled(3, 9);
    change_vms(
        &mut c,
        &[
            (1, |v| v.depends_on = vec![vm(4)]),
            (4, |v| v.depends_on = vec![vm(7)]),
        ],
    );
    let forecast = plan(&mut c, 1, 2);
    let order: Vec<_> = forecast.vms.iter().map(|v| v.vm.clone()).collect();
    assert_eq!(order, [vm(7), vm(4), vm(1)]);
    let wave = |n| match outcome(&forecast, n) {
        Outcome::Restarted { wave, .. } => *wave,
        other => panic!("{other:?}"),
    };
    assert_eq!((wave(7), wave(4), wave(1)), (1, 2, 3));
    // The first has no host: those behind it go on without it when their patience ends.
    change_vms(&mut c, &[(7, |v| v.memory_mb = 1 << 20)]);
    let forecast = plan(&mut c, 1, 2);
    assert!(matches!(outcome(&forecast, 7), Outcome::Stuck { .. }));
    let patience = c.agent_config(3).settings.dependency_timeout.as_millis();
    for n in [4, 1] {
        let Outcome::Restarted { asked_ms, .. } = outcome(&forecast, n) else {
            panic!("{forecast:?}");
        };
        assert_eq!(u128::from(*asked_ms), 6000 + patience, "vm-{n}");
    }
}

#[test]
fn as_many_starts_at_a_time_as_the_setting_allows_are_foreseen() {
    let mut c = settled(3, 9);
    let limit = Change::Set {
        key: "concurrent_restarts_per_host".into(),
        value: "1".into(),
    };
    c.propose(3, limit);
    c.run_for(5 * SECOND);
    let forecast = plan(&mut c, 1, 2);
    let waves: Vec<u32> = forecast
        .vms
        .iter()
        .map(|v| match &v.outcome {
            Outcome::Restarted { wave, .. } => *wave,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(waves, [1, 1, 2]);
}
