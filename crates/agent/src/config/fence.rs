//! The fence file: which device switches which host, and the credentials for it. It may be the same on all hosts, is
//! named by `fence_file` in `agent.toml`, and only root may read it.
//!
//! Never here: a device's answer, and a credential in an error or a log.

use super::{FileError, parse, read_text};
use mainstay_core::config::{ClusterConfig, nearest};
use mainstay_core::id::HostId;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Where Debian and others put fence agents.
const AGENTS_DIR: &str = "/usr/sbin";
/// What Mainstay itself says to an agent.
const OURS: [&str; 3] = ["action", "option", "nodename"];
/// Name and value of an option, and options of a device: all of them fit into a pipe at once, which holds 64 KiB.
const OPTION_MAX_BYTES: usize = 512;
/// See [`OPTION_MAX_BYTES`].
const OPTIONS_MAX: usize = 64;
/// Words in the names of options that say nothing of what a device switches, or that nobody is to read.
const CREDENTIALS: [&str; 9] = [
    "passw", "secret", "login", "username", "user", "identity", "token", "key", "cert",
];

/// The value of an option as TOML has it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Truth(bool),
    Number(i64),
    Text(String),
}

impl Value {
    /// As fence agents read it.
    fn text(self) -> String {
        match self {
            Self::Truth(yes) => String::from(if yes { "1" } else { "0" }),
            Self::Number(n) => n.to_string(),
            Self::Text(text) => text,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    device: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    host: HostId,
    agent: PathBuf,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    options: BTreeMap<String, Value>,
}

/// What switches one host.
#[derive(Clone, PartialEq, Eq)]
pub struct FenceDevice {
    /// The host that it switches.
    pub host: HostId,
    /// The fence agent: a program.
    pub program: PathBuf,
    /// What the device calls the outlet, where it is to be asked before each use.
    pub name: Option<String>,
    /// The agent's options, credentials among them.
    pub(crate) options: BTreeMap<String, String>,
}

impl fmt::Debug for FenceDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FenceDevice")
            .field("host", &self.host)
            .field("program", &self.program)
            .field("options", &self.plain_options())
            .finish_non_exhaustive()
    }
}

fn is_credential(key: &str) -> bool {
    CREDENTIALS.iter().any(|word| key.contains(word))
}

impl FenceDevice {
    /// The options that everybody may read, as `key=value`.
    #[must_use]
    pub fn plain_options(&self) -> Vec<String> {
        let plain = self.options.iter().filter(|(key, _)| !is_credential(key));
        plain.map(|(key, value)| format!("{key}={value}")).collect()
    }

    /// A text of the device or its agent without the credentials that may stand in it.
    pub(crate) fn without_credentials(&self, text: &str) -> String {
        let mut text = text.to_owned();
        let secret = self.options.iter().filter(|(key, _)| is_credential(key));
        for (_, value) in secret.filter(|(_, value)| value.len() > 2) {
            text = text.replace(value, "***");
        }
        text
    }

    /// The outlet of a device with several; none where it has but one.
    pub(crate) fn outlet(&self) -> Option<&str> {
        self.one_of(&["plug", "port"])
    }

    fn one_of(&self, keys: &[&str]) -> Option<&str> {
        keys.iter()
            .find_map(|key| self.options.get(*key))
            .map(String::as_str)
    }

    /// What tells the thing that it switches from all others: two hosts cannot have the same.
    fn switches(&self) -> Vec<String> {
        let address = self.one_of(&["ip", "ipaddr", "ip_address", "ipaddress"]);
        let Some(address) = address else {
            let told = self.plain_options().into_iter();
            let program = self.program.display().to_string();
            return [program].into_iter().chain(told).collect();
        };
        let others = [
            self.one_of(&["ipport"]),
            self.outlet(),
            self.one_of(&["systems_uri"]),
            self.one_of(&["uuid", "vmname", "nodename"]),
        ];
        let others = others.map(|o| o.unwrap_or_default().to_lowercase());
        [address.to_lowercase()].into_iter().chain(others).collect()
    }
}

/// All fence devices that this host can ask.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FenceFile {
    /// By the host that each switches.
    pub devices: BTreeMap<HostId, FenceDevice>,
}

