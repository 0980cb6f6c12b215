//! The embedded driver's guest: a process that counts onto its image.
//!
//! ```text
//! open --> lock --> start --> wait ------------> count every 100 ms --> exit marker, end
//!   | missing | held            `resume` datagram   `shutdown` datagram (also while waiting)
//!   v         v                                     `panic` datagram
//! exit codes 66, 75
//! ```
//!
//! How long it takes to start and to shut down lies on its image ([`crate::GuestTimes`]); it goes on counting
//! while it shuts down. After a `hang` datagram it does nothing any more and hears nothing but `memory`, which
//! is its process's matter.
//!
//! Takes the same byte locks on the image as QEMU, so that either keeps the
//! other out. A write that fails is tried again at the next tick; the counter
//! does not advance meanwhile. Never writes before `resume`, never starts from
//! zero because a read failed, never ends because its agent did.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::time::{ClockId, clock_gettime};

use crate::ExitCause;
use crate::embedded::GuestArguments;
use crate::image::{self, Aligned, Counter, SECTOR};
use crate::launch::Record;
use crate::process::Process;
use crate::times::{self, GuestTimes};

pub(crate) const RESUME: &[u8] = b"resume";
pub(crate) const SHUTDOWN: &[u8] = b"shutdown";
pub(crate) const CRASH: &[u8] = b"crash";
pub(crate) const HANG: &[u8] = b"hang";
pub(crate) const PANIC: &[u8] = b"panic";
pub(crate) const NEED_MEMORY: &[u8] = b"memory";

/// sysexits.h: EX_NOINPUT, EX_TEMPFAIL.
pub(crate) const EXIT_MISSING: i32 = 66;
pub(crate) const EXIT_LOCKED: i32 = 75;

const TICK: Duration = Duration::from_millis(100);

/// What it needs of memory after such a request: far more than it has, little for a host.
const NEEDED_BYTES: usize = 64 << 20;

/// Runs an embedded guest; for the program that [`crate::EmbeddedDriver`] starts with `guest` as first argument.
///
/// `arguments` are those after `guest`. Works in the current directory, which is the run directory.
#[must_use]
pub fn guest_main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match GuestArguments::parse(arguments) {
        Ok(arguments) => arguments,
        Err(reason) => {
            eprintln!("{reason}");
            return ExitCode::from(64);
        }
    };
    match Guest::start(arguments) {
        Ok(guest) => guest.run(),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(match error.kind() {
                io::ErrorKind::NotFound => 66,
                io::ErrorKind::WouldBlock => 75,
                _ => 74,
            })
        }
    }
}

#[derive(Debug)]
struct Guest {
    image: File,
    control: UnixDatagram,
    counter: Counter,
    record: Record,
    page: Aligned,
    times: GuestTimes,
    /// When it counts next; none: it has not been let run.
    next_tick: Option<Instant>,
    /// When it is off, once it shuts down.
    ends_at: Option<Instant>,
    hung: bool,
    failing: bool,
}

