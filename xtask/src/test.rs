//! Every check, in the order in which a mistake is cheapest to find.
//!
//! Each step is a heading, the commands it runs as a person would type them, and a time. The first
//! failure ends the run with the command that repeats it. A step that this machine cannot run says
//! so and what is missing; it never passes in silence.

use std::env;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cmd::{Cmd, find_program};
use crate::{packages, planted, tidy, value_of, workspace};

/// How a step ended that did not fail.
enum Outcome {
    Passed,
    /// This machine lacks something; the text says what, and how to get it.
    Skipped(String),
}

struct Step {
    name: &'static str,
    about: &'static str,
    run: fn(&Options) -> Result<Outcome>,
}

const STEPS: [Step; 13] = [
    Step {
        name: "packages",
        about: "install what the tests need, through apt",
        run: install,
    },
    Step {
        name: "fmt",
        about: "formatting",
        run: fmt,
    },
    Step {
        name: "clippy",
        about: "lints, warnings refused",
        run: clippy,
    },
    Step {
        name: "tidy",
        about: "what no compiler checks: boundaries, waits, sources",
        run: tidy,
    },
    Step {
        name: "build",
        about: "the workspace with all its tests",
        run: build,
    },
    Step {
        name: "test",
        about: "unit, contract and real-process tests",
        run: tests,
    },
    Step {
        name: "doc",
        about: "doc tests and documentation, warnings refused",
        run: doc,
    },
    Step {
        name: "no_std",
        about: "the core without an operating system",
        run: no_std,
    },
    Step {
        name: "sim",
        about: "scenarios, campaigns, same seed twice",
        run: sim,
    },
    Step {
        name: "demo",
        about: "a host dies, its VMs come back, real processes",
        run: demo,
    },
    Step {
        name: "qemu",
        about: "the same with QEMU guests",
        run: demo_qemu,
    },
    Step {
        name: "lab",
        about: "each kind of fault on real processes",
        run: lab,
    },
    Step {
        name: "deny",
        about: "licences, sources and bans of dependencies",
        run: deny,
    },
];

/// Targets without an operating system, any of which proves that the core needs none.
const BARE_TARGETS: [&str; 2] = ["thumbv7m-none-eabi", "wasm32-unknown-unknown"];

/// The seeds that every run plays, whatever the commit.
const FIXED_SEEDS: &str = "1..50";

/// How many seeds follow the one that is taken from the commit, which is new at every commit.
const COMMIT_SEEDS: u64 = 30;

/// A demo that has not ended by then hangs. The slowest machine measured needs a fifth of it.
const DEMO_LIMIT_SECONDS: u32 = 300;

/// The lab's scenarios of CI play for less than two minutes, side by side; with QEMU guests once more.
const LAB_LIMIT_SECONDS: u32 = 480;

#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    only: Vec<String>,
    skip: Vec<String>,
    list: bool,
    no_install: bool,
}

pub(crate) fn main(arguments: &[String]) -> Result<()> {
    let options = parse(arguments)?;
    if options.list {
        for step in &STEPS {
            println!("{:<10}{}", step.name, step.about);
        }
        return Ok(());
    }
    let start = Instant::now();
    let mut skipped = Vec::new();
    for step in STEPS.iter().filter(|step| options.wants(step.name)) {
        println!("\n== {}: {}", step.name, step.about);
        let begun = Instant::now();
        match (step.run)(&options) {
            Ok(Outcome::Passed) => println!("== {}: {}", step.name, took(begun.elapsed())),
            Ok(Outcome::Skipped(why)) => {
                println!("== {}: skipped: {why}", step.name);
                skipped.push((step.name, why));
            }
            Err(error) => {
                println!("== {}: failed after {}", step.name, took(begun.elapsed()));
                return Err(error.context(format!(
                    "step '{0}' failed; the whole step again: cargo xtask test --only {0}",
                    step.name
                )));
            }
        }
    }
    println!("\n== no step failed; {} in all", took(start.elapsed()));
    for (name, why) in skipped {
        println!("   skipped {name}: {why}");
    }
    Ok(())
}

impl Options {
    fn wants(&self, step: &str) -> bool {
        (self.only.is_empty() || self.only.iter().any(|name| name == step))
            && !self.skip.iter().any(|name| name == step)
    }
}

fn parse(arguments: &[String]) -> Result<Options> {
    let mut options = Options::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--only" => options
                .only
                .push(step_name(value_of("--only", &mut rest)?)?),
            "--skip" => options
                .skip
                .push(step_name(value_of("--skip", &mut rest)?)?),
            "--list" => options.list = true,
            "--no-install" => options.no_install = true,
            unknown => bail!("test has no option '{unknown}'; see `cargo xtask help`"),
        }
    }
    Ok(options)
}

fn step_name(name: &str) -> Result<String> {
    if STEPS.iter().any(|step| step.name == name) {
        return Ok(name.to_owned());
    }
    let known: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
    bail!(
        "there is no step '{name}'; the steps are {}",
        known.join(", ")
    )
}

