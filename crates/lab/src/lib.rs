//! Whole clusters of real processes on one machine: hosts that are namespaces, networks and storage that
//! fail on demand, and what judges them from outside. The demo and the lab are made of it.
//!
//! # Never here
//! A decision about a VM or a host; an opinion of an agent taken for a fact; anything that outlives the
//! run that made it.

pub mod agree;
pub mod bench;
pub mod cgroup;
pub mod clock;
pub mod cluster;
pub mod dir;
pub mod fail;
pub mod files;
pub mod gluster;
pub mod guests;
pub mod namespace;
pub mod network;
pub mod peer;
pub mod place;
pub mod procs;
pub mod rounds;
pub mod run;
pub mod soak;
pub mod storage;
