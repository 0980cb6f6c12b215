//! One host with Pacemaker and Corosync: its private directories, its daemons, and its end.
//!
//! # Never here
//! A daemon that could reset the machine. Pacemaker and sbd do so when they think that their host must not go
//! on, and for them this machine is their host: each runs without CAP_SYS_BOOT, and the kernel's files through
//! which a reset is asked for are covered in the host's mounts.

use super::config::{FENCE_AGENT_TYPE, Member, UP};
use crate::fail::{Context, Failure, Result};
use crate::files::{make_dir, write};
use crate::namespace::Namespace;
use crate::procs;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Group, Pid, User};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The user that most of Pacemaker's daemons run as, and its group.
const USER: (&str, &str) = ("hacluster", "haclient");
/// Directories of a host's own, below `/`: those on its disk.
const DISK: &[&str] = &[
    "etc/corosync",
    "etc/pacemaker",
    "var/lib/corosync",
    "var/lib/pacemaker",
    "var/log",
];
/// And those in its memory, empty after each boot. `/dev/shm` last: the run's own directory may lie there.
const MEMORY: &[&str] = &["run", "dev/shm"];
/// What of `/var/lib/pacemaker` belongs to Pacemaker's user.
const OWNED: &[&str] = &[
    "var/lib/pacemaker",
    "var/lib/pacemaker/blackbox",
    "var/lib/pacemaker/cib",
    "var/lib/pacemaker/cores",
    "var/lib/pacemaker/pengine",
];
/// Through these a process resets the machine, or prepares to. Not every machine has them.
const RESETS: &[&str] = &[
    "/proc/sysrq-trigger",
    "/proc/sys/kernel/sysrq",
    "/dev/watchdog",
    "/dev/watchdog0",
];
/// How long a tool may take to answer, in seconds: they wait for daemons.
const TOOL_LIMIT_S: &str = "30";
/// How long killed processes may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// What all hosts of a cluster have in common on their disks.
#[derive(Debug)]
pub(super) struct Shared<'a> {
    pub(super) corosync: &'a str,
    pub(super) information_base: &'a str,
    /// The directory of resource agents.
    pub(super) agents: &'a Path,
    pub(super) fence_agent: &'a Path,
}

/// One host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) member: Member,
    run: String,
    dir: PathBuf,
    cgroup: PathBuf,
    namespace: Namespace,
    pub(super) powered: bool,
}

impl Host {
    /// Makes its directories below `dir` and mounts them where the daemons look, in its namespace alone.
    pub(super) fn make(
        member: Member,
        run: &str,
        dir: &Path,
        cgroup: PathBuf,
        namespace: Namespace,
        shared: &Shared<'_>,
    ) -> Result<Self> {
        let made = Self {
            member,
            run: run.to_owned(),
            dir: dir.to_owned(),
            cgroup,
            namespace,
            powered: false,
        };
        for name in DISK.iter().chain(MEMORY).chain(OWNED) {
            let path = dir.join(name);
            make_dir(&path)?;
            // Whatever the caller's mask: daemons that are not root pass through them.
            set_mode(&path, 0o755)?;
        }
        // Pacemaker's daemons write to it after they gave up root.
        made.hand_over("var/log")?;
        for name in OWNED {
            made.hand_over(name)?;
        }
        let conf = dir.join("etc/corosync/corosync.conf");
        write(&conf, shared.corosync.as_bytes(), 0o644)?;
        let base = "var/lib/pacemaker/cib/cib.xml";
        write(&dir.join(base), shared.information_base.as_bytes(), 0o600)?;
        made.hand_over(base)?;
        let nothing = dir.join("nothing");
        write(&nothing, b"0\n", 0o600)?;
        made.mount(shared, &nothing)?;
        Ok(made)
    }

