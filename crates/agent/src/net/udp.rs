//! Datagrams between agents: authenticated with the cluster key, protected against replay.
//!
//! ```text
//! magic version kind | cluster | from | to | sender's instance | counter
//!   | receiver's nonce as the sender knows it | sender's nonce for the receiver | payload | HMAC-SHA256
//! ```
//! Each agent instance has a random nonce for each peer, and takes only datagrams that carry it: what
//! was recorded before this instance began is worthless. One that carries another nonce is answered by
//! a challenge with the right one and dropped. Of each peer one instance is current; its counter must
//! be new (a window of 64 lets datagrams overtake each other); an instance that was replaced never
//! comes back.
//!
//! Never here: what a message means.

pub(crate) mod judged;

use super::{Addresses, OnNetwork, Rejects, bind, from_here};
use crate::config::ClusterKey;
use mainstay_core::id::{HostId, InstanceId};
use mainstay_core::time::{Duration, Instant};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};

/// Longest datagram: what a heartbeat or a candidacy needs, with room.
pub(crate) const DATAGRAM_MAX_BYTES: usize = 8 << 10;

const MAGIC: [u8; 4] = *b"MSDG";
const VERSION: u8 = 1;
const TAG_BYTES: usize = 32;
const CHALLENGE_INTERVAL: Duration = Duration::from_millis(20);
/// Replaced instances of one peer that are remembered; then the nonce changes, which voids them all.
const RETIRED_MAX: usize = 64;
/// New datagrams of a replaced instance that make it an agent that lives.
const ALIVE_AFTER: u32 = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Message,
    Challenge,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Datagram<'a> {
    kind: Kind,
    cluster: u64,
    from: HostId,
    to: HostId,
    instance: u64,
    counter: u64,
    receiver_nonce: u64,
    sender_nonce: u64,
    payload: &'a [u8],
}

/// Reads a datagram front to back.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn host(&mut self) -> Option<HostId> {
        let n = usize::from(self.byte()?);
        HostId::new(std::str::from_utf8(self.take(n)?).ok()?).ok()
    }
}

impl<'a> Datagram<'a> {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.payload.len());
        out.extend_from_slice(&MAGIC);
        out.push(VERSION);
        out.push(match self.kind {
            Kind::Message => 0,
            Kind::Challenge => 1,
        });
        out.extend_from_slice(&self.cluster.to_le_bytes());
        for host in [&self.from, &self.to] {
            // An id has at most 64 bytes.
            out.push(u8::try_from(host.as_str().len()).unwrap_or(u8::MAX));
            out.extend_from_slice(host.as_str().as_bytes());
        }
        for n in [
            self.instance,
            self.counter,
            self.receiver_nonce,
            self.sender_nonce,
        ] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(self.payload);
        out
    }

    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let mut r = Reader(bytes);
        if r.take(4)? != MAGIC || r.byte()? != VERSION {
            return None;
        }
        let kind = match r.byte()? {
            0 => Kind::Message,
            1 => Kind::Challenge,
            _ => return None,
        };
        Some(Self {
            kind,
            cluster: r.number()?,
            from: r.host()?,
            to: r.host()?,
            instance: r.number()?,
            counter: r.number()?,
            receiver_nonce: r.number()?,
            sender_nonce: r.number()?,
            payload: r.0,
        })
    }
}

/// The counters of one instance that were seen: the highest and which of the 63 below it.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    highest: u64,
    seen: u64,
}

/// What a counter is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Count {
    New,
    /// It was seen, and not long ago.
    Seen,
    /// Too old to know.
    Old,
}

impl Window {
    /// Judges a counter and remembers it.
    fn take(&mut self, counter: u64) -> Count {
        if counter > self.highest {
            let by = u32::try_from(counter - self.highest).unwrap_or(u32::MAX);
            self.seen = self.seen.checked_shl(by).unwrap_or(0) | 1;
            self.highest = counter;
            return Count::New;
        }
        let Some(bit) = u32::try_from(self.highest - counter)
            .ok()
            .and_then(|n| 1_u64.checked_shl(n))
        else {
            return Count::Old;
        };
        let seen = self.seen & bit != 0;
        self.seen |= bit;
        if seen { Count::Seen } else { Count::New }
    }
}

#[derive(Debug)]
struct Retired {
    highest: u64,
    alive: u32,
}

