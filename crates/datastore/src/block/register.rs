//! Registers: reading their generations, and deciding new ones.

use super::claim::Claim;
use super::layout::{Mark, Name, Value};
use super::{BlockDatastore, locked};
use crate::error::fault;
use mainstay_core::id::Generation;
use mainstay_core::io::{IoFault, StorageOutcome, StorageValue};
use mainstay_core::paxos::{
    Ask, Block, Outcome, Proposal, Sector, Step, Writers, Written, is_damaged, newest, value_of,
};
use mainstay_core::wire::RecordKey;
use std::io;
use std::sync::{Arc, Mutex};

/// Ballots of one proposal while other hosts interfere. Who gives up after so many has an unknown outcome, and
/// tries again later.
const BALLOTS: u32 = 16;

/// How a generation was decided, or was not.
pub(super) enum Decided {
    Won,
    Other,
    Superseded,
    NotDone(IoFault),
    Unknown(IoFault),
}

fn key(name: &Name, generation: Generation) -> Option<RecordKey> {
    match name {
        Name::Owner => Some(RecordKey::OwnerLock(generation)),
        Name::Vm(vm) => Some(RecordKey::VmLock(vm.clone(), generation)),
        Name::Host(_) => None,
    }
}

/// The two newest generations, as far as they are there.
fn shown(sectors: &[Sector<Value>]) -> Vec<(Generation, Vec<u8>)> {
    let Some((generation, value)) = newest(sectors) else {
        return Vec::new();
    };
    let before = generation.0.checked_sub(1).map(Generation);
    let before = before.and_then(|g| Some((g, value_of(sectors, g)?.record.clone())));
    let mut shown: Vec<_> = before.into_iter().collect();
    shown.push((generation, value.record.clone()));
    shown
}

impl BlockDatastore {
    /// Reads all slots of a register, in one read.
    pub(super) fn read_register(&self, register: u32) -> io::Result<Vec<Sector<Value>>> {
        let geometry = self.head.geometry;
        let sector = self.codec.sector;
        let slots = usize::from(geometry.slots());
        let bytes = self
            .disk
            .read(geometry.register(register), slots * sector)?;
        if bytes.len() != slots * sector {
            return Err(nix::errno::Errno::EIO.into());
        }
        let slots = (0..geometry.slots()).zip(bytes.chunks(sector));
        Ok(slots
            .map(|(slot, bytes)| self.codec.read_slot(register, slot, bytes))
            .collect())
    }

    pub(super) fn read_generation(&self, name: &Name, generation: Generation) -> StorageOutcome {
        let sectors = match self.sectors_of(name) {
            Ok(Some(sectors)) => sectors,
            Ok(None) => return StorageOutcome::Ok(StorageValue::NotFound),
            Err(fault) => return StorageOutcome::NotDone(fault),
        };
        let mut shown = shown(&sectors).into_iter();
        match shown.find(|(g, _)| *g == generation) {
            Some((_, record)) => StorageOutcome::Ok(StorageValue::Bytes(record)),
            // A newer one, or this one, may be what is damaged.
            None if is_damaged(&sectors) => StorageOutcome::NotDone(IoFault::Other),
            None => StorageOutcome::Ok(StorageValue::NotFound),
        }
    }

    fn sectors_of(&self, name: &Name) -> Result<Option<Vec<Sector<Value>>>, IoFault> {
        let Some(register) = self.find(name)? else {
            return Ok(None);
        };
        self.read_register(register)
            .map(Some)
            .map_err(|e| fault(&e))
    }

    pub(super) fn list(&self, name: &Name) -> StorageOutcome {
        match self.generations(name) {
            Ok(keys) => StorageOutcome::Ok(StorageValue::Keys(keys)),
            Err(fault) => StorageOutcome::NotDone(fault),
        }
    }

