//! Where hosts are reached and what VMs are made from, as far as that was said while the cluster ran: no
//! decision rests on it. It is part of the configuration so that it is versioned, kept and carried with
//! it to hosts that were down. Of what is not here, each host's `cluster.toml` says it.

use super::cluster::{ClusterConfig, ConfigError, HostSpec, VmSpec};
use crate::id::{HostId, VmId};
use alloc::collections::BTreeMap;
use alloc::string::String;
use core::net::SocketAddr;
use serde::{Deserialize, Serialize};

/// The most hosts that a cluster can be given while it runs: so many are measured
/// (`docs/benchmarks.md`, 2026-11).
pub const HOSTS_MAX: usize = 1_000;
/// The most VMs, likewise.
pub const VMS_MAX: usize = 100_000;
/// Longest name of a management network.
pub const NETWORK_NAME_MAX_BYTES: usize = 32;
/// Longest path of an image, below the root of its datastore.
const PATH_MAX_BYTES: usize = 1024;

/// A host's address on each management network, by the network's name.
pub type HostAddresses = BTreeMap<String, SocketAddr>;

/// What a driver makes a VM from.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Image {
    /// The disk image, relative to the root of the VM's home datastore.
    pub path: String,
    /// The driver by its name; none: each host's own.
    pub driver: Option<String>,
}

/// All that was said while the cluster ran.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Places {
    /// The addresses of hosts that joined.
    pub hosts: BTreeMap<HostId, HostAddresses>,
    /// The images of VMs that were made.
    pub images: BTreeMap<VmId, Image>,
}

/// Why an address or an image makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// No address at all.
    #[error("host \"{0}\" has no address; name one for each management network")]
    NoAddress(HostId),
    /// A name that cannot be shown or compared safely.
    #[error(
        "\"{name}\" of host \"{host}\" is no name for a network; use up to 32 letters, digits, '-' and '_', such as mgmt0"
    )]
    Network {
        /// The host.
        host: HostId,
        /// The name.
        name: String,
    },
    /// An address that nobody can send to.
    #[error(
        "nobody can reach host \"{host}\" at {address}; name an address and a port of its own, such as 10.0.0.4:7777"
    )]
    Unusable {
        /// The host.
        host: HostId,
        /// The address.
        address: SocketAddr,
    },
    /// Two hosts, or two networks of one, have the same address.
    #[error(
        "hosts \"{first}\" and \"{second}\" both have the address {address}; give each host its own on each network"
    )]
    Twice {
        /// The first host.
        first: HostId,
        /// The second host.
        second: HostId,
        /// The address.
        address: SocketAddr,
    },
    /// The path leaves the datastore.
    #[error(
        "the image \"{path}\" of \"{vm}\" is not inside its datastore; write it relative to the datastore's root, without \"..\""
    )]
    Path {
        /// The VM.
        vm: VmId,
        /// The path.
        path: String,
    },
}

impl Places {
    /// Nothing was said while the cluster ran.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.images.is_empty()
    }

    /// Checks addresses and images for themselves and against each other.
    pub(super) fn check(&self) -> Result<(), PlaceError> {
        let mut seen: BTreeMap<SocketAddr, &HostId> = BTreeMap::new();
        for (host, addresses) in &self.hosts {
            if addresses.is_empty() {
                return Err(PlaceError::NoAddress(host.clone()));
            }
            for (network, address) in addresses {
                check_address(host, network, *address)?;
                if let Some(first) = seen.insert(*address, host) {
                    return Err(PlaceError::Twice {
                        first: first.clone(),
                        second: host.clone(),
                        address: *address,
                    });
                }
            }
        }
        for (vm, image) in &self.images {
            let inside = |part: &str| !part.is_empty() && part != "." && part != "..";
            let sound = image.path.len() <= PATH_MAX_BYTES
                && !image.path.contains('\0')
                && image.path.split('/').all(inside);
            if !sound {
                let (vm, path) = (vm.clone(), image.path.clone());
                return Err(PlaceError::Path { vm, path });
            }
        }
        Ok(())
    }
}

