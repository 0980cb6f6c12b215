use super::*;
use crate::{AddError, CreateError, Worker};
use mainstay_core::config::{ClusterConfig, DatastoreSpec, HostSpec, Settings, VmSpec};
use mainstay_core::id::{Generation, OpId, VmId};
use mainstay_core::wire::{HeartbeatRecord, LockRecord};
use std::sync::{Arc, Barrier};
use std::time::Duration;

const CLUSTER: u64 = 0xabc;

fn host() -> HostId {
    HostId::new("host-1").expect("id")
}

fn ds() -> DatastoreId {
    DatastoreId::new("ds-1").expect("id")
}

fn vm() -> VmId {
    VmId::new("vm-1").expect("id")
}

fn config(cluster: u64) -> ClusterConfig {
    let spec = |id: DatastoreId| DatastoreSpec {
        id,
        kind: Default::default(),
        fence: Default::default(),
        server: None,
    };
    let host = HostSpec {
        id: host(),
        cpu_mhz: 1,
        memory_mb: 1,
        datastores: [ds()].into(),
        maintenance: false,
        networks: Default::default(),
    };
    let vm = VmSpec {
        id: vm(),
        datastore: ds(),
        cpu_mhz: 1,
        memory_mb: 1,
        restart_priority: Default::default(),
        isolation_response: None,
        depends_on: vec![],
        guest_agent: true,
    };
    let stores = vec![spec(ds()), spec(DatastoreId::new("ds-2").expect("id"))];
    ClusterConfig::new(
        cluster,
        Settings::default(),
        vec![host],
        stores,
        vec![vm],
        vec![],
    )
    .expect("sound")
}

fn made() -> (tempfile::TempDir, FileDatastore) {
    let dir = tempfile::tempdir().expect("directory");
    FileDatastore::create(dir.path(), &config(CLUSTER), &ds(), &host()).expect("added");
    let datastore = FileDatastore::open(dir.path(), CLUSTER, &ds(), &host()).expect("open");
    (dir, datastore)
}

fn done() -> StorageOutcome {
    StorageOutcome::Ok(StorageValue::Done)
}

fn heartbeat() -> RecordKey {
    RecordKey::Heartbeat(host())
}

fn lock(generation: u64) -> RecordKey {
    RecordKey::VmLock(vm(), Generation(generation))
}

