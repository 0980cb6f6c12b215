//! Adding datastores, and what is new on them, to a cluster: by an administrator, never by an agent.

use crate::fail::{Context, Failure, Result};
use crate::mount_cmd;
use crate::region_cmd::{self, FormatArgs, RegionArgs};
use crate::ui::line;
use clap::{Args, Subcommand};
use mainstay_agent::config::{AgentFile, ClusterFile};
use mainstay_core::config::{ClusterConfig, DatastoreKind, nearest};
use mainstay_core::id::DatastoreId;
use mainstay_datastore::Datastore;
use std::path::{Path, PathBuf};

/// Arguments of `datastore`.
#[derive(Debug, Args)]
pub(crate) struct DatastoreArgs {
    #[command(subcommand)]
    command: DatastoreCommand,
}

#[derive(Debug, Subcommand)]
enum DatastoreCommand {
    /// Add a datastore to the cluster, or what is new on one: heartbeats of hosts, locks of VMs
    #[command(
        after_help = "Run it once, on any host that mounts the datastore, after the change of cluster.toml and before the agents read it. A datastore of kind block is made by `mainstay datastore format` first."
    )]
    Add(AddArgs),
    /// Make the region of a datastore of kind block, on the device that agent.toml names
    Format(FormatArgs),
    /// Show the region of a datastore of kind block: its head, hosts and locks
    Inspect(RegionArgs),
    /// Check a datastore from this host: the mount of one of kind file (options, locks, how long a heartbeat takes),
    /// every checksum of a region; changes nothing
    Check(RegionArgs),
    /// Mend what has a second copy: the head, the names of registers and their marks
    Repair(RegionArgs),
}

#[derive(Debug, Args)]
struct AddArgs {
    /// The datastore, as cluster.toml names it
    datastore: String,
    /// The configuration of the host on which this runs
    #[arg(long, value_name = "FILE", default_value = "/etc/mainstay/agent.toml")]
    config: PathBuf,
}

pub(crate) fn run(json: bool, args: &DatastoreArgs) -> Result<()> {
    match &args.command {
        DatastoreCommand::Add(args) => add(json, args),
        DatastoreCommand::Format(args) => region_cmd::format(json, args),
        DatastoreCommand::Inspect(args) => region_cmd::inspect(json, args),
        DatastoreCommand::Check(args) => check(json, args),
        DatastoreCommand::Repair(args) => region_cmd::check(json, args, true),
    }
}

/// A datastore that a command is about, as this host has it.
pub(crate) struct Asked {
    pub(crate) agent: AgentFile,
    pub(crate) cluster: ClusterConfig,
    pub(crate) id: DatastoreId,
    pub(crate) mount: PathBuf,
}

impl Asked {
    /// Reads this host's files; `what` says what comes of it when they are wrong.
    pub(crate) fn read(datastore: &str, config: &Path, what: &'static str) -> Result<Self> {
        let agent = AgentFile::read(config).context(what)?;
        let cluster = ClusterFile::read(&agent.cluster)
            .and_then(|file| file.cluster_config())
            .context(what)?;
        agent.check_against(config, &cluster).context(what)?;
        let unknown = || {
            let known = cluster.datastores.keys().map(DatastoreId::as_str);
            let failure = Failure::new(format!("the cluster has no datastore \"{datastore}\""))
                .at(agent.cluster.display());
            match nearest(datastore, known) {
                Some(id) => failure.remedy(format!("did you mean \"{id}\"?")),
                None => failure.remedy("add [[datastore]] to the file first"),
            }
        };
        let id = DatastoreId::new(datastore).map_err(|_| unknown())?;
        if !cluster.datastores.contains_key(&id) {
            return Err(unknown());
        }
        let mount = agent.datastores.get(&id).cloned().ok_or_else(|| {
            Failure::new(format!("{} does not mount {id}", agent.host))
                .at(config.display())
                .remedy("run this on a host that does")
        })?;
        Ok(Self {
            agent,
            cluster,
            id,
            mount,
        })
    }

    pub(crate) fn kind(&self) -> DatastoreKind {
        let spec = self.cluster.datastores.get(&self.id);
        spec.map(|spec| spec.kind).unwrap_or_default()
    }
}

fn check(json: bool, args: &RegionArgs) -> Result<()> {
    let asked = args.read("the datastore was not checked")?;
    match asked.kind() {
        DatastoreKind::Block => region_cmd::check(json, args, false),
        DatastoreKind::File => mount_cmd::check(json, &asked),
    }
}

fn add(json: bool, args: &AddArgs) -> Result<()> {
    let Asked {
        agent,
        cluster,
        id,
        mount,
    } = Asked::read(&args.datastore, &args.config, "nothing was added")?;
    let here = mainstay_agent::here(&agent).context("nothing was added")?;
    let made = Datastore::add(&mount, &cluster, &id, &here)
        .context(format!("{id} was not added"))
        .map_err(|e| e.at(mount.display()))?;
    let records: Option<Vec<String>> =
        made.map(|keys| keys.iter().map(|key| key.file_name()).collect());
    if json {
        let value = serde_json::json!({
            "datastore": id.as_str(), "mount": mount, "new": records.is_none(), "records": records.unwrap_or_default(),
        });
        line(value);
        return Ok(());
    }
    match records {
        None => line(format!("{id} was added at {}", mount.display())),
        Some(records) if records.is_empty() => line(format!(
            "{id} has been added before, and nothing on it is missing"
        )),
        Some(records) => {
            line(format!("{id} has been added before; new on it:"));
            for record in records {
                line(format!("  {record}"));
            }
        }
    }
    Ok(())
}
