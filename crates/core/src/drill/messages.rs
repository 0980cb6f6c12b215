//! How a question about a drill, or the wish for one, goes from the agent that is asked to the primary and
//! to the host.

use super::{Answer, Asked, DrillMessage, Forecast, LONGEST};
use crate::agent::{Agent, CommandError};
use crate::config::nearest;
use crate::id::HostId;
use crate::io::{Channel, Output};
use crate::time::{Duration, Instant, millis};
use crate::wire::Message;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

impl Agent {
    /// Asks what would happen if a host was lost now. The answer comes as [`Output::Drill`] with the ticket
    /// that is given back.
    ///
    /// # Errors
    /// [`CommandError`] when there is no such host, or nobody to ask.
    pub fn plan_drill(&mut self, now: Instant, host: &HostId) -> Result<u64, CommandError> {
        let ask = |ticket| DrillMessage::Plan {
            ticket,
            host: host.clone(),
        };
        self.ask_drill(now, host, None, ask)
    }

    /// Asks for a drill: the host falls silent for that time, or as long as its forecast says, and comes
    /// back. The answer comes as [`Output::Drill`] with the ticket that is given back. `insists`: also
    /// against what may be insisted on ([`super::Obstacle`]).
    ///
    /// # Errors
    /// [`CommandError`] when there is no such host, or nobody to ask.
    pub fn run_drill(
        &mut self,
        now: Instant,
        host: &HostId,
        time: Option<Duration>,
        insists: bool,
    ) -> Result<u64, CommandError> {
        let ask = |ticket| DrillMessage::Run {
            ticket,
            host: host.clone(),
            time_ms: time.map(millis),
            insists,
        };
        self.ask_drill(now, host, Some(host.clone()), ask)
    }

    fn ask_drill(
        &mut self,
        now: Instant,
        host: &HostId,
        run: Option<HostId>,
        message: impl FnOnce(u64) -> DrillMessage,
    ) -> Result<u64, CommandError> {
        self.check_host(host)?;
        self.check_not_silent()?;
        self.advance(now);
        let ticket = self.number();
        let (own, until) = (self.me.host.clone(), self.now + self.timing().dead);
        let to = match self.role.followed() {
            Some(primary) => primary.clone(),
            None if self.role.is_primary() => own.clone(),
            None => {
                return Err(CommandError::Drill(String::from(
                    "this agent knows no primary at the moment, and only a primary knows what would happen; ask again in a few seconds",
                )));
            }
        };
        let message = message(ticket);
        if to != own && !self.understands_message(&to, &Message::Drill(Box::new(message.clone()))) {
            return Err(CommandError::Drill(format!(
                "the primary {to} has an agent of an older version, which knows no drills, or showed none yet; upgrade it, or ask again in a few seconds"
            )));
        }
        self.drills.asked.push(Asked { ticket, run, until });
        if to == own {
            self.on_drill(&own, message);
        } else {
            self.say(&to, Channel::Stream, message);
        }
        self.run();
        Ok(ticket)
    }

    pub(super) fn check_host(&self, host: &HostId) -> Result<(), CommandError> {
        if self.config.hosts.contains_key(host) {
            return Ok(());
        }
        let near = nearest(host.as_str(), self.config.hosts.keys().map(HostId::as_str));
        let near = near.map_or_else(String::new, |n| format!("; did you mean \"{n}\"?"));
        Err(CommandError::Drill(format!(
            "there is no host \"{host}\" in this cluster{near}"
        )))
    }

    /// Says something of a drill to another host, if that understands it.
    pub(super) fn say(&mut self, to: &HostId, channel: Channel, what: DrillMessage) {
        let message = Message::Drill(Box::new(what));
        if self.understands_message(to, &message) {
            self.send(to, channel, message);
        }
    }

    fn reply(&mut self, to: &HostId, what: DrillMessage) {
        if *to == self.me.host {
            self.on_drill(&to.clone(), what);
        } else {
            self.say(to, Channel::Stream, what);
        }
    }

    /// Another agent, or this one itself, says something of a drill.
    pub(crate) fn on_drill(&mut self, from: &HostId, message: DrillMessage) {
        match message {
            DrillMessage::Plan { ticket, host } => {
                let forecast = self.forecast(&host).map(Box::new);
                self.reply(from, DrillMessage::Forecast { ticket, forecast });
            }
            DrillMessage::Forecast { ticket, forecast } => {
                self.answer_drill(ticket, forecast.map(Answer::Forecast));
            }
            DrillMessage::Run {
                ticket,
                host,
                time_ms,
                insists,
            } => self.on_drill_wanted(from, ticket, &host, time_ms, insists),
            DrillMessage::Refused { ticket, why } => self.answer_drill(ticket, Err(why)),
            DrillMessage::Begin {
                asker,
                ticket,
                time_ms,
            } => self.on_begin(from, &asker, ticket, time_ms),
            DrillMessage::Begun { drill, time_ms } => {
                self.note_begun(from, drill, Duration::from_millis(time_ms));
                self.drill_has_begun(from, time_ms);
            }
            // This host is not silent, or it would not hear it here.
            DrillMessage::End => {}
            DrillMessage::Ended { drill, why } => self.note_ended(from, drill, why),
            DrillMessage::MarksWanted { host, known } => self.on_marks_wanted(from, host, known),
            DrillMessage::Marks { host, after, marks } => self.on_marks(from, &host, after, marks),
        }
    }

