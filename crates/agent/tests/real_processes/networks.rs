//! Two management networks, one of which goes.

use crate::harness::{Cluster, host, vm, wait_for};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Passes connections on until it is told to close them all.
struct Relay {
    address: SocketAddr,
    open: Arc<Mutex<Option<Vec<TcpStream>>>>,
}

impl Relay {
    fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("relay");
        let address = listener.local_addr().expect("address");
        let open = Arc::new(Mutex::new(Some(Vec::new())));
        let known = Arc::clone(&open);
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Some(all) = &mut *known.lock().expect("lock") else {
                    return;
                };
                let Ok(far) = TcpStream::connect(to) else {
                    continue;
                };
                for (from, into) in [(&near, &far), (&far, &near)] {
                    let clone = |s: &TcpStream| s.try_clone().expect("clone");
                    let (mut from, mut into) = (clone(from), clone(into));
                    std::thread::spawn(move || drop(std::io::copy(&mut from, &mut into)));
                }
                all.extend([near, far]);
            }
        });
        Self { address, open }
    }

    fn is_used(&self) -> bool {
        let open = self.open.lock().expect("lock");
        open.as_ref().is_some_and(|all| !all.is_empty())
    }

    fn close(&self) {
        let closed = self.open.lock().expect("lock").take();
        for stream in closed.into_iter().flatten() {
            drop(stream.shutdown(Shutdown::Both));
        }
        // Ends its listener.
        drop(TcpStream::connect(self.address));
    }
}

#[test]
fn reports_go_on_over_the_second_network_when_the_first_is_gone() {
    let mut cluster = Cluster::new(2, 3);
    let relay = Relay::new(cluster.first_address(2));
    cluster.reach_by(1, 2, relay.address);
    for n in 1..=2 {
        cluster.start(n);
    }
    cluster.wait_status(1, "the other is primary", |s| {
        (s.primary == Some(host(2))).then_some(())
    });
    let protected = |cluster: &Cluster, n| {
        cluster.client(1).power_on(&vm(n)).expect("taken");
        cluster.wait_status(2, "its report comes, and the VM is protected", |s| {
            let found = s.vms.iter().find(|v| v.vm == vm(n))?;
            (found.protected && found.state == "running").then_some(())
        });
    };
    protected(&cluster, 1);
    wait_for("the first network is used", || {
        relay.is_used().then_some(())
    });
    relay.close();
    protected(&cluster, 2);
    let status = cluster.client(2).status().expect("status");
    let redundant = |issue: &mainstay_core::health::Issue| {
        issue.text.contains("no redundant management network")
    };
    assert!(!status.issues.iter().any(redundant), "{:?}", status.issues);
    let events: Vec<_> = cluster
        .client(2)
        .events(None, false)
        .expect("events")
        .flatten()
        .collect();
    let text = serde_json::to_string(&events).expect("text");
    for bad in ["dead", "unreachable"] {
        assert!(!text.contains(&format!("\"to\":\"{bad}\"")), "{text}");
    }
}
