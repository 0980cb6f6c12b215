//! What happened in a drill: each host tells it from its own journal, in time since the silence began.

use super::{DrillMessage, Heard, Mark, Marked, Noted, Progress, Told};
use crate::agent::{Agent, CommandError};
use crate::event::EventKind;
use crate::id::HostId;
use crate::io::Channel;
use crate::time::{Instant, millis};
use alloc::string::String;
use alloc::vec::Vec;

/// Marks in one message: with the longest reasons they fit into a frame many times over.
const AT_ONCE: usize = 512;
/// Longest reason that is passed on, in characters.
const REASON: usize = 240;

fn short(text: &str) -> String {
    text.chars().take(REASON).collect()
}

/// What an event says about the drill of a host.
fn mark_of(kind: &EventKind, drilled: &HostId) -> Option<Marked> {
    Some(match kind {
        EventKind::HostState { host, to, .. } if host == drilled => Marked::Verdict { state: *to },
        EventKind::PrimaryElected { host } => Marked::Elected { host: host.clone() },
        EventKind::RestartRequested { vm, host, .. } => Marked::Asked {
            vm: vm.clone(),
            host: host.clone(),
        },
        EventKind::RestartWaiting { vm, reason, .. } => Marked::Waits {
            vm: vm.clone(),
            why: short(reason),
        },
        EventKind::LockBroken { vm, host, from, .. } if from == drilled => Marked::Broken {
            vm: vm.clone(),
            host: host.clone(),
        },
        EventKind::VmStarted { vm, host, .. } => Marked::Started {
            vm: vm.clone(),
            host: host.clone(),
        },
        EventKind::RestartFailed { vm, reason, .. }
        | EventKind::RestartAbandoned { vm, reason, .. } => Marked::Failed {
            vm: vm.clone(),
            why: short(reason),
        },
        EventKind::VmThawed { vm, host, .. } => Marked::Thawed {
            vm: vm.clone(),
            host: host.clone(),
        },
        EventKind::VmStopped { vm, host, reason } => Marked::Stopped {
            vm: vm.clone(),
            host: host.clone(),
            reason: *reason,
        },
        _ => return None,
    })
}

impl Agent {
    fn own_marks(&self, host: &HostId, noted: &Noted) -> Vec<Mark> {
        let lately = self.journal.iter().rev();
        let mut marks: Vec<Mark> = lately
            .take_while(|e| e.at >= noted.since)
            .filter_map(|e| {
                Some(Mark {
                    at_ms: millis(e.at.since(noted.since)),
                    what: mark_of(&e.kind, host)?,
                })
            })
            .collect();
        marks.reverse();
        // The guard froze them while nothing was written into the journal.
        let mut all = noted.own.clone();
        all.append(&mut marks);
        all
    }

    pub(super) fn on_marks_wanted(&mut self, from: &HostId, host: HostId, known: u32) {
        let Some(noted) = self.drills.noted.get(&host) else {
            return;
        };
        let all = self.own_marks(&host, noted);
        let skip = usize::try_from(known).unwrap_or(usize::MAX).min(all.len());
        let marks = all.into_iter().skip(skip).take(AT_ONCE).collect();
        let message = DrillMessage::Marks {
            host,
            after: u32::try_from(skip).unwrap_or(u32::MAX),
            marks,
        };
        self.say(from, Channel::Stream, message);
    }

    pub(super) fn on_marks(&mut self, from: &HostId, host: &HostId, after: u32, marks: Vec<Mark>) {
        let now = self.now;
        let Some(noted) = self.drills.noted.get_mut(host) else {
            return;
        };
        let heard = noted
            .told
            .entry(from.clone())
            .or_insert_with(Heard::default);
        heard.last = Some(now);
        // An answer to a question that was asked twice says the same again.
        if usize::try_from(after) == Ok(heard.marks.len()) {
            heard.marks.extend(marks);
        }
    }

    /// How far the last drill of a host is, and what happened in it. Asks the other hosts, once in each
    /// heartbeat interval, so that the next call knows more.
    ///
    /// # Errors
    /// [`CommandError`] when there is no such host, or no drill of it was heard of here.
    pub fn drill_progress(
        &mut self,
        now: Instant,
        host: &HostId,
    ) -> Result<Progress, CommandError> {
        self.check_host(host)?;
        if !self.in_drill() {
            self.advance(now);
            self.ask_for_marks(host);
            self.run();
        }
        let unheard = || {
            CommandError::Drill(alloc::format!(
                "no drill of {host} was heard of at {}; begin one with `mainstay drill {host} --run`",
                self.me.host
            ))
        };
        let noted = self.drills.noted.get(host).ok_or_else(unheard)?;
        let silent = self.in_drill();
        let out_of_time = now >= noted.since + noted.time + self.timing().dead;
        let ended = match &noted.ended {
            Some((_, why)) => Some(why.clone()),
            // It may have been started anew, or its word was lost.
            None => (out_of_time && !silent).then(|| String::from("its time is up")),
        };
        let until = noted.ended.as_ref().map_or(now, |(at, _)| *at);
        let settled = 4 * self.timing().network_heartbeat;
        let asked_late = |h: &Heard| h.last.is_some_and(|at| at > until + settled);
        let own = Told {
            by: self.me.host.clone(),
            marks: self.own_marks(host, noted),
        };
        let told = noted.told.iter().map(|(by, heard)| Told {
            by: by.clone(),
            marks: heard.marks.clone(),
        });
        let others = !noted.told.is_empty() && noted.told.values().all(asked_late);
        let back = *host == self.me.host || noted.told.contains_key(host);
        Ok(Progress {
            host: host.clone(),
            for_ms: millis(until.since(noted.since)),
            complete: ended.is_some() && others && back,
            ended,
            told: core::iter::once(own).chain(told).collect(),
        })
    }

    fn ask_for_marks(&mut self, host: &HostId) {
        let (now, interval) = (self.now, self.timing().network_heartbeat);
        let others: Vec<HostId> = self.peers.keys().cloned().collect();
        let Some(noted) = self.drills.noted.get_mut(host) else {
            return;
        };
        if noted.asked.is_some_and(|at| now.since(at) < interval) {
            return;
        }
        noted.asked = Some(now);
        let known = |h: &HostId| noted.told.get(h).map_or(0, |heard| heard.marks.len());
        let wanted: Vec<(HostId, usize)> = others
            .into_iter()
            .map(|h| {
                let known = known(&h);
                (h, known)
            })
            .collect();
        for (to, known) in wanted {
            let message = DrillMessage::MarksWanted {
                host: host.clone(),
                known: u32::try_from(known).unwrap_or(u32::MAX),
            };
            self.say(&to, Channel::Datagram, message);
        }
    }
}
