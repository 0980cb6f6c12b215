//! Changes to a cluster's configuration while it runs: each is checked against the whole before any of
//! them is made.

use super::cluster::{ClusterConfig, ConfigError, HostSpec, VmSpec};
use super::nearest::nearest;
use super::places::{HostAddresses, Image};
use crate::id::{HostId, VmId};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// One change.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Gives a setting a value, both as they are written in `cluster.toml`.
    Set {
        /// The setting's key.
        key: String,
        /// Its value as text.
        value: String,
    },
    /// A host joins, or its entry is replaced.
    PutHost(HostSpec),
    /// A host leaves.
    RemoveHost(HostId),
    /// A host enters maintenance, or leaves it.
    Maintenance {
        /// The host.
        host: HostId,
        /// True: it enters.
        on: bool,
    },
    /// A VM is made, or its entry is replaced.
    PutVm(VmSpec),
    /// A VM is deleted.
    RemoveVm(VmId),
    /// A host joins that is no member yet. Since version 2 of the formats.
    AddHost {
        /// The host; its networks are those of the addresses.
        spec: HostSpec,
        /// Where it is reached.
        addresses: HostAddresses,
    },
    /// A VM is made that is not there yet. Since version 2 of the formats.
    AddVm {
        /// The VM.
        spec: VmSpec,
        /// What it is made from.
        image: Image,
    },
}

impl Change {
    /// It says where a host is reached or what a VM is made from, which agents of the first format version
    /// do not understand.
    #[must_use]
    pub fn names_places(&self) -> bool {
        matches!(self, Self::AddHost { .. } | Self::AddVm { .. })
    }
}

impl ClusterConfig {
    /// This configuration with `changes`, one version newer.
    ///
    /// # Errors
    /// [`ConfigError`] for the first change that does not fit, or when the result contradicts itself.
    pub fn with(&self, changes: &[Change]) -> Result<Self, ConfigError> {
        let mut next = self.clone();
        // A profile sets all timers: it must not undo the timer that is named beside it.
        let is_profile = |c: &&Change| matches!(c, Change::Set { key, .. } if key == "profile");
        let first = changes.iter().filter(is_profile);
        let rest = changes.iter().filter(|c| !is_profile(c));
        for change in first.chain(rest) {
            next.change(change)?;
        }
        next.check()?;
        next.check_order()?;
        next.version += 1;
        Ok(next)
    }

    fn change(&mut self, change: &Change) -> Result<(), ConfigError> {
        match change {
            Change::Set { key, value } => self.settings.set(key, value)?,
            Change::PutHost(spec) => {
                self.hosts.insert(spec.id.clone(), spec.clone());
            }
            Change::RemoveHost(host) => {
                self.need_host(host)?;
                self.hosts.remove(host);
                self.places.hosts.remove(host);
                for rule in &mut self.rules {
                    rule.hosts.remove(host);
                }
            }
            Change::Maintenance { host, on } => {
                self.need_host(host)?;
                if let Some(spec) = self.hosts.get_mut(host) {
                    spec.maintenance = *on;
                }
            }
            Change::PutVm(spec) => {
                if let Some(known) = self.vms.get(&spec.id)
                    && known.datastore != spec.datastore
                {
                    return Err(ConfigError::HomeIsFixed {
                        vm: spec.id.clone(),
                        home: known.datastore.clone(),
                    });
                }
                self.vms.insert(spec.id.clone(), spec.clone());
            }
            Change::RemoveVm(vm) => {
                if self.vms.remove(vm).is_none() {
                    return Err(unknown(
                        "VM",
                        vm.as_str(),
                        self.vms.keys().map(VmId::as_str),
                    ));
                }
                self.places.images.remove(vm);
                for rule in &mut self.rules {
                    rule.vms.remove(vm);
                }
                for other in self.vms.values_mut() {
                    other.depends_on.retain(|on| on != vm);
                }
            }
            Change::AddHost { spec, addresses } => self.add_host(spec, addresses)?,
            Change::AddVm { spec, image } => self.add_vm(spec, image)?,
        }
        Ok(())
    }

    fn need_host(&self, host: &HostId) -> Result<(), ConfigError> {
        if self.hosts.contains_key(host) {
            return Ok(());
        }
        let known = self.hosts.keys().map(HostId::as_str);
        Err(unknown("host", host.as_str(), known))
    }
}

fn unknown<'a>(what: &'static str, id: &str, known: impl Iterator<Item = &'a str>) -> ConfigError {
    ConfigError::Missing {
        place: "the change".to_string(),
        what,
        id: id.to_string(),
        nearest: nearest(id, known).map(Into::into),
    }
}

/// What a list of changes says, for people.
#[must_use]
pub fn summary(changes: &[Change]) -> String {
    let words: Vec<String> = changes.iter().map(ToString::to_string).collect();
    words.join(", ")
}

