//! Component protection: what a host does about VMs whose storage is lost on it and may be there on another.
//!
//! ```text
//!  own operations ─▶ path lost (`path`) ─┐
//!  VM paused on an I/O error ────────────┴─▶ time to react ─▶ asks the primary: can another host run it?
//!                                                                 │ yes; or not known, for PDL and aggressive
//!      lock taken by another host ◀─ says that it gave it up ◀─ killed, every thread gone
//! ```
//! Only VMs of the lost datastore are touched, never the host. A VM is stopped for certain before anybody else
//! starts it: the host gives its lock's generation up when its process is gone (`tell`), and where that cannot be
//! written it says so to the owner. Nothing here starts a VM, thaws one or breaks a lock.

mod path;
mod primary;
mod tell;
mod types;

#[cfg(test)]
mod tests;

pub(crate) use path::Path;
pub(crate) use primary::Promised;
pub use types::{Ability, GivenUp, VmcpMessage};

use crate::agent::{Agent, planted};
use crate::config::{ApdResponse, PdlResponse, RestartPriority};
use crate::election::Role;
use crate::event::{EventKind, StopReason};
use crate::id::{DatastoreId, HostId, VmId};
use crate::io::{Channel, IoFault};
use crate::time::Instant;
use crate::vms::{LocalVm, Standing};
use crate::wire::{Desired, Message};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use path::{Loss, Patience};

/// A VM that its hypervisor paused on an I/O error.
#[derive(Clone, Copy, Debug)]
struct Failed {
    /// Since when its disk fails, errors in quick succession counting as one.
    since: Instant,
    fault: IoFault,
    /// It stands still now.
    paused: bool,
    /// When it last went on.
    resumed: Option<Instant>,
    /// It is not let go on before then.
    again: Instant,
}

/// What component protection knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vmcp {
    failed: BTreeMap<VmId, Failed>,
    /// VMs about which the primary is asked, since when without an answer.
    asked: BTreeMap<VmId, Instant>,
    /// The primary is not asked before then.
    next_ask: Option<Instant>,
    /// Why a VM is left alone, as it was last said.
    said: BTreeMap<VmId, String>,
    /// There is something to look at then.
    next_round: Option<Instant>,
    /// What was given up is not said again before then.
    next_tell: Option<Instant>,
    /// At a primary: VMs that their hosts gave up.
    pub(crate) given_up: BTreeMap<VmId, (HostId, GivenUp)>,
    /// At a primary: hosts that were named for VMs which are not there yet.
    pub(crate) promised: Promised,
}

/// A VM whose time has come.
struct Due {
    loss: Loss,
    /// It is stopped also where it cannot be told whether another host can run it.
    in_doubt: bool,
    why: String,
}

impl Agent {
    fn path_patience(&self) -> Patience {
        Patience {
            apd: self.timing().apd_timeout,
            pdl: self.timing().freeze,
        }
    }

    pub(crate) fn vmcp_due(&self) -> Option<Instant> {
        let patience = self.path_patience();
        let paths = self.stores.values().filter_map(|s| s.path.due(patience));
        paths.chain(self.vmcp.next_round).min()
    }

    /// Judges this host's paths, and reacts for its VMs.
    pub(crate) fn run_vmcp(&mut self) {
        self.judge_paths();
        let now = self.now;
        if self.vmcp.next_round.is_some_and(|at| now >= at) {
            self.vmcp_round();
        }
    }

    fn judge_paths(&mut self) {
        let (now, patience) = (self.now, self.path_patience());
        let mut found: Vec<(DatastoreId, Loss)> = Vec::new();
        let mut back: Vec<(DatastoreId, Loss)> = Vec::new();
        for (datastore, store) in &mut self.stores {
            self.report_dirty |= store.path.take_news();
            if let Some(loss) = store.path.take_back() {
                back.push((datastore.clone(), loss));
            }
            if let Some(loss) = store.path.judge(now, patience) {
                found.push((datastore.clone(), loss));
            }
        }
        for (datastore, loss) in back {
            self.path_back(&datastore, loss);
        }
        for (datastore, loss) in found {
            self.path_lost(&datastore, loss);
        }
    }

