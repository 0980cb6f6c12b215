//! The memory that an agent and its guard share: a file that both map, all of it atomic words.
//!
//! ```text
//! header: magic, version, table, boot (2), agent pid/start/beat, guard pid/start/beat, planned stop, ..., mark
//! slots:  deadline word | flags | generation | sequence | pid | start time | VM id | cgroup path
//! ```
//! The deadline word is read and changed only through [`mainstay_core::guard`]. The rest of a slot is
//! written by the agent alone, under a sequence number that is odd meanwhile.
//!
//! Never here: freezing, or a rule about deadlines.

use mainstay_core::guard::{SlotState, Word, Words};
use mainstay_core::id::{Generation, VmId};
use mainstay_core::time::{Duration, Instant};
use mainstay_hypervisor::Process;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// VMs that one host can run.
pub(crate) const SLOTS: usize = 1024;

const MAGIC: u64 = u64::from_le_bytes(*b"MSGUARD\x01");
const HEADER_WORDS: usize = 64;
const SLOT_WORDS: usize = 64;
const TOTAL_WORDS: usize = HEADER_WORDS + SLOTS * SLOT_WORDS;
const TOTAL_BYTES: usize = TOTAL_WORDS * 8;

/// Words of the header.
#[derive(Clone, Copy)]
enum Head {
    Magic,
    Size,
    Table,
    BootHigh,
    BootLow,
    AgentPid,
    AgentStart,
    AgentBeat,
    GuardPid,
    GuardStart,
    GuardBeat,
    PlannedStop,
    EventsRead,
    Weak,
    /// In milliseconds, plus one; zero: the agent has not said.
    FrozenLimit,
    /// No slot from this one on is in use, as long as the agent that said so is the one that is signed in.
    Mark,
    /// Which agent keeps the mark: see [`Shm::keep_mark`].
    MarkOf,
    /// Counts renewals of rights that were completed.
    Renewals,
    /// Which agent counts them: see [`Shm::count_renewals`].
    RenewalsOf,
    /// The right to run in milliseconds, plus one; zero: the agent has not said.
    Freeze,
}

/// Words of a slot.
#[derive(Clone, Copy)]
enum Field {
    Word = 0,
    Flags = 1,
    Generation = 2,
    Sequence = 3,
    Pid = 4,
    Start = 5,
    /// Length and up to 64 bytes.
    Vm = 6,
    /// Length and up to 320 bytes.
    Cgroup = 15,
}

const VM_BYTES: usize = 64;
const CGROUP_BYTES: usize = 320;

/// The guard killed it.
const KILLED: u64 = 1;

/// Why the shared memory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShmError {
    /// There is none.
    #[error("there is no shared memory at {}", .0.display())]
    Missing(PathBuf),
    /// It is damaged, of another version, or of an earlier boot.
    #[error("the shared memory at {} is {what}", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The system refuses it.
    #[error("cannot use {} as shared memory; check that run_dir is local and writable", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// One process as the other sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Twin {
    pub(crate) pid: i32,
    pub(crate) start_time: u64,
    /// Milliseconds of boot time of its last sign of life.
    pub(crate) beat_ms: u64,
}

/// A right that is too weak for the guard's promise; kept as bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Weakness {
    /// Pages may be swapped out.
    Swappable = 1,
    /// Ordinary scheduling.
    OrdinaryPriority = 2,
    /// The OOM killer may take it.
    OomKillable = 4,
    /// The watchdog that was named cannot be fed.
    NoWatchdog = 8,
    /// A process executes although its right has ended and it was told to stop.
    RunsOn = 16,
    /// The watchdog may reset this host while rights to run still last.
    HastyWatchdog = 32,
}

/// The mapped table.
#[derive(Debug)]
pub(crate) struct Shm {
    words: NonNull<AtomicU64>,
    path: PathBuf,
    inode: u64,
}

