//! Looks at what a process takes of its machine, in `/proc`.

use super::growth::{Sample, Watched};
use crate::cluster::{Cluster, Daemon};
use crate::procs;
use nix::unistd::Pid;
use std::fs;
use std::time::Duration;

/// The daemons of all hosts that have power, with what each has now. One that ends meanwhile is left out.
pub(super) fn look(cluster: &Cluster, at: Duration) -> Vec<(Watched, Sample)> {
    let mut seen = Vec::new();
    for host in cluster.hosts() {
        for daemon in [Daemon::Agent, Daemon::Guard] {
            let Some(pid) = host.daemon(daemon) else {
                continue;
            };
            let process = procs::start_time(pid).map(|start| Watched {
                host: host.id.to_string(),
                daemon: daemon.name(),
                start,
                pid: pid.as_raw(),
            });
            seen.extend(process.zip(sample(pid, at)));
        }
    }
    seen
}

/// What a process has now; none when it has ended.
fn sample(pid: Pid, at: Duration) -> Option<Sample> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    Some(Sample {
        at,
        memory_kib: field(&status, "RssAnon:")? + field(&status, "RssShmem:")?,
        descriptors: u64::try_from(descriptors).ok()?,
        threads: field(&status, "Threads:")?,
    })
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_process_is_seen() {
        let held = fs::File::open("/proc/self/status").expect("status");
        let before = sample(Pid::this(), Duration::ZERO).expect("a sample");
        assert!(before.memory_kib > 0 && before.descriptors > 3 && before.threads > 0);
        drop(held);
        assert_eq!(sample(Pid::from_raw(i32::MAX), Duration::ZERO), None);
    }
}
