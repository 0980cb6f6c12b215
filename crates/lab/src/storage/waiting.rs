//! Callers that wait for a lock (F_SETLKW): none holds a thread, and a signal ends the wait.
//!
//! The kernel's word that a caller was interrupted does not reach the file system (the library answers it),
//! so each look at the waiting ones reads their pending signals too. There is a thread only while one waits.

use super::locked;
use std::fs;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How often waiting callers are looked at when no lock is given up: bounds how late a signal ends a wait.
const LOOK_EVERY: Duration = Duration::from_millis(20);

struct Waiting {
    /// The thread that waits.
    caller: u32,
    /// Tries again, or gives the caller EINTR.
    go_on: Box<dyn FnOnce(bool) + Send>,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiting>,
    running: bool,
}

/// All who wait for locks of a run's storage.
#[derive(Default)]
pub(super) struct Waiters {
    state: Mutex<State>,
    given_up: Condvar,
}

impl Waiters {
    /// Lets a caller wait. `go_on` is called once: with true when the caller has a signal, with false when
    /// it is time to try again.
    pub(super) fn wait(self: &Arc<Self>, caller: u32, go_on: impl FnOnce(bool) + Send + 'static) {
        let mut state = locked(&self.state);
        let go_on = Box::new(go_on);
        state.waiting.push(Waiting { caller, go_on });
        if state.running {
            return;
        }
        let own = Arc::clone(self);
        let thread = std::thread::Builder::new().name("storage-locks".into());
        state.running = thread.spawn(move || own.run()).is_ok();
        if !state.running {
            // Without a thread nobody would ever come back to it.
            let all = std::mem::take(&mut state.waiting);
            drop(state);
            all.into_iter().for_each(|w| (w.go_on)(true));
        }
    }

    /// A lock may have been given up.
    pub(super) fn notify(&self) {
        self.given_up.notify_all();
    }

    /// How many wait now.
    pub(super) fn count(&self) -> usize {
        locked(&self.state).waiting.len()
    }

    fn run(&self) {
        loop {
            let state = locked(&self.state);
            let waited = self.given_up.wait_timeout(state, LOOK_EVERY);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
            let all = std::mem::take(&mut state.waiting);
            state.running = !all.is_empty();
            if !state.running {
                return;
            }
            drop(state);
            for one in all {
                let interrupted = has_signal(one.caller);
                (one.go_on)(interrupted);
            }
        }
    }
}

/// Whether a thread has a signal that it neither blocks nor ignores, or is gone.
fn has_signal(thread: u32) -> bool {
    fs::read_to_string(format!("/proc/{thread}/status")).map_or(true, |text| is_signalled(&text))
}

fn is_signalled(status: &str) -> bool {
    let mask = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        line.and_then(|l| u64::from_str_radix(l.trim(), 16).ok())
            .unwrap_or(0)
    };
    let pending = mask("SigPnd:") | mask("ShdPnd:");
    pending & !mask("SigBlk:") & !mask("SigIgn:") != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_signals_count_unless_blocked_or_ignored() {
        let status = |pending: &str, blocked: &str| {
            format!(
                "Name:\tx\nSigPnd:\t{pending}\nShdPnd:\t0000000000000000\nSigBlk:\t{blocked}\n\
                 SigIgn:\t0000000000001000\n"
            )
        };
        assert!(is_signalled(&status(
            "0000000000000100",
            "0000000000000000"
        )));
        assert!(!is_signalled(&status(
            "0000000000000000",
            "0000000000000000"
        )));
        assert!(!is_signalled(&status(
            "0000000000000002",
            "0000000000000002"
        )));
        assert!(!is_signalled(&status(
            "0000000000001000",
            "0000000000000000"
        )));
    }

    #[test]
    fn a_thread_that_is_gone_waits_no_more() {
        assert!(has_signal(u32::MAX));
        assert!(!has_signal(std::process::id()));
    }
}
