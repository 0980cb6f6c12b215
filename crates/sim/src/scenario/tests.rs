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
    let text = with("[[event]]\nat = \"5s\"\ndo = \"app.hang\"\nvm = \"vm-1\"");
    assert_eq!(
        parse("x.toml", &text).expect("known").unplayable(),
        ["app.hang"]
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

#[test]
fn what_can_mean_nothing_is_refused() {
    for (more, wanted) in [
        (
            "[[event]]\nat = \"4m\"\ndo = \"vm.crash\"\nvm = \"vm-1\"",
            "make its duration longer",
        ),
        (
            "[[event]]\nat = \"5s\"\ndo = \"guest.hang\"\nvm = \"vm-nope\"",
            "there is no VM \"vm-nope\"",
        ),
        (
            "[[event]]\nat = \"5s\"\ndo = \"host.degraded\"",
            "needs host",
        ),
        (
            "[[event]]\nat = \"5s\"\ndo = \"network.partition\"\ngroups = [[\"host-1\", \"host-2\"], [\"host-1\"]]",
            "host-1 is in two groups",
        ),
        (
            "[[rule]]\nkind = \"anti_affinity\"\nvms = [\"vm-1\"]\nhosts = [\"host-1\"]",
            "leave hosts out",
        ),
        (
            "[[rule]]\nkind = \"host_affinity\"\nvms = [\"vm-1\"]",
            "hosts = [\"host-1\"]",
        ),
        ("[[rule]]\nkind = \"affinity\"", "vms = [\"vm-1\"]"),
        (
            "[[event]]\nat = \"5s\"\ndo = \"vm.create\"\nvm = \"vm-1\"",
            "is there already; delete it before",
        ),
        (
            "[[event]]\nat = \"5s\"\ndo = \"vm.create\"\nvm = \"vm-3\"\ndepends_on = [\"vm-x\"]",
            "there is no VM \"vm-x\"",
        ),
        (
            "[[datastore]]\nid = \"ds-2\"\n[[event]]\nat = \"5s\"\ndo = \"vm.power_on\"\nvm = \"vm-1\"\ndatastore = \"ds-2\"",
            "vm-1 lies on ds-1",
        ),
    ] {
        refused(more, wanted);
    }
    let weather = SMALL.replacen("[settings]", "weather = 5\n[settings]", 1);
    assert!(error(&weather).contains("written [weather]"));
    accepted("[[rule]]\nkind = \"anti_affinity\"\nvms = [\"vm-1\", \"vm-2\"]\nhosts = []");
    accepted("[[event]]\nat = \"3m\"\ndo = \"network.heal\"");
}

#[test]
fn a_wish_about_a_vm_may_say_where_it_is() {
    for wish in ["vm.power_on", "vm.power_off", "vm.delete"] {
        let event = format!("[[event]]\nat = \"5s\"\ndo = \"{wish}\"\nvm = \"vm-1\"");
        accepted(&format!("{event}\nhost = \"host-1\"\ndatastore = \"ds-1\""));
        refused(&format!("{event}\nhost = \"host-7\""), "there is no host");
    }
}

const AGAIN: &str = r#"
[[event]]
at = "5s"
do = "vm.power_off"
vm = "vm-1"
[[event]]
at = "15s"
do = "vm.delete"
vm = "vm-1"
[[event]]
at = "25s"
do = "vm.create"
vm = "vm-1"
depends_on = ["vm-2"]
restart_priority = "high"
[[expect]]
by = "15s"
vm = "vm-1"
state = "powered_off"
[[expect]]
by = "55s"
vm = "vm-1"
state = "running"
"#;

#[test]
fn a_vm_that_was_deleted_can_be_created_again() {
    let scenario = accepted(AGAIN);
    let again = scenario.created.values().next().expect("one");
    assert_eq!(again.depends_on, [VmId::new("vm-2").expect("an id")]);
    assert_eq!(
        again.restart_priority,
        mainstay_core::config::RestartPriority::High
    );
    assert!(
        scenario.config.vms.contains_key(&again.id),
        "it is there from the start"
    );
    let result = crate::run(&scenario, &crate::Options::default());
    assert!(result.pass(), "{}", crate::people(&scenario, &result, "-"));
    let written = parse("again.toml", &to_toml(&scenario)).expect("written and read");
    assert_eq!(written.created, scenario.created);
    refused(
        &AGAIN.replace("restart_priority = \"high\"", "cpu_mhz = 900"),
        "leave cpu_mhz out",
    );
}
