//! Streams between agents: TCP with mutual TLS under the cluster's CA.
//!
//! Each agent dials a connection of its own to a peer for what it sends, and accepts connections for
//! what it receives. A connection begins with a frame that names the dialler; its certificate must be
//! valid for that name. Frames have a length of four bytes.
//!
//! ```text
//!   dial mgmt0 ──▶ connected ──▶ nothing acknowledged for the limit, or closed by the other end
//!     ▲  refused, or no answer        │
//!     └── dial mgmt1 ◀────────────────┘   the core is told that the stream was connected anew
//! ```
//! What was under way on a connection that broke may be lost, and what is sent again may come twice: the
//! core numbers messages, repeats them and drops repetitions. Here they only keep their order.

use super::{Addresses, OnNetwork, Rejects, bind, from_here};
use crate::config::AgentFile;
use mainstay_core::id::HostId;
use mainstay_core::wire::{Envelope, RECORD_MAX_BYTES};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

/// Messages that wait for one peer.
const QUEUE_LENGTH: usize = 256;
/// A handshake gets at least so long: it needs the processor of both hosts.
const LEAST_HANDSHAKE: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);
/// Connections that are accepted at once, for each host of the cluster.
const CONNECTIONS_PER_HOST: usize = 4;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read as PEM.
    #[error("cannot read {what} from {}; check the path and that it is PEM", .path.display())]
    Pem {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The certificate is not valid for this host.
    #[error("the certificate {} is not valid for host \"{host}\"; issue one with this subject alternative name", .path.display())]
    Name {
        /// The certificate.
        path: PathBuf,
        /// The host.
        host: HostId,
    },
    /// The files do not fit together.
    #[error("the TLS files do not fit together (CA {}, certificate {})", .ca.display(), .cert.display())]
    Setup {
        /// The CA's certificate.
        ca: PathBuf,
        /// The host's certificate.
        cert: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The CA cannot verify clients.
    #[error("the CA {} cannot verify certificates", .ca.display())]
    Verifier {
        /// The CA's certificate.
        ca: PathBuf,
        /// Why.
        source: rustls::server::VerifierBuilderError,
    },
}

/// Both sides of TLS.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Tls {
    /// Reads the files that `agent.toml` names.
    pub(crate) fn read(file: &AgentFile) -> Result<Self, TlsError> {
        let pem = |what, path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::Pem { what, path, source }
        };
        let setup = |source| TlsError::Setup {
            ca: file.ca_file.clone(),
            cert: file.cert_file.clone(),
            source,
        };
        let ca = CertificateDer::from_pem_file(&file.ca_file)
            .map_err(pem("the CA's certificate", &file.ca_file))?;
        let cert = CertificateDer::from_pem_file(&file.cert_file)
            .map_err(pem("this host's certificate", &file.cert_file))?;
        let key = PrivateKeyDer::from_pem_file(&file.cert_key_file)
            .map_err(pem("this host's private key", &file.cert_key_file))?;
        if !is_valid_for(&cert, &file.host) {
            return Err(TlsError::Name {
                path: file.cert_file.clone(),
                host: file.host.clone(),
            });
        }
        let mut roots = RootCertStore::empty();
        roots.add(ca).map_err(setup)?;
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|source| TlsError::Verifier {
                    ca: file.ca_file.clone(),
                    source,
                })?;
        let only13 = [&rustls::version::TLS13];
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&only13)
            .map_err(setup)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![cert.clone()], key.clone_key())
            .map_err(setup)?;
        // The dialler never reads after the handshake, so that anything readable is the end.
        server.send_tls13_tickets = 0;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&only13)
            .map_err(setup)?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![cert], key)
            .map_err(setup)?;
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }
}

fn is_valid_for(cert: &CertificateDer<'_>, host: &HostId) -> bool {
    let Ok(name) = ServerName::try_from(host.as_str()) else {
        return false;
    };
    rustls::server::ParsedCertificate::try_from(cert)
        .is_ok_and(|c| rustls::client::verify_server_name(&c, &name).is_ok())
}

/// How long streams wait, by the timers of the cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For an acknowledgement of the other end's kernel, and for a connection.
    pub(crate) limit: Duration,
    /// For the delivery of one message, over whatever connection; then the core has given it up.
    pub(crate) delivery: Duration,
}

impl Patience {
    fn handshake(self) -> Duration {
        self.limit.max(LEAST_HANDSHAKE)
    }
}

