//! How a request of the kernel becomes an operation at the gate, and its result an answer; and the locks that
//! requests ask for.

use super::fault::{Kind, Pass};
use super::locks::{Holder, Range};
use super::nodes::Result;
use super::serve::VALID;
use super::{Host, locked};
use fuser::{
    FileHandle, Generation, LockOwner, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
};
use nix::errno::Errno;
use std::sync::Arc;

/// One mount, for the library that reads the kernel's requests.
#[derive(Clone)]
pub(super) struct Served(pub(super) Arc<Host>);

/// A reply that can be an error.
pub(super) trait Fails: Send + 'static {
    fn fail(self, errno: Errno);
}

macro_rules! fails {
    ($($reply:ty),*) => {
        $(impl Fails for $reply {
            fn fail(self, errno: Errno) {
                // The number, not the name, is what the kernel takes.
                self.error(fuser::Errno::from_i32(errno as i32));
            }
        })*
    };
}

fails!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyEmpty,
    ReplyEntry,
    ReplyLock,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite
);

impl Served {
    /// Hands an operation to the gate: `work` has the effect, `answer` tells the caller.
    pub(super) fn run<R: Fails, T: Send + 'static>(
        &self,
        kind: Kind,
        reply: R,
        work: impl FnOnce(&Host, Pass) -> Result<T> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        let host = Arc::clone(&self.0);
        host.counters.asked();
        self.0.gate.submit(kind, move |pass| {
            let result = match pass {
                Pass::Refused(errno) if kind == Kind::Close => work(&host, pass).and(Err(errno)),
                Pass::Refused(errno) => Err(errno),
                _ => work(&host, pass),
            };
            move |instead: Option<Errno>| match instead.map_or(result, Err) {
                Ok(value) => answer(reply, value),
                Err(errno) => reply.fail(errno),
            }
        });
    }

    pub(super) fn entry(
        &self,
        kind: Kind,
        reply: ReplyEntry,
        work: impl FnOnce(&Host) -> Result<fuser::FileAttr> + Send + 'static,
    ) {
        self.run(
            kind,
            reply,
            move |host, _| work(host),
            |reply, attr| reply.entry(&VALID, &attr, Generation(0)),
        );
    }

    pub(super) fn empty(
        &self,
        kind: Kind,
        reply: ReplyEmpty,
        work: impl FnOnce(&Host) -> Result<()> + Send + 'static,
    ) {
        self.run(
            kind,
            reply,
            move |host, _| work(host),
            |reply, ()| reply.ok(),
        );
    }

    /// Takes a lock, or lets the caller wait and tries again.
    pub(super) fn lock(&self, ask: LockRequest, reply: ReplyEmpty) {
        let served = self.clone();
        self.0.gate.submit(Kind::Look, move |pass| {
            let result = match pass {
                Pass::Refused(errno) => Err(errno),
                _ => ask.take(&served.0),
            };
            move |instead: Option<Errno>| match instead.map_or(result, Err) {
                Ok(true) => reply.ok(),
                Ok(false) if ask.waits => {
                    let waiters = Arc::clone(&served.0.storage.waiters);
                    waiters.wait(ask.caller, move |interrupted| {
                        if interrupted {
                            reply.fail(Errno::EINTR);
                        } else {
                            served.lock(ask, reply);
                        }
                    });
                }
                Ok(false) => reply.fail(Errno::EAGAIN),
                Err(errno) => reply.fail(errno),
            }
        });
    }
}

/// A lock that somebody asks for.
#[derive(Clone, Copy)]
pub(super) struct LockRequest {
    /// Who asks.
    pub(super) holder: Holder,
    /// What for.
    pub(super) range: Range,
    /// Whether the caller waits until it is free (F_SETLKW).
    pub(super) waits: bool,
    /// The thread that asks.
    pub(super) caller: u32,
}

impl LockRequest {
    fn take(&self, host: &Host) -> Result<bool> {
        let open = host.opened(self.holder.handle)?;
        let taken = host.storage.locks.take(open.key, self.holder, self.range);
        if taken {
            // A write lock that became a read lock lets others in.
            host.storage.waiters.notify();
        }
        Ok(taken)
    }
}

impl Host {
    pub(super) fn holder(&self, handle: FileHandle, owner: LockOwner) -> Holder {
        Holder {
            mount: self.number,
            owner: owner.0,
            handle: handle.0,
        }
    }

    pub(super) fn close(&self, handle: u64) -> Result<()> {
        let open = locked(&self.files).remove(&handle).ok_or(Errno::EBADF)?;
        let locks = &self.storage.locks;
        locks.give_up_handle(open.key, self.number, handle);
        self.storage.waiters.notify();
        Ok(())
    }
}
