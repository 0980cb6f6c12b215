//! Fence devices through the interface of `fence-agents`: a program for each kind of device, its options and its action
//! on standard input, its answer by exit status and text.
//!
//! What a program says of itself is not trusted further than it goes. "Off" is taken for off only when both the exit
//! status and the text say so: agents end with the same status, 2, when they do not understand their arguments.
//!
//! Never here: a decision whom to fence, or what an answer proves.

mod run;

use crate::config::FenceDevice;
use mainstay_core::id::{HostId, OpId};
use mainstay_core::io::{FenceOutcome, FenceRequest, Input};
use run::{Ran, run};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much of what an agent said is shown.
const SHOWN_CHARS: usize = 300;

/// An answer, and how long it took.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answered {
    /// The answer.
    pub outcome: FenceOutcome,
    /// From the start of the first program to the end of the last.
    pub took: Duration,
}

impl FenceDevice {
    /// Asks the device, or tells it to switch. Blocks for at most about `timeout`; a program that runs for longer is
    /// killed.
    #[must_use]
    pub fn ask(&self, request: FenceRequest, timeout: Duration) -> Answered {
        let began = Instant::now();
        let deadline = began + timeout;
        let outcome = match request {
            FenceRequest::Status => self.status(deadline),
            FenceRequest::Off => self.switch("off", deadline),
            FenceRequest::On => self.switch("on", deadline),
        };
        Answered {
            outcome,
            took: began.elapsed(),
        }
    }

    /// Lets the agent look whether it can reach the device at all (its action `monitor`).
    ///
    /// # Errors
    /// Why not, in words.
    pub fn monitor(&self, timeout: Duration) -> Result<Duration, String> {
        let began = Instant::now();
        match self.act("monitor", began + timeout) {
            Ok(ran) if ran.code == Some(0) => Ok(began.elapsed()),
            Ok(ran) => Err(self.failed("monitor", &ran)),
            Err(why) => Err(why),
        }
    }

    fn status(&self, deadline: Instant) -> FenceOutcome {
        if let Some(name) = &self.name {
            match self.named_by_device(deadline) {
                Ok(said) if said == *name => {}
                Ok(said) => return FenceOutcome::Stranger(self.without_credentials(&said)),
                Err(why) => {
                    let why = format!("its fence device was asked who it switches: {why}");
                    return FenceOutcome::NotDone(why);
                }
            }
        }
        let ran = match self.act("status", deadline) {
            Ok(ran) => ran,
            Err(why) => return FenceOutcome::NotDone(why),
        };
        let says = |word: &str| {
            let line = format!("status: {word}");
            ran.out
                .lines()
                .any(|l| l.trim().eq_ignore_ascii_case(&line))
        };
        match ran.code {
            Some(0) if !says("off") => FenceOutcome::PowerOn,
            Some(2) if says("off") && !says("on") => FenceOutcome::PowerOff,
            _ => FenceOutcome::Unknown(self.failed("status", &ran)),
        }
    }

    fn switch(&self, action: &str, deadline: Instant) -> FenceOutcome {
        match self.act(action, deadline) {
            Ok(ran) if ran.code == Some(0) => FenceOutcome::Done,
            Ok(ran) => FenceOutcome::Unknown(self.failed(action, &ran)),
            Err(why) => FenceOutcome::NotDone(why),
        }
    }

    /// What the device calls its outlet, from the list of all: `outlet,name` in each line.
    fn named_by_device(&self, deadline: Instant) -> Result<String, String> {
        let ran = self.act("list", deadline)?;
        if ran.code != Some(0) {
            return Err(self.failed("list", &ran));
        }
        let lines: Vec<(&str, &str)> = ran
            .out
            .lines()
            .filter_map(|line| line.split_once(','))
            .map(|(outlet, rest)| {
                let name = rest.split(',').next().unwrap_or(rest);
                (outlet.trim(), name.trim())
            })
            .collect();
        let found = match (self.outlet(), lines.as_slice()) {
            (Some(outlet), all) => all.iter().find(|(o, name)| *o == outlet || *name == outlet),
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        let name = found.map(|(outlet, name)| if name.is_empty() { outlet } else { name });
        name.map(|n| (*n).to_owned()).ok_or_else(|| {
            String::from(
                "it does not name the outlet (action list); correct the plug, or leave `name` out of its entry",
            )
        })
    }

    fn act(&self, action: &str, deadline: Instant) -> Result<Ran, String> {
        let mut input = format!("action={action}\n");
        for (key, value) in &self.options {
            input.push_str(&format!("{key}={value}\n"));
        }
        run(&self.program, &input, deadline)
            .map_err(|error| format!("{} cannot be run: {error}", self.program.display()))
    }

    /// What came of a program that did not do what it was told, for people.
    fn failed(&self, action: &str, ran: &Ran) -> String {
        let program = self.program.file_name().unwrap_or_default();
        let program = program.to_string_lossy();
        let end = match ran.code {
            _ if ran.timed_out => {
                return format!(
                    "{program} did not end within the time that it has (action {action}), and was killed"
                );
            }
            Some(code) => format!("ended with status {code}"),
            None => String::from("was killed"),
        };
        let said = [ran.err.as_str(), ran.out.as_str()]
            .into_iter()
            .find_map(|text| text.lines().rev().map(str::trim).find(|l| !l.is_empty()))
            .unwrap_or("and said nothing");
        let said: String = self
            .without_credentials(said)
            .chars()
            .take(SHOWN_CHARS)
            .collect();
        format!("{program} {end} (action {action}): {said}")
    }
}

/// The devices that an agent asks, each on a thread of its own and one thing at a time.
#[derive(Default)]
pub(crate) struct Fences {
    devices: BTreeMap<HostId, Arc<(FenceDevice, Mutex<()>)>>,
}

impl Fences {
    pub(crate) fn new(devices: BTreeMap<HostId, FenceDevice>) -> Self {
        let shared = |device| Arc::new((device, Mutex::new(())));
        let devices = devices.into_iter().map(|(host, d)| (host, shared(d)));
        Self {
            devices: devices.collect(),
        }
    }

    /// The hosts that they switch.
    pub(crate) fn hosts(&self) -> BTreeSet<HostId> {
        self.devices.keys().cloned().collect()
    }

    /// Asks a device and gives its answer to `done`, from another thread; an answer that is there at once comes back.
    pub(crate) fn perform(
        &self,
        op: OpId,
        host: &HostId,
        request: FenceRequest,
        timeout: Duration,
        done: impl FnOnce(Input) + Send + 'static,
    ) -> Option<Input> {
        let not_done = |why| Some(Input::Fenced(op, FenceOutcome::NotDone(why)));
        let Some(device) = self.devices.get(host).map(Arc::clone) else {
            return not_done(format!("this host has no fence device of {host}"));
        };
        let about = host.clone();
        let started = std::thread::Builder::new()
            .name("fence".into())
            .spawn(move || {
                let (device, turn) = &*device;
                let answered = {
                    let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                    device.ask(request, timeout)
                };
                tracing::info!(host = %about, ?request, outcome = ?answered.outcome, took_ms = answered.took.as_millis(), "fence device");
                done(Input::Fenced(op, answered.outcome));
            });
        match started {
            Ok(_) => None,
            Err(error) => not_done(format!("no thread could be started: {error}")),
        }
    }
}

#[cfg(test)]
mod tests;
