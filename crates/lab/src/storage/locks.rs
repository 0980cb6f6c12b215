//! Byte-range locks as the storage keeps them: who holds what of which file, whichever mount it came by.
//!
//! They follow fcntl(2): an owner's new lock replaces what it had there, locks of different owners conflict
//! when they overlap and one of them is exclusive. An owner is a process (POSIX locks) or an open file
//! description (OFD locks) of one mount; the kernel tells them apart.
//!
//! Locks of a host that lost power are held until the time that the storage gives them up.

use super::locked;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Instant;

/// A file of the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileKey {
    /// Whose locks can conflict: 0 for all mounts of the storage, else one mount alone.
    pub(super) scope: u64,
    /// The device of the backing file.
    pub(super) device: u64,
    /// Its inode.
    pub(super) inode: u64,
}

/// Who asks: a lock owner of a mount, through an open file of that mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    /// The mount's number.
    pub(super) mount: u64,
    /// The kernel's number of the owner; two mounts may use the same.
    pub(super) owner: u64,
    /// The open file through which it asks.
    pub(super) handle: u64,
}

impl Holder {
    fn is_same_owner(&self, other: &Self) -> bool {
        self.mount == other.mount && self.owner == other.owner
    }
}

/// Bytes of a file, both ends included, and how they are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    /// The first byte.
    pub(super) start: u64,
    /// The last byte.
    pub(super) end: u64,
    /// A write lock, which conflicts with every other.
    pub(super) exclusive: bool,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    holder: Holder,
    range: Range,
    /// When the storage gives it up by itself.
    until: Option<Instant>,
}

/// Every lock of a run's storage.
#[derive(Debug, Default)]
pub(super) struct Locks {
    files: Mutex<BTreeMap<FileKey, Vec<Held>>>,
    /// Open files, by mount and handle, that had a lock which another owner has taken since.
    revoked: Mutex<BTreeSet<(u64, u64)>>,
}

impl Locks {
    /// The first lock of another owner that conflicts.
    pub(super) fn conflict(&self, file: FileKey, holder: &Holder, wanted: Range) -> Option<Range> {
        let now = Instant::now();
        let mut files = locked(&self.files);
        let held = files.get_mut(&file)?;
        let found = find_conflict(held, holder, wanted, now);
        if found.is_none() {
            // Image locks are shared ones: who asks and hears that nothing is in the way goes on.
            self.revoke(held, holder, wanted, now);
        }
        found
    }

    /// Takes away what the storage has given up and another owner is about to use.
    fn revoke(&self, held: &mut Vec<Held>, holder: &Holder, wanted: Range, now: Instant) {
        let mut revoked = locked(&self.revoked);
        held.retain(|h| {
            let over = h.until.is_some_and(|until| until <= now) && h.is_in_the_way(holder, wanted);
            if over {
                revoked.insert((h.holder.mount, h.holder.handle));
            }
            !over
        });
    }

    /// Takes a lock. False: another owner's conflicts.
    pub(super) fn take(&self, file: FileKey, holder: Holder, wanted: Range) -> bool {
        let now = Instant::now();
        let mut files = locked(&self.files);
        let held = files.entry(file).or_default();
        if find_conflict(held, &holder, wanted, now).is_some() {
            return false;
        }
        self.revoke(held, &holder, wanted, now);
        cut_out(held, &holder, wanted);
        held.push(Held {
            holder,
            range: wanted,
            until: None,
        });
        true
    }

    /// Gives up an owner's locks on these bytes.
    pub(super) fn give_up(&self, file: FileKey, holder: &Holder, range: Range) {
        self.edit(file, |held| cut_out(held, holder, range));
    }

    /// Gives up all locks of an owner: a process closed the file.
    pub(super) fn give_up_owner(&self, file: FileKey, holder: &Holder) {
        self.edit(file, |held| {
            held.retain(|h| !h.holder.is_same_owner(holder));
        });
    }

