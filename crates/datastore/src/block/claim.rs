//! The slots of this host that this process writes, and what is in flight to them (safety rule H20).
//!
//! Two processes of one host never write one slot: each slot has a name among the kernel's abstract sockets,
//! which is free again only when every thread of its process is gone, the one in an I/O that hangs included. A
//! file in the run directory, which a boot empties or makes void, says whether a write of the slot was under way
//! or in doubt. Where it was when its process died, the slot waits for the next boot.

use mainstay_core::id::BootId;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::Mutex;

/// A slot that this process writes.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) slot: u16,
    boot: BootId,
    _name: UnixDatagram,
    journal: File,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    in_flight: u32,
    /// Registers in which a write is in doubt.
    doubts: u32,
}

impl Claim {
    /// Claims a slot. None: another process of this host has it, or a write to it may still land.
    ///
    /// # Errors
    /// The run directory cannot be written.
    pub(crate) fn take(
        region: u64,
        slot: u16,
        boot: BootId,
        run_dir: &Path,
    ) -> io::Result<Option<Self>> {
        let name = format!("mainstay-block/{region:016x}/{slot}");
        let name = match UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?) {
            Ok(name) => name,
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => return Ok(None),
            Err(e) => return Err(e),
        };
        let journal = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(run_dir.join(format!("block-{region:016x}-{slot}")))?;
        let mut bytes = [0; 9];
        let read = journal.read_at(&mut bytes, 0)?;
        let [of @ .., state] = bytes;
        // A journal that is not whole was being made, before the first write.
        if read == bytes.len() && u64::from_le_bytes(of) == boot.0 && state != 0 {
            return Ok(None);
        }
        let claim = Self {
            slot,
            boot,
            _name: name,
            journal,
            open: Mutex::default(),
        };
        claim.note(false)?;
        Ok(Some(claim))
    }

    fn note(&self, open: bool) -> io::Result<()> {
        let mut bytes = [0; 9];
        if let Some((of, state)) = bytes.split_first_chunk_mut::<8>() {
            *of = self.boot.0.to_le_bytes();
            state.fill(u8::from(open));
        }
        self.journal.write_all_at(&bytes, 0)
    }

    fn change(&self, change: impl FnOnce(&mut Open)) -> io::Result<()> {
        let mut open = self
            .open
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let was = open.in_flight + open.doubts > 0;
        change(&mut open);
        let is = open.in_flight + open.doubts > 0;
        if was == is {
            return Ok(());
        }
        self.note(is)
    }

    /// A write begins. It must not when this fails.
    pub(crate) fn begins(&self) -> io::Result<()> {
        self.change(|open| open.in_flight += 1)
    }

    /// A write ended with a known outcome, or is in doubt from now on.
    pub(crate) fn ends(&self, doubt: bool) {
        let ended = self.change(|open| {
            open.in_flight = open.in_flight.saturating_sub(1);
            open.doubts += u32::from(doubt);
        });
        // It stays marked as it was: the slot waits for the next boot, which is always right.
        drop(ended);
    }

    /// A doubt was resolved: the write was seen.
    pub(crate) fn resolved(&self, doubts: u32) {
        drop(self.change(|open| open.doubts = open.doubts.saturating_sub(doubts)));
    }
}