#[derive(Debug)]
struct Peer {
    /// What it must put into its datagrams to us.
    nonce: u64,
    /// What we must put into ours to it; 0: not known.
    their_nonce: u64,
    current: Option<(u64, Window)>,
    retired: BTreeMap<u64, Retired>,
    challenged: Option<Instant>,
    /// Our counter in the last challenge that was taken.
    answered: u64,
    /// Sent again when a challenge shows that the nonce was wrong.
    last_payload: Vec<u8>,
}

/// What became of a datagram that came in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Opened {
    /// A message.
    Message {
        /// Its sender, authenticated.
        from: HostId,
        /// The framed message.
        payload: Vec<u8>,
    },
    /// Nothing to hand on; this goes back to where it came from.
    Answer(Vec<u8>),
    /// A datagram that has just come, as it does over each network: nothing to hand on.
    Doubled,
    /// Refused, with the kind under which it is counted.
    Rejected(&'static str),
    /// Refused: another agent uses this host id.
    SameId(HostId),
}

/// The protection of all datagrams of one agent instance.
#[derive(Debug)]
pub(crate) struct Link {
    key: hmac::Key,
    cluster: u64,
    me: HostId,
    instance: u64,
    counter: u64,
    random: SystemRandom,
    peers: BTreeMap<HostId, Peer>,
}

