//! The weaknesses of this host that are found while it works, each with what it is about.
//!
//! ```text
//!             found                       over
//!   unknown ────────▶ listed, said once ────────▶ not listed ──▶ forgotten
//!                          ▲                           │
//!                          └── found again: said only when a while has passed
//! ```
//! A weakness is told from another by its class and by what it is about, never by its sentence: numbers
//! and reasons in it may change. It never ends by itself where only a success shows that it is over.

use super::Issue;
use crate::agent::Agent;
use crate::event::{EventKind, IssueCause};
use crate::id::DatastoreId;
use crate::time::{Duration, Instant};
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Display;

/// A weakness that comes and goes is said again after this time only, so that a path that fails every
/// other write does not push the reasons of decisions out of the journal: 4,000 events of one such
/// weakness span more than a day.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// What is found again and again, and whose end nobody sees, is over when it was not found for so long:
/// many times as long as between two looks at another host's records.
const FOUND_WITHIN: Duration = Duration::from_secs(120);

#[derive(Clone, Debug)]
struct Found {
    text: String,
    /// When it was last an event.
    said: Instant,
    /// When it was last found.
    found: Instant,
    /// It is the case.
    open: bool,
    /// Its end is seen by its being found no more.
    fades: bool,
}

/// The weaknesses by class and by what they are about.
#[derive(Clone, Debug, Default)]
pub(crate) struct OwnIssues(BTreeMap<(IssueCause, String), Found>);

impl OwnIssues {
    /// Takes note of a weakness; true when it is to be said.
    fn found(
        &mut self,
        now: Instant,
        key: (IssueCause, String),
        text: String,
        fades: bool,
    ) -> bool {
        let before = self.0.get(&key);
        let open = before.is_some_and(|f| f.open);
        let lately = before.filter(|f| open || now.since(f.said) < SAID_AGAIN_AFTER);
        let say = lately.is_none();
        let said = lately.map_or(now, |f| f.said);
        let found = Found {
            text,
            said,
            found: now,
            open: true,
            fades,
        };
        self.0.insert(key, found);
        say
    }

    fn over(&mut self, cause: IssueCause, about: impl Display) {
        // Nearly always there is none: no key is made to find that out.
        if self.0.is_empty() {
            return;
        }
        if let Some(found) = self.0.get_mut(&(cause, about.to_string())) {
            found.open = false;
        }
    }

    /// Ends what has faded and forgets what has been over for long.
    fn tidy(&mut self, now: Instant) {
        for found in self.0.values_mut() {
            found.open &= !found.fades || now.since(found.found) < FOUND_WITHIN;
        }
        self.0
            .retain(|_, f| f.open || now.since(f.said) < SAID_AGAIN_AFTER);
    }

    pub(super) fn open(&self) -> impl Iterator<Item = (IssueCause, &str)> {
        let open = self.0.iter().filter(|(_, found)| found.open);
        open.map(|((cause, _), found)| (*cause, found.text.as_str()))
    }
}

impl Agent {
    /// A weakness is there until [`Agent::withdraw`] takes it back: an event when it comes.
    pub(crate) fn issue(&mut self, cause: IssueCause, about: impl Display, text: String) {
        self.note_issue(cause, about, text, false);
    }

    /// A weakness was found that will be found again for as long as it is there.
    pub(crate) fn issue_found(&mut self, cause: IssueCause, about: impl Display, text: String) {
        self.note_issue(cause, about, text, true);
    }

    fn note_issue(&mut self, cause: IssueCause, about: impl Display, text: String, fades: bool) {
        let key = (cause, about.to_string());
        if self.own_issues.found(self.now, key, text.clone(), fades) {
            self.say_issue(cause, text);
        }
    }

    /// A weakness is over.
    pub(crate) fn withdraw(&mut self, cause: IssueCause, about: impl Display) {
        self.own_issues.over(cause, about);
    }

    /// What a user asked for came to nothing: said each time, and no weakness that lasts.
    pub(crate) fn refuse(&mut self, cause: IssueCause, text: String) {
        self.say_issue(cause, text);
    }

    fn say_issue(&mut self, cause: IssueCause, text: String) {
        let host = self.me.host.clone();
        let issue = text.clone();
        self.emit(EventKind::ConfigIssue { issue, cause, host }, text);
    }

    /// Forgets what is over, and what became another host's business.
    pub(super) fn tidy_own_issues(&mut self) {
        let datastores: Vec<DatastoreId> = self.stores.keys().cloned().collect();
        for datastore in datastores {
            if self.acting(&datastore).is_none() {
                self.withdraw(IssueCause::ListFull, &datastore);
                self.withdraw(IssueCause::ListNotWritten, &datastore);
            }
            if !self.writes_heartbeat(&datastore) {
                self.withdraw(IssueCause::HeartbeatNotWritten, &datastore);
            }
        }
        self.own_issues.tidy(self.now);
    }

    /// The weaknesses of this host.
    pub(crate) fn own_issues(&self) -> Vec<Issue> {
        let host = &self.me.host;
        let own = self.own_issues.open().map(|(cause, text)| Issue {
            cause,
            host: Some(host.clone()),
            text: text.to_string(),
        });
        own.chain(self.shell_issues.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAUSE: IssueCause = IssueCause::HeartbeatNotWritten;

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    fn found(issues: &mut OwnIssues, seconds: u64, text: &str) -> bool {
        let key = (CAUSE, String::from("ds-1"));
        issues.found(at(seconds), key, String::from(text), false)
    }

    fn texts(issues: &OwnIssues) -> Vec<&str> {
        issues.open().map(|(_, text)| text).collect()
    }

    #[test]
    fn a_weakness_is_said_when_it_comes_and_again_when_it_comes_back() {
        let mut issues = OwnIssues::default();
        assert!(found(&mut issues, 0, "timed out"));
        assert!(!found(&mut issues, 1, "no space"), "another sentence");
        assert_eq!(texts(&issues), ["no space"]);
        issues.over(CAUSE, "ds-2");
        assert_eq!(texts(&issues).len(), 1, "that was another one");
        issues.over(CAUSE, "ds-1");
        assert!(texts(&issues).is_empty());
        assert!(!found(&mut issues, 2, "flaps"), "listed, and not said");
        assert_eq!(texts(&issues), ["flaps"]);
        issues.over(CAUSE, "ds-1");
        issues.tidy(at(29));
        assert!(!issues.0.is_empty());
        issues.tidy(at(30));
        assert!(issues.0.is_empty(), "nothing is kept for ever");
        assert!(found(&mut issues, 3600, "again"));
    }

    #[test]
    fn only_what_is_found_again_and_again_fades() {
        let mut issues = OwnIssues::default();
        found(&mut issues, 0, "stays until its end is seen");
        let two = (IssueCause::SameHostId, String::new());
        assert!(issues.found(at(0), two.clone(), String::from("two"), true));
        assert!(!issues.found(at(60), two, String::from("two"), true));
        issues.tidy(at(179));
        assert_eq!(texts(&issues).len(), 2);
        issues.tidy(at(180));
        assert_eq!(texts(&issues), ["stays until its end is seen"]);
    }
}
