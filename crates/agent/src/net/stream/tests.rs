use super::*;
use crate::config::{DriverKind, Probe};
use crate::pki::{Ca, make_ca};
use mainstay_core::id::{BootId, InstanceId};
use mainstay_core::wire::{Rank, Stamp};
use std::sync::mpsc::channel;

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
        probe: Probe::Icmp,
        datastores: BTreeMap::new(),
    })
    .expect("tls")
}

fn message(n: u32) -> Message {
    Message::Candidate {
        rank: Rank {
            datastores: n,
            host: host(1),
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
    message(n).encode(CLUSTER, &stamp)
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("address")
}

struct Pair {
    _dir: tempfile::TempDir,
    sender: Streams,
    rejects: Rejects,
    received: Receiver<(HostId, Message)>,
}

/// Host 1 with a certificate of `ca`, and host 2 under `other`.
fn pair(ca: &Ca, other: &Ca) -> Pair {
    let dir = tempfile::tempdir().expect("directory");
    let addresses: BTreeMap<_, _> = [
        (host(1), vec![free_address()]),
        (host(2), vec![free_address()]),
    ]
    .into();
    let (to, received) = channel();
    let rejects = Rejects::default();
    let tls1 = tls(dir.path(), ca, &host(1));
    let tls2 = tls(dir.path(), other, &host(2));
    let sender = Streams::start(
        &host(1),
        CLUSTER,
        &addresses,
        &tls1,
        Rejects::default(),
        |_, _| {},
    )
    .expect("host 1");
    let on_message = move |from, message| drop(to.send((from, message)));
    Streams::start(
        &host(2),
        CLUSTER,
        &addresses,
        &tls2,
        rejects.clone(),
        on_message,
    )
    .expect("host 2");
    Pair {
        _dir: dir,
        sender,
        rejects,
        received,
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
        assert_eq!(got, (host(1), message(n)));
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

#[test]
fn a_receiver_that_comes_back_is_dialled_again() {
    let ca = make_ca().expect("ca");
    let dir = tempfile::tempdir().expect("directory");
    let address = free_address();
    let tls1 = tls(dir.path(), &ca, &host(1));
    let tls2 = tls(dir.path(), &ca, &host(2));
    let mut dialler = Dialler {
        me: host(1),
        peer: host(2),
        addresses: vec![address],
        client: tls1.client,
        connection: None,
        backoff: FIRST_BACKOFF,
    };
    let listener = TcpListener::bind(address).expect("listen");
    for n in 0..3 {
        // One connection each time: the receiver ends it after one message.
        let (listener, server) = (
            listener.try_clone().expect("clone"),
            Arc::clone(&tls2.server),
        );
        let receiver = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("accept");
            let mut tls = StreamOwned::new(ServerConnection::new(server).expect("tls"), stream);
            assert_eq!(read_frame(&mut tls, 100).expect("hello"), b"host-1");
            read_frame(&mut tls, 100).expect("frame")
        });
        dialler.deliver(&[n; 10]).expect("delivered");
        assert_eq!(receiver.join().expect("receiver"), [n; 10]);
    }
}

#[test]
fn a_frame_that_is_too_long_or_torn_is_an_error() {
    let long = [0xff; 8];
    assert!(read_frame(&mut long.as_slice(), RECORD_MAX_BYTES).is_err());
    let torn = [0, 0, 0, 9, 1, 2];
    assert!(read_frame(&mut torn.as_slice(), RECORD_MAX_BYTES).is_err());
}
