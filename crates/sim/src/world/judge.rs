//! Turns what happens in the world into facts for the invariants.

use super::World;
use super::disk::{Disk, put_pages};
use super::guest::{Instance, Wanted};
use super::list::{Known, NewestList};
use crate::clock::MS;
use crate::invariants::Fact;
use mainstay_core::config::{Rule, RuleKind};
use mainstay_core::event::{Event, EventKind};
use mainstay_core::id::Generation;
use mainstay_core::io::{StorageRequest, StorageValue};
use mainstay_core::time::nanos;
use mainstay_core::wire::{
    ConfigRecord, Desired, LockRecord, PoweronRecord, RecordKey, StartOrder,
};
use std::collections::{BTreeMap, BTreeSet};

/// The powered-on lists of clusters with up to so many VMs are judged.
const LISTS_JUDGED: usize = 100;

/// A powered-on list as its host has written it, whatever became of the writes.
#[derive(Debug, Default)]
pub(super) struct Shown {
    file: Vec<u8>,
    vms: BTreeSet<usize>,
}

impl World<'_> {
    fn owner_generation(&self, host: usize, disk: usize) -> Option<Generation> {
        let owners = self.disks[disk].owners.iter().rev();
        owners
            .filter(|(_, holder)| **holder == Some(host))
            .map(|(generation, _)| *generation)
            .next()
    }

    /// A primary orders a start: an act as owner of the VM's datastore.
    pub(super) fn owner_orders(&mut self, host: usize, order: &StartOrder) {
        let Some(disk) = self.disk_index.get(&order.spec.datastore).copied() else {
            return;
        };
        let generation = self.owner_generation(host, disk);
        let fact = Fact::OwnerActs {
            host,
            datastore: disk,
            generation,
            what: "ordered a start",
        };
        self.judge.observe(self.now, &fact);
    }

    /// A protected list is about to be written: an act under the generation in its name.
    pub(super) fn owner_acts_on_disk(
        &mut self,
        host: usize,
        disk: usize,
        request: &StorageRequest,
    ) {
        let (StorageRequest::Put(RecordKey::Protected(generation), _)
        | StorageRequest::PutPages(RecordKey::Protected(generation), _)
        | StorageRequest::Link(RecordKey::Protected(generation), _)) = request
        else {
            return;
        };
        let generation = Some(*generation);
        let fact = Fact::OwnerActs {
            host,
            datastore: disk,
            generation,
            what: "wrote the protected list",
        };
        self.judge.observe(self.now, &fact);
    }

    /// A lock is about to be given back, or a powered-on list to be written.
    pub(super) fn gives_up_on_disk(&mut self, host: usize, disk: usize, request: &StorageRequest) {
        let cluster = self.scenario.config.cluster_id;
        let (what, vms): (&str, Vec<usize>) = match request {
            StorageRequest::Link(RecordKey::VmLock(id, _), bytes) => {
                let free =
                    LockRecord::decode(cluster, bytes).is_ok_and(|(_, r)| r.holder.is_none());
                let vm = self.vm_index.get(id).copied().filter(|_| free);
                ("gave back the lock of", vm.into_iter().collect())
            }
            StorageRequest::Put(RecordKey::Poweron(_), _)
            | StorageRequest::PutPages(RecordKey::Poweron(_), _) => (
                "took off its powered-on list",
                self.gone_from_list(host, disk, request),
            ),
            _ => return,
        };
        for vm in vms {
            let left = self
                .instances
                .living_on(host)
                .any(|(_, i)| i.vm == vm && i.has_executed());
            let fact = Fact::GivenUp {
                vm,
                host,
                what,
                left,
            };
            self.judge.observe(self.now, &fact);
        }
    }

    /// The VMs that a host's last powered-on list had, and the one that it is about to write has not.
    fn gone_from_list(&mut self, host: usize, disk: usize, request: &StorageRequest) -> Vec<usize> {
        // Of a big cluster the lists are left alone: to read them costs more than to play it.
        if self.vms.len() > LISTS_JUDGED {
            return Vec::new();
        }
        let shown = self.shown.entry((host, disk)).or_default();
        match request {
            StorageRequest::Put(_, bytes) => shown.file.clone_from(bytes),
            StorageRequest::PutPages(_, pages) => put_pages(&mut shown.file, pages),
            _ => return Vec::new(),
        }
        let cluster = self.scenario.config.cluster_id;
        let Ok((_, record)) = PoweronRecord::decode(cluster, &shown.file) else {
            return Vec::new();
        };
        let index = |(vm, _): &(_, _)| self.vm_index.get(vm).copied();
        let now: BTreeSet<usize> = record.vms.iter().filter_map(index).collect();
        let before = std::mem::replace(&mut shown.vms, now);
        // What was deleted from the configuration is on no list, whatever is left of it.
        let config = self.hosts[host].config.as_deref();
        let known = |vm: &usize| config.is_none_or(|c| c.vms.contains_key(&self.vms[*vm].id));
        let gone = before.difference(&shown.vms).copied();
        gone.filter(known).collect()
    }

    /// A record on a datastore changed.
    pub(super) fn record_landed(
        &mut self,
        disk: usize,
        request: &StorageRequest,
        value: &StorageValue,
    ) {
        if *value != StorageValue::Done {
            return;
        }
        match request {
            StorageRequest::Link(RecordKey::OwnerLock(generation), bytes) => {
                let record = LockRecord::decode(self.scenario.config.cluster_id, bytes).ok();
                let holder = record.and_then(|(_, r)| r.holder);
                let holder = holder.and_then(|h| self.host_index.get(&h.host).copied());
                // A stray link of a generation that was used and removed is legal; acting under it is not.
                self.disks[disk].owners.entry(*generation).or_insert(holder);
            }
            StorageRequest::Link(RecordKey::VmLock(id, generation), _) => {
                let newest = self.disks[disk].newest_lock(self.scenario.config.cluster_id, id);
                let Some(vm) = self.vm_index.get(id).copied() else {
                    return;
                };
                if let Some(newest) = newest.filter(|n| n.generation == *generation) {
                    let on = newest.desired == Desired::On;
                    self.vms[vm].on = on;
                    if !on {
                        // Whoever was asked to switch it off has done so.
                        self.vms[vm].off_asked.clear();
                    }
                    let cause = self.vms[vm].off_cause;
                    self.judge
                        .observe(self.now, &Fact::Desired { vm, on, cause });
                }
            }
            StorageRequest::Put(RecordKey::Protected(..), _)
            | StorageRequest::PutPages(RecordKey::Protected(..), _)
            | StorageRequest::Link(RecordKey::Protected(..), _)
            | StorageRequest::Remove(RecordKey::Protected(..)) => self.list_changed(disk, request),
            StorageRequest::Put(RecordKey::Config(..), _)
            | StorageRequest::Remove(RecordKey::Config(..)) => self.config_on_disk(disk),
            _ => {}
        }
    }

    fn list_changed(&mut self, disk: usize, request: &StorageRequest) {
        let known = Known {
            cluster: self.scenario.config.cluster_id,
            vms: &self.vm_index,
        };
        let Disk { records, list, .. } = &mut self.disks[disk];
        let followed = match (request, list.as_mut()) {
            (StorageRequest::PutPages(key, pages), Some(list)) => {
                let file = records.get(key);
                file.is_some_and(|file| match key {
                    RecordKey::Protected(g) if *g == list.generation => {
                        list.follow(known, pages, file)
                    }
                    // One that the newest has replaced.
                    RecordKey::Protected(g) => *g < list.generation,
                    _ => false,
                })
            }
            _ => false,
        };
        if !followed {
            // What a new owner would go by: the list of the highest generation that can be read.
            let first = RecordKey::Protected(Generation(0));
            let last = RecordKey::Protected(Generation(u64::MAX));
            *list = records.range(first..=last).rev().find_map(|(key, file)| {
                let RecordKey::Protected(generation) = key else {
                    return None;
                };
                NewestList::read(known, *generation, file)
            });
        }
        let Some(list) = list else { return };
        let fact = Fact::List {
            datastore: disk,
            vms: &list.vms,
        };
        self.judge.observe(self.now, &fact);
    }

    /// The newest configuration that an owner would find.
    fn config_on_disk(&mut self, disk: usize) {
        let cluster = self.scenario.config.cluster_id;
        let mut newest: Option<(Generation, u64)> = None;
        for (key, bytes) in self.disks[disk].records.iter().rev() {
            let RecordKey::Config(generation, _) = key else {
                continue;
            };
            let Ok((_, record)) = ConfigRecord::decode(cluster, bytes) else {
                continue;
            };
            newest = newest.max(Some((*generation, record.config.version)));
        }
        let newest = newest.map_or(0, |(_, version)| version);
        self.judge
            .observe(self.now, &Fact::ConfigOnDisk { version: newest });
    }

    /// What is mandatory and would be broken if `vm` started on `host` now.
    pub(super) fn broken_rule(&self, vm: usize, host: usize) -> Option<String> {
        self.unfit(vm, host)
            .or_else(|| self.company(vm, host, |i| i.executes()))
    }

    /// What is mandatory and keeps `vm` off `host`, whatever runs elsewhere.
    pub(super) fn unfit(&self, vm: usize, host: usize) -> Option<String> {
        let disk = self.vms[vm].disk;
        let at = &self.hosts[host].id;
        if !self.hosts[host].mounts.get(disk).copied().unwrap_or(false) {
            return Some(format!("it does not mount {}", self.disks[disk].id));
        }
        // As its own agent has it on local disk, for longer than an order may be on its way.
        let order = nanos(self.settings_of(host).order_timeout);
        let resting = self.hosts[host].resting_since;
        if resting.is_some_and(|since| self.now > since + order) {
            return Some("it is in maintenance".into());
        }
        let broken = |rule: &&Rule| match rule.kind {
            RuleKind::HostAffinity => !rule.hosts.contains(at),
            RuleKind::HostAntiAffinity => rule.hosts.contains(at),
            RuleKind::AntiAffinity | RuleKind::Affinity => false,
        };
        self.mandatory(vm).find(broken).map(breaks)
    }

    /// The mandatory rule that `vm` on `host` breaks with one of the instances that count.
    fn company(
        &self,
        vm: usize,
        host: usize,
        counts: impl Fn(&Instance) -> bool,
    ) -> Option<String> {
        let apart = |rule: &Rule, i: &Instance| match rule.kind {
            RuleKind::AntiAffinity => i.host == host,
            RuleKind::Affinity => i.host != host,
            RuleKind::HostAffinity | RuleKind::HostAntiAffinity => false,
        };
        let broken = |rule: &&Rule| {
            let others = rule.vms.iter().filter_map(|id| self.vm_index.get(id));
            let mut others = others.filter(|other| **other != vm && !self.has_left_rules(**other));
            others.any(|other| {
                let mut living = self.instances.living(*other);
                living.any(|(_, i)| counts(i) && apart(rule, i))
            })
        };
        self.mandatory(vm).find(broken).map(breaks)
    }

    fn mandatory(&self, vm: usize) -> impl Iterator<Item = &Rule> {
        let id = &self.vms[vm].id;
        let rules = self.scenario.config.rules.iter();
        let left = self.has_left_rules(vm);
        rules.filter(move |r| r.mandatory && !left && r.vms.contains(id))
    }

    /// Its deletion was asked for, and some host goes by a configuration whose rules name it no more. Where
    /// a host that has yet to hear of that starts it once more, it runs without them.
    fn has_left_rules(&self, vm: usize) -> bool {
        let id = &self.vms[vm].id;
        let names = |rules: &[Rule]| rules.iter().filter(|r| r.vms.contains(id)).count();
        let all = names(&self.scenario.config.rules);
        self.vms[vm].deletion_asked
            && (0..self.hosts.len()).any(|h| names(&self.config_of(h).rules) < all)
    }

    /// The rule that a primary breaks by an order, with VMs of which it has had the time to hear.
    fn ordered_against(&self, primary: usize, vm: usize, host: usize) -> Option<String> {
        let weather = &self.scenario.weather;
        let late = 2 * weather.delay_ms * MS + nanos(self.settings_of(primary).timing.dead);
        let since = self.now.saturating_sub(late);
        let resets = self.stormy() && weather.reset > 0;
        let heard = |h: usize| {
            let both = self.net.path(h, primary) && self.net.path(primary, h);
            let hosts = [&self.hosts[h], &self.hosts[primary]];
            let at_rest = hosts
                .iter()
                .all(|h| h.agent_listens() && !h.drilled && h.unrest < since);
            (h == primary || both && !resets) && at_rest
        };
        // What runs on a host that is being shut down is on its way off, and holds nobody back.
        let stays = |h: usize| self.hosts[h].shutting.is_none();
        self.company(vm, host, |i| {
            i.executes() && i.runs_since < since && heard(i.host) && stays(i.host)
        })
    }

    /// The chains of locks on each datastore, for people who look for a cause.
    pub(super) fn disk_table(&self) -> Vec<String> {
        let cluster = self.scenario.config.cluster_id;
        let mut lines = Vec::new();
        for disk in self.disks.iter() {
            let mut chains: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for (key, bytes) in &disk.records {
                let (name, generation) = match key {
                    RecordKey::VmLock(vm, generation) => (vm.to_string(), generation),
                    RecordKey::OwnerLock(generation) => ("owner".into(), generation),
                    RecordKey::Protected(generation) => ("list".into(), generation),
                    RecordKey::Config(generation, _) => ("config".into(), generation),
                    RecordKey::Heartbeat(_) | RecordKey::Poweron(_) => continue,
                };
                let holder = LockRecord::decode(cluster, bytes).map(|(_, r)| {
                    let on = if r.desired == Desired::On { "+" } else { "" };
                    r.holder
                        .map_or(format!(" free{on}"), |h| format!(" {}{on}", h.host))
                });
                let text = format!("{generation}{}", holder.unwrap_or_default());
                chains.entry(name).or_default().push(text);
            }
            let chains: Vec<String> = chains
                .into_iter()
                .map(|(name, chain)| format!("{name} [{}]", chain.join(", ")))
                .collect();
            lines.push(format!("{:<10} {}", disk.id.as_str(), chains.join("  ")));
        }
        lines
    }

    /// An agent reports an event.
    pub(super) fn said(&mut self, host: usize, event: Event) {
        let vm = event
            .kind
            .vm()
            .and_then(|id| self.vm_index.get(id).copied());
        let now = self.now;
        match (&event.kind, vm) {
            (EventKind::VmProtected { datastore, .. }, Some(vm)) => {
                let v = &mut self.vms[vm];
                (v.protected, v.abandoned) = (true, None);
                v.promised = v.wanted != Wanted::Off;
                if let Some(datastore) = self.disk_index.get(datastore).copied() {
                    self.judge.observe(
                        now,
                        &Fact::Protected {
                            vm,
                            datastore,
                            yes: true,
                        },
                    );
                }
            }
            (EventKind::VmUnprotected { .. }, Some(vm)) => {
                let v = &mut self.vms[vm];
                v.protected = false;
                if v.wanted == Wanted::AsOnDisk && !v.on {
                    // Its guest was asked to stop and the lock says off: what comes next is a new start.
                    v.promised = false;
                }
                let datastore = self.vms[vm].disk;
                self.judge.observe(
                    now,
                    &Fact::Protected {
                        vm,
                        datastore,
                        yes: false,
                    },
                );
            }
            (EventKind::VmStopped { reason, .. }, Some(vm)) => {
                let exit = self.vms[vm].last_exit.get(&host).copied();
                self.judge.observe(
                    now,
                    &Fact::Stopped {
                        vm,
                        host,
                        reason: *reason,
                        exit,
                        user: self.vms[vm].off_by.contains(&host),
                        isolated: self.has_answered(host, vm),
                        storage: self.hosts[host].storage_stops.contains(&vm),
                        host_leaves: self.hosts[host].shutting.is_some(),
                    },
                );
            }
            (EventKind::RestartRequested { host: to, .. }, Some(vm)) => {
                let to = self.host_index.get(to).copied();
                let against = to.and_then(|to| self.ordered_against(host, vm, to));
                self.vms[vm].ordered_to = to;
                self.vms[vm].ordered_against = against;
            }
            (EventKind::DrillStarted { .. }, _) => self.in_drill(host, true),
            (EventKind::DrillEnded { .. }, _) => self.in_drill(host, false),
            (EventKind::RestartAbandoned { .. }, Some(vm)) => self.vms[vm].abandoned = Some(host),
            (EventKind::VmStarted { .. }, Some(vm)) => self.vms[vm].abandoned = None,
            (EventKind::IsolationDeclared { .. }, _) => self.isolation_declared(host),
            (EventKind::IsolationEnded { .. }, _) => self.isolation_over(host),
            (EventKind::IsolationResponse { action, .. }, Some(vm)) => {
                self.isolation_response(host, vm, *action);
            }
            (EventKind::VmcpResponse { .. }, Some(vm)) => self.stops_for_storage(host, vm, false),
            (EventKind::VmReset { .. }, Some(vm)) => self.stops_for_storage(host, vm, true),
            (EventKind::PrimaryElected { .. }, _) => {
                self.first_primary.get_or_insert(now);
            }
            _ => {}
        }
        self.judge.observe(
            now,
            &Fact::Said {
                event: &event.kind,
                vm,
                retries: self.settings_of(host).max_restart_attempts,
            },
        );
        self.log(event.kind, event.why);
    }
}

fn breaks(rule: &Rule) -> String {
    format!(
        "it breaks the mandatory rule {:?} {:?}",
        rule.kind, rule.vms
    )
}
