//! The explicit "add datastore" action: the only code that makes a datastore's directory.

use crate::error::CreateError;
use crate::file::{FileDatastore, record_dir, write_new};
use mainstay_core::config::{ClusterConfig, Settings};
use mainstay_core::id::{DatastoreId, HostId, VmId};
use mainstay_core::provision::{MARKER_FILE, datastore_records, marker, vm_record};
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

    /// Adds a VM to an open datastore: its lock, free.
    ///
    /// # Errors
    /// [`CreateError::Exists`] when its lock is there, [`CreateError::Io`].
    pub fn add_vm(&self, settings: &Settings, vm: &VmId, by: &HostId) -> Result<(), CreateError> {
        let (key, bytes) = vm_record(self.cluster(), settings, vm, by);
        let path = self.dir().join(key.file_name());
        write_new(&path, &bytes)
            .and_then(|()| File::open(self.dir()).and_then(|d| d.sync_all()))
            .map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => CreateError::Exists(path),
                _ => CreateError::Io { path, source },
            })
    }
}
