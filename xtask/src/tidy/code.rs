//! Rules about source text: lengths, leftovers, waits.

use super::{Finding, Source};

/// A longer file is split.
const FILE_LINES_MAX: usize = 1_000;
/// A longer file is listed.
const FILE_LINES_AIM: usize = 500;
/// A longer function is listed.
const FUNCTION_LINES_AIM: usize = 100;

/// Words that mark unfinished work, written in halves so that this file does not hold them.
const LEFTOVERS: [&str; 4] = [
    concat!("FIX", "ME"),
    concat!("TO", "DO"),
    concat!("XX", "X"),
    concat!("db", "g!"),
];

const SLEEP: &str = concat!("thread::", "sleep");

/// Where a thread may sleep, and why. A wait for something to happen is a condition with a
/// deadline instead: it is faster when all is well and says what it waited for when not.
///
/// A path that ends in `/` stands for all below it.
const MAY_SLEEP: &[(&str, &str)] = &[];

pub(super) fn too_long_files(sources: &[Source]) -> Vec<Finding> {
    rust(sources)
        .map(|source| (source, source.text.lines().count()))
        .filter(|(_, lines)| *lines > FILE_LINES_MAX)
        .map(|(source, lines)| {
            let what = format!("{lines} lines, more than {FILE_LINES_MAX}: split the module");
            Finding::whole(&source.path, what)
        })
        .collect()
}

pub(super) fn long_files(sources: &[Source]) -> Vec<Finding> {
    rust(sources)
        .map(|source| (source, source.text.lines().count()))
        .filter(|(_, lines)| (FILE_LINES_AIM + 1..=FILE_LINES_MAX).contains(lines))
        .map(|(source, lines)| Finding::whole(&source.path, format!("{lines} lines")))
        .collect()
}

/// Functions that are long, found by the indentation that rustfmt gives: a function ends with a
/// brace as far to the right as its `fn` line.
pub(super) fn long_functions(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in rust(sources) {
        let lines: Vec<&str> = source.text.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let Some(name) = function_name(line) else {
                continue;
            };
            let indentation = line.len() - line.trim_start().len();
            let end = format!("{}}}", " ".repeat(indentation));
            let length = lines
                .iter()
                .skip(start)
                .position(|line| *line == end)
                .unwrap_or(0)
                + 1;
            if length > FUNCTION_LINES_AIM && !line.ends_with(';') {
                let what = format!("function {name} has {length} lines");
                findings.push(Finding::at(source, start + 1, what));
            }
        }
    }
    findings
}

/// The name of the function that this line begins.
fn function_name(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    loop {
        match words.next()? {
            "fn" => break,
            "pub" | "const" | "async" | "unsafe" | "extern" | "\"C\"" => {}
            word if word.starts_with("pub(") => {}
            _ => return None,
        }
    }
    words.next()?.split(['(', '<']).next()
}

pub(super) fn unfinished(sources: &[Source]) -> Vec<Finding> {
    let is_code = |source: &&Source| {
        let path = &source.path;
        [".rs", ".toml", ".sh", ".S", ".s"]
            .iter()
            .any(|end| path.ends_with(end))
            || path == ".ci/run"
    };
    let mut findings = Vec::new();
    for source in sources.iter().filter(is_code) {
        for (number, line) in numbered(source) {
            for word in LEFTOVERS.iter().filter(|word| has_word(line, word)) {
                let what = format!("{word}: finish it, or open an issue and leave it out");
                findings.push(Finding::at(source, number, what));
            }
        }
    }
    findings
}

pub(super) fn sleeps(sources: &[Source]) -> Vec<Finding> {
    sleeps_except(sources, MAY_SLEEP)
}

