//! Which hosts are fenced, and when: only those whose death is of use to a VM that this primary owns, and only
//! under verdicts that the settings name.
//!
//! Two primaries of a partition must not switch each other's hosts off. The owner of the configuration's home
//! datastore, of which there is one, goes first, where it hears at least as many hosts as are silent; the other
//! waits `fence_delay`, and touches no host that lives.

use super::{Fence, Stage};
use crate::agent::Agent;
use crate::config::{FenceAction, FenceCutOff, FencePolicy};
use crate::event::{EventKind, HostState};
use crate::id::HostId;
use crate::io::FenceRequest;
use crate::time::Duration;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

impl Agent {
    /// Once in each heartbeat interval: begins attempts that are due, and switches on again what was off for long
    /// enough.
    pub(crate) fn begin_fencing(&mut self) {
        if self.fencing.devices.is_empty() {
            return;
        }
        if !self.role.is_primary() {
            self.rest_from_fencing();
            return;
        }
        let hosts: Vec<HostId> = self.fencing.devices.iter().cloned().collect();
        for host in hosts {
            if host == self.me.host {
                continue;
            }
            let wanted = self.wants_off(&host);
            match wanted {
                Some(why) => self.fence_when_due(&host, why),
                None => {
                    let live = self.peers.get(&host).map(|p| p.state) == Some(HostState::Live);
                    if let Some(fence) = self.fencing.hosts.get_mut(&host) {
                        fence.wanted_since = None;
                        fence.silent &= !live;
                    }
                    self.switch_on_again(&host);
                }
            }
        }
        self.check_devices();
    }

    /// Another leads: it fences. What was proven stays proven.
    fn rest_from_fencing(&mut self) {
        for fence in self.fencing.hosts.values_mut() {
            *fence = Fence {
                off: fence.off,
                on_again: fence.on_again,
                ..Fence::default()
            };
        }
        self.fencing.checked = None;
    }

    fn fence_when_due(&mut self, host: &HostId, why: String) {
        let (now, delay) = (self.now, self.fence_waits(host));
        let off = self.is_off(host);
        let fence = self.fence_mut(host);
        let since = *fence.wanted_since.get_or_insert(now);
        if fence.stage.began().is_some() || fence.not_before.is_some_and(|at| now < at) {
            return;
        }
        if off {
            // It was off, and nothing was heard of it since: a lock that was read later needs a later look.
            fence.stage = Stage::AskedAgain { began: now };
            self.ask_device(host, FenceRequest::Status);
            return;
        }
        if now < since + delay {
            return;
        }
        fence.stage = Stage::Asked { began: now };
        let kind = EventKind::FenceRequested {
            host: host.clone(),
            by: self.me.host.clone(),
            reason: why.clone(),
        };
        self.emit(kind, why);
        self.ask_device(host, FenceRequest::Status);
    }

    /// How long this primary holds back, so that another that means to switch its hosts off can do so first.
    fn fence_waits(&self, host: &HostId) -> Duration {
        let lives = self
            .peers
            .get(host)
            .is_some_and(|p| matches!(p.state, HostState::Partitioned | HostState::Isolated));
        if lives || self.fences_first() {
            Duration::ZERO
        } else {
            self.config.settings.fence_delay
        }
    }

    /// This primary owns the configuration's home datastore, and hears at least as many hosts as are silent.
    fn fences_first(&self) -> bool {
        let home = self.config.home();
        let owns = home.is_some_and(|d| self.acting(&d).is_some());
        let heard = 1 + self.peers.values().filter(|p| p.connected()).count();
        let rests = |p: &&crate::liveness::Peer| {
            matches!(p.state, HostState::Live | HostState::Maintenance)
        };
        let silent = self.peers.values().filter(|p| !rests(p)).count();
        owns && heard >= silent
    }

    /// Why a host is to be switched off; none: it is not.
    pub(super) fn wants_off(&self, host: &HostId) -> Option<String> {
        let settings = &self.config.settings;
        let peer = self.peers.get(host)?;
        let spared = settings.fence_policy == FencePolicy::Off
            || !settings.host_monitoring
            || !self.fencing.devices.contains(host)
            || peer.leaving
            || self.drill_said(host, self.now).is_some();
        if spared {
            return None;
        }
        let cut_off = settings.fence_cut_off;
        let allowed = match peer.state {
            HostState::Dead | HostState::AgentUnreachable => true,
            HostState::Unreachable => {
                settings.fence_policy == FencePolicy::Suspected && self.looks_dead(host)
            }
            HostState::Isolated => cut_off != FenceCutOff::Never && self.fences_first(),
            HostState::Partitioned => cut_off == FenceCutOff::Partitioned && self.fences_first(),
            // An admin works on it.
            HostState::Live | HostState::Maintenance => false,
        };
        if !allowed {
            return None;
        }
        let wanted = self.fencing.hosts.get(host);
        let wanted = wanted.is_some_and(|f| f.wanted_since.is_some());
        let vm = self.needs_power_proof(host, wanted)?;
        Some(format!(
            "{vm} waits for the proof of its death: {}",
            peer.why
        ))
    }

    /// A host that was switched off gets its power back when no VM needs its death any more.
    fn switch_on_again(&mut self, host: &HostId) {
        let cycles = self.config.settings.fence_action == FenceAction::Cycle;
        let off = self.is_off(host);
        let Some(fence) = self.fencing.hosts.get_mut(host) else {
            return;
        };
        if !fence.on_again || fence.op.is_some() || fence.stage.began().is_some() {
            return;
        }
        fence.on_again = false;
        if cycles && off {
            self.ask_device(host, FenceRequest::On);
        }
    }
}
