//! The decoders of what reaches an agent from outside, for tests that hand them arbitrary bytes
//! (`crates/fuzz`). Nothing else calls these, and nothing here is promised to stay.
//!
//! Never here: a way around a check that an agent makes.

pub use crate::net::udp::judged::{Judged, Receiver, datagram};

use crate::config::ClusterKey;
use crate::control::{Request, server};
use crate::net::{isolation, ping, stream};
use crate::{guard_link, persist};
use mainstay_core::config::ClusterConfig;
use mainstay_core::event::Event;
use mainstay_core::io::Durable;
use mainstay_core::wire::RECORD_MAX_BYTES;
use std::collections::BTreeMap;
use std::io::{self, Read};

/// The next frame of a stream between two agents.
///
/// # Errors
/// Those of the stream, its end, and a frame longer than [`RECORD_MAX_BYTES`].
pub fn stream_frame(from: &mut impl Read) -> io::Result<Vec<u8>> {
    stream::read_frame(from, RECORD_MAX_BYTES)
}

/// A frame as it goes onto a stream.
///
/// # Errors
/// A frame of 4 GiB or more.
pub fn to_stream(frame: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    stream::write_frame(&mut out, frame)?;
    Ok(out)
}

/// The agent's state as it is kept on local disk; none: the file is damaged.
#[must_use]
pub fn state(bytes: &[u8]) -> Option<Durable> {
    persist::decode(bytes)
}

/// The file that [`state`] reads.
///
/// # Errors
/// What cannot be encoded.
pub fn state_file(state: &Durable) -> io::Result<Vec<u8>> {
    persist::encode(state)
}

/// The configuration as it is kept on local disk; none: the file is damaged.
#[must_use]
pub fn kept_config(bytes: &[u8]) -> Option<ClusterConfig> {
    persist::decode_config(bytes)
}

/// The file that [`kept_config`] reads.
///
/// # Errors
/// What cannot be encoded.
pub fn kept_config_file(config: &ClusterConfig) -> io::Result<Vec<u8>> {
    persist::encode_config(config)
}

/// The guard's events in whole lines, and how many bytes those are.
#[must_use]
pub fn guard_events(bytes: &[u8]) -> (Vec<Event>, u64) {
    guard_link::whole_events(bytes)
}

/// A line of the control socket.
///
/// # Errors
/// What is wrong with it, for whoever sent it.
pub fn request(line: &[u8]) -> Result<Request, String> {
    server::parse(line)
}

/// An isolation address, as it is shown; none: it is none.
#[must_use]
pub fn isolation_address(text: &str) -> Option<String> {
    isolation::Address::parse(text).map(|address| address.to_string())
}

/// Whether these bytes answer a ping with that cookie: one of ICMP, or a datagram's; of IPv4, or IPv6.
#[must_use]
pub fn is_ping_answer(bytes: &[u8], v4: bool, icmp: bool, cookie: &[u8; 16]) -> bool {
    ping::is_answer(bytes, v4, icmp, cookie)
}

/// The interfaces of the default gateways that the kernel's tables of IPv4 and IPv6 routes name, of `eth0` alone.
#[must_use]
pub fn gateways(table: &str) -> Vec<String> {
    let interfaces = BTreeMap::from([("eth0".to_owned(), 4)]);
    let v4 = isolation::gateways_v4(table, &interfaces);
    let v6 = isolation::gateways_v6(table, &interfaces);
    v4.chain(v6).map(|gateway| gateway.interface).collect()
}

/// The cluster key of a key file's text.
#[must_use]
pub fn cluster_key(text: &str) -> Option<ClusterKey> {
    ClusterKey::from_hex(text)
}
