//! The driver of QEMU's system emulator.
//!
//! Decides QEMU's command line and what its end meant. A guest that powers
//! itself off, or panics and tells the panic device, leaves a paused process
//! (`-action shutdown=pause,panic=pause`), which the driver notices, records and
//! ends; so either is known for what it is even if it happened while no agent ran.
//!
//! Never sends a command that waits for the guest's disks (`stop`,
//! `query-block`), never waits on a socket without a limit, never opens more
//! than one connection to a socket, since QEMU serves one and lets others hang.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use qapi::qmp;

use crate::launch::{self, Record};
use crate::table::Table;
use crate::{
    DiskError, DriverError, Exit, ExitCause, Found, Hypervisor, Process, StartError, VmSpec, image,
};

pub(crate) mod monitor;
mod probe;

pub use probe::Acceleration;

pub(crate) const NAME: &str = "qemu";

/// Measured: query-status and cont answer in about 1 ms; a loaded host is slower (2026-11-20).
pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// How the QEMU driver starts its guests.
#[derive(Debug, Clone)]
pub struct QemuOptions {
    /// The program.
    pub program: PathBuf,
    /// Which accelerator; `None`: KVM when a throw-away machine runs with it, else TCG.
    pub acceleration: Option<Acceleration>,
    /// How long QEMU may take to open and lock its image and to answer.
    pub start_timeout: Duration,
    /// TCG's translation cache, MiB; the larger part of a small guest's memory.
    pub tcg_cache_mb: u32,
}

impl Default for QemuOptions {
    fn default() -> Self {
        Self {
            program: "qemu-system-x86_64".into(),
            acceleration: None,
            start_timeout: Duration::from_secs(30),
            tcg_cache_mb: 16,
        }
    }
}

/// The driver of QEMU's system emulator.
#[derive(Debug)]
pub struct QemuDriver {
    options: QemuOptions,
    guests: Table<monitor::Events>,
    weaknesses: Mutex<Vec<String>>,
}

impl QemuDriver {
    /// A driver that knows no guest yet; probes nothing.
    #[must_use]
    pub fn new(options: QemuOptions) -> Self {
        Self {
            options,
            guests: Table::new(),
            weaknesses: Mutex::new(Vec::new()),
        }
    }

    /// The accelerator that guests get here; the first call in a process probes (seconds).
    ///
    /// # Errors
    /// [`StartError::Missing`] and [`StartError::TooOld`].
    pub fn acceleration(&self) -> Result<Acceleration, StartError> {
        probe::version(&self.options.program)?;
        if let Some(acceleration) = self.options.acceleration {
            return Ok(acceleration);
        }
        Ok(match probe::kvm(&self.options.program) {
            Ok(()) => Acceleration::Kvm,
            Err(_) => Acceleration::Tcg,
        })
    }

