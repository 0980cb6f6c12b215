//! From TOML to a checked scenario.

use super::fault::{EVENTS, EventDoc, Fault, StorageFault};
use super::read::{Section, Source, Text, integer, plain};
use super::{DatastoreSetup, HostSetup, Planned, Scenario, VmSetup, Weather};
use crate::clock::{MS, Nanos, SECOND};
use crate::expect::{Check, Expect, Want};
use mainstay_core::config::{
    Change, ClusterConfig, DatastoreKind, DatastoreSpec, FenceClass, HostSpec, IsolationResponse,
    RestartPriority, Rule, RuleKind, Settings, VmSpec, format_duration,
};
use mainstay_core::id::{DatastoreId, HostId, VmId};
use mainstay_core::time::Duration;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use toml::de::{DeTable, DeValue};

/// Why a scenario could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {message}")]
pub struct ScenarioError {
    /// The file.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub message: String,
}

type Read<T> = Result<T, ScenarioError>;

const TOP: &[&str] = &[
    "name",
    "source",
    "duration",
    "seed",
    "profile",
    "settings",
    "datastore",
    "host",
    "vm",
    "rule",
    "event",
    "expect",
    "weather",
    "liveness",
];
const DATASTORE: &[&str] = &[
    "id",
    "kind",
    "fence",
    "image_locks",
    "image_lock_expiry",
    "server",
];
const HOST: &[&str] = &[
    "id",
    "count",
    "cpu_mhz",
    "memory_mb",
    "datastores",
    "networks",
    "boot_time",
    "clock_ppm",
];
const VM: &[&str] = &[
    "id",
    "count",
    "host",
    "datastore",
    "cpu_mhz",
    "memory_mb",
    "power",
    "restart_priority",
    "isolation_response",
    "depends_on",
    "start_time",
    "shutdown_time",
    "guest_agent",
];
const RULE: &[&str] = &["kind", "mandatory", "vms", "hosts"];
const WEATHER: &[&str] = &[
    "loss",
    "duplication",
    "reset",
    "delay",
    "delay_ms",
    "stall",
    "stall_ms",
    "lost_ack",
    "late_effect",
    "late_ms",
    "not_done",
    "patience_ms",
    "guard_slow",
    "until_ms",
];
const PRIORITIES: &[(&str, RestartPriority)] = &[
    ("highest", RestartPriority::Highest),
    ("high", RestartPriority::High),
    ("medium", RestartPriority::Medium),
    ("low", RestartPriority::Low),
    ("lowest", RestartPriority::Lowest),
    ("disabled", RestartPriority::Disabled),
];
const POWER: &[(&str, bool)] = &[("on", true), ("off", false)];
const RESPONSES: &[(&str, IsolationResponse)] = &[
    ("leave_powered_on", IsolationResponse::LeavePoweredOn),
    ("power_off", IsolationResponse::PowerOff),
    ("shut_down", IsolationResponse::ShutDown),
];
const RULES: &[(&str, RuleKind)] = &[
    ("affinity", RuleKind::Affinity),
    ("anti_affinity", RuleKind::AntiAffinity),
    ("host_affinity", RuleKind::HostAffinity),
    ("host_anti_affinity", RuleKind::HostAntiAffinity),
];
const KINDS: &[&str] = &[
    "host.state",
    "election.started",
    "primary.elected",
    "primary.abdicated",
    "host.vouched",
    "host.leaving",
    "heartbeat.datastores",
    "agent.restart.planned",
    "config.changed",
    "isolation.declared",
    "isolation.ended",
    "isolation.response",
    "isolation.skipped",
    "datastore.owned",
    "datastore.released",
    "vm.protected",
    "vm.unprotected",
    "vm.restart.requested",
    "vm.restart.failed",
    "vm.restart.waiting",
    "vm.restart.abandoned",
    "lock.acquired",
    "lock.broken",
    "lock.lost",
    "lock.released",
    "vm.started",
    "vm.stopped",
    "vm.frozen",
    "vm.thawed",
    "vm.reset",
    "vm.migrated",
    "vmcp.apd",
    "vmcp.pdl",
    "vmcp.cleared",
    "fence.requested",
    "fence.confirmed",
    "fence.failed",
    "admission.refused",
    "config.issue",
    "fault",
];
const FIELDS: &[&str] = &[
    "observer",
    "host",
    "from",
    "to",
    "action",
    "reason",
    "datastore",
    "vm",
    "attempt",
    "version",
    "owner",
    "datastores",
    "generation",
    "issue",
    "why",
    "by",
    "between",
    "event",
    "never",
    "state",
    "running_on",
    "do",
];
const HOST_STATES: &[&str] = &[
    "live",
    "unreachable",
    "dead",
    "partitioned",
    "isolated",
    "agent_unreachable",
    "maintenance",
];

