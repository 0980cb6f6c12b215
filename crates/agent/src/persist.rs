//! The agent's state on local disk, written atomically. A damaged file is put aside and reported; the
//! agent goes on without it.

use mainstay_core::id::OpId;
use mainstay_core::io::Durable;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

const MAGIC: [u8; 8] = *b"MSSTATE\x01";
const QUEUE_LENGTH: usize = 64;

/// Reads the state; also what is wrong with it.
pub(crate) fn load(dir: &Path) -> (Durable, Option<String>) {
    let path = dir.join("state");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return (Durable::default(), None),
        Err(e) => {
            let issue = format!(
                "cannot read {} ({e}): the agent remembers nothing of before",
                path.display()
            );
            return (Durable::default(), Some(issue));
        }
    };
    if let Some(durable) = decode(&bytes) {
        return (durable, None);
    }
    let aside = dir.join("state.damaged");
    let kept = std::fs::rename(&path, &aside);
    let issue = format!(
        "{} was damaged{}: the agent remembers no lock generations of before, so that a datastore that \
         goes backwards is seen only from here on; find out what damaged the disk",
        path.display(),
        kept.map_or_else(
            |_| String::new(),
            |()| format!(" and is kept as {}", aside.display())
        ),
    );
    (Durable::default(), Some(issue))
}

fn decode(bytes: &[u8]) -> Option<Durable> {
    let rest = bytes.strip_prefix(&MAGIC)?;
    let (crc, body) = rest.split_at_checked(4)?;
    if u32::from_le_bytes(crc.try_into().ok()?) != crc32fast::hash(body) {
        return None;
    }
    postcard::from_bytes(body).ok()
}

fn save(dir: &Path, durable: &Durable) -> io::Result<()> {
    let body = postcard::to_extend(durable, Vec::new()).map_err(io::Error::other)?;
    let beside = dir.join("state.new");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(&beside)?;
    file.write_all(
        &[
            MAGIC.as_slice(),
            &crc32fast::hash(&body).to_le_bytes(),
            &body,
        ]
        .concat(),
    )?;
    file.sync_all()?;
    std::fs::rename(&beside, dir.join("state"))?;
    File::open(dir)?.sync_all()
}

/// The thread that writes the state.
#[derive(Debug)]
pub(crate) struct Persister {
    queue: SyncSender<(OpId, Durable)>,
}

impl Persister {
    /// Starts the thread; `done` says what became of each write.
    pub(crate) fn start(
        dir: PathBuf,
        done: impl Fn(OpId, bool) + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, jobs): (_, Receiver<(OpId, Durable)>) = sync_channel(QUEUE_LENGTH);
        std::thread::Builder::new()
            .name("state".into())
            .spawn(move || {
                while let Ok((op, durable)) = jobs.recv() {
                    let saved = save(&dir, &durable);
                    if let Err(error) = &saved {
                        tracing::error!(%error, "cannot write the state in {}", dir.display());
                    }
                    done(op, saved.is_ok());
                }
            })?;
        Ok(Self { queue })
    }

    /// Queues a write; false when the local disk hangs.
    pub(crate) fn submit(&self, op: OpId, durable: Durable) -> bool {
        !matches!(
            self.queue.try_send((op, durable)),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_core::id::{DatastoreId, Generation, HostId, VmId};

    fn durable() -> Durable {
        let datastore = DatastoreId::new("ds-1").expect("id");
        let vm = VmId::new("vm-1").expect("id");
        Durable {
            vm_generations: [((datastore.clone(), vm), Generation(7))].into(),
            owner_generations: [(datastore, Generation(9))].into(),
            last_primary: Some(HostId::new("host-1").expect("id")),
            ..Durable::default()
        }
    }

    #[test]
    fn state_comes_back_and_a_missing_one_is_new() {
        let dir = tempfile::tempdir().expect("directory");
        assert_eq!(load(dir.path()), (Durable::default(), None));
        save(dir.path(), &durable()).expect("saved");
        assert_eq!(load(dir.path()), (durable(), None));
    }

    #[test]
    fn a_damaged_state_is_put_aside_and_reported() {
        let dir = tempfile::tempdir().expect("directory");
        save(dir.path(), &durable()).expect("saved");
        let path = dir.path().join("state");
        let mut bytes = std::fs::read(&path).expect("read");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes).expect("write");
        let (state, issue) = load(dir.path());
        assert_eq!(state, Durable::default());
        assert!(issue.expect("issue").contains("state.damaged"));
        assert_eq!(
            std::fs::read(dir.path().join("state.damaged")).expect("kept"),
            bytes
        );
        assert_eq!(load(dir.path()), (Durable::default(), None));
    }
}
