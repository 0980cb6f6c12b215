//! Which agent a command asks, and how its errors read.

use crate::demo::place::{Note, Place};
use crate::fail::Failure;
use mainstay_agent::control::client::{Client, ClientError};
use mainstay_core::id::HostId;
use std::path::{Path, PathBuf};

/// Where an agent listens when nothing else is said.
pub(crate) const DEFAULT_SOCKET: &str = "/run/mainstay/control.sock";

/// Whom to ask.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The socket that was named, or that was found.
    pub(crate) socket: PathBuf,
    /// The running demo that it was found by.
    demo: Option<Note>,
}

impl Target {
    /// The named socket; else that of the running demo's best informed host; else the default one.
    pub(crate) fn find(named: Option<&Path>) -> Self {
        if let Some(socket) = named {
            return Self {
                socket: socket.into(),
                demo: None,
            };
        }
        if let Some(note) = Place::of_user().running()
            && let Some(socket) = best_informed(&note)
        {
            return Self {
                socket,
                demo: Some(note),
            };
        }
        Self {
            socket: DEFAULT_SOCKET.into(),
            demo: None,
        }
    }

    /// A client of that agent.
    ///
    /// # Errors
    /// When nobody answers.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Client::connect(&self.socket).map_err(Failure::from)
    }

    /// The agent of this host, where a demo says which socket it has; else the one that was named.
    pub(crate) fn of_host(&self, host: &HostId) -> Self {
        let socket = self
            .demo
            .as_ref()
            .and_then(|note| note.hosts.get(host.as_str()));
        Self {
            socket: socket.unwrap_or(&self.socket).clone(),
            demo: self.demo.clone(),
        }
    }
}

/// The primary if the first host that answers knows one that answers too; else that first host.
fn best_informed(note: &Note) -> Option<PathBuf> {
    let ask = |socket: &PathBuf| Client::connect(socket).and_then(|c| c.status()).ok();
    let (first, status) = note
        .hosts
        .values()
        .find_map(|socket| Some((socket, ask(socket)?)))?;
    let primary = status.primary.and_then(|p| note.hosts.get(p.as_str()));
    match primary {
        Some(socket) if socket != first && ask(socket).is_some() => Some(socket.clone()),
        _ => Some(first.clone()),
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let start = "start an agent (`mainstay agent --config FILE`) or the demo (`mainstay demo`), or name its \
                     control socket with --socket or MAINSTAY_SOCKET";
        let (what, place, remedy) = match &error {
            ClientError::NoSocket(path) => ("there is no control socket", path, start),
            ClientError::Dead(path) => (
                "nobody listens at this control socket; its agent is gone",
                path,
                start,
            ),
            ClientError::Denied(path) => (
                "this user may not use the control socket",
                path,
                "run the command as the agent's user, or with sudo",
            ),
            ClientError::Silent(path) => ("the agent does not answer", path, "see its log"),
            ClientError::Closed(path) => (
                "the agent closed the connection without an answer",
                path,
                "see its log",
            ),
            ClientError::Answer { path, source } => {
                return Self::new(format_args!(
                    "the answer is not one that this program can read: {source}"
                ))
                .at(path.display())
                .remedy("use the `mainstay` of the agent's version");
            }
            ClientError::Io { path, source } => {
                return Self::new(format_args!("the connection failed: {source}"))
                    .at(path.display())
                    .remedy("name the control socket of an agent with --socket");
            }
            ClientError::OutcomeUnknown(path) => (
                "the agent gave no answer to the end: whether the change was made is not known",
                path,
                "look at the configuration's version (`mainstay status`), and ask again",
            ),
            other => return Self::new(other),
        };
        Self::new(what).at(place.display()).remedy(remedy)
    }
}
