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
    /// Each reading of bytes or of a directory, each writing in place and each putting of a file in its place
    /// takes this long in addition, all that are under way side by side; effects keep the order in which they
    /// were asked for. What belongs to one of those costs nothing more: names, attributes, opening, closing and
    /// locking, syncing what was written, and making, filling and removing the file that is put in its place. So
    /// one operation of a datastore is late by this much, as in the simulator, and not by twenty times it.
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
    /// The same, of a file that was just made.
    Fill,
    /// Changes something without needing space.
    Change,
    /// Gives a file another name.
    Rename,
    /// Needs space: a new entry, or space itself.
    Grow,
    /// Gives a file one more name, which needs space.
    Link,
    /// Waits until earlier writes are on stable storage.
    Sync,
    /// Ends the use of a file. It takes effect on a device that is gone too, so that nothing is kept for ever.
    Close,
}

impl Kind {
    /// Whether [`Fault::Slow`] delays it.
    pub(super) fn is_delayed(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::Rename | Self::Link)
    }

    /// Whether [`Fault::LoseAcks`] keeps its answer back.
    pub(super) fn loses_ack(self) -> bool {
        !matches!(
            self,
            Self::Look | Self::Read | Self::OpenToWrite | Self::Close
        )
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
                Kind::OpenToWrite
                | Kind::Write
                | Kind::Fill
                | Kind::Change
                | Kind::Rename
                | Kind::Grow
                | Kind::Link,
            ) => Self::Refused(Errno::EROFS),
            (Some(Fault::Full), Kind::Grow | Kind::Link) => Self::Refused(Errno::ENOSPC),
            (Some(Fault::Full), _) => Self::InPlace,
            _ => Self::Free,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 11] = [
        Kind::Look,
        Kind::Read,
        Kind::OpenToWrite,
        Kind::Write,
        Kind::Fill,
        Kind::Change,
        Kind::Rename,
        Kind::Grow,
        Kind::Link,
        Kind::Sync,
        Kind::Close,
    ];
    const CHANGES: [Kind; 6] = [
        Kind::Write,
        Kind::Fill,
        Kind::Change,
        Kind::Rename,
        Kind::Grow,
        Kind::Link,
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
            [&[Kind::OpenToWrite], CHANGES.as_slice()].concat()
        );
        assert_eq!(refused(Fault::Full), [Kind::Grow, Kind::Link]);
        assert_eq!(Pass::under(Some(Fault::Full), Kind::Write), Pass::InPlace);
        for fault in [Fault::LoseAcks, Fault::Slow(Duration::ZERO), Fault::Hang] {
            assert_eq!(refused(fault), []);
        }
    }

    #[test]
    fn only_answers_to_changes_are_lost() {
        let lost: Vec<Kind> = KINDS.into_iter().filter(|kind| kind.loses_ack()).collect();
        assert_eq!(lost, [CHANGES.as_slice(), &[Kind::Sync]].concat());
    }
}
