//! Changing a running cluster: settings, maintenance, hosts and VMs. Any agent takes a change; it is made
//! by the primary, and accepted only when it is on disk.

use crate::cli::Common;
use crate::control::Target;
use crate::fail::{Context, Failure, Result};
use crate::ui::{self, Table, line};
use clap::{Args, Subcommand};
use mainstay_core::config::vsphere;
use mainstay_core::config::{Change, ClusterConfig, SETTINGS, Settings};
use mainstay_core::id::{HostId, VmId};
use serde_json::json;
use std::time::{Duration, Instant};

/// A few VMs at a time are moved, each by one swap of its lock; a full host takes some seconds.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks whether all are.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Arguments of `config`.
#[derive(Debug, Args)]
pub(crate) struct ConfigCommandArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Show every setting with its value
    Show(ShowArgs),
    /// Change settings while the cluster runs: all of those that are named, or none
    #[command(
        after_help = "Examples: mainstay config set isolation_response power_off\n          mainstay config set profile fast dead 3s\n          mainstay config set das.isolationShutdownTimeout 120"
    )]
    Set(SetArgs),
    /// Print the configuration that is in force, with hosts and VMs, as a cluster.toml
    #[command(
        after_help = "For a host that joins, and to bring the file of one that is in the cluster up to date:\n          mainstay config export > /etc/mainstay/cluster.toml"
    )]
    Export,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// Under the names of vSphere's advanced options, where there is an equal
    #[arg(long)]
    vsphere: bool,
}

#[derive(Debug, Args)]
struct SetArgs {
    /// A setting and its value, as cluster.toml writes them, or an option of vSphere's; more pairs may follow
    #[arg(required = true, num_args = 2.., value_names = ["KEY", "VALUE"])]
    pairs: Vec<String>,
}

/// Arguments of `maintenance`.
#[derive(Debug, Args)]
pub(crate) struct MaintenanceArgs {
    #[command(subcommand)]
    command: MaintenanceCommand,
}

#[derive(Debug, Subcommand)]
enum MaintenanceCommand {
    /// Nothing is started there any more, and it is no primary; its VMs run on
    Enter(OneHost),
    /// It takes part again
    Exit(OneHost),
}

#[derive(Debug, Args)]
struct OneHost {
    /// The host
    host: String,
}

/// Arguments of `remove`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    #[command(subcommand)]
    command: RemoveCommand,
}

#[derive(Debug, Subcommand)]
enum RemoveCommand {
    /// Take a host out of the cluster, dead or alive, once nothing of its VMs names it any more
    Host(OneHost),
    /// Delete a VM that is switched off; its disk stays
    Vm(OneVm),
}

#[derive(Debug, Args)]
struct OneVm {
    /// The VM
    vm: String,
}

pub(crate) fn config(common: &Common, args: &ConfigCommandArgs) -> Result<()> {
    match &args.command {
        ConfigCommand::Show(args) => show(common, args),
        ConfigCommand::Set(args) => set(common, args),
        ConfigCommand::Export => export(common),
    }
}

fn export(common: &Common) -> Result<()> {
    let client = Target::find(common.socket.as_deref()).client()?;
    let now = client.in_force()?;
    if common.json {
        ui::json(&json!({"version": now.version, "cluster": now.file}));
        return Ok(());
    }
    let text = toml::to_string(&now.file).context("nothing was exported")?;
    line(format_args!(
        "# Version {} of the configuration, as {} has it.\n{}",
        now.version,
        now.host,
        text.trim_end()
    ));
    Ok(())
}

fn show(common: &Common, args: &ShowArgs) -> Result<()> {
    let client = Target::find(common.socket.as_deref()).client()?;
    let config = client.config()?;
    let settings = &config.settings;
    if args.vsphere {
        let shown = vsphere::show(settings);
        if common.json {
            let all: Vec<_> = shown
                .iter()
                .map(|s| json!({"option": s.option, "value": s.value, "note": s.note}))
                .collect();
            ui::json(&json!({"version": config.version, "options": all}));
            return Ok(());
        }
        let mut table = Table::new(&["OPTION", "VALUE", "NOTE"]);
        for s in shown {
            table.row(vec![
                s.option.into(),
                s.value.into(),
                s.note.to_owned().into(),
            ]);
        }
        table.print();
        return Ok(());
    }
    if common.json {
        let all: serde_json::Map<String, serde_json::Value> = SETTINGS
            .iter()
            .filter_map(|s| Some((s.key.to_owned(), json!(settings.get(s.key)?))))
            .collect();
        ui::json(&json!({"version": config.version, "settings": all}));
        return Ok(());
    }
    let standard = Settings::of(settings.profile);
    let mut table = Table::new(&["SETTING", "VALUE", "", "WHAT IT IS"]);
    for doc in SETTINGS {
        let value = settings.get(doc.key).unwrap_or_default();
        let own = standard.get(doc.key).as_ref() != Some(&value);
        table.row(vec![
            doc.key.to_owned().into(),
            value.into(),
            if own { "changed" } else { "" }.to_owned().into(),
            doc.what.to_owned().into(),
        ]);
    }
    table.print();
    line(format_args!(
        "version {} of the cluster's configuration",
        config.version
    ));
    Ok(())
}