/// Reads a scenario; `file` is for the messages.
///
/// # Errors
/// [`ScenarioError`] with the line of whatever is unknown, missing, double or contradictory.
pub fn parse(file: &str, text: &str) -> Read<Scenario> {
    let source = Source { file, text };
    let document = DeTable::parse(text).map_err(|e| {
        let at = e.span().map_or(0, |s| s.start);
        source.error(at, format!("this is no TOML: {}", e.message()))
    })?;
    let top = Section::new(source, document.get_ref(), 0, "a scenario", TOP)?;
    top.need("name")?;
    top.need("duration")?;
    let mut building = Building::new(&top)?;
    building.hosts(&top)?;
    building.vms(&top)?;
    building.rules(&top)?;
    building.events(&top)?;
    building.expects(&top)?;
    building.finish(&top)
}

struct Building<'a> {
    source: Source<'a>,
    settings: Settings,
    datastores: Vec<(DatastoreSpec, DatastoreSetup)>,
    networks: Vec<String>,
    hosts: Vec<(HostSpec, HostSetup)>,
    vms: Vec<(VmSpec, VmSetup)>,
    rules: Vec<Rule>,
    created: BTreeMap<VmId, VmSpec>,
    events: Vec<Planned>,
    expects: Vec<Expect>,
}

fn position(what: &str, source: Source<'_>, text: &Text, known: &[&str]) -> Read<usize> {
    known
        .iter()
        .position(|k| *k == text.text)
        .ok_or_else(|| source.unknown(text.at, what, &text.text, known.iter().copied()))
}

impl<'a> Building<'a> {
    fn new(top: &Section<'a, '_>) -> Read<Self> {
        let source = top.source;
        let mut building = Self {
            source,
            settings: settings(top)?,
            datastores: Vec::new(),
            networks: Vec::new(),
            hosts: Vec::new(),
            vms: Vec::new(),
            rules: Vec::new(),
            created: BTreeMap::new(),
            events: Vec::new(),
            expects: Vec::new(),
        };
        for (table, at) in top.tables("datastore")? {
            let section = Section::new(source, table, at, "a datastore", DATASTORE)?;
            section.need("id")?;
            let Some(text) = section.text("id")? else {
                continue;
            };
            let id =
                DatastoreId::new(&text.text).map_err(|e| source.error(text.at, e.to_string()))?;
            if building.datastores.iter().any(|(d, _)| d.id == id) {
                return section.error("id", format!("datastore \"{id}\" is there twice"));
            }
            let kinds = [
                ("file", DatastoreKind::File),
                ("block", DatastoreKind::Block),
            ];
            let fences = [
                ("enforced", FenceClass::Enforced),
                ("open", FenceClass::Open),
            ];
            let spec = DatastoreSpec {
                id: id.clone(),
                kind: section.word("kind", &kinds)?.unwrap_or_default(),
                fence: section.word("fence", &fences)?.unwrap_or_default(),
                server: section.text("server")?.map(|t| t.text),
            };
            let setup = DatastoreSetup {
                id,
                image_locks: section.truth("image_locks")?.unwrap_or(true),
                image_lock_expiry: section.time("image_lock_expiry")?.unwrap_or(0),
            };
            building.datastores.push((spec, setup));
        }
        Ok(building)
    }

    fn host(&self, text: &Text) -> Read<usize> {
        let known: Vec<&str> = self.hosts.iter().map(|(h, _)| h.id.as_str()).collect();
        position("host", self.source, text, &known)
    }

    fn vm(&self, text: &Text) -> Read<usize> {
        let known: Vec<&str> = self.vms.iter().map(|(v, _)| v.id.as_str()).collect();
        position("VM", self.source, text, &known)
    }

    fn datastore(&self, text: &Text) -> Read<usize> {
        let known: Vec<&str> = self.datastores.iter().map(|(d, _)| d.id.as_str()).collect();
        position("datastore", self.source, text, &known)
    }