impl FenceFile {
    /// Reads a fence file, which belongs to root, or to this user, and which nobody else may read or write.
    ///
    /// # Errors
    /// [`FileError`]: the file belongs to somebody else, others can read it, or what it says cannot be.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        private(path)?;
        let file = Self::from_text(path, &read_text(path)?)?;
        for device in file.devices.values() {
            runs_for_root(path, &device.program)?;
        }
        Ok(file)
    }

    /// Takes the text of a fence file; errors name `path`.
    ///
    /// # Errors
    /// [`FileError`] for what cannot be.
    pub fn from_text(path: &Path, text: &str) -> Result<Self, FileError> {
        let file: File = parse(path, text)?;
        let mut devices: BTreeMap<HostId, FenceDevice> = BTreeMap::new();
        for entry in file.device {
            let device = device(path, entry)?;
            let same = devices.values().find(|d| d.switches() == device.switches());
            if let Some(other) = same.filter(|other| other.host != device.host) {
                return Err(FileError::FenceOutlet {
                    path: path.into(),
                    first: other.host.clone(),
                    second: device.host,
                });
            }
            let host = device.host.clone();
            if devices.insert(host.clone(), device).is_some() {
                return Err(FileError::FenceTwice {
                    path: path.into(),
                    host,
                });
            }
        }
        Ok(Self { devices })
    }

    /// Checks that the cluster has each host that a device is for.
    ///
    /// # Errors
    /// [`FileError::FenceHost`].
    pub fn check_against(&self, path: &Path, cluster: &ClusterConfig) -> Result<(), FileError> {
        let known = || cluster.hosts.keys().map(HostId::as_str);
        let stranger = self
            .devices
            .keys()
            .find(|h| !cluster.hosts.contains_key(*h));
        match stranger {
            None => Ok(()),
            Some(host) => Err(FileError::FenceHost {
                path: path.into(),
                host: host.clone(),
                nearest: nearest(host.as_str(), known()).map(Into::into),
            }),
        }
    }
}

fn device(path: &Path, entry: Entry) -> Result<FenceDevice, FileError> {
    let refused = |key: &str, what: &'static str| FileError::FenceOption {
        path: path.into(),
        host: entry.host.clone(),
        key: key.into(),
        what,
    };
    let bare = entry.agent.components().count() == 1 && !entry.agent.is_absolute();
    let program = if bare {
        Path::new(AGENTS_DIR).join(&entry.agent)
    } else {
        entry.agent.clone()
    };
    if !program.is_absolute() {
        return Err(refused(
            "agent",
            "is neither the name of a fence agent nor an absolute path",
        ));
    }
    if entry.options.len() > OPTIONS_MAX {
        return Err(refused("options", "are more than 64"));
    }
    let mut options = BTreeMap::new();
    for (key, value) in entry.options {
        let sound = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let value = value.text();
        if OURS.contains(&key.as_str()) {
            return Err(FileError::FenceOption {
                path: path.into(),
                host: entry.host,
                key,
                what: "is said by Mainstay itself; leave it out",
            });
        }
        if key.is_empty() || !key.chars().all(sound) || value.contains(['\n', '\0']) {
            return Err(FileError::FenceOption {
                path: path.into(),
                host: entry.host,
                key,
                what: "cannot be given to a fence agent: a name has letters, digits, _ and -, and a value is one line",
            });
        }
        if key.len() + value.len() > OPTION_MAX_BYTES {
            return Err(FileError::FenceOption {
                path: path.into(),
                host: entry.host,
                key,
                what: "is longer than 512 bytes",
            });
        }
        options.insert(key, value);
    }
    Ok(FenceDevice {
        host: entry.host,
        program,
        name: entry.name,
        options,
    })
}

/// Whether this is the user of the agent, or root.
fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

