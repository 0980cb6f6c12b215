//! The same failover with Pacemaker and Corosync, as the distribution packages them, on hosts of the lab: in
//! the same namespaces, behind the same switch and on the same machine as Mainstay's own, so that two tables
//! can stand side by side.
//!
//! A resource of these clusters is a file that its agent makes; its start takes no time of its own, so what is
//! measured is Pacemaker's time alone. A host dies with its power: every process at once, and its cables.
//! No host can reset the machine (`peer/host.rs`).
//!
//! # Never here
//! A setting that makes Pacemaker slower than its defaults; a figure that was not measured in this run.

mod cluster;
mod config;
mod host;
mod rest;
mod state;

use crate::fail::{Failure, Result};
use crate::procs::run_tool;
use cluster::Cluster;
pub use rest::Rest;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Programs that every variant needs, with the Debian package of each.
const PROGRAMS: &[(&str, &str)] = &[
    ("corosync", "corosync"),
    ("corosync-cmapctl", "corosync"),
    ("pacemakerd", "pacemaker"),
    (config::FENCE_AGENT_TYPE, "pacemaker"),
    ("cibadmin", "pacemaker-cli-utils"),
    ("crm_mon", "pacemaker-cli-utils"),
    ("crmadmin", "pacemaker-cli-utils"),
    ("setpriv", "util-linux"),
    ("timeout", "coreutils"),
];
/// And what the variant without a BMC needs.
const WATCHDOG_PROGRAMS: &[(&str, &str)] = &[("sbd", "sbd")];
/// Where they are looked for: some users' PATH has no `sbin`.
const SEARCHED: &[&str] = &["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// How a cluster makes sure that a lost host is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fencing {
    /// It does not.
    None,
    /// A BMC takes its power and confirms after this time.
    Bmc { takes: Duration },
    /// The host's watchdog does it; others take it for dead after this time.
    Watchdog { assumed_dead: Duration },
}

/// A way to set up the cluster, and what dies: a row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// No fencing at all. Unsafe: where only a cable is cut, both sides run.
    NoFencing,
    /// A BMC that confirms at once; an ordinary host dies.
    Bmc,
    /// The same, and the host that dies is the coordinator (DC).
    BmcCoordinator,
    /// A BMC that takes 5 s.
    SlowBmc,
    /// Diskless sbd, no BMC. Its device is not part of what is measured: the survivors' wait is the same with
    /// and without one.
    Watchdog,
    /// Corosync's token tuned to 1 s, a BMC that confirms at once.
    ShortToken,
}

impl Variant {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 6] = [
        Self::NoFencing,
        Self::Bmc,
        Self::BmcCoordinator,
        Self::SlowBmc,
        Self::Watchdog,
        Self::ShortToken,
    ];

    /// Its name on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoFencing => "no-fencing",
            Self::Bmc => "bmc",
            Self::BmcCoordinator => "bmc-coordinator",
            Self::SlowBmc => "slow-bmc",
            Self::Watchdog => "watchdog",
            Self::ShortToken => "short-token",
        }
    }

    /// What it is, for a table.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::NoFencing => "no fencing (unsafe)",
            Self::Bmc => "a BMC that confirms at once",
            Self::BmcCoordinator => "the same, the coordinator dies",
            Self::SlowBmc => "a BMC that takes 5 s",
            Self::Watchdog => "watchdog (diskless sbd), no BMC",
            Self::ShortToken => "token of 1 s, a BMC that confirms at once",
        }
    }

    pub(crate) fn fencing(self) -> Fencing {
        match self {
            Self::NoFencing => Fencing::None,
            Self::Bmc | Self::BmcCoordinator | Self::ShortToken => Fencing::Bmc {
                takes: Duration::ZERO,
            },
            Self::SlowBmc => Fencing::Bmc {
                takes: Duration::from_secs(5),
            },
            // Twice sbd's own time-out, 5 s, as its manual asks for.
            Self::Watchdog => Fencing::Watchdog {
                assumed_dead: Duration::from_secs(10),
            },
        }
    }

    pub(crate) fn token_ms(self) -> Option<u32> {
        (self == Self::ShortToken).then_some(1_000)
    }

    pub(crate) fn kills_coordinator(self) -> bool {
        self == Self::BmcCoordinator
    }
}

