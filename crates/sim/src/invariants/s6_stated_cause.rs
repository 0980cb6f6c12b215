//! S6: no isolation response, freeze or kill without its stated cause, as the world saw it.
//! Source: `docs/protocol.md`, what stops a VM.

use super::{Fact, Invariant, Labels};
use crate::clock::{MS, Nanos};
use mainstay_core::event::StopReason;
use mainstay_core::io::ExitCause;

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
                ..
            } => Some(format!(
                "{} was stopped by isolated {} though no other host owned its datastore",
                labels.vm(*vm),
                labels.host(*host)
            )),
            Fact::Response {
                vm,
                host,
                wrong: Some(why),
                ..
            } => Some(format!(
                "{} was stopped by isolated {} though {why}",
                labels.vm(*vm),
                labels.host(*host)
            )),
            Fact::StorageResponse {
                vm,
                host,
                wrong: Some(why),
            } => Some(format!(
                "{} was stopped by {} for its storage though {why}",
                labels.vm(*vm),
                labels.host(*host)
            )),
            Fact::AskedDown {
                vm,
                host,
                cause: false,
            } => Some(format!(
                "the guest of {} was asked to shut down by {} without a cause that the world knows",
                labels.vm(*vm),
                labels.host(*host)
            )),
            Fact::Killed { vm, host, cause } => {
                let some = cause.never_ran
                    || cause.user
                    || cause.lock_moved
                    || cause.isolated
                    || cause.storage
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
                exit,
                user,
                isolated,
                storage,
                host_leaves,
            } => {
                let ended = |how| exit.is_none_or(|exit| exit == how);
                let right = match reason {
                    StopReason::Guest => ended(ExitCause::GuestShutdown),
                    StopReason::Crash => ended(ExitCause::Crash),
                    StopReason::Panic => ended(ExitCause::Panicked),
                    StopReason::Oom => ended(ExitCause::OutOfMemory),
                    StopReason::FrozenLimit => ended(ExitCause::Killed),
                    StopReason::User => *user,
                    StopReason::Isolation => *isolated,
                    StopReason::HostShutdown => *host_leaves,
                    StopReason::Vmcp => *storage,
                    StopReason::LockLost | StopReason::Host | StopReason::StartAborted => true,
                };
                let (vm, host) = (labels.vm(*vm), labels.host(*host));
                (!right).then(|| {
                    format!(
                        "{vm} stopped on {host}: {reason:?} was reported, and its process ended by {exit:?}"
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
            storage: false,
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
            wrong: None,
        };
        assert!(feed(&mut StatedCause, &[response(false)]).is_some());
        assert_eq!(feed(&mut StatedCause, &[response(true)]), None);
    }

    #[test]
    fn a_vm_is_stopped_for_its_storage_only_where_that_is_lost_and_it_helps() {
        let response = |wrong: Option<&str>| Fact::StorageResponse {
            vm: 0,
            host: 0,
            wrong: wrong.map(String::from),
        };
        assert_eq!(feed(&mut StatedCause, &[response(None)]), None);
        assert!(feed(&mut StatedCause, &[response(Some("its path was well"))]).is_some());
    }

    #[test]
    fn an_isolated_host_goes_by_its_configuration() {
        let response = |wrong| Fact::Response {
            vm: 0,
            host: 0,
            helps: true,
            wrong,
        };
        assert_eq!(feed(&mut StatedCause, &[response(None)]), None);
        let disabled = response(Some("its restart priority is disabled"));
        assert!(feed(&mut StatedCause, &[disabled]).is_some());
        let asked = |cause| Fact::AskedDown {
            vm: 0,
            host: 0,
            cause,
        };
        assert_eq!(feed(&mut StatedCause, &[asked(true)]), None);
        assert!(feed(&mut StatedCause, &[asked(false)]).is_some());
    }

    #[test]
    fn a_reported_reason_is_what_was_the_case() {
        let said = |reason, exit, cause| Fact::Stopped {
            vm: 0,
            host: 0,
            reason,
            exit: Some(exit),
            user: cause,
            isolated: cause,
            storage: cause,
            host_leaves: cause,
        };
        let bad = |fact| feed(&mut StatedCause, &[fact]).is_some();
        let (shutdown, crash) = (ExitCause::GuestShutdown, ExitCause::Crash);
        assert!(bad(said(StopReason::Guest, crash, true)));
        assert!(!bad(said(StopReason::Guest, shutdown, false)));
        assert!(!bad(said(StopReason::Crash, crash, false)));
        assert!(bad(said(StopReason::FrozenLimit, crash, true)));
        let (panicked, oom) = (ExitCause::Panicked, ExitCause::OutOfMemory);
        assert!(!bad(said(StopReason::Panic, panicked, false)));
        assert!(!bad(said(StopReason::Oom, oom, false)));
        for (reason, exit) in [
            (StopReason::Panic, crash),
            (StopReason::Oom, crash),
            (StopReason::Oom, ExitCause::Killed),
            (StopReason::Crash, oom),
            (StopReason::Crash, panicked),
        ] {
            assert!(bad(said(reason, exit, true)), "{reason:?} {exit:?}");
        }
        for reason in [
            StopReason::User,
            StopReason::Isolation,
            StopReason::Vmcp,
            StopReason::HostShutdown,
        ] {
            assert!(bad(said(reason, crash, false)), "{reason:?}");
            assert!(!bad(said(reason, crash, true)), "{reason:?}");
        }
    }
}