fn took(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} min {} s", seconds / 60, seconds % 60)
    }
}

fn install(options: &Options) -> Result<Outcome> {
    if options.no_install {
        packages::report();
        return Ok(Outcome::Skipped("--no-install was given".to_owned()));
    }
    packages::install()?;
    Ok(Outcome::Passed)
}

fn fmt(_: &Options) -> Result<Outcome> {
    Cmd::cargo("fmt --all -- --check")
        .run()
        .context("not formatted as rustfmt does it; `cargo fmt --all` does")?;
    Ok(Outcome::Passed)
}

fn clippy(_: &Options) -> Result<Outcome> {
    Cmd::cargo("clippy --workspace --all-targets -- -D warnings").run()?;
    Ok(Outcome::Passed)
}

fn tidy(_: &Options) -> Result<Outcome> {
    tidy::main(&[])?;
    Ok(Outcome::Passed)
}

fn build(_: &Options) -> Result<Outcome> {
    build_all()?;
    Ok(Outcome::Passed)
}

fn build_all() -> Result<()> {
    Cmd::cargo("build --workspace --all-targets").run()
}

fn tests(_: &Options) -> Result<Outcome> {
    let in_ci = env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1");
    let mut cmd = if packages::has_nextest() {
        Cmd::cargo("nextest run --workspace").words(if in_ci { "--profile ci" } else { "" })
    } else {
        println!("without cargo nextest, `cargo test` runs the tests; its counts are per binary");
        Cmd::cargo("test --workspace --all-targets")
    };
    if packages::has_qemu() {
        // A test that skips where QEMU is missing must not do so here.
        cmd = cmd.env("MAINSTAY_REQUIRE_QEMU", "1");
    } else {
        println!("qemu-system-x86_64 is missing: tests with real virtual machines skip");
    }
    cmd.run()?;
    Ok(Outcome::Passed)
}

fn doc(_: &Options) -> Result<Outcome> {
    Cmd::cargo("test --workspace --doc")
        .env("RUSTDOCFLAGS", "-Dwarnings")
        .run()?;
    Cmd::cargo("doc --workspace --no-deps --document-private-items")
        .env("RUSTDOCFLAGS", "-Dwarnings")
        .run()?;
    Ok(Outcome::Passed)
}

fn no_std(_: &Options) -> Result<Outcome> {
    let file = "crates/core/src/lib.rs";
    let text = fs::read_to_string(workspace::root().join(file))
        .with_context(|| format!("cannot read {file}"))?;
    if !declares_no_std(&text) {
        bail!("{file} does not say #![no_std], which keeps clocks, files and sockets out of it");
    }
    let installed: Vec<&str> = BARE_TARGETS.into_iter().filter(|t| has_target(t)).collect();
    if installed.is_empty() {
        return Ok(Outcome::Skipped(format!(
            "{file} says #![no_std], but no bare target is installed to build it for; \
             `rustup target add {}` adds one",
            BARE_TARGETS.join("` or `rustup target add ")
        )));
    }
    for target in installed {
        Cmd::cargo("build --package mainstay-core --target")
            .arg(target)
            .run()?;
    }
    Ok(Outcome::Passed)
}

fn declares_no_std(text: &str) -> bool {
    text.lines()
        .map(str::trim)
        .any(|line| line == "#![no_std]" || line == "#![cfg_attr(not(test), no_std)]")
}

fn has_target(target: &str) -> bool {
    let folder = Cmd::new("rustc")
        .words("--print target-libdir --target")
        .arg(target)
        .output();
    folder.is_some_and(|folder| fs::exists(folder.trim()).unwrap_or(false))
}

/// What the step `build` has built: with its assertions on, and a release build would take a fifth of all the time.
/// A build of this package alone has other features of the libraries, and makes half of them again.
fn built_binary() -> Result<String> {
    build_all()?;
    Ok(workspace::target_dir()?
        .join("debug/mainstay")
        .to_string_lossy()
        .into_owned())
}

fn sim(_: &Options) -> Result<Outcome> {
    let binary = built_binary()?;
    planted::absent_from(&binary)?;
    let scenarios: Vec<String> = workspace::files()?
        .into_iter()
        .filter(|file| file.starts_with("scenarios/") && file.ends_with(".toml"))
        .collect();
    if scenarios.is_empty() {
        bail!("there is no scenario below scenarios/");
    }
    println!("{} scenarios", scenarios.len());
    Cmd::new(&binary)
        .words("sim run")
        .args(scenarios)
        .shown_as(format!(
            "{binary} sim run $(find scenarios -name '*.toml' | sort)"
        ))
        .run()?;
    Cmd::new(&binary)
        .words("sim campaign --seeds")
        .arg(FIXED_SEEDS)
        .run()?;
    match commit_seed() {
        Some(first) => Cmd::new(&binary)
            .words("sim campaign --seeds")
            .arg(format!("{first}..{}", first + COMMIT_SEEDS))
            .run()?,
        None => println!("no git commit here, so no seeds taken from it"),
    }
    Cmd::new(&binary).words("sim twice --seed 26").run()?;
    Ok(Outcome::Passed)
}

