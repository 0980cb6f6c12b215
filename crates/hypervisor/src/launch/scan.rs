//! Finds guests without a record in the process table, by their environment.
//!
//! Each look reads the environment of every process of the machine. When a hundred VMs are started at once, each
//! start asks; so those that ask while a look goes on wait for the next one, and share it. Nobody is given what a
//! look found that had begun before the question.

use super::{ENV_CGROUP, ENV_DRIVER, ENV_GENERATION, ENV_MEMORY, ENV_RUN_DIR, ENV_VM, Record};
use crate::cgroup;
use crate::process::Process;
use nix::unistd::getuid;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What a look is for: driver, run directory, boot.
type Key = (String, PathBuf, String);

/// The looks of this process.
static LOOKS: Looks<Key, Record> = Looks::new();

/// Processes of ours whose environment says that they are guests of this run directory.
pub(super) fn unrecorded(driver: &str, run_dir: &Path, boot_id: &str) -> Vec<Record> {
    let key = (driver.to_owned(), run_dir.to_owned(), boot_id.to_owned());
    LOOKS.share(key, |(driver, run_dir, boot_id)| {
        look(driver, run_dir, boot_id)
    })
}

/// Looks that are shared by those who ask at one time.
struct Looks<K, T> {
    state: Mutex<BTreeMap<K, State<T>>>,
    changed: Condvar,
}

/// The looks of one kind, counted from 1.
struct State<T> {
    begun: u64,
    ended: u64,
    /// The last one ended with this.
    found: Vec<T>,
    /// Who waits for one.
    asking: usize,
}

impl<K: Ord + Clone, T: Clone> Looks<K, T> {
    const fn new() -> Self {
        Self {
            state: Mutex::new(BTreeMap::new()),
            changed: Condvar::new(),
        }
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<K, State<T>>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a look found that began after this call.
    fn share(&self, key: K, look: impl Fn(&K) -> Vec<T>) -> Vec<T> {
        let mut all = self.locked();
        let state = all.entry(key.clone()).or_insert_with(|| State {
            begun: 0,
            ended: 0,
            found: Vec::new(),
            asking: 0,
        });
        let needed = state.begun + 1;
        state.asking += 1;
        loop {
            let Some(state) = all.get_mut(&key) else {
                return look(&key);
            };
            if state.ended >= needed {
                let found = state.found.clone();
                state.asking -= 1;
                // Nobody needs them any more.
                if state.asking == 0 && state.begun == state.ended {
                    all.remove(&key);
                }
                return found;
            }
            if state.begun > state.ended {
                let woken = self.changed.wait(all);
                all = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.begun += 1;
            let number = state.begun;
            drop(all);
            let found = look(&key);
            all = self.locked();
            if let Some(state) = all.get_mut(&key) {
                state.ended = number;
                state.found = found;
            }
            self.changed.notify_all();
        }
    }
}

fn look(driver: &str, run_dir: &Path, boot_id: &str) -> Vec<Record> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let guest = |pid: i32| {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        if fs::metadata(&proc).ok()?.uid() != getuid().as_raw() {
            return None;
        }
        let process = Process::of_pid(pid).ok()?;
        let environment = fs::read(proc.join("environ")).ok()?;
        let value = |name: &str| {
            let mut entries = environment.split(|byte| *byte == 0);
            entries.find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        };
        if value(ENV_DRIVER)? != driver.as_bytes()
            || value(ENV_RUN_DIR)? != run_dir.as_os_str().as_encoded_bytes()
        {
            return None;
        }
        let text = |name| Some(std::str::from_utf8(value(name)?).ok()?.to_owned());
        let cgroup = PathBuf::from(text(ENV_CGROUP)?);
        // Earlier versions made none.
        let memory = text(ENV_MEMORY).map(PathBuf::from);
        Some(Record {
            driver: driver.to_owned(),
            vm: text(ENV_VM)?,
            generation: text(ENV_GENERATION)?.parse().ok()?,
            boot_id: boot_id.to_owned(),
            run_dir: run_dir.to_owned(),
            process: Process {
                cgroup: cgroup::lists(&cgroup, pid).then_some(cgroup),
                ..process
            },
            memory: memory.filter(|dir| cgroup::lists(dir, pid)),
        })
    };
    pids.filter_map(guest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Barrier};

    #[test]
    fn nobody_is_given_an_old_look_and_those_who_wait_share_one() {
        const ASKING: usize = 8;
        let looks: Arc<Looks<u8, usize>> = Arc::new(Looks::new());
        let count = Arc::new(AtomicUsize::new(0));
        let (entered, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let first = {
            let (looks, count) = (Arc::clone(&looks), Arc::clone(&count));
            let (entered, go_on) = (Arc::clone(&entered), Arc::clone(&go_on));
            std::thread::spawn(move || {
                looks.share(1, |_| {
                    entered.wait();
                    go_on.wait();
                    vec![count.fetch_add(1, Ordering::SeqCst)]
                })
            })
        };
        entered.wait();
        let later: Vec<_> = (0..ASKING)
            .map(|_| {
                let (looks, count) = (Arc::clone(&looks), Arc::clone(&count));
                std::thread::spawn(move || {
                    looks.share(1, |_| vec![count.fetch_add(1, Ordering::SeqCst)])
                })
            })
            .collect();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let asking = || looks.locked().get(&1).map_or(0, |s| s.asking);
        while asking() <= ASKING && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        go_on.wait();
        assert_eq!(first.join().expect("first"), [0]);
        for thread in later {
            assert_eq!(
                thread.join().expect("later"),
                [1],
                "one look for all of them"
            );
        }
        assert_eq!(looks.share(1, |_| vec![7]), [7]);
        assert!(looks.locked().is_empty());
    }
}
