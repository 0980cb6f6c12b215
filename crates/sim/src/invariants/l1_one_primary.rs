//! L1: after faults end, one primary per connected group within the profile's election bound.
//! Source: `docs/protocol.md`, election.

use super::{Fact, Invariant, Labels};
use crate::clock::Nanos;

/// Judges what the hosts of each group say on the wire.
#[derive(Debug, Default)]
pub(super) struct OnePrimary;

impl Invariant for OnePrimary {
    fn name(&self) -> &'static str {
        "L1"
    }

    fn sentence(&self) -> &'static str {
        "after faults end, one primary per connected group"
    }

    fn observe(&mut self, _: Nanos, fact: &Fact<'_>, labels: &Labels) -> Option<String> {
        let Fact::Groups { groups } = fact else {
            return None;
        };
        groups
            .iter()
            .find(|(_, primaries)| primaries.len() != 1)
            .map(|(hosts, primaries)| {
                let names = |list: &[usize]| {
                    list.iter()
                        .map(|h| labels.host(*h))
                        .collect::<Vec<_>>()
                        .join(", ")
                };
                let who = if primaries.is_empty() {
                    "no primary".into()
                } else {
                    names(primaries)
                };
                format!("the group of {} has {who}", names(hosts))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::feed;
    use super::*;

    #[test]
    fn a_group_with_no_or_two_primaries_is_a_violation() {
        for (primaries, good) in [(vec![], false), (vec![0, 1], false), (vec![1], true)] {
            let groups = [(vec![0, 1], primaries)];
            assert_eq!(
                feed(&mut OnePrimary, &[Fact::Groups { groups: &groups }]).is_none(),
                good
            );
        }
    }
}
