//! A running cluster of the lab: hosts that are switched on and off, paused and starved, and what they share.
//!
//! Invariant: what a run made (processes, mounts, namespaces, files, cgroups, its note) is gone when its
//! [`Cluster`] is dropped, or when the next run clears up after it.

mod build;
mod host;
mod noted;

use crate::cgroup::{self, RunCgroup};
use crate::clock::now;
use crate::dir::{RunDir, hex, random};
use crate::fail::{Context, Failure, Result};
use crate::files::{self, make_dir, new_boot};
use crate::gluster::Gluster;
use crate::network::{HostPlan, Network, Plan};
use crate::place::{Kind, Place};
use crate::procs::{self, Marker};
use crate::storage::{Fault, Mount, MountSpec, Observer, Storage, Tally};
pub use build::image_path;
pub use host::{Daemon, Host};
use mainstay_agent::config::DriverKind;
use mainstay_agent::control::client::Client;
use mainstay_core::config::{ClusterConfig, FenceClass};
use mainstay_core::id::{DatastoreId, VmId};
use mainstay_core::time::{Duration, Instant};
use mainstay_hypervisor::Seen;
use mainstay_sim::{Scenario, StorageFault};
pub(crate) use noted::Noted;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// How long killed processes may take to be gone once their storage lets them go.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// Room that a run needs in memory; with less, its files go to the temporary directory.
const ROOM_BYTES: u64 = 256 << 20;

/// How a cluster is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// What runs the VMs.
    pub driver: DriverKind,
    /// The `mainstay` program.
    pub program: PathBuf,
    /// Where files go; a file system in memory when it is left out, so that a disk which others use too is not
    /// what is measured.
    pub dir: Option<PathBuf>,
    /// Files stay when it ends.
    pub keep: bool,
    /// Each host reaches the datastores through a GlusterFS client of its own.
    pub gluster: bool,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    run: String,
    dir: RunDir,
    cgroup: RunCgroup,
    network: Network,
    storage: Storage,
    gluster: Option<Gluster>,
    hosts: Vec<Host>,
    datastores: Vec<DatastoreId>,
    /// What is wrong with each datastore, for each host: outlives the mounts.
    faults: BTreeMap<(usize, usize), StorageFault>,
    expiry: Vec<Duration>,
    image_locks: Vec<bool>,
    fenced: Vec<bool>,
    failing: Vec<Failing>,
    config: ClusterConfig,
    options: Options,
    /// The last to go.
    noted: Noted,
}

/// Whether a lab can be had here.
///
/// # Errors
/// What is missing, with the remedy.
pub fn available() -> Result<()> {
    crate::network::available()?;
    crate::storage::available()?;
    if cgroup::root().is_none() {
        return Err(Failure::new("no cgroup v2 file system is mounted").remedy(
            "mount one: mount -t cgroup2 none /sys/fs/cgroup (or below it, beside version 1)",
        ));
    }
    Ok(())
}

