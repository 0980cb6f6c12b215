//! The agent's state and the cluster's configuration on local disk, written atomically. A damaged file is
//! put aside and reported; the agent goes on without it.

use crate::config::ClusterId;
use mainstay_core::config::ClusterConfig;
use mainstay_core::id::OpId;
use mainstay_core::io::Durable;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

const MAGIC: [u8; 8] = *b"MSSTATE\x02";
/// One version back: without the fields at the end, all of which are empty maps or nothing then.
const MAGIC_BEFORE: [u8; 8] = *b"MSSTATE\x01";
const ADDED_FIELDS: usize = 1;
/// A configuration that holds no addresses and images, as the first version knew it.
const CONFIG_MAGIC: [u8; 8] = *b"MSCONFG\x01";
/// One that does.
const CONFIG_MAGIC_PLACES: [u8; 8] = *b"MSCONFG\x02";
/// What the first version lacks at the end: two empty maps.
const NO_PLACES: [u8; 2] = [0, 0];
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
    let issue = format!(
        "{} was damaged{}: the agent remembers no lock generations of before, so that a datastore that \
         goes backwards is seen only from here on; find out what damaged the disk",
        path.display(),
        put_aside(&path, "damaged"),
    );
    (Durable::default(), Some(issue))
}

/// Keeps a file that is of no use under another name, so that nothing is written over it; says where.
fn put_aside(path: &Path, why: &str) -> String {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{why}"));
    let aside = PathBuf::from(name);
    match std::fs::rename(path, &aside) {
        Ok(()) => format!(" and is kept as {}", aside.display()),
        Err(error) => format!(" and could not be put aside ({error})"),
    }
}

/// The configuration of that cluster that was kept, for a command that runs beside the agent: nothing is put aside.
pub(crate) fn peek_config(dir: &Path, cluster: u64) -> Option<ClusterConfig> {
    let config = decode_config(&std::fs::read(dir.join("config")).ok()?)?;
    (config.cluster_id == cluster && config.version > 0).then_some(config)
}

/// Reads the configuration of that cluster that was kept, if one was; also what is wrong with it.
pub(crate) fn load_config(dir: &Path, cluster: u64) -> (Option<ClusterConfig>, Option<String>) {
    let path = dir.join("config");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return (None, None),
        Err(e) => {
            let issue = format!(
                "cannot read {} ({e}): the agent begins with cluster.toml and takes newer settings from other hosts",
                path.display()
            );
            return (None, Some(issue));
        }
    };
    let what = match decode_config(&bytes) {
        Some(config) if config.cluster_id == cluster => return (Some(config), None),
        Some(config) => {
            let found = ClusterId(config.cluster_id);
            let aside = put_aside(&path, "other-cluster");
            format!(
                "{} is of another cluster ({found}){aside}: the agent begins with cluster.toml; give each cluster a \
                 state_dir of its own, or remove what the other one has left",
                path.display()
            )
        }
        None => format!(
            "{} was damaged{}: the agent begins with cluster.toml and takes newer settings from other hosts; find out what damaged the disk",
            path.display(),
            put_aside(&path, "damaged")
        ),
    };
    (None, Some(what))
}

/// The body behind magic and checksum, when both fit.
fn checked<'a>(bytes: &'a [u8], magic: &[u8; 8]) -> Option<&'a [u8]> {
    let rest = bytes.strip_prefix(magic)?;
    let (crc, body) = rest.split_at_checked(4)?;
    (u32::from_le_bytes(crc.try_into().ok()?) == crc32fast::hash(body)).then_some(body)
}

/// Reads a state as it was kept.
pub(crate) fn decode(bytes: &[u8]) -> Option<Durable> {
    if let Some(body) = checked(bytes, &MAGIC) {
        return postcard::from_bytes(body).ok();
    }
    let mut body = checked(bytes, &MAGIC_BEFORE)?.to_vec();
    body.resize(body.len() + ADDED_FIELDS, 0);
    postcard::from_bytes(&body).ok()
}

/// Reads a configuration as it was kept; one that contradicts itself is none.
pub(crate) fn decode_config(bytes: &[u8]) -> Option<ClusterConfig> {
    let config: ClusterConfig = match checked(bytes, &CONFIG_MAGIC_PLACES) {
        Some(body) => postcard::from_bytes(body).ok()?,
        None => {
            let first = checked(bytes, &CONFIG_MAGIC)?;
            postcard::from_bytes(&[first, &NO_PLACES].concat()).ok()?
        }
    };
    config.check().is_ok().then_some(config)
}

/// A state as it is kept.
pub(crate) fn encode(durable: &Durable) -> io::Result<Vec<u8>> {
    let body = postcard::to_extend(durable, Vec::new()).map_err(io::Error::other)?;
    Ok(sealed(&MAGIC, &body))
}

/// A configuration as it is kept.
pub(crate) fn encode_config(config: &ClusterConfig) -> io::Result<Vec<u8>> {
    let body = postcard::to_extend(config, Vec::new()).map_err(io::Error::other)?;
    let magic = if config.places.is_empty() {
        CONFIG_MAGIC
    } else {
        CONFIG_MAGIC_PLACES
    };
    Ok(sealed(&magic, &body))
}