/// The changes that pairs of keys and values mean, vSphere's names among them.
fn changes(config: &ClusterConfig, pairs: &[String]) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    let mut settings = config.settings.clone();
    for pair in pairs.chunks(2) {
        let [key, value] = pair else {
            let last = pairs.last().map(String::as_str).unwrap_or_default();
            return Err(Failure::new(format_args!("\"{last}\" has no value"))
                .remedy("write pairs: mainstay config set KEY VALUE [KEY VALUE ...]"));
        };
        let wanted = if vsphere::is_vsphere_name(key) {
            vsphere::translate_for(&settings, key, value).context("nothing was changed")?
        } else {
            vec![(key.as_str(), value.clone())]
        };
        for (key, value) in wanted {
            settings.set(key, &value).context("nothing was changed")?;
            changes.push(Change::Set {
                key: key.to_owned(),
                value,
            });
        }
    }
    Ok(changes)
}

fn set(common: &Common, args: &SetArgs) -> Result<()> {
    let client = Target::find(common.socket.as_deref()).client()?;
    let changes = changes(&client.config()?, &args.pairs)?;
    make(common, changes)
}

/// Asks for the changes and says what became of them.
fn make(common: &Common, changes: Vec<Change>) -> Result<()> {
    let client = Target::find(common.socket.as_deref()).client()?;
    let what: Vec<String> = changes.iter().map(ToString::to_string).collect();
    let version = client.change(changes)?;
    if common.json {
        ui::json(&json!({"version": version, "changes": what}));
    } else {
        line(format_args!("{}", what.join("\n")));
        line(format_args!("on disk as version {version}"));
    }
    Ok(())
}

pub(crate) fn maintenance(common: &Common, args: &MaintenanceArgs) -> Result<()> {
    let (host, on) = match &args.command {
        MaintenanceCommand::Enter(args) => (&args.host, true),
        MaintenanceCommand::Exit(args) => (&args.host, false),
    };
    let host = HostId::new(host).map_err(Failure::new)?;
    make(common, vec![Change::Maintenance { host, on }])
}

pub(crate) fn remove(common: &Common, args: &RemoveArgs) -> Result<()> {
    let change = match &args.command {
        RemoveCommand::Host(args) => {
            Change::RemoveHost(HostId::new(&args.host).map_err(Failure::new)?)
        }
        RemoveCommand::Vm(args) => Change::RemoveVm(VmId::new(&args.vm).map_err(Failure::new)?),
    };
    make(common, vec![change])
}

/// Says that this host is being shut down, and waits until nothing of its VMs is left on it.
pub(crate) fn leave(common: &Common) -> Result<()> {
    let client = Target::find(common.socket.as_deref()).client()?;
    // Guests are given their time, then each lock is given back by one swap.
    let patience = client.config()?.settings.host_shutdown_timeout + PATIENCE;
    let begun = Instant::now();
    loop {
        let now = client.leave()?;
        if now.ready {
            if common.json {
                ui::json(&json!(now));
            } else {
                line(format_args!(
                    "{} may be shut down now: its VMs are stopped and their locks given back",
                    now.host
                ));
            }
            return Ok(());
        }
        if begun.elapsed() > patience {
            return Err(Failure::new(format_args!(
                "{} is leaving, and after {} s something of a VM is still there",
                now.host,
                patience.as_secs()
            ))
            .remedy("`mainstay vms` shows which; storage that hangs keeps a process alive"));
        }
        std::thread::park_timeout(LOOK_AGAIN);
    }
}

/// Waits until this host's VMs can do without agent and guard for a while.
pub(crate) fn prepare_restart(common: &Common) -> Result<()> {
    let client = Target::find(common.socket.as_deref()).client()?;
    let begun = Instant::now();
    loop {
        let now = client.prepare_restart()?;
        if now.ready {
            if common.json {
                ui::json(&json!(now));
            } else {
                line(format_args!(
                    "agent and guard of {} may be restarted now, and be away for {:.0} s; it is called off after five minutes",
                    now.host,
                    Duration::from_millis(now.away_ms).as_secs_f64().floor()
                ));
            }
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(Failure::new(format_args!(
                "{} is not ready after {} s: a VM has no unbroken right to run there, or is being started or stopped; `mainstay vms` shows it",
                now.host,
                PATIENCE.as_secs()
            )));
        }
        std::thread::park_timeout(LOOK_AGAIN);
    }
}
