//! S6: no isolation response, freeze or kill without its stated cause, as the world saw it.
//! Source: `docs/protocol.md`, what stops a VM.

use super::{Fact, Invariant, Labels};
use crate::clock::{MS, Nanos};
use mainstay_core::event::StopReason;

/// Judges freezes, kills and the reasons that agents give.
#[derive(Debug, Default)]
pub(super) struct StatedCause;

impl Invariant for StatedCause {
    fn name(&self) -> &'static str {
        "S6"
    }

    fn sentence(&self) -> &'static str {
        "no isolation response, freeze or kill without its stated cause"
    }

    fn observe(&mut self, _: Nanos, fact: &Fact<'_>, labels: &Labels) -> Option<String> {
        match fact {
            Fact::Frozen {
                vm,
                host,
                lapsed: false,
            } => {
                let (vm, host) = (labels.vm(*vm), labels.host(*host));
                Some(format!(
                    "{vm} was frozen on {host} before its right to run had ended"
                ))
            }
            Fact::Isolated {
                host,
                silent,
                least,
            } if silent < least => Some(format!(
                "{} called itself isolated {} ms after something had reached it",
                labels.host(*host),
                silent / MS
            )),
            Fact::Response {
                vm,
                host,
                helps: false,
            } => Some(format!(
                "{} was stopped by isolated {} though no other host owned its datastore",
                labels.vm(*vm),
                labels.host(*host)
            )),
            Fact::Killed { vm, host, cause } => {
                let some = cause.never_ran
                    || cause.user
                    || cause.lock_moved
                    || cause.isolated
                    || cause.frozen_limit
                    || cause.guest
                    || cause.host_leaves;
                let (vm, host) = (labels.vm(*vm), labels.host(*host));
                (!some).then(|| {
                    format!("{vm} was killed on {host} without a cause that the world knows")
                })
            }
            Fact::Stopped {
                vm,
                host,
                reason,
                exit: Some(exit),
            } => {
                let wrong =
                    matches!(reason, StopReason::Guest | StopReason::Crash) && reason != exit;
                let (vm, host) = (labels.vm(*vm), labels.host(*host));
                wrong.then(|| {
                    format!(
                        "{vm} stopped on {host}: {reason:?} was reported, {exit:?} was the case"
                    )
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::KillCause;
    use super::super::testing::feed;
    use super::*;

    #[test]
    fn a_freeze_before_the_deadline_is_a_violation() {
        assert!(
            feed(
                &mut StatedCause,
                &[Fact::Frozen {
                    vm: 0,
                    host: 0,
                    lapsed: false
                }]
            )
            .is_some()
        );
        assert_eq!(
            feed(
                &mut StatedCause,
                &[Fact::Frozen {
                    vm: 0,
                    host: 0,
                    lapsed: true
                }]
            ),
            None
        );
    }

    #[test]
    fn a_kill_needs_a_cause() {
        let mut cause = KillCause {
            never_ran: false,
            user: false,
            lock_moved: false,
            isolated: false,
            frozen_limit: false,
            guest: false,
            host_leaves: false,
        };
        assert!(
            feed(
                &mut StatedCause,
                &[Fact::Killed {
                    vm: 0,
                    host: 0,
                    cause
                }]
            )
            .is_some()
        );
        cause.lock_moved = true;
        assert_eq!(
            feed(
                &mut StatedCause,
                &[Fact::Killed {
                    vm: 0,
                    host: 0,
                    cause
                }]
            ),
            None
        );
    }

    #[test]
    fn isolation_needs_silence_and_an_owner_elsewhere() {
        let isolated = |silent| Fact::Isolated {
            host: 0,
            silent,
            least: 5,
        };
        assert!(feed(&mut StatedCause, &[isolated(4)]).is_some());
        assert_eq!(feed(&mut StatedCause, &[isolated(5)]), None);
        let response = |helps| Fact::Response {
            vm: 0,
            host: 0,
            helps,
        };
        assert!(feed(&mut StatedCause, &[response(false)]).is_some());
        assert_eq!(feed(&mut StatedCause, &[response(true)]), None);
    }

    #[test]
    fn a_crash_must_not_be_called_a_shutdown() {
        let said = |reason, exit| Fact::Stopped {
            vm: 0,
            host: 0,
            reason,
            exit: Some(exit),
        };
        assert!(
            feed(
                &mut StatedCause,
                &[said(StopReason::Guest, StopReason::Crash)]
            )
            .is_some()
        );
        assert_eq!(
            feed(
                &mut StatedCause,
                &[said(StopReason::Crash, StopReason::Crash)]
            ),
            None
        );
    }
}