fn sealed(magic: &[u8; 8], body: &[u8]) -> Vec<u8> {
    [magic.as_slice(), &crc32fast::hash(body).to_le_bytes(), body].concat()
}

fn save(dir: &Path, durable: &Durable) -> io::Result<()> {
    write(dir, "state", &encode(durable)?)
}

fn save_config(dir: &Path, config: &ClusterConfig) -> io::Result<()> {
    write(dir, "config", &encode_config(config)?)
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let beside = dir.join(format!("{name}.new"));
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, dir.join(name))?;
    File::open(dir)?.sync_all()
}

/// The thread that writes the state.
#[derive(Debug)]
pub(crate) struct Persister {
    queue: SyncSender<(OpId, Kept)>,
}

/// What is kept.
#[derive(Debug)]
pub(crate) enum Kept {
    State(Durable),
    Config(Box<ClusterConfig>),
}

impl Persister {
    /// Starts the thread; `done` says what became of each write.
    pub(crate) fn start(
        dir: PathBuf,
        done: impl Fn(OpId, bool) + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, jobs): (_, Receiver<(OpId, Kept)>) = sync_channel(QUEUE_LENGTH);
        std::thread::Builder::new()
            .name("state".into())
            .spawn(move || {
                while let Ok((op, kept)) = jobs.recv() {
                    let saved = match &kept {
                        Kept::State(durable) => save(&dir, durable),
                        Kept::Config(config) => save_config(&dir, config),
                    };
                    if let Err(error) = &saved {
                        tracing::error!(%error, "cannot write the state in {}", dir.display());
                    }
                    done(op, saved.is_ok());
                }
            })?;
        Ok(Self { queue })
    }

    /// Queues a write; false when the local disk hangs.
    pub(crate) fn submit(&self, op: OpId, kept: Kept) -> bool {
        !matches!(
            self.queue.try_send((op, kept)),
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
    fn the_state_of_the_version_before_is_understood() {
        let dir = tempfile::tempdir().expect("directory");
        let body = postcard::to_allocvec(&durable()).expect("encoded");
        let old = &body[..body.len() - ADDED_FIELDS];
        write(dir.path(), "state", &sealed(&MAGIC_BEFORE, old)).expect("saved");
        assert_eq!(load(dir.path()), (durable(), None));
    }

    #[test]
    fn the_configuration_comes_back_and_a_damaged_one_is_reported() {
        let dir = tempfile::tempdir().expect("directory");
        assert_eq!(load_config(dir.path(), 7), (None, None));
        let host = mainstay_core::config::HostSpec {
            id: HostId::new("host-1").expect("id"),
            cpu_mhz: 1,
            memory_mb: 1,
            datastores: std::collections::BTreeSet::new(),
            maintenance: true,
            networks: Default::default(),
        };
        let settings = mainstay_core::config::Settings::default();
        let config =
            ClusterConfig::new(7, settings, vec![host], vec![], vec![], vec![]).expect("sound");
        save_config(dir.path(), &config).expect("saved");
        assert_eq!(load_config(dir.path(), 7), (Some(config.clone()), None));
        let kept = std::fs::read(dir.path().join("config")).expect("read");
        assert!(
            kept.starts_with(&CONFIG_MAGIC),
            "as an older agent reads it"
        );
        let mut unsafe_timers = config.clone();
        let timers = &mut unsafe_timers.settings.timing;
        timers.freeze = timers.r#break;
        assert_eq!(
            decode_config(&encode_config(&unsafe_timers).expect("encoded")),
            None
        );
        let mut added = config;
        let address = "10.0.0.1:7777".parse().expect("address");
        let host = HostId::new("host-1").expect("id");
        let places = [("mgmt0".to_owned(), address)].into();
        added.places.hosts.insert(host, places);
        save_config(dir.path(), &added).expect("saved");
        assert_eq!(load_config(dir.path(), 7), (Some(added), None));
        std::fs::write(dir.path().join("config"), b"nonsense").expect("write");
        let (none, issue) = load_config(dir.path(), 7);
        assert_eq!(none, None);
        assert!(issue.expect("issue").contains("config.damaged"));
        let aside = std::fs::read(dir.path().join("config.damaged")).expect("kept");
        assert_eq!(aside, b"nonsense");
        assert_eq!(load_config(dir.path(), 7), (None, None));
    }

    #[test]
    fn the_configuration_of_another_cluster_is_put_aside_and_reported() {
        let dir = tempfile::tempdir().expect("directory");
        let host = mainstay_core::config::HostSpec {
            id: HostId::new("host-1").expect("id"),
            cpu_mhz: 1,
            memory_mb: 1,
            datastores: std::collections::BTreeSet::new(),
            maintenance: false,
            networks: Default::default(),
        };
        let settings = mainstay_core::config::Settings::default();
        let config =
            ClusterConfig::new(7, settings, vec![host], vec![], vec![], vec![]).expect("sound");
        save_config(dir.path(), &config).expect("saved");
        let (none, issue) = load_config(dir.path(), 8);
        assert_eq!(none, None);
        let issue = issue.expect("issue");
        assert!(issue.contains("config.other-cluster"), "{issue}");
        assert!(dir.path().join("config.other-cluster").exists());
        assert_eq!(load_config(dir.path(), 8), (None, None));
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
