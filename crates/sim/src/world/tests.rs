//! Whole runs in small.

use super::*;
use crate::scenario::parse;

const HEAD: &str = r#"
name = "test"
duration = "60s"
[[datastore]]
id = "ds-1"
[[host]]
count = 3
[[vm]]
id = "vm-1"
host = "host-1"
"#;

fn play(tail: &str) -> RunResult {
    let scenario = parse("test.toml", &format!("{HEAD}{tail}")).expect("sound");
    run(&scenario, &Options::default())
}

fn holds(result: &RunResult) {
    assert!(
        result.pass(),
        "{:?} {:?} {:?}",
        result.error,
        result.violations,
        result.verdicts
    );
}

#[test]
fn a_quiet_cluster_stays_as_it_is() {
    let result = play(
        "[[expect]]\nby = \"60s\"\nvm = \"vm-1\"\nrunning_on = [\"host-1\"]\n[[expect]]\nnever = \"vm.frozen\"\n",
    );
    holds(&result);
    assert_eq!(
        result.trace.iter().filter(|e| e.at >= result.zero).count(),
        0,
        "nothing to report"
    );
}

#[test]
fn a_vm_of_a_dead_host_runs_elsewhere() {
    let fault = "[[event]]\nat = \"10s\"\ndo = \"host.power_off\"\nhost = \"host-1\"\n";
    let expect = "[[expect]]\nby = \"20s\"\nvm = \"vm-1\"\nrunning_on = [\"host-2\", \"host-3\"]\n";
    holds(&play(&format!("{fault}{expect}")));
}

#[test]
fn an_expectation_that_fails_is_said_to_fail() {
    let expect = "[[expect]]\nby = \"20s\"\nvm = \"vm-1\"\nstate = \"powered_off\"\n";
    let result = play(expect);
    assert!(!result.pass());
    assert_eq!(result.verdicts[0].at, None);
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let draw = |seed| {
        crate::campaign::draw(
            seed,
            &crate::campaign::Limits {
                minutes: Some(2),
                ..Default::default()
            },
        )
    };
    let options = Options::default();
    let lines = |seed| crate::json_lines(&run(&draw(seed), &options));
    assert_eq!(lines(5), lines(5));
    assert_ne!(lines(5), lines(6));
}

#[test]
fn a_hang_for_all_freezes_and_thaws_and_restarts_nothing() {
    let faults = "[[event]]\nat = \"10s\"\ndo = \"datastore.apd\"\ndatastore = \"ds-1\"\n\
                  [[event]]\nat = \"25s\"\ndo = \"datastore.heal\"\n";
    let expects = "[[expect]]\nby = \"20s\"\nvm = \"vm-1\"\nstate = \"frozen\"\n\
                   [[expect]]\nby = \"40s\"\nvm = \"vm-1\"\nrunning_on = [\"host-1\"]\n\
                   [[expect]]\nnever = \"vm.restart.requested\"\n";
    holds(&play(&format!("{faults}{expects}")));
}

/// Events at one second after another, for each of the three hosts.
fn for_each_host(from: u64, event: &str) -> String {
    let at = |n: u64| {
        format!(
            "[[event]]\nat = \"{}s\"\n{event}\nhost = \"host-{n}\"\n",
            from + n
        )
    };
    (1..=3).map(at).collect()
}

#[test]
fn a_datastore_that_hangs_for_all_is_healed_host_by_host() {
    let hang = "[[event]]\nat = \"10s\"\ndo = \"datastore.apd\"\ndatastore = \"ds-1\"\n";
    let heal = for_each_host(20, "do = \"datastore.heal\"\ndatastore = \"ds-1\"");
    let expects = "[[expect]]\nby = \"20s\"\nvm = \"vm-1\"\nstate = \"frozen\"\n\
                   [[expect]]\nby = \"40s\"\nvm = \"vm-1\"\nstate = \"running\"\n";
    holds(&play(&format!("{hang}{heal}{expects}")));
}

#[test]
fn loss_and_delay_for_all_are_healed_host_by_host() {
    for fault in [
        "do = \"network.loss\"\npercent = 100",
        "do = \"network.delay\"\ntime = \"30s\"",
    ] {
        let fault = format!("[[event]]\nat = \"10s\"\n{fault}\n");
        let heal = for_each_host(20, "do = \"network.heal\"");
        let expects = "[[expect]]\nbetween = [\"10s\", \"20s\"]\nevent = \"primary.elected\"\n\
                       [[expect]]\nbetween = [\"23s\", \"40s\"]\nevent = \"host.state\"\nto = \"live\"\n\
                       [[expect]]\nbetween = [\"40s\", \"60s\"]\nnever = \"host.state\"\n";
        holds(&play(&format!("{fault}{heal}{expects}")));
    }
}

fn set(at: &str, key: &str, value: &str) -> String {
    format!("[[event]]\nat = \"{at}\"\ndo = \"config.set\"\nkey = \"{key}\"\nvalue = {value}\n")
}

