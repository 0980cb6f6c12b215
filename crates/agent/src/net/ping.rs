//! Finds out whether a host's network answers: by ICMP echo, or by an echo datagram to `mainstay probe`.
//!
//! "Could not send a probe" is an outcome of its own and never read as "no answer".

use crate::config::Probe;
use crate::probe::{ANSWER, QUESTION};
use mainstay_core::io::PingOutcome;
use ring::rand::{SecureRandom as _, SystemRandom};
use socket2::{Domain, Protocol, Socket, Type};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

/// Probes in one ping: a lost one is no silence.
const TRIES: u32 = 3;
/// Bytes that tell the answer to one probe from every other.
pub(crate) const COOKIE_BYTES: usize = 16;

/// What is pinged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Target {
    /// Its address.
    pub(crate) ip: IpAddr,
    /// The number of the interface that leads to it; 0: as the kernel's routes say.
    pub(crate) scope: u32,
}

impl Target {
    /// The address with a port.
    pub(crate) fn at(self, port: u16) -> SocketAddr {
        match self.ip {
            IpAddr::V4(ip) => (ip, port).into(),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, self.scope).into(),
        }
    }
}

impl From<IpAddr> for Target {
    fn from(ip: IpAddr) -> Self {
        Self { ip, scope: 0 }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ip)?;
        if self.scope == 0 {
            return Ok(());
        }
        match nix::net::if_::if_indextoname(self.scope) {
            Ok(name) => write!(f, "%{}", name.to_string_lossy()),
            Err(_) => write!(f, "%{}", self.scope),
        }
    }
}

/// Pings all `targets` at once; one answer is enough. Blocks for at most `timeout`.
pub(crate) fn ping(targets: &[Target], probe: Probe, timeout: Duration) -> PingOutcome {
    let Ok(cookie) = cookie() else {
        return PingOutcome::CannotProbe;
    };
    let probes: Vec<Echo> = targets
        .iter()
        .filter_map(|a| Echo::open(*a, probe, cookie).ok())
        .collect();
    let start = Instant::now();
    let mut sent = false;
    for round in 1..=TRIES {
        let sequence = u16::try_from(round).unwrap_or(u16::MAX);
        for echo in &probes {
            sent |= echo.send(sequence).is_ok();
        }
        if !sent {
            return PingOutcome::CannotProbe;
        }
        let until = timeout * round / TRIES;
        while let Some(left) = until.checked_sub(start.elapsed()).filter(|l| !l.is_zero()) {
            if wait_for_any(&probes, left) && probes.iter().any(Echo::is_answered) {
                return PingOutcome::Answered;
            }
        }
    }
    PingOutcome::NoAnswer
}

/// Whether ICMP echo can be used at all, for the list of weaknesses.
pub(crate) fn icmp_available() -> bool {
    icmp_socket(Domain::IPV4, Protocol::ICMPV4).is_ok()
}

fn cookie() -> io::Result<[u8; COOKIE_BYTES]> {
    let mut cookie = [0; COOKIE_BYTES];
    SystemRandom::new()
        .fill(&mut cookie)
        .map_err(|_| io::Error::other("no random numbers"))?;
    Ok(cookie)
}

fn icmp_socket(domain: Domain, protocol: Protocol) -> io::Result<Socket> {
    // The unprivileged kind first: it needs only net.ipv4.ping_group_range.
    Socket::new(domain, Type::DGRAM, Some(protocol))
        .or_else(|_| Socket::new(domain, Type::RAW, Some(protocol)))
}

fn wait_for_any(probes: &[Echo], left: Duration) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd as _;
    let mut fds: Vec<PollFd<'_>> = probes
        .iter()
        .map(|e| PollFd::new(e.socket.as_fd(), PollFlags::POLLIN))
        .collect();
    let timeout =
        PollTimeout::try_from(left.max(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX);
    poll(&mut fds, timeout).is_ok_and(|n| n > 0)
}

/// One address that is being probed.
struct Echo {
    socket: Socket,
    target: SocketAddr,
    cookie: [u8; COOKIE_BYTES],
    icmp: bool,
}

impl Echo {
    fn open(to: Target, probe: Probe, cookie: [u8; COOKIE_BYTES]) -> io::Result<Self> {
        let address = to.ip;
        let domain = if address.is_ipv4() {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        let (socket, port) = match probe {
            Probe::Icmp if address.is_ipv4() => (icmp_socket(domain, Protocol::ICMPV4)?, 0),
            Probe::Icmp => (icmp_socket(domain, Protocol::ICMPV6)?, 0),
            Probe::Udp { port } => {
                let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
                let any: IpAddr = match address {
                    IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                socket.bind(&SocketAddr::new(any, 0).into())?;
                (socket, port)
            }
        };
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            target: to.at(port),
            cookie,
            icmp: probe == Probe::Icmp,
        })
    }