    /// Nobody wants to hear of such a loss, or do anything about it.
    fn is_silent_about(&self, loss: Loss) -> bool {
        let settings = &self.config.settings;
        match loss {
            Loss::Apd => settings.apd_response == ApdResponse::Disabled,
            Loss::Pdl => settings.pdl_response == PdlResponse::Disabled,
        }
    }

    fn path_lost(&mut self, datastore: &DatastoreId, loss: Loss) {
        self.vmcp.next_round = Some(self.now);
        if self.is_silent_about(loss) {
            return;
        }
        let (host, ds) = (self.me.host.clone(), datastore.clone());
        let settings = &self.config.settings;
        let (kind, why) = match loss {
            Loss::Apd => {
                let then = match settings.apd_response {
                    ApdResponse::RestartConservative => {
                        "a VM there is restarted elsewhere after apd_delay if another host is known to be able to run it"
                    }
                    ApdResponse::RestartAggressive => {
                        "its VMs are restarted elsewhere after apd_delay, unless no host can run them"
                    }
                    ApdResponse::Disabled | ApdResponse::Warn => {
                        "its VMs are left as they are (apd_response)"
                    }
                };
                (
                    EventKind::VmcpApd {
                        host,
                        datastore: ds,
                    },
                    format!(
                        "all paths of this host to {datastore} are down: no operation there was answered for {} ms (apd_timeout); {then}; check the host's storage network",
                        settings.timing.apd_timeout.as_millis()
                    ),
                )
            }
            Loss::Pdl => {
                let then = match settings.pdl_response {
                    PdlResponse::Restart => {
                        "its VMs are restarted elsewhere, unless no host can run them"
                    }
                    PdlResponse::Disabled | PdlResponse::Warn => {
                        "its VMs are left as they are (pdl_response)"
                    }
                };
                (
                    EventKind::VmcpPdl {
                        host,
                        datastore: ds,
                    },
                    format!(
                        "{datastore} is lost for this host: every operation there has failed as \"no such device\" for {} ms (freeze); {then}; map the device again, or mount the datastore anew",
                        settings.timing.freeze.as_millis()
                    ),
                )
            }
        };
        self.emit(kind, why);
    }

    /// The path answers again: stops that have not begun are called off, and what was frozen is thawed as ever.
    fn path_back(&mut self, datastore: &DatastoreId, loss: Loss) {
        self.vmcp.next_round = Some(self.now);
        if !self.is_silent_about(loss) {
            let (host, datastore) = (self.me.host.clone(), datastore.clone());
            let why = format!(
                "{datastore} answers this host again; it was {}",
                loss.words()
            );
            self.emit(EventKind::VmcpCleared { host, datastore }, why);
        }
        let here = |v: &&LocalVm| v.spec.datastore == *datastore;
        let mine: Vec<VmId> = self
            .vms
            .values()
            .filter(here)
            .map(|v| v.spec.id.clone())
            .collect();
        let restarts = matches!(
            self.config.settings.apd_response,
            ApdResponse::RestartConservative | ApdResponse::RestartAggressive
        );
        let resets = loss == Loss::Apd && restarts && self.config.settings.apd_cleared_reset;
        for vm in mine {
            if let Some(local) = self.vms.get_mut(&vm) {
                local.call_off(StopReason::Vmcp);
            }
            let standing = self.vms.get(&vm).map(LocalVm::standing);
            if resets && matches!(standing, Some(Standing::Runs | Standing::Frozen)) {
                self.reset_after_apd(&vm, datastore);
            }
        }
    }

