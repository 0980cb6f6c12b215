//! Which agent a command asks, and how its errors read.

use crate::fail::Failure;
use mainstay_agent::control::client::Client;
use mainstay_core::id::HostId;
use mainstay_lab::place::{Kind, Note, Place};

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
        if let Some(note) = Place::of_user(Kind::Demo).running()
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

impl Target {
    /// The same, but for a demo whose found agent is that of this host: then that of another host that
    /// answers, if there is one.
    pub(crate) fn beside(self, host: &HostId) -> Self {
        let Some(note) = &self.demo else {
            return self;
        };
        if note.hosts.get(host.as_str()) != Some(&self.socket) {
            return self;
        }
        let others = note.hosts.iter().filter(|(id, _)| *id != host.as_str());
        let answering = others
            .map(|(_, socket)| socket)
            .find(|socket| Client::connect(socket).is_ok());
        let socket = answering.unwrap_or(&self.socket).clone();
        Self {
            socket,
            demo: self.demo,
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
