mod adding;

use super::disk::WriteError;
use super::layout::{HEAD_COPY, LISTS};
use super::look::{Found, look_on};
use super::*;
use mainstay_core::config::{ClusterConfig, DatastoreSpec, HostSpec, Settings, VmSpec};
use mainstay_core::id::{Generation, InstanceId, VmId};
use mainstay_core::wire::{HeartbeatRecord, LockRecord, PAGE_BYTES, Stamp};
use nix::errno::Errno;
use std::collections::VecDeque;
use std::io;
use std::sync::Barrier;
use std::time::{Duration, Instant};

const CLUSTER: u64 = 0xabc;

/// What becomes of the next writes of a device in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// An error comes back, and it is never performed.
    Fails,
    Refused,
    /// It is performed, and an error comes back.
    LostAnswer,
    /// An error comes back, and it is performed when the test says so.
    Late,
}

/// A device in memory that all hosts share.
#[derive(Debug, Default)]
struct Memory {
    bytes: Mutex<Vec<u8>>,
    late: Mutex<Vec<(u64, Vec<u8>)>>,
    /// What becomes of the writes of this host from its n-th slot write on.
    fates: Mutex<VecDeque<Fate>>,
}

/// One host's way to it.
#[derive(Debug)]
struct Path {
    memory: Arc<Memory>,
    /// Fates meet only writes behind this offset: those of registers.
    faulty_from: u64,
    snapshot: Mutex<Option<Vec<u8>>>,
}