    /// Its guest may not get over what its disk did: it starts anew here, under a new generation.
    fn reset_after_apd(&mut self, vm: &VmId, datastore: &DatastoreId) {
        let reason = format!(
            "all paths to {datastore} were down for longer than apd_timeout and are back before apd_delay was over (apd_cleared_response = reset)"
        );
        let (id, host) = (vm.clone(), self.me.host.clone());
        let why = reason.clone();
        self.emit(
            EventKind::VmReset {
                vm: id,
                host,
                reason,
            },
            why,
        );
        self.stop_and_start_again(vm, StopReason::Vmcp);
    }

    // VMs whose disk fails, as their hypervisor says.

    /// The hypervisor paused a VM on an I/O error, or it goes on.
    pub(crate) fn on_vm_io(&mut self, vm: &VmId, fault: Option<IoFault>) {
        let now = self.now;
        let lately = self.timing().poweron_poll;
        if fault.is_some() && planted!(self, PausedIsHealthy) {
            return;
        }
        // An error that comes late, of a process that is gone, says nothing about the next one.
        let Some(local) = self.vms.get_mut(vm).filter(|v| v.has_process()) else {
            return;
        };
        local.paused = fault.is_some();
        self.report_dirty = true;
        let Some(fault) = fault else {
            if let Some(failed) = self.vmcp.failed.get_mut(vm) {
                (failed.paused, failed.resumed) = (false, Some(now));
            }
            return;
        };
        let known = self.vmcp.failed.get(vm).copied();
        let known = known
            .filter(|f| f.fault == fault && f.resumed.is_none_or(|at| now.since(at) <= lately));
        let failed = Failed {
            since: known.map_or(now, |f| f.since),
            fault,
            paused: true,
            resumed: None,
            again: now + lately,
        };
        self.vmcp.failed.insert(vm.clone(), failed);
        self.vmcp.next_round = Some(now);
        if known.is_none() {
            let (id, host) = (vm.clone(), self.me.host.clone());
            let reason = format!("{fault:?}");
            let why = format!(
                "its hypervisor paused it on an I/O error of its disk ({fault:?}): it counts as failed until it goes on; it is let go on each {} ms while this host reaches its datastore",
                lately.as_millis()
            );
            self.emit(
                EventKind::VmIoError {
                    vm: id,
                    host,
                    reason,
                },
                why,
            );
        }
    }

    /// The VM's process is gone, and its errors with it: the next one has none yet, wherever it starts.
    pub(crate) fn forget_io_error(&mut self, vm: &VmId) {
        self.vmcp.failed.remove(vm);
        if let Some(local) = self.vms.get_mut(vm) {
            local.paused = false;
        }
    }

    /// Lets paused VMs go on where the host's own operations succeed, and forgets those that have.
    fn retry_paused(&mut self) {
        let now = self.now;
        let settled = self.timing().poweron_poll;
        let vms = &self.vms;
        self.vmcp.failed.retain(|vm, f| {
            let over = f.resumed.is_some_and(|at| now.since(at) > settled);
            vms.contains_key(vm) && !over
        });
        let mut go_on: Vec<VmId> = Vec::new();
        for (vm, failed) in &mut self.vmcp.failed {
            let datastore = self.vms.get(vm).map(|v| &v.spec.datastore);
            let answers = datastore
                .and_then(|d| self.stores.get(d))
                .is_some_and(|s| s.path.lost().is_none() && !s.path.fails());
            if failed.paused && answers && now >= failed.again {
                failed.again = now + settled;
                go_on.push(vm.clone());
            }
        }
        for vm in go_on {
            self.let_go_on(&vm);
        }
    }

    // Reacting.

