//! S4: mandatory rules (affinity, maintenance, a mounted datastore) are never broken by a placement.
//! Source: `docs/protocol.md`, placement.

use super::{Fact, Invariant, Labels};
use crate::clock::Nanos;

/// Judges placements that HA chose.
#[derive(Debug, Default)]
pub(super) struct MandatoryRules;

impl Invariant for MandatoryRules {
    fn name(&self) -> &'static str {
        "S4"
    }

    fn sentence(&self) -> &'static str {
        "mandatory rules are never broken by a placement"
    }

    fn observe(&mut self, _: Nanos, fact: &Fact<'_>, labels: &Labels) -> Option<String> {
        let Fact::Placed {
            vm,
            host,
            broken: Some(rule),
        } = fact
        else {
            return None;
        };
        Some(format!(
            "{} was placed on {}: {rule}",
            labels.vm(*vm),
            labels.host(*host)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::feed;
    use super::*;

    #[test]
    fn a_placement_that_breaks_a_rule_is_a_violation() {
        let broken = Fact::Placed {
            vm: 0,
            host: 1,
            broken: Some("it does not mount ds-1".into()),
        };
        assert!(feed(&mut MandatoryRules, &[broken]).is_some());
        assert_eq!(
            feed(
                &mut MandatoryRules,
                &[Fact::Placed {
                    vm: 0,
                    host: 1,
                    broken: None
                }]
            ),
            None
        );
    }
}