impl Path {
    fn perform(&self, offset: u64, bytes: &[u8]) {
        let at = usize::try_from(offset).expect("an offset");
        let mut all = locked(&self.memory.bytes);
        if all.len() < at + bytes.len() {
            all.resize(at + bytes.len(), 0);
        }
        all[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

impl Disk for Path {
    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let at = usize::try_from(offset).expect("an offset");
        let old = locked(&self.snapshot);
        let now = locked(&self.memory.bytes);
        let all = old.as_ref().unwrap_or(&now);
        let end = (at + len).min(all.len());
        Ok(all.get(at..end).unwrap_or_default().to_vec())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let fate = if offset >= self.faulty_from {
            locked(&self.memory.fates).pop_front()
        } else {
            None
        };
        let failed = |refused| {
            let error = Errno::EIO.into();
            Err(WriteError { refused, error })
        };
        match fate {
            None => self.perform(offset, bytes),
            Some(Fate::Refused) => return failed(true),
            Some(Fate::Fails) => return failed(false),
            Some(Fate::LostAnswer) => {
                self.perform(offset, bytes);
                return failed(false);
            }
            Some(Fate::Late) => {
                locked(&self.memory.late).push((offset, bytes.to_vec()));
                return failed(false);
            }
        }
        Ok(())
    }
}

fn host(n: u32) -> HostId {
    HostId::new(&format!("host-{n}")).expect("id")
}

fn ds() -> DatastoreId {
    DatastoreId::new("ds-1").expect("id")
}

fn vm(n: u32) -> VmId {
    VmId::new(&format!("vm-{n}")).expect("id")
}

fn config(hosts: u32, vms: u32) -> ClusterConfig {
    let spec = DatastoreSpec {
        id: ds(),
        kind: Default::default(),
        fence: Default::default(),
        server: None,
    };
    let hosts = (1..=hosts).map(|n| HostSpec {
        id: host(n),
        cpu_mhz: 1,
        memory_mb: 1,
        datastores: [ds()].into(),
        maintenance: false,
        networks: Default::default(),
    });
    let vms = (1..=vms).map(|n| VmSpec {
        id: vm(n),
        datastore: ds(),
        cpu_mhz: 1,
        memory_mb: 1,
        restart_priority: Default::default(),
        isolation_response: None,
        depends_on: vec![],
        guest_agent: true,
    });
    ClusterConfig::new(
        CLUSTER,
        Settings::default(),
        hosts.collect(),
        vec![spec],
        vms.collect(),
        vec![],
    )
    .expect("sound")
}

/// A region in memory, and a directory in place of `/run`.
struct Kit {
    memory: Arc<Memory>,
    run: tempfile::TempDir,
    geometry: Geometry,
}

impl Kit {
    fn new(sector: u32) -> Self {
        let memory = Arc::new(Memory::default());
        let geometry = Geometry::sized(sector, 8, 12);
        let kit = Self {
            memory,
            run: tempfile::tempdir().expect("directory"),
            geometry,
        };
        BlockDatastore::format_on(&kit.path(), &config(2, 2), &ds(), &host(1), geometry)
            .expect("formatted");
        kit
    }

    fn path(&self) -> Path {
        Path {
            memory: Arc::clone(&self.memory),
            faulty_from: self.geometry.register(0),
            snapshot: Mutex::default(),
        }
    }

    fn try_open(&self, n: u32, boot: u64) -> Result<BlockDatastore, crate::OpenError> {
        let here = Here {
            host: host(n),
            boot: BootId(boot),
            run_dir: self.run.path().into(),
        };
        let path = std::path::Path::new("memory");
        BlockDatastore::open_on(Arc::new(self.path()), path, CLUSTER, &ds(), &here)
    }

    fn open(&self, n: u32, boot: u64) -> BlockDatastore {
        self.try_open(n, boot).expect("open")
    }

    fn fates(&self, fates: &[Fate]) {
        *locked(&self.memory.fates) = fates.iter().copied().collect();
    }

    fn land(&self) {
        for (offset, bytes) in std::mem::take(&mut *locked(&self.memory.late)) {
            self.path().perform(offset, &bytes);
        }
    }

    fn damage(&self, offset: u64) {
        let at = usize::try_from(offset).expect("an offset");
        locked(&self.memory.bytes)[at + 40] ^= 0xff;
    }
}

const DONE: StorageOutcome = StorageOutcome::Ok(StorageValue::Done);
const EXISTS: StorageOutcome = StorageOutcome::Ok(StorageValue::Exists);
const NOT_FOUND: StorageOutcome = StorageOutcome::Ok(StorageValue::NotFound);

fn lock(generation: u64) -> RecordKey {
    RecordKey::VmLock(vm(1), Generation(generation))
}

fn link(store: &BlockDatastore, generation: u64, byte: u8) -> StorageOutcome {
    store.perform(&StorageRequest::Link(lock(generation), vec![byte; 180]))
}

fn read(store: &BlockDatastore, key: RecordKey) -> StorageOutcome {
    store.perform(&StorageRequest::Read(key))
}

fn bytes(byte: u8) -> StorageOutcome {
    StorageOutcome::Ok(StorageValue::Bytes(vec![byte; 180]))
}

fn keys(store: &BlockDatastore, request: StorageRequest) -> Vec<RecordKey> {
    match store.perform(&request) {
        StorageOutcome::Ok(StorageValue::Keys(mut keys)) => {
            keys.sort();
            keys
        }
        other => panic!("{other:?}"),
    }
}

fn beat(n: u32, boot: u64, seq: u64) -> StorageRequest {
    let stamp = Stamp {
        writer: host(n),
        boot: BootId(boot),
        instance: InstanceId(1),
        seq,
    };
    let record = HeartbeatRecord {
        freeze: Duration::from_millis(10),
        r#break: Duration::from_millis(20),
    };
    StorageRequest::Renew(
        RecordKey::Heartbeat(host(n)),
        record.encode(CLUSTER, &stamp),
    )
}

#[test]
fn a_new_region_holds_what_was_there_when_it_was_made() {
    for sector in [512, 4096] {
        let kit = Kit::new(sector);
        let store = kit.open(1, 7);
        let StorageOutcome::Ok(StorageValue::Bytes(first)) = read(&store, lock(0)) else {
            panic!("a free lock");
        };
        assert!(LockRecord::decode(CLUSTER, &first).is_ok());
        assert_eq!(read(&store, lock(1)), NOT_FOUND);
        assert_eq!(
            keys(&store, StorageRequest::ListVmLock(vm(2))),
            [RecordKey::VmLock(vm(2), Generation(0))]
        );
        assert_eq!(keys(&store, StorageRequest::ListAllVmLocks).len(), 2);
        assert_eq!(keys(&store, StorageRequest::ListVmLock(vm(3))), []);
        assert_eq!(
            keys(&store, StorageRequest::ListProtected),
            [RecordKey::Protected(Generation(0))]
        );
        let StorageOutcome::Ok(StorageValue::Bytes(beat)) =
            read(&store, RecordKey::Heartbeat(host(2)))
        else {
            panic!("a heartbeat");
        };
        assert_eq!(beat.len(), usize::try_from(sector).expect("a size"));
        assert!(HeartbeatRecord::decode(CLUSTER, &beat).is_ok());
        assert_eq!(read(&store, RecordKey::Heartbeat(host(3))), NOT_FOUND);
    }
}

#[test]
fn generations_are_made_once_and_old_ones_go() {
    let kit = Kit::new(512);
    let (one, two) = (kit.open(1, 7), kit.open(2, 8));
    assert_eq!(link(&one, 1, 11), DONE);
    assert_eq!(link(&two, 1, 21), EXISTS);
    assert_eq!(read(&two, lock(1)), bytes(11));
    assert_eq!(link(&two, 2, 22), DONE);
    assert_eq!(read(&one, lock(1)), bytes(11), "the predecessor stays");
    assert_eq!(link(&one, 3, 13), DONE);
    assert_eq!(
        keys(&two, StorageRequest::ListVmLock(vm(1))),
        [lock(2), lock(3)]
    );
    assert_eq!(keys(&two, StorageRequest::ListAllVmLocks)[0], lock(3));
    assert_eq!(read(&one, lock(1)), NOT_FOUND);
    // What was made long ago is no stray that anyone could take for the newest.
    assert_eq!(link(&two, 1, 29), DONE);
    assert_eq!(read(&two, lock(0)), NOT_FOUND);
    assert_eq!(read(&two, lock(1)), NOT_FOUND);
    assert_eq!(two.perform(&StorageRequest::Remove(lock(1))), NOT_FOUND);
    let kept = two.perform(&StorageRequest::Remove(lock(3)));
    assert_eq!(kept, StorageOutcome::NotDone(IoFault::Other));
    assert!(matches!(link(&two, 9, 1), StorageOutcome::NotDone(_)));
}

#[test]
fn exactly_one_of_racing_hosts_wins_each_generation() {
    let kit = Kit::new(512);
    // Of each host an agent, and a command beside it.
    let stores: Vec<BlockDatastore> = [1, 1, 2, 2].map(|n| kit.open(n, 7)).into();
    for generation in 1..40 {
        let barrier = Barrier::new(stores.len());
        let outcomes: Vec<StorageOutcome> = std::thread::scope(|scope| {
            let race = |(n, store): (u8, _)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    // As the core does: again, until it is decided.
                    loop {
                        match link(store, generation, n) {
                            StorageOutcome::Unknown(_) | StorageOutcome::NotDone(_) => {}
                            outcome => return outcome,
                        }
                    }
                })
            };
            let racers: Vec<_> = (0..).zip(&stores).map(race).collect();
            racers
                .into_iter()
                .map(|r| r.join().expect("racer"))
                .collect()
        });
        let newest = read(&stores[0], lock(generation));
        for (n, outcome) in (0..).zip(&outcomes) {
            let mine = newest == bytes(n);
            assert_eq!(*outcome == DONE, mine, "{outcomes:?} {newest:?}");
        }
    }
}

