//! Adding hosts and VMs to a running cluster. What must be on datastores first is made here, by an
//! administrator's act and never by an agent; then any agent takes the change.

use crate::cli::Common;
use crate::control::Target;
use crate::fail::{Context, Failure, Result};
use crate::ui::{self, line};
use clap::{Args, Subcommand, ValueEnum};
use mainstay_agent::config::{DriverKind, image_root};
use mainstay_agent::control::InForce;
use mainstay_agent::control::client::Client;
use mainstay_core::config::{
    Change, ClusterConfig, HostAddresses, HostSpec, Image, IsolationResponse, RestartPriority,
    VmSpec,
};
use mainstay_core::id::{BootId, DatastoreId, HostId, VmId};
use mainstay_datastore::{Datastore, Here};
use mainstay_hypervisor::{ImageKind, make_image};
use serde_json::json;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Until the agent that was asked has the change too; it is on disk before.
const CARRIED_WITHIN: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Arguments of `add`.
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    #[command(subcommand)]
    command: AddCommand,
}

#[derive(Debug, Subcommand)]
enum AddCommand {
    /// Let a host join the running cluster; then start its agent
    #[command(
        after_help = "Examples: mainstay add host host-4 --address 10.0.0.4:7777 --cpu-mhz 48000 --memory-mb 262144\n          mainstay add host host-4 --address mgmt0=10.0.0.4:7777 --address mgmt1=[fd00::4]:7777 --cpu-mhz 48000 --memory-mb 262144 --datastore ds-1\n\nAsk an agent whose host mounts what the new host mounts. Then, on the new host: `mainstay config export` for its cluster.toml, its agent.toml, the cluster key, a certificate of the cluster's CA for its id, and `mainstay agent`."
    )]
    Host(AddHost),
    /// Make a VM in the running cluster; it is protected as soon as it is powered on
    #[command(
        after_help = "Examples: mainstay add vm vm-9 --datastore ds-1 --image vm-9.raw --cpu-mhz 2000 --memory-mb 4096\n          mainstay add vm vm-9 --datastore ds-1 --image vm-9.raw --size 20G --cpu-mhz 2000 --memory-mb 4096 --restart-priority high\n\nAsk an agent whose host mounts the datastore. Then: `mainstay power-on VM`."
    )]
    Vm(AddVm),
}

#[derive(Debug, Args)]
struct AddHost {
    /// Its managed object id, such as host-4
    host: String,
    /// Its address on a management network; again for each further network [default networks: mgmt0, mgmt1, ...]
    #[arg(long = "address", value_name = "[NETWORK=]IP:PORT", required = true)]
    addresses: Vec<String>,
    /// Processor capacity for VMs in MHz
    #[arg(long, value_name = "MHZ")]
    cpu_mhz: u64,
    /// Memory for VMs in MiB
    #[arg(long, value_name = "MIB")]
    memory_mb: u64,
    /// A datastore that it mounts; again for each further one [default: all of the cluster]
    #[arg(long = "datastore", value_name = "DATASTORE")]
    datastores: Vec<String>,
    /// It joins in maintenance: nothing is started there yet
    #[arg(long)]
    maintenance: bool,
}

