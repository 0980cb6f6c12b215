//! Installs what the tests need and what is missing, and nothing that is there.
//!
//! The right to install is root's, or that of a user with sudo. Without it the tests go on, and
//! those that need a missing program say that they were skipped.

use std::fmt;
use std::io::{self, IsTerminal};

use anyhow::{Context, Result, bail};

use crate::cmd::{Cmd, find_program};

/// A program that tests call and the Debian package that has it.
struct Need {
    program: &'static str,
    package: &'static str,
    for_what: &'static str,
}

const NEEDS: [Need; 3] = [
    Need {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        for_what: "tests with real virtual machines",
    },
    Need {
        program: "as",
        package: "binutils",
        for_what: "tests that assemble the guest's boot sector",
    },
    Need {
        program: "ip",
        package: "iproute2",
        for_what: "tests with network namespaces",
    },
];

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "package {}, without which {} skip",
            self.package, self.for_what
        )
    }
}

/// How this process may install packages.
#[derive(Debug, PartialEq, Eq)]
enum Right {
    Root,
    Sudo { asks: bool },
    Absent,
}

/// Whether QEMU can be started here.
pub(crate) fn has_qemu() -> bool {
    find_program("qemu-system-x86_64").is_some()
}

/// Whether `cargo nextest` can be called.
pub(crate) fn has_nextest() -> bool {
    Cmd::cargo("nextest --version").succeeds()
}

/// Installs what is missing.
///
/// # Errors
/// When a part of the toolchain is missing and cannot be added, or when apt fails although this
/// user may call it.
pub(crate) fn install() -> Result<()> {
    toolchain()?;
    let missing: Vec<&Need> = NEEDS
        .iter()
        .filter(|need| find_program(need.program).is_none())
        .collect();
    if missing.is_empty() {
        println!("qemu-system-x86_64, as and ip are installed");
    } else {
        apt_install(&missing)?;
    }
    nextest();
    Ok(())
}

/// Tells what is missing without installing it.
pub(crate) fn report() {
    for need in NEEDS
        .iter()
        .filter(|need| find_program(need.program).is_none())
    {
        println!("{} is missing: {need}", need.program);
    }
    if !has_nextest() {
        println!("cargo nextest is missing: `cargo test` runs the tests");
    }
}

fn toolchain() -> Result<()> {
    let missing: Vec<&str> = [("fmt", "rustfmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(command, _)| !Cmd::cargo(command).arg("--version").succeeds())
        .map(|(_, component)| component)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if find_program("rustup").is_none() {
        bail!(
            "{} missing from this Rust toolchain; install Rust with rustup, or these components \
             as your distribution packages them",
            missing.join(" and ")
        );
    }
    Cmd::new("rustup")
        .words("component add")
        .args(missing)
        .run()
}

fn apt_install(missing: &[&Need]) -> Result<()> {
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    let remedy = format!(
        "install them by hand: apt-get install {}",
        packages.join(" ")
    );
    let right = right_to_install();
    if right == Right::Absent || find_program("apt-get").is_none() {
        println!("missing, and this user cannot install packages here:");
        for need in missing {
            println!("  {}: {need}", need.program);
        }
        println!("{remedy}");
        return Ok(());
    }
    // A machine without package lists has nothing to install from; one with old lists asks for
    // versions that are gone. Both are cured by fetching them, which costs seconds.
    apt(&right, "update")
        .run()
        .context("cannot fetch the package lists")
        .context(remedy.clone())?;
    apt(&right, "install -y --no-install-recommends")
        .args(packages)
        .run()
        .context("cannot install packages")
        .context(remedy)
}

fn apt(right: &Right, words: &str) -> Cmd {
    let cmd = match right {
        Right::Root | Right::Absent => Cmd::new("env"),
        Right::Sudo { asks: true } => Cmd::new("sudo").arg("env"),
        Right::Sudo { asks: false } => Cmd::new("sudo").words("-n env"),
    };
    cmd.words("DEBIAN_FRONTEND=noninteractive apt-get -q")
        .words(words)
}

fn right_to_install() -> Right {
    if Cmd::new("id")
        .arg("-u")
        .output()
        .is_some_and(|id| id.trim() == "0")
    {
        Right::Root
    } else if find_program("sudo").is_none() {
        Right::Absent
    } else if Cmd::new("sudo").words("-n true").succeeds() {
        Right::Sudo { asks: false }
    } else if io::stdin().is_terminal() {
        Right::Sudo { asks: true }
    } else {
        Right::Absent
    }
}

/// Gets nextest, which runs each test in a process of its own and prints the counts. The tests
/// pass under `cargo test` as well, so that a failure here is told and no more.
fn nextest() {
    if has_nextest() {
        return;
    }
    println!("cargo nextest is missing; building it once (some minutes)");
    // Its self-update would want OpenSSL's headers, which a fresh machine does not have.
    let install = Cmd::cargo("install --locked cargo-nextest")
        .words("--no-default-features --features default-no-update");
    if let Err(error) = install.run() {
        println!("cargo nextest could not be built, so `cargo test` runs the tests: {error:#}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_never_asks_questions() {
        let root = apt(&Right::Root, "install -y").arg("binutils").to_string();
        assert_eq!(
            root,
            "env DEBIAN_FRONTEND=noninteractive apt-get -q install -y binutils"
        );
        let user = apt(&Right::Sudo { asks: false }, "update").to_string();
        assert_eq!(
            user,
            "sudo -n env DEBIAN_FRONTEND=noninteractive apt-get -q update"
        );
    }
}
