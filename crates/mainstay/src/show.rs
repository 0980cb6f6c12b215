//! The commands that ask an agent: status, hosts, vms, events, explain, power-on, power-off.

use crate::cli::{Common, EventsArgs, ExplainArgs, PowerOffArgs, PowerOnArgs};
use crate::control::Target;
use crate::fail::{Context, Failure, Result};
use crate::ui::{self, Cell, Table, Tone};
use mainstay_agent::control::EventLine;
use mainstay_core::config::{IsolationResponse, nearest};
use mainstay_core::event::{EventKind, HostState};
use mainstay_core::health::Issue;
use mainstay_core::id::{HostId, VmId};
use mainstay_core::status::{DatastoreStatus, Explanation, HostStatus, Status, VmStatus};
use mainstay_core::wire::RoleTag;
use serde_json::json;

/// `mainstay status`.
pub(crate) fn status(common: &Common) -> Result<()> {
    let status = ask_status(common)?;
    if common.json {
        ui::json(&status);
        return Ok(());
    }
    let primary = status
        .primary
        .as_ref()
        .map_or("none known".into(), ToString::to_string);
    let strong = |text: &dyn std::fmt::Display| Tone::Strong.paint(text);
    ui::line(format_args!(
        "host      {} ({})",
        strong(&status.host),
        role(status.role)
    ));
    ui::line(format_args!("primary   {}", strong(&primary)));
    let holding = status.inequalities.iter().filter(|i| i.holds).count();
    ui::line(format_args!(
        "profile   {}: {} margin for the guard beyond its worst latency; {holding} of {} timer rules hold",
        strong(&status.profile),
        ui::millis(status.margin_ms),
        status.inequalities.len(),
    ));
    let running = status.vms.iter().filter(|v| v.state == "running").count();
    let protected = status.vms.iter().filter(|v| v.protected).count();
    ui::line(format_args!(
        "VMs       {}: {running} running, {protected} protected",
        status.vms.len()
    ));
    ui::line("");
    hosts_table(&status.hosts).without_last().print();
    ui::line("");
    datastores_table(&status.datastores).print();
    for inequality in status.inequalities.iter().filter(|i| !i.holds) {
        ui::line(Tone::Bad.paint(format_args!(
            "broken rule: {} ({:.1} ms against {:.1} ms)",
            inequality.rule, inequality.left_ms, inequality.right_ms
        )));
    }
    if !status.issues.is_empty() {
        ui::line("");
        ui::line(Tone::Warn.paint("weaker than it should be"));
        for line in issue_lines(&status.issues) {
            ui::line(format_args!("  - {line}"));
        }
    }
    if !status.ignored.is_empty() {
        let list: Vec<String> = status
            .ignored
            .iter()
            .map(|(kind, n)| format!("{kind} {n}"))
            .collect();
        ui::line(Tone::Dim.paint(format_args!("\nignored inputs: {}", list.join(", "))));
    }
    Ok(())
}

/// One line for each weakness; hosts that have the same one share it.
fn issue_lines(issues: &[Issue]) -> Vec<String> {
    let mut alike: Vec<(&Issue, Vec<String>)> = Vec::new();
    for issue in issues {
        let host = issue.host.as_ref().map(ToString::to_string);
        let same = |(other, _): &&mut (&Issue, Vec<String>)| {
            issue.host.is_some() && other.host.is_some() && other.text == issue.text
        };
        match alike.iter_mut().find(same) {
            Some((_, hosts)) => hosts.extend(host),
            None => alike.push((issue, host.into_iter().collect())),
        }
    }
    let line = |(issue, hosts): (&Issue, Vec<String>)| match hosts.as_slice() {
        [] | [_] => issue.to_string(),
        many => format!("{}: {}", many.join(", "), issue.text),
    };
    alike.into_iter().map(line).collect()
}

/// `mainstay hosts`.
pub(crate) fn hosts(common: &Common) -> Result<()> {
    let status = ask_status(common)?;
    if common.json {
        ui::json(&status.hosts);
    } else {
        print_with_reasons(hosts_table(&status.hosts), "host");
        note_view(&status);
    }
    Ok(())
}

