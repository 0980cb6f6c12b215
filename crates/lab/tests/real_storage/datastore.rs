//! The operations of `mainstay-datastore` on two mounts of one storage.

use super::kit::{Host, Lab, skipped};
use mainstay_core::config::{ClusterConfig, DatastoreSpec, HostSpec, Settings, VmSpec};
use mainstay_core::id::{DatastoreId, Generation, HostId, VmId};
use mainstay_core::io::{IoFault, StorageOutcome, StorageRequest, StorageValue};
use mainstay_core::wire::{PAGE_BYTES, RecordKey};
use mainstay_datastore::FileDatastore;
use mainstay_lab::storage::Fault;
use nix::errno::Errno;
use std::fs;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const CLUSTER: u64 = 0xabc;

fn host_id(name: &str) -> HostId {
    HostId::new(name).unwrap()
}

fn ds() -> DatastoreId {
    DatastoreId::new("ds-1").unwrap()
}

fn lock(generation: u64) -> RecordKey {
    RecordKey::VmLock(VmId::new("vm-1").unwrap(), Generation(generation))
}

fn config() -> ClusterConfig {
    let store = DatastoreSpec {
        id: ds(),
        kind: Default::default(),
        fence: Default::default(),
        server: None,
    };
    let host = |name| HostSpec {
        id: host_id(name),
        cpu_mhz: 1,
        memory_mb: 1,
        datastores: [ds()].into(),
        maintenance: false,
        networks: Default::default(),
    };
    let vm = VmSpec {
        id: VmId::new("vm-1").unwrap(),
        datastore: ds(),
        cpu_mhz: 1,
        memory_mb: 1,
        restart_priority: Default::default(),
        isolation_response: None,
        depends_on: vec![],
        guest_agent: true,
    };
    let hosts = vec![host("host-1"), host("host-2")];
    ClusterConfig::new(
        CLUSTER,
        Settings::default(),
        hosts,
        vec![store],
        vec![vm],
        vec![],
    )
    .unwrap()
}

fn opened(host: &Host, name: &str) -> Arc<FileDatastore> {
    let at = host.at.clone();
    Arc::new(
        host.run(|| FileDatastore::open(&at, CLUSTER, &ds(), &host_id(name)))
            .unwrap(),
    )
}

fn perform(host: &Host, datastore: &FileDatastore, request: StorageRequest) -> StorageOutcome {
    host.run(|| datastore.perform(&request))
}

fn done() -> StorageOutcome {
    StorageOutcome::Ok(StorageValue::Done)
}

struct Two {
    _lab: Lab,
    hosts: [Host; 2],
    stores: [Arc<FileDatastore>; 2],
}

fn two() -> Two {
    let lab = Lab::new();
    let hosts = [lab.host("host-1"), lab.host("host-2")];
    let at = hosts[0].at.clone();
    hosts[0]
        .run(|| FileDatastore::create(&at, &config(), &ds(), &host_id("host-1")))
        .unwrap();
    let stores = [opened(&hosts[0], "host-1"), opened(&hosts[1], "host-2")];
    Two {
        _lab: lab,
        hosts,
        stores,
    }
}

#[test]
fn what_one_host_writes_the_other_reads_at_once() {
    if skipped() {
        return;
    }
    let t = two();
    let key = RecordKey::Heartbeat(host_id("host-1"));
    let path = t.stores[1].dir().to_owned();
    let path = path.join(key.file_name());
    let mut last = None;
    for n in 1..=50u8 {
        let bytes = vec![n; 512];
        let renew = StorageRequest::Renew(key.clone(), bytes.clone());
        assert_eq!(perform(&t.hosts[0], &t.stores[0], renew), done());
        let read = perform(&t.hosts[1], &t.stores[1], StorageRequest::Read(key.clone()));
        match read {
            StorageOutcome::Ok(StorageValue::Bytes(found)) => assert_eq!(found[..512], bytes),
            other => panic!("{other:?}"),
        }
        let changed = t.hosts[1].run(|| fs::metadata(&path).unwrap().modified().unwrap());
        assert!(last.is_none_or(|last| last <= changed));
        last = Some(changed);
    }
}