fn tune(stream: &TcpStream, patience: Patience) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    // The kernel counts these in whole seconds; they find a dead connection that nothing is sent on.
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(1))
        .with_interval(Duration::from_secs(1))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(patience.limit))?;
    stream.set_read_timeout(Some(patience.handshake()))?;
    stream.set_write_timeout(Some(patience.handshake()))
}

fn write_frame(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    out.write_all(&[length.to_be_bytes().as_slice(), bytes].concat())?;
    out.flush()
}

fn read_frame(from: &mut impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// What streams have to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Streamed {
    /// A message came; its sender is authenticated.
    Message(HostId, Envelope),
    /// The stream to that host was connected anew.
    Renewed(HostId),
}

/// Who is in the cluster, for the threads that take connections.
type Members = Arc<RwLock<BTreeSet<HostId>>>;

/// A framed message, and when it was queued.
type Queued = (Instant, Vec<u8>);

/// Starts the thread that sends to a host at these addresses.
type Dial = Box<dyn Fn(&HostId, &[OnNetwork]) -> io::Result<SyncSender<Queued>> + Send>;

/// The way to one peer.
#[derive(Debug)]
struct Sender {
    addresses: Vec<OnNetwork>,
    queue: SyncSender<Queued>,
}

/// The connections of one agent.
pub(crate) struct Streams {
    me: HostId,
    members: Members,
    senders: BTreeMap<HostId, Sender>,
    dial: Dial,
    rejects: Rejects,
}

impl Streams {
    /// Binds this host's addresses, and starts a thread for each of them and for each peer.
    pub(crate) fn start<F>(
        me: &HostId,
        cluster: u64,
        addresses: &Addresses,
        (tls, patience): (&Tls, Patience),
        rejects: Rejects,
        on_streamed: F,
    ) -> Result<Self, (SocketAddr, io::Error)>
    where
        F: Fn(Streamed) + Clone + Send + 'static,
    {
        let open = Arc::new(AtomicUsize::new(0));
        let members = Members::default();
        let own = addresses.get(me).cloned().unwrap_or_default();
        for (_, address) in &own {
            let fault = |e| (*address, e);
            let listener = listen(*address, &own).map_err(fault)?;
            let accepting = Accepting {
                cluster,
                members: Arc::clone(&members),
                server: Arc::clone(&tls.server),
                patience,
                rejects: rejects.clone(),
                open: Arc::clone(&open),
                on_streamed: on_streamed.clone(),
            };
            std::thread::Builder::new()
                .name(format!("tcp {address}"))
                .spawn(move || accepting.run(&listener))
                .map_err(fault)?;
        }
        let first = own.first().map(|(_, address)| *address);
        let (from, client) = (me.clone(), Arc::clone(&tls.client));
        let dial: Dial = Box::new(move |host, addresses| {
            let (sender, receiver) = sync_channel(QUEUE_LENGTH);
            let dialler = Dialler::new(&from, host, ways(&own, addresses), &client, patience);
            let (to, on_streamed) = (host.clone(), on_streamed.clone());
            let on_renewed = move || on_streamed(Streamed::Renewed(to.clone()));
            std::thread::Builder::new()
                .name(format!("to {host}"))
                .spawn(move || dialler.run(&receiver, on_renewed))?;
            Ok(sender)
        });
        let mut streams = Self {
            me: me.clone(),
            members,
            senders: BTreeMap::new(),
            dial,
            rejects,
        };
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        streams
            .set_addresses(addresses)
            .map_err(|e| (first.unwrap_or(nowhere), e))?;
        Ok(streams)
    }

    /// From now on these are the cluster's hosts, and where they are. What was queued for a host that left, or
    /// is elsewhere now, is sent where it was; the core repeats what does not arrive.
    ///
    /// # Errors
    /// When no thread can be made; nothing is sent then to the host that was its reason, and to those after it.
    pub(crate) fn set_addresses(&mut self, addresses: &Addresses) -> io::Result<()> {
        let others = || addresses.iter().filter(|(h, _)| **h != self.me);
        *self.members.write().unwrap_or_else(PoisonError::into_inner) =
            others().map(|(h, _)| h.clone()).collect();
        // Without its sender, a dialler's thread ends.
        self.senders
            .retain(|host, sender| addresses.get(host) == Some(&sender.addresses));
        for (host, addresses) in others() {
            if !self.senders.contains_key(host) {
                let queue = (self.dial)(host, addresses)?;
                let addresses = addresses.clone();
                self.senders
                    .insert(host.clone(), Sender { addresses, queue });
            }
        }
        Ok(())
    }

