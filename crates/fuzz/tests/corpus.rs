//! Plays the corpus of every decoder, and small damage to each of its files, on stable Rust.
#![expect(
    clippy::print_stdout,
    reason = "how much of the damage was decoded is for whoever looks"
)]

use mainstay_core::rng::Rng;
use mainstay_fuzz::{TARGETS, Target, mutate};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// The same damage in each run: a new one is a fuzzer's work (`cargo xtask fuzz`).
const SEED: u64 = 26;

fn target(name: &str) -> Target {
    let found = TARGETS.iter().find(|target| target.name == name);
    *found.expect("a target of this name")
}

fn folder(target: &Target) -> PathBuf {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    corpus.join(target.name)
}

/// The files of a corpus, in the order of their names.
fn files(target: &Target) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder(target)).expect("a corpus for each target");
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| {
            let entry = entry.expect("an entry");
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, fs::read(entry.path()).expect("a file"))
        })
        .collect();
    files.sort();
    files
}

/// Hands bytes to the decoder; what breaks a property is kept for `cargo xtask fuzz` and for the corpus.
fn play(target: &Target, from: &str, bytes: &[u8]) -> bool {
    let played = catch_unwind(AssertUnwindSafe(|| (target.check)(bytes)));
    played.unwrap_or_else(|_| {
        let kept = std::env::temp_dir().join(format!("mainstay-fuzz-{}-{from}", target.name));
        fs::write(&kept, bytes).expect("the bytes are kept");
        panic!(
            "{} breaks a property of {}; when it is mended, keep {} as corpus/{}/crash-WHAT",
            from,
            target.name,
            kept.display(),
            target.name
        )
    })
}

fn replay(name: &str) {
    let target = target(name);
    let files = files(&target);
    let mut rng = Rng::new(SEED).fork(name);
    let (mut decoded, mut tried) = (0_u64, 0_u64);
    for (at, (from, bytes)) in files.iter().enumerate() {
        let sound = play(&target, from, bytes);
        assert!(sound || !from.starts_with("seed-"), "{from} is not decoded");
        let other = files.get((at + 1) % files.len());
        let other = other.map_or(&[][..], |(_, bytes)| bytes);
        for _ in 0..target.mutations {
            tried += 1;
            let damaged = mutate(bytes, other, &mut rng);
            decoded += u64::from(play(&target, from, &damaged));
        }
    }
    println!(
        "{name}: {} files; {decoded} of {tried} damaged ones are decoded",
        files.len()
    );
    assert!(decoded > 0, "what is behind the first check is reached");
}

macro_rules! replays {
    ($($name:ident)*) => {
        const REPLAYED: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                replay(stringify!($name));
            }
        )*
    };
}

replays! {
    datagram ping message stream record list region state control guard_events cluster_file agent_file scenario names qmp
    guest guest_note fence_file
}

#[test]
fn each_target_is_replayed_and_has_a_program_for_the_fuzzer() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, REPLAYED);
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let listed = fs::read_to_string(programs.join("Cargo.toml")).expect("the programs' manifest");
    for name in names {
        let path = format!("fuzz_targets/{name}.rs");
        let text = fs::read_to_string(programs.join(&path)).expect("a program");
        assert!(text.contains(&format!("mainstay_fuzz::run(\"{name}\"")));
        assert!(listed.contains(&format!("path = \"{path}\"")), "{name}");
    }
}

#[test]
fn the_same_seed_damages_in_the_same_way() {
    let damaged = |seed| mutate(b"some bytes", b"other bytes", &mut Rng::new(seed));
    assert_eq!(damaged(1), damaged(1));
    assert!((2..20).any(|seed| damaged(seed) != damaged(1)));
    assert!((0..1000).all(|seed| mutate(&[], &[], &mut Rng::new(seed)).is_empty()));
}

/// Writes the seeds anew, after a format has got a new version: `cargo test -p mainstay-fuzz -- --ignored`.
#[test]
#[ignore = "it writes into the repository"]
fn make_the_seeds() {
    for target in &TARGETS {
        let folder = folder(target);
        fs::create_dir_all(&folder).expect("a folder");
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("seed-") {
                fs::remove_file(&path).expect("an old seed goes");
            }
        }
        for (number, bytes) in target.seeds().iter().enumerate() {
            let path = folder.join(format!("seed-{number:02}"));
            fs::write(path, bytes).expect("a seed is written");
        }
    }
}
