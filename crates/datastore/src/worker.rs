//! The threads of one datastore: heartbeats on one, everything else on another, so that a slow list
//! never delays a heartbeat and a hung datastore never stops the agent.

use crate::file::FileDatastore;
use mainstay_core::id::OpId;
use mainstay_core::io::{StorageOutcome, StorageRequest};
use mainstay_core::wire::RecordKey;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Operations that may wait for each of a datastore's threads.
pub const QUEUE_LENGTH: usize = 1024;

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
    heartbeats: SyncSender<Box<Job>>,
    rest: SyncSender<Box<Job>>,
}

impl Worker {
    /// Starts the threads. `done` is called on them with each outcome.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start<F>(datastore: Arc<FileDatastore>, done: F) -> io::Result<Self>
    where
        F: Fn(OpId, StorageOutcome) + Clone + Send + 'static,
    {
        let spawn = |what: &str| {
            let (sender, receiver) = sync_channel(QUEUE_LENGTH);
            let (datastore, done) = (Arc::clone(&datastore), done.clone());
            std::thread::Builder::new()
                .name(format!("{what} {}", datastore.id()))
                .spawn(move || run(&datastore, &receiver, &done))?;
            io::Result::Ok(sender)
        };
        Ok(Self {
            heartbeats: spawn("hb")?,
            rest: spawn("io")?,
        })
    }

    /// Queues an operation; never waits.
    ///
    /// # Errors
    /// [`QueueFull`]; then the operation was not performed and never will be.
    pub fn submit(&self, op: OpId, request: StorageRequest) -> Result<(), QueueFull> {
        let heartbeat = matches!(
            request,
            StorageRequest::Renew(..) | StorageRequest::Read(RecordKey::Heartbeat(_))
        );
        let queue = if heartbeat {
            &self.heartbeats
        } else {
            &self.rest
        };
        queue
            .try_send(Box::new(Job { op, request }))
            .map_err(|_| QueueFull)
    }
}

fn run(datastore: &FileDatastore, jobs: &Receiver<Box<Job>>, done: &impl Fn(OpId, StorageOutcome)) {
    while let Ok(job) = jobs.recv() {
        done(job.op, datastore.perform(&job.request));
    }
}
