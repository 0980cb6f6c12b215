//! Who may write to a file, where the storage fences without locks that hosts could see: whoever opened it last
//! and wrote. So do arrays that hand an exclusive lock on by themselves and shut the client out that had it.

use super::locked;
use std::collections::HashMap;
use std::sync::Mutex;

/// Device and inode of a file, whichever mount it is reached by.
pub(super) type File = (u64, u64);

#[derive(Debug, Default)]
pub(super) struct Writers(Mutex<HashMap<File, Writer>>);

#[derive(Debug, Clone, Copy)]
struct Writer {
    mount: u64,
    /// The number of the open by which it took over.
    opened: u64,
}

impl Writers {
    /// Whether a write may have its effect: opens are numbered over all mounts, in their order.
    pub(super) fn may_write(&self, file: File, mount: u64, opened: u64) -> bool {
        let mut all = locked(&self.0);
        let this = Writer { mount, opened };
        let writer = all.entry(file).or_insert(this);
        if writer.mount != mount && opened > writer.opened {
            *writer = this;
        }
        writer.mount == mount
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_opened_later_and_wrote_shuts_the_other_out() {
        let writers = Writers::default();
        let file = (1, 2);
        assert!(writers.may_write(file, 1, 10));
        assert!(writers.may_write(file, 1, 12), "another open of its own");
        assert!(writers.may_write(file, 2, 13), "the next host");
        assert!(!writers.may_write(file, 1, 10), "what lay in a queue");
        assert!(!writers.may_write(file, 1, 12));
        assert!(writers.may_write(file, 2, 13));
        assert!(writers.may_write(file, 1, 14), "it is back, and opens anew");
        assert!(!writers.may_write(file, 2, 13));
        assert!(writers.may_write((1, 3), 2, 13), "another file");
    }
}
