//! The receiving end of streams: takes connections, and messages from peers that prove who they are.

use super::{Limits, Members, Streamed, is_valid_for, read_frame, tune};
use crate::net::{OnNetwork, Rejects, bind};
use mainstay_core::id::HostId;
use mainstay_core::wire::{Envelope, RECORD_MAX_BYTES};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::Type;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLockReadGuard};
use std::time::{Duration, Instant};

/// Connections of peers that are kept at once, for each host of the cluster; and of one address, of those
/// that have not proven yet who they are.
const CONNECTIONS_PER_HOST: usize = 4;
/// Before connections are taken again when there is no descriptor for another.
const FULL_PAUSE: Duration = Duration::from_millis(50);

#[derive(Clone)]
pub(super) struct Accepting<F> {
    pub(super) cluster: u64,
    pub(super) members: Members,
    pub(super) server: Arc<ServerConfig>,
    pub(super) limits: Limits,
    pub(super) rejects: Rejects,
    pub(super) open: Arc<AtomicUsize>,
    pub(super) unproven: Unproven,
    pub(super) on_streamed: F,
}

/// Connections whose other end has not proven yet who it is, by its address: they take no place away
/// from peers that have, and one address takes none from another.
#[derive(Clone, Debug, Default)]
pub(super) struct Unproven(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

impl Unproven {
    /// A place for a connection, while the guard lives; none when that address has all of its own, or
    /// there are too many in all.
    fn enter(&self, from: IpAddr, most: usize) -> Option<Place> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = all.get(&from).copied().unwrap_or_default();
        if mine >= CONNECTIONS_PER_HOST || all.values().sum::<usize>() >= most {
            return None;
        }
        all.insert(from, mine + 1);
        Some(Place {
            of: self.clone(),
            from,
        })
    }
}

/// A place among the unproven.
#[derive(Debug)]
struct Place {
    of: Unproven,
    from: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.from) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                all.remove(&self.from);
            }
        }
    }
}

/// A place among the connections of peers.
#[derive(Debug)]
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A connection that must have proven by some moment who is at its other end, however slowly it goes on.
#[derive(Debug)]
pub(super) struct Timed {
    pub(super) stream: TcpStream,
    pub(super) until: Option<Instant>,
}

impl Timed {
    fn left(&self) -> io::Result<Option<Duration>> {
        let Some(until) = self.until else {
            return Ok(None);
        };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left))
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(left) = self.left()? {
            self.stream.set_read_timeout(Some(left))?;
        }
        self.stream.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if let Some(left) = self.left()? {
            self.stream.set_write_timeout(Some(left))?;
        }
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<F: Fn(Streamed) + Clone + Send + 'static> Accepting<F> {
    pub(super) fn run(&self, listener: &TcpListener) {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // Out of descriptors: wait for one to close instead of spinning.
                crate::clock::pause(FULL_PAUSE);
                continue;
            };
            let from = stream.peer_addr().map(|a| a.ip());
            let place = from
                .ok()
                .and_then(|ip| self.unproven.enter(ip, self.limit()));
            let Some(place) = place else {
                self.rejects.count("stream_too_many");
                continue;
            };
            let mine = self.clone();
            // Where no thread can be made, the connection is closed.
            let _ = std::thread::Builder::new()
                .name("from peer".into())
                .spawn(move || {
                    if let Err(kind) = mine.receive(stream, place) {
                        mine.rejects.count(kind);
                    }
                });
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
    fn receive(&self, stream: TcpStream, place: Place) -> Result<(), &'static str> {
        const BROKEN: &str = "stream_handshake_failed";
        let patience = self.limits.now();
        tune(&stream, patience).map_err(|_| BROKEN)?;
        let stream = Timed {
            stream,
            until: Some(Instant::now() + patience.handshake()),
        };
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
        if self.open.fetch_add(1, Ordering::AcqRel) >= self.limit() {
            self.open.fetch_sub(1, Ordering::AcqRel);
            return Err("stream_too_many");
        }
        let _open = Open(Arc::clone(&self.open));
        drop(place);
        tls.sock.until = None;
        let socket = &tls.sock.stream;
        socket.set_read_timeout(None).map_err(|_| BROKEN)?;
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

pub(super) fn listen(address: SocketAddr, own: &[OnNetwork]) -> io::Result<TcpListener> {
    let socket = bind(address, Type::STREAM, own)?;
    socket.listen(128)?;
    Ok(socket.into())
}