fn play_for(duration: &str, tail: &str) -> RunResult {
    let head = HEAD.replace("duration = \"60s\"", &format!("duration = \"{duration}\""));
    let scenario = parse("test.toml", &format!("{head}{tail}")).expect("sound");
    run(&scenario, &Options::default())
}

#[test]
fn a_guard_enforces_the_limit_that_was_set_while_it_runs() {
    let limit = set("5s", "frozen_limit", "\"20s\"");
    let fault = "[[event]]\nat = \"10s\"\ndo = \"datastore.read_only\"\ndatastore = \"ds-1\"\n\
                 [[event]]\nat = \"50s\"\ndo = \"datastore.heal\"\n";
    let frozen = "[[expect]]\nby = \"30s\"\nvm = \"vm-1\"\nstate = \"frozen\"\n";
    let killed = "[[expect]]\nbetween = [\"32s\", \"38s\"]\nevent = \"vm.stopped\"\nreason = \"frozen_limit\"\n\
                  [[expect]]\nnever = \"vm.thawed\"\n";
    holds(&play(&format!("{limit}{fault}{frozen}{killed}")));
    // Also one that starts afterwards; and none does when the setting was taken back.
    let guard = "[[event]]\nat = \"8s\"\ndo = \"guard.kill\"\nhost = \"host-1\"\n";
    holds(&play(&format!("{limit}{guard}{fault}{frozen}{killed}")));
    let off = set("8s", "frozen_limit", "\"off\"");
    let thawed = "[[expect]]\nbetween = [\"50s\", \"55s\"]\nevent = \"vm.thawed\"\n\
                  [[expect]]\nnever = \"vm.stopped\"\n";
    holds(&play(&format!("{limit}{off}{fault}{frozen}{thawed}")));
}

#[test]
fn the_judge_goes_by_the_settings_that_the_agents_have() {
    let more = set("1s", "max_restart_attempts", "9");
    let fails = "[[event]]\nat = \"20s\"\ndo = \"start.fail\"\nvm = \"vm-1\"\ntimes = 100\n\
                 [[event]]\nat = \"21s\"\ndo = \"vm.crash\"\nvm = \"vm-1\"\n";
    let expect = "[[expect]]\nevent = \"vm.restart.abandoned\"\nvm = \"vm-1\"\nattempt = 10\n";
    holds(&play_for("2h", &format!("{more}{fails}{expect}")));
    let fast = set("1s", "profile", "\"fast\"");
    let cut = "[[event]]\nat = \"30s\"\ndo = \"network.cut\"\nhost = \"host-1\"\n\
               [[event]]\nat = \"60s\"\ndo = \"network.cut\"\nhost = \"host-3\"\n";
    let expect = "[[expect]]\nevent = \"isolation.declared\"\nhost = \"host-1\"\n\
                  [[expect]]\nevent = \"isolation.declared\"\nhost = \"host-3\"\n";
    let classic = "profile = \"classic\"\n";
    let tail = format!("{fast}{cut}{expect}");
    let head = HEAD.replace("duration = \"60s\"", "duration = \"100s\"");
    let scenario = parse("test.toml", &format!("{classic}{head}{tail}")).expect("sound");
    holds(&run(&scenario, &Options::default()));
}

#[test]
fn a_host_that_boots_answers_no_ping_before_its_network_is_up() {
    let cycle = "[[event]]\nat = \"10s\"\ndo = \"host.power_off\"\nhost = \"host-1\"\n\
                 [[event]]\nat = \"12s\"\ndo = \"host.power_on\"\nhost = \"host-1\"\n";
    let expects = "[[expect]]\nbetween = [\"15s\", \"18s\"]\nevent = \"host.state\"\nhost = \"host-1\"\nto = \"dead\"\n\
                   [[expect]]\nby = \"20s\"\nvm = \"vm-1\"\nrunning_on = [\"host-2\", \"host-3\"]\n";
    let result = play(&format!("{cycle}{expects}"));
    holds(&result);
}

#[test]
fn a_ping_that_takes_longer_than_the_pinger_waits_is_no_answer() {
    let alone = "[[event]]\nat = \"5s\"\ndo = \"network.delay\"\nhost = \"host-1\"\ntime = \"20m\"\n\
                 [[event]]\nat = \"5s\"\ndo = \"datastore.apd\"\ndatastore = \"ds-1\"\nhost = \"host-1\"\n";
    let dead = "[[expect]]\nevent = \"host.state\"\nhost = \"host-1\"\nto = \"dead\"\n\
                [[expect]]\nnever = \"host.state\"\nhost = \"host-1\"\nto = \"agent_unreachable\"\n";
    holds(&play(&format!("{alone}{dead}")));
    let short = alone.replace("20m", "100ms");
    let live = "[[expect]]\nnever = \"host.state\"\nhost = \"host-1\"\nto = \"dead\"\n";
    holds(&play(&format!("{short}{live}")));
}