    /// Gives something to Pacemaker's user.
    fn hand_over(&self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        let user = User::from_name(USER.0).ok().flatten();
        let group = Group::from_name(USER.1).ok().flatten();
        let (Some(user), Some(group)) = (user, group) else {
            return Err(Failure::new(format_args!(
                "there is no user {} of group {}",
                USER.0, USER.1
            ))
            .remedy("apt-get install --reinstall pacemaker"));
        };
        chown(&path, Some(user.uid.as_raw()), Some(group.gid.as_raw()))
            .context("cannot give a directory to Pacemaker's user")
            .map_err(|e| e.at(path.display()))
    }

    fn mount(&self, shared: &Shared<'_>, nothing: &Path) -> Result<()> {
        let resets = RESETS.iter().map(Path::new).filter(|p| p.exists());
        let mut pairs: Vec<(PathBuf, PathBuf)> = resets
            .map(|at| (nothing.to_owned(), at.to_owned()))
            .collect();
        pairs.push((shared.agents.to_owned(), "/usr/lib/ocf/resource.d".into()));
        let fence = Path::new("/usr/sbin").join(FENCE_AGENT_TYPE);
        pairs.push((shared.fence_agent.to_owned(), fence));
        let own = DISK.iter().chain(MEMORY);
        pairs.extend(own.map(|name| (self.dir.join(name), Path::new("/").join(name))));
        // The mounts below may cover the way to it.
        let cover = fs::metadata(nothing).context("cannot see a file of the run")?;
        self.namespace.inside(|| {
            for (from, at) in &pairs {
                let none: Option<&str> = None;
                mount(
                    Some(from.as_path()),
                    at.as_path(),
                    none,
                    MsFlags::MS_BIND,
                    none,
                )
                .context("cannot mount what a host has of its own")
                .map_err(|e| e.at(at.display()))?;
            }
            check_resets_are_covered(&cover)
        })?
    }

    /// What lay in its memory is gone, as after a boot.
    pub(super) fn boot(&mut self) -> Result<()> {
        for name in MEMORY {
            let dir = self.dir.join(name);
            empty(&dir)
                .context("cannot clear what a host had in memory")
                .map_err(|e| e.at(dir.display()))?;
        }
        make_dir(&self.up())?;
        // The sticky bit and everybody's right to write, as the file system has it.
        set_mode(&self.dir.join("dev/shm"), 0o1777)?;
        self.powered = true;
        Ok(())
    }

    /// Where its started resources leave their files.
    fn up(&self) -> PathBuf {
        self.dir.join(UP.trim_start_matches('/'))
    }

    /// The resources that are started there, each with the moment of its start: CLOCK_REALTIME in nanoseconds.
    pub(super) fn started(&self) -> Vec<i128> {
        let entries = fs::read_dir(self.up()).into_iter().flatten().flatten();
        // One that has just been stopped is gone between the two looks.
        let times = entries.filter_map(|e| e.metadata().ok());
        times
            .map(|m| i128::from(m.mtime()) * 1_000_000_000 + i128::from(m.mtime_nsec()))
            .collect()
    }

    /// A program as a process of this host: in its cgroup from its first instruction, marked, named as the
    /// host, and unable to reset the machine.
    fn command(&self, program: &[&str]) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg("echo 0 > \"$0/cgroup.procs\" && exec setpriv --bounding-set=-sys_boot --inh-caps=-sys_boot \"$@\"")
            .arg(&self.cgroup)
            .args(program)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .env(procs::RUN, &self.run)
            .env(procs::HOST, &self.member.name)
            .envs(DAEMON_SETTINGS.iter().copied())
            .current_dir("/")
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    /// Starts a daemon.
    pub(super) fn start(&self, program: &[&str]) -> Result<()> {
        let name = program.first().copied().unwrap_or_default();
        let log = self.log(&format!("{name}.out"));
        let mut command = self.command(program);
        procs::log_to(&mut command, &log)?;
        self.named(|| procs::spawn(&mut command))?
            .context(format_args!("cannot start {name}"))
    }