    fn send(&self, sequence: u16) -> io::Result<()> {
        let packet = if self.icmp {
            echo_request(self.target.is_ipv4(), sequence, &self.cookie)
        } else {
            [QUESTION.as_slice(), &self.cookie].concat()
        };
        self.socket.send_to(&packet, &self.target.into()).map(drop)
    }

    /// Reads all that came; true when our answer is among it.
    fn is_answered(&self) -> bool {
        loop {
            let mut buffer = [MaybeUninit::<u8>::uninit(); 512];
            let Ok((n, from)) = self.socket.recv_from(&mut buffer) else {
                return false;
            };
            let bytes: Vec<u8> = buffer
                .iter()
                .take(n)
                .map(|b| {
                    #[expect(
                        unsafe_code,
                        reason = "the socket library hands out uninitialised bytes"
                    )]
                    // SAFETY: the kernel has written the first `n` bytes.
                    unsafe {
                        b.assume_init()
                    }
                })
                .collect();
            let right = from.as_socket().is_some_and(|a| a.ip() == self.target.ip());
            if right && is_answer(&bytes, self.target.is_ipv4(), self.icmp, &self.cookie) {
                return true;
            }
        }
    }
}

/// Whether these bytes answer the probe with that cookie.
pub(crate) fn is_answer(bytes: &[u8], v4: bool, icmp: bool, cookie: &[u8; COOKIE_BYTES]) -> bool {
    if !icmp {
        return bytes.strip_prefix(ANSWER.as_slice()) == Some(cookie.as_slice());
    }
    let body = if v4 { without_ip_header(bytes) } else { bytes };
    let reply = if v4 { 0 } else { 129 };
    body.first() == Some(&reply) && body.get(8..8 + COOKIE_BYTES) == Some(cookie.as_slice())
}

/// A raw IPv4 socket gives the IP header too; an echo reply never begins with 0x4?.
fn without_ip_header(bytes: &[u8]) -> &[u8] {
    match bytes.first() {
        Some(first) if first >> 4 == 4 => {
            bytes.get(usize::from(first & 15) * 4..).unwrap_or_default()
        }
        _ => bytes,
    }
}

fn echo_request(v4: bool, sequence: u16, cookie: &[u8]) -> Vec<u8> {
    let mut packet = vec![if v4 { 8 } else { 128 }, 0, 0, 0];
    // The kernel replaces the identifier where the socket is of the unprivileged kind.
    let identifier = u16::try_from(std::process::id() & 0xffff).unwrap_or(1);
    packet.extend_from_slice(&identifier.to_be_bytes());
    packet.extend_from_slice(&sequence.to_be_bytes());
    packet.extend_from_slice(cookie);
    if v4 {
        let sum = internet_checksum(&packet).to_be_bytes();
        if let Some(field) = packet.get_mut(2..4) {
            field.copy_from_slice(&sum);
        }
    }
    packet
}

/// The ones' complement sum of RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        let word = [
            pair.first().copied().unwrap_or(0),
            pair.get(1).copied().unwrap_or(0),
        ];
        sum += u32::from(u16::from_be_bytes(word));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(150);

    fn at(ip: &str) -> Target {
        ip.parse::<IpAddr>().expect("ip").into()
    }

    fn local() -> Target {
        at("127.0.0.1")
    }

    #[test]
    fn a_probe_that_nobody_answers_is_no_answer_and_an_unroutable_one_cannot_be_sent() {
        let port = std::net::UdpSocket::bind("127.0.0.1:0").expect("port");
        let probe = Probe::Udp {
            port: port.local_addr().expect("address").port(),
        };
        let silent = ping(&[local()], probe, SHORT);
        assert_eq!(silent, PingOutcome::NoAnswer);
        assert_eq!(ping(&[], probe, SHORT), PingOutcome::CannotProbe);
        // Not a unicast address: the kernel refuses to send.
        let refused = ping(&[at("255.255.255.255")], probe, SHORT);
        assert_eq!(refused, PingOutcome::CannotProbe);
    }

    #[test]
    fn a_responder_answers() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("port");
        let probe = Probe::Udp {
            port: socket.local_addr().expect("address").port(),
        };
        std::thread::spawn(move || crate::probe::serve(&socket));
        let outcome = ping(&[local()], probe, Duration::from_secs(5));
        assert_eq!(outcome, PingOutcome::Answered);
    }

    #[test]
    fn icmp_reaches_this_host_where_it_may_be_used() {
        let outcome = ping(&[local()], Probe::Icmp, Duration::from_secs(5));
        if icmp_available() {
            assert_eq!(outcome, PingOutcome::Answered);
        } else {
            assert_eq!(outcome, PingOutcome::CannotProbe);
        }
    }

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        assert_eq!(
            internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
        assert_eq!(
            internet_checksum(&echo_request(true, 1, &[7; COOKIE_BYTES])),
            0
        );
    }
}
