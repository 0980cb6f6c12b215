//! Development commands of Mainstay: `cargo xtask COMMAND`.
//!
//! One command runs on a developer's machine exactly what CI runs, so that a green run here means a
//! green run there. Nothing in this crate is part of the product, and no crate depends on it.

#![expect(
    clippy::print_stdout,
    reason = "a command-line tool talks on standard output"
)]

mod bench;
mod cmd;
mod fuzz;
mod model;
mod packages;
mod planted;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
Development commands of Mainstay

Usage: cargo xtask COMMAND

Commands:
  test [--only STEP]... [--skip STEP]... [--no-install] [--list]
                          install what the tests need where it is missing, then run every check
  tidy                    the checks that no compiler makes: boundaries, lengths, waits, sources
  planted [--seeds N]     show that the simulator finds each planted bug within N seeds (1000)
  model [--bound N] [--model NAME] [--case TEXT]
                          every interleaving of locks, rights, owners and slots within bounds; 1 is what the
                          tests explore (2)
  bench [--runs N] [--profile NAME]...
                          failover times of the demo, real processes, embedded guests
  bench core [--only CASE] [--rounds N] [--settle SECONDS] [--calm]
                          what one agent costs: processor time, allocations, memory (docs/benchmarks.md)
  bench locks [--dir DIR] [--seconds N] [--only KIND] [--takeover] [--without-sanlock]
              [--takeover-only] [--profile NAME]... [--locks N]
                          what a lock and a heartbeat cost on both kinds of datastore, beside sanlock; how long it
                          takes to take the locks of a host that died
  bench guard [--rounds N] [--vms N] [--vcpus N] [--load N] [--dir DIR] [--program FILE]
                          how long guests run on after their right to run has ended, processors idle and busy
  fuzz [TARGET]... [--minutes N]
                          arbitrary bytes for each decoder, ten minutes each; needs cargo-fuzz and nightly
  help                    this text
";

fn main() -> ExitCode {
    match dispatch() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            error
                .chain()
                .skip(1)
                .for_each(|cause| eprintln!("  {cause}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((command, rest)) = arguments.split_first() else {
        bail!("no command given\n\n{USAGE}");
    };
    match command.as_str() {
        "test" => test::main(rest),
        "tidy" => tidy::main(rest),
        "planted" => planted::main(rest),
        "model" => model::main(rest),
        "bench" => bench::main(rest),
        "fuzz" => fuzz::main(rest),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(())
        }
        unknown => bail!("unknown command '{unknown}'\n\n{USAGE}"),
    }
}

/// The value that follows an option such as `--seeds`.
fn value_of<'a>(option: &str, rest: &mut impl Iterator<Item = &'a String>) -> Result<&'a String> {
    match rest.next() {
        Some(value) if !value.starts_with("--") => Ok(value),
        _ => bail!("{option} needs a value; see `cargo xtask help`"),
    }
}
