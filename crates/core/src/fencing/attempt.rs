//! One attempt to prove a host's death by its power, from the first question to the proof.

use super::{Fence, PowerOff, Signs, Stage};
use crate::agent::{Agent, planted};
use crate::event::{EventKind, IssueCause};
use crate::id::{HostId, OpId};
use crate::io::{FenceOutcome, FenceRequest};
use crate::time::Instant;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

impl Agent {
    /// Carries attempts on whose time has come.
    pub(crate) fn run_fencing(&mut self) {
        if !self.role.is_primary() || self.fencing.hosts.is_empty() {
            return;
        }
        let waits = |f: &Fence| {
            matches!(f.stage, Stage::Settling { .. } | Stage::Doubted { .. })
                || matches!(f.stage, Stage::Confirming { .. }) && f.op.is_none()
        };
        let hosts: Vec<HostId> = self
            .fencing
            .hosts
            .iter()
            .filter(|(_, f)| waits(f))
            .map(|(h, _)| h.clone())
            .collect();
        for host in hosts {
            match self.fence_mut(&host).stage.clone() {
                Stage::Confirming { next, .. } if self.now >= next => {
                    self.ask_device(&host, FenceRequest::Status);
                }
                Stage::Settling { began, off, signs } => {
                    self.settle_fence(&host, began, off, signs)
                }
                Stage::Doubted { since } => self.doubt_device(&host, since),
                _ => {}
            }
        }
    }

    /// A device has answered what it was asked at `issued`.
    pub(crate) fn on_fenced(
        &mut self,
        host: &HostId,
        op: OpId,
        issued: Instant,
        outcome: FenceOutcome,
    ) {
        let Some(fence) = self
            .fencing
            .hosts
            .get_mut(host)
            .filter(|f| f.op == Some(op))
        else {
            self.ignore("answer of a fence device that nobody waits for");
            return;
        };
        fence.op = None;
        let stage = fence.stage.clone();
        match stage {
            Stage::Asked { began } => self.on_first_status(host, began, issued, outcome),
            Stage::AskedAgain { .. } => self.on_status_again(host, issued, &outcome),
            Stage::Switching { began } => self.on_switched(host, began, issued, &outcome),
            Stage::Confirming { began, until, .. } => {
                self.on_status_after(host, began, until, issued, outcome);
            }
            Stage::Checked { issued } => self.on_device_checked(host, issued, &outcome),
            Stage::Idle => self.on_switched_on(host, &outcome),
            Stage::Settling { .. } | Stage::Doubted { .. } => {}
        }
    }

    /// The status that is asked for before anything is switched.
    fn on_first_status(
        &mut self,
        host: &HostId,
        began: Instant,
        issued: Instant,
        outcome: FenceOutcome,
    ) {
        match outcome {
            FenceOutcome::PowerOff => self.settle_from(host, began, issued),
            FenceOutcome::PowerOn if self.wants_off(host).is_none() => {
                self.fence_fails(
                    host,
                    String::from("called off: there is no reason for it any more"),
                );
            }
            FenceOutcome::PowerOn if self.fence_mut(host).silent => {
                // Power came back to both, as it seems: what boots is not switched off again.
                let wait = self.config.settings.fence_boot_time;
                let text = format!(
                    "called off: its fence device, which did not answer before, says that it has power, so that it may be booting; asked again in {} s",
                    wait.as_secs()
                );
                self.fence_fails(host, text);
                let until = self.now + wait;
                let fence = self.fence_mut(host);
                fence.silent = false;
                fence.not_before = Some(until);
            }
            FenceOutcome::PowerOn => {
                self.fence_mut(host).stage = Stage::Switching { began };
                self.ask_device(host, FenceRequest::Off);
            }
            FenceOutcome::Unknown(_) if planted!(self, SilentDeviceIsDeath) => {
                self.settle_from(host, began, issued);
            }
            other => {
                self.fence_mut(host).silent = true;
                self.fence_fails(host, said(&other));
            }
        }
    }

    /// The device has done what it was told, or not: only the power tells.
    fn on_switched(
        &mut self,
        host: &HostId,
        began: Instant,
        issued: Instant,
        outcome: &FenceOutcome,
    ) {
        if planted!(self, FenceUnconfirmed) && *outcome == FenceOutcome::Done {
            self.settle_from(host, began, issued);
            return;
        }
        let now = self.now;
        let until = now + self.config.settings.fence_timeout;
        self.fence_mut(host).stage = Stage::Confirming {
            began,
            next: now,
            until,
        };
        self.ask_device(host, FenceRequest::Status);
    }

