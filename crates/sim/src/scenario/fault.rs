//! What can happen to a cluster: every event that a scenario can name.

use super::write::time_text;
use crate::clock::Nanos;
use mainstay_core::config::Change;
use serde_json::{Value, json};

/// What a datastore does to I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StorageFault {
    /// It hangs.
    Apd,
    /// It fails at once as gone for ever.
    Pdl,
    /// It takes that long.
    Slow(Nanos),
    /// Writes are refused.
    ReadOnly,
    /// There is no space.
    Full,
}

/// What is wrong with a fence device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FenceFault {
    /// It answers nobody.
    Dead,
    /// It takes that long.
    Slow(Nanos),
    /// It says that it did what it was told, and does nothing; what it says of the power is true.
    Stuck,
    /// It says that it did what it was told and that there is no power, and does nothing.
    Lies,
    /// Nothing any more.
    Heal,
}

/// One event. Hosts, VMs, datastores and networks are indices into the scenario's lists.
#[derive(Clone, PartialEq, Debug)]
#[expect(
    missing_docs,
    reason = "the arguments are what their names say; EVENTS documents each event"
)]
pub enum Fault {
    HostPowerOff {
        host: usize,
    },
    HostPowerOn {
        host: usize,
    },
    HostPause {
        host: usize,
    },
    HostResume {
        host: usize,
    },
    HostShutdown {
        host: usize,
    },
    HostReboot {
        host: usize,
    },
    /// A drill of the host, asked for there: for so long, or as long as its forecast says.
    HostDrill {
        host: usize,
        time: Option<Nanos>,
        insists: bool,
    },
    AgentKill {
        host: usize,
    },
    /// On purpose: announced, and away for a while.
    AgentRestart {
        host: usize,
        time: Nanos,
        /// It comes back in another version, which understands formats up to this one.
        formats: Option<u16>,
    },
    GuardKill {
        host: usize,
    },
    AgentHang {
        host: usize,
    },
    AgentResume {
        host: usize,
    },
    GuardHang {
        host: usize,
    },
    GuardResume {
        host: usize,
    },
    NetworkCut {
        host: usize,
        network: Option<usize>,
    },
    NetworkPartition {
        groups: Vec<Vec<usize>>,
    },
    NetworkDrop {
        from: usize,
        to: usize,
    },
    NetworkLoss {
        percent: u64,
        host: Option<usize>,
    },
    NetworkDelay {
        time: Nanos,
        host: Option<usize>,
    },
    NetworkHeal {
        host: Option<usize>,
        network: Option<usize>,
    },
    GatewayDown,
    GatewayUp,
    Datastore {
        fault: StorageFault,
        datastore: usize,
        host: Option<usize>,
    },
    DatastoreHeal {
        datastore: Option<usize>,
        host: Option<usize>,
    },
    VmCrash {
        vm: usize,
    },
    /// The host's kernel kills it for want of memory.
    VmOomKill {
        vm: usize,
    },
    GuestShutdown {
        vm: usize,
    },
    /// It executes nothing and writes nothing any more; its process lives.
    GuestHang {
        vm: usize,
    },
    GuestPanic {
        vm: usize,
    },
    /// Its disk fails as a device that is gone, on one host; none: where it is now.
    VmDiskError {
        vm: usize,
        host: Option<usize>,
    },
    /// Its disk fails nowhere any more.
    VmDiskHeal {
        vm: usize,
    },
    VmPowerOn {
        vm: usize,
        host: Option<usize>,
    },
    VmPowerOff {
        vm: usize,
    },
    ClockDrift {
        host: usize,
        ppm: i64,
    },
    StartFail {
        host: Option<usize>,
        vm: Option<usize>,
        times: u64,
    },
    /// Changes of the configuration, asked for at the named host or at any.
    Config {
        name: &'static str,
        changes: Vec<Change>,
        host: Option<usize>,
    },
    VmCreate {
        vm: usize,
        host: Option<usize>,
        on: bool,
    },
    VmDelete {
        vm: usize,
    },
    /// What is wrong with a host's fence device, or with all.
    FenceDevice {
        host: Option<usize>,
        fault: FenceFault,
    },
    ManagerDown,
    ManagerUp,
    /// A known event without behaviour behind it yet.
    NotPlayable(&'static str),
}

/// One event that a scenario can name.
#[derive(Clone, Copy, Debug)]
pub struct EventDoc {
    /// Its name.
    pub name: &'static str,
    /// Arguments that it needs.
    pub needs: &'static [&'static str],
    /// Arguments that it may have.
    pub may: &'static [&'static str],
    /// The simulator plays it.
    pub playable: bool,
}

