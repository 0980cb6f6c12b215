//! L3: nothing restarts for ever: retries end at their limit and say so.
//! Source: seed "VMware High Availability Constructs" (2, 4, 8, 8, 8 minutes, then given up).

use super::{Fact, Invariant, Labels, PerVm};
use crate::clock::Nanos;
use mainstay_core::event::EventKind;

/// Counts attempts.
#[derive(Debug)]
pub(super) struct RetriesEnd {
    limit: u32,
    highest: PerVm<u32>,
}

impl RetriesEnd {
    pub(super) fn new(max_restart_attempts: u32) -> Self {
        Self {
            limit: max_restart_attempts.saturating_add(1),
            highest: PerVm::new(),
        }
    }
}

impl Invariant for RetriesEnd {
    fn name(&self) -> &'static str {
        "L3"
    }

    fn sentence(&self) -> &'static str {
        "retries end at their limit and say so"
    }

    fn observe(&mut self, _: Nanos, fact: &Fact<'_>, labels: &Labels) -> Option<String> {
        let Fact::Said {
            event,
            vm: Some(vm),
            ..
        } = fact
        else {
            return None;
        };
        match event {
            EventKind::RestartRequested { attempt, .. } => {
                self.highest.insert(*vm, *attempt);
                (*attempt > self.limit).then(|| {
                    format!(
                        "{} was asked to start for attempt {attempt}; the limit is {}",
                        labels.vm(*vm),
                        self.limit
                    )
                })
            }
            EventKind::VmStarted { .. } => {
                self.highest.remove(vm);
                None
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::feed;
    use super::*;
    use mainstay_core::id::{HostId, VmId};

    #[test]
    fn an_attempt_beyond_the_limit_is_a_violation() {
        let (vm, host) = (
            VmId::new("vm-1").expect("id"),
            HostId::new("host-1").expect("id"),
        );
        let event = |attempt| EventKind::RestartRequested {
            vm: vm.clone(),
            host: host.clone(),
            attempt,
        };
        let (good, bad) = (event(6), event(7));
        let said = |event| Fact::Said { event, vm: Some(0) };
        assert_eq!(
            feed(&mut RetriesEnd::new(5), &[said(&good), said(&good)]),
            None
        );
        assert!(feed(&mut RetriesEnd::new(5), &[said(&bad)]).is_some());
    }
}
