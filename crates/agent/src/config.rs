//! The two configuration files: `cluster.toml`, the same on all hosts, and `agent.toml`, this host's.
//!
//! Unknown keys, duplicate ids, contradictory settings and names of what is not there are refused with
//! the file, the line and the nearest key that exists. Nothing here touches the network or a datastore.

mod networks;

pub use networks::NetworkError;

use mainstay_core::config::{
    ClusterConfig, ConfigError as CoreError, DatastoreSpec, HostSpec, IsolationResponse,
    RestartPriority, Rule, SettingError, Settings, VmSpec, nearest,
};
use mainstay_core::id::{DatastoreId, HostId, VmId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Longest configuration file that is read.
const CONFIG_MAX_BYTES: u64 = 4 << 20;

/// Why a configuration file was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The file cannot be read.
    #[error("cannot read {}; check the path and that this user may read it", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write {}; check the path and that this user may write it", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is longer than 4 MiB.
    #[error("{} has more than 4 MiB, so it is no configuration; check the path", .path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The text is no TOML, has an unknown key, or a value of the wrong type.
    #[error("{}:{line}: {message}{}", .path.display(), did_you_mean(.nearest.as_deref()))]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What the parser says.
        message: String,
        /// The nearest key that exists.
        nearest: Option<String>,
    },
    /// A setting is unknown or has a wrong value.
    #[error("{}:{line}: {fault}", .path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        fault: SettingError,
    },
    /// The cluster as a whole contradicts itself.
    #[error("{}:{line}: {fault}", .path.display())]
    Cluster {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        fault: Box<CoreError>,
    },
    /// The addresses of a host make no sense.
    #[error("{}:{line}: {fault}", .path.display())]
    Network {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        fault: NetworkError,
    },
    /// Two hosts have the same address.
    #[error("{}:{line}: hosts \"{first}\" and \"{second}\" both have the address {address}; give each host its own", .path.display())]
    SameAddress {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The first host.
        first: HostId,
        /// The second host.
        second: HostId,
        /// The address.
        address: SocketAddr,
    },
    /// An image path leaves its datastore.
    #[error("{}:{line}: the image \"{}\" of \"{vm}\" is not inside its datastore; write it relative to the datastore's root, without \"..\"", .path.display(), .image.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The VM.
        vm: VmId,
        /// The image's path.
        image: PathBuf,
    },
    /// The host mounts a datastore that `agent.toml` has no path for.
    #[error("{}: host \"{host}\" mounts datastore \"{datastore}\" but [datastores] has no path for it; add {datastore} = \"/its/mount/point\"", .path.display())]
    NoMount {
        /// `agent.toml`.
        path: PathBuf,
        /// The host.
        host: HostId,
        /// The datastore.
        datastore: DatastoreId,
    },
    /// `agent.toml` has a path for a datastore that the host does not mount.
    #[error("{}: [datastores] names \"{datastore}\", which host \"{host}\" does not mount by the cluster's configuration{}", .path.display(), did_you_mean(.nearest.as_deref()))]
    UnknownMount {
        /// `agent.toml`.
        path: PathBuf,
        /// The host.
        host: HostId,
        /// The datastore.
        datastore: DatastoreId,
        /// The nearest id that exists.
        nearest: Option<String>,
    },
    /// The cluster has no such host.
    #[error("{}: {fault}{}", .path.display(), did_you_mean(.nearest.as_deref()))]
    NotMember {
        /// `agent.toml`.
        path: PathBuf,
        /// What is wrong.
        fault: Box<CoreError>,
        /// The nearest host that exists.
        nearest: Option<String>,
    },
    /// The cluster key is readable by others.
    #[error("{} can be read by others (mode {mode:04o}); run `chmod 600` on it, and make a new key if others may have read it", .path.display())]
    KeyMode {
        /// The key file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The cluster key is not 64 hexadecimal digits.
    #[error("{} does not hold a cluster key; it must hold 64 hexadecimal digits (32 bytes), the same on all hosts", .path.display())]
    Key {
        /// The key file.
        path: PathBuf,
    },
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest
        .map(|n| format!("; did you mean \"{n}\"?"))
        .unwrap_or_default()
}

