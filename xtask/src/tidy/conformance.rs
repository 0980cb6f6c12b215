//! The table of conformance and the scenarios that it speaks of.

use super::tables::{Named, Row, quoted, rows};
use super::{Finding, Source};

const PAGE: &str = "docs/conformance.md";
/// Where a name without a folder lies; every scenario there is named.
const HOME: &str = "scenarios/vsphere-ha/";

/// How a state begins, and whether a scenario must be named beside it.
const STATES: [(&str, bool); 5] = [
    ("shown", true),
    ("superseded", false),
    ("by construction", false),
    ("not part of this release", false),
    ("not yet", false),
];

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let Some(page) = sources.iter().find(|source| source.path == PAGE) else {
        return vec![Finding::whole(
            PAGE,
            "is missing: it says which scenario shows which statement",
        )];
    };
    let (rows, mut findings) = rows(page, "statement", form);
    let mut named = Named::new(sources, page, HOME);
    for Row { line, cells } in rows {
        let [_, _, scenario, state] = cells;
        let scenarios = quoted(scenario);
        findings.extend(named.note(line, &scenarios));
        match STATES.iter().find(|(known, _)| state.starts_with(known)) {
            None => {
                let states: Vec<&str> = STATES.iter().map(|(state, _)| *state).collect();
                let what = format!("the state begins with one of: {}", states.join(", "));
                findings.push(Finding::at(page, line, what));
            }
            Some((_, true)) if scenarios.is_empty() => {
                findings.push(Finding::at(page, line, "shown by no scenario"));
            }
            Some(_) => {}
        }
    }
    findings.extend(named.left_out());
    findings
}

fn form([statement, source, ..]: &[&str; 4]) -> Option<&'static str> {
    let says = !statement.is_empty() && !source.is_empty();
    (!says).then_some("a row names a statement and its source")
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    fn page(rows: &str) -> Source {
        let head = "| statement | source | scenario | state |\n|---|---|---|---|\n";
        source(PAGE, &format!("# A page\n\n{head}{rows}"))
    }

    fn found(rows: &str) -> Vec<String> {
        let sources = [
            page(rows),
            source("scenarios/vsphere-ha/a.toml", ""),
            source("scenarios/nasty/b.toml", ""),
        ];
        check(&sources).iter().map(Finding::to_string).collect()
    }

    #[test]
    fn page_that_names_every_scenario_passes() {
        let rows = "| it restarts | doc, part | `a`, `nasty/b` | shown: twice |\n\
                    | it waits | doc, part | - | not yet |\n";
        assert_eq!(found(rows), [""; 0]);
    }

    #[test]
    fn scenario_that_is_not_there_is_found() {
        let rows = "| it restarts | doc | `a`, `c`, `nasty/a` | shown |\n";
        assert_eq!(
            found(rows),
            [
                "docs/conformance.md:5: there is no scenarios/vsphere-ha/c.toml",
                "docs/conformance.md:5: there is no scenarios/nasty/a.toml",
            ]
        );
    }

    #[test]
    fn scenario_that_is_not_named_is_found() {
        assert_eq!(
            found("| it waits | doc | - | not yet |\n"),
            ["scenarios/vsphere-ha/a.toml: is named nowhere in docs/conformance.md"]
        );
    }

    #[test]
    fn row_without_a_known_state_or_with_nothing_to_show_is_found() {
        let rows = "| it restarts | doc | `a` | probably |\n| it waits | doc | - | shown |\n| it | runs |\n";
        let found = found(rows);
        assert!(found[0].contains("four cells"), "{found:?}");
        assert!(
            found[1].contains("begins with one of: shown, superseded"),
            "{found:?}"
        );
        assert!(found[2].contains("shown by no scenario"), "{found:?}");
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn missing_page_and_empty_page_are_found() {
        assert_eq!(check(&[source("README.md", "")]).len(), 1);
        assert_eq!(check(&[source(PAGE, "# Nothing\n")]).len(), 1);
    }
}
