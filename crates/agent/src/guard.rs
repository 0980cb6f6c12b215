//! The guard: a process of its own that freezes VMs whose right to run has ended, whatever the agent
//! does. The rules are the core's ([`mainstay_core::guard`]); this performs them.
//!
//! It is locked in memory, real-time scheduled and immune to the OOM killer where the system lets it,
//! does no storage and no network I/O, and waits for nothing but time and the agent's bell. It starts the agent again when
//! that died, unless it was stopped on purpose.
//!
//! ```text
//! each round (the next deadline, the agent's ring, or 200 ms):
//!   sign of life -> deadlines passed: mark, stop every thread, tell the agent -> check what was stopped
//!   -> the agent lives? -> wait
//! ```
//! Never here: thawing on its own, or giving up a VM because a call failed.

mod feeding;
mod notes;
pub(crate) mod reset;
mod stops;
#[cfg(test)]
mod tests;

use crate::bell::{self, Bell, Ringer};
use crate::config::{AgentFile, ClusterFile, FileError};
use crate::shm::{SLOTS, Shm, ShmError, Weakness};
use crate::twin::{Backoff, Role, Seat, TwinError};
use crate::watchdog::{Device as _, Kernel, Watchdog};
use crate::{clock, drivers, logging, program, twin};
use feeding::{Feeding, KEEPING_LIMIT, Standing};
use mainstay_core::event::{Event, EventKind, IssueCause};
use mainstay_core::guard::{Guard, GuardAction, SlotState, Words as _};
use mainstay_core::id::{Generation, HostId, VmId};
use mainstay_core::time::{Duration, Instant};
use mainstay_hypervisor::{Process, freeze};
use nix::libc;
use notes::{Keeper, Note, Writer};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use stops::Stops;

/// Longest wait: deadlines are known, and the agent rings when it changed anything else. Well within the second
/// after which the agent takes a guard without a sign of life for none.
const REST: Duration = Duration::from_millis(200);
/// Longest wait where the agent has no bell to ring.
const REST_WITHOUT_BELL: Duration = Duration::from_millis(15);
/// Between two looks at the agent.
const AGENT_LOOK: Duration = Duration::from_millis(400);
/// An agent that lives and gives no sign for this long hangs.
const AGENT_HANGS: Duration = Duration::from_secs(5);
/// A guard that is told to stop waits so long until what it has stopped stands still: a busy host needs milliseconds.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);
/// The guard's own priority under SCHED_FIFO: above ordinary work, below the kernel's threads.
const PRIORITY: i32 = 10;

/// Where the guard writes its events until the agent takes them over.
pub(crate) fn events_path(run_dir: &Path) -> PathBuf {
    run_dir.join("guard-events.jsonl")
}

/// The shared memory.
pub(crate) fn shm_path(run_dir: &Path) -> PathBuf {
    run_dir.join("guard.shm")
}

/// Why the guard ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] FileError),
    /// Another guard runs, or a file cannot be used.
    #[error(transparent)]
    Twin(#[from] TwinError),
    /// The shared memory.
    #[error(transparent)]
    Shm(#[from] ShmError),
    /// The shared memory was replaced.
    #[error(
        "the shared memory was removed or replaced while the guard ran; the agent starts another guard"
    )]
    Replaced,
    /// Something of the system is missing.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Runs the guard until it is told to stop.
