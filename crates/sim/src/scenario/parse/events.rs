//! The events of a scenario.

use super::super::fault::{EVENTS, EventDoc, Fault, FenceFault, StorageFault};
use super::super::read::{Section, Text, plain};
use super::super::{Planned, VmSetup};
use super::{Building, POWER, Read, formats};
use crate::clock::{Nanos, SECOND};
use mainstay_core::config::{Change, Settings, VmSpec};
use mainstay_core::id::VmId;
use std::collections::{BTreeMap, BTreeSet};

impl<'a> Building<'a> {
    pub(super) fn events(&mut self, top: &Section<'a, '_>) -> Read<()> {
        self.created_vms(top)?;
        // In the order in which the events happen.
        let mut places = BTreeMap::new();
        for (table, start) in top.tables("event")? {
            let names = || EVENTS.iter().map(|e| e.name);
            let every: Vec<&str> = EVENTS.iter().flat_map(EventDoc::keys).collect();
            let section = Section::new(self.source, table, start, "an event", &every)?;
            section.need("at")?;
            section.need("do")?;
            let (Some(at), Some(what)) = (section.time("at")?, section.text("do")?) else {
                continue;
            };
            let Some(doc) = EVENTS.iter().find(|e| e.name == what.text) else {
                return Err(self.source.unknown(what.at, "event", &what.text, names()));
            };
            let keys: Vec<&str> = doc.keys().collect();
            let section = Section::new(self.source, table, start, doc.name, &keys)?;
            for key in doc.needs {
                section.need(key)?;
            }
            self.before_the_end(&section, "at", Some(at))?;
            let fault = self.fault(doc, &section)?;
            places.insert((at, self.events.len()), section.place("vm"));
            self.events.push(Planned { at, fault });
        }
        self.events.sort_by_key(|e| e.at);
        self.nothing_is_created_twice(&places)
    }

    /// VMs that a `vm.create` makes are known from the beginning, as names.
    fn created_vms(&mut self, top: &Section<'a, '_>) -> Read<()> {
        let doc = EVENTS.iter().find(|e| e.name == "vm.create");
        let keys: Vec<&str> = doc.into_iter().flat_map(EventDoc::keys).collect();
        let mut dependencies: Vec<(VmId, Vec<Text>)> = Vec::new();
        for (table, start) in top.tables("event")? {
            let named = |key: &str| table.get(key).and_then(|v| v.get_ref().as_str());
            if named("do") != Some("vm.create") {
                continue;
            }
            let section = Section::new(self.source, table, start, "vm.create", &keys)?;
            section.need("vm")?;
            let Some(text) = section.text("vm")? else {
                continue;
            };
            let id =
                VmId::new(&text.text).map_err(|e| self.source.error(text.at, e.to_string()))?;
            let before = self.as_it_is(&id);
            let (spec, mut setup) = self.vm_entry(&section, id.clone(), before.as_ref())?;
            dependencies.extend(section.texts("depends_on")?.map(|list| (id.clone(), list)));
            match before {
                Some(before) => self.as_it_was(&section, &before, &spec, &setup)?,
                None => {
                    setup.on = false;
                    self.vms.push((spec.clone(), setup));
                }
            }
            self.created.insert(id, spec);
        }
        for (id, list) in dependencies {
            let on = self.vm_ids(&list)?;
            let spec = self.created.get_mut(&id);
            spec.into_iter().for_each(|s| s.depends_on.clone_from(&on));
        }
        Ok(())
    }

    /// What a VM is before it is created once more.
    fn as_it_is(&self, id: &VmId) -> Option<(VmSpec, VmSetup)> {
        let (spec, setup) = self.vms.iter().find(|(v, _)| v.id == *id)?;
        let spec = self.created.get(id).unwrap_or(spec);
        Some((spec.clone(), setup.clone()))
    }

    /// A VM that is created again has its old disk and its old size: the world knows one VM by each name.
    fn as_it_was(
        &self,
        section: &Section<'_, '_>,
        (was, stood): &(VmSpec, VmSetup),
        spec: &VmSpec,
        setup: &VmSetup,
    ) -> Read<()> {
        // The configuration may change once, with the first creation.
        let created = self.created.contains_key(&spec.id);
        let differs = [
            ("datastore", was.datastore != spec.datastore),
            ("cpu_mhz", was.cpu_mhz != spec.cpu_mhz),
            ("memory_mb", was.memory_mb != spec.memory_mb),
            ("start_time", stood.start_time != setup.start_time),
            ("shutdown_time", stood.shutdown_time != setup.shutdown_time),
            (
                "restart_priority",
                created && was.restart_priority != spec.restart_priority,
            ),
            (
                "isolation_response",
                created && was.isolation_response != spec.isolation_response,
            ),
            (
                "guest_agent",
                created && was.guest_agent != spec.guest_agent,
            ),
        ];
        match differs.iter().find(|(_, differs)| *differs) {
            Some((key, _)) => {
                let what = format!(
                    "{} was there before with another {key}; leave {key} out, or give the new VM another id",
                    spec.id
                );
                section.error(key, what)
            }
            None => Ok(()),
        }
    }

