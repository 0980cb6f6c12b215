//! What an agent finds on its host's own disk: configuration, keys, boot id. Made for a run, on paths of the run.

use crate::dir::{hex, random};
use crate::fail::{Context, Failure, Result};
use mainstay_agent::config::{AgentFile, ClusterKey, DriverKind, Probe};
use mainstay_agent::pki;
use mainstay_core::config::ClusterConfig;
use mainstay_core::id::{DatastoreId, HostId};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Longest name of a Unix socket (unix(7): 108 bytes with the end mark).
const SOCKET_NAME_MAX: usize = 107;

/// Writes a file, anew if it is there.
///
/// # Errors
/// When that fails; names the file.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .context("cannot write a file of the run")
        .map_err(|e| e.at(path.display()))
}

/// Makes a directory and those above it.
///
/// # Errors
/// When that fails; names the directory.
pub fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path)
        .context("cannot make a directory of the run")
        .map_err(|e| e.at(path.display()))
}

/// Boots a host as far as its files go: nothing is left of what lay in memory, and it has a new boot id.
///
/// # Errors
/// When the directory cannot be cleared or a file not be written.
pub fn new_boot(run_dir: &Path, boot_id: &Path) -> Result<()> {
    match fs::remove_dir_all(run_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure::new(format_args!(
                "cannot clear what a host had in memory: {error}"
            ))
            .at(run_dir.display()));
        }
        _ => make_dir(run_dir)?,
    }
    let mut hex = hex(&random::<16>()?);
    for at in [8, 13, 18, 23] {
        hex.insert(at, '-');
    }
    write(boot_id, format!("{hex}\n").as_bytes(), 0o644)
}

/// Keys and certificates of one cluster.
pub struct Keys {
    ca: pki::Ca,
}

impl std::fmt::Debug for Keys {
    /// Says nothing of the keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

impl Keys {
    /// Makes `cluster.key` and `ca.pem` in the directory of the run.
    ///
    /// # Errors
    /// When they cannot be made or written.
    pub fn make(dir: &Path) -> Result<Self> {
        let key = ClusterKey::new(random::<32>()?);
        key.write_new(&dir.join("cluster.key"))
            .context("cannot write the cluster's key")?;
        let ca = pki::make_ca().context("cannot make the cluster's CA")?;
        write(&dir.join("ca.pem"), ca.issued.cert_pem.as_bytes(), 0o644)?;
        Ok(Self { ca })
    }

    /// Writes a host's `cert.pem` and `cert.key` into its directory.
    ///
    /// # Errors
    /// When they cannot be issued or written.
    pub fn issue(&self, host: &HostId, dir: &Path) -> Result<()> {
        let issued = self.ca.issue(host).context("cannot issue a certificate")?;
        write(&dir.join("cert.pem"), issued.cert_pem.as_bytes(), 0o644)?;
        write(&dir.join("cert.key"), issued.key_pem.as_bytes(), 0o600)
    }
}

/// What differs between the agents of runs. The rest is the same: a directory of the host's own beside the files
/// of the cluster.
#[derive(Debug)]
pub struct OwnAgent {
    /// The host.
    pub host: HostId,
    /// Its sockets, its guard's memory and its guests' records.
    pub run_dir: PathBuf,
    /// What runs VMs that name no driver.
    pub driver: DriverKind,
    /// The `mainstay` program.
    pub program: PathBuf,
    /// The cgroup below which each VM has its own.
    pub cgroup_parent: Option<PathBuf>,
    /// How pings go.
    pub probe: Probe,
    /// Mount point of each datastore.
    pub datastores: BTreeMap<DatastoreId, PathBuf>,
}

impl OwnAgent {
    /// Makes what a host has on its own disk: directories, certificate, a first boot, and its `agent.toml`, checked
    /// against the cluster's configuration.
    ///
    /// # Errors
    /// When something cannot be made, or the configuration is refused.
    pub fn write(self, dir: &Path, keys: &Keys, config: &ClusterConfig) -> Result<()> {
        for made in [&dir.join("state"), &self.run_dir, &dir.join("log")] {
            make_dir(made)?;
        }
        keys.issue(&self.host, dir)?;
        new_boot(&self.run_dir, &dir.join("boot_id"))?;
        let agent = AgentFile {
            host: self.host,
            cluster: "../cluster.toml".into(),
            state_dir: "state".into(),
            run_dir: self.run_dir,
            log_dir: "log".into(),
            driver: self.driver,
            program: Some(self.program),
            qemu: None,
            key_file: "../cluster.key".into(),
            ca_file: "../ca.pem".into(),
            cert_file: "cert.pem".into(),
            cert_key_file: "cert.key".into(),
            boot_id_file: Some("boot_id".into()),
            watchdog: None,
            guest_oom_score_adj: Default::default(),
            cgroup_parent: self.cgroup_parent,
            fence_file: None,
            probe: self.probe,
            datastores: self.datastores,
        };
        let path = dir.join("agent.toml");
        agent
            .write(&path)
            .context("cannot write an agent's configuration")?;
        agent
            .check_against(&path, config)
            .context("the run's own configuration is refused")
    }
}

/// Checks that the longest socket of a run below this directory has a name that the kernel takes.
///
/// # Errors
/// When it has not.
pub fn check_socket_names(dir: &Path) -> Result<()> {
    let longest = dir.join("host-16/run/control.sock").as_os_str().len();
    if longest <= SOCKET_NAME_MAX {
        return Ok(());
    }
    Err(Failure::new(format_args!(
        "sockets below this directory would have names of {longest} bytes, more than {SOCKET_NAME_MAX}"
    ))
    .at(dir.display())
    .remedy("name a directory with a shorter path with --dir"))
}
