//! The driver whose guest is a small process of the same program.
//!
//! For demonstrations and tests on hosts without a hypervisor: the guest locks
//! and writes its image as QEMU does, but runs no machine. See `guest.rs` for
//! its side. Control is by datagrams, which a restarted agent can send as well.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::launch::{self, Record};
use crate::table::Table;
use crate::{
    DriverError, Exit, ExitCause, Found, Hypervisor, Process, StartError, VmSpec, guest, image,
    times,
};

pub(crate) const NAME: &str = "embedded";

/// Between two looks whether a guest that was started is ready: at first, and at the longest.
const LOOK_MIN: Duration = Duration::from_millis(2);
const LOOK_MAX: Duration = Duration::from_millis(50);

/// How the embedded driver starts its guests.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// The program whose arguments `guest ...` lead to [`crate::guest_main`]; `None`: the running one.
    pub program: Option<PathBuf>,
    /// How long a guest may take to open and lock its image; the time to start that lies on the image is added.
    pub start_timeout: Duration,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            program: None,
            start_timeout: Duration::from_secs(30),
        }
    }
}

/// The driver whose guest is a small process of the same program.
#[derive(Debug)]
pub struct EmbeddedDriver {
    options: EmbeddedOptions,
    guests: Table<()>,
    weaknesses: Mutex<Vec<String>>,
}

impl EmbeddedDriver {
    /// A driver that knows no guest yet.
    #[must_use]
    pub fn new(options: EmbeddedOptions) -> Self {
        let note =
            "embedded guests are processes that count, not virtual machines; for demonstrations"
                .to_owned();
        Self {
            options,
            guests: Table::new(),
            weaknesses: Mutex::new(vec![note]),
        }
    }

    /// Makes the guest abort, for tests.
    ///
    /// # Errors
    /// [`DriverError`], as of [`Hypervisor::request_shutdown`].
    pub fn crash(&self, vm: &str) -> Result<(), DriverError> {
        self.send(vm, guest::CRASH)
    }

    fn send(&self, vm: &str, request: &[u8]) -> Result<(), DriverError> {
        send(&self.guests.living(vm)?, request)
    }

    fn note(&self, weakness: String) {
        let mut weaknesses = self
            .weaknesses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !weaknesses.contains(&weakness) {
            tracing::warn!(driver = NAME, "{weakness}");
            weaknesses.push(weakness);
        }
    }
}

/// Sends a request to a guest; does not wait.
pub(crate) fn send(record: &Record, request: &[u8]) -> Result<(), DriverError> {
    let channel = |source| DriverError::Channel {
        vm: record.vm.clone(),
        source,
    };
    let socket = UnixDatagram::unbound().map_err(channel)?;
    socket.set_nonblocking(true).map_err(channel)?;
    match short_path(record, ".ctl", |path| socket.send_to(request, path)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(DriverError::Unresponsive {
            vm: record.vm.clone(),
            waited: Duration::ZERO,
        }),
        Err(source) => Err(channel(source)),
    }
}

/// Uses a socket of the run directory by a path that is short enough, however long that of the directory is.
pub(crate) fn short_path<T>(
    record: &Record,
    suffix: &str,
    action: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let dir = std::fs::File::open(&record.run_dir)?;
    action(Path::new(&format!(
        "/proc/self/fd/{}/{}{suffix}",
        dir.as_raw_fd(),
        record.vm
    )))
}

