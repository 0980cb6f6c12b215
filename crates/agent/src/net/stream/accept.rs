//! The receiving end of streams: takes connections, and messages from peers that prove who they are.

use super::{Limits, Members, Streamed, is_valid_for, read_frame, tune};
use crate::net::{OnNetwork, Rejects, bind};
use mainstay_core::id::HostId;
use mainstay_core::wire::{Envelope, RECORD_MAX_BYTES};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::Type;
use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLockReadGuard};
use std::time::Duration;

/// Connections that are accepted at once, for each host of the cluster.
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
    pub(super) on_streamed: F,
}

impl<F: Fn(Streamed) + Clone + Send + 'static> Accepting<F> {
    pub(super) fn run(&self, listener: &TcpListener) {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // Out of descriptors: wait for one to close instead of spinning.
                crate::clock::pause(FULL_PAUSE);
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
        tune(&stream, self.limits.now()).map_err(|_| BROKEN)?;
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

pub(super) fn listen(address: SocketAddr, own: &[OnNetwork]) -> io::Result<TcpListener> {
    let socket = bind(address, Type::STREAM, own)?;
    socket.listen(128)?;
    Ok(socket.into())
}
