//! Who and what is in the cluster: hosts, datastores, VMs, rules.

use super::nearest::nearest;
use super::places::{PlaceError, Places};
use super::set::SettingError;
use super::settings::{IsolationResponse, RestartPriority, Settings};
use super::timing::TimingError;
use crate::id::{DatastoreId, HostId, VmId};
use alloc::collections::BTreeMap;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What a datastore is made of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatastoreKind {
    /// A directory that all hosts mount (NFS, GFS2, CephFS, any POSIX file system).
    #[default]
    File,
    /// A shared LUN or logical volume.
    Block,
}

/// What the storage does with late writes of a holder that has been replaced (layer 5 of the safety rules).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FenceClass {
    /// It refuses them.
    #[default]
    Enforced,
    /// It does not: a lock is broken only with proof of death.
    Open,
}

/// One shared datastore.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct DatastoreSpec {
    /// Its id.
    pub id: DatastoreId,
    /// What it is made of.
    #[serde(default)]
    pub kind: DatastoreKind,
    /// What it does with late writes.
    #[serde(default)]
    pub fence: FenceClass,
    /// The device or server that it is on, by any name: heartbeats are spread over different ones.
    #[serde(default)]
    pub server: Option<String>,
}

/// One host.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct HostSpec {
    /// Its managed object id.
    pub id: HostId,
    /// Processor capacity for VMs in MHz.
    pub cpu_mhz: u64,
    /// Memory for VMs in MiB.
    pub memory_mb: u64,
    /// The datastores that it mounts.
    pub datastores: BTreeSet<DatastoreId>,
    /// True: in maintenance, so no candidate for elections and placements.
    #[serde(default)]
    pub maintenance: bool,
    /// The management networks on which it has an address; none: not known.
    #[serde(default)]
    pub networks: BTreeSet<String>,
}

/// One virtual machine.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct VmSpec {
    /// Its id.
    pub id: VmId,
    /// Its home datastore: the lock and the right to run are there only (safety rule H24).
    pub datastore: DatastoreId,
    /// Processor need in MHz.
    pub cpu_mhz: u64,
    /// Memory need in MiB.
    pub memory_mb: u64,
    /// When it is restarted among others, or that it never is.
    #[serde(default)]
    pub restart_priority: RestartPriority,
    /// Its own isolation response, if it has one.
    #[serde(default)]
    pub isolation_response: Option<IsolationResponse>,
    /// VMs that must run before it is restarted.
    #[serde(default)]
    pub depends_on: Vec<VmId>,
    /// Its guest can be asked to shut down; false: an isolation response of `shut_down` switches it off at once.
    #[serde(default = "yes")]
    pub guest_agent: bool,
}

fn yes() -> bool {
    true
}

/// What a placement rule says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleKind {
    /// The VMs run on one host.
    Affinity,
    /// The VMs run on different hosts.
    AntiAffinity,
    /// The VMs run on the named hosts.
    HostAffinity,
    /// The VMs do not run on the named hosts.
    HostAntiAffinity,
}

/// A placement rule.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Rule {
    /// What it says.
    pub kind: RuleKind,
    /// True: never broken; false: a wish.
    pub mandatory: bool,
    /// The VMs that it is about.
    pub vms: BTreeSet<VmId>,
    /// The hosts that it names (host rules only).
    #[serde(default)]
    pub hosts: BTreeSet<HostId>,
}

/// A whole, checked configuration.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ClusterConfig {
    /// Random id of the cluster; part of every record and datagram.
    pub cluster_id: u64,
    /// All settings.
    pub settings: Settings,
    /// All hosts by id.
    pub hosts: BTreeMap<HostId, HostSpec>,
    /// All datastores by id.
    pub datastores: BTreeMap<DatastoreId, DatastoreSpec>,
    /// All VMs by id.
    pub vms: BTreeMap<VmId, VmSpec>,
    /// All placement rules.
    pub rules: Vec<Rule>,
    /// Grows by one with each change that was made while the cluster ran; 0: as the files say.
    #[serde(default)]
    pub version: u64,
    /// Addresses of hosts that joined and images of VMs that were made while the cluster ran. The last
    /// field, and left out when it is empty: so the bytes are those of the first format version.
    #[serde(default, skip_serializing_if = "Places::is_empty")]
    pub places: Places,
}

