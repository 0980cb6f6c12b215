//! The guests a driver knows, and what their ends meant.
//!
//! A guest is gone when every thread of its process is; only then is its exit
//! decided: what its marker says, else killed if this driver did it, else out of
//! memory if its cgroup counted that, else crashed. Never holds the table's lock while it waits.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::launch::{self, Launched, Record};
use crate::process::{PidFd, all_threads_gone};
use crate::{DiskError, DriverError, Exit, ExitCause, Found, StartError};

/// How often a waiting call looks for what no descriptor announces.
pub(crate) const LOOK: Duration = Duration::from_millis(50);

/// What a driver keeps beside each guest.
pub(crate) trait Watch: Debug + Send {
    /// How often a guest has to be looked at while its process lives. Where nothing but its end is waited for,
    /// which its descriptor announces, never: each look costs, for each guest.
    const EVERY: Duration = Duration::MAX;

    /// Takes notice of what the guest reported; called often, must not block.
    fn look(&mut self, record: &Record, pidfd: Option<&PidFd>, gone: bool);

    /// Why the guest was paused, if that was for its disk.
    fn disk_error(&self) -> Option<DiskError> {
        None
    }
}

impl Watch for () {
    fn look(&mut self, _: &Record, _: Option<&PidFd>, _: bool) {}
}

#[derive(Debug)]
pub(crate) struct Guest<W> {
    pub(crate) record: Record,
    pidfd: Option<Arc<PidFd>>,
    child: Option<Child>,
    killed: bool,
    exit: Option<Exit>,
    /// Told when `exit` is decided.
    ended: Arc<Condvar>,
    watch: W,
}

impl<W: Watch> Guest<W> {
    /// Looks at the process; true when it is gone, with `exit` decided.
    fn look(&mut self) -> bool {
        if self.exit.is_some() {
            return true;
        }
        let gone = all_threads_gone(self.record.process.pid, self.record.process.start_time);
        self.watch.look(&self.record, self.pidfd.as_deref(), gone);
        if !gone {
            if self.pidfd.is_none() {
                self.pidfd = open(&self.record);
            }
            return false;
        }
        let status = self
            .child
            .as_mut()
            .and_then(|child| child.try_wait().ok().flatten());
        // Where the status is known it tells other ends of a process of which another one was killed so.
        let by_sigkill = status.is_none_or(|s| s.signal() == Some(Signal::SIGKILL as i32));
        let cause = match self.record.marker() {
            Some(marker) => marker.cause(),
            None if self.killed => ExitCause::Killed,
            None if by_sigkill && self.record.is_oom_killed() => {
                // The count goes with the cgroup; an agent that comes later shall know it too.
                if let Err(error) = self.record.write_marker(&ExitCause::OutOfMemory) {
                    let vm = &self.record.vm;
                    tracing::warn!(vm, %error, "could not write the exit marker");
                }
                ExitCause::OutOfMemory
            }
            None => {
                let status = status.map_or_else(
                    || "ended while no agent was its parent".to_owned(),
                    |s| s.to_string(),
                );
                let words = launch::last_words(&self.record);
                let detail = if words.is_empty() {
                    status
                } else {
                    format!("{status}: {words}")
                };
                ExitCause::Crashed { detail }
            }
        };
        self.record.remove_cgroups();
        self.exit = Some(Exit { cause });
        self.ended.notify_all();
        true
    }
}

type Shared<W> = Arc<Mutex<Guest<W>>>;

/// A handle of the process; none when it is gone, or when this process may have no more descriptors.
fn open(record: &Record) -> Option<Arc<PidFd>> {
    let process = &record.process;
    let pidfd = PidFd::open(process.pid, process.start_time).ok().flatten();
    pidfd.map(Arc::new)
}

