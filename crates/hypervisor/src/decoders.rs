//! The decoders of what guests, QEMU and earlier agents hand to this crate, for tests that hand them arbitrary
//! bytes (`crates/fuzz`). Nothing else calls these, and nothing here is promised to stay.

use crate::image::{self, SECTOR};
use crate::launch::{Marker, Record};
use crate::process::Stat;
use crate::qemu::monitor;
use crate::{Counter, ExitCause, GuestTimes, times};
use qapi::{ExecuteError, qmp};
use std::io;

/// How the machine ended, if this line of QEMU's says that it did.
#[must_use]
pub fn qmp_end(line: &[u8]) -> Option<ExitCause> {
    monitor::ended(line)
}

/// True when this line of QEMU's says how the machine's disk does.
#[must_use]
pub fn qmp_disk(line: &[u8]) -> bool {
    monitor::disk(line).is_some()
}

/// A conversation in which QEMU says these bytes, whatever it is asked: whether the guest runs; and what is sent
/// to QEMU.
///
/// # Errors
/// What QEMU refused, or what is wrong with its answers.
pub fn qmp_status(said: &[u8]) -> (Result<bool, String>, Vec<u8>) {
    let mut sent = Vec::new();
    let command = qmp::query_status {};
    let answer = monitor::converse(said, &mut sent, &command, || true);
    let answer = answer.map(|status| status.running);
    let answer = answer.map_err(|error| match error {
        ExecuteError::Qapi(error) => error.desc,
        ExecuteError::Io(error) => error.to_string(),
    });
    (answer, sent)
}

/// The sector that holds a guest's counter.
#[must_use]
pub fn counter_sector(counter: &Counter) -> Vec<u8> {
    let mut sector = vec![0; SECTOR];
    image::encode(counter, &mut sector);
    sector
}

/// Writes its checksum into a sector.
pub fn seal_sector(sector: &mut [u8]) {
    image::seal(sector);
}

/// How long a guest takes, as a sector says it; none: it says nothing.
#[must_use]
pub fn guest_times(sector: &[u8]) -> Option<GuestTimes> {
    times::decode(sector)
}

/// The sector that [`guest_times`] reads.
///
/// # Errors
/// A time of more than 49 days.
pub fn guest_times_sector(times: &GuestTimes) -> io::Result<Vec<u8>> {
    times::encode(times).map(Vec::from)
}

/// The record of a guest's process, written once more; none: it is none.
#[must_use]
pub fn guest_record(bytes: &[u8]) -> Option<Vec<u8>> {
    let record: Record = serde_json::from_slice(bytes).ok()?;
    serde_json::to_vec(&record).ok()
}

/// The note of how a guest ended: written once more, and what it says; none: it is none.
#[must_use]
pub fn exit_note(bytes: &[u8]) -> Option<(Vec<u8>, ExitCause)> {
    let marker: Marker = serde_json::from_slice(bytes).ok()?;
    let again = serde_json::to_vec(&marker).ok()?;
    Some((again, marker.cause()))
}

/// The state and the start time that a `/proc/PID/stat` names; none: it is none.
#[must_use]
pub fn process_stat(text: &[u8]) -> Option<(u8, u64)> {
    let stat = Stat::parse(text).ok()?;
    Some((stat.state, stat.start_time))
}
