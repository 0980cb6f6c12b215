//! The deterministic simulator of Mainstay: the very agents that ship, on simulated hosts, networks,
//! datastores, guests and clocks, in virtual time.
//!
//! A run is one thread and one heap of events; everything random comes from the seed. The same seed
//! gives the same trace, byte for byte. What is simulated, and what is assumed away, is in
//! `docs/simulation.md` and `docs/faults.md`.
//!
//! # Never here
//! Wall-clock time, threads, hash maps; a judgement that rests on an agent's opinion of itself.
#![forbid(unsafe_code)]

mod arena;
pub mod bench;
pub mod campaign;
mod clock;
mod coverage;
mod expect;
mod invariants;
#[cfg(feature = "planted")]
pub mod planted;
mod report;
mod scenario;
mod shrink;
mod svg;
mod trace;
mod world;

pub use clock::{MS, Nanos, SECOND};
pub use coverage::{Coverage, Group, Row, Standing};
pub use expect::{Check, Expect, Verdict, VmFacts, Want, Watch, clock_text};
pub use invariants::Violation;
pub use report::{json_lines, people, result_json, verdicts};
pub use scenario::{
    DatastoreSetup, EVENTS, EventDoc, Fault, FenceFault, FenceSetup, HostSetup, Names, Planned,
    Scenario, ScenarioError, StorageFault, VmSetup, Weather, parse, to_toml,
};
pub use shrink::shrink;
pub use svg::timeline;
pub use trace::{Body, Entry};
pub use world::{Options, RunResult, run};
