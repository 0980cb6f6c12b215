use super::dial::Way;
use super::*;
use crate::config::{DriverKind, Probe};
use crate::pki::{Ca, make_ca};
use mainstay_core::id::{BootId, InstanceId};
use mainstay_core::wire::{Message, RECORD_MAX_BYTES, SessionId, Stamp};
use rustls::{ServerConnection, StreamOwned};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

const CLUSTER: u64 = 5;
const PATIENCE: Duration = Duration::from_secs(20);

fn host(n: u32) -> HostId {
    HostId::new(&format!("host-{n}")).expect("id")
}

fn tls(dir: &Path, ca: &Ca, host: &HostId) -> Tls {
    let at = |name: &str| dir.join(format!("{host}-{name}"));
    let issued = ca.issue(host).expect("certificate");
    std::fs::write(at("ca"), &ca.issued.cert_pem).expect("write");
    std::fs::write(at("cert"), &issued.cert_pem).expect("write");
    std::fs::write(at("key"), &issued.key_pem).expect("write");
    Tls::read(&AgentFile {
        host: host.clone(),
        cluster: PathBuf::new(),
        state_dir: PathBuf::new(),
        run_dir: PathBuf::new(),
        log_dir: PathBuf::new(),
        driver: DriverKind::Embedded,
        program: None,
        qemu: None,
        key_file: PathBuf::new(),
        ca_file: at("ca"),
        cert_file: at("cert"),
        cert_key_file: at("key"),
        boot_id_file: None,
        cgroup_parent: None,
        fence_file: None,
        watchdog: None,
        guest_oom_score_adj: Default::default(),
        probe: Probe::Icmp,
        datastores: BTreeMap::new(),
    })
    .expect("tls")
}

fn envelope(n: u32) -> Envelope {
    Envelope {
        session: SessionId {
            from: InstanceId(1),
            to: InstanceId(2),
            epoch: 1,
        },
        number: u64::from(n),
        message: Message::ConfigVersion {
            version: u64::from(n),
        },
    }
}

fn framed(writer: u32, n: u32) -> Vec<u8> {
    let stamp = Stamp {
        writer: host(writer),
        boot: BootId(1),
        instance: InstanceId(1),
        seq: 1,
    };
    envelope(n).encode(CLUSTER, &stamp)
}

/// A pause without anything that could end it.
fn pause() {
    let (_sender, nothing) = channel::<()>();
    let _ = nothing.recv_timeout(Duration::from_millis(20));
}

const SHORT: Patience = Patience {
    limit: Duration::from_millis(100),
    delivery: Duration::from_millis(300),
};

const LONG: Patience = Patience {
    limit: PATIENCE,
    delivery: PATIENCE,
};

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("address")
}

fn on(network: &str, address: SocketAddr) -> OnNetwork {
    (network.to_owned(), address)
}

struct Pair {
    _dir: tempfile::TempDir,
    sender: Streams,
    rejects: Rejects,
    received: Receiver<Streamed>,
    /// What the sender's side says.
    renewed: Receiver<Streamed>,
}

/// Host 1 with a certificate of `ca`, and host 2 under `other`.
fn pair(ca: &Ca, other: &Ca) -> Pair {
    let addresses: Addresses = [
        (host(1), vec![on("mgmt0", free_address())]),
        (host(2), vec![on("mgmt0", free_address())]),
    ]
    .into();
    pair_at((&addresses, &addresses), ca, other)
}

