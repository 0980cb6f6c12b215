//! Drills on real processes by the command line: foretold, run, called off and refused.

#[allow(
    dead_code,
    reason = "it is the harness of the tests of agents, which use more of it"
)]
#[path = "../../agent/tests/real_processes/harness.rs"]
mod harness;

use harness::{Cluster, host, kill, vm, wait_for};
use mainstay_core::event::HostState;
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Output, Stdio};

fn mainstay(cluster: &Cluster, n: usize, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.arg("--socket").arg(cluster.socket(n));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn ask(cluster: &Cluster, n: usize, arguments: &[&str]) -> Output {
    let output = mainstay(cluster, n, arguments).output();
    output.expect("mainstay runs")
}

fn refused(cluster: &Cluster, n: usize, arguments: &[&str]) -> String {
    let output = ask(cluster, n, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).expect("text")
}

/// The last line of what it printed, as JSON.
fn last(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().last();
    let value = line.and_then(|line| serde_json::from_str(line).ok());
    value.unwrap_or_else(|| panic!("no JSON in {text}{errors}"))
}

/// Three hosts, each with a VM of its number; host 3 is the primary.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new(3, 3);
    // The first to be there leads, however slowly the others start.
    for n in [3, 1, 2] {
        cluster.start(n);
        cluster.wait_status(n, "one primary", |s| {
            (s.primary == Some(host(3))).then_some(())
        });
        cluster.client(n).power_on(&vm(n)).expect("taken");
    }
    wait_until_well(&cluster);
    cluster
}

/// Every host can start every VM, and all VMs run and are protected.
fn wait_until_well(cluster: &Cluster) {
    cluster.wait_status(3, "all protected, all live", |s| {
        let runs = |v: &mainstay_core::status::VmStatus| v.protected && v.state == "running";
        let live = s.hosts.iter().all(|h| h.state == HostState::Live);
        (s.vms.len() == 3 && s.vms.iter().all(runs) && live).then_some(())
    });
    for of in 1..=3 {
        wait_for("nothing is in the way of a drill", || {
            let forecast = cluster.client(1).drill_plan(&host(of)).ok()?;
            (forecast.obstacles.is_empty() && forecast.all_come_back).then_some(())
        });
    }
}

