//! A cluster of real processes in a directory of its own. Dropping it ends every process that it made.

use mainstay_agent::config::{
    AgentFile, ClusterFile, ClusterId, ClusterKey, DriverKind, HostEntry, Probe, VmEntry,
};
use mainstay_agent::control::Pong;
use mainstay_agent::control::client::Client;
use mainstay_agent::pki::make_ca;
use mainstay_core::config::{DatastoreKind, DatastoreSpec, FenceClass, RestartPriority};
use mainstay_core::id::{DatastoreId, HostId, VmId};
use mainstay_core::status::Status;
use mainstay_datastore::FileDatastore;
use mainstay_hypervisor::{ImageKind, make_image, read_counter};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn host(n: usize) -> HostId {
    HostId::new(&format!("host-{n}")).expect("id")
}

pub(crate) fn vm(n: usize) -> VmId {
    VmId::new(&format!("vm-{n}")).expect("id")
}

fn datastore(n: usize) -> DatastoreId {
    DatastoreId::new(&format!("ds-{n}")).expect("id")
}

pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    children: Vec<Child>,
    probes: Vec<Option<Child>>,
}

/// Waits until `look` gives something; panics with `what` after [`PATIENCE`].
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    // Nobody sends: the time-out is the pause between two looks.
    let (_sender, pause) = channel::<()>();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited too long: {what}");
        let _ = pause.recv_timeout(Duration::from_millis(20));
    }
}

/// The lowest port that tests give to agents, and how many each process has: below those that the kernel gives to whoever asks
/// for any (`ip_local_port_range`), so that what is free now is free when its agent starts.
const FIRST_PORT: u32 = 16_384;
const PORTS: u32 = 60;
/// As many processes have their own ports.
const PROCESSES: u32 = 240;

/// A port that is free on the loopback addresses, and stays so.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let own = FIRST_PORT + std::process::id() % PROCESSES * PORTS;
    let free = |port: &u16| {
        let bound = |at: IpAddr| UdpSocket::bind((at, *port)).and(TcpListener::bind((at, *port)));
        let both = [
            IpAddr::from([127, 0, 0, 1]),
            IpAddr::from(Ipv6Addr::LOCALHOST),
        ];
        let taken = |at| bound(at).is_err_and(|error| error.kind() == ErrorKind::AddrInUse);
        !both.into_iter().any(taken)
    };
    let mut ports = (0..PORTS).map(|_| {
        let port = own + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS;
        u16::try_from(port).expect("a port")
    });
    ports.find(free).expect("a free port")
}

fn address(n: usize) -> IpAddr {
    // Tests run beside each other: the process gives each its own loopback network.
    let pid = std::process::id();
    let [_, _, high, low] = pid.to_be_bytes();
    IpAddr::from([127, high.max(1), low, u8::try_from(n).expect("few hosts")])
}

/// Each host has an address of each family, so that either network can go.
pub(crate) fn networks(n: usize, port: u16) -> BTreeMap<String, SocketAddr> {
    let mut all = BTreeMap::from([("mgmt0".to_owned(), SocketAddr::new(address(n), port))]);
    // Of the other family where there is one.
    let second = [
        IpAddr::from(Ipv6Addr::LOCALHOST),
        IpAddr::from([127, 0, 0, 1]),
    ];
    let there = |at: &IpAddr| UdpSocket::bind((*at, 0)).is_ok();
    let second = second
        .into_iter()
        .find(there)
        .map(|at| SocketAddr::new(at, free_port()));
    all.extend(second.map(|a| ("mgmt1".to_owned(), a)));
    all
}

impl Cluster {
    /// `hosts` hosts, two datastores and `vms` VMs, nothing started yet.
    pub(crate) fn new(hosts: usize, vms: usize) -> Self {
        Self::with_spare(hosts, vms, 0)
    }