#[derive(Debug, Args)]
struct AddVm {
    /// Its id, such as vm-9
    vm: String,
    /// Its home datastore
    #[arg(long)]
    datastore: String,
    /// Its disk image, relative to the root of the datastore, or to the directory of a device
    #[arg(long, value_name = "PATH")]
    image: PathBuf,
    /// Make the image, sparse and empty, of that size: bytes, or with K, M, G, T (times 1024)
    #[arg(long, value_parser = size)]
    size: Option<u64>,
    /// Processor need in MHz
    #[arg(long, value_name = "MHZ")]
    cpu_mhz: u64,
    /// Memory need in MiB
    #[arg(long, value_name = "MIB")]
    memory_mb: u64,
    /// What runs it [default: the driver of each host's agent.toml]
    #[arg(long, value_enum)]
    driver: Option<Driver>,
    /// In which order it is restarted, or that it never is
    #[arg(long, value_enum, default_value = "medium")]
    restart_priority: Priority,
    /// What an isolated host does with it [default: the cluster's]
    #[arg(long, value_enum)]
    isolation_response: Option<Response>,
    /// Its guest cannot be asked to shut down
    #[arg(long)]
    no_guest_agent: bool,
    /// A VM that must run before it is restarted; again for each further one
    #[arg(long = "depends-on", value_name = "VM")]
    depends_on: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Driver {
    Embedded,
    Qemu,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Priority {
    Highest,
    High,
    Medium,
    Low,
    Lowest,
    Disabled,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Response {
    LeavePoweredOn,
    PowerOff,
    ShutDown,
}

impl From<Priority> for RestartPriority {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Highest => Self::Highest,
            Priority::High => Self::High,
            Priority::Medium => Self::Medium,
            Priority::Low => Self::Low,
            Priority::Lowest => Self::Lowest,
            Priority::Disabled => Self::Disabled,
        }
    }
}

impl From<Response> for IsolationResponse {
    fn from(response: Response) -> Self {
        match response {
            Response::LeavePoweredOn => Self::LeavePoweredOn,
            Response::PowerOff => Self::PowerOff,
            Response::ShutDown => Self::ShutDown,
        }
    }
}

impl From<Driver> for DriverKind {
    fn from(driver: Driver) -> Self {
        match driver {
            Driver::Embedded => Self::Embedded,
            Driver::Qemu => Self::Qemu,
        }
    }
}

/// A size in bytes, with a unit or without.
fn size(text: &str) -> std::result::Result<u64, String> {
    let units = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let unit = units.iter().find_map(|(letter, shift)| {
        let digits = text.strip_suffix([*letter, letter.to_ascii_lowercase()])?;
        Some((digits, *shift))
    });
    let (digits, shift) = unit.unwrap_or((text, 0));
    let number = digits.parse::<u64>().ok();
    number
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| {
            "write a whole number of bytes, or one with K, M, G or T, such as 20G".into()
        })
}

pub(crate) fn run(common: &Common, args: &AddArgs) -> Result<()> {
    let asked = Asked::new(common)?;
    match &args.command {
        AddCommand::Host(args) => add_host(common, &asked, args),
        AddCommand::Vm(args) => add_vm(common, &asked, args),
    }
}

/// The agent that is asked, and what it says is in force.
struct Asked {
    client: Client,
    config: ClusterConfig,
    here: InForce,
    /// The machine, as datastores know it.
    machine: Here,
}

impl Asked {
    fn new(common: &Common) -> Result<Self> {
        let target = Target::find(common.socket.as_deref());
        let client = target.client()?;
        let config = client.config()?;
        let here = client.in_force()?;
        // The socket lies in the agent's run directory.
        let run_dir = target.socket.parent().unwrap_or(Path::new("/"));
        let machine = Here {
            host: here.host.clone(),
            boot: BootId(here.boot),
            run_dir: run_dir.into(),
        };
        Ok(Self {
            machine,
            client,
            config,
            here,
        })
    }

    /// Checks the change against all that is known, before anything is made.
    fn check(&self, change: &Change) -> Result<ClusterConfig> {
        self.config
            .with(std::slice::from_ref(change))
            .context("nothing was added")
    }

    /// Where the asked agent's host mounts a datastore.
    fn mount(&self, datastore: &DatastoreId) -> Result<&Path> {
        let mount = self.here.mounts.get(datastore).map(PathBuf::as_path);
        mount.ok_or_else(|| {
            Failure::new(format!(
                "nothing was added: {} does not mount {datastore}, on which a record must be made first",
                self.here.host
            ))
            .remedy("ask the agent of a host that mounts it (--socket)")
        })
    }