/// Why a configuration was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The timers contradict each other.
    #[error(transparent)]
    Timing(#[from] TimingError),
    /// Two things have the same id.
    #[error("{what} \"{id}\" is there twice; give each {what} an id of its own")]
    Duplicate {
        /// host, VM or datastore.
        what: &'static str,
        /// The id.
        id: String,
    },
    /// Something names what is not there.
    #[error("{place} names {what} \"{id}\", which the configuration does not have{}", .nearest.as_ref().map(|n| alloc::format!("; did you mean \"{n}\"?")).unwrap_or_default())]
    Missing {
        /// What names it.
        place: String,
        /// host, VM or datastore.
        what: &'static str,
        /// The id.
        id: String,
        /// The nearest id that exists.
        nearest: Option<String>,
    },
    /// A setting cannot have that value.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A VM would move to another home.
    #[error(
        "the home of {vm} is {home}, where its lock is; a VM that lives elsewhere is another VM: delete this one and make it anew there"
    )]
    HomeIsFixed {
        /// The VM.
        vm: VmId,
        /// Its home datastore.
        home: DatastoreId,
    },
    /// What is to be added is there.
    #[error(
        "there is a {what} \"{id}\" already; choose another id, or remove that one first (`mainstay remove`)"
    )]
    Exists {
        /// host or VM.
        what: &'static str,
        /// The id.
        id: String,
    },
    /// The cluster is full.
    #[error("the cluster has {most} {what}, and no more are supported; make another cluster")]
    TooMany {
        /// hosts or VMs.
        what: &'static str,
        /// The most that there may be.
        most: usize,
    },
    /// An address or an image makes no sense.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// VMs depend on each other in a circle.
    #[error(
        "{} depend on each other in a circle, so that none of them could be restarted before the others; take one of these depends_on away", arrows(.0)
    )]
    Circle(Vec<VmId>),
    /// The cluster has no host.
    #[error("the cluster has no host; add at least one")]
    NoHost,
    /// The agent's own host is not part of the cluster.
    #[error(
        "this host is \"{0}\", which the configuration does not have; add it or start the agent with another id"
    )]
    NotMember(HostId),
}

impl ClusterConfig {
    /// Puts a configuration together and checks it.
    ///
    /// # Errors
    /// [`ConfigError`] for duplicate ids, names of what is not there, and timers that contradict each other.
    pub fn new(
        cluster_id: u64,
        settings: Settings,
        hosts: Vec<HostSpec>,
        datastores: Vec<DatastoreSpec>,
        vms: Vec<VmSpec>,
        rules: Vec<Rule>,
    ) -> Result<Self, ConfigError> {
        let mut config = Self {
            cluster_id,
            settings,
            hosts: BTreeMap::new(),
            datastores: BTreeMap::new(),
            vms: BTreeMap::new(),
            rules,
            version: 0,
            places: Places::default(),
        };
        for d in datastores {
            if let Some(twice) = config.datastores.insert(d.id.clone(), d) {
                return Err(ConfigError::Duplicate {
                    what: "datastore",
                    id: twice.id.into(),
                });
            }
        }
        for h in hosts {
            if let Some(twice) = config.hosts.insert(h.id.clone(), h) {
                return Err(ConfigError::Duplicate {
                    what: "host",
                    id: twice.id.into(),
                });
            }
        }
        for v in vms {
            if let Some(twice) = config.vms.insert(v.id.clone(), v) {
                return Err(ConfigError::Duplicate {
                    what: "VM",
                    id: twice.id.into(),
                });
            }
        }
        config.check()?;
        config.check_order()?;
        Ok(config)
    }