    /// Queues a framed message; never waits.
    pub(crate) fn send(&self, to: &HostId, bytes: Vec<u8>) {
        let Some(sender) = self.senders.get(to) else {
            return;
        };
        if sender.queue.try_send((Instant::now(), bytes)).is_err() {
            self.rejects.count("stream_queue_full");
        }
    }
}

#[derive(Clone)]
struct Accepting<F> {
    cluster: u64,
    members: Members,
    server: Arc<ServerConfig>,
    patience: Patience,
    rejects: Rejects,
    open: Arc<AtomicUsize>,
    on_streamed: F,
}

impl<F: Fn(Streamed) + Clone + Send + 'static> Accepting<F> {
    fn run(&self, listener: &TcpListener) {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // Out of descriptors: wait for one to close instead of spinning.
                crate::clock::pause(FIRST_BACKOFF);
                continue;
            };
            if self.open.fetch_add(1, Ordering::Relaxed) >= self.limit() {
                self.open.fetch_sub(1, Ordering::Relaxed);
                self.rejects.count("stream_too_many");
                continue;
            }
            let mine = self.clone();
            let started = std::thread::Builder::new()
                .name("from peer".into())
                .spawn(move || {
                    if let Err(kind) = mine.receive(stream) {
                        mine.rejects.count(kind);
                    }
                    mine.open.fetch_sub(1, Ordering::Relaxed);
                });
            if started.is_err() {
                self.open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn members(&self) -> RwLockReadGuard<'_, BTreeSet<HostId>> {
        self.members.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// This host counts too.
    fn limit(&self) -> usize {
        (self.members().len() + 1) * CONNECTIONS_PER_HOST
    }

    /// Receives until the connection ends; an error is something to count.
    fn receive(&self, stream: TcpStream) -> Result<(), &'static str> {
        const BROKEN: &str = "stream_handshake_failed";
        tune(&stream, self.patience).map_err(|_| BROKEN)?;
        let connection = ServerConnection::new(Arc::clone(&self.server)).map_err(|_| BROKEN)?;
        let mut tls = StreamOwned::new(connection, stream);
        let hello = read_frame(&mut tls, 256).map_err(|_| BROKEN)?;
        let peer = std::str::from_utf8(&hello)
            .ok()
            .and_then(|t| HostId::new(t).ok())
            .ok_or(BROKEN)?;
        let cert = tls
            .conn
            .peer_certificates()
            .and_then(|c| c.first())
            .ok_or(BROKEN)?;
        if !is_valid_for(cert, &peer) {
            return Err("stream_wrong_certificate");
        }
        if !self.members().contains(&peer) {
            return Err("stream_unknown_host");
        }
        tls.sock.set_read_timeout(None).map_err(|_| BROKEN)?;
        loop {
            let bytes = match read_frame(&mut tls, RECORD_MAX_BYTES) {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err("stream_damaged"),
                // It went away; it dials again.
                Err(_) => return Ok(()),
            };
            match Envelope::decode(self.cluster, &bytes) {
                // It left the cluster meanwhile.
                Ok(_) if !self.members().contains(&peer) => return Err("stream_unknown_host"),
                Ok((stamp, envelope)) if stamp.writer == peer => {
                    (self.on_streamed)(Streamed::Message(stamp.writer, envelope));
                }
                Ok(_) => return Err("stream_wrong_writer"),
                Err(_) => return Err("stream_damaged"),
            }
        }
    }
}

fn listen(address: SocketAddr, own: &[OnNetwork]) -> io::Result<TcpListener> {
    let socket = bind(address, Type::STREAM, own)?;
    socket.listen(128)?;
    Ok(socket.into())
}

/// One way to a peer: from an own address, so that it goes over that network, to one of the peer's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Way {
    from: Option<IpAddr>,
    address: SocketAddr,
}

fn ways(own: &[OnNetwork], to: &[OnNetwork]) -> Vec<Way> {
    let way = |to: &OnNetwork| Way {
        from: from_here(own.iter(), to).map(|(_, a)| a.ip()),
        address: to.1,
    };
    to.iter().map(way).collect()
}

