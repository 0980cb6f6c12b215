//! A datastore of either kind that several hosts share, each by its own way.

use super::layers::{Files, Sectors, Way};
use super::script::Script;
use crate::block::{BlockDatastore, Geometry, Here};
use crate::error::OpenError;
use crate::file::{FileDatastore, record_dir};
use crate::store::Datastore;
use mainstay_core::config::{
    ClusterConfig, DatastoreKind, DatastoreSpec, HostSpec, Settings, VmSpec,
};
use mainstay_core::id::{BootId, DatastoreId, Generation, HostId, InstanceId, VmId};
use mainstay_core::io::{StorageOutcome, StorageRequest, StorageValue};
use mainstay_core::wire::{HeartbeatRecord, RecordKey, Stamp};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(super) const CLUSTER: u64 = 0xabc;
pub(super) const KINDS: [DatastoreKind; 2] = [DatastoreKind::File, DatastoreKind::Block];
pub(super) const HOSTS: u32 = 3;
pub(super) const DONE: StorageOutcome = StorageOutcome::Ok(StorageValue::Done);
pub(super) const EXISTS: StorageOutcome = StorageOutcome::Ok(StorageValue::Exists);
pub(super) const NOT_FOUND: StorageOutcome = StorageOutcome::Ok(StorageValue::NotFound);

/// The `break` of the heartbeats here: short, for a test waits for it.
pub(super) const BREAK: Duration = Duration::from_millis(20);

pub(super) fn host(n: u32) -> HostId {
    HostId::new(&format!("host-{n}")).expect("id")
}

pub(super) fn ds() -> DatastoreId {
    DatastoreId::new("ds-1").expect("id")
}

pub(super) fn vm(n: u32) -> VmId {
    VmId::new(&format!("vm-{n}")).expect("id")
}

pub(super) fn lock(generation: u64) -> RecordKey {
    RecordKey::VmLock(vm(1), Generation(generation))
}

pub(super) fn config(kind: DatastoreKind) -> ClusterConfig {
    let spec = DatastoreSpec {
        id: ds(),
        kind,
        fence: Default::default(),
        server: None,
    };
    let hosts = (1..=HOSTS).map(|n| HostSpec {
        id: host(n),
        cpu_mhz: 1000,
        memory_mb: 1000,
        datastores: [ds()].into(),
        maintenance: false,
        networks: Default::default(),
    });
    let vms = (1..=2).map(|n| VmSpec {
        id: vm(n),
        datastore: ds(),
        cpu_mhz: 1,
        memory_mb: 1,
        restart_priority: Default::default(),
        isolation_response: None,
        depends_on: vec![],
        guest_agent: true,
    });
    let (hosts, vms) = (hosts.collect(), vms.collect());
    let settings = Settings::default();
    ClusterConfig::new(CLUSTER, settings, hosts, vec![spec], vms, vec![]).expect("sound")
}

/// The shared storage.
pub(super) struct Kit {
    pub(super) kind: DatastoreKind,
    pub(super) config: ClusterConfig,
    sectors: Arc<Sectors>,
    dir: tempfile::TempDir,
}

/// What the storage held at one time.
#[derive(Clone)]
pub(super) enum Snapshot {
    Files(BTreeMap<OsString, Vec<u8>>),
    Sectors(Vec<u8>),
}

/// A host with the datastore open.
pub(super) struct Host {
    pub(super) n: u32,
    pub(super) boot: u64,
    pub(super) script: Arc<Script>,
    pub(super) store: Arc<Datastore>,
    cache: Cache,
}

enum Cache {
    Files(Arc<Files>, PathBuf),
    Way(Arc<Way>),
}

impl Kit {
    pub(super) fn new(kind: DatastoreKind) -> Self {
        let kit = Self {
            kind,
            config: config(kind),
            sectors: Arc::default(),
            dir: tempfile::tempdir().expect("directory"),
        };
        std::fs::create_dir(kit.aside()).expect("directory");
        kit.make(&kit.config);
        kit
    }

    fn aside(&self) -> PathBuf {
        self.dir.path().join("aside")
    }

    fn mount(&self) -> &Path {
        self.dir.path()
    }

    fn records(&self) -> PathBuf {
        record_dir(self.mount(), self.config.cluster_id)
    }

    /// Makes the datastore, of that cluster.
    pub(super) fn make(&self, config: &ClusterConfig) {
        match self.kind {
            DatastoreKind::File => {
                FileDatastore::create(self.mount(), config, &ds(), &host(1)).expect("added");
            }
            DatastoreKind::Block => {
                let way = Way::new(Arc::default(), Arc::clone(&self.sectors));
                let geometry = Geometry::sized(512, 4, 4);
                BlockDatastore::format_on(&way, config, &ds(), &host(1), geometry)
                    .expect("formatted");
            }
        }
    }

    /// Takes everything away.
    pub(super) fn wipe(&self) {
        if self.kind == DatastoreKind::Block {
            self.sectors.replace(Vec::new());
            return;
        }
        let away = self.dir.path().join("away");
        std::fs::rename(self.dir.path().join(".mainstay"), away).expect("moved");
    }

    pub(super) fn host(&self, n: u32) -> Host {
        self.booted(n, u64::from(100 + n))
    }

    /// A host in one of its boots.
    pub(super) fn booted(&self, n: u32, boot: u64) -> Host {
        self.try_open(n, boot, CLUSTER, &ds()).expect("open")
    }