/// All guests of one driver, by VM id.
#[derive(Debug)]
pub(crate) struct Table<W> {
    guests: Mutex<BTreeMap<String, Shared<W>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half done by a thread that panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<W: Watch> Table<W> {
    pub(crate) fn new() -> Self {
        Self {
            guests: Mutex::new(BTreeMap::new()),
        }
    }

    fn guest(&self, vm: &str) -> Option<Shared<W>> {
        lock(&self.guests).get(vm).cloned()
    }

    /// The record of a guest that is not gone.
    pub(crate) fn living(&self, vm: &str) -> Result<Record, DriverError> {
        let unknown = || DriverError::Unknown { vm: vm.to_owned() };
        let guest = self.guest(vm).ok_or_else(unknown)?;
        let mut guest = lock(&guest);
        if guest.look() {
            Err(unknown())
        } else {
            Ok(guest.record.clone())
        }
    }

    /// Notes that the guest is about to be let run.
    pub(crate) fn mark_resumed(&self, vm: &str) -> Result<(), DriverError> {
        self.living(vm)?
            .mark_resumed()
            .map_err(|source| DriverError::Channel {
                vm: vm.to_owned(),
                source,
            })
    }

    /// Makes room for a new guest of this name.
    pub(crate) fn clear(&self, vm: &str, run_dir: &Path, driver: &str) -> Result<(), StartError> {
        // Also one that an earlier agent left and nobody has adopted.
        let left = launch::records(driver, run_dir)
            .into_iter()
            .find(|record| record.vm == vm);
        if let Some(record) = left {
            let Record { process, .. } = &record;
            if !all_threads_gone(process.pid, process.start_time) {
                return Err(StartError::Exists { pid: process.pid });
            }
            record.remove_files();
        }
        if let Some(guest) = self.guest(vm) {
            let mut guest = lock(&guest);
            if !guest.look() {
                return Err(StartError::Exists {
                    pid: guest.record.process.pid,
                });
            }
            guest.record.remove_files();
        }
        lock(&self.guests).remove(vm);
        Ok(())
    }

    /// Takes in a guest just launched.
    pub(crate) fn add(&self, launched: Launched, watch: W) {
        self.insert(launched.record, Some(launched.child), watch);
    }

    fn insert(&self, record: Record, child: Option<Child>, watch: W) {
        let pidfd = open(&record);
        let vm = record.vm.clone();
        let guest = Guest {
            record,
            pidfd,
            child,
            killed: false,
            exit: None,
            ended: Arc::default(),
            watch,
        };
        lock(&self.guests).insert(vm, Arc::new(Mutex::new(guest)));
    }

    /// Adopts what is in the run directory; guests already known stay as they are.
    pub(crate) fn find(
        &self,
        driver: &str,
        run_dir: &Path,
        watch: impl Fn(&Record) -> W,
    ) -> Vec<Found> {
        let mut found = Vec::new();
        for record in launch::records(driver, run_dir) {
            let known = self
                .guest(&record.vm)
                .is_some_and(|guest| lock(&guest).record.process == record.process);
            if !known {
                let watch = watch(&record);
                self.insert(record.clone(), None, watch);
            }
            let exit = self.guest(&record.vm).and_then(|guest| {
                let mut guest = lock(&guest);
                guest.look();
                guest.exit.clone()
            });
            let resumed = record.is_resumed();
            let Record {
                vm,
                generation,
                process,
                ..
            } = record;
            found.push(Found {
                vm,
                generation,
                process,
                resumed,
                exit,
            });
        }
        found
    }

    pub(crate) fn kill(&self, vm: &str) -> Result<(), DriverError> {
        let guest = self
            .guest(vm)
            .ok_or_else(|| DriverError::Unknown { vm: vm.to_owned() })?;
        let mut guest = lock(&guest);
        if guest.look() {
            return Ok(());
        }
        match crate::freeze::kill(&guest.record.process) {
            Ok(()) => guest.killed = true,
            Err(crate::freeze::FreezeError::Gone { .. }) => {}
            Err(crate::freeze::FreezeError::Refused { source, .. }) => {
                return Err(DriverError::Channel {
                    vm: vm.to_owned(),
                    source,
                });
            }
        }
        Ok(())
    }

    pub(crate) fn is_gone(&self, vm: &str) -> bool {
        self.guest(vm).is_none_or(|guest| lock(&guest).look())
    }

    pub(crate) fn wait_exit(&self, vm: &str, timeout: Duration) -> Option<Exit> {
        self.wait_while(vm, timeout, |_| true)
    }

    /// Why a guest was paused, if that was for its disk, as far as was seen when it was last looked at.
    pub(crate) fn disk_error(&self, vm: &str) -> Option<DiskError> {
        let guest = self.guest(vm)?;
        let guest = lock(&guest);
        guest.watch.disk_error().filter(|_| guest.exit.is_none())
    }

    /// Waits for a guest's end for as long as its disk does as it did.
    pub(crate) fn wait_while(
        &self,
        vm: &str,
        timeout: Duration,
        same: impl Fn(Option<DiskError>) -> bool,
    ) -> Option<Exit> {
        let start = Instant::now();
        let guest = self.guest(vm)?;
        loop {
            let mut guest = lock(&guest);
            if guest.look() {
                return guest.exit.clone();
            }
            if !same(guest.watch.disk_error()) {
                return None;
            }
            let left = timeout
                .checked_sub(start.elapsed())
                .filter(|left| !left.is_zero())?;
            if let Some(pidfd) = guest.pidfd.clone() {
                drop(guest);
                pidfd.wait(left.min(W::EVERY));
            } else {
                let left = left.min(LOOK);
                // There was no descriptor to be had: its end is decided by whoever looks next.
                let ended = guest.ended.clone();
                let lives = |guest: &mut Guest<W>| guest.exit.is_none();
                drop(ended.wait_timeout_while(guest, left, lives));
            }
        }
    }

    pub(crate) fn forget(&self, vm: &str) {
        let Some(guest) = self.guest(vm) else { return };
        let mut guest = lock(&guest);
        if guest.look() {
            guest.record.remove_files();
            lock(&self.guests).remove(vm);
        }
    }

    /// Kills a guest that did not become ready, and says what to report.
    pub(crate) fn give_up(&self, vm: &str, waited: Duration) -> StartError {
        let words = self
            .guest(vm)
            .map(|guest| launch::last_words(&lock(&guest).record))
            .unwrap_or_default();
        let pid = self
            .guest(vm)
            .map_or(0, |guest| lock(&guest).record.process.pid);
        let _ = self.kill(vm);
        if self.wait_exit(vm, Duration::from_secs(2)).is_none() {
            return StartError::Stuck { pid, waited };
        }
        self.forget(vm);
        StartError::Failed {
            detail: format!("not ready after {waited:?}; killed; {words}"),
        }
    }

    /// The exit code of a child that is gone.
    pub(crate) fn exit_code(&self, vm: &str) -> Option<i32> {
        let guest = self.guest(vm)?;
        let mut guest = lock(&guest);
        guest.child.as_mut()?.try_wait().ok()??.code()
    }
}

/// Asks a process to end on its own terms.
pub(crate) fn terminate(pidfd: Option<&PidFd>, signal: Signal) {
    if let Some(pidfd) = pidfd {
        // It is gone, or the caller comes again.
        let _ = pidfd.signal(signal);
    }
}
