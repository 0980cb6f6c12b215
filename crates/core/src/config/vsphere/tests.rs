//! Every option of the table, by name and by value.

use super::*;
use crate::config::{Profile, SETTINGS};
use alloc::vec;

/// An option, a value in vSphere's unit, and the settings that it must give.
type Case = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

const CASES: &[Case] = &[
    (
        "das.isolationaddress0",
        "10.0.0.1",
        &[("isolation_addresses", "10.0.0.1")],
    ),
    (
        "das.useDefaultIsolationAddress",
        "false",
        &[("use_default_isolation_address", "false")],
    ),
    (
        "das.isolationShutdownTimeout",
        "180",
        &[("isolation_shutdown_timeout", "180s")],
    ),
    (
        "das.config.fdm.isolationPolicyDelaySec",
        "30",
        &[("isolation_policy_delay", "30s")],
    ),
    (
        "das.powerOffOnIsolation",
        "false",
        &[("isolation_response", "leave_powered_on")],
    ),
    (
        "isolationResponse",
        "powerOff",
        &[("isolation_response", "power_off")],
    ),
    (
        "hostMonitoring",
        "disabled",
        &[("host_monitoring", "false")],
    ),
    (
        "das.config.fdm.hostTimeout",
        "12",
        &[("unreachable", "12s")],
    ),
    (
        "das.failureDetectionInterval",
        "750",
        &[("network_heartbeat", "750ms")],
    ),
    (
        "das.heartbeatDsPerHost",
        "5",
        &[("heartbeat_datastores_per_host", "5")],
    ),
    (
        "das.ignoreInsufficientHbDatastore",
        "true",
        &[("ignore_insufficient_heartbeat_datastores", "true")],
    ),
    (
        "das.ignoreRedundantNetWarning",
        "true",
        &[("ignore_redundant_network_warning", "true")],
    ),
    (
        "das.maxVmRestartCount",
        "7",
        &[("max_restart_attempts", "7")],
    ),
    (
        "das.perHostConcurrentFailoversLimit",
        "16",
        &[("concurrent_restarts_per_host", "16")],
    ),
    (
        "vmStorageProtectionForPDL",
        "warning",
        &[("pdl_response", "warn")],
    ),
    (
        "vmStorageProtectionForAPD",
        "restartAggressive",
        &[("apd_response", "restart_aggressive")],
    ),
    ("vmTerminateDelayForAPDSec", "60", &[("apd_delay", "60s")]),
    (
        "vmReactionOnAPDCleared",
        "reset",
        &[("apd_cleared_response", "reset")],
    ),
    (
        "vmComponentProtecting",
        "disabled",
        &[("apd_response", "disabled"), ("pdl_response", "disabled")],
    ),
    ("Misc.APDTimeout", "140", &[("apd_timeout", "140s")]),
    (
        "disk.terminateVMOnPDLDefault",
        "true",
        &[("pdl_response", "restart")],
    ),
];

fn pairs<'a>(changes: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    changes.iter().map(|(k, v)| (*k, v.as_str())).collect()
}

#[test]
fn every_option_with_an_equal_is_translated() {
    for option in OPTIONS.iter().filter(|o| o.conversion.is_some()) {
        assert!(
            CASES.iter().any(|c| option.is(c.0)),
            "{} has no case",
            option.name
        );
    }
    for (name, value, wanted) in CASES {
        let changes = translate(name, value).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(pairs(&changes), *wanted, "{name}");
    }
}

