//! A protected VM that somebody starts by hand, past Mainstay: refused where `start-guard` is asked.

use crate::harness::{Cluster, vm, wait_for};
use mainstay_agent::start_guard::{Start, ask};

#[test]
fn a_running_vm_may_be_started_on_no_host_and_the_reason_is_said() {
    let mut cluster = Cluster::new(2, 1);
    for n in 1..=2 {
        cluster.start(n);
    }
    cluster.wait_status(1, "a primary", |s| s.primary.clone());
    cluster.client(1).power_on(&vm(1)).expect("taken");
    wait_for("it counts", || (cluster.counter(1) > 3).then_some(()));
    let image = cluster.path().join("ds-2").join("vm-1.raw");
    let drive = format!("file={},format=raw", image.display());
    let words = ["qemu-system-x86_64", "-drive", &drive].map(str::to_owned);
    let start = Start {
        names: vec![],
        words: words.to_vec(),
    };
    for (host, wanted) in [
        (1, "runs on this host already"),
        (2, "host-1 holds the lock"),
    ] {
        let answers = ask(&cluster.config(host), &start).expect("asked");
        let [answer] = answers.as_slice() else {
            panic!("{answers:?}");
        };
        assert_eq!(answer.vm, vm(1));
        let refusal = answer.refused.clone().expect("refused");
        assert!(refusal.why.contains(wanted), "{refusal:?}");
        assert!(!refusal.remedy.is_empty());
    }
    let now = cluster.counter(1);
    wait_for("asking stops nothing", || {
        (cluster.counter(1) > now + 2).then_some(())
    });
}