    /// Checks the configuration as a whole.
    ///
    /// # Errors
    /// [`ConfigError`] for timers that contradict each other, no host, and names of what is not there.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.settings.timing.check()?;
        if self.hosts.is_empty() {
            return Err(ConfigError::NoHost);
        }
        self.places.check()?;
        self.check_names()
    }

    /// The datastore on which the configuration is kept: the first by id that more than one host mounts.
    #[must_use]
    pub fn home(&self) -> Option<DatastoreId> {
        self.datastores
            .keys()
            .find(|d| {
                let mounts = |h: &&HostSpec| h.datastores.contains(*d);
                self.hosts.values().filter(mounts).count() > 1
            })
            .cloned()
    }

    /// Checks what a person wrote and could write in another way: a configuration that is in force among
    /// other agents is taken without.
    ///
    /// # Errors
    /// [`ConfigError::Circle`] when VMs depend on each other in a circle.
    pub(super) fn check_order(&self) -> Result<(), ConfigError> {
        let depends = |vm: &VmId| {
            let spec = self.vms.get(vm);
            spec.map_or(&[][..], |v| v.depends_on.as_slice()).iter()
        };
        let mut sound: BTreeSet<&VmId> = BTreeSet::new();
        for vm in self.vms.keys() {
            let mut on_path = BTreeSet::from([vm]);
            let mut path = alloc::vec![(vm, depends(vm))];
            while let Some((vm, left)) = path.last_mut() {
                let vm = *vm;
                match left.next() {
                    Some(next) if sound.contains(next) => {}
                    Some(next) if on_path.insert(next) => path.push((next, depends(next))),
                    Some(next) => {
                        let circle = path.iter().map(|(vm, _)| *vm).skip_while(|vm| *vm != next);
                        return Err(ConfigError::Circle(circle.cloned().collect()));
                    }
                    None => {
                        on_path.remove(vm);
                        sound.insert(vm);
                        path.pop();
                    }
                }
            }
        }
        Ok(())
    }

    fn check_names(&self) -> Result<(), ConfigError> {
        for h in self.hosts.values() {
            for d in &h.datastores {
                self.need_datastore(d, h.id.as_str())?;
            }
        }
        for v in self.vms.values() {
            self.need_datastore(&v.datastore, v.id.as_str())?;
            for other in &v.depends_on {
                self.need_vm(other, v.id.as_str())?;
            }
        }
        for rule in &self.rules {
            for v in &rule.vms {
                self.need_vm(v, "a rule")?;
            }
            for h in &rule.hosts {
                if !self.hosts.contains_key(h) {
                    return Err(missing(
                        "a rule",
                        "host",
                        h.as_str(),
                        self.hosts.keys().map(HostId::as_str),
                    ));
                }
            }
        }
        Ok(())
    }

    fn need_datastore(&self, id: &DatastoreId, place: &str) -> Result<(), ConfigError> {
        if self.datastores.contains_key(id) {
            return Ok(());
        }
        Err(missing(
            place,
            "datastore",
            id.as_str(),
            self.datastores.keys().map(DatastoreId::as_str),
        ))
    }

    fn need_vm(&self, id: &VmId, place: &str) -> Result<(), ConfigError> {
        if self.vms.contains_key(id) {
            return Ok(());
        }
        Err(missing(
            place,
            "VM",
            id.as_str(),
            self.vms.keys().map(VmId::as_str),
        ))
    }
}

fn arrows(circle: &[VmId]) -> String {
    let names = circle.iter().chain(circle.first()).map(VmId::as_str);
    names.collect::<Vec<&str>>().join(" -> ")
}

fn missing<'a>(
    place: &str,
    what: &'static str,
    id: &str,
    known: impl Iterator<Item = &'a str>,
) -> ConfigError {
    ConfigError::Missing {
        place: place.into(),
        what,
        id: id.into(),
        nearest: nearest(id, known).map(Into::into),
    }
}
