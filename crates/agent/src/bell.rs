//! A bell between agent and guard: one waits beside it, the other rings when there is something to see.
//! Nothing depends on a ring that is lost: who waits looks by itself after a while.

use crate::twin;
use mainstay_core::time::Duration;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// Where the agent waits for the guard.
pub(crate) fn of_agent(run_dir: &Path) -> PathBuf {
    run_dir.join("agent-wake.sock")
}

/// Where the guard waits for the agent.
pub(crate) fn of_guard(run_dir: &Path) -> PathBuf {
    run_dir.join("guard-wake.sock")
}

/// The end that waits.
#[derive(Debug)]
pub(crate) struct Bell {
    socket: UnixDatagram,
}

impl Bell {
    /// Puts a bell there, in the place of a predecessor's.
    pub(crate) fn put(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let (_dir, short) = twin::socket_path(path)?;
        let socket = UnixDatagram::bind(short)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// Waits for a ring, at most that long; true when it rang. A signal ends the wait as well.
    pub(crate) fn wait(&self, at_most: Duration) -> bool {
        // The kernel's timers for sockets are coarser than a deadline is.
        let mut waited = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let _ = ppoll(&mut waited, Some(TimeSpec::from_duration(at_most)), None);
        let mut rang = false;
        while self.socket.recv(&mut [0; 1]).is_ok() {
            rang = true;
        }
        rang
    }
}

/// The end that rings.
#[derive(Debug)]
pub(crate) struct Ringer {
    socket: Option<UnixDatagram>,
    path: PathBuf,
}

impl Ringer {
    /// For the bell at that path, whether it is there already or not.
    pub(crate) fn new(path: PathBuf) -> Self {
        let socket = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        Self {
            socket: socket.ok(),
            path,
        }
    }

    /// Rings; never waits.
    pub(crate) fn ring(&self) {
        if let Some(socket) = &self.socket
            && let Ok((_dir, path)) = twin::socket_path(&self.path)
        {
            // Nobody there, or one who has enough rings already: it looks by itself.
            let _ = socket.send_to(b"!", path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_ends_the_wait_and_several_are_one() {
        let dir = tempfile::tempdir().expect("directory");
        let path = of_guard(dir.path());
        let ringer = Ringer::new(path.clone());
        ringer.ring();
        let bell = Bell::put(&path).expect("bell");
        assert!(!bell.wait(Duration::ZERO), "it was not there yet");
        // More than a socket holds: the one who rings is never held up.
        for _ in 0..1000 {
            ringer.ring();
        }
        assert!(bell.wait(Duration::from_secs(60)));
        assert!(!bell.wait(Duration::ZERO), "all rings were heard");
        let bell = Bell::put(&path).expect("another in its place");
        ringer.ring();
        assert!(bell.wait(Duration::from_secs(60)));
    }

    #[test]
    fn a_bell_rings_in_a_directory_with_a_long_name() {
        let dir = tempfile::tempdir().expect("directory");
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).expect("directory");
        let bell = Bell::put(&of_agent(&deep)).expect("bell");
        Ringer::new(of_agent(&deep)).ring();
        assert!(bell.wait(Duration::from_secs(60)));
    }
}
