use super::cluster::issues;
use crate::config::{ClusterConfig, DatastoreSpec, HostSpec, RestartPriority, Settings, VmSpec};
use crate::event::IssueCause;
use crate::id::{DatastoreId, HostId, VmId};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

fn store(n: u8) -> DatastoreId {
    DatastoreId::new(&format!("ds-{n}")).expect("id")
}

/// Hosts that mount these datastores, and a VM on each of the datastores.
fn config(mounts: &[&[u8]]) -> ClusterConfig {
    let host = |(n, stores): (usize, &&[u8])| HostSpec {
        id: HostId::new(&format!("host-{n}")).expect("id"),
        cpu_mhz: 1000,
        memory_mb: 1024,
        datastores: stores.iter().map(|s| store(*s)).collect(),
        maintenance: false,
        networks: ["a".into(), "b".into()].into(),
    };
    let mut all: Vec<u8> = mounts.iter().flat_map(|m| m.iter().copied()).collect();
    all.sort_unstable();
    all.dedup();
    let spec = |n: &u8| DatastoreSpec {
        id: store(*n),
        kind: Default::default(),
        fence: Default::default(),
        server: None,
    };
    let vm = |n: &u8| VmSpec {
        id: VmId::new(&format!("vm-{n}")).expect("id"),
        datastore: store(*n),
        cpu_mhz: 100,
        memory_mb: 100,
        restart_priority: RestartPriority::Medium,
        isolation_response: None,
        depends_on: Vec::new(),
        guest_agent: true,
    };
    ClusterConfig::new(
        1,
        Settings::default(),
        mounts.iter().enumerate().map(host).collect(),
        all.iter().map(spec).collect(),
        all.iter().map(vm).collect(),
        Vec::new(),
    )
    .expect("sound")
}

fn found(config: &ClusterConfig) -> Vec<(IssueCause, String)> {
    issues(config)
        .into_iter()
        .map(|i| (i.cause, i.text))
        .collect()
}

#[test]
fn a_sound_configuration_has_no_issue() {
    assert_eq!(found(&config(&[&[1, 2], &[1, 2]])), []);
}

#[test]
fn a_cluster_that_can_restart_nothing_says_so() {
    let one = found(&config(&[&[1]]));
    assert_eq!(one.len(), 1);
    assert_eq!(one[0].0, IssueCause::OneHost);
    let apart = found(&config(&[&[1], &[2]]));
    assert_eq!(apart.len(), 1);
    assert_eq!(apart[0].0, IssueCause::NoSharedDatastore);
    assert!(apart[0].1.starts_with("no datastore"), "{apart:?}");
    let partly = found(&config(&[&[1, 2], &[1]]));
    assert_eq!(partly.len(), 1);
    assert!(
        partly[0].1.contains("datastore ds-2 is mounted by 1"),
        "{partly:?}"
    );
    assert!(partly[0].1.contains("vm-2"), "{partly:?}");
}

#[test]
fn protection_is_never_off_in_silence() {
    let mut off = config(&[&[1], &[1], &[1]]);
    off.settings
        .set("host_monitoring", "false")
        .expect("a setting");
    for vm in off.vms.values_mut() {
        vm.restart_priority = RestartPriority::Disabled;
    }
    for host in off.hosts.values_mut().skip(1) {
        host.maintenance = true;
    }
    let causes: Vec<IssueCause> = found(&off).into_iter().map(|(c, _)| c).collect();
    assert_eq!(
        causes,
        [
            IssueCause::MonitoringOff,
            IssueCause::OneHost,
            IssueCause::RestartDisabled
        ]
    );
    assert!(found(&off)[1].1.contains("all hosts but host-0"));
}
