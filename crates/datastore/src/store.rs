//! A datastore of either kind.

use crate::block::{BlockDatastore, Here};
use crate::error::{AddError, OpenError};
use crate::file::FileDatastore;
use mainstay_core::config::{ClusterConfig, DatastoreKind, HostSpec, VmSpec};
use mainstay_core::id::DatastoreId;
use mainstay_core::io::{StorageOutcome, StorageRequest};
use mainstay_core::wire::RecordKey;
use std::path::Path;

/// A datastore of this cluster, as this host uses it.
#[derive(Debug)]
pub enum Datastore {
    /// A directory that all hosts mount.
    File(Box<FileDatastore>),
    /// A region on a device that all hosts share.
    Block(Box<BlockDatastore>),
}

/// The kind of a cluster's datastore; that of one which the cluster does not have is `file`.
fn kind_of(cluster: &ClusterConfig, id: &DatastoreId) -> DatastoreKind {
    let spec = cluster.datastores.get(id);
    spec.map(|spec| spec.kind).unwrap_or_default()
}

impl Datastore {
    /// Opens a datastore that has been added to the cluster: at a directory, or on a device or a file.
    ///
    /// # Errors
    /// [`OpenError`]: it is missing, foreign, damaged, or does not answer.
    pub fn open(
        kind: DatastoreKind,
        path: &Path,
        cluster: u64,
        id: &DatastoreId,
        here: &Here,
    ) -> Result<Self, OpenError> {
        match kind {
            DatastoreKind::File => {
                FileDatastore::open(path, cluster, id, &here.host).map(Self::from)
            }
            DatastoreKind::Block => BlockDatastore::open(path, cluster, id, here).map(Self::from),
        }
    }

    /// Opens it beside an agent of the same host, only to read from it: nothing that is the agent's is touched.
    ///
    /// # Errors
    /// [`OpenError`], as for [`Datastore::open`].
    pub fn attach(
        kind: DatastoreKind,
        path: &Path,
        cluster: u64,
        id: &DatastoreId,
        here: &Here,
    ) -> Result<Self, OpenError> {
        match kind {
            DatastoreKind::File => {
                FileDatastore::attach(path, cluster, id, &here.host).map(Self::from)
            }
            // Its slots are claimed by writing.
            DatastoreKind::Block => Self::open(kind, path, cluster, id, here),
        }
    }

    /// The datastore's id.
    #[must_use]
    pub fn id(&self) -> &DatastoreId {
        match self {
            Self::File(store) => store.id(),
            Self::Block(store) => store.id(),
        }
    }

    /// Performs one operation. Blocks for as long as the storage does.
    #[must_use]
    pub fn perform(&self, request: &StorageRequest) -> StorageOutcome {
        match self {
            Self::File(store) => store.perform(request),
            Self::Block(store) => store.perform(request),
        }
    }

    /// What is weaker here than it should be, with the remedy.
    #[must_use]
    pub fn weakness(&self) -> Option<String> {
        match self {
            Self::File(store) => store.weakness(),
            Self::Block(store) => store.weakness(),
        }
    }

    /// Where its records lie: a directory, or a device where it is on one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::File(store) => Some(store.dir()),
            Self::Block(store) => store.path(),
        }
    }

    /// Adds to the cluster a `file` datastore, or what is missing on one of either kind: heartbeats of new hosts,
    /// locks of new VMs. Answers what was made on an existing one, none for a new one. A region is made by
    /// [`BlockDatastore::format`] alone.
    ///
    /// # Errors
    /// [`AddError`].
    pub fn add(
        path: &Path,
        cluster: &ClusterConfig,
        id: &DatastoreId,
        here: &Here,
    ) -> Result<Option<Vec<RecordKey>>, AddError> {
        match kind_of(cluster, id) {
            DatastoreKind::File => FileDatastore::add(path, cluster, id, &here.host),
            DatastoreKind::Block => BlockDatastore::add(path, cluster, id, here).map(Some),
        }
    }

    /// Makes the heartbeat of a host that is about to join. Answers whether there was none.
    ///
    /// # Errors
    /// [`AddError`].
    pub fn add_host(
        path: &Path,
        cluster: &ClusterConfig,
        id: &DatastoreId,
        host: &HostSpec,
        here: &Here,
    ) -> Result<bool, AddError> {
        match kind_of(cluster, id) {
            DatastoreKind::File => FileDatastore::add_host(path, cluster, id, host),
            DatastoreKind::Block => BlockDatastore::add_host(path, cluster, id, host, here),
        }
    }

    /// Makes the free lock of a VM that is about to be made. Answers whether it had none.
    ///
    /// # Errors
    /// [`AddError`].
    pub fn add_vm(
        path: &Path,
        cluster: &ClusterConfig,
        vm: &VmSpec,
        here: &Here,
    ) -> Result<bool, AddError> {
        match kind_of(cluster, &vm.datastore) {
            DatastoreKind::File => FileDatastore::add_vm(path, cluster, vm, &here.host),
            DatastoreKind::Block => BlockDatastore::add_vm(path, cluster, vm, here),
        }
    }
}

impl From<FileDatastore> for Datastore {
    fn from(store: FileDatastore) -> Self {
        Self::File(Box::new(store))
    }
}

impl From<BlockDatastore> for Datastore {
    fn from(store: BlockDatastore) -> Self {
        Self::Block(Box::new(store))
    }
}
