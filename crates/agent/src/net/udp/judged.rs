//! A receiving agent for tests that hand it arbitrary datagrams: it signs what a peer could sign, so that what
//! lies behind the signature is reached too.

use super::{Datagram, Link, Opened, TAG_BYTES, sign};
use crate::config::ClusterKey;
use mainstay_core::id::{HostId, InstanceId};
use mainstay_core::time::Instant;
use ring::hmac;
use std::io;

/// What became of a datagram.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Judged {
    /// A message, authenticated.
    Message {
        /// Its sender.
        from: HostId,
        /// The framed message.
        payload: Vec<u8>,
    },
    /// Nothing to hand on; this goes back to where it came from.
    Answer(Vec<u8>),
    /// Nothing to hand on; the kind under which it is counted.
    Dropped(&'static str),
}

/// A datagram's fields, encoded once more; none: it is none. Without its signature.
#[must_use]
pub fn datagram(body: &[u8]) -> Option<Vec<u8>> {
    Datagram::decode(body).map(|datagram| datagram.encode())
}

/// The protection of one agent's datagrams.
#[derive(Debug)]
pub struct Receiver(Link);

impl Receiver {
    /// The agent of `me` in a cluster with these peers.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn new(
        key: &ClusterKey,
        cluster: u64,
        me: HostId,
        peers: impl Iterator<Item = HostId>,
    ) -> io::Result<Self> {
        Link::new(key, cluster, me, InstanceId(1), peers).map(Self)
    }

    /// The body with the signature of somebody who has the key.
    #[must_use]
    pub fn signed(&self, body: &[u8]) -> Vec<u8> {
        let tag = hmac::sign(&self.0.key, body);
        [body, tag.as_ref()].concat()
    }

    /// The same of somebody who also knows which nonce this agent wants from that peer; none: the body is no
    /// datagram, or of no peer.
    #[must_use]
    pub fn addressed(&self, body: &[u8]) -> Option<Vec<u8>> {
        let mut datagram = Datagram::decode(body)?;
        datagram.receiver_nonce = self.0.peers.get(&datagram.from)?.nonce;
        Some(sign(&self.0.key, &datagram))
    }

    /// A datagram to that peer; none: it is no peer.
    #[must_use]
    pub fn seal(&mut self, to: &HostId, payload: &[u8]) -> Option<Vec<u8>> {
        self.0.seal(to, payload)
    }

    /// Judges a datagram that came at `now`.
    pub fn open(&mut self, now: Instant, bytes: &[u8]) -> Judged {
        match self.0.open(now, bytes) {
            Opened::Message { from, payload } => Judged::Message { from, payload },
            Opened::Answer(bytes) => Judged::Answer(bytes),
            Opened::Doubled => Judged::Dropped("doubled"),
            Opened::Rejected(kind) => Judged::Dropped(kind),
            Opened::SameId(_) => Judged::Dropped("same id"),
        }
    }

    /// A datagram without its signature.
    #[must_use]
    pub fn unsigned(bytes: &[u8]) -> &[u8] {
        let end = bytes.len().saturating_sub(TAG_BYTES);
        bytes.get(..end).unwrap_or_default()
    }
}
