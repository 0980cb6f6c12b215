//! The page of vSphere's options is the table that the code has.

use mainstay_core::config::vsphere::OPTIONS;

const PAGE: &str = include_str!("../../../docs/vsphere-options.md");

/// The rows that the page must have, with an equal or without.
fn rows(with_equal: bool) -> Vec<String> {
    let options = OPTIONS.iter().filter(|o| o.keys().is_empty() != with_equal);
    let code = |keys: Vec<&str>| {
        let keys: Vec<String> = keys.iter().map(|k| format!("`{k}`")).collect();
        keys.join(", ")
    };
    options
        .map(|o| match with_equal {
            true => {
                let (keys, takes) = (code(o.keys()), o.takes());
                format!("| `{}` | {keys} | {takes} | {} |", o.name, o.note)
            }
            false => format!("| `{}` | {} |", o.name, o.note),
        })
        .collect()
}

fn rows_of_the_page(heading: &str) -> Vec<&'static str> {
    PAGE.lines()
        .skip_while(|l| *l != heading)
        .skip(1)
        .take_while(|l| !l.starts_with("## "))
        .filter(|l| l.starts_with("| `"))
        .collect()
}

#[test]
fn the_page_has_every_option_and_no_other() {
    for (heading, with_equal) in [
        ("## Options with an equal", true),
        ("## Options without one", false),
    ] {
        let wanted = rows(with_equal);
        assert!(
            rows_of_the_page(heading) == wanted,
            "docs/vsphere-options.md, \"{heading}\", must have these rows:\n{}",
            wanted.join("\n")
        );
    }
}
