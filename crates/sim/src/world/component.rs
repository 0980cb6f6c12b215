//! Storage that is lost for a host or for one VM on it, and what its agent says of it, held against the world.

use super::World;
use super::guest::Phase;
use super::paths::Faults;
use crate::clock::{MS, Nanos, SECOND};
use crate::invariants::Fact;
use mainstay_core::config::{ApdResponse, PdlResponse};
use mainstay_core::io::{Input, IoFault};
use mainstay_core::time::nanos;

/// A path that came back for less than this may not have answered anything meanwhile.
const UNSEEN: Nanos = 5 * SECOND;

/// How a host's path to a datastore, or to the disk of one VM, was lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Loss {
    /// The last time that it was lost, since then.
    since: Option<Nanos>,
    /// It has been back since then.
    until: Option<Nanos>,
    /// Its device was gone when it was lost last.
    gone: bool,
}

impl Loss {
    /// How long it has been lost by now, or was when it was lost last.
    fn lasted(self, now: Nanos) -> Nanos {
        let since = self.since.unwrap_or(now);
        self.until.unwrap_or(now).saturating_sub(since)
    }

    pub(super) fn is_lost(self) -> bool {
        self.since.is_some() && self.until.is_none()
    }

    /// It is lost from now on; what came back for less than `unseen` was not back.
    fn begin(&mut self, now: Nanos, unseen: Nanos, gone: bool) {
        if !self.is_lost() {
            let short = self.until.is_some_and(|at| now.saturating_sub(at) < unseen);
            let since = self.since.filter(|_| short).or(Some(now));
            (self.since, self.until) = (since, None);
        }
        self.gone = gone;
    }

    /// It is back.
    pub(super) fn end(&mut self, now: Nanos) {
        if self.is_lost() {
            self.until = Some(now);
        }
    }

    /// Its device is gone, or was until less than `slack` ago: its host may not have seen it come back.
    fn is_gone(self, now: Nanos, slack: Nanos) -> bool {
        let back = self.until.map_or(0, |at| now.saturating_sub(at));
        self.gone && back < slack
    }
}

impl World<'_> {
    /// What stands between a host and a datastore changed.
    pub(super) fn note_loss(&mut self, disk: usize, host: usize, faults: Faults) {
        let now = self.now;
        let Some(loss) = self.disks[disk].losses.get_mut(host) else {
            return;
        };
        if faults.hang || faults.gone {
            loss.begin(now, UNSEEN, faults.gone);
        } else {
            loss.end(now);
        }
    }

    fn loss(&self, disk: usize, host: usize) -> Loss {
        let known = self.disks[disk].losses.get(host);
        known.copied().unwrap_or_default()
    }

    /// An agent says that it stops a VM because its storage is lost there, or, to start it anew, because it was.
    pub(super) fn stops_for_storage(&mut self, host: usize, vm: usize, resets: bool) {
        let wrong = self.wrong_for_storage(host, vm, resets);
        let fact = Fact::StorageResponse { vm, host, wrong };
        self.judge.observe(self.now, &fact);
        self.hosts[host].storage_stops.insert(vm);
    }

    /// What speaks against that, as the world sees it and the agent is configured.
    fn wrong_for_storage(&self, host: usize, vm: usize, resets: bool) -> Option<String> {
        let now = self.now;
        let disk = self.vms[vm].disk;
        let loss = self.loss(disk, host);
        let settings = self.settings_of(host);
        let t = &settings.timing;
        // What the weather holds up counts as lost for the host that waits for it.
        let slow = self.disks[disk].faults(host).slow;
        let slack = SECOND + self.scenario.weather.stall_ms * MS + slow;
        let least = |time: Nanos| (time / 100 * 99).saturating_sub(slack);
        let gone = |loss: Loss, slack: Nanos| {
            loss.lasted(now) >= least(nanos(t.freeze)) && loss.is_gone(now, slack)
        };
        // A paused VM is tried again so often: until then nobody can see that its disk is back.
        let retry = nanos(t.poweron_poll);
        let failed = self.vms[vm].disk_fails.get(&host);
        let pdl = gone(loss, slack) || failed.is_some_and(|loss| gone(*loss, slack + retry));
        if pdl && !resets {
            let off = settings.pdl_response != PdlResponse::Restart;
            return off.then(|| String::from("pdl_response is not to restart it"));
        }
        let needed = if resets {
            nanos(t.apd_timeout)
        } else {
            nanos(t.apd_timeout) + nanos(t.apd_delay)
        };
        if loss.lasted(now) < least(needed) {
            return Some(format!(
                "its path was lost for {} ms only",
                loss.lasted(now) / MS
            ));
        }
        if resets {
            return (!settings.apd_cleared_reset)
                .then(|| String::from("apd_cleared_response is none"));
        }
        match settings.apd_response {
            ApdResponse::Disabled | ApdResponse::Warn => {
                Some(String::from("apd_response is not to restart it"))
            }
            ApdResponse::RestartAggressive => None,
            ApdResponse::RestartConservative => {
                // A primary knows of a loss after a while only.
                let unknown = nanos(t.r#break) + 12 * nanos(t.network_heartbeat) + UNSEEN;
                let reaches = |h: usize| {
                    let mounts = self.hosts[h].mounts.get(disk).copied().unwrap_or(false);
                    let there = self.loss(disk, h);
                    mounts && (!there.is_lost() || there.lasted(now) < unknown)
                };
                let helps = (0..self.hosts.len()).any(|h| h != host && reaches(h));
                (!helps).then(|| String::from("no other host reached its datastore"))
            }
        }
    }

    /// The disk of a VM fails as a device that is gone, on that host or where the VM is.
    pub(super) fn disk_error(&mut self, vm: usize, host: Option<usize>) {
        let there = self.instances.living(vm).map(|(_, i)| i.host).next();
        if let Some(host) = host.or(there).or(self.vms[vm].home) {
            let unseen = UNSEEN + 2 * nanos(self.settings_of(host).timing.poweron_poll);
            let loss = self.vms[vm].disk_fails.entry(host).or_default();
            loss.begin(self.now, unseen, true);
        }
    }

    /// The disk of a VM fails on that host.
    pub(super) fn disk_fails(&self, vm: usize, host: usize) -> bool {
        let loss = self.vms[vm].disk_fails.get(&host);
        loss.is_some_and(|loss| loss.is_lost())
    }

    /// The hypervisor pauses a guest whose write failed, and says so.
    pub(super) fn pauses_on_error(&mut self, instance: usize) {
        let i = &mut self.instances[instance];
        if i.paused || i.phase != Phase::Started {
            return;
        }
        i.paused = true;
        self.tell_io(instance, Some(IoFault::Gone));
    }

    /// It is told to go on.
    pub(super) fn goes_on(&mut self, instance: usize) {
        let i = &mut self.instances[instance];
        if std::mem::take(&mut i.paused) {
            self.tell_io(instance, None);
        }
    }

    fn tell_io(&mut self, instance: usize, fault: Option<IoFault>) {
        let (vm, host) = (self.instances[instance].vm, self.instances[instance].host);
        let id = self.vms[vm].id.clone();
        let wait = self.dice.guest.between(100_000, 2 * MS);
        self.answer(host, wait, Input::VmIo { vm: id, fault });
        self.vm_changed(vm);
    }
}
