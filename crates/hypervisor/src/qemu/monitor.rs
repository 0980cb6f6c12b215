//! The two QMP sockets of a guest: one for commands, one for events.
//!
//! A command opens the control socket, negotiates, executes and closes, all
//! within a limit. The events connection is kept, and read whenever somebody
//! looks at the guest; nothing waits for it. On connecting it writes its
//! questions without waiting for QEMU's greeting, so that a guest found frozen
//! answers them when it is thawed.
//!
//! Never decides from a missing event that a guest is well.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use qapi::{Command, ExecuteError, Qmp, Stream};

use crate::embedded::short_path;
use crate::launch::Record;
use crate::process::PidFd;
use crate::table::{self, Watch, terminate};
use crate::{DiskError, DriverError, ExitCause};

pub(super) const CONTROL: &str = ".qmp";
pub(super) const EVENTS: &str = ".events";

/// How long QEMU may take to end after it was asked to, its guest being off.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// Far more than any one event.
const LONGEST_LINE: usize = 1 << 20;

/// Far more than greeting, events and answers of one command: a QEMU gone wrong must not fill the agent's memory.
const LONGEST_CONVERSATION: u64 = 4 << 20;

fn open(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let fd: OwnedFd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let microseconds = i64::try_from(timeout.as_micros())
        .unwrap_or(i64::MAX)
        .max(1);
    // It limits connect() too, which waits while the queue of connections is full.
    setsockopt(
        &fd,
        sockopt::SendTimeout,
        &TimeVal::microseconds(microseconds),
    )?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}

/// Executes one command on the control socket, within `timeout` for each step.
pub(crate) fn execute<C: Command>(
    record: &Record,
    command: &C,
    timeout: Duration,
) -> Result<C::Ok, DriverError> {
    let start = Instant::now();
    let vm = || record.vm.clone();
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => DriverError::Unresponsive {
            vm: vm(),
            waited: start.elapsed(),
        },
        _ => DriverError::Channel { vm: vm(), source },
    };
    let stream = short_path(record, CONTROL, |path| open(path, timeout)).map_err(failed)?;
    stream.set_read_timeout(Some(timeout)).map_err(failed)?;
    converse(&stream, &stream, command, || start.elapsed() < timeout).map_err(|error| match error {
        ExecuteError::Qapi(error) => DriverError::Refused {
            vm: vm(),
            reason: error.desc,
        },
        ExecuteError::Io(error) => failed(error),
    })
}

/// Negotiates and executes one command, as long as there is time.
pub(crate) fn converse<C: Command>(
    from: impl Read,
    to: impl Write,
    command: &C,
    has_time: impl Fn() -> bool,
) -> Result<C::Ok, ExecuteError> {
    let mut qmp = Qmp::new(Stream::new(
        BufReader::new(from.take(LONGEST_CONVERSATION)),
        to,
    ));
    // The library panics when the greeting is an end of file.
    if qmp.inner_mut().fill_buf()?.is_empty() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    qmp.handshake()?;
    qmp.write_command(command)?;
    loop {
        match qmp.read_response::<C>() {
            // An event that this library does not know stands before the answer.
            Err(ExecuteError::Io(error))
                if error.kind() == io::ErrorKind::InvalidData && has_time() => {}
            result => return result,
        }
    }
}

/// The events connection of one guest.
#[derive(Debug, Default)]
pub(super) struct Events {
    stream: Option<UnixStream>,
    unread: Vec<u8>,
    /// Since when QEMU has been asked to end.
    ending: Option<Instant>,
    /// Why it paused the machine, if that was for its disk.
    disk: Option<DiskError>,
}

impl Events {
    fn connect(record: &Record) -> io::Result<UnixStream> {
        // The limit is reached only when the queue of connections is full.
        let mut stream = short_path(record, EVENTS, |path| open(path, Duration::from_millis(1)))?;
        stream.set_nonblocking(true)?;
        stream
            .write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n")?;
        Ok(stream)
    }

    /// Takes what has arrived; the lines are complete ones.
    fn receive(&mut self) -> Vec<Vec<u8>> {
        let Some(stream) = &mut self.stream else {
            return Vec::new();
        };
        let mut chunk = [0; 4096];
        loop {
            match stream.read(&mut chunk) {
                Ok(0) => break self.stream = None,
                Ok(length) => self
                    .unread
                    .extend_from_slice(chunk.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => break self.stream = None,
            }
            if self.unread.len() > LONGEST_LINE {
                self.unread.clear();
                break self.stream = None;
            }
        }
        let mut lines = Vec::new();
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            lines.push(self.unread.drain(..=end).collect());
        }
        if self.stream.is_none() {
            self.unread.clear();
        }
        lines
    }
}

/// How the machine ended, if this line says that it did.
pub(crate) fn ended(line: &[u8]) -> Option<ExitCause> {
    let message: serde_json::Value = serde_json::from_slice(line).ok()?;
    let text = |pointer: &str| message.pointer(pointer).and_then(serde_json::Value::as_str);
    let crashed = |reason: &str| ExitCause::Crashed {
        detail: reason.to_owned(),
    };
    match (text("/event"), text("/return/status")) {
        (Some("SHUTDOWN"), _) => {
            let reason = text("/data/reason").unwrap_or("unknown");
            let by_guest = message.pointer("/data/guest") == Some(&serde_json::Value::Bool(true));
            match (by_guest, reason) {
                (true, "guest-shutdown") => Some(ExitCause::Clean),
                (true, "guest-panic") => Some(ExitCause::Panicked),
                (true, reason) => Some(crashed(reason)),
                // Somebody ended QEMU; whether it was this driver is known where that is decided.
                (false, _) => None,
            }
        }
        (Some("GUEST_PANICKED"), _) => match text("/data/action") {
            Some("run") => None,
            _ => Some(ExitCause::Panicked),
        },
        (None, Some("shutdown")) => Some(ExitCause::Clean),
        (None, Some("guest-panicked")) => Some(ExitCause::Panicked),
        (None, Some(status @ "internal-error")) => Some(crashed(status)),
        _ => None,
    }
}

