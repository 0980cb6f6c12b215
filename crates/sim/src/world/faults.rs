//! Carries out the events of a scenario.

use super::guard::Words;
use super::guest::{Instance, Phase, Wanted};
use super::{Happening, World};
use crate::clock::{MS, SECOND};
use crate::invariants::Fact;
use crate::scenario::Fault;
use crate::trace::{Body, Entry};
use mainstay_core::Command;
use mainstay_core::config::Change;
use mainstay_core::event::{EventKind, StopReason};
use mainstay_core::guard::Guard;
use mainstay_core::id::BootId;
use mainstay_core::io::ExitCause;
use mainstay_core::time::nanos;

/// Service managers commonly give a service so long to stop.
const SERVICE_PATIENCE: u64 = 90 * SECOND;

impl World<'_> {
    pub(super) fn planned(&mut self, index: usize) {
        let scenario = self.scenario;
        let Some(planned) = scenario.events.get(index) else {
            return;
        };
        let fault = &planned.fault;
        let arguments = fault.arguments(&self.names);
        let body = Body::Fault {
            what: fault.name(),
            arguments,
        };
        self.trace.push(Entry {
            at: self.now,
            body,
            why: String::new(),
        });
        self.disturbs(fault);
        self.play_fault(fault);
    }

    /// Whom a fault keeps from hearing others, or from being heard, begins to hear anew.
    fn disturbs(&mut self, fault: &Fault) {
        let now = self.now;
        match fault {
            Fault::NetworkCut { .. }
            | Fault::NetworkPartition { .. }
            | Fault::NetworkDrop { .. }
            | Fault::NetworkLoss { .. }
            | Fault::NetworkDelay { .. }
            | Fault::NetworkHeal { .. } => self.hosts.iter_mut().for_each(|h| h.unrest = now),
            Fault::AgentHang { host }
            | Fault::AgentResume { host }
            | Fault::HostPause { host }
            | Fault::HostResume { host } => self.hosts[*host].unrest = now,
            _ => {}
        }
    }

    fn play_fault(&mut self, fault: &Fault) {
        match fault {
            Fault::HostPowerOff { host } => self.power_off(*host),
            Fault::HostPowerOn { host } => self.power_on(*host),
            Fault::HostPause { host } => self.pause(*host),
            Fault::HostResume { host } => self.resume(*host),
            Fault::HostShutdown { host } => self.shut_host_down(*host, false),
            Fault::HostReboot { host } => self.shut_host_down(*host, true),
            Fault::HostDrill {
                host,
                time,
                insists,
            } => self.drill(*host, *time, *insists),
            Fault::AgentKill { host } => self.agent_kill(*host),
            Fault::AgentRestart {
                host,
                time,
                formats,
            } => self.restart_on_purpose(*host, *time, *formats),
            Fault::GuardKill { host } => self.guard_kill(*host),
            Fault::AgentHang { host } => self.agent_hang(*host),
            Fault::AgentResume { host } => self.agent_resume(*host),
            Fault::GuardHang { host } => {
                let h = &mut self.hosts[*host];
                h.guard_hung = h.powered && h.guard.is_some();
            }
            Fault::GuardResume { host } => self.guard_resume(*host),
            Fault::NetworkCut { host, network } => self.net.cut(*host, *network),
            Fault::NetworkPartition { groups } => {
                self.net.partition(groups);
                self.release_held();
            }
            Fault::NetworkDrop { from, to } => self.net.drop_way(*from, *to),
            Fault::NetworkLoss { percent, host } => self.net.set_loss(*percent, *host),
            Fault::NetworkDelay { time, host } => self.net.set_delay(*time, *host),
            Fault::NetworkHeal { host, network } => {
                self.net.heal(*host, *network);
                self.release_held();
            }
            Fault::GatewayDown => self.net.set_gateway(false),
            Fault::GatewayUp => self.net.set_gateway(true),
            Fault::Datastore {
                fault,
                datastore,
                host,
            } => self.datastore_fault(*datastore, *host, *fault),
            Fault::DatastoreHeal { datastore, host } => {
                for disk in 0..self.disks.len() {
                    if datastore.is_none_or(|d| d == disk) {
                        self.datastore_heal(disk, *host);
                    }
                }
            }
            Fault::VmCrash { vm } => {
                self.at_each_process(*vm, |world, i| world.kill(i, ExitCause::Crash));
            }
            Fault::VmOomKill { vm } => {
                self.at_each_process(*vm, |world, i| world.kill(i, ExitCause::OutOfMemory));
            }
            Fault::GuestShutdown { vm } => self.at_each_process(*vm, Self::shut_down),
            Fault::GuestHang { vm } => self.at_each_process(*vm, Self::hang),
            Fault::GuestPanic { vm } => self.at_each_process(*vm, Self::panic),
            Fault::VmDiskError { vm, host } => self.disk_error(*vm, *host),
            Fault::VmDiskHeal { vm } => {
                let now = self.now;
                let losses = self.vms[*vm].disk_fails.values_mut();
                losses.for_each(|loss| loss.end(now));
            }
            Fault::VmPowerOn { vm, host } => {
                self.wish_on(*vm, *host);
            }
            Fault::VmPowerOff { vm } => self.wish_off(*vm),
            Fault::ClockDrift { host, ppm } => self.drift(*host, *ppm),
            Fault::StartFail { host, vm, times } => {
                if let Some(host) = host {
                    self.hosts[*host].start_fails = *times;
                }
                if let Some(vm) = vm {
                    self.vms[*vm].start_fails = *times;
                }
            }
            Fault::Config { changes, host, .. } => {
                self.wish_change(changes.clone(), *host, None);
            }
            Fault::VmCreate { vm, host, on } => self.vm_create(*vm, *host, *on),
            Fault::VmDelete { vm } => {
                let id = self.vms[*vm].id.clone();
                self.wish_change(vec![Change::RemoveVm(id)], None, None);
            }
            Fault::FenceDevice { host, fault } => self.fence_fault(*host, *fault),
            Fault::ManagerDown | Fault::ManagerUp | Fault::NotPlayable(_) => {}
        }
    }

    fn at_each_process(&mut self, vm: usize, befall: impl Fn(&mut Self, usize)) {
        for host in 0..self.hosts.len() {
            for instance in self.instances_on(host, vm) {
                befall(self, instance);
            }
        }
    }

    pub(super) fn power_off(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        if !h.powered {
            return;
        }
        h.powered = false;
        h.paused = false;
        h.boot += 1;
        h.agent = None;
        h.agent_run += 1;
        h.agent_hung = false;
        h.agent_waits = false;
        h.inbox.clear();
        h.timer = None;
        h.guard = None;
        h.guard_run += 1;
        h.guard_hung = false;
        h.guard_wake = None;
        h.guard_poke = false;
        h.deferred.clear();
        h.isolated = None;
        h.responses.clear();
        h.storage_stops.clear();
        h.shutting = None;
        h.restarting = None;
        h.drilled = false;
        h.wishes.clear();
        h.role = None;
        let slots = self.vms.len();
        h.words = Words::new(slots);
        self.operations_lose_power(host);
        for instance in self.instances.on_host(host).to_vec() {
            let i = &mut self.instances[instance];
            (i.untold, i.dying) = (None, None);
            if !i.exists() {
                continue;
            }
            let was = i.phase;
            i.phase = Phase::Dead;
            let vm = i.vm;
            for disk in self.disks.iter_mut() {
                disk.parked_writes.retain(|w| w.instance != instance);
                disk.parked_opens.retain(|o| *o != instance);
            }
            if was == Phase::Started {
                let (vm, host) = (self.vms[vm].id.clone(), self.hosts[host].id.clone());
                let kind = EventKind::VmStopped {
                    vm,
                    host,
                    reason: StopReason::Host,
                };
                self.log(kind, "the machine lost power");
            }
            self.vm_changed(vm);
        }
        for disk in 0..self.disks.len() {
            self.storage_lost(host, disk);
        }
    }

    pub(super) fn power_on(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        if h.powered {
            return;
        }
        h.powered = true;
        let boot = h.boot;
        let wait = self.scenario.hosts.get(host).map_or(0, |s| s.boot_time);
        // Firmware answers nothing: the network comes up shortly before the agent.
        h.pings_from = self.now + wait / 10 * 9;
        self.after(wait, Happening::Boot { host, boot });
    }

    /// Operating system and service manager are up: guard first, then agent.
    pub(super) fn boot(&mut self, host: usize, boot: u64) {
        let local = self.dice.life.between(5, 60) * SECOND;
        let id = BootId(self.dice.life.next_u64());
        let limit = self.settings_of(host).frozen_limit;
        let now = self.now;
        let h = &mut self.hosts[host];
        if !h.powered || h.boot != boot || h.guard.is_some() {
            return;
        }
        let ppm = h.clock.ppm();
        h.clock = crate::clock::Clock::starting(now, local, ppm);
        h.boot_id = id;
        h.frozen_limit = limit;
        h.guard = Some(Guard::new(limit));
        h.guard_run += 1;
        for disk in 0..self.disks.len() {
            self.storage_back(host, disk);
        }
        self.agent_start(host, boot);
        self.release_held();
    }

    fn pause(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        if !h.up() {
            return;
        }
        h.paused = true;
        for disk in 0..self.disks.len() {
            self.storage_lost(host, disk);
        }
        for vm in 0..self.vms.len() {
            self.vm_changed(vm);
        }
    }

    /// Everything goes on at once: what was due in between happens in an order that is drawn.
    fn resume(&mut self, host: usize) {
        if !self.hosts[host].paused {
            return;
        }
        self.hosts[host].paused = false;
        self.hosts[host].guard_poke = true;
        self.hosts[host].guard_wake = None;
        self.doubt(host);
        for disk in 0..self.disks.len() {
            self.storage_back(host, disk);
        }
        for what in std::mem::take(&mut self.hosts[host].deferred) {
            if matches!(
                what,
                Happening::AgentTimer { .. } | Happening::GuardWake { .. }
            ) {
                continue;
            }
            let wait = self.dice.life.below(5 * MS);
            self.after(wait, what);
        }
        self.arm_guard(host);
        let wait = self.dice.life.below(5 * MS);
        self.hosts[host].timer = Some(self.now + wait);
        self.after(wait, Happening::AgentTimer { host });
        let inbox = std::mem::take(&mut self.hosts[host].inbox);
        let run = self.hosts[host].agent_run;
        for input in inbox {
            let wait = self.dice.life.below(5 * MS);
            self.after(
                wait,
                Happening::Input {
                    host,
                    run,
                    input: Box::new(input),
                },
            );
        }
        for vm in 0..self.vms.len() {
            self.vm_changed(vm);
        }
        self.release_held();
    }

    /// The operating system asks its services to stop; the machine is off, or comes back, when its agent
    /// lets it go, or when it has waited long enough.
    fn shut_host_down(&mut self, host: usize, reboot: bool) {
        let h = &mut self.hosts[host];
        if !h.up() || h.shutting.is_some() {
            return;
        }
        h.shutting = Some(reboot);
        let boot = h.boot;
        self.after(
            SERVICE_PATIENCE,
            Happening::HostStops { host, boot, reboot },
        );
        self.command(host, Command::Leave);
        self.leave_when_ready(host);
    }

    /// The agent is told that it will be restarted; it is stopped when it says that it may be.
    fn restart_on_purpose(&mut self, host: usize, away: u64, formats: Option<u16>) {
        if self.hosts[host].shutting.is_none() && self.command(host, Command::PrepareRestart) {
            self.hosts[host].restarting = Some((away, formats));
            self.leave_when_ready(host);
        }
    }

    /// The agent of a host that is being shut down has nothing left to do.
    pub(super) fn leave_when_ready(&mut self, host: usize) {
        let now = self.hosts[host].clock.local(self.now);
        let restarts = self.hosts[host].restarting;
        let agent = self.hosts[host].agent.as_ref();
        let ready = agent.is_some_and(|a| a.may_be_restarted(now));
        if let Some((away, formats)) = restarts.filter(|_| ready) {
            self.hosts[host].restarting = None;
            self.hosts[host].formats = formats.unwrap_or(self.hosts[host].formats);
            self.agent_stop(host, away);
            return;
        }
        let h = &self.hosts[host];
        let (Some(reboot), boot) = (h.shutting, h.boot) else {
            return;
        };
        if h.agent.as_ref().is_none_or(|a| a.may_leave()) {
            self.hosts[host].shutting = None;
            let wait = self.dice.life.between(500, 2000) * MS;
            self.after(wait, Happening::HostStops { host, boot, reboot });
        }
    }

    pub(super) fn host_stops(&mut self, host: usize, boot: u64, reboot: bool) {
        if self.hosts[host].boot != boot {
            return;
        }
        self.power_off(host);
        if reboot {
            self.power_on(host);
        }
    }

    fn drift(&mut self, host: usize, ppm: i64) {
        let now = self.now;
        let timing = &self.settings_of(host).timing;
        let (bound, freeze) = (i64::from(timing.clock_drift_ppm), nanos(timing.freeze));
        let was_beyond = self.hosts[host].clock.ppm().abs() > bound;
        self.hosts[host].clock.set_rate(now, ppm);
        if was_beyond {
            // Deadlines that were set on the wrong clock run out within `freeze`.
            self.hosts[host].doubt_until = now + freeze + self.guard_worst(host);
        }
        self.hosts[host].timer = None;
        self.hosts[host].guard_wake = None;
        if self.hosts[host].agent_listens() {
            self.drain(host);
        }
        self.arm_guard(host);
    }

    /// The host that a user's wish about a VM goes to.
    fn where_is(&self, vm: usize) -> Option<usize> {
        let here = self.instances.living(vm).map(|(_, i)| i.host);
        here.max_by_key(|h| self.hosts[*h].agent_listens())
    }

    fn best_host(&self, vm: usize) -> Option<usize> {
        let disk = self.vms[vm].disk;
        let fits = |h: &usize| {
            self.hosts[*h].agent_listens()
                && self.hosts[*h].mounts.get(disk).copied().unwrap_or(false)
        };
        let home = self.vms[vm].home.filter(fits);
        home.or_else(|| {
            (0..self.hosts.len())
                .filter(fits)
                .max_by_key(|h| (self.free_memory(*h), usize::MAX - h))
        })
    }

    pub(super) fn free_memory(&self, host: usize) -> u64 {
        let all = self
            .scenario
            .config
            .hosts
            .get(&self.hosts[host].id)
            .map_or(0, |h| h.memory_mb);
        let used: u64 = self
            .instances
            .living_on(host)
            .map(|(_, i)| self.vms[i.vm].memory_mb)
            .sum();
        all.saturating_sub(used)
    }

    pub(super) fn free_cpu(&self, host: usize) -> u64 {
        let all = self
            .scenario
            .config
            .hosts
            .get(&self.hosts[host].id)
            .map_or(0, |h| h.cpu_mhz);
        let used: u64 = self
            .instances
            .living_on(host)
            .map(|(_, i)| self.vms[i.vm].cpu_mhz)
            .sum();
        all.saturating_sub(used)
    }

    /// Gives a command to an agent; a refusal is part of the trace.
    pub(super) fn command(&mut self, host: usize, command: Command) -> bool {
        if !self.hosts[host].agent_listens() {
            self.note("the command was not heard: the agent does not answer");
            return false;
        }
        let now = self.hosts[host].clock.local(self.now);
        let given = match &mut self.hosts[host].agent {
            Some(agent) => agent.command(now, command),
            None => return false,
        };
        self.drain(host);
        if let Err(error) = &given {
            self.note(&error.to_string());
        }
        given.is_ok()
    }

    /// Adds what became of a wish to its line.
    pub(super) fn note(&mut self, text: &str) {
        let now = self.now;
        let line = self.trace.iter_mut().rev().take_while(|e| e.at == now);
        if let Some(entry) = line
            .into_iter()
            .find(|e| matches!(e.body, Body::Fault { .. }))
        {
            entry.why = text.into();
        }
    }

    pub(super) fn wish_on(&mut self, vm: usize, host: Option<usize>) -> bool {
        let host = host
            .or_else(|| self.where_is(vm))
            .or_else(|| self.best_host(vm));
        let Some(host) = host else { return false };
        let id = self.vms[vm].id.clone();
        let runs = |(_, i): (usize, &Instance)| i.executes() && !i.shutting_down;
        let runs = self.instances.living(vm).any(runs);
        let changes = self.vms[vm].off_wished || !runs;
        let accepted = self.command(host, Command::PowerOn(id));
        if accepted {
            self.vms[vm].off_wished = false;
            self.vms[vm].ordered_to = None;
            self.vms[vm].on_asked.insert(host);
            self.vms[vm].off_asked.remove(&host);
            if changes {
                self.judge.observe(self.now, &Fact::Wish { vm, on: true });
            }
        }
        accepted
    }

    fn wish_off(&mut self, vm: usize) {
        let Some(host) = self.where_is(vm).or_else(|| self.best_host(vm)) else {
            return;
        };
        let id = self.vms[vm].id.clone();
        // The wish counts before the agent acts on it: it may kill at once.
        let before = std::mem::replace(&mut self.vms[vm].off_wished, true);
        if self.command(host, Command::PowerOff(id)) {
            let v = &mut self.vms[vm];
            v.on_asked.remove(&host);
            v.off_asked.insert(host);
            v.off_by.insert(host);
            (v.wanted, v.off_cause, v.promised) = (Wanted::Off, true, false);
            self.judge.observe(self.now, &Fact::Wish { vm, on: false });
        } else {
            self.vms[vm].off_wished = before;
        }
    }
}
