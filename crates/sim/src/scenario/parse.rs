//! From TOML to a checked scenario.

use super::fault::VM_KEYS;
use super::read::{Section, Source, Text, plain};
use super::{DatastoreSetup, FenceSetup, HostSetup, Planned, Scenario, VmSetup, Weather};
use crate::clock::{Nanos, SECOND};
use crate::expect::Expect;
use mainstay_core::config::{
    ClusterConfig, DatastoreKind, DatastoreSpec, FenceClass, HostSpec, IsolationResponse,
    RestartPriority, Rule, RuleKind, Settings, VmSpec,
};
use mainstay_core::id::{DatastoreId, HostId, VmId};
use mainstay_core::wire::{FORMAT_VERSION, OLDEST_VERSION};
use std::collections::{BTreeMap, BTreeSet};
use toml::de::{DeTable, DeValue};

mod events;
mod expects;
mod fields;
#[cfg(test)]
mod page;

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
    "fence",
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
    "formats",
];
const FENCE: &[&str] = &["host", "switches", "takes", "dies_with_host", "says_who"];
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
    building.fences(&top)?;
    building.vms(&top)?;
    building.rules(&top)?;
    building.events(&top)?;
    building.expects(&top)?;
    building.finish(&top)
}

struct Building<'a> {
    source: Source<'a>,
    duration: Nanos,
    settings: Settings,
    datastores: Vec<(DatastoreSpec, DatastoreSetup)>,
    networks: Vec<String>,
    hosts: Vec<(HostSpec, HostSetup)>,
    fences: Vec<FenceSetup>,
    vms: Vec<(VmSpec, VmSetup)>,
    /// VMs that are there when the run begins; the others are created by events.
    at_the_start: usize,
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
            duration: top.time("duration")?.unwrap_or(0),
            settings: settings(top)?,
            datastores: Vec::new(),
            networks: Vec::new(),
            hosts: Vec::new(),
            fences: Vec::new(),
            vms: Vec::new(),
            at_the_start: 0,
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

    /// What comes after the end of the run never comes.
    fn before_the_end(&self, section: &Section<'_, '_>, key: &str, at: Option<Nanos>) -> Read<()> {
        if at.is_some_and(|at| at > self.duration) {
            let what =
                "the scenario is over before that; make its duration longer or this time earlier";
            return section.error(key, what);
        }
        Ok(())
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
                    formats: formats(&section)?.unwrap_or(FORMAT_VERSION),
                };
                self.hosts.push((spec, setup));
            }
        }
        Ok(())
    }

    /// Fence devices: one of a host, or where no host is named one of each.
    fn fences(&mut self, top: &Section<'a, '_>) -> Read<()> {
        for (table, at) in top.tables("fence")? {
            let section = Section::new(self.source, table, at, "a fence device", FENCE)?;
            let hosts = match section.text("host")? {
                Some(text) => vec![self.host(&text)?],
                None => (0..self.hosts.len()).collect(),
            };
            let switches = section.text("switches")?;
            for host in hosts {
                if self.fences.iter().any(|f| f.host == host) {
                    return section.error("host", "a host has one fence device; leave one out");
                }
                let switches = match &switches {
                    None => Some(host),
                    Some(text) if text.text == "nothing" => None,
                    Some(text) => Some(self.host(text)?),
                };
                self.fences.push(FenceSetup {
                    host,
                    switches,
                    takes: section.time("takes")?.unwrap_or(SECOND),
                    dies_with_host: section.truth("dies_with_host")?.unwrap_or(false),
                    says_who: section.truth("says_who")?.unwrap_or(false),
                });
            }
        }
        Ok(())
    }

    fn vms(&mut self, top: &Section<'a, '_>) -> Read<()> {
        let mut dependencies: Vec<(usize, Vec<Text>)> = Vec::new();
        let mut known: BTreeSet<String> = BTreeSet::new();
        let keys = [&["id", "count"], VM_KEYS].concat();
        for (table, at) in top.tables("vm")? {
            let section = Section::new(self.source, table, at, "a VM", &keys)?;
            for id in ids(&section, "vm", |id| known.contains(id))? {
                let twice = !known.insert(id.clone());
                let id = VmId::new(&id)
                    .map_err(|e| self.source.error(section.place("id"), e.to_string()))?;
                if twice {
                    return section.error("id", format!("VM \"{id}\" is there twice"));
                }
                dependencies.extend(
                    section
                        .texts("depends_on")?
                        .map(|list| (self.vms.len(), list)),
                );
                let entry = self.vm_entry(&section, id, None)?;
                self.vms.push(entry);
            }
        }
        for (index, list) in dependencies {
            let on = self.vm_ids(&list)?;
            if let Some((spec, _)) = self.vms.get_mut(index) {
                spec.depends_on = on;
            }
        }
        self.at_the_start = self.vms.len();
        Ok(())
    }

    fn vm_ids(&self, names: &[Text]) -> Read<Vec<VmId>> {
        let mut ids = Vec::new();
        for name in names {
            let index = self.vm(name)?;
            ids.extend(self.vms.get(index).map(|(v, _)| v.id.clone()));
        }
        Ok(ids)
    }

    /// What a VM's table says, apart from its dependencies; what it leaves out is as it was, if the VM was
    /// there before.
    fn vm_entry(
        &self,
        section: &Section<'_, '_>,
        id: VmId,
        before: Option<&(VmSpec, VmSetup)>,
    ) -> Read<(VmSpec, VmSetup)> {
        let (was, stood) = (before.map(|(spec, _)| spec), before.map(|(_, setup)| setup));
        let host = section
            .text("host")?
            .map(|text| self.host(&text))
            .transpose()?;
        let index = section
            .text("datastore")?
            .map(|text| self.datastore(&text))
            .transpose()?;
        let first = || self.datastores.first().map(|(d, _)| d.id.clone());
        let datastore = match index.and_then(|i| self.datastores.get(i)) {
            Some((named, _)) => Some(named.id.clone()),
            None => was.map(|w| w.datastore.clone()).or_else(first),
        };
        let Some(datastore) = datastore else {
            return section.error("datastore", "a VM needs a datastore; add a [[datastore]]");
        };
        if let Some((spec, _)) = host.and_then(|h| self.hosts.get(h))
            && !spec.datastores.contains(&datastore)
        {
            return section.error("host", format!("{} does not mount {datastore}", spec.id));
        }
        let shutdown_time = match section.text("shutdown_time")? {
            Some(text) if text.text == "never" => None,
            Some(text) => Some(section.as_time(&text)?),
            None => stood.map_or(Some(5 * SECOND), |s| s.shutdown_time),
        };
        let number =
            |key, was: Option<u64>, default| Ok(section.number(key)?.or(was).unwrap_or(default));
        let spec = VmSpec {
            id: id.clone(),
            datastore,
            cpu_mhz: number("cpu_mhz", was.map(|w| w.cpu_mhz), 500)?,
            memory_mb: number("memory_mb", was.map(|w| w.memory_mb), 512)?,
            restart_priority: section
                .word("restart_priority", PRIORITIES)?
                .or(was.map(|w| w.restart_priority))
                .unwrap_or_default(),
            isolation_response: section
                .word("isolation_response", RESPONSES)?
                .or(was.and_then(|w| w.isolation_response)),
            depends_on: was.map(|w| w.depends_on.clone()).unwrap_or_default(),
            guest_agent: section
                .truth("guest_agent")?
                .or(was.map(|w| w.guest_agent))
                .unwrap_or(true),
        };
        let setup = VmSetup {
            id,
            host,
            on: section.word("power", POWER)?.unwrap_or(true),
            start_time: section
                .time("start_time")?
                .or(stood.map(|s| s.start_time))
                .unwrap_or(SECOND),
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
            rule_means_something(&section, &rule)?;
            self.rules.push(rule);
        }
        Ok(())
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
            vm_specs.into_iter().take(self.at_the_start).collect(),
            self.rules,
        )
        .map_err(|e| self.source.error(top.place("settings"), e.to_string()))?;
        Ok(Scenario {
            name: top.text("name")?.map(|t| t.text).unwrap_or_default(),
            source: top.text("source")?.map(|t| t.text),
            duration: self.duration,
            seed,
            config,
            networks: self.networks,
            hosts,
            vms,
            datastores,
            fences: self.fences,
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
    let Some(value) = top.value("weather") else {
        return Ok(Weather::default());
    };
    let Some(table) = value.get_ref().as_table() else {
        return top.error("weather", "weather is a table, written [weather]");
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

/// A rule about nobody, or with hosts where none matter, was meant otherwise.
fn rule_means_something(section: &Section<'_, '_>, rule: &Rule) -> Read<()> {
    let about_hosts = matches!(
        rule.kind,
        RuleKind::HostAffinity | RuleKind::HostAntiAffinity
    );
    if rule.vms.is_empty() {
        return section.error(
            "vms",
            "a rule names the VMs that it is about: vms = [\"vm-1\"]",
        );
    }
    if about_hosts && rule.hosts.is_empty() {
        return section.error(
            "hosts",
            "a rule of this kind names hosts: hosts = [\"host-1\"]",
        );
    }
    if !about_hosts && !rule.hosts.is_empty() {
        return section.error(
            "hosts",
            "a rule of this kind is about VMs alone; leave hosts out, or write host_affinity or host_anti_affinity",
        );
    }
    Ok(())
}

/// The newest format version that an agent understands.
fn formats(section: &Section<'_, '_>) -> Read<Option<u16>> {
    let Some(number) = section.number("formats")? else {
        return Ok(None);
    };
    match u16::try_from(number) {
        Ok(version) if (OLDEST_VERSION..=FORMAT_VERSION).contains(&version) => Ok(Some(version)),
        _ => section.error(
            "formats",
            format!("formats is a version between {OLDEST_VERSION} and {FORMAT_VERSION}"),
        ),
    }
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
