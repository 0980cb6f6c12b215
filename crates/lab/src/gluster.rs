//! A real network file system below the lab's own: for each datastore a GlusterFS server over its directory, for
//! each host and datastore a client of its own.
//!
//! ```text
//! agents, guests -> the lab's mount (faults, locks) -> glusterfs (client of that host) -> TCP -> glusterfsd -> directory
//! ```
//! What one host wrote, another one sees through its own client, with that client's caches and the server's order:
//! as on real storage, and other than with one directory below all hosts. Volume files are written by hand, so no
//! management daemon runs. Servers, clients and their mounts live in a namespace of their own; processes carry the
//! run's mark.

use crate::fail::{Context, Failure, Result};
use crate::namespace::Namespace;
use crate::procs;
use nix::sys::statfs::{FUSE_SUPER_MAGIC, statfs};
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Of the first datastore's server, in a namespace where nothing else listens.
const FIRST_PORT: u16 = 24_007;
/// A server that listens and a mount that is there take a fraction of it on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// In the place of a host's name in the marks of the processes: theirs is the storage's.
const STORAGE: &str = "(storage)";

/// Servers and clients of one run.
#[derive(Debug)]
pub struct Gluster {
    namespace: Arc<Namespace>,
    run: String,
    dir: PathBuf,
    ports: BTreeMap<String, u16>,
}

impl Gluster {
    /// Starts a server for each datastore, by its name and directory; files go to `dir`.
    ///
    /// # Errors
    /// When the programs are missing, or a server does not answer.
    pub fn make(run: &str, dir: &Path, datastores: &BTreeMap<String, PathBuf>) -> Result<Self> {
        let namespace = Arc::new(Namespace::make()?);
        let up = |mut ip: Command| namespace.inside(|| procs::run_tool(&mut ip));
        let mut ip = Command::new("ip");
        ip.args(["link", "set", "lo", "up"]);
        up(ip)?.context("cannot run `ip`")?;
        fs::create_dir_all(dir)
            .context("cannot make a directory")
            .map_err(|e| e.at(dir.display()))?;
        let mut made = Self {
            namespace,
            run: run.to_owned(),
            dir: dir.to_owned(),
            ports: BTreeMap::new(),
        };
        for ((name, brick), port) in datastores.iter().zip(FIRST_PORT..) {
            made.serve(name, brick, port)?;
            made.ports.insert(name.clone(), port);
        }
        Ok(made)
    }

    fn serve(&self, name: &str, brick: &Path, port: u16) -> Result<()> {
        let file = self.dir.join(format!("{name}.server.vol"));
        write(&file, &server_volume(brick, port))?;
        self.start("glusterfsd", &file, name, &[])?;
        let start = Instant::now();
        let answers = || TcpStream::connect(("127.0.0.1", port)).is_ok();
        while !self.namespace.inside(answers)? {
            if start.elapsed() > READY_WITHIN {
                return Err(self.silent("glusterfsd", name));
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Where a datastore is seen through the client of a host, in [`Gluster::namespace`]. The client is started when
    /// it is wanted first, and goes on when the host loses its power.
    ///
    /// # Errors
    /// When it does not mount.
    pub fn client(&self, host: &str, datastore: &str) -> Result<PathBuf> {
        let name = format!("{host}.{datastore}");
        let at = self.dir.join(&name);
        let mounted = || statfs(&at).is_ok_and(|s| s.filesystem_type() == FUSE_SUPER_MAGIC);
        if at.exists() && self.namespace.inside(mounted)? {
            return Ok(at);
        }
        let port = self.ports.get(datastore).copied().unwrap_or(FIRST_PORT);
        fs::create_dir_all(&at)
            .context("cannot make a directory")
            .map_err(|e| e.at(at.display()))?;
        let file = self.dir.join(format!("{name}.client.vol"));
        write(&file, &client_volume(port))?;
        // The lab's mount caches nothing either: what is cached is cached by the client's own layers.
        let arguments = [
            "--direct-io-mode=enable",
            "--attribute-timeout=0",
            "--entry-timeout=0",
        ];
        let mut command: Vec<&str> = arguments.to_vec();
        let path = at.display().to_string();
        command.push(&path);
        self.start("glusterfs", &file, &name, &command)?;
        let start = Instant::now();
        while !self.namespace.inside(mounted)? {
            if start.elapsed() > READY_WITHIN {
                return Err(self.silent("glusterfs", &name));
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Ok(at)
    }

    /// Where the clients' mounts are seen.
    #[must_use]
    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }

    fn start(&self, program: &str, volume: &Path, name: &str, more: &[&str]) -> Result<()> {
        let mut command = Command::new(program);
        command.arg("-N").arg("-f").arg(volume);
        command.arg("-l").arg(self.log(program, name)).args(more);
        let output = self.dir.join(format!("{name}.{program}.out"));
        procs::make_hosts_own(&mut command, &self.run, STORAGE, &output)?;
        self.namespace.spawn(&mut command).map_err(|e| {
            e.at(program)
                .remedy("apt-get install glusterfs-server, or leave --gluster out")
        })
    }

    fn log(&self, program: &str, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.{program}.log"))
    }

    fn silent(&self, program: &str, name: &str) -> Failure {
        Failure::new(format_args!(
            "{program} is not ready after {READY_WITHIN:?}"
        ))
        .at(self.log(program, name).display())
        .remedy("its log says why; keep it with --keep")
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text)
        .context("cannot write a volume file")
        .map_err(|e| e.at(file.display()))
}

fn server_volume(brick: &Path, port: u16) -> String {
    format!(
        "volume posix\n  type storage/posix\n  option directory {}\nend-volume\n\
         volume locks\n  type features/locks\n  subvolumes posix\nend-volume\n\
         volume brick\n  type performance/io-threads\n  subvolumes locks\nend-volume\n\
         volume server\n  type protocol/server\n  option transport-type tcp\n  \
         option transport.socket.bind-address 127.0.0.1\n  \
         option transport.socket.listen-port {port}\n  option auth.addr.brick.allow *\n  \
         subvolumes brick\nend-volume\n",
        brick.display()
    )
}

fn client_volume(port: u16) -> String {
    format!(
        "volume client\n  type protocol/client\n  option transport-type tcp\n  \
         option remote-host 127.0.0.1\n  option remote-port {port}\n  \
         option remote-subvolume brick\n  option filter-O_DIRECT disable\nend-volume\n"
    )
}
