//! The table of faults and the scenarios that show what becomes of them.

use super::tables::{Named, Row, quoted, rows};
use super::{Finding, Source};

const PAGE: &str = "docs/faults.md";
const SETTINGS: &str = "docs/settings.md";
/// Where a name without a folder lies; every scenario there is named.
const HOME: &str = "scenarios/nasty/";

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let find = |path: &str| sources.iter().find(|source| source.path == path);
    let Some(page) = find(PAGE) else {
        let what = "is missing: it says what becomes of which fault, and which scenario shows it";
        return vec![Finding::whole(PAGE, what)];
    };
    let known = find(SETTINGS).map_or("", |source| &source.text);
    let (rows, mut findings) = rows(page, "fault", form);
    let mut named = Named::new(sources, page, HOME);
    for Row { line, cells } in rows {
        let [_, _, soon, scenario] = cells;
        let scenarios = quoted(scenario);
        if scenarios.is_empty() {
            findings.push(Finding::at(page, line, "shown by no scenario"));
        }
        findings.extend(named.note(line, &scenarios));
        let unknown = quoted(soon)
            .into_iter()
            .filter(|name| !known.contains(&format!("| `{name}` |")));
        findings.extend(unknown.map(|name| {
            let what = format!("{SETTINGS} has no setting {name}");
            Finding::at(page, line, what)
        }));
    }
    findings.extend(named.left_out());
    findings
}

fn form([fault, reaction, soon, _]: &[&str; 4]) -> Option<&'static str> {
    let says = [fault, reaction, soon].iter().all(|cell| !cell.is_empty());
    (!says).then_some("a row says what fails, what Mainstay does, and how soon")
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
