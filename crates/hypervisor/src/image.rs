//! Decides the layout of a demo image and what a counter record in it is worth.
//!
//! ```text
//! sector 0   boot sector (counts when a BIOS runs it) or zeros
//! sector 1,2 counter record N in sector 1 + (N & 1)
//! sector 3   how long the guest takes (times.rs), if somebody wrote that
//!
//! record     0 magic "MSCOUNT1"   8 counter u64    16 generation u64
//!           24 boottime ns u64   32 VM id, 64 bytes, zero padded
//!          508 checksum u32; everything little endian
//! ```
//!
//! A torn write damages the record being written, never the one before it.
//! Generation, time and VM id are zero in the boot sector's records, which
//! cannot know them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

pub(crate) const SECTOR: usize = 512;
const MAGIC: &[u8; 8] = b"MSCOUNT1";
const SEED: u32 = 0x4d41_494e;
pub(crate) const CHECKSUM_AT: usize = 508;
const BOOT_SECTOR: &[u8; SECTOR] = include_bytes!("../guest/counter.bin");

/// The last counter of a demo guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    /// How often it has counted, over all its runs.
    pub counter: u64,
    /// The lock generation under which this was written; 0 when the guest cannot know.
    pub generation: u64,
    /// The writer's `CLOCK_BOOTTIME` in nanoseconds; 0 when the guest cannot know.
    pub boottime_ns: u64,
    /// The VM's id; empty when the guest cannot know.
    pub vm: String,
}

impl Counter {
    /// The record that a sector of 512 bytes holds; none when it holds no whole one.
    #[must_use]
    pub fn parse(sector: &[u8]) -> Option<Self> {
        decode(sector)
    }
}

/// What a fresh image contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// The boot sector that counts; for either driver.
    Bootable,
    /// Zeros; for the embedded driver.
    Blank,
}

/// Writes a fresh sparse image of `size_bytes`, at least 4096.
///
/// # Errors
/// Those of the file system; `AlreadyExists` when there is a file of that name, `InvalidInput` for a smaller size.
pub fn make_image(path: &Path, size_bytes: u64, kind: ImageKind) -> io::Result<()> {
    if size_bytes < 4096 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "an image has at least 4096 bytes",
        ));
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.set_len(size_bytes)?;
    if kind == ImageKind::Bootable {
        file.write_all(BOOT_SECTOR)?;
    }
    file.sync_all()
}

/// Reads the last counter of an image; `None` when there is no valid one.
///
/// Takes no lock, so that it can be used while the guest runs.
///
/// # Errors
/// Those of the file system.
pub fn read_counter(image: &Path) -> io::Result<Option<Counter>> {
    read_counter_from(&open_direct(OpenOptions::new().read(true), image, 0)?.0)
}

/// Opens past the page cache where the file system can; says whether it could.
pub(crate) fn open_direct(
    options: &mut OpenOptions,
    path: &Path,
    flags: i32,
) -> io::Result<(File, bool)> {
    match options.custom_flags(flags | libc::O_DIRECT).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Ok((options.custom_flags(flags).open(path)?, false))
        }
        other => Ok((other?, true)),
    }
}

/// Whether the file system of this file takes direct I/O; false also when it cannot be asked.
pub(crate) fn is_direct(path: &Path) -> bool {
    open_direct(OpenOptions::new().read(true), path, 0).is_ok_and(|(_, direct)| direct)
}

pub(crate) fn no_direct(path: &Path) -> String {
    let dir = path.parent().unwrap_or(path).display();
    format!("{dir} does not take direct I/O; guests there write through the page cache")
}

