//! The settings' documentation names every setting with the default that the code has.

use mainstay_core::config::{Profile, SETTINGS, Settings, Timing, parse_duration};

const PAGE: &str = include_str!("../../../docs/settings.md");

fn row(key: &str) -> Vec<&'static str> {
    let start = format!("| `{key}` |");
    let line = PAGE
        .lines()
        .find(|l| l.starts_with(&start))
        .unwrap_or_else(|| panic!("docs/settings.md lacks {key}"));
    line.split('|')
        .map(str::trim)
        .filter(|c| !c.is_empty())
        .collect()
}

#[test]
fn every_setting_is_documented() {
    for setting in SETTINGS {
        let row = row(setting.key);
        let (values, what) = match row.as_slice() {
            [_, what, values, _, _, _] | [_, values, _, what] => (*values, *what),
            other => panic!("docs/settings.md: {other:?}"),
        };
        assert_eq!(values, setting.values.to_string(), "{}", setting.key);
        assert_eq!(what, setting.what, "{}", setting.key);
    }
}

#[test]
fn documented_timers_are_those_of_the_profiles() {
    for (column, profile) in [
        (3, Profile::Classic),
        (4, Profile::Balanced),
        (5, Profile::Fast),
    ] {
        let mut documented = Settings::of(profile);
        for setting in SETTINGS.iter().filter(|s| row(s.key).len() == 6) {
            let value = row(setting.key)
                .get(column)
                .copied()
                .expect("a column for each profile");
            assert!(
                setting.key == "clock_drift_ppm" || parse_duration(value).is_some(),
                "{value}"
            );
            documented
                .set(setting.key, value)
                .expect("a documented value can be set");
        }
        assert_eq!(documented.timing, Timing::of(profile), "{profile:?}");
    }
}

#[test]
fn documented_defaults_are_the_defaults() {
    let mut documented = Settings::default();
    for setting in SETTINGS.iter().filter(|s| row(s.key).len() == 4) {
        let value = row(setting.key).get(2).copied().expect("a default");
        documented
            .set(setting.key, value)
            .unwrap_or_else(|e| panic!("{e}"));
    }
    assert_eq!(documented, Settings::default());
}
