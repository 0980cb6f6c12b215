//! What answers the agents: a datastore, a guard and a hypervisor of a few lines, mail, and the clock's tick.

use super::{
    Bounds, Disk, Guest, HANDOVER, Kept, LIVES, Op, Part, Post, TAKEOVER, THAW, VOUCHED, World,
};
use super::{datastore, id, ticks, vm};
use crate::event::EventKind;
use crate::guard::{SlotState, Word};
use crate::id::{BootId, Generation, HostId, InstanceId, OpId};
use crate::io::{
    ExitCause, FoundState, FoundVm, GuardOutcome, GuardRequest, HypervisorOutcome,
    HypervisorRequest, Input, Output, StorageOutcome, StorageRequest, StorageValue,
};
use crate::wire::{Message, RecordKey};
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

impl World {
    pub(super) fn carry_out(&mut self, bounds: &Bounds, n: usize) {
        while let Some(output) = Arc::make_mut(&mut self.nodes[n]).agent.poll_output() {
            match output {
                Output::Storage(id, _, request) => self.storage(bounds, n, id, request),
                Output::Guard(op, request) => {
                    let outcome = self.guard(n, request);
                    self.input(n, Input::Guard(op, outcome));
                }
                Output::Hypervisor(op, request) => self.hypervisor(n, op, &request),
                Output::Datagram { to, message } if bounds.mail > 0 => self.post(n, &to, &message),
                Output::Persist(op, durable) => {
                    Arc::make_mut(&mut self.nodes[n]).durable = durable;
                    self.input(n, Input::Persisted(op, true));
                }
                Output::Fence(op, host, request) => self.ask_device(n, op, &host, request),
                Output::Event(event) => self.note(n, &event.kind),
                _ => {}
            }
        }
        // Nothing waits for the local disk here.
        let node = Arc::make_mut(&mut self.nodes[n]);
        node.durable = node.agent.durable.clone();
    }

    fn note(&mut self, n: usize, event: &EventKind) {
        match event {
            EventKind::VmStarted { .. } if n > 0 => drop(self.reached.insert(TAKEOVER)),
            EventKind::VmThawed { .. } if !self.reached.contains(TAKEOVER) => {
                self.reached.insert(THAW);
            }
            EventKind::HostVouched { .. } => drop(self.reached.insert(VOUCHED)),
            EventKind::DatastoreOwned { .. } if n > 1 => drop(self.reached.insert(HANDOVER)),
            _ => {}
        }
    }

    fn storage(&mut self, bounds: &Bounds, n: usize, id: OpId, request: StorageRequest) {
        let own = |key: &RecordKey| *key == RecordKey::Heartbeat(self::id(n));
        let later = match &request {
            StorageRequest::Renew(..) => bounds.late_beats && n == 0,
            StorageRequest::Link(..) => bounds.late_links && (n == 0 || !bounds.only_its_own),
            StorageRequest::Read(key @ RecordKey::Heartbeat(_)) => bounds.late_reads && !own(key),
            _ => false,
        };
        if later {
            self.ops.push(Op {
                host: n,
                id,
                request,
                landed: None,
                given_up: false,
            });
            return;
        }
        let value = self.perform(n, &request);
        self.input(n, Input::Storage(id, StorageOutcome::Ok(value)));
    }

