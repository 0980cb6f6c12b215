//! Fence devices of a seed, what is wrong with them, and whom they may switch off.
//!
//! Drawn apart from all else, so that what else a seed means does not hang on it. Only what a device can honestly do
//! is drawn: one that calls a host off that runs on is outside what a proof by power assumes.

use super::small;
use crate::clock::{MS, Nanos, SECOND};
use crate::scenario::{Fault, FenceFault, FenceSetup, Planned};
use mainstay_core::config::{FenceAction, FenceCutOff, FencePolicy, Settings};
use mainstay_core::rng::Rng;
use mainstay_core::time::Duration;

/// How many of a hundred seeds have fence devices.
const FENCED: u64 = 45;

/// Does the seed have fence devices, and what may they do?
pub(super) fn settings(rng: &mut Rng, settings: &mut Settings) -> bool {
    if !rng.percent(FENCED) {
        return false;
    }
    settings.fence_policy = match rng.below(10) {
        0..=4 => FencePolicy::Dead,
        _ => FencePolicy::Suspected,
    };
    settings.fence_cut_off = match rng.below(10) {
        0..=5 => FenceCutOff::Never,
        6..=7 => FenceCutOff::Isolated,
        _ => FenceCutOff::Partitioned,
    };
    if rng.percent(70) {
        settings.fence_action = FenceAction::Cycle;
    }
    let s = Duration::from_secs;
    settings.fence_timeout = s(rng.between(3, 20));
    settings.fence_delay = s(rng.between(0, 15));
    settings.fence_retry = s(rng.between(2, 20));
    settings.fence_boot_time = s(rng.between(5, 60));
    settings.fence_check_interval = s(rng.between(20, 300));
    true
}

/// A device for each host, or for nearly each.
pub(super) fn devices(rng: &mut Rng, hosts: usize) -> Vec<FenceSetup> {
    let quick = rng.percent(70);
    let all = rng.percent(70);
    (0..hosts)
        .filter(|_| all || rng.percent(80))
        .collect::<Vec<usize>>()
        .into_iter()
        .map(|host| FenceSetup {
            host,
            switches: Some(host),
            takes: match quick {
                true => rng.between(100, 2000) * MS,
                false => rng.between(1000, 15_000) * MS,
            },
            dies_with_host: rng.percent(20),
            says_who: rng.percent(20),
        })
        .collect()
}

/// Devices die, are slow or do nothing for a while; all are well from `until` on.
pub(super) fn faults(rng: &mut Rng, devices: &[FenceSetup], until: Nanos) -> Vec<Planned> {
    let mut events = Vec::new();
    if devices.is_empty() {
        return events;
    }
    let mut at = rng.between(5, 60) * SECOND;
    while at < until {
        let device = devices.get(small(rng.below(devices.len() as u64)));
        let Some(host) = device.map(|d| d.host) else {
            break;
        };
        let fault = match rng.below(4) {
            0 | 1 => FenceFault::Dead,
            2 => FenceFault::Slow(rng.between(1000, 30_000) * MS),
            _ => FenceFault::Stuck,
        };
        let host = Some(host);
        events.push(Planned {
            at,
            fault: Fault::FenceDevice { host, fault },
        });
        let end = at + rng.between(5, 120) * SECOND;
        let fault = FenceFault::Heal;
        events.push(Planned {
            at: end,
            fault: Fault::FenceDevice { host, fault },
        });
        at += rng.between(20, 180) * SECOND;
    }
    events.retain(|e| e.at < until);
    let well = Fault::FenceDevice {
        host: None,
        fault: FenceFault::Heal,
    };
    events.push(Planned {
        at: until,
        fault: well,
    });
    events
}
