//! Hosts with sockets on the lab's networks.

use mainstay_lab::namespace::Namespace;
use mainstay_lab::network::{self, Counts, HostPlan, Network, Plan};
use mainstay_lab::procs::run_tool;
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long anything may take that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const PORT: u16 = 7700;
const BROADCAST_PORT: u16 = 7701;

/// Networks, and a socket of each host on each of its networks.
pub(crate) struct Bench {
    // Before the networks, which end with their last socket.
    sockets: BTreeMap<(usize, usize), UdpSocket>,
    pub(crate) network: Network,
}

impl Bench {
    /// So many hosts on one network; none where networks cannot be made.
    pub(crate) fn on_one_network(hosts: usize, seed: u64) -> Option<Self> {
        Self::make(&vec![&[0][..]; hosts], 1, seed)
    }

    /// Hosts by the networks they are on; none, with a word, where networks cannot be made.
    pub(crate) fn make(hosts: &[&[usize]], networks: usize, seed: u64) -> Option<Self> {
        if let Err(failure) = network::available() {
            eprintln!("skipped: {}", failure.one_line());
            return None;
        }
        let host = |(number, networks): (usize, &&[usize])| HostPlan {
            name: format!("host-{}", number + 1),
            networks: networks.to_vec(),
        };
        let plan = Plan {
            hosts: hosts.iter().enumerate().map(host).collect(),
            networks,
            seed,
        };
        let mut bench = Self {
            sockets: BTreeMap::new(),
            network: Network::make(&plan).expect("networks"),
        };
        for (host, networks) in hosts.iter().enumerate() {
            for network in *networks {
                let own = bench.address(host, *network);
                let socket = bench.inside(host, || UdpSocket::bind(own).expect("bind"));
                socket.set_nonblocking(true).expect("socket");
                bench.sockets.insert((host, *network), socket);
            }
        }
        Some(bench)
    }

    /// Runs something on a host.
    pub(crate) fn inside<T: Send>(&self, host: usize, work: impl FnOnce() -> T + Send) -> T {
        let namespace: &Namespace = self.network.namespace(host).expect("host");
        namespace.inside(work).expect("inside")
    }

