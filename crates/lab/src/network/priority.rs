//! The switch's place among threads: a network does not wait for a processor.

use nix::libc;

/// Above ordinary work, so that load does not look like a slow network; below the guards, which freeze
/// VMs in time.
const PRIORITY: libc::c_int = 5;

/// Has the calling thread scheduled before ordinary work. Says whether it was allowed; what it starts is
/// ordinary again.
pub(super) fn raise() -> bool {
    let parameters = libc::sched_param {
        sched_priority: PRIORITY,
    };
    #[expect(unsafe_code, reason = "no library in use wraps sched_setscheduler")]
    // SAFETY: the call reads the parameters, which live until it returns.
    let refused = unsafe {
        libc::sched_setscheduler(
            0,
            libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK,
            &raw const parameters,
        )
    };
    refused == 0
}
