//! What is weaker here than it should be: told to the core, and an event when it comes.

use super::Shell;
use crate::clock;
use crate::weak::Source;
use mainstay_core::event::{Event, EventKind};
use mainstay_core::health::Issue;
use mainstay_core::id::HostId;
use std::net::SocketAddr;

impl Shell {
    /// Another agent uses a host's id.
    pub(super) fn on_same_id(&mut self, host: &HostId, address: SocketAddr) {
        self.same_ids.heard(clock::now(), host, address);
        self.look_at_same_ids();
    }

    /// Those that are silent for long are said no more.
    pub(super) fn look_at_same_ids(&mut self) {
        let issues = self.same_ids.issues(clock::now());
        let before = self.issues.get(&Source::SameId);
        if before.is_some_and(|b| *b != issues) || (before.is_none() && !issues.is_empty()) {
            self.set_issues(Source::SameId, issues);
        }
    }

    /// The stream to a host cannot be made, or is there again.
    pub(super) fn on_trouble(&mut self, to: HostId, what: Option<String>) {
        let before = match what {
            Some(text) => self.stream_troubles.insert(to, text),
            None => self.stream_troubles.remove(&to),
        };
        let all: Vec<String> = self.stream_troubles.values().cloned().collect();
        if before.is_some() || !all.is_empty() {
            self.set_issues(Source::Streams, all);
        }
    }

    /// These are the weaknesses of that source now.
    pub(super) fn set_issues(&mut self, source: Source, issues: Vec<String>) {
        let before = self.issues.insert(source, issues.clone());
        let before = before.unwrap_or_default();
        let (host, cause) = (self.stamp.writer.clone(), source.cause());
        for issue in issues.into_iter().filter(|i| !before.contains(i)) {
            tracing::warn!(?source, issue, "weakness");
            let kind = EventKind::ConfigIssue {
                issue: issue.clone(),
                cause,
                host: host.clone(),
            };
            self.events.push(Event {
                at: clock::now(),
                kind,
                why: issue,
            });
        }
        let all = self.issues.iter().flat_map(|(source, issues)| {
            issues.iter().map(|text| Issue {
                cause: source.cause(),
                host: Some(host.clone()),
                text: text.clone(),
            })
        });
        self.agent.set_shell_issues(all.collect());
        self.drain();
    }
}
