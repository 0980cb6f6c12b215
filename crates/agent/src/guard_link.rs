//! The agent's side of the guard: registers, extends, thaws and removes VMs in the shared memory, sees
//! what the guard did, and starts a guard that died.

use crate::bell::{self, Bell, Ringer};
use crate::guard::{events_path, shm_path};
use crate::shm::{Shm, Weakness};
use crate::twin::{Backoff, Role};
use crate::{clock, logging, program, twin};
use mainstay_core::event::Event;
use mainstay_core::guard::{SlotState, Word, Words as _};
use mainstay_core::id::{Generation, VmId};
use mainstay_core::io::{Extension, FoundState, GuardOutcome, GuardRequest};
use mainstay_core::time::{Duration, Instant, millis};
use mainstay_hypervisor::{Found, Process, freeze};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A guard without a sign of life for this long is none: nothing is started under it.
const GUARD_BOUND: Duration = Duration::from_secs(1);
/// The agent freezes what the guard has not frozen this long after its deadline.
const SECOND_LINE: Duration = Duration::from_millis(100);
/// Longest wait for the guard's ring, and so between two looks at deadlines.
const LOOK: Duration = Duration::from_millis(100);
/// Between two looks at the guard itself: it is started again within a second of its end.
const GUARD_LOOK: Duration = Duration::from_millis(400);
/// How long a new guard may take to make its table.
const START_LIMIT: Duration = Duration::from_secs(10);

/// What the watching thread reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// A VM's right has lapsed; it is frozen.
    Lapsed(VmId, Generation),
    /// The guard wrote an event.
    Event(Event),
    /// What is wrong with the guard now.
    Issues(Vec<String>),
}

/// What is needed to start a guard.
#[derive(Clone, Debug)]
pub(crate) struct Starter {
    pub(crate) program: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) log_dir: PathBuf,
    pub(crate) boot: String,
}

/// The link to the guard.
#[derive(Debug)]
pub(crate) struct GuardLink {
    shm: Mutex<Arc<Shm>>,
    me: Process,
    /// The OOM killer may take the agent: the right is missing to prevent it.
    oom_killable: bool,
    starter: Starter,
    /// Rung after each change but an extension, so that the guard need not look all the time.
    guard: Ringer,
    /// VMs that this agent has registered, with their processes: they are frozen, and registered again
    /// as lapsed, when the table is lost.
    known: Mutex<BTreeMap<VmId, (Generation, Option<Process>)>>,
}

