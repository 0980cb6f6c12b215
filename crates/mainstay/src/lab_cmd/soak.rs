//! `mainstay lab soak`: random faults for a long time on one cluster, and daemons watched for growth.

use super::{ClusterArgs, Driver, Signals};
use crate::scenarios::line;
use crate::ui::{Cell, Table, Tone};
use clap::Args;
use clap::builder::PossibleValuesParser;
use mainstay_lab::dir::random;
use mainstay_lab::fail::{Context, Failure, Result};
use mainstay_lab::run::{Outcome, Run};
use mainstay_lab::soak::{Bounds, Growth, Kind, Row, Soak, Tally, Wish, draw};
use mainstay_sim::{RunResult, Scenario};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Embedded guests are small processes.
const MOST_EMBEDDED: usize = 20;
/// QEMU machines take a quarter of a GiB of memory and an eighth of a core each.
const MOST_QEMU: usize = 5;

#[derive(Debug, Clone, Args)]
pub(super) struct SoakArgs {
    /// How long, from the first moment at which all is well
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    minutes: u64,
    /// Everything random follows from it; the same seed plays the same faults [default: a random one]
    #[arg(long)]
    seed: Option<u64>,
    /// Hosts [default: 3 to 6, drawn]
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=16))]
    hosts: Option<u8>,
    /// VMs [default: drawn, up to 20, with QEMU up to 5]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=100))]
    vms: Option<u8>,
    /// Timing profile [default: drawn]
    #[arg(long, value_parser = PossibleValuesParser::new(["classic", "balanced", "fast"]))]
    profile: Option<String>,
    /// A daemon is judged from this age on
    #[arg(long, value_name = "SECONDS", default_value_t = Bounds::default().warm_up.as_secs())]
    warm_up: u64,
    /// A daemon may grow by so much memory after its warm-up (resident, not backed by files)
    #[arg(long, value_name = "KIB", default_value_t = Bounds::default().memory_kib)]
    memory_bound: u64,
    /// A daemon may have so many more file descriptors open than after its warm-up
    #[arg(long, value_name = "N", default_value_t = Bounds::default().descriptors)]
    descriptor_bound: u64,
    /// A daemon may have so many more threads than after its warm-up
    #[arg(long, value_name = "N", default_value_t = Bounds::default().threads)]
    thread_bound: u64,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl SoakArgs {
    fn wish(&self) -> Result<Wish> {
        let seed = match self.seed {
            Some(seed) => seed,
            // Short enough to be typed again.
            None => u64::from(u32::from_be_bytes(random::<4>()?)),
        };
        Ok(Wish {
            seed,
            minutes: self.minutes,
            hosts: self.hosts.map(usize::from),
            vms: self.vms.map(usize::from),
            most_vms: match self.cluster.driver {
                Driver::Embedded => MOST_EMBEDDED,
                Driver::Qemu => MOST_QEMU,
            },
            profile: self.profile.clone(),
        })
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            warm_up: Duration::from_secs(self.warm_up),
            memory_kib: self.memory_bound,
            descriptors: self.descriptor_bound,
            threads: self.thread_bound,
        }
    }

    /// The command that plays the same soak again.
    fn again(&self, wish: &Wish) -> String {
        let mut text = format!(
            "mainstay lab soak --minutes {} --seed {}",
            wish.minutes, wish.seed
        );
        let mut add = |name: &str, value: Option<String>| {
            text.extend(value.map(|v| format!(" --{name} {v}")));
        };
        add("hosts", self.hosts.map(|n| n.to_string()));
        add("vms", self.vms.map(|n| n.to_string()));
        add("profile", self.profile.clone());
        let driver = match self.cluster.driver {
            Driver::Embedded => None,
            Driver::Qemu => Some("qemu".to_owned()),
        };
        add("driver", driver);
        if self.cluster.gluster {
            text.push_str(" --gluster");
        }
        text
    }
}

