//! Hosts and VMs join a cluster of real processes by the command line, asked of any agent.

#[allow(
    dead_code,
    reason = "it is the harness of the tests of agents, which use more of it"
)]
#[path = "../../agent/tests/real_processes/harness.rs"]
mod harness;

use harness::{Cluster, free_port, host, kill, networks, vm, wait_for};
use mainstay_core::event::HostState;
use mainstay_core::status::Status;
use std::process::{Command, Output};

/// The command line, asking host `n`'s agent.
fn ask(cluster: &Cluster, n: usize, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.arg("--socket").arg(cluster.socket(n));
    command.args(arguments).output().expect("mainstay runs")
}

fn done(cluster: &Cluster, n: usize, arguments: &[&str]) -> String {
    let output = ask(cluster, n, arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

fn refused(cluster: &Cluster, n: usize, arguments: &[&str]) -> String {
    let output = ask(cluster, n, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).expect("text")
}

/// The arguments with which host 3 joins.
fn joins() -> Vec<String> {
    let mut arguments: Vec<String> = ["add", "host", "host-3"].map(String::from).into();
    for (network, address) in networks(3, free_port()) {
        arguments.extend(["--address".to_owned(), format!("{network}={address}")]);
    }
    arguments.extend(["--cpu-mhz", "4000", "--memory-mb", "4096"].map(String::from));
    arguments
}

/// The arguments with which a VM is made, on the datastore where the harness looks for its counter.
fn is_made(id: &str, n: usize) -> Vec<String> {
    let datastore = format!("ds-{}", 1 + n % 2);
    let image = format!("{id}.raw");
    let all = [
        "add",
        "vm",
        id,
        "--datastore",
        &datastore,
        "--image",
        &image,
        "--size",
        "1M",
        "--cpu-mhz",
        "100",
        "--memory-mb",
        "64",
        "--driver",
        "embedded",
    ];
    all.map(String::from).into()
}

/// Makes a VM. Just after a host was added its formats may not be known yet; then it is asked again.
fn make_vm(cluster: &Cluster, at: usize, id: &str, n: usize) {
    let mut arguments = is_made(id, n);
    wait_for("the VM is made", || {
        let output = ask(cluster, at, &texts(&arguments));
        if output.status.success() {
            return Some(());
        }
        let error = String::from_utf8(output.stderr).expect("text");
        assert!(error.contains("ask again"), "{error}");
        if error.contains("leave --size out") {
            let size = arguments.iter().position(|a| a == "--size").expect("there");
            arguments.drain(size..size + 2);
        }
        None
    });
}

fn texts(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

fn live(status: &Status, n: usize) -> Option<()> {
    let of = status.hosts.iter().find(|h| h.host == host(n))?;
    (of.state == HostState::Live).then_some(())
}

/// Waits until a VM runs on host `on`, which knows that it is protected.
fn runs_protected(cluster: &Cluster, n: usize, on: usize) {
    cluster.wait_status(on, "it runs and is protected", |s| {
        let of = s.vms.iter().find(|v| v.vm == vm(n))?;
        let there = of.host == Some(host(on));
        (there && of.protected && of.state == "running").then_some(())
    });
    let before = cluster.counter(n);
    wait_for("it counts", || (cluster.counter(n) > before).then_some(()));
}

/// Starts a VM on host `on`, which may not have heard of it yet.
fn start_where_it_is_new(cluster: &Cluster, n: usize, on: usize) {
    let name = format!("vm-{n}");
    wait_for("the host knows the VM", || {
        ask(cluster, on, &["power-on", &name])
            .status
            .success()
            .then_some(())
    });
    runs_protected(cluster, n, on);
}

fn restart_agent(cluster: &mut Cluster, n: usize) {
    let pid = cluster.agent(n).pid;
    kill(pid.cast_signed(), "TERM");
    wait_for("the agent stopped", || {
        (!cluster.processes(n).contains(&pid.cast_signed())).then_some(())
    });
    assert_ne!(cluster.start(n).pid, pid);
}

#[test]
fn a_host_and_vms_join_survive_restarts_of_agents_and_leave() {
    let mut cluster = Cluster::with_spare(2, 1, 1);
    for n in 1..=2 {
        cluster.start(n);
    }
    for n in 1..=2 {
        cluster.wait_status(n, "host-2 leads", |s| {
            (s.primary == Some(host(2))).then_some(())
        });
    }

    // A host joins, asked of a secondary, and its agent begins with what is in force.
    let arguments = joins();
    let said = done(&cluster, 1, &texts(&arguments));
    assert!(said.contains("on disk as version 1"), "{said}");
    let file = done(&cluster, 1, &["config", "export"]);
    std::fs::write(cluster.home(3).join("cluster.toml"), file).expect("cluster.toml");
    // A VM that its file does not have yet.
    make_vm(&cluster, 1, "vm-9", 9);
    cluster.start(3);
    cluster.wait_status(2, "host-3 is a live member", |s| live(s, 3));
    cluster.wait_status(3, "host-3 follows", |s| {
        (s.primary == Some(host(2))).then_some(())
    });

    // The VM runs on the host that joined, and comes back when that host is lost.
    start_where_it_is_new(&cluster, 9, 3);
    cluster.power_off(3);
    let at_death = cluster.counter(9);
    wait_for("it goes on elsewhere", || {
        (cluster.counter(9) > at_death).then_some(())
    });

    // What is added while a host is down it has when it is back, by agents that were restarted.
    make_vm(&cluster, 2, "vm-11", 11);
    for n in 1..=2 {
        restart_agent(&mut cluster, n);
    }
    cluster.new_boot(3);
    cluster.start(3);
    // Whoever is elected: each hears the others only where it still knows them.
    wait_for("all follow one primary", || {
        let primary = |n| cluster.client(n).status().ok()?.primary;
        let one = primary(1)?;
        (2..=3)
            .all(|n| primary(n).as_ref() == Some(&one))
            .then_some(())
    });
    for n in 1..=2 {
        let known = cluster.client(n).config().expect("configuration").places;
        assert!(known.hosts.contains_key(&host(3)), "{known:?}");
    }
    start_where_it_is_new(&cluster, 11, 3);

    // It leaves for good.
    cluster.power_off(3);
    let at_death = cluster.counter(11);
    wait_for("it goes on elsewhere", || {
        (cluster.counter(11) > at_death).then_some(())
    });
    wait_for("host-3 is removed", || {
        ask(&cluster, 1, &["remove", "host", "host-3"])
            .status
            .success()
            .then_some(())
    });
    cluster.wait_status(1, "it is gone", |s| {
        (!s.hosts.iter().any(|h| h.host == host(3))).then_some(())
    });
}

#[test]
fn what_cannot_be_added_is_refused_with_the_remedy_and_changes_nothing() {
    let mut cluster = Cluster::with_spare(2, 1, 1);
    for n in 1..=2 {
        cluster.start(n);
    }
    for n in 1..=2 {
        cluster.wait_status(n, "host-2 leads", |s| {
            (s.primary == Some(host(2))).then_some(())
        });
    }
    let made = is_made("vm-9", 9);
    let with = |all: &[String], key: &str, value: &str| -> Vec<String> {
        let mut all = all.to_vec();
        let at = all.iter().position(|a| a == key).expect("there");
        all[at + 1] = value.to_owned();
        all
    };
    let joining = joins();
    let taken = cluster.first_address(2).to_string();
    let mut no_image = with(&made, "--image", "none.raw");
    no_image.truncate(made.iter().position(|a| a == "--size").expect("there"));
    no_image.extend(["--cpu-mhz", "1", "--memory-mb", "1"].map(String::from));
    for (arguments, remedy) in [
        (
            with(&made, "--datastore", "ds-11"),
            "did you mean \"ds-1\"?",
        ),
        (with(&made, "vm", "vm-1"), "there is a VM \"vm-1\" already"),
        (
            with(&made, "--image", "../x.raw"),
            "relative to the datastore's root",
        ),
        (
            with(&with(&made, "--datastore", "ds-2"), "--image", "vm-1.raw"),
            "image of vm-1",
        ),
        (no_image, "made with --size"),
        (
            with(&joining, "host", "host-2"),
            "there is a host \"host-2\" already",
        ),
        (
            with(&joining, "--address", &taken),
            "give each host its own",
        ),
        (with(&joining, "--address", "host-3:7777"), "DNS"),
    ] {
        let error = refused(&cluster, 1, &texts(&arguments));
        assert!(error.contains(remedy), "{arguments:?}: {error}");
        let json = [vec!["--json".to_owned()], arguments].concat();
        let error = refused(&cluster, 1, &texts(&json));
        serde_json::from_str::<serde_json::Value>(&error).expect("JSON");
    }
    for n in 1..=2 {
        assert_eq!(
            cluster.client(n).config().expect("configuration").version,
            0
        );
    }
    assert!(!cluster.path().join("x.raw").exists());
}