impl Guest {
    fn start(arguments: GuestArguments) -> io::Result<Self> {
        let begun = Instant::now();
        let path = &arguments.image;
        let mut options = OpenOptions::new();
        let (image, direct) =
            image::open_direct(options.read(true).write(true), path, libc::O_DSYNC)?;
        if !direct {
            eprintln!("{}", image::no_direct(path));
        }
        lock(&image)?;
        let last = image::read_counter_from(&image)?.map_or(0, |counter| counter.counter);
        let name = format!("{}.ctl", arguments.vm);
        match std::fs::remove_file(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let record = Record {
            driver: String::new(),
            boot_id: String::new(),
            run_dir: std::env::current_dir()?,
            process: Process::of_pid(std::process::id().cast_signed())?,
            memory: None,
            vm: arguments.vm.clone(),
            generation: arguments.generation,
        };
        let counter = Counter {
            counter: last,
            generation: arguments.generation,
            boottime_ns: 0,
            vm: arguments.vm,
        };
        let times = times::read_from(&image)?.unwrap_or_default();
        wait_until(begun + times.start);
        // Its presence is what the agent waits for.
        let control = UnixDatagram::bind(&name)?;
        Ok(Self {
            image,
            control,
            counter,
            record,
            page: Aligned::new(),
            times,
            next_tick: None,
            ends_at: None,
            hung: false,
            failing: false,
        })
    }

    fn run(mut self) -> ExitCode {
        loop {
            let mut request = [0; 16];
            let received = self
                .control
                .set_read_timeout(self.wait())
                .and_then(|()| self.control.recv(&mut request));
            let request = received.ok().and_then(|length| request.get(..length));
            if let Some(cause) = request.and_then(|request| self.obey(request)) {
                return self.end(&cause);
            }
            if self.hung {
                continue;
            }
            let now = Instant::now();
            if self.ends_at.is_some_and(|end| end <= now) {
                return self.end(&ExitCause::Clean);
            }
            if self.next_tick.is_some_and(|next| next <= now) {
                self.tick();
                // After a freeze it goes on from here and does not catch up.
                self.next_tick = Some(now + TICK);
            }
        }
    }

    /// How long there is nothing to do; `None`: until a request comes.
    fn wait(&self) -> Option<Duration> {
        let next = self.next_tick.into_iter().chain(self.ends_at).min();
        next.filter(|_| !self.hung).map(|next| {
            // A zero timeout would mean none.
            next.saturating_duration_since(Instant::now())
                .max(Duration::from_micros(1))
        })
    }

    /// Does what a datagram asks for; a cause when it ends by that.
    fn obey(&mut self, request: &[u8]) -> Option<ExitCause> {
        match request {
            CRASH => std::process::abort(),
            NEED_MEMORY => {
                // Written, so that it is really there.
                std::hint::black_box(vec![1_u8; NEEDED_BYTES]);
            }
            _ if self.hung => {}
            RESUME if self.next_tick.is_none() => self.next_tick = Some(Instant::now()),
            SHUTDOWN if self.ends_at.is_none() => {
                self.ends_at = self.times.shutdown.map(|time| Instant::now() + time);
            }
            HANG => self.hung = self.next_tick.is_some(),
            PANIC if self.next_tick.is_some() => return Some(ExitCause::Panicked),
            _ => {}
        }
        None
    }

    fn end(&self, cause: &ExitCause) -> ExitCode {
        match self.record.write_marker(cause) {
            Ok(()) if *cause == ExitCause::Clean => ExitCode::SUCCESS,
            Ok(()) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("exit marker: {error}");
                ExitCode::FAILURE
            }
        }
    }

    fn tick(&mut self) {
        let result = self.count();
        if self.failing != result.is_err() {
            self.failing = result.is_err();
            eprintln!(
                "write: {}",
                result
                    .err()
                    .map_or_else(|| "works again".to_owned(), |e| e.to_string())
            );
        }
    }

    fn count(&mut self) -> io::Result<()> {
        let time = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
        let counter = Counter {
            counter: self.counter.counter + 1,
            boottime_ns: u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX),
            ..self.counter.clone()
        };
        let sector = self.page.bytes().get_mut(..SECTOR).unwrap_or_default();
        image::encode(&counter, sector);
        let at = image::sector_of(counter.counter) * SECTOR as u64;
        match self.image.write_all_at(sector, at) {
            // The device's sectors are larger than the record.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                fcntl(&self.image, FcntlArg::F_SETFL(OFlag::O_DSYNC))?;
                eprintln!(
                    "direct writes of a sector are refused; the guest's writes pass through the page cache"
                );
                self.image.write_all_at(sector, at)?;
            }
            other => other?,
        }
        self.counter = counter;
        Ok(())
    }
}

/// The time that an operating system would take; nothing is asked of it meanwhile.
fn wait_until(end: Instant) {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}

/// Locks the image as QEMU's `raw` driver does for an exclusive writer.
///
/// QEMU (`block/file-posix.c`) puts shared locks on byte 100 + n for each
/// permission it uses and on 200 + n for each that it does not share, then looks
/// whether somebody else's lock conflicts.
fn lock(image: &File) -> io::Result<()> {
    let range = |kind: i32, start| libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: start,
        l_len: 4,
        l_pid: 0,
    };
    let held = || {
        io::Error::new(
            io::ErrorKind::WouldBlock,
            "another process has the image locked",
        )
    };
    for start in [100, 200] {
        fcntl(image, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, start))).map_err(|errno| {
            match errno {
                nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES => held(),
                other => {
                    io::Error::other(format!("lock of descriptor {}: {other}", image.as_raw_fd()))
                }
            }
        })?;
    }
    for start in [100, 200] {
        let mut other = range(libc::F_WRLCK, start);
        fcntl(image, FcntlArg::F_OFD_GETLK(&mut other))?;
        if i32::from(other.l_type) != libc::F_UNLCK {
            return Err(held());
        }
    }
    Ok(())
}
