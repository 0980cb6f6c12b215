//! An agent's shell as small as can be: one of the core's agents in real time, over real datastores, each with a thread
//! of its own. It has no network and no VMs; its isolation address always answers, so it is elected and owns datastores.

use crate::cluster::{CLUSTER, host};
use mainstay_core::config::{ClusterConfig, DatastoreKind};
use mainstay_core::id::{BootId, DatastoreId, InstanceId, OpId};
use mainstay_core::io::{
    Durable, GuardOutcome, HypervisorOutcome, Input, Output, PingOutcome, PingTarget,
    StorageOutcome, StorageRequest, StorageValue,
};
use mainstay_core::time::Instant as CoreInstant;
use mainstay_core::wire::RecordKey;
use mainstay_core::{Agent, Identity};
use mainstay_datastore::{Datastore, Here};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Longest wait, so that an agent ends soon after it is told to.
const LOOK: Duration = Duration::from_millis(20);
/// What an agent's clock shows at its start: a machine that has been up for a while.
const UP: Duration = Duration::from_secs(1000);

/// The hosts' datastores, and what the agents know of them.
pub(crate) struct Places {
    pub(crate) kind: DatastoreKind,
    pub(crate) config: ClusterConfig,
    pub(crate) paths: BTreeMap<DatastoreId, PathBuf>,
    /// Where hosts keep their own files.
    pub(crate) runs: PathBuf,
}

impl Places {
    /// Opens a datastore as an agent of that host does.
    pub(crate) fn open(&self, n: u32, id: &DatastoreId, path: &Path) -> Result<Datastore, String> {
        let host = host(n)?;
        let run_dir = self.runs.join(host.as_str());
        std::fs::create_dir_all(&run_dir).map_err(|e| e.to_string())?;
        let here = Here {
            host,
            boot: boot(n),
            run_dir,
        };
        Datastore::open(self.kind, path, CLUSTER, id, &here).map_err(|e| e.to_string())
    }
}

fn boot(n: u32) -> BootId {
    BootId(u64::from(100 + n))
}

/// What is seen of the agent of a host.
pub(crate) enum Saw {
    /// It has read the newest generation of a datastore's owner lock.
    Lock(u32, DatastoreId),
    /// It has read the other's heartbeat, at that time.
    Heartbeat(u32, DatastoreId, Vec<u8>, Instant),
    /// It has won a datastore's owner lock: its swap is decided, and it goes on to the list that the lock guards.
    Won(u32, DatastoreId, Instant),
    /// It cannot go on.
    Failed(String),
}

struct Done {
    op: OpId,
    datastore: DatastoreId,
    request: StorageRequest,
    outcome: StorageOutcome,
    at: Instant,
}

struct Shell<'a> {
    n: u32,
    agent: Agent,
    begun: Instant,
    queues: BTreeMap<DatastoreId, Sender<(OpId, StorageRequest)>>,
    /// Answers that need nobody.
    answers: VecDeque<Input>,
    saw: &'a Sender<Saw>,
}

/// Runs the agent of host `n` until it is over. It ends as a host does that loses its power: nothing is given back.
pub(crate) fn run(n: u32, places: &Places, saw: &Sender<Saw>, over: &AtomicBool) {
    if let Err(why) = serve(n, places, saw, over) {
        let _ = saw.send(Saw::Failed(format!("host {n}: {why}")));
    }
}

fn serve(n: u32, places: &Places, saw: &Sender<Saw>, over: &AtomicBool) -> Result<(), String> {
    let identity = Identity {
        host: host(n)?,
        boot: boot(n),
        instance: InstanceId(u64::from(n)),
        seed: u64::from(n),
    };
    std::thread::scope(|scope| {
        let (done, inbox) = channel();
        let mut queues = BTreeMap::new();
        for (id, path) in &places.paths {
            let store = places.open(n, id, path)?;
            let (queue, work) = channel::<(OpId, StorageRequest)>();
            let done = done.clone();
            scope.spawn(move || {
                for (op, request) in work {
                    let outcome = store.perform(&request);
                    let answered = Done {
                        op,
                        datastore: id.clone(),
                        request,
                        outcome,
                        at: Instant::now(),
                    };
                    // Nobody waits for it: the agent is dead.
                    if done.send(answered).is_err() {
                        return;
                    }
                }
            });
            queues.insert(id.clone(), queue);
        }
        let config = places.config.clone();
        let start = CoreInstant::ZERO + UP;
        let mut agent = Agent::new(identity, config, Durable::default(), Vec::new(), start)
            .map_err(|e| e.to_string())?;
        agent.set_isolation_addresses(vec!["gateway".to_owned()]);
        let shell = Shell {
            n,
            agent,
            begun: Instant::now(),
            queues,
            answers: VecDeque::new(),
            saw,
        };
        shell.run(&inbox, over)
    })
}