impl EventDoc {
    /// All keys that its table may have.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.arguments().chain(["at", "do"])
    }

    /// The arguments that it may have.
    pub(super) fn arguments(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.needs.iter().chain(self.may).copied()
    }
}

const fn doc(
    name: &'static str,
    needs: &'static [&'static str],
    may: &'static [&'static str],
) -> EventDoc {
    EventDoc {
        name,
        needs,
        may,
        playable: true,
    }
}

/// One that belongs to a part of the product still to come.
const fn later(name: &'static str, needs: &'static [&'static str]) -> EventDoc {
    EventDoc {
        name,
        needs,
        may: &[],
        playable: false,
    }
}

/// What a scenario says of a VM, in its table or when an event makes it.
pub(super) const VM_KEYS: &[&str] = &[
    "host",
    "datastore",
    "cpu_mhz",
    "memory_mb",
    "power",
    "restart_priority",
    "isolation_response",
    "start_time",
    "shutdown_time",
    "guest_agent",
    "depends_on",
];

/// Where a VM is, or is to be.
const PLACE: &[&str] = &["host", "datastore"];

/// Every event.
pub const EVENTS: &[EventDoc] = &[
    doc("host.power_off", &["host"], &[]),
    doc("host.power_on", &["host"], &[]),
    doc("host.pause", &["host"], &[]),
    doc("host.resume", &["host"], &[]),
    doc("host.shutdown", &["host"], &[]),
    doc("host.reboot", &["host"], &[]),
    doc("host.drill", &["host"], &["time", "force"]),
    doc("agent.kill", &["host"], &[]),
    doc("agent.restart", &["host"], &["time", "formats"]),
    doc("guard.kill", &["host"], &[]),
    doc("agent.hang", &["host"], &[]),
    doc("agent.resume", &["host"], &[]),
    doc("guard.hang", &["host"], &[]),
    doc("guard.resume", &["host"], &[]),
    doc("network.cut", &["host"], &["network"]),
    doc("network.partition", &["groups"], &[]),
    doc("network.drop", &["from", "to"], &[]),
    doc("network.loss", &["percent"], &["host"]),
    doc("network.delay", &["time"], &["host"]),
    doc("network.heal", &[], &["host", "network"]),
    doc("gateway.down", &[], &[]),
    doc("gateway.up", &[], &[]),
    doc("datastore.apd", &["datastore"], &["host"]),
    doc("datastore.pdl", &["datastore"], &["host"]),
    doc("datastore.slow", &["datastore", "time"], &["host"]),
    doc("datastore.read_only", &["datastore"], &["host"]),
    doc("datastore.full", &["datastore"], &["host"]),
    doc("datastore.heal", &[], &["datastore", "host"]),
    doc("vm.crash", &["vm"], &[]),
    doc("vm.oom_kill", &["vm"], &[]),
    doc("vm.disk_error", &["vm"], &["host"]),
    doc("vm.disk_heal", &["vm"], &[]),
    doc("guest.shutdown", &["vm"], &[]),
    doc("guest.hang", &["vm"], &[]),
    doc("guest.panic", &["vm"], &[]),
    doc("vm.power_on", &["vm"], PLACE),
    doc("vm.power_off", &["vm"], PLACE),
    doc("clock.drift", &["host", "ppm"], &[]),
    doc("start.fail", &["times"], &["host", "vm"]),
    doc("vm.create", &["vm"], VM_KEYS),
    doc("vm.delete", &["vm"], PLACE),
    doc("maintenance.enter", &["host"], &[]),
    doc("maintenance.exit", &["host"], &[]),
    doc("config.set", &["key", "value"], &["host"]),
    doc("fence_device.dead", &["host"], &[]),
    doc("fence_device.slow", &["host", "time"], &[]),
    doc("fence_device.stuck", &["host"], &[]),
    doc("fence_device.lies", &["host"], &[]),
    doc("fence_device.heal", &[], &["host"]),
    doc("manager.down", &[], &[]),
    doc("manager.up", &[], &[]),
    later("app.hang", &["vm"]),
    later("host.degraded", &["host"]),
    later("host.healthy", &["host"]),
];

/// The names behind the indices of a scenario.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names {
    /// Hosts.
    pub hosts: Vec<String>,
    /// VMs.
    pub vms: Vec<String>,
    /// Datastores.
    pub datastores: Vec<String>,
    /// Management networks.
    pub networks: Vec<String>,
}