/// The same, each with the addresses that it knows.
fn pair_at((one, two): (&Addresses, &Addresses), ca: &Ca, other: &Ca) -> Pair {
    let dir = tempfile::tempdir().expect("directory");
    let (to, received) = channel();
    let (to_first, renewed) = channel();
    let rejects = Rejects::default();
    let tls1 = tls(dir.path(), ca, &host(1));
    let tls2 = tls(dir.path(), other, &host(2));
    let on_first = move |streamed| drop(to_first.send(streamed));
    let sender = Streams::start(
        &host(1),
        CLUSTER,
        one,
        (&tls1, LONG),
        Rejects::default(),
        on_first,
    )
    .expect("host 1");
    let on_streamed = move |streamed| drop(to.send(streamed));
    Streams::start(
        &host(2),
        CLUSTER,
        two,
        (&tls2, LONG),
        rejects.clone(),
        on_streamed,
    )
    .expect("host 2");
    Pair {
        _dir: dir,
        sender,
        rejects,
        received,
        renewed,
    }
}

fn wait_for(rejects: &Rejects, kind: &str) {
    let start = Instant::now();
    while !rejects.all().iter().any(|(k, _)| k == kind) {
        assert!(start.elapsed() < PATIENCE, "{:?}", rejects.all());
        std::thread::yield_now();
    }
}

#[test]
fn messages_arrive_in_order_with_their_authenticated_sender() {
    let ca = make_ca().expect("ca");
    let pair = pair(&ca, &ca);
    for n in 0..50 {
        pair.sender.send(&host(2), framed(1, n));
    }
    for n in 0..50 {
        let got = pair.received.recv_timeout(PATIENCE).expect("message");
        assert_eq!(got, Streamed::Message(host(1), envelope(n)));
    }
}

#[test]
fn a_message_in_anothers_name_is_refused() {
    let ca = make_ca().expect("ca");
    let pair = pair(&ca, &ca);
    pair.sender.send(&host(2), framed(2, 0));
    wait_for(&pair.rejects, "stream_wrong_writer");
    assert!(pair.received.try_recv().is_err());
}

#[test]
fn a_certificate_of_another_ca_is_refused() {
    let pair = pair(&make_ca().expect("ca"), &make_ca().expect("other ca"));
    pair.sender.send(&host(2), framed(1, 0));
    wait_for(&pair.rejects, "stream_handshake_failed");
    assert!(pair.received.try_recv().is_err());
}

/// Host 1's dialler to host 2 at that address, and what whoever listens there as host 2 proves itself with.
fn dialler_to(address: SocketAddr, limits: &Limits) -> (Dialler, Arc<rustls::ServerConfig>) {
    let ca = make_ca().expect("ca");
    let dir = tempfile::tempdir().expect("directory");
    let client = tls(dir.path(), &ca, &host(1)).client;
    let server = tls(dir.path(), &ca, &host(2)).server;
    let ways = vec![Way {
        from: None,
        address,
    }];
    let dialler = Dialler::new(&host(1), &host(2), ways, &client, limits);
    (dialler, server)
}

#[test]
fn a_receiver_that_comes_back_is_dialled_again() {
    let address = free_address();
    let (mut dialler, server) = dialler_to(address, &Limits::new(LONG));
    let renewed = std::cell::Cell::new(0);
    let on_renewed = || renewed.set(renewed.get() + 1);
    let listener = TcpListener::bind(address).expect("listen");
    for n in 0..3 {
        // One connection each time: the receiver ends it after one message.
        let (listener, server) = (listener.try_clone().expect("clone"), Arc::clone(&server));
        let receiver = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("accept");
            let mut tls = StreamOwned::new(ServerConnection::new(server).expect("tls"), stream);
            assert_eq!(read_frame(&mut tls, 100).expect("hello"), b"host-1");
            read_frame(&mut tls, 100).expect("frame")
        });
        dialler.deliver(&[n; 10], &on_renewed).expect("delivered");
        assert_eq!(receiver.join().expect("receiver"), [n; 10]);
        assert_eq!(renewed.get(), n);
    }
}

/// Passes connections on to `to` until it is dropped; then all of them are closed.
struct Relay {
    address: SocketAddr,
    open: Arc<std::sync::Mutex<Option<Vec<TcpStream>>>>,
}