#[test]
fn an_unknown_write_leaves_its_slot_and_the_host_goes_on_in_the_next() {
    for fate in [Fate::Fails, Fate::Late, Fate::LostAnswer] {
        let kit = Kit::new(512);
        let one = kit.open(1, 7);
        kit.fates(&[fate]);
        let first = link(&one, 1, 11);
        if fate == Fate::LostAnswer {
            assert_eq!(first, DONE, "it was seen on the disk");
            continue;
        }
        assert!(matches!(first, StorageOutcome::Unknown(_)), "{first:?}");
        assert_eq!(link(&one, 1, 11), DONE);
        assert_eq!(link(&one, 2, 12), DONE);
        kit.land();
        assert_eq!(read(&one, lock(2)), bytes(12), "it undoes nothing");
        let two = kit.open(2, 8);
        assert_eq!(link(&two, 1, 21), EXISTS);
        assert_eq!(link(&two, 3, 23), DONE);
        assert_eq!(read(&one, lock(3)), bytes(23));
    }
}

#[test]
fn a_host_with_all_slots_in_doubt_stays_out_until_it_boots() {
    let kit = Kit::new(512);
    let one = kit.open(1, 7);
    for _ in 0..3 {
        kit.fates(&[Fate::Fails]);
        assert!(matches!(link(&one, 1, 11), StorageOutcome::Unknown(_)));
    }
    let out = StorageOutcome::NotDone(IoFault::Other);
    assert_eq!(link(&one, 1, 11), out);
    let other = RecordKey::VmLock(vm(2), Generation(1));
    let other = StorageRequest::Link(other, vec![1; 180]);
    assert_eq!(one.perform(&other), DONE, "another lock is not touched");
    drop(one);
    let again = kit.open(1, 7);
    assert_eq!(link(&again, 1, 11), out, "the same boot, another agent");
    drop(again);
    let booted = kit.open(1, 9);
    assert_eq!(link(&booted, 1, 11), DONE);
}

