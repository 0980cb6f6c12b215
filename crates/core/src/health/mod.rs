//! What is weaker than it should be, as a list with remedies, so that protection is never off in silence.
//!
//! ```text
//!   every host:  its own storage, networks, guard, watchdog ──┐ facts
//!   primary:     configuration, versions, clocks, image locks ┴▶ issues ─▶ status, events
//! ```
//! Each agent knows the weaknesses of its own host and tells its primary; the primary has the whole list.
//! A weakness is an event when it comes, and is gone from the list when it is over.

mod clocks;
mod cluster;
mod facts;
mod locks;
mod own;
#[cfg(test)]
mod tests;

pub(crate) use clocks::Drift;
pub(crate) use facts::Telling;
pub(crate) use locks::LockChecks;
pub(crate) use own::OwnIssues;

use crate::agent::Agent;
use crate::event::{EventKind, IssueCause};
use crate::id::HostId;
use crate::time::Instant;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Heartbeats between two looks at the list.
pub(crate) const BEATS_BETWEEN_LOOKS: u64 = 8;

/// Something that is weaker than it should be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Issue {
    /// What kind of weakness it is.
    pub cause: IssueCause,
    /// The host where it is; none: the cluster's.
    pub host: Option<HostId>,
    /// What is the case, and what to do about it.
    pub text: String,
}

impl Issue {
    pub(crate) fn of_cluster(cause: IssueCause, text: String) -> Self {
        Self {
            cause,
            host: None,
            text,
        }
    }
}

impl core::fmt::Display for Issue {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match &self.host {
            // Many sentences name their host already.
            Some(host) if !self.text.contains(host.as_str()) => write!(f, "{host}: {}", self.text),
            _ => f.write_str(&self.text),
        }
    }
}

/// What tells a weakness that was said from another: its class, its host, and for the cluster's its text.
pub(crate) type Said = (IssueCause, Option<HostId>, Option<String>);

impl Agent {
    /// All that is weaker than it should be, as far as this agent knows: the primary knows most.
    #[must_use]
    pub fn issues(&self, now: Instant) -> Vec<Issue> {
        let mut all: BTreeSet<Issue> = self.own_issues().into_iter().collect();
        all.extend(cluster::issues(&self.config));
        if self.role.is_primary() {
            all.extend(self.issues_of_members(now));
            all.extend(self.unowned_issues(now));
            for peer in self.peers.values().filter(|p| p.connected()) {
                all.extend(peer.facts.iter().flat_map(|f| f.issues.iter().cloned()));
            }
        }
        all.into_iter().collect()
    }

    /// Once in a few heartbeats.
    pub(crate) fn run_health(&mut self) {
        self.check_image_locks();
        if !self.beats.is_multiple_of(BEATS_BETWEEN_LOOKS) {
            return;
        }
        self.tidy_own_issues();
        self.tell_facts();
        self.tell_clock();
        self.say_issues();
    }

    /// The cluster's weaknesses are said by its primary, once each time that they come.
    fn say_issues(&mut self) {
        if !self.role.is_primary() {
            self.said_of_cluster.clear();
            return;
        }
        let mut current: BTreeSet<Issue> = cluster::issues(&self.config).into_iter().collect();
        // Each host says this of itself.
        current.retain(|i| i.cause != IssueCause::OneNetwork);
        current.extend(self.issues_of_members(self.now));
        current.extend(self.unowned_issues(self.now));
        // The numbers in what is said of a host change with each look.
        let key = |i: &Issue| {
            let text = i.host.is_none().then(|| i.text.clone());
            (i.cause, i.host.clone(), text)
        };
        let keys: BTreeSet<Said> = current.iter().map(key).collect();
        let before = core::mem::replace(&mut self.said_of_cluster, keys);
        for issue in current.into_iter().filter(|i| !before.contains(&key(i))) {
            let host = issue.host.unwrap_or_else(|| self.me.host.clone());
            let kind = EventKind::ConfigIssue {
                issue: issue.text.clone(),
                cause: issue.cause,
                host,
            };
            self.emit(kind, issue.text);
        }
    }
}