/// `mainstay vms`.
pub(crate) fn vms(common: &Common) -> Result<()> {
    let status = ask_status(common)?;
    if common.json {
        ui::json(&status.vms);
    } else {
        print_with_reasons(vms_table(&status.vms), "vm");
        note_view(&status);
    }
    Ok(())
}

/// Prints a table whose last column says why, without it where the terminal is too narrow.
fn print_with_reasons(table: Table, of: &str) {
    if ui::room_for_sentences() {
        table.print();
    } else {
        table.without_last().print();
        ui::line(Tone::Dim.paint(format_args!(
            "why: mainstay explain {of} ID, or a wider terminal"
        )));
    }
}

/// A secondary knows little of the others: say whose view it is.
fn note_view(status: &Status) {
    if status.role != RoleTag::Primary {
        let whole = match &status.primary {
            Some(primary) => format!("the primary, {primary}, knows the whole"),
            None => "there is no primary now".into(),
        };
        ui::line(Tone::Dim.paint(format_args!(
            "as {} ({}) sees it; {whole}",
            status.host,
            role(status.role)
        )));
    }
}

fn ask_status(common: &Common) -> Result<Status> {
    Ok(Target::find(common.socket.as_deref()).client()?.status()?)
}

/// A role in a word.
pub(crate) fn role(role: RoleTag) -> &'static str {
    match role {
        RoleTag::Primary => "primary",
        RoleTag::Secondary => "secondary",
        RoleTag::Electing => "electing",
    }
}

/// A verdict in words, and how to read it.
pub(crate) fn verdict(state: HostState) -> (&'static str, Tone) {
    match state {
        HostState::Live => ("live", Tone::Good),
        HostState::Unreachable => ("unreachable", Tone::Warn),
        HostState::Dead => ("dead", Tone::Bad),
        HostState::Partitioned => ("partitioned", Tone::Warn),
        HostState::Isolated => ("isolated", Tone::Warn),
        HostState::AgentUnreachable => ("agent unreachable", Tone::Warn),
        HostState::Maintenance => ("maintenance", Tone::Dim),
    }
}

fn hosts_table(hosts: &[HostStatus]) -> Table {
    let mut table = Table::new(&[
        "host",
        "role",
        "verdict",
        "heartbeat",
        "VMs",
        "CPU MHz",
        "memory MiB",
        "why",
    ]);
    for host in hosts {
        let (word, tone) = verdict(host.state);
        table.row(vec![
            (&host.host).into(),
            host.role.map_or("-", role).into(),
            Cell::toned(word, tone),
            host.heartbeat_age_ms
                .map_or("-".into(), |ms| format!("{} ago", ui::millis(ms)))
                .into(),
            host.vms.into(),
            format!("{} of {}", host.cpu_mhz.0, host.cpu_mhz.1).into(),
            format!("{} of {}", host.memory_mb.0, host.memory_mb.1).into(),
            Cell::toned(&host.why, Tone::Dim),
        ]);
    }
    table
}

fn datastores_table(datastores: &[DatastoreStatus]) -> Table {
    let mut table = Table::new(&[
        "datastore",
        "state",
        "owner",
        "fence",
        "right left",
        "protected",
        "problem",
    ]);
    for datastore in datastores {
        let state = if datastore.usable {
            Cell::toned("usable", Tone::Good)
        } else {
            Cell::toned("not usable", Tone::Bad)
        };
        let problem = datastore.problem.as_deref().unwrap_or_default();
        table.row(vec![
            (&datastore.datastore).into(),
            state,
            datastore.owner.as_ref().map_or("-", HostId::as_str).into(),
            (&datastore.fence).into(),
            ui::millis(datastore.right_ms).into(),
            datastore.protected.into(),
            Cell::toned(problem, Tone::Warn),
        ]);
    }
    table
}