    pub(super) fn try_open(
        &self,
        n: u32,
        boot: u64,
        cluster: u64,
        id: &DatastoreId,
    ) -> Result<Host, OpenError> {
        let script: Arc<Script> = Arc::default();
        let (store, cache) = match self.kind {
            DatastoreKind::File => {
                let files = Arc::new(Files::new(Arc::clone(&script), &self.aside()));
                let dyn_files = Arc::clone(&files) as Arc<_>;
                let store =
                    FileDatastore::attach_on(dyn_files, self.mount(), cluster, id, &host(n))?;
                (Datastore::from(store), Cache::Files(files, self.records()))
            }
            DatastoreKind::Block => {
                let sectors = Arc::clone(&self.sectors);
                let way = Arc::new(Way::new(Arc::clone(&script), sectors));
                let here = Here {
                    host: host(n),
                    boot: BootId(boot),
                    run_dir: self.dir.path().into(),
                };
                let disk = Arc::clone(&way) as Arc<_>;
                let store = BlockDatastore::open_on(disk, Path::new("memory"), cluster, id, &here)?;
                (Datastore::from(store), Cache::Way(way))
            }
        };
        Ok(Host {
            n,
            boot,
            script,
            store: Arc::new(store),
            cache,
        })
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        match self.kind {
            DatastoreKind::Block => Snapshot::Sectors(self.sectors.copy()),
            DatastoreKind::File => {
                let all = std::fs::read_dir(self.records()).expect("listed");
                let all = all.map(|entry| {
                    let entry = entry.expect("an entry");
                    let bytes = std::fs::read(entry.path()).expect("read");
                    (entry.file_name(), bytes)
                });
                Snapshot::Files(all.collect())
            }
        }
    }

    /// All that there is, whosever it is: names and bytes.
    pub(super) fn raw(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut raw = BTreeMap::new();
        raw.insert(PathBuf::from("sectors"), self.sectors.copy());
        let mut left = vec![self.dir.path().join(".mainstay")];
        while let Some(directory) = left.pop() {
            for entry in std::fs::read_dir(directory).into_iter().flatten() {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    left.push(path);
                } else {
                    let bytes = std::fs::read(&path).expect("read");
                    raw.insert(path, bytes);
                }
            }
        }
        raw
    }

    /// The array shows what it held then, in the same files.
    pub(super) fn restore(&self, snapshot: &Snapshot) {
        match snapshot {
            Snapshot::Sectors(bytes) => self.sectors.replace(bytes.clone()),
            Snapshot::Files(files) => {
                for entry in std::fs::read_dir(self.records()).expect("listed") {
                    let entry = entry.expect("an entry");
                    if !files.contains_key(&entry.file_name()) {
                        std::fs::remove_file(entry.path()).expect("removed");
                    }
                }
                for (name, bytes) in files {
                    std::fs::write(self.records().join(name), bytes).expect("written");
                }
            }
        }
    }
}

impl Host {
    pub(super) fn perform(&self, request: StorageRequest) -> StorageOutcome {
        self.store.perform(&request)
    }

    pub(super) fn read(&self, key: RecordKey) -> StorageOutcome {
        self.perform(StorageRequest::Read(key))
    }

    /// Links a record of no lock at all: whose it is shows its byte.
    pub(super) fn link(&self, key: RecordKey, byte: u8) -> StorageOutcome {
        self.perform(StorageRequest::Link(key, vec![byte; 180]))
    }

    pub(super) fn stamp(&self, seq: u64) -> Stamp {
        Stamp {
            writer: host(self.n),
            boot: BootId(self.boot),
            instance: InstanceId(self.boot),
            seq,
        }
    }

    pub(super) fn beat(&self, seq: u64) -> StorageRequest {
        let record = HeartbeatRecord {
            freeze: BREAK / 2,
            r#break: BREAK,
        };
        let bytes = record.encode(CLUSTER, &self.stamp(seq));
        StorageRequest::Renew(RecordKey::Heartbeat(host(self.n)), bytes)
    }

    /// From now on this host's reads show what is there now: of a directory the names, until it changes one itself,
    /// of a device all.
    pub(super) fn cache(&self) {
        match &self.cache {
            Cache::Files(files, directory) => files.cache(directory, true),
            Cache::Way(way) => way.cache(),
        }
    }

    /// From now on this host lists what is there now, and opens what is there then. A device knows no such thing.
    pub(super) fn cache_listings(&self) {
        if let Cache::Files(files, directory) = &self.cache {
            files.cache(directory, false);
        }
    }

    /// What is cached counts no more.
    pub(super) fn expire(&self) {
        match &self.cache {
            Cache::Files(files, _) => files.expire(),
            Cache::Way(way) => way.expire(),
        }
    }
}

/// The byte of a record that [`Host::link`] made; none: it is not there.
pub(super) fn byte_of(outcome: &StorageOutcome) -> Option<u8> {
    match outcome {
        StorageOutcome::Ok(StorageValue::Bytes(bytes)) => {
            assert!(bytes.iter().all(|b| Some(b) == bytes.first()), "a mixture");
            assert_eq!(bytes.len(), 180, "whole");
            bytes.first().copied()
        }
        StorageOutcome::Ok(StorageValue::NotFound) => None,
        other => panic!("not read: {other:?}"),
    }
}
