//! The shell around Mainstay's core: configuration files, network, clock, the agent's loop, the guard
//! process, the control socket.
//!
//! # Never here
//! A decision about hosts, VMs or locks: those are the core's. This crate performs.

pub mod config;
pub mod control;
