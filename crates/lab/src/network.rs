//! The management networks of a run: a namespace for each host, a device in it for each of its networks,
//! a gateway that answers pings on every network, and one switch in user space between them that cuts,
//! drops, loses and delays frames as the scenario's events say.
//!
//! ```text
//!  host-1: eth0 eth1      host-2: eth0      gateway: eth0 eth1
//!            |    |                 |                  |    |      TAP devices
//!            '----+-----------------+------------------+----+-- switch (a thread) <- rules (faults)
//! ```
//!
//! A fault takes frames: carrier, addresses and routes stay, so what is healed works at once, as in the
//! simulator. Devices live as long as their descriptors here, so nothing is left of a run that is killed.
//!
//! # Never here
//! A device, an address or a rule outside namespaces of the run; a fault that the kernel of a host could
//! see other than by what does not arrive.

mod frame;
mod priority;
mod rules;
mod setup;
mod switch;
mod tap;
mod transit;

use crate::fail::{Context, Failure, Result};
use crate::namespace::Namespace;
use crate::procs::run_tool;
use rules::{End, Rules};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::Duration;
use switch::{Change, Running, Switch};

/// What a run's networks are made of.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The hosts, at most 253. Their place here is their number everywhere else.
    pub hosts: Vec<HostPlan>,
    /// How many networks there are, at most 256.
    pub networks: usize,
    /// What all losses follow from.
    pub seed: u64,
}

/// A host of a plan.
#[derive(Debug, Clone, Default)]
pub struct HostPlan {
    /// Its name, for messages.
    pub name: String,
    /// The networks that it is on, counted from 0. Its devices are `eth0`, `eth1` and so on, in this order.
    pub networks: Vec<usize>,
}

/// What has become of frames, counted once for each receiver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Given to the receiver's device.
    pub carried: u64,
    /// No way led there: cuts, partitions, drops, no power.
    pub blocked: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Too much was under way, or waited for a paused host.
    pub overflowed: u64,
    /// The receiver's device was down or gone.
    pub refused: u64,
    /// Sent, and on their way at this moment because a delay is set.
    pub under_way: usize,
    /// Waiting at this moment for paused hosts.
    pub waiting: usize,
}

/// All management networks of a run. Dropped, its devices are gone at once, and its namespaces as soon as
/// the last process in them is.
#[derive(Debug)]
pub struct Network {
    // The switch first: what it holds ends before the namespaces do.
    switch: Running,
    hosts: Vec<(HostPlan, Namespace)>,
    gateway: Namespace,
}

/// Whether networks can be made here.
///
/// # Errors
/// What is missing, with the remedy.
pub fn available() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let (net_admin, sys_admin) = (12, 21);
    if [net_admin, sys_admin]
        .iter()
        .any(|bit| bits.unwrap_or_default() >> bit & 1 == 0)
    {
        return Err(Failure::new("namespaces and devices need root")
            .remedy("run it as root; in a container, with CAP_SYS_ADMIN and CAP_NET_ADMIN added"));
    }
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(tap::DEVICE)
        .context("cannot open the driver of TAP devices")
        .map_err(|e| {
            e.at(tap::DEVICE)
                .remedy("`modprobe tun`; in a container, start it with --device /dev/net/tun")
        })?;
    run_tool(Command::new("ip").arg("-V"))
        .context("cannot run `ip`")
        .map_err(|e| e.remedy("apt-get install iproute2"))?;
    Namespace::make().map(drop)
}

