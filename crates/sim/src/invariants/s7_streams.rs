//! S7: a message on a stream is handed on once and in order, and none is lost while both agents live.
//! Source: `docs/protocol.md`, streams; seed "Components of High Availability".

use super::{Fact, Invariant, Labels};
use crate::clock::{Nanos, SECOND};
use mainstay_core::wire::{Envelope, SessionId};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// A session that is in use at the end has sent something new within this time: agents report at each
/// eighth heartbeat, at latest.
const IN_USE: Nanos = 10 * SECOND;
/// When all is well, a message has arrived by then: repetitions come after three heartbeat intervals.
const ARRIVED: Nanos = 5 * SECOND;
/// Messages of one session that are remembered: more than can be under way.
const REMEMBERED: usize = 600;

#[derive(Debug, Default)]
struct Session {
    /// What was sent under each number, and when first.
    sent: BTreeMap<u64, (u64, Nanos)>,
    handed: u64,
}

/// Follows what goes into streams and what comes out.
#[derive(Debug, Default)]
pub(super) struct Streams {
    sessions: BTreeMap<(usize, usize, SessionId), Session>,
}

fn digest(envelope: &Envelope) -> u64 {
    let mut hasher = DefaultHasher::new();
    envelope.message.hash(&mut hasher);
    hasher.finish()
}

impl Streams {
    fn sent(&mut self, at: Nanos, pair: (usize, usize), envelope: &Envelope) -> Option<String> {
        let key = (pair.0, pair.1, envelope.session);
        let session = self.sessions.entry(key).or_default();
        let number = envelope.number;
        let newest = session.sent.keys().next_back().copied().unwrap_or(0);
        if number > newest {
            session.sent.insert(number, (digest(envelope), at));
            if session.sent.len() > REMEMBERED {
                session.sent.pop_first();
            }
            return (number != newest + 1)
                .then(|| format!("number {number} was sent after {newest}"));
        }
        let first = session.sent.get(&number).map(|(digest, _)| *digest);
        (first.is_some() && first != Some(digest(envelope)))
            .then(|| format!("another message was sent again as number {number}"))
    }

    fn handed(&mut self, key: (usize, usize, SessionId), number: u64) -> Option<String> {
        let session = self.sessions.entry(key).or_default();
        let last = std::mem::replace(&mut session.handed, number);
        let newest = session.sent.keys().next_back().copied().unwrap_or(0);
        if number > newest {
            return Some(format!("number {number} was handed on and never sent"));
        }
        (number != last + 1).then(|| format!("number {number} was handed on after {last}"))
    }

    fn lost(&self, at: Nanos, groups: &[(Vec<usize>, Vec<usize>)]) -> Option<(usize, usize, u64)> {
        let together = |a: &usize, b: &usize| {
            let both = |members: &[usize]| members.contains(a) && members.contains(b);
            groups.iter().any(|(members, _)| both(members))
        };
        self.sessions.iter().find_map(|((from, to, _), session)| {
            let (_, (_, newest)) = session.sent.last_key_value()?;
            let in_use = at.saturating_sub(*newest) < IN_USE && together(from, to);
            let due = |(_, (_, first)): &(&u64, &(u64, Nanos))| at.saturating_sub(*first) > ARRIVED;
            let next = session.sent.range(session.handed + 1..).find(due);
            next.filter(|_| in_use)
                .map(|(number, _)| (*from, *to, *number))
        })
    }
}

impl Invariant for Streams {
    fn name(&self) -> &'static str {
        "S7"
    }

    fn sentence(&self) -> &'static str {
        "a message on a stream is handed on once and in order, and none is lost while both agents live"
    }

    fn observe(&mut self, at: Nanos, fact: &Fact<'_>, labels: &Labels) -> Option<String> {
        let (from, to, what) = match fact {
            Fact::StreamSent { from, to, envelope } => {
                (*from, *to, self.sent(at, (*from, *to), envelope)?)
            }
            Fact::StreamHanded {
                from,
                to,
                session,
                number,
            } => (*from, *to, self.handed((*from, *to, *session), *number)?),
            Fact::Groups { groups } => {
                let (from, to, number) = self.lost(at, groups)?;
                (from, to, format!("number {number} has not arrived"))
            }
            _ => return None,
        };
        let (from, to) = (labels.host(from), labels.host(to));
        Some(format!("on the stream from {from} to {to}, {what}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{feed, labels};
    use super::*;
    use mainstay_core::id::InstanceId;
    use mainstay_core::wire::Message;

    fn session(epoch: u64) -> SessionId {
        SessionId {
            from: InstanceId(1),
            to: InstanceId(2),
            epoch,
        }
    }

    fn envelope(number: u64, version: u64) -> Envelope {
        Envelope {
            session: session(1),
            number,
            message: Message::ConfigVersion { version },
        }
    }

    fn sent(envelope: &Envelope) -> Fact<'_> {
        Fact::StreamSent {
            from: 0,
            to: 1,
            envelope,
        }
    }

    fn handed(epoch: u64, number: u64) -> Fact<'static> {
        Fact::StreamHanded {
            from: 0,
            to: 1,
            session: session(epoch),
            number,
        }
    }

    #[test]
    fn a_doubled_an_overtaking_and_an_invented_message_are_violations() {
        let (one, two) = (envelope(1, 7), envelope(2, 8));
        let twice = [sent(&one), handed(1, 1), handed(1, 1)];
        assert!(feed(&mut Streams::default(), &twice).is_some());
        let overtaken = [sent(&one), sent(&two), handed(1, 2)];
        assert!(feed(&mut Streams::default(), &overtaken).is_some());
        let invented = [sent(&one), handed(2, 1)];
        assert!(feed(&mut Streams::default(), &invented).is_some());
        let good = [
            sent(&one),
            sent(&one),
            handed(1, 1),
            sent(&two),
            handed(1, 2),
        ];
        assert_eq!(feed(&mut Streams::default(), &good), None);
    }

    #[test]
    fn a_number_that_changes_its_meaning_is_a_violation() {
        let (one, other) = (envelope(1, 7), envelope(1, 8));
        assert!(feed(&mut Streams::default(), &[sent(&one), sent(&other)]).is_some());
    }

    #[test]
    fn a_message_that_never_arrives_on_a_stream_in_use_is_a_violation() {
        let (one, two) = (envelope(1, 7), envelope(2, 8));
        let groups = [(vec![0, 1], vec![0])];
        let apart = [(vec![0], vec![0]), (vec![1], vec![1])];
        for (groups, first, good) in [
            (&groups[..], 10 * SECOND, false),
            (&groups[..], 18 * SECOND, true),
            (&apart[..], 10 * SECOND, true),
        ] {
            let mut property = Streams::default();
            property.observe(first, &sent(&one), &labels());
            property.observe(18 * SECOND, &sent(&two), &labels());
            let fact = Fact::Groups { groups };
            let found = property.observe(20 * SECOND, &fact, &labels());
            assert_eq!(found.is_none(), good, "{found:?}");
        }
    }
}
