//! S3: a VM that its user powered off, or whose guest shut down cleanly, is never restarted.
//! Source: `docs/protocol.md`, intent in the lock's register.

use super::{Fact, Invariant, Labels, PerVm};
use crate::clock::Nanos;
use mainstay_core::event::StopReason;

#[derive(Debug, Default, Clone, Copy)]
struct Known {
    /// An agent acknowledged the stop.
    stopped: bool,
    /// Its user has asked for it since, and it has not run since then.
    asked_for: bool,
    /// The newest generation of the lock says off.
    off_on_disk: bool,
}

/// Judges first instructions against wishes that were acknowledged and are on disk.
#[derive(Debug, Default)]
pub(super) struct Intent {
    known: PerVm<Known>,
}

impl Invariant for Intent {
    fn name(&self) -> &'static str {
        "S3"
    }

    fn sentence(&self) -> &'static str {
        "a VM that its user powered off, or whose guest shut down cleanly, is never restarted"
    }

    fn observe(&mut self, _: Nanos, fact: &Fact<'_>, labels: &Labels) -> Option<String> {
        match fact {
            Fact::Wish { vm, on: true } => {
                let known = self.known.entry(*vm).or_default();
                (known.stopped, known.asked_for) = (false, true);
            }
            Fact::Wish { vm, on: false } => {
                self.known.entry(*vm).or_default().asked_for = false;
            }
            Fact::Stopped {
                vm,
                reason: StopReason::User | StopReason::Guest,
                ..
            } => {
                let known = self.known.entry(*vm).or_default();
                known.stopped = !known.asked_for;
            }
            // Once off was acknowledged and on disk, a newer generation alone does not undo it.
            Fact::Desired { vm, on, .. } => {
                let known = self.known.entry(*vm).or_default();
                known.off_on_disk = !on || (known.stopped && known.off_on_disk);
            }
            // The first instruction of an old generation on a host that has just been paused: what its guard is
            // about to freeze, as S1 and S2 know it.
            Fact::Runs {
                first: true,
                excused: true,
                generation,
                newest,
                ..
            } if generation < newest => {}
            Fact::Runs {
                vm,
                host,
                first: true,
                ..
            } => {
                let known = self.known.entry(*vm).or_default();
                if known.stopped && known.off_on_disk {
                    let (vm, host) = (labels.vm(*vm), labels.host(*host));
                    return Some(format!(
                        "{vm} was started on {host} though it was switched off, acknowledged and on disk"
                    ));
                }
                *known = Known::default();
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::feed;
    use super::*;
    use mainstay_core::id::Generation;

    fn stopped() -> Fact<'static> {
        Fact::Stopped {
            vm: 0,
            host: 0,
            reason: StopReason::User,
            exit: None,
            user: true,
            isolated: false,
            storage: false,
            host_leaves: false,
        }
    }

    fn runs() -> Fact<'static> {
        let generation = Generation(3);
        Fact::Runs {
            vm: 0,
            host: 1,
            instance: 1,
            generation,
            newest: generation,
            excused: false,
            first: true,
        }
    }

    #[test]
    fn a_start_after_an_acknowledged_power_off_is_a_violation() {
        let off = Fact::Desired {
            vm: 0,
            on: false,
            cause: true,
        };
        let on = Fact::Desired {
            vm: 0,
            on: true,
            cause: true,
        };
        assert!(
            feed(
                &mut Intent::default(),
                &[stopped(), off.clone(), on.clone(), runs()]
            )
            .is_some()
        );
        assert!(feed(&mut Intent::default(), &[off.clone(), stopped(), runs()]).is_some());
        let wish = Fact::Wish { vm: 0, on: true };
        assert_eq!(
            feed(&mut Intent::default(), &[stopped(), off, wish, on, runs()]),
            None
        );
    }

    #[test]
    fn an_old_generation_on_a_host_that_was_paused_is_no_restart() {
        let off = Fact::Desired {
            vm: 0,
            on: false,
            cause: true,
        };
        let woken = |was_paused: bool, newest: u64| Fact::Runs {
            vm: 0,
            host: 1,
            instance: 1,
            generation: Generation(3),
            newest: Generation(newest),
            excused: was_paused,
            first: true,
        };
        for (was_paused, newest, fine) in [(true, 5, true), (true, 3, false), (false, 5, false)] {
            let facts = [stopped(), off.clone(), woken(was_paused, newest)];
            let judged = feed(&mut Intent::default(), &facts);
            assert_eq!(judged.is_none(), fine, "{was_paused} {newest}");
        }
    }

    #[test]
    fn a_wish_that_came_while_it_was_still_stopping_counts() {
        let off = Fact::Desired {
            vm: 0,
            on: false,
            cause: true,
        };
        let wish = |on| Fact::Wish { vm: 0, on };
        let good = [wish(false), wish(true), off.clone(), stopped(), runs()];
        assert_eq!(feed(&mut Intent::default(), &good), None);
        let bad = [wish(true), wish(false), off, stopped(), runs()];
        assert!(feed(&mut Intent::default(), &bad).is_some());
    }

    #[test]
    fn a_power_off_that_is_not_on_disk_binds_nobody() {
        assert_eq!(feed(&mut Intent::default(), &[stopped(), runs()]), None);
    }
}
