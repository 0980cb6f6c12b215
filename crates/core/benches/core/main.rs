//! What the core costs: one agent, as primary or secondary of a simulated cluster, fed with what a
//! real one is fed, in virtual time. `cargo xtask bench core` runs it.
//!
//! The heartbeats, reports, storage completions and guard answers are those of a healthy cluster in
//! the balanced profile. What the surroundings cost is not counted; what the codec costs to decode
//! the messages that come and to encode those that go is counted apart.
#![expect(
    clippy::print_stdout,
    reason = "a benchmark prints its figures on standard output"
)]

mod meter;
mod world;

use meter::{Cost, Meter};
use std::time::Duration;
use world::{Part, World};

/// A cluster and the host in it that is measured.
struct Case {
    name: &'static str,
    hosts: u32,
    vms: u32,
    part: Part,
    /// The share of a core that it may use, in thousandths; none: no limit is set.
    limit: Option<u32>,
}

const CASES: [Case; 5] = [
    Case {
        name: "primary-8",
        hosts: 8,
        vms: 100,
        part: Part::Primary,
        limit: None,
    },
    Case {
        name: "primary-64",
        hosts: 64,
        vms: 8_000,
        part: Part::Primary,
        limit: Some(50),
    },
    Case {
        name: "primary-64-few-vms",
        hosts: 64,
        vms: 800,
        part: Part::Primary,
        limit: None,
    },
    Case {
        name: "primary-1000",
        hosts: 1_000,
        vms: 100_000,
        part: Part::Primary,
        limit: Some(1_000),
    },
    Case {
        name: "secondary-64",
        hosts: 64,
        vms: 8_000,
        part: Part::Secondary,
        limit: None,
    },
];

/// What the command line asks for.
struct Options {
    only: Option<String>,
    rounds: u32,
    settle: Duration,
    lose_host: bool,
}

fn main() {
    let options = match options() {
        Ok(options) => options,
        Err(why) => {
            eprintln!("error: {why}");
            std::process::exit(2);
        }
    };
    let meter = Meter::new();
    if let Some(why) = meter.no_instructions() {
        println!(
            "instructions are not counted: perf_event_open says \"{why}\"; processor time stands for them"
        );
    }
    println!(
        "per round and host: a heartbeat interval of 500 ms, divided by the hosts that a primary looks after"
    );
    let wanted = |c: &&Case| match &options.only {
        Some(name) => name == c.name,
        // A build for tests only shows that it still runs; its figures mean nothing.
        None => !cfg!(debug_assertions) || c.hosts < 10,
    };
    let mut late = Vec::new();
    for case in CASES.iter().filter(wanted) {
        if !run(case, &options, &meter) {
            late.push(case.name);
        }
    }
    if !late.is_empty() {
        eprintln!("error: above the limit: {}", late.join(", "));
        std::process::exit(1);
    }
}

/// Runs one case; false when it used more of a core than it may.
fn run(case: &Case, options: &Options, meter: &Meter) -> bool {
    let mut world = World::new(case.hosts, case.vms, case.part, meter);
    world.run_for(options.settle);
    let start = world.take_cost();
    let interval = world.interval();
    world.run_for(interval * options.rounds);
    let rest = world.take_cost();
    let span = interval * options.rounds;
    println!(
        "\n{} ({} hosts, {} VMs, {} on this one; {} inputs a round)",
        case.name,
        case.hosts,
        case.vms,
        world.own_vms(),
        rest.inputs / u64::from(options.rounds)
    );
    // A secondary's round is about itself.
    let hosts = match case.part {
        Part::Primary => case.hosts,
        Part::Secondary => 1,
    };
    line("core", rest.core, hosts, options.rounds);
    line("codec", rest.codec, hosts, options.rounds);
    // On one datastore: how many there are follows from the VMs.
    let per = span.as_secs_f64() * world.datastores() as f64;
    println!(
        "  storage, on each of {} datastores: {:.1} heartbeats written and read a second, {:.1} other operations",
        world.datastores(),
        rest.heartbeats as f64 / per,
        rest.other_storage as f64 / per
    );
    let mut both = rest.core;
    both.add(rest.codec);
    let share = both.cpu.as_secs_f64() / span.as_secs_f64();
    println!("  {:.2} % of a core with the codec", share * 100.0);
    println!(
        "  start and first {} s: {:.3} s of processor time",
        options.settle.as_secs(),
        (start.core.cpu + start.codec.cpu).as_secs_f64()
    );
    if options.lose_host && case.part == Part::Primary {
        let lost = world.lose_host();
        let virtual_time = world.run_until_restarted();
        let cost = world.take_cost();
        println!(
            "  a host with {lost} VMs lost: all run again after {:.1} s; {:.3} s of processor time in that time",
            virtual_time.as_secs_f64(),
            (cost.core.cpu + cost.codec.cpu).as_secs_f64()
        );
    }
    let heap = world.drop_and_weigh();
    println!(
        "  heap of the agent: {:.1} MB, {} bytes a VM of the cluster",
        heap as f64 / 1e6,
        heap / u64::from(case.vms)
    );
    case.limit
        .is_none_or(|limit| share * 1000.0 <= f64::from(limit))
}

fn line(what: &str, cost: Cost, hosts: u32, rounds: u32) {
    let per = f64::from(hosts) * f64::from(rounds);
    let instructions = cost
        .instructions
        .map(|n| format!("{:.0} instructions, ", n as f64 / per))
        .unwrap_or_default();
    println!(
        "  {what:<5} per round and host: {instructions}{:.0} ns, {:.1} allocations, {:.0} bytes; per round {:.3} ms",
        cost.cpu.as_secs_f64() * 1e9 / per,
        cost.allocations as f64 / per,
        cost.bytes as f64 / per,
        cost.cpu.as_secs_f64() * 1e3 / f64::from(rounds),
    );
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        only: None,
        rounds: 80,
        settle: Duration::from_secs(20),
        lose_host: true,
    };
    let mut rest = std::env::args().skip(1);
    while let Some(argument) = rest.next() {
        let mut number = |what: &str| {
            let text = rest.next().unwrap_or_default();
            let number: u32 = text
                .parse()
                .map_err(|_| format!("{what} takes a number from 1 up, not '{text}'"))?;
            (number > 0)
                .then_some(number)
                .ok_or_else(|| format!("{what} takes a number from 1 up"))
        };
        match argument.as_str() {
            // Cargo passes it to every benchmark.
            "--bench" => {}
            "--rounds" => options.rounds = number("--rounds")?,
            "--settle" => options.settle = Duration::from_secs(number("--settle")?.into()),
            "--calm" => options.lose_host = false,
            "--only" => {
                let name = rest.next().unwrap_or_default();
                if CASES.iter().all(|c| c.name != name) {
                    let known: Vec<&str> = CASES.iter().map(|c| c.name).collect();
                    return Err(format!(
                        "there is no case '{name}'; there are {}",
                        known.join(", ")
                    ));
                }
                options.only = Some(name);
            }
            unknown => {
                return Err(format!(
                    "no option '{unknown}'; there are --only CASE, --rounds N, --settle SECONDS, --calm"
                ));
            }
        }
    }
    Ok(options)
}
