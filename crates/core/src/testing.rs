//! One agent for unit tests of what happens inside it. Behaviour among agents is tested from outside.

use crate::agent::{Agent, Identity};
use crate::config::{ClusterConfig, DatastoreSpec, HostSpec, Settings, VmSpec};
use crate::election::Role;
use crate::id::{BootId, DatastoreId, HostId, InstanceId, VmId};
use crate::io::{Durable, FoundVm};
use crate::time::Instant;
use alloc::vec::Vec;

/// The datastore on which everything is.
pub(crate) fn datastore() -> DatastoreId {
    DatastoreId::new("ds-1").expect("id")
}

/// The VM that is configured.
pub(crate) fn vm() -> VmId {
    VmId::new("vm-1").expect("id")
}

/// The agent of host-1, the primary of itself and host-2, on a host where these VMs were found.
pub(crate) fn primary(found: Vec<FoundVm>) -> Agent {
    let now = Instant::from_nanos(1_000_000_000);
    let host = |id: &str| HostSpec {
        id: HostId::new(id).expect("id"),
        cpu_mhz: 1000,
        memory_mb: 1000,
        datastores: [datastore()].into(),
        maintenance: false,
        networks: Default::default(),
    };
    let store = DatastoreSpec {
        id: datastore(),
        kind: Default::default(),
        fence: Default::default(),
        server: None,
    };
    let spec = VmSpec {
        id: vm(),
        datastore: datastore(),
        cpu_mhz: 100,
        memory_mb: 100,
        restart_priority: Default::default(),
        isolation_response: None,
        depends_on: Vec::new(),
        guest_agent: true,
    };
    let hosts = [host("host-1"), host("host-2")].into();
    let settings = Settings::default();
    let config = ClusterConfig::new(1, settings, hosts, [store].into(), [spec].into(), [].into());
    let identity = Identity {
        host: HostId::new("host-1").expect("id"),
        boot: BootId(1),
        instance: InstanceId(1),
        seed: 1,
    };
    let config = config.expect("sound");
    let mut agent = Agent::new(identity, config, Durable::default(), found, now).expect("an agent");
    agent.role = Role::Primary { restarts_from: now };
    agent
}
