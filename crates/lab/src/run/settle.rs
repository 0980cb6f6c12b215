//! Everything before zero: all hosts are started together, VMs are switched on when there is a primary, and zero
//! comes when everything is protected and the cluster has rested.

use super::{LOOK_EVERY, Stage, jobs};
use crate::clock::now;
use crate::fail::{Failure, Result};
use jobs::Then;
use mainstay_core::event::{Event, EventKind};
use mainstay_core::rng::Rng;
use mainstay_core::time::{Duration, Instant, nanos};
use std::collections::BTreeSet;

/// A cluster that has not settled by then does not; the simulator's limit is the same.
const SETTLE_LIMIT: Duration = Duration::from_secs(300);
/// Beyond its timers a cluster rests for so long before zero, as in the simulator.
const REST: Duration = Duration::from_secs(2);
/// So often, a second apart, a user asks for a VM that should be on at zero.
const POWER_ON_TRIES: u32 = 30;

impl Stage<'_> {
    pub(super) fn settle(&mut self) -> Result<()> {
        self.audience.phase("starting all hosts");
        for host in 0..self.scenario.hosts.len() {
            self.cluster.power_on(host)?;
        }
        for host in 0..self.scenario.hosts.len() {
            self.start_agent(host)?;
        }
        let begun = now();
        let timing = self.scenario.config.settings.timing.clone();
        let pause = timing.r#break + timing.elected_to_restart + REST;
        let mut asked = BTreeSet::new();
        loop {
            self.wait_until(now() + LOOK_EVERY)?;
            self.look();
            let elected = |at: Instant, after: Duration| now() >= at + after;
            let ready = self
                .first_primary
                .is_some_and(|at| elected(at, 2 * timing.network_heartbeat));
            if ready && asked.is_empty() {
                self.audience.phase("switching the VMs on");
                self.gather();
            }
            if ready {
                self.switch_on(&mut asked);
            }
            let missing = self.missing();
            let rested = self.first_primary.is_some_and(|at| elected(at, pause));
            if missing.is_empty() && rested && self.primaries.len() == 1 {
                return self.zero_comes();
            }
            if now().since(begun) > SETTLE_LIMIT {
                let primary = match self.primaries.len() {
                    1 => "",
                    _ => "there is not exactly one primary; ",
                };
                return Err(Failure::new(format_args!(
                    "the cluster did not settle within {} s: {primary}not running and protected: [{}]",
                    SETTLE_LIMIT.as_secs(),
                    missing.join(", ")
                ))
                .at(self.cluster.dir().display())
                .remedy("the logs of each host lie in its directory there, below log/"));
            }
        }
    }

    fn switch_on(&mut self, asked: &mut BTreeSet<usize>) {
        for (vm, setup) in self.scenario.vms.iter().enumerate() {
            let Some(host) = self.homes.get(vm).copied().flatten() else {
                continue;
            };
            if !setup.on || !asked.insert(vm) {
                continue;
            }
            let (sockets, id) = (self.sockets(Some(host)), setup.id.clone());
            let wished = Then::Wished {
                vm,
                on: true,
                asked_on: 0,
            };
            self.ask(wished, move || {
                jobs::power(&sockets, &id, true, POWER_ON_TRIES)
            });
        }
    }

    /// VMs that should be on and are not yet running and protected.
    fn missing(&self) -> Vec<String> {
        let wanted = self.scenario.vms.iter().filter(|v| v.on);
        wanted
            .filter(|v| {
                !self.protected.contains(&v.id)
                    || self.table.facts(v.id.as_str()).running.is_empty()
            })
            .map(|v| v.id.to_string())
            .collect()
    }

    fn zero_comes(&mut self) -> Result<()> {
        // The phases of faults against heartbeats are the seed's, not the settling's.
        let interval = nanos(self.scenario.config.settings.timing.network_heartbeat);
        let phase = Rng::new(self.scenario.seed)
            .fork("zero")
            .below(interval.max(1));
        let zero = now() + Duration::from_secs(1) + Duration::from_nanos(phase);
        self.wait_until(zero)?;
        self.zero = Some(zero);
        self.audience.phase("settled: zero");
        Ok(())
    }

    /// What the way to zero needs of the agents' words.
    pub(super) fn learn(&mut self, event: &Event) {
        match &event.kind {
            EventKind::PrimaryElected { host } => {
                self.first_primary.get_or_insert(event.at);
                self.primaries.insert(host.clone());
            }
            EventKind::PrimaryAbdicated { host, .. } => {
                self.primaries.remove(host);
            }
            EventKind::VmProtected { vm, .. } => {
                self.protected.insert(vm.clone());
            }
            EventKind::VmUnprotected { vm, .. } => {
                self.protected.remove(vm);
            }
            _ => {}
        }
    }
}
