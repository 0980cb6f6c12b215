//! An agent that joins a datastore looks at the locks of all its VMs, a few at a time.

use mainstay_core::config::{ClusterConfig, DatastoreSpec, HostSpec, Profile, Settings, VmSpec};
use mainstay_core::id::{
    BootId, DatastoreId, Generation, Holder, HostId, InstanceId, Nonce, OpId, VmId,
};
use mainstay_core::io::{
    Durable, Input, IoFault, Output, StorageOutcome, StorageRequest, StorageValue,
};
use mainstay_core::time::{Duration, Instant};
use mainstay_core::wire::{Desired, LockRecord, RecordKey, Stamp};
use mainstay_core::{Agent, Identity, provision};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const VMS: usize = 300;
/// As many locks as may be read at once.
const AT_ONCE: usize = 64;

fn config() -> ClusterConfig {
    let (host, home) = (HostId::new("host-1"), DatastoreId::new("ds-1"));
    let (host, home) = (host.expect("id"), home.expect("id"));
    let hosts = vec![HostSpec {
        id: host,
        cpu_mhz: 20_000,
        memory_mb: 65_536,
        datastores: [home.clone()].into(),
        maintenance: false,
        networks: Default::default(),
    }];
    let datastores = vec![DatastoreSpec {
        id: home.clone(),
        kind: Default::default(),
        fence: Default::default(),
        server: None,
    }];
    let vm = |n| VmSpec {
        id: VmId::new(&format!("vm-{n}")).expect("id"),
        datastore: home.clone(),
        cpu_mhz: 100,
        memory_mb: 64,
        restart_priority: Default::default(),
        isolation_response: None,
        depends_on: Vec::new(),
        guest_agent: true,
    };
    let settings = Settings::of(Profile::Balanced);
    ClusterConfig::new(
        1,
        settings,
        hosts,
        datastores,
        (0..VMS).map(vm).collect(),
        Vec::new(),
    )
    .expect("config")
}

/// The VM whose lock a request is about.
fn lock_of(request: &StorageRequest) -> Option<&VmId> {
    match request {
        StorageRequest::ListVmLock(vm) | StorageRequest::Read(RecordKey::VmLock(vm, _)) => Some(vm),
        _ => None,
    }
}

/// That lock, taken by that host.
fn taken(vm: &VmId, settings: &Settings, by: &str) -> (RecordKey, Vec<u8>) {
    let stamp = Stamp {
        writer: HostId::new(by).expect("id"),
        boot: BootId(7),
        instance: InstanceId(7),
        seq: 7,
    };
    let holder = Holder {
        host: stamp.writer.clone(),
        boot: stamp.boot,
    };
    let record = LockRecord {
        generation: Generation(1),
        nonce: Nonce(7),
        holder: Some(holder),
        desired: Desired::On,
        freeze: settings.timing.freeze,
        r#break: settings.timing.r#break,
        given_back: None,
    };
    let key = RecordKey::VmLock(vm.clone(), record.generation);
    (key, record.encode(1, &stamp))
}

#[test]
fn a_scan_reads_few_locks_at_once_and_comes_to_all_even_where_some_cannot_be_read() {
    let config = config();
    let host = HostId::new("host-1").expect("id");
    let vms = config.vms.keys();
    let records = vms.map(|vm| taken(vm, &config.settings, "host-2"));
    let mut records: BTreeMap<RecordKey, Vec<u8>> = records.collect();
    let new = VmId::new("vm-that-nobody-has-started").expect("id");
    let never_held = provision::vm_record(1, &config.settings, &new, &host);
    records.extend([never_held]);
    let identity = Identity {
        host: host.clone(),
        boot: BootId(1),
        instance: InstanceId(1),
        seed: 1,
    };
    let mut now = Instant::from_nanos(1_000_000_000);
    let mut agent =
        Agent::new(identity, config, Durable::default(), Vec::new(), now).expect("agent");
    let mut waiting: VecDeque<(OpId, StorageRequest)> = VecDeque::new();
    let mut read: BTreeSet<VmId> = BTreeSet::new();
    let mut refused = 0;
    let mut most = 0;
    // Long enough for an unreadable lock to be tried again and again.
    while now < Instant::from_nanos(1_000_000_000) + Duration::from_secs(30) {
        while let Some(output) = agent.poll_output() {
            if let Output::Storage(op, _, request) = output {
                waiting.push_back((op, request));
            }
        }
        let locks = waiting.iter().filter_map(|(_, request)| lock_of(request));
        most = most.max(locks.count());
        let Some((op, request)) = waiting.pop_front() else {
            now = agent.poll_timeout().expect("a heartbeat");
            agent.handle(now, Input::Timeout);
            continue;
        };
        let outcome = match &request {
            StorageRequest::ListAllVmLocks => {
                StorageOutcome::Ok(StorageValue::Keys(records.keys().cloned().collect()))
            }
            // Every third lock cannot be read.
            StorageRequest::Read(RecordKey::VmLock(vm, _))
                if vm.as_str().ends_with(['0', '3', '6']) =>
            {
                read.insert(vm.clone());
                refused += 1;
                StorageOutcome::NotDone(IoFault::Other)
            }
            StorageRequest::ListVmLock(vm) => panic!("{vm} is listed once more"),
            StorageRequest::Read(key) => StorageOutcome::Ok(match records.get(key) {
                Some(bytes) => {
                    read.extend(lock_of(&request).cloned());
                    StorageValue::Bytes(bytes.clone())
                }
                None => StorageValue::NotFound,
            }),
            _ => StorageOutcome::Ok(StorageValue::Done),
        };
        now += Duration::from_nanos(1000);
        agent.handle(now, Input::Storage(op, outcome));
    }
    assert!(!read.contains(&new), "nobody has held that one");
    assert_eq!(read.len(), VMS, "locks that were looked at");
    assert_eq!(most, AT_ONCE, "locks that were read at once");
    // Two heartbeats a second, and a place of the scan tries one lock in each.
    assert!(
        (VMS..=2 * 31 * AT_ONCE).contains(&refused),
        "{refused} tries of locks that cannot be read"
    );
}
