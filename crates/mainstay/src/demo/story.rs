//! The demo's story: set up, protect, kill, come back, and what to try next.

use super::cluster::Cluster;
use super::files::DemoHost;
use super::remote;
use super::session::{Failover, Happening, Session};
use super::tell::Teller;
use super::{Options, Victim};
use crate::fail::{Context, Failure, Result};
use crate::ui::{self, Cell, Table, Tone};
use mainstay_core::id::{HostId, VmId};
use mainstay_core::wire::RoleTag;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::Sender;
use std::time::Duration;

/// Far more than any profile needs; a wait that reaches it has found a fault.
const PATIENCE: Duration = Duration::from_secs(120);
/// An agent answers long before; one that ended says so at once.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// A VM shows that it counts before its host is killed.
const COUNTED: u64 = 10;

/// Says what was built and what is weaker here.
pub(crate) fn introduce(cluster: &Cluster, options: &Options, tell: Teller) {
    let (hosts, vms) = (cluster.hosts().len(), cluster.vms().len());
    tell.heading(format_args!(
        "A cluster of {hosts} hosts and {vms} VMs on this machine"
    ));
    let first = cluster
        .hosts()
        .first()
        .map_or(String::new(), |h| cluster.address(h).to_string());
    let last = cluster
        .hosts()
        .last()
        .map_or(String::new(), |h| cluster.address(h).to_string());
    let how = if cluster.has_namespaces() {
        "a network namespace for each host, on one switch"
    } else {
        "loopback"
    };
    tell.fact(
        "network",
        format_args!(
            "{how}: {first} to {last}, isolation address {}",
            cluster.gateway()
        ),
        Tone::Plain,
    );
    tell.fact(
        "storage",
        format_args!(
            "two shared datastores, ds-1 and ds-2, in {}",
            cluster.dir().display()
        ),
        Tone::Plain,
    );
    tell.fact("driver", &options.driver_text, Tone::Plain);
    let timing = cluster.timing();
    let profile = format!(
        "{}: a VM freezes {} after its host's last heartbeat on disk, a lock breaks after {}, a silent host is dead \
         after {}",
        options.plan.profile.name(),
        ui::seconds(timing.freeze),
        ui::seconds(timing.r#break),
        ui::seconds(timing.dead),
    );
    tell.fact("profile", profile, Tone::Plain);
    for weakness in &cluster.weaker {
        tell.fact("weaker", weakness, Tone::Warn);
    }
}

/// Starts the hosts, waits for a primary, powers the VMs on and waits until each is protected.
pub(crate) fn set_up(session: &mut Session<'_>) -> Result<()> {
    let tell = session.tell;
    tell.heading("Starting the hosts");
    let begun = std::time::Instant::now();
    let hosts: Vec<DemoHost> = session.cluster.hosts().to_vec();
    for host in &hosts {
        session.start(host)?;
    }
    for host in &hosts {
        wait_for_agent(session, host, begun)?;
    }
    let primary = session.wait(PATIENCE, |s| Ok(agreed_primary(s)))?;
    tell.fact(
        "primary",
        format_args!(
            "{primary}, elected {} after the first start",
            ui::seconds(begun.elapsed())
        ),
        Tone::Good,
    );
    for vm in session.cluster.vms().to_vec() {
        let host = hosts.iter().find(|h| h.number == vm.first_host);
        let host = host.ok_or_else(|| Failure::new(format_args!("{} has no host", vm.id)))?;
        session.cluster.client(host)?.power_on(&vm.id)?;
    }
    session.wait(PATIENCE, |s| Ok(all_protected(s)))?;
    for issue in weaknesses(session) {
        tell.fact("weaker", issue, Tone::Warn);
    }
    tell.heading("Protected VMs");
    let (table, data) = vms_table(session);
    tell.table(&table, &data);
    Ok(())
}

/// What the agents say is weaker here, once each: agents of one machine say the same.
fn weaknesses(session: &Session<'_>) -> BTreeSet<String> {
    let all = session.statuses().into_iter();
    all.flat_map(|(host, status)| {
        let name = format!("{}/", host.id);
        status
            .issues
            .into_iter()
            .map(move |issue| issue.text.replace(&name, "<host>/"))
    })
    .collect()
}

fn wait_for_agent(
    session: &mut Session<'_>,
    host: &DemoHost,
    begun: std::time::Instant,
) -> Result<()> {
    let pong = session.wait(START_PATIENCE, |s| {
        if let Ok(client) = s.cluster.client(host)
            && let Ok(pong) = client.ping()
            && pong.guard_pid.is_some()
        {
            return Ok(Ok(pong));
        }
        if begun.elapsed() > Duration::from_secs(1) && s.cluster.processes(host).is_empty() {
            return Err(died(host));
        }
        Ok(Err(format!("the agent of {} does not answer", host.id)))
    })?;
    let guard = pong
        .guard_pid
        .map_or(String::new(), |pid| format!(", guard {pid}"));
    session.tell.fact(
        host.id.as_str(),
        format_args!("agent {}{guard}", pong.pid),
        Tone::Plain,
    );
    Ok(())
}

/// An agent that ended while it was started: what it said last.
fn died(host: &DemoHost) -> Failure {
    let log = host.logs().join("agent.out");
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let last = lines
        .iter()
        .rev()
        .take(5)
        .rev()
        .copied()
        .collect::<Vec<_>>()
        .join("\n  ");
    Failure::new(format_args!(
        "the agent of {} ended at once; it said:\n  {last}",
        host.id
    ))
    .at(log.display())
}

/// The primary, once every host names the same one and that one knows.
fn agreed_primary(session: &Session<'_>) -> std::result::Result<HostId, String> {
    let statuses = session.statuses();
    let up = session.cluster.up().count();
    let named: Vec<&HostId> = statuses
        .iter()
        .filter_map(|(_, s)| s.primary.as_ref())
        .collect();
    let missing = || "the hosts do not agree on a primary".to_owned();
    let first = (*named.first().ok_or_else(missing)?).clone();
    let knows = statuses
        .iter()
        .any(|(h, s)| h.id == first && s.role == RoleTag::Primary);
    if knows && named.len() == up && named.iter().all(|n| **n == first) {
        Ok(first)
    } else {
        Err(missing())
    }
}

/// Whether every VM runs, counts, and stands on a protected list, by the primary.
fn all_protected(session: &Session<'_>) -> std::result::Result<(), String> {
    let statuses = session.statuses();
    let primary = statuses.iter().find(|(_, s)| s.role == RoleTag::Primary);
    let (_, status) = primary.ok_or("there is no primary")?;
    for vm in session.cluster.vms() {
        let seen = status.vms.iter().find(|v| v.vm == vm.id);
        match seen {
            Some(v) if v.protected && v.state == "running" => {}
            Some(v) => {
                return Err(format!(
                    "{} is {}{}: {}",
                    vm.id,
                    v.state,
                    if v.protected { "" } else { ", not protected" },
                    v.why
                ));
            }
            None => return Err(format!("the primary does not know {}", vm.id)),
        }
        if session
            .cluster
            .counter(&vm.id)
            .is_none_or(|c| c.counter < COUNTED)
        {
            return Err(format!("{} does not count on its disk", vm.id));
        }
    }
    Ok(())
}

fn vms_table(session: &Session<'_>) -> (Table, Value) {
    let homes = session.homes();
    let primary = session.primary();
    let mut table = Table::new(&["VM", "host", "datastore", "protected", "counter on disk"]);
    let mut data = Vec::new();
    for vm in session.cluster.vms() {
        let host = homes.get(&vm.id);
        let role = if host.is_some() && host == primary.as_ref() {
            " (primary)"
        } else {
            ""
        };
        let counter = session.cluster.counter(&vm.id).map_or(0, |c| c.counter);
        table.row(vec![
            (&vm.id).into(),
            format!("{}{role}", host.map_or("-", HostId::as_str)).into(),
            (&vm.datastore).into(),
            Cell::toned("yes", Tone::Good),
            counter.into(),
        ]);
        data.push(json!({ "vm": vm.id, "host": host, "datastore": vm.datastore, "protected": true, "counter": counter }));
    }
    (table, json!({ "vms": data }))
}

/// Kills a host and waits until its VMs count again.
pub(crate) fn fail_over(session: &mut Session<'_>, victim: Victim) -> Result<Failover> {
    let tell = session.tell;
    let host = choose(session, victim)?;
    tell.heading(format_args!("A host dies: {}", host.id));
    session.telling_events = true;
    session.kill(&host)?;
    let which = session.failovers.len() - 1;
    session.wait(PATIENCE, |s| {
        let Some(failover) = s.failovers.get(which) else {
            return Ok(Ok(()));
        };
        let waiting: Vec<&str> = failover
            .lost
            .iter()
            .filter(|l| l.back.is_none())
            .map(|l| l.vm.as_str())
            .collect();
        Ok(if failover.done() {
            Ok(())
        } else {
            Err(format!("{} did not come back", waiting.join(", ")))
        })
    })?;
    let failover = session
        .failovers
        .get(which)
        .cloned()
        .ok_or_else(|| Failure::new("the failover is gone"))?;
    check(session, &failover)?;
    Ok(failover)
}

fn choose(session: &Session<'_>, victim: Victim) -> Result<DemoHost> {
    let homes = session.homes();
    let primary = session.primary();
    let runs = |host: &&DemoHost| homes.values().any(|home| *home == host.id);
    let wanted = |host: &&DemoHost| match victim {
        Victim::Secondary => Some(&host.id) != primary.as_ref(),
        Victim::Primary => Some(&host.id) == primary.as_ref(),
    };
    session
        .cluster
        .up()
        .filter(runs)
        .find(wanted)
        .cloned()
        .ok_or_else(|| {
            Failure::new(format_args!(
                "no {} runs a VM, so that there is nothing to show",
                victim.name()
            ))
            .remedy("give the cluster as many VMs as hosts, or more: --vms")
        })
}

/// Every VM, those of other hosts too, must count on, from where it stood.
fn check(session: &mut Session<'_>, failover: &Failover) -> Result<()> {
    for lost in &failover.lost {
        let counter = session.cluster.counter(&lost.vm).map_or(0, |c| c.counter);
        if counter <= lost.stopped_at {
            return Err(Failure::new(format_args!(
                "the counter of {} fell from {} to {counter}",
                lost.vm, lost.stopped_at
            )));
        }
    }
    let before: BTreeMap<VmId, u64> = counters(session);
    session.wait(START_PATIENCE, |s| {
        let after = counters(s);
        let still = |vm: &VmId| after.get(vm) <= before.get(vm);
        let stuck: Vec<String> = before
            .keys()
            .filter(|vm| still(vm))
            .map(ToString::to_string)
            .collect();
        Ok(if stuck.is_empty() {
            Ok(())
        } else {
            Err(format!("{} stands still", stuck.join(", ")))
        })
    })
}

fn counters(session: &Session<'_>) -> BTreeMap<VmId, u64> {
    let read = |vm: &VmId| session.cluster.counter(vm).map_or(0, |c| c.counter);
    session
        .cluster
        .vms()
        .iter()
        .map(|vm| (vm.id.clone(), read(&vm.id)))
        .collect()
}

/// The failover in a table.
pub(crate) fn sum_up(session: &Session<'_>, failover: &Failover) {
    let tell = session.tell;
    tell.heading("What was kept");
    let mut table = Table::new(&[
        "VM",
        "was on",
        "runs on",
        "counter stopped at",
        "went on at",
        "was out for",
    ]);
    for lost in &failover.lost {
        let (first, after) = lost.back.unwrap_or_default();
        table.row(vec![
            (&lost.vm).into(),
            (&failover.victim).into(),
            lost.started
                .as_ref()
                .map_or("-", |(host, _)| host.as_str())
                .into(),
            lost.stopped_at.into(),
            Cell::toned(first, Tone::Good),
            Cell::toned(ui::seconds(after), Tone::Strong),
        ]);
    }
    tell.table(&table, &json!({ "failover": failover.to_json() }));
    let verdict = failover.verdict.map_or(String::new(), |d| {
        format!(", the verdict took {}", ui::seconds(d))
    });
    let out = failover.out_for().map_or(String::new(), ui::seconds);
    let total = session.cluster.vms().len();
    tell.line(format_args!(
        "All {total} VMs count. {} of them died with {} and came back in {out}{verdict}.",
        failover.lost.len(),
        failover.victim,
    ));
}

/// Stays up until somebody ends it.
pub(crate) fn stay(session: &mut Session<'_>, to_self: Sender<Happening>) -> Result<()> {
    let tell = session.tell;
    remote::listen(&session.cluster.socket(), to_self)?;
    session.open = true;
    let program = std::env::args()
        .next()
        .filter(|a| a.contains('/'))
        .unwrap_or_else(|| "mainstay".into());
    let vm = session
        .cluster
        .vms()
        .first()
        .map_or("vm-1", |vm| vm.id.as_str())
        .to_owned();
    let down = session
        .cluster
        .hosts()
        .iter()
        .find(|h| !session.cluster.is_up(&h.id))
        .map(|h| h.id.to_string());
    let up = session.cluster.up().last().map(|h| h.id.to_string());
    tell.heading("The cluster stays up. In another terminal:");
    for command in [
        "status".into(),
        "vms".into(),
        "events --last 20".into(),
        format!("explain {vm}"),
    ] {
        tell.line(format_args!("  {program} {command}"));
    }
    if let Some(host) = down {
        tell.line(format_args!(
            "  {program} demo start {host}     {}",
            Tone::Dim.paint("# bring it back")
        ));
    }
    if let Some(host) = up {
        tell.line(format_args!(
            "  {program} demo kill {host}      {}",
            Tone::Dim.paint("# kill another")
        ));
    }
    tell.line(Tone::Dim.paint("Ctrl-C ends it and leaves nothing behind. What happens meanwhile:"));
    loop {
        session.hear(Duration::from_millis(50))?;
        if ui::closed() {
            return Err(Failure::interrupted());
        }
    }
}

/// Agent and guard at rest, by `/proc`, over all hosts.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Rest {
    /// Resident memory of one host's agent and guard in KiB, the mean of all hosts.
    pub(crate) rss_kib: u64,
    /// Processor seconds per minute of one host's agent and guard, the mean of all hosts.
    pub(crate) cpu_s_per_min: f64,
    /// How long it was measured.
    pub(crate) measured_s: f64,
}

