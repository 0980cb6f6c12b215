//! S8: a host gives a VM's lock back, and takes the VM off its powered-on list, only when nothing of it
//! is left there: a killed process may still have threads in the kernel.
//! Source: `docs/protocol.md`, what stops a VM; seed "vSphere 5.0 High Availability (HA)".

use super::{Fact, Invariant, Labels};
use crate::clock::Nanos;

/// Judges what agents write about a VM against the process table of their host.
#[derive(Debug, Default)]
pub(super) struct NothingLeft;

impl Invariant for NothingLeft {
    fn name(&self) -> &'static str {
        "S8"
    }

    fn sentence(&self) -> &'static str {
        "a host gives a VM's lock back, and takes it off its powered-on list, only when nothing of it is left"
    }

    fn observe(&mut self, _: Nanos, fact: &Fact<'_>, labels: &Labels) -> Option<String> {
        let Fact::GivenUp {
            vm,
            host,
            what,
            left: true,
        } = fact
        else {
            return None;
        };
        let (vm, host) = (labels.vm(*vm), labels.host(*host));
        Some(format!(
            "{host} {what} {vm}, of which there is a process yet"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::feed;
    use super::*;

    #[test]
    fn what_is_given_up_while_a_process_is_left_is_a_violation() {
        for left in [false, true] {
            let given_up = Fact::GivenUp {
                vm: 0,
                host: 0,
                what: "gave back the lock of",
                left,
            };
            assert_eq!(feed(&mut NothingLeft, &[given_up]).is_some(), left);
        }
    }
}
