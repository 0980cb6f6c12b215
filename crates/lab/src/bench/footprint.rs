//! What agent and guard took at rest, the primary apart from the secondaries.

use super::Percentiles;
use crate::run::AtRest;

/// Which hosts a share is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The primary.
    Primary,
    /// All others.
    Secondary,
}

impl Kind {
    /// Its word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        }
    }
}

/// What was taken, of one kind of host: over the hosts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// Of which hosts.
    pub kind: Kind,
    /// Processor time in hundredths of one core.
    pub core_percent: Percentiles,
    /// Resident memory, in units of 1,000,000 bytes.
    pub rss_mb: Percentiles,
    /// Proportional memory, in units of 1,000,000 bytes.
    pub pss_mb: Option<Percentiles>,
    /// Bytes received in a second.
    pub bytes_in: Percentiles,
    /// Frames received in a second.
    pub packets_in: Percentiles,
    /// Bytes sent in a second.
    pub bytes_out: Percentiles,
    /// Frames sent in a second.
    pub packets_out: Percentiles,
    /// Operations on datastores in a second.
    pub storage_operations: Percentiles,
    /// Bytes read from datastores in a second.
    pub storage_read: Percentiles,
    /// Bytes written to datastores in a second.
    pub storage_written: Percentiles,
    /// Bytes read by system calls in a second.
    pub io_read: Option<Percentiles>,
    /// Bytes written by system calls in a second.
    pub io_written: Option<Percentiles>,
}

#[expect(
    clippy::cast_precision_loss,
    reason = "figures for people, far below 2^53"
)]
fn number(count: u64) -> f64 {
    count as f64
}

/// The primary's share, and the secondaries'; none of which there was no host.
#[must_use]
pub fn shares(rest: &[AtRest]) -> Vec<Share> {
    [Kind::Primary, Kind::Secondary]
        .into_iter()
        .filter_map(|kind| share(rest, kind))
        .collect()
}

fn share(rest: &[AtRest], kind: Kind) -> Option<Share> {
    let hosts = || {
        rest.iter()
            .filter(|r| r.primary == (kind == Kind::Primary) && !r.time.is_zero())
    };
    let over = |value: &dyn Fn(&AtRest) -> Option<f64>| Percentiles::of(hosts().filter_map(value));
    let a_second = |value: fn(&AtRest) -> u64| {
        over(&move |r: &AtRest| Some(number(value(r)) / r.time.as_secs_f64()))
    };
    let megabytes = |kib: u64| number(kib) * 1024.0 / 1e6;
    let io = |value: fn((u64, u64)) -> u64| {
        over(&move |r: &AtRest| Some(number(value(r.io?)) / r.time.as_secs_f64()))
    };
    Some(Share {
        kind,
        core_percent: over(&|r| Some(r.cpu_s / r.time.as_secs_f64() * 100.0))?,
        rss_mb: over(&|r| Some(megabytes(r.rss_kib)))?,
        pss_mb: over(&|r| Some(megabytes(r.pss_kib?))),
        bytes_in: a_second(|r| r.traffic.bytes_in)?,
        packets_in: a_second(|r| r.traffic.packets_in)?,
        bytes_out: a_second(|r| r.traffic.bytes_out)?,
        packets_out: a_second(|r| r.traffic.packets_out)?,
        storage_operations: a_second(|r| r.storage.operations)?,
        storage_read: a_second(|r| r.storage.bytes_read)?,
        storage_written: a_second(|r| r.storage.bytes_written)?,
        io_read: io(|(read, _)| read),
        io_written: io(|(_, written)| written),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procs::Traffic;
    use crate::storage::Tally;
    use mainstay_core::id::HostId;
    use mainstay_core::time::Duration;

    fn host(primary: bool, cpu_s: f64) -> AtRest {
        AtRest {
            host: HostId::new("host-1").expect("id"),
            primary,
            time: Duration::from_secs(20),
            cpu_s,
            rss_kib: 10_000,
            pss_kib: None,
            traffic: Traffic {
                bytes_in: 4_000,
                ..Traffic::default()
            },
            storage: Tally {
                operations: 100,
                ..Tally::default()
            },
            io: Some((2_000, 1_000)),
        }
    }

    #[test]
    fn the_primary_is_apart() {
        let all = shares(&[host(false, 0.1), host(true, 0.4), host(false, 0.2)]);
        let [primary, secondary] = all.as_slice() else {
            panic!("two kinds");
        };
        assert_eq!(
            (primary.kind, primary.core_percent.max),
            (Kind::Primary, 2.0)
        );
        assert_eq!(secondary.core_percent.count, 2);
        assert_eq!(secondary.core_percent.max, 1.0);
        assert_eq!(secondary.rss_mb.median, 10.24);
        assert_eq!(secondary.bytes_in.median, 200.0);
        assert_eq!(secondary.storage_operations.median, 5.0);
        assert_eq!(secondary.io_read.map(|p| p.median), Some(100.0));
        assert_eq!(secondary.pss_mb, None);
        assert_eq!(shares(&[]), Vec::new());
    }
}
