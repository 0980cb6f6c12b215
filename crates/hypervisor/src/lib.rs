//! Starts, freezes, kills and re-adopts the processes that virtual machines are.
//!
//! Decides nothing about *whether* a guest may run; that is the core's. It
//! decides how a request becomes a process and what that process's end meant.
//!
//! ```text
//!            prepare             resume
//!  (nothing) -------> prepared ---------> running --+--> clean | crashed | killed |
//!                        |                   ^ |    |    panicked | out of memory
//!                        |     freeze / thaw | v    |      reported only once every
//!                        +---------------- frozen --+      thread of it is gone
//! ```
//!
//! Freezing is another process's job (the guard's); see [`freeze`]. The two
//! drivers, [`EmbeddedDriver`] and [`QemuDriver`], pass one contract suite.
//!
//! What this crate never does: it never runs a guest instruction before
//! [`Hypervisor::resume`]; never lets a guest die because its agent did; never
//! signals a process by number alone; never reports a guest as gone while one
//! of its threads lives; never waits on a guest without a limit.
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        reason = "a test may fail"
    )
)]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod cgroup;
#[doc(hidden)]
pub mod decoders;
mod embedded;
pub mod freeze;
mod guest;
mod image;
pub mod inside;
mod launch;
pub mod launcher;
mod look;
mod memory;
mod oom;
mod process;
mod qemu;
mod table;
mod times;

pub use embedded::{EmbeddedDriver, EmbeddedOptions};
pub use guest::guest_main;
pub use image::{Counter, ImageKind, make_image, read_counter};
pub use look::{Seen, look};
pub use memory::memory_cgroup_beside;
pub use oom::{PROTECTED, set_oom_score};
pub use process::Process;
pub use qemu::{Acceleration, QemuDriver, QemuOptions};
pub use times::{GuestTimes, read_guest_times, write_guest_times};

/// One kind of virtual machine monitor, driven by the agent.
///
/// Every call may block for as long as its documentation says and is meant for
/// a thread of its own per VM; calls about different VMs do not wait for each
/// other.
pub trait Hypervisor: Send + Sync + Debug {
    /// The name of this driver, as in a VM's configuration.
    fn name(&self) -> &'static str;

    /// What is weaker here than it should be, one sentence each, for `status`.
    ///
    /// The first call may probe (start a throw-away machine; seconds).
    fn weaknesses(&self) -> Vec<String>;

    /// Creates the process, with the image open and locked and no guest instruction executed.
    ///
    /// Blocks until the process is ready, at most the driver's start timeout.
    /// A guest of this name that has ended is forgotten first.
    ///
    /// # Errors
    /// [`StartError`]; after every variant but [`StartError::Stuck`] and
    /// [`StartError::Exists`] no process is left.
    fn prepare(&self, spec: &VmSpec) -> Result<Process, StartError>;

    /// Lets the guest execute; harmless on a guest that already does.
    ///
    /// A request to a frozen guest may be refused, or may take effect when it is thawed.
    ///
    /// # Errors
    /// [`DriverError`]; the request may then have reached the guest or not.
    fn resume(&self, vm: &str) -> Result<(), DriverError>;

    /// Asks the guest to shut itself down, as its power button does; does not wait.
    ///
    /// # Errors
    /// [`DriverError`]; the request may then have reached the guest or not.
    fn request_shutdown(&self, vm: &str) -> Result<(), DriverError>;

    /// Sends SIGKILL to the guest's process; does not wait. A guest that is gone is no error.
    ///
    /// SIGKILL is not death: only [`Hypervisor::is_gone`] tells that.
    ///
    /// # Errors
    /// [`DriverError`] when the signal was not sent.
    fn kill(&self, vm: &str) -> Result<(), DriverError>;

    /// Whether every thread of the guest's process is gone (a zombie is gone).
    ///
    /// Also true for a VM that this driver has no process of.
    fn is_gone(&self, vm: &str) -> bool;

    /// Waits until every thread is gone and says why; `None` after `timeout` or for an unknown VM.
    ///
    /// The answer can be had again until [`Hypervisor::forget`] or the next `prepare`.
    fn wait_exit(&self, vm: &str, timeout: Duration) -> Option<Exit>;

    /// As [`Hypervisor::wait_exit`], and `None` also as soon as [`Hypervisor::disk_error`] is not `known` any more.
    fn wait_exit_or_disk(
        &self,
        vm: &str,
        timeout: Duration,
        known: Option<DiskError>,
    ) -> Option<Exit> {
        let _ = known;
        self.wait_exit(vm, timeout)
    }

    /// Why the guest stands still, if its process paused it because an operation on its disk failed.
    ///
    /// It goes on after [`Hypervisor::resume`], with that operation tried again.
    fn disk_error(&self, vm: &str) -> Option<DiskError> {
        let _ = vm;
        None
    }

    /// Finds and adopts the processes of `run_dir` that an earlier agent left, also those gone since.
    ///
    /// The other calls work on them afterwards. Records of an earlier boot of this host are removed.
    fn find(&self, run_dir: &Path) -> Vec<Found>;

    /// Removes what is left of a guest that is gone: its record, sockets and cgroup.
    ///
    /// Does nothing while a thread of it lives. Its logs stay.
    fn forget(&self, vm: &str);
}

