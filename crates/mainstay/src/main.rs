//! The one binary of Mainstay: the user's commands, the daemons, the simulator and the demo. The guard lies beside it
//! as a small program too (`bin/mainstay-guard.rs`), which the agent prefers.
//!
//! Decides nothing: it asks agents, starts them, and shows what they say.

mod add_cmd;
mod cli;
mod config_cmd;
mod control;
mod datastore_cmd;
mod demo;
mod drill_cmd;
mod fail;
mod fence_cmd;
mod lab_cmd;
mod mount_cmd;
mod region_cmd;
mod scenarios;
mod show;
mod sim_cmd;
mod start_guard_cmd;
mod ui;

use clap::{CommandFactory, Parser};
use cli::{Cli, Command};
use fail::{Context, Failure, Result};
use std::process::ExitCode;

fn main() -> ExitCode {
    // A guest takes its arguments as the driver gives them; nothing of the command line is parsed.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "guest") {
        return mainstay_hypervisor::guest_main(arguments);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong_usage(&error),
    };
    let common = cli.common;
    match cli.command {
        Command::Demo(args) => demo::run(&common, &args),
        Command::Sim(args) => sim_cmd::run(args, common.json),
        Command::Lab(args) => lab_cmd::run(args, common.json),
        Command::Guest(args) => mainstay_hypervisor::guest_main(args.arguments),
        Command::Agent(args) => {
            if !args.whole {
                mainstay_agent::program::become_small_agent(&args.config);
            }
            let ended = mainstay_agent::run_agent(&args.config);
            finish(common.json, ended.context("the agent cannot go on"))
        }
        Command::Guard(args) => {
            if !args.whole {
                mainstay_agent::program::become_small_guard(&args.config);
            }
            let ended = mainstay_agent::run_guard(&args.config);
            finish(common.json, ended.context("the guard cannot go on"))
        }
        Command::Probe(args) => {
            let ended = mainstay_agent::probe::run(args.listen);
            finish(common.json, ended.context("the responder cannot go on"))
        }
        Command::Status => finish(common.json, show::status(&common)),
        Command::Hosts => finish(common.json, show::hosts(&common)),
        Command::Vms => finish(common.json, show::vms(&common)),
        Command::Events(args) => finish(common.json, show::events(&common, &args)),
        Command::Explain(args) => finish(common.json, show::explain(&common, &args)),
        Command::PowerOn(args) => finish(common.json, show::power_on(&common, &args)),
        Command::PowerOff(args) => finish(common.json, show::power_off(&common, &args)),
        Command::Config(args) => finish(common.json, config_cmd::config(&common, &args)),
        Command::Maintenance(args) => finish(common.json, config_cmd::maintenance(&common, &args)),
        Command::Add(args) => finish(common.json, add_cmd::run(&common, &args)),
        Command::Remove(args) => finish(common.json, config_cmd::remove(&common, &args)),
        Command::PrepareRestart => finish(common.json, config_cmd::prepare_restart(&common)),
        Command::Leave => finish(common.json, config_cmd::leave(&common)),
        Command::Datastore(args) => finish(common.json, datastore_cmd::run(common.json, &args)),
        Command::StartGuard(args) => finish(common.json, start_guard_cmd::run(common.json, &args)),
        Command::Drill(args) => finish(common.json, drill_cmd::run(&common, &args)),
        Command::Fence(args) => finish(common.json, fence_cmd::run(&common, &args)),
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "mainstay", &mut script);
            ui::line(String::from_utf8_lossy(&script).trim_end());
            ExitCode::SUCCESS
        }
    }
}

/// Help and version, as the parser prints them; an error as JSON where JSON is asked for.
fn wrong_usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand as NothingAsked;
    let code = ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    let arguments = std::env::args_os().take_while(|argument| argument != "--");
    let json = arguments.into_iter().any(|argument| argument == "--json");
    if !json || !error.use_stderr() || error.kind() == NothingAsked {
        // Nobody is left to be told when the output is closed.
        let _ = error.print();
        return code;
    }
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let what = lines.next().unwrap_or_default();
    let what = what.strip_prefix("error: ").unwrap_or(what);
    let remedy: Vec<&str> = lines.collect();
    fail::report(&Failure::new(what).remedy(remedy.join("; ")), true);
    code
}

fn finish(json: bool, result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail::report(&failure, json),
    }
}
