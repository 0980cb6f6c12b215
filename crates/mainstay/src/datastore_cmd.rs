//! Adding datastores, and what is new on them, to a cluster: by an administrator, never by an agent.

use crate::fail::{Context, Failure, Result};
use crate::ui::line;
use clap::{Args, Subcommand};
use mainstay_agent::config::{AgentFile, ClusterFile};
use mainstay_core::config::nearest;
use mainstay_core::id::DatastoreId;
use mainstay_datastore::FileDatastore;
use std::path::PathBuf;

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
        after_help = "Run it once, on any host that mounts the datastore, after the change of cluster.toml and before the agents read it."
    )]
    Add(AddArgs),
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
    let DatastoreCommand::Add(args) = &args.command;
    let agent = AgentFile::read(&args.config).context("nothing was added")?;
    let cluster = ClusterFile::read(&agent.cluster)
        .and_then(|file| file.cluster_config())
        .context("nothing was added")?;
    agent
        .check_against(&args.config, &cluster)
        .context("nothing was added")?;
    let unknown = || {
        let known = cluster.datastores.keys().map(DatastoreId::as_str);
        let failure = Failure::new(format!(
            "the cluster has no datastore \"{}\"",
            args.datastore
        ))
        .at(agent.cluster.display());
        match nearest(&args.datastore, known) {
            Some(id) => failure.remedy(format!("did you mean \"{id}\"?")),
            None => failure.remedy("add [[datastore]] to the file first"),
        }
    };
    let id = DatastoreId::new(&args.datastore).map_err(|_| unknown())?;
    if !cluster.datastores.contains_key(&id) {
        return Err(unknown());
    }
    let mount = agent.datastores.get(&id).ok_or_else(|| {
        Failure::new(format!("{} does not mount {id}", agent.host))
            .at(args.config.display())
            .remedy("run this on a host that does")
    })?;
    let made = FileDatastore::add(mount, &cluster, &id, &agent.host)
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
