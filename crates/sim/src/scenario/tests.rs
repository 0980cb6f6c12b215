//! Reading scenarios, and complaining about them.

use super::*;
use crate::expect::{Check, Want};
use crate::scenario::parse::CLUSTER;
use mainstay_core::time::Duration;

const SMALL: &str = r#"
name = "small"
duration = "3m"
profile = "classic"

[settings]
isolation_response = "power_off"
max_restart_attempts = 3

[[datastore]]
id = "ds-1"

[[host]]
count = 3

[[host]]
id = "host-9"
datastores = []

[[vm]]
count = 2

[[event]]
at = "60s"
do = "host.power_off"
host = "host-1"

[[expect]]
by = "80s"
vm = "vm-1"
running_on = ["host-2", "host-3"]
"#;

fn error(text: &str) -> String {
    parse("x.toml", text).expect_err("refused").to_string()
}

#[test]
fn a_scenario_is_read_with_its_defaults() {
    let s = parse("x.toml", SMALL).expect("sound");
    assert_eq!(s.config.cluster_id, CLUSTER);
    let hosts: Vec<&str> = s.hosts.iter().map(|h| h.id.as_str()).collect();
    assert_eq!(hosts, ["host-1", "host-2", "host-3", "host-9"]);
    assert_eq!(s.vms.len(), 2);
    assert_eq!(s.config.settings.max_restart_attempts, 3);
    assert_eq!(s.config.settings.timing.dead, Duration::from_secs(18));
    assert_eq!(
        s.events,
        [Planned {
            at: 60 * crate::SECOND,
            fault: Fault::HostPowerOff { host: 0 }
        }]
    );
    let want = Want::RunningOn(vec![1, 2]);
    assert_eq!(
        s.expects[0].check,
        Check::State {
            by: 80 * crate::SECOND,
            vm: 0,
            want
        }
    );
}

#[test]
fn what_is_unknown_gets_its_line_and_the_nearest_name() {
    let cases = [
        (
            "duration = \"3m\"",
            "durations = \"3m\"",
            "did you mean \"duration\"",
        ),
        (
            "isolation_response",
            "isolation_respons",
            "did you mean \"isolation_response\"",
        ),
        (
            "host.power_off",
            "host.power_of",
            "did you mean \"host.power_off\"",
        ),
        (
            "host = \"host-1\"",
            "host = \"host-l\"",
            "did you mean \"host-1\"",
        ),
        (
            "\"power_off\"",
            "\"never\"",
            "leave_powered_on, power_off, shut_down",
        ),
        ("vm = \"vm-1\"", "vm = \"vm-7\"", "there is no VM \"vm-7\""),
        (
            "duration = \"3m\"",
            "duration = \"3 parsecs\"",
            "is no time",
        ),
        ("count = 3", "count = \"3\"", "whole number"),
        ("id = \"host-9\"", "id = \"host-1\"", "twice"),
        (
            "profile = \"classic\"",
            "profile = \"clasic\"",
            "classic, balanced, fast",
        ),
    ];
    for (from, to, wanted) in cases {
        let text = error(&SMALL.replacen(from, to, 1));
        assert!(text.contains(wanted), "{text}");
        let line = 1 + SMALL
            .lines()
            .position(|l| l.contains(from))
            .expect("a line");
        assert!(
            text.starts_with(&format!("x.toml:{line}:")),
            "{text} should name line {line}"
        );
    }
}

#[test]
fn timers_that_contradict_each_other_are_refused_with_the_inequality() {
    let text = error(&SMALL.replacen("max_restart_attempts = 3", "break = \"12s\"", 1));
    assert!(text.contains("break"), "{text}");
}

#[test]
fn events_without_behaviour_are_named() {
    let text = SMALL.replacen("do = \"host.power_off\"", "do = \"guest.hang\"", 1);
    assert_eq!(
        parse("x.toml", &text).expect("known").unplayable(),
        ["guest.hang"]
    );
}

#[test]
fn every_drawn_scenario_can_be_written_and_read_again() {
    for seed in 0..30 {
        let drawn = crate::campaign::draw(seed, &crate::campaign::Limits::default());
        let text = to_toml(&drawn);
        let again = parse("drawn.toml", &text).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert_eq!(again.events, drawn.events, "seed {seed}");
        assert_eq!(again.weather, drawn.weather);
        assert_eq!(again.hosts, drawn.hosts);
        assert_eq!(again.vms, drawn.vms);
        assert_eq!(again.datastores, drawn.datastores);
        assert_eq!(again.config, drawn.config, "seed {seed}");
    }
}

/// The small scenario with more behind it.
fn with(more: &str) -> String {
    format!("{SMALL}\n{more}\n")
}

fn refused(more: &str, wanted: &str) {
    let text = error(&with(more));
    assert!(text.contains(wanted), "{more}: {text}");
}

fn accepted(more: &str) -> Scenario {
    parse("x.toml", &with(more)).unwrap_or_else(|e| panic!("{more}: {e}"))
}

