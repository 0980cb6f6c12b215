//! S9: no lock says that its VM is switched off when nobody switched it off.
//! Source: `docs/protocol.md`, intent in the lock's register.

use super::{Fact, Invariant, Labels};
use crate::clock::Nanos;

/// Judges the newest record of each lock against wishes, and guests that shut down cleanly.
#[derive(Debug, Default)]
pub(super) struct SwitchedOff;

impl Invariant for SwitchedOff {
    fn name(&self) -> &'static str {
        "S9"
    }

    fn sentence(&self) -> &'static str {
        "a VM is marked as switched off only by its user's wish or a clean shutdown of its guest"
    }

    fn observe(&mut self, _: Nanos, fact: &Fact<'_>, labels: &Labels) -> Option<String> {
        let Fact::Desired {
            vm,
            on: false,
            cause: false,
        } = fact
        else {
            return None;
        };
        Some(format!(
            "the lock of {} says that it is switched off, and nobody has done that",
            labels.vm(*vm)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::feed;
    use super::*;

    #[test]
    fn off_on_disk_needs_a_cause() {
        let desired = |on, cause| Fact::Desired { vm: 0, on, cause };
        let good = [desired(true, false), desired(false, true)];
        assert_eq!(feed(&mut SwitchedOff, &good), None);
        assert!(feed(&mut SwitchedOff, &[desired(false, false)]).is_some());
    }
}