/// What is measured, and how often.
#[derive(Debug, Clone)]
pub struct Options {
    /// The rows, in this order.
    pub variants: Vec<Variant>,
    /// For each variant, a cluster with so many resources, for each of these numbers. At least 1 each.
    pub resources: Vec<usize>,
    /// How often a host dies in each cluster.
    pub runs: usize,
    /// Hosts of a cluster: at least 3, so that the survivors have a quorum.
    pub hosts: usize,
    /// For how long each cluster is watched at rest; not at all when left out.
    pub rest: Option<Duration>,
    /// Where files go; a file system in memory when it is left out.
    pub dir: Option<PathBuf>,
    /// Files stay when a cluster ends. They stay anyway when something fails.
    pub keep: bool,
    /// Set, it ends the measurement soon, as interrupted.
    pub stop: Arc<AtomicBool>,
}

impl Default for Options {
    /// Everything with 10 resources, 5 runs, 3 hosts.
    fn default() -> Self {
        Self {
            variants: Variant::ALL.to_vec(),
            resources: vec![10],
            runs: 5,
            hosts: 3,
            rest: None,
            dir: None,
            keep: false,
            stop: Arc::default(),
        }
    }
}

/// One death of a host: times from its last moment.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize)]
pub struct Sample {
    /// Until the first resource was started on another host, in seconds.
    pub first_s: f64,
    /// Until the last was, in seconds.
    pub all_s: f64,
    /// The machine's load average over a minute when the host died. Pacemaker looks at it too, and starts
    /// fewer resources at a time where it is high, whoever makes it so.
    pub load: f64,
}

/// All runs of one cluster.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// How it was set up, and what died.
    pub variant: Variant,
    /// How many resources it had, all on the host that died.
    pub resources: usize,
    /// The runs, in their order.
    pub samples: Vec<Sample>,
    /// What each host took at rest, before the first run; empty when that was not asked for.
    pub rest: Vec<Rest>,
    /// The id of the run of the lab, as in its processes' environment.
    pub run: String,
}

/// What was measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// The versions of the programs, one line each.
    pub versions: Vec<String>,
    /// A row for each variant and number of resources.
    pub rows: Vec<Row>,
    /// Variants that cannot be had here, and why.
    pub skipped: Vec<(Variant, String)>,
}

/// Whether clusters of Pacemaker's can be made here. The variant with a watchdog needs sbd besides; without
/// it, [`measure`] skips that row.
///
/// # Errors
/// What is missing, with the packages to install.
pub fn available() -> Result<()> {
    crate::network::available()?;
    if crate::cgroup::root().is_none() {
        return Err(Failure::new("no cgroup v2 file system is mounted").remedy(
            "mount one: mount -t cgroup2 none /sys/fs/cgroup (or below it, beside version 1)",
        ));
    }
    programs(PROGRAMS)
}

/// Whether all of these are installed.
fn programs(wanted: &[(&str, &str)]) -> Result<()> {
    let is_there = |name: &str| {
        SEARCHED
            .iter()
            .any(|dir| Path::new(dir).join(name).exists())
    };
    let missing = wanted.iter().filter(|(name, _)| !is_there(name));
    let (names, mut packages): (Vec<&str>, Vec<&str>) = missing.copied().unzip();
    if names.is_empty() {
        return Ok(());
    }
    packages.dedup();
    Err(
        Failure::new(format_args!("not installed: {}", names.join(", "))).remedy(format_args!(
            "apt-get install {} (their daemons need not be started)",
            packages.join(" ")
        )),
    )
}

