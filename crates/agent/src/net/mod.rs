//! The network: authenticated datagrams, TLS streams, pings.

pub(crate) mod isolation;
pub(crate) mod ping;
pub(crate) mod stream;
pub(crate) mod udp;

use mainstay_core::id::HostId;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};

/// One address of a host: the management network that it is on, and where.
pub(crate) type OnNetwork = (String, SocketAddr);

/// Every host's addresses.
pub(crate) type Addresses = BTreeMap<HostId, Vec<OnNetwork>>;

/// The own address from which to reach one of a peer's: on the same network, or else any of the same
/// family, from which the kernel may know a way.
pub(crate) fn from_here<'a>(
    own: impl Iterator<Item = &'a OnNetwork> + Clone,
    to: &OnNetwork,
) -> Option<&'a OnNetwork> {
    let fits = |mine: &&OnNetwork| mine.1.is_ipv4() == to.1.is_ipv4();
    own.clone()
        .filter(fits)
        .find(|mine| mine.0 == to.0)
        .or_else(|| own.clone().find(fits))
}

/// The host has this address at this moment.
pub(crate) fn is_here(ip: IpAddr) -> bool {
    let bound = UdpSocket::bind((ip, 0));
    !bound.is_err_and(|e| e.kind() == io::ErrorKind::AddrNotAvailable)
}

/// A socket bound to an own address. Where another address of this host is there, one whose network is
/// away is bound all the same, and is of use as soon as it comes.
pub(crate) fn bind(address: SocketAddr, kind: Type, own: &[OnNetwork]) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM {
        Protocol::TCP
    } else {
        Protocol::UDP
    };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if kind == Type::STREAM {
        // As the standard library's listener: what a former agent left in TIME_WAIT is no obstacle.
        socket.set_reuse_address(true)?;
    }
    if address.is_ipv6() {
        // An IPv4 address on the same port has a socket of its own.
        socket.set_only_v6(true)?;
    }
    if !is_here(address.ip()) && own.iter().any(|(_, a)| is_here(a.ip())) {
        if address.is_ipv4() {
            socket.set_freebind_v4(true)?;
        } else {
            socket.set_freebind_v6(true)?;
        }
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// What is to be said of own addresses that this host does not have.
pub(crate) fn missing(own: &[OnNetwork]) -> Vec<String> {
    own.iter()
        .filter(|(_, a)| !is_here(a.ip()))
        .map(|(network, a)| {
            format!(
                "this host does not have the address {} of {network}, so that nothing comes over that network; give it the address, or correct cluster.toml",
                a.ip()
            )
        })
        .collect()
}

/// Inputs from the network that were refused, by kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rejects(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Rejects {
    /// Counts one.
    pub(crate) fn count(&self, kind: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let n = counts.entry(kind).or_default();
        *n = n.saturating_add(1);
        // Each power of two, so that a flood does not fill the log.
        if n.is_power_of_two() {
            tracing::warn!(kind, count = *n, "refused input from the network");
        }
    }

    /// All counts.
    pub(crate) fn all(&self) -> Vec<(String, u64)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(k, n)| ((*k).to_owned(), *n)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(network: &str, address: &str) -> OnNetwork {
        (network.to_owned(), address.parse().expect("address"))
    }

    #[test]
    fn the_own_address_on_the_same_network_comes_first_then_one_of_the_same_family() {
        let own = [
            at("mgmt0", "10.0.0.1:7777"),
            at("mgmt1", "10.1.0.1:7777"),
            at("mgmt2", "[fd00::1]:7777"),
        ];
        for (to, wanted) in [
            (at("mgmt1", "10.1.0.2:7777"), Some(&own[1])),
            (at("lan", "10.1.0.2:7777"), Some(&own[0])),
            (at("mgmt0", "[fd00::2]:7777"), Some(&own[2])),
        ] {
            assert_eq!(from_here(own.iter(), &to), wanted, "{to:?}");
        }
        assert_eq!(from_here(own[..2].iter(), &at("a", "[fd00::2]:1")), None);
    }

    #[test]
    fn an_address_that_is_away_is_bound_only_beside_one_that_is_here() {
        // 192.0.2.0/24 is for documentation (RFC 5737): no host has it.
        let away = at("mgmt1", "192.0.2.77:0");
        let here = at("mgmt0", "127.0.0.1:0");
        assert!(bind(away.1, Type::DGRAM, std::slice::from_ref(&away)).is_err());
        let both = [here.clone(), away.clone()];
        for kind in [Type::DGRAM, Type::STREAM] {
            assert!(bind(away.1, kind, &both).is_ok(), "{kind:?}");
            assert!(bind(here.1, kind, &both).is_ok(), "{kind:?}");
        }
        let said = missing(&both);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("192.0.2.77 of mgmt1"), "{said:?}");
    }
}
