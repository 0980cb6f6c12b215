//! `mainstay fence`: whether this host can fence another, found out before it has to.
//!
//! Asks the fence device from here, as the agent of this host would, and holds its answer against what the agent knows of
//! the host. Nothing is switched unless that is asked for and confirmed.

use crate::cli::Common;
use crate::control::Target;
use crate::fail::{Context, Failure, Result};
use crate::ui::{self, Tone, line};
use clap::{Args, Subcommand};
use mainstay_agent::Answered;
use mainstay_agent::config::{AgentFile, ClusterFile, FenceDevice, FenceFile};
use mainstay_core::config::{ClusterConfig, FencePolicy, format_duration, nearest};
use mainstay_core::event::HostState;
use mainstay_core::id::HostId;
use mainstay_core::io::{FenceOutcome, FenceRequest};
use mainstay_core::status::HostStatus;
use mainstay_core::wire::RoleTag;
use serde_json::json;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Between two looks at a power state, or at the agent's verdict.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Arguments of `fence`.
#[derive(Debug, Args)]
pub(crate) struct FenceArgs {
    #[command(subcommand)]
    command: FenceCommand,
}

#[derive(Debug, Subcommand)]
enum FenceCommand {
    /// Ask a host's fence device from here for the host's power; change nothing, unless --power-cycle is given
    Test(TestArgs),
}

/// Arguments of `fence test`.
#[derive(Debug, Args)]
struct TestArgs {
    /// The host whose fence device is tried
    host: String,
    /// The configuration of the host on which this runs
    #[arg(long, value_name = "FILE", default_value = "/etc/mainstay/agent.toml")]
    config: PathBuf,
    /// Really switch the host off, look that it is, and switch it on again
    #[arg(long)]
    power_cycle: bool,
    /// Do not ask whether the host may be switched off
    #[arg(long, requires = "power_cycle")]
    yes: bool,
    /// Switch it off although VMs run on it, or the agent cannot say whether any do
    #[arg(long, requires = "power_cycle")]
    force: bool,
}

/// `mainstay fence`.
pub(crate) fn run(common: &Common, args: &FenceArgs) -> Result<()> {
    match &args.command {
        FenceCommand::Test(args) => Test::new(common, args)?.run(args),
    }
}

/// A test under way.
struct Test<'a> {
    common: &'a Common,
    device: FenceDevice,
    own: HostId,
    config: ClusterConfig,
}

impl<'a> Test<'a> {
    fn new(common: &'a Common, args: &TestArgs) -> Result<Self> {
        const WHAT: &str = "no fence device was asked";
        let host = HostId::new(&args.host).map_err(Failure::new)?;
        let agent = AgentFile::read(&args.config).context(WHAT)?;
        let cluster = ClusterFile::read(&agent.cluster).context(WHAT)?;
        let written = cluster.cluster_config().context(WHAT)?;
        // What is in force may be newer than the file.
        let client = Target::find(common.socket.as_deref()).client().ok();
        let in_force = client.and_then(|c| c.config().ok());
        let config = in_force
            .filter(|c| c.cluster_id == written.cluster_id)
            .unwrap_or(written);
        let Some(path) = &agent.fence_file else {
            return Err(Failure::new(format_args!(
                "{WHAT}: this host has no fence devices"
            ))
            .at(args.config.display())
            .remedy("name a file with them: fence_file = \"fence.toml\" (docs/fencing.md shows one)"));
        };
        let devices = FenceFile::read(path).context(WHAT)?.devices;
        let Some(device) = devices.get(&host) else {
            let near = nearest(host.as_str(), devices.keys().map(HostId::as_str));
            let failure = Failure::new(format_args!("{WHAT}: there is none for {host}"));
            let failure = failure.at(path.display());
            return Err(match near {
                Some(near) => failure.remedy(format_args!("did you mean \"{near}\"?")),
                None => failure.remedy("add a [[device]] for it"),
            });
        };
        Ok(Self {
            common,
            device: device.clone(),
            own: agent.host,
            config,
        })
    }

    fn timeout(&self) -> Duration {
        self.config.settings.fence_timeout
    }

    /// What the agent of this host knows of the host; a secondary judges nobody.
    fn known(&self) -> Option<HostStatus> {
        let client = Target::find(self.common.socket.as_deref()).client().ok()?;
        let status = client.status().ok()?;
        if status.role != RoleTag::Primary {
            return None;
        }
        let host = &self.device.host;
        status.hosts.into_iter().find(|h| h.host == *host)
    }