pub(super) fn run(args: &SoakArgs, json: bool) -> Result<ExitCode> {
    let wish = args.wish()?;
    let scenario = draw(&wish)?;
    let again = args.again(&wish);
    announce(&scenario, &again, json);
    let signals = Signals::listen()?;
    let began = Instant::now();
    let run = Run::new(&scenario, args.cluster.options()?);
    signals.end(run.stopper());
    let (hosts, vms) = (scenario.hosts.len(), scenario.vms.len());
    let mut phase = |text: &str| {
        if !json {
            line(&format!("            {text}"));
        }
    };
    let mut progress = |since: Duration, tally: &Tally| {
        line(&match json {
            true => progress_json(since, tally).to_string(),
            false => progress_line(since, wish.minutes, (hosts, vms), tally),
        });
    };
    let mut soak = Soak::new(args.bounds(), &mut phase, &mut progress);
    let outcome = run.play(&mut soak)?;
    let (tally, growth) = (soak.tally().clone(), soak.growth().clone());
    let told = Told {
        passes: outcome.result.pass() && growth.holds(),
        scenario: &scenario,
        outcome: &outcome,
        tally: &tally,
        rows: growth.rows(),
        wall: began.elapsed(),
        again,
    };
    if !told.passes
        && let Some(dir) = &outcome.kept
    {
        keep(&scenario, &outcome.result, &scenario_file(dir))?;
    }
    match json {
        true => told.json(),
        false => told.people(&growth),
    }
    Ok(ExitCode::from(u8::from(!told.passes)))
}

fn announce(scenario: &Scenario, again: &str, json: bool) {
    let settings = &scenario.config.settings;
    if json {
        line(
            &json!({
                "type": "plan",
                "seed": scenario.seed,
                "profile": settings.profile.name(),
                "hosts": scenario.hosts.len(),
                "vms": scenario.vms.len(),
                "datastores": scenario.datastores.len(),
                "networks": scenario.networks.len(),
                "events": scenario.events.len(),
                "again": again,
            })
            .to_string(),
        );
        return;
    }
    line(&format!(
        "{}: {} hosts, {} VMs, {} datastores, {} networks, {} events",
        scenario.name,
        scenario.hosts.len(),
        scenario.vms.len(),
        scenario.datastores.len(),
        scenario.networks.len(),
        scenario.events.len()
    ));
    line(&format!("again: {again}"));
}

fn progress_line(since: Duration, of: u64, (hosts, vms): (usize, usize), tally: &Tally) -> String {
    let broken = match tally.broken {
        0 => "nothing broken".to_owned(),
        n => format!("{n} BROKEN"),
    };
    format!(
        "minute {} of {of}: {} faults, {} restarts, {} locks broken, {} daemons anew; {} of {vms} VMs run on {hosts} hosts; {broken}",
        since.as_secs() / 60,
        tally.played(),
        tally.restarts,
        tally.locks_broken,
        tally.daemons_anew,
        tally.running,
    )
}

fn progress_json(since: Duration, tally: &Tally) -> Value {
    let mut value = tally_json(tally);
    if let Value::Object(map) = &mut value {
        map.insert("type".into(), "progress".into());
        map.insert("second".into(), since.as_secs().into());
    }
    value
}

fn tally_json(tally: &Tally) -> Value {
    json!({
        "faults": tally.faults,
        "played": tally.played(),
        "refused": tally.refused,
        "starts": tally.starts,
        "restarts": tally.restarts,
        "locks_broken": tally.locks_broken,
        "frozen": tally.frozen,
        "daemons_anew": tally.daemons_anew,
        "running": tally.running,
        "broken": tally.broken,
    })
}

/// Where a failed soak's scenario lies.
fn scenario_file(dir: &Path) -> PathBuf {
    dir.join("soak.toml")
}

/// Writes what plays it again, and beside it what was seen.
pub(super) fn keep(scenario: &Scenario, result: &RunResult, file: &Path) -> Result<()> {
    let write = |path: PathBuf, text: String| {
        std::fs::write(&path, text)
            .context("cannot keep what the soak found")
            .map_err(|e: Failure| e.at(path.display()))
    };
    write(file.to_owned(), mainstay_sim::to_toml(scenario))?;
    let trace: String = mainstay_sim::json_lines(result)
        .into_iter()
        .map(|entry| format!("{entry}\n"))
        .collect();
    write(file.with_file_name("trace.jsonl"), trace)
}

/// All that is told at the end.
struct Told<'a> {
    passes: bool,
    scenario: &'a Scenario,
    outcome: &'a Outcome,
    tally: &'a Tally,
    rows: Vec<Row>,
    wall: Duration,
    again: String,
}