    fn generations(&self, name: &Name) -> Result<Vec<RecordKey>, IoFault> {
        let Some(sectors) = self.sectors_of(name)? else {
            return Ok(Vec::new());
        };
        if is_damaged(&sectors) {
            return Err(IoFault::Other);
        }
        Ok(shown(&sectors)
            .into_iter()
            .filter_map(|(generation, _)| key(name, generation))
            .collect())
    }

    /// The newest generation of each VM's lock by its mark, which may be one behind. A lock that is marked as
    /// never held, or not at all, is read.
    pub(super) fn list_all(&self) -> StorageOutcome {
        let marked = self.read_names().and_then(|(names, damaged)| {
            let marks = self.read_table(self.head.geometry.marks())?;
            Ok((names, damaged, marks))
        });
        let (names, damaged, marks) = match marked {
            Ok(read) => read,
            Err(e) => return StorageOutcome::NotDone(fault(&e)),
        };
        if !damaged.is_empty() {
            return StorageOutcome::NotDone(IoFault::Other);
        }
        let mut keys = Vec::new();
        for (name, register) in names {
            if !matches!(name, Name::Vm(_)) {
                continue;
            }
            let index = usize::try_from(register).unwrap_or(usize::MAX);
            let mark = marks
                .get(index)
                .and_then(|bytes| self.codec.read_mark(register, bytes).ok().flatten());
            match mark.filter(|m| m.newest > Generation(0) && m.name == name) {
                Some(mark) => keys.extend(key(&name, mark.newest)),
                None => match self.generations(&name) {
                    Ok(found) => keys.extend(found),
                    Err(fault) => return StorageOutcome::NotDone(fault),
                },
            }
        }
        StorageOutcome::Ok(StorageValue::Keys(keys))
    }

    pub(super) fn link(&self, key: &RecordKey, bytes: &[u8]) -> StorageOutcome {
        let (name, generation) = match key {
            RecordKey::VmLock(vm, generation) => (Name::Vm(vm.clone()), *generation),
            RecordKey::OwnerLock(generation) => (Name::Owner, *generation),
            _ => return self.link_extent(key, bytes),
        };
        let register = match self.find(&name) {
            Ok(Some(register)) => register,
            // No agent begins a chain.
            Ok(None) => return StorageOutcome::NotDone(IoFault::Foreign),
            Err(fault) => return StorageOutcome::NotDone(fault),
        };
        let value = Value {
            name: (generation == Generation(0)).then(|| name.clone()),
            record: bytes.to_vec(),
        };
        match self.decide(register, generation, &value) {
            Decided::Won => {
                self.mark(register, &name, generation);
                StorageOutcome::Ok(StorageValue::Done)
            }
            // What is shown no more counts as removed, though a slot may still hold it.
            Decided::Other => match self.read_generation(&name, generation) {
                StorageOutcome::Ok(StorageValue::Bytes(_)) => {
                    self.mark(register, &name, generation);
                    StorageOutcome::Ok(StorageValue::Exists)
                }
                StorageOutcome::Ok(_) => StorageOutcome::Ok(StorageValue::Done),
                outcome => outcome,
            },
            // It would be a stray far below the newest, and gone at once.
            Decided::Superseded => StorageOutcome::Ok(StorageValue::Done),
            Decided::NotDone(fault) => StorageOutcome::NotDone(fault),
            Decided::Unknown(fault) => StorageOutcome::Unknown(fault),
        }
    }

    /// Notes for whoever lists all locks; nothing rests on it.
    pub(super) fn mark(&self, register: u32, name: &Name, newest: Generation) {
        let mark = Mark {
            name: name.clone(),
            newest,
        };
        let Some(bytes) = self.codec.mark(register, Some(&mark)) else {
            return;
        };
        if let Err(e) = self.disk.write(self.head.geometry.mark(register), &bytes) {
            tracing::debug!(datastore = %self.id(), register, error = %e.error, "no mark");
        }
    }

