//! Carries the core's requests to the hypervisor drivers, on a thread for each VM, and reports when a
//! VM's process is gone.
//!
//! Never here: whether a VM may be started, or a second try that the core did not ask for.

use crate::config::{ClusterFile, DriverKind, VmEntry};
use crate::drivers::Drivers;
use crate::guard_link::GuardLink;
use crate::logging;
use mainstay_core::config::VmSpec;
use mainstay_core::id::{DatastoreId, Generation, OpId, VmId};
use mainstay_core::io::{ExitCause, FoundVm, HypervisorOutcome, HypervisorRequest, Input, IoFault};
use mainstay_hypervisor as hypervisor;
use mainstay_hypervisor::{CgroupPlacement, DiskError, Hypervisor, StartError};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Requests that wait for one VM's thread.
const QUEUE_LENGTH: usize = 16;
/// How long one look at a process lasts; then a kill that is wanted is sent again. Its end is seen at once all the
/// same; each look costs, for each VM.
const LOOK: Duration = Duration::from_secs(5);

const NO_PROCESS: u8 = 0;
const WATCHED: u8 = 1;
const KILL_WANTED: u8 = 2;
const ENDED: u8 = 3;

/// Where inputs for the core go.
pub(crate) type Report = Arc<dyn Fn(Input) + Send + Sync>;

enum Job {
    Prepare(OpId, Box<hypervisor::VmSpec>),
    Resume(OpId),
    Shutdown(OpId),
}

/// What all of a VM's threads share.
#[derive(Clone)]
struct Shared {
    vm: VmId,
    driver: Arc<dyn Hypervisor>,
    state: Arc<AtomicU8>,
    /// Held while a process is made: a kill waits for it.
    making: Arc<Mutex<()>>,
    link: Arc<GuardLink>,
    report: Report,
}

struct Handle {
    shared: Shared,
    jobs: SyncSender<Job>,
}

/// All VMs of this host.
pub(crate) struct Vms {
    drivers: Drivers,
    default: DriverKind,
    entries: BTreeMap<VmId, VmEntry>,
    mounts: BTreeMap<DatastoreId, PathBuf>,
    image_roots: BTreeMap<DatastoreId, PathBuf>,
    run_dir: PathBuf,
    cgroup: CgroupPlacement,
    oom_score_adj: i16,
    link: Arc<GuardLink>,
    report: Report,
    handles: BTreeMap<VmId, Handle>,
}

fn entries(cluster: &ClusterFile) -> BTreeMap<VmId, VmEntry> {
    let vms = cluster.vms.iter();
    vms.map(|v| (v.id.clone(), v.clone())).collect()
}

/// What [`Vms`] needs to know of the configuration.
pub(crate) struct VmsConfig<'a> {
    pub(crate) cluster: &'a ClusterFile,
    pub(crate) default: DriverKind,
    pub(crate) mounts: BTreeMap<DatastoreId, PathBuf>,
    /// What the paths of images begin at, for each datastore.
    pub(crate) image_roots: BTreeMap<DatastoreId, PathBuf>,
    pub(crate) run_dir: PathBuf,
    pub(crate) cgroup: CgroupPlacement,
    /// The guests' score for the OOM killer.
    pub(crate) oom_score_adj: i16,
}

impl Vms {
    pub(crate) fn new(
        config: VmsConfig<'_>,
        drivers: Drivers,
        link: Arc<GuardLink>,
        report: Report,
    ) -> Self {
        Self {
            drivers,
            default: config.default,
            entries: entries(config.cluster),
            mounts: config.mounts,
            image_roots: config.image_roots,
            run_dir: config.run_dir,
            cgroup: config.cgroup,
            oom_score_adj: config.oom_score_adj,
            link,
            report,
            handles: BTreeMap::new(),
        }
    }

    /// VMs were made, or deleted, while the cluster ran.
    pub(crate) fn set_entries(&mut self, cluster: &ClusterFile) {
        self.entries = entries(cluster);
    }

