//! Performs the core's storage primitives on shared datastores.
//!
//! A `file` datastore is a directory that all hosts mount; its records are files below
//! `.mainstay/<cluster id>/`. Reads are fresh opens by path past the page cache (safety rule H14),
//! renewals are checked by path after the write (H15), and an effect that is not certain is *unknown*.
//!
//! # Never here
//! A decision; an operation that is tried again; a directory that is made because it is missing.

mod create;
mod direct;
mod error;
mod file;
mod probe;
mod worker;

pub use error::{AddError, CreateError, OpenError};
pub use file::FileDatastore;
pub use worker::{QUEUE_LENGTH, QueueFull, Worker};
