//! Guests: processes with an image open, a virtual processor that can be frozen, and writes on their
//! way to the disk that no freeze recalls.

use super::component::Loss;
use super::disk::Write;
use super::{Happening, World};
use crate::clock::{MS, Nanos};
use crate::expect::VmFacts;
use crate::invariants::{Fact, KillCause, Runner};
use crate::scenario::Fault;
use mainstay_core::config::{Change, FenceClass};
use mainstay_core::id::{Generation, OpId, VmId};
use mainstay_core::io::{ExitCause, HypervisorOutcome, HypervisorRequest, Input};
use mainstay_core::time::Instant;
use std::collections::{BTreeMap, BTreeSet};

/// Time between two writes of a guest.
const TICK: Nanos = 500 * MS;
/// Guests that write at that pace. More of them write more seldom each, so that the writes of a big
/// cluster cost what those of a small one do; each VM's are still looked at.
const BUSY_GUESTS: usize = 100;

/// A VM as the world knows it.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) id: VmId,
    pub(super) disk: usize,
    pub(super) start_time: Nanos,
    pub(super) shutdown_time: Option<Nanos>,
    pub(super) start_fails: u64,
    /// Hosts on which its disk fails as gone, or did.
    pub(super) disk_fails: BTreeMap<usize, Loss>,
    /// Somebody asked for its deletion, which need not have come about.
    pub(super) deletion_asked: bool,
    /// Its user switched it off and has not switched it on since.
    pub(super) off_wished: bool,
    /// Hosts whose agents took a power-on of which nothing has come yet.
    pub(super) on_asked: BTreeSet<usize>,
    /// Hosts whose agents took a power-off, and no power-on since.
    pub(super) off_asked: BTreeSet<usize>,
    pub(super) on: bool,
    pub(super) memory_mb: u64,
    pub(super) cpu_mhz: u64,
    /// Where a start was last ordered by a primary.
    pub(super) ordered_to: Option<usize>,
    /// The mandatory rule that this order broke, with VMs of which that primary knew.
    pub(super) ordered_against: Option<String>,
    pub(super) home: Option<usize>,
    /// What its user and its guest want, as the world saw it.
    pub(super) wanted: Wanted,
    /// It has never run, or its user or its guest has switched it off since it last did.
    pub(super) off_cause: bool,
    /// Hosts at which its user has switched it off since it last started there.
    pub(super) off_by: BTreeSet<usize>,
    pub(super) protected: bool,
    /// It was called protected since it was last wanted off.
    pub(super) promised: bool,
    /// The primary that last gave it up.
    pub(super) abandoned: Option<usize>,
    /// How its last process ended, for each host.
    pub(super) last_exit: BTreeMap<usize, ExitCause>,
    /// The newest instance that opened the image: older ones are fenced without image locks.
    pub(super) newest_open: Option<usize>,
    pub(super) accepted: bool,
}

/// Whether a VM is wanted to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    /// Not yet, or not any more: its user or its guest switched it off.
    Off,
    /// It has run since then.
    On,
    /// Its guest has shut down after it was asked to, of which the agent may not have known any more.
    AsOnDisk,
}

/// How far a process has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Phase {
    Opening,
    Preparing,
    Prepared,
    Started,
    /// Killed or ended; a thread of it may still be in the kernel.
    Dying,
    Dead,
}

