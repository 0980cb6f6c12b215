//! A cluster of Pacemaker's: made, brought to rest with all resources on one host, and broken.
//!
//! Invariant: what it made is gone when it is dropped, or when the next run of the lab clears up after it.

use super::config::{self, Member};
use super::host::{Host, Shared};
use super::state::{self, State};
use super::{Fencing, Options, Sample, Variant};
use crate::cgroup::{self, RunCgroup};
use crate::cluster::{Noted, base_dir};
use crate::dir::{RunDir, hex, random};
use crate::fail::{Context, Failure, Result};
use crate::files::{make_dir, write};
use crate::network::{HostPlan, Network, Plan};
use crate::place::{Kind, Place};
use crate::procs::{self, Marker};
use nix::time::{ClockId, clock_gettime};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long a cluster may take to come to rest: to find each other, elect, and move all resources.
const SETTLED_WITHIN: Duration = Duration::from_secs(180);
/// How long a daemon may take to answer.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long resources may take to start elsewhere.
const RESTARTED_WITHIN: Duration = Duration::from_secs(180);
/// Between two looks at files; a time that is measured is read from the files themselves.
const LOOK: Duration = Duration::from_millis(10);
/// Between two questions to daemons, which take processor time from what they are asked about.
const ASK: Duration = Duration::from_millis(250);
/// By how much the wall clock may move against the machine's own in a run, in nanoseconds.
const STEP_MAX_NANOS: i128 = 5_000_000;

/// A running cluster.
#[derive(Debug)]
pub(super) struct Cluster<'a> {
    variant: Variant,
    options: &'a Options,
    resources: usize,
    run: String,
    dir: RunDir,
    _noted: Noted,
    cgroup: RunCgroup,
    network: Network,
    hosts: Vec<Host>,
}

impl<'a> Cluster<'a> {
    /// Makes one, and waits until it has come to rest with all resources on the first host.
    pub(super) fn make(variant: Variant, resources: usize, options: &'a Options) -> Result<Self> {
        let mut made = Self::build(variant, resources, options)?;
        let up = made.bring_up();
        made.keep_on_failure(up)?;
        Ok(made)
    }

    fn build(variant: Variant, resources: usize, options: &'a Options) -> Result<Self> {
        let place = Place::of_user(Kind::Lab);
        place.clear_leftovers();
        let run = hex(&random::<4>()?);
        let base = options.dir.clone().unwrap_or_else(base_dir);
        let base = std::path::absolute(&base).context("cannot use this directory")?;
        let mut dir = RunDir::make(&base.join(format!("{}-{run}", Kind::Lab.prefix())), &run)
            .context("cannot make the lab's directory")
            .map_err(|e| e.at(base.display()))?;
        dir.keep = options.keep;
        let names: Vec<String> = (1..=options.hosts).map(|n| format!("host-{n}")).collect();
        // Noted before the first thing that only a note finds again.
        let noted = Noted::write(&place, &run, dir.path())?;
        let cgroup = RunCgroup::make(Kind::Lab, &run, names.iter().cloned())
            .ok_or_else(|| Failure::new("cannot make a cgroup").remedy("run it as root"))?;
        let host = |name: &String| HostPlan {
            name: name.clone(),
            networks: vec![0],
        };
        let network = Network::make(&Plan {
            hosts: names.iter().map(host).collect(),
            networks: 1,
            seed: 1,
        })?;
        let mut made = Self {
            variant,
            options,
            resources,
            run,
            dir,
            _noted: noted,
            cgroup,
            network,
            hosts: Vec::new(),
        };
        made.make_hosts(names)?;
        Ok(made)
    }

    fn make_hosts(&mut self, names: Vec<String>) -> Result<()> {
        let member = |(host, name): (usize, String)| {
            let address = self.network.address(host, 0);
            let address = address.ok_or_else(|| Failure::new("a host has no address"))?;
            Ok(Member { name, address })
        };
        let members: Vec<Member> = names
            .into_iter()
            .enumerate()
            .map(member)
            .collect::<Result<_>>()?;
        let home = members.first().map(|m| m.name.as_str()).unwrap_or_default();
        let fencing = self.variant.fencing();
        let agents = self.dir.path().join("agents");
        make_dir(&agents.join("mainstay"))?;
        let agent = config::resource_agent();
        write(&agents.join("mainstay/record"), agent.as_bytes(), 0o755)?;
        let fence_agent = self.dir.path().join("fence-agent");
        let text = config::fence_agent(self.cgroup.path());
        write(&fence_agent, text.as_bytes(), 0o755)?;
        let shared = Shared {
            corosync: &config::corosync(&members, self.variant.token_ms()),
            information_base: &config::information_base(&members, self.resources, fencing, home),
            agents: &agents,
            fence_agent: &fence_agent,
        };
        for (number, member) in members.iter().enumerate() {
            let dir = self.dir.path().join(&member.name);
            let cgroup = self.cgroup.path().join(&member.name);
            let namespace = self.network.namespace(number)?.try_clone()?;
            let made = Host::make(member.clone(), &self.run, &dir, cgroup, namespace, &shared);
            self.hosts.push(made?);
        }
        Ok(())
    }