/// Nobody but root, or this user, can read or write it.
fn private(path: &Path) -> Result<(), FileError> {
    let meta = std::fs::metadata(path).map_err(|source| FileError::Read {
        path: path.into(),
        source,
    })?;
    if !is_ours(meta.uid()) {
        return Err(FileError::FenceOwner {
            path: path.into(),
            uid: meta.uid(),
        });
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 || !meta.is_file() {
        return Err(FileError::FenceMode {
            path: path.into(),
            mode,
        });
    }
    Ok(())
}

/// The agent runs it as root: nobody else may have written it.
fn runs_for_root(path: &Path, program: &Path) -> Result<(), FileError> {
    let fault = |what: &'static str| FileError::FenceProgram {
        path: path.into(),
        program: program.into(),
        what,
    };
    let Ok(meta) = std::fs::metadata(program) else {
        return Err(fault(
            "is not there; install the package that has it (fence-agents), or correct the name",
        ));
    };
    if !meta.is_file() || meta.mode() & 0o111 == 0 {
        return Err(fault("is no program"));
    }
    if !is_ours(meta.uid()) || meta.mode() & 0o022 != 0 {
        return Err(fault(
            "can be written by others than root; correct its owner and its mode",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const PATH: &str = "/etc/mainstay/fence.toml";

    fn read(text: &str) -> Result<FenceFile, String> {
        FenceFile::from_text(Path::new(PATH), text).map_err(|e| e.to_string())
    }

    fn device(host: &str, options: &str) -> String {
        format!(
            "[[device]]\nhost = \"{host}\"\nagent = \"fence_ipmilan\"\n[device.options]\n{options}\n"
        )
    }

    #[test]
    fn a_device_has_an_agent_and_its_options() {
        let text = device(
            "host-2",
            "ip = \"10.0.0.12\"\nusername = \"admin\"\npassword = \"hunter2\"\nlanplus = true\npower_wait = 4",
        );
        let file = read(&text).expect("sound");
        let device = file.devices.values().next().expect("a device");
        assert_eq!(device.program, Path::new("/usr/sbin/fence_ipmilan"));
        assert_eq!(
            device.plain_options(),
            ["ip=10.0.0.12", "lanplus=1", "power_wait=4"]
        );
        assert_eq!(device.without_credentials("hunter2 of admin"), "*** of ***");
        assert!(!format!("{file:?}").contains("hunter2"));
    }

    #[test]
    fn two_hosts_do_not_share_an_outlet() {
        let of = |host, plug| {
            device(
                host,
                &format!("ip = \"10.0.0.5\"\nplug = \"{plug}\"\npassword = \"{host}\""),
            )
        };
        assert!(read(&(of("host-2", 1) + &of("host-3", 2))).is_ok());
        let error = read(&(of("host-2", 1) + &of("host-3", 1))).expect_err("one outlet");
        assert!(
            error.contains("host-2") && error.contains("host-3"),
            "{error}"
        );
        let error = read(&(of("host-2", 1) + &of("host-2", 2))).expect_err("two devices");
        assert!(error.contains("two devices"), "{error}");
    }

    #[test]
    fn what_mainstay_says_itself_and_what_no_agent_can_read_is_refused() {
        for (options, word) in [
            ("action = \"off\"", "action"),
            ("ip = \"a\\naction=off\"", "ip"),
            ("\"a b\" = \"c\"", "a b"),
        ] {
            let error = read(&device("host-2", options)).expect_err(word);
            assert!(error.contains(PATH) && error.contains(word), "{error}");
        }
        let error = read("[[device]]\nhost = \"host-2\"\nagnet = \"fence_ipmilan\"\n");
        assert!(error.expect_err("no agent").contains("agent"));
    }

    #[test]
    fn a_file_that_others_can_read_or_write_is_refused() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("fence.toml");
        std::fs::write(&path, "").expect("written");
        let set = |mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&path, mode).expect("mode");
            FenceFile::read(&path).map_err(|e| e.to_string())
        };
        assert!(set(0o600).is_ok());
        assert!(set(0o400).is_ok());
        for mode in [0o640, 0o604, 0o620, 0o644] {
            let error = set(mode).expect_err("others");
            assert!(error.contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn an_agent_that_others_can_write_or_that_is_missing_is_refused() {
        let dir = tempfile::tempdir().expect("directory");
        let (path, program) = (dir.path().join("fence.toml"), dir.path().join("fence_x"));
        let text = format!(
            "[[device]]\nhost = \"host-2\"\nagent = \"{}\"\n",
            program.display()
        );
        std::fs::write(&path, text).expect("written");
        let mode = |path: &Path, mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(path, mode).expect("mode");
        };
        mode(&path, 0o600);
        let error = FenceFile::read(&path).expect_err("missing").to_string();
        assert!(error.contains("is not there"), "{error}");
        std::fs::write(&program, "#!/bin/sh\n").expect("written");
        mode(&program, 0o777);
        let error = FenceFile::read(&path).expect_err("open").to_string();
        assert!(error.contains("written by others"), "{error}");
        mode(&program, 0o755);
        assert!(FenceFile::read(&path).is_ok());
    }
}
