//! The demo's network: a namespace for each host on one switch, so that a killed host really stops
//! answering. Namespaces have no names: they live as long as the file descriptors held here and the
//! processes in them, so nothing is left of them when the demo ends, however it ends.
//!
//! Where namespaces are refused: an address of 127.0.0.0/8 and a probe process for each host.

use crate::fail::{Context, Failure, Result};
use mainstay_lab::procs::{self, run_tool};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid};
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::process::Command;

/// Port of the responders where hosts have no address of their own.
pub(crate) const PROBE_PORT: u16 = 7790;
/// The last part of the isolation address.
const GATEWAY: u8 = 254;

/// How the hosts of one run reach each other.
#[derive(Debug)]
pub(crate) enum Network {
    /// A namespace for each host.
    Namespaces {
        /// The one with the bridge.
        switch: File,
        /// One for each host.
        hosts: Vec<File>,
    },
    /// Addresses of the loopback device.
    Loopback {
        /// Second and third part of the addresses, so that two runs do not meet.
        net: (u8, u8),
    },
}

/// Takes the rights that namespaces need by entering a user namespace, where this user lacks them.
/// Must be called before the first thread is started. Says why it could not.
pub(crate) fn take_rights() -> std::result::Result<(), String> {
    if may_make_namespaces() {
        return Ok(());
    }
    let (uid, gid) = (Uid::effective(), Gid::effective());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|e| format!("user namespaces are refused ({e})"))?;
    let map = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text)
            .map_err(|e| format!("the user namespace is useless ({file}: {e})"))
    };
    map("setgroups", "deny".into())?;
    map("uid_map", format!("0 {uid} 1"))?;
    map("gid_map", format!("0 {gid} 1"))
}

/// CAP_SYS_ADMIN and CAP_NET_ADMIN, by `/proc/self/status`.
fn may_make_namespaces() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let bits = effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or_default();
    let (net_admin, sys_admin) = (12, 21);
    bits >> net_admin & 1 == 1 && bits >> sys_admin & 1 == 1
}

/// Whether ordinary network namespaces can be made here at all.
fn make_namespace() -> Result<File> {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        File::open("/proc/thread-self/ns/net").map_err(|_| nix::errno::Errno::ENOENT)
    });
    match made.join() {
        Ok(result) => result.context("network namespaces are refused"),
        Err(_) => Err(Failure::new("network namespaces are refused")),
    }
}

/// Runs something on a thread inside a namespace. What it starts stays there.
fn inside<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> Result<T> {
    let joined = std::thread::scope(|scope| {
        let thread = scope.spawn(|| setns(namespace, CloneFlags::CLONE_NEWNET).map(|()| work()));
        thread.join()
    });
    match joined {
        Ok(result) => result.context("cannot enter a network namespace"),
        Err(_) => Err(Failure::new("work in a network namespace failed")),
    }
}

fn ip(namespace: &File, arguments: &str) -> Result<()> {
    let output = inside(namespace, || {
        run_tool(Command::new("ip").args(arguments.split(' ')))
    })?;
    let output = output
        .context("cannot run `ip`")
        .map_err(|e| e.remedy("to have namespaces: apt-get install iproute2"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr)
        .trim()
        .replace('\n', "; ");
    Err(Failure::new(format_args!(
        "`ip {arguments}` failed: {said}"
    )))
}

impl Network {
    /// Namespaces on a switch.
    pub(crate) fn namespaces(hosts: u8) -> Result<Self> {
        let switch = make_namespace()?;
        let gateway = Ipv4Addr::new(10, 99, 0, GATEWAY);
        for arguments in [
            "link set lo up".into(),
            "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0".into(),
            format!("addr add {gateway}/24 dev br0"),
            "link set br0 up".into(),
        ] {
            ip(&switch, &arguments)?;
        }
        let mut made = Vec::new();
        for number in 1..=hosts {
            let host = make_namespace()?;
            let path = format!("/proc/{}/fd/{}", std::process::id(), host.as_raw_fd());
            ip(
                &switch,
                &format!("link add p-h{number} type veth peer name eth0 netns {path}"),
            )?;
            ip(&switch, &format!("link set p-h{number} master br0 up"))?;
            for arguments in [
                "link set lo up".into(),
                format!("addr add 10.99.0.{number}/24 dev eth0"),
                "link set eth0 up".into(),
                format!("route add default via {gateway}"),
            ] {
                ip(&host, &arguments)?;
            }
            inside(&host, allow_ping_sockets)?;
            made.push(host);
        }
        Ok(Self::Namespaces {
            switch,
            hosts: made,
        })
    }

    /// Loopback addresses of this run.
    pub(crate) fn loopback(seed: u64) -> Self {
        let part = |shift: u32| u8::try_from(seed >> shift & 0x7f).unwrap_or_default() + 1;
        Self::Loopback {
            net: (part(0), part(8)),
        }
    }

    fn address(&self, last: u8) -> IpAddr {
        match self {
            Self::Namespaces { .. } => Ipv4Addr::new(10, 99, 0, last).into(),
            Self::Loopback { net: (a, b) } => Ipv4Addr::new(127, *a, *b, last).into(),
        }
    }

    /// Address of a host, counted from 1.
    pub(crate) fn host(&self, number: u8) -> IpAddr {
        self.address(number)
    }

    /// The isolation address.
    pub(crate) fn gateway(&self) -> IpAddr {
        self.address(GATEWAY)
    }

    /// Whether hosts are probed by responders of their own.
    pub(crate) fn needs_probes(&self) -> bool {
        matches!(self, Self::Loopback { .. })
    }

    /// Starts a program on a host, counted from 1. Its parent never waits for it by its number.
    pub(crate) fn spawn(&self, number: u8, command: &mut Command) -> Result<()> {
        let spawned = match self {
            Self::Loopback { .. } => procs::spawn(command),
            Self::Namespaces { hosts, .. } => {
                let namespace = usize::from(number)
                    .checked_sub(1)
                    .and_then(|n| hosts.get(n));
                let namespace = namespace
                    .ok_or_else(|| Failure::new(format_args!("there is no host {number}")))?;
                inside(namespace, || procs::spawn(command))?
            }
        };
        spawned.context("cannot start a process of a host")
    }

    /// Pulls or plugs a host's cable at the switch.
    pub(crate) fn set_link(&self, number: u8, up: bool) -> Result<()> {
        match self {
            Self::Namespaces { switch, .. } => ip(
                switch,
                &format!("link set p-h{number} {}", if up { "up" } else { "down" }),
            ),
            Self::Loopback { .. } => Ok(()),
        }
    }
}

/// Lets every group that this user namespace knows use ping sockets, where raw ones are not to be had.
fn allow_ping_sockets() {
    let range = "/proc/sys/net/ipv4/ping_group_range";
    if fs::write(range, "0 2147483647").is_err() {
        // Inside a user namespace of one group; where this fails too, agents say so in their status.
        drop(fs::write(range, "0 0"));
    }
}
