//! L3: nothing restarts for ever: retries end at their limit and say so.
//! Source: seed "VMware High Availability Constructs" (2, 4, 8, 8, 8 minutes, then given up).

use super::{Fact, Invariant, Labels, PerVm};
use crate::clock::Nanos;
use mainstay_core::event::EventKind;

/// Counts attempts, and what each agent allows when it asks for one.
#[derive(Debug, Default)]
pub(super) struct RetriesEnd {
    /// The attempts that were allowed when the last one failed: what it was followed by was decided then.
    allowed: PerVm<u32>,
    /// Attempts that failed since the first was asked for.
    failed: PerVm<u32>,
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
            retries,
        } = fact
        else {
            return None;
        };
        let limit = retries.saturating_add(1);
        match event {
            EventKind::RestartFailed { .. } => {
                self.allowed.insert(*vm, limit);
                *self.failed.entry(*vm).or_insert(0) += 1;
                None
            }
            EventKind::RestartAbandoned { .. } => {
                let failed = self.failed.remove(vm).unwrap_or(0);
                (failed < limit).then(|| {
                    format!(
                        "{} was given up after {failed} attempts; the limit is {limit}",
                        labels.vm(*vm)
                    )
                })
            }
            EventKind::RestartRequested { attempt, .. } => {
                if *attempt == 1 {
                    self.failed.remove(vm);
                }
                let before = self.allowed.get(vm).copied().unwrap_or(0);
                let limit = limit.max(before);
                (*attempt > limit).then(|| {
                    format!(
                        "{} was asked to start for attempt {attempt}; the limit is {limit}",
                        labels.vm(*vm)
                    )
                })
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
        let failed = EventKind::RestartFailed {
            vm: vm.clone(),
            host: host.clone(),
            attempt: 6,
            reason: "test".into(),
        };
        let (good, bad) = (event(6), event(7));
        let said = |event, retries| Fact::Said {
            event,
            vm: Some(0),
            retries,
        };
        let judge = |facts: &[Fact<'_>]| feed(&mut RetriesEnd::default(), facts);
        assert_eq!(judge(&[said(&good, 5), said(&good, 5)]), None);
        assert!(judge(&[said(&bad, 5)]).is_some());
        assert_eq!(judge(&[said(&bad, 9)]), None);
        // The limit was lowered while a retry that had been decided on waited for its time.
        assert_eq!(judge(&[said(&failed, 9), said(&bad, 2)]), None);
        assert!(judge(&[said(&failed, 5), said(&bad, 2)]).is_some());
    }
    #[test]
    fn giving_up_before_the_limit_is_a_violation() {
        let (vm, host) = (
            VmId::new("vm-1").expect("id"),
            HostId::new("host-1").expect("id"),
        );
        let asked = |attempt| EventKind::RestartRequested {
            vm: vm.clone(),
            host: host.clone(),
            attempt,
        };
        let failed = |attempt| EventKind::RestartFailed {
            vm: vm.clone(),
            host: host.clone(),
            attempt,
            reason: "test".into(),
        };
        let given_up = EventKind::RestartAbandoned {
            vm: vm.clone(),
            attempt: 3,
            reason: "test".into(),
        };
        let judge = |attempts: u32| {
            let mut events: Vec<EventKind> = Vec::new();
            for attempt in 1..=attempts {
                events.extend([asked(attempt), failed(attempt)]);
            }
            events.push(given_up.clone());
            let said = |event| Fact::Said {
                event,
                vm: Some(0),
                retries: 2,
            };
            let facts: Vec<Fact<'_>> = events.iter().map(said).collect();
            feed(&mut RetriesEnd::default(), &facts)
        };
        assert_eq!(judge(3), None);
        assert!(judge(2).is_some());
        assert!(judge(0).is_some());
    }
}