fn vms_table(vms: &[VmStatus]) -> Table {
    let mut table = Table::new(&[
        "VM",
        "state",
        "host",
        "datastore",
        "protected",
        "generation",
        "why",
    ]);
    for vm in vms {
        let tone = match vm.state.as_str() {
            "running" => Tone::Good,
            "frozen" | "abandoned" | "paused_on_error" | "killed_not_gone" => Tone::Bad,
            "powered_off" => Tone::Dim,
            _ => Tone::Warn,
        };
        table.row(vec![
            (&vm.vm).into(),
            Cell::toned(vm.state.replace('_', " "), tone),
            vm.host.as_ref().map_or("-", HostId::as_str).into(),
            (&vm.datastore).into(),
            if vm.protected {
                Cell::toned("yes", Tone::Good)
            } else {
                Cell::toned("no", Tone::Warn)
            },
            vm.generation.map_or("-".into(), |g| g.to_string()).into(),
            Cell::toned(&vm.why, Tone::Dim),
        ]);
    }
    table
}

/// `mainstay events`.
pub(crate) fn events(common: &Common, args: &EventsArgs) -> Result<()> {
    let client = Target::find(common.socket.as_deref()).client()?;
    for event in client.events(args.last, args.follow)? {
        let event = event?;
        if common.json {
            ui::json(&event);
        } else {
            let (text, tone) = event_text(&event.event.kind);
            ui::line(format_args!(
                "{}  {}",
                Tone::Dim.paint(&event.wall),
                tone.paint(text)
            ));
            print_why(&event);
        }
        if ui::closed() {
            break;
        }
    }
    Ok(())
}

fn print_why(event: &EventLine) {
    if !event.event.why.is_empty() {
        ui::line(Tone::Dim.paint(format_args!("    {}", event.event.why)));
    }
}

/// An event in a sentence, and how to read it.
pub(crate) fn event_text(kind: &EventKind) -> (String, Tone) {
    match kind {
        EventKind::HostState {
            observer,
            host,
            from,
            to,
        } => {
            let ((from, _), (to, tone)) = (verdict(*from), verdict(*to));
            (
                format!("{observer} calls {host} {to} (it was {from})"),
                tone,
            )
        }
        EventKind::ElectionStarted { host, .. } => {
            (format!("{host} begins an election"), Tone::Warn)
        }
        EventKind::PrimaryElected { host } => (format!("{host} is the primary"), Tone::Good),
        EventKind::PrimaryAbdicated { host, .. } => {
            (format!("{host} is the primary no more"), Tone::Warn)
        }
        EventKind::IsolationDeclared { host } => {
            (format!("{host} is isolated: it hears nobody"), Tone::Bad)
        }
        EventKind::IsolationEnded { host } => (format!("{host} is isolated no more"), Tone::Good),
        EventKind::HostVouched {
            host,
            owner,
            datastore,
        } => (
            format!("{owner} vouches for {host}, whose heartbeat on {datastore} is late"),
            Tone::Warn,
        ),
        EventKind::BeaconsChanged { host, datastores } => (
            format!("the heartbeat of {host} is on {datastores} now"),
            Tone::Plain,
        ),
        EventKind::ConfigChanged { host, version } => (
            format!("{host} has version {version} of the configuration"),
            Tone::Plain,
        ),
        EventKind::HostLeaving { host } => (
            format!("{host} is being shut down by its admin"),
            Tone::Warn,
        ),
        EventKind::DrillStarted { host } => (
            format!("a drill: {host} falls silent, as if it was lost"),
            Tone::Warn,
        ),
        EventKind::DrillEnded { host } => {
            (format!("the drill is over: {host} is back"), Tone::Good)
        }
        EventKind::RestartPlanned { host } => (
            format!("the agent of {host} will be restarted on purpose"),
            Tone::Warn,
        ),
        EventKind::FenceRequested { host, by, .. } => (
            format!("{by} asks the fence device of {host}, to switch it off"),
            Tone::Warn,
        ),
        EventKind::FenceConfirmed { host, by, .. } => (
            format!("{host} is off: {by} has it from its fence device"),
            Tone::Good,
        ),
        EventKind::FenceFailed { host, by, reason } => (
            format!("{by} could not prove by its power that {host} is dead: {reason}"),
            Tone::Bad,
        ),
        EventKind::DatastoreOwned { host, datastore } => {
            (format!("{host} owns {datastore}"), Tone::Plain)
        }
        EventKind::DatastoreReleased { host, datastore } => {
            (format!("{host} owns {datastore} no more"), Tone::Plain)
        }
        other => vm_event_text(other),
    }
}

