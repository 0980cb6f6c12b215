//! A host that takes a lock and gives it back, by the core's own machines over a real datastore.

use crate::cluster::{CLUSTER, Cluster, host};
use mainstay_core::id::{BootId, Generation, Holder as Named, InstanceId, Nonce, VmId};
use mainstay_core::io::{StorageOutcome, StorageRequest, StorageValue};
use mainstay_core::lock_machines::{Machine, Next};
use mainstay_core::wire::{Desired, HeartbeatRecord, LockRecord, RecordKey, Stamp};
use mainstay_datastore::{Datastore, Here};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Of the balanced profile; they are only written here.
const FREEZE: Duration = Duration::from_secs(3);
const BREAK: Duration = Duration::from_millis(4500);

/// What a contender says that gave up because of another.
pub(crate) const OVER: &str = "another contender failed";

pub(crate) struct Holder {
    store: Datastore,
    vm: VmId,
    me: Named,
    stamp: Stamp,
    /// The newest generation that it knows of.
    known: Option<LockRecord>,
}

impl Holder {
    pub(crate) fn open(cluster: &Cluster, n: u32) -> Result<Self, String> {
        let me = Named {
            host: host(n)?,
            boot: BootId(u64::from(n)),
        };
        let run_dir = cluster.runs.join(me.host.as_str());
        std::fs::create_dir_all(&run_dir).map_err(|e| e.to_string())?;
        let here = Here {
            host: me.host.clone(),
            boot: me.boot,
            run_dir,
        };
        let store = Datastore::open(cluster.kind, &cluster.path, CLUSTER, &cluster.id, &here)
            .map_err(|e| e.to_string())?;
        let stamp = Stamp {
            writer: me.host.clone(),
            boot: me.boot,
            instance: InstanceId(u64::from(n) << 32 | u64::from(std::process::id())),
            seq: 0,
        };
        let vm = cluster.vm.clone();
        Ok(Self {
            store,
            vm,
            me,
            stamp,
            known: None,
        })
    }

    fn stamp(&mut self) -> Stamp {
        self.stamp.seq += 1;
        self.stamp.clone()
    }

    /// Runs a machine to its end.
    fn drive(&self, machine: &mut Machine, first: StorageRequest) -> Result<Next, String> {
        let mut request = first;
        loop {
            let outcome = self.store.perform(&request);
            match machine.on_outcome(&outcome) {
                Next::Do(next) => request = next,
                // Undecided: asked again, as an agent does after a while.
                Next::Wait => {
                    let again = machine.request();
                    request = again.ok_or("a machine waits for nothing")?;
                }
                end => return Ok(end),
            }
        }
    }

    fn head(&mut self) -> Result<LockRecord, String> {
        let known = self.known.as_ref().map(|r| r.generation);
        let (mut read, first) = Machine::read(&self.vm, CLUSTER, known);
        match self.drive(&mut read, first)? {
            Next::Head(Some(record)) => Ok(record),
            other => Err(format!("the lock has no head: {other:?}")),
        }
    }

    /// True when it is at the new record.
    fn swap(&mut self, from: &LockRecord, holder: Option<Named>) -> Result<bool, String> {
        let stamp = self.stamp();
        let new = LockRecord {
            generation: Generation(from.generation.0 + 1),
            // Never the same twice: agents draw it, here the boot tells hosts apart.
            nonce: Nonce(self.me.boot.0 << 48 | stamp.seq),
            holder,
            desired: Desired::On,
            freeze: FREEZE,
            r#break: BREAK,
            given_back: None,
        };
        let begun = Machine::swap(
            &self.vm,
            CLUSTER,
            &stamp,
            (from.generation, from.nonce),
            new.clone(),
        );
        let (mut swap, first) = begun.ok_or("not the next generation")?;
        match self.drive(&mut swap, first)? {
            Next::Won => {
                self.known = Some(new);
                if let Some((mut cleanup, first)) = swap.cleanup() {
                    self.drive(&mut cleanup, first)?;
                }
                Ok(true)
            }
            // Refused for certain, as where others proposed each time: tried again.
            Next::Lost | Next::NotDone(_) => Ok(false),
            other => Err(format!("a swap ended as {other:?}")),
        }
    }

    /// Tries until it has the lock, or all is over.
    pub(crate) fn acquire(&mut self, over: &AtomicBool) -> Result<(), String> {
        while !over.load(Ordering::SeqCst) {
            let head = self.head()?;
            if head.holder.is_none() && self.swap(&head, Some(self.me.clone()))? {
                return Ok(());
            }
        }
        Err(OVER.to_owned())
    }

    pub(crate) fn release(&mut self) -> Result<(), String> {
        let held = self.known.clone().ok_or("nothing is held")?;
        // Lost is what it is called when the next one took it, and cleaned up, before it was looked at again.
        while !self.swap(&held, None)? && self.head()?.nonce == held.nonce {}
        Ok(())
    }

    /// Writes its heartbeat.
    pub(crate) fn renew(&mut self) -> Result<(), String> {
        let stamp = self.stamp();
        let record = HeartbeatRecord {
            freeze: FREEZE,
            r#break: BREAK,
        };
        let bytes = record.encode(CLUSTER, &stamp);
        let key = RecordKey::Heartbeat(self.me.host.clone());
        match self.store.perform(&StorageRequest::Renew(key, bytes)) {
            StorageOutcome::Ok(StorageValue::Done) => Ok(()),
            other => Err(format!("a heartbeat gave {other:?}")),
        }
    }
}
