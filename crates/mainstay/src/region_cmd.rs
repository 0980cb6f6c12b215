//! Regions of `block` datastores: made, looked at, checked and mended by an administrator.

use crate::datastore_cmd::Asked;
use crate::fail::{Context, Failure, Result};
use crate::mount_cmd;
use crate::ui::{self, line};
use clap::Args;
use mainstay_core::config::DatastoreKind;
use mainstay_datastore::BlockDatastore;
use mainstay_datastore::block::{self, Findings, Found, Geometry, Name, Trial};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Between two looks at heartbeats.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Beyond the longest `break` that a heartbeat names: a host that lives has written by then.
const BEYOND: Duration = Duration::from_secs(1);
/// A heartbeat that is watched longer than that names no `break` of any profile.
const WATCHED_MOST: Duration = Duration::from_secs(120);

/// Which datastore a command is about.
#[derive(Debug, Args)]
pub(crate) struct RegionArgs {
    /// The datastore, as cluster.toml names it
    datastore: String,
    /// The configuration of the host on which this runs
    #[arg(long, value_name = "FILE", default_value = "/etc/mainstay/agent.toml")]
    config: PathBuf,
}

/// Arguments of `datastore format`.
#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    #[command(flatten)]
    region: RegionArgs,
    /// Hosts that find room
    #[arg(long, value_name = "NUMBER", default_value_t = 64)]
    hosts: u16,
    /// VMs that find room
    #[arg(long, value_name = "NUMBER", default_value_t = 8000)]
    vms: u32,
    /// Bytes that the device writes as one, 512 or 4096 [default: what the device says]
    #[arg(long, value_name = "BYTES")]
    sector: Option<u32>,
    /// Overwrite what lies there. What is in use is never overwritten
    #[arg(long)]
    force: bool,
}

impl RegionArgs {
    /// What this host's files say of it, of whatever kind it is.
    pub(crate) fn read(&self, what: &'static str) -> Result<Asked> {
        Asked::read(&self.datastore, &self.config, what)
    }

    fn asked(&self, what: &'static str) -> Result<Asked> {
        let asked = self.read(what)?;
        match asked.kind() {
            DatastoreKind::Block => Ok(asked),
            DatastoreKind::File => Err(Failure::new(format!("{what}: {} is of kind file", asked.id))
                .at(asked.agent.cluster.display())
                .remedy("only datastores of kind block have a region; `mainstay datastore add` makes a file datastore")),
        }
    }
}

pub(crate) fn format(json: bool, args: &FormatArgs) -> Result<()> {
    const WHAT: &str = "nothing was formatted";
    let asked = args.region.asked(WHAT)?;
    let path = &asked.mount;
    let at = |failure: Failure| failure.at(path.display());
    let size = block::size_of(path).map_err(|e| {
        let remedy = match e.kind() {
            std::io::ErrorKind::ResourceBusy => {
                "it is mounted, or part of another volume: free it first"
            }
            _ => "name a device, a logical volume, or a file that exists in agent.toml",
        };
        at(Failure::new(format!("{WHAT}: {e}")).remedy(remedy))
    })?;
    let sector = match args.sector {
        Some(sector) => sector,
        None => block::sector_of(path).context(WHAT).map_err(at)?,
    };
    let geometry = Geometry::sized(sector, args.hosts, args.vms);
    let is_file = path.is_file();
    if size < geometry.size() && !is_file {
        return Err(at(Failure::new(format!(
            "{WHAT}: the device has {size} bytes, a region for {} hosts and {} VMs takes {}",
            args.hosts,
            args.vms,
            geometry.size()
        ))
        .remedy("take a larger device, or --hosts and --vms")));
    }
    check_free(&asked, args.force, json)?;
    let head = BlockDatastore::format(path, &asked.cluster, &asked.id, &asked.agent.host, geometry)
        .context(WHAT)
        .map_err(at)?;
    if json {
        ui::json(&json!({
            "datastore": asked.id, "path": path, "region": format!("{:016x}", head.region),
            "bytes": geometry.size(), "sector": sector, "hosts": args.hosts, "vms": args.vms,
        }));
    } else {
        line(format_args!(
            "{} was formatted at {}: {} MiB for {} hosts and {} VMs, sectors of {sector} bytes",
            asked.id,
            path.display(),
            geometry.size().div_ceil(1 << 20),
            args.hosts,
            args.vms
        ));
    }
    Ok(())
}