    /// Makes the change, and waits until the agent that was asked has it as well.
    fn make(&self, change: Change) -> Result<u64> {
        let version = self.client.change(vec![change])?;
        let begun = Instant::now();
        while self.client.config()?.version < version {
            if begun.elapsed() > CARRIED_WITHIN {
                return Err(Failure::new(format!(
                    "version {version} is on disk, but {} does not have it after {} s",
                    self.here.host,
                    CARRIED_WITHIN.as_secs()
                ))
                .remedy(
                    "see `mainstay status`: it has the version as soon as it hears the primary",
                ));
            }
            std::thread::park_timeout(LOOK_AGAIN);
        }
        Ok(version)
    }
}

/// The addresses, each with its network: the one that is named, or mgmt0, mgmt1, ... by its place.
fn host_addresses(texts: &[String]) -> Result<HostAddresses> {
    let mut all = HostAddresses::new();
    for (n, text) in texts.iter().enumerate() {
        let (network, address) = match text.split_once('=') {
            Some((network, address)) => (network.to_owned(), address),
            None => (format!("mgmt{n}"), text.as_str()),
        };
        let address: SocketAddr = address.parse().map_err(|_| {
            Failure::new(format!("\"{address}\" is no IP address with a port")).remedy(
                "write 10.0.0.4:7777 or [fd00::4]:7777; Mainstay does not depend on DNS or a hosts file",
            )
        })?;
        if all.insert(network.clone(), address).is_some() {
            return Err(Failure::new(format!("network {network} is named twice"))
                .remedy("name one address for each management network"));
        }
    }
    Ok(all)
}

fn add_host(common: &Common, asked: &Asked, args: &AddHost) -> Result<()> {
    let id = HostId::new(&args.host).map_err(Failure::new)?;
    let addresses = host_addresses(&args.addresses)?;
    let named = args.datastores.iter().map(|d| DatastoreId::new(d));
    let mut datastores = named
        .collect::<std::result::Result<BTreeSet<_>, _>>()
        .map_err(Failure::new)?;
    if datastores.is_empty() {
        datastores = asked.config.datastores.keys().cloned().collect();
    }
    let spec = HostSpec {
        id: id.clone(),
        cpu_mhz: args.cpu_mhz,
        memory_mb: args.memory_mb,
        datastores,
        maintenance: args.maintenance,
        networks: addresses.keys().cloned().collect(),
    };
    let change = Change::AddHost {
        spec: spec.clone(),
        addresses,
    };
    let next = asked.check(&change)?;
    let mounts = spec.datastores.iter().map(|d| Ok((d, asked.mount(d)?)));
    let mounts = mounts.collect::<Result<Vec<_>>>()?;
    for (datastore, mount) in mounts {
        Datastore::add_host(mount, &next, datastore, &spec, &asked.machine)
            .context(format!("{id} was not added"))
            .map_err(|e| e.at(mount.display()))?;
    }
    let version = asked.make(change)?;
    if common.json {
        let datastores: Vec<&str> = spec.datastores.iter().map(DatastoreId::as_str).collect();
        ui::json(&json!({"host": id, "version": version, "datastores": datastores}));
    } else {
        line(format_args!("{id} joins: on disk as version {version}"));
        line(format_args!(
            "now, on {id}: `mainstay config export` of this cluster as its cluster.toml, its agent.toml, the cluster key, a certificate for \"{id}\", and `mainstay agent`"
        ));
    }
    Ok(())
}