    /// Where each datastore is mounted.
    pub(crate) fn mounts(&self) -> &BTreeMap<DatastoreId, PathBuf> {
        &self.mounts
    }

    /// Finds what an earlier agent left. Also the ends that nobody saw, to be handed in once the core
    /// has begun.
    pub(crate) fn adopt(&mut self) -> (Vec<FoundVm>, Vec<Input>) {
        let mut all = Vec::new();
        let mut ends = Vec::new();
        for driver in self.drivers.values().cloned().collect::<Vec<_>>() {
            for found in driver.find(&self.run_dir) {
                let Ok(vm) = VmId::new(&found.vm) else {
                    continue;
                };
                if found.exit.is_some() && !self.link.is_registered(&vm) {
                    driver.forget(&found.vm);
                    continue;
                }
                let state = self.link.adopt(&vm, &found);
                tracing::info!(%vm, ?state, pid = found.process.pid, gone = found.exit.is_some(), "found");
                all.push(FoundVm {
                    vm: vm.clone(),
                    state,
                });
                let Ok(handle) = self.handle(&vm, Arc::clone(&driver)) else {
                    continue;
                };
                let shared = handle.shared.clone();
                match found.exit {
                    Some(exit) => {
                        shared.state.store(ENDED, Ordering::Release);
                        let cause = cause_of(&exit, self.link.was_killed(&vm));
                        ends.push(Input::VmExited { vm, cause });
                    }
                    None => watch(&shared),
                }
            }
        }
        let found: Vec<VmId> = all.iter().map(|f| f.vm.clone()).collect();
        self.link.forget_others(&found);
        (all, ends)
    }

    /// Performs a request; its completion comes through the report.
    pub(crate) fn perform(&mut self, op: OpId, request: HypervisorRequest) {
        match request {
            HypervisorRequest::Prepare { spec, generation } => match self.spec(&spec, generation) {
                Ok((driver, prepared)) => {
                    self.submit(op, &spec.id, driver, Job::Prepare(op, Box::new(prepared)));
                }
                Err(why) => self.fail(op, why),
            },
            HypervisorRequest::Resume { vm } => self.submit_known(op, &vm, Job::Resume(op)),
            HypervisorRequest::Shutdown { vm } => self.submit_known(op, &vm, Job::Shutdown(op)),
            HypervisorRequest::Kill { vm } => self.kill(op, &vm),
        }
    }

    /// The VM is gone and the core knows: its record goes.
    pub(crate) fn forget(&mut self, vm: &VmId) {
        let Some(handle) = self.handles.get(vm) else {
            return;
        };
        let shared = handle.shared.clone();
        if shared
            .state
            .compare_exchange(ENDED, NO_PROCESS, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            shared.driver.forget(shared.vm.as_str());
        }
    }

    fn fail(&self, op: OpId, why: String) {
        (self.report)(Input::Hypervisor(op, HypervisorOutcome::Failed(why)));
    }

    fn spec(
        &self,
        spec: &VmSpec,
        generation: Generation,
    ) -> Result<(Arc<dyn Hypervisor>, hypervisor::VmSpec), String> {
        let vm = &spec.id;
        let known = self.entries.get(vm);
        let entry = known.filter(|e| !e.image.as_os_str().is_empty()).ok_or_else(|| {
            format!("neither this host's cluster.toml nor the configuration says what image \"{vm}\" has; give all hosts the same file and restart the agent, or make VMs with `mainstay add vm`")
        })?;
        let root = self.image_roots.get(&spec.datastore).ok_or_else(|| {
            format!(
                "agent.toml has no path for datastore \"{}\"",
                spec.datastore
            )
        })?;
        let kind = entry.driver.unwrap_or(self.default);
        let driver = self
            .drivers
            .get(&kind)
            .ok_or_else(|| format!("there is no driver for \"{vm}\""))?;
        let prepared = hypervisor::VmSpec {
            vm: vm.as_str().to_owned(),
            generation: generation.0,
            image: root.join(&entry.image),
            memory_mb: u32::try_from(spec.memory_mb).unwrap_or(u32::MAX),
            options: BTreeMap::new(),
            run_dir: self.run_dir.clone(),
            cgroup: self.cgroup.clone(),
            oom_score_adj: self.oom_score_adj,
        };
        Ok((Arc::clone(driver), prepared))
    }

