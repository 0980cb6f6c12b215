//! Who may depend on whom. The arrows are what makes the architecture true: the simulator tests the
//! core that ships because it can see nothing else.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Finding;

/// What one of our packages may depend on.
struct Arrow {
    package: &'static str,
    /// Our own packages, in any kind of dependency, tests included.
    ours: &'static [&'static str],
    /// Packages of others, in what ships; `None` leaves the choice to review and to deny.toml.
    others: Option<&'static [&'static str]>,
}

const ARROWS: [Arrow; 9] = [
    Arrow {
        package: "mainstay-core",
        ours: &[],
        others: Some(&["crc32fast", "postcard", "serde", "thiserror"]),
    },
    Arrow {
        package: "mainstay-sim",
        ours: &["mainstay-core"],
        others: None,
    },
    Arrow {
        package: "mainstay-datastore",
        ours: &["mainstay-core"],
        others: None,
    },
    Arrow {
        package: "mainstay-hypervisor",
        ours: &["mainstay-core"],
        others: None,
    },
    Arrow {
        package: "mainstay-agent",
        ours: &["mainstay-core", "mainstay-datastore", "mainstay-hypervisor"],
        others: None,
    },
    Arrow {
        package: "mainstay-lab",
        ours: &[
            "mainstay-agent",
            "mainstay-core",
            "mainstay-datastore",
            "mainstay-hypervisor",
            "mainstay-sim",
        ],
        others: None,
    },
    Arrow {
        package: "mainstay",
        ours: &[
            "mainstay-agent",
            "mainstay-core",
            "mainstay-datastore",
            "mainstay-hypervisor",
            "mainstay-lab",
            "mainstay-sim",
        ],
        others: None,
    },
    Arrow {
        package: "mainstay-fuzz",
        ours: &[
            "mainstay-agent",
            "mainstay-core",
            "mainstay-datastore",
            "mainstay-hypervisor",
            "mainstay-sim",
        ],
        others: None,
    },
    Arrow {
        package: "xtask",
        ours: &[],
        others: None,
    },
];

const HERE: &str = "xtask/src/tidy/arrows.rs";

/// Judges what `cargo metadata --no-deps` says.
pub(super) fn check(metadata: &Value) -> Vec<Finding> {
    let packages: BTreeMap<&str, &Value> = array(metadata, "packages")
        .filter_map(|package| Some((text(package, "name")?, package)))
        .collect();
    if packages.is_empty() {
        return vec![Finding::whole(
            "Cargo.toml",
            "cargo metadata names no package",
        )];
    }
    let mut findings = Vec::new();
    for (name, package) in &packages {
        match ARROWS.iter().find(|arrow| arrow.package == *name) {
            Some(arrow) => findings.extend(check_package(arrow, package, &packages)),
            None => {
                let what = format!("{name} has no row in {HERE}: say what it may depend on");
                findings.push(Finding::whole("Cargo.toml", what));
            }
        }
    }
    findings
}

fn check_package(
    arrow: &Arrow,
    package: &Value,
    packages: &BTreeMap<&str, &Value>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for dependency in array(package, "dependencies") {
        let Some(name) = text(dependency, "name") else {
            continue;
        };
        let only_for_tests = text(dependency, "kind") == Some("dev");
        let allowed = if packages.contains_key(name) || is_ours(name) {
            arrow.ours.contains(&name)
        } else {
            only_for_tests || arrow.others.is_none_or(|others| others.contains(&name))
        };
        if !allowed {
            let what = format!("{} must not depend on {name}; see {HERE}", arrow.package);
            findings.push(Finding::whole("Cargo.toml", what));
        }
    }
    findings
}

/// Ours by name too, so that a dependency on a package outside the workspace's list is no way out.
fn is_ours(name: &str) -> bool {
    name.starts_with("mainstay") || ARROWS.iter().any(|arrow| arrow.package == name)
}

fn array<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Metadata of the core and of one package that depends on `name`.
    fn depends(package: &str, name: &str, kind: Option<&str>) -> Value {
        json!({ "packages": [
            { "name": "mainstay-agent", "dependencies": [] },
            { "name": "mainstay-core", "dependencies": [] },
            { "name": package, "dependencies": [{ "name": name, "kind": kind }] },
        ]})
    }

    #[test]
    fn arrows_that_are_drawn_pass() {
        assert_eq!(check(&depends("mainstay-sim", "mainstay-core", None)), []);
        assert_eq!(
            check(&depends("mainstay-agent", "mainstay-datastore", None)),
            []
        );
        assert_eq!(check(&depends("mainstay-datastore", "rustix", None)), []);
        assert_eq!(check(&depends("mainstay-core", "serde", None)), []);
        assert_eq!(
            check(&depends("mainstay-core", "proptest", Some("dev"))),
            []
        );
    }

    #[test]
    fn each_forbidden_arrow_is_found() {
        for (package, name, kind) in [
            ("mainstay-core", "mainstay-sim", None),
            ("mainstay-core", "mainstay-sim", Some("dev")),
            ("mainstay-core", "rand", None),
            ("mainstay-core", "cc", Some("build")),
            ("mainstay-sim", "mainstay-agent", None),
            ("mainstay-sim", "mainstay-agent", Some("dev")),
            ("mainstay-sim", "mainstay-datastore", None),
            ("mainstay-sim", "mainstay-hypervisor", None),
            ("mainstay-datastore", "mainstay-hypervisor", None),
            ("mainstay-hypervisor", "mainstay-datastore", None),
            ("mainstay-agent", "mainstay-sim", None),
            ("mainstay-agent", "mainstay", None),
            ("mainstay", "xtask", None),
            ("mainstay", "mainstay-fuzz", None),
            ("mainstay-agent", "mainstay-fuzz", Some("dev")),
            ("mainstay-fuzz", "mainstay-lab", None),
            ("xtask", "mainstay-core", None),
        ] {
            let found = check(&depends(package, name, kind));
            assert_eq!(found.len(), 1, "{package} -> {name}: {found:?}");
            assert!(found[0].what.contains(name), "{}", found[0]);
        }
    }

    #[test]
    fn new_package_needs_a_row() {
        assert_eq!(check(&depends("mainstay-extra", "serde", None)).len(), 1);
    }

    #[test]
    fn empty_metadata_is_no_success() {
        assert_eq!(check(&json!({})).len(), 1);
    }
}