/// A VM's process on a host.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) vm: usize,
    pub(super) host: usize,
    pub(super) generation: Generation,
    pub(super) phase: Phase,
    /// It began to execute then.
    pub(super) runs_since: Nanos,
    pub(super) frozen: bool,
    /// Since then, on its host's clock.
    pub(super) frozen_at: Option<Instant>,
    /// The generation whose right had lapsed when it was frozen.
    pub(super) lapsed: Option<Generation>,
    /// Its agent has given the generation up, to go on under another.
    pub(super) given_up: bool,
    pub(super) opened: bool,
    /// The generation under which it last began to execute.
    ran_under: Option<Generation>,
    op: Option<(OpId, u64)>,
    writing: bool,
    /// It is gone when its write is over, for that cause.
    pub(super) dying: Option<ExitCause>,
    pub(super) shutting_down: bool,
    /// Its operating system stands still; the process lives, and nothing tells of it.
    hung: bool,
    /// The hypervisor paused it because a write failed.
    pub(super) paused: bool,
    /// Its agent asked it to, before it did so by itself.
    asked_down: bool,
    /// Its agent has noted that it is about to let it run.
    pub(super) resumed: bool,
    /// The request itself dies with the agent if that dies first.
    unsent: bool,
    /// How it ended, until an agent has been told: the driver's record keeps it for the next one.
    pub(super) untold: Option<ExitCause>,
    life: u64,
}

impl Instance {
    pub(super) fn exists(&self) -> bool {
        self.phase != Phase::Dead
    }

    pub(super) fn executes(&self) -> bool {
        self.phase == Phase::Started && !self.frozen && !self.paused
    }

    /// An instruction of it was executed, at whatever time.
    pub(super) fn has_executed(&self) -> bool {
        self.ran_under.is_some()
    }

    pub(super) fn mark(&self) -> &'static str {
        match (self.phase, self.frozen) {
            (Phase::Dying, _) => "(dying)",
            (Phase::Started, false) => "",
            (_, true) => "(frozen)",
            _ => "(starting)",
        }
    }
}