impl Shell<'_> {
    fn now(&self) -> CoreInstant {
        CoreInstant::ZERO + UP + self.begun.elapsed()
    }

    fn run(mut self, inbox: &Receiver<Done>, over: &AtomicBool) -> Result<(), String> {
        self.drain()?;
        while !over.load(Ordering::SeqCst) {
            let due = self.agent.poll_timeout();
            let wait = due.map_or(LOOK, |at| at.since(self.now()).min(LOOK));
            match inbox.recv_timeout(wait) {
                Ok(done) => {
                    self.tell(&done);
                    self.take(Input::Storage(done.op, done.outcome))?;
                }
                Err(RecvTimeoutError::Timeout) => {
                    if due.is_some_and(|at| at <= self.now()) {
                        self.take(Input::Timeout)?;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err("its datastores are gone".to_owned());
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, input: Input) -> Result<(), String> {
        let mut next = Some(input);
        while let Some(input) = next {
            let now = self.now();
            self.agent.handle(now, input);
            self.drain()?;
            next = self.answers.pop_front();
        }
        Ok(())
    }

    /// What an operation shows to the benchmark.
    fn tell(&self, done: &Done) {
        let StorageOutcome::Ok(StorageValue::Bytes(bytes)) = &done.outcome else {
            return;
        };
        let datastore = done.datastore.clone();
        let saw = match &done.request {
            StorageRequest::Read(RecordKey::OwnerLock(_)) => Saw::Lock(self.n, datastore),
            StorageRequest::Read(RecordKey::Heartbeat(of)) if host(self.n).as_ref() != Ok(of) => {
                Saw::Heartbeat(self.n, datastore, bytes.clone(), done.at)
            }
            _ => return,
        };
        let _ = self.saw.send(saw);
    }

    fn drain(&mut self) -> Result<(), String> {
        while let Some(output) = self.agent.poll_output() {
            match output {
                Output::Storage(op, datastore, request) => {
                    // An owner's first step after its swap was won.
                    if request == StorageRequest::ListProtected {
                        let won = Saw::Won(self.n, datastore.clone(), Instant::now());
                        let _ = self.saw.send(won);
                    }
                    let queue = self.queues.get(&datastore).ok_or("an unknown datastore")?;
                    queue
                        .send((op, request))
                        .map_err(|_| "a datastore's thread ended")?;
                }
                Output::Ping(op, target) => {
                    let outcome = match target {
                        PingTarget::Isolation(_) => PingOutcome::Answered,
                        PingTarget::Host(_) => PingOutcome::NoAnswer,
                    };
                    self.answers.push_back(Input::Pinged(op, outcome));
                }
                Output::Persist(op, _) | Output::PersistConfig(op, _) => {
                    self.answers.push_back(Input::Persisted(op, true));
                }
                // There are no VMs, no network and no devices.
                Output::Guard(op, _) => {
                    self.answers
                        .push_back(Input::Guard(op, GuardOutcome::NoGuard));
                }
                Output::Hypervisor(op, _) => {
                    let outcome = HypervisorOutcome::Failed("there is none".to_owned());
                    self.answers.push_back(Input::Hypervisor(op, outcome));
                }
                Output::Datagram { .. }
                | Output::Stream { .. }
                | Output::Fence(..)
                | Output::Proposed(..)
                | Output::Drill(..)
                | Output::Event(_) => {}
            }
        }
        Ok(())
    }
}