impl Cluster {
    /// Makes everything and switches nothing on. Clears what dead runs left first.
    ///
    /// # Errors
    /// When this machine lacks something, or a file, namespace or mount cannot be made.
    pub fn make(
        scenario: &Scenario,
        options: &Options,
        observer: Arc<dyn Observer>,
    ) -> Result<Self> {
        available()?;
        let place = Place::of_user(Kind::Lab);
        place.clear_leftovers();
        let run = hex(&random::<4>()?);
        let base = options.dir.clone().unwrap_or_else(base_dir);
        let base = std::path::absolute(&base).context("cannot use this directory")?;
        let name = format!("{}-{run}", Kind::Lab.prefix());
        let at = base.join(&name);
        // Noted before the first thing that only a note finds again.
        let noted = Noted::write(&place, &run, &at)?;
        let mut dir = RunDir::make(&at, &run)
            .context("cannot make the lab's directory")
            .map_err(|e| {
                e.at(base.display())
                    .remedy("name a directory that this user may write with --dir")
            })?;
        dir.keep = options.keep;
        files::check_socket_names(dir.path())?;
        let names = scenario.hosts.iter().map(|h| h.id.to_string());
        let cgroup = RunCgroup::make(Kind::Lab, &run, names.clone())
            .ok_or_else(|| Failure::new("cannot make a cgroup").remedy("run it as root"))?;
        let plan = Plan {
            hosts: scenario
                .hosts
                .iter()
                .map(|h| HostPlan {
                    name: h.id.to_string(),
                    networks: h.networks.clone(),
                })
                .collect(),
            networks: scenario.networks.len(),
            seed: scenario.seed,
        };
        let network = Network::make(&plan)?;
        let hosts: Vec<Host> = scenario
            .hosts
            .iter()
            .map(|h| {
                let own = dir.path().join(h.id.as_str());
                Host::new(h.id.clone(), own, cgroup.path().join(h.id.as_str()))
            })
            .collect();
        for host in &hosts {
            make_dir(&host.agents_cgroup())?;
            make_dir(&host.vms_cgroup())?;
        }
        let file = build::cluster_file(scenario, &network, options.driver)?;
        let config = build::hosts(dir.path(), &hosts, &file, options)?;
        let backing = dir.path().join("storage");
        build::storage(&backing, scenario, &config, options.driver)?;
        let bricks = |id: &DatastoreId| (id.to_string(), backing.join(id.as_str()));
        let gluster = match options.gluster {
            true => {
                let bricks = config.datastores.keys().map(bricks).collect();
                Some(Gluster::make(&run, &dir.path().join("gluster"), &bricks)?)
            }
            false => None,
        };
        let fenced = |id: &DatastoreId| {
            let spec = config.datastores.get(id);
            spec.is_none_or(|s| s.fence == FenceClass::Enforced)
        };
        let expiry = |d: &mainstay_sim::DatastoreSetup| Duration::from_nanos(d.image_lock_expiry);
        Ok(Self {
            run,
            dir,
            cgroup,
            network,
            storage: Storage::new(observer),
            gluster,
            hosts,
            datastores: scenario.datastores.iter().map(|d| d.id.clone()).collect(),
            faults: BTreeMap::new(),
            expiry: scenario.datastores.iter().map(expiry).collect(),
            image_locks: scenario.datastores.iter().map(|d| d.image_locks).collect(),
            fenced: scenario.datastores.iter().map(|d| fenced(&d.id)).collect(),
            failing: Vec::new(),
            config,
            options: options.clone(),
            noted,
        })
    }

    /// The id of the run: in its directory's name and in its processes' environment.
    #[must_use]
    pub fn run(&self) -> &str {
        &self.run
    }

    /// Everything that it wrote.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Keeps the files when it ends.
    pub fn keep_files(&mut self) {
        self.dir.keep = true;
    }

    /// The management networks, to be cut and mended.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The configuration with which it began.
    #[must_use]
    pub fn config(&self) -> &ClusterConfig {
        &self.config
    }

    /// All hosts, by their number.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// What runs the VMs.
    #[must_use]
    pub fn driver(&self) -> DriverKind {
        self.options.driver
    }

    /// A host by its number.
    ///
    /// # Errors
    /// When there is none.
    pub fn host(&self, host: usize) -> Result<&Host> {
        self.hosts
            .get(host)
            .ok_or_else(|| Failure::new(format_args!("the lab has no host of number {host}")))
    }