impl Hypervisor for EmbeddedDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn weaknesses(&self) -> Vec<String> {
        self.weaknesses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn prepare(&self, spec: &VmSpec) -> Result<Process, StartError> {
        let spec = launch::check(spec)?;
        if let Some(option) = spec.options.keys().next() {
            return Err(StartError::Invalid {
                what: "an option",
                value: option.clone(),
                expected: "embedded has none",
            });
        }
        self.guests.clear(&spec.vm, &spec.run_dir, NAME)?;
        // The guest says itself what is wrong with an image that cannot be read.
        let times = times::read_guest_times(&spec.image).ok().flatten();
        let patience = self.options.start_timeout + times.unwrap_or_default().start;
        // The link stays good when the program is replaced while it runs.
        let program = self
            .options
            .program
            .clone()
            .unwrap_or_else(|| "/proc/self/exe".into());
        let mut command = Command::new(program);
        command
            .arg0("mainstay")
            .arg("guest")
            .arg("--image")
            .arg(&spec.image)
            .arg("--vm")
            .arg(&spec.vm);
        command.arg("--generation").arg(spec.generation.to_string());
        let launched = launch::launch(NAME, &spec, command)?;
        for weakness in &launched.weaknesses {
            self.note(weakness.clone());
        }
        let record = launched.record.clone();
        self.guests.add(launched, ());
        let start = Instant::now();
        loop {
            // The longer it takes, the less a look more or less matters; a hundred guests start side by side.
            let pause = (start.elapsed() / 4).clamp(LOOK_MIN, LOOK_MAX);
            if let Some(exit) = self.guests.wait_exit(&spec.vm, pause) {
                let oom = exit.cause == ExitCause::OutOfMemory;
                let code = self.guests.exit_code(&spec.vm);
                let detail = launch::last_words(&record);
                self.guests.forget(&spec.vm);
                return Err(match code {
                    Some(guest::EXIT_LOCKED) => StartError::ImageLocked { image: spec.image },
                    Some(guest::EXIT_MISSING) => StartError::ImageMissing { image: spec.image },
                    _ if oom => StartError::NotEnoughMemory {
                        needed_mb: spec.memory_mb,
                    },
                    _ => StartError::Failed { detail },
                });
            }
            // The guest makes its socket only when it has the lock and is ready.
            let socket = UnixDatagram::unbound().map_err(|source| StartError::Host {
                action: "make a socket".to_owned(),
                source,
            })?;
            if short_path(&record, ".ctl", |path| socket.connect(path)).is_ok() {
                break;
            }
            if start.elapsed() > patience {
                return Err(self.guests.give_up(&spec.vm, start.elapsed()));
            }
        }
        if !image::is_direct(&spec.image) {
            self.note(image::no_direct(&spec.image));
        }
        Ok(record.process)
    }

    fn resume(&self, vm: &str) -> Result<(), DriverError> {
        self.guests.mark_resumed(vm)?;
        self.send(vm, guest::RESUME)
    }

    fn request_shutdown(&self, vm: &str) -> Result<(), DriverError> {
        self.send(vm, guest::SHUTDOWN)
    }

    fn kill(&self, vm: &str) -> Result<(), DriverError> {
        self.guests.kill(vm)
    }

    fn is_gone(&self, vm: &str) -> bool {
        self.guests.is_gone(vm)
    }

    fn wait_exit(&self, vm: &str, timeout: Duration) -> Option<Exit> {
        self.guests.wait_exit(vm, timeout)
    }

    fn find(&self, run_dir: &Path) -> Vec<Found> {
        self.guests.find(NAME, run_dir, |_| ())
    }

    fn forget(&self, vm: &str) {
        self.guests.forget(vm);
    }
}

/// The arguments of a guest, for [`crate::guest_main`].
#[derive(Debug, Default)]
pub(crate) struct GuestArguments {
    pub(crate) image: PathBuf,
    pub(crate) vm: String,
    pub(crate) generation: u64,
}

impl GuestArguments {
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(name) = arguments.next() {
            let value = arguments
                .next()
                .ok_or_else(|| format!("{} needs a value", name.display()))?;
            let text = value.to_string_lossy();
            match name.to_str() {
                Some("--image") => parsed.image = value.into(),
                Some("--vm") => parsed.vm = text.into_owned(),
                Some("--generation") => {
                    parsed.generation = text
                        .parse()
                        .map_err(|_| format!("{text} is no generation"))?;
                }
                _ => return Err(format!("unknown argument {}", name.display())),
            }
        }
        if parsed.image.as_os_str().is_empty() || parsed.vm.is_empty() {
            return Err("--image and --vm are needed".to_owned());
        }
        Ok(parsed)
    }
}
