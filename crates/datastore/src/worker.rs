//! The threads of one datastore: one renews this host's heartbeat, others read heartbeats, others do the rest.
//! So neither a slow list nor slow looks at other hosts delay the heartbeat, what is slow is slow side by side,
//! and a hung datastore never stops the agent.
//!
//! ```text
//! submit -> renewals        1 thread: they take effect in their order
//!        -> heartbeats      1 thread, up to 4 while all are busy
//!        -> everything else 1 thread, up to 8
//! ```
//! Nothing but renewals has an order: whoever needs one waits for the answer.

use crate::priority::{self, Got};
use crate::store::Datastore;
use mainstay_core::id::OpId;
use mainstay_core::io::{StorageOutcome, StorageRequest};
use mainstay_core::wire::RecordKey;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Operations that may wait for each kind of a datastore's threads.
pub const QUEUE_LENGTH: usize = 1024;
/// Threads that read heartbeats, at most: with operations that take seconds, a primary still sees each host's
/// in time to tell it from one that is dead.
const HEARTBEAT_READERS: usize = 4;
/// While what is under way is quicker than this, one thread reads them all, twice a second and for ever.
const HEARTBEAT_PATIENCE: Duration = Duration::from_millis(20);
/// Threads for locks, lists and probes, at most.
const OTHERS: usize = 8;

/// The queue is full: the datastore hangs. The operation was not performed and never will be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the datastore hangs: {QUEUE_LENGTH} operations wait for it")]
pub struct QueueFull;

struct Job {
    op: OpId,
    request: StorageRequest,
}

/// A datastore's threads. An operation that hangs completes never; dropping the worker leaves a
/// hanging thread behind, because nothing can end it.
#[derive(Debug)]
pub struct Worker {
    renewals: Pool,
    heartbeats: Pool,
    rest: Pool,
    /// How heartbeats stand against guests' I/O.
    weaknesses: Arc<OnceLock<Vec<String>>>,
}

impl Worker {
    /// Starts the threads. `done` is called on them with each outcome.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start<F>(datastore: Arc<Datastore>, done: F) -> io::Result<Self>
    where
        F: Fn(OpId, StorageOutcome) + Clone + Send + Sync + 'static,
    {
        let looked_at = Arc::clone(&datastore);
        let perform: Perform = Arc::new(move |job| done(job.op, datastore.perform(&job.request)));
        let start = |name, limit, patience, begin: Begin| {
            Pool::start(name, limit, patience, begin, &perform)
        };
        let weaknesses = Arc::new(OnceLock::new());
        let found = Arc::clone(&weaknesses);
        // On the thread itself, which may hang in the datastore as ever.
        let renewing: Begin = Arc::new(move || {
            let got = priority::raise();
            let _ = found.set(priority_weaknesses(&looked_at, got));
        });
        let reading: Begin = Arc::new(|| _ = priority::raise());
        Ok(Self {
            renewals: start("hb", 1, Duration::ZERO, renewing)?,
            heartbeats: start("hb read", HEARTBEAT_READERS, HEARTBEAT_PATIENCE, reading)?,
            rest: start("io", OTHERS, Duration::ZERO, Arc::new(|| ()))?,
            weaknesses,
        })
    }

    /// What keeps heartbeats from going before guests' I/O, with the remedy; nothing until its thread has looked.
    #[must_use]
    pub fn weaknesses(&self) -> Vec<String> {
        self.weaknesses.get().cloned().unwrap_or_default()
    }

    /// Queues an operation; never waits.
    ///
    /// # Errors
    /// [`QueueFull`]; then the operation was not performed and never will be.
    pub fn submit(&self, op: OpId, request: StorageRequest) -> Result<(), QueueFull> {
        let pool = match request {
            StorageRequest::Renew(..) => &self.renewals,
            StorageRequest::Read(RecordKey::Heartbeat(_)) => &self.heartbeats,
            _ => &self.rest,
        };
        pool.submit(Job { op, request })
    }
}

/// What is to be said of the priority that the renewing thread got.
fn priority_weaknesses(datastore: &Datastore, got: Got) -> Vec<String> {
    let ignored = datastore.path().and_then(priority::ignored_at);
    let ignored = ignored.map(|(disk, scheduler)| {
        format!(
            "datastore \"{}\": the I/O scheduler \"{scheduler}\" of {disk} does not put heartbeats before guests' \
             disks; under load they may come too late: choose one that does (echo mq-deadline > \
             /sys/block/{disk}/queue/scheduler)",
            datastore.id()
        )
    });
    priority::refusal(got).into_iter().chain(ignored).collect()
}

type Perform = Arc<dyn Fn(&Job) + Send + Sync>;
/// What a thread does before its first job.
type Begin = Arc<dyn Fn() + Send + Sync>;

/// Threads that take from one queue: one that stays, and more as long as there is work for them.
struct Pool(Arc<Crew>);

struct Crew {
    name: &'static str,
    limit: usize,
    /// What is under way for longer than this is slow: another thread takes what waits.
    patience: Duration,
    begin: Begin,
    perform: Perform,
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Default)]
struct Work {
    queue: VecDeque<Job>,
    threads: usize,
    /// When each job that is under way began.
    began: Vec<Instant>,
    closed: bool,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pool").field(&self.0.name).finish()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.0.work().closed = true;
        self.0.changed.notify_all();
    }
}

impl Pool {
    fn start(
        name: &'static str,
        limit: usize,
        patience: Duration,
        begin: Begin,
        perform: &Perform,
    ) -> io::Result<Self> {
        let crew = Arc::new(Crew {
            name,
            limit,
            patience,
            begin,
            perform: Arc::clone(perform),
            work: Mutex::default(),
            changed: Condvar::new(),
        });
        crew.work().threads = 1;
        crew.hire(Crew::stay)?;
        Ok(Self(crew))
    }

