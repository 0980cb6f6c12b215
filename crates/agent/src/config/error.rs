//! Why a configuration file was refused, with the file, the line and the nearest key that exists.

use super::NetworkError;
use mainstay_core::config::{ConfigError as CoreError, SettingError};
use mainstay_core::id::{DatastoreId, HostId, VmId};
use std::net::SocketAddr;
use std::path::PathBuf;

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
    /// The fence file can be read by others.
    #[error("{} is no file that only its owner can read (mode {mode:04o}); run `chmod 600` on it, and change the passwords in it if others may have read them", .path.display())]
    FenceMode {
        /// The fence file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The fence file belongs to somebody who could change it.
    #[error("{} belongs to the user {uid}; it must belong to root: run `chown root` on it, and look what it says", .path.display())]
    FenceOwner {
        /// The fence file.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// A host has two fence devices.
    #[error("{}: host \"{host}\" has two devices; leave one out", .path.display())]
    FenceTwice {
        /// The fence file.
        path: PathBuf,
        /// The host.
        host: HostId,
    },
    /// Two hosts would be switched by one outlet.
    #[error("{}: hosts \"{first}\" and \"{second}\" are switched by the same outlet of the same device; correct the address or the plug of one", .path.display())]
    FenceOutlet {
        /// The fence file.
        path: PathBuf,
        /// The first host.
        first: HostId,
        /// The second host.
        second: HostId,
    },
    /// A fence device is for a host that the cluster has not.
    #[error("{}: there is no host \"{host}\" in this cluster{}", .path.display(), did_you_mean(.nearest.as_deref()))]
    FenceHost {
        /// The fence file.
        path: PathBuf,
        /// The host.
        host: HostId,
        /// The nearest host that exists.
        nearest: Option<String>,
    },
    /// A fence device has an option that cannot be.
    #[error("{}: the device of \"{host}\": {key} {what}", .path.display())]
    FenceOption {
        /// The fence file.
        path: PathBuf,
        /// The host.
        host: HostId,
        /// The key.
        key: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A fence agent cannot be run, or should not.
    #[error("{}: {} {what}", .path.display(), .program.display())]
    FenceProgram {
        /// The fence file.
        path: PathBuf,
        /// The fence agent.
        program: PathBuf,
        /// What is wrong with it.
        what: &'static str,
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