/// Makes a cluster for each variant and number of resources, one after the other, and has a host die in each
/// as often as asked for. `progress` is told what is being done.
///
/// # Errors
/// When clusters cannot be made here, one does not come to rest or does not restart its resources in time
/// (the failure names the directory with its logs, which stays), or `stop` was set.
pub fn measure(options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Report> {
    check(options)?;
    available()?;
    let mut report = Report {
        versions: versions()?,
        ..Report::default()
    };
    for variant in options.variants.iter().copied() {
        if matches!(variant.fencing(), Fencing::Watchdog { .. })
            && let Err(failure) = programs(WATCHDOG_PROGRAMS)
        {
            report.skipped.push((variant, failure.one_line()));
            continue;
        }
        for resources in options.resources.iter().copied() {
            let row = row(variant, resources, options, progress)?;
            report.rows.push(row);
        }
    }
    Ok(report)
}

/// Refuses what could not end well.
fn check(options: &Options) -> Result<()> {
    if options.hosts < 3 {
        return Err(Failure::new(format_args!(
            "{} hosts are too few: the survivors would have no quorum",
            options.hosts
        ))
        .remedy("give at least 3"));
    }
    if options.resources.contains(&0) {
        return Err(
            Failure::new("a cluster without resources restarts none").remedy("give at least 1")
        );
    }
    Ok(())
}

fn row(
    variant: Variant,
    resources: usize,
    options: &Options,
    progress: &mut dyn FnMut(&str),
) -> Result<Row> {
    let name = format!("Pacemaker, {}, {resources} resources", variant.label());
    progress(&format!("{name}: begins"));
    let mut cluster = Cluster::make(variant, resources, options)?;
    let mut row = Row {
        variant,
        resources,
        samples: Vec::new(),
        rest: Vec::new(),
        run: cluster.run().to_owned(),
    };
    if let Some(time) = options.rest {
        cluster.prepare()?;
        progress(&format!("{name}: at rest for {} s", time.as_secs()));
        row.rest = rest::measure(&cluster, time)?;
    }
    for number in 1..=options.runs {
        let victim = cluster.prepare()?;
        let sample = cluster.fail_over(victim)?;
        progress(&format!(
            "{name}: run {number} of {}: first {:.2} s, all {:.2} s",
            options.runs, sample.first_s, sample.all_s
        ));
        row.samples.push(sample);
    }
    Ok(row)
}

/// What each of the programs says of its version.
fn versions() -> Result<Vec<String>> {
    let first_line = |program: &str, word: &str| {
        let path = SEARCHED.iter().map(|dir| Path::new(dir).join(program));
        let path = path.clone().find(|p| p.exists()).unwrap_or_default();
        let output = run_tool(Command::new(&path).arg(word));
        let output = output.map_err(|e| Failure::new(e).at(path.display()))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(said.lines().next().unwrap_or_default().trim().to_owned())
    };
    [("pacemakerd", "--version"), ("corosync", "-v")]
        .iter()
        .map(|(program, word)| first_line(program, word))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_packages() {
        let wanted = [
            ("sh", "dash"),
            ("no-such-program", "a-package"),
            ("nor-this", "a-package"),
        ];
        let failure = programs(&wanted).expect_err("missing").to_string();
        assert!(failure.contains("no-such-program, nor-this"), "{failure}");
        assert!(failure.contains("apt-get install a-package ("), "{failure}");
        programs(&wanted[..1]).expect("sh is everywhere");
    }

    #[test]
    fn too_few_hosts_are_refused() {
        let few = Options {
            hosts: 2,
            ..Options::default()
        };
        assert!(check(&few).is_err());
        check(&Options::default()).expect("the defaults are sound");
    }

    #[test]
    fn variants_have_names_of_their_own() {
        let names: std::collections::BTreeSet<_> = Variant::ALL.iter().map(|v| v.name()).collect();
        assert_eq!(names.len(), Variant::ALL.len());
        for variant in Variant::ALL {
            let json = serde_json::to_value(variant).expect("a variant");
            assert_eq!(json, variant.name());
        }
    }
}
