//! What a primary says and does about VMs whose storage is lost on their host: whether another host can run
//! them, and the restart of those that were given up.

use super::{Ability, GivenUp, VmcpMessage};
use crate::agent::Agent;
use crate::config::{RestartPriority, VmSpec};
use crate::event::HostState;
use crate::id::{DatastoreId, HostId, VmId};
use crate::placement::{Choice, View, plan};
use crate::time::Instant;
use crate::wire::{LockRecord, VmReportState};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Hosts that were named for VMs, and when: what was promised to one is not promised to the next.
pub(crate) type Promised = BTreeMap<VmId, (HostId, Instant)>;

impl Agent {
    /// A message of component protection came.
    pub(crate) fn on_vmcp(&mut self, from: &HostId, message: VmcpMessage) {
        match message {
            VmcpMessage::Ask { vms } if self.role.is_primary() => {
                let vms = self.able(from, &vms);
                self.say_vmcp(from, VmcpMessage::Answer { vms });
            }
            VmcpMessage::Answer { vms } if self.role.followed() == Some(from) => {
                self.on_abilities(vms);
            }
            VmcpMessage::GivenUp(what) if self.role.is_primary() => self.on_given_up(from, what),
            _ => self.ignore("component protection of another primary"),
        }
    }

    /// Which of a host's VMs other hosts can run. Each counts for the next, and for those that are asked about soon.
    pub(super) fn able(&mut self, asker: &HostId, vms: &[VmId]) -> Vec<(VmId, Ability)> {
        let (now, lasts) = (self.now, self.config.settings.order_timeout);
        let mut promised = core::mem::take(&mut self.vmcp.promised);
        promised.retain(|vm, (host, at)| {
            let there = self.locate(vm).is_some_and(|place| place.host == host);
            now.since(*at) < lasts && !there && !vms.contains(vm)
        });
        let mut view = self.view();
        // It stays in the view for the rules that keep VMs together with what runs there.
        if let Some(room) = view.hosts.get_mut(asker) {
            room.datastores.clear();
        }
        for (vm, (host, _)) in &promised {
            if let (Some(spec), Some(room)) = (self.config.vms.get(vm), view.hosts.get_mut(host)) {
                room.take(spec);
            }
        }
        let mut answers = Vec::new();
        for vm in vms {
            let ability = self.ability(&mut view, asker, vm);
            if let Ability::Yes(host) = &ability {
                promised.insert(vm.clone(), (host.clone(), now));
            }
            answers.push((vm.clone(), ability));
        }
        self.vmcp.promised = promised;
        answers
    }

    /// Whether another host can run a VM, and which; it takes its place there.
    fn ability(&self, view: &mut View, asker: &HostId, vm: &VmId) -> Ability {
        let no = |why: &str| Ability::No(String::from(why));
        let Some(spec) = self.config.vms.get(vm).cloned() else {
            return no("it is not in the configuration");
        };
        if !self.config.settings.host_monitoring {
            return no("host_monitoring is off");
        }
        if spec.restart_priority == RestartPriority::Disabled {
            return no("its restart priority is disabled");
        }
        let Some(acting) = self.acting(&spec.datastore) else {
            return self.ability_unowned(view, asker, &spec);
        };
        if !acting.list.contains_key(vm) {
            return no("it is not protected");
        }
        let place = self.locate(vm);
        if let Some(place) = place.filter(|p| p.host != asker && p.state == VmReportState::Running)
        {
            return Ability::Yes(place.host.clone());
        }
        let choices = plan(view, &self.config.rules, core::slice::from_ref(&spec));
        match choices.into_iter().next() {
            Some((_, Choice::Host(host, _))) => {
                if let Some(room) = view.hosts.get_mut(&host) {
                    room.take(&spec);
                    room.starting += 1;
                }
                Ability::Yes(host)
            }
            Some((_, Choice::Nowhere(refusals))) if !refusals.is_empty() => {
                Ability::No(refusals.join("; "))
            }
            _ => no("no host is connected"),
        }
    }

    /// This primary cannot restart it now. Where nobody reaches the datastore, nobody can run the VM; where
    /// somebody does, that host may soon own it.
    fn ability_unowned(&self, view: &View, asker: &HostId, spec: &VmSpec) -> Ability {
        let datastore = &spec.datastore;
        let mut others = view.hosts.iter().filter(|(host, _)| *host != asker);
        match others.find(|(_, room)| room.datastores.contains(datastore)) {
            None => match self.may_reach(asker, datastore) {
                None => Ability::No(format!("no other host reaches {datastore}")),
                Some(why) => Ability::Unknown(why),
            },
            Some((host, _)) => Ability::Unknown(format!(
                "{host} reaches {datastore}, but the primary {} does not own it now",
                self.me.host
            )),
        }
    }

    /// Another host may reach the datastore for all that this one knows: it is cut off itself, or that one is.
    fn may_reach(&self, asker: &HostId, datastore: &DatastoreId) -> Option<String> {
        if self.isolation.is_declared() {
            return Some(format!("{} is cut off from the others", self.me.host));
        }
        let mut others = self.topology.mounted_by(datastore).iter();
        let hidden = others.find(|host| {
            let peer = self.peers.get(*host);
            *host != asker && peer.is_some_and(|p| !p.connected() && p.state != HostState::Dead)
        });
        hidden.map(|host| format!("{host} mounts {datastore}, and is not connected to the primary"))
    }

    /// A host has stopped a VM and cannot write that into its lock.
    fn on_given_up(&mut self, from: &HostId, what: GivenUp) {
        let vm = what.vm.clone();
        let listed = self
            .acting(&what.datastore)
            .is_some_and(|a| a.list.contains_key(&vm));
        // Who does not own the datastore hears of it again when it does.
        if !listed {
            return;
        }
        let runs = |state| matches!(state, VmReportState::Running | VmReportState::Starting);
        if self
            .locate(&vm)
            .is_some_and(|place| place.host != from && runs(place.state))
        {
            self.vmcp.given_up.remove(&vm);
            return;
        }
        let datastore = what.datastore.clone();
        let given_up = (from.clone(), what);
        let before = self.vmcp.given_up.insert(vm.clone(), given_up.clone());
        let news = before.as_ref() != Some(&given_up);
        self.restart_given_up(&vm, &datastore, from, news);
    }

    /// Its host gave up exactly what the lock says; true when nothing of the VM is left there.
    pub(crate) fn is_given_up(&self, vm: &VmId, record: &LockRecord) -> Option<bool> {
        let (host, what) = self.vmcp.given_up.get(vm)?;
        let holder = record.holder.as_ref()?;
        let same = holder.host == *host
            && what.generation == record.generation
            && what.nonce == record.nonce;
        same.then_some(what.gone)
    }
}
