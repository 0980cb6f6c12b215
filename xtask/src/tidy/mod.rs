//! `cargo xtask tidy`: rules of the house that no compiler knows.
//!
//! Every check is a function from text to findings, so that its test can hand it a violation.

mod arrows;
mod code;
mod conformance;
mod faults;
mod places;
mod tables;

use std::fmt;
use std::fs;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// A file of the repository.
#[derive(Clone, Debug)]
struct Source {
    /// From the root of the repository.
    path: String,
    text: String,
}

/// A broken rule: where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    /// Counted from one; none when the whole file is meant.
    line: Option<usize>,
    what: String,
}

impl Finding {
    fn at(source: &Source, line: usize, what: impl Into<String>) -> Self {
        Self {
            path: source.path.clone(),
            line: Some(line),
            what: what.into(),
        }
    }

    fn whole(path: &str, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line: None,
            what: what.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path, self.what),
            None => write!(f, "{}: {}", self.path, self.what),
        }
    }
}

pub(crate) fn main(arguments: &[String]) -> Result<()> {
    if let Some(unknown) = arguments.first() {
        bail!("tidy has no option '{unknown}'; see `cargo xtask help`");
    }
    let sources = sources()?;
    let listed = [code::long_files(&sources), code::long_functions(&sources)].concat();
    if !listed.is_empty() {
        println!("{} to keep an eye on:", listed.len());
        listed.iter().for_each(|finding| println!("  {finding}"));
    }
    let findings = [
        code::too_long_files(&sources),
        code::unfinished(&sources),
        code::sleeps(&sources),
        code::std_in_core(&sources),
        places::workplace_paths(&sources),
        places::scenario_sources(&sources),
        places::invariant_tests(&sources),
        conformance::check(&sources),
        faults::check(&sources),
        arrows::check(&workspace::metadata()?),
    ]
    .concat();
    if findings.is_empty() {
        println!("{} files are tidy", sources.len());
        return Ok(());
    }
    findings.iter().for_each(|finding| println!("{finding}"));
    bail!(
        "{} broken rules\n  repeat it with: cargo xtask tidy",
        findings.len()
    )
}

/// Text files of the repository; what is not UTF-8 is data and has no rules here.
fn sources() -> Result<Vec<Source>> {
    let root = workspace::root();
    let mut sources = Vec::new();
    for path in workspace::files()? {
        let bytes = fs::read(root.join(&path)).with_context(|| format!("cannot read {path}"))?;
        if let Ok(text) = String::from_utf8(bytes) {
            sources.push(Source { path, text });
        }
    }
    Ok(sources)
}

#[cfg(test)]
fn source(path: &str, text: &str) -> Source {
    Source {
        path: path.to_owned(),
        text: text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finding_is_printed_as_editors_read_it() {
        let finding = Finding::at(&source("a/b.rs", ""), 7, "too much");
        assert_eq!(finding.to_string(), "a/b.rs:7: too much");
        assert_eq!(
            Finding::whole("a/b.rs", "too much").to_string(),
            "a/b.rs: too much"
        );
    }

    #[test]
    fn unknown_option_is_refused() {
        assert!(main(&["--fix".to_owned()]).is_err());
    }
}
