//! From a scenario back to TOML, so that a failing run can be kept and replayed.

use super::{Fault, Scenario, VmSetup, Weather};
use crate::clock::{MICROSECOND, MS, Nanos};
use mainstay_core::config::{
    DatastoreKind, FenceClass, IsolationResponse, RestartPriority, RuleKind, SETTINGS, Settings,
    VmSpec,
};
use serde_json::Value;
use std::fmt::Write as _;

/// A time as a scenario writes it, to the microsecond, which is as exactly as it is read.
pub(super) fn time_text(t: Nanos) -> String {
    match t % MS / MICROSECOND {
        0 => format!("{}ms", t / MS),
        micros => format!("{}.{micros:03}ms", t / MS),
    }
}

fn ms(t: Nanos) -> String {
    format!("\"{}\"", time_text(t))
}

/// A text as TOML has it: what Rust escapes otherwise is no TOML.
fn quoted(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = items.map(quoted).collect();
    format!("[{}]", quoted.join(", "))
}

/// Writes a scenario as TOML that reads back as the same scenario (expectations are left out).
#[must_use]
pub fn to_toml(scenario: &Scenario) -> String {
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = write(scenario, &mut out);
    out
}

fn write(s: &Scenario, out: &mut String) -> std::fmt::Result {
    let names = s.names();
    writeln!(out, "name = {}", quoted(&s.name))?;
    if let Some(source) = &s.source {
        writeln!(out, "source = {}", quoted(source))?;
    }
    writeln!(out, "duration = {}\nseed = {}", ms(s.duration), s.seed)?;
    writeln!(
        out,
        "profile = \"{}\"\nliveness = {}",
        s.config.settings.profile.name(),
        s.liveness
    )?;
    settings(&s.config.settings, out)?;
    weather(&s.weather, out)?;
    for d in &s.datastores {
        let Some(spec) = s.config.datastores.get(&d.id) else {
            continue;
        };
        let kind = if spec.kind == DatastoreKind::Block {
            "block"
        } else {
            "file"
        };
        let fence = if spec.fence == FenceClass::Open {
            "open"
        } else {
            "enforced"
        };
        writeln!(
            out,
            "\n[[datastore]]\nid = \"{}\"\nkind = \"{kind}\"\nfence = \"{fence}\"",
            d.id
        )?;
        writeln!(
            out,
            "image_locks = {}\nimage_lock_expiry = {}",
            d.image_locks,
            ms(d.image_lock_expiry)
        )?;
        if let Some(server) = &spec.server {
            writeln!(out, "server = {}", quoted(server))?;
        }
    }
    for h in &s.hosts {
        let Some(spec) = s.config.hosts.get(&h.id) else {
            continue;
        };
        writeln!(out, "\n[[host]]\nid = \"{}\"", h.id)?;
        writeln!(
            out,
            "cpu_mhz = {}\nmemory_mb = {}",
            spec.cpu_mhz, spec.memory_mb
        )?;
        writeln!(
            out,
            "datastores = {}",
            list(spec.datastores.iter().map(|d| d.as_str()))
        )?;
        let networks = h
            .networks
            .iter()
            .filter_map(|n| names.networks.get(*n))
            .map(String::as_str);
        writeln!(
            out,
            "networks = {}\nboot_time = {}",
            list(networks),
            ms(h.boot_time)
        )?;
        writeln!(out, "clock_ppm = {}\nformats = {}", h.ppm, h.formats)?;
    }
    for f in &s.fences {
        let of = |h: usize| names.hosts.get(h).map_or("?", String::as_str);
        let switches = f.switches.map_or("nothing", of);
        writeln!(
            out,
            "\n[[fence]]\nhost = \"{}\"\nswitches = \"{switches}\"\ntakes = {}",
            of(f.host),
            ms(f.takes)
        )?;
        writeln!(
            out,
            "dies_with_host = {}\nsays_who = {}",
            f.dies_with_host, f.says_who
        )?;
    }
    for v in &s.vms {
        let Some(spec) = s.config.vms.get(&v.id) else {
            continue;
        };
        writeln!(
            out,
            "\n[[vm]]\nid = \"{}\"\ndatastore = \"{}\"",
            v.id, spec.datastore
        )?;
        if let Some(host) = v.host.and_then(|h| names.hosts.get(h)) {
            writeln!(out, "host = {}", quoted(host))?;
        }
        writeln!(out, "power = \"{}\"", if v.on { "on" } else { "off" })?;
        vm(v, spec, out)?;
    }
    for r in &s.config.rules {
        let kind = match r.kind {
            RuleKind::Affinity => "affinity",
            RuleKind::AntiAffinity => "anti_affinity",
            RuleKind::HostAffinity => "host_affinity",
            RuleKind::HostAntiAffinity => "host_anti_affinity",
        };
        writeln!(
            out,
            "\n[[rule]]\nkind = \"{kind}\"\nmandatory = {}",
            r.mandatory
        )?;
        writeln!(out, "vms = {}", list(r.vms.iter().map(|v| v.as_str())))?;
        writeln!(out, "hosts = {}", list(r.hosts.iter().map(|h| h.as_str())))?;
    }
    for e in &s.events {
        writeln!(
            out,
            "\n[[event]]\nat = {}\ndo = \"{}\"",
            ms(e.at),
            e.fault.name()
        )?;
        for (key, value) in e.fault.arguments(&names) {
            writeln!(out, "{key} = {}", toml_value(&value))?;
        }
        if let Fault::VmCreate { vm: index, .. } = &e.fault
            && let Some(setup) = s.vms.get(*index)
            && let Some(spec) = s.created.get(&setup.id)
        {
            writeln!(out, "datastore = \"{}\"", spec.datastore)?;
            vm(setup, spec, out)?;
        }
    }
    Ok(())
}

