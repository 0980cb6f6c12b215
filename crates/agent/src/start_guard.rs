//! May a VM be started here now? For whatever starts VMs beside Mainstay: a hook of a hypervisor's manager, a wrapper
//! of QEMU, a person. It reads the VM's lock and this host's guard, and changes nothing.
//!
//! ```text
//! not in the configuration              -> not Mainstay's: may start
//! lock held by this boot of this host,
//!   and registered with its guard       -> may start: this is what the driver does
//! else                                  -> refused, with who holds the lock and what to do
//! ```
//! It is a belt over the braces: it answers for the moment, and keeps out nobody who does not ask. What keeps a second
//! process off a disk at any time is the image lock (`docs/guard.md`).
//!
//! Never here: taking a lock, or waiting for storage that hangs: the caller has this done by a process that it can
//! leave behind.

use crate::config::{AgentFile, ClusterFile, VmEntry};
use crate::guard::shm_path;
use crate::shell::{AgentError, here};
use crate::shm::Shm;
use crate::{clock, guard, logging, persist};
use mainstay_core::config::{ClusterConfig, DatastoreKind};
use mainstay_core::guard::{SlotState, Words as _};
use mainstay_core::id::{Generation, Holder, VmId};
use mainstay_core::io::{StorageOutcome, StorageRequest, StorageValue};
use mainstay_core::wire::{Desired, LockRecord, RecordKey};
use mainstay_datastore::{Datastore, Here};
use mainstay_hypervisor::freeze;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A generation may be removed between the list and the reading, when its successor is there.
const TRIES: u32 = 3;

/// The answer about one VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The VM.
    pub vm: VmId,
    /// Nothing: it may be started. Else why not.
    pub refused: Option<Refusal>,
}

/// Why a VM may not be started here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// What is so.
    pub why: String,
    /// What to do.
    pub remedy: String,
}

impl Refusal {
    fn new(why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            remedy: remedy.into(),
        }
    }
}

/// What is to be started.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Start {
    /// Names of VMs. One that the cluster does not have is not Mainstay's.
    pub names: Vec<String>,
    /// Words of a command line; VMs whose images they name are meant too.
    pub words: Vec<String>,
}

/// Answers for each VM of Mainstay's that is meant; none: it is not Mainstay's. Blocks for as long as the VMs'
/// datastores do.
///
/// # Errors
/// [`AgentError`]: this host's configuration cannot be used.
pub fn ask(config: &Path, start: &Start) -> Result<Vec<Answer>, AgentError> {
    let agent = AgentFile::read(config)?;
    let file = ClusterFile::read(&agent.cluster)?;
    let written = file.cluster_config()?;
    let kept = persist::peek_config(&agent.state_dir, written.cluster_id);
    let cluster = kept.unwrap_or(written);
    let vms = file.in_force(&cluster).vms;
    let here = here(&agent)?;
    let asked = Asked {
        agent: &agent,
        cluster: &cluster,
        here: &here,
    };
    let named = |vm: &&VmEntry| start.names.iter().any(|name| name == vm.id.as_str());
    let mut meant: BTreeMap<&VmId, &VmEntry> =
        vms.iter().filter(named).map(|vm| (&vm.id, vm)).collect();
    let images = Images::of(&agent, &vms);
    for word in &start.words {
        meant.extend(images.named_in(word).map(|vm| (&vm.id, vm)));
    }
    let answers = meant.into_values().map(|vm| Answer {
        vm: vm.id.clone(),
        refused: asked.may_start(vm).err(),
    });
    Ok(answers.collect())
}

struct Asked<'a> {
    agent: &'a AgentFile,
    cluster: &'a ClusterConfig,
    here: &'a Here,
}

