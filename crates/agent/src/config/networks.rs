//! Management networks in `cluster.toml`: a host has one address on each. Addresses are IP addresses:
//! Mainstay works when DNS does not.

use super::{ClusterFile, FileError, HostEntry};
use mainstay_core::id::HostId;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// Isolation addresses beyond the gateways that a host pings (`das.isolationaddress0` to `9`).
const ISOLATION_ADDRESSES_MAX: usize = 10;
/// Longest name of a network.
const NAME_MAX_BYTES: usize = 32;

/// Why the networks of a host make no sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// No address at all.
    #[error(
        "host \"{0}\" has no address; add networks = {{ mgmt0 = \"IP:PORT\" }}, with one entry for each management network"
    )]
    None(HostId),
    /// Named networks beside unnamed ones.
    #[error(
        "host \"{0}\" has networks beside address or addresses; write all of its addresses into networks"
    )]
    Both(HostId),
    /// A name that cannot be shown or compared safely.
    #[error(
        "\"{name}\" of host \"{host}\" is no name for a network; use up to 32 letters, digits, '-' and '_', such as mgmt0"
    )]
    Name {
        /// The host.
        host: HostId,
        /// The name.
        name: String,
    },
    /// One address on two networks of one host.
    #[error(
        "host \"{host}\" has the address {address} on two networks, so one fault ends both; give it an address of its own on each"
    )]
    Twice {
        /// The host.
        host: HostId,
        /// The address.
        address: SocketAddr,
    },
    /// Too many isolation addresses.
    #[error(
        "isolation_addresses names {0} addresses, in [settings] and outside of it together; at most ten are taken beside the gateways"
    )]
    Isolation(usize),
}

impl HostEntry {
    /// All its addresses, the first one first.
    pub fn all_addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let unnamed = self.address.iter().chain(&self.addresses);
        unnamed.chain(self.networks.values()).copied()
    }

    /// All its addresses with the management network of each. Unnamed ones are on `mgmt0`, `mgmt1`, ... in
    /// their order.
    #[must_use]
    pub fn by_network(&self) -> Vec<(String, SocketAddr)> {
        if self.networks.is_empty() {
            let numbered = self.all_addresses().enumerate();
            return numbered.map(|(n, a)| (format!("mgmt{n}"), a)).collect();
        }
        let named = self.networks.iter();
        named.map(|(name, a)| (name.clone(), *a)).collect()
    }

    pub(super) fn check_networks(&self) -> Result<(), NetworkError> {
        let host = || self.id.clone();
        if self.all_addresses().next().is_none() {
            return Err(NetworkError::None(host()));
        }
        let unnamed = self.address.is_some() || !self.addresses.is_empty();
        if unnamed && !self.networks.is_empty() {
            return Err(NetworkError::Both(host()));
        }
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        for name in self.networks.keys() {
            if name.is_empty() || name.len() > NAME_MAX_BYTES || !name.chars().all(good) {
                let (host, name) = (host(), name.clone());
                return Err(NetworkError::Name { host, name });
            }
        }
        let mut seen = Vec::new();
        for address in self.all_addresses() {
            if seen.contains(&address.ip()) && !address.ip().is_loopback() {
                let host = host();
                return Err(NetworkError::Twice { host, address });
            }
            seen.push(address.ip());
        }
        Ok(())
    }
}

impl ClusterFile {
    pub(super) fn check_addresses(&self) -> Result<(), FileError> {
        let fault = |line, fault| FileError::Network {
            path: self.origin.path.clone(),
            line,
            fault,
        };
        let mut seen: BTreeMap<SocketAddr, &HostId> = BTreeMap::new();
        for host in &self.hosts {
            let line = || self.origin.line_of_id(host.id.as_str(), 0);
            host.check_networks().map_err(|e| fault(line(), e))?;
            for address in host.all_addresses() {
                match seen.insert(address, &host.id) {
                    Some(first) if *first != host.id => {
                        return Err(FileError::SameAddress {
                            path: self.origin.path.clone(),
                            line: line(),
                            first: first.clone(),
                            second: host.id.clone(),
                            address,
                        });
                    }
                    _ => {}
                }
            }
        }
        let named = self.parsed_settings()?.isolation_addresses.len();
        let count = self.isolation_addresses.len() + named;
        if count > ISOLATION_ADDRESSES_MAX {
            let line = self.origin.line_of_key("isolation_addresses");
            return Err(fault(line, NetworkError::Isolation(count)));
        }
        Ok(())
    }
}

fn parse<E: serde::de::Error, T: std::str::FromStr>(text: &str, example: &str) -> Result<T, E> {
    text.parse().map_err(|_| {
        E::custom(format!(
            "\"{text}\" is no {example}; write an IP address, for Mainstay does not depend on DNS or a hosts file"
        ))
    })
}

const SOCKET: &str = "IP address with a port, such as 10.0.0.1:7777 or [fd00::1]:7777";

pub(super) fn address<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(from)?;
    parse(&text, SOCKET).map(Some)
}

pub(super) fn addresses<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SocketAddr>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    texts.iter().map(|text| parse(text, SOCKET)).collect()
}

pub(super) fn networks<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<String, SocketAddr>, D::Error> {
    let texts = BTreeMap::<String, String>::deserialize(from)?;
    let named = texts.into_iter();
    named
        .map(|(name, text)| Ok((name, parse(&text, SOCKET)?)))
        .collect()
}

pub(super) fn ip_addresses<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpAddr>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    let parsed = |text: &String| parse(text, "IP address, such as 10.0.0.254 or fd00::1");
    texts.iter().map(parsed).collect()
}