    /// The primary lets a host fall silent, or says why not.
    fn on_drill_wanted(
        &mut self,
        from: &HostId,
        ticket: u64,
        host: &HostId,
        time_ms: Option<u64>,
        insists: bool,
    ) {
        let time_ms = match self
            .forecast(host)
            .and_then(|f| allowed(f, time_ms, insists))
        {
            Ok(time_ms) => time_ms,
            Err(why) => return self.reply(from, DrillMessage::Refused { ticket, why }),
        };
        let begin = DrillMessage::Begin {
            asker: from.clone(),
            ticket,
            time_ms,
        };
        self.reply(host, begin);
    }

    /// The primary wants this host to be silent.
    fn on_begin(&mut self, from: &HostId, asker: &HostId, ticket: u64, time_ms: u64) {
        let follows = self.role.followed() == Some(from);
        let own = *from == self.me.host && self.role.is_primary();
        let why = if !(follows || own) {
            format!(
                "{from}, which allowed it, is not the primary of {} any more; ask again",
                self.me.host
            )
        } else if self.leaving.is_some() || self.planned.is_some() {
            format!(
                "{} is being shut down, or its agent restarted; ask again when it is back",
                self.me.host
            )
        } else {
            let (host, vms) = (self.me.host.clone(), self.vms.keys().count());
            self.drill_has_begun(&host, time_ms);
            let why = format!(
                "asked for at {asker}: this host is silent for {time_ms} ms at the longest, as if it was lost, with {vms} VMs"
            );
            self.fall_silent(Duration::from_millis(time_ms), why);
            return;
        };
        self.reply(asker, DrillMessage::Refused { ticket, why });
    }

    /// Whoever asked for a drill of that host here learns that it has begun.
    fn drill_has_begun(&mut self, host: &HostId, time_ms: u64) {
        let asked = self.drills.asked.iter();
        let tickets: Vec<u64> = asked
            .filter(|a| a.run.as_ref() == Some(host))
            .map(|a| a.ticket)
            .collect();
        for ticket in tickets {
            self.answer_drill(ticket, Ok(Answer::Begun { time_ms }));
        }
    }

    fn answer_drill(&mut self, ticket: u64, answer: Result<Answer, String>) {
        let before = self.drills.asked.len();
        self.drills.asked.retain(|a| a.ticket != ticket);
        if self.drills.asked.len() < before {
            self.out.push_back(Output::Drill(ticket, answer));
        }
    }

    /// Gives up questions whose answer does not come.
    pub(crate) fn run_drills(&mut self) {
        let now = self.now;
        let late: Vec<(u64, bool)> = self
            .drills
            .asked
            .iter()
            .filter(|a| now >= a.until)
            .map(|a| (a.ticket, a.run.is_some()))
            .collect();
        for (ticket, run) in late {
            let why = if run {
                "no answer came: whether the drill has begun is not known; look at `mainstay hosts` and `mainstay events`, and call it off with `mainstay drill HOST --stop`"
            } else {
                "the primary does not answer; ask again in a few seconds"
            };
            self.answer_drill(ticket, Err(String::from(why)));
        }
    }
}

/// For how long the drill may last, in milliseconds, or why there is none.
fn allowed(forecast: Forecast, time_ms: Option<u64>, insists: bool) -> Result<u64, String> {
    let in_the_way = forecast
        .obstacles
        .into_iter()
        .find(|o| !(insists && o.may_insist));
    if let Some(obstacle) = in_the_way {
        let how = match obstacle.may_insist {
            true => "; or insist with --force",
            false => "",
        };
        return Err(format!("{}{how}", obstacle.why));
    }
    let (least, most) = forecast.bounds_ms;
    let time_ms = time_ms.unwrap_or(forecast.time_ms);
    if !(least..=most).contains(&time_ms) {
        return Err(format!(
            "a drill of {} lasts between {least} ms (before that nobody acts) and {most} ms, not {time_ms} ms",
            forecast.host
        ));
    }
    Ok(time_ms.min(millis(LONGEST)))
}