    /// Looks at all VMs of this host whose storage is lost.
    fn vmcp_round(&mut self) {
        let now = self.now;
        self.retry_paused();
        let lost = self.stores.values().any(|s| s.path.lost().is_some());
        if !lost && self.vmcp.failed.is_empty() {
            self.vmcp.next_round = None;
            self.vmcp.asked.clear();
            self.vmcp.said.clear();
            return;
        }
        self.vmcp.next_round = Some(now + self.timing().datastore_heartbeat);
        self.tell_given_up();
        if self.leaving.is_some() {
            return;
        }
        let ids: Vec<VmId> = self.vms.keys().cloned().collect();
        let mut due: BTreeMap<VmId, Due> = BTreeMap::new();
        for vm in ids {
            match self.due_reaction(&vm) {
                Some(Ok(what)) => {
                    due.insert(vm, what);
                }
                Some(Err(why)) => self.leave_alone(&vm, why),
                None => {}
            }
        }
        self.vmcp.asked.retain(|vm, _| due.contains_key(vm));
        for vm in due.keys() {
            self.vmcp.asked.entry(vm.clone()).or_insert(now);
        }
        if due.is_empty() {
            return;
        }
        let vms: Vec<VmId> = due.keys().cloned().collect();
        match &self.role {
            Role::Primary { .. } => {
                let own = self.me.host.clone();
                let answers = self.able(&own, &vms);
                self.on_abilities(answers);
            }
            Role::Secondary { .. } | Role::Electing { .. } => {
                self.ask_primary(vms);
                self.give_up_waiting(&due);
            }
        }
    }

    fn ask_primary(&mut self, vms: Vec<VmId>) {
        let now = self.now;
        if self.vmcp.next_ask.is_some_and(|at| now < at) {
            return;
        }
        let Some(primary) = self.role.followed().cloned() else {
            return;
        };
        self.vmcp.next_ask = Some(now + self.timing().poweron_poll);
        self.say_vmcp(&primary, VmcpMessage::Ask { vms });
    }

    pub(super) fn say_vmcp(&mut self, to: &HostId, message: VmcpMessage) {
        let message = Message::Vmcp(Box::new(message));
        if self.understands_message(to, &message) {
            self.send(to, Channel::Stream, message);
        }
    }

    /// No primary answered for as long as a secondary waits for its primary: it cannot be told whether another
    /// host can run the VM.
    fn give_up_waiting(&mut self, due: &BTreeMap<VmId, Due>) {
        let (now, limit) = (self.now, self.timing().election_start);
        let unanswered = |vm: &&VmId| {
            let since = self.vmcp.asked.get(*vm);
            since.is_some_and(|at| now.since(*at) >= limit)
        };
        let late: Vec<VmId> = due.keys().filter(unanswered).cloned().collect();
        let why = || String::from("no primary answers this host");
        let unknown = late.into_iter().map(|vm| (vm, Ability::Unknown(why())));
        self.on_abilities(unknown.collect());
    }

