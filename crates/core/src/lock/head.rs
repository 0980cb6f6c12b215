//! Reading a lock: its newest generation, found by listing and then by opening the next one by path
//! until there is none, so that a stale directory listing cannot hide a newer generation.
//!
//! Two generations may be made and the next one removed between reading one and looking for the next. Who
//! then takes the old one for the newest loses the swap that follows. But "free, and switched off" is followed
//! by no swap, only by forgetting the VM: so that one is read once more. Removal goes upwards, and what is
//! still there after its successor was not had none, unless it was removed as well and is back, by a link that
//! landed late (`swap`). So it is looked for by listing at last: the newest is never removed, and what came back is
//! below it. The listing alone would not do, for it may be old.
//!
//! A scan of all locks asks less: which of them name this host. It begins at the newest generation that its one
//! listing gave, and ends there when that names another host, or none. Only what names this host is read to
//! its end.
//!
//! Where the reading began at a generation that this host remembers, that one may be back in the same way. The
//! newest always has its predecessor beside it, and without one it is looked for by listing. Its host may have made
//! another from it, which is lost and removed, but not in the same moment: what no swap follows is listed in any case.

use super::{LockName, Step};
use crate::id::{Generation, HostId};
use crate::io::{StorageOutcome, StorageRequest, StorageValue};
use crate::wire::{Desired, LockRecord, RecordKey};

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Stage {
    Listing,
    /// Reading this generation, whose predecessors are of no interest.
    Reading(Generation),
    /// Looking whether there is one behind the newest that was read.
    Probing(LockRecord),
    /// Looking whether that one is still there.
    Confirming(LockRecord),
    /// Looking whether it is the newest that is listed.
    Concluding(LockRecord),
    /// Looking whether the predecessor of a remembered one is there.
    Supporting(LockRecord),
}