impl core::fmt::Display for Change {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Set { key, value } => write!(f, "{key} = {value}"),
            Self::PutHost(spec) => write!(f, "host {} joins", spec.id),
            Self::RemoveHost(host) => write!(f, "host {host} leaves"),
            Self::Maintenance { host, on: true } => write!(f, "{host} enters maintenance"),
            Self::Maintenance { host, on: false } => write!(f, "{host} leaves maintenance"),
            Self::PutVm(spec) => write!(f, "VM {}", spec.id),
            Self::RemoveVm(vm) => write!(f, "VM {vm} is deleted"),
            Self::AddHost { spec, .. } => write!(f, "host {} joins", spec.id),
            Self::AddVm { spec, .. } => write!(f, "VM {} is made", spec.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DatastoreSpec, Profile, Settings};
    use super::*;
    use crate::id::DatastoreId;
    use alloc::collections::BTreeSet;
    use alloc::vec;

    fn config() -> ClusterConfig {
        let host = |n: u8| HostSpec {
            id: HostId::new(&alloc::format!("host-{n}")).expect("id"),
            cpu_mhz: 1,
            memory_mb: 1,
            datastores: BTreeSet::new(),
            maintenance: false,
            networks: Default::default(),
        };
        ClusterConfig::new(
            7,
            Settings::of(Profile::Balanced),
            vec![host(1), host(2)],
            vec![],
            vec![],
            vec![],
        )
        .expect("sound")
    }

    fn set(key: &str, value: &str) -> Change {
        Change::Set {
            key: key.into(),
            value: value.into(),
        }
    }

    #[test]
    fn all_changes_are_made_or_none_and_the_version_grows_by_one() {
        let old = config();
        let new = old
            .with(&[set("host_monitoring", "false"), set("election", "3s")])
            .expect("sound");
        assert_eq!(new.version, old.version + 1);
        assert!(!new.settings.host_monitoring);
        assert!(
            old.with(&[set("host_monitoring", "false"), set("elektion", "3s")])
                .is_err()
        );
    }

    #[test]
    fn a_profile_does_not_undo_the_timer_beside_it() {
        let new = config()
            .with(&[set("election", "4s"), set("profile", "fast")])
            .expect("sound");
        assert_eq!(
            new.settings.timing.election,
            crate::time::Duration::from_secs(4)
        );
        assert_eq!(new.settings.profile, Profile::Fast);
    }

    #[test]
    fn a_change_that_breaks_an_inequality_is_refused_with_it() {
        let error = config().with(&[set("break", "1s")]).expect_err("unsafe");
        assert!(error.to_string().contains("break x"), "{error}");
    }

    fn vm(n: u8, on: &[u8]) -> Change {
        let id = |n: &u8| VmId::new(&alloc::format!("vm-{n}")).expect("id");
        Change::PutVm(VmSpec {
            id: id(&n),
            datastore: DatastoreId::new("ds-1").expect("id"),
            cpu_mhz: 1,
            memory_mb: 1,
            restart_priority: Default::default(),
            isolation_response: None,
            depends_on: on.iter().map(id).collect(),
            guest_agent: true,
        })
    }

    #[test]
    fn vms_that_depend_on_each_other_in_a_circle_are_refused_by_name() {
        let mut config = config();
        let id = DatastoreId::new("ds-1").expect("id");
        let store = DatastoreSpec {
            id: id.clone(),
            kind: Default::default(),
            fence: Default::default(),
            server: None,
        };
        config.datastores.insert(id, store);
        let chain = [vm(1, &[]), vm(2, &[1]), vm(3, &[1, 2]), vm(4, &[3, 2, 3])];
        let chain = config.with(&chain).expect("no circle");
        let error = chain
            .with(&[vm(1, &[4])])
            .expect_err("a circle")
            .to_string();
        assert!(error.contains("vm-1 -> vm-4 -> vm-3 -> vm-1"), "{error}");
        let error = chain
            .with(&[vm(5, &[5])])
            .expect_err("a circle")
            .to_string();
        assert!(error.contains("vm-5 -> vm-5"), "{error}");
        let vms = [vm(1, &[2]), vm(2, &[1])].map(|change| match change {
            Change::PutVm(spec) => spec,
            _ => unreachable!("it puts VMs"),
        });
        let (hosts, stores) = (config.hosts.into_values(), config.datastores.into_values());
        let (hosts, stores) = (hosts.collect(), stores.collect());
        let written = ClusterConfig::new(7, config.settings, hosts, stores, vms.into(), vec![]);
        assert!(
            matches!(written, Err(ConfigError::Circle(_))),
            "{written:?}"
        );
    }

    #[test]
    fn an_unknown_host_gets_the_nearest_one() {
        let host = HostId::new("host-11").expect("id");
        let error = config()
            .with(&[Change::Maintenance { host, on: true }])
            .expect_err("unknown");
        assert!(
            error.to_string().contains("did you mean \"host-1\""),
            "{error}"
        );
    }
}