    /// Has a generation decided. One proposal of this process at a time for each register.
    pub(super) fn decide(&self, register: u32, generation: Generation, value: &Value) -> Decided {
        if self.has_stranger() {
            return Decided::NotDone(IoFault::Foreign);
        }
        let writers = Arc::clone(
            locked(&self.registers)
                .entry(register)
                .or_insert_with(|| Arc::new(Mutex::new(Writers::new(Vec::new())))),
        );
        let mut writers = locked(&writers);
        let slot = self.slot_for(&mut writers).or_else(|| {
            // What was in doubt may have landed, or been seen by nobody but an old reading.
            let sectors = self.read_register(register).ok()?;
            self.resolve(&mut writers, &sectors);
            self.slot_for(&mut writers)
        });
        let Some(claim) = slot else {
            return Decided::NotDone(IoFault::Other);
        };
        let mut proposal = Proposal::begin(
            claim.slot,
            self.incarnation,
            generation,
            value.clone(),
            BALLOTS,
        );
        let mut trouble = None;
        let mut step = Step::Ask(Ask::ReadAll);
        let outcome = loop {
            step = match step {
                Step::Done(outcome) => break outcome,
                Step::Ask(Ask::ReadAll) => match self.read_register(register) {
                    Ok(sectors) => {
                        self.resolve(&mut writers, &sectors);
                        proposal.on_read(&sectors)
                    }
                    Err(e) => {
                        trouble = Some(fault(&e));
                        proposal.on_read_failed()
                    }
                },
                Step::Ask(Ask::Write(block)) => {
                    let written = self.write_slot(register, &claim, &block, &mut trouble);
                    proposal.on_written(written)
                }
            };
        };
        if let Some(block) = proposal.doubt() {
            writers.doubt(claim.slot, block.clone());
        }
        claim.ends(proposal.doubt().is_some());
        let trouble = trouble.unwrap_or(IoFault::Other);
        match outcome {
            Outcome::Won => Decided::Won,
            Outcome::Lost(_) => Decided::Other,
            Outcome::Superseded => Decided::Superseded,
            Outcome::NoPredecessor => Decided::NotDone(IoFault::Other),
            Outcome::NotDone => Decided::NotDone(trouble),
            Outcome::Unknown => Decided::Unknown(trouble),
        }
    }

    /// The slot to write, with a further one claimed where those that there are are in doubt. It is marked in the
    /// run directory until the proposal has ended.
    fn slot_for(&self, writers: &mut Writers<Value>) -> Option<Arc<Claim>> {
        let mut claims = locked(&self.claims);
        for claim in claims.iter() {
            writers.add(claim.slot);
        }
        if writers.usable().is_none() {
            let next = self.claim_next(&claims)?;
            writers.add(next.slot);
            claims.push(Arc::new(next));
        }
        let slot = writers.usable()?;
        let claim = claims.iter().find(|claim| claim.slot == slot)?;
        match claim.begins() {
            Ok(()) => Some(Arc::clone(claim)),
            Err(error) => {
                tracing::warn!(%error, "a slot's journal cannot be written; no lock is taken");
                None
            }
        }
    }

    fn resolve(&self, writers: &mut Writers<Value>, sectors: &[Sector<Value>]) {
        for (slot, doubts) in writers.resolve(sectors) {
            let claims = locked(&self.claims);
            if let Some(claim) = claims.iter().find(|claim| claim.slot == slot) {
                claim.resolved(doubts);
            }
        }
    }

    fn write_slot(
        &self,
        register: u32,
        claim: &Claim,
        block: &Block<Value>,
        trouble: &mut Option<IoFault>,
    ) -> Written {
        let Some(bytes) = self.codec.slot(register, claim.slot, Some(block)) else {
            *trouble = Some(IoFault::Full);
            return Written::Refused;
        };
        let at = self.head.geometry.slot(register, claim.slot);
        match self.disk.write(at, &bytes) {
            Ok(()) => Written::Done,
            Err(e) => {
                *trouble = Some(fault(&e.error));
                if e.refused {
                    Written::Refused
                } else {
                    Written::Unknown
                }
            }
        }
    }
}