#[test]
fn a_refused_write_is_no_doubt() {
    let kit = Kit::new(512);
    let one = kit.open(1, 7);
    for _ in 0..5 {
        kit.fates(&[Fate::Refused]);
        assert_eq!(link(&one, 1, 11), StorageOutcome::NotDone(IoFault::Gone));
    }
    assert_eq!(link(&one, 1, 11), DONE);
}

#[test]
fn two_processes_of_a_host_write_different_slots() {
    let kit = Kit::new(512);
    let (agent, command) = (kit.open(1, 7), kit.open(1, 7));
    assert_eq!(link(&agent, 1, 11), DONE);
    assert_eq!(link(&command, 2, 12), DONE);
    let slots = |store: &BlockDatastore| {
        let claims = locked(&store.claims);
        claims.iter().map(|c| c.slot).collect::<Vec<u16>>()
    };
    assert_eq!((slots(&agent), slots(&command)), (vec![0], vec![1]));
    drop(agent);
    let next = kit.open(1, 7);
    assert_eq!(link(&next, 3, 13), DONE);
    assert_eq!(slots(&next), [0], "it ended with nothing in doubt");
}

#[test]
fn a_damaged_slot_is_never_taken_for_a_blank_one() {
    let kit = Kit::new(512);
    let (one, two) = (kit.open(1, 7), kit.open(2, 8));
    assert_eq!(link(&one, 1, 11), DONE);
    let register = one.find(&Name::Vm(vm(1))).expect("read").expect("bound");
    kit.damage(kit.geometry.slot(register, 0));
    let unread = StorageOutcome::NotDone(IoFault::Other);
    assert_eq!(read(&two, lock(1)), unread);
    assert_eq!(link(&two, 1, 21), unread);
    assert_eq!(two.perform(&StorageRequest::ListVmLock(vm(1))), unread);
    assert_eq!(keys(&two, StorageRequest::ListVmLock(vm(2))).len(), 1);
}

#[test]
fn a_stale_reading_decides_nothing() {
    let kit = Kit::new(512);
    let one = kit.open(1, 7);
    let path = Path {
        snapshot: Mutex::new(Some(locked(&kit.memory.bytes).clone())),
        ..kit.path()
    };
    let here = Here {
        host: host(2),
        boot: BootId(8),
        run_dir: kit.run.path().into(),
    };
    let name = std::path::Path::new("memory");
    let stale = BlockDatastore::open_on(Arc::new(path), name, CLUSTER, &ds(), &here).expect("open");
    assert_eq!(link(&one, 1, 11), DONE);
    let outcome = link(&stale, 1, 21);
    assert!(matches!(outcome, StorageOutcome::Unknown(_)), "{outcome:?}");
    assert_eq!(read(&one, lock(1)), bytes(11));
}

#[test]
fn heartbeats_fit_a_sector_and_a_clone_is_not_written_over() {
    let kit = Kit::new(512);
    let one = kit.open(1, 7);
    assert_eq!(one.perform(&beat(1, 7, 1)), DONE);
    assert_eq!(one.perform(&beat(1, 7, 2)), DONE);
    let clone = kit.open(1, 99);
    let foreign = StorageOutcome::NotDone(IoFault::Foreign);
    for seq in 3..6 {
        assert_eq!(clone.perform(&beat(1, 99, seq)), foreign);
        assert_eq!(link(&clone, 1, 99), foreign, "nor does it take a lock");
        assert_eq!(one.perform(&beat(1, 7, seq)), DONE);
    }
    let long = StorageRequest::Renew(RecordKey::Heartbeat(host(1)), vec![1; 513]);
    assert!(matches!(one.perform(&long), StorageOutcome::NotDone(_)));
    let others = StorageRequest::Renew(RecordKey::Heartbeat(host(2)), vec![1; 5]);
    assert!(matches!(one.perform(&others), StorageOutcome::NotDone(_)));
    // The first is gone: after the `break` that it named its next boot goes on.
    let until = Instant::now() + Duration::from_secs(20);
    while clone.perform(&beat(1, 99, 9)) != DONE {
        assert!(Instant::now() < until, "it is taken over");
    }
    assert_eq!(link(&clone, 1, 99), DONE);
}

