//! How long guests run on after their right to run has ended: the real guard, as a process, freezes guests of the real
//! driver at deadlines that the agent's side renews no more. `cargo xtask bench guard` runs it.
//!
//! A value is the time from the deadline in the guard's memory to the guest's last instruction, which the guest itself
//! stored (`guests.rs`). Each row is taken with the processors idle but for the guests, and with as many busy processes
//! of ordinary priority as there are processors.
#![expect(
    clippy::print_stdout,
    reason = "a benchmark prints its figures on standard output"
)]

mod figures;
mod guests;
mod host;
mod options;

use figures::Figures;
use host::{Host, Load};
use mainstay_agent::agent_side::{clear_up, now};
use mainstay_hypervisor::CgroupPlacement;
use options::Options;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// What is wanted of the 99th percentile with all processors busy.
const LIMIT: Duration = Duration::from_millis(50);
/// Where a file system in memory is by custom, as the guard's run directory is on a host.
const MEMORY: &str = "/dev/shm";
const PREFIX: &str = "mainstay-bench-guard-";
/// So long the busy processes run before they count.
const WARM_UP: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    // What the benchmark starts is itself.
    match arguments.first().and_then(|a| a.to_str()) {
        Some("guest") => return guests::guest(arguments.split_off(1)),
        Some("spin") => return host::spin(),
        Some("agent") => return after_death(arguments.get(2).map(Path::new)),
        _ => {}
    }
    let arguments = arguments.iter().map(|a| a.to_string_lossy().into_owned());
    let options = match Options::parse(arguments) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

/// The guard found the benchmark gone, which is its agent here.
fn after_death(agent_toml: Option<&Path>) -> ExitCode {
    let Some(agent_toml) = agent_toml else {
        return ExitCode::from(2);
    };
    if let Err(error) = clear_up(agent_toml) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let own = |dir: &&Path| {
        let name = dir.file_name().and_then(|n| n.to_str());
        name.is_some_and(|n| n.starts_with(PREFIX))
    };
    if let Some(dir) = agent_toml.parent().filter(own) {
        let _ = std::fs::remove_dir_all(dir);
    }
    ExitCode::SUCCESS
}

fn run(options: &Options) -> Result<(), String> {
    let memory = Some(PathBuf::from(MEMORY)).filter(|dir| dir.is_dir());
    let place = options.dir.clone().or(memory);
    let place = place.unwrap_or_else(std::env::temp_dir);
    let home = tempfile::Builder::new()
        .prefix(PREFIX)
        .tempdir_in(&place)
        .map_err(|e| format!("{}: {e}; name a directory with --dir", place.display()))?;
    let built = Path::new(env!("CARGO_BIN_EXE_mainstay-node"));
    let program = options.program.as_deref().unwrap_or(built);
    let host = Host::start(home.path(), program)?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let each = u32::try_from(processors).unwrap_or(u32::MAX);
    let (processes, vcpus) = (options.load.unwrap_or(each), options.vcpus.unwrap_or(each));
    println!(
        "guard: {}; {} VMs of {} vCPUs, {processors} processors, {processes} busy processes; in {}",
        program.display(),
        options.vms,
        vcpus,
        place.display()
    );
    let weak = host.weaknesses()?;
    if weak.is_empty() {
        println!("it has real-time priority, is locked in memory and safe from the OOM killer");
    }
    for weakness in weak {
        println!("weak: {weakness}");
    }
    println!(
        "\n{:<32} {:>10} {:>10} {:>10} {:>10} {:>10} {:>7} {:>7}",
        "deadline to last instruction",
        "least",
        "median",
        "p90",
        "p99",
        "greatest",
        "values",
        "ran on"
    );
    let mut slow = Vec::new();
    let mut step = Duration::ZERO;
    for (name, what, cgroup) in [
        ("cgroup", "cgroup v2", CgroupPlacement::Auto),
        ("signal", "SIGSTOP", CgroupPlacement::Off),
    ] {
        let mut guests = host.guests(name, options.vms, vcpus, &cgroup)?;
        if cgroup == CgroupPlacement::Auto && !guests.have_cgroups() {
            println!("{what}: skipped, guests have no cgroup of their own here");
            continue;
        }
        let mut stopped = guests.wait_stopped()?;
        for (load, busy) in [(0, "idle"), (processes, "busy")] {
            let _load = Load::start(load)?;
            host::wait_until(now() + WARM_UP);
            let mut figures = Figures::default();
            let before = (now(), guests.steps());
            for _ in 0..options.rounds {
                guests.round(&mut stopped, &mut figures)?;
            }
            let steps = guests.steps() - before.1;
            row(&format!("{what}, {busy}"), &figures);
            if busy == "busy" && figures.percentile(99).is_none_or(|p99| p99 >= LIMIT) {
                slow.push(what);
            }
            if steps == 0 {
                return Err("the guests never ran".to_owned());
            }
            let steps = u32::try_from(steps).unwrap_or(u32::MAX);
            step = step.max(now().since(before.0) * options.vms * vcpus / steps);
        }
    }
    println!(
        "\na vCPU stored its clock every {step:?} on average, the time it stood still included: so exactly are its last \
         instructions known"
    );
    match slow.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "p99 with busy processors is not below {LIMIT:?}: {}",
            slow.join(", ")
        )),
    }
}

fn row(what: &str, figures: &Figures) {
    let at = |percent: usize| {
        figures.percentile(percent).map_or_else(
            || "-".to_owned(),
            |d| format!("{:.2} ms", d.as_secs_f64() * 1000.0),
        )
    };
    println!(
        "{what:<32} {:>10} {:>10} {:>10} {:>10} {:>10} {:>7} {:>7}",
        at(0),
        at(50),
        at(90),
        at(99),
        at(100),
        figures.values(),
        figures.ran_on()
    );
    if figures.idle() > 0 {
        println!("  {} times a guest did not run at all", figures.idle());
    }
}