/// What to start.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// The VM's id: 1 to 64 of `A-Z a-z 0-9 . _ -`, beginning with a letter or digit.
    pub vm: String,
    /// The lock generation under which it runs; kept in the process's record.
    pub generation: u64,
    /// Its disk image, raw format.
    pub image: PathBuf,
    /// Guest memory, MiB.
    pub memory_mb: u32,
    /// Driver options. `qemu`: `machine` (q35), `cpu` (max, with KVM host), `smp` (1). `embedded`: none.
    pub options: BTreeMap<String, String>,
    /// This host's directory for process records, control sockets and logs; created when missing.
    pub run_dir: PathBuf,
    /// Where the guest's own cgroup goes.
    pub cgroup: CgroupPlacement,
    /// Its score for the kernel's OOM killer, -1000 to 1000; the higher, the sooner it is killed.
    pub oom_score_adj: i16,
}

/// Where a guest's own cgroup v2 directory goes; where the memory controller is cgroup v1's, one of that
/// hierarchy goes to the same place there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CgroupPlacement {
    /// Below `mainstay-<uid>` at the cgroup v2 mount.
    #[default]
    Auto,
    /// Below this directory of a cgroup v2 mount.
    Under(PathBuf),
    /// None: the guard uses signals.
    Off,
}

/// Why a guest's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The cause.
    pub cause: ExitCause,
}

/// The cause in [`Exit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitCause {
    /// The guest shut itself down.
    Clean,
    /// It ended otherwise, or in a way that nobody saw.
    Crashed {
        /// What is known, for a person to read.
        detail: String,
    },
    /// This driver killed it.
    Killed,
    /// The guest's operating system panicked.
    Panicked,
    /// The host's kernel killed it because memory had run out.
    OutOfMemory,
}

/// How an operation on a guest's disk failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskError {
    /// There is no such device any more, or it does not work (ENXIO, ENODEV, EIO, ESTALE).
    Gone,
    /// It took too long.
    TimedOut,
    /// There is no space.
    Full,
    /// Otherwise, or in a way that nobody saw.
    Other,
}

/// A guest that an earlier agent left, now adopted.
#[derive(Debug, Clone)]
pub struct Found {
    /// The VM's id.
    pub vm: String,
    /// The lock generation under which it was started.
    pub generation: u64,
    /// Its process.
    pub process: Process,
    /// False: it has certainly executed no guest instruction.
    pub resumed: bool,
    /// `None` while a thread of it lives.
    pub exit: Option<Exit>,
}

/// Why a guest was not prepared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Somebody else has the image open; to be tried again, without spending an attempt.
    #[error("another process has {} locked", image.display())]
    ImageLocked {
        /// The image.
        image: PathBuf,
    },
    /// There is no such image.
    #[error("there is no image {}", image.display())]
    ImageMissing {
        /// The image.
        image: PathBuf,
    },
    /// The host has not the memory for it.
    #[error("this host could not allocate {needed_mb} MiB of guest memory")]
    NotEnoughMemory {
        /// The memory asked for, MiB.
        needed_mb: u32,
    },
    /// The hypervisor is too old.
    #[error("{program} is version {found}, at least {needed} is needed; {remedy}")]
    TooOld {
        /// The program.
        program: String,
        /// Its version.
        found: String,
        /// The oldest version that will do.
        needed: String,
        /// What to do about it.
        remedy: String,
    },
    /// A program is not installed.
    #[error("{program} is not installed; {remedy}")]
    Missing {
        /// The program.
        program: String,
        /// What to do about it.
        remedy: String,
    },
    /// The specification is not valid; nothing was tried.
    #[error("{what} is not valid: {value:?} ({expected})")]
    Invalid {
        /// Which part of it.
        what: &'static str,
        /// What it was.
        value: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// A process of this VM is still there; nothing was tried.
    #[error("process {pid} of this VM still exists")]
    Exists {
        /// Its pid.
        pid: i32,
    },
    /// It was not ready in time and its process outlives SIGKILL; `is_gone` tells when it ended.
    #[error(
        "not ready after {waited:?}, and process {pid} outlives its kill (storage that hangs?)"
    )]
    Stuck {
        /// Its pid.
        pid: i32,
        /// How long it was given.
        waited: Duration,
    },
    /// It ended, or was killed for not being ready in time.
    #[error("did not start: {detail}")]
    Failed {
        /// What it said last.
        detail: String,
    },
    /// The host refused a file or a process.
    #[error("could not {action}")]
    Host {
        /// What was tried.
        action: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Why a request to a guest did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// This driver has no process of that VM, or it is gone.
    #[error("no process of {vm} is known")]
    Unknown {
        /// The VM's id.
        vm: String,
    },
    /// The guest's process did not answer in time (frozen, or hung); the request may still take effect.
    #[error("{vm} did not answer within {waited:?}")]
    Unresponsive {
        /// The VM's id.
        vm: String,
        /// How long it was given.
        waited: Duration,
    },
    /// The hypervisor refused.
    #[error("{vm} refused: {reason}")]
    Refused {
        /// The VM's id.
        vm: String,
        /// Its words.
        reason: String,
    },
    /// The control channel failed.
    #[error("no control channel to {vm}")]
    Channel {
        /// The VM's id.
        vm: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}