    /// What is due for a VM: nothing yet, a reaction, or none for that reason.
    fn due_reaction(&self, vm: &VmId) -> Option<Result<Due, String>> {
        let local = self.vms.get(vm)?;
        if !matches!(local.standing(), Standing::Runs | Standing::Frozen) {
            return None;
        }
        let t = self.timing();
        let datastore = &local.spec.datastore;
        let wrong = planted!(self, AnyDatastoreIsAllLost);
        let lost = self
            .stores
            .iter()
            .find(|(d, s)| (wrong || *d == datastore) && s.path.lost().is_some());
        let lost = lost.and_then(|(_, s)| s.path.lost());
        let delay = if planted!(self, DelayForgotten) {
            crate::time::Duration::ZERO
        } else {
            t.apd_delay
        };
        let failed = self.vmcp.failed.get(vm).filter(|f| f.paused);
        let (loss, at, what) = match (lost, failed) {
            (Some((Loss::Pdl, at)), _) => {
                (Loss::Pdl, at, format!("{datastore} is lost for this host"))
            }
            (Some((Loss::Apd, at)), _) => {
                let what = format!(
                    "all paths to {datastore} have been down for {} ms (apd_timeout) and {} ms more (apd_delay)",
                    t.apd_timeout.as_millis(),
                    t.apd_delay.as_millis()
                );
                (Loss::Apd, at + delay, what)
            }
            (None, Some(f)) if f.fault == IoFault::Gone => {
                let what = String::from("its disk is lost for this host, as its hypervisor says");
                (Loss::Pdl, f.since + t.freeze, what)
            }
            (None, Some(f)) if f.fault == IoFault::TimedOut => {
                let what = String::from(
                    "its disk has not answered for apd_timeout and apd_delay, as its hypervisor says",
                );
                (Loss::Apd, f.since + t.apd_timeout + delay, what)
            }
            _ => return None,
        };
        let settings = &self.config.settings;
        let in_doubt = match loss {
            Loss::Pdl if settings.pdl_response == PdlResponse::Restart => true,
            Loss::Apd if settings.apd_response == ApdResponse::RestartAggressive => true,
            Loss::Apd if settings.apd_response == ApdResponse::RestartConservative => false,
            Loss::Pdl | Loss::Apd => return None,
        };
        if self.now < at {
            return None;
        }
        if !settings.host_monitoring {
            return Some(Err(String::from("host_monitoring is off")));
        }
        if local.spec.restart_priority == RestartPriority::Disabled {
            return Some(Err(String::from(
                "its restart priority is disabled: nobody would restart it",
            )));
        }
        Some(Ok(Due {
            loss,
            in_doubt,
            why: what,
        }))
    }

    /// It is known, or cannot be known, which VMs other hosts can run.
    pub(crate) fn on_abilities(&mut self, answers: Vec<(VmId, Ability)>) {
        let now = self.now;
        for (vm, ability) in answers {
            // What was asked may be over, or not due any more.
            let Some(Ok(due)) = self.due_reaction(&vm) else {
                continue;
            };
            self.vmcp.asked.insert(vm.clone(), now);
            let Due {
                in_doubt,
                why,
                loss,
            } = due;
            match ability {
                Ability::Yes(host) => self.stop_lost(&vm, format!("{why}, and {host} can run it")),
                Ability::Unknown(unknown) if in_doubt => {
                    let by = match loss {
                        Loss::Pdl => "pdl_response = restart",
                        Loss::Apd => "apd_response = restart_aggressive",
                    };
                    self.stop_lost(&vm, format!("{why}; whether another host can run it is not known ({unknown}), and {by}"));
                }
                Ability::No(no) if planted!(self, ActsWithoutHelp) => self.stop_lost(&vm, no),
                Ability::Unknown(no) => {
                    let no = format!("it is not known whether another host can run it: {no}");
                    self.leave_alone(&vm, no);
                }
                Ability::No(no) => self.leave_alone(&vm, format!("no other host can run it: {no}")),
            }
        }
    }

    fn stop_lost(&mut self, vm: &VmId, why: String) {
        self.vmcp.said.remove(vm);
        let (id, host) = (vm.clone(), self.me.host.clone());
        self.emit(EventKind::VmcpResponse { host, vm: id }, why);
        if planted!(self, GivenUpAlive) {
            self.tell_given_up_alive(vm);
            return;
        }
        self.stop_for(vm, StopReason::Vmcp, Desired::On);
    }

    /// Says once, for each reason, why a VM is left where it is.
    fn leave_alone(&mut self, vm: &VmId, reason: String) {
        // Numbers change with each look; the sentence without them is the reason.
        let plain: String = reason.chars().filter(|c| !c.is_ascii_digit()).collect();
        if self.vmcp.said.get(vm) == Some(&plain) {
            return;
        }
        self.vmcp.said.insert(vm.clone(), plain);
        let (vm, host) = (vm.clone(), self.me.host.clone());
        let why = reason.clone();
        self.emit(EventKind::VmcpSkipped { host, vm, reason }, why);
    }
}