/// How the machine's disk does, if this line says something of it; an error only where it pauses the machine.
pub(crate) fn disk(line: &[u8]) -> Option<Option<DiskError>> {
    let message: serde_json::Value = serde_json::from_slice(line).ok()?;
    let text = |pointer: &str| message.pointer(pointer).and_then(serde_json::Value::as_str);
    match (text("/event"), text("/return/status")) {
        (Some("BLOCK_IO_ERROR"), _) if text("/data/action") == Some("stop") => {
            let full = message.pointer("/data/nospace") == Some(&serde_json::Value::Bool(true));
            // The C library's words for the error: QEMU is started in the C locale.
            Some(Some(match text("/data/reason") {
                _ if full => DiskError::Full,
                Some(
                    "Input/output error"
                    | "No such device or address"
                    | "No such device"
                    | "Stale file handle",
                ) => DiskError::Gone,
                Some("Connection timed out") => DiskError::TimedOut,
                _ => DiskError::Other,
            }))
        }
        (Some("RESUME"), _) | (None, Some("running")) => Some(None),
        (None, Some("io-error")) => Some(Some(DiskError::Other)),
        _ => None,
    }
}

impl Watch for Events {
    const EVERY: Duration = table::LOOK;

    fn disk_error(&self) -> Option<DiskError> {
        self.disk
    }

    fn look(&mut self, record: &Record, pidfd: Option<&PidFd>, gone: bool) {
        if self.stream.is_none() && !gone {
            // Not yet there while QEMU starts; looked at again the next time.
            self.stream = Self::connect(record).ok();
        }
        for line in self.receive() {
            if let Some(disk) = disk(&line) {
                self.disk = disk;
            }
            let Some(cause) = ended(&line) else {
                continue;
            };
            if record.marker().is_none()
                && let Err(error) = record.write_marker(&cause)
            {
                tracing::warn!(vm = record.vm, %error, "could not write the exit marker");
            }
            self.ending.get_or_insert_with(|| {
                terminate(pidfd, Signal::SIGTERM);
                Instant::now()
            });
        }
        if self
            .ending
            .is_some_and(|since| since.elapsed() > END_TIMEOUT)
            && !gone
        {
            terminate(pidfd, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_guest_itself_shuts_down_cleanly() {
        let event = |guest, reason| {
            format!(r#"{{"event":"SHUTDOWN","data":{{"guest":{guest},"reason":"{reason}"}}}}"#)
        };
        assert_eq!(
            ended(event(true, "guest-shutdown").as_bytes()),
            Some(ExitCause::Clean)
        );
        assert!(matches!(
            ended(event(true, "guest-reset").as_bytes()),
            Some(ExitCause::Crashed { .. })
        ));
        assert_eq!(ended(event(false, "host-signal").as_bytes()), None);
        assert_eq!(
            ended(br#"{"return":{"status":"shutdown"}}"#),
            Some(ExitCause::Clean)
        );
        assert_eq!(ended(br#"{"return":{"status":"running"}}"#), None);
        assert_eq!(ended(b"{"), None);
    }

    #[test]
    fn an_error_of_the_disk_is_one_where_it_pauses_the_machine_until_that_goes_on() {
        let error = |action, nospace, reason| {
            let line = format!(
                r#"{{"event":"BLOCK_IO_ERROR","data":{{"device":"disk0","operation":"write","action":"{action}","nospace":{nospace},"reason":"{reason}"}}}}"#
            );
            disk(line.as_bytes())
        };
        for reason in [
            "Input/output error",
            "No such device or address",
            "No such device",
            "Stale file handle",
        ] {
            assert_eq!(
                error("stop", false, reason),
                Some(Some(DiskError::Gone)),
                "{reason}"
            );
            assert_eq!(error("report", false, reason), None, "{reason}");
        }
        let full = "No space left on device";
        assert_eq!(error("stop", true, full), Some(Some(DiskError::Full)));
        let late = "Connection timed out";
        assert_eq!(error("stop", false, late), Some(Some(DiskError::TimedOut)));
        assert_eq!(error("stop", false, "?"), Some(Some(DiskError::Other)));
        assert_eq!(disk(br#"{"event":"RESUME"}"#), Some(None));
        assert_eq!(disk(br#"{"return":{"status":"running"}}"#), Some(None));
        let adopted = disk(br#"{"return":{"status":"io-error"}}"#);
        assert_eq!(adopted, Some(Some(DiskError::Other)));
        assert_eq!(disk(br#"{"event":"STOP"}"#), None);
    }

    #[test]
    fn a_panic_is_one_however_it_is_told() {
        for line in [
            r#"{"event":"GUEST_PANICKED","data":{"action":"pause"}}"#,
            r#"{"event":"GUEST_PANICKED","data":{"action":"poweroff"}}"#,
            r#"{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-panic"}}"#,
            r#"{"return":{"status":"guest-panicked"}}"#,
        ] {
            assert_eq!(ended(line.as_bytes()), Some(ExitCause::Panicked), "{line}");
        }
        // It goes on, or has only loaded what is to run when it panics.
        for line in [
            r#"{"event":"GUEST_PANICKED","data":{"action":"run"}}"#,
            r#"{"event":"GUEST_CRASHLOADED","data":{"action":"run"}}"#,
        ] {
            assert_eq!(ended(line.as_bytes()), None, "{line}");
        }
    }
}
