//! Rules about certain places: scenarios, invariants, and paths of somebody's own machine.

use super::{Finding, Source};

/// Where files lie on the machines that this project is built on, which a reader does not have.
/// Written in halves so that this file does not hold them.
const WORKPLACES: [&str; 2] = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];

const INVARIANTS: &str = "crates/sim/src/invariants/";

pub(super) fn workplace_paths(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        for (index, line) in source.text.lines().enumerate() {
            for place in WORKPLACES.iter().filter(|place| starts_a_path(line, place)) {
                let what = format!("{place} is a place on one machine; name it from the root");
                findings.push(Finding::at(source, index + 1, what));
            }
        }
    }
    findings
}

/// Whether an absolute path begins with `place` somewhere in the line; a longer path or an address
/// that has it in the middle is another place.
fn starts_a_path(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(start, _)| {
        let before = line.get(..start).and_then(|text| text.chars().next_back());
        !before.is_some_and(|c| c.is_alphanumeric() || "_-./~}*".contains(c))
    })
}

pub(super) fn scenario_sources(sources: &[Source]) -> Vec<Finding> {
    sources
        .iter()
        .filter(|source| source.path.starts_with("scenarios/") && source.path.ends_with(".toml"))
        .filter(|source| !names_its_source(&source.text))
        .map(|source| {
            Finding::whole(
                &source.path,
                "no `source`: say where its expectation comes from",
            )
        })
        .collect()
}

/// Whether the keys before the first table have a `source` that is not empty.
fn names_its_source(text: &str) -> bool {
    text.lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with('['))
        .any(|line| {
            let value = line
                .strip_prefix("source")
                .and_then(|rest| rest.trim_start().strip_prefix('='));
            value.is_some_and(|value| {
                value
                    .trim()
                    .trim_matches(['"', '\''])
                    .chars()
                    .any(char::is_alphanumeric)
            })
        })
}

/// An invariant that is never shown to fail may hold nothing.
pub(super) fn invariant_tests(sources: &[Source]) -> Vec<Finding> {
    let is_invariant = |path: &str| {
        path.strip_prefix(INVARIANTS).is_some_and(|file| {
            file.ends_with(".rs") && !file.ends_with("mod.rs") && !file.ends_with("tests.rs")
        })
    };
    let invariants: Vec<&Source> = sources.iter().filter(|s| is_invariant(&s.path)).collect();
    if invariants.is_empty() {
        let what = "no invariants here, one file each: has the folder moved? Change tidy with it";
        return vec![Finding::whole(INVARIANTS, what)];
    }
    invariants
        .into_iter()
        .filter(|source| !has_tests(source, sources))
        .map(|source| {
            let what = "no test: in `mod tests`, hand it a violation and see it found";
            Finding::whole(&source.path, what)
        })
        .collect()
}

/// Whether the file has a test module with a test in it, or beside it in `tests.rs`.
fn has_tests(source: &Source, sources: &[Source]) -> bool {
    let begins = |line: &str, start: &str| line.trim_start().starts_with(start);
    let has_test = |text: &str| text.lines().any(|line| begins(line, "#[test]"));
    if source.text.lines().any(|line| begins(line, "mod tests;")) {
        let beside = format!("{}/tests.rs", source.path.trim_end_matches(".rs"));
        return sources
            .iter()
            .any(|other| other.path == beside && has_test(&other.text));
    }
    source.text.lines().any(|line| begins(line, "mod tests")) && has_test(&source.text)
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    #[test]
    fn path_of_a_workplace_is_found_in_any_file() {
        for place in WORKPLACES {
            let text = format!("fine\nsee `{place}notes.md`\n");
            let found = workplace_paths(&[source("docs/a.md", &text)]);
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].line, Some(2));
            let text = format!("/proc/self{place}etc and ..{place}a\n");
            assert_eq!(workplace_paths(&[source("docs/a.md", &text)]), []);
        }
    }

    #[test]
    fn scenario_without_a_source_is_found() {
        let found = |text: &str| scenario_sources(&[source("scenarios/nasty/a.toml", text)]).len();
        assert_eq!(found("name = \"a\"\nsource = \"seed 001\"\n[[host]]\n"), 0);
        assert_eq!(found("name = \"a\"\n[[host]]\n"), 1);
        assert_eq!(found("name = \"a\"\nsource = \"\"\n"), 1);
        assert_eq!(found("name = \"a\"\n# source = \"seed 001\"\n"), 1);
        assert_eq!(
            found("name = \"a\"\n[settings]\nsource = \"seed 001\"\n"),
            1
        );
    }

    #[test]
    fn invariant_without_a_test_is_found() {
        let file = |name: &str, text: &str| source(&format!("{INVARIANTS}{name}"), text);
        let tested = "fn judge() {}\n#[cfg(test)]\nmod tests {\n    #[test]\n    fn a() {}\n}\n";
        assert_eq!(
            invariant_tests(&[file("mod.rs", ""), file("a.rs", tested)]),
            []
        );
        assert_eq!(
            invariant_tests(&[file("a.rs", tested), file("b.rs", "fn judge() {}\n")]).len(),
            1
        );
        assert_eq!(
            invariant_tests(&[file("a.rs", "#[cfg(test)]\nmod tests {}\n")]).len(),
            1
        );
    }

    #[test]
    fn tests_of_an_invariant_may_lie_beside_it() {
        let file = |name: &str, text: &str| source(&format!("{INVARIANTS}{name}"), text);
        let parent = file("a.rs", "#[cfg(test)]\nmod tests;\n");
        assert_eq!(invariant_tests(std::slice::from_ref(&parent)).len(), 1);
        assert_eq!(
            invariant_tests(&[parent, file("a/tests.rs", "#[test]\nfn a() {}\n")]),
            []
        );
    }

    #[test]
    fn missing_folder_of_invariants_is_found() {
        assert_eq!(
            invariant_tests(&[source("crates/sim/src/lib.rs", "")]).len(),
            1
        );
    }
}