impl Network {
    /// Makes the namespaces of all hosts and of the gateway, their devices and addresses, and carries
    /// frames between them from then on. Every host is switched on.
    ///
    /// # Errors
    /// When the plan has more hosts or networks than addresses, names a network twice or one that is not
    /// there, or the kernel refuses something.
    pub fn make(plan: &Plan) -> Result<Self> {
        check(plan)?;
        let neighbours = |network: usize| {
            let on = |(host, plan): (usize, &HostPlan)| {
                plan.networks.contains(&network).then_some(End::Host(host))
            };
            let hosts = plan.hosts.iter().enumerate().filter_map(on);
            hosts.chain([End::Gateway]).collect()
        };
        let all: Vec<usize> = (0..plan.networks).collect();
        let gateway = Namespace::make()?;
        let mut ports = setup::attach(&gateway, End::Gateway, &all, neighbours)
            .map_err(|e| e.at("the gateway"))?;
        let mut hosts = Vec::new();
        for (number, host) in plan.hosts.iter().enumerate() {
            let namespace = Namespace::make().map_err(|e| e.at(&host.name))?;
            let made = setup::attach(&namespace, End::Host(number), &host.networks, neighbours);
            ports.extend(made.map_err(|e| e.at(&host.name))?);
            hosts.push((host.clone(), namespace));
        }
        let rules = Rules::new(hosts.len(), plan.networks, plan.seed);
        Ok(Self {
            switch: Running::start(ports, rules)?,
            hosts,
            gateway,
        })
    }

    fn host(&self, host: usize) -> Result<&(HostPlan, Namespace)> {
        let found = self.hosts.get(host);
        found.ok_or_else(|| Failure::new(format_args!("there is no host of number {host}")))
    }