fn name(list: &[String], index: usize) -> Value {
    json!(list.get(index).map_or("?", String::as_str))
}

fn time(nanos: Nanos) -> Value {
    json!(time_text(nanos))
}

impl Fault {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::HostPowerOff { .. } => "host.power_off",
            Self::HostPowerOn { .. } => "host.power_on",
            Self::HostPause { .. } => "host.pause",
            Self::HostResume { .. } => "host.resume",
            Self::HostShutdown { .. } => "host.shutdown",
            Self::HostReboot { .. } => "host.reboot",
            Self::HostDrill { .. } => "host.drill",
            Self::AgentKill { .. } => "agent.kill",
            Self::AgentRestart { .. } => "agent.restart",
            Self::GuardKill { .. } => "guard.kill",
            Self::AgentHang { .. } => "agent.hang",
            Self::AgentResume { .. } => "agent.resume",
            Self::GuardHang { .. } => "guard.hang",
            Self::GuardResume { .. } => "guard.resume",
            Self::NetworkCut { .. } => "network.cut",
            Self::NetworkPartition { .. } => "network.partition",
            Self::NetworkDrop { .. } => "network.drop",
            Self::NetworkLoss { .. } => "network.loss",
            Self::NetworkDelay { .. } => "network.delay",
            Self::NetworkHeal { .. } => "network.heal",
            Self::GatewayDown => "gateway.down",
            Self::GatewayUp => "gateway.up",
            Self::Datastore { fault, .. } => match fault {
                StorageFault::Apd => "datastore.apd",
                StorageFault::Pdl => "datastore.pdl",
                StorageFault::Slow(_) => "datastore.slow",
                StorageFault::ReadOnly => "datastore.read_only",
                StorageFault::Full => "datastore.full",
            },
            Self::DatastoreHeal { .. } => "datastore.heal",
            Self::VmCrash { .. } => "vm.crash",
            Self::VmOomKill { .. } => "vm.oom_kill",
            Self::VmDiskError { .. } => "vm.disk_error",
            Self::VmDiskHeal { .. } => "vm.disk_heal",
            Self::GuestShutdown { .. } => "guest.shutdown",
            Self::GuestHang { .. } => "guest.hang",
            Self::GuestPanic { .. } => "guest.panic",
            Self::VmPowerOn { .. } => "vm.power_on",
            Self::VmPowerOff { .. } => "vm.power_off",
            Self::ClockDrift { .. } => "clock.drift",
            Self::StartFail { .. } => "start.fail",
            Self::Config { name, .. } => name,
            Self::VmCreate { .. } => "vm.create",
            Self::VmDelete { .. } => "vm.delete",
            Self::FenceDevice { fault, .. } => match fault {
                FenceFault::Dead => "fence_device.dead",
                FenceFault::Slow(_) => "fence_device.slow",
                FenceFault::Stuck => "fence_device.stuck",
                FenceFault::Lies => "fence_device.lies",
                FenceFault::Heal => "fence_device.heal",
            },
            Self::ManagerDown => "manager.down",
            Self::ManagerUp => "manager.up",
            Self::NotPlayable(name) => name,
        }
    }

    /// Its arguments as a scenario writes them.
    #[must_use]
    pub fn arguments(&self, names: &Names) -> Vec<(&'static str, Value)> {
        let host = |h: &usize| ("host", name(&names.hosts, *h));
        let mut out = Vec::new();
        match self {
            Self::HostPowerOff { host: h }
            | Self::HostPowerOn { host: h }
            | Self::HostPause { host: h }
            | Self::HostResume { host: h }
            | Self::HostShutdown { host: h }
            | Self::HostReboot { host: h }
            | Self::AgentKill { host: h }
            | Self::GuardKill { host: h }
            | Self::AgentHang { host: h }
            | Self::AgentResume { host: h }
            | Self::GuardHang { host: h }
            | Self::GuardResume { host: h } => out.push(host(h)),
            Self::HostDrill {
                host: h,
                time: t,
                insists,
            } => {
                out.push(host(h));
                out.extend(t.iter().map(|t| ("time", time(*t))));
                out.extend(insists.then_some(("force", Value::from(true))));
            }
            Self::NetworkCut { host: h, network } => {
                out.push(host(h));
                out.extend(
                    network
                        .iter()
                        .map(|n| ("network", name(&names.networks, *n))),
                );
            }
            Self::NetworkPartition { groups } => {
                let named =
                    |g: &Vec<usize>| g.iter().map(|h| name(&names.hosts, *h)).collect::<Vec<_>>();
                out.push((
                    "groups",
                    json!(groups.iter().map(named).collect::<Vec<_>>()),
                ));
            }
            Self::NetworkDrop { from, to } => {
                out.push(("from", name(&names.hosts, *from)));
                out.push(("to", name(&names.hosts, *to)));
            }
            Self::NetworkLoss { percent, host: h } => {
                out.push(("percent", json!(percent)));
                out.extend(h.iter().map(host));
            }
            Self::NetworkDelay { time: t, host: h } => {
                out.push(("time", time(*t)));
                out.extend(h.iter().map(host));
            }
            Self::NetworkHeal { host: h, network } => {
                out.extend(h.iter().map(host));
                out.extend(
                    network
                        .iter()
                        .map(|n| ("network", name(&names.networks, *n))),
                );
            }
            Self::Datastore {
                fault,
                datastore,
                host: h,
            } => {
                out.push(("datastore", name(&names.datastores, *datastore)));
                out.extend(h.iter().map(host));
                if let StorageFault::Slow(t) = fault {
                    out.push(("time", time(*t)));
                }
            }
            Self::DatastoreHeal { datastore, host: h } => {
                out.extend(
                    datastore
                        .iter()
                        .map(|d| ("datastore", name(&names.datastores, *d))),
                );
                out.extend(h.iter().map(host));
            }
            Self::AgentRestart {
                host: h,
                time: t,
                formats,
            } => {
                out.push(host(h));
                out.push(("time", time(*t)));
                out.extend(formats.iter().map(|f| ("formats", Value::from(*f))));
            }
            Self::Config {
                changes, host: h, ..
            } => {
                out.extend(h.iter().map(host));
                for change in changes {
                    match change {
                        Change::Set { key, value } => {
                            out.push(("key", json!(key)));
                            out.push(("value", json!(value)));
                        }
                        Change::Maintenance { host, .. } => out.push(("host", json!(host))),
                        _ => {}
                    }
                }
            }
            Self::VmCreate { vm, host: h, on } => {
                out.push(("vm", name(&names.vms, *vm)));
                out.extend(h.iter().map(host));
                out.push(("power", json!(if *on { "on" } else { "off" })));
            }
            Self::VmDelete { vm } => out.push(("vm", name(&names.vms, *vm))),
            Self::FenceDevice { host: h, fault } => {
                out.extend(h.iter().map(host));
                if let FenceFault::Slow(t) = fault {
                    out.push(("time", time(*t)));
                }
            }
            Self::VmCrash { vm }
            | Self::VmOomKill { vm }
            | Self::GuestShutdown { vm }
            | Self::GuestHang { vm }
            | Self::GuestPanic { vm }
            | Self::VmDiskHeal { vm }
            | Self::VmPowerOff { vm } => {
                out.push(("vm", name(&names.vms, *vm)));
            }
            Self::VmPowerOn { vm, host: h } | Self::VmDiskError { vm, host: h } => {
                out.push(("vm", name(&names.vms, *vm)));
                out.extend(h.iter().map(host));
            }
            Self::ClockDrift { host: h, ppm } => {
                out.push(host(h));
                out.push(("ppm", json!(ppm)));
            }
            Self::StartFail { host: h, vm, times } => {
                out.extend(h.iter().map(host));
                out.extend(vm.iter().map(|v| ("vm", name(&names.vms, *v))));
                out.push(("times", json!(times)));
            }
            Self::GatewayDown
            | Self::GatewayUp
            | Self::ManagerDown
            | Self::ManagerUp
            | Self::NotPlayable(_) => {}
        }
        out
    }
}
