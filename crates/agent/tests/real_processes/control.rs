//! The control socket and the rules of who may be a host's agent.

use crate::harness::{Cluster, host, kill, vm, wait_for};
use mainstay_agent::control::client::{Client, ClientError};
use mainstay_core::id::VmId;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn send(cluster: &Cluster, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(cluster.socket(1)).expect("socket");
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("timeout");
    // The server may refuse before all was sent.
    let _ = stream.write_all(bytes);
    let mut line = String::new();
    let _ = BufReader::new(stream).read_line(&mut line);
    line
}

#[test]
fn bad_requests_get_an_error_line_and_good_ones_an_answer() {
    let mut cluster = Cluster::new(1, 1);
    assert!(matches!(
        Client::connect(&cluster.socket(1)),
        Err(ClientError::NoSocket(_))
    ));
    let pong = cluster.start(1);
    assert_eq!(pong.host, host(1));
    for bad in [
        "\n",
        "nonsense\n",
        "{\"cmd\":\"dance\"}\n",
        "{\"cmd\":\"power_on\"}\n",
        "[]\n",
    ] {
        let answer = send(&cluster, bad.as_bytes());
        assert!(answer.starts_with("{\"error\":\""), "{bad:?}: {answer}");
    }
    let answer = send(&cluster, &vec![b'x'; 200_000]);
    assert!(
        answer.is_empty() || answer.contains("longer than 64 KiB"),
        "{answer}"
    );
    let mut vanished = UnixStream::connect(cluster.socket(1)).expect("socket");
    vanished.write_all(b"{\"cmd\":\"ev").expect("written");
    drop(vanished);
    let client = cluster.client(1);
    let refused = client
        .explain_vm(&VmId::new("vm-11").expect("id"))
        .expect_err("no such VM");
    assert!(
        refused.to_string().contains("did you mean \"vm-1\"?"),
        "{refused}"
    );
    client.explain_vm(&vm(1)).expect("explanation");
    client.explain_host(&host(1)).expect("explanation");
    let status = client.status().expect("status");
    assert_eq!(status.host, host(1));
    wait_for("issues", || {
        let issues = client.status().ok()?.issues;
        issues
            .iter()
            .any(|i| i.text.contains("probe = udp"))
            .then_some(())
    });
    let events: Vec<_> = client.events(Some(1), false).expect("events").collect();
    assert!(events.len() <= 1, "{events:?}");
}

#[test]
fn a_second_agent_is_refused_and_a_stopped_one_is_not_started_again() {
    let mut cluster = Cluster::new(1, 1);
    let first = cluster.start(1);
    let second = cluster.command(1, "agent").status().expect("ran");
    assert!(!second.success());
    let errors =
        std::fs::read_to_string(cluster.home(1).join("agent.first.stderr")).expect("errors");
    assert!(
        errors.contains("agent runs already") && errors.contains(&first.pid.to_string()),
        "{errors}"
    );
    assert_eq!(cluster.agent(1).pid, first.pid, "the first one goes on");
    let second = cluster.command(1, "guard").status().expect("ran");
    assert!(!second.success());
    kill(first.pid.cast_signed(), "TERM");
    wait_for("it stopped", || {
        Client::connect(&cluster.socket(1)).is_err().then_some(())
    });
    let (_sender, pause) = std::sync::mpsc::channel::<()>();
    let _ = pause.recv_timeout(Duration::from_millis(1500));
    assert!(
        Client::connect(&cluster.socket(1)).is_err(),
        "the guard leaves a planned stop alone"
    );
}