/// Refuses what is in use, and without `--force` what is not empty.
fn check_free(asked: &Asked, force: bool, quiet: bool) -> Result<()> {
    let path = &asked.mount;
    let own = asked.cluster.cluster_id;
    let found = block::look(path, own)
        .context("nothing was formatted")
        .map_err(|e| e.at(path.display()))?;
    let (what, cluster) = match &found {
        Found::Nothing => return Ok(()),
        Found::Own(head) => (
            format!("the region of {} of this cluster", head.datastore),
            Some(own),
        ),
        Found::Cluster(id) => (format!("a region of cluster {id:016x}"), Some(*id)),
        Found::Signature(name) => ((*name).to_owned(), None),
        _ => ("data that is not known".to_owned(), None),
    };
    if !force {
        return Err(
            Failure::new(format!("nothing was formatted: {what} is there"))
                .at(path.display())
                .remedy("check the path in agent.toml; --force overwrites it"),
        );
    }
    match cluster {
        Some(cluster) => watch(path, cluster, quiet),
        None => Ok(()),
    }
}

/// Refuses while a heartbeat of that cluster's hosts moves.
fn watch(path: &std::path::Path, cluster: u64, quiet: bool) -> Result<()> {
    let look = || {
        block::heartbeats(path, cluster)
            .context("nothing was formatted")
            .map_err(|e| e.at(path.display()))
    };
    let Some((first, longest)) = look()? else {
        return Ok(());
    };
    let patience = (longest + BEYOND).min(WATCHED_MOST);
    if !quiet {
        let time = ui::seconds(patience);
        line(format_args!("watching the heartbeats there for {time}"));
    }
    let until = Instant::now() + patience;
    while Instant::now() < until {
        std::thread::park_timeout(LOOK_AGAIN);
        if look()?.is_none_or(|(now, _)| now != first) {
            return Err(
                Failure::new("nothing was formatted: a host writes its heartbeat there")
                    .at(path.display())
                    .remedy("it is in use; stop the agents of that cluster first"),
            );
        }
    }
    Ok(())
}

fn name(name: &Name) -> String {
    match name {
        Name::Owner => "owner lock".to_owned(),
        Name::Host(host) => host.to_string(),
        Name::Vm(vm) => vm.to_string(),
    }
}

pub(crate) fn inspect(json: bool, args: &RegionArgs) -> Result<()> {
    const WHAT: &str = "nothing is known of the region";
    let asked = args.asked(WHAT)?;
    let found = block::inspect(&asked.mount, asked.cluster.cluster_id)
        .context(WHAT)
        .map_err(|e| e.at(asked.mount.display()))?;
    let (head, geometry) = (&found.head, found.head.geometry);
    if json {
        let places = found.places.iter().map(|p| {
            let stamp = p.heartbeat.as_ref();
            json!({"place": p.place, "host": p.host, "boot": stamp.map(|s| format!("{:016x}", s.boot.0)), "sequence": stamp.map(|s| s.seq)})
        });
        let locks = found.locks.iter().map(|lock| {
            json!({"name": name(&lock.name), "generation": lock.newest, "damaged_slots": lock.damaged})
        });
        ui::json(&json!({
            "datastore": head.datastore, "region": format!("{:016x}", head.region), "format": head.format,
            "bytes": geometry.size(), "sector": geometry.sector, "hosts": geometry.hosts, "vms": geometry.vms,
            "slots": geometry.hosts * geometry.writers,
            "places": places.collect::<Vec<_>>(), "locks": locks.collect::<Vec<_>>(),
        }));
        return Ok(());
    }
    line(format_args!(
        "{}: region {:016x}, format {}, {} MiB, sectors of {} bytes; room for {} hosts and {} VMs, {} slots for each host",
        head.datastore,
        head.region,
        head.format,
        geometry.size().div_ceil(1 << 20),
        geometry.sector,
        geometry.hosts,
        geometry.vms,
        geometry.writers
    ));
    for place in &found.places {
        let beat = place.heartbeat.as_ref().map_or_else(
            || "its heartbeat is damaged".to_owned(),
            |s| format!("boot {:016x}, heartbeat {}", s.boot.0, s.seq),
        );
        line(format_args!(
            "  place {:3}  {}: {beat}",
            place.place, place.host
        ));
    }
    for lock in &found.locks {
        let newest = lock.newest.map_or("none".to_owned(), |g| g.to_string());
        let damaged = match lock.damaged {
            0 => String::new(),
            n => format!(", {n} slots damaged"),
        };
        line(format_args!(
            "  {}: generation {newest}{damaged}",
            name(&lock.name)
        ));
    }
    Ok(())
}

