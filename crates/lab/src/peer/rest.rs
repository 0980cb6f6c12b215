//! What a host's daemons take while nothing happens.

use super::cluster::Cluster;
use super::host::Host;
use crate::fail::{Failure, Result};
use crate::procs;
use nix::unistd::Pid;
use serde::Serialize;
use std::time::{Duration, Instant};

/// What one host took at rest.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rest {
    /// The host.
    pub host: String,
    /// Processor time of its daemons, in seconds a minute.
    pub daemons_cpu_s: f64,
    /// And with the agents that they start to monitor resources.
    pub all_cpu_s: f64,
    /// Resident memory of its daemons, in KiB.
    pub rss_kib: u64,
    /// Their proportional share of memory, what they have in common counted once; in KiB.
    pub pss_kib: u64,
    /// How many daemons there are.
    pub daemons: usize,
}

/// What has been used up to a moment.
struct Used {
    daemons_s: f64,
    all_micros: u64,
}

/// Watches all hosts for a time.
pub(super) fn measure(cluster: &Cluster<'_>, time: Duration) -> Result<Vec<Rest>> {
    let daemons: Vec<Vec<Pid>> = cluster.hosts().iter().map(daemons).collect();
    let used = || {
        let pairs = cluster.hosts().iter().zip(&daemons);
        pairs.map(|(host, daemons)| used(host, daemons)).collect()
    };
    let start = Instant::now();
    let before: Vec<Used> = used();
    cluster.watch(time)?;
    let after: Vec<Used> = used();
    let minutes = start.elapsed().as_secs_f64() / 60.0;
    let mut rests = Vec::new();
    for (((host, daemons), before), after) in cluster
        .hosts()
        .iter()
        .zip(&daemons)
        .zip(&before)
        .zip(&after)
    {
        let all = Duration::from_micros(after.all_micros.saturating_sub(before.all_micros));
        let memory = daemons.iter().map(|pid| memory_kib(*pid));
        let (rss, pss): (Vec<u64>, Vec<u64>) =
            memory.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        rests.push(Rest {
            host: host.member.name.clone(),
            daemons_cpu_s: (after.daemons_s - before.daemons_s) / minutes,
            all_cpu_s: all.as_secs_f64() / minutes,
            rss_kib: rss.iter().sum(),
            pss_kib: pss.iter().sum(),
            daemons: daemons.len(),
        });
    }
    Ok(rests)
}

/// A host's daemons: what it runs without the shells of agents that are just at work.
fn daemons(host: &Host) -> Vec<Pid> {
    let is_daemon = |pid: &Pid| {
        let line = procs::command_line(*pid);
        let program = line.split(' ').next().unwrap_or_default();
        let name = program.rsplit('/').next().unwrap_or_default();
        name.trim_end_matches(':').starts_with("sbd")
            || ["corosync", "pacemaker"]
                .iter()
                .any(|d| name.starts_with(d))
    };
    host.processes().into_iter().filter(is_daemon).collect()
}

fn used(host: &Host, daemons: &[Pid]) -> Used {
    let seconds = daemons.iter().filter_map(|pid| procs::cpu_seconds(*pid));
    Used {
        daemons_s: seconds.sum(),
        all_micros: host.cpu_micros().unwrap_or_default(),
    }
}

/// Resident and proportional memory of a process.
fn memory_kib(pid: Pid) -> Result<(u64, u64)> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let both = field("Rss:").zip(field("Pss:"));
    both.ok_or_else(|| Failure::new("a daemon ended while the cluster was at rest").at(path))
}
