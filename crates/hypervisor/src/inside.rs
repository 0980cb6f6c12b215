//! What can go wrong inside a guest, made to happen from outside: for laboratories and tests.
//!
//! An embedded guest hears it on its control socket; the boot sector of a demo image (`guest/counter.S`) reads it
//! from its keyboard, on which QEMU types. Both do it as if it came from themselves, so that what an agent sees is
//! what it would see of an operating system.
//!
//! Finds guests by their records, as a restarted agent does. Never touches a guest that is frozen or has not
//! begun to run: that is the caller's to ask ([`LivingGuest::executes`]). Never holds QEMU's command socket
//! for longer than a request takes.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use qapi::qmp::{self, KeyValue, QKeyCode};

use crate::launch::{self, Record};
use crate::process::{self, PidFd, Process};
use crate::{DriverError, embedded, freeze, guest, qemu};

/// What QEMU is made to need: far more than [`SLACK_BYTES`].
const NEEDED_MB: u32 = 256;

/// What a guest keeps to grow by while its memory is limited; caches of the kernel's count too.
const SLACK_BYTES: u64 = 1 << 20;

/// How often a limit is tried anew, when the guest has grown past it in between.
const TRIES: u32 = 10;

/// Files of the memory controller, of v2 and of v1: what is used, the limit, no limit, what keeps it from swapping.
const CONTROLS: [[&str; 4]; 2] = [
    ["memory.current", "memory.max", "max", "memory.swap.max"],
    [
        "memory.usage_in_bytes",
        "memory.limit_in_bytes",
        "-1",
        "memory.swappiness",
    ],
];

/// How long a look at a process lasts.
const LOOK: Duration = Duration::from_millis(20);

/// A guest whose process lives, of whatever agent.
#[derive(Debug)]
pub struct LivingGuest {
    record: Record,
}

/// Finds the guest of a VM by a host's run directory; `None` when no process of it lives there.
#[must_use]
pub fn find(run_dir: &Path, vm: &str) -> Option<LivingGuest> {
    let drivers = [embedded::NAME, qemu::NAME];
    let records = drivers
        .iter()
        .flat_map(|name| launch::records(name, run_dir));
    let mut living = records
        .filter(|record| record.vm == vm)
        .filter(|record| !process::all_threads_gone(record.process.pid, record.process.start_time));
    living.next().map(|record| LivingGuest { record })
}

impl LivingGuest {
    /// Its process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.record.process
    }

    /// The cgroup with the memory controller that only this guest is in; `None` where none could be had.
    #[must_use]
    pub fn memory_cgroup(&self) -> Option<&Path> {
        self.record.memory.as_deref()
    }

    /// Whether it has begun to run and is not frozen.
    #[must_use]
    pub fn executes(&self) -> bool {
        self.record.is_resumed() && !freeze::is_stopped(&self.record.process)
    }

    /// Whether every thread of its process is gone, waited for up to `timeout`.
    #[must_use]
    pub fn is_gone_within(&self, timeout: Duration) -> bool {
        let Process {
            pid, start_time, ..
        } = self.record.process;
        let start = Instant::now();
        let pidfd = PidFd::open(pid, start_time).ok().flatten();
        loop {
            if process::all_threads_gone(pid, start_time) {
                return true;
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return false;
            }
            match &pidfd {
                Some(pidfd) => pidfd.wait(left.min(LOOK)),
                None => std::thread::yield_now(),
            }
        }
    }

    /// Hangs it: it executes and writes nothing and hears no request any more; the process lives.
    ///
    /// # Errors
    /// [`DriverError`]; the guest may then have been reached or not.
    pub fn hang(&self) -> Result<(), DriverError> {
        self.befall(guest::HANG, QKeyCode::h)
    }

    /// Makes its operating system panic, which ends it.
    ///
    /// # Errors
    /// As of [`LivingGuest::hang`].
    pub fn panic(&self) -> Result<(), DriverError> {
        self.befall(guest::PANIC, QKeyCode::p)
    }

    /// Makes it shut itself down, in the time that its image says ([`crate::GuestTimes`]).
    ///
    /// # Errors
    /// As of [`LivingGuest::hang`].
    pub fn shut_down(&self) -> Result<(), DriverError> {
        self.befall(guest::SHUTDOWN, QKeyCode::s)
    }

    /// Has the kernel kill it for want of memory: limits its cgroup to what it has, and makes its process need
    /// much more (64 MiB or more), a hung guest's too. Waits up to `timeout` until it is gone.
    ///
    /// # Errors
    /// `Unsupported` where it has no memory cgroup; `TimedOut` when it was not killed, without a limit then.
    pub fn oom_kill(&self, timeout: Duration) -> io::Result<()> {
        let dir = self.memory_cgroup().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::Unsupported,
                "this guest has no cgroup with the memory controller",
            )
        })?;
        let [usage, limit, unlimited, swap] = CONTROLS
            .into_iter()
            .find(|[usage, ..]| dir.join(usage).exists())
            .ok_or_else(|| io::Error::other(format!("{} has no usage", dir.display())))?;
        // Not there where the kernel counts no swap.
        let _ = fs::write(dir.join(swap), "0");
        let mut tries = 0;
        loop {
            let used: u64 = fs::read_to_string(dir.join(usage))?
                .trim()
                .parse()
                .map_err(io::Error::other)?;
            match fs::write(dir.join(limit), (used + SLACK_BYTES).to_string()) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < TRIES => {
                    tries += 1;
                }
                other => break other?,
            }
        }
        let asked = self.need_memory();
        if asked.is_ok() && self.is_gone_within(timeout) {
            return Ok(());
        }
        fs::write(dir.join(limit), unlimited)?;
        Err(asked.err().map_or_else(
            || io::Error::new(io::ErrorKind::TimedOut, "the guest was not killed"),
            io::Error::other,
        ))
    }

    /// Makes its process need memory. Where that can be had, it is given back; one that is killed for it cannot
    /// answer, which is no error.
    fn need_memory(&self) -> Result<(), DriverError> {
        if self.is_embedded() {
            return embedded::send(&self.record, guest::NEED_MEMORY);
        }
        let monitor = |command_line: String| qmp::human_monitor_command {
            cpu_index: None,
            command_line,
        };
        let add = format!("object_add memory-backend-ram,id=needed,size={NEEDED_MB}M,prealloc=on");
        match self.execute(&monitor(add)) {
            Ok(_) => self
                .execute(&monitor("object_del needed".to_owned()))
                .map(drop),
            // The connection ends with the process.
            Err(DriverError::Channel { .. }) if self.is_gone_within(qemu::COMMAND_TIMEOUT) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn is_embedded(&self) -> bool {
        self.record.driver == embedded::NAME
    }

    fn execute<C: qapi::Command>(&self, command: &C) -> Result<C::Ok, DriverError> {
        qemu::monitor::execute(&self.record, command, qemu::COMMAND_TIMEOUT)
    }

    fn befall(&self, request: &[u8], key: QKeyCode) -> Result<(), DriverError> {
        if self.is_embedded() {
            return embedded::send(&self.record, request);
        }
        let typed = qmp::send_key {
            hold_time: None,
            keys: vec![KeyValue::qcode(key.into())],
        };
        self.execute(&typed).map(drop)
    }
}
