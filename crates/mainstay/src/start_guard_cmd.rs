//! `start-guard`: refuses the start of a VM that belongs to another host, for hooks and wrappers that start VMs beside
//! Mainstay.
//!
//! The datastores are read by a process of its own, which is left behind where they hang: a hook must end.

use crate::fail::{Context, Failure, Result};
use crate::ui::{self, line};
use clap::Args;
use mainstay_agent::start_guard::{Answer, Start, ask};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Arguments of `start-guard`.
#[derive(Debug, Args)]
pub(crate) struct StartGuardArgs {
    /// A VM that is to be started; one that the cluster does not have is not Mainstay's, and is not refused
    vm: Vec<String>,
    /// An image that is to be used: the VM whose it is is meant
    #[arg(long, value_name = "PATH")]
    image: Vec<String>,
    /// The configuration of this host
    #[arg(long, value_name = "FILE", default_value = "/etc/mainstay/agent.toml")]
    config: PathBuf,
    /// Refuse when the datastores have not answered after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
    /// A command to become when nothing is refused; VMs whose images it names are meant
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// Ask the datastores, however long they take
    #[arg(long, hide = true)]
    alone: bool,
}

pub(crate) fn run(json: bool, args: &StartGuardArgs) -> Result<()> {
    if args.alone {
        let answers = ask(&args.config, &start(args)).context(NOTHING)?;
        ui::json(&answers);
        return Ok(());
    }
    if args.vm.is_empty() && args.image.is_empty() && args.command.is_empty() {
        return Err(Failure::new("nothing is named that would be started")
            .remedy("name a VM, an --image, or a command after --"));
    }
    let answers = ask_a_process(args)?;
    let refused = answers.iter().find_map(|answer| {
        let refusal = answer.refused.as_ref()?;
        Some(
            Failure::new(format!("{} is not started: {}", answer.vm, refusal.why))
                .remedy(&refusal.remedy),
        )
    });
    if let Some(refused) = refused {
        return Err(refused);
    }
    if let Some((program, arguments)) = args.command.split_first() {
        let error = Command::new(program).args(arguments).exec();
        return Err(Failure::new(format!("{program} cannot be run: {error}"))
            .remedy("nothing refused it: check its path"));
    }
    if json {
        ui::json(&answers);
        return Ok(());
    }
    for answer in &answers {
        line(format_args!("{} may be started here", answer.vm));
    }
    if answers.is_empty() {
        line("not Mainstay's: nothing is refused");
    }
    Ok(())
}

const NOTHING: &str = "nothing is started";

fn start(args: &StartGuardArgs) -> Start {
    Start {
        names: args.vm.clone(),
        words: args.image.iter().chain(&args.command).cloned().collect(),
    }
}

fn ask_a_process(args: &StartGuardArgs) -> Result<Vec<Answer>> {
    let fault = |error: std::io::Error| Failure::new(format!("{NOTHING}: {error}"));
    let mut command = Command::new(std::env::current_exe().map_err(fault)?);
    command.args(["--json", "start-guard", "--alone", "--config"]);
    command.arg(&args.config);
    for image in args.image.iter().chain(&args.command) {
        command.arg(format!("--image={image}"));
    }
    command.args(&args.vm);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    // Left behind, it is nobody's: not of this one's terminal, not of the hook's process group.
    let mut child = command
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(fault)?;
    let (said, answer) = channel();
    let output = child.stdout.take();
    let errors = child.stderr.take();
    std::thread::spawn(move || {
        let first = |pipe: Option<Box<dyn std::io::Read>>| {
            let mut text = String::new();
            let _ = pipe.map(|pipe| BufReader::new(pipe).read_line(&mut text));
            text
        };
        let answered = first(output.map(|o| Box::new(o) as Box<dyn std::io::Read>));
        let failed = first(errors.map(|e| Box::new(e) as Box<dyn std::io::Read>));
        // Nobody waits any more: then it was too late.
        let _ = said.send((answered, failed));
        let _ = child.wait();
    });
    match answer.recv_timeout(Duration::from_secs(args.timeout)) {
        Ok((answered, failed)) => serde_json::from_str(&answered).map_err(|_| {
            // Its own words, as it says them for a program.
            let _ = std::io::stderr().flush();
            let value: serde_json::Value = serde_json::from_str(&failed).unwrap_or_default();
            let word = |key: &str| value.get(key).and_then(|v| v.as_str()).map(str::to_owned);
            let failure =
                Failure::new(word("error").unwrap_or_else(|| format!("{NOTHING}: no answer")));
            let failure = word("place").into_iter().fold(failure, Failure::at);
            word("remedy").into_iter().fold(failure, Failure::remedy)
        }),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            Err(Failure::new(format!(
                "{NOTHING}: the datastores have not answered for {} s",
                args.timeout
            ))
            .remedy("until they do, nobody knows who may run it: check the storage"))
        }
    }
}