    pub(super) fn perform(&mut self, n: usize, request: &StorageRequest) -> StorageValue {
        let there = |disk: &Disk, key: &RecordKey| match disk.get(key) {
            Some(kept) => StorageValue::Bytes(kept.bytes().to_vec()),
            None => StorageValue::NotFound,
        };
        let keys = |disk: &Disk, wanted: fn(&RecordKey) -> bool| {
            StorageValue::Keys(disk.keys().filter(|k| wanted(k)).cloned().collect())
        };
        match request {
            StorageRequest::Read(key @ RecordKey::Heartbeat(_)) => {
                there(self.cached[n].as_deref().unwrap_or(&self.disk), key)
            }
            StorageRequest::Read(key) => there(&self.disk, key),
            StorageRequest::Renew(key, bytes) | StorageRequest::Put(key, bytes) => {
                self.disk
                    .insert(key.clone(), Arc::new(Kept::new(bytes.clone())));
                StorageValue::Done
            }
            StorageRequest::Link(key, _) if self.disk.contains_key(key) => StorageValue::Exists,
            StorageRequest::Link(key, bytes) => {
                self.disk
                    .insert(key.clone(), Arc::new(Kept::new(bytes.clone())));
                StorageValue::Done
            }
            StorageRequest::Remove(key) => match self.disk.remove(key) {
                Some(_) => StorageValue::Done,
                None => StorageValue::NotFound,
            },
            StorageRequest::ListVmLock(_) | StorageRequest::ListAllVmLocks => {
                keys(&self.disk, |k| matches!(k, RecordKey::VmLock(..)))
            }
            StorageRequest::ListOwnerLock => {
                keys(&self.disk, |k| matches!(k, RecordKey::OwnerLock(_)))
            }
            StorageRequest::ListProtected => {
                keys(&self.disk, |k| matches!(k, RecordKey::Protected(_)))
            }
            StorageRequest::ListConfig => StorageValue::Keys(Vec::new()),
            StorageRequest::ProbeLock(_) => StorageValue::Held(true),
            StorageRequest::PutPages(..) => StorageValue::Done,
        }
    }

    /// The guard's memory: the real word, written at once.
    fn guard(&mut self, n: usize, request: GuardRequest) -> GuardOutcome {
        let now = self.clock(n);
        let node = Arc::make_mut(&mut self.nodes[n]);
        let next = match &request {
            GuardRequest::Extend(all) => {
                let extended = all.first().and_then(|e| {
                    let next = node.word.extended(now, e.generation, e.deadline);
                    next.ok_or(e.vm.clone())
                        .map_or_else(|vm| Some(Err(vm)), |w| Some(Ok(w)))
                });
                return match extended {
                    Some(Ok(word)) => {
                        node.word = word;
                        GuardOutcome::Done
                    }
                    Some(Err(vm)) => GuardOutcome::Refused(vec![vm]),
                    None => GuardOutcome::Done,
                };
            }
            request => node.word.after(now, request),
        };
        let Some(word) = next else {
            return GuardOutcome::Lapsed;
        };
        node.word = word;
        match request {
            GuardRequest::Thaw { to, .. } if node.guest != Guest::None => self.live(n, to),
            GuardRequest::Lapse { .. } => node.guest = Guest::Frozen,
            _ => {}
        }
        GuardOutcome::Done
    }

    /// From now on a host's guest runs under that generation.
    fn live(&mut self, n: usize, generation: Generation) {
        Arc::make_mut(&mut self.nodes[n]).guest = Guest::Runs(generation);
        if !self.lived.insert(generation) {
            self.broken = self.broken.or(Some(LIVES));
        }
    }

    fn hypervisor(&mut self, n: usize, op: OpId, request: &HypervisorRequest) {
        let node = Arc::make_mut(&mut self.nodes[n]);
        match request {
            HypervisorRequest::Prepare { .. } => node.guest = Guest::Prepared,
            HypervisorRequest::Resume { .. } if node.guest == Guest::Prepared => {
                if node.word.state() == SlotState::Running {
                    let generation = node.word.generation();
                    self.live(n, generation);
                } else {
                    node.guest = Guest::Frozen;
                }
            }
            HypervisorRequest::Kill { vm } => {
                node.guest = Guest::None;
                let vm = vm.clone();
                self.input(n, Input::Hypervisor(op, HypervisorOutcome::Done));
                let cause = ExitCause::Killed;
                self.input(n, Input::VmExited { vm, cause });
                return;
            }
            _ => {}
        }
        self.input(n, Input::Hypervisor(op, HypervisorOutcome::Done));
    }

