//! `mainstay datastore check` of a datastore of kind `file`: whether its mount on this host keeps what it promises.

use crate::datastore_cmd::Asked;
use crate::fail::{Context, Failure, Result};
use crate::ui::{self, line};
use mainstay_core::config::FenceClass;
use mainstay_core::id::HostId;
use mainstay_datastore::FileDatastore;
use mainstay_datastore::hygiene::{Advice, Demands, Hygiene, Weight};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// What the kernel says of the mounts of this process (proc(5)).
const MOUNTINFO: &str = "/proc/self/mountinfo";

pub(crate) fn check(json: bool, asked: &Asked) -> Result<()> {
    const WHAT: &str = "the datastore was not checked";
    let mountinfo = std::fs::read_to_string(MOUNTINFO)
        .context(WHAT)
        .map_err(|e| e.at(MOUNTINFO))?;
    let spec = asked.cluster.datastores.get(&asked.id);
    let timing = &asked.cluster.settings.timing;
    let mounting = asked.cluster.hosts.values();
    let mounting = mounting.filter(|host| host.datastores.contains(&asked.id));
    let hosts: Vec<HostId> = mounting.map(|host| host.id.clone()).collect();
    let demands = Demands {
        mountinfo: &mountinfo,
        enforced: spec.is_some_and(|spec| spec.fence == FenceClass::Enforced),
        freeze: timing.freeze,
        interval: timing.datastore_heartbeat,
        hosts: &hosts,
    };
    let cluster = asked.cluster.cluster_id;
    let own = &asked.agent.host;
    let found = FileDatastore::check(&asked.mount, cluster, &asked.id, own, &demands)
        .context(WHAT)
        .map_err(|e| e.at(asked.mount.display()))?;
    show(json, &found);
    judged(asked, &found.advice)
}

/// Fails where something breaks what a datastore promises.
pub(crate) fn judged(asked: &Asked, advice: &[Advice]) -> Result<()> {
    if advice.iter().all(|a| a.weight < Weight::Breaks) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{} cannot keep what it promises on this host",
        asked.id
    ))
    .at(asked.mount.display())
    .remedy("each finding says what to do; docs/datastores.md says why"))
}

fn word(weight: Weight) -> &'static str {
    match weight {
        Weight::Breaks => "breaks",
        Weight::Weakens => "weakens",
    }
}

/// What was measured and found, as JSON.
pub(crate) fn measured(renewals: &[Duration], advice: &[Advice]) -> Map<String, Value> {
    let slowest = renewals.iter().max().copied().unwrap_or_default();
    let advice = advice.iter();
    let advice = advice.map(|a| json!({"weight": word(a.weight), "text": a.text}));
    let mut map = Map::new();
    map.insert("renewals".to_owned(), json!(renewals.len()));
    let micros = u64::try_from(slowest.as_micros()).unwrap_or(u64::MAX);
    map.insert("slowest_renewal_us".to_owned(), json!(micros));
    map.insert("advice".to_owned(), advice.collect());
    map
}

/// The same for people.
pub(crate) fn show_measured(renewals: &[Duration], advice: &[Advice]) {
    let slowest = renewals.iter().max().copied().unwrap_or_default();
    line(format_args!(
        "{} writes like a heartbeat, the slowest took {:.1} ms",
        renewals.len(),
        slowest.as_secs_f64() * 1000.0
    ));
    for advice in advice {
        line(format_args!("  {}: {}", word(advice.weight), advice.text));
    }
}

fn show(json: bool, found: &Hygiene) {
    let mount = found.mount.as_ref();
    if json {
        let mut map = measured(&found.renewals, &found.advice);
        map.insert("type".to_owned(), json!(mount.map(|m| &m.fs_type)));
        map.insert("source".to_owned(), json!(mount.map(|m| &m.source)));
        map.insert("mounted_at".to_owned(), json!(mount.map(|m| &m.point)));
        map.insert("options".to_owned(), json!(mount.map(|m| &m.options)));
        ui::json(&Value::Object(map));
        return;
    }
    match mount {
        Some(mount) => line(format_args!(
            "{} from {} at {}: {}",
            mount.fs_type,
            mount.source,
            mount.point.display(),
            mount.options.join(",")
        )),
        None => line("the kernel does not tell how it is mounted"),
    }
    show_measured(&found.renewals, &found.advice);
}