#[test]
fn a_drill_brings_vms_back_elsewhere_and_its_host_comes_back_too() {
    let cluster = cluster();
    // Asked of a secondary, and passed on to the primary.
    let plan = ask(&cluster, 2, &["--json", "drill", "host-1", "--plan"]);
    let plan = last(&plan);
    assert_eq!(plan.get("primary"), Some(&Value::from("host-3")));
    assert_eq!(plan.get("verdict_ms"), Some(&Value::from(6000)));
    let text = ask(&cluster, 2, &["drill", "host-1", "--plan"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for words in [
        "vm-1",
        "6.0 s",
        "This is a forecast",
        "agent unreachable, not dead",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let before = cluster.counter(1);
    let output = ask(
        &cluster,
        2,
        &["--json", "drill", "host-1", "--run", "--yes"],
    );
    let report = last(&output).get("report").cloned().expect("a report");
    assert!(output.status.success(), "{report}");
    assert_eq!(report.get("all_came_back"), Some(&Value::from(true)));
    let row = report.pointer("/vms/0").expect("a VM");
    let at = |key: &str| row.get(key).and_then(Value::as_u64).expect("a time");
    let (frozen, asked, started) = (at("frozen_ms"), at("asked_ms"), at("started_ms"));
    assert!(frozen > 1500 && frozen < asked && asked <= started, "{row}");
    assert!(asked >= 5900, "the lock was broken too early: {row}");
    assert!(report.get("worst_ms").and_then(Value::as_u64) == Some(started));
    wait_for("its counter goes on", || {
        (cluster.counter(1) > before).then_some(())
    });
    assert_eq!(
        cluster.guests(1),
        Vec::<i32>::new(),
        "what was taken is gone at home"
    );
    cluster.wait_status(3, "it is live again", |s| {
        let back = s
            .hosts
            .iter()
            .any(|h| h.host == host(1) && h.state == HostState::Live);
        back.then_some(())
    });
}

#[test]
fn a_drill_of_the_primary_asked_for_at_the_primary_is_reported_when_it_is_back() {
    let cluster = cluster();
    let arguments = [
        "--json", "drill", "host-3", "--run", "--yes", "--time", "15s",
    ];
    let output = ask(&cluster, 3, &arguments);
    let report = last(&output).get("report").cloned().expect("a report");
    assert!(output.status.success(), "{report}");
    assert_eq!(report.get("ended"), Some(&Value::from("its time is up")));
    let elsewhere = report.pointer("/vms/0/host").and_then(Value::as_str);
    assert!(matches!(elsewhere, Some("host-1" | "host-2")), "{report}");
}

#[test]
fn an_interrupted_drill_ends_and_its_vms_go_on_at_home() {
    let cluster = cluster();
    let mut child = mainstay(
        &cluster,
        3,
        &["--json", "drill", "host-2", "--run", "--yes"],
    )
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .expect("mainstay runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let first = lines.next().expect("a line").expect("text");
    assert!(first.contains("\"begun\""), "{first}");
    cluster.wait_status(3, "it is said to be silent on purpose", |s| {
        let drilled = s.hosts.iter().find(|h| h.host == host(2))?;
        drilled.why.contains("a drill").then_some(())
    });
    let busy = refused(
        &cluster,
        1,
        &["drill", "host-1", "--run", "--yes", "--force"],
    );
    assert!(busy.contains("host-2 is in a drill"), "{busy}");
    kill(i32::try_from(child.id()).expect("pid"), "INT");
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let report: Value = serde_json::from_str(rest.last().expect("a report")).expect("JSON");
    assert_eq!(
        report.pointer("/report/interrupted"),
        Some(&Value::from(true))
    );
    assert_eq!(child.wait().expect("status").code(), Some(1));
    let mut error = String::new();
    let stderr = child.stderr.take().expect("piped");
    BufReader::new(stderr)
        .read_to_string(&mut error)
        .expect("text");
    assert!(error.contains("interrupted"), "{error}");
    let (before, on) = (cluster.counter(2), cluster.guests(2).len());
    assert_eq!(on, 1, "it was never taken");
    wait_for("it goes on", || (cluster.counter(2) > before).then_some(()));
}

#[test]
fn drills_are_refused_with_the_remedy() {
    let cluster = cluster();
    let typo = refused(&cluster, 1, &["drill", "host-11", "--plan"]);
    assert!(typo.contains("did you mean \"host-1\"?"), "{typo}");
    for arguments in [
        &["drill", "host-1", "--run"][..],
        &["--json", "drill", "host-1", "--run"],
    ] {
        let asked = refused(&cluster, 1, arguments);
        assert!(
            asked.contains("interrupts 1 VM") && asked.contains("--yes"),
            "{asked}"
        );
    }
    let short = ["drill", "host-1", "--run", "--yes", "--time", "1s"];
    let short = refused(&cluster, 1, &short);
    assert!(short.contains("lasts between"), "{short}");
    for wrong in [
        &["drill", "host-1"][..],
        &["drill", "host-1", "--plan", "--run"],
        &["drill", "host-1", "--plan", "--force"],
        &["drill", "host-1", "--run", "--time", "soon"],
    ] {
        assert_eq!(ask(&cluster, 1, wrong).status.code(), Some(2), "{wrong:?}");
    }
    let entered = ask(&cluster, 1, &["maintenance", "enter", "host-1"]);
    assert!(entered.status.success());
    wait_for("it is refused", || {
        let output = ask(
            &cluster,
            1,
            &["drill", "host-1", "--run", "--yes", "--force"],
        );
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (!output.status.success() && error.contains("maintenance exit host-1")).then_some(())
    });
    let off = ["config", "set", "host_monitoring", "false"];
    assert!(ask(&cluster, 1, &off).status.success());
    let error = refused(
        &cluster,
        2,
        &["drill", "host-2", "--run", "--yes", "--force"],
    );
    assert!(error.contains("config set host_monitoring true"), "{error}");
}
