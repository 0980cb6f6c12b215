//! What goes wrong inside the guests of a host, as if it came from inside them.
//!
//! The guest is found through the records in its host's run directory, as an agent finds it. Each of these
//! says whether there was a guest there that it could happen to: where the VM has no process on that
//! host, and where the guest is frozen or has not begun to run, nothing is done (a crash needs no guest that
//! executes). A frozen guest is not disturbed: nothing is sent to it that would act later.
//!
//! # Never here
//! A guest that is found by its name in the process table, a signal by number alone, and a limit on the memory of
//! a guest that outlives the call.

use crate::fail::{Context, Failure, Result};
use mainstay_hypervisor::inside::{self, LivingGuest};
use mainstay_hypervisor::{DriverError, freeze};
use std::path::Path;
use std::time::Duration;

/// How long a process may take to be gone, its memory given back.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Kills the process of a VM, so that its guest ends without a word. True: it was there.
///
/// # Errors
/// When the kernel refuses the signal.
pub fn crash(run_dir: &Path, vm: &str) -> Result<bool> {
    let Some(guest) = inside::find(run_dir, vm) else {
        return Ok(false);
    };
    match freeze::kill(guest.process()) {
        Ok(()) => Ok(true),
        Err(freeze::FreezeError::Gone { .. }) => Ok(false),
        Err(error) => Err(error).context(format_args!("crash {vm}")),
    }
}

/// Hangs the guest of a VM: no heartbeat, no I/O and no answer, while the process lives. True: it was asked.
///
/// # Errors
/// When the guest or its machine does not take the request.
pub fn hang(run_dir: &Path, vm: &str) -> Result<bool> {
    befall(run_dir, vm, "hang", LivingGuest::hang)
}

/// Makes the operating system of a VM panic. True: it was asked.
///
/// # Errors
/// When the guest or its machine does not take the request.
pub fn panic(run_dir: &Path, vm: &str) -> Result<bool> {
    befall(run_dir, vm, "panic", LivingGuest::panic)
}

/// Makes the guest of a VM shut itself down, in the time that its disk says. True: it was asked.
///
/// # Errors
/// When the guest or its machine does not take the request.
pub fn shutdown(run_dir: &Path, vm: &str) -> Result<bool> {
    befall(run_dir, vm, "shut down", LivingGuest::shut_down)
}

/// Has the kernel's OOM killer kill the process of a VM: its cgroup is limited to what it has, and it is made
/// to need more. True: it was killed, and is gone.
///
/// # Errors
/// Where guests have no cgroup with the memory controller, or when it was not killed within 10 s.
pub fn oom_kill(run_dir: &Path, vm: &str) -> Result<bool> {
    let Some(guest) = inside::find(run_dir, vm).filter(LivingGuest::executes) else {
        return Ok(false);
    };
    guest.oom_kill(GONE_WITHIN).map(|()| true).map_err(|error| {
        let failure = Failure::new(format_args!("the kernel did not kill {vm}: {error}"))
            .at(run_dir.display());
        match error.kind() {
            std::io::ErrorKind::Unsupported => failure.remedy(
                "run it as root where the memory controller can be used: `mainstay status` says why not",
            ),
            _ => failure,
        }
    })
}

fn befall(
    run_dir: &Path,
    vm: &str,
    what: &str,
    how: impl Fn(&LivingGuest) -> std::result::Result<(), DriverError>,
) -> Result<bool> {
    let Some(guest) = inside::find(run_dir, vm).filter(LivingGuest::executes) else {
        return Ok(false);
    };
    match how(&guest) {
        Ok(()) => Ok(true),
        // It ended in between.
        Err(_) if guest.is_gone_within(Duration::ZERO) => Ok(false),
        Err(error) => Err(error).context(format_args!("{what} {vm}")),
    }
}
