//! A datastore of each kind, as `mainstay datastore add` or `format` makes it, with one VM and so many hosts.

use mainstay_core::config::{
    ClusterConfig, DatastoreKind, DatastoreSpec, HostSpec, Settings, VmSpec,
};
use mainstay_core::id::{DatastoreId, HostId, VmId};
use mainstay_datastore::FileDatastore;
use mainstay_datastore::block::{BlockDatastore, Geometry};
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) const KINDS: [DatastoreKind; 2] = [DatastoreKind::File, DatastoreKind::Block];
pub(crate) const CLUSTER: u64 = 0xbe7c;

pub(crate) fn name(kind: DatastoreKind) -> &'static str {
    match kind {
        DatastoreKind::File => "file",
        DatastoreKind::Block => "block",
    }
}

pub(crate) fn host(n: u32) -> Result<HostId, String> {
    HostId::new(&format!("host-{n}")).map_err(|e| e.to_string())
}

/// Makes a datastore of a configuration where nothing is yet.
pub(crate) fn lay_out(
    kind: DatastoreKind,
    path: &Path,
    config: &ClusterConfig,
    id: &DatastoreId,
) -> Result<(), String> {
    let by = host(1)?;
    match kind {
        DatastoreKind::File => {
            fs::create_dir_all(path).map_err(|e| e.to_string())?;
            FileDatastore::create(path, config, id, &by).map_err(|e| e.to_string())
        }
        DatastoreKind::Block => {
            fs::write(path, []).map_err(|e| e.to_string())?;
            let geometry = Geometry::sized(512, 16, 16);
            BlockDatastore::format(path, config, id, &by, geometry)
                .map(drop)
                .map_err(|e| e.to_string())
        }
    }
}

/// The datastore.
pub(crate) struct Cluster {
    pub(crate) kind: DatastoreKind,
    pub(crate) id: DatastoreId,
    pub(crate) vm: VmId,
    /// A directory that all hosts mount, or a region in a file.
    pub(crate) path: PathBuf,
    /// Where hosts keep their own files.
    pub(crate) runs: PathBuf,
}

impl Cluster {
    pub(crate) fn make(kind: DatastoreKind, dir: &Path, hosts: u32) -> Result<Self, String> {
        let id = DatastoreId::new("ds-1").map_err(|e| e.to_string())?;
        let vm = VmId::new("vm-1").map_err(|e| e.to_string())?;
        let (path, runs) = match kind {
            DatastoreKind::File => (dir.join("mount"), dir.join("run")),
            DatastoreKind::Block => (dir.join("region"), dir.join("run")),
        };
        fs::create_dir_all(&runs).map_err(|e| e.to_string())?;
        let spec = DatastoreSpec {
            id: id.clone(),
            kind,
            fence: Default::default(),
            server: None,
        };
        let specs: Result<Vec<HostSpec>, String> = (1..=hosts)
            .map(|n| {
                Ok(HostSpec {
                    id: host(n)?,
                    cpu_mhz: 1000,
                    memory_mb: 1000,
                    datastores: [id.clone()].into(),
                    maintenance: false,
                    networks: Default::default(),
                })
            })
            .collect();
        let machine = VmSpec {
            id: vm.clone(),
            datastore: id.clone(),
            cpu_mhz: 1,
            memory_mb: 1,
            restart_priority: Default::default(),
            isolation_response: None,
            depends_on: vec![],
            guest_agent: true,
        };
        let config = ClusterConfig::new(
            CLUSTER,
            Settings::default(),
            specs?,
            vec![spec],
            vec![machine],
            vec![],
        )
        .map_err(|e| e.to_string())?;
        lay_out(kind, &path, &config, &id)?;
        Ok(Self {
            kind,
            id,
            vm,
            path,
            runs,
        })
    }
}
