//! The sending end of streams: one connection to a peer, and another way when it breaks.

use super::trouble::{self, Trouble};
use super::{Limits, Patience, Queued, Streamed, tune, write_frame};
use crate::net::{OnNetwork, from_here};
use mainstay_core::id::HostId;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);

/// One way to a peer: from an own address, so that it goes over that network, to one of the peer's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Way {
    pub(super) from: Option<IpAddr>,
    pub(super) address: SocketAddr,
}

pub(super) fn ways(own: &[OnNetwork], to: &[OnNetwork]) -> Vec<Way> {
    let way = |to: &OnNetwork| Way {
        from: from_here(own.iter(), to).map(|(_, a)| a.ip()),
        address: to.1,
    };
    to.iter().map(way).collect()
}

/// Keeps one connection to a peer for what is sent there.
pub(super) struct Dialler {
    me: HostId,
    peer: HostId,
    ways: Vec<Way>,
    /// The way that is tried first: that of the last connection, or the one after it when it broke.
    first: usize,
    client: Arc<ClientConfig>,
    limits: Limits,
    /// What the open connection was made with.
    patience: Patience,
    connection: Option<StreamOwned<ClientConnection, TcpStream>>,
    /// When the open connection was made. The other end looks at this host's certificate after that: only
    /// one that stays is taken.
    made: Instant,
    trouble: Trouble,
    /// When the message was queued that is being sent.
    queued: Option<Instant>,
    was_connected: bool,
    backoff: Duration,
}

impl Dialler {
    pub(super) fn new(
        me: &HostId,
        peer: &HostId,
        ways: Vec<Way>,
        client: &Arc<ClientConfig>,
        limits: &Limits,
    ) -> Self {
        Self {
            me: me.clone(),
            peer: peer.clone(),
            ways,
            first: 0,
            client: Arc::clone(client),
            limits: limits.clone(),
            patience: limits.now(),
            connection: None,
            made: Instant::now(),
            trouble: Trouble::default(),
            queued: None,
            was_connected: false,
            backoff: FIRST_BACKOFF,
        }
    }

    pub(super) fn run(mut self, queue: &Receiver<Queued>, on_streamed: impl Fn(Streamed)) {
        let peer = self.peer.clone();
        let on_renewed = || on_streamed(Streamed::Renewed(peer.clone()));
        loop {
            self.renew_patience();
            match queue.recv_timeout(self.patience.limit / 2) {
                Ok((queued, bytes)) => self.deliver_in_time(queued, &bytes, &on_renewed),
                Err(RecvTimeoutError::Timeout) => self.look_idle(&on_renewed),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if let Some(news) = self.trouble.news() {
                on_streamed(Streamed::Trouble(peer.clone(), news));
            }
        }
        // It is no peer any more, or elsewhere now.
        self.trouble.over();
        if let Some(news) = self.trouble.news() {
            on_streamed(Streamed::Trouble(peer.clone(), news));
        }
    }

    /// The timers of the cluster may have changed: the open connection follows them.
    pub(super) fn renew_patience(&mut self) {
        let now = self.limits.now();
        if now == self.patience {
            return;
        }
        self.patience = now;
        if self
            .connection
            .as_ref()
            .is_some_and(|c| tune(&c.sock, now).is_err())
        {
            self.give_up();
        }
    }

    fn deliver_in_time(&mut self, queued: Instant, bytes: &[u8], on_renewed: &impl Fn()) {
        self.renew_patience();
        self.queued = Some(queued);
        while queued.elapsed() < self.patience.delivery {
            match self.deliver(bytes, on_renewed) {
                Ok(()) => return self.note_taken(),
                Err(error) => {
                    self.failed(&error);
                    self.back_off();
                }
            }
        }
    }

    /// A bounded pause between two dials.
    fn back_off(&mut self) {
        crate::clock::pause(self.backoff);
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
    }

    fn failed(&mut self, error: &io::Error) {
        tracing::debug!(peer = %self.peer, %error, "stream");
        let address = self.ways.get(self.first).map(|w| w.address);
        let text = trouble::describe(&self.peer, address, error);
        let now = Instant::now();
        self.trouble
            .failed(now, self.queued, self.patience.delivery, text);
    }

    /// A connection that has stayed for as long as a handshake may take is one that the peer takes.
    fn note_taken(&mut self) {
        if self.connection.is_some() && !self.is_young() {
            if self.trouble.is_there() {
                tracing::info!(peer = %self.peer, "stream taken");
            }
            self.trouble.over();
            self.backoff = FIRST_BACKOFF;
        }
    }

    fn is_young(&self) -> bool {
        self.made.elapsed() < self.patience.handshake()
    }

    /// Lets a connection go that the other end has closed. True when that came so soon that it refuses
    /// this host.
    fn drop_ended(&mut self) -> bool {
        let Some(connection) = self.connection.as_mut().filter(|c| is_ended(&c.sock)) else {
            return false;
        };
        let why = why_ended(connection);
        let refused = self.is_young();
        if refused {
            self.failed(&why);
        }
        self.give_up();
        refused
    }

    /// The next connection begins with the next way.
    fn give_up(&mut self) {
        if self.connection.take().is_some() {
            self.first = (self.first + 1) % self.ways.len().max(1);
        }
    }

    /// A connection that broke while nothing was sent is replaced before something is to be sent. One that
    /// the other end refused is not: the next message tries again.
    fn look_idle(&mut self, on_renewed: &impl Fn()) {
        self.queued = None;
        let broken = self.connection.as_ref().is_some_and(|c| is_ended(&c.sock));
        if broken
            && !self.drop_ended()
            && let Err(error) = self.connect(on_renewed)
        {
            self.failed(&error);
        }
        self.note_taken();
        self.trouble
            .forget_old(Instant::now(), self.patience.delivery);
    }

    fn connect(&mut self, on_renewed: &impl Fn()) -> io::Result<()> {
        self.connection = Some(self.dial()?);
        self.made = Instant::now();
        if std::mem::replace(&mut self.was_connected, true) {
            on_renewed();
        }
        Ok(())
    }

    pub(super) fn deliver(&mut self, bytes: &[u8], on_renewed: &impl Fn()) -> io::Result<()> {
        if self.drop_ended() {
            self.back_off();
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
                    // One that is refused again and again does not fill the log.
                    if !self.trouble.is_there() {
                        tracing::info!(peer = %self.peer, address = %way.address, "stream connected");
                    }
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

    /// How long the kernel waits for acknowledgements on the open connection.
    #[cfg(test)]
    pub(super) fn waits_for(&self) -> Option<Duration> {
        let connection = self.connection.as_ref()?;
        let socket = socket2::SockRef::from(&connection.sock);
        socket.tcp_user_timeout().expect("asked")
    }
}

/// What the other end said when it closed the connection.
fn why_ended(connection: &mut StreamOwned<ClientConnection, TcpStream>) -> io::Error {
    let read = connection.conn.read_tls(&mut connection.sock);
    match (read, connection.conn.process_new_packets()) {
        (_, Err(said)) => io::Error::new(io::ErrorKind::InvalidData, said),
        (Err(error), _) => error,
        (Ok(_), Ok(_)) => io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "it closes connections as soon as they are made",
        ),
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
