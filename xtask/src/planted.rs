//! Tests the tester: each bug planted in the protocol must be found by the simulator.
//!
//! The planted bugs are compiled only with the feature `planted`, into a target directory of its
//! own, so that no build of theirs can be taken for a release.

use anyhow::{Context, Result, bail};

use crate::cmd::Cmd;
use crate::{value_of, workspace};

/// Every planted bug must be found within this many seeds.
pub(crate) const SEEDS: u64 = 1000;

pub(crate) fn main(arguments: &[String]) -> Result<()> {
    let mut seeds = SEEDS;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--seeds" => {
                let value = value_of("--seeds", &mut rest)?;
                seeds = value.parse().ok().filter(|n| *n > 0).with_context(|| {
                    format!("--seeds takes a number from 1 up, such as {SEEDS}, not '{value}'")
                })?;
            }
            unknown => bail!("planted has no option '{unknown}'; see `cargo xtask help`"),
        }
    }
    run(seeds)
}

/// Builds the binary with the planted bugs and lets the simulator look for each.
///
/// # Errors
/// When it does not build, or when a planted bug survives.
pub(crate) fn run(seeds: u64) -> Result<()> {
    let folder = workspace::target_dir()?.join("planted");
    Cmd::cargo("build --release --package mainstay --features planted --target-dir")
        .arg(folder.to_string_lossy())
        .run()?;
    Cmd::new(folder.join("release/mainstay").to_string_lossy())
        .words("sim planted --seeds")
        .arg(format!("1..{seeds}"))
        .run()
}

/// Checks that a binary for everybody does not know the planted bugs.
///
/// # Errors
/// When it has the subcommand that plays them.
pub(crate) fn absent_from(binary: &str) -> Result<()> {
    let probe = Cmd::new(binary).words("sim planted --help");
    if probe.succeeds() {
        bail!("this build has the planted bugs in it: `{probe}` answers");
    }
    Ok(())
}
