//! Tables of a document whose rows name scenarios.

use std::collections::BTreeSet;

use super::{Finding, Source};

const SCENARIOS: &str = "scenarios/";

/// A row of a table; every table that is checked has four columns.
pub(super) struct Row<'a> {
    pub(super) line: usize,
    pub(super) cells: [&'a str; 4],
}

/// The rows of all tables of the page whose head begins with `first`, and what is wrong with their
/// form: the number of cells, or what `fault` says of them.
pub(super) fn rows<'a>(
    page: &'a Source,
    first: &str,
    fault: impl Fn(&[&str; 4]) -> Option<&'static str>,
) -> (Vec<Row<'a>>, Vec<Finding>) {
    let head = format!("| {first} ");
    let (mut rows, mut findings) = (Vec::new(), Vec::new());
    for (index, text) in page.text.lines().enumerate() {
        if !text.starts_with('|') || text.starts_with("|---") || text.starts_with(&head) {
            continue;
        }
        let line = index + 1;
        let cells: Vec<&str> = text.trim_matches('|').split('|').map(str::trim).collect();
        let Ok(cells) = <[&str; 4]>::try_from(cells) else {
            findings.push(Finding::at(page, line, "a row has four cells"));
            continue;
        };
        findings.extend(fault(&cells).map(|what| Finding::at(page, line, what)));
        rows.push(Row { line, cells });
    }
    if rows.is_empty() {
        findings.push(Finding::whole(&page.path, "has no row"));
    }
    (rows, findings)
}

/// What stands between backticks.
pub(super) fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The scenarios that a page names.
pub(super) struct Named<'a> {
    sources: &'a [Source],
    page: &'a Source,
    /// Where a name without a folder lies; every scenario there must be named.
    home: &'a str,
    paths: BTreeSet<String>,
}

impl<'a> Named<'a> {
    pub(super) fn new(sources: &'a [Source], page: &'a Source, home: &'a str) -> Self {
        Self {
            sources,
            page,
            home,
            paths: BTreeSet::new(),
        }
    }

    /// Notes what a line names; finds the names behind which there is no scenario.
    pub(super) fn note(&mut self, line: usize, names: &[&str]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for name in names {
            let folder = if name.contains('/') {
                SCENARIOS
            } else {
                self.home
            };
            let path = format!("{folder}{name}.toml");
            if !self.sources.iter().any(|source| source.path == path) {
                findings.push(Finding::at(self.page, line, format!("there is no {path}")));
            }
            self.paths.insert(path);
        }
        findings
    }

    /// The scenarios of the page's folder that it does not name.
    pub(super) fn left_out(&self) -> impl Iterator<Item = Finding> {
        let at_home = |path: &str| path.starts_with(self.home) && path.ends_with(".toml");
        let paths = self.sources.iter().map(|source| &source.path);
        paths
            .filter(move |path| at_home(path) && !self.paths.contains(*path))
            .map(|path| Finding::whole(path, format!("is named nowhere in {}", self.page.path)))
    }
}