fn add_vm(common: &Common, asked: &Asked, args: &AddVm) -> Result<()> {
    let id = VmId::new(&args.vm).map_err(Failure::new)?;
    let depends_on: std::result::Result<Vec<VmId>, _> =
        args.depends_on.iter().map(|vm| VmId::new(vm)).collect();
    let spec = VmSpec {
        id: id.clone(),
        datastore: DatastoreId::new(&args.datastore).map_err(Failure::new)?,
        cpu_mhz: args.cpu_mhz,
        memory_mb: args.memory_mb,
        restart_priority: args.restart_priority.into(),
        isolation_response: args.isolation_response.map(Into::into),
        depends_on: depends_on.map_err(Failure::new)?,
        guest_agent: !args.no_guest_agent,
    };
    let path = args.image.to_str().ok_or_else(|| {
        Failure::new(format!("{} is no UTF-8", args.image.display())).remedy("rename the image")
    })?;
    let image = Image {
        path: path.to_owned(),
        driver: args.driver.map(|d| DriverKind::from(d).name().to_owned()),
    };
    let change = Change::AddVm {
        spec: spec.clone(),
        image,
    };
    let next = asked.check(&change)?;
    check_image_is_free(asked, &spec, &args.image)?;
    let mount = asked.mount(&spec.datastore)?;
    let home = next.datastores.get(&spec.datastore);
    let kind = home.map(|home| home.kind).unwrap_or_default();
    let made = have_image(&image_root(mount, kind).join(&args.image), args.size)?;
    Datastore::add_vm(mount, &next, &spec, &asked.machine)
        .context(format!("{id} was not added"))
        .map_err(|e| e.at(mount.display()))?;
    let version = asked.make(change).map_err(|failure| match made {
        true => failure.remedy("the image was made: leave --size out when you ask again"),
        false => failure,
    })?;
    if common.json {
        let image = json!({"path": args.image, "made": made});
        ui::json(
            &json!({"vm": id, "version": version, "datastore": spec.datastore, "image": image}),
        );
    } else {
        line(format_args!("{id} is made: on disk as version {version}"));
        line(format_args!("run it with `mainstay power-on {id}`"));
    }
    Ok(())
}

/// Two VMs on one image would damage it.
fn check_image_is_free(asked: &Asked, spec: &VmSpec, image: &Path) -> Result<()> {
    let mut others = asked.here.file.vms.iter();
    let taken = others.find(|v| v.datastore == spec.datastore && v.image == image);
    taken.map_or(Ok(()), |other| {
        Err(Failure::new(format!(
            "nothing was added: {} is the image of {}",
            image.display(),
            other.id
        ))
        .at(&spec.datastore)
        .remedy("name another image: one that two VMs write is damaged"))
    })
}

/// Sees that the image is there, or makes it. Answers whether it made it.
fn have_image(path: &Path, size: Option<u64>) -> Result<bool> {
    let Some(bytes) = size else {
        return match std::fs::metadata(path) {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Failure::new("nothing was added: the image is not there")
                    .at(path.display())
                    .remedy("put it there, or have an empty one made with --size"))
            }
            Err(error) => Err(Failure::new(format!("nothing was added: {error}"))
                .at(path.display())
                .remedy("check the datastore's mount")),
        };
    };
    match make_image(path, bytes, ImageKind::Blank) {
        Ok(()) => Ok(true),
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::AlreadyExists => "leave --size out to use the image that is there",
                io::ErrorKind::NotFound => "make its directory first",
                io::ErrorKind::InvalidInput => "name a larger --size",
                _ => "check the datastore's mount and its free space",
            };
            Err(Failure::new(format!("nothing was added: {error}"))
                .at(path.display())
                .remedy(remedy))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("20G"), Ok(20 << 30));
        assert_eq!(size("1k"), Ok(1024));
        for bad in ["", "G", "1.5G", "-1", "99999999999T"] {
            assert!(size(bad).expect_err(bad).contains("such as 20G"));
        }
    }

    #[test]
    fn addresses_without_a_network_are_numbered_and_names_of_hosts_are_refused() {
        let texts = ["10.0.0.4:7777", "lan=[fd00::4]:7777"].map(String::from);
        let all = host_addresses(&texts).expect("sound");
        let names: Vec<&str> = all.keys().map(String::as_str).collect();
        assert_eq!(names, ["lan", "mgmt0"]);
        for (bad, remedy) in [
            (["node4:7777", "10.0.0.4:7777"], "DNS"),
            (
                ["a=10.0.0.4:7777", "a=10.0.0.5:7777"],
                "one address for each",
            ),
        ] {
            let failure = host_addresses(&bad.map(String::from)).expect_err("refused");
            assert!(failure.to_string().contains(remedy), "{failure}");
        }
    }
}
