//! Runs that measure instead of judging expectations: a host's loss until its VMs are back, and a cluster at rest.
//!
//! ```text
//! settle, all VMs on one host --> zero --> power off --> every lost VM has written elsewhere --> last words
//! settle, VMs spread          --> zero --> agents rest --> look, wait, look again
//! ```
//!
//! While a failover goes on, nothing looks at process tables: that would take the processor time that is measured.
//! What must never be is judged by the disks.

use super::disks::Breach;
use super::{Audience, LAST_WORDS, Run, Stage};
use crate::clock::now;
use crate::cluster::Daemon;
use crate::fail::{Failure, Result};
use crate::procs::{self, Traffic};
use crate::storage::Tally;
use mainstay_core::event::EventKind;
use mainstay_core::id::{DatastoreId, HostId, VmId};
use mainstay_core::time::{Duration, Instant};
use mainstay_sim::{Body, Fault};
use std::collections::BTreeMap;

/// Between two looks whether all VMs are back.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A VM that is not back by then does not come back.
const BACK_WITHIN: Duration = Duration::from_secs(120);

/// Which host loses its power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Victim {
    /// One that is not the primary.
    Secondary,
    /// The primary.
    Primary,
}

impl Victim {
    /// Its word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Secondary => "secondary",
            Self::Primary => "primary",
        }
    }
}

/// What was seen of a host's loss. All instants are of one clock.
#[derive(Debug, Clone)]
pub struct Loss {
    /// When its power went.
    pub at: Instant,
    /// The host.
    pub host: HostId,
    /// What it was.
    pub victim: Victim,
    /// Its last UDP datagram to each other host, as the switch gave it.
    pub datagrams: BTreeMap<HostId, Instant>,
    /// Its last heartbeat on each datastore, as the storage saw it.
    pub heartbeats: BTreeMap<DatastoreId, Instant>,
    /// What the agents said since.
    pub events: Vec<(Instant, EventKind)>,
    /// Where each lost VM's disk is, and when the storage saw its guest's first write from another host.
    pub vms: BTreeMap<VmId, (DatastoreId, Option<Instant>)>,
    /// What the disks say should never be.
    pub breaches: Vec<Breach>,
}

/// What a host's agent and guard took in a stretch of time at rest.
#[derive(Debug, Clone)]
pub struct AtRest {
    /// The host.
    pub host: HostId,
    /// It was the primary.
    pub primary: bool,
    /// How long it was looked at.
    pub time: Duration,
    /// Processor time of both, in seconds.
    pub cpu_s: f64,
    /// Resident memory of both at the end, in KiB; what both map counts twice.
    pub rss_kib: u64,
    /// Proportional memory of both at the end, in KiB; none where the kernel does not say.
    pub pss_kib: Option<u64>,
    /// On the host's management networks.
    pub traffic: Traffic,
    /// On all its datastores, as the storage saw it.
    pub storage: Tally,
    /// Bytes read and written by system calls of both, if the kernel says.
    pub io: Option<(u64, u64)>,
}

/// Counters of a host at one moment.
#[derive(Debug, Clone, Copy)]
struct Counters {
    at: Instant,
    cpu_s: f64,
    traffic: Traffic,
    storage: Tally,
    io: Option<(u64, u64)>,
}

impl Run<'_> {
    /// Lets the cluster settle with all VMs on one host, takes that host's power, and ends when every VM has
    /// written from another host, or after two minutes. The scenario's own events and expectations are not looked at.
    ///
    /// # Errors
    /// When this machine lacks something, the cluster does not settle, or somebody stops it.
    pub fn lose_host(self, victim: Victim, audience: &mut dyn Audience) -> Result<Loss> {
        let mut stage = Stage::raise(self, audience)?;
        stage.gather = Some(victim);
        let lost = stage.settle().and_then(|()| stage.lose(victim));
        stage.keep_if_failed(&lost);
        lost
    }

    /// Lets the cluster settle, lets it rest for `settled`, and sees what its daemons take in `time`.
    ///
    /// # Errors
    /// As [`Run::lose_host`]; also when a daemon was started again meanwhile.
    pub fn rest(
        self,
        settled: Duration,
        time: Duration,
        audience: &mut dyn Audience,
    ) -> Result<Vec<AtRest>> {
        let mut stage = Stage::raise(self, audience)?;
        let rest = stage
            .settle()
            .and_then(|()| stage.wait_until(now() + settled))
            .and_then(|()| stage.watch_rest(time));
        stage.keep_if_failed(&rest);
        rest
    }
}

