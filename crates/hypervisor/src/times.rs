//! How long a demo guest takes to start and to shut down: it lies on its disk, as an operating system does.
//!
//! ```text
//! sector 3   0 magic "MSGUEST1"   8 start u32, ms   12 shutdown u32, ms; 0xffffffff: never
//!          508 checksum u32, as in a counter record; everything little endian
//! ```
//!
//! The boot sector reads the second time only: a machine takes the time that it takes to start. What is
//! damaged or not there says nothing, and the guest then does both at once. Never written by a guest.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::image::{self, CHECKSUM_AT, SECTOR};

const MAGIC: &[u8; 8] = b"MSGUEST1";
const SECTOR_AT: usize = 3;
const NEVER: u32 = u32::MAX;

/// How long a demo guest takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestTimes {
    /// From its process having the image's lock to its being ready to run; embedded guests only.
    pub start: Duration,
    /// From the request to shut down, from inside or outside, to its end; `None`: it ignores the request.
    pub shutdown: Option<Duration>,
}

impl Default for GuestTimes {
    /// Those of an image that says nothing: both at once.
    fn default() -> Self {
        Self {
            start: Duration::ZERO,
            shutdown: Some(Duration::ZERO),
        }
    }
}

/// Writes the times into an image that no guest uses, in whole milliseconds.
///
/// # Errors
/// Those of the file system; `InvalidInput` for a time of more than 49 days.
pub fn write_guest_times(image: &Path, times: &GuestTimes) -> io::Result<()> {
    let sector = encode(times)?;
    let file = OpenOptions::new().write(true).open(image)?;
    file.write_all_at(&sector, (SECTOR_AT * SECTOR) as u64)?;
    file.sync_all()
}

/// Reads the times of an image; `None` when it says nothing about them.
///
/// # Errors
/// Those of the file system.
pub fn read_guest_times(image: &Path) -> io::Result<Option<GuestTimes>> {
    read_from(&image::open_direct(OpenOptions::new().read(true), image, 0)?.0)
}

pub(crate) fn read_from(image: &File) -> io::Result<Option<GuestTimes>> {
    let mut page = image::read_page(image)?;
    Ok(page
        .bytes()
        .chunks_exact(SECTOR)
        .nth(SECTOR_AT)
        .and_then(decode))
}

pub(crate) fn encode(times: &GuestTimes) -> io::Result<[u8; SECTOR]> {
    let ms = |time: Duration| {
        u32::try_from(time.as_millis())
            .ok()
            .filter(|ms| *ms != NEVER)
            .ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("a guest's time is at most 49 days, not {time:?}"),
                )
            })
    };
    let start = ms(times.start)?.to_le_bytes();
    let shutdown = times.shutdown.map_or(Ok(NEVER), ms)?.to_le_bytes();
    let mut sector = [0; SECTOR];
    let content = MAGIC.iter().chain(&start).chain(&shutdown);
    for (byte, value) in sector.iter_mut().zip(content) {
        *byte = *value;
    }
    image::seal(&mut sector);
    Ok(sector)
}

pub(crate) fn decode(sector: &[u8]) -> Option<GuestTimes> {
    let word = |at: usize| Some(u32::from_le_bytes(sector.get(at..at + 4)?.try_into().ok()?));
    if sector.get(..8)? != MAGIC || word(CHECKSUM_AT)? != image::checksum(sector) {
        return None;
    }
    let ms = |ms: u32| Duration::from_millis(u64::from(ms));
    Some(GuestTimes {
        // "Never" is no start.
        start: Some(word(8)?).filter(|time| *time != NEVER).map(ms)?,
        shutdown: Some(word(12)?).filter(|time| *time != NEVER).map(ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Counter, ImageKind, make_image, read_counter};

    fn image() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        make_image(&path, 1 << 20, ImageKind::Bootable).unwrap();
        (dir, path)
    }

    #[test]
    fn times_are_read_as_they_were_written() {
        let (_dir, path) = image();
        assert_eq!(read_guest_times(&path).unwrap(), None);
        for shutdown in [None, Some(0), Some(5000), Some(u64::from(NEVER) - 1)] {
            let times = GuestTimes {
                start: Duration::from_millis(1500),
                shutdown: shutdown.map(Duration::from_millis),
            };
            write_guest_times(&path, &times).unwrap();
            assert_eq!(read_guest_times(&path).unwrap(), Some(times));
        }
        assert_eq!(read_counter(&path).unwrap(), None, "it is no counter");
    }

    #[test]
    fn a_time_that_does_not_fit_is_refused() {
        let (_dir, path) = image();
        for ms in [u64::from(NEVER), u64::from(NEVER) + 1] {
            let times = GuestTimes {
                start: Duration::from_millis(ms),
                ..GuestTimes::default()
            };
            let refused = write_guest_times(&path, &times).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(read_guest_times(&path).unwrap(), None);
    }

    #[test]
    fn a_damaged_or_foreign_sector_says_nothing() {
        let sector = encode(&GuestTimes::default()).unwrap();
        assert_eq!(decode(&sector), Some(GuestTimes::default()));
        for at in [0, 7, 9, 12, 300, CHECKSUM_AT] {
            let mut damaged = sector;
            damaged[at] ^= 1;
            assert_eq!(decode(&damaged), None, "byte {at}");
        }
        let mut counter = [0; SECTOR];
        let record = Counter {
            counter: 1,
            generation: 0,
            boottime_ns: 0,
            vm: String::new(),
        };
        image::encode(&record, &mut counter);
        assert_eq!(decode(&counter), None);
    }
}
