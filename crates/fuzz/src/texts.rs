//! What people write: configuration files, scenarios, settings under our names and vSphere's.

use crate::wire::sound;
use mainstay_agent::config::{AgentFile, ClusterFile, FenceFile};
use mainstay_agent::decoders;
use mainstay_core::config::{Settings, format_duration, parse_duration, vsphere};
use mainstay_core::id::{DatastoreId, HostId, VmId};
use mainstay_core::wire::RecordKey;
use std::path::Path;

/// `cluster.toml`.
pub(crate) fn cluster_file(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let path = Path::new("cluster.toml");
    let file = match ClusterFile::from_text(path, text.to_owned()) {
        Ok(file) => file,
        Err(error) => {
            assert!(error.to_string().contains("cluster.toml"), "{error}");
            return false;
        }
    };
    let again = file.to_text(path).expect("what was read can be written");
    let again = ClusterFile::from_text(path, again).expect("what was written can be read");
    assert_eq!(again, file);
    match file.cluster_config() {
        Ok(config) => {
            sound(&config);
            assert_eq!(again.cluster_config().ok().as_ref(), Some(&config));
            let in_force = file.in_force(&config).cluster_config();
            assert_eq!(in_force.expect("what is in force is sound"), config);
        }
        Err(error) => {
            assert!(error.to_string().contains("cluster.toml"), "{error}");
            assert!(again.cluster_config().is_err());
        }
    }
    true
}

/// `agent.toml`.
pub(crate) fn agent_file(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let path = Path::new("/etc/mainstay/agent.toml");
    let file = match AgentFile::from_text(path, text) {
        Ok(file) => file,
        Err(error) => {
            assert!(error.to_string().contains("agent.toml"), "{error}");
            return false;
        }
    };
    assert!(file.control_socket().is_absolute());
    let again = file.to_text(path).expect("what was read can be written");
    let again = AgentFile::from_text(path, &again).expect("what was written can be read");
    assert_eq!(again, file);
    true
}

/// The fence file.
pub(crate) fn fence_file(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let path = Path::new("/etc/mainstay/fence.toml");
    let file = match FenceFile::from_text(path, text) {
        Ok(file) => file,
        Err(error) => {
            assert!(error.to_string().contains("fence.toml"), "{error}");
            return false;
        }
    };
    for (host, device) in &file.devices {
        assert_eq!(device.host, *host);
        assert!(device.program.is_absolute());
        let options = device.plain_options();
        assert!(!options.iter().any(|o| o.contains(['\n', '\0'])));
        assert!(!options.iter().any(|o| o.starts_with("action=")));
    }
    !file.devices.is_empty()
}

/// A scenario of the simulator.
pub(crate) fn scenario(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let mut scenario = match mainstay_sim::parse("a.toml", text) {
        Ok(scenario) => scenario,
        Err(error) => {
            assert!(!error.message.is_empty());
            let lines = text.matches('\n').count() + 1;
            assert!((1..=lines).contains(&error.line), "{error}");
            return false;
        }
    };
    scenario.expects.clear();
    let written = mainstay_sim::to_toml(&scenario);
    match mainstay_sim::parse("b.toml", &written) {
        Ok(again) => assert_eq!(again, scenario, "{written}"),
        Err(error) => panic!("{error}\n{written}"),
    }
    true
}

/// The most lines of names that are looked at: each costs as much as all settings together.
const LINES: usize = 8;

/// Names and values, by line: settings with `=`, and whatever else is written in one word.
pub(crate) fn names(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let mut settings = Settings::default();
    let mut decoded = false;
    for line in text.lines().take(LINES) {
        decoded |= match line.split_once('=') {
            Some((key, value)) => setting(&mut settings, key, value),
            None => word(line),
        };
    }
    let _ = settings.timing.check();
    decoded
}

fn setting(settings: &mut Settings, key: &str, value: &str) -> bool {
    let before = settings.clone();
    match settings.set(key, value) {
        Ok(()) => {
            let shown = settings.get(key).expect("what can be set can be read");
            let mut again = settings.clone();
            assert_eq!(again.set(key, &shown), Ok(()), "{key} is {shown}");
            assert_eq!(&again, settings, "{key} is {shown}");
            return true;
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert_eq!(settings, &before, "a refusal changes nothing");
        }
    }
    let _ = vsphere::is_vsphere_name(key);
    match vsphere::translate_for(settings, key, value) {
        Ok(changes) => {
            for (key, value) in changes {
                assert_eq!(settings.set(key, &value), Ok(()), "{key} = {value}");
            }
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

fn word(text: &str) -> bool {
    let mut decoded = false;
    if let Some(time) = parse_duration(text) {
        decoded = true;
        let shown = format_duration(time);
        assert_eq!(parse_duration(&shown), Some(time), "{text} is {shown}");
    }
    if let Some(key) = RecordKey::from_file_name(text) {
        decoded = true;
        assert_eq!(key.file_name(), text);
    }
    if let Some(shown) = decoders::isolation_address(text) {
        decoded = true;
        assert_eq!(decoders::isolation_address(&shown), Some(shown));
    }
    if let Some(key) = decoders::cluster_key(text) {
        decoded = true;
        let hex: String = key.bytes().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, text.to_ascii_lowercase());
    }
    let ids = [
        HostId::new(text).map(String::from),
        VmId::new(text).map(String::from),
        DatastoreId::new(text).map(String::from),
    ];
    for id in ids {
        match id {
            Ok(id) => {
                decoded = true;
                assert_eq!(id, text);
                assert!(!id.contains('/') && !id.starts_with('.'));
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    decoded
}