    /// Gives up all locks that were taken through an open file: the last descriptor of it is closed.
    pub(super) fn give_up_handle(&self, file: FileKey, mount: u64, handle: u64) {
        locked(&self.revoked).remove(&(mount, handle));
        self.edit(file, |held| {
            held.retain(|h| (h.holder.mount, h.holder.handle) != (mount, handle));
        });
    }

    /// The storage hears the mount again: it keeps what nobody else has taken.
    pub(super) fn reclaim(&self, mount: u64) {
        for held in locked(&self.files).values_mut().flatten() {
            if held.holder.mount == mount {
                held.until = None;
            }
        }
    }

    /// Whether an open file had a lock which another owner has taken since.
    pub(super) fn is_revoked(&self, mount: u64, handle: u64) -> bool {
        let revoked = locked(&self.revoked);
        !revoked.is_empty() && revoked.contains(&(mount, handle))
    }

    /// A mount ended, or the storage does not hear it: what it holds is held until then, and after that until
    /// somebody else wants it.
    pub(super) fn expire(&self, mount: u64, until: Instant) {
        for held in locked(&self.files).values_mut().flatten() {
            if held.holder.mount == mount {
                held.until = Some(until);
            }
        }
    }

    fn edit(&self, file: FileKey, change: impl FnOnce(&mut Vec<Held>)) {
        let mut files = locked(&self.files);
        if let Some(held) = files.get_mut(&file) {
            change(held);
            if held.is_empty() {
                files.remove(&file);
            }
        }
    }
}

fn overlaps(a: Range, b: Range) -> bool {
    a.start <= b.end && b.start <= a.end
}

impl Held {
    /// Whether it keeps another owner from that lock, as long as the storage keeps it.
    fn is_in_the_way(&self, holder: &Holder, wanted: Range) -> bool {
        !self.holder.is_same_owner(holder)
            && overlaps(self.range, wanted)
            && (self.range.exclusive || wanted.exclusive)
    }
}

fn find_conflict(held: &[Held], holder: &Holder, wanted: Range, now: Instant) -> Option<Range> {
    held.iter()
        .filter(|h| h.until.is_none_or(|until| now < until))
        .find(|h| h.is_in_the_way(holder, wanted))
        .map(|h| h.range)
}

