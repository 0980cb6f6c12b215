//! Carries out the events of a scenario on the real thing.

use super::agenda::Due;
use super::jobs::{self, Then};
use super::listen::listen;
use super::{Stage, judge};
use crate::clock::now;
use crate::cluster::{Daemon, Host};
use crate::fail::{Context, Result};
use crate::guests;
use mainstay_core::config::{Change, DatastoreKind, Image};
use mainstay_core::event::{EventKind, StopReason};
use mainstay_core::time::Duration;
use mainstay_datastore::FileDatastore;
use mainstay_sim::{Body, Fault, Scenario, Weather};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;

/// Service managers commonly give a service so long to stop.
const SERVICE_PATIENCE: Duration = Duration::from_secs(90);
/// An operating system takes so long from its last service to its end.
const LAST_STEPS: Duration = Duration::from_secs(1);

/// What the lab cannot play, by the words of the scenario.
pub(super) fn unplayable(scenario: &Scenario) -> Vec<String> {
    let mut names: BTreeSet<String> = BTreeSet::new();
    for planned in &scenario.events {
        match &planned.fault {
            Fault::ClockDrift { .. } => names.insert("clock.drift".into()),
            Fault::VmDiskError { .. } => names.insert("vm.disk_error".into()),
            Fault::VmDiskHeal { .. } => names.insert("vm.disk_heal".into()),
            Fault::AgentRestart {
                formats: Some(_), ..
            } => names.insert("agent.restart into another version (formats)".into()),
            Fault::FenceDevice { .. } => names.insert(planned.fault.name().into()),
            Fault::NotPlayable(name) => names.insert((*name).into()),
            _ => continue,
        };
    }
    if !scenario.fences.is_empty() {
        names.insert("[[fence]]".into());
    }
    if scenario.hosts.iter().any(|h| h.ppm != 0) {
        names.insert("clocks that drift (clock_ppm)".into());
    }
    let newest = mainstay_core::wire::FORMAT_VERSION;
    if scenario.hosts.iter().any(|h| h.formats != newest) {
        names.insert("agents of another version (formats)".into());
    }
    if scenario.weather != Weather::default() {
        names.insert("[weather]".into());
    }
    names.into_iter().collect()
}

