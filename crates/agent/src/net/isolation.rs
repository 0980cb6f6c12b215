//! Isolation addresses: what they are on this host, and whether one of them answers.
//!
//! A network that this host's own kernel calls unreachable is a network that does not answer: a host
//! without a route is as cut off as one without a cable. Only a probe that may not be sent is unknown.

use super::OnNetwork;
use super::ping::{Target, ping};
use crate::config::Probe;
use mainstay_core::config::Settings;
use mainstay_core::io::PingOutcome;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// One isolation address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Address {
    /// Pinged.
    Ping(Target),
    /// A TCP connection is tried; a refusal is an answer too.
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ping(address) => write!(f, "{address}"),
            Self::Tcp(socket) => write!(f, "tcp://{socket}"),
        }
    }
}

impl Address {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("tcp://") {
            Some(socket) => socket.parse().ok().map(Self::Tcp),
            None => text.parse().ok().map(|ip: IpAddr| Self::Ping(ip.into())),
        }
    }

    /// Whether it answers. Blocks for at most `timeout`.
    pub(crate) fn probe(self, probe: Probe, timeout: Duration) -> PingOutcome {
        match self {
            Self::Ping(target) => match ping(&[target], probe, timeout) {
                PingOutcome::CannotProbe if has_no_route(target) => PingOutcome::NoAnswer,
                outcome => outcome,
            },
            Self::Tcp(socket) => match TcpStream::connect_timeout(&socket, timeout) {
                Ok(_) => PingOutcome::Answered,
                Err(error) => outcome_of(&error),
            },
        }
    }
}

/// What a failed connection says.
fn outcome_of(error: &io::Error) -> PingOutcome {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => PingOutcome::Answered,
        io::ErrorKind::TimedOut
        | io::ErrorKind::WouldBlock
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::AddrNotAvailable => PingOutcome::NoAnswer,
        _ => PingOutcome::CannotProbe,
    }
}

/// The kernel knows no way to that address. Nothing is sent.
fn has_no_route(target: Target) -> bool {
    let any: IpAddr = match target.ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let way = UdpSocket::bind((any, 0)).and_then(|s| s.connect(target.at(9)));
    way.is_err_and(|e| outcome_of(&e) == PingOutcome::NoAnswer)
}

/// A default gateway of a management network.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Gateway {
    /// The interface that leads to it.
    pub(crate) interface: String,
    target: Target,
}

/// The default gateways that the kernel has for this host's management networks at this moment, and of
/// those that it had, the ones that nothing has taken the place of.
pub(crate) fn gateways(own: &[OnNetwork], known: &[Gateway]) -> Vec<Gateway> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let interfaces = interfaces_of(own);
    let v4 = read("/proc/net/route");
    let v6 = read("/proc/net/ipv6_route");
    let seen = gateways_v4(&v4, &interfaces).chain(gateways_v6(&v6, &interfaces));
    after_look(known, seen.collect(), &interfaces)
}

/// A host whose cable is out loses its routes with it, or its address: that is when its gateway must
/// not answer, and not when there is nothing to ask. A gateway that is gone therefore counts until its
/// interface has another one; or, when the interface is this host's way no more, until there is any.
fn after_look(
    known: &[Gateway],
    mut seen: Vec<Gateway>,
    interfaces: &BTreeMap<String, u32>,
) -> Vec<Gateway> {
    let replaced = |old: &Gateway| {
        seen.iter().any(|new| {
            let same_interface = new.interface == old.interface;
            new.target.ip.is_ipv4() == old.target.ip.is_ipv4()
                && (same_interface || !interfaces.contains_key(&old.interface))
        })
    };
    let kept: Vec<Gateway> = known.iter().filter(|g| !replaced(g)).cloned().collect();
    seen.extend(kept);
    seen.sort();
    seen.dedup();
    seen
}

/// The isolation addresses of this host: the gateways of its management networks, unless they are
/// switched off, then what `cluster.toml` and the settings name, each once.
pub(crate) fn addresses(
    named: &[IpAddr],
    settings: &Settings,
    gateways: &[Gateway],
) -> Vec<Address> {
    let mut all: Vec<Address> = Vec::new();
    if settings.use_default_isolation_address {
        all.extend(gateways.iter().map(|g| Address::Ping(g.target)));
    }
    all.extend(named.iter().map(|ip| Address::Ping((*ip).into())));
    all.extend(
        settings
            .isolation_addresses
            .iter()
            .filter_map(|a| Address::parse(a)),
    );
    let mut once: Vec<Address> = Vec::new();
    for address in all {
        if !once.contains(&address) {
            once.push(address);
        }
    }
    once
}

/// The interfaces that carry this host's management addresses, with their numbers.
fn interfaces_of(own: &[OnNetwork]) -> BTreeMap<String, u32> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return BTreeMap::new();
    };
    all.filter_map(|interface| {
        let address = interface.address?;
        let ip = address
            .as_sockaddr_in()
            .map(|a| IpAddr::V4(a.ip()))
            .or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))?;
        let name = interface.interface_name;
        let index = nix::net::if_::if_nametoindex(name.as_str()).ok()?;
        let carries = own.iter().any(|(_, o)| o.ip() == ip);
        carries.then_some((name, index))
    })
    .collect()
}

/// Default gateways in the kernel's IPv4 table: interface, destination and gateway as hexadecimal words
/// in the machine's byte order.
pub(crate) fn gateways_v4<'a>(
    table: &'a str,
    interfaces: &'a BTreeMap<String, u32>,
) -> impl Iterator<Item = Gateway> + 'a {
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (interface, destination, gateway) = (fields.next()?, fields.next()?, fields.next()?);
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        let fits = destination == "00000000" && gateway != 0 && interfaces.contains_key(interface);
        fits.then(|| Gateway {
            interface: interface.to_owned(),
            target: IpAddr::V4(Ipv4Addr::from(gateway.to_ne_bytes())).into(),
        })
    })
}

