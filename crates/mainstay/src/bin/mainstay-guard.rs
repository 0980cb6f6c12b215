//! The guard as a program of its own.
//!
//! The guard locks its whole program in memory, so this one holds the guard and nothing else: no
//! command line, no agent, no simulator, no lab. The agent starts it when it lies beside `mainstay`;
//! `mainstay guard` runs the same code. Never here: a dependency that the guard does not need.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let words = (
        arguments.next(),
        arguments.next(),
        arguments.next(),
        arguments.next(),
    );
    let config = match &words {
        (Some(guard), Some(option), Some(config), None)
            if guard == "guard" && option == "--config" =>
        {
            config
        }
        _ => {
            eprintln!("usage: mainstay-guard guard --config FILE (the agent starts it)");
            return ExitCode::from(2);
        }
    };
    match mainstay_agent::run_guard(Path::new(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: the guard cannot go on");
            let mut why: Option<&dyn Error> = Some(&error);
            while let Some(error) = why {
                eprintln!("  {error}");
                why = error.source();
            }
            ExitCode::FAILURE
        }
    }
}