fn sleeps_except(sources: &[Source], may_sleep: &[(&str, &str)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in rust(sources).filter(|source| !listed(&source.path, may_sleep)) {
        for (number, _) in numbered(source).filter(|(_, line)| line.contains(SLEEP)) {
            let what = format!(
                "{SLEEP}: wait for a condition with a deadline, or add the file to MAY_SLEEP in \
                 xtask/src/tidy/code.rs with the reason"
            );
            findings.push(Finding::at(source, number, what));
        }
    }
    for (path, reason) in may_sleep {
        if reason.trim().is_empty() {
            findings.push(Finding::whole(
                path,
                "MAY_SLEEP gives no reason for this path",
            ));
        }
        if !sources
            .iter()
            .any(|s| listed(&s.path, &[(path, "")]) && s.text.contains(SLEEP))
        {
            let what = "does not sleep: take it out of MAY_SLEEP in xtask/src/tidy/code.rs";
            findings.push(Finding::whole(path, what));
        }
    }
    findings
}

fn listed(path: &str, list: &[(&str, &str)]) -> bool {
    list.iter()
        .any(|(entry, _)| path == *entry || entry.ends_with('/') && path.starts_with(entry))
}

/// `#![no_std]` keeps the operating system out of the core unless somebody lets it in by name.
pub(super) fn std_in_core(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let in_core = |source: &&Source| {
        source.path.starts_with("crates/core/src/") && !source.path.ends_with("/tests.rs")
    };
    for source in rust(sources).filter(in_core) {
        let mut tests = false;
        for (number, line) in numbered(source) {
            let code = line.trim();
            // By convention the tests are the last item of a file.
            tests |= code.starts_with("mod tests");
            let before = source
                .text
                .lines()
                .nth(number.saturating_sub(2))
                .unwrap_or_default();
            let for_tests = tests || before.trim() == "#[cfg(test)]";
            if code.contains("extern crate std") && !code.starts_with("//") && !for_tests {
                let what = "the core names no std: time, files and sockets come in as inputs";
                findings.push(Finding::at(source, number, what));
            }
        }
    }
    findings
}

fn rust(sources: &[Source]) -> impl Iterator<Item = &Source> {
    sources.iter().filter(|source| source.path.ends_with(".rs"))
}

fn numbered(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    source
        .text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
}

fn has_word(line: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(start, _)| {
        let before = line.get(..start).and_then(|text| text.chars().next_back());
        let after = line
            .get(start + word.len()..)
            .and_then(|text| text.chars().next());
        !before.is_some_and(part_of_word) && !after.is_some_and(part_of_word)
    })
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    fn lines(count: usize) -> String {
        "//\n".repeat(count)
    }

    #[test]
    fn file_over_the_limit_fails_and_one_over_the_aim_is_listed() {
        let sources = [
            source("short.rs", &lines(500)),
            source("long.rs", &lines(501)),
            source("largest.rs", &lines(1_000)),
            source("too-long.rs", &lines(1_001)),
            source("data.txt", &lines(5_000)),
        ];
        let failed = too_long_files(&sources);
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].path, "too-long.rs");
        let listed: Vec<String> = long_files(&sources).into_iter().map(|f| f.path).collect();
        assert_eq!(listed, ["long.rs", "largest.rs"]);
    }

    #[test]
    fn long_function_is_listed_with_its_line() {
        let body = "        step();\n".repeat(99);
        let text =
            format!("impl A {{\n    pub(crate) const fn long<T>(\n    ) {{\n{body}    }}\n}}\n");
        let found = long_functions(&[source("a.rs", &text)]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].to_string(), "a.rs:2: function long has 102 lines");
    }

    #[test]
    fn function_of_the_allowed_length_is_not_listed() {
        let text = format!("fn short() {{\n{}}}\n", "    step();\n".repeat(98));
        assert_eq!(long_functions(&[source("a.rs", &text)]), []);
    }

    #[test]
    fn call_and_comment_are_no_functions() {
        assert_eq!(function_name("    let fn_pointer = a;"), None);
        assert_eq!(function_name("/// A fn that waits."), None);
        assert_eq!(
            function_name("unsafe extern \"C\" fn a(b: u8) {"),
            Some("a")
        );
    }

    #[test]
    fn each_leftover_is_found_as_a_word() {
        for word in LEFTOVERS {
            let text = format!("fine();\nx(); // {word} later\n");
            let found = unfinished(&[source("a.rs", &text)]);
            assert_eq!(found.len(), 1, "{word}");
            assert_eq!(found[0].line, Some(2));
        }
        let template = format!("mktemp mainstay.{}\n", LEFTOVERS[2].repeat(2));
        assert_eq!(unfinished(&[source("a.sh", &template)]), []);
    }

    #[test]
    fn sleep_is_found_outside_the_list() {
        let text = format!("fn a() {{\n    std::{SLEEP}(b);\n}}\n");
        let sources = [source("crates/agent/src/a.rs", &text)];
        let found = sleeps_except(&sources, &[]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].line, Some(2));
        assert_eq!(
            sleeps_except(&sources, &[("crates/agent/src/a.rs", "paces a loop")]),
            []
        );
        assert_eq!(
            sleeps_except(&sources, &[("crates/agent/", "paces a loop")]),
            []
        );
    }

    #[test]
    fn sleep_list_needs_reasons_and_holds_nothing_stale() {
        let text = format!("{SLEEP}(a);\n");
        let sources = [source("a.rs", &text), source("b.rs", "")];
        assert_eq!(sleeps_except(&sources, &[("a.rs", " ")]).len(), 1);
        assert_eq!(
            sleeps_except(&sources, &[("a.rs", "why"), ("b.rs", "why")]).len(),
            1
        );
    }

    #[test]
    fn std_is_found_in_the_core_but_not_in_its_tests() {
        let core = |text: &str| std_in_core(&[source("crates/core/src/a.rs", text)]);
        assert_eq!(core("#![no_std]\nextern crate std;\n").len(), 1);
        assert_eq!(core("#[cfg(test)]\nextern crate std;\n"), []);
        assert_eq!(
            core("#[cfg(test)]\nmod tests {\n    extern crate std;\n}\n"),
            []
        );
        assert_eq!(
            std_in_core(&[source("crates/sim/src/a.rs", "extern crate std;\n")]),
            []
        );
    }
}
