//! Why a datastore cannot be used, and how the kernel's errors map to the core's faults.

use mainstay_core::id::{DatastoreId, HostId};
use mainstay_core::io::IoFault;
use mainstay_core::wire::DecodeError;
use nix::errno::Errno;
use std::io;
use std::path::PathBuf;

/// Why a datastore was not opened. Nothing on it was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The mount point is not there.
    #[error("datastore \"{datastore}\": the mount point {} is missing; mount the datastore there or correct its path in agent.toml", .mount.display())]
    NoMount {
        /// The datastore.
        datastore: DatastoreId,
        /// Where it should be.
        mount: PathBuf,
    },
    /// The mount point has no directory of this cluster.
    #[error("datastore \"{datastore}\": {} has no marker of this cluster; mount the datastore (the mount point looks empty), or add it with `mainstay datastore add` if it is new", .mount.display())]
    NotAdded {
        /// The datastore.
        datastore: DatastoreId,
        /// Where it should be.
        mount: PathBuf,
    },
    /// It belongs to another cluster.
    #[error("datastore \"{datastore}\": {} belongs to cluster {found}, this agent to {own}; correct its path in agent.toml, or add it to this cluster", .mount.display())]
    OtherCluster {
        /// The datastore.
        datastore: DatastoreId,
        /// Where it is.
        mount: PathBuf,
        /// The cluster that it belongs to.
        found: String,
        /// The agent's cluster.
        own: String,
    },
    /// It is another datastore of this cluster.
    #[error("{} is datastore \"{found}\", not \"{datastore}\"; exchange the paths in agent.toml", .mount.display())]
    OtherDatastore {
        /// The datastore that should be there.
        datastore: DatastoreId,
        /// The one that is there.
        found: DatastoreId,
        /// Where it is.
        mount: PathBuf,
    },
    /// The marker is damaged.
    #[error("datastore \"{datastore}\": the marker {} is damaged; restore it from a backup of the same datastore", .path.display())]
    Damaged {
        /// The datastore.
        datastore: DatastoreId,
        /// The marker.
        path: PathBuf,
        /// How.
        source: DecodeError,
    },
    /// The head of a region on a device is damaged.
    #[error("datastore \"{datastore}\": the head of the region on {} is damaged; `mainstay datastore repair` restores it from its copy", .path.display())]
    DamagedRegion {
        /// The datastore.
        datastore: DatastoreId,
        /// The device.
        path: PathBuf,
        /// How.
        source: DecodeError,
    },
    /// This host has no place in the region.
    #[error("datastore \"{datastore}\": {host} has no place in the region on {}; run `mainstay datastore add` on a host that has one", .path.display())]
    NoPlace {
        /// The datastore.
        datastore: DatastoreId,
        /// The device.
        path: PathBuf,
        /// The host.
        host: HostId,
    },
    /// The storage answers with an error.
    #[error("datastore \"{datastore}\": cannot read {}; check the mount and its server", .path.display())]
    Io {
        /// The datastore.
        datastore: DatastoreId,
        /// What was read.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a datastore was not added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// It is there.
    #[error("{} is there: the datastore has been added before, or an earlier attempt broke off; if no agent uses it, remove that directory and try again", .0.display())]
    Exists(PathBuf),
    /// It cannot be written.
    #[error("cannot write {}; check that the datastore is mounted, writable and not full", .path.display())]
    Io {
        /// What was written.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a datastore, or what is new on it, was not added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// It, or a record on it, cannot be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// What is there is not this datastore.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// The core's word for an error of the kernel.
pub(crate) fn fault(error: &io::Error) -> IoFault {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENXIO | Errno::EIO | Errno::ESTALE | Errno::ENODEV | Errno::ENOTCONN) => {
            IoFault::Gone
        }
        Some(Errno::ENOSPC | Errno::EDQUOT) => IoFault::Full,
        Some(Errno::EROFS) => IoFault::ReadOnly,
        Some(Errno::ETIMEDOUT) => IoFault::TimedOut,
        _ => IoFault::Other,
    }
}

/// A write that ended so was refused before anything of it was done: there was no space for it, or the
/// file system does not take it in this way.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EINVAL | Errno::EFBIG)
    )
}