impl Relay {
    fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("relay");
        let address = listener.local_addr().expect("address");
        let open = Arc::new(std::sync::Mutex::new(Some(Vec::new())));
        let known = Arc::clone(&open);
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Some(all) = &mut *known.lock().expect("lock") else {
                    return;
                };
                let far = TcpStream::connect(to).expect("the other end");
                for (from, into) in [(&near, &far), (&far, &near)] {
                    let clone = |s: &TcpStream| s.try_clone().expect("clone");
                    let (mut from, mut into) = (clone(from), clone(into));
                    std::thread::spawn(move || drop(io::copy(&mut from, &mut into)));
                }
                all.extend([near, far]);
            }
        });
        Self { address, open }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let closed = self.open.lock().expect("lock").take();
        for stream in closed.into_iter().flatten() {
            drop(stream.shutdown(std::net::Shutdown::Both));
        }
        // Ends its listener.
        drop(TcpStream::connect(self.address));
    }
}

#[test]
fn a_stream_moves_to_another_network_when_its_own_is_gone_and_says_so() {
    let ca = make_ca().expect("ca");
    let other = || {
        // Of the other family where there is one.
        let bound = TcpListener::bind("[::1]:0").or_else(|_| TcpListener::bind("127.0.0.1:0"));
        bound.and_then(|l| l.local_addr()).expect("address")
    };
    let at = |a, b| vec![on("mgmt0", a), on("mgmt1", b)];
    let first = at(free_address(), other());
    let second = at(free_address(), other());
    let two: Addresses = [(host(1), first.clone()), (host(2), second.clone())].into();
    // Host 1 reaches host 2's first network through something that can break.
    let relay = Relay::new(second[0].1);
    let seen = at(relay.address, second[1].1);
    let one: Addresses = [(host(1), first), (host(2), seen)].into();
    let pair = pair_at((&one, &two), &ca, &ca);
    for n in 0..10 {
        pair.sender.send(&host(2), framed(1, n));
        let got = pair.received.recv_timeout(PATIENCE).expect("message");
        assert_eq!(got, Streamed::Message(host(1), envelope(n)));
    }
    assert!(
        pair.renewed.try_recv().is_err(),
        "it is the first connection"
    );
    drop(relay);
    // As the core does: what was not acknowledged is sent again.
    let start = Instant::now();
    let got = loop {
        assert!(
            start.elapsed() < PATIENCE,
            "nothing comes over the other network"
        );
        pair.sender.send(&host(2), framed(1, 10));
        if let Ok(got) = pair.received.recv_timeout(Duration::from_millis(100)) {
            break got;
        }
    };
    assert_eq!(got, Streamed::Message(host(1), envelope(10)));
    let renewed = pair.renewed.recv_timeout(PATIENCE).expect("it is said");
    assert_eq!(renewed, Streamed::Renewed(host(2)));
}

#[test]
fn a_frame_that_is_too_long_or_torn_is_an_error() {
    let long = [0xff; 8];
    assert!(read_frame(&mut long.as_slice(), RECORD_MAX_BYTES).is_err());
    let torn = [0, 0, 0, 9, 1, 2];
    assert!(read_frame(&mut torn.as_slice(), RECORD_MAX_BYTES).is_err());
}

