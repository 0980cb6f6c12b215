//! A host for the benchmark: its files, the real guard, and guests of the real driver; and what keeps the processors
//! busy. What is started here ends with the benchmark, however that ends.

use crate::figures::Figures;
use crate::guests::{Stamps, stamps_path};
use mainstay_agent::agent_side::{AgentSide, now};
use mainstay_agent::config::{AgentFile, DriverKind, Probe};
use mainstay_core::id::{Generation, HostId, VmId};
use mainstay_core::io::{Extension, GuardOutcome, GuardRequest};
use mainstay_core::time::Instant;
use mainstay_hypervisor::{
    CgroupPlacement, EmbeddedDriver, EmbeddedOptions, Hypervisor as _, ImageKind, Process, VmSpec,
    freeze, make_image,
};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

/// From a renewal to the deadline that it gives: short, so that many deadlines pass; and some more for each VM, since
/// this process has to thaw them all on processors that others keep busy.
const RIGHT: Duration = Duration::from_millis(60);
const RIGHT_PER_VM: Duration = Duration::from_millis(4);
/// Between two renewals.
const RENEWAL: Duration = Duration::from_millis(20);
/// Renewals of a round, after which the agent falls silent.
const RENEWALS: u32 = 3;
/// Nobody looks at the guests before: who looks would take the processor from those who are measured.
const UNWATCHED: Duration = Duration::from_millis(30);
/// The right under which guests start.
const FIRST_RIGHT: Duration = Duration::from_secs(2);
/// A guard that has frozen nothing by then never will.
const PATIENCE: Duration = Duration::from_secs(20);
/// Guests that have not ended by then never will.
const END_LIMIT: Duration = Duration::from_secs(10);

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Waits on nothing but time.
pub(crate) fn wait_until(at: Instant) {
    loop {
        let left = at.since(now());
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}

/// The host, its guard running.
pub(crate) struct Host {
    dir: PathBuf,
    side: Option<AgentSide>,
    driver: EmbeddedDriver,
}

impl Host {
    /// Makes its files in that directory and starts the guard by that program.
    pub(crate) fn start(dir: &Path, guard: &Path) -> Result<Self, String> {
        let own = std::env::current_exe().map_err(text)?;
        let config = dir.join("agent.toml");
        let file = AgentFile {
            host: HostId::new("host-1").map_err(text)?,
            cluster: "cluster.toml".into(),
            state_dir: "state".into(),
            run_dir: "run".into(),
            log_dir: "log".into(),
            driver: DriverKind::Embedded,
            // A guard whose agent is gone starts this as an agent: here it clears up.
            program: Some(own.clone()),
            qemu: None,
            key_file: "key".into(),
            ca_file: "ca.pem".into(),
            cert_file: "cert.pem".into(),
            cert_key_file: "cert.key".into(),
            boot_id_file: None,
            cgroup_parent: None,
            fence_file: None,
            watchdog: None,
            guest_oom_score_adj: Default::default(),
            probe: Probe::default(),
            datastores: Default::default(),
        };
        file.write(&config).map_err(text)?;
        let side = AgentSide::start(&config, guard)
            .map_err(|e| format!("{e} ({})", dir.join("log").display()))?;
        let driver = EmbeddedDriver::new(EmbeddedOptions {
            program: Some(own),
            ..EmbeddedOptions::default()
        });
        Ok(Self {
            dir: dir.into(),
            side: Some(side),
            driver,
        })
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    fn side(&self) -> Result<&AgentSide, String> {
        self.side.as_ref().ok_or_else(|| "no guard".to_owned())
    }

    /// What is weak about the guard.
    pub(crate) fn weaknesses(&self) -> Result<Vec<String>, String> {
        Ok(self.side()?.weaknesses(&self.run_dir()))
    }

    /// Starts guests, registered and running.
    pub(crate) fn guests(
        &self,
        name: &str,
        vms: u32,
        vcpus: u32,
        cgroup: &CgroupPlacement,
    ) -> Result<Guests<'_>, String> {
        let mut guests = Guests {
            host: self,
            generation: Generation(1),
            all: Vec::new(),
        };
        for n in 1..=vms {
            let vm = format!("{name}-{n}");
            let guest = guests.start(&vm, vcpus, cgroup)?;
            guests.all.push(guest);
        }
        Ok(guests)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(side) = self.side.take() {
            side.end();
        }
    }
}

struct Guest {
    vm: VmId,
    process: Process,
    stamps: Stamps,
}

/// Guests whose rights end together.
pub(crate) struct Guests<'a> {
    host: &'a Host,
    generation: Generation,
    all: Vec<Guest>,
}

