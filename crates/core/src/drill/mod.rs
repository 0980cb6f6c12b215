//! Drills: an admin rehearses the loss of a host.
//!
//! ```text
//!   asked at any agent ──▶ primary: forecast, obstacles ──▶ host: tells all, and falls silent
//!                                                              │ its VMs freeze when their rights lapse,
//!                                                              │ the others judge it and take its locks
//!                          time is up, or told to come back    ▼
//!   what was taken is killed, the rest is thawed ◀── goes on as an agent that hung
//! ```
//! A drill is silence and nothing else (`silence`): it has no way of its own to stop, freeze, thaw or
//! start a VM, so that it cannot do what the loss of an agent could not do. The forecast is made by the code
//! that decides, on a copy of the primary (`forecast`).
//!
//! Never here: a decision about a VM, a lock or a verdict.

mod forecast;
mod marks;
mod messages;
mod silence;
#[cfg(test)]
mod tests;
mod types;

pub(crate) use silence::Silence;
pub use types::{
    Answer, DrillMessage, Forecast, Foreseen, Mark, Marked, Obstacle, Outcome, Progress, Told,
};

use crate::id::HostId;
use crate::time::{Duration, Instant};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

/// The longest drill: a host that is silent for longer helps nobody.
pub(crate) const LONGEST: Duration = Duration::from_secs(3600);

/// What an agent knows of drills.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drills {
    /// This host is silent.
    pub(crate) silence: Option<Silence>,
    /// The last drill of each host.
    noted: BTreeMap<HostId, Noted>,
    /// What was asked of the primary, and has no answer yet.
    asked: Vec<Asked>,
}

/// A drill of some host, as it was heard of.
#[derive(Clone, Debug)]
struct Noted {
    /// Tells it from every other of the host.
    drill: u64,
    since: Instant,
    time: Duration,
    /// When, and why.
    ended: Option<(Instant, String)>,
    /// What this host knows that the journal has not.
    own: Vec<Mark>,
    told: BTreeMap<HostId, Heard>,
    /// When the others were last asked.
    asked: Option<Instant>,
}

/// What one other host told.
#[derive(Clone, Debug, Default)]
struct Heard {
    marks: Vec<Mark>,
    last: Option<Instant>,
}

/// A question that waits for its answer.
#[derive(Clone, Debug)]
struct Asked {
    ticket: u64,
    /// A drill of that host was asked for; none: a forecast.
    run: Option<HostId>,
    until: Instant,
}

impl Drills {
    /// That host is silent on purpose, as far as is known here.
    fn is_under_way(&self, host: &HostId, now: Instant) -> bool {
        let noted = self.noted.get(host);
        noted.is_some_and(|n| n.ended.is_none() && now < n.since + n.time)
    }
}
