//! Hosts and VMs that come and go while the agent runs: the network and the drivers follow the
//! configuration.

use super::{Shell, Wake};
use crate::clock;
use crate::config::{ClusterFile, DriverKind};
use crate::control::InForce;
use crate::net::Addresses;
use crate::weak::Source;
use mainstay_core::config::{Change, HostAddresses, PlaceError};
use mainstay_core::id::HostId;

/// Where each host of a cluster is.
pub(super) fn addresses(cluster: &ClusterFile) -> Addresses {
    let hosts = cluster.hosts.iter();
    hosts.map(|h| (h.id.clone(), h.by_network())).collect()
}

impl Shell {
    /// The configuration is another one: whom to send to and whom to hear, and what VMs are made from.
    pub(super) fn renew_members(&mut self) {
        let next = self.file.in_force(self.agent.config());
        let addresses = addresses(&next);
        if addresses != self.addresses {
            let udp = self.udp.set_addresses(&addresses);
            let streams = self.streams.set_addresses(&addresses);
            let failed = udp.and(streams).err().map(|error| {
                format!(
                    "hosts that joined cannot be reached from here ({error}); restart the agent"
                )
            });
            let nowhere = next
                .hosts
                .iter()
                .filter(|h| h.all_addresses().next().is_none());
            let unknown = nowhere.map(|h| {
                format!(
                    "neither cluster.toml nor the configuration says where {id} is; `mainstay remove host {id}` and add it again with `mainstay add host`",
                    id = h.id
                )
            });
            let moved = self.has_moved(&addresses).then(|| {
                "this host has other addresses in the configuration than those at which its agent listens; restart the agent".to_owned()
            });
            let issues = failed.into_iter().chain(unknown).chain(moved).collect();
            self.addresses = addresses;
            // Not at once: this is one of several outputs that are carried out in order.
            let told = self
                .wake
                .try_send(Box::new(Wake::Issues(Source::Members, issues)));
            if told.is_err() {
                tracing::warn!("the queue is full: weaknesses of the members are not told");
            }
        }
        self.vms.set_entries(&next);
        self.file = next;
    }

    fn has_moved(&self, addresses: &Addresses) -> bool {
        let own = addresses.get(&self.stamp.writer);
        own.is_some_and(|own| *own != self.own_addresses)
    }

    /// What `cluster.toml` says when it is up to date.
    pub(super) fn in_force(&self) -> InForce {
        InForce {
            boot: self.stamp.boot.0,
            host: self.stamp.writer.clone(),
            version: self.agent.config().version,
            file: self.file.clone(),
            mounts: self.vms.mounts().clone(),
        }
    }

    /// Hands changes to the core, after what the core cannot check: what only files and drivers say.
    pub(super) fn propose(&mut self, changes: Vec<Change>) -> Result<u64, String> {
        for change in &changes {
            match change {
                Change::AddHost { spec, addresses } => {
                    self.check_free(&spec.id, addresses)
                        .map_err(|e| e.to_string())?;
                }
                Change::AddVm { spec, image } => {
                    if let Some(name) = &image.driver
                        && DriverKind::from_name(name).is_none()
                    {
                        return Err(format!(
                            "\"{name}\" of {} is no driver; it is embedded or qemu",
                            spec.id
                        ));
                    }
                }
                _ => {}
            }
        }
        let asked = self.agent.propose(clock::now(), changes);
        asked.map_err(|e| e.to_string())
    }

    /// No other host has one of these addresses.
    fn check_free(&self, host: &HostId, wanted: &HostAddresses) -> Result<(), PlaceError> {
        for (first, known) in self.addresses.iter().filter(|(h, _)| *h != host) {
            for (_, address) in known {
                if wanted.values().any(|w| w == address) {
                    return Err(PlaceError::Twice {
                        first: first.clone(),
                        second: host.clone(),
                        address: *address,
                    });
                }
            }
        }
        Ok(())
    }
}
