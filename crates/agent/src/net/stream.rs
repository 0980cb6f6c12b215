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

mod accept;
mod dial;
mod trouble;

use super::{Addresses, OnNetwork, Rejects};
use crate::config::AgentFile;
use accept::{Accepting, Unproven, listen};
use dial::{Dialler, ways};
use mainstay_core::config::Timing;
use mainstay_core::id::HostId;
use mainstay_core::wire::Envelope;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use socket2::{SockRef, TcpKeepalive};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Messages that wait for one peer.
const QUEUE_LENGTH: usize = 256;
/// A handshake gets at least so long: it needs the processor of both hosts.
const LEAST_HANDSHAKE: Duration = Duration::from_secs(1);

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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Patience {
    /// For an acknowledgement of the other end's kernel, and for a connection.
    pub(crate) limit: Duration,
    /// For the delivery of one message, over whatever connection; then the core has given it up.
    pub(crate) delivery: Duration,
}

impl Patience {
    /// What the timers of the cluster make of it.
    pub(crate) fn of(timing: &Timing) -> Self {
        Self {
            limit: timing.stream_limit(),
            delivery: timing.dead,
        }
    }

    fn handshake(self) -> Duration {
        self.limit.max(LEAST_HANDSHAKE)
    }
}

/// The patience that counts now, for all threads: the timers may change while they run.
#[derive(Clone, Debug)]
struct Limits(Arc<RwLock<Patience>>);

impl Limits {
    fn new(patience: Patience) -> Self {
        Self(Arc::new(RwLock::new(patience)))
    }

    fn now(&self) -> Patience {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, patience: Patience) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = patience;
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

pub(crate) fn write_frame(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    out.write_all(&[length.to_be_bytes().as_slice(), bytes].concat())?;
    out.flush()
}

pub(crate) fn read_frame(from: &mut impl Read, limit: usize) -> io::Result<Vec<u8>> {
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
    /// What keeps messages from that host, with the remedy; nothing: they arrive, or there are none.
    Trouble(HostId, Option<String>),
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
    limits: Limits,
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
        let unproven = Unproven::default();
        let members = Members::default();
        let limits = Limits::new(patience);
        let own = addresses.get(me).cloned().unwrap_or_default();
        for (_, address) in &own {
            let fault = |e| (*address, e);
            let listener = listen(*address, &own).map_err(fault)?;
            let accepting = Accepting {
                cluster,
                members: Arc::clone(&members),
                server: Arc::clone(&tls.server),
                limits: limits.clone(),
                rejects: rejects.clone(),
                open: Arc::clone(&open),
                unproven: unproven.clone(),
                on_streamed: on_streamed.clone(),
            };
            std::thread::Builder::new()
                .name(format!("tcp {address}"))
                .spawn(move || accepting.run(&listener))
                .map_err(fault)?;
        }
        let first = own.first().map(|(_, address)| *address);
        let (from, client) = (me.clone(), Arc::clone(&tls.client));
        let known_limits = limits.clone();
        let dial: Dial = Box::new(move |host, addresses| {
            let (sender, receiver) = sync_channel(QUEUE_LENGTH);
            let dialler = Dialler::new(&from, host, ways(&own, addresses), &client, &limits);
            let on_streamed = on_streamed.clone();
            std::thread::Builder::new()
                .name(format!("to {host}"))
                .spawn(move || dialler.run(&receiver, on_streamed))?;
            Ok(sender)
        });
        let mut streams = Self {
            me: me.clone(),
            members,
            senders: BTreeMap::new(),
            dial,
            limits: known_limits,
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

    /// From now on they wait so long, also on connections that are open.
    pub(crate) fn set_patience(&self, patience: Patience) {
        self.limits.set(patience);
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

#[cfg(test)]
mod tests;