///
/// # Errors
/// [`GuardError`].
pub fn run_guard(config: &Path) -> Result<(), GuardError> {
    let file = AgentFile::read(config)?;
    for dir in [&file.run_dir, &file.log_dir] {
        twin::private_dir(dir)?;
    }
    let seat = Seat::take(&file.run_dir, Role::Guard)?;
    twin::detach();
    let _log = logging::start(&file.log_dir, "guard");
    logging::abort_on_panic();
    let cluster = ClusterFile::read(&file.cluster).and_then(|c| c.cluster_config());
    let frozen_limit = match cluster {
        Ok(cluster) => cluster.settings.frozen_limit,
        Err(error) => {
            tracing::error!(
                error = logging::chain(&error),
                "no frozen_limit is enforced"
            );
            None
        }
    };
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(|source| {
            GuardError::System {
                action: "handle signals",
                source,
            }
        })?;
    }
    let me = twin::own_process().map_err(|source| GuardError::System {
        action: "read /proc",
        source,
    })?;
    let (shm, strays) = attach(&file)?;
    let shm = Arc::new(shm);
    let watchdog_files = file.watchdog.clone().map(|device| {
        read_boot(&file).map(|boot| reset::Files {
            state_dir: file.state_dir.clone(),
            boot,
            device,
        })
    });
    let writer = Writer {
        events: events_path(&file.run_dir),
        log_dir: file.log_dir.clone(),
        kernel_log: reset::KERNEL_LOG.into(),
        watchdog: watchdog_files.transpose()?,
        shm: Arc::clone(&shm),
    };
    let (events, kept) = writer.start().map_err(|source| GuardError::System {
        action: "start a thread",
        source,
    })?;
    shm.enter_guard(&me);
    harden(&shm);
    let feeding = open_watchdog(&file, &shm, events.clone(), kept);
    tracing::info!(pid = me.pid, "guard started");
    let program = file
        .program
        .clone()
        .or_else(|| Some(program::whole_program(&std::env::current_exe().ok()?)));
    let bell = Bell::put(&bell::of_guard(&file.run_dir))
        .inspect_err(|error| tracing::warn!(%error, "no bell for the agent: looking often"))
        .ok();
    let watch = Watch {
        host: file.host.clone(),
        shm,
        guard: Guard::new(frozen_limit),
        stops: Stops::default(),
        strays,
        going: BTreeMap::new(),
        events,
        bell,
        agent: Ringer::new(bell::of_agent(&file.run_dir)),
        program,
        config: std::path::absolute(config).unwrap_or_else(|_| config.into()),
        log_dir: file.log_dir.clone(),
        backoff: Backoff::default(),
        hung: false,
        feeding,
    };
    let result = watch.run(&stop);
    seat.leave();
    result
}

/// The host's watchdog, if one is named; the agent says when there is none.
fn open_watchdog(
    file: &AgentFile,
    shm: &Shm,
    notes: SyncSender<Note>,
    kept: Arc<AtomicU64>,
) -> Feeding {
    let keeper = Keeper::new(notes, kept);
    let Some(path) = &file.watchdog else {
        return Feeding::new(None, keeper, None);
    };
    match Kernel::open(path) {
        Ok(device) => {
            let has_reset = device.has_reset();
            Feeding::new(Some(Watchdog::new(Box::new(device))), keeper, has_reset)
        }
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "the watchdog is not fed");
            shm.add_weakness(Weakness::NoWatchdog);
            Feeding::new(None, keeper, None)
        }
    }
}

/// The table that is there, or a fresh one after everything that runs here was frozen; and what that was.
fn attach(file: &AgentFile) -> Result<(Shm, Vec<Process>), GuardError> {
    let path = shm_path(&file.run_dir);
    let boot = read_boot(file)?;
    let why = match Shm::open(&path, &boot) {
        Ok(shm) => return Ok((shm, Vec::new())),
        Err(why) => why,
    };
    tracing::warn!(
        why = logging::chain(&why),
        "no deadlines: freezing what runs here"
    );
    let mut strays = Vec::new();
    for driver in drivers::make(file).values() {
        for found in driver
            .find(&file.run_dir)
            .iter()
            .filter(|f| f.exit.is_none())
        {
            if let Err(error) = freeze::freeze(&found.process) {
                tracing::error!(vm = found.vm, error = logging::chain(&error), "not frozen");
            }
            strays.push(found.process.clone());
        }
    }
    let shm = Shm::create(&path, &boot, clock::now().as_nanos())?;
    // What the agent took over with the table before is not taken over again.
    shm.set_events_read(std::fs::metadata(events_path(&file.run_dir)).map_or(0, |m| m.len()));
    // An agent that runs is watched although its table is new.
    if let Some(agent) = twin::read_pid(&file.run_dir.join("agent.pid")) {
        shm.enter_agent(&agent);
        shm.beat_agent(clock::now());
    }
    Ok((shm, strays))
}

pub(crate) fn read_boot(file: &AgentFile) -> Result<String, FileError> {
    let default = Path::new("/proc/sys/kernel/random/boot_id");
    let path = file.boot_id_file.as_deref().unwrap_or(default);
    let text = std::fs::read_to_string(path).map_err(|source| FileError::Read {
        path: path.into(),
        source,
    })?;
    Ok(text.trim().to_owned())
}