#[test]
fn streams_follow_hosts_that_join_leave_and_move() {
    let ca = make_ca().expect("ca");
    let dir = tempfile::tempdir().expect("directory");
    let rejects = Rejects::default();
    let (to, received) = channel();
    let addresses: Addresses = [
        (host(1), vec![on("mgmt0", free_address())]),
        (host(2), vec![on("mgmt0", free_address())]),
    ]
    .into();
    let alone = |n| -> Addresses {
        let all = addresses.clone().into_iter();
        all.filter(|(h, _)| *h == host(n)).collect()
    };
    let start = |n, on_streamed: Box<dyn Fn(Streamed) + Send>, rejects: &Rejects| {
        let on_streamed = Arc::new(std::sync::Mutex::new(on_streamed));
        let tls = tls(dir.path(), &ca, &host(n));
        let on_streamed = move |s| (on_streamed.lock().expect("lock"))(s);
        let known = alone(n);
        Streams::start(
            &host(n),
            CLUSTER,
            &known,
            (&tls, LONG),
            rejects.clone(),
            on_streamed,
        )
        .expect("streams")
    };
    let mut one = start(1, Box::new(|_| {}), &Rejects::default());
    let mut two = start(2, Box::new(move |s| drop(to.send(s))), &rejects);
    let refused = |least: u64| {
        let begun = Instant::now();
        let count = || {
            let all = rejects.all();
            all.iter()
                .find(|(kind, _)| kind == "stream_unknown_host")
                .map_or(0, |(_, n)| *n)
        };
        while count() < least {
            assert!(
                begun.elapsed() < PATIENCE,
                "not refused: {:?}",
                rejects.all()
            );
            std::thread::yield_now();
        }
    };
    // Not known yet: nothing is sent, and what another side sends is refused.
    one.send(&host(2), framed(1, 1));
    one.set_addresses(&addresses).expect("set");
    one.send(&host(2), framed(1, 2));
    refused(1);
    two.set_addresses(&addresses).expect("set");
    let is = |n, got| got == Streamed::Message(host(1), envelope(n));
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE, "nothing comes");
        // The refused connection may take one more.
        one.send(&host(2), framed(1, 3));
        let pause = Duration::from_millis(50);
        if received.recv_timeout(pause).is_ok_and(|got| is(3, got)) {
            break;
        }
    }
    // It leaves: also over the connection that is open.
    two.set_addresses(&alone(2)).expect("set");
    one.send(&host(2), framed(1, 4));
    refused(2);
    // It is elsewhere now: its peer dials anew.
    two.set_addresses(&addresses).expect("set");
    let relay = TcpListener::bind("127.0.0.1:0").expect("relay");
    let moved = relay.local_addr().expect("address");
    let mut elsewhere = addresses.clone();
    elsewhere.insert(host(2), vec![on("mgmt0", moved)]);
    one.set_addresses(&elsewhere).expect("set");
    one.send(&host(2), framed(1, 5));
    let (near, _) = relay.accept().expect("dialled there");
    drop(near);
    let came = received.try_iter().find(|got| !is(3, got.clone()));
    assert_eq!(came, None, "nothing came the old way");
}

#[test]
fn an_open_connection_follows_timers_that_change() {
    let address = free_address();
    let limits = Limits::new(LONG);
    let (mut dialler, server) = dialler_to(address, &limits);
    let listener = TcpListener::bind(address).expect("listen");
    let receiver = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("accept");
        let server = ServerConnection::new(server).expect("tls");
        let mut tls = StreamOwned::new(server, stream);
        read_frame(&mut tls, 100).expect("hello");
        read_frame(&mut tls, 100).expect("frame");
        tls
    });
    dialler.deliver(b"first", &|| {}).expect("delivered");
    let open = receiver.join().expect("receiver");
    assert_eq!(dialler.waits_for(), Some(LONG.limit));
    let short = Patience {
        limit: Duration::from_millis(400),
        delivery: Duration::from_millis(2400),
    };
    limits.set(short);
    dialler.renew_patience();
    assert_eq!(dialler.waits_for(), Some(short.limit));
    drop(open);
}

#[test]
fn connections_that_prove_nothing_take_no_place_from_peers() {
    let ca = make_ca().expect("ca");
    // Host 1 dials from an address of its own.
    let own = TcpListener::bind("127.0.0.2:0").and_then(|l| l.local_addr());
    let second = free_address();
    let addresses: Addresses = [
        (host(1), vec![on("mgmt0", own.expect("address"))]),
        (host(2), vec![on("mgmt0", second)]),
    ]
    .into();
    let pair = pair_at((&addresses, &addresses), &ca, &ca);
    let strangers: Vec<TcpStream> = (0..40)
        .map(|_| TcpStream::connect(second).expect("connected"))
        .collect();
    wait_for(&pair.rejects, "stream_too_many");
    pair.sender.send(&host(2), framed(1, 1));
    let got = pair.received.recv_timeout(PATIENCE / 2).expect("message");
    assert_eq!(got, Streamed::Message(host(1), envelope(1)));
    drop(strangers);
}