    /// A VM can be created when it is not there: never was, or was deleted.
    fn nothing_is_created_twice(&self, places: &BTreeMap<(Nanos, usize), usize>) -> Read<()> {
        let mut there: BTreeSet<usize> = (0..self.at_the_start).collect();
        for (event, place) in self.events.iter().zip(places.values()) {
            match event.fault {
                Fault::VmDelete { vm } => {
                    there.remove(&vm);
                }
                Fault::VmCreate { vm, .. } if !there.insert(vm) => {
                    let id = self.vms.get(vm).map_or("?", |(v, _)| v.id.as_str());
                    let what = format!(
                        "VM \"{id}\" is there already; delete it before (vm.delete), or give the new one another id"
                    );
                    return Err(self.source.error(*place, what));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Hosts of different groups cannot talk; a host in two of them could do both.
    fn groups(&self, section: &Section<'_, '_>) -> Read<Vec<Vec<usize>>> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for names in section.lists("groups")?.unwrap_or_default() {
            let mut group = Vec::new();
            for text in &names {
                let host = self.host(text)?;
                if groups.iter().any(|other| other.contains(&host)) {
                    let what = format!("{} is in two groups; a host is on one side", text.text);
                    return Err(self.source.error(text.at, what));
                }
                group.push(host);
            }
            groups.push(group);
        }
        Ok(groups)
    }

    /// A VM has one home datastore, from its creation on.
    fn at_home(&self, section: &Section<'_, '_>, vm: usize) -> Read<()> {
        let (Some(text), Some((spec, _))) = (section.text("datastore")?, self.vms.get(vm)) else {
            return Ok(());
        };
        if text.text != spec.datastore.as_str() {
            let what = format!(
                "{} lies on {}; leave datastore out, or create the VM on {}",
                spec.id, spec.datastore, text.text
            );
            return section.error("datastore", what);
        }
        Ok(())
    }

    fn fault(&self, doc: &EventDoc, section: &Section<'_, '_>) -> Read<Fault> {
        let named = |key: &str| section.text(key)?.map(|text| self.host(&text)).transpose();
        let maybe_host = named("host")?;
        let host = maybe_host.unwrap_or(0);
        let vm = section.text("vm")?.map(|text| self.vm(&text)).transpose()?;
        let datastore = section
            .text("datastore")?
            .map(|text| self.datastore(&text))
            .transpose()?;
        let network = section
            .text("network")?
            .map(|text| self.network(&text))
            .transpose()?;
        let time = section.time("time")?.unwrap_or(0);
        let storage = |fault| Fault::Datastore {
            fault,
            datastore: datastore.unwrap_or(0),
            host: maybe_host,
        };
        let device = |fault| Fault::FenceDevice {
            host: maybe_host,
            fault,
        };
        let some_vm = vm.unwrap_or(0);
        if !doc.playable {
            return Ok(Fault::NotPlayable(doc.name));
        }
        if doc.name.starts_with("vm.") {
            self.at_home(section, some_vm)?;
        }
        Ok(match doc.name {
            "host.power_off" => Fault::HostPowerOff { host },
            "host.power_on" => Fault::HostPowerOn { host },
            "host.pause" => Fault::HostPause { host },
            "host.resume" => Fault::HostResume { host },
            "host.shutdown" => Fault::HostShutdown { host },
            "host.reboot" => Fault::HostReboot { host },
            "host.drill" => Fault::HostDrill {
                host,
                time: section.time("time")?,
                insists: section.truth("force")?.unwrap_or(false),
            },
            "agent.kill" => Fault::AgentKill { host },
            "agent.restart" => Fault::AgentRestart {
                host,
                time: section.time("time")?.unwrap_or(20 * SECOND),
                formats: formats(section)?,
            },
            "guard.kill" => Fault::GuardKill { host },
            "agent.hang" => Fault::AgentHang { host },
            "agent.resume" => Fault::AgentResume { host },
            "guard.hang" => Fault::GuardHang { host },
            "guard.resume" => Fault::GuardResume { host },
            "network.cut" => Fault::NetworkCut { host, network },
            "network.partition" => Fault::NetworkPartition {
                groups: self.groups(section)?,
            },
            "network.drop" => Fault::NetworkDrop {
                from: named("from")?.unwrap_or(0),
                to: named("to")?.unwrap_or(0),
            },
            "network.loss" => {
                let percent = section.number("percent")?.unwrap_or(0);
                if percent > 100 {
                    return section.error("percent", "percent is at most 100");
                }
                Fault::NetworkLoss {
                    percent,
                    host: maybe_host,
                }
            }
            "network.delay" => Fault::NetworkDelay {
                time,
                host: maybe_host,
            },
            "network.heal" => Fault::NetworkHeal {
                host: maybe_host,
                network,
            },
            "gateway.down" => Fault::GatewayDown,
            "gateway.up" => Fault::GatewayUp,
            "datastore.apd" => storage(StorageFault::Apd),
            "datastore.pdl" => storage(StorageFault::Pdl),
            "datastore.slow" => storage(StorageFault::Slow(time)),
            "datastore.read_only" => storage(StorageFault::ReadOnly),
            "datastore.full" => storage(StorageFault::Full),
            "datastore.heal" => Fault::DatastoreHeal {
                datastore,
                host: maybe_host,
            },
            "vm.crash" => Fault::VmCrash { vm: some_vm },
            "vm.oom_kill" => Fault::VmOomKill { vm: some_vm },
            "vm.disk_error" => Fault::VmDiskError {
                vm: some_vm,
                host: maybe_host,
            },
            "vm.disk_heal" => Fault::VmDiskHeal { vm: some_vm },
            "guest.shutdown" => Fault::GuestShutdown { vm: some_vm },
            "guest.hang" => Fault::GuestHang { vm: some_vm },
            "guest.panic" => Fault::GuestPanic { vm: some_vm },
            "vm.power_on" => Fault::VmPowerOn {
                vm: some_vm,
                host: maybe_host,
            },
            "vm.power_off" => Fault::VmPowerOff { vm: some_vm },
            "clock.drift" => {
                let ppm = section.integer("ppm")?.unwrap_or(0);
                if ppm.abs() > 500_000 {
                    return section.error("ppm", "ppm is between -500000 and 500000");
                }
                Fault::ClockDrift { host, ppm }
            }
            "start.fail" => {
                let times = section.number("times")?.unwrap_or(1);
                if maybe_host.is_none() && vm.is_none() {
                    return section.error("do", "start.fail needs host or vm");
                }
                Fault::StartFail {
                    host: maybe_host,
                    vm,
                    times,
                }
            }
            "vm.create" => Fault::VmCreate {
                vm: some_vm,
                host: maybe_host,
                on: section.word("power", POWER)?.unwrap_or(true),
            },
            "vm.delete" => Fault::VmDelete { vm: some_vm },
            "maintenance.enter" => self.maintenance("maintenance.enter", host, true),
            "maintenance.exit" => self.maintenance("maintenance.exit", host, false),
            "config.set" => self.config_set(section, maybe_host)?,
            "fence_device.dead" => device(FenceFault::Dead),
            "fence_device.slow" => device(FenceFault::Slow(time)),
            "fence_device.stuck" => device(FenceFault::Stuck),
            "fence_device.lies" => device(FenceFault::Lies),
            "fence_device.heal" => device(FenceFault::Heal),
            "manager.down" => Fault::ManagerDown,
            "manager.up" => Fault::ManagerUp,
            other => {
                return section.error(
                    "do",
                    format!("{other} is listed as playable, but nothing plays it"),
                );
            }
        })
    }

    fn maintenance(&self, name: &'static str, host: usize, on: bool) -> Fault {
        let change = self.hosts.get(host).map(|(spec, _)| Change::Maintenance {
            host: spec.id.clone(),
            on,
        });
        Fault::Config {
            name,
            changes: change.into_iter().collect(),
            host: None,
        }
    }

    fn config_set(&self, section: &Section<'_, '_>, host: Option<usize>) -> Read<Fault> {
        let key = section.text("key")?.map(|t| t.text).unwrap_or_default();
        let value = section.value("value").and_then(|v| plain(v.get_ref()));
        let Some(value) = value else {
            return section.error(
                "value",
                format!("{key} takes a text, a number or true and false"),
            );
        };
        if let Err(error) = Settings::default().set(&key, &value) {
            return section.error("key", error.to_string());
        }
        Ok(Fault::Config {
            name: "config.set",
            changes: vec![Change::Set { key, value }],
            host,
        })
    }
}
