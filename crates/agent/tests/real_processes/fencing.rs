//! Fencing among real agents: a host whose agent hangs, on storage that takes late writes, is switched off by a scripted
//! management controller, and its VM goes on elsewhere.

use crate::harness::{Cluster, host, is_frozen, kill, vm, wait_for};
use mainstay_agent::config::{AgentFile, ClusterFile};
use mainstay_core::config::FenceClass;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// A controller whose power the test takes: told to switch off, it waits until the host is gone.
const CONTROLLER: &str = r#"#!/bin/sh
while IFS='=' read -r key value; do
    case "$key" in
        action) action=$value ;;
        dir) dir=$value ;;
    esac
done
echo "$action" >> "$dir/log"
case "$action" in
    status)
        if [ -e "$dir/gone" ]; then echo "Status: OFF"; exit 2; fi
        echo "Status: ON" ;;
    off)
        : > "$dir/told"
        while [ ! -e "$dir/gone" ]; do sleep 0.05; done
        echo "Success: Powered OFF" ;;
    *) exit 1 ;;
esac
"#;

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).expect("written");
    let mode = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(path, mode).expect("mode");
}

/// All hosts can fence each other, and nothing but death lets a lock be broken. Gives the directory of the controller of
/// host 1.
fn set_up(cluster: &Cluster, hosts: usize) -> PathBuf {
    let root = cluster.path();
    let path = root.join("cluster.toml");
    let mut file = ClusterFile::read(&path).expect("cluster.toml");
    for datastore in &mut file.datastores {
        datastore.fence = FenceClass::Open;
    }
    file.write(&path).expect("cluster.toml");
    let program = root.join("fence_script");
    write(&program, CONTROLLER, 0o755);
    let mut text = String::new();
    for n in 1..=hosts {
        let dir = root.join(format!("controller-{n}"));
        std::fs::create_dir(&dir).expect("directory");
        text += &format!(
            "[[device]]\nhost = \"{}\"\nagent = \"{}\"\noptions = {{ dir = \"{}\" }}\n",
            host(n),
            program.display(),
            dir.display()
        );
    }
    write(&root.join("fence.toml"), &text, 0o600);
    for n in 1..=hosts {
        let mut agent = AgentFile::read(&cluster.config(n)).expect("agent.toml");
        agent.fence_file = Some(root.join("fence.toml"));
        agent.write(&cluster.config(n)).expect("agent.toml");
    }
    root.join("controller-1")
}

#[test]
fn a_host_whose_agent_hangs_is_switched_off_and_its_vm_goes_on_elsewhere() {
    let mut cluster = Cluster::new(3, 1);
    let controller = set_up(&cluster, 3);
    for n in 1..=3 {
        cluster.start(n);
    }
    cluster.wait_status(1, "one primary", |s| {
        (s.primary == Some(host(3))).then_some(())
    });
    cluster.client(1).power_on(&vm(1)).expect("taken");
    cluster.wait_status(3, "protected", |s| {
        s.vms
            .iter()
            .all(|v| v.protected && v.state == "running")
            .then_some(())
    });
    wait_for("it counts", || (cluster.counter(1) > 3).then_some(()));
    let guest = *cluster.guests(1).first().expect("one");

    kill(cluster.agent(1).pid.cast_signed(), "STOP");
    wait_for("its guard freezes it", || is_frozen(guest).then_some(()));
    wait_for("the controller is told", || {
        controller.join("told").exists().then_some(())
    });
    let frozen = cluster.counter(1);
    cluster.power_off(1);
    assert_eq!(
        cluster.counter(1),
        frozen,
        "nothing ran before the host was off"
    );
    std::fs::write(controller.join("gone"), "").expect("written");

    wait_for("it goes on elsewhere", || {
        (cluster.counter(1) > frozen).then_some(())
    });
    let log = std::fs::read_to_string(controller.join("log")).expect("log");
    let told = log.lines().position(|l| l == "off").expect("told");
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines.get(told - 1), Some(&"status"), "{log}");
    assert_eq!(lines.get(told + 1), Some(&"status"), "{log}");
    let events = cluster.client(3).events(None, false).expect("events");
    let text = serde_json::to_string(&events.flatten().collect::<Vec<_>>()).expect("text");
    for kind in ["fence.requested", "fence.confirmed", "lock.broken"] {
        // The host that starts the VM says that it broke the lock: the primary, or host-2.
        let of_two = cluster.client(2).events(None, false).expect("events");
        let of_two = serde_json::to_string(&of_two.flatten().collect::<Vec<_>>()).expect("text");
        assert!(
            text.contains(kind) || of_two.contains(kind),
            "{kind} is missing in {text}"
        );
    }
}