#[test]
fn another_region_at_the_same_place_is_foreign() {
    let kit = Kit::new(512);
    let one = kit.open(1, 7);
    BlockDatastore::format_on(&kit.path(), &config(2, 2), &ds(), &host(1), kit.geometry)
        .expect("formatted");
    let foreign = StorageOutcome::NotDone(IoFault::Foreign);
    assert_eq!(read(&one, lock(0)), foreign);
    assert_eq!(link(&one, 1, 11), foreign);
    assert_eq!(one.perform(&beat(1, 7, 1)), foreign);
    assert_eq!(one.perform(&StorageRequest::ListAllVmLocks), foreign);
}

#[test]
fn a_restored_snapshot_is_shown_as_it_is_and_takes_no_generation_with_a_gap() {
    let kit = Kit::new(512);
    let (one, two) = (kit.open(1, 7), kit.open(2, 8));
    assert_eq!(link(&one, 1, 11), DONE);
    let snapshot = locked(&kit.memory.bytes).clone();
    assert_eq!(link(&two, 2, 22), DONE);
    assert_eq!(link(&two, 3, 23), DONE);
    *locked(&kit.memory.bytes) = snapshot;
    // Agents remember generation 3, and refuse what is older (safety rule H22).
    assert_eq!(
        keys(&one, StorageRequest::ListVmLock(vm(1))),
        [lock(0), lock(1)]
    );
    assert!(matches!(link(&two, 4, 24), StorageOutcome::NotDone(_)));
    assert_eq!(read(&two, lock(3)), NOT_FOUND);
}

#[test]
fn lists_are_replaced_grow_and_go() {
    let kit = Kit::new(4096);
    let one = kit.open(1, 7);
    let key = RecordKey::Poweron(host(1));
    assert_eq!(read(&one, key.clone()), NOT_FOUND);
    for byte in [1, 2, 3] {
        let list = vec![byte; 9000];
        let put = StorageRequest::Put(key.clone(), list.clone());
        assert_eq!(one.perform(&put), DONE);
        let there = StorageOutcome::Ok(StorageValue::Bytes(list));
        assert_eq!(read(&one, key.clone()), there);
    }
    let page = |page: u32| (page, vec![9; PAGE_BYTES]);
    let key = RecordKey::Protected(Generation(0));
    let write = StorageRequest::PutPages(key.clone(), vec![page(2), page(5)]);
    assert_eq!(one.perform(&write), DONE);
    let StorageOutcome::Ok(StorageValue::Bytes(list)) = read(&one, key.clone()) else {
        panic!("a list");
    };
    assert_eq!(list.len(), 6 * PAGE_BYTES);
    assert_eq!((list[2 * PAGE_BYTES], list[3 * PAGE_BYTES]), (9, 0));
    let none = RecordKey::Protected(Generation(3));
    let write = StorageRequest::PutPages(none.clone(), vec![page(0)]);
    assert_eq!(
        one.perform(&write),
        StorageOutcome::NotDone(IoFault::Foreign)
    );
    let put = StorageRequest::Put(none.clone(), vec![4; 100]);
    assert_eq!(one.perform(&put), DONE);
    assert_eq!(
        keys(&one, StorageRequest::ListProtected),
        [key, none.clone()]
    );
    assert_eq!(one.perform(&StorageRequest::Remove(none.clone())), DONE);
    assert_eq!(read(&one, none.clone()), NOT_FOUND);
    assert_eq!(one.perform(&StorageRequest::Remove(none)), NOT_FOUND);
    // The place of one that is eight generations older is taken.
    let later = RecordKey::Protected(Generation(LISTS));
    let put = StorageRequest::Put(later.clone(), vec![5; 100]);
    assert_eq!(one.perform(&put), DONE);
    assert_eq!(keys(&one, StorageRequest::ListProtected), [later]);
    let full = vec![1; 9 << 20];
    let put = StorageRequest::Put(RecordKey::Config(Generation(1), 1), full);
    assert_eq!(one.perform(&put), StorageOutcome::NotDone(IoFault::Full));
}