#[expect(unsafe_code, reason = "a mapping may be used from any thread")]
// SAFETY: the mapping is only used as atomics, which any thread may use at once.
unsafe impl Send for Shm {}
#[expect(unsafe_code, reason = "a mapping may be used from any thread")]
// SAFETY: as above.
unsafe impl Sync for Shm {}

impl Drop for Shm {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "ends the mapping that `map` made")]
        // SAFETY: the mapping has this address and length, and no reference to it outlives `self`.
        let _ = unsafe { munmap(self.words.cast(), TOTAL_BYTES) };
    }
}

/// This machine's boot as two words, from the kernel's random boot id.
fn boot_words(boot: &str) -> (u64, u64) {
    let digits: String = boot.chars().filter(char::is_ascii_hexdigit).collect();
    let half = |range| u64::from_str_radix(digits.get(range).unwrap_or_default(), 16).unwrap_or(0);
    (half(0..16), half(16..32))
}

impl Shm {
    /// Makes a fresh, empty table in place of whatever is there.
    pub(crate) fn create(path: &Path, boot: &str, table: u64) -> Result<Self, ShmError> {
        let io = |source| ShmError::Io {
            path: path.into(),
            source,
        };
        let beside = path.with_extension("new");
        let _ = std::fs::remove_file(&beside);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)
            .map_err(io)?;
        // Written, not only lengthened: a full file system must fail here and not at a later access.
        io::Write::write_all(&mut &file, &vec![0; TOTAL_BYTES]).map_err(io)?;
        let shm = Self::map(path, &file).map_err(io)?;
        let (high, low) = boot_words(boot);
        shm.set(Head::Size, TOTAL_BYTES as u64);
        shm.set(Head::Table, table);
        shm.set(Head::BootHigh, high);
        shm.set(Head::BootLow, low);
        shm.set(Head::Magic, MAGIC);
        std::fs::rename(&beside, path).map_err(io)?;
        Ok(shm)
    }

    /// Maps the table that is there.
    pub(crate) fn open(path: &Path, boot: &str) -> Result<Self, ShmError> {
        let unusable = |what| ShmError::Unusable {
            path: path.into(),
            what,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => ShmError::Missing(path.into()),
                _ => ShmError::Io {
                    path: path.into(),
                    source,
                },
            })?;
        let meta = file.metadata().map_err(|source| ShmError::Io {
            path: path.into(),
            source,
        })?;
        if meta.len() != TOTAL_BYTES as u64 {
            return Err(unusable("damaged (its length is wrong)"));
        }
        let shm = Self::map(path, &file).map_err(|source| ShmError::Io {
            path: path.into(),
            source,
        })?;
        if shm.get(Head::Magic) != MAGIC || shm.get(Head::Size) != TOTAL_BYTES as u64 {
            return Err(unusable("damaged or of another version"));
        }
        if (shm.get(Head::BootHigh), shm.get(Head::BootLow)) != boot_words(boot) {
            return Err(unusable("of an earlier boot"));
        }
        Ok(shm)
    }

    fn map(path: &Path, file: &File) -> io::Result<Self> {
        let inode = file.metadata()?.ino();
        let length = NonZeroUsize::new(TOTAL_BYTES).ok_or_else(|| io::Error::other("no length"))?;
        #[expect(
            unsafe_code,
            reason = "shared memory between two processes needs a mapping"
        )]
        // SAFETY: a new mapping of a file of this length, which its owners never shorten; it is used
        // only as atomic words.
        let address = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE,
                file,
                0,
            )
        }?;
        Ok(Self {
            words: address.cast(),
            path: path.into(),
            inode,
        })
    }

    fn words(&self) -> &[AtomicU64] {
        #[expect(unsafe_code, reason = "the mapping as the atomic words that it holds")]
        // SAFETY: the mapping is page-aligned, has TOTAL_WORDS words, lives as long as `self`, and is
        // never used but through these atomics.
        unsafe {
            std::slice::from_raw_parts(self.words.as_ptr(), TOTAL_WORDS)
        }
    }

    fn head(&self, word: Head) -> &AtomicU64 {
        // The header is never shorter than its enum; the first word stands in for the compiler.
        self.words().get(word as usize).unwrap_or(&FALLBACK)
    }

    fn field(&self, slot: usize, field: usize) -> &AtomicU64 {
        self.words()
            .get(HEADER_WORDS + slot * SLOT_WORDS + field)
            .unwrap_or(&FALLBACK)
    }

    fn get(&self, word: Head) -> u64 {
        self.head(word).load(Ordering::Acquire)
    }

    fn set(&self, word: Head, value: u64) {
        self.head(word).store(value, Ordering::Release);
    }

    /// True while the path still leads to this table.
    pub(crate) fn is_current(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|m| m.ino() == self.inode)
    }

    /// Tells this table from every other.
    pub(crate) fn table(&self) -> u64 {
        self.get(Head::Table)
    }

    /// Signs the agent in.
    pub(crate) fn enter_agent(&self, process: &Process) {
        self.set(Head::AgentPid, u64::from(process.pid.unsigned_abs()));
        self.set(Head::AgentStart, process.start_time);
        self.set(Head::PlannedStop, 0);
    }

    /// Says up to where slots are in use, for an agent that has signed in and raises the mark from now on.
    /// The name of the agent is what makes the mark good: one of an older version, which signs in and
    /// raises no mark, is not its keeper, and all slots are looked at.
    pub(crate) fn keep_mark(&self, agent: &Process) {
        let used = |slot: &usize| self.load(*slot).state() != SlotState::Free;
        let mark = (0..SLOTS).rev().find(used).map_or(0, |slot| slot + 1);
        self.set(Head::Mark, mark as u64);
        let keeper = mark_keeper(u64::from(agent.pid.unsigned_abs()), agent.start_time);
        self.set(Head::MarkOf, keeper);
        self.unmap_idle_pages();
    }

    /// Takes the table's pages out of this process, which has touched them all and needs few: each comes back at
    /// its next use, for the guard keeps them all in memory.
    fn unmap_idle_pages(&self) {
        #[expect(unsafe_code, reason = "advice on a mapping takes its address")]
        // SAFETY: the mapping is ours and TOTAL_BYTES long, and shared: its pages stay what they are.
        let done = unsafe { madvise(self.words.cast(), TOTAL_BYTES, MmapAdvise::MADV_DONTNEED) };
        if let Err(error) = done {
            // Where this process's memory is locked, it stays.
            tracing::debug!(%error, "the guard's table stays mapped");
        }
    }

    /// Says that this agent, which has signed in, counts the renewals that it completes from now on. One of an
    /// older version signs in and counts none: by its name that is told from renewals that fail.
    pub(crate) fn count_renewals(&self, agent: &Process) {
        let keeper = mark_keeper(u64::from(agent.pid.unsigned_abs()), agent.start_time);
        self.set(Head::RenewalsOf, keeper);
    }

    /// A renewal was completed, and the right of at least one VM made longer by it.
    pub(crate) fn renewed(&self) {
        self.head(Head::Renewals).fetch_add(1, Ordering::AcqRel);
    }

    /// How many renewals were completed; none: the agent is of an older version and counts none.
    pub(crate) fn renewals(&self) -> Option<u64> {
        let keeper = self.get(Head::RenewalsOf);
        let agent = mark_keeper(self.get(Head::AgentPid), self.get(Head::AgentStart));
        (keeper == agent && keeper != 0).then(|| self.get(Head::Renewals))
    }

    /// The `freeze` that is in force, for the guard, which reads no configuration while it runs.
    pub(crate) fn set_freeze(&self, freeze: Duration) {
        let ms = u64::try_from(freeze.as_millis()).unwrap_or(u64::MAX);
        self.set(Head::Freeze, ms.saturating_add(1));
    }

    /// What the agent last said; none: nothing yet.
    pub(crate) fn freeze(&self) -> Option<Duration> {
        let ms = self.get(Head::Freeze).checked_sub(1)?;
        Some(Duration::from_millis(ms))
    }

    /// Signs the guard in.
    pub(crate) fn enter_guard(&self, process: &Process) {
        self.set(Head::GuardPid, u64::from(process.pid.unsigned_abs()));
        self.set(Head::GuardStart, process.start_time);
        self.set(Head::Weak, 0);
    }

    pub(crate) fn beat_agent(&self, now: Instant) {
        self.set(Head::AgentBeat, now.as_millis());
    }

    pub(crate) fn beat_guard(&self, now: Instant) {
        self.set(Head::GuardBeat, now.as_millis());
    }

    fn twin(&self, pid: Head, start: Head, beat: Head) -> Option<Twin> {
        let pid = i32::try_from(self.get(pid)).ok().filter(|p| *p > 0)?;
        Some(Twin {
            pid,
            start_time: self.get(start),
            beat_ms: self.get(beat),
        })
    }

    pub(crate) fn agent(&self) -> Option<Twin> {
        self.twin(Head::AgentPid, Head::AgentStart, Head::AgentBeat)
    }

    pub(crate) fn guard(&self) -> Option<Twin> {
        self.twin(Head::GuardPid, Head::GuardStart, Head::GuardBeat)
    }

    /// The setting that is in force now, for the guard, which reads no configuration while it runs.
    pub(crate) fn set_frozen_limit(&self, limit: Option<Duration>) {
        let ms = limit.map_or(u64::MAX - 1, |l| {
            u64::try_from(l.as_millis())
                .unwrap_or(u64::MAX)
                .min(u64::MAX - 2)
        });
        self.set(Head::FrozenLimit, ms + 1);
    }

    /// What the agent last said; none: nothing yet.
    pub(crate) fn frozen_limit(&self) -> Option<Option<Duration>> {
        match self.get(Head::FrozenLimit).checked_sub(1)? {
            ms if ms == u64::MAX - 1 => Some(None),
            ms => Some(Some(Duration::from_millis(ms))),
        }
    }

    /// The agent stops because somebody asked it to: the guard does not start it again.
    pub(crate) fn set_planned_stop(&self) {
        self.set(Head::PlannedStop, 1);
    }

    pub(crate) fn is_planned_stop(&self) -> bool {
        self.get(Head::PlannedStop) != 0
    }

    /// How many bytes of the guard's events the agent has taken over.
    pub(crate) fn events_read(&self) -> u64 {
        self.get(Head::EventsRead)
    }

    pub(crate) fn set_events_read(&self, bytes: u64) {
        self.set(Head::EventsRead, bytes);
    }

    pub(crate) fn add_weakness(&self, weakness: Weakness) {
        self.head(Head::Weak)
            .fetch_or(weakness as u64, Ordering::AcqRel);
    }

    pub(crate) fn end_weakness(&self, weakness: Weakness) {
        self.head(Head::Weak)
            .fetch_and(!(weakness as u64), Ordering::AcqRel);
    }

    pub(crate) fn has_weakness(&self, weakness: Weakness) -> bool {
        self.get(Head::Weak) & weakness as u64 != 0
    }

    /// The slot of a VM.
    pub(crate) fn slot_of(&self, vm: &VmId) -> Option<usize> {
        (0..self.len())
            .find(|s| self.load(*s).state() != SlotState::Free && self.vm(*s).as_ref() == Some(vm))
    }

    /// A slot that nobody uses.
    pub(crate) fn free_slot(&self) -> Option<usize> {
        (0..SLOTS).find(|s| self.load(*s).state() == SlotState::Free)
    }

    /// Puts a VM without a process into a free slot, the word last.
    pub(crate) fn occupy(
        &self,
        slot: usize,
        vm: &VmId,
        generation: Generation,
        word: Word,
    ) -> bool {
        self.change(slot, |shm| {
            shm.field(slot, Field::Flags as usize)
                .store(0, Ordering::Relaxed);
            shm.field(slot, Field::Pid as usize)
                .store(0, Ordering::Relaxed);
            shm.field(slot, Field::Start as usize)
                .store(0, Ordering::Relaxed);
            shm.write_text(slot, Field::Vm, VM_BYTES, vm.as_str().as_bytes());
            shm.write_text(slot, Field::Cgroup, CGROUP_BYTES, b"");
        });
        self.set_generation(slot, generation);
        // Before the word: from the moment at which there is one, it is looked at.
        self.head(Head::Mark)
            .fetch_max(slot as u64 + 1, Ordering::AcqRel);
        self.compare_exchange(slot, Word::FREE, word)
    }

    /// Names the process of a slot's VM.
    pub(crate) fn bind(&self, slot: usize, process: &Process) {
        self.change(slot, |shm| {
            let cgroup = process
                .cgroup
                .as_deref()
                .map(|c| c.as_os_str().as_bytes())
                .unwrap_or_default();
            // A path that does not fit leaves the signal.
            let cgroup = if cgroup.len() > CGROUP_BYTES {
                b"".as_slice()
            } else {
                cgroup
            };
            shm.write_text(slot, Field::Cgroup, CGROUP_BYTES, cgroup);
            shm.field(slot, Field::Start as usize)
                .store(process.start_time, Ordering::Relaxed);
            shm.field(slot, Field::Pid as usize)
                .store(u64::from(process.pid.unsigned_abs()), Ordering::Relaxed);
        });
    }

    /// Frees a slot.
    pub(crate) fn release(&self, slot: usize) {
        self.field(slot, Field::Word as usize)
            .store(Word::FREE.0, Ordering::Release);
    }

    /// The whole generation of a slot, whose word has only its low bits.
    pub(crate) fn generation(&self, slot: usize) -> Generation {
        let whole = self
            .field(slot, Field::Generation as usize)
            .load(Ordering::Acquire);
        let word = self.load(slot);
        if word.is_of(Generation(whole)) {
            Generation(whole)
        } else {
            word.generation()
        }
    }

    pub(crate) fn set_generation(&self, slot: usize, generation: Generation) {
        self.field(slot, Field::Generation as usize)
            .store(generation.0, Ordering::Release);
    }

    pub(crate) fn set_killed(&self, slot: usize) {
        self.field(slot, Field::Flags as usize)
            .fetch_or(KILLED, Ordering::AcqRel);
    }

    pub(crate) fn is_killed(&self, slot: usize) -> bool {
        self.field(slot, Field::Flags as usize)
            .load(Ordering::Acquire)
            & KILLED
            != 0
    }

    /// The VM of a slot.
    pub(crate) fn vm(&self, slot: usize) -> Option<VmId> {
        let bytes = self.read(slot, |shm| shm.read_text(slot, Field::Vm, VM_BYTES))?;
        VmId::new(std::str::from_utf8(&bytes).ok()?).ok()
    }

    /// Counts the changes of a slot's description: as long as it is the same, so are VM and process. None
    /// while the description is being changed, or was left half changed.
    pub(crate) fn changes(&self, slot: usize) -> Option<u64> {
        let sequence = self
            .field(slot, Field::Sequence as usize)
            .load(Ordering::Acquire);
        (sequence & 1 == 0).then_some(sequence)
    }

    /// The process of a slot's VM; none as long as there is none.
    pub(crate) fn process(&self, slot: usize) -> Option<Process> {
        let (pid, start_time, cgroup) = self.read(slot, |shm| {
            let word = |f: Field| shm.field(slot, f as usize).load(Ordering::Relaxed);
            (
                word(Field::Pid),
                word(Field::Start),
                shm.read_text(slot, Field::Cgroup, CGROUP_BYTES),
            )
        })?;
        let pid = i32::try_from(pid).ok().filter(|p| *p > 0)?;
        let cgroup = (!cgroup.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(&cgroup)));
        Some(Process {
            pid,
            start_time,
            cgroup,
        })
    }

    /// Changes a slot's description; its one writer is the agent.
    fn change(&self, slot: usize, write: impl FnOnce(&Self)) {
        let sequence = self.field(slot, Field::Sequence as usize);
        let even = sequence.load(Ordering::Relaxed) & !1;
        sequence.store(even + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        write(self);
        sequence.store(even + 2, Ordering::Release);
    }

    /// Reads a slot's description; none while it is being changed, or was left half changed.
    fn read<T>(&self, slot: usize, read: impl Fn(&Self) -> T) -> Option<T> {
        let sequence = self.field(slot, Field::Sequence as usize);
        for _ in 0..16 {
            let before = sequence.load(Ordering::Acquire);
            let value = read(self);
            fence(Ordering::Acquire);
            if before & 1 == 0 && sequence.load(Ordering::Relaxed) == before {
                return Some(value);
            }
            std::hint::spin_loop();
        }
        None
    }

    fn write_text(&self, slot: usize, field: Field, limit: usize, text: &[u8]) {
        let first = field as usize;
        let text = text.get(..text.len().min(limit)).unwrap_or_default();
        self.field(slot, first)
            .store(text.len() as u64, Ordering::Relaxed);
        for (i, chunk) in text.chunks(8).enumerate() {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.field(slot, first + 1 + i)
                .store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
    }

    fn read_text(&self, slot: usize, field: Field, limit: usize) -> Vec<u8> {
        let first = field as usize;
        let length = self.field(slot, first).load(Ordering::Relaxed);
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(limit);
        let mut text = Vec::with_capacity(length + 8);
        for i in 0..length.div_ceil(8) {
            let word = self.field(slot, first + 1 + i).load(Ordering::Relaxed);
            text.extend_from_slice(&word.to_le_bytes());
        }
        text.truncate(length);
        text
    }
}

/// Never used: slots and fields are within the table by construction.
static FALLBACK: AtomicU64 = AtomicU64::new(0);

/// An agent's process in one word, which no other process of this boot has: the kernel's process numbers
/// are below 2^22. Never zero, as a fresh table is.
fn mark_keeper(pid: u64, start_time: u64) -> u64 {
    start_time << 22 | pid
}

impl Words for Shm {
    /// How many slots have to be looked at: no slot behind them is in use.
    fn len(&self) -> usize {
        // The keeper first: it signs when its mark is there.
        let keeper = self.get(Head::MarkOf);
        let agent = mark_keeper(self.get(Head::AgentPid), self.get(Head::AgentStart));
        if keeper != agent || keeper == 0 {
            return SLOTS;
        }
        usize::try_from(self.get(Head::Mark)).map_or(SLOTS, |mark| mark.min(SLOTS))
    }

    fn load(&self, slot: usize) -> Word {
        Word(
            self.field(slot, Field::Word as usize)
                .load(Ordering::Acquire),
        )
    }

    fn compare_exchange(&self, slot: usize, old: Word, new: Word) -> bool {
        self.field(slot, Field::Word as usize)
            .compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: &str = "01234567-89ab-cdef-0123-456789abcdef";

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    /// A table as guard and agent have it, in a directory of its own.
    fn guard_and_agent() -> (Shm, Shm, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("guard.shm");
        let guard = Shm::create(&path, BOOT, 77).expect("made");
        let agent = Shm::open(&path, BOOT).expect("there");
        (guard, agent, dir)
    }

    fn process(pid: i32) -> Process {
        Process {
            pid,
            start_time: 99,
            cgroup: None,
        }
    }

    #[test]
    fn two_mappings_see_one_table() {
        let (guard, agent, _dir) = guard_and_agent();
        assert_eq!((agent.table(), agent.is_current()), (77, true));
        let vm = VmId::new(&"v".repeat(64)).expect("id");
        let generation = Generation((5 << 22) + 3);
        let word = Word::new(SlotState::Running, generation, at(1000));
        assert!(agent.occupy(3, &vm, generation, word));
        assert_eq!((guard.slot_of(&vm), guard.process(3)), (Some(3), None));
        let process = Process {
            cgroup: Some(PathBuf::from("/c".repeat(160))),
            ..process(42)
        };
        let before = guard.changes(3);
        agent.bind(3, &process);
        assert_eq!(guard.process(3), Some(process));
        assert_ne!(guard.changes(3), before, "another process is a change");
        assert_eq!(guard.changes(3), agent.changes(3));
        assert_eq!(
            guard.generation(3),
            generation,
            "the word has only its low bits"
        );
        assert!(guard.compare_exchange(
            3,
            word,
            Word::new(SlotState::Lapsed, generation, at(1000))
        ));
        assert_eq!(agent.load(3).state(), SlotState::Lapsed);
        assert!(!agent.occupy(3, &vm, generation, word), "the slot is taken");
        agent.release(3);
        assert_eq!(guard.slot_of(&vm), None);
    }

    #[test]
    fn only_the_signed_in_agent_s_mark_shortens_the_look() {
        let (guard, agent, _dir) = guard_and_agent();
        let occupy = |slot: usize| {
            let vm = VmId::new(&format!("vm-{slot}")).expect("id");
            let word = Word::new(SlotState::Running, Generation(1), at(1000));
            assert!(agent.occupy(slot, &vm, Generation(1), word));
        };
        assert_eq!(guard.len(), SLOTS, "nobody keeps a mark");
        occupy(6);
        agent.enter_agent(&process(42));
        agent.keep_mark(&process(42));
        assert_eq!(guard.len(), 7, "what was there counts");
        occupy(2);
        assert_eq!(guard.len(), 7);
        occupy(9);
        assert_eq!(guard.len(), 10);
        // One of an older version, which knows no mark.
        agent.enter_agent(&process(43));
        assert_eq!(guard.len(), SLOTS);
        agent.release(9);
        agent.enter_agent(&process(44));
        agent.keep_mark(&process(44));
        assert_eq!(guard.len(), 7, "a new agent looks anew");
        agent.set(Head::Mark, u64::MAX);
        assert_eq!(guard.len(), SLOTS, "a damaged mark is none");
    }

    #[test]
    fn only_the_signed_in_agent_s_renewals_count() {
        let (guard, agent, _dir) = guard_and_agent();
        assert_eq!((guard.renewals(), guard.freeze()), (None, None));
        agent.enter_agent(&process(42));
        assert_eq!(guard.renewals(), None, "one of an older version says none");
        agent.count_renewals(&process(42));
        agent.renewed();
        assert_eq!(guard.renewals(), Some(1));
        agent.set_freeze(Duration::from_secs(3));
        assert_eq!(guard.freeze(), Some(Duration::from_secs(3)));
        agent.enter_agent(&process(43));
        assert_eq!(guard.renewals(), None);
    }

    #[test]
    fn a_damaged_foreign_or_older_table_is_refused() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("guard.shm");
        assert!(matches!(Shm::open(&path, BOOT), Err(ShmError::Missing(_))));
        let first = Shm::create(&path, BOOT, 1).expect("made");
        let other = BOOT.replace('a', "b");
        assert!(matches!(
            Shm::open(&path, &other),
            Err(ShmError::Unusable { .. })
        ));
        Shm::create(&path, BOOT, 2).expect("made");
        assert!(!first.is_current());
        std::fs::write(&path, b"short").expect("write");
        assert!(matches!(
            Shm::open(&path, BOOT),
            Err(ShmError::Unusable { .. })
        ));
        std::fs::write(&path, vec![1; TOTAL_BYTES]).expect("write");
        assert!(matches!(
            Shm::open(&path, BOOT),
            Err(ShmError::Unusable { .. })
        ));
    }
}
