//! L2: after faults end, every protected VM that should run and for which an eligible host has room
//! runs within a stated bound. Source: `docs/protocol.md`, restarts.

use super::{Fact, Invariant, Labels};
use crate::clock::Nanos;

/// Judges the process tables when the bound has passed.
#[derive(Debug, Default)]
pub(super) struct Restarted;

impl Invariant for Restarted {
    fn name(&self) -> &'static str {
        "L2"
    }

    fn sentence(&self) -> &'static str {
        "after faults end, every protected VM that should run and could is running"
    }

    fn observe(&mut self, _: Nanos, fact: &Fact<'_>, labels: &Labels) -> Option<String> {
        let Fact::ShouldRun {
            vm,
            runs: false,
            why,
        } = fact
        else {
            return None;
        };
        Some(format!("{} does not run: {why}", labels.vm(*vm)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::feed;
    use super::*;

    #[test]
    fn a_vm_that_should_run_and_does_not_is_a_violation() {
        assert!(
            feed(
                &mut Restarted,
                &[Fact::ShouldRun {
                    vm: 0,
                    runs: false,
                    why: "no instance"
                }]
            )
            .is_some()
        );
        assert_eq!(
            feed(
                &mut Restarted,
                &[Fact::ShouldRun {
                    vm: 0,
                    runs: true,
                    why: ""
                }]
            ),
            None
        );
    }
}