#[test]
fn a_record_whose_write_may_land_late_is_not_called_undone() {
    let kit = Kit::new(512);
    let one = kit.open(1, 7);
    let key = RecordKey::Config(Generation(1), 0);
    let put = |byte| one.perform(&StorageRequest::Put(key.clone(), vec![byte; 180]));
    assert_eq!(put(1), DONE);
    kit.fates(&[Fate::Late]);
    assert_eq!(put(2), StorageOutcome::Unknown(IoFault::Gone));
    assert_eq!(read(&one, key.clone()), bytes(1), "the other half counts");
    kit.fates(&[Fate::Refused]);
    assert_eq!(put(3), StorageOutcome::NotDone(IoFault::Gone));
    kit.fates(&[Fate::LostAnswer]);
    let pages = StorageRequest::PutPages(key.clone(), vec![(0, vec![4; PAGE_BYTES])]);
    assert_eq!(one.perform(&pages), StorageOutcome::Unknown(IoFault::Gone));
}

#[test]
fn what_lies_on_a_device_is_named() {
    let kit = Kit::new(512);
    let path = kit.path();
    let own = look_on(&path, CLUSTER).expect("read");
    assert!(matches!(own, Found::Own(_)), "{own:?}");
    assert_eq!(look_on(&path, 1).expect("read"), Found::Cluster(CLUSTER));
    kit.damage(0);
    let copy = look_on(&path, 1).expect("read");
    assert_eq!(copy, Found::Cluster(CLUSTER), "by the copy of its head");
    assert!(matches!(
        kit.try_open(1, 7),
        Err(crate::OpenError::DamagedRegion { .. })
    ));
    kit.damage(HEAD_COPY);
    assert_eq!(look_on(&path, 1).expect("read"), Found::Data);
    locked(&kit.memory.bytes).fill(0);
    assert_eq!(look_on(&path, 1).expect("read"), Found::Nothing);
    path.perform(1080, b"\x53\xef");
    assert_eq!(
        look_on(&path, 1).expect("read"),
        Found::Signature("an ext2, ext3 or ext4 file system")
    );
}

#[test]
fn a_file_in_place_of_a_device_is_read_and_written() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("region");
    std::fs::write(&file, "").expect("write");
    let link_to = dir.path().join("by-id");
    std::os::unix::fs::symlink(&file, &link_to).expect("link");
    assert_eq!(look(&link_to, CLUSTER).expect("read"), Found::Nothing);
    assert!(matches!(sector_of(&link_to).expect("read"), 512 | 4096));
    assert_eq!(size_of(&link_to).expect("read"), 0);
    let geometry = Geometry::sized(512, 2, 4);
    let cluster = config(2, 2);
    let head =
        BlockDatastore::format(&link_to, &cluster, &ds(), &host(1), geometry).expect("formatted");
    assert_eq!(head.geometry, geometry);
    let size = std::fs::metadata(&file).expect("there").len();
    assert!(size <= geometry.size() && size + 8192 > geometry.size());
    let here = Here {
        host: host(2),
        boot: BootId(5),
        run_dir: dir.path().into(),
    };
    let open = || BlockDatastore::open(&link_to, CLUSTER, &ds(), &here);
    let store = open().expect("open");
    assert_eq!(link(&store, 1, 21), DONE);
    assert_eq!(read(&store, lock(1)), bytes(21));
    assert_eq!(store.perform(&beat(2, 5, 1)), DONE);
    let other = DatastoreId::new("ds-2").expect("id");
    let refused = BlockDatastore::open(&link_to, CLUSTER, &other, &here);
    assert!(matches!(
        refused,
        Err(crate::OpenError::OtherDatastore { .. })
    ));
    let refused = BlockDatastore::open(&link_to, 1, &ds(), &here);
    assert!(matches!(
        refused,
        Err(crate::OpenError::OtherCluster { .. })
    ));
    std::fs::remove_file(&file).expect("removed");
    let gone = link(&store, 2, 22);
    assert!(matches!(gone, StorageOutcome::NotDone(_)), "{gone:?}");
    assert!(!file.exists(), "nothing is made");
    assert!(matches!(open(), Err(crate::OpenError::NoMount { .. })));
}

