//! What commands that play scenarios have in common: finding and reading files, printing, exit codes.

use mainstay_sim::Scenario;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

pub(crate) const UNREADABLE: u8 = 2;
pub(crate) const UNPLAYABLE: u8 = 3;
/// Stopped by a signal before the end.
pub(crate) const STOPPED: u8 = 4;

/// Prints a line; a reader that went away (`| head`) is no failure.
pub(crate) fn line(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end_matches('\n'));
}

pub(crate) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// What went wrong, and where; the remedy, if there is one, follows a semicolon.
#[derive(Debug)]
pub(crate) struct Complaint {
    place: Option<String>,
    what: String,
}

impl Complaint {
    pub(crate) fn new(what: impl std::fmt::Display) -> Self {
        Self {
            place: None,
            what: what.to_string(),
        }
    }

    pub(crate) fn at(place: impl std::fmt::Display, what: impl std::fmt::Display) -> Self {
        Self {
            place: Some(place.to_string()),
            what: what.to_string(),
        }
    }

    /// Prints it on standard error and gives the exit code.
    pub(crate) fn tell(&self, json: bool, code: u8) -> ExitCode {
        if json {
            let (error, remedy) = match self.what.split_once("; ") {
                Some((error, remedy)) => (error, Some(remedy)),
                None => (self.what.as_str(), None),
            };
            let place = &self.place;
            let value = serde_json::json!({ "error": error, "place": place, "remedy": remedy });
            complain(&value.to_string());
        } else {
            let place = self.place.iter().map(|place| format!("{place}: "));
            complain(&format!(
                "error: {}{}",
                place.collect::<String>(),
                self.what
            ));
        }
        ExitCode::from(code)
    }
}

pub(crate) fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Scenario files, those in directories too.
pub(crate) fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Complaint> {
    let mut files = Vec::new();
    let mut waiting: Vec<PathBuf> = paths.iter().rev().cloned().collect();
    while let Some(path) = waiting.pop() {
        if !path.is_dir() {
            files.push(path);
            continue;
        }
        let entries = || -> std::io::Result<Vec<PathBuf>> {
            std::fs::read_dir(&path)?
                .map(|e| e.map(|e| e.path()))
                .collect()
        };
        let mut inside = entries().map_err(|e| Complaint::at(path.display(), e))?;
        inside.sort();
        inside.retain(|p| p.is_dir() || p.extension().is_some_and(|e| e == "toml"));
        waiting.extend(inside.into_iter().rev());
    }
    Ok(files)
}

pub(crate) fn load(path: &Path) -> Result<Scenario, Complaint> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Complaint::at(
            path.display(),
            format!("{e}; name a scenario file, or a directory of them"),
        )
    })?;
    mainstay_sim::parse(&path.display().to_string(), &text)
        .map_err(|e| Complaint::at(format!("{}:{}", e.file, e.line), e.message))
}
