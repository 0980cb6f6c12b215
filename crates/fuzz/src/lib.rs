//! Every decoder of Mainstay on arbitrary bytes: what must hold of it whatever comes in.
//!
//! A target is one function from bytes to "something was decoded". A property that does not hold is a panic, as a
//! fuzzer takes it. The same functions are called by `tests/corpus.rs` (on stable Rust, with each `cargo test`) and
//! by the programs in `fuzz/` (`cargo xtask fuzz`), so that what a fuzzer found stays found.
//!
//! ```text
//! corpus/TARGET/seed-*     what the real encoders write (made again by `make_the_seeds` in tests/corpus.rs)
//! corpus/TARGET/found-*    what a fuzzer found interesting, one file for each thing that the seeds do not reach
//! corpus/TARGET/crash-*    what once broke a property
//! ```
//!
//! What the properties are: nothing panics; what decodes can be encoded, and that decodes to the same; what is
//! written is not much longer than what was read; a refusal says why.
//!
//! # Never here
//! A decoder: it lies where it is used, and this crate calls that one.
#![expect(
    clippy::missing_panics_doc,
    reason = "a property that does not hold is a panic here"
)]

mod agent;
mod guests;
mod mutate;
mod records;
mod seeds;
mod texts;
mod wire;

pub use mutate::mutate;

/// The cluster of all frames and datagrams here.
const CLUSTER: u64 = 9;

/// One decoder, or a few that read the same bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: of the program in `fuzz/fuzz_targets/`, and of its folder in `corpus/`.
    pub name: &'static str,
    /// Hands the bytes to the decoder and panics when a property does not hold; true when they were decoded.
    pub check: fn(&[u8]) -> bool,
    /// Mutations of each file of the corpus that the replay tries: many where one costs little.
    pub mutations: u64,
    seeds: fn() -> Vec<Vec<u8>>,
}

impl Target {
    /// What the real encoders write, for a corpus to begin with.
    #[must_use]
    pub fn seeds(&self) -> Vec<Vec<u8>> {
        (self.seeds)()
    }
}

const fn target(
    name: &'static str,
    check: fn(&[u8]) -> bool,
    mutations: u64,
    seeds: fn() -> Vec<Vec<u8>>,
) -> Target {
    Target {
        name,
        check,
        mutations,
        seeds,
    }
}

/// All targets.
pub const TARGETS: [Target; 18] = [
    target("datagram", agent::datagram, 400, seeds::datagrams),
    target("ping", agent::ping, 1000, seeds::pings),
    target("message", wire::message, 500, seeds::messages),
    target("stream", wire::stream, 500, seeds::streams),
    target("record", records::record, 500, seeds::records),
    target("list", records::list, 100, seeds::lists),
    target("region", records::region, 1000, seeds::regions),
    target("state", agent::state, 500, seeds::states),
    target("control", agent::control, 300, seeds::controls),
    target(
        "guard_events",
        agent::guard_events,
        1000,
        seeds::guard_events,
    ),
    target(
        "cluster_file",
        texts::cluster_file,
        200,
        seeds::cluster_files,
    ),
    target("agent_file", texts::agent_file, 100, seeds::agent_files),
    target("scenario", texts::scenario, 100, seeds::scenarios),
    target("names", texts::names, 50, seeds::names),
    target("qmp", guests::qmp, 300, seeds::qmp),
    target("guest", guests::image, 1000, seeds::guests),
    target("guest_note", guests::notes, 1000, seeds::guest_notes),
    target("fence_file", texts::fence_file, 200, seeds::fence_files),
];

/// Hands the bytes to the target of that name.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target of this name").check)(bytes);
}
