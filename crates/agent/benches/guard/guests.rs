//! Guests that know their last instruction: embedded guests whose process has further threads, one for each virtual
//! processor, that do nothing but read the clock and store it in memory that the benchmark sees.
//!
//! What is stored last is older than the last instruction by less than one such step. How long a step takes is
//! measured too, for each vCPU stores how many it has done.

use mainstay_core::time::Instant;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// A line of the processor's cache for each vCPU, so that they do not slow each other down.
const WORDS: usize = 8;
const VCPU_BYTES: usize = WORDS * size_of::<u64>();

/// The file that a VM of that name and the benchmark map.
pub(crate) fn stamps_path(run_dir: &Path, vm: &str) -> PathBuf {
    run_dir.join(format!("{vm}.stamps"))
}

/// What one vCPU has done.
#[repr(C, align(64))]
struct Vcpu {
    /// The newest time that it stored, in nanoseconds.
    last: AtomicU64,
    /// How many it has stored.
    steps: AtomicU64,
}

/// The mapped file: one place for each vCPU.
pub(crate) struct Stamps {
    vcpus: NonNull<Vcpu>,
    count: usize,
}

const _: () = assert!(size_of::<Vcpu>() == VCPU_BYTES);

#[expect(unsafe_code, reason = "a mapping may be used from any thread")]
// SAFETY: the mapping is only used as atomics, which any thread may use at once.
unsafe impl Sync for Stamps {}
#[expect(unsafe_code, reason = "a mapping may be used from any thread")]
// SAFETY: as above.
unsafe impl Send for Stamps {}

impl Drop for Stamps {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "ends the mapping that `map` made")]
        // SAFETY: the mapping has this address and length, and no reference to it outlives `self`.
        let _ = unsafe { munmap(self.vcpus.cast(), self.count * VCPU_BYTES) };
    }
}

impl Stamps {
    /// Makes the file for so many vCPUs.
    pub(crate) fn create(path: &Path, vcpus: u32) -> io::Result<Self> {
        let count = usize::try_from(vcpus).map_err(io::Error::other)?;
        std::fs::write(path, vec![0; count * VCPU_BYTES])?;
        Self::open(path)
    }

    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        Ok(Self {
            vcpus: map(&file, length)?,
            count: length / VCPU_BYTES,
        })
    }

    fn vcpus(&self) -> &[Vcpu] {
        #[expect(unsafe_code, reason = "a mapping is a pointer")]
        // SAFETY: the mapping has room for so many, is aligned to a page, and lives as long as `self`. Its bytes are
        // used only as atomics, of which every value is one.
        unsafe {
            std::slice::from_raw_parts(self.vcpus.as_ptr(), self.count)
        }
    }

    /// When any of them executed its newest step.
    pub(crate) fn last(&self) -> u64 {
        let all = self.vcpus().iter().map(|v| v.last.load(Ordering::Acquire));
        all.max().unwrap_or(0)
    }

    /// How many steps they have done together.
    pub(crate) fn steps(&self) -> u64 {
        let all = self.vcpus().iter().map(|v| v.steps.load(Ordering::Relaxed));
        all.sum()
    }
}

fn map(file: &File, length: usize) -> io::Result<NonNull<Vcpu>> {
    let length = NonZeroUsize::new(length).ok_or_else(|| io::Error::other("no vCPU"))?;
    #[expect(
        unsafe_code,
        reason = "shared memory between two processes needs a mapping"
    )]
    // SAFETY: a new mapping of a file of this length, which nobody shortens; it is used only as atomics.
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
    Ok(address.cast())
}

/// Runs a guest of the embedded driver, with its vCPUs beside it.
pub(crate) fn guest(arguments: Vec<OsString>) -> ExitCode {
    let named = arguments.iter().skip_while(|a| *a != "--vm").nth(1);
    let vm = named.map(|name| name.to_string_lossy().into_owned());
    // Where the driver starts a guest is the run directory.
    let stamps = Stamps::open(&stamps_path(Path::new(""), &vm.unwrap_or_default()));
    let stamps = match stamps {
        Ok(stamps) => stamps,
        Err(error) => {
            eprintln!("no memory for the vCPUs' clocks: {error}");
            return ExitCode::FAILURE;
        }
    };
    // They go with the process.
    let stamps: &'static Stamps = Box::leak(Box::new(stamps));
    for vcpu in stamps.vcpus() {
        std::thread::spawn(|| run(vcpu));
    }
    mainstay_hypervisor::guest_main(arguments)
}

fn run(vcpu: &Vcpu) {
    let mut steps = 0;
    loop {
        let now: Instant = mainstay_agent::agent_side::now();
        vcpu.last.store(now.as_nanos(), Ordering::Release);
        steps += 1;
        vcpu.steps.store(steps, Ordering::Relaxed);
    }
}