    fn submit(&self, job: Job) -> Result<(), QueueFull> {
        let crew = &self.0;
        let mut work = crew.work();
        if work.queue.len() >= QUEUE_LENGTH {
            return Err(QueueFull);
        }
        work.queue.push_back(job);
        let waits = work.queue.len() + work.began.len() > work.threads;
        let slow = work.began.iter().any(|at| at.elapsed() >= crew.patience);
        if waits && slow && work.threads < crew.limit {
            work.threads += 1;
            drop(work);
            if let Err(error) = crew.hire(Crew::help) {
                tracing::warn!(%error, "no further thread for a datastore; its operations wait for each other");
                crew.work().threads -= 1;
            }
            return Ok(());
        }
        drop(work);
        crew.changed.notify_one();
        Ok(())
    }
}

impl Crew {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hire(self: &Arc<Self>, as_what: fn(&Self)) -> io::Result<()> {
        let crew = Arc::clone(self);
        std::thread::Builder::new()
            .name(self.name.to_owned())
            .spawn(move || {
                (crew.begin)();
                as_what(&crew);
            })
            .map(drop)
    }

    /// Works until the pool is dropped.
    fn stay(&self) {
        let mut work = self.work();
        while !work.closed {
            work = match work.queue.pop_front() {
                Some(job) => self.perform(work, &job),
                None => self
                    .changed
                    .wait(work)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Works until nothing is left to do.
    fn help(&self) {
        let mut work = self.work();
        while let Some(job) = work.queue.pop_front() {
            work = self.perform(work, &job);
        }
        work.threads -= 1;
    }

    fn perform<'a>(&'a self, mut work: MutexGuard<'a, Work>, job: &Job) -> MutexGuard<'a, Work> {
        let began = Instant::now();
        work.began.push(began);
        drop(work);
        (self.perform)(job);
        let mut work = self.work();
        if let Some(mine) = work.began.iter().position(|at| *at == began) {
            work.began.swap_remove(mine);
        }
        work
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_core::id::VmId;
    use std::sync::mpsc::channel;

    fn job(n: u64) -> Job {
        let vm = VmId::new("vm-1").expect("id");
        Job {
            op: OpId(n),
            request: StorageRequest::ListVmLock(vm),
        }
    }

    fn at_once() -> Begin {
        Arc::new(|| ())
    }

    /// Holds each job until it is let go, by its number.
    #[derive(Default)]
    struct Held {
        free: Mutex<std::collections::BTreeSet<u64>>,
        changed: Condvar,
    }

    impl Held {
        fn let_go(&self, n: u64) {
            self.free.lock().expect("lock").insert(n);
            self.changed.notify_all();
        }

        fn hold(&self, n: u64) {
            let free = self.free.lock().expect("lock");
            let held = self.changed.wait_while(free, |free| !free.contains(&n));
            drop(held.expect("lock"));
        }
    }

    #[test]
    fn jobs_that_hang_hold_up_no_other_until_all_threads_hang() {
        let held = Arc::new(Held::default());
        let (begun, begins) = channel();
        let holds = Arc::clone(&held);
        let perform: Perform = Arc::new(move |job| {
            begun.send(job.op.0).expect("the test listens");
            holds.hold(job.op.0);
        });
        let pool = Pool::start("test", 3, Duration::ZERO, at_once(), &perform).expect("a thread");
        // The first is under way before the others come.
        pool.submit(job(0)).expect("room");
        assert_eq!(begins.recv(), Ok(0));
        for n in 1..5 {
            pool.submit(job(n)).expect("room");
        }
        let next: std::collections::BTreeSet<u64> = begins.iter().take(2).collect();
        assert_eq!(next, [1, 2].into());
        assert_eq!(pool.0.work().threads, 3);
        assert_eq!(pool.0.work().queue.len(), 2);
        held.let_go(1);
        assert_eq!(begins.recv(), Ok(3), "a thread that is free takes the next");
        held.let_go(3);
        assert_eq!(begins.recv(), Ok(4));
        (0..5).for_each(|n| held.let_go(n));
    }

    #[test]
    fn a_quick_datastore_needs_one_thread() {
        let (done, dones) = channel();
        let perform: Perform = Arc::new(move |job| done.send(job.op.0).expect("listens"));
        let pool = Pool::start("test", 4, Duration::from_secs(600), at_once(), &perform)
            .expect("a thread");
        for n in 0..100 {
            pool.submit(job(n)).expect("room");
        }
        let all: Vec<u64> = dones.iter().take(100).collect();
        assert_eq!(all, (0..100).collect::<Vec<u64>>());
        assert_eq!(pool.0.work().threads, 1);
    }

    #[test]
    fn a_full_queue_is_said_and_what_it_holds_is_done_in_order() {
        let held = Arc::new(Held::default());
        let (done, dones) = channel();
        let holds = Arc::clone(&held);
        let perform: Perform = Arc::new(move |job| {
            holds.hold(0);
            done.send(job.op.0).expect("the test listens");
        });
        let pool = Pool::start("test", 1, Duration::ZERO, at_once(), &perform).expect("a thread");
        let mut taken = 0;
        while pool.submit(job(taken)).is_ok() {
            taken += 1;
        }
        // One may have been taken out of the queue already.
        assert!((QUEUE_LENGTH as u64..=QUEUE_LENGTH as u64 + 1).contains(&taken));
        held.let_go(0);
        let all: Vec<u64> = dones
            .iter()
            .take(usize::try_from(taken).expect("a number"))
            .collect();
        assert_eq!(all, (0..taken).collect::<Vec<u64>>());
    }
}
