//! Fuzzes the decoders, each for a while. Not part of CI: it takes a nightly compiler and as long as one likes.
//! What it found is kept in the corpus, which every `cargo test` plays (`crates/fuzz`).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cmd::{Cmd, find_program};
use crate::{value_of, workspace};

/// The programs for the fuzzer, below the root of the repository.
const PROGRAMS: &str = "crates/fuzz/fuzz";
/// The corpora that are kept, one folder for each target.
const CORPUS: &str = "crates/fuzz/corpus";

/// A decoder is fuzzed for so long when nothing else is said.
const MINUTES: u64 = 10;
const MINUTES_MAX: u64 = 60 * 24 * 7;

/// Of the fuzzer: no decoder of ours needs a second for 16 KiB (a list's pages have 4), nor 2 GiB of memory.
const LIMITS: &str =
    "-timeout=10 -rss_limit_mb=2048 -max_len=16384 -len_control=20 -print_final_stats=1";

#[derive(Debug, PartialEq, Eq)]
struct Options {
    /// Empty: all of them.
    targets: Vec<String>,
    minutes: u64,
}

pub(crate) fn main(arguments: &[String]) -> Result<()> {
    let known = targets()?;
    let options = parse(arguments, &known)?;
    check_tools()?;
    let wanted = if options.targets.is_empty() {
        known
    } else {
        options.targets
    };
    // The versions that ship are those that are fuzzed; cargo adds the fuzzer's own.
    let root = workspace::root();
    fs::copy(
        root.join("Cargo.lock"),
        root.join(PROGRAMS).join("Cargo.lock"),
    )
    .context("cannot copy Cargo.lock for the fuzzer")?;
    let folder = workspace::target_dir()?.join("fuzz");
    println!(
        "{} targets, {} min each",
        wanted.len(),
        options.minutes.max(1)
    );
    for target in &wanted {
        run(target, options.minutes, &folder)?;
    }
    println!(
        "\nno decoder broke a property; what each was tried with lies in {}",
        folder.join("corpus").display()
    );
    Ok(())
}

/// The names of all targets.
fn targets() -> Result<Vec<String>> {
    let folder = workspace::root().join(PROGRAMS).join("fuzz_targets");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.strip_suffix(".rs").map(str::to_owned)
        })
        .collect();
    names.sort();
    if names.is_empty() {
        bail!("there is no program below {}", folder.display());
    }
    Ok(names)
}

fn parse(arguments: &[String], known: &[String]) -> Result<Options> {
    let mut options = Options {
        targets: Vec::new(),
        minutes: MINUTES,
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--minutes" => {
                let value = value_of("--minutes", &mut rest)?;
                let minutes = value.parse().ok();
                options.minutes = minutes
                    .filter(|minutes| (1..=MINUTES_MAX).contains(minutes))
                    .with_context(|| {
                        format!("--minutes takes a number from 1 to {MINUTES_MAX}, not '{value}'")
                    })?;
            }
            name if known.iter().any(|target| target == name) => {
                options.targets.push(name.to_owned());
            }
            option if option.starts_with('-') => {
                bail!("fuzz has no option '{option}'; see `cargo xtask help`")
            }
            name => bail!(
                "there is no target '{name}'; the targets are {}",
                known.join(", ")
            ),
        }
    }
    Ok(options)
}

/// # Errors
/// What is missing, and how to get it.
fn check_tools() -> Result<()> {
    let mut missing = Vec::new();
    if !Cmd::cargo("fuzz --version").succeeds() {
        missing.push("cargo-fuzz: `cargo install --locked cargo-fuzz` adds it");
    }
    if !Cmd::new("rustup")
        .words("run nightly rustc --version")
        .succeeds()
    {
        missing.push(
            "a nightly compiler, which alone can count what was covered: \
             `rustup toolchain install nightly --profile minimal` adds it",
        );
    }
    if find_program("c++").is_none() {
        missing.push("a C++ compiler for the fuzzer itself: `apt-get install g++` adds it");
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "fuzzing needs what is not installed (the corpus is played without it: `cargo test -p mainstay-fuzz`)\n  {}",
        missing.join("\n  ")
    )
}

fn run(target: &str, minutes: u64, folder: &Path) -> Result<()> {
    let tried = folder.join("corpus").join(target);
    fs::create_dir_all(&tried).with_context(|| format!("cannot make {}", tried.display()))?;
    // Decoders have no unsafe code, which alone the sanitizers watch; without them twice as much is tried.
    Cmd::new("cargo")
        .words("+nightly fuzz run --sanitizer none --fuzz-dir")
        .arg(PROGRAMS)
        .arg("--target-dir")
        .arg(folder.to_string_lossy())
        .arg(target)
        .arg(tried.to_string_lossy())
        .arg(format!("{CORPUS}/{target}"))
        .arg("--")
        .arg(format!("-max_total_time={}", minutes.saturating_mul(60)))
        .words(LIMITS)
        .run()
        .with_context(|| {
            format!(
                "{target} broke a property: mend the decoder, and keep the file that is named above as \
                 {CORPUS}/{target}/crash-WHAT"
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Options> {
        let known = ["message".to_owned(), "record".to_owned()];
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        parse(&arguments, &known)
    }

    #[test]
    fn all_targets_are_fuzzed_for_ten_minutes_when_nothing_is_said() {
        let options = parsed(&[]).expect("no argument is needed");
        assert_eq!(options.targets, Vec::<String>::new());
        assert_eq!(options.minutes, 10);
        let options = parsed(&["record", "--minutes", "3"]).expect("known");
        assert_eq!(options.targets, ["record"]);
        assert_eq!(options.minutes, 3);
    }

    #[test]
    fn what_is_not_known_is_refused_with_what_is() {
        let refused = |arguments: &[&str]| parsed(arguments).expect_err("refused").to_string();
        assert!(refused(&["records"]).contains("message, record"));
        assert!(refused(&["--jobs"]).contains("--jobs"));
        for minutes in ["0", "-1", "ten", "10081"] {
            assert!(refused(&["--minutes", minutes]).contains(minutes));
        }
    }

    #[test]
    fn each_target_has_its_program_and_its_corpus() {
        let names = targets().expect("the programs");
        assert!(names.len() > 10, "{names:?}");
        for name in names {
            let corpus = workspace::root().join(CORPUS).join(&name);
            assert!(corpus.is_dir(), "{name} has no corpus");
        }
    }
}