    /// The same, and `spare` further hosts that have all but a place in the cluster and a `cluster.toml`.
    pub(crate) fn with_spare(hosts: usize, vms: usize, spare: usize) -> Self {
        let all = hosts + spare;
        let dir = tempfile::Builder::new()
            .prefix("mainstay-real-")
            .tempdir()
            .expect("directory");
        let root = dir.path().to_owned();
        let (port, probe_port) = (free_port(), free_port());
        let mut file = ClusterFile::new(ClusterId(0x00ab_cdef_0000_0001));
        file.isolation_addresses = vec![address(254)];
        file.settings.insert("profile".into(), "balanced".into());
        for n in 1..=2 {
            let spec = DatastoreSpec {
                id: datastore(n),
                kind: DatastoreKind::File,
                fence: FenceClass::Enforced,
                server: None,
            };
            file.datastores.push(spec);
        }
        for n in 1..=hosts {
            file.hosts.push(HostEntry {
                id: host(n),
                address: None,
                addresses: vec![],
                cpu_mhz: 4000,
                memory_mb: 4096,
                datastores: None,
                maintenance: false,
                networks: networks(n, port),
            });
        }
        for n in 1..=vms {
            file.vms.push(VmEntry {
                id: vm(n),
                datastore: datastore(1 + n % 2),
                cpu_mhz: 100,
                memory_mb: 64,
                image: PathBuf::from(format!("{}.raw", vm(n))),
                driver: Some(DriverKind::Embedded),
                restart_priority: RestartPriority::Medium,
                isolation_response: None,
                depends_on: vec![],
                guest_agent: true,
            });
        }
        file.write(&root.join("cluster.toml"))
            .expect("cluster.toml");
        let config = file.cluster_config().expect("sound");
        for spec in &file.datastores {
            let mount = root.join(spec.id.as_str());
            std::fs::create_dir(&mount).expect("mount point");
            FileDatastore::create(&mount, &config, &spec.id, &host(1)).expect("datastore");
        }
        for v in &file.vms {
            let image = root.join(v.datastore.as_str()).join(&v.image);
            make_image(&image, 1 << 20, ImageKind::Blank).expect("image");
        }
        ClusterKey::new([7; 32])
            .write_new(&root.join("key"))
            .expect("key");
        let ca = make_ca().expect("ca");
        std::fs::write(root.join("ca.pem"), &ca.issued.cert_pem).expect("ca.pem");
        for n in 1..=all {
            let home = root.join(host(n).as_str());
            std::fs::create_dir(&home).expect("host directory");
            let issued = ca.issue(&host(n)).expect("certificate");
            std::fs::write(home.join("cert.pem"), &issued.cert_pem).expect("cert.pem");
            std::fs::write(home.join("cert.key"), &issued.key_pem).expect("cert.key");
            let agent = AgentFile {
                host: host(n),
                cluster: if n > hosts {
                    "cluster.toml".into()
                } else {
                    "../cluster.toml".into()
                },
                state_dir: "state".into(),
                run_dir: "run".into(),
                log_dir: "log".into(),
                driver: DriverKind::Embedded,
                program: Some(program()),
                qemu: None,
                key_file: "../key".into(),
                ca_file: "../ca.pem".into(),
                cert_file: "cert.pem".into(),
                cert_key_file: "cert.key".into(),
                boot_id_file: Some("boot_id".into()),
                cgroup_parent: None,
                fence_file: None,
                watchdog: None,
                guest_oom_score_adj: Default::default(),
                probe: Probe::Udp { port: probe_port },
                datastores: (1..=2)
                    .map(|d| (datastore(d), Path::new("..").join(datastore(d).as_str())))
                    .collect(),
            };
            agent.write(&home.join("agent.toml")).expect("agent.toml");
        }
        let mut cluster = Self {
            dir,
            children: vec![],
            probes: vec![],
        };
        for n in 1..=all {
            cluster.new_boot(n);
        }
        let mut at = |n| {
            let listen = SocketAddr::new(address(n), probe_port).to_string();
            let child = Command::new(program())
                .args(["probe", "--listen", &listen])
                .spawn();
            cluster.probes.push(Some(child.expect("probe")));
        };
        at(254);
        (1..=all).for_each(&mut at);
        cluster
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn home(&self, n: usize) -> PathBuf {
        self.path().join(host(n).as_str())
    }

    pub(crate) fn config(&self, n: usize) -> PathBuf {
        self.home(n).join("agent.toml")
    }

    pub(crate) fn socket(&self, n: usize) -> PathBuf {
        self.home(n).join("run/control.sock")
    }

    /// The first address of a host.
    pub(crate) fn first_address(&self, n: usize) -> SocketAddr {
        let file = ClusterFile::read(&self.path().join("cluster.toml")).expect("cluster.toml");
        let entry = file.hosts.iter().find(|h| h.id == host(n)).expect("host");
        *entry.networks.get("mgmt0").expect("network")
    }

    /// Lets host `n` reach host `of` over its first network at another address.
    pub(crate) fn reach_by(&self, n: usize, of: usize, at: SocketAddr) {
        let mut file = ClusterFile::read(&self.path().join("cluster.toml")).expect("cluster.toml");
        for entry in file.hosts.iter_mut().filter(|h| h.id == host(of)) {
            entry.networks.insert("mgmt0".to_owned(), at);
        }
        file.write(&self.home(n).join("cluster.toml"))
            .expect("cluster.toml");
        let mut agent = AgentFile::read(&self.config(n)).expect("agent.toml");
        agent.cluster = self.home(n).join("cluster.toml");
        agent.write(&self.config(n)).expect("agent.toml");
    }

    /// Gives a host another boot id.
    pub(crate) fn new_boot(&self, n: usize) {
        let nanos = std::time::UNIX_EPOCH.elapsed().expect("time").as_nanos();
        let hex = format!("{:016x}{n:016x}", nanos & u128::from(u64::MAX));
        std::fs::write(self.home(n).join("boot_id"), hex).expect("boot_id");
    }

    pub(crate) fn command(&self, n: usize, role: &str) -> Command {
        let mut command = Command::new(program());
        command
            .arg(role)
            .arg("--config")
            .arg(self.config(n))
            .stdin(Stdio::null());
        command.stdout(Stdio::null()).process_group(0);
        let errors = std::fs::File::create(self.home(n).join(format!("{role}.first.stderr")));
        command.stderr(errors.expect("stderr"));
        command
    }

    /// Starts a host's agent and waits until it answers.
    pub(crate) fn start(&mut self, n: usize) -> Pong {
        let child = self.command(n, "agent").spawn().expect("agent");
        self.children.push(child);
        self.agent(n)
    }

    /// Waits until a host's agent answers.
    pub(crate) fn agent(&self, n: usize) -> Pong {
        wait_for(&format!("agent {n}; see {}", self.errors(n)), || {
            Client::connect(&self.socket(n)).and_then(|c| c.ping()).ok()
        })
    }

    fn errors(&self, n: usize) -> String {
        let read =
            |name: &str| std::fs::read_to_string(self.home(n).join(name)).unwrap_or_default();
        format!(
            "{} {} {}",
            read("agent.first.stderr"),
            read("log/agent.stderr"),
            read("log/guard.stderr")
        )
    }

    pub(crate) fn client(&self, n: usize) -> Client {
        Client::connect(&self.socket(n)).expect("agent")
    }

    /// Waits until the status of a host's agent is as wanted.
    pub(crate) fn wait_status<T>(
        &self,
        n: usize,
        what: &str,
        look: impl Fn(&Status) -> Option<T>,
    ) -> T {
        let mut last = None;
        let start = Instant::now();
        wait_for(what, || {
            let status = Client::connect(&self.socket(n)).ok()?.status().ok()?;
            let found = look(&status);
            last = Some(status);
            if found.is_none() && start.elapsed() > PATIENCE - Duration::from_secs(1) {
                panic!("{what}: {last:#?}");
            }
            found
        })
    }

    /// The counter on a VM's disk.
    pub(crate) fn counter(&self, n: usize) -> u64 {
        let image = self
            .path()
            .join(datastore(1 + n % 2).as_str())
            .join(format!("{}.raw", vm(n)));
        read_counter(&image).ok().flatten().map_or(0, |c| c.counter)
    }

    /// Every process of host `n`: agent, guard, guests.
    pub(crate) fn processes(&self, n: usize) -> Vec<i32> {
        processes_of(&self.home(n))
    }

    /// The processes of the guests on host `n`.
    pub(crate) fn guests(&self, n: usize) -> Vec<i32> {
        let home = self.home(n);
        let guest = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|b| *b == 0).nth(1) == Some(b"guest")
        };
        processes_of(&home).into_iter().filter(guest).collect()
    }

    /// Ends host `n` the hard way: agent, guard, guests and probe at once. All stand still before the first
    /// is killed: else one that lives a moment longer acts on the end of another, as no dead host does.
    pub(crate) fn power_off(&mut self, n: usize) {
        for signal in ["STOP", "KILL"] {
            for pid in self.processes(n) {
                kill(pid, signal);
            }
        }
        if let Some(mut probe) = self.probes.get_mut(n).and_then(Option::take) {
            let _ = probe.kill();
            let _ = probe.wait();
        }
        // A guard that was starting an agent in between leaves one more.
        wait_for("the host is off", || {
            let left = self.processes(n);
            left.iter().for_each(|pid| kill(*pid, "KILL"));
            left.is_empty().then_some(())
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("MAINSTAY_KEEP").is_some() {
            let kept = std::env::temp_dir().join("mainstay-real-kept");
            let _ = Command::new("cp")
                .arg("-a")
                .arg(self.path())
                .arg(kept)
                .status();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        // What is killed may just have started another.
        while Instant::now() < deadline {
            let left = processes_of(self.path());
            if left.is_empty() {
                break;
            }
            left.iter().for_each(|pid| kill(*pid, "KILL"));
            self.children.iter_mut().for_each(|c| drop(c.try_wait()));
            std::thread::yield_now();
        }
        for mut probe in self.probes.drain(..).flatten() {
            let _ = probe.kill();
            let _ = probe.wait();
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
        // Nobody is left who would remove the guests' cgroups.
        for home in std::fs::read_dir(self.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            for file in std::fs::read_dir(home.path().join("run"))
                .into_iter()
                .flatten()
                .flatten()
            {
                let text = std::fs::read_to_string(file.path()).unwrap_or_default();
                let record = serde_json::from_str::<serde_json::Value>(&text).unwrap_or_default();
                for of in ["cgroup", "memory"] {
                    if let Some(cgroup) = record.get(of).and_then(|c| c.as_str()) {
                        let _ = std::fs::remove_dir(cgroup);
                    }
                }
            }
        }
    }
}

fn program() -> PathBuf {
    // In the tests of the command line it is the whole program.
    let program =
        option_env!("CARGO_BIN_EXE_mainstay-node").or(option_env!("CARGO_BIN_EXE_mainstay"));
    PathBuf::from(program.expect("built by cargo"))
}

/// Living processes whose command line or environment names a directory.
fn processes_of(dir: &Path) -> Vec<i32> {
    let wanted = dir.as_os_str().as_encoded_bytes();
    let names = |bytes: &[u8]| {
        bytes
            .windows(wanted.len() + 1)
            .any(|w| w.strip_prefix(wanted).is_some_and(|r| r == b"/"))
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<i32>().ok())
        else {
            continue;
        };
        let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let stat = read("stat");
        let zombie = stat
            .iter()
            .rposition(|b| *b == b')')
            .and_then(|at| stat.get(at + 2))
            == Some(&b'Z');
        if !zombie && (names(&read("cmdline")) || names(&read("environ"))) {
            found.push(pid);
        }
    }
    found
}

pub(crate) fn kill(pid: i32, signal: &str) {
    let _ = Command::new("kill")
        .arg(format!("-{signal}"))
        .arg(pid.to_string())
        .stderr(Stdio::null())
        .status();
}

/// The state letter of a process.
pub(crate) fn state_of(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// True when the process computes nothing: stopped, or its cgroup is frozen.
pub(crate) fn is_frozen(pid: i32) -> bool {
    let process = mainstay_hypervisor::Process::of_pid(pid);
    if process.is_ok_and(|p| mainstay_hypervisor::freeze::is_stopped(&p)) {
        return true;
    }
    let line = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let path = line
        .lines()
        .find_map(|l| l.strip_prefix("0::"))
        .unwrap_or_default();
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .any(|mount| {
            let events = std::fs::read_to_string(format!("{mount}{path}/cgroup.events"));
            events.is_ok_and(|e| e.lines().any(|l| l == "frozen 1"))
        })
}
