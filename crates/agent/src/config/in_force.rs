//! The configuration that is in force, as a `cluster.toml` would say it: what the file said in which the
//! cluster began, and what was changed while it ran.

use super::cluster::Origin;
use super::{ClusterFile, DriverKind, HostEntry, SettingValue, VmEntry};
use mainstay_core::config::{ClusterConfig, HostSpec, SETTINGS, Settings, VmSpec};
use std::path::PathBuf;

/// Where a configuration comes from that no file says; errors name it.
const RUNNING: &str = "the running configuration";

impl ClusterFile {
    /// This file with all that the configuration says otherwise. What only a file can say (addresses of hosts
    /// and images of VMs that it had from the start, isolation addresses outside of the settings) stays.
    #[must_use]
    pub fn in_force(&self, config: &ClusterConfig) -> Self {
        let origin = Origin {
            path: RUNNING.into(),
            text: String::new(),
        };
        Self {
            cluster_id: self.cluster_id,
            isolation_addresses: self.isolation_addresses.clone(),
            settings: changed(&config.settings),
            datastores: config.datastores.values().cloned().collect(),
            hosts: config
                .hosts
                .values()
                .map(|h| self.host(config, h))
                .collect(),
            vms: config.vms.values().map(|v| self.vm(config, v)).collect(),
            rules: config.rules.clone(),
            origin,
        }
    }

    fn host(&self, config: &ClusterConfig, spec: &HostSpec) -> HostEntry {
        let mut entry = HostEntry {
            id: spec.id.clone(),
            address: None,
            addresses: Vec::new(),
            cpu_mhz: spec.cpu_mhz,
            memory_mb: spec.memory_mb,
            datastores: Some(spec.datastores.iter().cloned().collect()),
            maintenance: spec.maintenance,
            networks: config
                .places
                .hosts
                .get(&spec.id)
                .cloned()
                .unwrap_or_default(),
        };
        if entry.networks.is_empty()
            && let Some(said) = self.hosts.iter().find(|h| h.id == spec.id)
        {
            entry.networks = said.by_network().into_iter().collect();
        }
        entry
    }

    fn vm(&self, config: &ClusterConfig, spec: &VmSpec) -> VmEntry {
        let said = self.vms.iter().find(|v| v.id == spec.id);
        let (image, driver) = match (config.places.images.get(&spec.id), said) {
            (Some(made), _) => (
                PathBuf::from(&made.path),
                made.driver.as_deref().and_then(DriverKind::from_name),
            ),
            (None, Some(said)) => (said.image.clone(), said.driver),
            (None, None) => (PathBuf::new(), None),
        };
        VmEntry {
            id: spec.id.clone(),
            datastore: spec.datastore.clone(),
            cpu_mhz: spec.cpu_mhz,
            memory_mb: spec.memory_mb,
            image,
            driver,
            restart_priority: spec.restart_priority,
            isolation_response: spec.isolation_response,
            guest_agent: spec.guest_agent,
            depends_on: spec.depends_on.clone(),
        }
    }
}

/// The profile, and what differs from it.
fn changed(settings: &Settings) -> std::collections::BTreeMap<String, SettingValue> {
    let plain = Settings::of(settings.profile);
    let keys = SETTINGS.iter().map(|s| s.key);
    keys.filter(|key| *key == "profile" || settings.get(key) != plain.get(key))
        .filter_map(|key| Some((key.to_owned(), settings.get(key)?.as_str().into())))
        .collect()
}

impl DriverKind {
    /// The driver of that name, as files write it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "embedded" => Some(Self::Embedded),
            "qemu" => Some(Self::Qemu),
            _ => None,
        }
    }

    /// Its name, as files write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Qemu => "qemu",
        }
    }
}
