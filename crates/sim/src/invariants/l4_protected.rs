//! L4: after faults end, every VM that runs is protected, where a primary can own its datastore.
//! Source: `docs/protocol.md`, protected lists.

use super::{Fact, Invariant, Labels};
use crate::clock::Nanos;

/// Judges the newest protected lists on the datastores against the process tables.
#[derive(Debug, Default)]
pub(super) struct Protected;

impl Invariant for Protected {
    fn name(&self) -> &'static str {
        "L4"
    }

    fn sentence(&self) -> &'static str {
        "after faults end, every VM that runs is protected"
    }

    fn observe(&mut self, _: Nanos, fact: &Fact<'_>, labels: &Labels) -> Option<String> {
        let Fact::ShouldBeListed { vm, listed: false } = fact else {
            return None;
        };
        Some(format!(
            "{} runs and is not on the protected list of its datastore",
            labels.vm(*vm)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::feed;
    use super::*;

    #[test]
    fn a_vm_that_runs_and_is_on_no_list_is_a_violation() {
        let fact = |listed| Fact::ShouldBeListed { vm: 0, listed };
        assert_eq!(feed(&mut Protected, &[fact(true)]), None);
        assert!(feed(&mut Protected, &[fact(false)]).is_some());
    }
}