    fn command(
        &self,
        spec: &VmSpec,
        acceleration: Acceleration,
        direct: bool,
    ) -> Result<Command, StartError> {
        let expected = "the options of qemu are machine, cpu and smp";
        for (name, value) in &spec.options {
            let known = matches!(name.as_str(), "machine" | "cpu" | "smp");
            // The others would be options of QEMU's that this driver relies on.
            let plain = value
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c));
            if !known || value.is_empty() || !plain {
                return Err(StartError::Invalid {
                    what: "an option",
                    value: format!("{name}={value}"),
                    expected,
                });
            }
        }
        let option = |name: &str, default: &'static str| {
            spec.options.get(name).map_or(default, String::as_str)
        };
        let Some(image) = spec.image.to_str() else {
            let value = spec.image.display().to_string();
            return Err(StartError::Invalid {
                what: "the image's path",
                value,
                expected: "UTF-8",
            });
        };
        let vm = &spec.vm;
        let (accelerator, cpu) = match acceleration {
            Acceleration::Kvm => ("kvm".to_owned(), "host"),
            Acceleration::Tcg => (format!("tcg,tb-size={}", self.options.tcg_cache_mb), "max"),
        };
        let cache = if direct { "none" } else { "writethrough" };
        let drive = format!(
            "file={},format=raw,if=none,id=disk0,cache={cache},aio=threads,file.locking=on",
            image.replace(',', ",,")
        );
        let mut command = Command::new(&self.options.program);
        command.arg0("mainstay-qemu").args([
            "-name",
            vm,
            "-no-user-config",
            "-nodefaults",
            "-display",
            "none",
            "-S",
        ]);
        command.args([
            "-machine",
            option("machine", "q35"),
            "-accel",
            &accelerator,
            "-cpu",
            option("cpu", cpu),
        ]);
        command.args([
            "-smp",
            option("smp", "1"),
            "-m",
            &spec.memory_mb.to_string(),
        ]);
        command.args(["-action", "shutdown=pause,panic=pause", "-drive", &drive]);
        command.args([
            "-device",
            "virtio-blk-pci,drive=disk0,werror=stop,rerror=stop,bootindex=0",
        ]);
        // By which a guest says that it panics.
        command.args(["-device", "pvpanic"]);
        command.args(["-serial", &format!("file:{vm}.serial")]);
        for suffix in [monitor::CONTROL, monitor::EVENTS] {
            command.args(["-qmp", &format!("unix:{vm}{suffix},server=on,wait=off")]);
        }
        Ok(command)
    }

    fn execute<C: qapi::Command>(&self, vm: &str, command: &C) -> Result<C::Ok, DriverError> {
        let record = self.guests.living(vm)?;
        monitor::execute(&record, command, COMMAND_TIMEOUT)
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

/// What QEMU's last words say about a start that failed.
fn failure(words: String, spec: &VmSpec) -> StartError {
    // QEMU 6.0 to 10; the third when the other holder's lock is an exclusive one.
    const LOCKED: [&str; 3] = [
        "Failed to get \"",
        "Is another process using",
        "Failed to lock byte",
    ];
    if LOCKED.iter().any(|text| words.contains(text)) {
        return StartError::ImageLocked {
            image: spec.image.clone(),
        };
    }
    if words.contains("cannot set up guest memory") || words.contains("Cannot allocate memory") {
        return StartError::NotEnoughMemory {
            needed_mb: spec.memory_mb,
        };
    }
    StartError::Failed { detail: words }
}

impl Hypervisor for QemuDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn weaknesses(&self) -> Vec<String> {
        let mut weaknesses = self
            .weaknesses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match probe::version(&self.options.program) {
            Err(error) => weaknesses.push(error.to_string()),
            Ok(()) if self.options.acceleration.is_none() => {
                if let Err(reason) = probe::kvm(&self.options.program) {
                    weaknesses.push(format!(
                        "KVM does not work: {reason}; using TCG, which is many times slower"
                    ));
                }
            }
            Ok(()) => {}
        }
        weaknesses
    }

    fn prepare(&self, spec: &VmSpec) -> Result<Process, StartError> {
        let spec = launch::check(spec)?;
        self.guests.clear(&spec.vm, &spec.run_dir, NAME)?;
        let acceleration = self.acceleration()?;
        let direct = image::is_direct(&spec.image);
        if !direct {
            self.note(image::no_direct(&spec.image));
        }
        let launched = launch::launch(NAME, &spec, self.command(&spec, acceleration, direct)?)?;
        for weakness in &launched.weaknesses {
            self.note(weakness.clone());
        }
        let record = launched.record.clone();
        self.guests.add(launched, monitor::Events::default());
        let start = Instant::now();
        loop {
            if let Some(exit) = self.guests.wait_exit(&spec.vm, Duration::from_millis(5)) {
                let words = launch::last_words(&record);
                self.guests.forget(&spec.vm);
                if exit.cause == ExitCause::OutOfMemory {
                    return Err(StartError::NotEnoughMemory {
                        needed_mb: spec.memory_mb,
                    });
                }
                return Err(failure(words, &spec));
            }
            let left = self.options.start_timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(self.guests.give_up(&spec.vm, start.elapsed()));
            }
            // It answers only when the machine is made, which opens and locks the image.
            if monitor::execute(&record, &qmp::query_status {}, left.min(COMMAND_TIMEOUT)).is_ok() {
                return Ok(record.process);
            }
        }
    }

    fn resume(&self, vm: &str) -> Result<(), DriverError> {
        self.guests.mark_resumed(vm)?;
        self.execute(vm, &qmp::cont {}).map(drop)
    }

    fn request_shutdown(&self, vm: &str) -> Result<(), DriverError> {
        self.execute(vm, &qmp::system_powerdown {}).map(drop)
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

    fn wait_exit_or_disk(
        &self,
        vm: &str,
        timeout: Duration,
        known: Option<DiskError>,
    ) -> Option<Exit> {
        self.guests.wait_while(vm, timeout, |now| now == known)
    }

    fn disk_error(&self, vm: &str) -> Option<DiskError> {
        self.guests.disk_error(vm)
    }

    fn find(&self, run_dir: &Path) -> Vec<Found> {
        self.guests
            .find(NAME, run_dir, |_: &Record| monitor::Events::default())
    }

    fn forget(&self, vm: &str) {
        self.guests.forget(vm);
    }
}