    fn network(&self, text: &Text) -> Read<usize> {
        let known: Vec<&str> = self.networks.iter().map(String::as_str).collect();
        position("network", self.source, text, &known)
    }

    fn hosts(&mut self, top: &Section<'a, '_>) -> Read<()> {
        for (table, at) in top.tables("host")? {
            let section = Section::new(self.source, table, at, "a host", HOST)?;
            let mut datastores: BTreeSet<DatastoreId> =
                self.datastores.iter().map(|(d, _)| d.id.clone()).collect();
            if let Some(named) = section.texts("datastores")? {
                datastores.clear();
                for text in &named {
                    let index = self.datastore(text)?;
                    datastores.extend(self.datastores.get(index).map(|(d, _)| d.id.clone()));
                }
            }
            let mut networks = Vec::new();
            let named = section.texts("networks")?;
            for text in named.unwrap_or_else(|| {
                vec![Text {
                    text: "mgmt0".into(),
                    at,
                }]
            }) {
                let index = self
                    .networks
                    .iter()
                    .position(|n| *n == text.text)
                    .unwrap_or_else(|| {
                        self.networks.push(text.text.clone());
                        self.networks.len() - 1
                    });
                networks.push(index);
            }
            let taken = |id: &str| self.hosts.iter().any(|(h, _)| h.id.as_str() == id);
            for id in ids(&section, "host", taken)? {
                let id = HostId::new(&id)
                    .map_err(|e| self.source.error(section.place("id"), e.to_string()))?;
                if self.hosts.iter().any(|(h, _)| h.id == id) {
                    return section.error("id", format!("host \"{id}\" is there twice"));
                }
                let spec = HostSpec {
                    id: id.clone(),
                    cpu_mhz: section.number("cpu_mhz")?.unwrap_or(20_000),
                    memory_mb: section.number("memory_mb")?.unwrap_or(65_536),
                    datastores: datastores.clone(),
                    maintenance: false,
                    networks: networks
                        .iter()
                        .filter_map(|n| self.networks.get(*n).cloned())
                        .collect(),
                };
                let setup = HostSetup {
                    id,
                    networks: networks.clone(),
                    boot_time: section.time("boot_time")?.unwrap_or(60 * SECOND),
                    ppm: section.integer("clock_ppm")?.unwrap_or(0),
                };
                self.hosts.push((spec, setup));
            }
        }
        Ok(())
    }

    fn vms(&mut self, top: &Section<'a, '_>) -> Read<()> {
        let mut dependencies: Vec<(usize, Vec<Text>)> = Vec::new();
        for (table, at) in top.tables("vm")? {
            let section = Section::new(self.source, table, at, "a VM", VM)?;
            let taken = |id: &str| self.vms.iter().any(|(v, _)| v.id.as_str() == id);
            for id in ids(&section, "vm", taken)? {
                let id = VmId::new(&id)
                    .map_err(|e| self.source.error(section.place("id"), e.to_string()))?;
                if self.vms.iter().any(|(v, _)| v.id == id) {
                    return section.error("id", format!("VM \"{id}\" is there twice"));
                }
                dependencies.extend(
                    section
                        .texts("depends_on")?
                        .map(|list| (self.vms.len(), list)),
                );
                let entry = self.vm_entry(&section, id)?;
                self.vms.push(entry);
            }
        }
        for (index, list) in dependencies {
            for text in list {
                let on = self.vm(&text)?;
                let id = self.vms.get(on).map(|(v, _)| v.id.clone());
                if let Some((spec, _)) = self.vms.get_mut(index) {
                    spec.depends_on.extend(id);
                }
            }
        }
        Ok(())
    }