impl Stage<'_> {
    pub(super) fn play(&mut self, fault: &Fault) -> Result<()> {
        self.fault_entry(fault, String::new());
        match fault {
            Fault::HostPowerOff { host } => self.power_off(*host)?,
            Fault::HostPowerOn { host } => self.power_on(*host),
            Fault::HostPause { host } => self.cluster.pause(*host)?,
            Fault::HostResume { host } => {
                self.cluster.resume(*host)?;
                self.goes_on(*host);
            }
            Fault::HostShutdown { host } => self.shut_down(*host, false),
            Fault::HostReboot { host } => self.shut_down(*host, true),
            Fault::AgentKill { host } => self.signal(*host, Daemon::Agent, Signal::SIGKILL)?,
            Fault::GuardKill { host } => self.signal(*host, Daemon::Guard, Signal::SIGKILL)?,
            Fault::AgentHang { host } => {
                self.change_standing(*host, |s| s.agent_hung = true);
                self.signal(*host, Daemon::Agent, Signal::SIGSTOP)?;
            }
            Fault::AgentResume { host } => {
                self.change_standing(*host, |s| s.agent_hung = false);
                self.signal(*host, Daemon::Agent, Signal::SIGCONT)?;
            }
            Fault::GuardHang { host } => self.signal(*host, Daemon::Guard, Signal::SIGSTOP)?,
            Fault::GuardResume { host } => {
                self.signal(*host, Daemon::Guard, Signal::SIGCONT)?;
                self.goes_on(*host);
            }
            Fault::AgentRestart { host, time, .. } => self.restart_agent(*host, *time),
            Fault::HostDrill {
                host,
                time,
                insists,
            } => self.drill(*host, *time, *insists)?,
            Fault::NetworkCut { .. }
            | Fault::NetworkPartition { .. }
            | Fault::NetworkDrop { .. }
            | Fault::NetworkLoss { .. }
            | Fault::NetworkDelay { .. }
            | Fault::NetworkHeal { .. }
            | Fault::GatewayDown
            | Fault::GatewayUp => self.network_fault(fault)?,
            Fault::Datastore {
                fault,
                datastore,
                host,
            } => self.cluster.set_fault(*datastore, *host, Some(*fault)),
            Fault::DatastoreHeal { datastore, host } => {
                for index in 0..self.scenario.datastores.len() {
                    if datastore.is_none_or(|d| d == index) {
                        self.cluster.set_fault(index, *host, None);
                    }
                }
            }
            Fault::VmCrash { vm }
            | Fault::GuestShutdown { vm }
            | Fault::GuestHang { vm }
            | Fault::GuestPanic { vm }
            | Fault::VmOomKill { vm } => self.guest_fault(*vm, fault),
            Fault::VmPowerOn { vm, host } => self.wish(*vm, *host, true),
            Fault::VmPowerOff { vm } => self.wish(*vm, None, false),
            Fault::StartFail { host, vm, times } => {
                let scenario = self.scenario;
                let vm = vm.and_then(|v| scenario.vms.get(v)).and_then(|v| {
                    let spec = scenario.config.vms.get(&v.id);
                    let spec = spec.or_else(|| scenario.created.get(&v.id))?;
                    Some((&v.id, &spec.datastore))
                });
                self.cluster.fail_starts(*host, vm, *times);
            }
            Fault::Config { changes, host, .. } => {
                let (sockets, changes) = (self.sockets(*host), changes.clone());
                self.ask(Then::Nothing, move || jobs::change(&sockets, &changes));
            }
            Fault::VmCreate { vm, host, on } => self.create(*vm, *host, *on)?,
            Fault::VmDelete { vm } => {
                if let Some(id) = self.scenario.vms.get(*vm).map(|v| v.id.clone()) {
                    let sockets = self.sockets(None);
                    let changes = vec![Change::RemoveVm(id)];
                    self.ask(Then::Nothing, move || jobs::change(&sockets, &changes));
                }
            }
            // Nothing of what is played here needs a manager.
            Fault::FenceDevice { .. }
            | Fault::ManagerDown
            | Fault::ManagerUp
            | Fault::ClockDrift { .. }
            | Fault::VmDiskError { .. }
            | Fault::VmDiskHeal { .. }
            | Fault::NotPlayable(_) => {}
        }
        Ok(())
    }

    fn signal(&self, host: usize, daemon: Daemon, signal: Signal) -> Result<()> {
        self.cluster.host(host)?.signal(daemon, signal)
    }

    fn network_fault(&self, fault: &Fault) -> Result<()> {
        let network = self.cluster.network();
        match fault {
            Fault::NetworkCut { host, network: one } => network.cut(*host, *one),
            Fault::NetworkPartition { groups } => network.partition(groups),
            Fault::NetworkDrop { from, to } => network.drop_one_way(*from, *to),
            Fault::NetworkLoss { percent, host } => {
                network.loss(u8::try_from(*percent).unwrap_or(100), *host)
            }
            Fault::NetworkDelay { time, host } => network.delay(Duration::from_nanos(*time), *host),
            Fault::NetworkHeal { host, network: one } => network.heal(*host, *one),
            Fault::GatewayDown => network.gateway_up(false),
            Fault::GatewayUp => network.gateway_up(true),
            _ => Ok(()),
        }
    }

    fn guest_fault(&mut self, vm: usize, fault: &Fault) {
        let Some(id) = self.scenario.vms.get(vm).map(|v| v.id.clone()) else {
            return;
        };
        self.look();
        let there = self.table.of(id.as_str()).iter();
        let there: Vec<(usize, (i32, u64))> = there
            .map(|i| (i.host, (i.seen.process.pid, i.seen.process.start_time)))
            .collect();
        for (host, process) in there {
            if matches!(fault, Fault::GuestHang { .. }) {
                self.deaf.insert(process);
            }
            let Ok(run_dir) = self.cluster.host(host).map(|h| h.run_dir.clone()) else {
                continue;
            };
            let happen = match fault {
                Fault::VmCrash { .. } => guests::crash,
                Fault::GuestShutdown { .. } => guests::shutdown,
                Fault::GuestHang { .. } => guests::hang,
                Fault::GuestPanic { .. } => guests::panic,
                _ => guests::oom_kill,
            };
            let then = match fault {
                Fault::GuestShutdown { .. } if !self.deaf.contains(&process) => Then::GuestEnds {
                    vm,
                    asked_on: self.judge.asked_on(vm),
                },
                _ => Then::Nothing,
            };
            let vm = id.to_string();
            self.ask(then, move || match happen(&run_dir, &vm) {
                Ok(true) => Ok(()),
                Ok(false) => Err("there was nobody to whom it could happen".into()),
                Err(error) => Err(error.one_line()),
            });
        }
    }

    pub(super) fn power_off(&mut self, host: usize) -> Result<()> {
        if !self.cluster.host(host)?.powered {
            return Ok(());
        }
        self.look();
        self.ears.get_mut(host).map(Option::take);
        self.change_standing(host, |s| {
            s.boot += 1;
            s.agent_hung = false;
            s.leaving = None;
            s.service = Default::default();
        });
        let at = self.cluster.power_off(host)?;
        let id = self.cluster.host(host)?.id.clone();
        for setup in &self.scenario.vms {
            let ran = |i: &super::table::Instance| i.host == host && i.seen.resumed;
            if self.table.of(setup.id.as_str()).iter().any(ran) {
                let kind = EventKind::VmStopped {
                    vm: setup.id.clone(),
                    host: id.clone(),
                    reason: StopReason::Host,
                };
                self.note(at, Body::Event(kind), "the machine lost power".into());
            }
        }
        self.look();
        Ok(())
    }

    pub(super) fn power_on(&mut self, host: usize) {
        let powered = self.cluster.host(host).map(|h| h.powered);
        let boot = self.standing(host).boot;
        // One that boots already goes on with that.
        if powered.unwrap_or(true) || !self.booting.insert((host, boot)) {
            return;
        }
        let time = self.scenario.hosts.get(host).map_or(0, |h| h.boot_time);
        // Firmware answers nothing: the network comes up shortly before the agent, as in the simulator.
        let network = Duration::from_nanos(time / 10 * 9);
        self.agenda
            .at(now() + network, Due::NetworkUp { host, boot });
        self.agenda
            .at(now() + Duration::from_nanos(time), Due::Boot { host, boot });
    }

    /// Operating system and service manager are up.
    pub(super) fn booted(&mut self, host: usize, boot: u64) -> Result<()> {
        if self.standing(host).boot != boot || self.cluster.host(host)?.powered {
            return Ok(());
        }
        self.cluster.power_on(host)?;
        self.start_agent(host)
    }

    /// Starts an agent and listens to it.
    pub(super) fn start_agent(&mut self, host: usize) -> Result<()> {
        self.cluster.start_agent(host)?;
        let ear = listen(
            host,
            self.cluster.host(host)?.socket(),
            self.to_self.clone(),
        )?;
        if let Some(slot) = self.ears.get_mut(host) {
            *slot = Some(ear);
        }
        Ok(())
    }

    /// The operating system asks its services to stop.
    fn shut_down(&mut self, host: usize, again: bool) {
        let up = self.cluster.host(host).is_ok_and(Host::is_up);
        if !up || self.standing(host).leaving.is_some() {
            return;
        }
        self.change_standing(host, |s| s.leaving = Some(again));
        let boot = self.standing(host).boot;
        self.agenda.at(
            now() + SERVICE_PATIENCE,
            Due::PowerGoes { host, boot, again },
        );
        let sockets = self.sockets(Some(host));
        self.ask(Then::Left { host, boot }, move || jobs::leave(&sockets));
    }

    fn restart_agent(&mut self, host: usize, away: u64) {
        let boot = self.standing(host).boot;
        let sockets = self.sockets(Some(host));
        self.ask(Then::StopAgent { host, boot, away }, move || {
            jobs::prepare_restart(&sockets)
        });
    }

    /// An admin rehearses the loss of the host, and asks for it there.
    fn drill(&mut self, host: usize, time: Option<u64>, insists: bool) -> Result<()> {
        let (sockets, id) = (
            self.sockets(Some(host)),
            self.cluster.host(host)?.id.clone(),
        );
        let time = time.map(Duration::from_nanos);
        self.ask(Then::Nothing, move || {
            jobs::drill(&sockets, &id, time, insists)
        });
        Ok(())
    }

    pub(super) fn follows(&mut self, then: Then) {
        match then {
            Then::Nothing => {}
            Then::Wished { vm, on, asked_on } => self.judge.wished(vm, on, asked_on),
            Then::GuestEnds { vm, asked_on } => self.judge.guest_shuts_down(vm, asked_on),
            // The machine is off, or boots, when its agent lets it go.
            Then::Left { host, boot } => {
                let standing = self.standing(host);
                if let Some(again) = standing.leaving.filter(|_| standing.boot == boot) {
                    self.change_standing(host, |s| s.leaving = None);
                    self.agenda
                        .at(now() + LAST_STEPS, Due::PowerGoes { host, boot, again });
                }
            }
            Then::StopAgent { host, boot, away } => {
                if self.standing(host).boot != boot {
                    return;
                }
                // A clean stop: its guard does not take it for one that died.
                self.change_standing(host, |s| s.service.stopped = true);
                let stopped = self.signal(host, Daemon::Agent, Signal::SIGTERM);
                if stopped.is_ok() {
                    self.agenda.at(
                        now() + Duration::from_nanos(away),
                        Due::StartAgent { host, boot },
                    );
                }
            }
        }
    }

    fn wish(&mut self, vm: usize, host: Option<usize>, on: bool) {
        if on {
            self.judge.asks_on(vm);
        }
        let asked_on = self.judge.asked_on(vm);
        let Some(id) = self.scenario.vms.get(vm).map(|v| v.id.clone()) else {
            return;
        };
        self.look();
        let host = host
            .or_else(|| self.where_is(vm))
            .or_else(|| self.best_host(vm));
        let sockets = host.map(|h| self.sockets(Some(h))).unwrap_or_default();
        self.ask(Then::Wished { vm, on, asked_on }, move || {
            jobs::power(&sockets, &id, on, 1)
        });
    }

    /// The host that a user's wish about a VM goes to.
    fn where_is(&self, vm: usize) -> Option<usize> {
        let id = &self.scenario.vms.get(vm)?.id;
        let here = self.table.of(id.as_str()).iter().map(|i| i.host);
        here.max_by_key(|h| self.listens(*h))
    }

    fn listens(&self, host: usize) -> bool {
        !self.sockets(Some(host)).is_empty()
    }

    fn best_host(&self, vm: usize) -> Option<usize> {
        let id = &self.scenario.vms.get(vm)?.id;
        let config = self.cluster.config();
        let spec = config
            .vms
            .get(id)
            .or_else(|| self.scenario.created.get(id))?;
        let fits = |h: &usize| {
            let host = self
                .scenario
                .hosts
                .get(*h)
                .and_then(|s| config.hosts.get(&s.id));
            self.listens(*h) && host.is_some_and(|s| s.datastores.contains(&spec.datastore))
        };
        let home = self.homes.get(vm).copied().flatten().filter(fits);
        home.or_else(|| {
            (0..self.scenario.hosts.len()).filter(fits).max_by_key(|h| {
                (
                    judge::free_memory(self.scenario, &self.table, *h),
                    usize::MAX - h,
                )
            })
        })
    }

    /// The records and the image of a new VM are made by its admin's tool, then it is made known.
    fn create(&mut self, vm: usize, host: Option<usize>, on: bool) -> Result<()> {
        let scenario = self.scenario;
        let Some(setup) = scenario.vms.get(vm) else {
            return Ok(());
        };
        let (Some(spec), Some(by)) = (scenario.created.get(&setup.id), scenario.hosts.first())
        else {
            return Ok(());
        };
        let image = Image {
            path: crate::cluster::image_path(&setup.id).display().to_string(),
            driver: Some(self.cluster.driver().name().to_owned()),
        };
        let known = self.cluster.image(&setup.id, &spec.datastore).exists();
        if !known {
            self.cluster.make_image(spec, setup)?;
        }
        let config = self.cluster.config();
        let home = config.datastores.get(&spec.datastore);
        // A region has the locks of all VMs that there will be.
        if home.is_none_or(|home| home.kind == DatastoreKind::File) {
            let backing = self.cluster.backing(&spec.datastore);
            FileDatastore::add_vm(&backing, config, spec, &by.id)
                .context(format_args!("{} was not made", setup.id))?;
        }
        let change = Change::AddVm {
            spec: spec.clone(),
            image,
        };
        let at = host.or(setup.host).or_else(|| self.best_host(vm));
        let then_on = on.then(|| (self.sockets(at), setup.id.clone()));
        let sockets = self.sockets(None);
        let then = if on {
            let asked_on = self.judge.asked_on(vm);
            Then::Wished { vm, on, asked_on }
        } else {
            Then::Nothing
        };
        self.ask(then, move || jobs::create(&sockets, change, then_on));
        Ok(())
    }
}