impl Told<'_> {
    fn word(&self) -> &'static str {
        if self.passes { "pass" } else { "FAIL" }
    }

    /// What did not hold, a sentence each.
    fn wrong(&self) -> Vec<String> {
        let result = &self.outcome.result;
        let broken = result.violations.iter();
        let broken = broken.map(|v| format!("{}: {} ({})", v.property, v.what, v.sentence));
        let grown = self.rows.iter().flat_map(|row| {
            row.grown().map(move |(kind, m)| {
                let p = &row.process;
                format!(
                    "growth: {} of the {} of {} (process {}) went from {} to {}",
                    kind.name(),
                    p.daemon,
                    p.host,
                    p.pid,
                    m.first,
                    m.last
                )
            })
        });
        broken.chain(grown).chain(result.error.clone()).collect()
    }

    fn people(&self, growth: &Growth) {
        let tally = self.tally;
        line("");
        let mut kinds = Table::new(&["FAULT", "PLAYED"]);
        for (kind, count) in &tally.faults {
            kinds.row(vec![(*kind).into(), count.to_string().into()]);
        }
        kinds.print();
        line("");
        growth_table(&self.rows).print();
        line(&format!(
            "\n{} faults and wishes played, {} of them refused or without anybody to meet; {} VMs were started, {} restarts asked for, {} locks broken, {} times a VM was frozen; {} daemons began anew; {} of {} VMs run at the end",
            tally.played(),
            tally.refused,
            tally.starts,
            tally.restarts,
            tally.locks_broken,
            tally.frozen,
            growth.began_anew(),
            tally.running,
            self.scenario.vms.len()
        ));
        for text in self.wrong() {
            line(&format!("✗ {text}"));
        }
        line(&format!(
            "{}: after {:.1} s",
            self.word(),
            self.wall.as_secs_f64()
        ));
        let Some(dir) = &self.outcome.kept else {
            return;
        };
        line(&format!("files and logs are kept in {}", dir.display()));
        if !self.passes {
            let file = scenario_file(dir);
            line(&format!("again: mainstay lab run {}", file.display()));
            line(&format!("   or: {}", self.again));
        }
    }

    fn json(&self) {
        for row in &self.rows {
            line(&row_json(row).to_string());
        }
        for violation in &self.outcome.result.violations {
            let (property, what) = (violation.property, &violation.what);
            line(&json!({"type": "violation", "property": property, "what": what}).to_string());
        }
        let kept = self.outcome.kept.as_deref();
        let mut value = tally_json(self.tally);
        if let Value::Object(map) = &mut value {
            map.insert("type".into(), "soak".into());
            map.insert("result".into(), self.word().into());
            map.insert("wrong".into(), self.wrong().into());
            map.insert("wall_s".into(), self.wall.as_secs_f64().into());
            map.insert("again".into(), self.again.clone().into());
            map.insert("kept".into(), json!(kept));
            let file = kept.filter(|_| !self.passes).map(scenario_file);
            map.insert("scenario".into(), json!(file));
        }
        line(&value.to_string());
    }
}

fn growth_table(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        "PROCESS", "PID", "SECONDS", "MEASURE", "FIRST", "LAST", "PEAK", "PER HOUR",
    ]);
    for row in rows {
        let p = &row.process;
        let of = |text: String| -> Vec<Cell> {
            vec![
                format!("{} {}", p.host, p.daemon).into(),
                p.pid.to_string().into(),
                row.watched.as_secs().to_string().into(),
                text.into(),
            ]
        };
        let Some(measures) = row.measures else {
            let mut cells = of("too short".to_owned());
            cells.extend(["-", "-", "-", "-"].map(Cell::from));
            table.row(cells);
            continue;
        };
        for (kind, m) in measures {
            let tone = if m.too_much { Tone::Bad } else { Tone::Plain };
            let mut cells = of(kind_text(kind).to_owned());
            cells.extend([
                m.first.to_string().into(),
                Cell::toned(m.last, tone),
                m.peak.to_string().into(),
                format!("{:+.1}", m.slope_per_hour).into(),
            ]);
            table.row(cells);
        }
    }
    table
}

fn kind_text(kind: Kind) -> &'static str {
    match kind {
        Kind::Memory => "memory, KiB",
        Kind::Descriptors => "descriptors",
        Kind::Threads => "threads",
    }
}

fn row_json(row: &Row) -> Value {
    let p = &row.process;
    let mut value = json!({
        "type": "growth",
        "host": p.host,
        "daemon": p.daemon,
        "pid": p.pid,
        "watched_s": row.watched.as_secs(),
    });
    if let Value::Object(map) = &mut value {
        for (kind, m) in row.measures.into_iter().flatten() {
            let measure = json!({
                "first": m.first,
                "last": m.last,
                "peak": m.peak,
                "slope_per_hour": m.slope_per_hour,
                "too_much": m.too_much,
            });
            map.insert(kind.name().into(), measure);
        }
    }
    value
}