    /// A client of a host's agent, if that answers.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn client(&self, host: usize) -> Result<Client> {
        Ok(Client::connect(&self.host(host)?.socket())?)
    }

    /// Where the storage keeps a datastore's files.
    #[must_use]
    pub fn backing(&self, datastore: &DatastoreId) -> PathBuf {
        self.dir.path().join("storage").join(datastore.as_str())
    }

    /// The image of a VM on the storage's own side: to be read whatever ails the hosts.
    #[must_use]
    pub fn image(&self, vm: &VmId, datastore: &DatastoreId) -> PathBuf {
        self.backing(datastore).join(image_path(vm))
    }

    /// Makes the image of a VM that is about to be made.
    ///
    /// # Errors
    /// When it is there, or cannot be written.
    pub fn make_image(
        &self,
        spec: &mainstay_core::config::VmSpec,
        setup: &mainstay_sim::VmSetup,
    ) -> Result<()> {
        build::image(
            &self.dir.path().join("storage"),
            spec,
            setup,
            self.options.driver,
        )
    }

    /// Guests of a host that exist, frozen ones too; none of one that is off.
    #[must_use]
    pub fn guests(&self, host: usize) -> Vec<Seen> {
        let host = self.hosts.get(host).filter(|h| h.powered);
        let seen = host.map(|h| mainstay_hypervisor::look(&h.run_dir));
        let mut seen = seen.unwrap_or_default();
        seen.retain(Seen::exists);
        seen
    }

    /// What a host's agent and guard have asked of all datastores since it was switched on; nothing of one that
    /// is off.
    #[must_use]
    pub fn tally(&self, host: usize) -> Tally {
        let mounts = self.hosts.get(host).into_iter().flat_map(|h| &h.mounts);
        mounts.fold(Tally::default(), |all, (_, mount)| all + mount.tally())
    }

    /// Power comes: a new boot, mounts, cables plugged. The agent is started by [`Cluster::start_agent`] when the
    /// host has booted.
    ///
    /// # Errors
    /// When a file or mount cannot be made.
    pub fn power_on(&mut self, host: usize) -> Result<()> {
        let fresh = self.host(host)?;
        new_boot(&fresh.run_dir, &fresh.boot_id())?;
        let mut mounts = BTreeMap::new();
        for (id, at) in build::mounts(fresh, &self.config) {
            let Some(index) = self.datastores.iter().position(|d| *d == id) else {
                continue;
            };
            let (backing, seen) = match &self.gluster {
                Some(gluster) => {
                    let at = gluster.client(fresh.id.as_str(), id.as_str())?;
                    let device = u64::try_from(index).unwrap_or(u64::MAX);
                    (at, Some((Arc::clone(gluster.namespace()), device)))
                }
                None => (self.backing(&id), None),
            };
            let spec = MountSpec {
                host: fresh.id.to_string(),
                datastore: id.to_string(),
                backing,
                seen,
                at,
                image_locks: self.image_locks.get(index).copied().unwrap_or(true),
                write_through: false,
                fenced: self.fenced.get(index).copied().unwrap_or(true),
            };
            let mount = self.storage.mount(&spec, self.network.namespace(host)?)?;
            mount.set(self.faults.get(&(host, index)).copied().map(fault_of));
            for failing in &self.failing {
                fail(&mount, (host, index), failing);
            }
            mounts.insert(index, mount);
        }
        self.network.plug(host, true)?;
        if let Some(host) = self.hosts.get_mut(host) {
            host.mounts = mounts;
            host.powered = true;
            host.paused = false;
        }
        Ok(())
    }

    /// Starts the agent of a host that is on; it starts its guard.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&self, host: usize) -> Result<()> {
        let it = self.host(host)?;
        // The shell puts itself into the host's cgroup and becomes the agent: from its first instruction on it
        // is part of what a power loss takes away.
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg("echo 0 > \"$0/cgroup.procs\" && exec \"$@\"")
            .arg(it.agents_cgroup())
            .arg(&self.options.program)
            .arg("agent")
            .arg("--config")
            .arg(it.config())
            .current_dir(self.dir());
        let output = it.dir.join("log").join("agent.out");
        procs::make_hosts_own(&mut command, &self.run, it.id.as_str(), &output)?;
        self.network.namespace(host)?.spawn(&mut command)
    }

    /// The host loses its power: everything on it is gone at once. Gives the moment.
    ///
    /// # Errors
    /// When a process outlives it.
    pub fn power_off(&mut self, host: usize) -> Result<Instant> {
        let expiry = self.expiry.clone();
        let Some(it) = self.hosts.get_mut(host) else {
            return Err(Failure::new("the lab has no such host"));
        };
        let at = now();
        self.network.plug(host, false)?;
        it.powered = false;
        // Nothing of it acts any more, and what it gives up as it dies reaches no storage: that learns of its
        // end by its silence.
        let frozen = it.set_frozen(true);
        it.wait_frozen();
        let mut aborted = Ok(());
        for (index, mount) in std::mem::take(&mut it.mounts) {
            let off = mount.power_off(expiry.get(index).copied().unwrap_or_default());
            aborted = aborted.and(off);
        }
        it.paused = false;
        // Whatever went wrong before: a host that lost its power runs nothing.
        std::fs::write(it.cgroup.join("cgroup.kill"), "1")
            .context("cannot end the processes of a host")
            .map_err(|e| e.at(it.cgroup.display()))?;
        frozen.and(aborted)?;
        it.wait_empty(GONE_WITHIN)?;
        it.set_frozen(false)?;
        Ok(at)
    }

    /// The whole machine stops: agent, guard, guests, and its kernel's answers.
    ///
    /// # Errors
    /// When its cgroup cannot be frozen.
    pub fn pause(&mut self, host: usize) -> Result<()> {
        let it = self.hosts.get_mut(host).filter(|h| h.powered && !h.paused);
        let Some(it) = it else { return Ok(()) };
        it.paused = true;
        for (index, mount) in &it.mounts {
            mount.lose(self.expiry.get(*index).copied().unwrap_or_default());
        }
        self.network.pause(host)?;
        it.set_frozen(true)
    }

    /// It goes on.
    ///
    /// # Errors
    /// When its cgroup cannot be thawed.
    pub fn resume(&mut self, host: usize) -> Result<()> {
        let it = self.hosts.get_mut(host).filter(|h| h.paused);
        let Some(it) = it else { return Ok(()) };
        it.paused = false;
        for (index, mount) in &it.mounts {
            if !cuts_off(self.faults.get(&(host, *index)).copied()) {
                mount.find_again();
            }
        }
        it.set_frozen(false)?;
        self.network.resume(host)
    }

    /// Sets, or ends, what ails a datastore for one host or for all. The last fault counts.
    pub fn set_fault(
        &mut self,
        datastore: usize,
        host: Option<usize>,
        fault: Option<StorageFault>,
    ) {
        for (index, it) in self.hosts.iter().enumerate() {
            if host.is_some_and(|h| h != index) {
                continue;
            }
            match fault {
                Some(fault) => self.faults.insert((index, datastore), fault),
                None => self.faults.remove(&(index, datastore)),
            };
            let Some(mount) = it.mounts.get(&datastore) else {
                continue;
            };
            // A storage that is gone for everybody gives nobody's locks away.
            if cuts_off(fault) && host.is_some() {
                mount.lose(self.expiry.get(datastore).copied().unwrap_or_default());
            } else if !cuts_off(fault) && !it.paused {
                mount.find_again();
            }
            mount.set(fault.map(fault_of));
        }
    }

    /// The next starts fail: of one VM, or of all on one host.
    pub fn fail_starts(
        &mut self,
        host: Option<usize>,
        vm: Option<(&VmId, &DatastoreId)>,
        times: u64,
    ) {
        let image = vm.and_then(|(vm, datastore)| {
            let index = self.datastores.iter().position(|d| d == datastore)?;
            Some((index, image_path(vm)))
        });
        let failing = (host, image, Arc::new(AtomicU64::new(times)));
        for (number, it) in self.hosts.iter().enumerate() {
            for (index, mount) in &it.mounts {
                fail(mount, (number, *index), &failing);
            }
        }
        self.failing.push(failing);
    }
}

