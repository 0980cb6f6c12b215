//! A lab as its user starts it, and everything that it has on this machine.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A lab settles, plays and ends within a fifth of this on a slow machine.
const LIMIT: Duration = Duration::from_secs(200);

/// A user's place for notes, files and scenarios.
pub(crate) struct Home(tempfile::TempDir);

impl Home {
    /// A fresh one, in memory where there is memory to be had: a lab's files want that.
    pub(crate) fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let made = tempfile::Builder::new().prefix("ms").tempdir_in(memory);
        Self(made.or_else(|_| tempfile::tempdir()).expect("dir"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Where labs put their files.
    pub(crate) fn labs(&self) -> PathBuf {
        self.path().join("labs")
    }

    /// The lab's command.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        // A lab that is made to crash is to leave no core file.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "ulimit -c 0; exec \"$0\" \"$@\""])
            .arg(env!("CARGO_BIN_EXE_mainstay"))
            .arg("lab")
            .args(arguments)
            .env_remove("MAINSTAY_SOCKET")
            .env("XDG_RUNTIME_DIR", self.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub(crate) fn lab(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("mainstay runs")
    }

    /// `lab run` of a scenario, to its end.
    pub(crate) fn play(&self, scenario: &str) -> Output {
        self.lab(&self.run_arguments(scenario).each_ref().map(String::as_str))
    }

    fn run_arguments(&self, scenario: &str) -> [String; 4] {
        let file = self.path().join("scenario.toml");
        fs::write(&file, scenario).expect("scenario");
        let text = |path: PathBuf| path.to_str().expect("text").to_owned();
        ["run".into(), text(file), "--dir".into(), text(self.labs())]
    }

    /// The ids of all runs that are noted.
    pub(crate) fn noted(&self) -> Vec<String> {
        let uid = nix::unistd::Uid::effective();
        let place = self.path().join(format!("mainstay-lab-{uid}"));
        let entries = fs::read_dir(place).into_iter().flatten().flatten();
        let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
        names
            .filter_map(|n| n.strip_suffix(".json").map(str::to_owned))
            .collect()
    }

    /// What labs left below the home: neither notes nor files.
    pub(crate) fn assert_empty(&self) {
        assert_eq!(self.noted(), Vec::<String>::new());
        let left: Vec<_> = fs::read_dir(self.labs()).into_iter().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// A lab that goes on.
pub(crate) struct Lab {
    child: Child,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl Lab {
    /// Starts `lab run` of a scenario.
    pub(crate) fn start(home: &Home, scenario: &str) -> Self {
        let arguments = home.run_arguments(scenario);
        let mut child = home
            .command(&arguments.each_ref().map(String::as_str))
            .stdout(Stdio::piped())
            .spawn()
            .expect("mainstay starts");
        let out = BufReader::new(child.stdout.take().expect("pipe"));
        let (to, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if to.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            lines,
            heard: Vec::new(),
        }
    }

    /// Waits until it has printed a line with each of these words, in this order.
    pub(crate) fn wait_for(&mut self, words: &[&str]) {
        let deadline = Instant::now() + LIMIT;
        for word in words {
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                let line = self.lines.recv_timeout(left);
                let line = line.unwrap_or_else(|_| panic!("no {word}: {:#?}", self.heard));
                let found = line.contains(word);
                self.heard.push(line);
                if found {
                    break;
                }
            }
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("pid"))
    }

    /// Sends it a signal and waits for its end.
    pub(crate) fn end_by(mut self, signal: Signal) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        kill(self.pid(), signal).expect("signal");
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(Instant::now() < deadline, "the lab does not end");
            std::thread::park_timeout(Duration::from_millis(10));
            // Rust's own handler looks for a stack overflow, puts the default back and waits for the faulting
            // instruction to be executed again; there is none here.
            if signal == Signal::SIGSEGV {
                kill(self.pid(), signal).expect("signal");
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A test that failed ends its lab as a user would.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = kill(self.pid(), Signal::SIGINT);
            drop(self.child.wait());
        }
    }
}

/// Everything that a run has on this machine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Traces {
    run: String,
    /// Processes with its mark.
    pub(crate) processes: BTreeSet<i32>,
    /// Network namespaces that are not ours.
    pub(crate) networks: BTreeSet<PathBuf>,
    /// Processes that see one of its mounts.
    pub(crate) mounts: BTreeSet<i32>,
    /// Its cgroups, in every hierarchy.
    pub(crate) cgroups: BTreeSet<PathBuf>,
}

impl Traces {
    /// Looks now. `lab` holds namespaces that no process is in.
    pub(crate) fn of(run: &str, lab: Option<Pid>) -> Self {
        let mark = format!("MAINSTAY_LAB_RUN={run}");
        let place = format!("mainstay-lab-{run}/");
        let mut traces = Self {
            run: run.to_owned(),
            processes: BTreeSet::new(),
            networks: BTreeSet::new(),
            mounts: BTreeSet::new(),
            cgroups: cgroups(run),
        };
        let own = fs::read_link("/proc/self/ns/net").expect("own network");
        for (pid, dir) in all_processes() {
            let environ = fs::read(dir.join("environ")).unwrap_or_default();
            if environ.split(|b| *b == 0).any(|e| e == mark.as_bytes()) {
                traces.processes.insert(pid);
                traces.networks.extend(fs::read_link(dir.join("ns/net")));
            }
            let mounts = fs::read_to_string(dir.join("mountinfo")).unwrap_or_default();
            if mounts.contains(&place) {
                traces.mounts.insert(pid);
            }
        }
        if let Some(lab) = lab {
            traces.networks.extend(held(&proc_dir(lab.as_raw())));
        }
        traces.networks.remove(&own);
        traces
    }

    /// Whatever the run had, nobody has it any more.
    pub(crate) fn assert_gone(&self) {
        let now = Self::of(&self.run, None);
        assert_eq!(now.processes, BTreeSet::new(), "processes of {}", self.run);
        assert_eq!(now.mounts, BTreeSet::new(), "mounts of {}", self.run);
        assert_eq!(now.cgroups, BTreeSet::new(), "cgroups of {}", self.run);
        for (pid, dir) in all_processes() {
            let inside = fs::read_link(dir.join("ns/net")).ok();
            let seen: Vec<PathBuf> = held(&dir).into_iter().chain(inside).collect();
            let kept = seen.iter().find(|n| self.networks.contains(*n));
            assert_eq!(kept, None, "process {pid} keeps a network of {}", self.run);
        }
    }
}

fn proc_dir(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

fn all_processes() -> Vec<(i32, PathBuf)> {
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.map(|pid| (pid, proc_dir(pid))).collect()
}

/// Network namespaces that a process holds open.
fn held(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
    let links = entries.filter_map(|e| fs::read_link(e.path()).ok());
    links
        .filter(|link| link.to_str().is_some_and(|l| l.starts_with("net:[")))
        .collect()
}

fn cgroups(run: &str) -> BTreeSet<PathBuf> {
    let name = format!("mainstay-lab-{run}");
    let mut found = BTreeSet::new();
    let mut waiting = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            if entry.file_name() == *name {
                found.insert(entry.path());
            } else {
                waiting.push(entry.path());
            }
        }
    }
    found
}

/// TAP devices outside all namespaces of labs.
pub(crate) fn taps() -> BTreeSet<PathBuf> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten();
    let devices = entries.flatten().map(|e| e.path());
    devices.filter(|d| d.join("tun_flags").exists()).collect()
}

/// What looks like a lab's and is not: to be left alone.
pub(crate) struct Decoys {
    process: Child,
    other_run: Child,
    dirs: Vec<PathBuf>,
    cgroup: PathBuf,
}

impl Decoys {
    pub(crate) fn make(home: &Home) -> Self {
        use std::os::unix::process::CommandExt;
        let other = format!("{:08x}", std::process::id());
        let program = |mark: Option<&str>| {
            let mut command = Command::new("/bin/sleep");
            command.arg0("mainstay").arg("1000").stdout(Stdio::null());
            command.envs(mark.map(|m| ("MAINSTAY_LAB_RUN", m)));
            command.spawn().expect("a process")
        };
        let root = mainstay_lab::cgroup::root().expect("cgroup v2");
        let cgroup = root.join(format!("mainstay-lab-{other}"));
        fs::create_dir(&cgroup).expect("cgroup");
        let unmarked = home.path().join(format!("mainstay-lab-{other}"));
        let of_another = home.path().join("mainstay-lab-feedbeef");
        for dir in [&unmarked, &of_another] {
            fs::create_dir(dir).expect("dir");
        }
        fs::write(unmarked.join("file"), "").expect("file");
        fs::write(of_another.join("mainstay-run"), &other).expect("mark");
        Self {
            process: program(None),
            other_run: program(Some(&other)),
            dirs: vec![unmarked, of_another],
            cgroup,
        }
    }

    pub(crate) fn assert_untouched(&mut self) {
        for child in [&mut self.process, &mut self.other_run] {
            assert!(child.try_wait().expect("wait").is_none(), "{child:?} ended");
        }
        for dir in self.dirs.iter().chain([&self.cgroup]) {
            assert!(dir.is_dir(), "{} is gone", dir.display());
        }
    }
}

impl Drop for Decoys {
    fn drop(&mut self) {
        for child in [&mut self.process, &mut self.other_run] {
            drop(child.kill());
            drop(child.wait());
        }
        drop(fs::remove_dir(&self.cgroup));
    }
}