/// Default gateways in the kernel's IPv6 table. A link-local one, as routers announce themselves, means
/// something together with its interface only.
pub(crate) fn gateways_v6<'a>(
    table: &'a str,
    interfaces: &'a BTreeMap<String, u32>,
) -> impl Iterator<Item = Gateway> + 'a {
    table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [destination, length, _, _, gateway, .., interface] = fields.as_slice() else {
            return None;
        };
        let gateway = Ipv6Addr::from(u128::from_str_radix(gateway, 16).ok()?);
        let default = destination.bytes().all(|b| b == b'0') && *length == "00";
        let index = interfaces.get(*interface).copied()?;
        let scope = if gateway.is_unicast_link_local() {
            index
        } else {
            0
        };
        let ip = IpAddr::V6(gateway);
        (default && !gateway.is_unspecified()).then(|| Gateway {
            interface: (*interface).to_owned(),
            target: Target { ip, scope },
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const SHORT: Duration = Duration::from_millis(300);

    fn interfaces() -> BTreeMap<String, u32> {
        BTreeMap::from([("eth0".to_owned(), 4)])
    }

    #[test]
    fn the_default_gateway_of_a_management_interface_is_found() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     eth1\t00000000\t0103A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     eth0\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let wanted = Ipv4Addr::from(0x0102_A8C0_u32.to_ne_bytes());
        let found: Vec<Target> = gateways_v4(table, &interfaces())
            .map(|g| g.target)
            .collect();
        assert_eq!(found, [IpAddr::V4(wanted).into()]);
    }

    #[test]
    fn an_ipv6_gateway_is_found_and_a_link_local_one_with_its_interface() {
        let zero = "00000000000000000000000000000000";
        let line = |gateway: &str, on: &str| {
            format!("{zero} 00 {zero} 00 {gateway} 00000400 00000001 00000000 00000003 {on}\n")
        };
        let table = line("20010db8000000000000000000000001", "eth0")
            + &line("fe800000000000000000000000000001", "eth0")
            + &line("20010db8000000000000000000000002", "eth9");
        let found: Vec<Target> = gateways_v6(&table, &interfaces())
            .map(|g| g.target)
            .collect();
        let at = |ip: &str, scope| {
            let ip = ip.parse().expect("ip");
            Target { ip, scope }
        };
        assert_eq!(found, [at("2001:db8::1", 0), at("fe80::1", 4)]);
        assert_eq!(found[1].at(7).to_string(), "[fe80::1%4]:7");
    }

    #[test]
    fn a_gateway_counts_until_another_has_taken_its_place() {
        let at = |interface: &str, ip: &str| Gateway {
            interface: interface.to_owned(),
            target: ip.parse::<IpAddr>().expect("ip").into(),
        };
        let up = interfaces();
        let (first, second) = (at("eth0", "192.0.2.1"), at("eth0", "192.0.2.2"));
        let v6 = at("eth0", "2001:db8::1");
        // It comes after the agent was started.
        let known = after_look(&[], vec![first.clone()], &up);
        assert_eq!(known, std::slice::from_ref(&first));
        // The cable is out, and the route gone; then the address and the interface too.
        assert_eq!(after_look(&known, vec![], &up), known);
        assert_eq!(after_look(&known, vec![], &BTreeMap::new()), known);
        // Another one is there; one of the other family takes no place.
        assert_eq!(
            after_look(&known, vec![second.clone()], &up),
            std::slice::from_ref(&second)
        );
        let both = after_look(&known, vec![v6.clone()], &up);
        assert_eq!(both, [first.clone(), v6]);
        // The management network moves to another interface.
        let moved = at("bond0", "192.0.2.1");
        let bond = BTreeMap::from([("bond0".to_owned(), 9)]);
        assert_eq!(after_look(&known, vec![moved.clone()], &bond), [moved]);
        // Another network has a gateway of its own: that does not stand for this one.
        let other = at("eth1", "198.51.100.1");
        let two = BTreeMap::from([("eth0".to_owned(), 4), ("eth1".to_owned(), 5)]);
        assert_eq!(
            after_look(&known, vec![other.clone()], &two),
            [first, other]
        );
    }

    #[test]
    fn a_refused_connection_is_an_answer_like_an_accepted_one() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let socket = listener.local_addr().expect("bound");
        assert_eq!(
            Address::Tcp(socket).probe(Probe::Icmp, SHORT),
            PingOutcome::Answered
        );
        drop(listener);
        assert_eq!(
            Address::Tcp(socket).probe(Probe::Icmp, SHORT),
            PingOutcome::Answered
        );
    }

    #[test]
    fn no_way_to_an_address_is_no_answer() {
        for (kind, outcome) in [
            (io::ErrorKind::NetworkUnreachable, PingOutcome::NoAnswer),
            (io::ErrorKind::TimedOut, PingOutcome::NoAnswer),
            (io::ErrorKind::PermissionDenied, PingOutcome::CannotProbe),
        ] {
            assert_eq!(outcome_of(&io::Error::from(kind)), outcome, "{kind}");
        }
    }

    #[test]
    fn each_address_is_there_once() {
        let mut settings = Settings::default();
        settings
            .set("isolation_addresses", "192.0.2.1, tcp://[2001:db8::1]:22")
            .expect("sound");
        settings
            .set("use_default_isolation_address", "false")
            .expect("sound");
        let named = ["192.0.2.1".parse().expect("ip")];
        let all = addresses(&named, &settings, &[]);
        let shown: Vec<String> = all.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.0.2.1", "tcp://[2001:db8::1]:22"]);
    }
}
