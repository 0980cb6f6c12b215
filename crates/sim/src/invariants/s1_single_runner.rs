//! S1: at no instant do two instances of one VM run (frozen is not running) while the drift bound
//! holds and guards live; with dead guards or paused hosts, never two that can write where the
//! storage enforces image locks. Source: `docs/protocol.md`, the right to run.

use super::{Fact, Invariant, Labels, Runner};
use crate::clock::Nanos;

/// Judges the process tables of all hosts together.
#[derive(Debug, Default)]
pub(super) struct SingleRunner;

impl Invariant for SingleRunner {
    fn name(&self) -> &'static str {
        "S1"
    }

    fn sentence(&self) -> &'static str {
        "at no instant do two instances of one VM run"
    }

    fn observe(&mut self, _: Nanos, fact: &Fact<'_>, labels: &Labels) -> Option<String> {
        let Fact::Runners { vm, runners } = fact else {
            return None;
        };
        let say = |r: &Runner| format!("{} (generation {})", labels.host(r.host), r.generation);
        let list = || runners.iter().map(say).collect::<Vec<_>>().join(" and ");
        let unguarded = runners.iter().filter(|r| !r.guarded).count();
        if runners.len() > 1 && unguarded == 0 {
            return Some(format!("{} runs on {}", labels.vm(*vm), list()));
        }
        if runners.iter().filter(|r| r.guarded).count() > 1 {
            return Some(format!(
                "{} runs on {}, two of them guarded",
                labels.vm(*vm),
                list()
            ));
        }
        if runners.iter().filter(|r| r.can_write).count() > 1 {
            return Some(format!(
                "{} runs on {}, and two of them can write",
                labels.vm(*vm),
                list()
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::feed;
    use super::*;
    use mainstay_core::id::Generation;

    fn runner(host: usize, guarded: bool, can_write: bool) -> Runner {
        Runner {
            host,
            instance: host,
            generation: Generation(host as u64),
            guarded,
            can_write,
        }
    }

    #[test]
    fn two_guarded_runners_are_a_violation() {
        let runners = [runner(0, true, true), runner(1, true, false)];
        let said = feed(
            &mut SingleRunner,
            &[Fact::Runners {
                vm: 0,
                runners: &runners,
            }],
        );
        assert_eq!(
            said.expect("broken"),
            "vm-1 runs on host-1 (generation 0) and host-2 (generation 1)"
        );
    }

    #[test]
    fn one_runner_or_one_without_a_guard_that_cannot_write_is_none() {
        let one = [runner(0, true, true)];
        let excused = [runner(0, false, false), runner(1, true, true)];
        for runners in [&one[..], &excused[..]] {
            assert_eq!(
                feed(&mut SingleRunner, &[Fact::Runners { vm: 0, runners }]),
                None
            );
        }
    }

    #[test]
    fn a_dead_guard_excuses_no_second_writer() {
        let runners = [runner(0, false, true), runner(1, true, true)];
        assert!(
            feed(
                &mut SingleRunner,
                &[Fact::Runners {
                    vm: 0,
                    runners: &runners
                }]
            )
            .is_some()
        );
    }
}
