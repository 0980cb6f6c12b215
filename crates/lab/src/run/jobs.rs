//! What is asked of agents: on threads of their own, because an agent may not answer.

use super::{Heard, Stage};
use mainstay_agent::control::client::{Client, ClientError};
use mainstay_core::config::Change;
use mainstay_core::id::{HostId, VmId};
use std::path::PathBuf;
use std::time::Duration;

/// A change is asked for so often, a second apart, before its user gives up; the simulator's users do the same.
const TRIES: u32 = 30;
/// Between two tries.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Between two looks whether an agent is ready.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Longest wait until it may.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// What became of something that was asked.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The place of its line in the trace.
    pub(super) line: usize,
    /// Refused, or not heard: why.
    pub(super) refused: Option<String>,
    /// What follows from it.
    pub(super) then: Then,
}

/// What follows when an agent has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    Nothing,
    /// The user's wish about this VM was accepted.
    Wished {
        vm: usize,
        on: bool,
        /// How often it had been asked to run when the wish was uttered.
        asked_on: u64,
    },
    /// The guest of this VM has taken the request to shut itself down.
    GuestEnds {
        vm: usize,
        asked_on: u64,
    },
    /// The agent may be stopped now, and is to be away for so long.
    StopAgent {
        host: usize,
        boot: u64,
        away: u64,
    },
    /// The host's VMs are stopped, their locks given back.
    Left {
        host: usize,
        boot: u64,
    },
}

/// Where to ask.
pub(super) type Sockets = Vec<PathBuf>;

impl Stage<'_> {
    /// Asks on a thread of its own; the answer is heard.
    pub(super) fn ask(
        &self,
        then: Then,
        job: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) {
        let to = self.to_self.clone();
        let line = self.trace.len().saturating_sub(1);
        let asked = std::thread::Builder::new()
            .name("ask".into())
            .spawn(move || {
                let answer = Answer {
                    line,
                    refused: job().err(),
                    then,
                };
                // Nobody waits for it when the run is over.
                drop(to.send(Heard::Answer(Box::new(answer))));
            });
        if let Err(error) = asked {
            drop(self.to_self.send(Heard::Answer(Box::new(Answer {
                line,
                refused: Some(format!("cannot start a thread: {error}")),
                then,
            }))));
        }
    }

    pub(super) fn take_answer(&mut self, answer: Answer) {
        if let Some(refused) = answer.refused {
            if let Some(entry) = self.trace.get_mut(answer.line) {
                entry.why = refused;
                let (entry, zero) = (entry.clone(), self.zero_nanos());
                self.audience.entry(&entry, zero);
            }
            return;
        }
        self.follows(answer.then);
    }

    /// Control sockets of the agents that may answer: of one host, or of all.
    pub(super) fn sockets(&self, host: Option<usize>) -> Sockets {
        let hosts = self.cluster.hosts().iter().enumerate();
        hosts
            .filter(|(index, it)| {
                host.is_none_or(|h| h == *index) && it.is_up() && !self.standing(*index).agent_hung
            })
            .map(|(_, it)| it.socket())
            .collect()
    }
}

/// Powers a VM on or off at the first of the agents. A new VM's host may not have heard of it yet: then it is
/// asked again.
pub(super) fn power(sockets: &Sockets, vm: &VmId, on: bool, tries: u32) -> Result<(), String> {
    let mut said = String::new();
    for attempt in 0..tries.max(1) {
        if attempt > 0 {
            std::thread::park_timeout(TRY_AGAIN);
        }
        for socket in sockets {
            let asked = Client::connect(socket).and_then(|c| match on {
                true => c.power_on(vm),
                false => c.power_off(vm),
            });
            match asked {
                Ok(()) => return Ok(()),
                Err(error) => said = error.to_string(),
            }
        }
    }
    Err(not_heard(said))
}

/// Changes the configuration at the first agent that takes it.
pub(super) fn change(sockets: &Sockets, changes: &[Change]) -> Result<(), String> {
    let mut said = String::new();
    for attempt in 0..TRIES {
        if attempt > 0 {
            std::thread::park_timeout(TRY_AGAIN);
        }
        for socket in sockets {
            match Client::connect(socket).and_then(|c| c.change(changes.to_vec())) {
                Ok(_) => return Ok(()),
                Err(error) => said = error.to_string(),
            }
        }
    }
    Err(not_heard(said))
}

/// Makes a VM known, and powers it on when it is.
pub(super) fn create(
    sockets: &Sockets,
    change_: Change,
    then_on: Option<(Sockets, VmId)>,
) -> Result<(), String> {
    change(sockets, &[change_])?;
    then_on.map_or(Ok(()), |(at, vm)| power(&at, &vm, true, TRIES))
}

/// Asks a host's agent to rehearse its loss.
pub(super) fn drill(
    sockets: &Sockets,
    host: &HostId,
    time: Option<Duration>,
    insists: bool,
) -> Result<(), String> {
    let socket = sockets.first().ok_or_else(|| not_heard(String::new()))?;
    let asked = Client::connect(socket).and_then(|c| c.drill_run(host, time, insists));
    asked.map(drop).map_err(|e| e.to_string())
}

/// Says that the host is being shut down, and waits until its agent lets it go.
pub(super) fn leave(sockets: &Sockets) -> Result<(), String> {
    until_ready(sockets, |c| c.leave().map(|leaving| leaving.ready))
}

/// Says that the agent is about to be restarted, and waits until it may be.
pub(super) fn prepare_restart(sockets: &Sockets) -> Result<(), String> {
    until_ready(sockets, |c| c.prepare_restart().map(|r| r.ready))
}

fn until_ready(
    sockets: &Sockets,
    ask: impl Fn(&Client) -> Result<bool, ClientError>,
) -> Result<(), String> {
    let socket = sockets.first().ok_or_else(|| not_heard(String::new()))?;
    let deadline = std::time::Instant::now() + READY_WITHIN;
    loop {
        match Client::connect(socket).and_then(|c| ask(&c)) {
            Ok(true) => return Ok(()),
            Ok(false) if std::time::Instant::now() < deadline => {
                std::thread::park_timeout(LOOK_AGAIN);
            }
            Ok(false) => return Err("it is still not ready after two minutes".into()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn not_heard(said: String) -> String {
    if said.is_empty() {
        "the command was not heard: the agent does not answer".into()
    } else {
        said
    }
}