    /// Runs a tool to its end and gives what it said.
    ///
    /// # Errors
    /// When it cannot be started, fails or does not answer in time.
    pub(super) fn tool(&self, program: &[&str]) -> Result<String> {
        let limit = ["timeout", "--signal=KILL", TOOL_LIMIT_S];
        let mut command = self.command(&[limit.as_slice(), program].concat());
        let name = program.first().copied().unwrap_or_default();
        let output = self
            .named(|| procs::run_tool(&mut command))?
            .context(format_args!("cannot run {name}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Failure::new(format_args!(
            "{name} on {}: {}: {}",
            self.member.name,
            output.status,
            said.trim()
        ))
        .at(self.log("pacemaker.log").display()))
    }

    /// On a thread in its namespaces that also has the host's name.
    fn named<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let name = &self.member.name;
        self.namespace.inside(move || {
            unshare(CloneFlags::CLONE_NEWUTS).context("cannot give a host its name")?;
            fs::write("/proc/sys/kernel/hostname", name).context("cannot give a host its name")?;
            Ok(work())
        })?
    }

    /// A log of its own.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.dir.join("var/log").join(name)
    }

    /// Takes its power: one write ends every process.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.powered = false;
        fs::write(self.cgroup.join("cgroup.kill"), "1")
            .context("cannot end the processes of a host")
            .map_err(|e| e.at(self.cgroup.display()))
    }

    /// Waits until none of its processes is left.
    pub(super) fn wait_gone(&self) -> Result<()> {
        let deadline = Instant::now() + GONE_WITHIN;
        loop {
            procs::reap();
            let events = fs::read_to_string(self.cgroup.join("cgroup.events"));
            if events.is_ok_and(|text| text.lines().any(|l| l == "populated 0")) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Failure::new(format_args!(
                    "processes of {} outlive SIGKILL",
                    self.member.name
                ))
                .at(self.cgroup.display()));
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// Everything that runs on it.
    pub(super) fn processes(&self) -> Vec<Pid> {
        let text = fs::read_to_string(self.cgroup.join("cgroup.procs")).unwrap_or_default();
        let numbers = text.lines().filter_map(|l| l.parse().ok());
        numbers.map(Pid::from_raw).collect()
    }

    /// Processor time of everything that ever ran on it, in microseconds.
    pub(super) fn cpu_micros(&self) -> Option<u64> {
        let text = fs::read_to_string(self.cgroup.join("cpu.stat")).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix("usage_usec "))?;
        line.trim().parse().ok()
    }
}

/// What the daemons are told in their environment, as Debian's `/etc/default` does. sbd does without a watchdog
/// device; its time-out is its own default.
const DAEMON_SETTINGS: &[(&str, &str)] = &[
    ("PCMK_logfile", "/var/log/pacemaker.log"),
    ("PCMK_logfacility", "none"),
    ("SBD_DELAY_START", "no"),
    ("SBD_MOVE_TO_ROOT_CGROUP", "no"),
    ("SBD_PACEMAKER", "yes"),
    ("SBD_STARTMODE", "always"),
    ("SBD_SYNC_RESOURCE_STARTUP", "no"),
    ("SBD_WATCHDOG_DEV", "/dev/null"),
    ("SBD_WATCHDOG_TIMEOUT", "5"),
];

/// Nothing is started before this holds.
fn check_resets_are_covered(cover: &fs::Metadata) -> Result<()> {
    for path in RESETS.iter().map(Path::new).filter(|p| p.exists()) {
        let seen = fs::metadata(path).context("cannot see what covers a file of the kernel")?;
        if (seen.dev(), seen.ino()) != (cover.dev(), cover.ino()) {
            return Err(Failure::new("daemons could reset this machine").at(path.display()));
        }
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .context("cannot set who may use a directory of the run")
        .map_err(|e| e.at(path.display()))
}

/// Removes what is in a directory, which itself stays: it is mounted elsewhere.
fn empty(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
