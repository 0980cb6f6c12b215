//! Hosts with a mount each, over one backing directory.

use mainstay_lab::namespace::Namespace;
use mainstay_lab::storage::{Mount, MountSpec, Observer, Storage, Write, available};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Far longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Whether the tests cannot run here; says so.
pub fn skipped() -> bool {
    let why = available().err().or_else(|| Namespace::make().err());
    if let Some(why) = &why {
        eprintln!("SKIPPED: {}", why.one_line());
    }
    why.is_some()
}

/// Waits until something is so.
pub fn comes_true(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never so: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// A write that the observer saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub host: String,
    pub path: PathBuf,
    pub offset: u64,
    pub data: Vec<u8>,
}

#[derive(Default)]
pub struct Log(Mutex<Vec<Seen>>);

impl Observer for Log {
    fn wrote(&self, write: &Write<'_>) {
        assert_eq!(write.datastore, "ds-1");
        self.0.lock().unwrap().push(Seen {
            host: write.host.into(),
            path: write.path.into(),
            offset: write.offset,
            data: write.data.into(),
        });
    }
}

impl Log {
    pub fn all(&self) -> Vec<Seen> {
        self.0.lock().unwrap().clone()
    }
}

/// One datastore and its hosts.
pub struct Lab {
    dir: tempfile::TempDir,
    pub log: Arc<Log>,
    pub storage: Storage,
}

impl Lab {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("ds-1")).unwrap();
        let log = Arc::new(Log::default());
        let storage = Storage::new(log.clone());
        Self { dir, log, storage }
    }

    /// What the storage really holds.
    pub fn backing(&self, name: &str) -> PathBuf {
        self.dir.path().join("ds-1").join(name)
    }

    pub fn spec(&self, host: &str) -> MountSpec {
        let at = self.dir.path().join(host);
        if !at.exists() {
            std::fs::create_dir(&at).unwrap();
        }
        MountSpec {
            host: host.into(),
            datastore: "ds-1".into(),
            backing: self.dir.path().join("ds-1"),
            seen: None,
            at,
            image_locks: true,
            write_through: false,
            fenced: true,
        }
    }

    pub fn host(&self, name: &str) -> Host {
        self.host_by(&self.spec(name))
    }

    pub fn host_by(&self, spec: &MountSpec) -> Host {
        let ns = Arc::new(Namespace::make().unwrap());
        let mount = self.storage.mount(spec, &ns).unwrap();
        Host {
            ns,
            at: spec.at.clone(),
            mount: Some(mount),
        }
    }
}

/// A host with its mount.
pub struct Host {
    pub ns: Arc<Namespace>,
    pub at: PathBuf,
    pub mount: Option<Mount>,
}

impl Host {
    pub fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    /// Does something on the host and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.ns.inside(work).unwrap()
    }

    /// Starts something on the host.
    pub fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let ns = self.ns.clone();
        std::thread::spawn(move || ns.inside(work).unwrap())
    }

    pub fn spawn(&self, command: &mut Command) -> Child {
        self.run(|| command.spawn()).unwrap()
    }

    /// Starts something that will hang, and waits until it does.
    pub fn hang<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let before = self.mount().waiting();
        let started = self.start(work);
        comes_true("the operation hangs", || self.mount().waiting() != before);
        assert!(!started.is_finished());
        started
    }

    /// Like [`Host::open`], of a file that was there before.
    pub fn open_made(&self, name: &str) -> File {
        drop(self.open(name));
        self.open(name)
    }

    pub fn open(&self, name: &str) -> File {
        let path = self.path(name);
        self.run(|| open(&path)).unwrap()
    }
}

/// Opens for reading and writing past caches, and makes what is missing.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(nix::libc::O_DIRECT | nix::libc::O_DSYNC)
        .open(path)
}

pub fn number<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap(),
    }
}