impl GuardLink {
    /// Attaches to the guard's table; starts a guard when there is none.
    pub(crate) fn attach(starter: Starter) -> io::Result<Self> {
        let me = twin::own_process()?;
        let begun = std::time::Instant::now();
        let mut backoff = Backoff::default();
        let shm = loop {
            let opened = Shm::open(&shm_path(&starter.run_dir), &starter.boot);
            match opened {
                Ok(shm) if is_guarded(&shm) && shm.is_current() => break shm,
                _ if begun.elapsed() > START_LIMIT => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the guard does not start; see guard.stderr in the log directory",
                    ));
                }
                _ => {}
            }
            if is_guard_gone(&starter.run_dir) && backoff.is_due() {
                program::start(
                    &starter.program,
                    Role::Guard,
                    &starter.config,
                    &starter.log_dir,
                )?;
            }
            crate::clock::pause(std::time::Duration::from_millis(10));
        };
        shm.enter_agent(&me);
        shm.keep_mark(&me);
        shm.count_renewals(&me);
        shm.beat_agent(clock::now());
        Ok(Self {
            shm: Mutex::new(Arc::new(shm)),
            me,
            oom_killable: !twin::protect_from_oom(),
            guard: Ringer::new(bell::of_guard(&starter.run_dir)),
            starter,
            known: Mutex::default(),
        })
    }

    pub(crate) fn shm(&self) -> Arc<Shm> {
        Arc::clone(&self.shm.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The guard's process, when it lives.
    pub(crate) fn guard_pid(&self) -> Option<u32> {
        let guard = self.shm().guard()?;
        (!freeze::all_threads_gone(guard.pid, guard.start_time)).then_some(guard.pid.unsigned_abs())
    }

    /// Performs a request of the core.
    pub(crate) fn perform(&self, now: Instant, request: &GuardRequest) -> GuardOutcome {
        let outcome = self.change(now, request);
        // The guard goes by the deadline that it knows, and finds a later one there.
        if !matches!(request, GuardRequest::Extend(_)) {
            self.guard.ring();
        }
        outcome
    }

    fn change(&self, now: Instant, request: &GuardRequest) -> GuardOutcome {
        let shm = self.shm();
        match request {
            GuardRequest::Register { vm, generation, .. } => {
                if !is_guarded(&shm) || !shm.is_current() {
                    return GuardOutcome::NoGuard;
                }
                let Some(word) = Word::FREE.after(now, request) else {
                    return GuardOutcome::Lapsed;
                };
                if let Some(slot) = shm.slot_of(vm) {
                    let gone = |p: Process| freeze::all_threads_gone(p.pid, p.start_time);
                    if !shm.process(slot).is_none_or(gone) {
                        tracing::error!(%vm, "a process of it is still registered with the guard");
                        return GuardOutcome::Lapsed;
                    }
                    shm.release(slot);
                }
                let taken = shm
                    .free_slot()
                    .is_some_and(|s| shm.occupy(s, vm, *generation, word));
                if !taken {
                    tracing::error!(%vm, "the guard's table is full");
                    return GuardOutcome::NoGuard;
                }
                self.known().insert(vm.clone(), (*generation, None));
                // A renewal was completed for it: else there were no right to register.
                shm.renewed();
                GuardOutcome::Done
            }
            GuardRequest::Extend(extensions) => {
                let extend = |e: &&Extension| {
                    let next = |word: Word| word.extended(clock::now(), e.generation, e.deadline);
                    change(&shm, &e.vm, next) != GuardOutcome::Done
                };
                let refused = extensions.iter().filter(extend).map(|e| e.vm.clone());
                let refused: Vec<VmId> = refused.collect();
                if refused.len() < extensions.len() {
                    shm.renewed();
                }
                if refused.is_empty() {
                    GuardOutcome::Done
                } else {
                    GuardOutcome::Refused(refused)
                }
            }
            GuardRequest::Thaw { vm, to, .. } => {
                if !is_guarded(&shm) || !shm.is_current() {
                    return GuardOutcome::NoGuard;
                }
                let outcome = change(&shm, vm, |word| word.after(clock::now(), request));
                if outcome == GuardOutcome::Done {
                    if let Some(slot) = shm.slot_of(vm) {
                        shm.set_generation(slot, *to);
                    }
                    if let Some(known) = self.known().get_mut(vm) {
                        known.0 = *to;
                    }
                    shm.renewed();
                }
                outcome
            }
            GuardRequest::Lapse { vm, .. } => {
                change(&shm, vm, |word| word.after(clock::now(), request))
            }
            GuardRequest::Remove { vm } => {
                if let Some(slot) = shm.slot_of(vm) {
                    shm.release(slot);
                }
                self.known().remove(vm);
                GuardOutcome::Done
            }
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<VmId, (Generation, Option<Process>)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when the VM is registered: only then may its process be made.
    pub(crate) fn is_registered(&self, vm: &VmId) -> bool {
        self.shm().slot_of(vm).is_some()
    }

    /// Names the process of a registered VM. One whose right has lapsed meanwhile is frozen at once.
    pub(crate) fn bind(&self, vm: &VmId, process: &Process) -> bool {
        let shm = self.shm();
        let Some(slot) = shm.slot_of(vm) else {
            return false;
        };
        shm.bind(slot, process);
        if let Some(known) = self.known().get_mut(vm) {
            known.1 = Some(process.clone());
        }
        if !may_run(&shm, slot) {
            let _ = freeze::freeze(process);
        }
        self.guard.ring();
        true
    }

    /// True while the right of a registered VM lasts: only then is it let run.
    pub(crate) fn may_resume(&self, vm: &VmId) -> bool {
        let shm = self.shm();
        shm.slot_of(vm).is_some_and(|slot| may_run(&shm, slot))
    }

    /// True when the guard killed the VM.
    pub(crate) fn was_killed(&self, vm: &VmId) -> bool {
        let shm = self.shm();
        shm.slot_of(vm).is_some_and(|s| shm.is_killed(s))
    }

    /// What the table says of a process that was found. One that is not registered is frozen first.
    pub(crate) fn adopt(&self, vm: &VmId, found: &Found) -> FoundState {
        let shm = self.shm();
        let process = &found.process;
        let Some(slot) = shm.slot_of(vm) else {
            stop(process);
            if !found.resumed {
                return FoundState::Prepared(Generation(found.generation));
            }
            // Generation 0 is what the core thaws an unregistered VM from.
            self.register_lapsed(&shm, vm, Generation(0), process);
            return FoundState::Unregistered;
        };
        shm.bind(slot, process);
        let generation = shm.generation(slot);
        self.known()
            .insert(vm.clone(), (generation, Some(process.clone())));
        let may_run = may_run(&shm, slot);
        if !may_run {
            lapse(&shm, slot);
            stop(process);
        }
        self.guard.ring();
        // What never ran an instruction is prepared, whatever became of its right: nothing is lost
        // with it, and a thaw alone would not make it run.
        match (found.resumed, may_run) {
            (false, _) => FoundState::Prepared(generation),
            (true, true) => FoundState::Running(generation),
            (true, false) => FoundState::Lapsed(generation),
        }
    }

    fn register_lapsed(&self, shm: &Shm, vm: &VmId, generation: Generation, process: &Process) {
        let word = Word::new(SlotState::Lapsed, generation, Instant::ZERO);
        if let Some(slot) = shm.free_slot()
            && shm.occupy(slot, vm, generation, word)
        {
            shm.bind(slot, process);
        } else {
            tracing::error!(%vm, "the guard's table is full: it stays frozen");
        }
        self.known()
            .insert(vm.clone(), (generation, Some(process.clone())));
        self.guard.ring();
    }

    /// Frees the slots of VMs that are not among `found`: their processes are gone.
    pub(crate) fn forget_others(&self, found: &[VmId]) {
        let shm = self.shm();
        for slot in 0..shm.len() {
            if shm.load(slot).state() != SlotState::Free
                && !shm.vm(slot).is_some_and(|vm| found.contains(&vm))
            {
                shm.release(slot);
            }
        }
    }

    /// Watches until the process ends; blocks, so it has a thread of its own.
    pub(crate) fn watch(&self, report: &impl Fn(Seen)) -> io::Result<()> {
        let bell = Bell::put(&bell::of_agent(&self.starter.run_dir))?;
        let mut reported: BTreeMap<VmId, Generation> = BTreeMap::new();
        let mut backoff = Backoff::default();
        let mut issues = Vec::new();
        let mut next_look = clock::now();
        loop {
            let rang = bell.wait(LOOK);
            let now = clock::now();
            let shm = self.shm();
            self.second_line(now, &shm);
            report_lapses(&shm, &mut reported, report);
            if !rang && now < next_look {
                continue;
            }
            next_look = now + GUARD_LOOK;
            self.tail_events(&shm, report);
            let current = self.look_at_guard(now, &shm, &mut backoff, report);
            if current != issues {
                issues.clone_from(&current);
                report(Seen::Issues(current));
            }
        }
    }

    /// Freezes what the guard should have frozen.
    fn second_line(&self, now: Instant, shm: &Shm) {
        for slot in 0..shm.len() {
            let word = shm.load(slot);
            if word.state() == SlotState::Running
                && now > word.deadline() + SECOND_LINE
                && lapse(shm, slot)
            {
                tracing::error!(vm = ?shm.vm(slot), "the guard is late; frozen by the agent");
                if let Some(process) = shm.process(slot) {
                    let _ = freeze::freeze(&process);
                }
            }
        }
    }

    fn tail_events(&self, shm: &Shm, report: &impl Fn(Seen)) {
        let (events, whole) = events_from(&events_path(&self.starter.run_dir), shm.events_read());
        events.into_iter().for_each(|e| report(Seen::Event(e)));
        if whole > 0 {
            shm.set_events_read(shm.events_read() + whole);
        }
    }

    fn look_at_guard(
        &self,
        now: Instant,
        shm: &Arc<Shm>,
        backoff: &mut Backoff,
        report: &impl Fn(Seen),
    ) -> Vec<String> {
        let mut issues = weaknesses(shm, &self.starter.run_dir);
        if self.oom_killable {
            issues.push("the agent may be taken by the OOM killer: allow CAP_SYS_RESOURCE".into());
        }
        if !shm.is_current() {
            self.reattach(report);
        }
        let gone = shm
            .guard()
            .is_none_or(|g| freeze::all_threads_gone(g.pid, g.start_time));
        if gone {
            issues.push(
                "the guard is gone: VMs are frozen by the agent alone; it is being started again"
                    .into(),
            );
            if !shm.is_planned_stop() && is_guard_gone(&self.starter.run_dir) && backoff.is_due() {
                tracing::warn!("the guard is gone; starting it again");
                let Starter {
                    program,
                    config,
                    log_dir,
                    ..
                } = &self.starter;
                if let Err(error) = program::start(program, Role::Guard, config, log_dir) {
                    issues.push(format!(
                        "the guard cannot be started ({error}); check the program's path"
                    ));
                }
            }
        } else if shm
            .guard()
            .is_some_and(|g| now.as_millis().saturating_sub(g.beat_ms) > millis(GUARD_BOUND))
        {
            issues.push(
                "the guard hangs: nothing is started; find out why (`guard.log`), then kill it"
                    .into(),
            );
        }
        issues
    }

    /// The guard made a new table: what it does not know any more is frozen and lapsed.
    fn reattach(&self, report: &impl Fn(Seen)) {
        let Ok(fresh) = Shm::open(&shm_path(&self.starter.run_dir), &self.starter.boot) else {
            return;
        };
        if fresh.table() == self.shm().table() {
            return;
        }
        tracing::error!(
            "the guard's memory was lost; all VMs are frozen until their locks are proven"
        );
        fresh.enter_agent(&self.me);
        fresh.keep_mark(&self.me);
        fresh.count_renewals(&self.me);
        fresh.beat_agent(clock::now());
        let known = self.known().clone();
        for (vm, (generation, process)) in known {
            if let Some(process) = process {
                stop(&process);
                self.register_lapsed(&fresh, &vm, generation, &process);
                report(Seen::Lapsed(vm, generation));
            }
        }
        *self.shm.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
    }
}

/// What the guard of that run directory has written lately. Its agent takes the same over as events of its own, but
/// not while it hangs.
#[must_use]
pub fn guard_events(run_dir: &Path) -> Vec<Event> {
    events_from(&events_path(run_dir), 0).0
}

/// The events in whole lines from that byte on, and how many bytes those are. A damaged line costs itself.
fn events_from(path: &Path, read: u64) -> (Vec<Event>, u64) {
    use std::io::{Read as _, Seek as _};
    let none = (Vec::new(), 0);
    let Ok(mut file) = std::fs::File::open(path) else {
        return none;
    };
    let length = file.metadata().map_or(0, |m| m.len());
    // A table that is newer than the file begins at its end.
    if length <= read || file.seek(io::SeekFrom::Start(read)).is_err() {
        return none;
    }
    let mut bytes = Vec::new();
    if file.take(length - read).read_to_end(&mut bytes).is_err() {
        return none;
    }
    whole_events(&bytes)
}

/// The events in whole lines, and how many bytes those are.
pub(crate) fn whole_events(bytes: &[u8]) -> (Vec<Event>, u64) {
    let whole = bytes
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |end| end + 1);
    let lines = bytes
        .get(..whole)
        .unwrap_or_default()
        .split(|b| *b == b'\n');
    let mut events = Vec::new();
    for line in lines.filter(|l| !l.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(event) => events.push(event),
            Err(error) => tracing::warn!(%error, "a damaged line of the guard"),
        }
    }
    (events, whole as u64)
}

fn is_guard_gone(run_dir: &Path) -> bool {
    twin::read_pid(&run_dir.join("guard.pid"))
        .is_none_or(|p| freeze::all_threads_gone(p.pid, p.start_time))
}

fn is_guarded(shm: &Shm) -> bool {
    let now = clock::now().as_millis();
    shm.guard()
        .is_some_and(|g| now.saturating_sub(g.beat_ms) < millis(GUARD_BOUND))
}

fn may_run(shm: &Shm, slot: usize) -> bool {
    let word = shm.load(slot);
    word.state() == SlotState::Running && clock::now() < word.deadline()
}

/// Marks a VM as lapsed; false when it changed meanwhile.
fn lapse(shm: &Shm, slot: usize) -> bool {
    let word = shm.load(slot);
    let lapsed = Word::new(SlotState::Lapsed, word.generation(), word.deadline());
    word.state() != SlotState::Free && shm.compare_exchange(slot, word, lapsed)
}

/// Freezes a process and waits, within bounds, until it is stopped.
fn stop(process: &Process) {
    for _ in 0..100 {
        if let Err(error) = freeze::freeze(process) {
            tracing::warn!(error = logging::chain(&error), "not frozen");
        }
        if freeze::is_stopped(process) {
            return;
        }
        crate::clock::pause(std::time::Duration::from_millis(10));
    }
    tracing::error!(pid = process.pid, "it does not stop (hung in storage?)");
}

fn change(shm: &Shm, vm: &VmId, next: impl Fn(Word) -> Option<Word>) -> GuardOutcome {
    let Some(slot) = shm.slot_of(vm) else {
        return GuardOutcome::Lapsed;
    };
    loop {
        let word = shm.load(slot);
        match next(word) {
            None => return GuardOutcome::Lapsed,
            Some(new) if shm.compare_exchange(slot, word, new) => return GuardOutcome::Done,
            // The guard changed it in between: look again.
            Some(_) => {}
        }
    }
}

fn report_lapses(shm: &Shm, reported: &mut BTreeMap<VmId, Generation>, report: &impl Fn(Seen)) {
    for slot in 0..shm.len() {
        let state = shm.load(slot).state();
        // In most rounds nothing has lapsed, and no name needs to be read.
        if state == SlotState::Free || (state == SlotState::Running && reported.is_empty()) {
            continue;
        }
        let Some(vm) = shm.vm(slot) else { continue };
        if state == SlotState::Running {
            reported.remove(&vm);
            continue;
        }
        let generation = shm.generation(slot);
        if reported.insert(vm.clone(), generation) != Some(generation) {
            report(Seen::Lapsed(vm, generation));
        }
    }
}

pub(crate) fn weaknesses(shm: &Shm, run_dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    if shm.has_weakness(Weakness::Swappable) {
        all.push(
            "the guard is not locked in memory: allow CAP_IPC_LOCK or raise its memlock limit"
                .into(),
        );
    }
    if shm.has_weakness(Weakness::OrdinaryPriority) {
        all.push(
            "the guard has no real-time priority and may be late under load: allow CAP_SYS_NICE"
                .into(),
        );
    }
    if shm.has_weakness(Weakness::OomKillable) {
        all.push("the guard may be taken by the OOM killer: allow CAP_SYS_RESOURCE".into());
    }
    if shm.has_weakness(Weakness::NoWatchdog) {
        all.push(
            "the guard cannot feed the watchdog that agent.toml names: see its log; load the driver, or end \
             whatever else feeds it"
                .into(),
        );
    }
    if shm.has_weakness(Weakness::HastyWatchdog) {
        all.push(
            "the watchdog resets this host while rights to run still last, because its time-out is too short and \
             cannot be changed (guard.log has the figures): load its driver with a longer one, as `modprobe softdog \
             soft_margin=60`, or choose a profile with a shorter `freeze`"
                .into(),
        );
    }
    if shm.has_weakness(Weakness::RunsOn) {
        all.push(
            "a VM whose right to run has ended does not stop although the guard tells it to, and may write to its \
             disk beside another host: guard.log names it; the watchdog is fed no more and resets this host; \
             where there is none, reset it by hand"
                .into(),
        );
    }
    let memory = nix::sys::statfs::statfs(run_dir)
        .is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC);
    if !memory {
        all.push(format!(
            "{} is not in memory, so that a slow disk can hold the guard up: put run_dir on a tmpfs such as /run",
            run_dir.display()
        ));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_core::event::EventKind;
    use mainstay_core::id::HostId;

    #[test]
    fn each_right_that_the_guard_was_refused_is_said_and_goes_when_it_is_there() {
        let dir = tempfile::tempdir().expect("directory");
        let shm = Shm::create(&shm_path(dir.path()), "boot", 1).expect("made");
        let before = weaknesses(&shm, dir.path());
        let all = [
            (Weakness::Swappable, "CAP_IPC_LOCK"),
            (Weakness::OrdinaryPriority, "CAP_SYS_NICE"),
            (Weakness::OomKillable, "CAP_SYS_RESOURCE"),
            (Weakness::NoWatchdog, "load the driver"),
            (Weakness::HastyWatchdog, "soft_margin"),
            (Weakness::RunsOn, "reset it by hand"),
        ];
        for (weakness, remedy) in all {
            shm.add_weakness(weakness);
            let said = weaknesses(&shm, dir.path());
            let new: Vec<_> = said.iter().filter(|s| !before.contains(s)).collect();
            assert!(
                matches!(new.as_slice(), [one] if one.contains(remedy)),
                "{weakness:?}: {new:?}"
            );
            shm.end_weakness(weakness);
            assert_eq!(weaknesses(&shm, dir.path()), before);
        }
    }

    #[test]
    fn a_damaged_line_of_the_guard_costs_no_other_one() {
        let event = |vm: &str| Event {
            at: Instant::from_nanos(1),
            kind: EventKind::VmFrozen {
                vm: VmId::new(vm).expect("id"),
                host: HostId::new("host-1").expect("id"),
                reason: "lapsed".to_owned(),
            },
            why: String::new(),
        };
        let line = |vm| serde_json::to_vec(&event(vm)).expect("encoded");
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("events");
        let whole = [line("vm-1"), vec![0xff, 0xfe], line("vm-2")].join(&b'\n');
        let torn = [whole.as_slice(), b"\n{\"at\""].concat();
        std::fs::write(&path, &torn).expect("written");
        let (events, read) = events_from(&path, 0);
        assert_eq!(events, [event("vm-1"), event("vm-2")]);
        assert_eq!(read, whole.len() as u64 + 1, "the torn line waits");
        assert_eq!(events_from(&path, read), (vec![], 0));
    }
}
