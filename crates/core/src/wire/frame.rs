//! The frame around every record and message: magic, format version, kind, newest version that the
//! writer understands, cluster id, stamp (writer, boot, instance, sequence), body, checksum.
//!
//! A frame carries the version in which its contents could first be said, not the writer's: what an
//! older agent can understand, it gets to read. What it cannot understand is not written while it is a
//! member (`docs/protocol.md`, "Versions").

use crate::id::{BootId, HostId, InstanceId};
use alloc::string::String;
use alloc::vec::Vec;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The newest version of the formats. It and the one before are understood; a newer one is refused by
/// name.
///
/// 1: the first. 2: locks say who gave them back; agents tell each other how they are ([`super::Facts`]);
/// the configuration has the addresses and images that were added while the cluster ran.
pub const FORMAT_VERSION: u16 = 2;
/// The oldest version that is understood.
pub const OLDEST_VERSION: u16 = 1;

/// Longest record or message that is decoded (a powered-on list of 2,048 VMs holds at most 140 KB; seed
/// "vSphere 5.0 High Availability (HA)"; a protected list of 16,000 VMs fits, with both copies of each page).
pub const RECORD_MAX_BYTES: usize = 8 << 20;

/// Two empty maps.
const NO_PLACES: &[u8] = &[0, 0];

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
    /// The head of a `block` datastore's region.
    RegionHead = 9,
    /// A slot of a register of generations, on a `block` datastore.
    RegisterSlot = 10,
    /// What a register is for, on a `block` datastore.
    RegisterName = 11,
    /// The head of an extent that holds a list or a configuration, on a `block` datastore.
    ExtentHead = 12,
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
    /// Written by a version that is too old.
    #[error(
        "format version {found} is older than {OLDEST_VERSION}, the oldest that this agent understands; upgrade the agent that wrote it, one version at a time"
    )]
    Outdated {
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
    /// The body decodes to what cannot be.
    #[error("the record's contents contradict themselves: {0}")]
    Unsound(String),
    /// Longer than [`RECORD_MAX_BYTES`].
    #[error("the record says that it has {0} bytes; at most 8 MiB are taken")]
    TooLong(usize),
}

/// What a frame says of versions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Versions {
    /// That of the contents.
    pub(super) of: u16,
    /// The newest that the writer understands.
    pub(super) understood: u16,
}

impl Versions {
    /// Contents of the first version by an agent of this one.
    pub(super) const FIRST: Self = Self::of(1);

    /// Contents of that version by an agent of this one.
    pub(super) const fn of(version: u16) -> Self {
        Self {
            of: version,
            understood: FORMAT_VERSION,
        }
    }
}

/// The newest format version that the writer of a frame understands; none: this is no frame.
#[must_use]
pub fn understood_by_writer(bytes: &[u8]) -> Option<u16> {
    if bytes.get(..MAGIC.len())? != MAGIC {
        return None;
    }
    let of = u16::from_le_bytes(array(bytes, 4)?);
    // The first version had a zero there.
    Some(of.max(u16::from(*bytes.get(7)?)).max(1))
}

/// The format version of a frame's contents; none: this is no frame.
#[must_use]
pub fn version_of(bytes: &[u8]) -> Option<u16> {
    (bytes.get(..MAGIC.len())? == MAGIC).then_some(u16::from_le_bytes(array(bytes, 4)?))
}

/// Frames a body of the first version.
#[must_use]
pub fn encode<T: Serialize>(kind: FrameKind, cluster: u64, stamp: &Stamp, body: &T) -> Vec<u8> {
    encode_as(kind, Versions::FIRST, cluster, stamp, body)
}

/// Frames a body of a version.
pub(super) fn encode_as<T: Serialize>(
    kind: FrameKind,
    versions: Versions,
    cluster: u64,
    stamp: &Stamp,
    body: &T,
) -> Vec<u8> {
    // Serialising our own types into memory cannot fail; an empty body would fail its decoding.
    let payload = postcard::to_allocvec(&(stamp, body)).unwrap_or_default();
    let mut out = Vec::with_capacity(HEAD + payload.len() + 4);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&versions.of.to_le_bytes());
    out.push(kind as u8);
    out.push(u8::try_from(versions.understood).unwrap_or(u8::MAX));
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

/// Reads a frame whose body is the same in all versions that are understood; bytes behind it (padding of
/// a sector) are ignored.
///
/// # Errors
/// [`DecodeError`] for anything that is not a sound frame of this kind and cluster.
pub fn decode<T: DeserializeOwned>(
    kind: FrameKind,
    cluster: u64,
    bytes: &[u8],
) -> Result<(Stamp, T), DecodeError> {
    body(open(kind, cluster, bytes)?.1)
}

/// Reads a frame whose body may end with a configuration, which in the first version had no
/// [`crate::config::Places`]: two empty maps.
pub(super) fn decode_with_config<T: DeserializeOwned>(
    kind: FrameKind,
    cluster: u64,
    bytes: &[u8],
) -> Result<(Stamp, T), DecodeError> {
    let (version, payload) = open(kind, cluster, bytes)?;
    match body(payload) {
        Err(DecodeError::Body) if version == 1 => body(&[payload, NO_PLACES].concat()),
        read => read,
    }
}

/// Reads a body.
pub(super) fn body<T: DeserializeOwned>(payload: &[u8]) -> Result<(Stamp, T), DecodeError> {
    postcard::from_bytes::<(Stamp, T)>(payload).map_err(|_| DecodeError::Body)
}

/// Checks a frame; gives the version of its contents, and stamp and body as they were framed.
pub(super) fn open(
    kind: FrameKind,
    cluster: u64,
    bytes: &[u8],
) -> Result<(u16, &[u8]), DecodeError> {
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
    if version < OLDEST_VERSION {
        return Err(DecodeError::Outdated { found: version });
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
    Ok((version, payload))
}