fn vm_event_text(kind: &EventKind) -> (String, Tone) {
    match kind {
        EventKind::VmProtected { vm, datastore } => (
            format!("{vm} is protected: it is on the list of {datastore}"),
            Tone::Good,
        ),
        EventKind::VmUnprotected { vm, reason } => {
            (format!("{vm} is protected no more: {reason}"), Tone::Warn)
        }
        EventKind::RestartRequested { vm, host, attempt } => (
            format!("{host} is asked to start {vm} (attempt {attempt})"),
            Tone::Plain,
        ),
        EventKind::RestartFailed {
            vm,
            host,
            attempt,
            reason,
        } => (
            format!("{host} could not start {vm} (attempt {attempt}): {reason}"),
            Tone::Bad,
        ),
        EventKind::RestartWaiting { vm, reason, .. } => {
            (format!("{vm} waits: {reason}"), Tone::Warn)
        }
        EventKind::RestartAbandoned {
            vm,
            attempt,
            reason,
        } => (
            format!("{vm} is given up after {attempt} attempts: {reason}"),
            Tone::Bad,
        ),
        EventKind::LockAcquired {
            vm,
            host,
            generation,
        } => (
            format!("{host} takes the lock of {vm} (generation {generation})"),
            Tone::Plain,
        ),
        EventKind::LockBroken {
            vm,
            host,
            generation,
            from,
        } => (
            format!("{host} breaks the lock of {vm} that {from} held (generation {generation})"),
            Tone::Plain,
        ),
        EventKind::LockLost {
            vm,
            host,
            generation,
        } => (
            format!("{host} lost the lock of {vm} (it held generation {generation})"),
            Tone::Bad,
        ),
        EventKind::LockReleased {
            vm,
            host,
            generation,
        } => (
            format!("{host} gives the lock of {vm} back (generation {generation})"),
            Tone::Plain,
        ),
        EventKind::VmStarted {
            vm,
            host,
            generation,
        } => (
            format!("{vm} runs on {host} (generation {generation})"),
            Tone::Good,
        ),
        EventKind::VmStopped { vm, host, reason } => {
            let reason = serde_json::to_value(reason).unwrap_or_default();
            let reason = reason
                .as_str()
                .unwrap_or("for an unknown reason")
                .replace('_', " ");
            (format!("{vm} stopped on {host}: {reason}"), Tone::Warn)
        }
        EventKind::VmFrozen { vm, host, reason } => {
            (format!("{vm} is frozen on {host}: {reason}"), Tone::Bad)
        }
        EventKind::VmThawed { vm, host, reason } => {
            (format!("{vm} runs again on {host}: {reason}"), Tone::Good)
        }
        EventKind::IsolationResponse { host, vm, action } => {
            let what = match action {
                IsolationResponse::ShutDown => "asks the guest of",
                _ => "switches",
            };
            let end = match action {
                IsolationResponse::ShutDown => "to shut down",
                _ => "off",
            };
            (format!("isolated {host} {what} {vm} {end}"), Tone::Bad)
        }
        EventKind::IsolationSkipped { host, vm, reason } => (
            format!("isolated {host} leaves {vm} alone: {reason}"),
            Tone::Plain,
        ),
        EventKind::ConfigIssue { issue, host, .. } => (format!("{host}: {issue}"), Tone::Warn),
        other => (format!("{other:?}"), Tone::Plain),
    }
}

