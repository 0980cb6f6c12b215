//! Where things lie: the repository, its files, the target directory.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cmd::Cmd;

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let own = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent().map_or_else(|| own.clone(), Path::to_path_buf)
}

/// What cargo says about our own packages.
///
/// # Errors
/// When a manifest of the workspace cannot be read.
pub(crate) fn metadata() -> Result<Value> {
    let cmd = Cmd::cargo("metadata --no-deps --format-version 1");
    let text = cmd
        .output()
        .with_context(|| format!("`{cmd}` failed; run it to see why"))?;
    serde_json::from_str(&text).context("cargo metadata printed no JSON")
}

/// The target directory, wherever CARGO_TARGET_DIR or a configuration file puts it.
///
/// # Errors
/// When cargo cannot read the workspace.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let metadata = metadata()?;
    let folder = metadata.get("target_directory").and_then(Value::as_str);
    Ok(PathBuf::from(
        folder.context("cargo metadata names no target_directory")?,
    ))
}

/// Files of the repository, as paths from its root, sorted: those that git tracks or would track,
/// and, where there is no git, all but what is built.
///
/// # Errors
/// When a folder cannot be read.
pub(crate) fn files() -> Result<Vec<String>> {
    let listed = Cmd::new("git")
        .words("ls-files -z --cached --others --exclude-standard")
        .output();
    let mut files = match listed {
        Some(text) => text
            .split('\0')
            .filter(|f| !f.is_empty())
            .map(str::to_owned)
            .collect(),
        None => {
            let mut found = Vec::new();
            walk(&root(), "", &mut found)?;
            found
        }
    };
    files.retain(|file| root().join(file).is_file());
    files.sort();
    files.dedup();
    Ok(files)
}

fn walk(root: &Path, folder: &str, found: &mut Vec<String>) -> Result<()> {
    let path = root.join(folder);
    for entry in fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let relative = if folder.is_empty() {
            name.clone()
        } else {
            format!("{folder}/{name}")
        };
        if entry.file_type()?.is_dir() {
            if !matches!(name.as_str(), "target" | ".git") {
                walk(root, &relative, found)?;
            }
        } else {
            found.push(relative);
        }
    }
    Ok(())
}
