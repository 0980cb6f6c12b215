//! The agent as a program of its own.
//!
//! A host runs an agent and no simulator, lab or command line. `mainstay agent` becomes this program when it
//! lies beside `mainstay`, and runs the same code otherwise. Never here: a dependency that the agent does
//! not need.

use std::process::ExitCode;

fn main() -> ExitCode {
    mainstay_agent::program::small_agent_main()
}