    /// Waits for something to be so, asking the switch each time.
    pub(crate) fn until(&self, what: &str, so: impl Fn(&Counts) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let counts = self.network.counts().expect("counts");
            if so(&counts) {
                return;
            }
            assert!(Instant::now() < deadline, "never: {what}; {counts:?}");
            std::thread::yield_now();
        }
    }

    fn address(&self, host: usize, network: usize) -> SocketAddr {
        let address = self.network.address(host, network).expect("address");
        (address, PORT).into()
    }

    fn socket(&self, host: usize, network: usize) -> &UdpSocket {
        self.sockets.get(&(host, network)).expect("a socket")
    }

    pub(crate) fn send(&self, from: usize, to: usize, network: usize, number: u32) {
        let socket = self.socket(from, network);
        let target = self.address(to, network);
        socket
            .send_to(&number.to_le_bytes(), target)
            .expect("a fault of the network is no error of the sender");
    }

    /// A socket that hears broadcasts, as one that is bound to an address does not.
    pub(crate) fn hears_broadcasts(&self, host: usize) -> UdpSocket {
        let any = ("0.0.0.0", BROADCAST_PORT);
        let socket = self.inside(host, || UdpSocket::bind(any).expect("bind"));
        socket.set_nonblocking(true).expect("socket");
        socket
    }

    pub(crate) fn broadcast(&self, from: usize, network: usize) {
        let IpAddr::V4(own) = self.address(from, network).ip() else {
            panic!("no IPv4 address");
        };
        let [a, b, c, _] = own.octets();
        let target = (IpAddr::from([a, b, c, 255]), BROADCAST_PORT);
        let socket = self.socket(from, network);
        socket.set_broadcast(true).expect("broadcast");
        socket.send_to(b"all", target).expect("broadcast");
    }

    pub(crate) fn try_receive(&self, host: usize, network: usize) -> Option<u32> {
        let mut bytes = [0; 4];
        match self.socket(host, network).recv(&mut bytes) {
            Ok(_) => Some(u32::from_le_bytes(bytes)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) fn receive(&self, host: usize, network: usize) -> u32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(number) = self.try_receive(host, network) {
                return number;
            }
            assert!(Instant::now() < deadline, "nothing arrives at {host}");
            std::thread::yield_now();
        }
    }

    /// Whether a datagram arrives; if not, the switch says that it blocked it.
    pub(crate) fn passes(&self, from: usize, to: usize, network: usize) -> bool {
        let before = self.network.counts().expect("counts").blocked;
        self.send(from, to, network, 4711);
        self.arrives(before, || self.try_receive(to, network).is_some())
    }

    /// Whether the gateway answers a ping; if not, the switch says that it blocked it.
    pub(crate) fn pings_gateway(&self, host: usize, network: usize) -> bool {
        let before = self.network.counts().expect("counts").blocked;
        let target = SocketAddr::from((self.network.gateway(network), 0));
        let socket = self.inside(host, || {
            Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4)).expect("socket")
        });
        socket.set_nonblocking(true).expect("socket");
        // Type 8; the kernel fills in checksum and identifier.
        let request = [8, 0, 0, 0, 0, 0, 0, 1];
        socket.send_to(&request, &target.into()).expect("ping");
        self.arrives(before, || {
            let mut answer = [std::mem::MaybeUninit::uninit(); 64];
            socket.recv_from(&mut answer).is_ok()
        })
    }

    /// A stream from one host to another, on the first network.
    pub(crate) fn stream(&self, from: usize, to: usize) -> (TcpStream, TcpStream) {
        let address = self.network.address(to, 0).expect("address");
        let listener = self.inside(to, || TcpListener::bind((address, 0)).expect("bind"));
        let at = listener.local_addr().expect("address");
        let client = self.inside(from, || TcpStream::connect_timeout(&at, PATIENCE));
        let (server, _) = listener.accept().expect("accept");
        (client.expect("connect"), server)
    }

    fn arrives(&self, blocked: u64, received: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if received() {
                return true;
            }
            if self.network.counts().expect("counts").blocked > blocked {
                return false;
            }
            assert!(Instant::now() < deadline, "neither arrived nor blocked");
            std::thread::yield_now();
        }
    }

    /// Which of so many numbered datagrams do not arrive.
    pub(crate) fn lost_of(&self, from: usize, to: usize, count: u32) -> BTreeSet<u32> {
        let mut lost: BTreeSet<u32> = (0..count).collect();
        for number in 0..count {
            self.send(from, to, 0, number);
            let done = u64::from(number) + 1;
            self.until("it is decided", |c| c.carried + c.lost == done);
            while let Some(came) = self.try_receive(to, 0) {
                lost.remove(&came);
            }
        }
        lost
    }

    /// The neighbours whose hardware address a host would ask for again.
    pub(crate) fn neighbours_in_doubt(&self, host: usize) -> String {
        let output = self.inside(host, || {
            run_tool(Command::new("ip").args(["neighbour", "show"])).expect("ip")
        });
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().filter(|line| !line.contains("PERMANENT"));
        lines.collect()
    }
}

/// The devices in a network namespace.
pub(crate) fn devices(namespace: &File) -> Vec<String> {
    let names = std::thread::scope(|scope| {
        let list = || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter");
            let list = run_tool(Command::new("ip").args(["-o", "link", "show"])).expect("ip");
            String::from_utf8_lossy(&list.stdout).into_owned()
        };
        scope.spawn(list).join().expect("list")
    });
    let name = |line: &str| Some(line.split(": ").nth(1)?.to_owned());
    let mut names: Vec<String> = names.lines().filter_map(name).collect();
    names.sort();
    names
}
