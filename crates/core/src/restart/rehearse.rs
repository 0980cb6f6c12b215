//! What would become of a host's VMs if it was lost: asked of a copy of the primary, by the code that
//! permits, places and orders restarts.
//!
//! The copy supposes that the proof against the host is there, and that each start succeeds and is reported;
//! nothing that it says leaves it. Never here: a change of the agent that is asked.

use super::{Held, Restart, Step, Wait};
use crate::agent::Agent;
use crate::config::RestartPriority;
use crate::event::{HostState, WaitCause};
use crate::id::{DatastoreId, HostId, Nonce, VmId};
use crate::liveness::Peer;
use crate::time::Duration;
use crate::wire::{Desired, LockRecord, VmReport, VmReportState};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

/// Hosts may refuse orders at once for so many waves before the forecast calls a VM stuck.
const FRUITLESS_WAVES: u32 = 4;

/// What is supposed.
#[derive(Clone, Debug)]
pub(crate) struct Supposed {
    /// The host that is lost.
    pub(crate) lost: HostId,
    /// Who leads then, and the datastores that it can use, where that is another host than now.
    pub(crate) successor: Option<(HostId, Vec<DatastoreId>)>,
}

/// What would become of one VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Rehearsed {
    /// It is asked for there.
    Restarted {
        host: HostId,
        /// Counted from 1.
        wave: u32,
        /// It waits until `dependency_timeout` is over for one that does not run.
        after_dependency: bool,
        why: String,
    },
    /// Nobody means it to be restarted.
    Left(String),
    /// It should be restarted, and is not.
    Stuck(String),
}

/// A VM of the host that is supposed to be lost.
struct Lost {
    vm: VmId,
    datastore: DatastoreId,
    record: LockRecord,
    why: Option<(Option<WaitCause>, String)>,
}

impl Agent {
    /// What would become of the VMs of a host, in the order in which they would be asked for; those that
    /// would not be come last.
    pub(crate) fn rehearse(&self, supposed: &Supposed) -> Vec<(VmId, Rehearsed)> {
        let mut copy = self.clone();
        let mut left = copy.suppose_lost(supposed);
        let mut outcomes: Vec<(VmId, Rehearsed)> = Vec::new();
        let (mut wave, mut fruitless, mut after_dependency) = (1, 0, false);
        loop {
            let ready = copy.permitted_of(&mut left);
            if ready.is_empty() {
                let waits = |l: &Lost| matches!(l.why, Some((Some(WaitCause::Dependency), _)));
                if !after_dependency && left.iter().any(waits) {
                    // What they depend on does not come: they are asked for without it in the end.
                    after_dependency = true;
                    copy.config.settings.dependency_timeout = Duration::ZERO;
                    continue;
                }
                break;
            }
            copy.order_starts(ready, Vec::new());
            copy.out.clear();
            let placed = copy.take_placed(&mut left);
            fruitless = if placed.is_empty() { fruitless + 1 } else { 0 };
            let full = left.iter().all(|l| !copy.was_refused(&l.vm));
            if fruitless > 0 && (full || fruitless > FRUITLESS_WAVES) {
                // The same would be found again.
                if after_dependency || !copy.lets_dependents_go(&left) {
                    break;
                }
                after_dependency = true;
                continue;
            }
            for (vm, host, why) in placed {
                let restarted = Rehearsed::Restarted {
                    host,
                    wave,
                    after_dependency,
                    why,
                };
                outcomes.push((vm, restarted));
            }
            wave += u32::from(fruitless == 0);
        }
        let rest = left.into_iter().map(|lost| {
            let (cause, why) = lost
                .why
                .unwrap_or_else(|| (None, String::from("no host takes it")));
            let meant = matches!(
                cause,
                Some(WaitCause::NotProtected | WaitCause::PriorityDisabled)
            );
            let outcome = match cause {
                _ if meant => Rehearsed::Left(why),
                Some(WaitCause::HolderUnreachable) => {
                    Rehearsed::Stuck(self.stuck_on_open(&lost.datastore))
                }
                _ => Rehearsed::Stuck(why),
            };
            (lost.vm, outcome)
        });
        outcomes.extend(rest);
        outcomes
    }

    /// Why nothing is taken over on a datastore that does not refuse late writes.
    fn stuck_on_open(&self, datastore: &DatastoreId) -> String {
        let dead = if self.config.settings.accept_late_writes {
            "from a dead one it would be, because accept_late_writes is on"
        } else {
            "nor is it from a dead one without accept_late_writes or power fencing"
        };
        format!(
            "{datastore} does not refuse late writes (fence class open), and nothing is taken over there from a host that answers pings, as one in a drill does; {dead}"
        )
    }

    /// Some VMs wait for others that are stuck: they go on without them when their patience ends.
    fn lets_dependents_go(&mut self, left: &[Lost]) -> bool {
        let waits = left
            .iter()
            .any(|l| matches!(l.why, Some((Some(WaitCause::Dependency), _))));
        if waits {
            self.config.settings.dependency_timeout = Duration::ZERO;
        }
        waits
    }

    /// The last order for it was answered at once, with a refusal.
    fn was_refused(&self, vm: &VmId) -> bool {
        let restart = self.restarts.get(vm);
        restart.is_some_and(|r| matches!(r.step, Step::Look(_)) && !r.failures.is_empty())
    }

