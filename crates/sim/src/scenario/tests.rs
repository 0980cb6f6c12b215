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