/// Keeps one connection to a peer for what is sent there.
struct Dialler {
    me: HostId,
    peer: HostId,
    ways: Vec<Way>,
    /// The way that is tried first: that of the last connection, or the one after it when it broke.
    first: usize,
    client: Arc<ClientConfig>,
    patience: Patience,
    connection: Option<StreamOwned<ClientConnection, TcpStream>>,
    was_connected: bool,
    backoff: Duration,
}

impl Dialler {
    fn new(
        me: &HostId,
        peer: &HostId,
        ways: Vec<Way>,
        client: &Arc<ClientConfig>,
        patience: Patience,
    ) -> Self {
        Self {
            me: me.clone(),
            peer: peer.clone(),
            ways,
            first: 0,
            client: Arc::clone(client),
            patience,
            connection: None,
            was_connected: false,
            backoff: FIRST_BACKOFF,
        }
    }

    fn run(mut self, queue: &Receiver<Queued>, on_renewed: impl Fn()) {
        loop {
            match queue.recv_timeout(self.patience.limit / 2) {
                Ok((queued, bytes)) => self.deliver_in_time(queued, &bytes, &on_renewed),
                Err(RecvTimeoutError::Timeout) => self.replace_broken(&on_renewed),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn deliver_in_time(&mut self, queued: Instant, bytes: &[u8], on_renewed: &impl Fn()) {
        while queued.elapsed() < self.patience.delivery {
            match self.deliver(bytes, on_renewed) {
                Ok(()) => {
                    self.backoff = FIRST_BACKOFF;
                    return;
                }
                Err(error) => {
                    tracing::debug!(peer = %self.peer, %error, "stream");
                    // A bounded pause between two dials.
                    crate::clock::pause(self.backoff);
                    self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
                }
            }
        }
    }

    /// The next connection begins with the next way.
    fn give_up(&mut self) {
        if self.connection.take().is_some() {
            self.first = (self.first + 1) % self.ways.len().max(1);
        }
    }

    /// A connection that broke while nothing was sent is replaced before something is to be sent.
    fn replace_broken(&mut self, on_renewed: &impl Fn()) {
        if self.connection.as_ref().is_some_and(|c| is_ended(&c.sock)) {
            self.give_up();
            // Where no way leads there now, the next message tries again.
            drop(self.connect(on_renewed));
        }
    }

    fn connect(&mut self, on_renewed: &impl Fn()) -> io::Result<()> {
        self.connection = Some(self.dial()?);
        if std::mem::replace(&mut self.was_connected, true) {
            on_renewed();
        }
        Ok(())
    }

    fn deliver(&mut self, bytes: &[u8], on_renewed: &impl Fn()) -> io::Result<()> {
        if self.connection.as_ref().is_some_and(|c| is_ended(&c.sock)) {
            self.give_up();
        }
        if self.connection.is_none() {
            self.connect(on_renewed)?;
        }
        let Some(connection) = &mut self.connection else {
            return Err(io::Error::other("there is no connection"));
        };
        let written = write_frame(connection, bytes);
        if written.is_err() {
            self.give_up();
        }
        written
    }

    /// Tries all ways, each once.
    fn dial(&mut self) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let mut last = io::Error::other("the host has no address");
        let count = self.ways.len();
        for index in (self.first..count).chain(0..self.first) {
            let Some(way) = self.ways.get(index) else {
                continue;
            };
            match self.dial_one(*way) {
                Ok(connection) => {
                    tracing::info!(peer = %self.peer, address = %way.address, "stream connected");
                    self.first = index;
                    return Ok(connection);
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    fn dial_one(&self, way: Way) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let domain = Domain::for_address(way.address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        if let Some(from) = way.from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        socket.connect_timeout(&way.address.into(), self.patience.limit)?;
        let stream = TcpStream::from(socket);
        tune(&stream, self.patience)?;
        let name = ServerName::try_from(self.peer.as_str().to_owned()).map_err(io::Error::other)?;
        let connection =
            ClientConnection::new(Arc::clone(&self.client), name).map_err(io::Error::other)?;
        let mut tls = StreamOwned::new(connection, stream);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        write_frame(&mut tls, self.me.as_str().as_bytes())?;
        Ok(tls)
    }
}

/// The receiver never writes, so anything readable is an end, orderly or not.
fn is_ended(stream: &TcpStream) -> bool {
    let mut byte = [0];
    let peeked = stream
        .set_nonblocking(true)
        .and_then(|()| stream.peek(&mut byte));
    let blocking = stream.set_nonblocking(false);
    match peeked {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => blocking.is_err(),
        _ => true,
    }
}

#[cfg(test)]
mod tests;
