//! What a demo writes before it starts a process: certificates, keys, configurations, datastores, images.

use super::net::{Network, PROBE_PORT};
use crate::fail::{Context, Failure, Result};
use mainstay_agent::config::{
    ClusterFile, ClusterId, DriverKind, HostEntry, Probe, SettingValue, VmEntry,
};
use mainstay_core::config::{
    ClusterConfig, DatastoreKind, DatastoreSpec, FenceClass, Profile, RestartPriority,
};
use mainstay_core::id::{DatastoreId, HostId, VmId};
use mainstay_datastore::FileDatastore;
use mainstay_hypervisor::{ImageKind, make_image};
use mainstay_lab::dir::random;
use mainstay_lab::files::{Keys, OwnAgent, make_dir, new_boot};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

const PORT: u16 = 7777;
const DATASTORES: u8 = 2;
const IMAGE_BYTES: u64 = 1 << 20;
/// The boot sector needs none of it; QEMU's own needs are not counted here.
const VM_MEMORY_MB: u64 = 32;
const VM_CPU_MHZ: u64 = 500;

/// What a demo is asked to build.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Number of hosts.
    pub(crate) hosts: u8,
    /// Number of VMs.
    pub(crate) vms: u8,
    /// What runs the VMs.
    pub(crate) driver: DriverKind,
    /// The timers.
    pub(crate) profile: Profile,
}

/// A VM of the demo.
#[derive(Debug, Clone)]
pub(crate) struct DemoVm {
    /// Its id.
    pub(crate) id: VmId,
    /// Its datastore.
    pub(crate) datastore: DatastoreId,
    /// Its disk image.
    pub(crate) image: PathBuf,
    /// The host, counted from 1, on which it is started first.
    pub(crate) first_host: u8,
}

/// A host of the demo.
#[derive(Debug, Clone)]
pub(crate) struct DemoHost {
    /// Its id.
    pub(crate) id: HostId,
    /// Its number, counted from 1.
    pub(crate) number: u8,
    /// Its own directory.
    pub(crate) dir: PathBuf,
    /// Its sockets and its guard's memory.
    pub(crate) run_dir: PathBuf,
}

impl DemoHost {
    /// Its agent's configuration.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("agent.toml")
    }

    /// Its agent's control socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }

    /// Its logs.
    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Boots it: a new boot id, and nothing left of what lay in memory.
    pub(crate) fn new_boot(&self) -> Result<()> {
        new_boot(&self.run_dir, &self.dir.join("boot_id"))
    }
}

/// Everything that was written.
#[derive(Debug)]
pub(crate) struct Built {
    /// The checked configuration.
    pub(crate) config: ClusterConfig,
    /// The hosts.
    pub(crate) hosts: Vec<DemoHost>,
    /// The VMs.
    pub(crate) vms: Vec<DemoVm>,
}

/// Where a run's parts go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places<'a> {
    /// Everything that lies on disk.
    pub(crate) dir: &'a Path,
    /// Sockets and the guards' memory; may be the same.
    pub(crate) sockets: &'a Path,
    /// The run's own cgroup, with a child for each host.
    pub(crate) cgroup: Option<&'a Path>,
}

/// Writes a whole cluster.
pub(crate) fn build(places: &Places<'_>, plan: &Plan, network: &Network) -> Result<Built> {
    let dir = places.dir;
    let cluster = cluster_file(plan, network)?;
    let cluster_path = dir.join("cluster.toml");
    cluster
        .write(&cluster_path)
        .context("cannot write the cluster's configuration")?;
    let cluster =
        ClusterFile::read(&cluster_path).context("the demo's own configuration is refused")?;
    let config = cluster
        .cluster_config()
        .context("the demo's own configuration is refused")?;

    let keys = Keys::make(dir)?;

    let mut hosts = Vec::new();
    for (number, id) in (1..=plan.hosts)
        .map(|n| Ok((n, host_id(n)?)))
        .collect::<Result<Vec<_>>>()?
    {
        let host = DemoHost {
            dir: dir.join(id.as_str()),
            run_dir: places.sockets.join(id.as_str()).join("run"),
            id,
            number,
        };
        write_host(places, &host, plan, &config, network, &keys)?;
        hosts.push(host);
    }
    provision(dir, &config, &hosts)?;
    let vms = make_vms(dir, plan, &cluster)?;
    Ok(Built { config, hosts, vms })
}

fn host_id(number: u8) -> Result<HostId> {
    HostId::new(&format!("host-{number}")).context("cannot name a host")
}