#[test]
fn a_connection_that_drips_is_closed_at_its_deadline() {
    let ca = make_ca().expect("ca");
    let dir = tempfile::tempdir().expect("directory");
    let address = free_address();
    let known: Addresses = [(host(2), vec![on("mgmt0", address)])].into();
    let short = Patience {
        limit: Duration::from_millis(400),
        delivery: PATIENCE,
    };
    let tls = tls(dir.path(), &ca, &host(2));
    let rejects = Rejects::default();
    Streams::start(
        &host(2),
        CLUSTER,
        &known,
        (&tls, short),
        rejects.clone(),
        |_| {},
    )
    .expect("host 2");
    let mut dripping = TcpStream::connect(address).expect("connected");
    // The head of a TLS record of 16,000 bytes.
    dripping
        .write_all(&[22, 3, 1, 0x3e, 0x80])
        .expect("written");
    let begun = Instant::now();
    while !rejects
        .all()
        .iter()
        .any(|(k, _)| k == "stream_handshake_failed")
    {
        assert!(begun.elapsed() < PATIENCE, "it drips for ever");
        // It may be closed in between.
        let _ = dripping.write_all(&[1]);
        pause();
    }
}

/// Waits until the sender's side says what is wrong; gives that.
fn trouble_of(pair: &Pair) -> String {
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE, "nothing is said");
        pair.sender.send(&host(2), framed(1, 0));
        let next = pair.renewed.recv_timeout(Duration::from_millis(50));
        if let Ok(Streamed::Trouble(of, Some(text))) = next {
            assert_eq!(of, host(2));
            return text;
        }
    }
}

#[test]
fn a_stream_that_is_refused_is_said_with_the_remedy_and_so_is_its_end() {
    let ca = make_ca().expect("ca");
    // Host 2 is there, and does not know host 1.
    let (one, two) = (free_address(), free_address());
    let at = |n, address| (host(n), vec![on("mgmt0", address)]);
    let known: Addresses = [at(1, one), at(2, two)].into();
    let stranger: Addresses = [at(2, two)].into();
    let pair = pair_at((&known, &stranger), &ca, &ca);
    pair.sender.set_patience(SHORT);
    let text = trouble_of(&pair);
    assert!(text.contains(&two.to_string()), "{text}");
    assert!(text.contains("may not know this host"), "{text}");
    // Nothing is sent there any more.
    let begun = Instant::now();
    while pair.renewed.recv_timeout(PATIENCE) != Ok(Streamed::Trouble(host(2), None)) {
        assert!(begun.elapsed() < PATIENCE, "its end is not said");
    }
}

#[test]
fn a_certificate_that_is_refused_is_said_so() {
    let ca = make_ca().expect("ca");
    let other = make_ca().expect("other ca");
    let pair = pair(&ca, &other);
    pair.sender.set_patience(SHORT);
    let text = trouble_of(&pair);
    assert!(text.contains("cert_file"), "{text}");
}

#[test]
fn a_host_where_nobody_listens_is_said_so() {
    let ca = make_ca().expect("ca");
    let mut addresses: Addresses = [
        (host(1), vec![on("mgmt0", free_address())]),
        (host(2), vec![on("mgmt0", free_address())]),
    ]
    .into();
    let two = addresses.clone();
    addresses.insert(host(2), vec![on("mgmt0", free_address())]);
    let pair = pair_at((&addresses, &two), &ca, &ca);
    pair.sender.set_patience(SHORT);
    let text = trouble_of(&pair);
    assert!(text.contains("nobody listens there"), "{text}");
}