/// The cluster's id: 16 hexadecimal digits in files.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterId(pub u64);

/// Why a text is no cluster id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no cluster id; it has 16 hexadecimal digits")]
pub struct ClusterIdError(String);

impl TryFrom<String> for ClusterId {
    type Error = ClusterIdError;
    fn try_from(text: String) -> Result<Self, ClusterIdError> {
        let hex = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        match u64::from_str_radix(&text, 16) {
            Ok(id) if hex => Ok(Self(id)),
            _ => Err(ClusterIdError(text)),
        }
    }
}

impl From<ClusterId> for String {
    fn from(id: ClusterId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The value of a setting as TOML has it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SettingValue {
    /// `true` or `false`.
    Truth(bool),
    /// A whole number.
    Number(i64),
    /// Anything else, durations such as `"500ms"` among them.
    Text(String),
}

impl fmt::Display for SettingValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truth(v) => v.fmt(f),
            Self::Number(v) => v.fmt(f),
            Self::Text(v) => v.fmt(f),
        }
    }
}

impl From<&str> for SettingValue {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

/// Which hypervisor driver runs a VM.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum DriverKind {
    /// A child process of Mainstay's own binary that counts onto its disk: needs nothing installed.
    #[default]
    Embedded,
    /// QEMU through QMP.
    Qemu,
}

/// A `[[host]]` of `cluster.toml`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostEntry {
    /// Its managed object id.
    pub id: HostId,
    /// Its address, if it has but one; UDP and TCP both use the port.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "networks::address"
    )]
    pub address: Option<SocketAddr>,
    /// Further addresses of the same host, or all of them, in the order of their networks.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "networks::addresses"
    )]
    pub addresses: Vec<SocketAddr>,
    /// Processor capacity for VMs in MHz.
    pub cpu_mhz: u64,
    /// Memory for VMs in MiB.
    pub memory_mb: u64,
    /// The datastores that it mounts; all of the cluster when it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datastores: Option<Vec<DatastoreId>>,
    /// True: in maintenance, so no candidate for elections and placements.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub maintenance: bool,
    /// Its address on each management network, by the network's name, instead of `address` and `addresses`.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "networks::networks"
    )]
    pub networks: BTreeMap<String, SocketAddr>,
}

/// A `[[vm]]` of `cluster.toml`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmEntry {
    /// Its id.
    pub id: VmId,
    /// Its home datastore.
    pub datastore: DatastoreId,
    /// Processor need in MHz.
    pub cpu_mhz: u64,
    /// Memory need in MiB.
    pub memory_mb: u64,
    /// Its disk image, relative to the root of its datastore.
    pub image: PathBuf,
    /// Its driver; the one of `agent.toml` when it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<DriverKind>,
    /// When it is restarted among others, or that it never is.
    #[serde(default)]
    pub restart_priority: RestartPriority,
    /// Its own isolation response, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation_response: Option<IsolationResponse>,
    /// Its guest can be asked to shut down (default true).
    #[serde(default = "yes")]
    pub guest_agent: bool,
    /// VMs that must run before it is restarted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<VmId>,
}

fn yes() -> bool {
    true
}

/// `cluster.toml`: the cluster, the same on all hosts.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterFile {
    /// Random id of the cluster: 16 hexadecimal digits.
    pub cluster_id: ClusterId,
    /// Addresses outside the cluster that answer pings as long as this host has a network.
    #[serde(default, deserialize_with = "networks::ip_addresses")]
    pub isolation_addresses: Vec<IpAddr>,
    /// Settings by their keys (`mainstay_core::config::SETTINGS`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, SettingValue>,
    /// The datastores.
    #[serde(default, rename = "datastore")]
    pub datastores: Vec<DatastoreSpec>,
    /// The hosts.
    #[serde(default, rename = "host")]
    pub hosts: Vec<HostEntry>,
    /// The VMs.
    #[serde(default, rename = "vm")]
    pub vms: Vec<VmEntry>,
    /// The placement rules.
    #[serde(default, rename = "rule", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Where it was read from, and its text: errors name file and line.
    #[serde(skip)]
    origin: Origin,
}

