//! Looks at each fence device now and then while all is well: one that does not answer, or that switches another
//! machine, is found before it is needed.

use super::Stage;
use super::attempt::said;
use crate::agent::Agent;
use crate::config::FencePolicy;
use crate::event::{HostState, IssueCause};
use crate::id::HostId;
use crate::io::{FenceOutcome, FenceRequest};
use crate::time::Instant;
use alloc::format;
use core::ops::Bound;

impl Agent {
    /// One device after the other, each once in `fence_check_interval`.
    pub(super) fn check_devices(&mut self) {
        let (now, count) = (self.now, self.fencing.devices.len());
        let count = u32::try_from(count).unwrap_or(u32::MAX).max(1);
        let pause = self.config.settings.fence_check_interval / count;
        let due = self.fencing.checked.as_ref().map(|(_, next)| *next);
        if due.is_some_and(|at| now < at) || self.config.settings.fence_policy == FencePolicy::Off {
            return;
        }
        self.say_missing_devices();
        let after = self.fencing.checked.as_ref().map(|(host, _)| host);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let devices = &self.fencing.devices;
        let mut ahead = devices.range((from, Bound::Unbounded));
        let Some(host) = ahead.next().or_else(|| devices.first()).cloned() else {
            return;
        };
        self.fencing.checked = Some((host.clone(), now + pause));
        let live = self
            .peers
            .get(&host)
            .is_some_and(|p| p.state == HostState::Live && p.heard.is_some());
        let fence = self.fence_mut(&host);
        if live && fence.op.is_none() && matches!(fence.stage, Stage::Idle | Stage::Doubted { .. })
        {
            fence.stage = Stage::Checked { issued: now };
            self.ask_device(&host, FenceRequest::Status);
        }
    }

    /// A device has answered while all was well.
    pub(super) fn on_device_checked(
        &mut self,
        host: &HostId,
        issued: Instant,
        outcome: &FenceOutcome,
    ) {
        let now = self.now;
        self.fence_mut(host).stage = Stage::Idle;
        match outcome {
            FenceOutcome::PowerOn => self.withdraw(IssueCause::FenceWeak, host),
            FenceOutcome::PowerOff => self.fence_mut(host).stage = Stage::Doubted { since: now },
            other => {
                let took = now.since(issued).as_millis();
                let text = format!(
                    "the fence device of {host} cannot be used from here: {} (after {took} ms); until it can, the death of {host} is not proven by its power: try `mainstay fence test {host}`",
                    said(other)
                );
                self.issue(IssueCause::FenceWeak, host, text);
            }
        }
    }

    /// A device calls a host off: if that goes on to be heard, the device means another.
    pub(super) fn doubt_device(&mut self, host: &HostId, since: Instant) {
        let Some(peer) = self.peers.get(host) else {
            return;
        };
        let late = since + self.fence_settles();
        if peer.heard.is_some_and(|at| at > late) {
            let text = format!(
                "the fence device of {host} switches something else: it calls {host} off, but {host} is live; correct its entry in the fence file"
            );
            self.issue(IssueCause::FenceWeak, host, text);
            self.fence_mut(host).stage = Stage::Idle;
        } else if peer.state != HostState::Live {
            self.fence_mut(host).stage = Stage::Idle;
        }
    }
}
