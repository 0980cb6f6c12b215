//! Whose data it is, and whose name: other clusters, other datastores, cloned machines.

use super::hangs::hanging;
use super::kit::{BREAK, CLUSTER, DONE, Host, KINDS, Kit, config, ds, host, lock, vm};
use super::swaps::record;
use mainstay_core::config::ClusterConfig;
use mainstay_core::id::{DatastoreId, Generation};
use mainstay_core::io::{IoFault, StorageOutcome, StorageRequest};
use mainstay_core::wire::RecordKey;
use std::time::{Duration, Instant};

const FOREIGN: StorageOutcome = StorageOutcome::NotDone(IoFault::Foreign);

fn other_cluster(kit: &Kit) -> ClusterConfig {
    ClusterConfig {
        cluster_id: 0xdef,
        ..config(kit.kind)
    }
}

fn refusal(kit: &Kit, id: &DatastoreId) -> String {
    let Err(error) = kit.try_open(1, 101, CLUSTER, id) else {
        panic!("{:?}: it was opened", kit.kind);
    };
    error.to_string()
}

#[test]
fn foreign_data_is_refused_with_the_remedy() {
    for kind in KINDS {
        let kit = Kit::new(kind);
        let said = refusal(&kit, &DatastoreId::new("ds-2").expect("id"));
        assert!(
            said.contains("is datastore \"ds-1\", not \"ds-2\""),
            "{said}"
        );
        assert!(said.contains("exchange the paths in agent.toml"), "{said}");
        kit.wipe();
        let said = refusal(&kit, &ds());
        assert!(said.contains("mainstay datastore add"), "{said}");
        kit.make(&other_cluster(&kit));
        let said = refusal(&kit, &ds());
        let belongs = "belongs to cluster 0000000000000def, this agent to 0000000000000abc";
        assert!(said.contains(belongs), "{said}");
        assert!(said.contains("correct its path in agent.toml"), "{said}");
    }
}

#[test]
fn data_that_becomes_foreign_is_neither_read_nor_written_and_the_remedy_is_said() {
    for kind in KINDS {
        let kit = Kit::new(kind);
        let a = kit.host(1);
        assert_eq!(a.store.weakness(), None);
        kit.wipe();
        kit.make(&other_cluster(&kit));
        let before = kit.raw();
        for request in [
            a.beat(1),
            StorageRequest::Link(lock(1), vec![1; 180]),
            StorageRequest::Put(RecordKey::Poweron(host(1)), vec![1; 50]),
            StorageRequest::Read(lock(0)),
            StorageRequest::ListAllVmLocks,
        ] {
            assert_eq!(a.perform(request.clone()), FOREIGN, "{kind:?} {request:?}");
        }
        assert_eq!(kit.raw(), before, "{kind:?}: nothing was changed");
        let said = a.store.weakness().expect("it is said");
        assert!(
            said.contains("not the") && said.contains("that was opened; "),
            "{said}"
        );
    }
}

#[test]
fn an_acknowledgement_of_another_datastore_is_none() {
    for kind in KINDS {
        for request in [0, 1] {
            for n in 0..60 {
                let kit = Kit::new(kind);
                let a = kit.host(1);
                let request = match request {
                    0 => a.beat(1),
                    _ => StorageRequest::Link(lock(1), vec![1; 180]),
                };
                let (outcome, hung) = hanging(&a, n, &request, || {
                    kit.wipe();
                    kit.make(&other_cluster(&kit));
                });
                if !hung {
                    assert_eq!(outcome, DONE);
                    assert!(n > 2);
                    break;
                }
                let what = format!("{kind:?}, replaced at operation {n} of {request:?}");
                assert!(
                    !matches!(outcome, StorageOutcome::Ok(_)),
                    "{what}: {outcome:?}"
                );
            }
        }
    }
}

/// Takes the lock in the name of this host and boot.
fn take(host: &Host) -> StorageRequest {
    let record = record(1, u64::from(host.n), Some(host));
    StorageRequest::Link(lock(1), record.encode(CLUSTER, &host.stamp(1)))
}

#[test]
fn a_cloned_host_writes_nothing_in_that_name_while_the_other_lives() {
    for kind in KINDS {
        let kit = Kit::new(kind);
        let (one, clone) = (kit.host(1), kit.booted(1, 999));
        let mut beat = 1;
        let mut lives = || {
            beat += 1;
            assert_eq!(one.perform(one.beat(beat)), DONE, "{kind:?}");
        };
        lives();
        assert_eq!(clone.perform(take(&clone)), FOREIGN, "{kind:?}: before all");
        for n in 0..4 {
            lives();
            assert_eq!(clone.perform(clone.beat(n)), FOREIGN, "{kind:?}");
            assert_eq!(clone.perform(take(&clone)), FOREIGN, "{kind:?}");
            let list = StorageRequest::Put(RecordKey::Poweron(host(1)), vec![1; 50]);
            assert_eq!(
                clone.perform(list),
                FOREIGN,
                "{kind:?}: nor does it say what is on"
            );
        }
        let said = clone.store.weakness().expect("it is said");
        assert!(said.contains("writes heartbeats as host-1"), "{said}");
        assert!(said.contains("another host id"), "{said}");
        assert_eq!(one.store.weakness(), None, "{kind:?}");
        assert_eq!(one.perform(take(&one)), DONE, "{kind:?}");
        // Other hosts are not touched.
        let two = kit.host(2);
        let other = StorageRequest::Link(RecordKey::VmLock(vm(2), Generation(1)), vec![1; 180]);
        assert_eq!(two.perform(other), DONE, "{kind:?}");
    }
}

#[test]
fn the_next_boot_of_a_host_goes_on_after_its_break_and_the_one_before_comes_too_late() {
    for kind in KINDS {
        let kit = Kit::new(kind);
        let (before, next) = (kit.host(1), kit.booted(1, 999));
        assert_eq!(before.perform(before.beat(1)), DONE);
        let began = Instant::now();
        let until = began + Duration::from_secs(30);
        while next.perform(next.beat(1)) != DONE {
            assert!(Instant::now() < until, "{kind:?}: it is taken over");
        }
        assert!(began.elapsed() > BREAK, "{kind:?}: not before its break");
        assert_eq!(next.perform(take(&next)), DONE, "{kind:?}");
        assert_eq!(next.store.weakness(), None, "{kind:?}");
        // A machine that was stopped for so long finds another in its place.
        assert_eq!(before.perform(before.beat(2)), FOREIGN, "{kind:?}");
        let second = record(2, 7, Some(&before)).encode(CLUSTER, &before.stamp(2));
        let second = StorageRequest::Link(lock(2), second);
        assert_eq!(before.perform(second), FOREIGN, "{kind:?}");
    }
}
