//! Gives a namespace its devices and addresses.

use super::End;
use super::frame::{ip, mac};
use super::switch::Port;
use super::tap;
use crate::fail::{Context, Failure, Result};
use crate::namespace::Namespace;
use crate::procs::run_tool;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Bits of an address that name its network.
const PREFIX_BITS: u8 = 24;

/// What is set in every namespace before it has a device, below `/proc/sys/net`.
const SETTINGS: &[(&str, &str)] = &[
    // Agents that are not root ping too.
    ("ipv4/ping_group_range", "0 2147483647"),
    // Networks are apart, whatever the machine itself is used for.
    ("ipv4/ip_forward", "0"),
    // The kernel of a host that lost power lives on and would send again what its processes left in
    // their sockets, for minutes, also after the host has booted: once is the least that it can be told.
    ("ipv4/tcp_orphan_retries", "1"),
    // A host at rest sends nothing of its own accord. Kernels without IPv6 have no such file.
    ("ipv6/conf/default/disable_ipv6", "1"),
];

/// Makes the devices of an end on these networks, `eth0` on the first, and what leads to each neighbour:
/// `neighbours` says who else is on a network.
///
/// # Errors
/// When the kernel or `ip` refuses something.
pub(super) fn attach(
    namespace: &Namespace,
    end: End,
    networks: &[usize],
    neighbours: impl Fn(usize) -> Vec<End>,
) -> Result<Vec<Port>> {
    let script = script(end, networks, neighbours)?;
    namespace.inside(|| {
        SETTINGS
            .iter()
            .try_for_each(|(name, value)| set(name, value))?;
        let made = networks.iter().enumerate().map(|(index, network)| {
            Ok(Port {
                network: *network,
                end,
                tap: tap::make(&device(index))?,
            })
        });
        let ports: Vec<Port> = made.collect::<Result<_>>()?;
        run_ip(&script)?;
        Ok(ports)
    })?
}

fn device(index: usize) -> String {
    format!("eth{index}")
}

fn set(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(name);
    match fs::write(&path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && name.starts_with("ipv6") => Ok(()),
        other => other
            .context(format_args!("cannot set {name} to {value}"))
            .map_err(|e| {
                e.at(path.display())
                    .remedy("in a container, mount /proc/sys writable")
            }),
    }
}

/// The commands for `ip`. Neighbours are fixed: a one-way drop that took address requests too would in
/// the end close the other way.
fn script(end: End, networks: &[usize], neighbours: impl Fn(usize) -> Vec<End>) -> Result<String> {
    let mut text = String::from("link set lo up\n");
    for (index, network) in networks.iter().copied().enumerate() {
        let device = device(index);
        let beyond = || Failure::new(format_args!("network {network} has no address for {end:?}"));
        let (own, hardware) = ip(network, end).zip(mac(network, end)).ok_or_else(beyond)?;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "link set {device} address {hardware}");
        let _ = writeln!(text, "address add {own}/{PREFIX_BITS} dev {device}");
        let _ = writeln!(text, "link set {device} up");
        for neighbour in neighbours(network).into_iter().filter(|n| *n != end) {
            let (address, hardware) = ip(network, neighbour)
                .zip(mac(network, neighbour))
                .ok_or_else(beyond)?;
            let _ = writeln!(
                text,
                "neighbour add {address} lladdr {hardware} nud permanent dev {device}"
            );
        }
        let gateway = ip(network, End::Gateway).ok_or_else(beyond)?;
        if index == 0 && end != End::Gateway {
            let _ = writeln!(text, "route add default via {gateway}");
        }
    }
    Ok(text)
}

fn run_ip(script: &str) -> Result<()> {
    let output = batch(script)
        .context("cannot run `ip`")
        .map_err(|e| e.remedy("apt-get install iproute2"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr)
        .trim()
        .replace('\n', "; ");
    Err(Failure::new(format_args!("`ip -batch` failed: {said}")))
}

fn batch(script: &str) -> io::Result<Output> {
    let mut file: File = tempfile::tempfile()?;
    file.write_all(script.as_bytes())?;
    file.seek(SeekFrom::Start(0))?;
    let mut command = Command::new("ip");
    run_tool(command.args(["-batch", "-"]).stdin(Stdio::from(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_knows_its_neighbours_and_leaves_by_its_first_network() {
        let on = |network| match network {
            0 => vec![End::Host(0), End::Host(1), End::Gateway],
            _ => vec![End::Host(0), End::Gateway],
        };
        let text = script(End::Host(0), &[2, 0], on).expect("a script");
        let expected = "\
            link set lo up\n\
            link set eth0 address 02:4d:61:69:02:01\n\
            address add 10.99.2.1/24 dev eth0\n\
            link set eth0 up\n\
            neighbour add 10.99.2.254 lladdr 02:4d:61:69:02:fe nud permanent dev eth0\n\
            route add default via 10.99.2.254\n\
            link set eth1 address 02:4d:61:69:00:01\n\
            address add 10.99.0.1/24 dev eth1\n\
            link set eth1 up\n\
            neighbour add 10.99.0.2 lladdr 02:4d:61:69:00:02 nud permanent dev eth1\n\
            neighbour add 10.99.0.254 lladdr 02:4d:61:69:00:fe nud permanent dev eth1\n";
        assert_eq!(text, expected);
    }
}
