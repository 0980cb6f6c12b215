//! The client of the control socket.

use super::{Answer, EventLine, InForce, Leaving, Pong, Readiness, Request};
use mainstay_core::config::{Change, ClusterConfig};
use mainstay_core::drill::{self, Forecast, Progress};
use mainstay_core::id::{HostId, VmId};
use mainstay_core::status::{Explanation, Status};
use serde::de::DeserializeOwned;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an agent may take to answer what it knows by itself.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why an agent could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// There is no socket.
    #[error("there is no control socket at {}; is the agent running? start it with `mainstay agent`, or pass --socket PATH", .0.display())]
    NoSocket(PathBuf),
    /// Nobody listens.
    #[error("nobody listens at {}; the agent has died or was killed; start it with `mainstay agent`, or pass --socket PATH", .0.display())]
    Dead(PathBuf),
    /// No right to connect.
    #[error("this user may not use {}; run the command as the agent's user", .0.display())]
    Denied(PathBuf),
    /// The connection failed.
    #[error("the connection to {} failed", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The agent does not answer.
    #[error("the agent at {} does not answer; see its log", .0.display())]
    Silent(PathBuf),
    /// The agent closed the connection without an answer.
    #[error("the agent at {} closed the connection without an answer; see its log", .0.display())]
    Closed(PathBuf),
    /// The answer cannot be understood.
    #[error("the agent at {} answered what this program cannot read; are both of the same version?", .path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The agent took a change and did not answer to the end.
    #[error("the agent at {} gave no answer to the end: whether the change was made is not known; look at the configuration's version, and ask again", .0.display())]
    OutcomeUnknown(PathBuf),
    /// The agent refused.
    #[error("{0}")]
    Refused(String),
}

