//! What travels on the stream between two agents: a message with its place in their session.

use super::frame::{DecodeError, FrameKind, Stamp, Versions, decode_with_config, encode_as};
use super::message::Message;
use crate::id::InstanceId;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// One direction of a conversation between two agent instances.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SessionId {
    /// The sender's start of its agent.
    pub from: InstanceId,
    /// The receiver's, as the sender knows it.
    pub to: InstanceId,
    /// Grows when the sender gives a session up and begins another with the same receiver.
    pub epoch: u64,
}

/// A message on the stream. Its numbers begin with 1 in each session and have no gaps.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// The session.
    pub session: SessionId,
    /// Its place in it.
    pub number: u64,
    /// The message.
    pub message: Message,
}

impl Envelope {
    /// Frames the envelope.
    #[must_use]
    pub fn encode(&self, cluster: u64, stamp: &Stamp) -> Vec<u8> {
        let versions = Versions::of(self.message.version());
        encode_as(FrameKind::Envelope, versions, cluster, stamp, self)
    }

    /// Reads an envelope.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else than a sound envelope of this cluster.
    pub fn decode(cluster: u64, bytes: &[u8]) -> Result<(Stamp, Self), DecodeError> {
        decode_with_config(FrameKind::Envelope, cluster, bytes)
    }
}
