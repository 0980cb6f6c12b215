//! What a stretch of work cost: processor time, instructions where the kernel lets us count them, and
//! what was allocated.
#![expect(
    unsafe_code,
    reason = "a global allocator and two system calls cannot be had without; nothing of this ships"
)]

use nix::libc;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
static FREED: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, counting.
struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged; the counters touch no memory
// that is handed out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        FREED.fetch_add(size(layout.size()), Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        FREED.fetch_add(size(layout.size()), Relaxed);
        count(new_size);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(at, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn size(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn count(bytes: usize) {
    ALLOCATIONS.fetch_add(1, Relaxed);
    BYTES.fetch_add(size(bytes), Relaxed);
}

/// Bytes on the heap now.
pub(crate) fn live_bytes() -> u64 {
    BYTES.load(Relaxed).saturating_sub(FREED.load(Relaxed))
}

/// What some work cost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// Processor time of this thread.
    pub(crate) cpu: Duration,
    /// Instructions in user mode; none where they cannot be counted.
    pub(crate) instructions: Option<u64>,
    /// Allocations, reallocations included.
    pub(crate) allocations: u64,
    /// Bytes that they asked for.
    pub(crate) bytes: u64,
}

impl Cost {
    /// Adds what further work cost.
    pub(crate) fn add(&mut self, more: Self) {
        self.cpu += more.cpu;
        self.instructions = match (self.instructions, more.instructions) {
            (Some(a), Some(b)) => Some(a + b),
            (None, b) => b,
            (a, None) => a,
        };
        self.allocations += more.allocations;
        self.bytes += more.bytes;
    }
}

/// Measures stretches of work.
#[derive(Debug)]
pub(crate) struct Meter {
    counter: Result<i32, String>,
}

impl Meter {
    pub(crate) fn new() -> Self {
        Self {
            counter: open_counter(),
        }
    }

    /// Why instructions cannot be counted here, if they cannot.
    pub(crate) fn no_instructions(&self) -> Option<&str> {
        self.counter.as_ref().err().map(String::as_str)
    }

    /// Does the work and says what it cost.
    pub(crate) fn measure<T>(&self, work: impl FnOnce() -> T) -> (T, Cost) {
        let before = self.snapshot();
        let done = work();
        let after = self.snapshot();
        let cost = Cost {
            cpu: after.cpu.saturating_sub(before.cpu),
            instructions: after
                .instructions
                .zip(before.instructions)
                .map(|(a, b)| a.saturating_sub(b)),
            allocations: after.allocations - before.allocations,
            bytes: after.bytes - before.bytes,
        };
        (done, cost)
    }

    fn snapshot(&self) -> Cost {
        Cost {
            cpu: thread_time(),
            instructions: self.counter.as_ref().ok().and_then(|fd| read_counter(*fd)),
            allocations: ALLOCATIONS.load(Relaxed),
            bytes: BYTES.load(Relaxed),
        }
    }
}

fn thread_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map(Duration::from)
        .unwrap_or_default()
}

/// `struct perf_event_attr` of linux/perf_event.h in its first version, as 64-bit words.
const ATTR_WORDS: usize = 8;
/// PERF_TYPE_HARDWARE is 0; the struct's size stands in the upper half of the first word.
const ATTR_HEAD: u64 = (8 * ATTR_WORDS as u64) << 32;
/// PERF_COUNT_HW_INSTRUCTIONS.
const INSTRUCTIONS: u64 = 1;
/// The bits `exclude_kernel` and `exclude_hv`: an ordinary user may count its own user mode.
const USER_ONLY: u64 = 1 << 5 | 1 << 6;

fn open_counter() -> Result<i32, String> {
    let mut attr = [0_u64; ATTR_WORDS];
    attr[0] = ATTR_HEAD;
    attr[1] = INSTRUCTIONS;
    attr[5] = USER_ONLY;
    let (this_thread, any_cpu, no_group, flags) = (0_i32, -1_i32, -1_i32, 0_u64);
    // SAFETY: the kernel reads `attr` for the size that it names and keeps no pointer to it.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            attr.as_ptr(),
            this_thread,
            any_cpu,
            no_group,
            flags,
        )
    };
    if fd < 0 {
        return Err(std::io::Error::last_os_error().to_string());
    }
    i32::try_from(fd).map_err(|e| e.to_string())
}

fn read_counter(fd: i32) -> Option<u64> {
    let mut value = [0_u8; 8];
    // SAFETY: `value` has room for the eight bytes that are asked for.
    let read = unsafe { libc::read(fd, value.as_mut_ptr().cast(), value.len()) };
    (read == 8).then(|| u64::from_ne_bytes(value))
}
