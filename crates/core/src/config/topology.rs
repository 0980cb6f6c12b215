//! What follows from a configuration and is asked for again and again: who mounts which datastore,
//! and where each host's heartbeat is looked for.

use super::cluster::ClusterConfig;
use crate::id::{DatastoreId, HostId};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// Computed once for each configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Topology {
    mounted: BTreeMap<DatastoreId, Vec<HostId>>,
    chosen: BTreeMap<HostId, Vec<DatastoreId>>,
    home: Option<DatastoreId>,
}

impl Topology {
    pub(crate) fn of(config: &ClusterConfig) -> Self {
        let mut mounted: BTreeMap<DatastoreId, Vec<HostId>> = BTreeMap::new();
        for host in config.hosts.values() {
            for datastore in &host.datastores {
                mounted
                    .entry(datastore.clone())
                    .or_default()
                    .push(host.id.clone());
            }
        }
        let hosts_of = |d: &DatastoreId| mounted.get(d).map_or(0, Vec::len);
        let chosen = config
            .hosts
            .values()
            .map(|h| {
                (
                    h.id.clone(),
                    config.choose_datastores(h, hosts_of, &BTreeSet::new(), &[]),
                )
            })
            .collect();
        Self {
            chosen,
            mounted,
            home: config.home(),
        }
    }

    /// The hosts that mount the datastore, by id.
    pub(crate) fn mounted_by(&self, datastore: &DatastoreId) -> &[HostId] {
        self.mounted.get(datastore).map_or(&[], Vec::as_slice)
    }

    /// As [`ClusterConfig::heartbeat_datastores`].
    pub(crate) fn heartbeat_datastores(&self, host: &HostId) -> &[DatastoreId] {
        self.chosen.get(host).map_or(&[], Vec::as_slice)
    }

    /// As [`ClusterConfig::home`].
    pub(crate) fn home(&self) -> Option<&DatastoreId> {
        self.home.as_ref()
    }
}
