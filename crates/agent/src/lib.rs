//! The shell around Mainstay's core: configuration files, network, clock, the agent's loop, the guard
//! process, the control socket.
//!
//! # Never here
//! A decision about hosts, VMs or locks: those are the core's. This crate performs.

#[doc(hidden)]
pub mod agent_side;
mod bell;
mod clock;
pub mod config;
pub mod control;
mod datastores;
#[doc(hidden)]
pub mod decoders;
mod drivers;
mod events;
mod fence;
mod guard;
mod guard_link;
mod logging;
mod net;
mod persist;
pub mod pki;
pub mod probe;
pub mod program;
mod shell;
mod shm;
pub mod start_guard;
mod twin;
mod vms;
mod watchdog;
mod weak;

pub use control::server::ControlError;
pub use fence::Answered;
pub use guard::{GuardError, run_guard};
pub use guard_link::guard_events;
pub use net::stream::TlsError;
pub use shell::{AgentError, here, run_agent};
pub use shm::ShmError;
pub use twin::TwinError;
