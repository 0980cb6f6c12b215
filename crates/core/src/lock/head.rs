//! Reading a lock: its newest generation, found by listing and then by opening the next one by path
//! until there is none, so that a stale directory listing cannot hide a newer generation.

use super::{LockName, Step};
use crate::id::Generation;
use crate::io::{StorageOutcome, StorageRequest, StorageValue};
use crate::wire::LockRecord;
use alloc::vec::Vec;

#[derive(Clone, Debug)]
enum Stage {
    Listing,
    /// Reading this generation, whose predecessors are of no interest.
    Reading(Generation),
    /// Looking whether there is one behind the newest that was read.
    Probing(LockRecord),
}

/// A reading of one lock.
#[derive(Clone, Debug)]
pub(crate) struct HeadRead {
    name: LockName,
    cluster: u64,
    stage: Stage,
    /// The newest generation that was found and cannot be understood.
    damaged: Option<Generation>,
}

impl HeadRead {
    /// Begins a reading, at `hint` when that generation is known to have existed.
    pub(crate) fn begin(
        name: LockName,
        cluster: u64,
        hint: Option<Generation>,
    ) -> (Self, StorageRequest) {
        let stage = hint.map_or(Stage::Listing, Stage::Reading);
        let read = Self {
            name,
            cluster,
            stage,
            damaged: None,
        };
        let request = read.retry();
        (read, request)
    }

    /// The operation that is to be issued (again).
    pub(crate) fn retry(&self) -> StorageRequest {
        match &self.stage {
            Stage::Listing => self.name.list(),
            Stage::Reading(generation) => StorageRequest::Read(self.name.key(*generation)),
            Stage::Probing(record) => StorageRequest::Read(self.name.key(record.generation.next())),
        }
    }

    /// Takes an outcome.
    pub(crate) fn on_outcome(&mut self, outcome: &StorageOutcome) -> Step {
        let StorageOutcome::Ok(value) = outcome else {
            return Step::Wait;
        };
        match (&self.stage, value) {
            (Stage::Listing, StorageValue::Keys(keys)) => {
                let generations: Vec<Generation> = keys
                    .iter()
                    .filter_map(|k| self.name.generation_of(k))
                    .collect();
                match generations.into_iter().max() {
                    None => Step::Head(None),
                    Some(newest) => self.to(Stage::Reading(newest)),
                }
            }
            // Removed between listing and reading, or the hint is old: list (again).
            (Stage::Reading(_), StorageValue::NotFound) => self.to(Stage::Listing),
            (Stage::Reading(generation), StorageValue::Bytes(bytes)) => {
                let generation = *generation;
                self.on_record(generation, bytes)
            }
            (Stage::Probing(record), StorageValue::NotFound) => Step::Head(Some(record.clone())),
            (Stage::Probing(record), StorageValue::Bytes(bytes)) => {
                let generation = record.generation.next();
                self.on_record(generation, bytes)
            }
            _ => Step::Wait,
        }
    }

    /// The generation whose record keeps the lock from being read: it is damaged or foreign.
    pub(crate) fn damaged(&self) -> Option<Generation> {
        self.damaged
    }

    fn on_record(&mut self, generation: Generation, bytes: &[u8]) -> Step {
        match LockRecord::decode(self.cluster, bytes) {
            Ok((_, record)) if record.generation == generation && generation <= Generation::MAX => {
                self.damaged = None;
                self.to(Stage::Probing(record))
            }
            // Damaged or foreign: nothing may be concluded from it, so the lock cannot be read now.
            _ => {
                self.stage = Stage::Listing;
                self.damaged = Some(generation);
                Step::Wait
            }
        }
    }

    fn to(&mut self, stage: Stage) -> Step {
        self.stage = stage;
        Step::Do(self.retry())
    }
}
