//! The core of Mainstay: every decision of the fault domain, without I/O.
//!
//! # The driver's contract
//! [`Agent`] is a state machine. Its driver (the agent process, or the simulator) hands in what
//! happened with [`Agent::handle`] or [`Agent::command`], then drains [`Agent::poll_output`] and
//! carries the outputs out in that order, then waits for the next event or for
//! [`Agent::poll_timeout`]. `handle` asserts that the queue was drained.
//!
//! Time and randomness come in: the same inputs give the same outputs, byte for byte. `no_std` is the
//! proof: no clock, socket, file, thread or hash map can be named in this crate.
//!
//! # Never here
//! I/O of any kind, wall-clock time, a decision that rests on another host's clock, an unknown outcome
//! read as success or failure.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod agent;
mod beacons;
pub mod config;
pub mod drill;
mod election;
pub mod event;
mod explain;
mod fencing;
pub mod guard;
pub mod health;
pub mod id;
mod inventory;
pub mod io;
mod isolation;
mod liveness;
mod lock;
mod membership;
#[cfg(test)]
mod model;
mod orphans;
mod ownership;
pub mod paxos;
mod placement;
#[cfg(feature = "planted")]
pub mod planted;
pub mod provision;
mod redundancy;
mod restart;
pub mod rng;
mod session;
pub mod status;
mod store;
mod tasks;
#[cfg(test)]
mod testing;
pub mod time;
pub mod vmcp;
mod vms;
mod vouch;
mod watched;
pub mod wire;

pub use agent::{Agent, Command, CommandError, Identity};
#[doc(hidden)]
pub use lock::drive as lock_machines;
pub use session::Handed;
