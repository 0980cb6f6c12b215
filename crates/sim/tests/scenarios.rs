//! Every scenario of the repository holds, with several seeds. The first one is played by `mainstay sim run` among the checks.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

fn files(below: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(below).expect("a directory of scenarios") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "toml") {
            found.push(path);
        }
    }
}

fn holds(path: &Path) {
    let text = std::fs::read_to_string(path).expect("readable");
    let mut scenario = mainstay_sim::parse(&path.display().to_string(), &text)
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(
        scenario.source.is_some(),
        "{} names no source",
        path.display()
    );
    for seed in 1..3 {
        scenario.seed = seed;
        let result = mainstay_sim::run(&scenario, &mainstay_sim::Options::default());
        let text = mainstay_sim::people(&scenario, &result, &path.display().to_string());
        assert!(result.pass(), "{text}");
    }
}

#[test]
fn every_scenario_holds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
    let mut found = Vec::new();
    files(&root, &mut found);
    found.sort();
    assert!(found.len() > 30, "{} scenarios", found.len());
    // One thread on each processor takes the next scenario; a failed one ends its thread and the test.
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(path) = found.get(next.fetch_add(1, Ordering::Relaxed)) {
                    holds(path);
                }
            });
        }
    });
}