    /// What a VM's table says, apart from its id and its dependencies.
    fn vm_entry(&self, section: &Section<'_, '_>, id: VmId) -> Read<(VmSpec, VmSetup)> {
        let host = section
            .text("host")?
            .map(|text| self.host(&text))
            .transpose()?;
        let index = section
            .text("datastore")?
            .map(|text| self.datastore(&text))
            .transpose()?;
        let Some(datastore) = self
            .datastores
            .get(index.unwrap_or(0))
            .map(|(d, _)| d.id.clone())
        else {
            return section.error("datastore", "a VM needs a datastore; add a [[datastore]]");
        };
        if let Some((spec, _)) = host.and_then(|h| self.hosts.get(h))
            && !spec.datastores.contains(&datastore)
        {
            return section.error("host", format!("{} does not mount {datastore}", spec.id));
        }
        let never = section
            .text("shutdown_time")?
            .is_some_and(|t| t.text == "never");
        let shutdown_time = if never {
            None
        } else {
            Some(section.time("shutdown_time")?.unwrap_or(5 * SECOND))
        };
        let spec = VmSpec {
            id: id.clone(),
            datastore,
            cpu_mhz: section.number("cpu_mhz")?.unwrap_or(500),
            memory_mb: section.number("memory_mb")?.unwrap_or(512),
            restart_priority: section
                .word("restart_priority", PRIORITIES)?
                .unwrap_or_default(),
            isolation_response: section.word("isolation_response", RESPONSES)?,
            depends_on: Vec::new(),
            guest_agent: section.truth("guest_agent")?.unwrap_or(true),
        };
        let setup = VmSetup {
            id,
            host,
            on: section.word("power", POWER)?.unwrap_or(true),
            start_time: section.time("start_time")?.unwrap_or(SECOND),
            shutdown_time,
        };
        Ok((spec, setup))
    }

    fn rules(&mut self, top: &Section<'a, '_>) -> Read<()> {
        for (table, at) in top.tables("rule")? {
            let section = Section::new(self.source, table, at, "a rule", RULE)?;
            section.need("kind")?;
            let Some(kind) = section.word("kind", RULES)? else {
                continue;
            };
            let mut rule = Rule {
                kind,
                mandatory: section.truth("mandatory")?.unwrap_or(true),
                vms: BTreeSet::new(),
                hosts: BTreeSet::new(),
            };
            for text in section.texts("vms")?.unwrap_or_default() {
                let index = self.vm(&text)?;
                rule.vms
                    .extend(self.vms.get(index).map(|(v, _)| v.id.clone()));
            }
            for text in section.texts("hosts")?.unwrap_or_default() {
                let index = self.host(&text)?;
                rule.hosts
                    .extend(self.hosts.get(index).map(|(h, _)| h.id.clone()));
            }
            self.rules.push(rule);
        }
        Ok(())
    }