/// A reading of one lock.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct HeadRead {
    name: LockName,
    cluster: u64,
    stage: Stage,
    /// It began at a generation that was remembered, and nothing has been listed.
    unlisted: bool,
    /// A predecessor is not looked for (planted bug).
    pub(crate) skip_predecessor: bool,
    /// What no swap follows is not read once more (planted bug).
    pub(crate) skip_confirm: bool,
    /// A record that is damaged passes for none (planted bug).
    pub(crate) damaged_is_absent: bool,
    /// A generation that does not name this host ends the reading, whatever is behind it.
    only_of: Option<HostId>,
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
            unlisted: hint.is_some(),
            skip_predecessor: false,
            skip_confirm: false,
            damaged_is_absent: false,
            only_of: None,
            damaged: None,
        };
        let request = read.retry();
        (read, request)
    }

    /// Begins a reading at `newest`, which was listed a moment ago, to learn whether the lock names `host`.
    pub(crate) fn glance(
        name: LockName,
        cluster: u64,
        newest: Generation,
        host: &HostId,
    ) -> (Self, StorageRequest) {
        let (read, request) = Self::begin(name, cluster, Some(newest));
        let read = Self {
            unlisted: false,
            only_of: Some(host.clone()),
            ..read
        };
        (read, request)
    }

    /// The operation that is to be issued (again).
    pub(crate) fn retry(&self) -> StorageRequest {
        match &self.stage {
            Stage::Listing | Stage::Concluding(_) => self.name.list(),
            Stage::Reading(generation) => StorageRequest::Read(self.name.key(*generation)),
            Stage::Probing(record) => StorageRequest::Read(self.name.key(record.generation.next())),
            Stage::Confirming(record) => StorageRequest::Read(self.name.key(record.generation)),
            Stage::Supporting(record) => {
                let predecessor = record.generation.0.saturating_sub(1);
                StorageRequest::Read(self.name.key(Generation(predecessor)))
            }
        }
    }

    /// Takes an outcome.
    pub(crate) fn on_outcome(&mut self, outcome: &StorageOutcome) -> Step {
        let StorageOutcome::Ok(value) = outcome else {
            return Step::Wait;
        };
        match (&self.stage, value) {
            (Stage::Listing, StorageValue::Keys(keys)) => {
                self.unlisted = false;
                match self.newest(keys) {
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
            (Stage::Probing(record), StorageValue::NotFound) => {
                let record = record.clone();
                if self.unlisted && !self.skip_predecessor && !is_end(&record) {
                    return self.to(Stage::Supporting(record));
                }
                self.found(record)
            }
            (Stage::Supporting(record), StorageValue::Bytes(_)) => {
                let record = record.clone();
                self.found(record)
            }
            (Stage::Confirming(record), StorageValue::Bytes(bytes)) => {
                match LockRecord::decode(self.cluster, bytes) {
                    Ok((_, now)) if now == *record && self.skip_predecessor => {
                        Step::Head(Some(now))
                    }
                    Ok((_, now)) if now == *record => self.to(Stage::Concluding(now)),
                    _ => self.to(Stage::Listing),
                }
            }
            (Stage::Concluding(record), StorageValue::Keys(keys)) => {
                let record = record.clone();
                self.unlisted = false;
                match self.newest(keys) {
                    Some(newest) if newest == record.generation => Step::Head(Some(record)),
                    Some(newest) if newest > record.generation => self.to(Stage::Reading(newest)),
                    _ => self.to(Stage::Listing),
                }
            }
            (Stage::Confirming(_) | Stage::Supporting(_), StorageValue::NotFound) => {
                self.to(Stage::Listing)
            }
            (Stage::Probing(record), StorageValue::Bytes(bytes))
                if self.damaged_is_absent && LockRecord::decode(self.cluster, bytes).is_err() =>
            {
                let record = record.clone();
                self.damaged = Some(record.generation.next());
                self.found(record)
            }
            (Stage::Probing(record), StorageValue::Bytes(bytes)) => {
                let generation = record.generation.next();
                self.on_record(generation, bytes)
            }
            _ => Step::Wait,
        }
    }

    fn newest(&self, keys: &[RecordKey]) -> Option<Generation> {
        let passes = self.damaged.filter(|_| self.damaged_is_absent);
        let listed = keys.iter().filter_map(|k| self.name.generation_of(k));
        listed.filter(|g| Some(*g) != passes).max()
    }

    /// The generation whose record keeps the lock from being read: it is damaged or foreign.
    pub(crate) fn damaged(&self) -> Option<Generation> {
        self.damaged
    }

    fn on_record(&mut self, generation: Generation, bytes: &[u8]) -> Step {
        match LockRecord::decode(self.cluster, bytes) {
            Ok((_, record)) if record.generation == generation && generation <= Generation::MAX => {
                self.damaged = None;
                let holder = record.holder.as_ref().map(|h| &h.host);
                if self.only_of.is_some() && self.only_of.as_ref() != holder {
                    return Step::Head(Some(record));
                }
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

    /// Nothing is behind that one.
    fn found(&mut self, record: LockRecord) -> Step {
        if is_end(&record) && !self.skip_confirm {
            return self.to(Stage::Confirming(record));
        }
        Step::Head(Some(record))
    }

    fn to(&mut self, stage: Stage) -> Step {
        self.stage = stage;
        Step::Do(self.retry())
    }
}

/// Free, and switched off: no swap follows, only forgetting.
fn is_end(record: &LockRecord) -> bool {
    record.holder.is_none() && record.desired == Desired::Off
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{BootId, Holder, HostId, InstanceId, Nonce, VmId};
    use crate::time::Duration;
    use crate::wire::Stamp;

    const CLUSTER: u64 = 1;

    /// A lock under that generation that `host` holds.
    fn held_by(generation: u64, host: &HostId) -> StorageOutcome {
        let holder = Holder {
            host: host.clone(),
            boot: BootId(1),
        };
        lock(generation, Some(holder), Desired::On).1
    }

    /// A free lock under that generation.
    fn free(generation: u64, desired: Desired) -> (LockRecord, StorageOutcome) {
        lock(generation, None, desired)
    }

    fn lock(
        generation: u64,
        holder: Option<Holder>,
        desired: Desired,
    ) -> (LockRecord, StorageOutcome) {
        let record = LockRecord {
            generation: Generation(generation),
            nonce: Nonce(generation),
            holder,
            desired,
            freeze: Duration::from_secs(3),
            r#break: Duration::from_secs(5),
            given_back: None,
        };
        let stamp = Stamp {
            writer: HostId::new("host-1").expect("a name"),
            boot: BootId(1),
            instance: InstanceId(1),
            seq: generation,
        };
        let bytes = record.encode(CLUSTER, &stamp);
        (record, StorageOutcome::Ok(StorageValue::Bytes(bytes)))
    }

    fn reading(hint: u64) -> HeadRead {
        let name = LockName::Vm(VmId::new("vm-1").expect("a name"));
        HeadRead::begin(name, CLUSTER, Some(Generation(hint))).0
    }

    fn keys(generations: &[u64]) -> StorageOutcome {
        let name = reading(0).name;
        let keys = generations.iter().map(|g| name.key(Generation(*g)));
        StorageOutcome::Ok(StorageValue::Keys(keys.collect()))
    }

    fn assert_lists(step: Step, why: &str) {
        let lists = matches!(step, Step::Do(StorageRequest::ListVmLock(_)));
        assert!(lists, "{why}: {step:?}");
    }

    fn assert_reads(step: &Step, generation: u64, why: &str) {
        let key = reading(0).name.key(Generation(generation));
        assert_eq!(*step, Step::Do(StorageRequest::Read(key)), "{why}");
    }

    /// Generation 5 is free and says off; it was remembered, and is looked behind.
    fn end() -> HeadRead {
        let mut head = reading(5);
        assert_reads(&head.on_outcome(&free(5, Desired::Off).1), 6, "behind it");
        head
    }

    /// It has nothing behind it, was still there then, and this is what is listed.
    fn confirmed_end(listed: &[u64]) -> (HeadRead, Step) {
        let mut head = end();
        head.on_outcome(&NOT_FOUND);
        let there = free(5, Desired::Off).1;
        assert_lists(head.on_outcome(&there), "it may have been away");
        let step = head.on_outcome(&keys(listed));
        (head, step)
    }

    const NOT_FOUND: StorageOutcome = StorageOutcome::Ok(StorageValue::NotFound);

    #[test]
    fn a_scan_reads_one_generation_of_a_lock_that_is_not_this_hosts() {
        let name = || LockName::Vm(VmId::new("vm-1").expect("a name"));
        let host = HostId::new("host-1").expect("a name");
        let glance = || HeadRead::glance(name(), CLUSTER, Generation(5), &host).0;
        let mut head = glance();
        let free = free(5, Desired::Off).1;
        assert!(matches!(head.on_outcome(&free), Step::Head(Some(_))));
        let mut head = glance();
        let held = held_by(5, &host);
        assert!(
            matches!(head.on_outcome(&held), Step::Do(StorageRequest::Read(_))),
            "looked behind"
        );
        assert!(matches!(head.on_outcome(&NOT_FOUND), Step::Head(Some(_))));
        let mut head = glance();
        assert_lists(head.on_outcome(&NOT_FOUND), "removed since the listing");
    }

    #[test]
    fn a_generation_that_came_back_is_not_taken_for_the_newest() {
        let mut head = reading(5);
        head.on_outcome(&free(5, Desired::On).1);
        let supported = head.on_outcome(&NOT_FOUND);
        let four = StorageRequest::Read(reading(4).name.key(Generation(4)));
        assert_eq!(supported, Step::Do(four), "has it a predecessor?");
        assert_lists(head.on_outcome(&NOT_FOUND), "looked for by listing");
    }

    #[test]
    fn an_end_that_was_overtaken_and_removed_is_not_taken_for_the_newest() {
        let mut head = end();
        assert_reads(&head.on_outcome(&NOT_FOUND), 5, "read once more");
        assert_lists(head.on_outcome(&NOT_FOUND), "looked for again");
    }

    #[test]
    fn an_end_behind_a_generation_that_came_back_is_not_taken_for_the_newest() {
        let step = confirmed_end(&[4, 5, 9]).1;
        assert_reads(&step, 9, "4 may have come back, too");
    }

    #[test]
    fn an_end_that_was_away_is_not_taken_for_the_newest() {
        let (mut head, step) = confirmed_end(&[5, 8, 9]);
        assert_reads(&step, 9, "6 was removed before it was looked for");
        head.on_outcome(&free(9, Desired::On).1);
        let Step::Head(Some(found)) = head.on_outcome(&NOT_FOUND) else {
            panic!("no head");
        };
        assert_eq!(found.generation, Generation(9));
        assert_lists(confirmed_end(&[4]).1, "an old listing proves nothing");
    }

    #[test]
    fn an_end_that_is_still_there_is_the_newest() {
        let Step::Head(Some(found)) = confirmed_end(&[5, 4]).1 else {
            panic!("no head");
        };
        assert_eq!(found, free(5, Desired::Off).0);
    }

    #[test]
    fn a_lock_that_should_run_is_read_once() {
        let mut head = reading(5);
        head.on_outcome(&free(5, Desired::On).1);
        head.on_outcome(&NOT_FOUND);
        let predecessor = free(4, Desired::On).1;
        assert!(matches!(head.on_outcome(&predecessor), Step::Head(Some(_))));
    }
}