/// Measures agents and guards that have nothing to do.
pub(crate) fn measure_rest(session: &mut Session<'_>, time: Duration) -> Result<Rest> {
    let hosts: Vec<DemoHost> = session.cluster.up().cloned().collect();
    let daemons = |s: &Session<'_>| {
        let all = hosts.iter().flat_map(|h| s.cluster.processes(h));
        all.filter(|(_, line)| line.split(' ').any(|w| w == "agent" || w == "guard"))
            .map(|(pid, _)| pid)
            .collect::<Vec<_>>()
    };
    let cpu = |pids: &[nix::unistd::Pid]| {
        pids.iter()
            .filter_map(|p| mainstay_lab::procs::cpu_seconds(*p))
            .sum::<f64>()
    };
    let pids = daemons(session);
    let (before, begun) = (cpu(&pids), super::cluster::now());
    let end = begun + time;
    while super::cluster::now() < end {
        session.hear(Duration::from_millis(100))?;
    }
    let measured_s = super::cluster::now().since(begun).as_secs_f64();
    let used = cpu(&pids) - before;
    let count = u32::try_from(hosts.len()).context("too many hosts")?.max(1);
    let rss: u64 = pids
        .iter()
        .filter_map(|p| mainstay_lab::procs::rss_kib(*p))
        .sum();
    Ok(Rest {
        rss_kib: rss / u64::from(count),
        cpu_s_per_min: used / measured_s * 60.0 / f64::from(count),
        measured_s,
    })
}
