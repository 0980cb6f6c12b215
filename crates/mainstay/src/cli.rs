//! The command line.

use crate::demo::DemoArgs;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use std::net::SocketAddr;
use std::path::PathBuf;

/// High availability for virtual machines on QEMU/KVM hosts with shared storage.
#[derive(Debug, Parser)]
#[command(
    name = "mainstay",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
#[command(after_help = "To see it work: mainstay demo")]
pub(crate) struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub(crate) common: Common,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// Print JSON: one value, or one object for each line of a stream
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Control socket of the agent to ask [default: the running demo's, else /run/mainstay/control.sock]
    #[arg(long, global = true, value_name = "PATH", env = "MAINSTAY_SOCKET")]
    pub(crate) socket: Option<PathBuf>,
}

/// Every subcommand.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a cluster on this machine, kill a host, watch its VMs come back
    Demo(DemoArgs),
    /// Show the cluster: role, primary, margins, hosts, datastores, what is weaker here
    Status,
    /// List the hosts, with the verdict about each
    Hosts,
    /// List the VMs: where they are, and whether they are protected
    Vms,
    /// Show what happened, with the reasons
    Events(EventsArgs),
    /// Say why a VM or a host is as it is
    #[command(after_help = "Examples: mainstay explain vm-7, mainstay explain host host-2")]
    Explain(ExplainArgs),
    /// Power a VM on
    PowerOn(PowerOnArgs),
    /// Power a VM off: it is restarted by nobody until it is powered on again
    PowerOff(PowerOffArgs),
    /// Show the settings, or change them while the cluster runs
    Config(crate::config_cmd::ConfigCommandArgs),
    /// Take a host out of service, or put it back
    Maintenance(crate::config_cmd::MaintenanceArgs),
    /// Let a host join the running cluster, or make a VM in it
    Add(crate::add_cmd::AddArgs),
    /// Take a host or a VM out of the cluster
    Remove(crate::config_cmd::RemoveArgs),
    /// This host is being shut down: stop its VMs and give their locks back (for the service manager)
    Leave,
    /// Agent and guard of this host are about to be restarted or upgraded: wait until its VMs can do without them
    PrepareRestart,
    /// Add datastores, and what is new on them, to the cluster
    Datastore(crate::datastore_cmd::DatastoreArgs),
    /// Refuse the start of a VM here that is another host's: for hooks and wrappers that start VMs beside Mainstay
    #[command(
        after_help = "Examples: mainstay start-guard vm-7\n          mainstay start-guard -- qemu-system-x86_64 -drive file=/srv/ds-1/vm-7.raw,format=raw\nStatus 0: it may be started, or is not Mainstay's; 1: refused, with the reason on standard error."
    )]
    StartGuard(crate::start_guard_cmd::StartGuardArgs),
    /// Rehearse the loss of a host: say what would happen, or do it and report times
    #[command(
        after_help = "Examples: mainstay drill host-3 --plan\n          mainstay drill host-3 --run --time 45s"
    )]
    Drill(crate::drill_cmd::DrillArgs),
    /// Find out whether a host can be fenced from here: ask its fence device, as the agent would
    #[command(
        after_help = "Examples: mainstay fence test host-2\n          mainstay fence test host-2 --power-cycle"
    )]
    Fence(crate::fence_cmd::FenceArgs),
    /// Play scenarios and campaigns in virtual time
    Sim(crate::sim_cmd::SimArgs),
    /// Play the same scenarios on real agents, guests, networks and storage of this machine, and measure (root)
    Lab(crate::lab_cmd::LabArgs),
    /// Run this host's agent
    Agent(DaemonArgs),
    /// Run this host's guard (the agent starts it; so may a service manager)
    Guard(DaemonArgs),
    /// Answer probes for a host that has no address of its own
    Probe(ProbeArgs),
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// The guest of the embedded driver
    #[command(hide = true, disable_help_flag = true)]
    Guest(GuestArgs),
}

/// Arguments of `events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on with new events as they come
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only the last N
    #[arg(long, value_name = "N")]
    pub(crate) last: Option<u64>,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// `vm` or `host`, or the id alone
    #[arg(value_name = "vm|host|ID")]
    pub(crate) subject: String,
    /// The id
    pub(crate) id: Option<String>,
}

/// Arguments of `power-on`.
#[derive(Debug, Args)]
pub(crate) struct PowerOnArgs {
    /// The VM
    pub(crate) vm: String,
    /// The host to run it, where the running demo says how to reach it [default: the agent that is asked]
    #[arg(long)]
    pub(crate) host: Option<String>,
}

/// Arguments of `power-off`.
#[derive(Debug, Args)]
pub(crate) struct PowerOffArgs {
    /// The VM
    pub(crate) vm: String,
}

/// Arguments of the daemons.
#[derive(Debug, Args)]
pub(crate) struct DaemonArgs {
    /// The host's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/mainstay/agent.toml")]
    pub(crate) config: PathBuf,
    /// Run in this program, although the small one beside it takes less memory
    #[arg(long)]
    pub(crate) whole: bool,
}

/// Arguments of `probe`.
#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    /// Where to listen (UDP)
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: SocketAddr,
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: Shell,
}

/// Arguments of `guest`.
#[derive(Debug, Args)]
pub(crate) struct GuestArgs {
    /// As the driver gives them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<std::ffi::OsString>,
}