    fn handle(&mut self, vm: &VmId, driver: Arc<dyn Hypervisor>) -> io::Result<&Handle> {
        if !self.handles.contains_key(vm) {
            let shared = Shared {
                vm: vm.clone(),
                driver,
                state: Arc::new(AtomicU8::new(NO_PROCESS)),
                making: Arc::default(),
                link: Arc::clone(&self.link),
                report: Arc::clone(&self.report),
            };
            let (jobs, queue) = sync_channel(QUEUE_LENGTH);
            let mine = shared.clone();
            std::thread::Builder::new()
                .name(format!("vm {vm}"))
                .spawn(move || run(&mine, &queue))?;
            self.handles.insert(vm.clone(), Handle { shared, jobs });
        }
        self.handles
            .get(vm)
            .ok_or_else(|| io::Error::other("no thread"))
    }

    fn submit(&mut self, op: OpId, vm: &VmId, driver: Arc<dyn Hypervisor>, job: Job) {
        let sent = self
            .handle(vm, driver)
            .map(|h| h.jobs.try_send(job).is_ok());
        if !matches!(sent, Ok(true)) {
            self.fail(
                op,
                format!("the hypervisor's thread for \"{vm}\" is busy or cannot be made"),
            );
        }
    }

    fn submit_known(&mut self, op: OpId, vm: &VmId, job: Job) {
        match self.handles.get(vm).map(|h| Arc::clone(&h.shared.driver)) {
            Some(driver) => self.submit(op, vm, driver, job),
            None => self.fail(op, format!("\"{vm}\" has no process here")),
        }
    }

    /// Killing has a thread of its own each time: one that makes a process may hang.
    fn kill(&self, op: OpId, vm: &VmId) {
        (self.report)(Input::Hypervisor(op, HypervisorOutcome::Done));
        let gone = || {
            (self.report)(Input::VmExited {
                vm: vm.clone(),
                cause: ExitCause::Killed,
            })
        };
        let Some(handle) = self.handles.get(vm) else {
            gone();
            return;
        };
        let shared = handle.shared.clone();
        let started = std::thread::Builder::new()
            .name(format!("kill {vm}"))
            .spawn(move || shared.kill());
        if let Err(error) = started {
            tracing::error!(%vm, %error, "no thread for a kill; killing here");
            handle.shared.kill();
        }
    }
}

impl Shared {
    fn done(&self, op: OpId, outcome: HypervisorOutcome) {
        (self.report)(Input::Hypervisor(op, outcome));
    }

    fn kill(&self) {
        let _made = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        match self
            .state
            .compare_exchange(WATCHED, KILL_WANTED, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) | Err(KILL_WANTED) => {
                if let Err(error) = self.driver.kill(self.vm.as_str()) {
                    tracing::warn!(vm = %self.vm, error = logging::chain(&error), "not killed; tried again");
                }
            }
            // Its end has been reported.
            Err(ENDED) => {}
            Err(_) => {
                (self.report)(Input::VmExited {
                    vm: self.vm.clone(),
                    cause: ExitCause::Killed,
                });
            }
        }
    }

    fn prepare(&self, spec: &hypervisor::VmSpec) -> HypervisorOutcome {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.link.is_registered(&self.vm) {
            return HypervisorOutcome::Failed("it is not registered with the guard".into());
        }
        match self.driver.prepare(spec) {
            Ok(process) => {
                if !self.link.bind(&self.vm, &process) {
                    // The guard does not know it, so it must not be.
                    let _ = self.driver.kill(self.vm.as_str());
                }
                self.state.store(WATCHED, Ordering::Release);
                watch(self);
                HypervisorOutcome::Done
            }
            Err(StartError::ImageLocked { .. }) => HypervisorOutcome::ImageLocked,
            Err(error) => HypervisorOutcome::Failed(logging::chain(&error)),
        }
    }

    fn resume(&self) -> HypervisorOutcome {
        // The guard may have stopped it in between; a request would wait in it and work after a thaw.
        if !self.link.may_resume(&self.vm) {
            return HypervisorOutcome::Failed(
                "its right to run ended before the first instruction".into(),
            );
        }
        answer(self.driver.resume(self.vm.as_str()))
    }
}