/// What a VM is, wherever it comes from.
fn vm(setup: &VmSetup, spec: &VmSpec, out: &mut String) -> std::fmt::Result {
    writeln!(
        out,
        "cpu_mhz = {}\nmemory_mb = {}",
        spec.cpu_mhz, spec.memory_mb
    )?;
    writeln!(
        out,
        "restart_priority = \"{}\"",
        priority(spec.restart_priority)
    )?;
    if let Some(response) = spec.isolation_response {
        writeln!(out, "isolation_response = \"{}\"", isolation(response))?;
    }
    if !spec.guest_agent {
        writeln!(out, "guest_agent = false")?;
    }
    if !spec.depends_on.is_empty() {
        let on = list(spec.depends_on.iter().map(|d| d.as_str()));
        writeln!(out, "depends_on = {on}")?;
    }
    writeln!(out, "start_time = {}", ms(setup.start_time))?;
    writeln!(
        out,
        "shutdown_time = {}",
        setup.shutdown_time.map_or("\"never\"".into(), ms)
    )
}

fn toml_value(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            format!(
                "[{}]",
                items.iter().map(toml_value).collect::<Vec<_>>().join(", ")
            )
        }
        Value::String(text) => quoted(text),
        other => other.to_string(),
    }
}

fn priority(p: RestartPriority) -> &'static str {
    match p {
        RestartPriority::Highest => "highest",
        RestartPriority::High => "high",
        RestartPriority::Medium => "medium",
        RestartPriority::Low => "low",
        RestartPriority::Lowest => "lowest",
        RestartPriority::Disabled => "disabled",
    }
}

fn isolation(r: IsolationResponse) -> &'static str {
    match r {
        IsolationResponse::LeavePoweredOn => "leave_powered_on",
        IsolationResponse::PowerOff => "power_off",
        IsolationResponse::ShutDown => "shut_down",
    }
}

/// Settings that are written whatever they are, as a campaign draws them.
const DRAWN: [&str; 5] = [
    "isolation_response",
    "max_restart_attempts",
    "restart_retry_delays",
    "heartbeat_datastores_per_host",
    "accept_late_writes",
];

/// The settings that a campaign draws, and each that is not its profile's.
fn settings(s: &Settings, out: &mut String) -> std::fmt::Result {
    let default = Settings::of(s.profile);
    writeln!(out, "\n[settings]")?;
    for doc in SETTINGS.iter().filter(|doc| doc.key != "profile") {
        let value = s.get(doc.key);
        if !DRAWN.contains(&doc.key) && value == default.get(doc.key) {
            continue;
        }
        let Some(value) = value else { continue };
        let bare = value.parse::<i64>().is_ok() || value.parse::<bool>().is_ok();
        let value = if bare { value } else { quoted(&value) };
        writeln!(out, "{} = {value}", doc.key)?;
    }
    Ok(())
}

fn weather(w: &Weather, out: &mut String) -> std::fmt::Result {
    if *w == Weather::default() {
        return Ok(());
    }
    writeln!(out, "\n[weather]")?;
    for (key, value) in [
        ("loss", w.loss),
        ("duplication", w.duplication),
        ("reset", w.reset),
        ("delay", w.delay),
        ("delay_ms", w.delay_ms),
        ("stall", w.stall),
        ("stall_ms", w.stall_ms),
        ("lost_ack", w.lost_ack),
        ("late_effect", w.late_effect),
        ("late_ms", w.late_ms),
        ("not_done", w.not_done),
        ("patience_ms", w.patience_ms),
        ("guard_slow", w.guard_slow),
        ("until_ms", w.until_ms),
    ] {
        writeln!(out, "{key} = {value}")?;
    }
    Ok(())
}
