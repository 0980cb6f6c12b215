//! Addresses: where a frame is going follows from its MAC alone, because every device got its own from
//! here, so the switch learns nothing and remembers nothing.

use super::rules::End;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// Most hosts of a run: the last part of an address, without 0, the gateway's 254 and the broadcast's 255.
pub(super) const HOSTS_MAX: usize = 253;
/// Most networks of a run: the third part of an address.
pub(super) const NETWORKS_MAX: usize = 256;
/// The gateway's number in each network.
const GATEWAY: u8 = 254;
/// A locally administered unicast address; network and number follow.
const PREFIX: [u8; 4] = [0x02, 0x4d, 0x61, 0x69];

/// The number of an end in its network: that of host 0 is 1.
fn number(end: End) -> Option<u8> {
    match end {
        End::Host(host) if host < HOSTS_MAX => u8::try_from(host + 1).ok(),
        End::Host(_) => None,
        End::Gateway => Some(GATEWAY),
    }
}

fn end(number: u8) -> Option<End> {
    match number {
        GATEWAY => Some(End::Gateway),
        0 | u8::MAX => None,
        number => Some(End::Host(usize::from(number) - 1)),
    }
}

/// The address of an end, `10.99.<network>.<number>`; none beyond the limits of a run.
pub(super) fn ip(network: usize, end: End) -> Option<Ipv4Addr> {
    let network = u8::try_from(network).ok()?;
    Some(Ipv4Addr::new(10, 99, network, number(end)?))
}

/// The MAC of an end, as text; none beyond the limits of a run.
pub(super) fn mac(network: usize, end: End) -> Option<String> {
    let network = u8::try_from(network).ok()?;
    let mut text = String::new();
    for part in PREFIX {
        // Writing to a string cannot fail.
        let _ = write!(text, "{part:02x}:");
    }
    let _ = write!(text, "{network:02x}:{:02x}", number(end)?);
    Some(text)
}

/// Where a frame is going.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Destination {
    /// To one end of this network, if it is attached there.
    One(End),
    /// To all: a broadcast, a multicast, or an address that is not ours.
    All,
}

/// Where a frame on this network is going; none if it is too short to say.
pub(super) fn destination(network: usize, frame: &[u8]) -> Option<Destination> {
    /// Two addresses and the type.
    const HEADER: usize = 14;
    let (header, _) = frame.split_at_checked(HEADER)?;
    let (prefix, rest) = header.split_first_chunk::<4>()?;
    let (&of_network, rest) = rest.split_first()?;
    let (&number, _) = rest.split_first()?;
    let ours = *prefix == PREFIX && usize::from(of_network) == network;
    Some(match end(number) {
        Some(end) if ours => Destination::One(end),
        _ => Destination::All,
    })
}

/// Whether a frame carries a UDP datagram over IPv4, or a fragment of one.
pub(super) fn is_datagram(frame: &[u8]) -> bool {
    /// Where the type of the frame and, in an IPv4 header, the protocol stand.
    const TYPE: usize = 12;
    const PROTOCOL: usize = 14 + 9;
    const IPV4: [u8; 2] = [0x08, 0x00];
    const UDP: u8 = 17;
    frame.get(TYPE..TYPE + 2) == Some(&IPV4) && frame.get(PROTOCOL) == Some(&UDP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame_to(mac: &str) -> Vec<u8> {
        let mut frame: Vec<u8> = mac
            .split(':')
            .map(|part| u8::from_str_radix(part, 16).expect("hex"))
            .collect();
        frame.resize(60, 0);
        frame
    }

    #[test]
    fn a_mac_leads_to_its_end() {
        for end in [End::Host(0), End::Host(63), End::Host(252), End::Gateway] {
            let frame = frame_to(&mac(3, end).expect("an address"));
            assert_eq!(destination(3, &frame), Some(Destination::One(end)));
            assert_eq!(destination(4, &frame), Some(Destination::All));
        }
    }

    #[test]
    fn broadcasts_and_strangers_go_to_all_and_fragments_nowhere() {
        for mac in [
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "02:4d:61:69:00:00",
            "52:54:00:00:00:01",
        ] {
            assert_eq!(destination(0, &frame_to(mac)), Some(Destination::All));
        }
        assert_eq!(destination(0, &[0xff; 13]), None);
        assert_eq!(destination(0, &[]), None);
    }

    #[test]
    fn datagrams_are_told_from_other_frames() {
        let mut frame = frame_to("02:4d:61:69:00:01");
        frame[12] = 0x08;
        frame[23] = 17;
        assert!(is_datagram(&frame));
        frame[23] = 6;
        assert!(!is_datagram(&frame), "TCP");
        frame[23] = 17;
        frame[13] = 0x06;
        assert!(!is_datagram(&frame), "ARP");
        assert!(!is_datagram(&frame[..20]));
    }

    #[test]
    fn addresses_end_at_the_limits() {
        assert_eq!(
            ip(0, End::Host(0)).expect("an address").to_string(),
            "10.99.0.1"
        );
        assert_eq!(
            ip(255, End::Gateway).expect("an address").to_string(),
            "10.99.255.254"
        );
        assert_eq!(ip(0, End::Host(HOSTS_MAX)), None);
        assert_eq!(ip(NETWORKS_MAX, End::Gateway), None);
        assert_eq!(mac(0, End::Host(HOSTS_MAX)), None);
    }
}
