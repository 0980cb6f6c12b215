//! What can be wrong with a datastore, and what an operation may then do. No I/O, no state.

use nix::errno::Errno;
use std::time::Duration;

/// What is wrong with one host's path to one datastore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// All paths down: every operation hangs, opens and lookups too. When the path is healed they are carried
    /// out in the order in which they came, and answered: what was written late lands late.
    Hang,
    /// Permanent device loss: every operation fails at once with this error. Storage of various kinds says
    /// ENXIO, EIO, ENODEV or ESTALE. Locks of files that are closed meanwhile are released.
    Gone(Errno),
    /// Each reading or writing of bytes, each sync and each change of an entry takes this long in addition,
    /// all that are under way side by side; effects keep the order in which they were asked for. Names,
    /// attributes, opening, closing and locking cost nothing more: a client has them in a cache, and an array
    /// never sees them. So a heartbeat, which is one write, is late by this much and not by twenty times it.
    Slow(Duration),
    /// What changes something takes effect, but its caller is never told; answers come when the path is
    /// healed. What only reads, opens or locks is answered.
    LoseAcks,
    /// What changes something fails with EROFS, opening for writing too; reading, locking and syncing go on.
    ReadOnly,
    /// What needs space fails with ENOSPC; overwriting bytes that have their space, renaming, removing and
    /// reading go on. `statfs` shows no free space.
    Full,
}

/// What kind of operation, as far as a fault makes a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Looks names and attributes up, opens for reading, locks.
    Look,
    /// Reads bytes or entries.
    Read,
    /// Opens an existing file for writing.
    OpenToWrite,
    /// Writes bytes of a file; needs space unless the bytes have theirs.
    Write,
    /// Changes something without needing space.
    Change,
    /// Needs space: a new entry, or space itself.
    Grow,
    /// Waits until earlier writes are on stable storage.
    Sync,
    /// Ends the use of a file. It takes effect on a device that is gone too, so that nothing is kept for ever.
    Close,
}

impl Kind {
    /// Whether [`Fault::Slow`] delays it.
    pub(super) fn is_delayed(self) -> bool {
        !matches!(self, Self::Look | Self::OpenToWrite | Self::Close)
    }

    /// Whether [`Fault::LoseAcks`] keeps its answer back.
    pub(super) fn loses_ack(self) -> bool {
        matches!(self, Self::Write | Self::Change | Self::Grow | Self::Sync)
    }
}

/// What an operation may do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// Whatever it wants.
    Free,
    /// Nothing that needs space.
    InPlace,
    /// Nothing: it fails with this.
    Refused(Errno),
}

impl Pass {
    /// What an operation of this kind may do under a fault. Those that hang do not ask.
    pub(super) fn under(fault: Option<Fault>, kind: Kind) -> Self {
        match (fault, kind) {
            (Some(Fault::Gone(errno)), _) => Self::Refused(errno),
            (
                Some(Fault::ReadOnly),
                Kind::OpenToWrite | Kind::Write | Kind::Change | Kind::Grow,
            ) => Self::Refused(Errno::EROFS),
            (Some(Fault::Full), Kind::Grow) => Self::Refused(Errno::ENOSPC),
            (Some(Fault::Full), _) => Self::InPlace,
            _ => Self::Free,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 8] = [
        Kind::Look,
        Kind::Read,
        Kind::OpenToWrite,
        Kind::Write,
        Kind::Change,
        Kind::Grow,
        Kind::Sync,
        Kind::Close,
    ];

    fn refused(fault: Fault) -> Vec<Kind> {
        let is_refused = |kind: &Kind| matches!(Pass::under(Some(fault), *kind), Pass::Refused(_));
        KINDS.into_iter().filter(is_refused).collect()
    }

    #[test]
    fn each_fault_refuses_what_it_says() {
        assert_eq!(refused(Fault::Gone(Errno::ENXIO)), KINDS);
        assert_eq!(
            refused(Fault::ReadOnly),
            [Kind::OpenToWrite, Kind::Write, Kind::Change, Kind::Grow]
        );
        assert_eq!(refused(Fault::Full), [Kind::Grow]);
        assert_eq!(Pass::under(Some(Fault::Full), Kind::Write), Pass::InPlace);
        for fault in [Fault::LoseAcks, Fault::Slow(Duration::ZERO), Fault::Hang] {
            assert_eq!(refused(fault), []);
        }
    }

    #[test]
    fn only_answers_to_changes_are_lost() {
        let lost: Vec<Kind> = KINDS.into_iter().filter(|kind| kind.loses_ack()).collect();
        assert_eq!(lost, [Kind::Write, Kind::Change, Kind::Grow, Kind::Sync]);
    }
}
