//! How VMs end by themselves: each end has its reason, and what an older agent reads of it is one that it knows.

use super::cluster::vm;
use super::settled;
use mainstay_core::config::Profile;
use mainstay_core::event::{EventKind, StopReason};
use mainstay_core::io::ExitCause;
use mainstay_core::time::Duration;

#[test]
fn what_ended_a_vm_is_named_and_it_is_restarted() {
    for (cause, named, on_disk) in [
        (ExitCause::Crash, StopReason::Crash, StopReason::Crash),
        (ExitCause::Panicked, StopReason::Panic, StopReason::Crash),
        (ExitCause::OutOfMemory, StopReason::Oom, StopReason::Crash),
    ] {
        let mut c = settled(Profile::Balanced, 3, 3);
        let from = c.now;
        c.end(&vm(1), cause);
        let mut given_back = Vec::new();
        while !c.running.contains_key(&vm(1)) {
            assert!(c.now.since(from) < Duration::from_secs(10), "{cause:?}");
            c.run_for(Duration::from_millis(1));
            let marks = c.locks(&vm(1)).into_iter().filter_map(|l| l.given_back);
            given_back.extend(marks.map(|mark| mark.reason));
        }
        let stopped = c.count(
            from,
            |e| matches!(e, EventKind::VmStopped { reason, .. } if *reason == named),
        );
        assert_eq!(stopped, 1, "{cause:?}");
        // The lock says so for as long as the VM's is free.
        assert!(!given_back.is_empty(), "{cause:?}");
        assert!(given_back.iter().all(|r| *r == on_disk), "{given_back:?}");
    }
}
