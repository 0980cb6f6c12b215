//! The file in which a campaign keeps how far it is, so that it can be stopped and gone on with.
//!
//! It is written whole and put in place by a rename: whoever reads it finds the old or the new one. It
//! names the build and the options that made it, because a seed means something only to them.

use super::sweep::Tally;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::hash::Hasher as _;
use std::io::{self, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// The format of the file; another one is refused.
const FORMAT: u32 = 1;

/// What made a state file, and what it is about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Origin {
    /// Mainstay's version.
    pub(super) version: String,
    /// A checksum of the program.
    pub(super) build: String,
    /// The options that say which runs are played.
    pub(super) options: String,
}

impl Origin {
    /// Of this program with these options.
    ///
    /// # Errors
    /// When the program cannot read its own file.
    pub(super) fn here(options: String) -> io::Result<Self> {
        let mut program = BufReader::new(File::open(std::env::current_exe()?)?);
        // Made by `new`, it has fixed keys: the same program gives the same sum in every process.
        let mut sum = std::hash::DefaultHasher::new();
        let mut part = vec![0_u8; 1 << 16];
        loop {
            let read = program.read(&mut part)?;
            let Some(bytes) = part.get(..read).filter(|b| !b.is_empty()) else {
                break;
            };
            sum.write(bytes);
        }
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            build: format!("{:016x}", sum.finish()),
            options,
        })
    }
}

/// A campaign's progress.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct State {
    format: u32,
    origin: Origin,
    wall_ms: u64,
    tally: Tally,
}

/// Why a state file cannot be gone on with.
#[derive(Debug)]
pub(super) enum StateError {
    /// It cannot be read or written.
    Io(PathBuf, io::Error),
    /// It is no state file, or a damaged one.
    Damaged(PathBuf, serde_json::Error),
    /// It belongs to another build or other options: what differs, what it has, what this one has.
    Other(PathBuf, &'static str, String, String),
}

impl StateError {
    /// The file that it is about.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Io(path, _) | Self::Damaged(path, _) | Self::Other(path, ..) => path,
        }
    }
}

impl std::fmt::Display for StateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(_, error) => write!(
                f,
                "{error}; name a file in a directory that this user can write"
            ),
            Self::Damaged(_, error) => write!(
                f,
                "not a campaign's state ({error}); remove it to begin anew, or name another file"
            ),
            Self::Other(_, what, theirs, ours) => write!(
                f,
                "it was begun with {what} \"{theirs}\", this is \"{ours}\": a seed means another run there; \
                 go on with what began it, remove the file to begin anew, or name another file"
            ),
        }
    }
}

/// A state file of a campaign.
#[derive(Clone, Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    origin: Origin,
}

impl StateFile {
    pub(super) fn new(path: &Path, origin: Origin) -> Self {
        Self {
            path: path.to_owned(),
            origin,
        }
    }

    /// What was kept, and for how many milliseconds was played; nothing when there is no file yet.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, or belongs to another build or other options.
    pub(super) fn load(&self) -> Result<(Tally, u64), StateError> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((Tally::default(), 0));
            }
            Err(error) => return Err(StateError::Io(self.path.clone(), error)),
        };
        let damaged = |error| StateError::Damaged(self.path.clone(), error);
        // The head first: another format may have another body.
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(damaged)?;
        let other = |what, theirs: String, ours: String| {
            Err(StateError::Other(self.path.clone(), what, theirs, ours))
        };
        let format = value.get("format").cloned().unwrap_or_default();
        if format != FORMAT {
            return other("format", format.to_string(), FORMAT.to_string());
        }
        let State {
            origin,
            wall_ms,
            tally,
            ..
        } = serde_json::from_value(value).map_err(damaged)?;
        for (what, theirs, ours) in [
            ("version", &origin.version, &self.origin.version),
            ("build", &origin.build, &self.origin.build),
            ("options", &origin.options, &self.origin.options),
        ] {
            if theirs != ours {
                return other(what, theirs.clone(), ours.clone());
            }
        }
        Ok((tally, wall_ms))
    }

    /// Keeps what there is so far.
    ///
    /// # Errors
    /// When the file cannot be written; the old one is still in place then.
    pub(super) fn save(&self, tally: &Tally, wall_ms: u64) -> io::Result<()> {
        let state = State {
            format: FORMAT,
            origin: self.origin.clone(),
            wall_ms,
            tally: tally.clone(),
        };
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer(&mut file, &state)?;
        file.write_all(b"\n")?;
        file.as_file().sync_data()?;
        file.persist(&self.path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
