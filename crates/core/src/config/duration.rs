//! Durations as people write them: `300ms`, `30s`, `5m`, `1h`.

use crate::time::Duration;
use alloc::format;
use alloc::string::{String, ToString};

/// Reads `300ms`, `30s`, `5m`, `1h`, also with a decimal point.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number.trim().parse().ok()?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        _ => return None,
    };
    if !(0.0..=1e9).contains(&seconds) {
        return None;
    }
    // Whole microseconds, so that 0.3 s and 300 ms are one value.
    let exact = Duration::from_secs_f64(seconds) + Duration::from_nanos(500);
    Some(Duration::from_micros(
        u64::try_from(exact.as_micros()).ok()?,
    ))
}

/// Writes a duration as [`parse_duration`] reads it, to the microsecond.
#[must_use]
pub fn format_duration(d: Duration) -> String {
    let ms = crate::time::millis(d);
    let micros = d.subsec_micros() % 1000;
    if micros > 0 {
        return format!("{ms}.{micros:03}ms");
    }
    match ms {
        0 => "0s".to_string(),
        ms if ms % 3_600_000 == 0 => format!("{}h", ms / 3_600_000),
        ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
        ms if ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, ms) in [
            ("300ms", 300),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1.5s", 1500),
        ] {
            let d = parse_duration(text).expect(text);
            assert_eq!(crate::time::millis(d), ms);
            assert_eq!(parse_duration(&format_duration(d)), Some(d));
        }
        for micros in [1, 500, 999, 1001, 1_500, 60_000_001, 86_399_999_999] {
            let d = Duration::from_micros(micros);
            assert_eq!(parse_duration(&format_duration(d)), Some(d), "{micros}");
        }
        assert_eq!(format_duration(Duration::from_micros(500)), "0.500ms");
        for bad in ["", "5", "s", "-1s", "5 parsecs", "1e99s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