/// A seed that is new at every commit, so that the seeds played grow with the history.
fn commit_seed() -> Option<u64> {
    seed_from_hash(&Cmd::new("git").words("rev-parse HEAD").output()?)
}

/// The first 60 bits of a commit's hash: as many whole digits as fit the signed 64-bit integers of
/// a scenario's `seed`.
fn seed_from_hash(hash: &str) -> Option<u64> {
    u64::from_str_radix(hash.get(..15)?, 16).ok()
}

fn demo(_: &Options) -> Result<Outcome> {
    run_demo("embedded")?;
    Ok(Outcome::Passed)
}

fn demo_qemu(_: &Options) -> Result<Outcome> {
    if !packages::has_qemu() {
        return Ok(Outcome::Skipped(
            "QEMU is not installed; apt-get install qemu-system-x86".to_owned(),
        ));
    }
    run_demo("qemu")?;
    Ok(Outcome::Passed)
}

fn run_demo(driver: &str) -> Result<()> {
    let binary = built_binary()?;
    // The interrupt lets a demo that hangs put away its processes and files.
    let limit = format!("--foreground --signal=INT --kill-after=20 {DEMO_LIMIT_SECONDS}");
    Cmd::new("timeout")
        .words(&limit)
        .arg(binary)
        .words("demo --once --profile fast --driver")
        .arg(driver)
        .run()
        .with_context(|| format!("status 124 means: not done within {DEMO_LIMIT_SECONDS} s"))
}

/// Each kind of fault once, on real agents and guests, and some of it with QEMU guests.
fn lab(_: &Options) -> Result<Outcome> {
    let binary = built_binary()?;
    if !Cmd::new(&binary).words("lab check").succeeds() {
        return Ok(Outcome::Skipped(format!(
            "no lab can be had here; what is missing: {binary} lab check"
        )));
    }
    // Whether they agree with the simulator hangs on what else the machine does: that is for the long suite.
    in_the_lab(&binary, "suite --jobs 4 scenarios/lab")?;
    if packages::has_qemu() {
        in_the_lab(&binary, "run --driver qemu scenarios/lab/qemu.toml")?;
    } else {
        println!("QEMU is not installed, so nothing is played with it");
    }
    Ok(Outcome::Passed)
}

fn in_the_lab(binary: &str, words: &str) -> Result<()> {
    let limit = format!("--foreground --signal=INT --kill-after=60 {LAB_LIMIT_SECONDS}");
    Cmd::new("timeout")
        .words(&limit)
        .arg(binary)
        .words("lab")
        .words(words)
        .run()
        .with_context(|| format!("status 124 means: not done within {LAB_LIMIT_SECONDS} s"))
}

fn deny(_: &Options) -> Result<Outcome> {
    if find_program("cargo-deny").is_none() && !Cmd::cargo("deny --version").succeeds() {
        return Ok(Outcome::Skipped(
            "cargo-deny is not installed; `cargo install --locked cargo-deny` adds it".to_owned(),
        ));
    }
    // Advisories come from the network and change without us: they are watched, not a test.
    Cmd::cargo("deny --log-level error check bans licenses sources").run()?;
    Ok(Outcome::Passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Options> {
        parse(
            &arguments
                .iter()
                .map(|a| (*a).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn all_steps_run_unless_told_otherwise() {
        let options = parsed(&[]).unwrap();
        assert!(STEPS.iter().all(|step| options.wants(step.name)));
    }

    #[test]
    fn only_and_skip_choose_steps() {
        let options = parsed(&["--only", "fmt", "--only", "sim", "--skip", "sim"]).unwrap();
        assert!(options.wants("fmt"));
        assert!(!options.wants("sim"));
        assert!(!options.wants("tidy"));
    }

    #[test]
    fn unknown_step_is_refused_with_the_known_ones() {
        let error = parsed(&["--only", "formatting"]).unwrap_err().to_string();
        assert!(
            error.contains("'formatting'") && error.contains("fmt, clippy"),
            "{error}"
        );
    }

    #[test]
    fn option_without_its_value_is_refused() {
        assert!(parsed(&["--only"]).is_err());
        assert!(parsed(&["--skip", "--list"]).is_err());
    }

    #[test]
    fn seed_is_read_from_the_commit() {
        assert_eq!(seed_from_hash("000000000000010fffff\n"), Some(16));
        assert_eq!(seed_from_hash("not a hash at all"), None);
        let largest = seed_from_hash("ffffffffffffffffffff").unwrap();
        assert!(i64::try_from(largest + COMMIT_SEEDS).is_ok());
    }

    #[test]
    fn no_std_is_looked_for_as_an_attribute() {
        assert!(declares_no_std("//! Core.\n#![no_std]\n"));
        assert!(!declares_no_std("//! This crate is `#![no_std]`.\n"));
    }

    #[test]
    fn times_are_readable() {
        assert_eq!(took(Duration::from_millis(1_240)), "1.2 s");
        assert_eq!(took(Duration::from_secs(125)), "2 min 5 s");
    }
}
