//! `cluster.toml`: the cluster, the same on all hosts.

use super::{DriverKind, FileError, networks, parse, read_text, to_text, write_text};
use mainstay_core::config::{
    ClusterConfig, ConfigError as CoreError, DatastoreSpec, HostSpec, IsolationResponse,
    RestartPriority, Rule, Settings, VmSpec,
};
use mainstay_core::id::{DatastoreId, HostId, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

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
    /// Its disk image, relative to the root of its datastore; of one of kind `block`, to the directory of its device.
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
    pub(super) origin: Origin,
}

#[derive(Clone, Default, Debug)]
pub(super) struct Origin {
    pub(super) path: PathBuf,
    pub(super) text: String,
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

    pub(super) fn line_of_key(&self, key: &str) -> usize {
        self.line_of(
            |l| {
                l.trim_start()
                    .strip_prefix(key)
                    .is_some_and(|r| r.trim_start().starts_with('='))
            },
            0,
        )
    }

    pub(super) fn line_of_id(&self, id: &str, nth: usize) -> usize {
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
        Self::from_text(path, read_text(path)?)
    }

    /// Takes the text of a `cluster.toml`; errors name `path`.
    ///
    /// # Errors
    /// [`FileError`] with file and line.
    pub fn from_text(path: &Path, text: String) -> Result<Self, FileError> {
        let mut file: Self = parse(path, &text)?;
        file.origin = Origin {
            path: path.into(),
            text,
        };
        Ok(file)
    }

    /// Its text, as [`ClusterFile::from_text`] takes it; errors name `path`.
    ///
    /// # Errors
    /// [`FileError::Write`] for what TOML cannot say.
    pub fn to_text(&self, path: &Path) -> Result<String, FileError> {
        to_text(path, self)
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

    pub(super) fn parsed_settings(&self) -> Result<Settings, FileError> {
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