/// Takes these bytes out of the owner's locks; what sticks out on either side stays.
fn cut_out(held: &mut Vec<Held>, holder: &Holder, hole: Range) {
    let mut rest = Vec::new();
    held.retain(|h| {
        if !h.holder.is_same_owner(holder) || !overlaps(h.range, hole) {
            return true;
        }
        let part = |start, end| Held {
            range: Range {
                start,
                end,
                ..h.range
            },
            ..*h
        };
        if h.range.start < hole.start {
            rest.push(part(h.range.start, hole.start - 1));
        }
        if h.range.end > hole.end {
            rest.push(part(hole.end + 1, h.range.end));
        }
        false
    });
    held.extend(rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const FILE: FileKey = FileKey {
        scope: 0,
        device: 1,
        inode: 2,
    };

    fn holder(mount: u64, owner: u64) -> Holder {
        Holder {
            mount,
            owner,
            handle: owner,
        }
    }

    fn bytes(start: u64, end: u64, exclusive: bool) -> Range {
        Range {
            start,
            end,
            exclusive,
        }
    }

    #[test]
    fn owners_of_two_mounts_differ_even_by_the_same_number() {
        let locks = Locks::default();
        assert!(locks.take(FILE, holder(1, 7), bytes(100, 103, true)));
        assert!(!locks.take(FILE, holder(2, 7), bytes(103, 110, false)));
        assert!(locks.take(FILE, holder(2, 7), bytes(104, 110, true)));
        let found = locks.conflict(FILE, &holder(2, 7), bytes(0, 200, false));
        assert_eq!(found, Some(bytes(100, 103, true)));
    }

    #[test]
    fn shared_locks_agree_and_an_owner_may_change_its_own() {
        let locks = Locks::default();
        assert!(locks.take(FILE, holder(1, 1), bytes(0, 9, false)));
        assert!(locks.take(FILE, holder(2, 1), bytes(5, 14, false)));
        assert!(!locks.take(FILE, holder(1, 1), bytes(0, 5, true)));
        assert!(locks.take(FILE, holder(1, 1), bytes(2, 3, true)));
        // Bytes 0, 1 and 4 to 9 of the first are still shared.
        assert!(locks.take(FILE, holder(3, 1), bytes(0, 1, false)));
        assert!(!locks.take(FILE, holder(3, 1), bytes(3, 3, false)));
        assert!(!locks.take(FILE, holder(3, 1), bytes(9, 9, true)));
    }

    #[test]
    fn giving_up_the_middle_leaves_both_ends() {
        let locks = Locks::default();
        let (one, two) = (holder(1, 1), holder(2, 1));
        assert!(locks.take(FILE, one, bytes(0, u64::MAX, true)));
        locks.give_up(FILE, &one, bytes(10, 19, false));
        assert!(locks.take(FILE, two, bytes(10, 19, true)));
        assert!(!locks.take(FILE, two, bytes(9, 9, true)));
        assert!(!locks.take(FILE, two, bytes(20, 20, true)));
    }

    #[test]
    fn closing_gives_up_what_came_that_way_and_nothing_else() {
        let locks = Locks::default();
        assert!(locks.take(FILE, holder(1, 1), bytes(0, 0, true)));
        assert!(locks.take(FILE, holder(1, 2), bytes(1, 1, true)));
        locks.give_up_handle(FILE, 1, 1);
        assert!(locks.take(FILE, holder(2, 1), bytes(0, 0, true)));
        assert!(!locks.take(FILE, holder(2, 1), bytes(1, 1, true)));
        locks.give_up_owner(FILE, &holder(1, 2));
        assert!(locks.take(FILE, holder(2, 1), bytes(1, 1, true)));
    }

    #[test]
    fn a_lost_host_keeps_what_nobody_took_and_is_refused_where_somebody_did() {
        let locks = Locks::default();
        let other = FileKey { inode: 3, ..FILE };
        for file in [FILE, other] {
            assert!(locks.take(file, holder(1, 7), bytes(0, 9, true)));
        }
        locks.expire(1, Instant::now());
        assert!(locks.take(FILE, holder(2, 1), bytes(0, 9, true)));
        locks.reclaim(1);
        assert!(locks.is_revoked(1, 7));
        assert!(!locks.is_revoked(2, 1));
        // As image locks are taken: shared by all, then asked whether somebody else's is there.
        assert!(locks.take(other, holder(3, 1), bytes(10, 19, false)));
        locks.expire(3, Instant::now());
        assert!(locks.take(other, holder(2, 2), bytes(10, 19, false)));
        assert_eq!(
            locks.conflict(other, &holder(2, 2), bytes(10, 19, true)),
            None
        );
        assert!(locks.is_revoked(3, 1));
        assert!(!locks.take(other, holder(2, 1), bytes(0, 9, true)));
        locks.give_up_handle(FILE, 1, 7);
        assert!(!locks.is_revoked(1, 7));
    }

    #[test]
    fn locks_of_a_mount_that_ended_are_held_until_their_time() {
        let locks = Locks::default();
        assert!(locks.take(FILE, holder(1, 1), bytes(0, 0, true)));
        locks.expire(1, Instant::now() + Duration::from_secs(3600));
        assert!(!locks.take(FILE, holder(2, 1), bytes(0, 0, true)));
        locks.expire(1, Instant::now());
        assert!(locks.take(FILE, holder(2, 1), bytes(0, 0, true)));
    }
}