    fn bring_up(&mut self) -> Result<()> {
        for host in 0..self.hosts.len() {
            self.boot(host)?;
        }
        self.settle(0)
    }

    /// The run's id.
    pub(super) fn run(&self) -> &str {
        &self.run
    }

    /// All hosts, by their number.
    pub(super) fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    fn host(&self, host: usize) -> Result<&Host> {
        self.hosts
            .get(host)
            .ok_or_else(|| Failure::new(format_args!("there is no host of number {host}")))
    }

    /// Power comes, and everything is started as the machine's boot would.
    fn boot(&mut self, host: usize) -> Result<()> {
        self.network.plug(host, true)?;
        if let Some(it) = self.hosts.get_mut(host) {
            it.boot()?;
        }
        let it = self.host(host)?;
        it.start(&["corosync", "-f"])?;
        self.wait(
            READY_WITHIN,
            ASK,
            &format!("Corosync of {}", it.member.name),
            || {
                Ok(it
                    .tool(&["corosync-cmapctl", "-g", "totem.cluster_name"])
                    .is_ok())
            },
        )
        .map_err(|e| e.at(it.log("corosync.log").display()))?;
        if matches!(self.variant.fencing(), Fencing::Watchdog { .. }) {
            let name = it.member.name.as_str();
            it.start(&["sbd", "-p", "/run/sbd.pid", "-n", name, "watch"])?;
        }
        it.start(&["pacemakerd"])
    }

    /// Waits until a condition holds.
    fn wait(
        &self,
        limit: Duration,
        every: Duration,
        what: &str,
        mut holds: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !holds()? {
            procs::reap();
            if self.options.stop.load(Ordering::Relaxed) {
                return Err(Failure::interrupted());
            }
            if Instant::now() >= deadline {
                return Err(Failure::new(format_args!(
                    "{what} is not ready after {} s",
                    limit.as_secs()
                ))
                .at(self.dir.path().display())
                .remedy("see the logs in var/log of each host there"));
            }
            std::thread::park_timeout(every);
        }
        Ok(())
    }

    /// Lets time pass.
    pub(super) fn watch(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        self.wait(time + READY_WITHIN, LOOK, "time", || {
            Ok(Instant::now() >= end)
        })
    }

    /// What the cluster says of itself, asked on any host that is on.
    fn state(&self) -> Result<State> {
        let mut on = self.hosts.iter().filter(|h| h.powered);
        let host = on.next().ok_or_else(|| Failure::new("no host is on"))?;
        // While its daemons start, nobody is there to say anything.
        let said = host.tool(&["crm_mon", "-1", "--output-as=xml"]);
        Ok(said.map(|xml| state::read(&xml)).unwrap_or_default())
    }

    /// Whether the coordinator has nothing left to do.
    fn is_idle(&self, coordinator: &str) -> bool {
        let on = self.hosts.iter().find(|h| h.member.name == coordinator);
        let said = on.map(|h| h.tool(&["crmadmin", "-q", "-S", coordinator]));
        said.is_some_and(|said| said.is_ok_and(|text| text.contains("S_IDLE")))
    }

    /// Waits until all hosts are members, all resources run on `home` alone, and nothing is under way.
    fn settle(&self, home: usize) -> Result<()> {
        let mut seen = State::default();
        let mut quiet = 0;
        let what = format!(
            "the cluster with its resources on {}",
            self.host(home)?.member.name
        );
        let settled = self.wait(SETTLED_WITHIN, ASK, &what, || {
            let right = |(number, host): (usize, &Host)| {
                let count = host.started().len();
                count == if number == home { self.resources } else { 0 }
            };
            if !self.hosts.iter().enumerate().all(right) {
                quiet = 0;
                return Ok(false);
            }
            seen = self.state()?;
            let coordinator = seen.coordinator.as_deref();
            let good = seen.trouble.is_none()
                && seen.online.len() == self.hosts.len()
                && coordinator.is_some_and(|c| self.is_idle(c));
            // Between two transitions it is idle for a moment.
            quiet = if good { quiet + 1 } else { 0 };
            Ok(quiet >= 2)
        });
        settled.map_err(|e| match &seen.trouble {
            Some(trouble) if !e.is_interrupted() => {
                let what = format_args!("{}; Pacemaker says: {trouble}", e.one_line());
                Failure::new(what).at(self.dir.path().display())
            }
            _ => e,
        })
    }

