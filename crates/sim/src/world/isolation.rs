//! What agents say of their isolation, held against their settings and the hosts' clocks.

use super::{Host, World};
use crate::invariants::Fact;
use mainstay_core::config::{IsolationResponse, RestartPriority};
use mainstay_core::time::{Instant, nanos};

/// A VM is stopped because its host is isolated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Response {
    action: IsolationResponse,
    /// When a guest that was asked to shut down may be switched off.
    until: Instant,
    /// Isolation has not ended since.
    stands: bool,
}

impl Host {
    /// Its agent has said that it switches the VM off for its isolation, and has not called that off.
    pub(super) fn stops_for_isolation(&self, vm: usize) -> bool {
        self.answers(vm, IsolationResponse::PowerOff)
    }

    fn answers(&self, vm: usize, action: IsolationResponse) -> bool {
        let response = self.responses.get(&vm);
        response.is_some_and(|r| r.stands && r.action == action)
    }
}

impl World<'_> {
    /// An agent says that its host is isolated.
    pub(super) fn isolation_declared(&mut self, host: usize) {
        let silent = self.now.saturating_sub(self.hosts[host].reached);
        let settings = self.settings_of(host);
        let t = &settings.timing;
        let span = t.isolation_declare.saturating_sub(t.isolation_ping);
        let least = nanos(span.min(t.primary_isolation_declare)) / 10 * 9;
        let delay = t.isolation_policy_delay;
        let now = self.hosts[host].clock.local(self.now);
        self.hosts[host].isolated = Some((now, now + delay));
        let fact = Fact::Isolated {
            host,
            silent,
            least,
        };
        self.judge.observe(self.now, &fact);
    }

    /// It is not, or its agent has begun anew.
    pub(super) fn isolation_over(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        h.isolated = None;
        h.responses.values_mut().for_each(|r| r.stands = false);
    }

    /// An agent says what it does with a VM because its host is isolated.
    pub(super) fn isolation_response(&mut self, host: usize, vm: usize, action: IsolationResponse) {
        let owners = self.disks[self.vms[vm].disk].owners.iter().rev();
        let elsewhere = |(_, holder): (_, &Option<usize>)| holder.is_some_and(|h| h != host);
        let helps = self.hosts[host].isolated.is_some() && owners.take(2).any(elsewhere);
        let wrong = self.wrong_response(host, vm, action);
        let fact = Fact::Response {
            vm,
            host,
            helps,
            wrong,
        };
        self.judge.observe(self.now, &fact);
        let now = self.hosts[host].clock.local(self.now);
        let until = now + self.settings_of(host).isolation_shutdown_timeout;
        let response = Response {
            action,
            until,
            stands: true,
        };
        self.hosts[host].responses.insert(vm, response);
    }

    /// What speaks against that response in the configuration that the agent has now.
    fn wrong_response(
        &self,
        host: usize,
        vm: usize,
        action: IsolationResponse,
    ) -> Option<&'static str> {
        use IsolationResponse::{LeavePoweredOn, PowerOff, ShutDown};
        let h = &self.hosts[host];
        let now = h.clock.local(self.now);
        if action == PowerOff && h.answers(vm, ShutDown) {
            let early = h.responses.get(&vm).is_some_and(|r| now < r.until);
            return early.then_some("its guest had not had its time to shut down");
        }
        let config = h.agent.as_ref()?.config();
        let settings = &config.settings;
        let spec = config.vms.get(&self.vms[vm].id)?;
        let response = spec
            .isolation_response
            .unwrap_or(settings.isolation_response);
        if !settings.host_monitoring {
            return Some("host_monitoring was off");
        }
        if spec.restart_priority == RestartPriority::Disabled {
            return Some("its restart priority is disabled");
        }
        if h.isolated.is_some_and(|(_, from)| now < from) {
            return Some("isolation_policy_delay had not passed");
        }
        match (response, action) {
            (LeavePoweredOn, _) => Some("its response is to leave it powered on"),
            (PowerOff, ShutDown) => Some("its response is to switch it off"),
            (ShutDown, PowerOff) if spec.guest_agent => {
                Some("its response is to ask its guest to shut down")
            }
            _ => None,
        }
    }

    /// A guest may be asked to shut down: its host is isolated and that is the response, or its admin shuts
    /// it down.
    pub(super) fn may_ask_down(&self, host: usize, vm: usize) -> bool {
        let h = &self.hosts[host];
        h.shutting.is_some() || h.answers(vm, IsolationResponse::ShutDown)
    }

    /// The host has answered its isolation by stopping the VM since that last started there.
    pub(super) fn has_answered(&self, host: usize, vm: usize) -> bool {
        self.hosts[host].responses.contains_key(&vm)
    }
}