/// `mainstay explain`.
pub(crate) fn explain(common: &Common, args: &ExplainArgs) -> Result<()> {
    let client = Target::find(common.socket.as_deref()).client()?;
    let explanation = match (args.subject.as_str(), &args.id) {
        ("vm", Some(id)) => client.explain_vm(&vm_id(id)?)?,
        ("host", Some(id)) => client.explain_host(&host_id(id)?)?,
        (other, Some(_)) => {
            return Err(Failure::new(format_args!(
                "there is nothing to explain about a \"{other}\""
            ))
            .remedy(
                "write `mainstay explain vm ID`, `mainstay explain host ID`, or the id alone",
            ));
        }
        (id, None) => {
            let status = client.status()?;
            if status.vms.iter().any(|v| v.vm.as_str() == id) {
                client.explain_vm(&vm_id(id)?)?
            } else if status.hosts.iter().any(|h| h.host.as_str() == id) {
                client.explain_host(&host_id(id)?)?
            } else {
                return Err(unknown_id(id, &status));
            }
        }
    };
    if common.json {
        ui::json(&explanation);
    } else {
        print_explanation(&explanation);
    }
    Ok(())
}

fn unknown_id(id: &str, status: &Status) -> Failure {
    let known = status
        .vms
        .iter()
        .map(|v| v.vm.as_str())
        .chain(status.hosts.iter().map(|h| h.host.as_str()));
    let remedy = match nearest(id, known) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => "`mainstay vms` and `mainstay hosts` list the ids".into(),
    };
    Failure::new(format_args!(
        "{} knows no VM and no host \"{id}\"",
        status.host
    ))
    .remedy(remedy)
}

fn print_explanation(explanation: &Explanation) {
    ui::line(Tone::Strong.paint(&explanation.subject));
    for sentence in &explanation.sentences {
        ui::line(format_args!("  {sentence}"));
    }
    if explanation.events.is_empty() {
        return;
    }
    ui::line("");
    ui::line(Tone::Dim.paint("how it came about (seconds before the last event)"));
    let last = explanation.events.last().map(|e| e.at).unwrap_or_default();
    for event in &explanation.events {
        let (text, tone) = event_text(&event.kind);
        let before = last.since(event.at).as_secs_f64();
        ui::line(format_args!(
            "  {:>9}  {}",
            format!("-{before:.1} s"),
            tone.paint(text)
        ));
        if !event.why.is_empty() {
            ui::line(Tone::Dim.paint(format_args!("             {}", event.why)));
        }
    }
}

/// `mainstay power-on`.
pub(crate) fn power_on(common: &Common, args: &PowerOnArgs) -> Result<()> {
    let vm = vm_id(&args.vm)?;
    let mut target = Target::find(common.socket.as_deref());
    if let Some(host) = &args.host {
        target = target.of_host(&host_id(host)?);
    }
    let client = target.client()?;
    let host = client.ping()?.host;
    if let Some(wanted) = args
        .host
        .as_deref()
        .filter(|wanted| *wanted != host.as_str())
    {
        return Err(Failure::new(format_args!(
            "the agent that answers is that of {host}, not of {wanted}"
        ))
        .at(target.socket.display())
        .remedy(format_args!(
            "name the control socket of {wanted} with --socket"
        )));
    }
    client.power_on(&vm)?;
    report_power(common, &vm, &host, "on");
    Ok(())
}

/// `mainstay power-off`.
pub(crate) fn power_off(common: &Common, args: &PowerOffArgs) -> Result<()> {
    let vm = vm_id(&args.vm)?;
    let target = Target::find(common.socket.as_deref());
    let status = target.client()?.status()?;
    let at = status
        .vms
        .iter()
        .find(|v| v.vm == vm)
        .and_then(|v| v.host.clone())
        .unwrap_or(status.host);
    target.of_host(&at).client()?.power_off(&vm)?;
    report_power(common, &vm, &at, "off");
    Ok(())
}

fn report_power(common: &Common, vm: &VmId, host: &HostId, state: &str) {
    if common.json {
        ui::json(&json!({ "vm": vm, "host": host, "asked": state }));
    } else {
        ui::line(format_args!(
            "{host} powers {vm} {state}; `mainstay vms` shows when it is done"
        ));
    }
}

fn vm_id(text: &str) -> Result<VmId> {
    VmId::new(text).context("this is no id of a VM")
}

fn host_id(text: &str) -> Result<HostId> {
    HostId::new(text).context("this is no id of a host")
}