impl World<'_> {
    /// Time between two writes of each guest.
    fn tick(&self) -> Nanos {
        TICK * (self.vms.len().div_ceil(BUSY_GUESTS).max(1) as u64)
    }

    /// Processes of a VM on a host that were not killed.
    pub(super) fn instances_on(&self, host: usize, vm: usize) -> Vec<usize> {
        let fits = |i: &Instance| i.host == host && i.phase != Phase::Dying;
        self.instances
            .living(vm)
            .filter(|(_, i)| fits(i))
            .map(|(index, _)| index)
            .collect()
    }

    pub(super) fn hypervisor(&mut self, host: usize, op: OpId, request: HypervisorRequest) {
        let id = match &request {
            HypervisorRequest::Prepare { spec, .. } => &spec.id,
            HypervisorRequest::Resume { vm }
            | HypervisorRequest::Shutdown { vm }
            | HypervisorRequest::Kill { vm } => vm,
        };
        let Some(vm) = self.vm_index.get(id).copied() else {
            let outcome = HypervisorOutcome::Failed("there is no such VM".into());
            return self.answer(host, MS, Input::Hypervisor(op, outcome));
        };
        let here = self.instances_on(host, vm);
        match request {
            HypervisorRequest::Prepare { generation, .. } => self.prepare(host, vm, op, generation),
            HypervisorRequest::Resume { .. } => {
                let started = |i: &usize| self.instances[*i].phase == Phase::Started;
                if here.iter().any(started) {
                    for instance in here {
                        self.goes_on(instance);
                    }
                    let outcome = HypervisorOutcome::Done;
                    return self.answer(host, MS, Input::Hypervisor(op, outcome));
                }
                let Some(instance) = here
                    .into_iter()
                    .find(|i| self.instances[*i].phase == Phase::Prepared)
                else {
                    let outcome = HypervisorOutcome::Failed("there is no prepared process".into());
                    return self.answer(host, MS, Input::Hypervisor(op, outcome));
                };
                let run = self.hosts[host].agent_run;
                let wait = self.vms[vm].start_time / 20;
                self.instances[instance].resumed = true;
                self.instances[instance].unsent = self.dice.guest.percent(30);
                self.after(wait, Happening::FirstRun { instance, op, run });
            }
            HypervisorRequest::Shutdown { .. } => {
                let cause = self.may_ask_down(host, vm);
                let fact = Fact::AskedDown { vm, host, cause };
                self.judge.observe(self.now, &fact);
                for instance in here {
                    let i = &mut self.instances[instance];
                    i.asked_down |= !i.shutting_down;
                    self.shut_down(instance);
                }
                self.answer(host, MS, Input::Hypervisor(op, HypervisorOutcome::Done));
            }
            HypervisorRequest::Kill { .. } => {
                for instance in here {
                    let cause = self.kill_cause(instance);
                    self.judge
                        .observe(self.now, &Fact::Killed { vm, host, cause });
                    self.kill(instance, ExitCause::Killed);
                }
                self.answer(host, MS, Input::Hypervisor(op, HypervisorOutcome::Done));
            }
        }
    }

    fn prepare(&mut self, host: usize, vm: usize, op: OpId, generation: Generation) {
        let here = self.instances.living(vm).any(|(_, i)| i.host == host);
        let failure = if here {
            Some("there is a process of this VM already")
        } else if self.hosts[host].start_fails > 0 || self.vms[vm].start_fails > 0 {
            let (h, v) = (
                &mut self.hosts[host].start_fails,
                &mut self.vms[vm].start_fails,
            );
            if *h > 0 {
                *h -= 1
            } else {
                *v -= 1
            }
            Some("the hypervisor failed, as the scenario says")
        } else {
            None
        };
        if let Some(text) = failure {
            let wait = self.vms[vm].start_time / 2;
            return self.answer(
                host,
                wait,
                Input::Hypervisor(op, HypervisorOutcome::Failed(text.into())),
            );
        }
        let instance = self.instances.push(Instance {
            vm,
            host,
            generation,
            phase: Phase::Opening,
            runs_since: Nanos::MAX,
            frozen: false,
            frozen_at: None,
            lapsed: None,
            given_up: false,
            opened: false,
            ran_under: None,
            op: Some((op, self.hosts[host].agent_run)),
            writing: false,
            dying: None,
            shutting_down: false,
            hung: false,
            paused: false,
            asked_down: false,
            resumed: false,
            unsent: false,
            untold: None,
            life: 0,
        });
        self.after(10 * MS, Happening::OpenImage { instance });
        self.vm_changed(vm);
    }

    pub(super) fn open_image(&mut self, instance: usize) {
        let i = &self.instances[instance];
        let (vm, host) = (i.vm, i.host);
        if i.phase != Phase::Opening || !self.hosts[host].powered {
            return;
        }
        let disk = self.vms[vm].disk;
        let faults = self.disks[disk].faults(host);
        if faults.hang {
            self.disks[disk].parked_opens.push(instance);
            return;
        }
        let holder = self.disks[disk]
            .images
            .get(&vm)
            .copied()
            .filter(|h| *h != instance);
        let refused = if faults.gone || self.disk_fails(vm, host) {
            Some(HypervisorOutcome::Failed(
                "the image cannot be opened: the datastore is gone".into(),
            ))
        } else if self.disks[disk].image_locks && holder.is_some() {
            Some(HypervisorOutcome::ImageLocked)
        } else {
            None
        };
        if let Some(outcome) = refused {
            self.instances[instance].phase = Phase::Dead;
            self.complete(instance, outcome);
            self.vm_changed(vm);
            return;
        }
        self.disks[disk].images.insert(vm, instance);
        self.vms[vm].newest_open = Some(instance);
        self.instances[instance].opened = true;
        self.instances[instance].phase = Phase::Preparing;
        let wait = (self.vms[vm].start_time * 19 / 20).saturating_sub(10 * MS);
        self.after(wait, Happening::Prepared { instance });
    }

    fn complete(&mut self, instance: usize, outcome: HypervisorOutcome) {
        let host = self.instances[instance].host;
        if let Some((op, run)) = self.instances[instance].op.take()
            && self.hosts[host].agent_run == run
        {
            self.answer(host, 100_000, Input::Hypervisor(op, outcome));
        }
    }

    pub(super) fn prepared(&mut self, instance: usize) {
        if self.instances[instance].phase == Phase::Preparing {
            self.instances[instance].phase = Phase::Prepared;
            self.complete(instance, HypervisorOutcome::Done);
        }
    }

    pub(super) fn first_run(&mut self, instance: usize, op: OpId, run: u64) {
        let lost = self.hosts[self.instances[instance].host].agent_run != run;
        let i = &mut self.instances[instance];
        if lost && i.unsent {
            return;
        }
        let (vm, host) = (i.vm, i.host);
        let outcome = if i.phase == Phase::Prepared {
            i.phase = Phase::Started;
            i.life += 1;
            let life = i.life;
            let wait = self.dice.guest.below(self.tick());
            self.after(wait, Happening::GuestTick { instance, life });
            if self.instances[instance].executes() {
                self.executes_now(instance);
            }
            HypervisorOutcome::Done
        } else {
            HypervisorOutcome::Failed("the process is gone".into())
        };
        if self.hosts[host].agent_run == run {
            self.answer(host, 100_000, Input::Hypervisor(op, outcome));
        }
        self.vm_changed(vm);
    }

    /// An instance begins to execute, for the first time or under another generation than before.
    pub(super) fn executes_now(&mut self, instance: usize) {
        let i = &mut self.instances[instance];
        let (vm, host, generation) = (i.vm, i.host, i.generation);
        if i.ran_under == Some(generation) {
            return;
        }
        let first = i.ran_under.is_none();
        i.ran_under = Some(generation);
        i.runs_since = i.runs_since.min(self.now);
        if first {
            self.starts_anew(vm, host);
        }
        let disk = self.vms[vm].disk;
        let newest = self.disks[disk]
            .newest_lock(self.scenario.config.cluster_id, &self.vms[vm].id)
            .map_or(generation, |r| r.generation);
        let excused = !self.guarded(host);
        if first && self.vms[vm].ordered_to == Some(host) {
            let against = self.vms[vm].ordered_against.take();
            let broken = self.unfit(vm, host).or(against);
            self.judge
                .observe(self.now, &Fact::Placed { vm, host, broken });
        }
        // A wish that took its time is still its user's: what it starts nobody restarted.
        let asked = first && self.vms[vm].on_asked.remove(&host);
        if asked && self.vms[vm].ordered_to != Some(host) {
            self.judge.observe(self.now, &Fact::Wish { vm, on: true });
        }
        let fact = Fact::Runs {
            vm,
            host,
            instance,
            generation,
            newest,
            excused,
            first,
        };
        self.judge.observe(self.now, &fact);
    }

    /// What was wished and answered before is of the past, unless its user, or the agent here, is to switch
    /// it off.
    fn starts_anew(&mut self, vm: usize, host: usize) {
        self.hosts[host].responses.remove(&vm);
        self.hosts[host].storage_stops.remove(&vm);
        let v = &mut self.vms[vm];
        if v.off_wished || v.off_asked.contains(&host) {
            return;
        }
        v.wanted = Wanted::On;
        v.off_cause = false;
        v.off_by.remove(&host);
    }

    pub(super) fn guest_tick(&mut self, instance: usize, life: u64) {
        let i = &self.instances[instance];
        if !i.exists() || i.phase == Phase::Dying || i.life != life || !self.hosts[i.host].powered {
            return;
        }
        if i.executes() && !i.hung && !i.writing {
            let (vm, generation) = (i.vm, i.generation);
            let (host, disk) = (i.host, self.vms[vm].disk);
            self.instances[instance].writing = true;
            let slow = self.disks[disk].faults(host).slow;
            let write = Box::new(Write {
                instance,
                disk,
                generation,
            });
            let mut wait = self.dice.guest.between(300_000, 2 * MS) + slow;
            if self.stormy() && self.dice.guest.below(1000) < self.scenario.weather.stall {
                wait += self.dice.guest.below(self.scenario.weather.stall_ms.max(1)) * MS;
            }
            self.after(wait, Happening::GuestLand { write });
        }
        self.after(self.tick(), Happening::GuestTick { instance, life });
    }

    pub(super) fn guest_land(&mut self, write: Write) {
        let i = &self.instances[write.instance];
        let (vm, host) = (i.vm, i.host);
        let faults = self.disks[write.disk].faults(host);
        if i.exists() && faults.hang && self.hosts[host].powered {
            self.disks[write.disk].parked_writes.push(write);
            return;
        }
        self.instances[write.instance].writing = false;
        // A full datastore refuses what needs new blocks: of a thin disk's writes, every other.
        let refused = faults.gone || faults.read_only || faults.full && self.dice.guest.percent(50);
        let fails = self.disk_fails(vm, host);
        if fails && self.instances[write.instance].dying.is_none() {
            self.pauses_on_error(write.instance);
        }
        let refused = refused || fails;
        let disk = &self.disks[write.disk];
        let enforced = disk.fence == FenceClass::Enforced;
        let entitled = if disk.image_locks {
            disk.images.get(&vm) == Some(&write.instance)
        } else {
            self.vms[vm].newest_open == Some(write.instance)
        };
        if !refused && (!enforced || entitled) {
            // Where late writes are never accepted, a lock on an open datastore is broken only with proof of its
            // holder's death, and the dead write no more.
            let proven = !self.accepts_late_writes() && self.instances[write.instance].exists();
            let fact = Fact::WriteLanded {
                vm,
                instance: write.instance,
                generation: write.generation,
                fenced: enforced || proven,
            };
            self.judge.observe(self.now, &fact);
        }
        if let Some(cause) = self.instances[write.instance].dying.take() {
            self.gone(write.instance, cause);
        }
    }

    pub(super) fn shut_down(&mut self, instance: usize) {
        let i = &mut self.instances[instance];
        if i.shutting_down || i.hung || i.phase != Phase::Started {
            return;
        }
        i.shutting_down = true;
        if let Some(wait) = self.vms[i.vm].shutdown_time {
            self.after(
                wait,
                Happening::Exit {
                    instance,
                    cause: ExitCause::GuestShutdown,
                },
            );
        }
    }

    /// Its operating system stands still, if it executes.
    pub(super) fn hang(&mut self, instance: usize) {
        let i = &mut self.instances[instance];
        i.hung |= i.executes();
    }

    /// Its operating system panics, if it executes: the process ends as after SIGKILL.
    pub(super) fn panic(&mut self, instance: usize) {
        let i = &self.instances[instance];
        if i.executes() && !i.hung {
            self.kill(instance, ExitCause::Panicked);
        }
    }

    /// SIGKILL: instructions end at once; the process is gone a moment later, or when its I/O returns.
    pub(super) fn kill(&mut self, instance: usize, cause: ExitCause) {
        let i = &mut self.instances[instance];
        if i.phase == Phase::Dying || i.phase == Phase::Dead {
            return;
        }
        i.phase = Phase::Dying;
        let vm = i.vm;
        let wait = self.dice.guest.between(MS, 50 * MS);
        self.after(wait, Happening::Exit { instance, cause });
        self.vm_changed(vm);
    }

    pub(super) fn exit(&mut self, instance: usize, cause: ExitCause) {
        let i = &self.instances[instance];
        let (vm, host) = (i.vm, i.host);
        if i.phase == Phase::Dead {
            return;
        }
        if cause == ExitCause::GuestShutdown && (i.phase != Phase::Started || i.frozen || i.hung) {
            // A hung guest does not come to it; a frozen one goes on when it is thawed.
            if i.frozen && !i.hung && i.phase == Phase::Started {
                self.after(TICK, Happening::Exit { instance, cause });
            }
            return;
        }
        // SIGKILL ends no thread that waits for its disk, however long that takes.
        if self.instances[instance].writing && self.hosts[host].powered {
            self.instances[instance].phase = Phase::Dying;
            self.instances[instance].dying = Some(cause);
            self.vm_changed(vm);
            return;
        }
        self.gone(instance, cause);
    }

    /// Every thread of the process is gone.
    fn gone(&mut self, instance: usize, cause: ExitCause) {
        let (vm, host) = (self.instances[instance].vm, self.instances[instance].host);
        let disk = self.vms[vm].disk;
        self.instances[instance].phase = Phase::Dead;
        if self.disks[disk].images.get(&vm) == Some(&instance) {
            self.disks[disk].images.remove(&vm);
        }
        self.complete(
            instance,
            HypervisorOutcome::Failed("the process ended".into()),
        );
        self.vms[vm].last_exit.insert(host, cause);
        if cause == ExitCause::GuestShutdown {
            let asked = self.instances[instance].asked_down;
            let v = &mut self.vms[vm];
            v.off_cause = true;
            (v.wanted, v.promised) = if asked {
                (Wanted::AsOnDisk, v.promised)
            } else {
                (Wanted::Off, false)
            };
        }
        self.instances[instance].untold = Some(cause);
        let wait = self.dice.guest.between(100_000, 2 * MS);
        let id = self.vms[vm].id.clone();
        self.answer(host, wait, Input::VmExited { vm: id, cause });
        self.vm_changed(vm);
    }

    /// Late writes are accepted at some time of the run.
    fn accepts_late_writes(&self) -> bool {
        const KEY: &str = "accept_late_writes";
        let sets =
            |c: &Change| matches!(c, Change::Set { key, value } if key == KEY && value == "true");
        let scenario = self.scenario;
        scenario.config.settings.accept_late_writes
            || scenario.events.iter().any(|e| match &e.fault {
                Fault::Config { changes, .. } => changes.iter().any(sets),
                _ => false,
            })
    }

    /// What the world can confirm as a cause for killing this process.
    pub(super) fn kill_cause(&self, instance: usize) -> KillCause {
        let i = &self.instances[instance];
        let vm = &self.vms[i.vm];
        let newest = self.disks[vm.disk].newest_lock(self.scenario.config.cluster_id, &vm.id);
        KillCause {
            never_ran: i.ran_under.is_none(),
            user: vm.off_wished || vm.off_asked.contains(&i.host),
            lock_moved: newest.is_none_or(|lock| lock.generation > i.generation),
            isolated: self.hosts[i.host].stops_for_isolation(i.vm),
            storage: self.hosts[i.host].storage_stops.contains(&i.vm),
            frozen_limit: false,
            guest: i.shutting_down,
            host_leaves: self.hosts[i.host].shutting.is_some(),
        }
    }

    pub(super) fn facts_of(&self, vm: usize) -> VmFacts {
        let mut facts = VmFacts::default();
        for (_, i) in self.instances.living(vm) {
            facts.instances += 1;
            if i.executes() && self.hosts[i.host].up() {
                facts.running.push(i.host);
            } else if i.frozen && i.phase == Phase::Started {
                facts.frozen += 1;
            }
        }
        facts
    }

    /// Something about a VM's instances changed: expectations and S1 look again.
    pub(super) fn vm_changed(&mut self, vm: usize) {
        let mut runners: Vec<Runner> = Vec::new();
        for (index, i) in self.instances.living(vm) {
            if !i.executes() || !self.hosts[i.host].up() {
                continue;
            }
            let disk = &self.disks[self.vms[vm].disk];
            let enforced = disk.fence == FenceClass::Enforced;
            let can_write = enforced && disk.image_locks && disk.images.get(&vm) == Some(&index);
            runners.push(Runner {
                host: i.host,
                instance: index,
                generation: i.generation,
                guarded: self.guarded(i.host),
                can_write,
            });
        }
        if runners.len() > 1 {
            self.judge.observe(
                self.now,
                &Fact::Runners {
                    vm,
                    runners: &runners,
                },
            );
        }
        if let Some(zero) = self.zero.filter(|z| self.now >= *z) {
            let facts = self.facts_of(vm);
            self.watch
                .changed(&self.scenario.expects, vm, self.now - zero, &facts);
        }
    }
}
