//! What changes around the agent without a word to it: the gateways of its management networks, and its
//! own addresses. A thread looks again and again, and tells the loop what is different.

use super::error::{AgentError, spawn};
use super::{Shell, Wake};
use crate::clock;
use crate::net::isolation::{self, Gateway};
use crate::net::{self, OnNetwork};
use crate::weak::Source;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// Between two looks. A host that loses its network keeps the gateways that it knew, so that nothing
/// hangs on a quick look; one that was started before its network has them soon.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What one look found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Surroundings {
    /// The gateways of the management networks.
    pub(super) gateways: Vec<Gateway>,
    /// What is to be said of own addresses that this host does not have.
    missing: Vec<String>,
}

impl Surroundings {
    /// Looks once more; what was known before may still count.
    pub(super) fn look(&self, own: &[OnNetwork]) -> Self {
        Self {
            gateways: isolation::gateways(own, &self.gateways),
            missing: net::missing(own),
        }
    }
}

/// Looks as long as the process lives, on a thread of its own: the kernel's tables may be long.
pub(super) fn watch(own: Vec<OnNetwork>, wake: SyncSender<Box<Wake>>) -> Result<(), AgentError> {
    spawn("surroundings", move || {
        let mut last = Surroundings::default();
        loop {
            let seen = last.look(&own);
            if seen != last {
                last.clone_from(&seen);
                if wake.send(Box::new(Wake::Surroundings(seen))).is_err() {
                    return;
                }
            }
            clock::pause(LOOK_EVERY);
        }
    })
}

impl Shell {
    pub(super) fn on_surroundings(&mut self, seen: Surroundings) {
        if self.issues.get(&Source::Addresses) != Some(&seen.missing) {
            self.set_issues(Source::Addresses, seen.missing.clone());
        }
        self.surroundings = seen;
        self.renew_isolation_addresses();
        self.drain();
    }

    /// The settings may name other isolation addresses than before, and the gateways may be others.
    pub(super) fn renew_isolation_addresses(&mut self) {
        let settings = &self.agent.config().settings;
        let named = &self.named_isolation_addresses;
        let now = isolation::addresses(named, settings, &self.surroundings.gateways);
        if now != self.isolation_addresses {
            let names: Vec<String> = now.iter().map(ToString::to_string).collect();
            tracing::info!(addresses = names.join(", "), "isolation addresses");
            self.isolation_addresses = now;
            self.agent.set_isolation_addresses(names);
        }
    }
}