#[derive(Clone, Default, Debug)]
struct Origin {
    path: PathBuf,
    text: String,
}

/// Where a file lies is no part of what it says.
impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Origin {
    /// The line, counted from 1, on which `needle` stands for the `nth` time (from 0); 1 when it does not.
    fn line_of(&self, needle: impl Fn(&str) -> bool, nth: usize) -> usize {
        let mut lines = self.text.lines().enumerate().filter(|(_, l)| needle(l));
        lines.nth(nth).map_or(1, |(i, _)| i + 1)
    }

    fn line_of_key(&self, key: &str) -> usize {
        self.line_of(
            |l| {
                l.trim_start()
                    .strip_prefix(key)
                    .is_some_and(|r| r.trim_start().starts_with('='))
            },
            0,
        )
    }

    fn line_of_id(&self, id: &str, nth: usize) -> usize {
        let quoted = format!("\"{id}\"");
        self.line_of(
            |l| l.trim_start().starts_with("id") && l.contains(&quoted),
            nth,
        )
    }

    fn line_of_text(&self, text: &str) -> usize {
        self.line_of(|l| l.contains(text), 0)
    }
}

impl ClusterFile {
    /// A cluster without hosts, datastores and VMs, to be filled and written.
    #[must_use]
    pub fn new(cluster_id: ClusterId) -> Self {
        Self {
            cluster_id,
            isolation_addresses: Vec::new(),
            settings: BTreeMap::new(),
            datastores: Vec::new(),
            hosts: Vec::new(),
            vms: Vec::new(),
            rules: Vec::new(),
            origin: Origin::default(),
        }
    }

    /// Reads `cluster.toml`.
    ///
    /// # Errors
    /// [`FileError`] with file and line.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let text = read_text(path)?;
        let mut file: Self = parse(path, &text)?;
        file.origin = Origin {
            path: path.into(),
            text,
        };
        Ok(file)
    }

    /// Writes it.
    ///
    /// # Errors
    /// [`FileError::Write`].
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        write_text(path, self)
    }

    /// The checked configuration for the core.
    ///
    /// # Errors
    /// [`FileError`] with file and line.
    pub fn cluster_config(&self) -> Result<ClusterConfig, FileError> {
        self.check_addresses()?;
        self.check_images()?;
        let all: Vec<DatastoreId> = self.datastores.iter().map(|d| d.id.clone()).collect();
        let host = |h: &HostEntry| HostSpec {
            id: h.id.clone(),
            cpu_mhz: h.cpu_mhz,
            memory_mb: h.memory_mb,
            datastores: h
                .datastores
                .clone()
                .unwrap_or_else(|| all.clone())
                .into_iter()
                .collect(),
            maintenance: h.maintenance,
            networks: h.by_network().into_iter().map(|(name, _)| name).collect(),
        };
        let vm = |v: &VmEntry| VmSpec {
            id: v.id.clone(),
            datastore: v.datastore.clone(),
            cpu_mhz: v.cpu_mhz,
            memory_mb: v.memory_mb,
            restart_priority: v.restart_priority,
            isolation_response: v.isolation_response,
            depends_on: v.depends_on.clone(),
            guest_agent: v.guest_agent,
        };
        ClusterConfig::new(
            self.cluster_id.0,
            self.parsed_settings()?,
            self.hosts.iter().map(host).collect(),
            self.datastores.clone(),
            self.vms.iter().map(vm).collect(),
            self.rules.clone(),
        )
        .map_err(|fault| {
            let line = match &fault {
                CoreError::Duplicate { id, .. } => self.origin.line_of_id(id, 1),
                CoreError::Missing { id, .. } => self.origin.line_of_text(&format!("\"{id}\"")),
                CoreError::Timing(_) => self.origin.line_of(|l| l.trim() == "[settings]", 0),
                _ => 1,
            };
            FileError::Cluster {
                path: self.origin.path.clone(),
                line,
                fault: Box::new(fault),
            }
        })
    }

    fn parsed_settings(&self) -> Result<Settings, FileError> {
        let mut settings = Settings::default();
        // The profile sets all timers, so it comes first wherever it stands in the file.
        let first = self.settings.iter().filter(|(k, _)| *k == "profile");
        let rest = self.settings.iter().filter(|(k, _)| *k != "profile");
        for (key, value) in first.chain(rest) {
            settings
                .set(key, &value.to_string())
                .map_err(|fault| FileError::Setting {
                    path: self.origin.path.clone(),
                    line: self.origin.line_of_key(key),
                    fault,
                })?;
        }
        Ok(settings)
    }

    fn check_images(&self) -> Result<(), FileError> {
        for vm in &self.vms {
            let inside = vm
                .image
                .components()
                .all(|c| matches!(c, std::path::Component::Normal(_)));
            if !inside || vm.image.as_os_str().is_empty() {
                return Err(FileError::Image {
                    path: self.origin.path.clone(),
                    line: self.origin.line_of_id(vm.id.as_str(), 0),
                    vm: vm.id.clone(),
                    image: vm.image.clone(),
                });
            }
        }
        Ok(())
    }
}