fn read(datastore: &FileDatastore, key: RecordKey) -> Vec<u8> {
    match datastore.perform(&StorageRequest::Read(key)) {
        StorageOutcome::Ok(StorageValue::Bytes(bytes)) => bytes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_added_datastore_has_all_records_and_is_closed_to_others() {
    use std::os::unix::fs::PermissionsExt as _;
    let (dir, datastore) = made();
    assert!(HeartbeatRecord::decode(CLUSTER, &read(&datastore, heartbeat())).is_ok());
    assert!(LockRecord::decode(CLUSTER, &read(&datastore, lock(0))).is_ok());
    assert!(
        LockRecord::decode(
            CLUSTER,
            &read(&datastore, RecordKey::OwnerLock(Generation(0)))
        )
        .is_ok()
    );
    let mode = std::fs::metadata(datastore.dir())
        .expect("there")
        .permissions()
        .mode()
        & 0o777;
    assert_eq!(mode, 0o700);
    let again = FileDatastore::create(dir.path(), &config(CLUSTER), &ds(), &host());
    assert!(matches!(again, Err(CreateError::Exists(_))), "{again:?}");
}

#[test]
fn what_is_new_is_added_and_nothing_else_is_touched() {
    let (dir, datastore) = made();
    let bytes = vec![7; 8];
    assert_eq!(
        datastore.perform(&StorageRequest::Link(lock(1), bytes.clone())),
        done()
    );
    assert_eq!(
        datastore.perform(&StorageRequest::Remove(lock(0))),
        done(),
        "as a clean-up does"
    );
    let mut cluster = config(CLUSTER);
    let (new_host, new_vm) = (
        HostId::new("host-2").expect("id"),
        VmId::new("vm-2").expect("id"),
    );
    let mut spec = cluster.hosts.values().next().cloned().expect("a host");
    spec.id = new_host.clone();
    cluster.hosts.insert(new_host.clone(), spec);
    let mut spec = cluster.vms.values().next().cloned().expect("a VM");
    spec.id = new_vm.clone();
    cluster.vms.insert(new_vm.clone(), spec);
    let made = FileDatastore::add(dir.path(), &cluster, &ds(), &host()).expect("added");
    let expected = vec![
        RecordKey::Heartbeat(new_host),
        RecordKey::VmLock(new_vm, Generation(0)),
    ];
    assert_eq!(made, Some(expected), "the moved lock of vm-1 is known");
    assert_eq!(read(&datastore, lock(1)), bytes);
    let again = FileDatastore::add(dir.path(), &cluster, &ds(), &host()).expect("sound");
    assert_eq!(again, Some(vec![]));
}

#[test]
fn adding_tells_a_new_mount_from_another_datastore() {
    let dir = tempfile::tempdir().expect("directory");
    let added = FileDatastore::add(dir.path(), &config(CLUSTER), &ds(), &host());
    assert!(matches!(added, Ok(None)), "{added:?}");
    let other = DatastoreId::new("ds-2").expect("id");
    let refused = FileDatastore::add(dir.path(), &config(CLUSTER), &other, &host());
    assert!(
        matches!(
            refused,
            Err(AddError::Open(OpenError::OtherDatastore { .. }))
        ),
        "{refused:?}"
    );
}

#[test]
fn a_missing_an_empty_and_a_foreign_mount_are_told_apart() {
    let dir = tempfile::tempdir().expect("directory");
    let open = |path: &Path, id: &DatastoreId| FileDatastore::open(path, CLUSTER, id, &host());
    let missing = open(&dir.path().join("none"), &ds());
    assert!(
        matches!(missing, Err(OpenError::NoMount { .. })),
        "{missing:?}"
    );
    let empty = open(dir.path(), &ds());
    assert!(
        matches!(empty, Err(OpenError::NotAdded { .. })),
        "{empty:?}"
    );
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("write");
    assert!(matches!(open(&file, &ds()), Err(OpenError::NoMount { .. })));
    FileDatastore::create(dir.path(), &config(0xdef), &ds(), &host()).expect("added");
    let foreign = open(dir.path(), &ds());
    assert!(
        matches!(foreign, Err(OpenError::OtherCluster { .. })),
        "{foreign:?}"
    );
    let (dir, datastore) = made();
    let other = open(dir.path(), &DatastoreId::new("ds-2").expect("id"));
    assert!(
        matches!(other, Err(OpenError::OtherDatastore { .. })),
        "{other:?}"
    );
    let marker = datastore.dir().join(MARKER_FILE);
    let bytes = std::fs::read(&marker).expect("marker");
    std::fs::write(&marker, &bytes[..bytes.len() - 2]).expect("write");
    assert!(matches!(
        open(dir.path(), &ds()),
        Err(OpenError::Damaged { .. })
    ));
}

#[test]
fn a_renewal_is_read_back_and_padded() {
    let (_dir, datastore) = made();
    assert_eq!(
        datastore.perform(&StorageRequest::Renew(heartbeat(), vec![7; 100])),
        done()
    );
    let bytes = read(&datastore, heartbeat());
    assert_eq!(bytes.len(), 4096);
    assert_eq!((bytes[99], bytes[100]), (7, 0));
}

#[test]
fn a_renewal_of_a_missing_file_is_refused_and_makes_none() {
    let (_dir, datastore) = made();
    let path = datastore.path(&heartbeat());
    std::fs::remove_file(&path).expect("removed");
    let outcome = datastore.perform(&StorageRequest::Renew(heartbeat(), vec![7; 100]));
    assert_eq!(outcome, StorageOutcome::NotDone(IoFault::Foreign));
    assert!(!path.exists());
}

#[test]
fn a_renewal_of_a_file_that_was_replaced_or_unlinked_is_not_acknowledged() {
    let (_dir, datastore) = made();
    let path = datastore.path(&heartbeat());
    let written = datastore.files.look(&path).expect("there").expect("a name");
    assert_eq!(datastore.confirm_write(&path, written), done());
    let beside = datastore.dir().join("beside");
    std::fs::write(&beside, "x").expect("write");
    std::fs::rename(&beside, &path).expect("replaced");
    assert_eq!(
        datastore.confirm_write(&path, written),
        StorageOutcome::Unknown(IoFault::Foreign)
    );
    std::fs::remove_file(&path).expect("unlinked");
    assert_eq!(
        datastore.confirm_write(&path, written),
        StorageOutcome::Unknown(IoFault::Foreign)
    );
}

#[test]
fn nothing_is_done_on_another_datastore_at_the_same_path() {
    let (dir, datastore) = made();
    std::fs::rename(dir.path().join(".mainstay"), dir.path().join("old")).expect("moved");
    let foreign = StorageOutcome::NotDone(IoFault::Foreign);
    assert_eq!(
        datastore.perform(&StorageRequest::Read(heartbeat())),
        foreign,
        "an empty mount point"
    );
    assert_eq!(datastore.perform(&StorageRequest::ListAllVmLocks), foreign);
    FileDatastore::create(dir.path(), &config(CLUSTER), &ds(), &host()).expect("added");
    assert_eq!(
        datastore.perform(&StorageRequest::Renew(heartbeat(), vec![1])),
        foreign,
        "another one"
    );
    assert_eq!(
        datastore.perform(&StorageRequest::Link(lock(1), vec![1])),
        foreign
    );
}

#[test]
fn exactly_one_of_eight_racing_links_wins() {
    let (dir, _) = made();
    for generation in 1..20 {
        let barrier = Barrier::new(8);
        let wins: usize = std::thread::scope(|scope| {
            let racer = |n: u8| {
                let (dir, barrier) = (dir.path(), &barrier);
                scope.spawn(move || {
                    let host = HostId::new(&format!("host-{n}")).expect("id");
                    let datastore = FileDatastore::open(dir, CLUSTER, &ds(), &host).expect("open");
                    barrier.wait();
                    match datastore.perform(&StorageRequest::Link(lock(generation), vec![n; 100])) {
                        StorageOutcome::Ok(StorageValue::Done) => {
                            assert_eq!(read(&datastore, lock(generation)), vec![n; 100]);
                            1
                        }
                        StorageOutcome::Ok(StorageValue::Exists) => 0,
                        other => panic!("{other:?}"),
                    }
                })
            };
            let racers: Vec<_> = (0..8).map(racer).collect();
            racers.into_iter().map(|r| r.join().expect("racer")).sum()
        });
        assert_eq!(wins, 1);
    }
    let left = std::fs::read_dir(record_dir(dir.path(), CLUSTER)).expect("list");
    let strays = left
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(TEMPORARY));
    assert_eq!(strays.count(), 0);
}

#[test]
fn lists_name_the_records_of_their_kind_and_nothing_else() {
    let (_dir, datastore) = made();
    assert_eq!(
        datastore.perform(&StorageRequest::Link(lock(1), vec![1])),
        done()
    );
    std::fs::write(datastore.dir().join("notes.txt"), "x").expect("write");
    let keys = |request| match datastore.perform(&request) {
        StorageOutcome::Ok(StorageValue::Keys(mut keys)) => {
            keys.sort();
            keys
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(keys(StorageRequest::ListVmLock(vm())), [lock(0), lock(1)]);
    assert_eq!(keys(StorageRequest::ListAllVmLocks), [lock(0), lock(1)]);
    assert_eq!(
        keys(StorageRequest::ListVmLock(VmId::new("vm").expect("id"))),
        []
    );
    assert_eq!(
        keys(StorageRequest::ListOwnerLock),
        [RecordKey::OwnerLock(Generation(0))]
    );
    assert_eq!(
        keys(StorageRequest::ListProtected),
        [RecordKey::Protected(Generation(0))]
    );
}

#[test]
fn put_replaces_and_remove_removes() {
    let (_dir, datastore) = made();
    let key = RecordKey::Poweron(host());
    assert_eq!(
        datastore.perform(&StorageRequest::Read(key.clone())),
        StorageOutcome::Ok(StorageValue::NotFound)
    );
    for byte in [1, 2] {
        let long = vec![byte; 140_000];
        assert_eq!(
            datastore.perform(&StorageRequest::Put(key.clone(), long.clone())),
            done()
        );
        assert_eq!(read(&datastore, key.clone()), long);
    }
    assert_eq!(
        datastore.perform(&StorageRequest::Remove(key.clone())),
        done()
    );
    assert_eq!(
        datastore.perform(&StorageRequest::Remove(key)),
        StorageOutcome::Ok(StorageValue::NotFound)
    );
}

fn list() -> RecordKey {
    RecordKey::Protected(Generation(0))
}

fn pages(pages: &[(u32, u8)]) -> StorageRequest {
    let page = |(page, byte): &(u32, u8)| (*page, vec![*byte; PAGE_BYTES]);
    StorageRequest::PutPages(list(), pages.iter().map(page).collect())
}

#[test]
fn pages_are_written_in_place_and_past_the_end() {
    let (_dir, datastore) = made();
    let head = read(&datastore, list());
    assert_eq!(head.len(), 2 * PAGE_BYTES);
    let inode = |d: &FileDatastore| d.files.look(&d.path(&list())).expect("there");
    let before = inode(&datastore);
    assert_eq!(datastore.perform(&pages(&[(2, 2), (5, 5)])), done());
    assert_eq!(datastore.perform(&pages(&[(3, 3)])), done());
    let bytes = read(&datastore, list());
    let expected: Vec<u8> = [2, 3, 0, 5].map(|byte| [byte; PAGE_BYTES]).concat();
    assert_eq!(bytes.get(..head.len()), Some(head.as_slice()));
    assert_eq!(bytes.get(head.len()..), Some(expected.as_slice()));
    assert_eq!(inode(&datastore), before, "no other file took its place");
}

#[test]
fn a_protected_list_is_followed_through_its_file() {
    use mainstay_core::id::{BootId, InstanceId};
    use mainstay_core::wire::{ProtectedRecord, ProtectedTable, ProtectedVm, Stamp};
    use std::collections::BTreeMap;
    let (_dir, datastore) = made();
    let vm = |n: u64| ProtectedVm {
        vm: VmId::new(&format!("vm-{n}")).expect("id"),
        cpu_mhz: n,
        memory_mb: n,
        restart_priority: Default::default(),
        last_host: Some(host()),
    };
    let stamp = Stamp {
        writer: host(),
        boot: BootId(1),
        instance: InstanceId(2),
        seq: 3,
    };
    let key = RecordKey::Protected(Generation(1));
    let (mut table, refused) = ProtectedTable::new((0..20).map(vm));
    assert_eq!(refused, []);
    let file = table.file(CLUSTER, &stamp, 0);
    assert_eq!(
        datastore.perform(&StorageRequest::Put(key.clone(), file)),
        done()
    );
    let mut wanted: BTreeMap<VmId, ProtectedVm> = (0..20).map(|n| (vm(n).vm, vm(n))).collect();
    for n in 20..60 {
        wanted.remove(&vm(n - 20).vm);
        wanted.insert(vm(n).vm, vm(n));
        assert_eq!(table.set(&wanted), []);
        let request = StorageRequest::PutPages(key.clone(), table.changed_pages());
        assert_eq!(datastore.perform(&request), done());
        let (_, found) =
            ProtectedRecord::decode(CLUSTER, &read(&datastore, key.clone())).expect("sound");
        assert_eq!((&found.vms, found.lost, found.fallen_back), (&wanted, 0, 0));
    }
}

#[test]
fn pages_of_a_missing_file_are_refused_and_make_none() {
    let (_dir, datastore) = made();
    let path = datastore.path(&list());
    std::fs::remove_file(&path).expect("removed");
    let foreign = StorageOutcome::NotDone(IoFault::Foreign);
    assert_eq!(datastore.perform(&pages(&[(1, 1)])), foreign);
    assert!(!path.exists());
    std::fs::create_dir(&path).expect("directory");
    let outcome = datastore.perform(&pages(&[(1, 1)]));
    assert!(matches!(outcome, StorageOutcome::NotDone(_)), "{outcome:?}");
}

#[test]
fn a_page_of_another_length_is_refused_before_anything_is_written() {
    let (_dir, datastore) = made();
    let before = read(&datastore, list());
    let request =
        StorageRequest::PutPages(list(), vec![(1, vec![1; PAGE_BYTES]), (2, vec![2; 512])]);
    assert_eq!(
        datastore.perform(&request),
        StorageOutcome::NotDone(IoFault::Other)
    );
    assert_eq!(read(&datastore, list()), before);
}

#[test]
fn pages_are_not_written_on_another_datastore_at_the_same_path() {
    let (dir, datastore) = made();
    std::fs::rename(dir.path().join(".mainstay"), dir.path().join("old")).expect("moved");
    FileDatastore::create(dir.path(), &config(CLUSTER), &ds(), &host()).expect("added");
    let foreign = StorageOutcome::NotDone(IoFault::Foreign);
    assert_eq!(datastore.perform(&pages(&[(1, 1)])), foreign);
}

#[test]
fn a_directory_in_place_of_a_record_is_an_error_and_not_absence() {
    let (_dir, datastore) = made();
    std::fs::create_dir(datastore.path(&lock(1))).expect("directory");
    let outcome = datastore.perform(&StorageRequest::Read(lock(1)));
    assert!(matches!(outcome, StorageOutcome::NotDone(_)), "{outcome:?}");
    let outcome = datastore.perform(&StorageRequest::Link(lock(1), vec![1]));
    assert_eq!(outcome, StorageOutcome::Ok(StorageValue::Exists));
}

#[test]
fn a_torn_record_is_read_as_it_is_and_refused_by_its_decoder() {
    let (_dir, datastore) = made();
    let whole = read(&datastore, lock(0));
    std::fs::write(datastore.path(&lock(0)), &whole[..whole.len() / 2]).expect("torn");
    assert!(LockRecord::decode(CLUSTER, &read(&datastore, lock(0))).is_err());
    std::fs::write(datastore.path(&lock(0)), "").expect("empty");
    assert!(LockRecord::decode(CLUSTER, &read(&datastore, lock(0))).is_err());
}

#[test]
fn strays_of_a_dead_process_of_this_host_are_removed_and_no_others() {
    let (dir, datastore) = made();
    let stray = datastore.dir().join(".tmp.host-1.999999999.3");
    let others = [
        datastore.dir().join(".tmp.host-2.999999999.3"),
        datastore.dir().join(".tmp.host-1.5.999999999.3"),
        datastore
            .dir()
            .join(format!(".tmp.host-1.{}.3", std::process::id())),
    ];
    for path in others.iter().chain([&stray]) {
        std::fs::write(path, "x").expect("write");
    }
    FileDatastore::open(dir.path(), CLUSTER, &ds(), &host()).expect("open");
    assert!(!stray.exists());
    assert!(others.iter().all(|p| p.exists()));
}

#[test]
fn a_worker_completes_what_it_is_given_and_refuses_what_it_cannot_hold() {
    let (_dir, datastore) = made();
    let (sender, outcomes) = std::sync::mpsc::channel();
    let worker = Worker::start(Arc::new(datastore.into()), move |op, outcome| {
        drop(sender.send((op, outcome)))
    })
    .expect("threads");
    worker
        .submit(OpId(1), StorageRequest::Renew(heartbeat(), vec![1]))
        .expect("queued");
    worker
        .submit(OpId(2), StorageRequest::ListProtected)
        .expect("queued");
    let mut seen: Vec<OpId> = (0..2)
        .map(|_| {
            outcomes
                .recv_timeout(Duration::from_secs(10))
                .expect("outcome")
                .0
        })
        .collect();
    seen.sort();
    assert_eq!(seen, [OpId(1), OpId(2)]);
}

#[test]
fn a_host_and_a_vm_get_their_records_once_and_nothing_else_is_begun() {
    let (dir, datastore) = made();
    let cluster = config(CLUSTER);
    let mut new_host = cluster.hosts.values().next().cloned().expect("host");
    new_host.id = HostId::new("host-2").expect("id");
    let mut new_vm = cluster.vms.values().next().cloned().expect("VM");
    new_vm.id = VmId::new("vm-2").expect("id");
    let names = || {
        let listed = std::fs::read_dir(datastore.dir()).expect("directory");
        let mut names: Vec<_> = listed.flatten().map(|e| e.file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    for first in [true, false] {
        let host_made = FileDatastore::add_host(dir.path(), &cluster, &ds(), &new_host);
        assert_eq!(host_made.expect("added"), first);
        let vm_made = FileDatastore::add_vm(dir.path(), &cluster, &new_vm, &host());
        assert_eq!(vm_made.expect("added"), first);
    }
    assert_eq!(names().len(), before.len() + 2);
    let empty = tempfile::tempdir().expect("directory");
    for refused in [
        FileDatastore::add_host(empty.path(), &cluster, &ds(), &new_host),
        FileDatastore::add_vm(empty.path(), &cluster, &new_vm, &host()),
    ] {
        assert!(
            matches!(refused, Err(AddError::Open(OpenError::NotAdded { .. }))),
            "{refused:?}"
        );
    }
}
