//! The lab's shared storage, mounted for real: faults, locks, power loss, and what Mainstay does on it.
//!
//! Needs root and /dev/fuse; where they are missing, each test says that it skipped.
#![expect(clippy::unwrap_used, reason = "a test may fail")]
#![expect(clippy::indexing_slicing, reason = "a test may fail")]
#![expect(unreachable_pub, reason = "modules of a test program")]
#![expect(clippy::print_stdout, reason = "figures, and words for other tests")]

mod datastore;
mod faults;
mod figures;
mod helper;
mod kit;
mod launch;
mod locks;
mod power;
mod qemu;
mod remains;

/// Not a test: what processes of the other tests do, when these start this program again.
#[test]
#[ignore = "part of the other tests"]
fn helper() {
    helper::main();
}
