//! The beginning and the end of a run: everything before zero, and what is demanded when faults are over.

use super::disk::Disk;
use super::guard::Words;
use super::guest::{Vm, Wanted};
use super::{Happening, Host, SETTLE_LIMIT, World};
use crate::clock::{Clock, MS, SECOND};
use crate::expect::Check;
use crate::invariants::Fact;
use mainstay_core::config::RestartPriority;
use mainstay_core::guard::Guard;
use mainstay_core::id::BootId;
use mainstay_core::io::Durable;
use mainstay_core::provision::{datastore_records, vm_record};
use mainstay_core::time::nanos;
use mainstay_core::wire::RoleTag;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

impl World<'_> {
    /// Makes hosts, datastores and VMs, and starts all hosts together.
    pub(super) fn start(&mut self) {
        let scenario = self.scenario;
        let mut phases = mainstay_core::rng::Rng::new(scenario.seed).fork("phases");
        self.net.draw(&mut self.dice.net);
        let interval = nanos(scenario.config.settings.timing.network_heartbeat);
        for setup in &scenario.hosts {
            let spec = scenario.config.hosts.get(&setup.id);
            let mounts = scenario
                .datastores
                .iter()
                .map(|d| spec.is_some_and(|s| s.datastores.contains(&d.id)));
            let host = Host {
                id: setup.id.clone(),
                mounts: mounts.collect(),
                clock: Clock::new(phases.between(10, 1_000_000) * MS, setup.ppm),
                powered: true,
                pings_from: 0,
                paused: false,
                boot: 1,
                boot_id: BootId(phases.next_u64()),
                agent: None,
                agent_run: 0,
                agent_hung: false,
                drilled: false,
                agent_waits: false,
                inbox: VecDeque::new(),
                timer: None,
                guard: Some(Guard::new(scenario.config.settings.frozen_limit)),
                guard_run: 1,
                guard_hung: false,
                guard_wake: None,
                guard_poke: false,
                guard_busy: 0,
                words: Words::new(scenario.vms.len()),
                frozen_limit: scenario.config.settings.frozen_limit,
                extended: BTreeMap::new(),
                doubt_until: 0,
                durable: Durable::default(),
                keeps_until: 0,
                config: None,
                resting_since: None,
                shutting: None,
                restarting: None,
                formats: setup.formats,
                seen_formats: BTreeMap::new(),
                wishes: BTreeMap::new(),
                in_flight: 0,
                deferred: Vec::new(),
                start_fails: 0,
                lost: vec![0; scenario.datastores.len()],
                role: None,
                isolated: None,
                responses: BTreeMap::new(),
                storage_stops: BTreeSet::new(),
                reached: 0,
                unrest: 0,
                gateway_pings: BTreeSet::new(),
            };
            let index = self.hosts.push(host);
            let phase = phases.below(interval.max(1));
            self.at(
                phase,
                Happening::AgentStart {
                    host: index,
                    boot: 1,
                },
            );
        }
        self.make_disks();
        self.make_fence_devices();
        self.at(MS, Happening::Settle);
    }

    fn make_disks(&mut self) {
        let scenario = self.scenario;
        let (cluster, settings) = (scenario.config.cluster_id, &scenario.config.settings);
        let Some(by) = scenario.hosts.first().map(|h| h.id.clone()) else {
            return;
        };
        for setup in &scenario.datastores {
            let fence = scenario
                .config
                .datastores
                .get(&setup.id)
                .map(|d| d.fence)
                .unwrap_or_default();
            let mut disk = Disk::new(
                setup.id.clone(),
                fence,
                setup.image_locks,
                setup.image_lock_expiry,
                scenario.hosts.len(),
            );
            let hosts = scenario
                .config
                .hosts
                .values()
                .filter(|h| h.datastores.contains(&setup.id));
            for (key, bytes) in datastore_records(cluster, settings, hosts, &by) {
                disk.records.insert(key, Arc::new(bytes));
            }
            self.disks.push(disk);
        }
        for setup in &scenario.vms {
            let known = scenario.config.vms.get(&setup.id);
            let Some(spec) = known.or_else(|| scenario.created.get(&setup.id)) else {
                continue;
            };
            let disk = self.disk_index.get(&spec.datastore).copied().unwrap_or(0);
            if known.is_some() {
                let (key, bytes) = vm_record(cluster, settings, &setup.id, &by);
                self.disks[disk].records.insert(key, Arc::new(bytes));
            }
            self.vms.push(Vm {
                id: setup.id.clone(),
                disk,
                start_time: setup.start_time,
                shutdown_time: setup.shutdown_time,
                start_fails: 0,
                disk_fails: BTreeMap::new(),
                off_wished: false,
                deletion_asked: false,
                on_asked: BTreeSet::new(),
                off_asked: BTreeSet::new(),
                on: false,
                memory_mb: spec.memory_mb,
                cpu_mhz: spec.cpu_mhz,
                ordered_to: None,
                ordered_against: None,
                home: setup.host,
                wanted: Wanted::Off,
                off_cause: true,
                off_by: BTreeSet::new(),
                protected: false,
                promised: false,
                abandoned: None,
                last_exit: BTreeMap::new(),
                newest_open: None,
                accepted: false,
            });
        }
    }

    /// Runs before zero: VMs are switched on when there is a primary, and zero comes when all are protected.
    pub(super) fn settle(&mut self) {
        let timing = &self.scenario.config.settings.timing;
        let pause = nanos(timing.r#break) + nanos(timing.elected_to_restart) + 2 * SECOND;
        let ready = self
            .first_primary
            .is_some_and(|t| self.now >= t + nanos(timing.network_heartbeat) * 2);
        if ready {
            self.switch_on();
        }
        let wanted = || {
            self.scenario
                .vms
                .iter()
                .enumerate()
                .filter(|(_, v)| v.on)
                .map(|(index, _)| index)
        };
        let all =
            wanted().all(|vm| self.vms[vm].protected && !self.facts_of(vm).running.is_empty());
        let rested = self.first_primary.is_some_and(|t| self.now >= t + pause);
        let one = self
            .hosts
            .iter()
            .filter(|h| matches!(h.role, Some((RoleTag::Primary, _))))
            .count()
            == 1;
        if all && rested && one {
            self.zero_comes();
        } else if self.now > SETTLE_LIMIT {
            let missing = wanted()
                .filter(|vm| !self.vms[*vm].protected)
                .map(|vm| self.vms[vm].id.to_string());
            let missing: Vec<String> = missing.collect();
            let primary = if one {
                ""
            } else {
                "there is not exactly one primary; "
            };
            self.error = Some(format!(
                "the cluster did not settle within {} s: {primary}not protected: [{}]",
                SETTLE_LIMIT / SECOND,
                missing.join(", ")
            ));
            self.ended = true;
        } else {
            self.after(100 * MS, Happening::Settle);
        }
    }

    fn switch_on(&mut self) {
        let homes = self.scenario.homes();
        for (vm, (setup, home)) in self.scenario.vms.iter().zip(homes).enumerate() {
            if !setup.on || self.vms[vm].accepted {
                continue;
            }
            let Some(host) = home else { continue };
            self.vms[vm].home = Some(host);
            self.vms[vm].accepted = self.wish_on(vm, Some(host));
        }
    }

    fn zero_comes(&mut self) {
        // The phases of faults against heartbeats are the seed's, not the settling's.
        let interval = nanos(self.scenario.config.settings.timing.network_heartbeat);
        let zero = self.now + SECOND + self.dice.life.below(interval.max(1));
        self.zero = Some(zero);
        let scenario = self.scenario;
        for (index, planned) in scenario.events.iter().enumerate() {
            self.at(zero + planned.at, Happening::Fault { index });
        }
        for (index, expect) in scenario.expects.iter().enumerate() {
            if let Check::State { by, .. } = expect.check {
                self.at(
                    zero + by.min(scenario.duration),
                    Happening::Moment { index },
                );
            }
        }
        for vm in 0..self.vms.len() {
            self.at(zero, Happening::Recheck { vm });
        }
        if scenario.liveness {
            self.at(zero + scenario.duration, Happening::Demand);
        }
        self.at(zero + scenario.duration, Happening::End);
    }

    pub(super) fn moment(&mut self, index: usize) {
        let scenario = self.scenario;
        if let Some(Check::State { vm, .. }) = scenario.expects.get(index).map(|e| &e.check) {
            let facts = self.facts_of(*vm);
            self.watch.moment(&scenario.expects, index, &facts);
        }
    }

    /// Faults are over for long enough: liveness is demanded.
    pub(super) fn demand(&mut self) {
        let alive: Vec<usize> = (0..self.hosts.len())
            .filter(|h| self.hosts[*h].agent_listens())
            .collect();
        let mut groups: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
        for host in alive {
            let met = groups.iter_mut().find(|(members, _)| {
                members
                    .iter()
                    .any(|m| self.net.path(host, *m) && self.net.path(*m, host))
            });
            let primary = matches!(self.hosts[host].role, Some((RoleTag::Primary, _)));
            match met {
                Some((members, primaries)) => {
                    members.push(host);
                    primaries.extend(primary.then_some(host));
                }
                None => groups.push((vec![host], if primary { vec![host] } else { Vec::new() })),
            }
        }
        self.judge
            .observe(self.now, &Fact::Groups { groups: &groups });
        let owners: Vec<usize> = groups
            .into_iter()
            .flat_map(|(_, primaries)| primaries)
            .collect();
        for vm in 0..self.vms.len() {
            self.demand_vm(vm, &owners);
        }
    }

    /// What should run and can does, and what runs is on the list that a new owner would go by.
    fn demand_vm(&mut self, vm: usize, primaries: &[usize]) {
        let v = &self.vms[vm];
        // A primary that does not mount a datastore cannot own it: its VMs wait for one that does. One that
        // was taken out of the configuration while it was being started is left to an admin.
        let spec_at = |h: usize| {
            let mounts = self.hosts[h].mounts.get(v.disk).copied().unwrap_or(false);
            let agent = self.hosts[h].agent.as_ref().filter(|_| mounts);
            agent.and_then(|a| a.config().vms.get(&v.id))
        };
        let owner = primaries
            .iter()
            .find_map(|h| spec_at(*h).map(|spec| (*h, spec)));
        let Some((owner, spec)) = owner else { return };
        if v.off_wished {
            return;
        }
        let facts = self.facts_of(vm);
        let disk = &self.disks[v.disk];
        let well = |h: usize| disk.faults(h) == Default::default();
        let listed = disk.list.as_ref().is_some_and(|l| l.vms.contains(&vm));
        let seen = |h: &usize| {
            let connected = self.net.path(*h, owner) && self.net.path(owner, *h);
            self.hosts[*h].agent_listens() && (*h == owner || connected) && well(*h)
        };
        let (runs, protects) = (!facts.running.is_empty(), well(owner));
        let seen_to_run = protects && facts.running.iter().any(seen);
        let wanted = match v.wanted {
            Wanted::Off => false,
            Wanted::AsOnDisk => v.on,
            Wanted::On => true,
        };
        let disabled = spec.restart_priority == RestartPriority::Disabled;
        let restarts = wanted && (v.promised || listed) && !disabled && v.abandoned != Some(owner);
        let room = || {
            (0..self.hosts.len()).any(|h| {
                self.hosts[h].agent_listens()
                    && self.hosts[h].resting_since.is_none()
                    && self.hosts[h].guard_works()
                    && well(h)
                    && self.free_memory(h) >= v.memory_mb
                    && self.free_cpu(h) >= v.cpu_mhz
                    && self.broken_rule(vm, h).is_none()
            })
        };
        let should_run = restarts && (runs || room() && !self.death_is_unprovable(vm, owner));
        if seen_to_run {
            let fact = Fact::ShouldBeListed { vm, listed };
            self.judge.observe(self.now, &fact);
        }
        if should_run {
            let why = format!(
                "{} instances, {} frozen, and there is room for it",
                facts.instances, facts.frozen
            );
            let why = &why;
            self.judge
                .observe(self.now, &Fact::ShouldRun { vm, runs, why });
        }
    }
}
