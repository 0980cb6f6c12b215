//! Names the build: a hash of all that agent and guard are made of. Programs that were built from
//! something else are told apart by it (`src/program.rs`).

use std::hash::{DefaultHasher, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};

/// What goes into an agent and its guard, seen from this crate.
const PARTS: [&str; 5] = [
    "../../Cargo.lock",
    "../core",
    "../datastore",
    "../hypervisor",
    ".",
];
/// Of each crate; its tests make no difference.
const OF_A_CRATE: [&str; 3] = ["Cargo.toml", "build.rs", "src"];

fn main() -> io::Result<()> {
    let mut files = Vec::new();
    for part in PARTS.map(Path::new) {
        if part.is_file() {
            files.push(part.to_owned());
            continue;
        }
        for name in OF_A_CRATE {
            let path = part.join(name);
            if path.exists() {
                println!("cargo:rerun-if-changed={}", path.display());
                collect(&path, &mut files)?;
            }
        }
    }
    println!("cargo:rerun-if-changed=../../Cargo.lock");
    files.sort();
    let mut hash = DefaultHasher::new();
    for file in &files {
        hash.write(file.as_os_str().as_encoded_bytes());
        hash.write(&std::fs::read(file)?);
    }
    println!("cargo:rustc-env=MAINSTAY_BUILD={:016x}", hash.finish());
    Ok(())
}

fn collect(path: &Path, into: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_file() {
        into.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        collect(&entry?.path(), into)?;
    }
    Ok(())
}
