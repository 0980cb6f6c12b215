//! The frame around every record and message: magic, format version, kind, cluster id, stamp
//! (writer, boot, instance, sequence), body, checksum.

use crate::id::{BootId, HostId, InstanceId};
use alloc::vec::Vec;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of all formats. One version back is understood; a newer one is refused by name.
pub const FORMAT_VERSION: u16 = 1;

/// Longest record or message that is decoded (a powered-on list of 2,048 VMs holds at most 140 KB; seed
/// "vSphere 5.0 High Availability (HA)"; a protected list of 16,000 VMs fits, with both copies of each page).
pub const RECORD_MAX_BYTES: usize = 8 << 20;

const MAGIC: [u8; 4] = *b"MNST";
const HEAD: usize = 4 + 2 + 1 + 1 + 8 + 4;

/// What a frame holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FrameKind {
    /// A datastore heartbeat.
    Heartbeat = 1,
    /// A powered-on list.
    Poweron = 2,
    /// A generation of a lock.
    Lock = 3,
    /// A protected list.
    Protected = 4,
    /// A message between agents.
    Message = 5,
    /// The marker of a datastore.
    Marker = 6,
    /// The cluster's configuration.
    Config = 7,
    /// A message on the stream between two agents.
    Envelope = 8,
}

/// Who wrote a record, and which of its writes it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Stamp {
    /// The host.
    pub writer: HostId,
    /// Its boot.
    pub boot: BootId,
    /// Its agent's start.
    pub instance: InstanceId,
    /// Grows with each write of that instance.
    pub seq: u64,
}

/// Why bytes are no record. The record is treated as absent, never as good news.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Shorter than its own length says, or than the smallest frame.
    #[error("the record is torn: {have} bytes of {need}")]
    Torn {
        /// Bytes there.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// Does not begin with Mainstay's magic.
    #[error("this is no record of Mainstay")]
    Magic,
    /// Written by a newer version.
    #[error(
        "format version {found} is newer than {FORMAT_VERSION}, the newest that this agent understands; upgrade this agent"
    )]
    Version {
        /// The version in the record.
        found: u16,
    },
    /// Another kind of record.
    #[error("a record of kind {found} where {wanted:?} belongs")]
    Kind {
        /// The kind in the record.
        found: u8,
        /// The kind that belongs here.
        wanted: FrameKind,
    },
    /// Of another cluster.
    #[error("the record belongs to cluster {found:016x}, this agent to {own:016x}")]
    Foreign {
        /// The cluster in the record.
        found: u64,
        /// The agent's cluster.
        own: u64,
    },
    /// The checksum does not fit.
    #[error("the record is damaged: its checksum does not fit")]
    Checksum,
    /// The body does not decode.
    #[error("the record's body does not decode")]
    Body,
    /// Longer than [`RECORD_MAX_BYTES`].
    #[error("the record says that it has {0} bytes; at most 8 MiB are taken")]
    TooLong(usize),
}

/// Frames a body.
#[must_use]
pub fn encode<T: Serialize>(kind: FrameKind, cluster: u64, stamp: &Stamp, body: &T) -> Vec<u8> {
    // Serialising our own types into memory cannot fail; an empty body would fail its decoding.
    let payload = postcard::to_allocvec(&(stamp, body)).unwrap_or_default();
    let mut out = Vec::with_capacity(HEAD + payload.len() + 4);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.push(kind as u8);
    out.push(0);
    out.extend_from_slice(&cluster.to_le_bytes());
    out.extend_from_slice(
        &u32::try_from(payload.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes(),
    );
    out.extend_from_slice(&payload);
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// Reads a frame; bytes behind it (padding of a sector) are ignored.
///
/// # Errors
/// [`DecodeError`] for anything that is not a sound frame of this kind and cluster.
pub fn decode<T: DeserializeOwned>(
    kind: FrameKind,
    cluster: u64,
    bytes: &[u8],
) -> Result<(Stamp, T), DecodeError> {
    let torn = |need| DecodeError::Torn {
        have: bytes.len(),
        need,
    };
    let magic: [u8; 4] = array(bytes, 0).ok_or(torn(HEAD))?;
    if magic != MAGIC {
        return Err(DecodeError::Magic);
    }
    let version = u16::from_le_bytes(array(bytes, 4).ok_or(torn(HEAD))?);
    if version > FORMAT_VERSION {
        return Err(DecodeError::Version { found: version });
    }
    let found_kind = *bytes.get(6).ok_or(torn(HEAD))?;
    let found_cluster = u64::from_le_bytes(array(bytes, 8).ok_or(torn(HEAD))?);
    let length = u32::from_le_bytes(array(bytes, 16).ok_or(torn(HEAD))?);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > RECORD_MAX_BYTES {
        return Err(DecodeError::TooLong(length));
    }
    let end = HEAD + length;
    let payload = bytes.get(HEAD..end).ok_or(torn(end + 4))?;
    let crc = u32::from_le_bytes(array(bytes, end).ok_or(torn(end + 4))?);
    let framed = bytes.get(..end).ok_or(torn(end))?;
    if crc32fast::hash(framed) != crc {
        return Err(DecodeError::Checksum);
    }
    if found_kind != kind as u8 {
        return Err(DecodeError::Kind {
            found: found_kind,
            wanted: kind,
        });
    }
    if found_cluster != cluster {
        return Err(DecodeError::Foreign {
            found: found_cluster,
            own: cluster,
        });
    }
    postcard::from_bytes::<(Stamp, T)>(payload).map_err(|_| DecodeError::Body)
}
