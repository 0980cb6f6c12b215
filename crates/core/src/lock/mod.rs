//! Locks: chains of generations on a datastore, and the machines that read and swap them.
//!
//! A lock is a compare-and-swap register made of records, one per generation. The newest generation
//! is the lock's content; a swap makes the next one by an exclusive link. See `docs/protocol.md`.
//!
//! The machines here issue primitive storage operations and are driven by their outcomes, each of
//! which may be unknown. They never decide who may break whose lock; that is the business of their
//! callers.

mod cleanup;
pub mod drive;
mod head;
mod right;
mod swap;

pub(crate) use cleanup::Cleanup;
pub(crate) use head::HeadRead;
pub(crate) use right::{Right, Token};
pub(crate) use swap::{Swap, SwapOutcome};

use crate::id::{Generation, VmId};
use crate::io::StorageRequest;
use crate::wire::{LockRecord, RecordKey};

/// Which lock of a datastore.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum LockName {
    /// A VM's.
    Vm(VmId),
    /// The one on the protected list.
    Owner,
}

impl LockName {
    pub(crate) fn key(&self, generation: Generation) -> RecordKey {
        match self {
            Self::Vm(vm) => RecordKey::VmLock(vm.clone(), generation),
            Self::Owner => RecordKey::OwnerLock(generation),
        }
    }

    pub(crate) fn list(&self) -> StorageRequest {
        match self {
            Self::Vm(vm) => StorageRequest::ListVmLock(vm.clone()),
            Self::Owner => StorageRequest::ListOwnerLock,
        }
    }

    pub(crate) fn generation_of(&self, key: &RecordKey) -> Option<Generation> {
        match (self, key) {
            (Self::Vm(own), RecordKey::VmLock(vm, generation)) if own == vm => Some(*generation),
            (Self::Owner, RecordKey::OwnerLock(generation)) => Some(*generation),
            _ => None,
        }
    }
}

/// What a machine wants next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Issue this operation and hand its outcome in.
    Do(StorageRequest),
    /// Nothing can be decided now; call `retry` after a while.
    Wait,
    /// The lock's newest generation; none: the chain was never begun.
    Head(Option<LockRecord>),
    /// The swap is decided.
    Swapped(SwapOutcome),
    /// The clean-up ended.
    Cleaned,
}
