//! The silence of a host in a drill: it says nothing, hears nothing, writes nothing and decides nothing.
//!
//! To every other agent, to the guard and to the VMs it is an agent that hangs. What it asked for before may
//! still be answered meanwhile; the answers are kept and looked at afterwards, as an agent that was stopped
//! finds them. Only its end is heard: an order of another agent, a command here, or its own time.
//!
//! One thing it does: it reads the locks of VMs that are frozen on it, and ends the process of one whose lock
//! another host took. An agent that hung does that when it goes on; here it is done at once, because storage
//! that locks images would keep a VM from running elsewhere for as long as its frozen process is there, which
//! the process of a host that is really lost is not. To end a VM that was lost is always safe.
//!
//! Never here: a write, a message, a swap, a thaw, or a start while the host is silent.

use super::{DrillMessage, LONGEST, Mark, Marked, Noted};
use crate::agent::{Agent, CommandError, Pending};
use crate::event::EventKind;
use crate::id::{DatastoreId, Generation, HostId, OpId, VmId};
use crate::io::{Channel, Input};
use crate::lock::LockName;
use crate::tasks::TaskFor;
use crate::time::{Duration, Instant, millis};
use crate::wire::{LockRecord, Message};
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
    /// When the locks of frozen VMs are read again.
    next_look: Instant,
}

impl Silence {
    /// When something is to be done: locks are read, or the agent comes back by itself.
    pub(crate) fn due(&self) -> Instant {
        self.until.min(self.next_look)
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
            next_look: now,
        });
    }

    /// What happens while this host is silent.
    pub(crate) fn hear_nothing(&mut self, now: Instant, input: Input) {
        self.now = self.now.max(now);
        let looks = matches!(&input, Input::Storage(op, _) if self.is_look(*op));
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
            Input::VmLapsed { vm, generation } => self.note_frozen(&vm, generation),
            Input::Storage(op, outcome) if looks => {
                if let Some(Pending::Task(number)) = self.pending.remove(&op) {
                    self.step_task(number, &outcome);
                }
            }
            other => silence.held.push_back(other),
        }
        match end {
            Some(why) => self.come_back(now, why),
            None => self.look_at_locks(),
        }
    }

    /// The guard has frozen a VM.
    fn note_frozen(&mut self, vm: &VmId, generation: Generation) {
        let (now, host) = (self.now, self.me.host.clone());
        self.on_vm_lapsed(vm, generation);
        if let Some(noted) = self.drills.noted.get_mut(&host) {
            noted.own.push(Mark {
                at_ms: millis(now.since(noted.since)),
                what: Marked::Frozen { vm: vm.clone() },
            });
        }
    }

    /// The operation belongs to the reading of a lock that was begun in this silence.
    fn is_look(&self, op: OpId) -> bool {
        let Some(Pending::Task(number)) = self.pending.get(&op) else {
            return false;
        };
        matches!(self.works_for(*number), Some(TaskFor::Drilled(_)))
    }

    /// Reads the locks of the VMs that are frozen here, once in each heartbeat interval.
    fn look_at_locks(&mut self) {
        let (now, interval) = (self.now, self.timing().network_heartbeat);
        match &mut self.drills.silence {
            Some(silence) if now >= silence.next_look => silence.next_look = now + interval,
            _ => return,
        }
        let frozen = self.vms.iter().filter(|(_, v)| v.is_frozen());
        let frozen: Vec<(VmId, DatastoreId)> = frozen
            .map(|(vm, local)| (vm.clone(), local.spec.datastore.clone()))
            .collect();
        for (vm, datastore) in frozen {
            let work_for = TaskFor::Drilled(vm.clone());
            // Storage that hangs is not asked again; one that could not be read is.
            if !self.has_task(&work_for) || self.tasks.waits(&work_for) {
                self.drop_tasks(&work_for);
                self.read_lock(&datastore, LockName::Vm(vm), work_for);
            }
        }
    }

    /// The lock of a VM that is frozen here was read.
    pub(crate) fn on_drilled_head(&mut self, vm: &VmId, record: Option<&LockRecord>) {
        if !self.in_drill() {
            return;
        }
        let own = self.holder();
        let taken = record.is_some_and(|r| r.holder.as_ref() != Some(&own));
        let frozen = self.vms.get(vm).filter(|v| v.is_frozen());
        if let Some(generation) = frozen
            .map(crate::vms::LocalVm::generation)
            .filter(|_| taken)
        {
            self.lock_lost(vm, generation);
        }
    }

    /// Goes on as an agent that was stopped: nobody's silence counts, and what was answered meanwhile is
    /// looked at with the time that it is now.
    pub(crate) fn come_back(&mut self, now: Instant, why: String) {
        let Some(silence) = self.drills.silence.take() else {
            return;
        };
        self.advance(now);
        self.listen_anew();
        for vm in self.vms.keys().cloned().collect::<Vec<VmId>>() {
            self.drop_tasks(&TaskFor::Drilled(vm));
        }
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
        if self
            .drills
            .noted
            .get(host)
            .is_some_and(|n| n.drill == drill)
        {
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
