//! S1b: no write of a VM's generation g lands after generation g + 1 has started, on `enforced`
//! datastores and wherever death was proven. Source: `docs/protocol.md`, writes in flight.

use super::{Fact, Invariant, Labels, PerVm};
use crate::clock::Nanos;
use mainstay_core::id::Generation;

/// Judges the virtual disks.
#[derive(Debug, Default)]
pub(super) struct NoLateWrite {
    newest: PerVm<(Generation, usize)>,
}

impl Invariant for NoLateWrite {
    fn name(&self) -> &'static str {
        "S1b"
    }

    fn sentence(&self) -> &'static str {
        "no write of generation g lands after generation g + 1 has started"
    }

    fn observe(&mut self, _: Nanos, fact: &Fact<'_>, labels: &Labels) -> Option<String> {
        match fact {
            Fact::Runs {
                vm,
                instance,
                generation,
                ..
            } => {
                let newest = self.newest.entry(*vm).or_insert((*generation, *instance));
                if *generation >= newest.0 {
                    *newest = (*generation, *instance);
                }
                None
            }
            Fact::WriteLanded {
                vm,
                instance,
                generation,
                fenced: true,
            } => {
                let (newest, by) = self.newest.get(vm)?;
                // A thawed process may complete what it began under its generation before.
                (newest > generation && by != instance).then(|| {
                    let vm = labels.vm(*vm);
                    format!("a write of {vm} under generation {generation} landed after generation {newest} had started")
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

    fn runs(instance: usize, generation: u64) -> Fact<'static> {
        let generation = Generation(generation);
        Fact::Runs {
            vm: 0,
            host: 0,
            instance,
            generation,
            newest: generation,
            excused: false,
            first: true,
        }
    }

    fn lands(instance: usize, generation: u64, fenced: bool) -> Fact<'static> {
        Fact::WriteLanded {
            vm: 0,
            instance,
            generation: Generation(generation),
            fenced,
        }
    }

    #[test]
    fn a_write_of_a_replaced_generation_is_a_violation_where_the_storage_must_refuse_it() {
        let late = [runs(1, 1), lands(1, 1, true), runs(2, 2), lands(1, 1, true)];
        assert!(feed(&mut NoLateWrite::default(), &late).is_some());
        let open = [runs(1, 1), runs(2, 2), lands(1, 1, false)];
        assert_eq!(feed(&mut NoLateWrite::default(), &open), None);
    }

    #[test]
    fn a_thawed_process_may_complete_its_own_earlier_write() {
        let own = [runs(1, 1), runs(1, 2), lands(1, 1, true)];
        assert_eq!(feed(&mut NoLateWrite::default(), &own), None);
    }
}
