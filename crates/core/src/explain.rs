//! What an agent says of itself: its status, and why a VM or a host is as it is.

use crate::agent::Agent;
use crate::config::VmSpec;
use crate::config::{FenceClass, RestartPriority};
use crate::election::Role;
use crate::event::{Event, HostState};
use crate::id::{HostId, VmId};
use crate::ownership::Own;
use crate::restart::Step;
use crate::status::{DatastoreStatus, Explanation, HostStatus, Status, VmStatus};
use crate::time::{Instant, millis};
use crate::wire::{RoleTag, VmReportState};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

impl Agent {
    /// The agent's view of the cluster.
    #[must_use]
    pub fn status(&self, now: Instant) -> Option<Status> {
        Some(Status {
            host: self.host().clone(),
            role: self.role.tag(),
            primary: match &self.role {
                Role::Primary { .. } => Some(self.host().clone()),
                Role::Secondary { primary, .. } => Some(primary.clone()),
                Role::Electing { .. } => None,
            },
            profile: self.config.settings.profile.name().to_string(),
            margin_ms: millis(self.timing().margin()),
            inequalities: self.timing().inequalities(),
            hosts: self
                .config
                .hosts
                .keys()
                .map(|h| self.host_status(h, now))
                .collect(),
            datastores: self.datastore_statuses(now),
            vms: self
                .config
                .vms
                .values()
                .map(|spec| self.vm_status(spec))
                .collect(),
            issues: self.issues(now),
            ignored: self
                .ignored
                .iter()
                .map(|(k, n)| ((*k).to_string(), *n))
                .collect(),
        })
    }

    fn host_status(&self, host: &HostId, now: Instant) -> HostStatus {
        let own = host == self.host();
        let peer = self.peers.get(host);
        let here = own.then(|| self.own_reported());
        // The last report of a dead host says what it had, not what it has.
        let there = peer.filter(|p| p.state != HostState::Dead);
        let report = here
            .as_ref()
            .or_else(|| there.and_then(|p| p.report.as_ref()));
        let spec = self.config.hosts.get(host);
        let role = if own {
            Some(self.role.tag())
        } else {
            peer.filter(|p| p.state != HostState::Dead)
                .and_then(|p| p.role)
        };
        let (state, why) = match peer {
            None => (HostState::Live, String::from("this agent's own host")),
            Some(peer) if self.role.is_primary() => (peer.state, peer.why.clone()),
            Some(peer) => (
                peer.state,
                String::from("a secondary judges nobody; ask the primary"),
            ),
        };
        let why = match self.drill_said(host, now) {
            Some(drill) => format!("{drill}; {why}"),
            None => why,
        };
        HostStatus {
            host: host.clone(),
            role: if self.role.followed() == Some(host) {
                Some(RoleTag::Primary)
            } else {
                role
            },
            state,
            heartbeat_age_ms: peer.and_then(|p| p.heard).map(|h| millis(now.since(h))),
            vms: report.map_or(0, |r| u32::try_from(r.vms.len()).unwrap_or(u32::MAX)),
            cpu_mhz: (
                report.map_or(0, |r| r.cpu_mhz.1),
                spec.map_or(0, |s| s.cpu_mhz),
            ),
            memory_mb: (
                report.map_or(0, |r| r.memory_mb.1),
                spec.map_or(0, |s| s.memory_mb),
            ),
            why,
        }
    }