    fn run(&self, args: &TestArgs) -> Result<()> {
        let host = &self.device.host;
        self.say(
            &json!({"device": host, "agent": self.device.program, "options": self.device.plain_options(), "name": self.device.name}),
            || {
                let options = self.device.plain_options().join(" ");
                format!("{host}: {} {options}", self.device.program.display())
            },
        );
        let reached = self.device.monitor(self.timeout());
        match &reached {
            Ok(took) => self.say(&json!({"monitor": "ok", "took_ms": millis(*took)}), || {
                format!("the device answers (monitor, {})", ui::seconds(*took))
            }),
            // Not all agents can tell more of a device than a host's power.
            Err(why) => self.say(&json!({"monitor": why}), || {
                Tone::Warn.paint(format_args!(
                    "the device cannot be looked at as a whole: {why}"
                ))
            }),
        }
        let powered = self.status()?;
        let known = self.known();
        self.agrees(powered, known.as_ref())?;
        self.would();
        if args.power_cycle {
            self.may_cycle(args, known.as_ref())?;
            self.cycle()?;
        }
        Ok(())
    }

    /// Asks for the power: true for on.
    fn status(&self) -> Result<bool> {
        let Answered { outcome, took } = self.device.ask(FenceRequest::Status, self.timeout());
        let powered = match &outcome {
            FenceOutcome::PowerOn => true,
            FenceOutcome::PowerOff => false,
            other => return Err(self.no_answer(other, took)),
        };
        let word = if powered { "on" } else { "off" };
        self.say(&json!({"power": word, "took_ms": millis(took)}), || {
            format!("the power is {word} (status, {})", ui::seconds(took))
        });
        Ok(powered)
    }

    fn no_answer(&self, outcome: &FenceOutcome, took: Duration) -> Failure {
        let host = &self.device.host;
        match outcome {
            FenceOutcome::Stranger(name) => Failure::new(format_args!(
                "the fence device of {host} switches \"{name}\" by its own word; nothing was switched"
            ))
            .remedy("correct the plug, or the name, in the fence file"),
            FenceOutcome::NotDone(why) | FenceOutcome::Unknown(why) => Failure::new(format_args!(
                "{host} cannot be fenced from here: {why} (after {})",
                ui::seconds(took)
            ))
            .remedy("look at its address and credentials in the fence file, and at the network of the management controllers"),
            other => Failure::new(format_args!(
                "{host} cannot be fenced from here: its device answers {other:?} to the question for its power"
            )),
        }
    }

    /// Holds the power against what is known of the host.
    fn agrees(&self, powered: bool, known: Option<&HostStatus>) -> Result<()> {
        let host = &self.device.host;
        if *host == self.own {
            if powered {
                return Ok(());
            }
            return Err(self.another(format_args!("this command runs on {host}")));
        }
        let Some(known) = known else {
            self.say(&json!({"verdict": null}), || {
                Tone::Dim
                    .paint("whether that is right is not known here: ask on the primary's host")
            });
            return Ok(());
        };
        let live = known.state == HostState::Live;
        self.say(&json!({"verdict": known.state}), || {
            let (word, tone) = crate::show::verdict(known.state);
            tone.paint(format_args!("{host} is {word}: {}", known.why))
        });
        if live && !powered {
            return Err(self.another(format_args!("{host} is live")));
        }
        Ok(())
    }

    fn another(&self, but: std::fmt::Arguments<'_>) -> Failure {
        let host = &self.device.host;
        Failure::new(format_args!(
            "the fence device of {host} switches something else: it calls {host} off, but {but}"
        ))
        .remedy("correct its entry in the fence file before it is needed")
    }

    /// What a fence would do.
    fn would(&self) {
        let settings = &self.config.settings;
        let timing = &settings.timing;
        let settles = 2 * timing.network_heartbeat.max(timing.datastore_heartbeat);
        let timeout = format_duration(self.timeout());
        if settings.fence_policy == FencePolicy::Off {
            self.say(&json!({"would": "nothing", "fence_policy": "off"}), || {
                Tone::Warn.paint("no host would be fenced: fence_policy is off")
            });
            return;
        }
        self.say(
            &json!({"would": ["status", "off", "status"], "timeout_ms": millis(self.timeout()), "settles_ms": millis(settles)}),
            || {
                format!(
                    "to fence it, its power would be asked for, switched off, and asked for until it is off, for {timeout} at the longest; it counts as dead after another {} without a sign of life",
                    format_duration(settles)
                )
            },
        );
    }