/// How this host finds out whether another one's network answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Probe {
    /// ICMP echo.
    #[default]
    Icmp,
    /// An echo datagram to `mainstay probe`, a process of the probed host's own, at its address.
    Udp {
        /// The port at which every host's and every isolation address's responder listens.
        port: u16,
    },
}

/// `agent.toml`: this host. Paths are relative to the file's directory.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentFile {
    /// This host's managed object id.
    pub host: HostId,
    /// `cluster.toml`.
    pub cluster: PathBuf,
    /// What must survive a restart.
    pub state_dir: PathBuf,
    /// Control socket, the guard's shared memory, lock and process id files. Must be local.
    pub run_dir: PathBuf,
    /// Logs and events.
    pub log_dir: PathBuf,
    /// Driver of VMs that name none.
    #[serde(default)]
    pub driver: DriverKind,
    /// The `mainstay` program, for guests and guard; the running one when it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<PathBuf>,
    /// The QEMU program; found in `PATH` when it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<PathBuf>,
    /// The cluster key: 64 hexadecimal digits, mode 0600.
    pub key_file: PathBuf,
    /// Certificate of the cluster's CA (PEM).
    pub ca_file: PathBuf,
    /// This host's certificate (PEM); its subject alternative name is the host's id.
    pub cert_file: PathBuf,
    /// Its private key (PEM).
    pub cert_key_file: PathBuf,
    /// Where this boot's random id is read; `/proc/sys/kernel/random/boot_id` when it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id_file: Option<PathBuf>,
    /// A cgroup (v2) directory below which each VM gets a cgroup of its own; else VMs are stopped by signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_parent: Option<PathBuf>,
    /// The watchdog device that the guard feeds (`/dev/watchdog0`); none when it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<PathBuf>,
    /// How pings go.
    #[serde(default)]
    pub probe: Probe,
    /// Mount point of each datastore.
    #[serde(default)]
    pub datastores: BTreeMap<DatastoreId, PathBuf>,
}