/// Takes what protects the guard from the rest of the host; what is refused is a weakness.
fn harden(shm: &Shm) {
    use nix::sys::mman::{MlockAllFlags, mlockall};
    if let Err(error) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
        tracing::warn!(%error, "not locked in memory");
        shm.add_weakness(Weakness::Swappable);
    }
    let parameters = libc::sched_param {
        sched_priority: PRIORITY,
    };
    #[expect(unsafe_code, reason = "no library in use wraps sched_setscheduler")]
    // SAFETY: the call reads the parameters, which live until it returns.
    let refused = unsafe {
        libc::sched_setscheduler(
            0,
            libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK,
            &raw const parameters,
        )
    };
    if refused != 0 {
        tracing::warn!(error = %io::Error::last_os_error(), "not real-time scheduled");
        shm.add_weakness(Weakness::OrdinaryPriority);
    }
    if !twin::protect_from_oom() {
        shm.add_weakness(Weakness::OomKillable);
    }
}

/// What was let go on.
#[derive(Debug)]
struct Going {
    process: Process,
    generation: Generation,
    /// The slot's count of changes at which this was read: the process is looked at again when it differs.
    changes: u64,
}

struct Watch {
    host: HostId,
    shm: Arc<Shm>,
    guard: Guard,
    stops: Stops,
    /// What was found running when there was no table; it stays stopped until the agent has registered it.
    strays: Vec<Process>,
    /// Each slot that was let go on.
    going: BTreeMap<usize, Going>,
    events: SyncSender<Note>,
    /// The agent rings it; none: it could not be put up.
    bell: Option<Bell>,
    agent: Ringer,
    program: Option<PathBuf>,
    config: PathBuf,
    log_dir: PathBuf,
    backoff: Backoff,
    hung: bool,
    feeding: Feeding,
}

impl Watch {
    fn run(mut self, stop: &AtomicBool) -> Result<(), GuardError> {
        let mut next_look = clock::now();
        loop {
            let now = clock::now();
            self.shm.beat_guard(now);
            if let Some(limit) = self.shm.frozen_limit() {
                self.guard.set_frozen_limit(limit);
            }
            for action in self.guard.poll(now, self.shm.as_ref()) {
                self.perform(now, action);
            }
            self.check_slots(now);
            self.feed_watchdog(now);
            if now >= next_look {
                next_look = now + AGENT_LOOK;
                self.look_at_agent(now);
                if !self.shm.is_current() {
                    self.freeze_all("the shared memory was replaced");
                    return Err(GuardError::Replaced);
                }
            }
            if stop.load(Ordering::Relaxed) {
                self.stop();
                self.leave_watchdog();
                return Ok(());
            }
            let due = self.guard.next(self.shm.as_ref());
            let wait = |longest| due.map_or(longest, |at| at.since(clock::now()).min(longest));
            match &self.bell {
                Some(bell) => _ = bell.wait(wait(REST)),
                None => clock::pause(wait(REST_WITHOUT_BELL)),
            }
        }
    }

    fn feed_watchdog(&mut self, now: Instant) {
        let running_on = self.stops.running_on(now);
        if running_on.is_empty() == self.shm.has_weakness(Weakness::RunsOn) {
            self.note_running_on(&running_on);
        }
        if !self.feeding.has_watchdog() {
            return;
        }
        match self
            .shm
            .freeze()
            .and_then(|freeze| self.feeding.suits(freeze))
        {
            Some(true) => self.shm.end_weakness(Weakness::HastyWatchdog),
            Some(false) => self.shm.add_weakness(Weakness::HastyWatchdog),
            None => {}
        }
        let standing = Standing {
            running_on: self.names(&running_on),
            executes: self.executes(),
            renewals: self.shm.renewals(),
            planned_stop: self.shm.is_planned_stop(),
        };
        if let Err(error) = self.feeding.look(now, &standing) {
            tracing::error!(%error, "the watchdog is not fed any more");
            self.shm.add_weakness(Weakness::NoWatchdog);
        }
    }

    /// Whether something may execute here: a right lasts, or what lost its right was not yet seen to be stopped.
    fn executes(&self) -> bool {
        let right_lasts = |slot| self.shm.load(slot).state() == SlotState::Running;
        self.stops.any_runs() || (0..self.shm.len()).any(right_lasts)
    }