impl Link {
    pub(crate) fn new(
        key: &ClusterKey,
        cluster: u64,
        me: HostId,
        instance: InstanceId,
        peers: impl Iterator<Item = HostId>,
    ) -> io::Result<Self> {
        let random = SystemRandom::new();
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.bytes());
        let mut link = Self {
            key,
            cluster,
            me,
            instance: instance.0,
            counter: 0,
            random,
            peers: BTreeMap::new(),
        };
        for host in peers {
            link.admit(host)?;
        }
        Ok(link)
    }

    /// Takes a host in, with a nonce of its own: what was recorded when it was a member before is worthless.
    fn admit(&mut self, host: HostId) -> io::Result<()> {
        if host != self.me && !self.peers.contains_key(&host) {
            let peer = Peer {
                nonce: nonce(&self.random)?,
                their_nonce: 0,
                current: None,
                retired: BTreeMap::new(),
                challenged: None,
                answered: 0,
                last_payload: Vec::new(),
            };
            self.peers.insert(host, peer);
        }
        Ok(())
    }

    /// Puts a message into a datagram for `to`; none for a host that is not in the cluster.
    pub(crate) fn seal(&mut self, to: &HostId, payload: &[u8]) -> Option<Vec<u8>> {
        let peer = self.peers.get_mut(to)?;
        peer.last_payload = payload.to_vec();
        self.counter += 1;
        Some(sign(
            &self.key,
            &Datagram {
                kind: Kind::Message,
                cluster: self.cluster,
                from: self.me.clone(),
                to: to.clone(),
                instance: self.instance,
                counter: self.counter,
                receiver_nonce: peer.their_nonce,
                sender_nonce: peer.nonce,
                payload,
            },
        ))
    }

    /// Judges a datagram.
    pub(crate) fn open(&mut self, now: Instant, bytes: &[u8]) -> Opened {
        let Some((body, tag)) = bytes
            .len()
            .checked_sub(TAG_BYTES)
            .and_then(|n| bytes.split_at_checked(n))
        else {
            return Opened::Rejected("datagram_damaged");
        };
        let Some(datagram) = Datagram::decode(body) else {
            return Opened::Rejected("datagram_damaged");
        };
        if datagram.cluster != self.cluster {
            return Opened::Rejected("datagram_other_cluster");
        }
        if hmac::verify(&self.key, body, tag).is_err() {
            return Opened::Rejected("datagram_not_authentic");
        }
        if datagram.to != self.me {
            return Opened::Rejected("datagram_misdirected");
        }
        if datagram.from == self.me {
            if datagram.instance == self.instance {
                return Opened::Rejected("datagram_misdirected");
            }
            return Opened::SameId(datagram.from);
        }
        match datagram.kind {
            Kind::Challenge => self.on_challenge(&datagram),
            Kind::Message => self.on_message(now, datagram),
        }
    }

    /// The peer says which nonce it wants. Only an answer to a datagram of this instance counts.
    fn on_challenge(&mut self, datagram: &Datagram<'_>) -> Opened {
        let mut echo = Reader(datagram.payload);
        let (Some(instance), Some(counter)) = (echo.number(), echo.number()) else {
            return Opened::Rejected("datagram_damaged");
        };
        let sent = self.counter;
        let Some(peer) = self.peers.get_mut(&datagram.from) else {
            return Opened::Rejected("datagram_unknown_host");
        };
        if instance != self.instance || counter > sent || counter <= peer.answered {
            return Opened::Rejected("datagram_replayed");
        }
        // Datagrams that were sent meanwhile bring challenges of their own; one is enough.
        peer.answered = sent;
        peer.their_nonce = datagram.sender_nonce;
        let payload = peer.last_payload.clone();
        match self.seal(&datagram.from, &payload) {
            Some(again) => Opened::Answer(again),
            None => Opened::Rejected("datagram_unknown_host"),
        }
    }

    fn on_message(&mut self, now: Instant, datagram: Datagram<'_>) -> Opened {
        let Some(peer) = self.peers.get_mut(&datagram.from) else {
            return Opened::Rejected("datagram_unknown_host");
        };
        if datagram.receiver_nonce != peer.nonce {
            if peer
                .challenged
                .is_some_and(|at| now.since(at) < CHALLENGE_INTERVAL)
            {
                return Opened::Rejected("datagram_before_handshake");
            }
            peer.challenged = Some(now);
            let mut echo = datagram.instance.to_le_bytes().to_vec();
            echo.extend_from_slice(&datagram.counter.to_le_bytes());
            return Opened::Answer(sign(
                &self.key,
                &Datagram {
                    kind: Kind::Challenge,
                    cluster: self.cluster,
                    from: self.me.clone(),
                    to: datagram.from,
                    instance: self.instance,
                    counter: 0,
                    receiver_nonce: 0,
                    sender_nonce: peer.nonce,
                    payload: &echo,
                },
            ));
        }
        if let Some(retired) = peer.retired.get_mut(&datagram.instance) {
            if datagram.counter <= retired.highest {
                return Opened::Rejected("datagram_replayed");
            }
            retired.highest = datagram.counter;
            retired.alive += 1;
            if retired.alive >= ALIVE_AFTER {
                return Opened::SameId(datagram.from);
            }
            return Opened::Rejected("datagram_old_instance");
        }
        match &mut peer.current {
            Some((instance, window)) if *instance == datagram.instance => {
                match window.take(datagram.counter) {
                    Count::New => {}
                    Count::Seen => return Opened::Doubled,
                    Count::Old => return Opened::Rejected("datagram_replayed"),
                }
            }
            current => {
                let mut window = Window::default();
                window.take(datagram.counter);
                if let Some((old, window)) = current.replace((datagram.instance, window)) {
                    peer.retired.insert(
                        old,
                        Retired {
                            highest: window.highest,
                            alive: 0,
                        },
                    );
                }
                if peer.retired.len() > RETIRED_MAX
                    && let Ok(fresh) = nonce(&self.random)
                {
                    peer.nonce = fresh;
                    peer.retired.clear();
                }
            }
        }
        peer.their_nonce = datagram.sender_nonce;
        Opened::Message {
            from: datagram.from,
            payload: datagram.payload.to_vec(),
        }
    }
}

fn nonce(random: &SystemRandom) -> io::Result<u64> {
    let mut bytes = [0; 8];
    random
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the system gives no random numbers"))?;
    // 0 means "not known".
    Ok(u64::from_le_bytes(bytes).max(1))
}

fn sign(key: &hmac::Key, datagram: &Datagram<'_>) -> Vec<u8> {
    let mut bytes = datagram.encode();
    let tag = hmac::sign(key, &bytes);
    bytes.extend_from_slice(tag.as_ref());
    bytes
}

/// What the receiving threads report.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Received {
    /// A message, framed.
    Message {
        /// Its sender, authenticated.
        from: HostId,
        /// The framed message.
        payload: Vec<u8>,
    },
    /// Another agent uses this host id, at this address.
    SameId {
        /// The host id.
        host: HostId,
        /// Where it is.
        address: SocketAddr,
    },
}

