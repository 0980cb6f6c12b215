//! The figures that the README, the changelog and docs/benchmarks.md quote: failover of real processes, what the core
//! and its locks cost, and how late the guard is.

use anyhow::{Context, Result, bail};

use crate::cmd::Cmd;
use crate::{value_of, workspace};

pub(crate) fn main(arguments: &[String]) -> Result<()> {
    match arguments.split_first().map(|(a, rest)| (a.as_str(), rest)) {
        Some(("core", rest)) => return part("mainstay-core", "core", rest),
        Some(("locks", rest)) => return part("mainstay-datastore", "locks", rest),
        Some(("guard", rest)) => return part("mainstay-agent", "guard", rest),
        _ => {}
    }
    let mut runs = 10_u32;
    let mut profiles = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--runs" => {
                let value = value_of("--runs", &mut rest)?;
                runs = value.parse().ok().filter(|n| *n > 0).with_context(|| {
                    format!("--runs takes a number from 1 up, such as 10, not '{value}'")
                })?;
            }
            "--profile" => profiles.push(value_of("--profile", &mut rest)?.clone()),
            unknown => bail!("bench has no option '{unknown}'; see `cargo xtask help`"),
        }
    }
    if profiles.is_empty() {
        profiles = vec!["balanced".to_owned(), "fast".to_owned()];
    }
    Cmd::cargo("build --release --package mainstay").run()?;
    let binary = workspace::target_dir()?.join("release/mainstay");
    for profile in &profiles {
        Cmd::new(binary.to_string_lossy())
            .words("demo --bench --driver embedded --runs")
            .arg(runs.to_string())
            .arg("--profile")
            .arg(profile)
            .run()?;
    }
    Ok(())
}

/// A benchmark of one crate; the options are its own, and it names them when one is wrong.
fn part(package: &str, name: &str, options: &[String]) -> Result<()> {
    Cmd::cargo("bench --package")
        .args([package, "--bench", name, "--"].map(String::from))
        .args(options.iter().cloned())
        .run()
}