/// Starts that are to fail: on one host or all, of one image or all, and how many are left.
type Failing = (Option<usize>, Option<(usize, PathBuf)>, Arc<AtomicU64>);

/// Lets them fail on a mount that they are about.
fn fail(mount: &Mount, (host, datastore): (usize, usize), (at, image, left): &Failing) {
    let here = at.is_none_or(|h| h == host);
    match image {
        Some((index, path)) if here && *index == datastore => {
            mount.fail_opens(path, Arc::clone(left))
        }
        None if here => mount.fail_opens(Path::new(build::IMAGES), Arc::clone(left)),
        _ => {}
    }
}

/// With such a fault the storage does not hear the host.
fn cuts_off(fault: Option<StorageFault>) -> bool {
    matches!(fault, Some(StorageFault::Apd | StorageFault::Pdl))
}

fn fault_of(fault: StorageFault) -> Fault {
    match fault {
        StorageFault::Apd => Fault::Hang,
        StorageFault::Pdl => Fault::Gone(nix::errno::Errno::ENXIO),
        StorageFault::Slow(nanos) => Fault::Slow(Duration::from_nanos(nanos)),
        StorageFault::ReadOnly => Fault::ReadOnly,
        StorageFault::Full => Fault::Full,
    }
}

/// Memory where there is room in it, else the temporary directory.
pub(crate) fn base_dir() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let roomy = nix::sys::statvfs::statvfs(memory)
        .is_ok_and(|s| s.blocks_available().saturating_mul(s.fragment_size()) > ROOM_BYTES);
    if roomy && crate::dir::is_in_memory(memory) {
        return memory.into();
    }
    std::env::temp_dir()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for host in 0..self.hosts.len() {
            // What is left after it is found by its mark below.
            drop(self.power_off(host));
        }
        let killed = procs::kill_marked(&Marker::run(&self.run));
        cgroup::remove_tree(self.cgroup.path());
        self.noted.stays = killed.left > 0 || self.cgroup.path().exists();
    }
}
