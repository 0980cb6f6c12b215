//! The explicit "add datastore" action: the only code that makes a datastore's directory, and the first
//! records of hosts and VMs.

use crate::directory::write_new;
use crate::error::{AddError, CreateError};
use crate::file::{FileDatastore, record_dir};
use mainstay_core::config::{ClusterConfig, HostSpec, VmSpec};
use mainstay_core::id::{DatastoreId, HostId, VmId};
use mainstay_core::io::{StorageOutcome, StorageRequest, StorageValue};
use mainstay_core::provision::{MARKER_FILE, datastore_records, marker, vm_record};
use mainstay_core::wire::RecordKey;
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

impl FileDatastore {
    /// Adds the datastore that is mounted at `mount` to the cluster: makes its directory (mode 0700)
    /// with a heartbeat for each host that mounts it, a free lock for each VM on it, and at last the
    /// marker. Nothing that exists is overwritten.
    ///
    /// # Errors
    /// [`CreateError::Exists`] when the directory is there, [`CreateError::Io`].
    pub fn create(
        mount: &Path,
        cluster: &ClusterConfig,
        id: &DatastoreId,
        by: &HostId,
    ) -> Result<(), CreateError> {
        let dir = record_dir(mount, cluster.cluster_id);
        let io = |path: &Path, source| CreateError::Io {
            path: path.into(),
            source,
        };
        let Some(spec) = cluster.datastores.get(id) else {
            return Err(io(
                mount,
                io::Error::other("the cluster has no such datastore"),
            ));
        };
        if let Some(parent) = dir.parent() {
            match DirBuilder::new().mode(0o700).create(parent) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(io(parent, e)),
                _ => {}
            }
        }
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => CreateError::Exists(dir.clone()),
                _ => io(&dir, e),
            })?;
        let hosts = cluster.hosts.values().filter(|h| h.datastores.contains(id));
        let mut records = datastore_records(cluster.cluster_id, &cluster.settings, hosts, by);
        let vms = cluster.vms.values().filter(|v| v.datastore == *id);
        records.extend(vms.map(|v| vm_record(cluster.cluster_id, &cluster.settings, &v.id, by)));
        for (key, bytes) in records {
            let path = dir.join(key.file_name());
            write_new(&path, &bytes).map_err(|e| io(&path, e))?;
        }
        // The marker comes last: a datastore without one is not used.
        let path = dir.join(MARKER_FILE);
        write_new(&path, &marker(cluster.cluster_id, spec, by)).map_err(|e| io(&path, e))?;
        File::open(&dir)
            .and_then(|d| d.sync_all())
            .map_err(|e| io(&dir, e))
    }

    /// Adds the datastore as [`FileDatastore::create`] does or, where it has been added before, what is
    /// missing on it: the heartbeats of new hosts, the locks of new VMs. Answers the records that were
    /// made for an existing datastore, none for a new one. Nothing that exists is changed.
    ///
    /// A lock whose records somebody removed is begun again too. Agents remember the generations that
    /// they have seen and refuse a lock that went backwards.
    ///
    /// # Errors
    /// [`AddError::Create`], or [`AddError::Open`] when the datastore is there but is not this one.
    pub fn add(
        mount: &Path,
        cluster: &ClusterConfig,
        id: &DatastoreId,
        by: &HostId,
    ) -> Result<Option<Vec<RecordKey>>, AddError> {
        let dir = record_dir(mount, cluster.cluster_id);
        if !dir.join(MARKER_FILE).exists() {
            Self::create(mount, cluster, id, by)?;
            return Ok(None);
        }
        let datastore = Self::attach(mount, cluster.cluster_id, id, by)?;
        let settings = &cluster.settings;
        let locked: BTreeSet<VmId> = match datastore.perform(&StorageRequest::ListAllVmLocks) {
            StorageOutcome::Ok(StorageValue::Keys(keys)) => keys
                .into_iter()
                .filter_map(|key| match key {
                    RecordKey::VmLock(vm, _) => Some(vm),
                    _ => None,
                })
                .collect(),
            _ => return Err(unlisted(&dir).into()),
        };
        let hosts = cluster.hosts.values().filter(|h| h.datastores.contains(id));
        let heartbeats = datastore_records(cluster.cluster_id, settings, hosts, by)
            .into_iter()
            .filter(|(key, _)| matches!(key, RecordKey::Heartbeat(_)));
        let locks = cluster
            .vms
            .values()
            .filter(|v| v.datastore == *id && !locked.contains(&v.id))
            .map(|v| vm_record(cluster.cluster_id, settings, &v.id, by));
        let mut made = Vec::new();
        for (key, bytes) in heartbeats.chain(locks) {
            if datastore.begin_once(&key, &bytes)? {
                made.push(key);
            }
        }
        Ok(Some(made))
    }

    /// Makes the heartbeat of a host that is about to join, on a datastore that it mounts. Answers whether
    /// there was none.
    ///
    /// # Errors
    /// [`AddError::Open`] when this datastore is not there, [`AddError::Create`].
    pub fn add_host(
        mount: &Path,
        cluster: &ClusterConfig,
        id: &DatastoreId,
        host: &HostSpec,
    ) -> Result<bool, AddError> {
        let datastore = Self::attach(mount, cluster.cluster_id, id, &host.id)?;
        let only = std::iter::once(host);
        let records =
            datastore_records(cluster.cluster_id, &cluster.settings, only, &host.id).into_iter();
        let mut heartbeat = records.filter(|(key, _)| matches!(key, RecordKey::Heartbeat(_)));
        let Some((key, bytes)) = heartbeat.next() else {
            return Ok(false);
        };
        datastore.begin_once(&key, &bytes)
    }

    /// Makes the free lock of a VM that is about to be made, on its home datastore. Answers whether it had
    /// none: the chain of one that was deleted goes on.
    ///
    /// # Errors
    /// [`AddError::Open`] when this datastore is not there, [`AddError::Create`].
    pub fn add_vm(
        mount: &Path,
        cluster: &ClusterConfig,
        vm: &VmSpec,
        by: &HostId,
    ) -> Result<bool, AddError> {
        let datastore = Self::attach(mount, cluster.cluster_id, &vm.datastore, by)?;
        match datastore.perform(&StorageRequest::ListVmLock(vm.id.clone())) {
            StorageOutcome::Ok(StorageValue::Keys(keys)) if keys.is_empty() => {}
            StorageOutcome::Ok(StorageValue::Keys(_)) => return Ok(false),
            _ => return Err(unlisted(datastore.dir()).into()),
        }
        let (key, bytes) = vm_record(cluster.cluster_id, &cluster.settings, &vm.id, by);
        datastore.begin_once(&key, &bytes)
    }

    /// Answers whether it was not there.
    fn begin_once(&self, key: &RecordKey, bytes: &[u8]) -> Result<bool, AddError> {
        match self.begin(key, bytes) {
            Ok(()) => Ok(true),
            Err(CreateError::Exists(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn begin(&self, key: &RecordKey, bytes: &[u8]) -> Result<(), CreateError> {
        let path = self.dir().join(key.file_name());
        write_new(&path, bytes)
            .and_then(|()| File::open(self.dir()).and_then(|d| d.sync_all()))
            .map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => CreateError::Exists(path),
                _ => CreateError::Io { path, source },
            })
    }
}

fn unlisted(dir: &Path) -> CreateError {
    CreateError::Io {
        path: dir.into(),
        source: io::Error::other("its records cannot be listed"),
    }
}
