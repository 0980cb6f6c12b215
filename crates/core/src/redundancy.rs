//! Which hosts have one management network only, so that one cable, card or switch cuts them off.

use crate::agent::Agent;
use crate::config::{ClusterConfig, HostSpec};
use crate::event::{EventKind, IssueCause};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// A host whose networks are not known is not judged.
fn is_alone(spec: &&HostSpec) -> bool {
    spec.networks.len() == 1
}

fn sentence(hosts: &[&HostSpec]) -> String {
    let shown: Vec<String> = hosts
        .iter()
        .map(|h| match h.networks.first() {
            Some(network) => format!("{} ({network})", h.id),
            None => h.id.as_str().into(),
        })
        .collect();
    format!(
        "no redundant management network: {} cut off when one network fails; give each an address on a second one (networks in its [[host]]), or say ignore_redundant_network_warning = true",
        match shown.as_slice() {
            [one] => format!("{one} is"),
            many => format!("{} are", many.join(", ")),
        }
    )
}

/// What is to be said of the hosts with one management network, if there are any.
pub(crate) fn weakness(config: &ClusterConfig) -> Option<String> {
    if config.settings.ignore_redundant_network_warning {
        return None;
    }
    let alone: Vec<&HostSpec> = config.hosts.values().filter(is_alone).collect();
    (!alone.is_empty()).then(|| sentence(&alone))
}

impl Agent {
    /// What is to be said of this agent's own host, if it is such a one.
    pub(crate) fn own_network_issue(&self) -> Option<String> {
        if self.config.settings.ignore_redundant_network_warning {
            return None;
        }
        self.own_spec().filter(is_alone).map(|h| sentence(&[h]))
    }

    /// When the agent starts, and when another configuration is in force: is its own host such a one, and was
    /// it not before?
    pub(crate) fn report_redundancy(&mut self, before: Option<&String>) {
        let issue = self.own_network_issue();
        let Some(issue) = issue.filter(|issue| Some(issue) != before) else {
            return;
        };
        let host = self.me.host.clone();
        let why = issue.clone();
        self.emit(
            EventKind::ConfigIssue {
                issue,
                cause: IssueCause::OneNetwork,
                host,
            },
            why,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DatastoreSpec, Settings};
    use crate::id::{DatastoreId, HostId};
    use alloc::collections::BTreeSet;
    use alloc::vec;

    fn config(networks: &[&[&str]]) -> ClusterConfig {
        let id = DatastoreId::new("ds-1").expect("id");
        let host = |(n, networks): (usize, &&[&str])| HostSpec {
            id: HostId::new(&format!("host-{n}")).expect("id"),
            cpu_mhz: 1000,
            memory_mb: 1024,
            datastores: BTreeSet::from([id.clone()]),
            maintenance: false,
            networks: networks.iter().map(|n| String::from(*n)).collect(),
        };
        let hosts = networks.iter().enumerate().map(host).collect();
        let store = DatastoreSpec {
            id: id.clone(),
            kind: Default::default(),
            fence: Default::default(),
            server: None,
        };
        ClusterConfig::new(1, Settings::default(), hosts, vec![store], vec![], vec![])
            .expect("sound")
    }

    #[test]
    fn hosts_with_one_network_are_named_with_the_remedy() {
        let all = config(&[&["mgmt0"], &["mgmt0", "mgmt1"], &[], &["lan"]]);
        let text = weakness(&all).expect("a weakness");
        assert!(text.contains("host-0 (mgmt0), host-3 (lan) are"), "{text}");
        assert!(text.contains("ignore_redundant_network_warning"), "{text}");
        assert!(
            !text.contains("host-1") && !text.contains("host-2"),
            "{text}"
        );
    }

    #[test]
    fn nothing_is_said_where_all_are_redundant_or_nobody_wants_to_know() {
        assert_eq!(weakness(&config(&[&["a", "b"], &["a", "b"]])), None);
        let mut one = config(&[&["a"]]);
        one.settings
            .set("ignore_redundant_network_warning", "true")
            .expect("a setting");
        assert_eq!(weakness(&one), None);
    }
}