    fn post(&mut self, from: usize, to: &HostId, message: &Message) {
        let Some(to) = (0..self.nodes.len()).find(|n| id(*n) == *to) else {
            return;
        };
        self.mail.insert(match message {
            Message::AskVouch { nonce, .. } => (to, from, self.now, Post::Ask(nonce.0)),
            Message::Vouch {
                nonce, generation, ..
            } => (to, from, self.now, Post::Answer(nonce.0, generation.0)),
            _ => return,
        });
    }

    /// Time goes on by one tick: what has lapsed for longer than the guard may take is frozen.
    pub(super) fn tick(&mut self, bounds: &Bounds) {
        self.now += 1;
        let now = self.now;
        self.mail.retain(|(_, _, sent, _)| sent + bounds.mail > now);
        self.renewed.clear();
        self.observed.clear();
        self.looked.clear();
        self.acted.clear();
        self.numbered.clear();
        for n in 0..self.nodes.len() {
            self.guard_looks(bounds, n);
            self.drive(bounds, n, 1, |_| {});
            if bounds.parts[n] == Part::Steady {
                self.drive(bounds, n, 2, |a| a.renew(&datastore(), ticks(1)));
            }
        }
    }

    fn guard_looks(&mut self, bounds: &Bounds, n: usize) {
        let word = self.nodes[n].word;
        let late = word.deadline() + ticks(bounds.guard) < self.clock(n);
        if bounds.no_freeze || self.nodes[n].off || word.state() != SlotState::Running || !late {
            return;
        }
        let node = Arc::make_mut(&mut self.nodes[n]);
        let generation = word.generation();
        node.word = Word::new(SlotState::Lapsed, generation, word.deadline());
        if matches!(node.guest, Guest::Runs(_)) {
            node.guest = Guest::Frozen;
        }
        self.drive(bounds, n, 8, |a| {
            let vm = vm();
            a.take(Input::VmLapsed { vm, generation });
        });
    }

    pub(super) fn acknowledge(&mut self, bounds: &Bounds, op: Op, outcome: StorageOutcome) {
        let kind = match &op.request {
            StorageRequest::Renew(..) => 10,
            StorageRequest::Link(..) => 11,
            _ => 12,
        };
        let input = Input::Storage(op.id, outcome);
        self.drive(bounds, op.host, kind, |a| a.take(input));
    }

    pub(super) fn deliver(
        &mut self,
        bounds: &Bounds,
        (to, from, _, post): (usize, usize, u64, Post),
    ) {
        let datastore = datastore();
        let message = match post {
            Post::Ask(nonce) => Message::AskVouch {
                datastore,
                nonce: crate::id::Nonce(nonce),
            },
            Post::Answer(nonce, generation) => Message::Vouch {
                datastore,
                nonce: crate::id::Nonce(nonce),
                generation: Generation(generation),
            },
        };
        let from = id(from);
        self.drive(bounds, to, 13, |a| a.on_message(&from, message));
    }

    /// The agent is gone; what it had under way may land. The next one finds what runs.
    pub(super) fn start_agent(&mut self, bounds: &Bounds, n: usize, boots: bool) {
        for op in self.ops.iter_mut().filter(|op| op.host == n) {
            op.given_up = true;
        }
        let now = self.clock(n);
        let node = Arc::make_mut(&mut self.nodes[n]);
        let (boot, instance) = (node.agent.me.boot, node.agent.me.instance);
        let boot = BootId(boot.0 + u64::from(boots));
        let found = match (node.word.state(), node.guest) {
            (_, Guest::None) => None,
            (SlotState::Running, Guest::Runs(_)) => {
                Some(FoundState::Running(node.word.generation()))
            }
            (SlotState::Free, _) => Some(FoundState::Unregistered),
            _ => Some(FoundState::Lapsed(node.word.generation())),
        };
        let found = found.map(|state| FoundVm { vm: vm(), state });
        let who = (n, boot, InstanceId(instance.0 + 1));
        let found = found.into_iter().collect();
        node.agent = bounds.agent(who, node.durable.clone(), found, now);
        node.off = false;
        self.drive(bounds, n, 14, |_| {});
    }
}
