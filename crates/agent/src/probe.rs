//! `mainstay probe`: answers echo datagrams, so that a simulated host's network can be pinged where
//! ICMP cannot tell hosts apart. It dies with its host.

use std::net::{SocketAddr, UdpSocket};

/// How a probe begins; 16 bytes of the asker's follow.
pub(crate) const QUESTION: [u8; 4] = *b"MSPB";
/// How its answer begins; the same 16 bytes follow.
pub(crate) const ANSWER: [u8; 4] = *b"MSPA";
const PROBE_BYTES: usize = 20;

/// Why the responder ended.
#[derive(Debug, thiserror::Error)]
#[error("cannot answer probes at {address}; is the address this host's, and the port free?")]
pub struct ProbeError {
    /// Where it should listen.
    pub address: SocketAddr,
    /// Why not.
    pub source: std::io::Error,
}

/// Answers probes at `address` until the process ends.
///
/// # Errors
/// [`ProbeError`] when the address cannot be used.
pub fn run(address: SocketAddr) -> Result<(), ProbeError> {
    let socket = UdpSocket::bind(address).map_err(|source| ProbeError { address, source })?;
    serve(&socket);
    Ok(())
}

pub(crate) fn serve(socket: &UdpSocket) {
    let mut buffer = [0; PROBE_BYTES + 1];
    loop {
        // An error is an ICMP answer to something sent earlier.
        let Ok((n, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let bytes = buffer.get(..n).unwrap_or_default();
        if n == PROBE_BYTES
            && let Some(cookie) = bytes.strip_prefix(QUESTION.as_slice())
        {
            let _ = socket.send_to(&[ANSWER.as_slice(), cookie].concat(), from);
        }
    }
}
