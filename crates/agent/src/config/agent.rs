//! `agent.toml`: what is this host's own.

use super::oom_score::{self, OomScore};
use super::{DriverKind, FileError, parse, read_text, to_text, write_text};
use mainstay_core::config::{ClusterConfig, ConfigError as CoreError, DatastoreKind, nearest};
use mainstay_core::id::{DatastoreId, HostId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
    /// With the memory controller there, a VM that the kernel kills for want of memory is recognised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_parent: Option<PathBuf>,
    /// The watchdog device that the guard feeds (`/dev/watchdog0`); none when it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<PathBuf>,
    /// The score of the guests for the kernel's OOM killer: -999 (killed last) to 1000 (killed first), 0 when it is
    /// left out. Agent and guard have -1000 where they may.
    #[serde(default, skip_serializing_if = "oom_score::is_default")]
    pub guest_oom_score_adj: OomScore,
    /// The fence devices that this host can ask, with their credentials: mode 0600. No host is fenced from here when
    /// it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence_file: Option<PathBuf>,
    /// How pings go.
    #[serde(default)]
    pub probe: Probe,
    /// Of each datastore: its mount point, or the device of one of kind `block`.
    #[serde(default)]
    pub datastores: BTreeMap<DatastoreId, PathBuf>,
}

/// What the paths of images on a datastore are relative to, where `agent.toml` says that it is at `place`: that
/// directory for one of kind `file`; for one of kind `block` the directory in which its device is, so that a volume group
/// has images as volumes beside the region.
#[must_use]
pub fn image_root(place: &Path, kind: DatastoreKind) -> &Path {
    match kind {
        DatastoreKind::File => place,
        DatastoreKind::Block => place.parent().unwrap_or(place),
    }
}

impl AgentFile {
    /// Reads `agent.toml` and makes its paths absolute.
    ///
    /// # Errors
    /// [`FileError`] with file and line.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        Self::from_text(path, &read_text(path)?)
    }

    /// Takes the text of an `agent.toml` that lies at `path`.
    ///
    /// # Errors
    /// [`FileError`] with file and line.
    pub fn from_text(path: &Path, text: &str) -> Result<Self, FileError> {
        let mut file: Self = parse(path, text)?;
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
        .chain(file.fence_file.iter_mut())
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

    /// Its text, as [`AgentFile::from_text`] takes it; errors name `path`.
    ///
    /// # Errors
    /// [`FileError::Write`] for what TOML cannot say, such as a path that is not UTF-8.
    pub fn to_text(&self, path: &Path) -> Result<String, FileError> {
        to_text(path, self)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn root(place: &str, kind: DatastoreKind) -> &Path {
        image_root(Path::new(place), kind)
    }

    #[test]
    fn images_lie_below_a_mount_and_beside_a_region() {
        let below = ["/mnt/nfs", "/mnt/nfs/", "/", "mount"];
        for place in below {
            assert_eq!(root(place, DatastoreKind::File), Path::new(place));
        }
        let beside = [
            ("/dev/vg0/mainstay", "/dev/vg0"),
            ("/dev/vg0/mainstay/", "/dev/vg0"),
            ("/dev/sdb", "/dev"),
            ("/srv/./shared/region", "/srv/shared"),
            ("/region", "/"),
        ];
        for (device, directory) in beside {
            assert_eq!(root(device, DatastoreKind::Block), Path::new(directory));
        }
    }

    #[test]
    fn a_region_that_has_no_directory_has_its_images_nowhere_else() {
        for place in ["/", ""] {
            assert_eq!(root(place, DatastoreKind::Block), Path::new(place));
        }
        // Not resolved: what it leads to is the kernel's business when the image is opened.
        let up = root("/dev/vg0/../region", DatastoreKind::Block);
        assert_eq!(up, Path::new("/dev/vg0/.."));
        assert_eq!(root("..", DatastoreKind::Block), Path::new(""));
    }

    #[test]
    fn a_region_without_a_directory_in_agent_toml_lies_beside_that_file() {
        let text = r#"
host = "host-1"
cluster = "cluster.toml"
state_dir = "state"
run_dir = "run"
log_dir = "log"
key_file = "cluster.key"
ca_file = "ca.pem"
cert_file = "cert.pem"
cert_key_file = "cert.key"
datastores = { ds-1 = "region", ds-2 = "/dev/vg0/region", ds-3 = "mnt" }
"#;
        let file = AgentFile::from_text(Path::new("/etc/mainstay/agent.toml"), text);
        let file = file.expect("sound");
        let root = |id: &str, kind| {
            let id = DatastoreId::new(id).expect("id");
            image_root(&file.datastores[&id], kind)
        };
        let (block, files) = (DatastoreKind::Block, DatastoreKind::File);
        assert_eq!(root("ds-1", block), Path::new("/etc/mainstay"));
        assert_eq!(root("ds-2", block), Path::new("/dev/vg0"));
        assert_eq!(root("ds-3", files), Path::new("/etc/mainstay/mnt"));
    }
}