fn answer(result: Result<(), hypervisor::DriverError>) -> HypervisorOutcome {
    match result {
        Ok(()) => HypervisorOutcome::Done,
        Err(error) => HypervisorOutcome::Failed(logging::chain(&error)),
    }
}

fn run(shared: &Shared, jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        match job {
            Job::Prepare(op, spec) => shared.done(op, shared.prepare(&spec)),
            Job::Resume(op) => shared.done(op, shared.resume()),
            Job::Shutdown(op) => {
                shared.done(
                    op,
                    answer(shared.driver.request_shutdown(shared.vm.as_str())),
                );
            }
        }
    }
}

/// Reports the end of the process that there is now.
fn watch(shared: &Shared) {
    let _ = shared
        .state
        .compare_exchange(NO_PROCESS, WATCHED, Ordering::AcqRel, Ordering::Acquire);
    let mine = shared.clone();
    let started = std::thread::Builder::new()
        .name(format!("exit {}", shared.vm))
        .spawn(move || {
            let vm = mine.vm.as_str();
            let mut disk = None;
            let exit = loop {
                if let Some(exit) = mine.driver.wait_exit_or_disk(vm, LOOK, disk) {
                    break exit;
                }
                let now = mine.driver.disk_error(vm);
                if now != disk {
                    disk = now;
                    tracing::info!(vm, ?disk, "its disk");
                    (mine.report)(Input::VmIo {
                        vm: mine.vm.clone(),
                        fault: disk.map(fault_of),
                    });
                }
                if mine.state.load(Ordering::Acquire) == KILL_WANTED {
                    let _ = mine.driver.kill(vm);
                }
            };
            mine.state.store(ENDED, Ordering::Release);
            let cause = cause_of(&exit, mine.link.was_killed(&mine.vm));
            tracing::info!(vm, ?exit, "gone");
            (mine.report)(Input::VmExited {
                vm: mine.vm.clone(),
                cause,
            });
        });
    if let Err(error) = started {
        // Without it the VM's end would never be seen: the process restarts and adopts.
        tracing::error!(vm = %shared.vm, %error, "no thread to watch it");
        std::process::abort();
    }
}

fn fault_of(error: DiskError) -> IoFault {
    match error {
        DiskError::Gone => IoFault::Gone,
        DiskError::TimedOut => IoFault::TimedOut,
        DiskError::Full => IoFault::Full,
        DiskError::Other => IoFault::Other,
    }
}

fn cause_of(exit: &hypervisor::Exit, by_guard: bool) -> ExitCause {
    match exit.cause {
        hypervisor::ExitCause::Clean => ExitCause::GuestShutdown,
        hypervisor::ExitCause::Killed => ExitCause::Killed,
        // Said by the guest itself, before whatever came then.
        hypervisor::ExitCause::Panicked => ExitCause::Panicked,
        hypervisor::ExitCause::Crashed { .. } | hypervisor::ExitCause::OutOfMemory if by_guard => {
            ExitCause::Killed
        }
        hypervisor::ExitCause::Crashed { .. } => ExitCause::Crash,
        hypervisor::ExitCause::OutOfMemory => ExitCause::OutOfMemory,
    }
}
