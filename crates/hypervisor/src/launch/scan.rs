//! Finds guests without a record in the process table, by their environment.
//!
//! Each look reads the environment of every process of the machine. When a hundred VMs are started at once, each
//! start asks; so those that ask while a look goes on wait for the next one, and share it. Nobody is given what a
//! look found that had begun before the question.
//!
//! The kernel keeps a process's environment from everybody while the process changes its program, and one that
//! hangs in a disk then (it closes its files there) would stop every start on the host. So each look works on a thread of
//! its own, and goes on with the next process when one does not answer. Nothing is lost by that: a guest executes
//! nothing in that state, and waits for `resume` after it.

use super::{ENV_CGROUP, ENV_DRIVER, ENV_GENERATION, ENV_MEMORY, ENV_RUN_DIR, ENV_VM, Record};
use crate::cgroup;
use crate::process::Process;
use nix::unistd::{Pid, getsid, gettid, getuid};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A process answers within microseconds, on a machine without a free processor within some hundredths of a second.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// What a look is for: driver, run directory, boot.
type Key = (String, PathBuf, String);

/// Processes that a thread of an earlier look still waits for: they are not asked again before that ends.
static WAITED_FOR: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

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
    let (driver, run_dir, boot_id) = (driver.to_owned(), run_dir.to_owned(), boot_id.to_owned());
    let ask = move |pid| guest(pid, &driver, &run_dir, &boot_id);
    let (mut pids, waited_for): (VecDeque<i32>, _) = (pids.collect(), waited_for().clone());
    pids.retain(|pid| !waited_for.contains(pid));
    let (found, silent) = ask_each(pids, ANSWERS_WITHIN, hangs_in_kernel, ask);
    for pid in silent {
        tracing::warn!(
            pid,
            "its environment cannot be read, it hangs while it changes its program; if it is a guest of this host without a record, it is not found before that ends"
        );
    }
    found
}

/// The guest that a process is.
fn guest(pid: i32, driver: &str, run_dir: &Path, boot_id: &str) -> Option<Record> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    if fs::metadata(&proc).ok()?.uid() != getuid().as_raw() {
        return None;
    }
    // A guest leads a session: the others need not be asked.
    if getsid(Some(Pid::from_raw(pid))).ok()?.as_raw() != pid {
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
}

/// Whether a thread of this process waits in the kernel for what no signal ends but a kill. One that has only had
/// no processor does not.
fn hangs_in_kernel(thread: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
    let stat = stat.unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    state.is_some_and(|rest| rest.starts_with('D'))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn waited_for() -> MutexGuard<'static, BTreeSet<i32>> {
    locked(&WAITED_FOR)
}

/// Asks a question of each process. Gives what was answered, and who said nothing for so long while the thread that
/// asked hung: there it waits on.
fn ask_each<T: Send + 'static>(
    pids: VecDeque<i32>,
    patience: Duration,
    hangs: impl Fn(Pid) -> bool,
    ask: impl Fn(i32) -> Option<T> + Send + Sync + 'static,
) -> (Vec<T>, Vec<i32>) {
    let (ask, left) = (Arc::new(ask), Arc::new(Mutex::new(pids)));
    let mut found = Vec::new();
    let mut silent = Vec::new();
    loop {
        let (answer, answers) = channel();
        let (ask, mine) = (Arc::clone(&ask), Arc::clone(&left));
        let next = move || locked(&mine).pop_front();
        let asking = Arc::new(Mutex::new(None));
        let now_asking = Arc::clone(&asking);
        let work = move || {
            let me = gettid();
            while let Some(pid) = next() {
                // Whoever no longer listens has gone on with another thread.
                if answer.send(Word::Asks(me, pid)).is_err() {
                    return;
                }
                *locked(&now_asking) = Some(pid);
                let heard = ask(pid);
                let mut now_asking = locked(&now_asking);
                waited_for().remove(&pid);
                *now_asking = None;
                drop(now_asking);
                if answer.send(Word::Heard(heard)).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("guests".into())
            .spawn(work);
        if let Err(error) = thread {
            tracing::warn!(%error, "no thread to look for guests without a record");
            return (found, silent);
        }
        let mut asked = None;
        loop {
            match (answers.recv_timeout(patience), asked) {
                (Ok(Word::Asks(thread, pid)), _) => asked = Some((thread, pid)),
                (Ok(Word::Heard(answer)), _) => found.extend(answer),
                (Err(RecvTimeoutError::Disconnected), _) => return (found, silent),
                (Err(RecvTimeoutError::Timeout), Some((thread, pid))) if hangs(thread) => {
                    let asking = locked(&asking);
                    // It may have answered just now.
                    if *asking == Some(pid) {
                        waited_for().insert(pid);
                        silent.push(pid);
                        break;
                    }
                }
                (Err(RecvTimeoutError::Timeout), _) => {}
            }
        }
    }
}

/// What a thread that asks says.
enum Word<T> {
    /// It is about to ask that process.
    Asks(Pid, i32),
    /// It has been answered.
    Heard(Option<T>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Barrier};

    #[test]
    fn one_that_does_not_answer_holds_up_nobody_else() {
        let released = Arc::new(Barrier::new(2));
        let asked = Arc::new(AtomicUsize::new(0));
        let (mine, theirs) = (Arc::clone(&released), Arc::clone(&asked));
        let ask = move |pid: i32| {
            theirs.store(pid.unsigned_abs() as usize, Ordering::SeqCst);
            if pid == 4 {
                mine.wait();
            }
            (pid == 4 || pid % 2 == 1).then_some(pid)
        };
        let hangs = |_| asked.load(Ordering::SeqCst) == 4;
        let patience = Duration::from_millis(5);
        let (found, silent) = ask_each((1..=9).collect(), patience, hangs, ask);
        assert_eq!(silent, [4]);
        assert_eq!(found, [1, 3, 5, 7, 9]);
        assert!(waited_for().contains(&4), "it is not asked again");
        released.wait();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while waited_for().contains(&4) && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(!waited_for().contains(&4), "it has answered");
    }

    #[test]
    fn a_thread_hangs_only_where_no_signal_reaches_it() {
        assert!(!hangs_in_kernel(gettid()), "this one runs");
        assert!(!hangs_in_kernel(Pid::from_raw(i32::MAX)), "there is none");
    }

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
