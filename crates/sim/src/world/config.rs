//! Changes of the cluster's configuration: asked for at an agent, and asked for again as a person would.

use super::{Happening, World};
use crate::clock::SECOND;
use crate::invariants::Fact;
use mainstay_core::config::{Change, ClusterConfig, Settings};
use mainstay_core::provision::vm_record;
use std::sync::Arc;

/// A change is asked for so often, a second apart, before its user gives up.
const TRIES: u32 = 30;

/// A change that somebody wants.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    changes: Vec<Change>,
    /// Where it is asked for; none: at any agent.
    host: Option<usize>,
    /// A VM to power on when it is made, and where.
    then_on: Option<(usize, Option<usize>)>,
    tries: u32,
}

impl World<'_> {
    /// The configuration that a host goes by: its agent's, the one that it keeps while it has no agent, and
    /// the file's before it has kept any.
    pub(super) fn config_of(&self, host: usize) -> &ClusterConfig {
        let h = &self.hosts[host];
        let kept = h.config.as_deref().unwrap_or(&self.scenario.config);
        h.agent.as_ref().map_or(kept, |a| a.config())
    }

    pub(super) fn settings_of(&self, host: usize) -> &Settings {
        &self.config_of(host).settings
    }

    pub(super) fn wish_change(
        &mut self,
        changes: Vec<Change>,
        host: Option<usize>,
        then_on: Option<(usize, Option<usize>)>,
    ) {
        self.propose(Wish {
            changes,
            host,
            then_on,
            tries: 0,
        });
    }

    /// Asks an agent; the first that listens where none is named.
    pub(super) fn propose(&mut self, mut wish: Wish) {
        wish.tries += 1;
        let any = || (0..self.hosts.len()).find(|h| self.hosts[*h].agent_listens());
        let at = wish.host.or_else(any);
        let Some(at) = at.filter(|h| self.hosts[*h].agent_listens()) else {
            return self.propose_again(wish);
        };
        for change in &wish.changes {
            if let Change::RemoveVm(id) = change
                && let Some(vm) = self.vm_index.get(id)
            {
                self.vms[*vm].deletion_asked = true;
            }
        }
        let now = self.hosts[at].clock.local(self.now);
        let asked = match &mut self.hosts[at].agent {
            Some(agent) => agent.propose(now, wish.changes.clone()).ok(),
            None => None,
        };
        match asked {
            // The outcome may be among what the agent has to say now.
            Some(ticket) => {
                self.hosts[at].wishes.insert(ticket, wish);
                self.drain(at);
            }
            None => {
                self.drain(at);
                self.propose_again(wish);
            }
        }
    }

    fn propose_again(&mut self, wish: Wish) {
        if wish.tries < TRIES {
            let wish = Box::new(wish);
            self.after(SECOND, Happening::Propose { wish });
        }
    }

    pub(super) fn proposed(&mut self, host: usize, ticket: u64, outcome: Result<u64, String>) {
        let wish = self.hosts[host].wishes.remove(&ticket);
        match outcome {
            Err(_) => {
                if let Some(wish) = wish {
                    self.propose_again(wish);
                }
            }
            Ok(version) => {
                self.judge
                    .observe(self.now, &Fact::ConfigAcknowledged { version });
                if let Some((vm, on)) = wish.and_then(|w| w.then_on) {
                    self.power_on_new(vm, on, 0);
                }
            }
        }
    }

    /// Powers a new VM on; its host may not have heard of it yet, and refuses until then.
    pub(super) fn power_on_new(&mut self, vm: usize, host: Option<usize>, tries: u32) {
        if !self.wish_on(vm, host) && tries < TRIES {
            let tries = tries + 1;
            self.after(SECOND, Happening::PowerOn { vm, host, tries });
        }
    }

    /// The records of a new VM are made by the admin's tool, then it is made known.
    pub(super) fn vm_create(&mut self, vm: usize, host: Option<usize>, on: bool) {
        let scenario = self.scenario;
        let id = self.vms[vm].id.clone();
        let (Some(spec), Some(by)) = (scenario.created.get(&id), scenario.hosts.first()) else {
            return;
        };
        let config = &scenario.config;
        let (key, bytes) = vm_record(config.cluster_id, &config.settings, &id, &by.id);
        let disk = self.vms[vm].disk;
        let records = &mut self.disks[disk].records;
        records.entry(key).or_insert_with(|| Arc::new(bytes));
        let host = host.or(scenario.vms.get(vm).and_then(|v| v.host));
        let then_on = on.then_some((vm, host));
        self.wish_change(vec![Change::PutVm(spec.clone())], None, then_on);
    }
}