    fn events(&mut self, top: &Section<'a, '_>) -> Read<()> {
        self.created_vms(top)?;
        for (table, start) in top.tables("event")? {
            let names = || EVENTS.iter().map(|e| e.name);
            let every: Vec<&str> = EVENTS
                .iter()
                .flat_map(|e| e.needs.iter().chain(e.may))
                .copied()
                .chain(["at", "do"])
                .collect();
            let section = Section::new(self.source, table, start, "an event", &every)?;
            section.need("at")?;
            section.need("do")?;
            let (Some(at), Some(what)) = (section.time("at")?, section.text("do")?) else {
                continue;
            };
            let Some(doc) = EVENTS.iter().find(|e| e.name == what.text) else {
                return Err(self.source.unknown(what.at, "event", &what.text, names()));
            };
            let keys: Vec<&str> = doc
                .needs
                .iter()
                .chain(doc.may)
                .copied()
                .chain(["at", "do"])
                .collect();
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
        let keys: Vec<&str> = doc
            .iter()
            .flat_map(|d| d.needs.iter().chain(d.may))
            .copied()
            .chain(["at", "do"])
            .collect();
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

    fn expects(&mut self, top: &Section<'a, '_>) -> Read<()> {
        for (table, at) in top.tables("expect")? {
            let section = Section::new(self.source, table, at, "an expectation", FIELDS)?;
            let expect = self.expect(&section)?;
            self.expects.push(expect);
        }
        Ok(())
    }

    fn expect(&self, section: &Section<'_, '_>) -> Read<Expect> {
        let window = match section.texts("between")? {
            None => None,
            Some(list) => {
                let [low, high] = list.as_slice() else {
                    return section.error("between", "between takes two times");
                };
                Some((section.as_time(low)?, section.as_time(high)?))
            }
        };
        let event = section.text("event")?;
        let never = section.text("never")?;
        if let Some(kind) = event.as_ref().or(never.as_ref()) {
            if event.is_some() && never.is_some() {
                return section.error("never", "an expectation has event or never, not both");
            }
            if !KINDS.contains(&kind.text.as_str()) {
                return Err(self.source.unknown(
                    kind.at,
                    "event kind",
                    &kind.text,
                    KINDS.iter().copied(),
                ));
            }
            let by = section.time("by")?.map(|by| (0, by));
            let fields = self.fields(section, &kind.text)?;
            let between = window.or(by);
            let text = describe_event(never.is_some(), &kind.text, &fields, between);
            let kind = kind.text.clone();
            let check = match never {
                Some(_) => Check::Never {
                    between,
                    kind,
                    fields,
                },
                None => Check::Event {
                    between,
                    kind,
                    fields,
                },
            };
            return Ok(Expect { text, check });
        }
        section.need("by")?;
        section.need("vm")?;
        let (Some(by), Some(name)) = (section.time("by")?, section.text("vm")?) else {
            return section.error("by", "an expectation of a state takes by and vm");
        };
        for key in [
            "observer",
            "host",
            "from",
            "to",
            "action",
            "reason",
            "datastore",
            "attempt",
            "between",
        ] {
            if section.value(key).is_some() {
                return section.error(
                    key,
                    format!("{key} belongs to an expectation with event or never"),
                );
            }
        }
        let vm = self.vm(&name)?;
        let states = [
            ("running", Want::Running),
            ("frozen", Want::Frozen),
            ("powered_off", Want::PoweredOff),
        ];
        let want = match (section.texts("running_on")?, section.text("state")?) {
            (Some(list), None) => Want::RunningOn(
                list.iter()
                    .map(|text| self.host(text))
                    .collect::<Read<Vec<_>>>()?,
            ),
            (None, Some(state)) => match states.iter().find(|(word, _)| *word == state.text) {
                Some((_, want)) => want.clone(),
                None => {
                    let known = states.iter().map(|(word, _)| *word);
                    return Err(self.source.unknown(state.at, "state", &state.text, known));
                }
            },
            _ => return section.error("by", "an expectation of a state takes running_on or state"),
        };
        let what = match &want {
            Want::RunningOn(hosts) => {
                let names: Vec<&str> = hosts
                    .iter()
                    .filter_map(|h| self.hosts.get(*h))
                    .map(|(h, _)| h.id.as_str())
                    .collect();
                format!("running on {}", names.join(" or "))
            }
            Want::Running => "running".into(),
            Want::Frozen => "frozen".into(),
            Want::PoweredOff => "powered off".into(),
        };
        let text = format!("by {} {} is {what}", show(by), name.text);
        Ok(Expect {
            text,
            check: Check::State { by, vm, want },
        })
    }

    fn fields(&self, section: &Section<'_, '_>, kind: &str) -> Read<Map<String, Value>> {
        let mut fields = Map::new();
        for (key, value) in section.entries() {
            if ["by", "between", "event", "never"].contains(&key) {
                continue;
            }
            if ["state", "running_on"].contains(&key) {
                return section.error(key, format!("{key} does not go with an event"));
            }
            let text = value.get_ref().as_str().map(|t| Text {
                text: t.into(),
                at: value.span().start,
            });
            if let Some(text) = &text {
                match key {
                    "host" | "observer" => self.host(text).map(drop)?,
                    "vm" => self.vm(text).map(drop)?,
                    "datastore" => self.datastore(text).map(drop)?,
                    "from" | "to" if kind == "host.state" => {
                        position("state of a host", self.source, text, HOST_STATES).map(drop)?;
                    }
                    "from" if kind == "lock.broken" => self.host(text).map(drop)?,
                    _ => {}
                }
            }
            let value = match value.get_ref() {
                DeValue::Integer(_) => integer(value.get_ref()).map(Value::from),
                DeValue::Boolean(truth) => Some(Value::from(*truth)),
                _ => text.map(|t| Value::from(t.text)),
            };
            let Some(value) = value else {
                return section.error(key, format!("{key} takes a text or a number"));
            };
            fields.insert(key.into(), value);
        }
        Ok(fields)
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

    fn finish(self, top: &Section<'_, '_>) -> Read<Scenario> {
        let seed = top.number("seed")?.unwrap_or(0);
        let split = |hosts: Vec<(HostSpec, HostSetup)>| hosts.into_iter().unzip();
        let (host_specs, hosts): (Vec<HostSpec>, Vec<HostSetup>) = split(self.hosts);
        let (vm_specs, vms): (Vec<VmSpec>, Vec<VmSetup>) = self.vms.into_iter().unzip();
        let (datastore_specs, datastores): (Vec<DatastoreSpec>, Vec<DatastoreSetup>) =
            self.datastores.into_iter().unzip();
        let config = ClusterConfig::new(
            CLUSTER,
            self.settings,
            host_specs,
            datastore_specs,
            vm_specs
                .into_iter()
                .filter(|v| !self.created.contains_key(&v.id))
                .collect(),
            self.rules,
        )
        .map_err(|e| self.source.error(top.place("settings"), e.to_string()))?;
        Ok(Scenario {
            name: top.text("name")?.map(|t| t.text).unwrap_or_default(),
            source: top.text("source")?.map(|t| t.text),
            duration: top.time("duration")?.unwrap_or(0),
            seed,
            config,
            networks: self.networks,
            hosts,
            vms,
            datastores,
            events: self.events,
            expects: self.expects,
            weather: weather(top)?,
            liveness: top.truth("liveness")?.unwrap_or(false),
            created: self.created,
        })
    }
}

/// The simulated cluster's id.
pub(crate) const CLUSTER: u64 = 0x6d61_696e_7374_6179;

fn settings(top: &Section<'_, '_>) -> Read<Settings> {
    let mut settings = Settings::default();
    let mut set = |key: &str, at: usize, value: &DeValue<'_>| {
        let text = plain(value).ok_or_else(|| {
            top.source.error(
                at,
                format!("{key} takes a text, a number or true and false"),
            )
        })?;
        settings
            .set(key, &text)
            .map_err(|e| top.source.error(at, e.to_string()))
    };
    if let Some(profile) = top.value("profile") {
        set("profile", profile.span().start, profile.get_ref())?;
    }
    if let Some(table) = top.value("settings") {
        let Some(entries) = table.get_ref().as_table() else {
            return top.error("settings", "settings is a table, written [settings]");
        };
        if let Some(profile) = entries.get("profile") {
            set("profile", profile.span().start, profile.get_ref())?;
        }
        for (key, value) in entries {
            if key.get_ref() != "profile" {
                set(key.get_ref(), key.span().start, value.get_ref())?;
            }
        }
    }
    settings
        .timing
        .check()
        .map_err(|e| top.source.error(top.place("settings"), e.to_string()))?;
    Ok(settings)
}

fn weather(top: &Section<'_, '_>) -> Read<Weather> {
    let Some(table) = top.value("weather").and_then(|w| w.get_ref().as_table()) else {
        return Ok(Weather::default());
    };
    let section = Section::new(
        top.source,
        table,
        top.place("weather"),
        "the weather",
        WEATHER,
    )?;
    let get = |key: &str| Ok(section.number(key)?.unwrap_or(0));
    Ok(Weather {
        loss: get("loss")?,
        duplication: get("duplication")?,
        reset: get("reset")?,
        delay: get("delay")?,
        delay_ms: get("delay_ms")?,
        stall: get("stall")?,
        stall_ms: get("stall_ms")?,
        lost_ack: get("lost_ack")?,
        late_effect: get("late_effect")?,
        late_ms: get("late_ms")?,
        not_done: get("not_done")?,
        patience_ms: get("patience_ms")?,
        guard_slow: get("guard_slow")?,
        until_ms: get("until_ms")?,
    })
}

/// The ids that a section makes: its own, or `count` numbered ones, numbers in use left out.
fn ids(section: &Section<'_, '_>, stem: &str, taken: impl Fn(&str) -> bool) -> Read<Vec<String>> {
    let free = (1_u64..)
        .map(|n| format!("{stem}-{n}"))
        .filter(|id| !taken(id));
    match (section.text("id")?, section.number("count")?) {
        (Some(_), Some(_)) => section.error("count", "a section has id or count, not both"),
        (Some(id), None) => Ok(vec![id.text]),
        (None, None) => Ok(free.take(1).collect()),
        (None, Some(count)) if count > 10_000 => section.error("count", "count is at most 10000"),
        (None, Some(count)) => Ok(free.take(usize::try_from(count).unwrap_or(0)).collect()),
    }
}

fn show(t: Nanos) -> String {
    format_duration(Duration::from_millis(t / MS))
}

fn describe_event(
    never: bool,
    kind: &str,
    fields: &Map<String, Value>,
    between: Option<(Nanos, Nanos)>,
) -> String {
    let mut text = String::from(if never { "never " } else { "" });
    text.push_str(kind);
    for (key, value) in fields {
        let value = value.as_str().map_or_else(|| value.to_string(), Into::into);
        text.push_str(&format!(" {key}={value}"));
    }
    if let Some((low, high)) = between {
        text.push_str(&format!(" between {} and {}", show(low), show(high)));
    }
    text
}
