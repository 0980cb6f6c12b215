//! The agent's state machine: routes inputs to the rooms that decide and orders their outputs.

use crate::config::{ClusterConfig, ConfigError};
use crate::id::{BootId, HostId, InstanceId, VmId};
use crate::io::{Durable, FoundVm, Input, Output};
use crate::rng::Rng;
use crate::status::{Explanation, Status};
use crate::time::Instant;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Who an agent is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its host.
    pub host: HostId,
    /// Its host's boot.
    pub boot: BootId,
    /// This start of the agent.
    pub instance: InstanceId,
    /// Seed of everything random.
    pub seed: u64,
}

/// What an operator asks of one agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Power a VM on here.
    PowerOn(VmId),
    /// Power a VM off that runs here.
    PowerOff(VmId),
}

/// Why a command was refused. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// There is no such VM.
    #[error("there is no VM \"{0}\" in this cluster")]
    UnknownVm(VmId),
    /// This host does not mount its datastore.
    #[error("this host does not mount the datastore of \"{0}\"; power it on on a host that does")]
    NoDatastore(VmId),
    /// It is not here.
    #[error("\"{0}\" does not run on this host; ask the host that runs it (`mainstay vms` shows which)")]
    NotHere(VmId),
}

/// The agent of one host.
#[derive(Debug)]
pub struct Agent {
    out: VecDeque<Output>,
    rng: Rng,
}

impl Agent {
    /// An agent that has just started on a host where `found` VMs are left from an earlier instance.
    /// All processes of that earlier instance must be gone (safety rule H16).
    ///
    /// # Errors
    /// [`ConfigError::NotMember`] when the host is not part of the cluster.
    pub fn new(
        identity: Identity,
        config: ClusterConfig,
        durable: Durable,
        found: Vec<FoundVm>,
        now: Instant,
    ) -> Result<Self, ConfigError> {
        let _ = (config, durable, found, now);
        Ok(Self { out: VecDeque::new(), rng: Rng::new(identity.seed) })
    }

    /// Takes what happened.
    ///
    /// # Panics
    /// When the outputs of the call before were not drained.
    pub fn handle(&mut self, now: Instant, input: Input) {
        assert!(self.out.is_empty(), "drain poll_output before the next input");
        let _ = (now, input, &mut self.rng);
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When [`Input::Timeout`] is due next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Takes an operator's request: checked completely before anything changes. Progress is seen in
    /// events and in the status.
    ///
    /// # Errors
    /// [`CommandError`]; then nothing was changed.
    pub fn command(&mut self, now: Instant, command: Command) -> Result<(), CommandError> {
        let _ = now;
        match command {
            Command::PowerOn(vm) | Command::PowerOff(vm) => Err(CommandError::UnknownVm(vm)),
        }
    }

    /// The agent's view of the cluster.
    #[must_use]
    pub fn status(&self, now: Instant) -> Option<Status> {
        let _ = now;
        None
    }

    /// Why a VM is as it is.
    #[must_use]
    pub fn explain_vm(&self, now: Instant, vm: &VmId) -> Option<Explanation> {
        let _ = (now, vm);
        None
    }

    /// Why a host is judged as it is.
    #[must_use]
    pub fn explain_host(&self, now: Instant, host: &HostId) -> Option<Explanation> {
        let _ = (now, host);
        None
    }

    /// Plants a bug (only in builds that test the testers).
    #[cfg(feature = "planted")]
    pub fn plant(&mut self, bug: crate::planted::Bug) {
        let _ = bug;
    }

    /// Adds to the list of weaknesses what the shell found (no O_DIRECT, no raw ICMP, ...).
    pub fn set_shell_issues(&mut self, issues: Vec<alloc::string::String>) {
        let _ = issues;
    }
}