impl AgentFile {
    /// Reads `agent.toml` and makes its paths absolute.
    ///
    /// # Errors
    /// [`FileError`] with file and line.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let text = read_text(path)?;
        let mut file: Self = parse(path, &text)?;
        let absolute = std::path::absolute(path).map_err(|source| FileError::Read {
            path: path.into(),
            source,
        })?;
        let base = absolute.parent().unwrap_or(Path::new("/"));
        for p in [
            &mut file.cluster,
            &mut file.state_dir,
            &mut file.run_dir,
            &mut file.log_dir,
            &mut file.key_file,
            &mut file.ca_file,
            &mut file.cert_file,
            &mut file.cert_key_file,
        ]
        .into_iter()
        .chain(file.datastores.values_mut())
        .chain(file.program.iter_mut())
        .chain(file.boot_id_file.iter_mut())
        .chain(file.cgroup_parent.iter_mut())
        {
            *p = base.join(&*p);
        }
        Ok(file)
    }

    /// Writes it.
    ///
    /// # Errors
    /// [`FileError::Write`].
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        write_text(path, self)
    }

    /// The control socket.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }

    /// Checks that this host is in the cluster and that each datastore that it mounts has a path.
    ///
    /// # Errors
    /// [`FileError::NotMember`], [`FileError::NoMount`], [`FileError::UnknownMount`].
    pub fn check_against(&self, path: &Path, cluster: &ClusterConfig) -> Result<(), FileError> {
        let Some(host) = cluster.hosts.get(&self.host) else {
            return Err(FileError::NotMember {
                path: path.into(),
                fault: Box::new(CoreError::NotMember(self.host.clone())),
                nearest: nearest(self.host.as_str(), cluster.hosts.keys().map(HostId::as_str))
                    .map(Into::into),
            });
        };
        for datastore in &host.datastores {
            if !self.datastores.contains_key(datastore) {
                return Err(FileError::NoMount {
                    path: path.into(),
                    host: self.host.clone(),
                    datastore: datastore.clone(),
                });
            }
        }
        for datastore in self.datastores.keys() {
            if !host.datastores.contains(datastore) {
                let known = host.datastores.iter().map(DatastoreId::as_str);
                return Err(FileError::UnknownMount {
                    path: path.into(),
                    host: self.host.clone(),
                    datastore: datastore.clone(),
                    nearest: nearest(datastore.as_str(), known).map(Into::into),
                });
            }
        }
        Ok(())
    }
}

/// The cluster key, the secret of all datagrams.
#[derive(Clone)]
pub struct ClusterKey([u8; 32]);

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(..)")
    }
}

impl ClusterKey {
    /// Takes 32 random bytes as a key.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads a key file, which nobody but its owner may read.
    ///
    /// # Errors
    /// [`FileError::KeyMode`], [`FileError::Key`], [`FileError::Read`].
    pub fn read(path: &Path) -> Result<Self, FileError> {
        use std::os::unix::fs::PermissionsExt as _;
        let text = read_text(path)?;
        let mode = std::fs::metadata(path)
            .map_err(|source| FileError::Read {
                path: path.into(),
                source,
            })?
            .permissions()
            .mode()
            & 0o7777;
        if mode & 0o077 != 0 {
            return Err(FileError::KeyMode {
                path: path.into(),
                mode,
            });
        }
        Self::from_hex(text.trim()).ok_or_else(|| FileError::Key { path: path.into() })
    }

    fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut key = [0; 32];
        for (i, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
        }
        Some(Self(key))
    }

    /// Writes the key to a new file of mode 0600.
    ///
    /// # Errors
    /// [`FileError::Write`], also when the file exists.
    pub fn write_new(&self, path: &Path) -> Result<(), FileError> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let hex: String = self.0.iter().map(|b| format!("{b:02x}")).collect();
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut f| writeln!(f, "{hex}"))
            .map_err(|source| FileError::Write {
                path: path.into(),
                source,
            })
    }
}

fn read_text(path: &Path) -> Result<String, FileError> {
    use std::io::Read as _;
    let fault = |source| FileError::Read {
        path: path.into(),
        source,
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(fault)?;
    file.take(CONFIG_MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(fault)?;
    if text.len() as u64 > CONFIG_MAX_BYTES {
        return Err(FileError::TooLong { path: path.into() });
    }
    Ok(text)
}

fn write_text<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let fault = |source| FileError::Write {
        path: path.into(),
        source,
    };
    let text = toml::to_string(value).map_err(|e| fault(std::io::Error::other(e)))?;
    std::fs::write(path, text).map_err(fault)
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, FileError> {
    toml::from_str(text).map_err(|error| {
        let before = error
            .span()
            .and_then(|s| text.get(..s.start))
            .unwrap_or_default();
        let message = error.message().replace('\n', "; ");
        FileError::Syntax {
            path: path.into(),
            line: before.matches('\n').count() + 1,
            nearest: nearest_key(&message),
            message,
        }
    })
}

/// The key that was meant, out of serde's "unknown field `a`, expected one of `b`, `c`".
fn nearest_key(message: &str) -> Option<String> {
    let rest = message
        .strip_prefix("unknown field ")
        .or(message.strip_prefix("unknown variant "))?;
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let word = quoted.next()?;
    nearest(word, quoted).map(Into::into)
}

#[cfg(test)]
mod tests;