#[test]
fn what_is_translated_can_be_set_and_is_shown_again() {
    for (name, value, wanted) in CASES {
        let mut settings = Settings::default();
        for (key, value) in *wanted {
            settings
                .set(key, value)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let shown = show(&settings);
        let found = shown.iter().find(|s| s.option.eq_ignore_ascii_case(name));
        assert_eq!(found.map(|s| s.value.as_str()), Some(*value), "{name}");
    }
}

#[test]
fn every_key_is_a_setting() {
    for key in OPTIONS.iter().flat_map(VsphereOption::keys) {
        assert!(
            SETTINGS.iter().any(|s| s.key == key),
            "there is no setting {key}"
        );
    }
}

#[test]
fn every_other_option_is_refused_with_a_reason() {
    for option in OPTIONS.iter().filter(|o| o.conversion.is_none()) {
        let name = option.family().map_or(option.name, |(stem, _)| stem);
        let error = translate(name, "1").expect_err("refused");
        assert_eq!(
            error,
            VsphereError::Refused {
                name: option.name.into(),
                why: option.note.into()
            }
        );
        assert!(option.note.len() > 20, "{} gives no reason", option.name);
        assert!(!option.note.ends_with('.'), "{}", option.name);
    }
}

#[test]
fn no_name_stands_twice() {
    for (n, option) in OPTIONS.iter().enumerate() {
        for other in OPTIONS.iter().skip(n + 1) {
            assert!(!option.is(other.name), "{} stands twice", other.name);
        }
    }
}

#[test]
fn names_are_taken_in_any_case_and_under_each_prefix() {
    let wanted = vec![("isolation_policy_delay", String::from("45s"))];
    for name in [
        "DAS.CONFIG.FDM.ISOLATIONPOLICYDELAYSEC",
        "das.config.fdm.isolationpolicydelaysec",
        "fdm.isolationPolicyDelaySec",
        " das.config.fdm.isolationPolicyDelaySec ",
    ] {
        assert_eq!(translate(name, "45").as_ref(), Ok(&wanted), "{name}");
    }
    for name in ["das.config.fdm.nodeGoodness", "FDM.NODEGOODNESS"] {
        assert!(
            matches!(translate(name, "9"), Err(VsphereError::Refused { .. })),
            "{name}"
        );
    }
    let timeout = vec![("apd_timeout", String::from("150s"))];
    for name in ["/Misc/APDTimeout", "Misc.APDTimeout"] {
        assert_eq!(translate(name, "150").as_ref(), Ok(&timeout), "{name}");
    }
}

#[test]
fn isolation_addresses_are_counted_from_0_or_from_1_up_to_ten() {
    for number in ["", "0", "1", "9", "10"] {
        let name = format!("das.isolationaddress{number}");
        assert_eq!(
            translate(&name, "fe80::1"),
            Ok(vec![("isolation_addresses", String::from("fe80::1"))]),
            "{name}"
        );
    }
    for name in [
        "das.isolationaddress11",
        "das.isolationaddress-1",
        "das.isolationaddressx",
    ] {
        assert!(
            matches!(
                translate(name, "10.0.0.1"),
                Err(VsphereError::Unknown { .. })
            ),
            "{name}"
        );
    }
}

#[test]
fn a_value_that_is_none_says_what_the_option_takes() {
    for (name, value, takes) in [
        ("das.isolationaddress0", "gateway.example", "IPv4 or IPv6"),
        ("das.isolationShutdownTimeout", "5m", "seconds, 0 to 86400"),
        ("das.config.fdm.hostTimeout", "0", "seconds, 1 to"),
        ("das.heartbeatDsPerHost", "6", "2 to 5"),
        ("das.heartbeatDsPerHost", "1", "2 to 5"),
        ("das.maxVmRestartCount", "-1", "0 to 100"),
        ("das.ignoreRedundantNetWarning", "yes", "true, false"),
        ("isolationResponse", "suspend", "none, powerOff, shutdown"),
        ("vmComponentProtecting", "enabled", "it takes disabled"),
        ("das.failureDetectionInterval", "0", "milliseconds"),
    ] {
        let error = translate(name, value).expect_err("no value").to_string();
        assert!(error.contains(takes), "{error}");
        assert!(error.contains(value), "{error}");
    }
}

#[test]
fn an_unknown_name_gets_the_nearest_one() {
    for (name, wanted) in [
        (
            "das.isolationShutdownTimout",
            "das.isolationShutdownTimeout",
        ),
        ("das.maxvmrestartcounts", "das.maxVmRestartCount"),
        ("das.isolationadress", "das.isolationAddress"),
    ] {
        let error = translate(name, "1").expect_err("unknown").to_string();
        assert!(
            error.contains(&format!("did you mean \"{wanted}\"?")),
            "{error}"
        );
    }
    let error = translate("zzz", "1").expect_err("unknown").to_string();
    assert_eq!(error, "there is no vSphere option \"zzz\"");
}

/// Sets an option as a user would.
fn set(settings: &mut Settings, name: &str, value: &str) {
    for (key, value) in translate_for(settings, name, value).expect("a value") {
        settings.set(key, &value).expect("it was tried");
    }
}

#[test]
fn isolation_addresses_are_added_to_those_that_are_set() {
    let mut settings = Settings::default();
    settings
        .set("isolation_addresses", "tcp://10.0.0.9:22")
        .expect("an address");
    for (n, address) in ["10.0.0.1", "fd00::1", "10.0.0.1"].iter().enumerate() {
        set(&mut settings, &format!("das.isolationaddress{n}"), address);
    }
    assert_eq!(
        settings.get("isolation_addresses").as_deref(),
        Some("tcp://10.0.0.9:22,10.0.0.1,fd00::1")
    );
    let shown: Vec<(String, String)> = show(&settings)
        .into_iter()
        .filter(|s| s.option.starts_with("das.isolationAddress"))
        .map(|s| (s.option, s.value))
        .collect();
    let wanted = [
        ("das.isolationAddress0", "10.0.0.1"),
        ("das.isolationAddress1", "fd00::1"),
    ];
    assert_eq!(shown, wanted.map(|(n, a)| (n.into(), a.into())));
}

#[test]
fn an_eleventh_isolation_address_is_refused_by_the_setting() {
    let mut settings = Settings::default();
    for n in 0..10 {
        let name = format!("das.isolationaddress{n}");
        set(&mut settings, &name, &format!("10.0.0.{n}"));
    }
    let error = translate_for(&settings, "das.isolationaddress10", "10.0.0.10");
    assert!(
        matches!(error, Err(VsphereError::Setting { .. })),
        "{error:?}"
    );
    let error = error.expect_err("refused").to_string();
    assert!(error.contains("up to ten"), "{error}");
}

#[test]
fn classic_is_shown_with_the_numbers_of_vsphere_5_0() {
    let shown = show(&Settings::of(Profile::Classic));
    let value = |name: &str| {
        let found = shown.iter().find(|s| s.option == name);
        found.map(|s| s.value.as_str())
    };
    for (name, wanted) in [
        ("das.isolationShutdownTimeout", "300"),
        ("das.config.fdm.isolationPolicyDelaySec", "0"),
        ("das.config.fdm.hostTimeout", "10"),
        ("das.failureDetectionInterval", "1000"),
        ("das.heartbeatDsPerHost", "2"),
        ("das.maxVmRestartCount", "5"),
        ("isolationResponse", "none"),
        ("Misc.APDTimeout", "140"),
        ("vmTerminateDelayForAPDSec", "180"),
        ("vmReactionOnAPDCleared", "none"),
    ] {
        assert_eq!(value(name), Some(wanted), "{name}");
    }
    // vSphere has no word for what is set.
    assert_eq!(value("vmComponentProtecting"), None);
    assert_eq!(value("fdm.nodeGoodness"), None);
}

#[test]
fn parts_of_a_second_are_shown() {
    let mut settings = Settings::of(Profile::Fast);
    settings.set("unreachable", "1250ms").expect("a time");
    let shown = show(&settings);
    let found = shown
        .iter()
        .find(|s| s.option == "das.config.fdm.hostTimeout");
    assert_eq!(found.map(|s| s.value.as_str()), Some("1.25"));
}

#[test]
fn what_vsphere_cannot_say_is_not_shown() {
    let mut settings = Settings::default();
    settings
        .set("isolation_response", "shut_down")
        .expect("a value");
    let shown = show(&settings);
    assert!(shown.iter().all(|s| s.option != "das.powerOffOnIsolation"));
    let found = shown.iter().find(|s| s.option == "isolationResponse");
    assert_eq!(found.map(|s| s.value.as_str()), Some("shutdown"));
}

#[test]
fn names_of_vsphere_are_told_from_settings() {
    for name in [
        "das.anything",
        "FDM.x",
        "vpxd.das.y",
        "/Misc/APDTimeout",
        "isolationResponse",
    ] {
        assert!(is_vsphere_name(name), "{name}");
    }
    for setting in SETTINGS {
        assert!(!is_vsphere_name(setting.key), "{}", setting.key);
    }
}
