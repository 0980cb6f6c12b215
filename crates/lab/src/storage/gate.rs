//! The gate of one mount: each operation passes it, and waits there while a fault says so.
//!
//! ```text
//!            no fault, Gone, ReadOnly, Full, LoseAcks
//! submit ------------------------------------------------> carry out --> answer
//!    |                                                        ^   '----> kept answers (LoseAcks)
//!    '--> line (Hang: until healed; Slow: until it is due) ---'
//! ```
//!
//! An operation that waits is a closure in the line and holds no thread. The line moves in order.
//!
//! Invariant: an operation is carried out only under the read half of the state's lock, so when a change of
//! the fault has returned, nothing that went by the old one is still under way; and after `close` nothing
//! is carried out at all.

use super::fault::{Fault, Kind, Pass};
use super::{locked, read, write};
use nix::errno::Errno;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError, RwLock};
use std::time::Instant;

/// Gives a result to whoever waits for it: the result itself, or this error in its place.
type Answer = Box<dyn FnOnce(Option<Errno>) + Send>;

struct Waiting {
    kind: Kind,
    /// When it may go on; none: not before the fault changes.
    due: Option<Instant>,
    work: Box<dyn FnOnce(Pass) -> Answer + Send>,
}

#[derive(Default)]
struct State {
    fault: Option<Fault>,
    closed: bool,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Waiting>,
    kept: Vec<Answer>,
    closed: bool,
}

/// The gate.
#[derive(Default)]
pub(super) struct Gate {
    state: RwLock<State>,
    line: Mutex<Line>,
    changed: Condvar,
}

/// What was let go when the gate closed; dropping it drops the replies.
pub(super) struct LetGo {
    _waiting: VecDeque<Waiting>,
    _kept: Vec<Answer>,
}

impl Gate {
    /// Carries an operation out as soon as the fault lets it: `work` has the effect and gives what answers.
    pub(super) fn submit<A>(&self, kind: Kind, work: impl FnOnce(Pass) -> A + Send + 'static)
    where
        A: FnOnce(Option<Errno>) + Send + 'static,
    {
        let state = read(&self.state);
        if state.closed {
            return;
        }
        let due = match state.fault {
            Some(Fault::Hang) => None,
            Some(Fault::Slow(by)) if kind.is_delayed() => Some(Instant::now() + by),
            fault => return self.carry_out(fault, kind, work),
        };
        let mut line = locked(&self.line);
        line.waiting.push_back(Waiting {
            kind,
            due,
            work: Box::new(move |pass| Box::new(work(pass))),
        });
        if line.waiting.len() == 1 {
            self.changed.notify_all();
        }
    }

    fn carry_out<A>(&self, fault: Option<Fault>, kind: Kind, work: impl FnOnce(Pass) -> A)
    where
        A: FnOnce(Option<Errno>) + Send + 'static,
    {
        let answer = work(Pass::under(fault, kind));
        if fault == Some(Fault::LoseAcks) && kind.loses_ack() {
            locked(&self.line).kept.push(Box::new(answer));
        } else {
            answer(None);
        }
    }

    /// Changes the fault. What waited is carried out before this returns, unless the new fault makes it wait
    /// too; kept answers are given, unless the new fault keeps them too.
    pub(super) fn set(&self, fault: Option<Fault>) {
        let mut state = write(&self.state);
        if state.closed {
            return;
        }
        state.fault = fault;
        let mut line = locked(&self.line);
        let kept = match fault {
            Some(Fault::Hang | Fault::LoseAcks) => Vec::new(),
            _ => std::mem::take(&mut line.kept),
        };
        let ready = match fault {
            Some(Fault::Hang) => {
                line.waiting.iter_mut().for_each(|w| w.due = None);
                VecDeque::new()
            }
            Some(Fault::Slow(by)) => {
                let due = Some(Instant::now() + by);
                line.waiting.iter_mut().for_each(|w| w.due = due);
                VecDeque::new()
            }
            _ => std::mem::take(&mut line.waiting),
        };
        drop(line);
        self.changed.notify_all();
        let instead = match fault {
            Some(Fault::Gone(errno)) => Some(errno),
            _ => None,
        };
        kept.into_iter().for_each(|answer| answer(instead));
        for one in ready {
            self.carry_out(fault, one.kind, one.work);
        }
    }

    /// Lets nothing through any more and gives what waited, without effect, to the caller.
    pub(super) fn close(&self) -> LetGo {
        let mut state = write(&self.state);
        state.closed = true;
        state.fault = None;
        let mut line = locked(&self.line);
        line.closed = true;
        self.changed.notify_all();
        LetGo {
            _waiting: std::mem::take(&mut line.waiting),
            _kept: std::mem::take(&mut line.kept),
        }
    }

    /// Carries out what a slow path has delayed, when it is due. Returns when the gate is closed.
    pub(super) fn pace(&self) {
        while self.wait_until_due() {
            let state = read(&self.state);
            // With any other fault the line is empty or waits for the next change.
            if !matches!(state.fault, Some(Fault::Slow(_))) {
                continue;
            }
            let now = Instant::now();
            let mut ready = Vec::new();
            let mut line = locked(&self.line);
            while line
                .waiting
                .front()
                .is_some_and(|w| w.due.is_some_and(|due| due <= now))
            {
                ready.extend(line.waiting.pop_front());
            }
            drop(line);
            for one in ready {
                self.carry_out(state.fault, one.kind, one.work);
            }
        }
    }

    /// Answers false when the gate is closed.
    fn wait_until_due(&self) -> bool {
        let mut line = locked(&self.line);
        while !line.closed {
            let left = line
                .waiting
                .front()
                .and_then(|w| w.due)
                .map(|due| due.saturating_duration_since(Instant::now()));
            line = match left {
                Some(left) if left.is_zero() => return true,
                Some(left) => {
                    let waited = self.changed.wait_timeout(line, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.changed.wait(line);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
        false
    }

    /// How many operations wait, and how many answers are kept back.
    pub(super) fn waiting(&self) -> (usize, usize) {
        let line = locked(&self.line);
        (line.waiting.len(), line.kept.len())
    }
}