    /// The guard was told to stop, and has stopped what it had to.
    fn leave_watchdog(&mut self) {
        let begun = clock::now();
        while self.stops.any_runs() && clock::now().since(begun) < LEAVE_LIMIT {
            clock::pause(std::time::Duration::from_millis(5));
            self.check_slots(clock::now());
        }
        match self.feeding.end(self.executes()) {
            Ok(true) => {
                let begun = clock::now();
                while !self.feeding.is_kept() && clock::now().since(begun) < KEEPING_LIMIT {
                    clock::pause(std::time::Duration::from_millis(5));
                }
            }
            Ok(false) if self.feeding.has_watchdog() => {
                tracing::warn!(
                    "VMs run: the watchdog goes on, and resets this host if no guard comes"
                );
            }
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%error, "the watchdog was not let go; it resets this host");
            }
        }
    }

    fn names(&self, slots: &[usize]) -> Vec<String> {
        let stray = |slot: usize| self.strays.get(slot.checked_sub(SLOTS)?);
        let name = |slot: &usize| match stray(*slot) {
            Some(process) => format!("process {}, which no agent has registered", process.pid),
            None => self
                .shm
                .vm(*slot)
                .map_or_else(|| format!("the VM of slot {slot}"), |vm| vm.to_string()),
        };
        slots.iter().map(name).collect()
    }

    fn note_running_on(&self, slots: &[usize]) {
        if slots.is_empty() {
            tracing::warn!("what ran on without a right is stopped");
            self.shm.end_weakness(Weakness::RunsOn);
            return;
        }
        tracing::error!(
            vms = self.names(slots).join(", "),
            watchdog = self.feeding.has_watchdog(),
            "runs on although it may not and is told to stop; the watchdog is fed no more"
        );
        self.shm.add_weakness(Weakness::RunsOn);
        self.agent.ring();
    }

    fn perform(&mut self, now: Instant, action: GuardAction) {
        match action {
            GuardAction::Freeze(slot) => {
                self.freeze(now, slot);
                let generation = self.shm.generation(slot);
                let why = format!(
                    "its right to run under generation {generation} was not renewed in time"
                );
                self.report(now, slot, &why);
            }
            GuardAction::Unfreeze(slot) => {
                // `check_slots` lets it go on, in this same round.
                self.going.remove(&slot);
            }
            GuardAction::Kill(slot) => {
                self.shm.set_killed(slot);
                if let Some(process) = self.shm.process(slot)
                    && let Err(error) = freeze::kill(&process)
                {
                    tracing::warn!(slot, error = logging::chain(&error), "not killed");
                }
                tracing::warn!(slot, "killed: frozen for longer than frozen_limit");
                self.agent.ring();
            }
        }
    }

    fn freeze(&mut self, now: Instant, slot: usize) {
        let Some(process) = self.shm.process(slot) else {
            // It has no process yet; `check_slots` stops the one that comes.
            return;
        };
        self.stops.stop(now, slot, process);
    }

    /// What a slot says holds whatever happened since: its process may have been made, or made to go on,
    /// after the deadline; and it may have been registered as lapsed and thawed between two looks.
    fn check_slots(&mut self, now: Instant) {
        for slot in 0..self.shm.len() {
            match self.shm.load(slot).state() {
                // Most are, in each round: what is known of them is looked through below.
                SlotState::Free => {}
                SlotState::Running => {
                    self.stops.forget(slot);
                    self.check_going(slot);
                }
                SlotState::Lapsed => {
                    self.going.remove(&slot);
                    self.check_stopped(now, slot);
                }
            }
        }
        self.check_strays(now);
        let (shm, strays) = (&self.shm, self.strays.len());
        let in_use = |slot: usize| match slot.checked_sub(SLOTS) {
            None => shm.load(slot).state() != SlotState::Free,
            Some(stray) => stray < strays,
        };
        self.going.retain(|slot, _| in_use(*slot));
        self.stops.retain(in_use);
    }

    /// They are told to stop like what has a slot, behind the last of those.
    fn check_strays(&mut self, now: Instant) {
        if self.strays.is_empty() {
            return;
        }
        let same = |a: &Process, b: &Process| (a.pid, a.start_time) == (b.pid, b.start_time);
        let registered: Vec<Process> = (0..self.shm.len())
            .filter_map(|slot| self.shm.process(slot))
            .collect();
        self.strays.retain(|stray| {
            !registered.iter().any(|process| same(process, stray))
                && !freeze::all_threads_gone(stray.pid, stray.start_time)
        });
        for (n, stray) in self.strays.iter().enumerate() {
            self.stops.keep_stopped(now, SLOTS + n, stray.clone());
        }
    }

    fn check_going(&mut self, slot: usize) {
        // The count first: what changes after it is read is seen in the next round.
        let Some(changes) = self.shm.changes(slot) else {
            return;
        };
        let generation = self.shm.generation(slot);
        let known = self.going.get_mut(&slot);
        let known = known.filter(|known| known.generation == generation);
        if known.as_ref().is_some_and(|known| known.changes == changes) {
            return;
        }
        let Some(process) = self.shm.process(slot) else {
            return;
        };
        if let Some(known) = known.filter(|known| known.process == process) {
            known.changes = changes;
            return;
        }
        // Its deadline is looked at once more, as near to the thaw as can be.
        let word = self.shm.load(slot);
        if word.state() == SlotState::Running && clock::now() < word.deadline() {
            if let Err(error) = freeze::thaw(&process) {
                tracing::warn!(slot, error = logging::chain(&error), "not thawed");
            }
            let going = Going {
                process,
                generation,
                changes,
            };
            self.going.insert(slot, going);
        }
    }

    fn check_stopped(&mut self, now: Instant, slot: usize) {
        let Some(process) = self.shm.process(slot) else {
            return;
        };
        self.stops.keep_stopped(now, slot, process);
    }

    fn report(&self, now: Instant, slot: usize, why: &str) {
        let Some(vm) = self.shm.vm(slot) else { return };
        tracing::warn!(%vm, why, "frozen");
        self.emit(now, vm, why);
        self.agent.ring();
    }

    fn emit(&self, now: Instant, vm: VmId, why: &str) {
        let kind = EventKind::VmFrozen {
            vm,
            host: self.host.clone(),
            reason: "lapsed".to_owned(),
        };
        // The queue holds an event for every slot; a full one loses a report, not a freeze.
        let _ = self.events.try_send(Note::Event(Box::new(Event {
            at: now,
            kind,
            why: why.to_owned(),
        })));
    }

    fn look_at_agent(&mut self, now: Instant) {
        let Some(agent) = self.shm.agent() else {
            return;
        };
        if !freeze::all_threads_gone(agent.pid, agent.start_time) {
            let hung = now.as_millis().saturating_sub(agent.beat_ms)
                > mainstay_core::time::millis(AGENT_HANGS);
            if hung != self.hung {
                self.hung = hung;
                let text = if hung {
                    "the agent hangs; its VMs freeze when their rights end"
                } else {
                    "the agent goes on"
                };
                tracing::warn!(pid = agent.pid, "{text}");
                let kind = EventKind::ConfigIssue {
                    issue: text.to_owned(),
                    cause: IssueCause::AgentHangs,
                    host: self.host.clone(),
                };
                let why = "its sign of life in the guard's memory".to_owned();
                let _ = self
                    .events
                    .try_send(Note::Event(Box::new(Event { at: now, kind, why })));
            }
            return;
        }
        if self.shm.is_planned_stop() || !self.backoff.is_due() {
            return;
        }
        let Some(program) = &self.program else { return };
        tracing::warn!(pid = agent.pid, "the agent is gone; starting it again");
        if let Err(error) = program::start(program, Role::Agent, &self.config, &self.log_dir) {
            tracing::error!(%error, "the agent cannot be started");
        }
    }

    /// Told to stop: an agent that lives starts another guard, else nobody would watch the deadlines.
    fn stop(&mut self) {
        let agent = self
            .shm
            .agent()
            .is_some_and(|a| !freeze::all_threads_gone(a.pid, a.start_time));
        if agent && !self.shm.is_planned_stop() {
            tracing::info!("stopping; the agent starts another guard");
        } else {
            self.freeze_all("the guard was stopped and there is no agent that would start another");
        }
    }

    fn freeze_all(&mut self, why: &str) {
        let now = clock::now();
        for slot in 0..self.shm.len() {
            let word = self.shm.load(slot);
            if word.state() != SlotState::Running {
                continue;
            }
            let lapsed = mainstay_core::guard::Word::new(
                SlotState::Lapsed,
                word.generation(),
                word.deadline(),
            );
            self.shm.compare_exchange(slot, word, lapsed);
            self.freeze(now, slot);
            self.report(now, slot, why);
        }
    }
}
