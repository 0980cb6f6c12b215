//! Why an agent does not start, and how its threads do.

use crate::config::FileError;
use crate::control::server::ControlError;
use crate::net::stream::TlsError;
use crate::twin::TwinError;
use mainstay_core::config::ConfigError;
use std::io;
use std::net::SocketAddr;

/// Why the agent did not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] FileError),
    /// The cluster's configuration as the core sees it.
    #[error(transparent)]
    Cluster(#[from] ConfigError),
    /// Another agent runs, or a file cannot be used.
    #[error(transparent)]
    Twin(#[from] TwinError),
    /// The TLS files.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// An address of this host cannot be used.
    #[error(
        "cannot listen at {address} ({what}); is it this host's address, and does another agent use it?"
    )]
    Address {
        /// The address.
        address: SocketAddr,
        /// UDP or TCP.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// There is no guard.
    #[error(
        "there is no guard, and without one no VM may run; see guard.stderr and guard.log in the log directory"
    )]
    Guard(#[source] io::Error),
    /// The boot id file holds no id.
    #[error("{path} does not hold a boot id; it must hold at least 16 hexadecimal digits")]
    Boot {
        /// The file.
        path: String,
    },
    /// Something of the system is missing.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// A refusal of the operating system.
pub(super) fn system(action: &'static str) -> impl Fn(io::Error) -> AgentError {
    move |source| AgentError::System { action, source }
}

/// Starts a thread of the agent.
pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), AgentError> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map(drop)
        .map_err(system("start a thread"))
}