impl Guests<'_> {
    fn start(&self, vm: &str, vcpus: u32, cgroup: &CgroupPlacement) -> Result<Guest, String> {
        let (side, driver) = (self.host.side()?, &self.host.driver);
        let run_dir = self.host.run_dir();
        let image = self.host.dir.join(format!("{vm}.raw"));
        make_image(&image, 1 << 20, ImageKind::Blank).map_err(text)?;
        let stamps = Stamps::create(&stamps_path(&run_dir, vm), vcpus).map_err(text)?;
        let id = VmId::new(vm).map_err(text)?;
        let request = GuardRequest::Register {
            vm: id.clone(),
            generation: self.generation,
            deadline: now() + FIRST_RIGHT,
        };
        must(&side.perform(&request), "registered")?;
        let spec = VmSpec {
            vm: vm.to_owned(),
            generation: self.generation.0,
            image,
            memory_mb: 16,
            options: Default::default(),
            run_dir,
            cgroup: cgroup.clone(),
            oom_score_adj: 0,
        };
        let process = driver.prepare(&spec).map_err(text)?;
        if !side.bind(&id, &process) {
            return Err(format!("{vm} is not registered"));
        }
        driver.resume(vm).map_err(text)?;
        Ok(Guest {
            vm: id,
            process,
            stamps,
        })
    }

    /// Whether each has a cgroup of its own, by which it is frozen.
    pub(crate) fn have_cgroups(&self) -> bool {
        self.all.iter().all(|g| g.process.cgroup.is_some())
    }

    /// How many steps their vCPUs have done.
    pub(crate) fn steps(&self) -> u64 {
        self.all.iter().map(|g| g.stamps.steps()).sum()
    }

    /// Waits until all are stopped. Gives the time of the last instruction of each.
    pub(crate) fn wait_stopped(&self) -> Result<Vec<u64>, String> {
        let begun = now();
        for guest in &self.all {
            while !freeze::is_stopped(&guest.process) {
                if now().since(begun) > PATIENCE {
                    return Err(format!(
                        "{} is not frozen {PATIENCE:?} after its deadline",
                        guest.vm
                    ));
                }
                std::thread::park_timeout(Duration::from_millis(5));
            }
        }
        Ok(self.last())
    }

    fn last(&self) -> Vec<u64> {
        self.all.iter().map(|g| g.stamps.last()).collect()
    }

    /// Thaws all, renews their rights as an agent does, renews no more, and looks how long each ran on.
    /// `stopped` has the last instructions before, and gets those of this round.
    pub(crate) fn round(
        &mut self,
        stopped: &mut Vec<u64>,
        figures: &mut Figures,
    ) -> Result<(), String> {
        let side = self.host.side()?;
        let right = RIGHT + RIGHT_PER_VM * u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        if *stopped != self.last() {
            return Err("a guest went on although it was frozen: nothing here counts".to_owned());
        }
        let (from, to) = (self.generation, self.generation.next());
        let let_on = now();
        for guest in &self.all {
            let thaw = || {
                side.perform(&GuardRequest::Thaw {
                    vm: guest.vm.clone(),
                    from,
                    to,
                    deadline: now() + right,
                })
            };
            let mut outcome = thaw();
            // This process itself was late.
            while outcome == GuardOutcome::Lapsed && now().since(let_on) < PATIENCE {
                outcome = thaw();
            }
            must(&outcome, "thawed")?;
        }
        self.generation = to;
        for n in 1..=RENEWALS {
            wait_until(let_on + RENEWAL * n);
            let deadline = now() + right;
            let extend = |guest: &Guest| Extension {
                vm: guest.vm.clone(),
                generation: to,
                deadline,
            };
            let request = GuardRequest::Extend(self.all.iter().map(extend).collect());
            // Refused where this process itself was late: then an earlier deadline is the one that passes.
            let _ = side.perform(&request);
        }
        let deadlines: Option<Vec<Instant>> =
            self.all.iter().map(|g| side.deadline(&g.vm)).collect();
        let deadlines = deadlines.ok_or("a guest is not registered any more")?;
        let latest = deadlines.iter().max().copied().unwrap_or(Instant::ZERO);
        wait_until(latest + UNWATCHED);
        *stopped = self.wait_stopped()?;
        for (deadline, last) in deadlines.iter().zip(stopped.iter()) {
            figures.add(let_on.as_nanos(), deadline.as_nanos(), *last);
        }
        Ok(())
    }
}

fn must(outcome: &GuardOutcome, what: &str) -> Result<(), String> {
    match outcome {
        GuardOutcome::Done => Ok(()),
        other => Err(format!("a guest was not {what}: {other:?}")),
    }
}

impl Drop for Guests<'_> {
    fn drop(&mut self) {
        let driver = &self.host.driver;
        for guest in &self.all {
            let _ = driver.kill(guest.vm.as_str());
        }
        for guest in &self.all {
            let _ = driver.wait_exit(guest.vm.as_str(), END_LIMIT);
            driver.forget(guest.vm.as_str());
            if let Ok(side) = self.host.side() {
                let vm = guest.vm.clone();
                let _ = side.perform(&GuardRequest::Remove { vm });
            }
        }
    }
}

/// Processes of ordinary priority that compute all the time.
pub(crate) struct Load(Vec<Child>);

impl Load {
    pub(crate) fn start(processes: u32) -> Result<Self, String> {
        let own = std::env::current_exe().map_err(text)?;
        let mut load = Self(Vec::new());
        for _ in 0..processes {
            let child = Command::new(&own)
                .arg("spin")
                .stdin(Stdio::piped())
                .spawn()
                .map_err(text)?;
            load.0.push(child);
        }
        Ok(load)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Computes until nobody holds the other end of its input.
pub(crate) fn spin() -> ExitCode {
    std::thread::spawn(|| {
        loop {
            std::hint::spin_loop();
        }
    });
    let _ = std::io::stdin().read(&mut [0]);
    ExitCode::SUCCESS
}
