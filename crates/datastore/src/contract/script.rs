//! What goes wrong below a datastore, and when: the fault of its n-th operation on the device, or one that lasts.

use nix::errno::Errno;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a test waits for another thread.
const PATIENCE: Duration = Duration::from_secs(120);

/// What becomes of one operation on the device or the directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// The error comes back, and it is never performed.
    Error(Errno),
    /// It is performed, and an error comes back.
    LostAnswer,
    /// An error comes back, and it is performed when the test says so.
    Late,
    /// A part of it is performed, and an error comes back.
    Torn,
    /// It waits until the test lets it go on, and is performed then.
    Hang,
}

impl Fault {
    /// The faults that only an operation with an effect can have.
    fn needs_effect(self) -> bool {
        matches!(self, Self::LostAnswer | Self::Late | Self::Torn)
    }
}

/// What an operation on the device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Read,
    /// It changes what is there.
    Write,
    /// It changes what is there, and needs space for that.
    Grow,
}

/// A fault that lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lasting {
    /// The path is gone.
    Gone,
    ReadOnly,
    Full,
}

#[derive(Default)]
struct State {
    /// Operations to go, and what becomes of the one after them.
    next: Option<(usize, Fault)>,
    lasting: Option<Lasting>,
    hit: bool,
    hanging: bool,
    let_go: bool,
}

type Effect = Box<dyn FnOnce() + Send>;

/// The script of one host's way to a datastore.
#[derive(Default)]
pub(super) struct Script {
    state: Mutex<State>,
    changed: Condvar,
    late: Mutex<Vec<Effect>>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

impl Script {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The n-th operation from now on that can have it meets this fault.
    pub(super) fn nth(&self, n: usize, fault: Fault) {
        let mut state = self.state();
        state.next = Some((n, fault));
        state.hit = false;
        state.let_go = false;
    }

    /// From now on.
    pub(super) fn lasting(&self, fault: Option<Lasting>) {
        self.state().lasting = fault;
    }

    /// No further fault. Answers whether the planned one was met.
    pub(super) fn clear(&self) -> bool {
        let mut state = self.state();
        state.next = None;
        state.hit
    }

    /// Was the planned fault met?
    pub(super) fn was_hit(&self) -> bool {
        self.state().hit
    }

    /// An operation begins: what becomes of it?
    pub(super) fn meet(&self, kind: Kind) -> Option<Fault> {
        let mut state = self.state();
        let lasting = match (state.lasting, kind) {
            (Some(Lasting::Gone), _) => Some(Errno::EIO),
            (Some(Lasting::ReadOnly), Kind::Write | Kind::Grow) => Some(Errno::EROFS),
            (Some(Lasting::Full), Kind::Grow) => Some(Errno::ENOSPC),
            _ => None,
        };
        if let Some(errno) = lasting {
            return Some(Fault::Error(errno));
        }
        let (left, fault) = state.next?;
        if fault.needs_effect() && kind == Kind::Read {
            return None;
        }
        if left > 0 {
            state.next = Some((left - 1, fault));
            return None;
        }
        state.next = None;
        state.hit = true;
        if fault != Fault::Hang {
            return Some(fault);
        }
        state.hanging = true;
        self.changed.notify_all();
        let waited = self
            .changed
            .wait_timeout_while(state, PATIENCE, |state| !state.let_go);
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "the test let nothing go on");
        state.hanging = false;
        None
    }

    /// Waits until an operation hangs, or `is_done` says that none will. Answers whether one does.
    pub(super) fn wait_hung(&self, is_done: impl Fn() -> bool) -> bool {
        let mut state = self.state();
        let until = std::time::Instant::now() + PATIENCE;
        while !state.hanging && !is_done() {
            assert!(std::time::Instant::now() < until, "neither hangs nor ends");
            let waited = self.changed.wait_timeout(state, Duration::from_millis(5));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.hanging
    }

    /// What hangs goes on.
    pub(super) fn let_go(&self) {
        let mut state = self.state();
        state.let_go = true;
        state.next = None;
        self.changed.notify_all();
    }

    /// An effect that is to come late.
    pub(super) fn later(&self, effect: impl FnOnce() + Send + 'static) {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        late.push(Box::new(effect));
    }

    /// What is late has its effect now. Answers how much that was.
    pub(super) fn land(&self) -> usize {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        let late = std::mem::take(&mut *late);
        let landed = late.len();
        for effect in late {
            effect();
        }
        landed
    }

    /// What is late never comes: its host booted.
    pub(super) fn forget(&self) {
        drop(std::mem::take(
            &mut *self.late.lock().unwrap_or_else(PoisonError::into_inner),
        ));
    }
}

/// The answer of storage that gave none in time.
pub(super) fn timed_out() -> io::Error {
    Errno::ETIMEDOUT.into()
}

/// The answer that stands for a lost one.
pub(super) fn lost() -> io::Error {
    Errno::EIO.into()
}