#[test]
fn of_two_hosts_exactly_one_wins_each_link() {
    if skipped() {
        return;
    }
    let t = two();
    for generation in 1..=20 {
        let start = Arc::new(Barrier::new(2));
        let tries: Vec<_> = (0..2usize)
            .map(|n| {
                let (start, store) = (start.clone(), t.stores[n].clone());
                let bytes = vec![u8::try_from(n).unwrap(); 64];
                t.hosts[n].start(move || {
                    start.wait();
                    store.perform(&StorageRequest::Link(lock(generation), bytes))
                })
            })
            .collect();
        let outcomes: Vec<_> = tries.into_iter().map(|t| t.join().unwrap()).collect();
        let won = outcomes.iter().position(|o| *o == done()).unwrap();
        assert_eq!(outcomes[1 - won], StorageOutcome::Ok(StorageValue::Exists));
        for n in 0..2 {
            let read = StorageRequest::Read(lock(generation));
            match perform(&t.hosts[n], &t.stores[n], read) {
                StorageOutcome::Ok(StorageValue::Bytes(found)) => {
                    assert_eq!(usize::from(found[0]), won);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn lists_pages_and_removals_are_seen_by_the_other_host() {
    if skipped() {
        return;
    }
    let t = two();
    let list = |n: usize| match perform(&t.hosts[n], &t.stores[n], StorageRequest::ListAllVmLocks) {
        StorageOutcome::Ok(StorageValue::Keys(mut keys)) => {
            keys.sort();
            keys
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(list(1), [lock(0)]);
    let link = StorageRequest::Link(lock(1), vec![1; 64]);
    assert_eq!(perform(&t.hosts[0], &t.stores[0], link), done());
    assert_eq!(list(1), [lock(0), lock(1)]);
    let remove = StorageRequest::Remove(lock(0));
    assert_eq!(perform(&t.hosts[1], &t.stores[1], remove), done());
    assert_eq!(list(0), [lock(1)]);
    let put = StorageRequest::Put(lock(1), vec![2; 3 * PAGE_BYTES]);
    assert_eq!(perform(&t.hosts[1], &t.stores[1], put), done());
    let pages = vec![(0, vec![3; PAGE_BYTES]), (2, vec![4; PAGE_BYTES])];
    let put = StorageRequest::PutPages(lock(1), pages);
    assert_eq!(perform(&t.hosts[0], &t.stores[0], put), done());
    match perform(&t.hosts[1], &t.stores[1], StorageRequest::Read(lock(1))) {
        StorageOutcome::Ok(StorageValue::Bytes(found)) => {
            let firsts: Vec<u8> = found.chunks(PAGE_BYTES).map(|page| page[0]).collect();
            assert_eq!(firsts, [3, 2, 4]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_agents_probe_lock_is_seen_across_mounts() {
    if skipped() {
        return;
    }
    let t = two();
    let ask = StorageRequest::ProbeLock(host_id("host-1"));
    let held = StorageOutcome::Ok(StorageValue::Held(true));
    assert_eq!(perform(&t.hosts[1], &t.stores[1], ask), held);
}

#[test]
fn a_lost_acknowledgement_and_a_lost_device_are_told_apart() {
    if skipped() {
        return;
    }
    let t = two();
    t.hosts[0].mount().set(Some(Fault::Gone(Errno::ENXIO)));
    let renew =
        |byte: u8| StorageRequest::Renew(RecordKey::Heartbeat(host_id("host-1")), vec![byte; 512]);
    let gone = perform(&t.hosts[0], &t.stores[0], renew(1));
    assert!(matches!(gone, StorageOutcome::NotDone(_)), "{gone:?}");
    assert_ne!(gone, StorageOutcome::NotDone(IoFault::Foreign));
    t.hosts[0].mount().set(Some(Fault::LoseAcks));
    let store = t.stores[0].clone();
    let request = renew(2);
    let lost = t.hosts[0].hang(move || store.perform(&request));
    let read = StorageRequest::Read(RecordKey::Heartbeat(host_id("host-1")));
    match perform(&t.hosts[1], &t.stores[1], read) {
        StorageOutcome::Ok(StorageValue::Bytes(found)) => assert_eq!(found[0], 2),
        other => panic!("{other:?}"),
    }
    t.hosts[0]
        .mount()
        .set(Some(Fault::Slow(Duration::from_millis(1))));
    assert_eq!(lost.join().unwrap(), done());
}

#[test]
fn a_slow_path_delays_a_record_by_its_time_and_not_by_each_look_at_names() {
    if skipped() {
        return;
    }
    let t = two();
    let by = Duration::from_millis(700);
    t.hosts[0].mount().set(Some(Fault::Slow(by)));
    let heartbeat = RecordKey::Heartbeat(host_id("host-1"));
    for request in [
        StorageRequest::Renew(heartbeat.clone(), vec![1; 512]),
        StorageRequest::Read(heartbeat.clone()),
        StorageRequest::ListAllVmLocks,
        StorageRequest::Link(lock(2), vec![1; 512]),
        StorageRequest::Put(heartbeat, vec![2; 512]),
    ] {
        let start = Instant::now();
        let outcome = perform(&t.hosts[0], &t.stores[0], request);
        assert!(matches!(outcome, StorageOutcome::Ok(_)), "{outcome:?}");
        let took = start.elapsed();
        assert!((by..2 * by).contains(&took), "{took:?}");
    }
}
