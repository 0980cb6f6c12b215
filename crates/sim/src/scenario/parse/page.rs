//! The page about the simulator names everything that a scenario can say.

use super::super::fault::EVENTS;
use super::fields::{FAULT, KINDS};
use super::{DATASTORE, FENCE, HOST, RULE, TOP, VM_KEYS, WEATHER};

const PAGE: &str = include_str!("../../../../../docs/simulation.md");

/// The cells of the rows of all tables.
fn rows() -> impl Iterator<Item = Vec<&'static str>> {
    let rows = PAGE.lines().filter(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
}

fn names(text: &str, name: &str) -> bool {
    text.contains(&format!("`{name}`"))
}

/// The second cell of the row whose first cell names this.
fn about(name: &str) -> &'static str {
    rows().find(|cells| names(cells[0], name)).map_or_else(
        || panic!("docs/simulation.md has no row for {name}"),
        |cells| cells[1],
    )
}

#[test]
fn every_key_of_a_scenario_stands_on_the_page() {
    let tables: [(&str, &[&str]); 5] = [
        ("[[datastore]]", DATASTORE),
        ("[[host]]", HOST),
        ("[[vm]]", VM_KEYS),
        ("[[rule]]", RULE),
        ("[[fence]]", FENCE),
    ];
    for (table, keys) in tables {
        let row = about(table);
        for key in keys {
            assert!(names(row, key), "{table} lacks {key}: {row}");
        }
    }
    let weather = PAGE.split("`[weather]` is").nth(1).unwrap_or_default();
    let weather = weather.split("\n\n").next().unwrap_or_default();
    for key in WEATHER {
        assert!(names(weather, key), "[weather] lacks {key}");
    }
    for key in TOP {
        let forms = [(*key).to_owned(), format!("[{key}]"), format!("[[{key}]]")];
        let found = rows().any(|cells| {
            forms
                .iter()
                .any(|form| cells.iter().any(|c| names(c, form)))
        });
        assert!(found, "no table names {key}");
    }
}

#[test]
fn every_event_stands_on_the_page_with_its_arguments() {
    for event in EVENTS {
        let row = about(event.name);
        for argument in event.arguments() {
            assert!(
                names(row, argument),
                "{} lacks {argument}: {row}",
                event.name
            );
        }
    }
}

#[test]
fn every_kind_of_event_stands_on_the_page_with_its_fields() {
    for (kind, fields) in KINDS.iter() {
        let row = about(kind);
        for field in fields.keys().filter(|f| *kind != FAULT && **f != "why") {
            assert!(names(row, field), "{kind} lacks {field}: {row}");
        }
    }
}