fn datastore_id(number: u8) -> Result<DatastoreId> {
    DatastoreId::new(&format!("ds-{number}")).context("cannot name a datastore")
}

fn cluster_file(plan: &Plan, network: &Network) -> Result<ClusterFile> {
    let mut cluster = ClusterFile::new(ClusterId(u64::from_le_bytes(random::<8>()?)));
    cluster.isolation_addresses = vec![network.gateway()];
    cluster
        .settings
        .insert("profile".into(), plan.profile.name().into());
    // Its one network is a part of the demonstration, not something to mend.
    cluster.settings.insert(
        "ignore_redundant_network_warning".into(),
        SettingValue::Truth(true),
    );
    for number in 1..=DATASTORES {
        cluster.datastores.push(DatastoreSpec {
            id: datastore_id(number)?,
            kind: DatastoreKind::File,
            // The lock that a guest holds on its image dies with its process, and with it every write:
            // all hosts of a demo are processes of one kernel.
            fence: FenceClass::Enforced,
            server: None,
        });
    }
    for number in 1..=plan.hosts {
        cluster.hosts.push(HostEntry {
            id: host_id(number)?,
            address: Some(SocketAddr::new(network.host(number), PORT)),
            addresses: Vec::new(),
            // Any one host has room for all VMs.
            cpu_mhz: VM_CPU_MHZ * u64::from(plan.vms.max(8)),
            memory_mb: VM_MEMORY_MB * u64::from(plan.vms.max(8)),
            datastores: None,
            maintenance: false,
            networks: BTreeMap::new(),
        });
    }
    for number in 1..=plan.vms {
        let id = VmId::new(&format!("vm-{number}")).context("cannot name a VM")?;
        cluster.vms.push(VmEntry {
            image: PathBuf::from(id.as_str()).join("disk.raw"),
            id,
            datastore: datastore_id((number - 1) % DATASTORES + 1)?,
            cpu_mhz: VM_CPU_MHZ,
            memory_mb: VM_MEMORY_MB,
            driver: Some(plan.driver),
            restart_priority: RestartPriority::default(),
            isolation_response: None,
            depends_on: Vec::new(),
            guest_agent: true,
        });
    }
    Ok(cluster)
}

fn write_host(
    places: &Places<'_>,
    host: &DemoHost,
    plan: &Plan,
    config: &ClusterConfig,
    network: &Network,
    keys: &Keys,
) -> Result<()> {
    let own = OwnAgent {
        host: host.id.clone(),
        run_dir: host.run_dir.clone(),
        driver: plan.driver,
        program: std::env::current_exe().context("cannot find this program's own file")?,
        cgroup_parent: places.cgroup.map(|parent| parent.join(host.id.as_str())),
        probe: if network.needs_probes() {
            Probe::Udp { port: PROBE_PORT }
        } else {
            Probe::Icmp
        },
        datastores: config
            .datastores
            .keys()
            .map(|id| (id.clone(), places.dir.join(id.as_str())))
            .collect(),
    };
    own.write(&host.dir, keys, config)
}

fn provision(dir: &Path, config: &ClusterConfig, hosts: &[DemoHost]) -> Result<()> {
    let Some(first) = hosts.first() else {
        return Err(Failure::new("a demo needs hosts"));
    };
    for id in config.datastores.keys() {
        let mount = dir.join(id.as_str());
        make_dir(&mount)?;
        FileDatastore::create(&mount, config, id, &first.id).context("cannot make a datastore")?;
    }
    Ok(())
}

fn make_vms(dir: &Path, plan: &Plan, cluster: &ClusterFile) -> Result<Vec<DemoVm>> {
    let kind = match plan.driver {
        DriverKind::Qemu => ImageKind::Bootable,
        DriverKind::Embedded => ImageKind::Blank,
    };
    let mut vms = Vec::new();
    for (entry, host) in cluster.vms.iter().zip((1..=plan.hosts).cycle()) {
        let image = dir.join(entry.datastore.as_str()).join(&entry.image);
        if let Some(parent) = image.parent() {
            make_dir(parent)?;
        }
        make_image(&image, IMAGE_BYTES, kind)
            .context("cannot make a disk image")
            .map_err(|e| e.at(image.display()))?;
        vms.push(DemoVm {
            id: entry.id.clone(),
            datastore: entry.datastore.clone(),
            image,
            first_host: host,
        });
    }
    Ok(vms)
}
