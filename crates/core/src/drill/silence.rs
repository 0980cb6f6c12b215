//! The silence of a host in a drill: it says nothing, hears nothing, writes nothing and decides nothing.
//!
//! To every other agent, to the guard and to the VMs it is an agent that hangs. What it asked for before may
//! still be answered meanwhile; the answers are kept and looked at afterwards, as an agent that was stopped
//! finds them. Only its end is heard: an order of another agent, a command here, or its own time.

use super::{DrillMessage, LONGEST, Mark, Marked, Noted};
use crate::agent::{Agent, CommandError};
use crate::event::EventKind;
use crate::id::HostId;
use crate::io::{Channel, Input};
use crate::time::{Duration, Instant, millis};
use crate::wire::Message;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

/// This host's silence.
#[derive(Clone, Debug)]
pub(crate) struct Silence {
    drill: u64,
    since: Instant,
    until: Instant,
    /// Answers to what was asked before, and what the guard and the hypervisor say: at most one for each
    /// operation that was under way, and a few for each VM.
    held: VecDeque<Input>,
    /// Messages that were not heard.
    unheard: usize,
}

impl Silence {
    /// When the agent comes back by itself.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }
}

impl Agent {
    /// This host is silent.
    pub(crate) fn in_drill(&self) -> bool {
        self.drills.silence.is_some()
    }

    /// Refuses what a silent host cannot do.
    pub(crate) fn check_not_silent(&self) -> Result<(), CommandError> {
        match &self.drills.silence {
            Some(_) => Err(CommandError::Silent(self.me.host.clone())),
            None => Ok(()),
        }
    }

    /// Says so to all, and falls silent. What was to be sent before goes out before.
    pub(super) fn fall_silent(&mut self, time: Duration, why: String) {
        let (now, host) = (self.now, self.me.host.clone());
        let time = time.min(LONGEST);
        let drill = self.number();
        self.emit(EventKind::DrillStarted { host: host.clone() }, why);
        self.tell_all(&DrillMessage::Begun {
            drill,
            time_ms: millis(time),
        });
        self.note_begun(&host, drill, time);
        self.drills.silence = Some(Silence {
            drill,
            since: now,
            until: now + time,
            held: VecDeque::new(),
            unheard: 0,
        });
    }

    /// What happens while this host is silent.
    pub(crate) fn hear_nothing(&mut self, now: Instant, input: Input) {
        let Some(silence) = &mut self.drills.silence else {
            return;
        };
        let over = now >= silence.until;
        let mut end = over.then(|| String::from("its time is up"));
        match input {
            Input::Timeout => {}
            Input::Message {
                from,
                message: Message::Drill(drill),
            } if *drill == DrillMessage::End && self.peers.contains_key(&from) => {
                end = Some(format!("it was called off at {from}"));
            }
            Input::Message { .. } | Input::Stream { .. } | Input::StreamRenewed { .. } => {
                silence.unheard += 1;
            }
            // Said once, before the first message that shows it: to be known afterwards.
            Input::Understands { host, version } => self.on_understands(&host, version),
            other => {
                if let Input::VmLapsed { vm, .. } = &other {
                    let mark = Mark {
                        at_ms: millis(now.since(silence.since)),
                        what: Marked::Frozen { vm: vm.clone() },
                    };
                    let host = self.me.host.clone();
                    if let Some(noted) = self.drills.noted.get_mut(&host) {
                        noted.own.push(mark);
                    }
                }
                silence.held.push_back(other);
            }
        }
        if let Some(why) = end {
            self.come_back(now, why);
        }
    }

    /// Goes on as an agent that was stopped: nobody's silence counts, and what was answered meanwhile is
    /// looked at with the time that it is now.
    pub(crate) fn come_back(&mut self, now: Instant, why: String) {
        let Some(silence) = self.drills.silence.take() else {
            return;
        };
        self.advance(now);
        let host = self.me.host.clone();
        let lasted = now.since(silence.since).as_millis();
        let kind = EventKind::DrillEnded { host: host.clone() };
        self.emit(kind, format!("{why}, after {lasted} ms of silence"));
        self.ignore_all("message during a drill", silence.unheard);
        let drill = silence.drill;
        self.note_ended(&host, drill, why.clone());
        self.tell_all(&DrillMessage::Ended { drill, why });
        for input in silence.held {
            self.take(input);
            self.run();
        }
    }

    fn tell_all(&mut self, what: &DrillMessage) {
        let others: Vec<HostId> = self.peers.keys().cloned().collect();
        for to in others {
            self.say(&to, Channel::Datagram, what.clone());
        }
    }

    /// A host falls silent on purpose.
    pub(super) fn note_begun(&mut self, host: &HostId, drill: u64, time: Duration) {
        if self.drills.noted.get(host).is_some_and(|n| n.drill == drill) {
            // It was overtaken by the word that the drill is over.
            return;
        }
        let noted = Noted {
            drill,
            since: self.now,
            time: time.min(LONGEST),
            ended: None,
            own: Vec::new(),
            told: BTreeMap::new(),
            asked: None,
        };
        self.drills.noted.insert(host.clone(), noted);
    }

    /// It is back.
    pub(super) fn note_ended(&mut self, host: &HostId, drill: u64, why: String) {
        let now = self.now;
        let noted = self.drills.noted.get_mut(host);
        if let Some(noted) = noted.filter(|n| n.drill == drill) {
            noted.ended.get_or_insert((now, why));
        }
    }

    /// What a drill adds to what is said of a host.
    pub(crate) fn drill_said(&self, host: &HostId, now: Instant) -> Option<String> {
        let noted = self.drills.noted.get(host)?;
        let known = if *host == self.me.host {
            self.in_drill()
        } else {
            self.drills.is_under_way(host, now)
        };
        known.then(|| {
            let left = (noted.since + noted.time).since(now).as_secs();
            format!("a drill: it is silent on purpose, for another {left} s at the longest (`mainstay drill {host} --stop`)")
        })
    }

    /// Calls a drill off: the host comes back as an agent that hung. Where the message is lost the host
    /// comes back by its own time; it may be asked again.
    ///
    /// # Errors
    /// [`CommandError`] when there is no such host.
    pub fn stop_drill(&mut self, now: Instant, host: &HostId) -> Result<(), CommandError> {
        self.check_host(host)?;
        if *host == self.me.host {
            if self.in_drill() {
                self.come_back(now, "it was called off here".to_string());
                self.run();
            }
            return Ok(());
        }
        self.check_not_silent()?;
        self.advance(now);
        self.say(host, Channel::Datagram, DrillMessage::End);
        self.run();
        Ok(())
    }
}