#[test]
fn a_check_tells_what_is_damaged_and_a_repair_mends_what_has_a_second_copy() {
    use super::admin::{Visit, check_on};
    let kit = Kit::new(512);
    let path = kit.path();
    let one = kit.open(1, 7);
    assert_eq!(link(&one, 1, 11), DONE);
    let sound = check_on(&path, CLUSTER, false).expect("read");
    assert!(sound.is_sound() && sound.records > 21 * 24, "{sound:?}");
    let visit = Visit::begin(&path, CLUSTER).expect("a region");
    let inspection = visit.inspect().expect("read");
    assert_eq!(inspection.places.len(), 2);
    let of = |name| {
        let found = inspection.locks.iter().find(|lock| lock.name == name);
        found.and_then(|lock| lock.newest)
    };
    assert_eq!(of(Name::Vm(vm(1))), Some(Generation(1)));
    assert_eq!(of(Name::Owner), Some(Generation(0)));
    let register = one.find(&Name::Vm(vm(1))).expect("read").expect("bound");
    kit.damage(0);
    kit.damage(kit.geometry.name(register));
    kit.damage(kit.geometry.mark(register + 1));
    let before = locked(&kit.memory.bytes).clone();
    let damaged = check_on(&path, CLUSTER, false).expect("read");
    assert_eq!(
        (damaged.mendable.len(), damaged.lasting.len()),
        (3, 0),
        "{damaged:?}"
    );
    assert_eq!(*locked(&kit.memory.bytes), before, "a check writes nothing");
    check_on(&path, CLUSTER, true).expect("mended");
    assert!(check_on(&path, CLUSTER, false).expect("read").is_sound());
    let again = kit.open(2, 8);
    assert_eq!(read(&again, lock(1)), bytes(11));
    kit.damage(kit.geometry.slot(register, 4));
    let lasting = check_on(&path, CLUSTER, true).expect("read");
    assert_eq!(
        (lasting.mendable.len(), lasting.lasting.len()),
        (0, 1),
        "{lasting:?}"
    );
    kit.damage(0);
    kit.damage(HEAD_COPY);
    assert!(check_on(&path, CLUSTER, true).is_err(), "no head is left");
}

#[test]
fn the_largest_records_fit_a_sector() {
    let long = |n: usize| HostId::new(&"h".repeat(n)).expect("id");
    let host = long(HOST_ID_MAX_BYTES);
    let stamp = Stamp {
        writer: host.clone(),
        boot: BootId(u64::MAX),
        instance: InstanceId(u64::MAX),
        seq: u64::MAX >> 8,
    };
    let record = LockRecord {
        generation: Generation(Generation::MAX.0),
        nonce: mainstay_core::id::Nonce(u64::MAX),
        holder: Some(mainstay_core::id::Holder {
            host: host.clone(),
            boot: BootId(u64::MAX),
        }),
        desired: Default::default(),
        freeze: Duration::from_millis(299_999),
        r#break: Duration::from_millis(399_999),
        given_back: None,
    };
    let value = Value {
        name: None,
        record: record.encode(u64::MAX, &stamp),
    };
    let ballot = mainstay_core::paxos::Ballot {
        round: u64::from(u32::MAX),
        slot: 191,
        incarnation: u64::MAX,
    };
    let block = mainstay_core::paxos::Block {
        base: Some((Generation(Generation::MAX.0), value.clone())),
        promised: ballot,
        accepted: Some((ballot, value)),
        decided: true,
    };
    let codec = Codec {
        cluster: u64::MAX,
        region: u64::MAX,
        stamp: Codec::stamp_of(&host, BootId(u64::MAX), u64::MAX),
        sector: 512,
    };
    assert!(codec.slot(u32::MAX, 191, Some(&block)).is_some());
}

#[test]
fn a_region_for_64_hosts_and_8000_vms_has_a_size() {
    let mib = |sector| Geometry::new(sector).size() >> 20;
    assert!((950..1050).contains(&mib(512)), "{}", mib(512));
    assert!((6000..6500).contains(&mib(4096)), "{}", mib(4096));
}
