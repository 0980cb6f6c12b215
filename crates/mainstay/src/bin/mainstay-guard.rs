//! The guard as a program of its own.
//!
//! The guard locks its whole program in memory, so this one holds the guard and nothing else: no
//! command line, no agent, no simulator, no lab. The agent starts it when it lies beside `mainstay`;
//! `mainstay guard` becomes it then too, and runs the same code otherwise. Never here: a dependency that the
//! guard does not need.

use std::process::ExitCode;

fn main() -> ExitCode {
    mainstay_agent::program::small_guard_main()
}
