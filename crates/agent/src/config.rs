//! The two configuration files: `cluster.toml`, the same on all hosts, and `agent.toml`, this host's.
//!
//! Unknown keys, duplicate ids, contradictory settings and names of what is not there are refused with
//! the file, the line and the nearest key that exists. Nothing here touches the network or a datastore.

mod agent;
mod cluster;
mod error;
mod fence;
mod in_force;
mod key;
mod networks;
mod oom_score;

pub use agent::{AgentFile, Probe, image_root};
pub use cluster::{ClusterFile, ClusterId, ClusterIdError, HostEntry, SettingValue, VmEntry};
pub use error::FileError;
pub use fence::{FenceDevice, FenceFile};
pub use key::ClusterKey;
pub use networks::NetworkError;
pub use oom_score::OomScore;

use mainstay_core::config::nearest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Longest configuration file that is read.
const CONFIG_MAX_BYTES: u64 = 4 << 20;

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
    let text = to_text(path, value)?;
    std::fs::write(path, text).map_err(|source| FileError::Write {
        path: path.into(),
        source,
    })
}

fn to_text<T: Serialize>(path: &Path, value: &T) -> Result<String, FileError> {
    toml::to_string(value).map_err(|error| FileError::Write {
        path: path.into(),
        source: std::io::Error::other(error),
    })
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
