//! Fence devices: what switches a host's power, and what can be wrong with it.
//!
//! A device hears commands over a network of its own, from every host that has power. What it was told it does
//! though nobody waits for its answer any more.

use super::{Happening, World};
use crate::clock::{MS, Nanos};
use crate::scenario::{Fault, FenceFault};
use crate::trace::{Body, Entry};
use mainstay_core::config::FenceClass;
use mainstay_core::id::{HostId, OpId};
use mainstay_core::io::{FenceOutcome, FenceRequest, Input};
use mainstay_core::time::nanos;
use std::collections::BTreeSet;

/// A device as it stands.
#[derive(Clone, Debug)]
pub(super) struct Device {
    /// The host whose power it has; none: something outside the cluster.
    switches: Option<usize>,
    /// That something has power.
    outside_on: bool,
    takes: Nanos,
    dies_with_host: bool,
    says_who: bool,
    fault: Option<FenceFault>,
}

impl World<'_> {
    pub(super) fn make_fence_devices(&mut self) {
        for setup in &self.scenario.fences {
            let device = Device {
                switches: setup.switches,
                outside_on: true,
                takes: setup.takes,
                dies_with_host: setup.dies_with_host,
                says_who: setup.says_who,
                fault: None,
            };
            self.devices.insert(setup.host, device);
        }
    }

    /// The hosts that have a device.
    pub(super) fn fence_devices(&self) -> BTreeSet<HostId> {
        let hosts = self.devices.keys();
        hosts.map(|h| self.hosts[*h].id.clone()).collect()
    }

    pub(super) fn fence_fault(&mut self, host: Option<usize>, fault: FenceFault) {
        let meant = self
            .devices
            .iter_mut()
            .filter(|(h, _)| host.is_none_or(|host| host == **h));
        for (_, device) in meant {
            device.fault = (fault != FenceFault::Heal).then_some(fault);
        }
    }

    /// An agent asks the device of a host.
    pub(super) fn fence(&mut self, by: usize, op: OpId, target: &HostId, request: FenceRequest) {
        let timeout = nanos(self.settings_of(by).fence_timeout);
        let target = self.host_index.get(target).copied();
        let Some((target, device)) = target.and_then(|t| Some((t, self.devices.get(&t)?))) else {
            let why = String::from("there is no fence device");
            return self.answer(by, MS, Input::Fenced(op, FenceOutcome::NotDone(why)));
        };
        let without_power = device.dies_with_host && !self.hosts[target].powered;
        let given_up = || {
            let why = String::from("its fence device does not answer");
            Input::Fenced(op, FenceOutcome::Unknown(why))
        };
        if without_power || device.fault == Some(FenceFault::Dead) {
            return self.answer(by, timeout, given_up());
        }
        let takes = match device.fault {
            Some(FenceFault::Slow(takes)) => takes,
            // To look is quicker than to switch.
            _ if request == FenceRequest::Status => device.takes / 4,
            _ => device.takes,
        };
        let waits = takes < timeout;
        if !waits {
            self.answer(by, timeout, given_up());
        }
        let run = self.hosts[by].agent_run;
        let asked = waits.then_some((by, run, op));
        self.after(
            takes,
            Happening::Fence {
                asked,
                target,
                request,
            },
        );
    }

    /// Nobody can tell that the holder of a VM's lock is dead: its storage proves nothing, and the fence device
    /// that switched it off died with it. The VM waits for the host or for an admin.
    pub(super) fn death_is_unprovable(&self, vm: usize, owner: usize) -> bool {
        let disk = &self.disks[self.vms[vm].disk];
        let settings = self.settings_of(owner);
        let lock = disk.newest_lock(self.scenario.config.cluster_id, &self.vms[vm].id);
        let holder = lock.and_then(|lock| lock.holder);
        let holder = holder.and_then(|h| self.host_index.get(&h.host).copied());
        let lost = |h: usize| {
            let device = self.devices.get(&h);
            !self.hosts[h].powered && device.is_some_and(|d| d.dies_with_host)
        };
        disk.fence == FenceClass::Open && !settings.accept_late_writes && holder.is_some_and(lost)
    }

    /// A device does what it was told.
    pub(super) fn device_acts(
        &mut self,
        asked: Option<(usize, u64, OpId)>,
        target: usize,
        request: FenceRequest,
    ) {
        let Some(device) = self.devices.get(&target).cloned() else {
            return;
        };
        let (lies, stuck) = (
            device.fault == Some(FenceFault::Lies),
            device.fault == Some(FenceFault::Stuck),
        );
        let powered = match device.switches {
            Some(host) => self.hosts[host].powered,
            None => device.outside_on,
        };
        let stranger = device.says_who && device.switches != Some(target);
        let outcome = match request {
            _ if stranger => FenceOutcome::Stranger(match device.switches {
                Some(host) => self.hosts[host].id.to_string(),
                None => String::from("another machine"),
            }),
            FenceRequest::Status if lies || !powered => FenceOutcome::PowerOff,
            FenceRequest::Status => FenceOutcome::PowerOn,
            FenceRequest::Off | FenceRequest::On => FenceOutcome::Done,
        };
        if outcome == FenceOutcome::Done && !lies && !stuck {
            self.switch(target, device.switches, request == FenceRequest::On);
        }
        if let Some((by, run, op)) = asked
            && self.hosts[by].agent_run == run
        {
            self.answer(by, MS, Input::Fenced(op, outcome));
        }
    }

    fn switch(&mut self, device: usize, host: Option<usize>, on: bool) {
        let Some(host) = host else {
            if let Some(device) = self.devices.get_mut(&device) {
                device.outside_on = on;
            }
            return;
        };
        let fault = match on {
            true => Fault::HostPowerOn { host },
            false => Fault::HostPowerOff { host },
        };
        let body = Body::Fault {
            what: fault.name(),
            arguments: fault.arguments(&self.names),
        };
        self.trace.push(Entry {
            at: self.now,
            body,
            why: format!("by the fence device of {}", self.hosts[device].id),
        });
        if on {
            self.power_on(host);
        } else {
            self.power_off(host);
        }
    }
}