#[test]
fn an_expectation_that_no_event_can_meet_is_refused_with_what_could() {
    for (expect, wanted) in [
        (
            "never = \"vm.stopped\"\nreason = \"isolaton\"",
            "did you mean \"isolation\"",
        ),
        (
            "never = \"vm.stopped\"\nreason = \"bored\"",
            "there are user, guest, crash",
        ),
        (
            "never = \"host.state\"\nvm = \"vm-1\"",
            "has no field vm; it has from, host, observer, to",
        ),
        (
            "event = \"host.state\"\nto = \"deat\"",
            "did you mean \"dead\"",
        ),
        (
            "event = \"isolation.response\"\naction = \"stop\"",
            "leave_powered_on, power_off, shut_down",
        ),
        (
            "event = \"vm.restart.waiting\"\ncause = \"no_rooms\"",
            "did you mean \"no_room\"",
        ),
        (
            "event = \"vm.restart.requested\"\nattempt = \"1\"",
            "a whole number",
        ),
        (
            "event = \"lock.broken\"\nfrom = \"hots-9\"",
            "did you mean \"host-9\"",
        ),
        (
            "event = \"host.vouched\"\nowner = \"nobody\"",
            "there is no host \"nobody\"",
        ),
        ("event = \"vm.started\"\nhost = 1", "a text in quotes"),
        ("event = \"vm.startet\"", "did you mean \"vm.started\""),
        (
            "event = \"fault\"\ndo = \"host.power_of\"",
            "did you mean \"host.power_off\"",
        ),
        (
            "event = \"fault\"\ndo = \"host.power_off\"\nvm = \"vm-1\"",
            "host.power_off has no vm",
        ),
        (
            "between = [\"80s\", \"15s\"]\nnever = \"host.state\"",
            "write the earlier time first",
        ),
        (
            "between = [\"1s\", \"15s\"]\nby = \"2m\"\nevent = \"host.state\"",
            "keep one",
        ),
        (
            "between = [\"4m\", \"5m\"]\nnever = \"host.state\"",
            "duration longer",
        ),
        (
            "by = \"4m\"\nvm = \"vm-1\"\nstate = \"running\"",
            "duration longer",
        ),
        (
            "by = \"20s\"\nvm = \"vm-1\"\nstate = \"running\"\nissue = \"x\"",
            "issue belongs to",
        ),
        (
            "by = \"20s\"\nvm = \"vm-1\"\nstate = \"running\"\ngeneration = 9",
            "generation belongs to",
        ),
        (
            "by = \"20s\"\nvm = \"vm-1\"\nstate = \"runing\"",
            "did you mean \"running\"",
        ),
        (
            "by = \"20s\"\nvm = \"vm-1\"\nrunning_on = []",
            "powered_off",
        ),
    ] {
        refused(&format!("[[expect]]\n{expect}"), wanted);
    }
}

#[test]
fn every_field_that_the_format_gives_to_a_kind_may_be_named() {
    for expect in [
        "event = \"host.state\"\nobserver = \"host-2\"\nhost = \"host-1\"\nfrom = \"live\"\nto = \"agent_unreachable\"",
        "event = \"isolation.response\"\nhost = \"host-1\"\nvm = \"vm-1\"\naction = \"shut_down\"",
        "event = \"isolation.skipped\"\nreason = \"not owned\"",
        "event = \"vm.unprotected\"\nvm = \"vm-1\"\nreason = \"user\"",
        "never = \"vm.restart.waiting\"\nvm = \"vm-1\"\nhost = \"host-2\"\nattempt = 2\nreason = \"room\"",
        "never = \"lock.acquired\"\nvm = \"vm-1\"\nhost = \"host-1\"\ngeneration = 2\nfrom = \"host-2\"",
        "never = \"vm.started\"\nreason = \"user\"",
        "never = \"vm.reset\"\nvm = \"vm-1\"\nhost = \"host-1\"\nreason = \"hang\"",
        "never = \"vmcp.apd\"\nhost = \"host-1\"\ndatastore = \"ds-1\"",
        "never = \"fence.confirmed\"\nhost = \"host-1\"\nby = \"host-2\"\nreason = \"off\"",
        "never = \"fence.confirmed\"\nhost = \"host-1\"\nby = \"60s\"",
        "never = \"admission.refused\"\nvm = \"vm-1\"\nreason = \"room\"",
        "never = \"config.issue\"\nissue = \"network\"\nhost = \"host-1\"\nwhy = \"network\"",
        "event = \"fault\"\ndo = \"host.power_off\"\nhost = \"host-1\"",
        "between = [\"1m\", \"1h\"]\nevent = \"vm.started\"",
    ] {
        accepted(&format!("[[expect]]\n{expect}"));
    }
    for reason in [
        "user",
        "guest",
        "crash",
        "isolation",
        "vmcp",
        "lock_lost",
        "host",
    ] {
        accepted(&format!(
            "[[expect]]\nnever = \"vm.stopped\"\nreason = \"{reason}\""
        ));
    }
}

#[test]
fn an_expectation_can_ask_for_what_an_event_rests_on() {
    let run = |why: &str| {
        let text = with(&format!(
            "[[expect]]\nevent = \"host.state\"\nto = \"dead\"\nwhy = \"{why}\""
        ));
        let result = crate::run(
            &parse("x.toml", &text).expect("sound"),
            &crate::Options::default(),
        );
        (result.pass(), crate::json_lines(&result).join("\n"))
    };
    let (pass, lines) = run("heartbeat");
    assert!(pass, "{lines}");
    assert!(!run("because I say so").0);
}
