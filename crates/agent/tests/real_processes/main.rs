//! Real processes: agents, guards and embedded guests on loopback addresses.

mod both_gone;
mod cluster;
mod control;
mod fencing;
mod guard;
mod guests;
mod harness;
mod networks;
mod start_guard;
