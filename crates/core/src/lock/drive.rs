//! The machines of a lock, one at a time, for tests that put them over real datastores (`mainstay-datastore`). No
//! part of the API: an agent drives them by itself.

use super::{Cleanup, HeadRead, LockName, Step, Swap, SwapOutcome};
use crate::id::{Generation, Nonce, VmId};
use crate::io::{IoFault, StorageOutcome, StorageRequest};
use crate::wire::{LockRecord, Stamp};

/// What a machine wants next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Perform this and hand its outcome in.
    Do(StorageRequest),
    /// Nothing can be decided now: perform [`Machine::request`] after a while.
    Wait,
    /// The lock's newest generation; none: the chain was never begun.
    Head(Option<LockRecord>),
    /// The lock is at the new record.
    Won,
    /// Another swap from the same generation won.
    Lost,
    /// The storage certainly did not do it and never will.
    NotDone(IoFault),
    /// The clean-up ended.
    Cleaned,
}

/// One reading, swap or clean-up of a VM's lock.
#[derive(Clone, Debug)]
pub struct Machine {
    name: LockName,
    inner: Inner,
}

#[derive(Clone, Debug)]
enum Inner {
    Read(HeadRead),
    Swap(Swap),
    Cleanup(Cleanup),
}

impl Machine {
    /// A reading of its newest generation, from the one that is remembered on.
    #[must_use]
    pub fn read(vm: &VmId, cluster: u64, known: Option<Generation>) -> (Self, StorageRequest) {
        let name = LockName::Vm(vm.clone());
        let (read, request) = HeadRead::begin(name.clone(), cluster, known);
        let inner = Inner::Read(read);
        (Self { name, inner }, request)
    }

    /// A swap from that generation, with that nonce, to the next one, and the first thing to do. None: it is not the
    /// next one.
    #[must_use]
    pub fn swap(
        vm: &VmId,
        cluster: u64,
        stamp: &Stamp,
        from: (Generation, Nonce),
        new: LockRecord,
    ) -> Option<(Self, StorageRequest)> {
        let name = LockName::Vm(vm.clone());
        if new.generation != from.0.next() {
            return None;
        }
        let swap = Swap::begin(name.clone(), cluster, stamp, from, new);
        let request = swap.retry();
        let inner = Inner::Swap(swap);
        Some((Self { name, inner }, request))
    }

    /// The clean-up after a swap that was won, if there is anything to remove.
    #[must_use]
    pub fn cleanup(&mut self) -> Option<(Self, StorageRequest)> {
        let Inner::Swap(swap) = &mut self.inner else {
            return None;
        };
        let name = self.name.clone();
        let (cleanup, request) = Cleanup::begin(name.clone(), swap.take_old(), false)?;
        let inner = Inner::Cleanup(cleanup);
        Some((Self { name, inner }, request))
    }

    /// What is to be performed again after [`Next::Wait`]; none: nothing, it has ended.
    #[must_use]
    pub fn request(&self) -> Option<StorageRequest> {
        match &self.inner {
            Inner::Read(read) => Some(read.retry()),
            Inner::Swap(swap) => Some(swap.retry()),
            Inner::Cleanup(_) => None,
        }
    }

    /// Takes an outcome.
    pub fn on_outcome(&mut self, outcome: &StorageOutcome) -> Next {
        let step = match &mut self.inner {
            Inner::Read(read) => read.on_outcome(outcome),
            Inner::Swap(swap) => swap.on_outcome(outcome),
            Inner::Cleanup(cleanup) => cleanup.on_outcome(outcome),
        };
        match step {
            Step::Do(request) => Next::Do(request),
            Step::Wait => Next::Wait,
            Step::Head(record) => Next::Head(record),
            Step::Swapped(SwapOutcome::Won) => Next::Won,
            Step::Swapped(SwapOutcome::Lost) => Next::Lost,
            Step::Swapped(SwapOutcome::NotDone(fault)) => Next::NotDone(fault),
            Step::Cleaned => Next::Cleaned,
        }
    }
}