    /// The status that is asked for after the host was to be switched off.
    fn on_status_after(
        &mut self,
        host: &HostId,
        began: Instant,
        until: Instant,
        issued: Instant,
        outcome: FenceOutcome,
    ) {
        if outcome == FenceOutcome::PowerOff {
            self.settle_from(host, began, issued);
            return;
        }
        let now = self.now;
        if now >= until || matches!(outcome, FenceOutcome::Stranger(_)) {
            self.fence_fails(host, said(&outcome));
            return;
        }
        // Some machines take their time to go down, and some devices to notice.
        let next = now + self.timing().network_heartbeat;
        self.fence_mut(host).stage = Stage::Confirming { began, next, until };
    }

    /// The status of a host that was off before: good for the locks that were read since.
    fn on_status_again(&mut self, host: &HostId, issued: Instant, outcome: &FenceOutcome) {
        let quiet = self.is_off(host);
        let settings = &self.config.settings;
        let retry = self.now + settings.fence_retry;
        let booted = self.now + settings.fence_boot_time;
        let fence = self.fence_mut(host);
        fence.stage = Stage::Idle;
        match (&mut fence.off, outcome) {
            (Some(known), FenceOutcome::PowerOff) if quiet => known.issued = issued,
            (Some(known), FenceOutcome::PowerOn) => {
                // Somebody has switched it on: it may come back, and give its locks back by itself.
                known.over = true;
                fence.not_before = Some(booted);
            }
            _ => fence.not_before = Some(retry),
        }
    }

    fn settle_from(&mut self, host: &HostId, began: Instant, issued: Instant) {
        let done = self.now;
        let off = PowerOff {
            issued,
            done,
            over: false,
        };
        let signs = Signs::default();
        self.fence_mut(host).stage = Stage::Settling { began, off, signs };
    }

    /// Is it quiet, as a host without power is?
    fn settle_fence(&mut self, host: &HostId, began: Instant, off: PowerOff, mut signs: Signs) {
        let sign = self.sign_of_life(host, &off, &mut signs);
        if let Some(sign) = sign
            && !planted!(self, FenceSignsIgnored)
        {
            let text = format!(
                "the fence device of {host} switches something else: it called {host} off, but {sign}; correct its entry in the fence file, and look what was switched off instead"
            );
            self.issue(IssueCause::FenceWeak, host, text.clone());
            self.fence_fails(host, text);
            return;
        }
        let settled = signs.quiet_from(&off) + self.fence_settles();
        // Where it was read and pinged, that must have been since; what cannot be done is not waited for.
        let unseen = self.peers.get(host).is_some_and(|p| p.ping_answered_last())
            || self.owns_unread(host, off.done + self.fence_settles());
        let patience = off.done + self.config.settings.fence_timeout;
        let ignored = planted!(self, FenceSignsIgnored) && self.now >= patience;
        if !ignored && (self.now < settled || unseen && self.now < patience) {
            self.fence_mut(host).stage = Stage::Settling { began, off, signs };
            return;
        }
        let now = self.now;
        let fence = self.fence_mut(host);
        fence.stage = Stage::Idle;
        fence.off = Some(off);
        fence.on_again = true;
        fence.not_before = Some(now);
        let took = off.done.since(began).as_millis();
        let why = format!(
            "its fence device calls {host} off, {took} ms after it was first asked, and nothing was heard of it since"
        );
        self.withdraw(IssueCause::FenceWeak, host);
        let kind = EventKind::FenceConfirmed {
            host: host.clone(),
            by: self.me.host.clone(),
            reason: why.clone(),
        };
        self.emit(kind, why);
        self.judging.begin_again();
        self.judge_hosts();
        self.run_restarts();
    }

    fn fence_fails(&mut self, host: &HostId, reason: String) {
        let retry = self.now + self.config.settings.fence_retry;
        let fence = self.fence_mut(host);
        fence.stage = Stage::Idle;
        fence.not_before = Some(retry);
        let kind = EventKind::FenceFailed {
            host: host.clone(),
            by: self.me.host.clone(),
            reason: reason.clone(),
        };
        self.emit(kind, reason);
    }

    /// A host was to get its power back.
    fn on_switched_on(&mut self, host: &HostId, outcome: &FenceOutcome) {
        if *outcome != FenceOutcome::Done {
            let text = format!(
                "{host} was switched off by its fence device and could not be switched on again: {}; switch it on by hand",
                said(outcome)
            );
            self.issue_found(IssueCause::FenceWeak, format_args!("{host} on"), text);
        }
    }
}

/// An answer in words.
pub(super) fn said(outcome: &FenceOutcome) -> String {
    match outcome {
        FenceOutcome::PowerOn => String::from("it still has power"),
        FenceOutcome::PowerOff => String::from("it has no power"),
        FenceOutcome::Done => String::from("its fence device names no power state"),
        FenceOutcome::Stranger(name) => format!(
            "its fence device is asked who it switches and says \"{name}\"; correct its entry in the fence file"
        ),
        FenceOutcome::NotDone(why) | FenceOutcome::Unknown(why) => why.to_string(),
    }
}
