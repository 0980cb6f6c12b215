//! This host's datastores: opened on threads of their own and tried again while they are missing, and
//! their workers.

use crate::clock;
use crate::config::image_root;
use crate::logging;
use mainstay_core::config::{ClusterConfig, DatastoreKind};
use mainstay_core::id::{DatastoreId, OpId};
use mainstay_core::io::{Input, IoFault, StorageOutcome, StorageRequest};
use mainstay_core::time::Instant;
use mainstay_datastore::{Datastore, Here, Worker};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Between two tries to open a datastore.
const RETRY: Duration = Duration::from_secs(2);

/// What the paths of images on each datastore are relative to.
pub(crate) fn image_roots(
    places: &BTreeMap<DatastoreId, PathBuf>,
    cluster: &ClusterConfig,
) -> BTreeMap<DatastoreId, PathBuf> {
    let root = |(id, place): (&DatastoreId, &PathBuf)| {
        let spec = cluster.datastores.get(id);
        let kind = spec.map(|spec| spec.kind).unwrap_or_default();
        (id.clone(), image_root(place, kind).to_owned())
    };
    places.iter().map(root).collect()
}

/// What became of a try to open a datastore.
pub(crate) struct Opened {
    id: DatastoreId,
    result: Result<(Arc<Datastore>, Worker), String>,
}

#[derive(Default)]
struct One {
    open: Option<(Arc<Datastore>, Worker)>,
    problem: Option<String>,
}

/// All datastores of this host.
pub(crate) struct Datastores {
    all: BTreeMap<DatastoreId, One>,
    /// What waits for an answer, since when.
    waiting: BTreeMap<OpId, (DatastoreId, Instant)>,
    hung_after: Duration,
    first: Receiver<Opened>,
    issues: Vec<String>,
}

impl Datastores {
    /// Starts to open all of them.
    pub(crate) fn start<D, O>(
        mounts: &BTreeMap<DatastoreId, (DatastoreKind, PathBuf)>,
        cluster: u64,
        here: &Here,
        hung_after: Duration,
        done: D,
        on_opened: O,
    ) -> io::Result<Self>
    where
        D: Fn(OpId, StorageOutcome) + Clone + Send + Sync + 'static,
        O: Fn(Opened) + Clone + Send + 'static,
    {
        let (to_start, first) = channel();
        let mut all = BTreeMap::new();
        for (id, (kind, mount)) in mounts {
            let (id, kind, mount, here) = (id.clone(), *kind, mount.clone(), here.clone());
            all.insert(id.clone(), One::default());
            let (done, on_opened, to_start) = (done.clone(), on_opened.clone(), to_start.clone());
            std::thread::Builder::new()
                .name(format!("open {id}"))
                .spawn(move || {
                    let mut first = true;
                    loop {
                        let result = Datastore::open(kind, &mount, cluster, &id, &here)
                            .map_err(|e| logging::chain(&e))
                            .and_then(|d| {
                                let datastore = Arc::new(d);
                                let worker = Worker::start(Arc::clone(&datastore), done.clone());
                                worker.map(|w| (datastore, w)).map_err(|e| e.to_string())
                            });
                        let ended = result.is_ok();
                        let opened = Opened {
                            id: id.clone(),
                            result,
                        };
                        // The start waits for the first answers; when it is over, the loop takes them.
                        let rest = if first {
                            to_start.send(opened).err().map(|e| e.0)
                        } else {
                            Some(opened)
                        };
                        if let Some(opened) = rest {
                            on_opened(opened);
                        }
                        if ended {
                            return;
                        }
                        first = false;
                        clock::pause(RETRY);
                    }
                })?;
        }
        Ok(Self {
            all,
            waiting: BTreeMap::new(),
            hung_after,
            first,
            issues: Vec::new(),
        })
    }

    /// Waits for the first answers, at most `patience`.
    pub(crate) fn wait(&mut self, patience: Duration) {
        let begun = std::time::Instant::now();
        for _ in 0..self.all.len() {
            let left = patience.saturating_sub(begun.elapsed());
            let Ok(opened) = self.first.recv_timeout(left) else {
                return;
            };
            self.opened(opened);
        }
    }

    /// Takes a datastore in, or what is wrong with it.
    pub(crate) fn opened(&mut self, opened: Opened) {
        let Some(one) = self.all.get_mut(&opened.id) else {
            return;
        };
        match opened.result {
            Ok(open) => {
                tracing::info!(datastore = %opened.id, "open");
                *one = One {
                    open: Some(open),
                    problem: None,
                };
            }
            Err(problem) => one.problem = Some(problem),
        }
    }

    /// Queues an operation.
    ///
    /// # Errors
    /// Its outcome, when it will never be performed.
    pub(crate) fn submit(
        &mut self,
        op: OpId,
        datastore: &DatastoreId,
        request: StorageRequest,
    ) -> Result<(), StorageOutcome> {
        while let Ok(late) = self.first.try_recv() {
            self.opened(late);
        }
        let open = self.all.get(datastore).and_then(|one| one.open.as_ref());
        let (_, worker) = open.ok_or(StorageOutcome::NotDone(IoFault::Foreign))?;
        worker
            .submit(op, request)
            .map_err(|_| StorageOutcome::NotDone(IoFault::TimedOut))?;
        self.waiting.insert(op, (datastore.clone(), clock::now()));
        Ok(())
    }

    /// From now on an operation without an answer hangs after that time.
    pub(crate) fn set_hung_after(&mut self, limit: Duration) {
        self.hung_after = limit;
    }

    /// Notes an answer.
    pub(crate) fn completed(&mut self, input: &Input) {
        if let Input::Storage(op, _) = input {
            self.waiting.remove(op);
        }
    }

    /// What is wrong now, when that is something else than the last time.
    pub(crate) fn changed_issues(&mut self) -> Option<Vec<String>> {
        while let Ok(late) = self.first.try_recv() {
            self.opened(late);
        }
        let now = clock::now();
        let mut issues = Vec::new();
        for (id, one) in &self.all {
            match &one.open {
                None => issues.push(one.problem.clone().unwrap_or_else(|| {
                    format!("datastore \"{id}\" does not answer since the agent started; check its server and path")
                })),
                Some((datastore, worker)) => {
                    issues.extend(datastore.weakness());
                    for weakness in worker.weaknesses() {
                        // The right that is missing is so for all of them.
                        if !issues.contains(&weakness) {
                            issues.push(weakness);
                        }
                    }
                }
            }
            let hangs = |(of, since): &(DatastoreId, Instant)| {
                of == id && now.since(*since) > self.hung_after
            };
            if self.waiting.values().any(hangs) {
                issues.push(format!(
                    "datastore \"{id}\" hangs: an operation has no answer yet; check its server and path"
                ));
            }
        }
        (issues != self.issues).then(|| {
            self.issues.clone_from(&issues);
            issues
        })
    }
}
