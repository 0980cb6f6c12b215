//! The clocks: CLOCK_BOOTTIME for the core, wall-clock time for people.

use mainstay_core::time::Instant;
use nix::time::{ClockId, clock_gettime};
use std::time::{SystemTime, UNIX_EPOCH};

/// The time since boot, suspended time included.
pub(crate) fn now() -> Instant {
    // The clock exists since Linux 2.6.39; without it there is no safe time at all, and zero never
    // prolongs a right.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Instant::ZERO, |t| {
        let seconds = u64::try_from(t.tv_sec()).unwrap_or(0);
        let nanos = u64::try_from(t.tv_nsec()).unwrap_or(0);
        Instant::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    })
}

/// Waits on nothing but time and signals.
pub(crate) fn pause(time: std::time::Duration) {
    let spec = nix::sys::time::TimeSpec::from_duration(time);
    let _ = nix::poll::ppoll(&mut [], Some(spec), None);
}

/// The wall-clock time as RFC 3339 text in UTC, with milliseconds. No decision uses it.
pub(crate) fn wall() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    rfc3339(since.as_secs(), since.subsec_millis())
}

fn rfc3339(seconds: u64, millis: u32) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to civil date, counted in eras of 400 years that begin on 1 March
    // (H. Hinnant, "chrono-compatible low-level date algorithms").
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_is_written_as_rfc_3339() {
        assert_eq!(rfc3339(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400, 7), "2000-02-29T00:00:00.007Z");
        assert_eq!(rfc3339(1_795_231_563, 999), "2026-11-21T03:26:03.999Z");
    }

    #[test]
    fn boot_time_goes_forward() {
        let first = now();
        assert!(first > Instant::ZERO && now() >= first);
    }
}