    fn may_cycle(&self, args: &TestArgs, known: Option<&HostStatus>) -> Result<()> {
        let host = &self.device.host;
        if *host == self.own {
            return Err(Failure::new(format_args!(
                "{host} was not switched off: this command runs on it"
            ))
            .remedy("test it from another host"));
        }
        let vms = known.map(|k| k.vms);
        if vms != Some(0) && !args.force {
            let why = match vms {
                Some(vms) => format!("VMs run on it ({vms})"),
                None => String::from("it is not known here whether VMs run on it"),
            };
            return Err(
                Failure::new(format_args!("{host} was not switched off: {why}")).remedy(
                    format_args!(
                        "run this on the primary's host when no VM is left on {host} (`mainstay maintenance enter {host}`), or insist with --force: they crash, and are restarted elsewhere"
                    ),
                ),
            );
        }
        if args.yes {
            return Ok(());
        }
        if self.common.json || !std::io::stdin().is_terminal() {
            return Err(Failure::new(format_args!(
                "{host} was not switched off: nobody is here to be asked"
            ))
            .remedy("add --yes"));
        }
        let mut out = anstream::stdout();
        let asked = write!(
            out,
            "{} ",
            Tone::Strong.paint(format_args!(
                "This switches {host} off, and on again. Type its id to go on:"
            ))
        );
        asked
            .and_then(|()| out.flush())
            .context("cannot ask for a confirmation")?;
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        read.context("cannot read the answer")?;
        if answer.trim() == host.as_str() {
            return Ok(());
        }
        Err(Failure::new("nothing was switched"))
    }

    /// Off, and confirmed; on again, and confirmed. The host is switched on also where the first did not come about.
    fn cycle(&self) -> Result<()> {
        let off = self.switch(FenceRequest::Off, false);
        let silent = off.is_ok().then(|| self.falls_silent());
        let on = self.switch(FenceRequest::On, true);
        off?;
        on?;
        silent.unwrap_or(Ok(()))
    }

    fn switch(&self, request: FenceRequest, wanted: bool) -> Result<()> {
        let host = &self.device.host;
        let word = if wanted { "on" } else { "off" };
        let began = Instant::now();
        let told = self.device.ask(request, self.timeout());
        let mut last = told.outcome;
        while began.elapsed() < 2 * self.timeout() {
            let Answered { outcome, .. } = self.device.ask(FenceRequest::Status, self.timeout());
            let is = match outcome {
                FenceOutcome::PowerOn => Some(true),
                FenceOutcome::PowerOff => Some(false),
                _ => None,
            };
            last = outcome;
            if is == Some(wanted) {
                let took = began.elapsed();
                self.say(&json!({"switched": word, "took_ms": millis(took)}), || {
                    Tone::Good.paint(format_args!(
                        "{host} is {word}, as its device says ({})",
                        ui::seconds(took)
                    ))
                });
                return Ok(());
            }
            std::thread::park_timeout(LOOK_AGAIN);
        }
        let why = match last {
            FenceOutcome::NotDone(why) | FenceOutcome::Unknown(why) => why,
            FenceOutcome::Stranger(name) => format!("its device calls it \"{name}\""),
            FenceOutcome::PowerOn => String::from("its power is still on"),
            FenceOutcome::PowerOff => String::from("its power is still off"),
            FenceOutcome::Done => String::from("its device names no power state"),
        };
        Err(
            Failure::new(format_args!("{host} could not be switched {word}: {why}")).remedy(
                format_args!("look at {host} itself: what its power is, is not known"),
            ),
        )
    }

    /// A host that was switched off is not heard any more.
    fn falls_silent(&self) -> Result<()> {
        let began = Instant::now();
        let patience = 2 * self.config.settings.timing.dead;
        while let Some(known) = self.known() {
            if known.state != HostState::Live {
                let took = began.elapsed();
                self.say(&json!({"silent": true, "took_ms": millis(took)}), || {
                    Tone::Good.paint(format_args!(
                        "{} is not heard any more: the device switches the right host",
                        known.host
                    ))
                });
                return Ok(());
            }
            if began.elapsed() > patience {
                return Err(self.another(format_args!("{} is still heard", known.host)));
            }
            std::thread::park_timeout(LOOK_AGAIN);
        }
        Ok(())
    }

    fn say(&self, as_json: &serde_json::Value, text: impl FnOnce() -> String) {
        if self.common.json {
            ui::json(as_json);
        } else {
            line(text());
        }
    }
}

fn millis(time: Duration) -> u64 {
    mainstay_core::time::millis(time)
}
