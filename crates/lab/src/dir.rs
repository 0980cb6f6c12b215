//! The directories of a run: marked with its id, and removed with it.

use crate::fail::{Failure, Result};
use crate::place;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Random bytes from the kernel.
///
/// # Errors
/// When it gives none.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| Failure::new(format_args!("the kernel gives no random bytes: {e}")))?;
    Ok(bytes)
}

/// Bytes in hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A directory with the run's mark, removed when dropped.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    run: String,
    /// It stays when this is dropped.
    pub keep: bool,
}

impl RunDir {
    /// Makes it, with the mark, for its owner alone.
    ///
    /// # Errors
    /// When there is something of that name, or it cannot be made.
    pub fn make(path: &Path, run: &str) -> std::io::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::DirBuilder::new().mode(0o700).create(path)?;
        fs::write(path.join(place::MARK), run)?;
        Ok(Self {
            path: path.into(),
            run: run.into(),
            keep: false,
        })
    }

    /// Makes one of this name on a file system in memory; none when `base` is on one itself, or there is none.
    #[must_use]
    pub fn in_memory(base: &Path, name: &str, run: &str) -> Option<Self> {
        if is_in_memory(base) {
            return None;
        }
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let candidates = runtime
            .into_iter()
            .chain(["/run".into(), "/dev/shm".into()]);
        candidates
            .filter(|dir| is_in_memory(dir))
            .find_map(|dir| Self::make(&dir.join(name), run).ok())
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether files there lie in memory.
#[must_use]
pub fn is_in_memory(dir: &Path) -> bool {
    nix::sys::statfs::statfs(dir)
        .is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if !self.keep {
            place::remove_run_dir(&self.path, &self.run);
        }
    }
}
