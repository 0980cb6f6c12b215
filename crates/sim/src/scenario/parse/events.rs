//! The events of a scenario.

use super::super::Planned;
use super::super::fault::{EVENTS, EventDoc, Fault, StorageFault};
use super::super::read::{Section, plain};
use super::{Building, POWER, Read, formats};
use crate::clock::SECOND;
use mainstay_core::config::{Change, Settings};
use mainstay_core::id::VmId;

impl<'a> Building<'a> {
    pub(super) fn events(&mut self, top: &Section<'a, '_>) -> Read<()> {
        self.created_vms(top)?;
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
            let fault = self.fault(doc, &section)?;
            self.events.push(Planned { at, fault });
        }
        self.events.sort_by_key(|e| e.at);
        Ok(())
    }

    /// VMs that a `vm.create` makes are known from the beginning, as names.
    fn created_vms(&mut self, top: &Section<'a, '_>) -> Read<()> {
        let doc = EVENTS.iter().find(|e| e.name == "vm.create");
        let keys: Vec<&str> = doc.into_iter().flat_map(EventDoc::keys).collect();
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
            if self.vms.iter().any(|(v, _)| v.id == id) {
                return section.error("vm", format!("VM \"{id}\" is there already"));
            }
            let (spec, mut setup) = self.vm_entry(&section, id.clone())?;
            setup.on = false;
            self.created.insert(id, spec.clone());
            self.vms.push((spec, setup));
        }
        Ok(())
    }

    fn fault(&self, doc: &EventDoc, section: &Section<'_, '_>) -> Read<Fault> {
        if !doc.playable {
            return Ok(Fault::NotPlayable(doc.name));
        }
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
        let some_vm = vm.unwrap_or(0);
        Ok(match doc.name {
            "host.power_off" => Fault::HostPowerOff { host },
            "host.power_on" => Fault::HostPowerOn { host },
            "host.pause" => Fault::HostPause { host },
            "host.resume" => Fault::HostResume { host },
            "host.shutdown" => Fault::HostShutdown { host },
            "host.reboot" => Fault::HostReboot { host },
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
            "network.partition" => {
                let mut groups = Vec::new();
                for group in section.lists("groups")?.unwrap_or_default() {
                    groups.push(
                        group
                            .iter()
                            .map(|text| self.host(text))
                            .collect::<Read<Vec<_>>>()?,
                    );
                }
                Fault::NetworkPartition { groups }
            }
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
            "guest.shutdown" => Fault::GuestShutdown { vm: some_vm },
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