    fn datastore_statuses(&self, now: Instant) -> Vec<DatastoreStatus> {
        self.stores
            .iter()
            .map(|(id, store)| {
                let owner = match self.owned.get(id) {
                    Some(Own::Acting(_)) => Some(self.host().clone()),
                    Some(Own::Waiting { record, .. }) => {
                        record.holder.as_ref().map(|h| h.host.clone())
                    }
                    _ => None,
                };
                let protected = self.acting(id).map_or(0, |a| a.list.len());
                let right = store.right.deadline().map_or(0, |d| millis(d.since(now)));
                let fence = self
                    .config
                    .datastores
                    .get(id)
                    .map(|d| d.fence)
                    .unwrap_or_default();
                let lost = store.path.lost().map(|(loss, at)| {
                    format!(
                        "{}: lost for this host for {} ms",
                        loss.words(),
                        millis(now.since(at))
                    )
                });
                let problem = store.quarantine.clone().or(lost).or_else(|| {
                    store
                        .fault
                        .map(|f| format!("its last operation failed: {f:?}"))
                });
                DatastoreStatus {
                    datastore: id.clone(),
                    usable: store.usable(now, self.timing().r#break),
                    owner,
                    protected: u32::try_from(protected).unwrap_or(u32::MAX),
                    right_ms: right,
                    fence: match fence {
                        FenceClass::Enforced => "enforced",
                        FenceClass::Open => "open",
                    }
                    .to_string(),
                    problem,
                }
            })
            .collect()
    }

    fn vm_status(&self, spec: &VmSpec) -> VmStatus {
        let vm = &spec.id;
        let located = self.locate(vm);
        let (state, host, why) = match (located, self.restarts.get(vm)) {
            (Some(l), _) => {
                let state = match l.state {
                    VmReportState::Starting => "starting",
                    VmReportState::Running => "running",
                    VmReportState::Frozen => "frozen",
                    VmReportState::Stopping => "stopping",
                };
                let reported = (state, format!("{} reports it", l.host));
                let (state, why) = self.storage_state(vm, l.host).unwrap_or(reported);
                (state, Some(l.host.clone()), why)
            }
            (None, Some(r)) => {
                let state = match r.step {
                    Step::Abandoned => "abandoned",
                    Step::Ordered { .. } => "restarting",
                    _ => "waiting",
                };
                (state, None, r.why.clone())
            }
            (None, None) if self.role.is_primary() => match self.unowned_state(vm) {
                Some((state, why)) => (state, None, why),
                None => (
                    "powered_off",
                    None,
                    String::from("no host reports it and it is not protected"),
                ),
            },
            (None, None) => (
                "unknown",
                None,
                String::from("not on this host; ask the primary"),
            ),
        };
        VmStatus {
            vm: vm.clone(),
            datastore: spec.datastore.clone(),
            host,
            state: state.to_string(),
            // A start that has not taken the lock yet has no generation.
            generation: located.map(|l| l.generation).filter(|g| g.0 > 0),
            protected: self.protected_here.contains(vm)
                || self
                    .acting(&spec.datastore)
                    .is_some_and(|a| a.list.contains_key(vm)),
            why,
        }
    }

    /// Why a VM would not be restarted when its host is lost, if it would not be.
    fn not_restarted(&self, spec: &VmSpec) -> Option<String> {
        let mounted = self.topology.mounted_by(&spec.datastore).len();
        let why = if !self.config.settings.host_monitoring {
            String::from("host_monitoring is off")
        } else if spec.restart_priority == RestartPriority::Disabled {
            String::from("its restart priority is disabled")
        } else if mounted < 2 {
            format!("{mounted} of the hosts mount {}", spec.datastore)
        } else {
            return None;
        };
        Some(format!("It is not restarted when its host is lost: {why}."))
    }

    /// Why a VM is as it is.
    #[must_use]
    pub fn explain_vm(&self, now: Instant, vm: &VmId) -> Option<Explanation> {
        let _ = now;
        let status = self.vm_status(self.config.vms.get(vm)?);
        let mut sentences = Vec::new();
        let at = status
            .host
            .as_ref()
            .map(|h| format!(" on {h}"))
            .unwrap_or_default();
        sentences.push(format!("{vm} is {}{at}: {}.", status.state, status.why));
        sentences.push(if status.protected {
            format!("It is protected: it is on the protected list of {} on disk.", status.datastore)
        } else if !self.role.is_primary() {
            String::from("Whether it is protected is known to the primary; this agent has not been told that it is.")
        } else if self.acting(&status.datastore).is_none() {
            format!("It is not protected by this primary, which does not own {}.", status.datastore)
        } else {
            String::from("It is not protected: it has not been seen running.")
        });
        sentences.extend(
            self.config
                .vms
                .get(vm)
                .and_then(|spec| self.not_restarted(spec)),
        );
        if let Some(restart) = self.restarts.get(vm) {
            let plural = if restart.attempt == 1 { "" } else { "s" };
            sentences.push(format!(
                "Restart: {} attempt{plural} spent; {}.",
                restart.attempt, restart.why
            ));
        }
        let events: Vec<Event> = self
            .journal
            .iter()
            .filter(|e| e.kind.vm() == Some(vm))
            .cloned()
            .collect();
        if let Some(last) = events.last() {
            sentences.push(format!("The last that happened to it: {}.", last.why));
        }
        Some(Explanation {
            subject: vm.to_string(),
            sentences,
            events,
        })
    }

    /// Why a host is judged as it is.
    #[must_use]
    pub fn explain_host(&self, now: Instant, host: &HostId) -> Option<Explanation> {
        self.config.hosts.get(host)?;
        let status = self.host_status(host, now);
        let mut sentences = Vec::new();
        sentences.push(format!(
            "{host} is {}: {}.",
            Self::state_name(status.state),
            status.why
        ));
        if let Some(age) = status.heartbeat_age_ms {
            sentences.push(format!("Its last network heartbeat came {age} ms ago."));
        }
        for (id, store) in &self.stores {
            if let Some(window) = store.windows.get(host) {
                sentences.push(format!(
                    "Its heartbeat on {id} has been seen to stand still for {} ms (a lock may be broken after {} ms).",
                    window.length().as_millis(),
                    self.longest_break(&[window.break_named()]).as_millis()
                ));
            }
        }
        let events = self
            .journal
            .iter()
            .filter(|e| e.kind.host() == Some(host))
            .cloned()
            .collect();
        Some(Explanation {
            subject: host.to_string(),
            sentences,
            events,
        })
    }
}
