//! The cluster key, and the file that holds it.

use super::{FileError, read_text};
use std::fmt;
use std::path::Path;

/// The cluster key, the secret of all datagrams.
#[derive(Clone)]
pub struct ClusterKey([u8; 32]);

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(..)")
    }
}

impl ClusterKey {
    /// Takes 32 random bytes as a key.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads a key file, which nobody but its owner may read.
    ///
    /// # Errors
    /// [`FileError::KeyMode`], [`FileError::Key`], [`FileError::Read`].
    pub fn read(path: &Path) -> Result<Self, FileError> {
        use std::os::unix::fs::PermissionsExt as _;
        let text = read_text(path)?;
        let mode = std::fs::metadata(path)
            .map_err(|source| FileError::Read {
                path: path.into(),
                source,
            })?
            .permissions()
            .mode()
            & 0o7777;
        if mode & 0o077 != 0 {
            return Err(FileError::KeyMode {
                path: path.into(),
                mode,
            });
        }
        Self::from_hex(text.trim()).ok_or_else(|| FileError::Key { path: path.into() })
    }

    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut key = [0; 32];
        for (i, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
        }
        Some(Self(key))
    }

    /// Writes the key to a new file of mode 0600.
    ///
    /// # Errors
    /// [`FileError::Write`], also when the file exists.
    pub fn write_new(&self, path: &Path) -> Result<(), FileError> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let hex: String = self.0.iter().map(|b| format!("{b:02x}")).collect();
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut f| writeln!(f, "{hex}"))
            .map_err(|source| FileError::Write {
                path: path.into(),
                source,
            })
    }
}
