//! The table of faults and the scenarios that show what becomes of them.

use std::collections::BTreeSet;

use super::{Finding, Source};

const PAGE: &str = "docs/faults.md";
const SETTINGS: &str = "docs/settings.md";
const SCENARIOS: &str = "scenarios/";
/// Where a name without a folder lies; every scenario there is named.
const HOME: &str = "scenarios/nasty/";

/// A row of the table: fault, what Mainstay does, how soon, scenario.
struct Row<'a> {
    line: usize,
    settings: Vec<&'a str>,
    scenarios: Vec<&'a str>,
}

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let find = |path: &str| sources.iter().find(|source| source.path == path);
    let Some(page) = find(PAGE) else {
        let what = "is missing: it says what becomes of which fault, and which scenario shows it";
        return vec![Finding::whole(PAGE, what)];
    };
    let known = find(SETTINGS).map_or("", |source| &source.text);
    let (rows, mut findings) = rows(page);
    let mut named = BTreeSet::new();
    for row in &rows {
        if row.scenarios.is_empty() {
            findings.push(Finding::at(page, row.line, "shown by no scenario"));
        }
        for name in &row.scenarios {
            let path = match name.contains('/') {
                true => format!("{SCENARIOS}{name}.toml"),
                false => format!("{HOME}{name}.toml"),
            };
            if !sources.iter().any(|source| source.path == path) {
                findings.push(Finding::at(page, row.line, format!("there is no {path}")));
            }
            named.insert(path);
        }
        let unknown = row
            .settings
            .iter()
            .filter(|name| !known.contains(&format!("| `{name}` |")));
        findings.extend(unknown.map(|name| {
            let what = format!("{SETTINGS} has no setting {name}");
            Finding::at(page, row.line, what)
        }));
    }
    let unnamed = sources.iter().filter(|s| {
        s.path.starts_with(HOME) && s.path.ends_with(".toml") && !named.contains(&s.path)
    });
    findings
        .extend(unnamed.map(|s| Finding::whole(&s.path, format!("is named nowhere in {PAGE}"))));
    findings
}

/// The rows of all tables of the page, and what is wrong with their form.
fn rows(page: &Source) -> (Vec<Row<'_>>, Vec<Finding>) {
    let (mut rows, mut findings) = (Vec::new(), Vec::new());
    for (index, text) in page.text.lines().enumerate() {
        if !text.starts_with('|') || text.starts_with("|---") || text.starts_with("| fault ") {
            continue;
        }
        let cells: Vec<&str> = text.trim_matches('|').split('|').map(str::trim).collect();
        let [fault, reaction, soon, scenario] = cells.as_slice() else {
            findings.push(Finding::at(page, index + 1, "a row has four cells"));
            continue;
        };
        if [fault, reaction, soon].iter().any(|cell| cell.is_empty()) {
            let what = "a row says what fails, what Mainstay does, and how soon";
            findings.push(Finding::at(page, index + 1, what));
        }
        rows.push(Row {
            line: index + 1,
            settings: quoted(soon),
            scenarios: quoted(scenario),
        });
    }
    if rows.is_empty() {
        findings.push(Finding::whole(PAGE, "has no row"));
    }
    (rows, findings)
}

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    fn found(rows: &str) -> Vec<String> {
        let head = "| fault | what Mainstay does | how soon | scenario |\n|---|---|---|---|\n";
        let sources = [
            source(PAGE, &format!("# A page\n\n{head}{rows}")),
            source(SETTINGS, "| `freeze` | what | 12s |\n"),
            source("scenarios/nasty/a.toml", ""),
            source("scenarios/vsphere-ha/b.toml", ""),
        ];
        check(&sources).iter().map(Finding::to_string).collect()
    }

    #[test]
    fn page_that_names_every_scenario_passes() {
        let rows = "| a path hangs | it freezes | `freeze` | `a`, `vsphere-ha/b` |\n\
                    | a cable | nothing | at once | `a` |\n";
        assert_eq!(found(rows), [""; 0]);
    }

    #[test]
    fn scenario_that_is_not_there_or_not_named_is_found() {
        assert_eq!(
            found("| a cable | nothing | at once | `vsphere-ha/b`, `c` |\n"),
            [
                "docs/faults.md:5: there is no scenarios/nasty/c.toml",
                "scenarios/nasty/a.toml: is named nowhere in docs/faults.md",
            ]
        );
    }

    #[test]
    fn row_without_scenario_setting_or_form_is_found() {
        let rows = "| a cable | nothing | `freezes` | `a` |\n\
                    | a path | | at once | - |\n| a path | hangs |\n";
        assert_eq!(
            found(rows),
            [
                "docs/faults.md:6: a row says what fails, what Mainstay does, and how soon",
                "docs/faults.md:7: a row has four cells",
                "docs/faults.md:5: docs/settings.md has no setting freezes",
                "docs/faults.md:6: shown by no scenario",
            ]
        );
    }

    #[test]
    fn missing_page_and_empty_page_are_found() {
        assert_eq!(check(&[source("README.md", "")]).len(), 1);
        assert_eq!(check(&[source(PAGE, "# Nothing\n")]).len(), 1);
    }
}
