//! S2: at most one host acts as owner of a datastore at any instant, and no generation of a lock is
//! ever used twice. Source: `docs/protocol.md`, ownership and the chain of generations.

use super::{Fact, Invariant, Labels};
use crate::clock::Nanos;
use mainstay_core::id::Generation;
use std::collections::BTreeMap;

/// Judges effects of owners at their issue, and generations at the first instruction.
#[derive(Debug, Default)]
pub(super) struct SingleOwner {
    acted: BTreeMap<usize, (Generation, usize)>,
    used: BTreeMap<(usize, Generation), usize>,
}

impl Invariant for SingleOwner {
    fn name(&self) -> &'static str {
        "S2"
    }

    fn sentence(&self) -> &'static str {
        "at most one host acts as owner of a datastore, and no generation is used twice"
    }

    fn observe(&mut self, _: Nanos, fact: &Fact<'_>, labels: &Labels) -> Option<String> {
        match fact {
            Fact::OwnerActs {
                host,
                datastore,
                generation,
                what,
            } => {
                let (name, ds) = (labels.host(*host), labels.datastore(*datastore));
                let Some(generation) = generation else {
                    return Some(format!(
                        "{name} {what} on {ds}, whose owner lock never named it"
                    ));
                };
                let last = self.acted.entry(*datastore).or_insert((*generation, *host));
                if *generation < last.0 && *host != last.1 {
                    let (newer, other) = (last.0, labels.host(last.1));
                    return Some(format!(
                        "{name} {what} on {ds} under owner generation {generation} after {other} had acted under {newer}"
                    ));
                }
                if *generation == last.0 && *host != last.1 {
                    let other = labels.host(last.1);
                    return Some(format!(
                        "{name} and {other} both acted on {ds} under owner generation {generation}"
                    ));
                }
                *last = (
                    *generation.max(&last.0),
                    if *generation >= last.0 { *host } else { last.1 },
                );
                None
            }
            Fact::LapsedRuns {
                vm,
                host,
                generation,
            } => Some(format!(
                "{} went on on {} under generation {generation}, which had lapsed",
                labels.vm(*vm),
                labels.host(*host)
            )),
            Fact::Runs {
                vm,
                host,
                instance,
                generation,
                newest,
                excused,
                first,
            } => {
                let (vm_name, name) = (labels.vm(*vm), labels.host(*host));
                let by = *self.used.entry((*vm, *generation)).or_insert(*instance);
                if by != *instance {
                    return Some(format!(
                        "{vm_name} was started twice under generation {generation}, the second time on {name}"
                    ));
                }
                if generation < newest && !excused && *first {
                    return Some(format!(
                        "{vm_name} began to run on {name} under generation {generation} while the lock stood at {newest}"
                    ));
                }
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

    fn acts(host: usize, generation: u64) -> Fact<'static> {
        Fact::OwnerActs {
            host,
            datastore: 0,
            generation: Some(Generation(generation)),
            what: "ordered a start",
        }
    }

    fn runs(instance: usize, generation: u64, newest: u64) -> Fact<'static> {
        let (generation, newest) = (Generation(generation), Generation(newest));
        Fact::Runs {
            vm: 0,
            host: 0,
            instance,
            generation,
            newest,
            excused: false,
            first: true,
        }
    }

    #[test]
    fn an_owner_that_acts_after_its_successor_is_a_violation() {
        assert!(
            feed(
                &mut SingleOwner::default(),
                &[acts(0, 1), acts(1, 2), acts(0, 1)]
            )
            .is_some()
        );
        assert_eq!(
            feed(
                &mut SingleOwner::default(),
                &[acts(0, 1), acts(0, 3), acts(1, 4), acts(1, 4)]
            ),
            None
        );
    }

    #[test]
    fn an_owner_whom_no_lock_names_is_a_violation() {
        let fact = Fact::OwnerActs {
            host: 0,
            datastore: 0,
            generation: None,
            what: "ordered a start",
        };
        assert!(feed(&mut SingleOwner::default(), &[fact]).is_some());
    }

    #[test]
    fn one_generation_is_one_start() {
        assert!(feed(&mut SingleOwner::default(), &[runs(1, 5, 5), runs(2, 5, 5)]).is_some());
        assert!(feed(&mut SingleOwner::default(), &[runs(1, 5, 6)]).is_some());
        assert_eq!(
            feed(&mut SingleOwner::default(), &[runs(1, 5, 5), runs(2, 6, 6)]),
            None
        );
    }
}
