//! The files of one host for tests of the command line: `cluster.toml` and `agent.toml`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What the files of host-1 say.
pub(crate) struct Files<'a> {
    /// Of each datastore: its id, further lines of it in `cluster.toml`, and where it is on the host.
    pub(crate) datastores: &'a [(&'a str, &'a str, &'a str)],
    /// There is vm-1 on ds-1, with these further lines.
    pub(crate) vm: Option<&'a str>,
    /// Further tables of `cluster.toml`.
    pub(crate) cluster: &'a str,
    /// Further lines of `agent.toml`.
    pub(crate) agent: &'a str,
}

impl Files<'_> {
    /// Writes both into a directory, to which the paths in them are relative, and answers where `agent.toml` is.
    pub(crate) fn write(&self, home: &Path) -> PathBuf {
        let mut cluster = String::from(
            r#"
cluster_id = "00000000000000aa"
[[host]]
id = "host-1"
address = "127.0.0.1:7777"
cpu_mhz = 1000
memory_mb = 1000
"#,
        );
        let mut agent = format!(
            r#"
host = "host-1"
cluster = "cluster.toml"
state_dir = "state"
run_dir = "run"
log_dir = "log"
key_file = "cluster.key"
ca_file = "ca.pem"
cert_file = "cert.pem"
cert_key_file = "cert.key"
{}
[datastores]
"#,
            self.agent
        );
        for (id, more, place) in self.datastores {
            writeln!(cluster, "[[datastore]]\nid = \"{id}\"\n{more}").expect("text");
            writeln!(agent, "{id} = \"{place}\"").expect("text");
        }
        if let Some(more) = self.vm {
            writeln!(
                cluster,
                r#"
[[vm]]
id = "vm-1"
datastore = "ds-1"
cpu_mhz = 500
memory_mb = 32
image = "vm-1.raw"
{more}"#
            )
            .expect("text");
        }
        cluster += self.cluster;
        std::fs::write(home.join("cluster.toml"), cluster).expect("written");
        let path = home.join("agent.toml");
        std::fs::write(&path, agent).expect("written");
        path
    }
}

/// What a program said.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