impl Stage<'_> {
    fn keep_if_failed<T>(&mut self, result: &Result<T>) {
        if result.as_ref().is_err_and(|e| !e.is_interrupted()) {
            self.cluster.keep_files();
        }
    }

    /// The primary, when there is exactly one.
    fn primary(&self) -> Option<usize> {
        let mut primaries = self.primaries.iter();
        let (Some(only), None) = (primaries.next(), primaries.next()) else {
            return None;
        };
        self.scenario.hosts.iter().position(|h| h.id == *only)
    }

    fn host_for(&self, victim: Victim) -> Option<usize> {
        let primary = self.primary()?;
        match victim {
            Victim::Primary => Some(primary),
            Victim::Secondary => (0..self.scenario.hosts.len()).find(|h| *h != primary),
        }
    }

    /// Where a host is to be lost with all VMs, all of them begin there.
    pub(super) fn gather(&mut self) {
        if let Some(victim) = self.gather {
            let host = self.host_for(victim);
            self.homes.iter_mut().for_each(|home| *home = host);
        }
    }

    fn lose(&mut self, victim: Victim) -> Result<Loss> {
        let host = self.homes.first().copied().flatten();
        let Some(host) = host.filter(|_| self.host_for(victim) == host) else {
            return Err(
                Failure::new("the primary changed while the cluster settled")
                    .remedy("measure again, when less else runs on this machine"),
            );
        };
        let at = now();
        self.fault_entry(&Fault::HostPowerOff { host }, String::new());
        self.power_off(host)?;
        let deadline = at + BACK_WITHIN;
        while now() < deadline && !self.all_back(host) {
            self.wait_until(now() + LOOK_EVERY)?;
        }
        self.wait_until(now() + LAST_WORDS)?;
        self.seen_of_loss(host, victim, at)
    }

    fn first_write_elsewhere(&self, vm: &VmId, host: &HostId) -> Option<Instant> {
        let stretches = self.disks.stretches(vm);
        let elsewhere = stretches.iter().rev();
        let mut elsewhere = elsewhere.take_while(|s| s.first.host != host.as_str());
        let first = elsewhere.next()?;
        Some(elsewhere.last().unwrap_or(first).first.at)
    }

    fn all_back(&self, host: usize) -> bool {
        let Some(host) = self.scenario.hosts.get(host) else {
            return true;
        };
        let mut vms = self.scenario.vms.iter();
        vms.all(|vm| self.first_write_elsewhere(&vm.id, &host.id).is_some())
    }

    fn seen_of_loss(&self, host: usize, victim: Victim, at: Instant) -> Result<Loss> {
        let id = self.cluster.host(host)?.id.clone();
        let mut datagrams = BTreeMap::new();
        for (other, setup) in self.scenario.hosts.iter().enumerate() {
            if let Some(last) = self.cluster.network().last_datagram(host, other)? {
                datagrams.insert(setup.id.clone(), last);
            }
        }
        let config = &self.scenario.config;
        let heartbeat = |d: &DatastoreId| {
            let last = self.disks.heartbeat(id.as_str(), d.as_str())?;
            Some((d.clone(), last))
        };
        let since_loss = |entry: &mainstay_sim::Entry| {
            let told = self.base + Duration::from_nanos(entry.at);
            match &entry.body {
                Body::Event(kind) if told >= at => Some((told, kind.clone())),
                _ => None,
            }
        };
        let mut events: Vec<_> = self.trace.iter().filter_map(since_loss).collect();
        events.sort_by_key(|(told, _)| *told);
        let back = |spec: &mainstay_core::config::VmSpec| {
            let first = self.first_write_elsewhere(&spec.id, &id);
            (spec.id.clone(), (spec.datastore.clone(), first))
        };
        Ok(Loss {
            at,
            victim,
            datagrams,
            heartbeats: config.datastores.keys().filter_map(heartbeat).collect(),
            events,
            vms: config.vms.values().map(back).collect(),
            breaches: self.disks.breaches(),
            host: id,
        })
    }

    fn counters(&self, host: usize) -> Result<Counters> {
        let it = self.cluster.host(host)?;
        let mut counters = Counters {
            at: now(),
            cpu_s: 0.0,
            traffic: Traffic::default(),
            storage: self.cluster.tally(host),
            io: Some((0, 0)),
        };
        for daemon in [Daemon::Agent, Daemon::Guard] {
            let gone = || Failure::new(format_args!("the {} of {} is gone", daemon.name(), it.id));
            let pid = it.daemon(daemon).ok_or_else(gone)?;
            counters.cpu_s += procs::cpu_seconds(pid).ok_or_else(gone)?;
            counters.traffic = procs::traffic(pid).ok_or_else(gone)?;
            let more = procs::io_bytes(pid);
            counters.io = counters
                .io
                .zip(more)
                .map(|(all, more)| (all.0 + more.0, all.1 + more.1));
        }
        Ok(counters)
    }

    fn watch_rest(&mut self, time: Duration) -> Result<Vec<AtRest>> {
        let hosts = 0..self.scenario.hosts.len();
        self.audience.phase("at rest: looking on");
        let daemons = |stage: &Self| -> Vec<_> {
            let all = stage.cluster.hosts().iter();
            all.flat_map(|h| [h.daemon(Daemon::Agent), h.daemon(Daemon::Guard)])
                .collect()
        };
        let (before, processes) = (
            hosts
                .clone()
                .map(|h| self.counters(h))
                .collect::<Result<Vec<_>>>()?,
            daemons(self),
        );
        self.wait_until(now() + time)?;
        let mut rest = Vec::new();
        for (host, before) in hosts.zip(before) {
            let after = self.counters(host)?;
            rest.push(self.at_rest(host, before, after)?);
        }
        if daemons(self) != processes {
            return Err(Failure::new(
                "a daemon was started again while it was looked at",
            ));
        }
        Ok(rest)
    }

    fn at_rest(&self, host: usize, before: Counters, after: Counters) -> Result<AtRest> {
        let it = self.cluster.host(host)?;
        let pids = [Daemon::Agent, Daemon::Guard].map(|d| it.daemon(d));
        let pids = pids.iter().flatten();
        let less = |after: u64, before: u64| after.saturating_sub(before);
        let (traffic, earlier) = (after.traffic, before.traffic);
        Ok(AtRest {
            host: it.id.clone(),
            primary: self.primary() == Some(host),
            time: after.at.since(before.at),
            cpu_s: after.cpu_s - before.cpu_s,
            rss_kib: pids.clone().filter_map(|p| procs::rss_kib(*p)).sum(),
            pss_kib: pids.map(|p| procs::pss_kib(*p)).sum(),
            traffic: Traffic {
                bytes_in: less(traffic.bytes_in, earlier.bytes_in),
                packets_in: less(traffic.packets_in, earlier.packets_in),
                bytes_out: less(traffic.bytes_out, earlier.bytes_out),
                packets_out: less(traffic.packets_out, earlier.packets_out),
            },
            storage: Tally {
                operations: less(after.storage.operations, before.storage.operations),
                bytes_read: less(after.storage.bytes_read, before.storage.bytes_read),
                bytes_written: less(after.storage.bytes_written, before.storage.bytes_written),
            },
            io: after
                .io
                .zip(before.io)
                .map(|(a, b)| (less(a.0, b.0), less(a.1, b.1))),
        })
    }
}