/// The sockets: one for each own address. The link is one for all of them, so that a datagram counts
/// once, over however many networks it comes.
#[derive(Debug)]
pub(crate) struct Udp {
    sockets: Vec<(OnNetwork, Arc<UdpSocket>)>,
    link: Arc<Mutex<Link>>,
    addresses: Addresses,
    rejects: Rejects,
}

impl Udp {
    /// Binds this host's addresses and starts a receiving thread for each.
    pub(crate) fn start<F>(
        own: &[OnNetwork],
        addresses: Addresses,
        link: Link,
        rejects: Rejects,
        on_received: F,
    ) -> Result<Self, (SocketAddr, io::Error)>
    where
        F: Fn(Received) + Clone + Send + 'static,
    {
        let link = Arc::new(Mutex::new(link));
        let mut sockets = Vec::new();
        for (network, address) in own {
            let fault = |e| (*address, e);
            let socket = bind(*address, socket2::Type::DGRAM, own).map_err(fault)?;
            let socket: Arc<UdpSocket> = Arc::new(socket.into());
            let (mine, link) = (Arc::clone(&socket), Arc::clone(&link));
            let (rejects, on_received) = (rejects.clone(), on_received.clone());
            std::thread::Builder::new()
                .name(format!("udp {address}"))
                .spawn(move || receive(&mine, &link, &rejects, &on_received))
                .map_err(fault)?;
            sockets.push(((network.clone(), *address), socket));
        }
        Ok(Self {
            sockets,
            link,
            addresses,
            rejects,
        })
    }

    /// Sends a framed message to a host over all of its networks at once; what the network refuses is lost.
    pub(crate) fn send(&self, to: &HostId, payload: &[u8]) {
        let sealed = self
            .link
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .seal(to, payload);
        let Some(datagram) = sealed else { return };
        if datagram.len() > DATAGRAM_MAX_BYTES {
            self.rejects.count("datagram_too_long_to_send");
            return;
        }
        for address in self.addresses.get(to).into_iter().flatten() {
            let Some(socket) = self.socket_for(address) else {
                continue;
            };
            // A full buffer or a missing route loses it, as the wire might.
            let _ = nix::sys::socket::sendto(
                std::os::fd::AsRawFd::as_raw_fd(socket.as_ref()),
                &datagram,
                &nix::sys::socket::SockaddrStorage::from(address.1),
                nix::sys::socket::MsgFlags::MSG_DONTWAIT,
            );
        }
    }

    /// From now on these are the cluster's hosts, and where they are.
    ///
    /// # Errors
    /// When the system gives no random numbers; a host that is new is then not heard.
    pub(crate) fn set_addresses(&mut self, addresses: &Addresses) -> io::Result<()> {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.peers.retain(|host, _| addresses.contains_key(host));
        self.addresses.clone_from(addresses);
        addresses.keys().try_for_each(|h| link.admit(h.clone()))
    }

    fn socket_for(&self, to: &OnNetwork) -> Option<&Arc<UdpSocket>> {
        let own = from_here(self.sockets.iter().map(|(own, _)| own), to)?;
        let mine = |(address, _): &&(OnNetwork, _)| address == own;
        self.sockets.iter().find(mine).map(|(_, socket)| socket)
    }
}

fn receive(
    socket: &UdpSocket,
    link: &Mutex<Link>,
    rejects: &Rejects,
    on_received: &impl Fn(Received),
) {
    let mut buffer = vec![0; DATAGRAM_MAX_BYTES + 1];
    loop {
        let Ok((n, address)) = socket.recv_from(&mut buffer) else {
            // An ICMP error of an earlier send; nothing was received.
            continue;
        };
        let bytes = buffer.get(..n).unwrap_or_default();
        if n > DATAGRAM_MAX_BYTES {
            rejects.count("datagram_too_long");
            continue;
        }
        let opened = link
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .open(crate::clock::now(), bytes);
        match opened {
            Opened::Message { from, payload } => on_received(Received::Message { from, payload }),
            Opened::Answer(bytes) => {
                let _ = socket.send_to(&bytes, address);
            }
            Opened::Doubled => {}
            Opened::Rejected(kind) => rejects.count(kind),
            Opened::SameId(host) => {
                rejects.count("datagram_same_host_id");
                on_received(Received::SameId { host, address });
            }
        }
    }
}

#[cfg(test)]
mod tests;