/// The first page of an image, zeros where the image ends before it.
pub(crate) fn read_page(file: &File) -> io::Result<Aligned> {
    // One aligned page serves every logical sector size in use.
    let mut page = Aligned::new();
    let mut filled = 0;
    while filled < Aligned::LEN {
        match file.read_at(
            page.bytes().get_mut(filled..).unwrap_or_default(),
            filled as u64,
        ) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(page)
}

pub(crate) fn read_counter_from(file: &File) -> io::Result<Option<Counter>> {
    let mut page = read_page(file)?;
    let sectors = page.bytes().chunks_exact(SECTOR).skip(1).take(2);
    Ok(sectors
        .filter_map(decode)
        .max_by_key(|counter| counter.counter))
}

/// The sector that the record goes to.
pub(crate) fn sector_of(counter: u64) -> u64 {
    1 + (counter & 1)
}

pub(crate) fn encode(counter: &Counter, into: &mut [u8]) {
    into.fill(0);
    let vm = counter.vm.as_bytes();
    let vm = vm.get(..vm.len().min(64)).unwrap_or_default();
    let fields: [(usize, &[u8]); 5] = [
        (0, MAGIC),
        (8, &counter.counter.to_le_bytes()),
        (16, &counter.generation.to_le_bytes()),
        (24, &counter.boottime_ns.to_le_bytes()),
        (32, vm),
    ];
    for (at, bytes) in fields {
        if let Some(field) = into.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    }
    seal(into);
}

/// Writes the checksum of a sector into it.
pub(crate) fn seal(sector: &mut [u8]) {
    let sum = checksum(sector);
    if let Some(field) = sector.get_mut(CHECKSUM_AT..SECTOR) {
        field.copy_from_slice(&sum.to_le_bytes());
    }
}

fn decode(sector: &[u8]) -> Option<Counter> {
    let word = |at: usize| Some(u64::from_le_bytes(sector.get(at..at + 8)?.try_into().ok()?));
    let sum = u32::from_le_bytes(sector.get(CHECKSUM_AT..SECTOR)?.try_into().ok()?);
    if sector.get(..8)? != MAGIC || sum != checksum(sector) {
        return None;
    }
    let vm = sector
        .get(32..96)?
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    Some(Counter {
        counter: word(8)?,
        generation: word(16)?,
        boottime_ns: word(24)?,
        vm: std::str::from_utf8(vm).ok()?.to_owned(),
    })
}

/// Simple enough for a boot sector, good enough to see a torn sector.
pub(crate) fn checksum(sector: &[u8]) -> u32 {
    let (words, _) = sector.as_chunks::<4>();
    words.iter().take(CHECKSUM_AT / 4).fold(SEED, |sum, word| {
        sum.rotate_left(5).wrapping_add(u32::from_le_bytes(*word))
    })
}

/// A page of memory that direct I/O accepts.
#[derive(Debug)]
pub(crate) struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    pub(crate) const LEN: usize = 4096;

    pub(crate) fn new() -> Self {
        let memory = vec![0; 2 * Self::LEN];
        let start = memory.as_ptr().align_offset(Self::LEN);
        Self { memory, start }
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        self.memory
            .get_mut(self.start..self.start + Self::LEN)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_sector_is_what_its_source_assembles_to() {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/counter.S");
        let (object, binary) = (dir.path().join("counter.o"), dir.path().join("counter.bin"));
        let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
            let status = std::process::Command::new(program).args(arguments).status();
            let status = status
                .unwrap_or_else(|error| panic!("{program}: {error}; apt-get install binutils"));
            assert!(status.success(), "{program}: {status}");
        };
        run(
            "as",
            &[
                "--32".as_ref(),
                "-o".as_ref(),
                object.as_ref(),
                source.as_ref(),
            ],
        );
        let mut arguments: Vec<&std::ffi::OsStr> = "-m elf_i386 -Ttext 0x7c00 --oformat binary -o"
            .split(' ')
            .map(AsRef::as_ref)
            .collect();
        arguments.extend([binary.as_os_str(), object.as_os_str()]);
        run("ld", &arguments);
        assert_eq!(
            std::fs::read(&binary).unwrap(),
            BOOT_SECTOR,
            "assemble guest/counter.S again"
        );
    }

    #[test]
    fn a_torn_write_leaves_the_record_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        make_image(&path, 1 << 20, ImageKind::Blank).unwrap();
        assert_eq!(read_counter(&path).unwrap(), None);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let mut sector = [0; SECTOR];
        for number in 1..=4 {
            let counter = Counter {
                counter: number,
                generation: 7,
                boottime_ns: 9,
                vm: "a".into(),
            };
            encode(&counter, &mut sector);
            let torn = if number == 4 { 9 } else { SECTOR };
            file.write_all_at(&sector[..torn], sector_of(number) * 512)
                .unwrap();
        }
        let read = read_counter(&path).unwrap().unwrap();
        assert_eq!(
            (read.counter, read.generation, read.vm.as_str()),
            (3, 7, "a")
        );
    }
}