    /// Which host is to die next.
    fn victim(&self) -> Result<usize> {
        let state = self.state()?;
        let coordinator = state.coordinator.unwrap_or_default();
        let wanted =
            |host: &&Host| (host.member.name == coordinator) == self.variant.kills_coordinator();
        // The one that is off is the one that died last: it need not be another.
        let off = self.hosts.iter().filter(|h| !h.powered).find(wanted);
        let victim = off.or_else(|| self.hosts.iter().find(wanted));
        let name = victim.map(|h| h.member.name.as_str());
        let number = self
            .hosts
            .iter()
            .position(|h| Some(h.member.name.as_str()) == name);
        number.ok_or_else(|| Failure::new("the cluster has no coordinator"))
    }

    /// Brings the cluster to rest with all hosts on and all resources on the one that is to die; gives that.
    pub(super) fn prepare(&mut self) -> Result<usize> {
        let prepared = self.come_to_rest();
        self.keep_on_failure(prepared)
    }

    /// Kills a host hard and waits until all resources have started elsewhere.
    pub(super) fn fail_over(&mut self, victim: usize) -> Result<Sample> {
        let sample = self.kill_and_watch(victim);
        self.keep_on_failure(sample)
    }

    /// Logs outlive what failed, but not what somebody ended.
    fn keep_on_failure<T>(&mut self, result: Result<T>) -> Result<T> {
        result.inspect_err(|e| self.dir.keep |= !e.is_interrupted())
    }

    fn come_to_rest(&mut self) -> Result<usize> {
        let victim = self.victim()?;
        let home = config::home_constraint(&self.host(victim)?.member.name);
        let on = self.hosts.iter().find(|h| h.powered);
        let on = on.ok_or_else(|| Failure::new("no host is on"))?;
        on.tool(&[
            "cibadmin",
            "--modify",
            "--scope=constraints",
            "--xml-text",
            &home,
        ])?;
        for host in 0..self.hosts.len() {
            if !self.host(host)?.powered {
                self.boot(host)?;
            }
        }
        self.settle(victim)?;
        Ok(victim)
    }

    fn kill_and_watch(&mut self, victim: usize) -> Result<Sample> {
        let load = load_average();
        let (wall, offset) = clocks()?;
        self.network.plug(victim, false)?;
        let host = self.hosts.get_mut(victim);
        host.ok_or_else(|| Failure::new("there is no such host"))?
            .kill()?;
        self.host(victim)?.wait_gone()?;
        let mut times = Vec::new();
        let what = format!("each of {} resources on another host", self.resources);
        self.wait(RESTARTED_WITHIN, LOOK, &what, || {
            let on = self.hosts.iter().filter(|h| h.powered);
            times = on.flat_map(Host::started).collect();
            Ok(times.len() >= self.resources)
        })?;
        if (clocks()?.1 - offset).abs() > STEP_MAX_NANOS {
            return Err(Failure::new("the machine's clock was set during a run")
                .remedy("stop what sets it (NTP) for the time of the measurement"));
        }
        let seconds = |time: Option<&i128>| {
            let nanos = time.and_then(|t| u64::try_from(t - wall).ok());
            let nanos = nanos.ok_or_else(|| Failure::new("a resource ran before its host died"))?;
            Ok::<_, Failure>(Duration::from_nanos(nanos).as_secs_f64())
        };
        Ok(Sample {
            first_s: seconds(times.iter().min())?,
            all_s: seconds(times.iter().max())?,
            load,
        })
    }
}

/// The wall clock, which files' times are of, and by how much it is before CLOCK_BOOTTIME; in nanoseconds.
fn clocks() -> Result<(i128, i128)> {
    let read = |clock| {
        let time = clock_gettime(clock).context("cannot read a clock")?;
        Ok::<_, Failure>(i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec()))
    };
    let (boot, wall) = (
        read(ClockId::CLOCK_BOOTTIME)?,
        read(ClockId::CLOCK_REALTIME)?,
    );
    Ok((wall, wall - boot))
}

/// Over the last minute; 0 where the kernel does not say.
fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split_whitespace().next();
    first.and_then(|w| w.parse().ok()).unwrap_or_default()
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        // All at once: hosts that see others die fence them, and sbd means to reset a host without a quorum.
        for host in &mut self.hosts {
            // What is left after it is found by its mark below.
            drop(host.kill());
        }
        procs::kill_marked(&Marker::run(&self.run));
        cgroup::remove_tree(self.cgroup.path());
    }
}