fn check_address(host: &HostId, network: &str, address: SocketAddr) -> Result<(), PlaceError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if network.is_empty() || network.len() > NETWORK_NAME_MAX_BYTES || !network.chars().all(good) {
        return Err(PlaceError::Network {
            host: host.clone(),
            name: network.into(),
        });
    }
    let ip = address.ip();
    if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
        let host = host.clone();
        return Err(PlaceError::Unusable { host, address });
    }
    Ok(())
}

impl ClusterConfig {
    /// A host joins, with what others need to reach it.
    pub(super) fn add_host(
        &mut self,
        spec: &HostSpec,
        addresses: &HostAddresses,
    ) -> Result<(), ConfigError> {
        let id = &spec.id;
        if self.hosts.contains_key(id) {
            return Err(exists("host", id.as_str()));
        }
        if self.hosts.len() >= HOSTS_MAX {
            return Err(ConfigError::TooMany {
                what: "hosts",
                most: HOSTS_MAX,
            });
        }
        let networks = addresses.keys().cloned().collect();
        let spec = HostSpec {
            networks,
            ..spec.clone()
        };
        self.hosts.insert(id.clone(), spec);
        self.places.hosts.insert(id.clone(), addresses.clone());
        Ok(())
    }

    /// A VM is made, with what a driver needs to run it.
    pub(super) fn add_vm(&mut self, spec: &VmSpec, image: &Image) -> Result<(), ConfigError> {
        let id = &spec.id;
        if self.vms.contains_key(id) {
            return Err(exists("VM", id.as_str()));
        }
        if self.vms.len() >= VMS_MAX {
            return Err(ConfigError::TooMany {
                what: "VMs",
                most: VMS_MAX,
            });
        }
        self.vms.insert(id.clone(), spec.clone());
        self.places.images.insert(id.clone(), image.clone());
        Ok(())
    }
}

fn exists(what: &'static str, id: &str) -> ConfigError {
    ConfigError::Exists {
        what,
        id: id.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    fn host(n: u8) -> HostId {
        HostId::new(&alloc::format!("host-{n}")).expect("id")
    }

    fn at(network: &str, address: &str) -> (String, SocketAddr) {
        (network.into(), address.parse().expect("address"))
    }

    #[test]
    fn addresses_that_cannot_serve_are_refused_with_the_remedy() {
        for (all, remedy) in [
            (Vec::new(), "name one for each management network"),
            (
                [at("mgmt 0", "10.0.0.4:7777")].into(),
                "no name for a network",
            ),
            ([at("mgmt0", "10.0.0.4:0")].into(), "a port of its own"),
            ([at("mgmt0", "0.0.0.0:7777")].into(), "nobody can reach"),
            (
                [at("mgmt0", "10.0.0.4:7777"), at("mgmt1", "10.0.0.4:7777")].into(),
                "its own on each network",
            ),
        ] {
            let places = Places {
                hosts: [(host(4), all.into_iter().collect())].into(),
                ..Places::default()
            };
            let error = places.check().expect_err("refused").to_string();
            assert!(error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn an_image_outside_of_its_datastore_is_refused() {
        let vm = VmId::new("vm-1").expect("id");
        let places = |path: &str| Places {
            images: [(
                vm.clone(),
                Image {
                    path: path.into(),
                    driver: None,
                },
            )]
            .into(),
            ..Places::default()
        };
        for path in ["", "/etc/shadow", "../other/a.raw", "a//b", "a/./b", "a/.."] {
            assert!(places(path).check().is_err(), "{path}");
        }
        for path in ["vm-1.raw", "images/vm-1.raw", "..a"] {
            assert_eq!(places(path).check(), Ok(()), "{path}");
        }
    }
}
