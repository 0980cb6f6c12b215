//! Running other programs, so that a failure names the command that repeats it.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// One program with its arguments; runs in the root of the repository.
#[derive(Clone, Debug)]
pub(crate) struct Cmd {
    program: String,
    args: Vec<String>,
    envs: Vec<(String, String)>,
    /// What a person would type instead, where the arguments are too many to read.
    shown: Option<String>,
}

impl Cmd {
    pub(crate) fn new(program: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            envs: Vec::new(),
            shown: None,
        }
    }

    /// `cargo` with arguments separated by single spaces.
    pub(crate) fn cargo(args: &str) -> Self {
        Self::new("cargo").words(args)
    }

    pub(crate) fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(crate) fn args<T: Into<String>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds arguments written as one string; none of them may hold a space.
    pub(crate) fn words(self, words: &str) -> Self {
        self.args(words.split_whitespace())
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.envs.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn shown_as(mut self, shown: impl Into<String>) -> Self {
        self.shown = Some(shown.into());
        self
    }

    /// Runs it with this process's terminal.
    ///
    /// # Errors
    /// When it cannot be started or does not end with status 0; the text has the command in it.
    pub(crate) fn run(&self) -> Result<()> {
        println!("$ {self}");
        let status = self
            .command()
            .status()
            .with_context(|| format!("cannot start {}", self.program))?;
        if !status.success() {
            bail!("{status}\n  repeat it with: {self}");
        }
        Ok(())
    }

    /// What it prints on standard output, or `None` when it cannot be started or fails.
    pub(crate) fn output(&self) -> Option<String> {
        let output = self
            .command()
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether it runs and ends with status 0; what it prints is thrown away.
    pub(crate) fn succeeds(&self) -> bool {
        self.output().is_some()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).current_dir(workspace::root());
        // `cargo run` describes xtask in these variables. Build scripts that watch them (ring's
        // does) would be run again at every change between `cargo xtask` and plain `cargo`.
        for (name, _) in env::vars_os().filter(|(name, _)| describes_a_package(name)) {
            command.env_remove(name);
        }
        command.envs(self.envs.iter().map(|(name, value)| (name, value)));
        command
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.envs {
            write!(f, "{name}={} ", quoted(value))?;
        }
        if let Some(shown) = &self.shown {
            return f.write_str(shown);
        }
        f.write_str(&quoted(&self.program))?;
        self.args
            .iter()
            .try_for_each(|arg| write!(f, " {}", quoted(arg)))
    }
}

/// Where a program lies, if it is installed.
///
/// An ordinary user's PATH on Debian has no `sbin`, where `ip` lives.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn describes_a_package(name: &OsString) -> bool {
    name.to_str().is_some_and(|name| {
        name.starts_with("CARGO_PKG_")
            || name.starts_with("CARGO_MANIFEST_")
            || matches!(
                name,
                "CARGO_BIN_NAME" | "CARGO_CRATE_NAME" | "CARGO_PRIMARY_PACKAGE"
            )
    })
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_can_be_pasted_into_a_shell() {
        let cmd = Cmd::new("mainstay")
            .words("sim run")
            .arg("a file.toml")
            .env("A", "it's");
        assert_eq!(
            cmd.to_string(),
            r"A='it'\''s' mainstay sim run 'a file.toml'"
        );
    }

    #[test]
    fn long_command_is_shown_as_a_person_would_type_it() {
        let cmd = Cmd::new("mainstay")
            .args(["a", "b"])
            .shown_as("mainstay *")
            .env("A", "1");
        assert_eq!(cmd.to_string(), "A=1 mainstay *");
    }

    #[test]
    fn failure_names_the_command_that_repeats_it() {
        let error = Cmd::new("sh").arg("-c").arg("exit 3").run().unwrap_err();
        assert!(
            error.to_string().contains("repeat it with: sh -c 'exit 3'"),
            "{error}"
        );
    }

    #[test]
    fn missing_program_is_not_found() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-anywhere").is_none());
    }
}
