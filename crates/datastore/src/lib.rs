//! Performs the core's storage primitives on shared datastores.
//!
//! A `file` datastore is a directory that all hosts mount; its records are files below
//! `.mainstay/<cluster id>/`. A `block` datastore is a region on a device that all hosts share; its locks are
//! decided by Disk Paxos. Reads are fresh opens by path past the page cache (safety rule H14),
//! renewals are checked by path after the write (H15), and an effect that is not certain is *unknown*.
//!
//! # Never here
//! A decision; an operation that is tried again; a directory that is made because it is missing.

pub mod block;
#[cfg(test)]
mod contract;
mod create;
#[doc(hidden)]
pub mod decoders;
mod direct;
mod directory;
mod error;
mod file;
pub mod hygiene;
mod own;
mod priority;
mod probe;
mod store;
mod worker;

pub use block::{BlockDatastore, Here};
pub use error::{AddError, CreateError, OpenError};
pub use file::FileDatastore;
pub use store::Datastore;
pub use worker::{QUEUE_LENGTH, QueueFull, Worker};