pub(crate) fn check(json: bool, args: &RegionArgs, mend: bool) -> Result<()> {
    const WHAT: &str = "the region was not checked";
    let asked = args.asked(WHAT)?;
    let cluster = asked.cluster.cluster_id;
    let read = |mend| {
        block::check(&asked.mount, cluster, mend)
            .context(WHAT)
            .map_err(|e| {
                e.at(asked.mount.display())
                    .remedy("where the head and its copy are both gone, nothing can be mended")
            })
    };
    let found = read(mend)?;
    // What was mended is judged by reading it again.
    let left = if mend { read(false)? } else { found.clone() };
    // A repair mends records; how fast the device is, is the business of a check.
    let trial = (!mend).then(|| tried(&asked)).transpose()?;
    show(json, &found, mend, trial.as_ref());
    if left.is_sound() {
        return match &trial {
            Some(trial) => mount_cmd::judged(&asked, &trial.advice),
            None => Ok(()),
        };
    }
    let remedy = if left.mendable.is_empty() {
        "nothing can be mended without a loss; each finding says what to do"
    } else {
        "`mainstay datastore repair` mends what has a second copy"
    };
    Err(Failure::new("the region is damaged")
        .at(asked.mount.display())
        .remedy(remedy))
}

/// How long writes like a heartbeat take there, in a place that is no agent's.
fn tried(asked: &Asked) -> Result<Trial> {
    let timing = &asked.cluster.settings.timing;
    let (freeze, interval) = (timing.freeze, timing.datastore_heartbeat);
    let cluster = asked.cluster.cluster_id;
    block::trial(&asked.mount, cluster, &asked.id, freeze, interval)
        .context("no write was tried")
        .map_err(|e| {
            e.at(asked.mount.display())
                .remedy("check the path of the datastore in agent.toml")
        })
}

fn show(json: bool, found: &Findings, mended: bool, trial: Option<&Trial>) {
    if json {
        let mut map = trial.map_or_else(Map::new, |trial| {
            mount_cmd::measured(&trial.renewals, &trial.advice)
        });
        map.insert("records".to_owned(), json!(found.records));
        map.insert("mended".to_owned(), json!(mended));
        map.insert("mendable".to_owned(), json!(found.mendable));
        map.insert("lasting".to_owned(), json!(found.lasting));
        map.insert("more".to_owned(), json!(found.more));
        ui::json(&Value::Object(map));
        return;
    }
    line(format_args!("{} records verified", found.records));
    let what = if mended { "mended" } else { "can be mended" };
    for text in &found.mendable {
        line(format_args!("  {what}: {text}"));
    }
    for text in &found.lasting {
        line(format_args!("  damaged: {text}"));
    }
    if found.more > 0 {
        line(format_args!("  and {} more", found.more));
    }
    if let Some(trial) = trial {
        mount_cmd::show_measured(&trial.renewals, &trial.advice);
    }
}