impl Asked<'_> {
    fn may_start(&self, vm: &VmEntry) -> Result<(), Refusal> {
        let lock = self.lock(vm)?;
        let (id, me) = (&vm.id, &self.here.host);
        let Some(Holder { host, boot }) = &lock.holder else {
            let off = lock.desired == Desired::Off;
            let why = if off {
                format!("{id} is switched off, and nobody holds its lock")
            } else {
                format!("nobody holds the lock of {id}, and the cluster is about to restart it")
            };
            return Err(Refusal::new(
                why,
                format!("let Mainstay start it: mainstay power-on {id}"),
            ));
        };
        let generation = lock.generation;
        if host != me {
            return Err(Refusal::new(
                format!("{host} holds the lock of {id}, since generation {generation}"),
                format!(
                    "it runs there: see `mainstay explain vm {id}`; to have it here, power it off there and then `mainstay \
                     power-on {id}` here; if {host} is lost, the cluster restarts it by itself"
                ),
            ));
        }
        if *boot != self.here.boot {
            return Err(Refusal::new(
                format!(
                    "the lock of {id} is this host's, of an earlier boot (generation {generation})"
                ),
                format!("the agent takes it anew: start it, or `mainstay power-on {id}`"),
            ));
        }
        self.is_registered(id, generation)
    }

    /// The guard knows that VM under that generation, its right lasts, and it has no process yet.
    fn is_registered(&self, vm: &VmId, generation: Generation) -> Result<(), Refusal> {
        let remedy = format!("let Mainstay start it: mainstay power-on {vm}");
        let boot = guard::read_boot(self.agent)
            .map_err(|e| Refusal::new(logging::chain(&e), "check boot_id_file in agent.toml"))?;
        let shm = Shm::open(&shm_path(&self.agent.run_dir), &boot).map_err(|error| {
            let why = format!(
                "this host holds the lock of {vm}, but no guard would freeze it ({})",
                logging::chain(&error)
            );
            Refusal::new(why, "start the agent, which starts its guard")
        })?;
        let slot = shm.slot_of(vm).ok_or_else(|| {
            let why = format!(
                "this host holds the lock of {vm} (generation {generation}), but its guard does not know the VM and \
                 would not freeze it"
            );
            Refusal::new(why, remedy.clone())
        })?;
        let word = shm.load(slot);
        let lasts = word.state() == SlotState::Running && clock::now() < word.deadline();
        if !lasts || shm.generation(slot) != generation {
            return Err(Refusal::new(
                format!("the right to run {vm} has lapsed on this host"),
                "the agent renews it, or another host takes the VM: see `mainstay status`",
            ));
        }
        match shm.process(slot) {
            Some(p) if !freeze::all_threads_gone(p.pid, p.start_time) => Err(Refusal::new(
                format!("{vm} runs on this host already (process {})", p.pid),
                "use that one",
            )),
            _ => Ok(()),
        }
    }

    fn lock(&self, vm: &VmEntry) -> Result<LockRecord, Refusal> {
        let unreadable = |why: String| {
            Refusal::new(
                format!(
                    "the lock of {} on {} cannot be read: {why}",
                    vm.id, vm.datastore
                ),
                "until it can, nobody knows who may run it: check the datastore (`mainstay status`)",
            )
        };
        let mount = self
            .agent
            .datastores
            .get(&vm.datastore)
            .ok_or_else(|| unreadable(format!("{} does not mount it", self.agent.host)))?;
        let kind = self.cluster.datastores.get(&vm.datastore);
        let kind = kind.map_or(DatastoreKind::default(), |spec| spec.kind);
        let cluster = self.cluster.cluster_id;
        let store = Datastore::attach(kind, mount, cluster, &vm.datastore, self.here)
            .map_err(|error| unreadable(logging::chain(&error)))?;
        for _ in 0..TRIES {
            let listed = store.perform(&StorageRequest::ListVmLock(vm.id.clone()));
            let StorageOutcome::Ok(StorageValue::Keys(keys)) = listed else {
                return Err(unreadable(format!("{listed:?}")));
            };
            let newest = keys.into_iter().max_by_key(|key| match key {
                RecordKey::VmLock(_, generation) => *generation,
                _ => Generation(0),
            });
            let Some(newest) = newest else {
                return Err(unreadable("it was never made".to_owned()));
            };
            match store.perform(&StorageRequest::Read(newest)) {
                StorageOutcome::Ok(StorageValue::Bytes(bytes)) => {
                    let decoded = LockRecord::decode(cluster, &bytes);
                    return decoded
                        .map(|(_, record)| record)
                        .map_err(|error| unreadable(logging::chain(&error)));
                }
                StorageOutcome::Ok(StorageValue::NotFound) => {}
                other => return Err(unreadable(format!("{other:?}"))),
            }
        }
        Err(unreadable("it changes all the time".to_owned()))
    }
}

/// The images of VMs, by their paths and by what is there.
struct Images<'a> {
    by_path: BTreeMap<PathBuf, &'a VmEntry>,
    by_inode: BTreeMap<(u64, u64), &'a VmEntry>,
}

impl<'a> Images<'a> {
    fn of(agent: &AgentFile, vms: &'a [VmEntry]) -> Self {
        let mut images = Self {
            by_path: BTreeMap::new(),
            by_inode: BTreeMap::new(),
        };
        for vm in vms {
            let Some(mount) = agent.datastores.get(&vm.datastore) else {
                continue;
            };
            let path = mount.join(&vm.image);
            // The same file by another name: a link, or another mount of its file system.
            if let Ok(meta) = std::fs::metadata(&path) {
                images.by_inode.insert((meta.dev(), meta.ino()), vm);
            }
            images.by_path.insert(path, vm);
        }
        images
    }

    /// The VMs whose images a word of a command line names, as `file=/a/b.raw,format=raw` does. Where two readings
    /// of a word are possible, both count.
    fn named_in<'b>(&'b self, word: &'b str) -> impl Iterator<Item = &'a VmEntry> + 'b {
        let pieces = word.split([',', '=', ':', '"', ' ']).chain([word]);
        // QEMU writes a comma in a path twice.
        let whole = word.split_once("file=").map_or(word, |(_, rest)| rest);
        let unfolded = whole.replace(",,", "\0");
        let unfolded = unfolded.split(',').next().unwrap_or_default();
        let unfolded = unfolded.replace('\0', ",");
        let pieces = pieces.map(str::to_owned).chain([unfolded]);
        pieces
            .filter(|piece| !piece.is_empty())
            .filter_map(|piece| self.is(Path::new(&piece)))
    }

    fn is(&self, path: &Path) -> Option<&'a VmEntry> {
        let path = std::path::absolute(path).ok()?;
        if let Some(vm) = self.by_path.get(&path) {
            return Some(vm);
        }
        let meta = std::fs::metadata(&path).ok()?;
        self.by_inode.get(&(meta.dev(), meta.ino())).copied()
    }
}

#[cfg(test)]
mod tests;