/// Talks to one agent. Each call uses a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of the agent whose control socket this is; asks whether it is there.
    ///
    /// # Errors
    /// [`ClientError`] when nobody answers.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let client = Self { path: path.into() };
        client.ping()?;
        Ok(client)
    }

    /// Asks whether the agent is there and who it is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ping(&self) -> Result<Pong, ClientError> {
        self.call(&Request::Ping)
    }

    /// The agent's view of the cluster.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn status(&self) -> Result<Status, ClientError> {
        self.call(&Request::Status)
    }

    /// Why a VM is as it is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn explain_vm(&self, id: &VmId) -> Result<Explanation, ClientError> {
        self.call(&Request::ExplainVm { id: id.clone() })
    }

    /// Why a host is judged as it is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn explain_host(&self, id: &HostId) -> Result<Explanation, ClientError> {
        self.call(&Request::ExplainHost { id: id.clone() })
    }

    /// Asks for a VM to be powered on there. Progress is seen in the events.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn power_on(&self, vm: &VmId) -> Result<(), ClientError> {
        self.call(&Request::PowerOn { vm: vm.clone() })
    }

    /// Asks for a VM to be powered off. Progress is seen in the events.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn power_off(&self, vm: &VmId) -> Result<(), ClientError> {
        self.call(&Request::PowerOff { vm: vm.clone() })
    }

    /// Says that the host is being shut down: its VMs are stopped and their locks given back. To be asked again
    /// until it is ready.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn leave(&self) -> Result<Leaving, ClientError> {
        self.call(&Request::Leave)
    }

    /// Says that agent or guard are about to be restarted on purpose. To be asked again until it is ready.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn prepare_restart(&self) -> Result<Readiness, ClientError> {
        self.call(&Request::PrepareRestart)
    }

    /// The configuration that is in force there.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn config(&self) -> Result<ClusterConfig, ClientError> {
        self.call(&Request::Config)
    }

    /// The configuration that is in force there as a `cluster.toml`, and where that host mounts the datastores.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn in_force(&self) -> Result<InForce, ClientError> {
        self.call(&Request::InForce)
    }

    /// Changes the configuration, all of it or nothing; gives the version that is on disk.
    ///
    /// # Errors
    /// [`ClientError`]; a refusal says why, or that the outcome is not known.
    pub fn change(&self, changes: Vec<Change>) -> Result<u64, ClientError> {
        // The agent waits that long for the primary and its disk, and needs some time of its own.
        let limit = self.config()?.settings.order_timeout;
        let patience = limit.saturating_add(2 * ANSWER_TIMEOUT);
        let stream = self.send(&Request::Change { changes })?;
        stream
            .set_read_timeout(Some(patience))
            .map_err(|e| self.fault(e))?;
        let unknown = || ClientError::OutcomeUnknown(self.path.clone());
        match self.answer(&mut BufReader::new(stream)) {
            Ok(answer) => answer.ok_or_else(unknown),
            Err(refused @ ClientError::Refused(_)) => Err(refused),
            Err(_) => Err(unknown()),
        }
    }

    /// What would happen if a host was lost now.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn drill_plan(&self, host: &HostId) -> Result<Forecast, ClientError> {
        let host = host.clone();
        match self.ask_primary(&Request::DrillPlan { host })? {
            drill::Answer::Forecast(forecast) => Ok(*forecast),
            drill::Answer::Begun { .. } => Err(ClientError::Closed(self.path.clone())),
        }
    }

    /// Lets a host fall silent, as if it was lost, and gives for how many milliseconds at the longest.
    /// `insists`: also against what may be insisted on.
    ///
    /// # Errors
    /// [`ClientError`]; a refusal says why, or that the outcome is not known.
    pub fn drill_run(
        &self,
        host: &HostId,
        time: Option<Duration>,
        insists: bool,
    ) -> Result<u64, ClientError> {
        let request = Request::DrillRun {
            host: host.clone(),
            time_ms: time.map(mainstay_core::time::millis),
            insists,
        };
        match self.ask_primary(&request)? {
            drill::Answer::Begun { time_ms } => Ok(time_ms),
            drill::Answer::Forecast(_) => Err(ClientError::Closed(self.path.clone())),
        }
    }

    /// Lets a host come back from its drill. The message may be lost: to be asked again until it is back.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn drill_stop(&self, host: &HostId) -> Result<(), ClientError> {
        self.call(&Request::DrillStop { host: host.clone() })
    }

    /// How far the last drill of a host is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn drill_progress(&self, host: &HostId) -> Result<Progress, ClientError> {
        self.call(&Request::DrillProgress { host: host.clone() })
    }

    /// Asks what the agent passes on to the primary.
    fn ask_primary<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError> {
        let limit = self.config()?.settings.timing.dead;
        let patience = limit.saturating_add(2 * ANSWER_TIMEOUT);
        let stream = self.send(request)?;
        stream
            .set_read_timeout(Some(patience))
            .map_err(|e| self.fault(e))?;
        self.answer(&mut BufReader::new(stream))?
            .ok_or_else(|| ClientError::Closed(self.path.clone()))
    }

    /// The last events, oldest first; with `follow` the iterator goes on until the agent ends.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn events(&self, last: Option<u64>, follow: bool) -> Result<Events, ClientError> {
        let stream = self.send(&Request::Events { follow, last })?;
        if follow {
            stream.set_read_timeout(None).map_err(|e| self.fault(e))?;
        }
        Ok(Events {
            client: self.clone(),
            reader: BufReader::new(stream),
        })
    }

    fn call<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError> {
        let mut reader = BufReader::new(self.send(request)?);
        self.answer(&mut reader)?
            .ok_or_else(|| ClientError::Closed(self.path.clone()))
    }

    fn send(&self, request: &Request) -> Result<UnixStream, ClientError> {
        let connected =
            crate::twin::socket_path(&self.path).and_then(|(_dir, p)| UnixStream::connect(p));
        let mut stream = connected.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => ClientError::NoSocket(self.path.clone()),
            io::ErrorKind::ConnectionRefused => ClientError::Dead(self.path.clone()),
            io::ErrorKind::PermissionDenied => ClientError::Denied(self.path.clone()),
            _ => self.fault(e),
        })?;
        let fault = |e| self.fault(e);
        stream
            .set_read_timeout(Some(ANSWER_TIMEOUT))
            .map_err(fault)?;
        stream
            .set_write_timeout(Some(ANSWER_TIMEOUT))
            .map_err(fault)?;
        let mut line = serde_json::to_vec(request).map_err(|source| ClientError::Answer {
            path: self.path.clone(),
            source,
        })?;
        line.push(b'\n');
        stream.write_all(&line).map_err(fault)?;
        Ok(stream)
    }

    fn answer<T: DeserializeOwned>(
        &self,
        reader: &mut BufReader<UnixStream>,
    ) -> Result<Option<T>, ClientError> {
        let mut line = String::new();
        reader.read_line(&mut line).map_err(|e| self.fault(e))?;
        if line.is_empty() {
            return Ok(None);
        }
        match serde_json::from_str(&line) {
            Ok(Answer::Ok(value)) => Ok(Some(value)),
            Ok(Answer::Error(text)) => Err(ClientError::Refused(text)),
            Err(source) => Err(ClientError::Answer {
                path: self.path.clone(),
                source,
            }),
        }
    }

    fn fault(&self, source: io::Error) -> ClientError {
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                ClientError::Silent(self.path.clone())
            }
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                ClientError::Closed(self.path.clone())
            }
            _ => ClientError::Io {
                path: self.path.clone(),
                source,
            },
        }
    }
}

/// Events as they come.
#[derive(Debug)]
pub struct Events {
    client: Client,
    reader: BufReader<UnixStream>,
}

impl Events {
    /// Bounds the wait for each next event; a passed bound is [`ClientError::Silent`].
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), ClientError> {
        self.reader
            .get_ref()
            .set_read_timeout(timeout)
            .map_err(|e| self.client.fault(e))
    }
}

impl Iterator for Events {
    type Item = Result<EventLine, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.client.answer(&mut self.reader).transpose()
    }
}
