//! What keeps a stream from being made, and what to do about it.

use mainstay_core::id::HostId;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Tries to reach a peer that failed one after another.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// The first and the last failure of a row.
    row: Option<(Instant, Instant)>,
    said: Option<String>,
    news: Option<Option<String>>,
}

impl Trouble {
    /// A try failed, for a message that was queued then. A row is said when messages are still queued after
    /// it has lasted for `dead`: to a host that is lost none are any more, and one that is there has
    /// something between it and this one.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        queued: Option<Instant>,
        dead: Duration,
        text: String,
    ) {
        let in_row = self.row.filter(|(_, last)| !is_old(now, *last, dead));
        let first = in_row.map_or(now, |(first, _)| first);
        self.row = Some((first, now));
        let goes_on = queued.is_some_and(|at| at.saturating_duration_since(first) >= dead);
        if goes_on && self.said.as_ref() != Some(&text) {
            self.said = Some(text.clone());
            self.news = Some(Some(text));
        }
    }

    /// The peer takes messages.
    pub(super) fn over(&mut self) {
        self.row = None;
        if self.said.take().is_some() {
            self.news = Some(None);
        }
    }

    /// Nothing was tried for long: there is nothing to be sent there any more.
    pub(super) fn forget_old(&mut self, now: Instant, dead: Duration) {
        if self.row.is_some_and(|(_, last)| is_old(now, last, dead)) {
            self.over();
        }
    }

    /// A row has begun.
    pub(super) fn is_there(&self) -> bool {
        self.row.is_some()
    }

    /// What is to be said now: the trouble, or that it is over.
    pub(super) fn news(&mut self) -> Option<Option<String>> {
        self.news.take()
    }
}

/// Nothing was tried for so long that nothing is to be sent.
fn is_old(now: Instant, last: Instant, dead: Duration) -> bool {
    now.duration_since(last) > 2 * dead
}

/// What is wrong, in a sentence with the place and the remedy.
pub(super) fn describe(peer: &HostId, address: Option<SocketAddr>, error: &io::Error) -> String {
    let at = address.map_or_else(|| "no address".to_owned(), |a| a.to_string());
    let tls = error
        .get_ref()
        .is_some_and(|inner| inner.is::<rustls::Error>());
    let remedy = match error.kind() {
        _ if tls => {
            "the certificates of both hosts must be of the cluster's CA and name their hosts: check ca_file, \
             cert_file and cert_key_file in agent.toml on both"
        }
        io::ErrorKind::ConnectionRefused => {
            "nobody listens there: start its agent, or correct its address"
        }
        // An answer that says why is lost with a reset.
        io::ErrorKind::ConnectionAborted
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => {
            "its agent's log says why: it may not know this host, or not take its certificate"
        }
        _ => "look for what lets datagrams through and not TCP to that address",
    };
    format!("messages to {peer} do not arrive at {at} ({error}); {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEAD: Duration = Duration::from_secs(6);

    #[test]
    fn a_host_that_is_lost_is_no_trouble_of_its_stream() {
        let lost = Instant::now();
        let at = |s| lost + Duration::from_secs(s);
        let mut trouble = Trouble::default();
        // What was queued before the verdict is tried for a while after it.
        for s in 0..12 {
            trouble.failed(at(s), Some(at(s.min(5))), DEAD, "refused".into());
        }
        assert_eq!(trouble.news(), None);
        trouble.forget_old(at(24), DEAD);
        assert!(!trouble.is_there());
        assert_eq!(trouble.news(), None);
    }

    #[test]
    fn a_row_is_said_once_while_messages_come_and_so_is_its_end() {
        let begun = Instant::now();
        let at = |s| begun + Duration::from_secs(s);
        let mut trouble = Trouble::default();
        for s in 0..=6 {
            assert_eq!(trouble.news(), None, "at {s}");
            trouble.failed(at(s), Some(at(s)), DEAD, "refused".into());
        }
        assert_eq!(trouble.news(), Some(Some("refused".into())));
        trouble.failed(at(7), Some(at(7)), DEAD, "refused".into());
        assert_eq!(trouble.news(), None, "it was said");
        trouble.failed(at(8), Some(at(8)), DEAD, "no route".into());
        assert_eq!(trouble.news(), Some(Some("no route".into())));
        trouble.over();
        assert_eq!(trouble.news(), Some(None));
        trouble.over();
        assert_eq!(trouble.news(), None);
    }
}
