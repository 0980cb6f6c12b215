//! Opening a region.

use super::BlockDatastore;
use super::claim::Claim;
use super::disk::{Device, Disk};
use super::layout::{Codec, HEAD_COPY, Name, RegionHead, head_bytes, read_head};
use crate::error::OpenError;
use mainstay_core::id::{BootId, DatastoreId, HostId};
use mainstay_core::wire::DecodeError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The machine on which a region is opened.
#[derive(Clone, Debug)]
pub struct Here {
    /// The host's id.
    pub host: HostId,
    /// Its boot.
    pub boot: BootId,
    /// A directory that outlives processes, but no boot: what is in flight to the region's slots is noted there.
    pub run_dir: PathBuf,
}

impl BlockDatastore {
    /// Opens the region on a device, for reading and writing. The host must have a place in it.
    ///
    /// # Errors
    /// [`OpenError`]: the device is missing, foreign, damaged, does not answer, or has no place for this host.
    pub fn open(
        path: &Path,
        cluster: u64,
        id: &DatastoreId,
        here: &Here,
    ) -> Result<Self, OpenError> {
        if !path.exists() {
            return Err(OpenError::NoMount {
                datastore: id.clone(),
                mount: path.into(),
            });
        }
        Self::open_on(Arc::new(Device::new(path)), path, cluster, id, here)
    }

    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        path: &Path,
        cluster: u64,
        id: &DatastoreId,
        here: &Here,
    ) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io {
            datastore: id.clone(),
            path: path.into(),
            source,
        };
        let incarnation = random().map_err(io)?;
        let head = opened_head(disk.as_ref(), path, cluster, id)?;
        let sector = head.geometry.sector_len();
        let head_bytes = disk.read(0, sector).map_err(io)?;
        let codec = Codec {
            cluster,
            region: head.region,
            stamp: Codec::stamp_of(&here.host, here.boot, incarnation),
            sector,
        };
        let datastore = Self {
            host: here.host.clone(),
            boot: here.boot,
            incarnation,
            run_dir: here.run_dir.clone(),
            head,
            head_bytes,
            codec,
            disk,
            names: Mutex::default(),
            claims: Mutex::default(),
            registers: Mutex::default(),
            heartbeat: Mutex::default(),
            is_astray: std::sync::atomic::AtomicBool::new(false),
            extents: Mutex::default(),
        };
        match datastore.find(&Name::Host(here.host.clone())) {
            Ok(Some(_)) => Ok(datastore),
            Ok(None) => Err(OpenError::NoPlace {
                datastore: id.clone(),
                path: path.into(),
                host: here.host.clone(),
            }),
            Err(_) => Err(io(io::Error::other(
                "the names of its registers are damaged; run `mainstay datastore repair`",
            ))),
        }
    }

    /// Claims one more slot of this host. None: there is none that is free and clean.
    pub(super) fn claim_next(&self, claims: &[Arc<Claim>]) -> Option<Claim> {
        let place = self.place(&self.host).ok().flatten()?;
        let writers = self.head.geometry.writers;
        let first = u16::try_from(place).ok()?.checked_mul(writers)?;
        (first..first + writers)
            .filter(|slot| claims.iter().all(|claim| claim.slot != *slot))
            .find_map(|slot| {
                let taken = Claim::take(self.head.region, slot, self.boot, &self.run_dir);
                taken.unwrap_or_else(|error| {
                    tracing::warn!(datastore = %self.id(), slot, %error, "a slot cannot be claimed");
                    None
                })
            })
    }
}

/// A random number, from the kernel.
pub(super) fn random() -> io::Result<u64> {
    getrandom::u64().map_err(io::Error::other)
}

/// The head of this datastore's region.
fn opened_head(
    disk: &dyn Disk,
    path: &Path,
    cluster: u64,
    id: &DatastoreId,
) -> Result<RegionHead, OpenError> {
    let io = |source| OpenError::Io {
        datastore: id.clone(),
        path: path.into(),
        source,
    };
    // With either sector size the head lies in the first 512 bytes.
    let bytes = disk.read(0, 4096).map_err(io)?;
    match read_head(cluster, &bytes) {
        Ok(head) if head.datastore == *id => Ok(head),
        Ok(head) => Err(OpenError::OtherDatastore {
            datastore: id.clone(),
            found: head.datastore,
            mount: path.into(),
        }),
        Err(DecodeError::Foreign { found, own }) => Err(OpenError::OtherCluster {
            datastore: id.clone(),
            mount: path.into(),
            found: format!("{found:016x}"),
            own: format!("{own:016x}"),
        }),
        Err(source) => {
            let copy = disk.read(HEAD_COPY, 4096).map_err(io)?;
            let copied = read_head(cluster, &copy).is_ok();
            if copied || !matches!(source, DecodeError::Magic | DecodeError::Torn { .. }) {
                return Err(OpenError::DamagedRegion {
                    datastore: id.clone(),
                    path: path.into(),
                    source,
                });
            }
            Err(OpenError::NotAdded {
                datastore: id.clone(),
                mount: path.into(),
            })
        }
    }
}

/// Writes the head and its copy; the head last.
pub(super) fn write_heads(
    disk: &dyn Disk,
    codec: &Codec,
    head: &RegionHead,
) -> Result<(), super::disk::WriteError> {
    let bytes = head_bytes(codec.cluster, &codec.stamp, head);
    disk.write(HEAD_COPY, &bytes)?;
    disk.write(0, &bytes)
}

/// The boot that no host has: that of records which an administrator made.
pub(super) const NO_BOOT: BootId = BootId(0);