    /// Makes the host a lost one; gives its VMs.
    fn suppose_lost(&mut self, supposed: &Supposed) -> Vec<Lost> {
        let (lost, now) = (&supposed.lost, self.now);
        let of_host: Vec<VmReport> = if *lost == self.me.host {
            self.vms.values().map(crate::vms::LocalVm::report).collect()
        } else {
            let report = self.peers.get(lost).and_then(|p| p.report.as_ref());
            report.map_or_else(Vec::new, |r| r.vms.values().cloned().collect())
        };
        if *lost == self.me.host {
            // It takes no starts, and another leads: the host is one of the others then.
            self.leaving = Some(now);
            for vm in self.vms.keys().cloned().collect::<Vec<VmId>>() {
                self.vms.remove(&vm);
            }
            self.settle_vms();
            self.peers.insert(lost.clone(), Peer::new(now));
        }
        if let Some(peer) = self.peers.get_mut(lost) {
            peer.state = HostState::AgentUnreachable;
            peer.why = String::from("it is supposed to be lost");
            peer.follows = false;
        }
        self.note_connection(lost);
        let mut all = Vec::new();
        for report in of_host {
            let (vm, datastore) = (report.spec.id, report.spec.datastore);
            let record = LockRecord {
                generation: report.generation,
                nonce: Nonce(0),
                holder: Some(crate::id::Holder {
                    host: lost.clone(),
                    boot: crate::id::BootId(0),
                }),
                desired: Desired::On,
                freeze: self.timing().freeze,
                r#break: self.timing().r#break,
                given_back: None,
            };
            if self.listed_on(&vm).is_some() {
                let restart = Restart {
                    held: Held::By(lost.clone()),
                    step: Step::Waiting {
                        record: record.clone(),
                        read_done: now,
                        reread: now + self.timing().dead,
                        checked: None,
                    },
                    ..Restart::missed(datastore.clone(), now)
                };
                self.restarts.insert(vm.clone(), restart);
            }
            let why = self.never_restarted(&vm, &datastore, supposed);
            all.push(Lost {
                vm,
                datastore,
                record,
                why,
            });
        }
        all
    }

    /// What keeps a VM from being restarted that no wave changes.
    fn never_restarted(
        &self,
        vm: &VmId,
        datastore: &DatastoreId,
        supposed: &Supposed,
    ) -> Option<(Option<WaitCause>, String)> {
        let spec = self.config.vms.get(vm);
        if spec.is_some_and(|s| s.restart_priority == RestartPriority::Disabled) {
            let why = String::from("its restart priority is disabled");
            return Some((Some(WaitCause::PriorityDisabled), why));
        }
        if self.acting(datastore).is_none() {
            let why = format!(
                "the primary {} does not own {datastore} now; ask again when it does (`mainstay status` shows the owners)",
                self.me.host
            );
            return Some((None, why));
        }
        let (host, usable) = supposed.successor.as_ref()?;
        (!usable.contains(datastore)).then(|| {
            let why = format!(
                "{host}, which would lead then, cannot use {datastore}; mount it there, or let a host lead that has it"
            );
            (None, why)
        })
    }

    /// Those that may be asked for now; the others learn why not.
    fn permitted_of(
        &self,
        left: &mut [Lost],
    ) -> Vec<(crate::config::VmSpec, LockRecord, Option<HostId>)> {
        let mut ready = Vec::new();
        for lost in left {
            // No wave changes these.
            if let Some((cause, _)) = &lost.why
                && !matches!(cause, Some(WaitCause::Dependency | WaitCause::NoRoom))
            {
                continue;
            }
            match self.permitted(&lost.vm, &lost.datastore, &lost.record) {
                Ok((spec, broken)) => {
                    lost.why = None;
                    ready.push((spec, lost.record.clone(), broken));
                }
                Err(Wait::Worth(cause, why)) => lost.why = Some((Some(cause), why)),
                // A rule keeps it together with another, which goes first.
                Err(Wait::Passing(why)) => lost.why = Some((Some(WaitCause::Dependency), why)),
            }
        }
        ready
    }

    /// Those that were asked for, in that order: they run, and are reported. The others learn why not.
    fn take_placed(&mut self, left: &mut Vec<Lost>) -> Vec<(VmId, HostId, String)> {
        let mut placed: BTreeMap<u64, (VmId, HostId, String)> = BTreeMap::new();
        for lost in left.iter_mut().filter(|l| l.why.is_none()) {
            let Some(restart) = self.restarts.get(&lost.vm) else {
                continue;
            };
            if let Step::Ordered { host, .. } = &restart.step {
                let entry = (lost.vm.clone(), host.clone(), restart.why.clone());
                placed.insert(restart.order, entry);
            } else {
                lost.why = Some((Some(WaitCause::NoRoom), restart.why.to_string()));
            }
        }
        let placed: Vec<(VmId, HostId, String)> = placed.into_values().collect();
        left.retain(|l| !placed.iter().any(|(vm, ..)| *vm == l.vm));
        let now = self.now;
        for (vm, host, _) in &placed {
            let generation = self.restarts.get_mut(vm).map(|restart| {
                restart.step = Step::Runs {
                    since: now,
                    heard: now,
                };
            });
            if let (Some(()), Some(spec)) = (generation, self.config.vms.get(vm).cloned())
                && *host != self.me.host
            {
                let report = VmReport {
                    spec,
                    generation: crate::id::Generation(1),
                    state: VmReportState::Running,
                };
                self.suppose_reported(host, report);
            }
        }
        placed
    }
}
