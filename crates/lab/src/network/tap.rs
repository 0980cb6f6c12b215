//! A TAP device: what a host's kernel sends on it is read here, frame by frame, and what is written here
//! it receives. The device lives as long as its descriptor.

use crate::fail::{Context, Result};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

/// Where TAP devices are made.
pub(super) const DEVICE: &str = "/dev/net/tun";

/// Makes a device in the network namespace of the calling thread. Reads and writes of the descriptor do
/// not block, and no program that is started inherits it.
///
/// # Errors
/// When the device cannot be made: no right to, no driver, or a device of that name.
pub(super) fn make(name: &str) -> Result<File> {
    // The standard library opens with O_CLOEXEC.
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE)
        .context("cannot open the driver of TAP devices")
        .map_err(|e| e.at(DEVICE))?;
    attach(&tap, name)
        .context(format_args!("cannot make the TAP device {name}"))
        .map_err(|e| e.at(DEVICE))?;
    Ok(tap)
}

/// Gives the descriptor a new device: whole frames, nothing before them, checksums and segments finished.
fn attach(tap: &File, name: &str) -> io::Result<()> {
    let flags =
        libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI).map_err(io::Error::other)?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags },
    };
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    set_interface(tap.as_raw_fd(), &mut request)?;
    Ok(())
}

#[expect(unsafe_code, reason = "no library in use wraps TUNSETIFF")]
fn set_interface(tap: RawFd, request: &mut libc::ifreq) -> nix::Result<()> {
    nix::ioctl_readwrite_bad!(
        tunsetiff,
        // Declared with an `int` in the kernel's headers; what it copies in and out is an `ifreq`.
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    // SAFETY: the kernel copies in and out a whole `ifreq`, which lives until the call returns.
    unsafe { tunsetiff(tap, request) }.map(drop)
}