    /// The namespaces of a host.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn namespace(&self, host: usize) -> Result<&Namespace> {
        self.host(host).map(|(_, namespace)| namespace)
    }

    /// The namespaces of the gateway, which also is where something can look on from, unmoved by the
    /// faults between hosts.
    #[must_use]
    pub fn gateway_namespace(&self) -> &Namespace {
        &self.gateway
    }

    /// A host's address on a network; none if it is not there.
    #[must_use]
    pub fn address(&self, host: usize, network: usize) -> Option<IpAddr> {
        let (plan, _) = self.hosts.get(host)?;
        plan.networks.contains(&network).then_some(())?;
        Some(frame::ip(network, End::Host(host))?.into())
    }

    /// The isolation address of a network, which its gateway answers pings at; the unspecified address
    /// beyond the networks that a run can have.
    #[must_use]
    pub fn gateway(&self, network: usize) -> IpAddr {
        let address = frame::ip(network, End::Gateway);
        address.unwrap_or(Ipv4Addr::UNSPECIFIED).into()
    }

    /// Whether the switch goes before ordinary threads. Without that a busy machine looks like a slow
    /// network.
    #[must_use]
    pub fn is_real_time(&self) -> bool {
        self.switch.is_real_time()
    }

    /// What has become of frames so far.
    ///
    /// # Errors
    /// When the switch has ended.
    pub fn counts(&self) -> Result<Counts> {
        self.switch.ask(|switch| switch.counts())
    }

    /// When the last UDP datagram of one host was given to another, on whichever network; none before the first.
    /// Agents send their heartbeats so.
    ///
    /// # Errors
    /// When the switch has ended.
    pub fn last_datagram(
        &self,
        from: usize,
        to: usize,
    ) -> Result<Option<mainstay_core::time::Instant>> {
        self.switch
            .ask(move |switch| switch.last_datagram(End::Host(from), End::Host(to)))
    }

    /// Changes something about hosts that must be there. It holds when this returns.
    fn change(
        &self,
        hosts: impl IntoIterator<Item = usize>,
        change: impl FnOnce(&mut Switch) + Send + 'static,
    ) -> Result<()> {
        for host in hosts {
            self.host(host)?;
        }
        self.switch.ask(change)
    }

    /// Pulls all cables of a host, as when its power is gone, or plugs them in again. What it had sent
    /// still arrives; no heal plugs them in.
    ///
    /// # Errors
    /// When there is no such host, or the switch has ended; so for all faults below.
    pub fn plug(&self, host: usize, on: bool) -> Result<()> {
        self.power(host, Change::Plug(on))
    }

    /// Stops a host's network as a pause of the machine does: it sends nothing, its kernel answers
    /// nothing, and of what reaches it the first frames wait until [`Network::resume`]. A host that is
    /// unplugged stays so.
    ///
    /// # Errors
    /// As [`Network::plug`].
    pub fn pause(&self, host: usize) -> Result<()> {
        self.power(host, Change::Pause)
    }

    /// A paused host goes on, and gets what waited for it. Any other stays as it is.
    ///
    /// # Errors
    /// As [`Network::plug`].
    pub fn resume(&self, host: usize) -> Result<()> {
        self.power(host, Change::Resume)
    }

    fn power(&self, host: usize, change: Change) -> Result<()> {
        self.change([host], move |switch| switch.set_power(host, change))
    }

    /// Nothing passes between a host and one of its networks, or all of them.
    ///
    /// # Errors
    /// As [`Network::plug`].
    pub fn cut(&self, host: usize, network: Option<usize>) -> Result<()> {
        self.change([host], move |switch| switch.rules().cut(host, network))
    }

    /// Hosts in different groups do not reach each other; hosts that no group names are a group too. All
    /// still reach the gateway. An earlier partition ends.
    ///
    /// # Errors
    /// As [`Network::plug`].
    pub fn partition(&self, groups: &[Vec<usize>]) -> Result<()> {
        let groups = groups.to_vec();
        let named: Vec<usize> = groups.iter().flatten().copied().collect();
        self.change(named, move |switch| switch.rules().partition(&groups))
    }

    /// Nothing passes from one host to another; the way back stays.
    ///
    /// # Errors
    /// As [`Network::plug`].
    pub fn drop_one_way(&self, from: usize, to: usize) -> Result<()> {
        self.change([from, to], move |switch| {
            switch.rules().drop_one_way(from, to);
        })
    }

    /// Of the frames from and to a host, or of all, so many of a hundred are lost. Between two hosts the
    /// greater of their losses counts; of a round trip to the gateway it is the way there that is met.
    ///
    /// # Errors
    /// As [`Network::plug`].
    pub fn loss(&self, percent: u8, host: Option<usize>) -> Result<()> {
        self.change(host, move |switch| {
            switch.rules().set_loss(percent.into(), host);
        })
    }

    /// Frames from and to a host, or all, arrive so much later. Between two hosts the greater of their
    /// delays counts. What is under way keeps its time.
    ///
    /// # Errors
    /// As [`Network::plug`].
    pub fn delay(&self, time: Duration, host: Option<usize>) -> Result<()> {
        self.change(host, move |switch| switch.rules().set_delay(time, host))
    }

    /// Every isolation address answers, or is silent.
    ///
    /// # Errors
    /// When the switch has ended.
    pub fn gateway_up(&self, up: bool) -> Result<()> {
        self.change(None, move |switch| switch.rules().set_gateway(up))
    }

    /// Ends cuts, one-way drops, loss and delay of a host; without one, of all hosts, and partitions too.
    /// Where a network is named, only the cuts there end. The gateway and plugs stay as they are.
    ///
    /// # Errors
    /// As [`Network::plug`].
    pub fn heal(&self, host: Option<usize>, network: Option<usize>) -> Result<()> {
        self.change(host, move |switch| switch.rules().heal(host, network))
    }
}

/// Refuses a plan that cannot be carried out.
fn check(plan: &Plan) -> Result<()> {
    let limits = [
        ("hosts", plan.hosts.len(), frame::HOSTS_MAX),
        ("networks", plan.networks, frame::NETWORKS_MAX),
    ];
    for (what, count, max) in limits {
        if count > max {
            return Err(Failure::new(format_args!(
                "{count} {what} are more than there are addresses for, {max}"
            )));
        }
    }
    for host in &plan.hosts {
        let mut seen = BTreeSet::new();
        for network in &host.networks {
            if *network >= plan.networks || !seen.insert(network) {
                return Err(Failure::new(format_args!(
                    "network {network} is named twice, or is beyond the {} of the run",
                    plan.networks
                ))
                .at(&host.name));
            }
        }
    }
    Ok(())
}
