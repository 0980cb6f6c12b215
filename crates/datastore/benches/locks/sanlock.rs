//! The peer: sanlock's daemons, one for each host, on the same directory.
//!
//! Its daemon wants to lift its limit of locked memory, which an ordinary container forbids; a preloaded function that
//! says yes lets it run there. It runs without a watchdog, as nothing is fenced here.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The shortest that it takes, in seconds.
pub(crate) const IO_TIMEOUT: u32 = 1;
/// Eight times the timeout, a minute for a watchdog, and some for a busy machine.
const TAKEOVER_WITHIN: Duration = Duration::from_secs(180);
const READY_WITHIN: Duration = Duration::from_secs(30);

/// A process that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One daemon for each host.
pub(crate) struct Daemons {
    dir: PathBuf,
    hosts: Vec<Option<Running>>,
}

impl Daemons {
    pub(crate) fn start(dir: &Path, hosts: usize) -> Result<Self, String> {
        let dir = dir.join("sanlock");
        fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
        let found = Command::new("sanlock")
            .arg("version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if let Err(error) = found {
            return Err(format!("{error}; apt-get install sanlock"));
        }
        let code = dir.join("limit.c");
        let shim = dir.join("limit.so");
        fs::write(
            &code,
            "int setrlimit(int what, const void *limit) { (void)what; (void)limit; return 0; }\n",
        )
        .map_err(|e| e.to_string())?;
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&shim)
            .arg(&code)
            .status();
        if !built.is_ok_and(|status| status.success()) {
            return Err("cc cannot build the function that it needs here".to_owned());
        }
        let mut daemons = Self {
            dir,
            hosts: Vec::new(),
        };
        for n in 1..=hosts {
            let run = daemons.run_dir(n);
            fs::create_dir_all(&run).map_err(|e| e.to_string())?;
            let child = Command::new("sanlock")
                .args([
                    "daemon", "-D", "-w", "0", "-l", "0", "-U", "root", "-G", "root", "-e",
                ])
                .arg(format!("host{n}"))
                .env("LD_PRELOAD", &shim)
                .env("SANLOCK_RUN_DIR", &run)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .map_err(|e| e.to_string())?;
            daemons.hosts.push(Some(Running(child)));
            let start = Instant::now();
            while !daemons.ask(n, &["client", "status"])? {
                if start.elapsed() > READY_WITHIN {
                    return Err(format!("the daemon of host {n} does not answer"));
                }
                std::thread::park_timeout(Duration::from_millis(20));
            }
        }
        let (space, lock) = (daemons.dir.join("lockspace"), daemons.dir.join("lock"));
        for file in [&space, &lock] {
            let made = fs::File::create(file).and_then(|f| f.set_len(1 << 20));
            made.map_err(|e| e.to_string())?;
        }
        let timeout = IO_TIMEOUT.to_string();
        daemons.must(
            1,
            &[
                "direct",
                "init",
                "-o",
                &timeout,
                "-s",
                &format!("LS:0:{}:0", space.display()),
            ],
        )?;
        daemons.must(
            1,
            &[
                "direct",
                "init",
                "-o",
                &timeout,
                "-r",
                &format!("LS:R1:{}:0", lock.display()),
            ],
        )?;
        for n in 1..=hosts {
            let spec = format!("LS:{n}:{}:0", space.display());
            daemons.must(n, &["client", "add_lockspace", "-o", &timeout, "-s", &spec])?;
        }
        Ok(daemons)
    }

    fn run_dir(&self, host: usize) -> PathBuf {
        self.dir.join(format!("run-{host}"))
    }

    fn command(&self, host: usize, arguments: &[&str]) -> Command {
        let mut command = Command::new("sanlock");
        command
            .args(arguments)
            .env("SANLOCK_RUN_DIR", self.run_dir(host));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn ask(&self, host: usize, arguments: &[&str]) -> Result<bool, String> {
        let status = self.command(host, arguments).status();
        status.map(|s| s.success()).map_err(|e| e.to_string())
    }

    fn must(&self, host: usize, arguments: &[&str]) -> Result<(), String> {
        match self.ask(host, arguments)? {
            true => Ok(()),
            false => Err(format!("sanlock {} failed", arguments.join(" "))),
        }
    }

    fn resource(&self) -> String {
        format!("LS:R1:{}:0", self.dir.join("lock").display())
    }

    /// Runs a command with the lock: its way of taking one from a shell. False while another has it, and while the
    /// daemon still gives it back.
    fn run_with_lock(&self, host: usize, command: &str) -> Result<bool, String> {
        let resource = self.resource();
        self.ask(host, &["client", "command", "-r", &resource, "-c", command])
    }

    /// How long it takes from wanting the lock, which nobody else wants, to a command that has run with it: the
    /// giving back of the time before is part of it, as it is in Mainstay's rows.
    pub(crate) fn uncontended(&self, times: u32) -> Result<Vec<Duration>, String> {
        let mut took = Vec::new();
        for _ in 0..times {
            let begun = Instant::now();
            while !self.run_with_lock(1, "/bin/true")? {
                if begun.elapsed() > READY_WITHIN {
                    return Err("the lock is never free".to_owned());
                }
            }
            took.push(begun.elapsed());
        }
        Ok(took)
    }

    /// From the death of the daemon and of the holder until another host has the lock.
    pub(crate) fn takeover(mut self) -> Result<Duration, String> {
        let resource = self.resource();
        let (script, held) = (self.dir.join("hold.sh"), self.dir.join("held"));
        let text = format!("#!/bin/sh\n: > '{}'\nexec sleep 600\n", held.display());
        let made = fs::write(&script, text);
        made.and_then(|()| fs::set_permissions(&script, Permissions::from_mode(0o700)))
            .map_err(|e| e.to_string())?;
        let command = script.display().to_string();
        let hold = ["client", "command", "-r", &resource, "-c", &command];
        let start = Instant::now();
        // Refused while the daemon still gives back what was taken before.
        let mut holder = loop {
            let child = self.command(1, &hold).spawn().map_err(|e| e.to_string())?;
            let mut child = Running(child);
            while !held.exists() && child.0.try_wait().map_err(|e| e.to_string())?.is_none() {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            if held.exists() {
                break child;
            }
            if start.elapsed() > READY_WITHIN {
                return Err("the first host never took the lock".to_owned());
            }
        };
        let died = Instant::now();
        if let Some(first) = self.hosts.first_mut() {
            drop(first.take());
        }
        let _ = holder.0.kill();
        while !self.run_with_lock(2, "/bin/true")? {
            if died.elapsed() > TAKEOVER_WITHIN {
                return Err(format!("nobody took the lock within {TAKEOVER_WITHIN:?}"));
            }
            std::thread::park_timeout(Duration::from_millis(200));
        }
        Ok(died.elapsed())
    }
}
