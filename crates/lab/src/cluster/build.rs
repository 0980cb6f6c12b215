//! From a scenario to the files of a cluster: what its hosts, datastores and VMs find on their disks.

use super::{Host, Options};
use crate::fail::{Context, Failure, Result};
use crate::files::{Keys, OwnAgent, make_dir};
use crate::network::Network;
use mainstay_agent::config::{ClusterFile, ClusterId, DriverKind, Probe};
use mainstay_core::config::{ClusterConfig, DatastoreKind, VmSpec};
use mainstay_core::id::{DatastoreId, VmId};
use mainstay_core::time::Duration;
use mainstay_datastore::block::Geometry;
use mainstay_datastore::{BlockDatastore, FileDatastore};
use mainstay_hypervisor::{GuestTimes, ImageKind, make_image, write_guest_times};
use mainstay_sim::{Scenario, VmSetup};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Port of the agents, UDP and TCP.
const PORT: u16 = 7777;
/// Of a VM's disk: the guests use the first sectors.
const IMAGE_BYTES: u64 = 1 << 20;

/// The region of a datastore of kind `block`, below the root of what is mounted: a file in the place of the directory
/// of all records, and counted as they are.
const REGION: &str = ".mainstay";

/// Sectors of regions. Whatever lies below the lab's files takes direct I/O of this size.
const REGION_SECTOR: u32 = 4096;

/// The directory of all images, below the root of a datastore.
pub(super) const IMAGES: &str = "vms";

/// Where a VM's image lies, below the root of its datastore.
pub fn image_path(vm: &VmId) -> PathBuf {
    PathBuf::from(IMAGES).join(vm.as_str()).join("disk.raw")
}

/// The checked configuration as files say it, with the addresses of this run.
pub(super) fn cluster_file(
    scenario: &Scenario,
    network: &Network,
    driver: DriverKind,
) -> Result<ClusterFile> {
    let id = ClusterId(scenario.config.cluster_id);
    let mut file = ClusterFile::new(id).in_force(&scenario.config);
    file.isolation_addresses = (0..scenario.networks.len())
        .map(|n| network.gateway(n))
        .collect();
    for (index, setup) in scenario.hosts.iter().enumerate() {
        let Some(entry) = file.hosts.iter_mut().find(|h| h.id == setup.id) else {
            continue;
        };
        let addresses = setup.networks.iter().filter_map(|n| {
            let name = scenario.networks.get(*n)?.clone();
            Some((name, SocketAddr::new(network.address(index, *n)?, PORT)))
        });
        entry.networks = addresses.collect();
    }
    for entry in &mut file.vms {
        entry.image = image_path(&entry.id);
        entry.driver = Some(driver);
    }
    Ok(file)
}

/// Writes the files of all hosts.
pub(super) fn hosts(
    dir: &Path,
    hosts: &[Host],
    file: &ClusterFile,
    options: &Options,
) -> Result<ClusterConfig> {
    let path = dir.join("cluster.toml");
    file.write(&path)
        .context("cannot write the cluster's configuration")?;
    let config = ClusterFile::read(&path)
        .and_then(|file| file.cluster_config())
        .context("the lab's own configuration is refused")?;
    let keys = Keys::make(dir)?;
    for host in hosts {
        let mut datastores = mounts(host, &config);
        for (id, mount) in &mut datastores {
            make_dir(mount)?;
            if is_block(&config, id) {
                *mount = mount.join(REGION);
            }
        }
        let own = OwnAgent {
            host: host.id.clone(),
            run_dir: host.run_dir.clone(),
            driver: options.driver,
            program: options.program.clone(),
            cgroup_parent: Some(host.vms_cgroup()),
            probe: Probe::Icmp,
            datastores,
        };
        own.write(&host.dir, &keys, &config)?;
    }
    Ok(config)
}

fn is_block(config: &ClusterConfig, id: &DatastoreId) -> bool {
    let spec = config.datastores.get(id);
    spec.is_some_and(|spec| spec.kind == DatastoreKind::Block)
}

/// Where a host mounts its datastores.
pub(super) fn mounts(host: &Host, config: &ClusterConfig) -> BTreeMap<DatastoreId, PathBuf> {
    let spec = config.hosts.get(&host.id);
    let ids = spec.into_iter().flat_map(|s| &s.datastores);
    ids.map(|id| (id.clone(), host.mount_point(id))).collect()
}

/// Makes the records of all datastores and the images of all VMs on the storage's own side.
pub(super) fn storage(
    storage: &Path,
    scenario: &Scenario,
    config: &ClusterConfig,
    driver: DriverKind,
) -> Result<()> {
    let Some(first) = scenario.hosts.first() else {
        return Err(Failure::new("a cluster needs hosts"));
    };
    for id in config.datastores.keys() {
        let backing = storage.join(id.as_str());
        make_dir(&backing)?;
        if is_block(config, id) {
            region(&backing.join(REGION), scenario, config, id)?;
        } else {
            FileDatastore::create(&backing, config, id, &first.id)
                .context("cannot make a datastore")?;
        }
    }
    for setup in &scenario.vms {
        if let Some(spec) = config.vms.get(&setup.id) {
            image(storage, spec, setup, driver)?;
        }
    }
    Ok(())
}

/// Makes a region with the locks of all VMs that there will be: a command beside an agent would need that host's
/// network namespace, in which slots are claimed.
fn region(at: &Path, scenario: &Scenario, config: &ClusterConfig, id: &DatastoreId) -> Result<()> {
    let mut config = config.clone();
    for (vm, spec) in &scenario.created {
        config.vms.entry(vm.clone()).or_insert_with(|| spec.clone());
    }
    let hosts = u16::try_from(config.hosts.len()).unwrap_or(u16::MAX);
    let vms = u32::try_from(config.vms.len().max(1)).unwrap_or(u32::MAX);
    let geometry = Geometry::sized(REGION_SECTOR, hosts, vms);
    std::fs::write(at, "")
        .context("cannot make a region")
        .map_err(|e| e.at(at.display()))?;
    let first = scenario.hosts.first().map(|host| &host.id);
    let by = first.ok_or_else(|| Failure::new("a cluster needs hosts"))?;
    BlockDatastore::format(at, &config, id, by, geometry)
        .map(drop)
        .context("cannot make a region")
}

/// Makes a VM's image.
pub(super) fn image(
    storage: &Path,
    spec: &VmSpec,
    setup: &VmSetup,
    driver: DriverKind,
) -> Result<()> {
    let kind = match driver {
        DriverKind::Qemu => ImageKind::Bootable,
        DriverKind::Embedded => ImageKind::Blank,
    };
    let path = storage
        .join(spec.datastore.as_str())
        .join(image_path(&spec.id));
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    let times = GuestTimes {
        start: Duration::from_nanos(setup.start_time),
        shutdown: setup.shutdown_time.map(Duration::from_nanos),
    };
    make_image(&path, IMAGE_BYTES, kind)
        .and_then(|()| write_guest_times(&path, &times))
        .context("cannot make a disk image")
        .map_err(|e| e.at(path.display()))
}
