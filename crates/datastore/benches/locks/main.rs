//! What a lock costs: the core's own swap over both kinds of datastore, alone and with eight that want the same
//! lock; how long a heartbeat takes to write; and the same of sanlock, where it is installed.
//! `cargo xtask bench locks` runs it.
//!
//! Every figure is taken on the same directory in the same run. What makes a lock safe is not left out: reads and
//! writes go past the page cache, writes wait for the disk, and each swap looks whether its predecessor is there.
#![expect(
    clippy::print_stdout,
    reason = "a benchmark prints its figures on standard output"
)]

mod cluster;
mod holder;
mod sanlock;

use cluster::{Cluster, KINDS, name};
use holder::Holder;
use mainstay_core::config::DatastoreKind;
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// As many as the largest cluster of many sites has hosts on one datastore that restart the same VM.
const CONTENDERS: u32 = 8;
/// In the balanced profile a host writes its heartbeat so often.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// Heartbeats for a 99th percentile that is no maximum.
const HEARTBEATS: u32 = 400;

/// What the command line asks for.
struct Options {
    dir: PathBuf,
    seconds: u64,
    sanlock: bool,
    takeover: bool,
    only: Option<String>,
}

fn main() {
    let options = match options() {
        Ok(options) => options,
        Err(why) => {
            eprintln!("error: {why}");
            std::process::exit(2);
        }
    };
    if let Err(why) = run(&options) {
        eprintln!("error: {why}");
        std::process::exit(1);
    }
}

fn run(options: &Options) -> Result<(), String> {
    let home = tempfile::Builder::new()
        .prefix("mainstay-bench-")
        .tempdir_in(&options.dir)
        .map_err(|e| {
            format!(
                "{}: {e}; name a directory with --dir",
                options.dir.display()
            )
        })?;
    println!("on {}", options.dir.display());
    println!(
        "\n{:<28} {:>14} {:>12} {:>12} {:>12} {:>10}",
        "acquire and release", "a second", "median", "p99", "greatest", "values"
    );
    let wanted = |kind: &DatastoreKind| options.only.as_deref().is_none_or(|o| o == name(*kind));
    for kind in KINDS.into_iter().filter(wanted) {
        let dir = home.path().join(name(kind));
        let cluster = Cluster::make(kind, &dir, CONTENDERS)?;
        for contenders in [1, CONTENDERS] {
            let took = contend(&cluster, contenders, Duration::from_secs(options.seconds))?;
            let whole = took.len();
            let rate = whole as f64 / options.seconds as f64;
            let who = match contenders {
                1 => "uncontended".to_owned(),
                n => format!("{n} contenders"),
            };
            row(&format!("{}, {who}", name(kind)), Some(rate), took);
        }
    }
    if options.sanlock {
        match sanlock::Daemons::start(home.path(), 2) {
            Ok(daemons) => {
                row("sanlock, uncontended", None, daemons.uncontended(20)?);
                if options.takeover {
                    let took = daemons.takeover()?;
                    println!(
                        "sanlock, takeover after a crash, io_timeout {} s: {:.1} s",
                        sanlock::IO_TIMEOUT,
                        took.as_secs_f64()
                    );
                }
            }
            Err(why) => println!("sanlock is skipped: {why}"),
        }
    }
    println!(
        "\n{:<28} {:>14} {:>12} {:>12} {:>12} {:>10}",
        "heartbeat written", "", "median", "p99", "greatest", "values"
    );
    for kind in KINDS.into_iter().filter(wanted) {
        let dir = home.path().join(format!("{}-heartbeats", name(kind)));
        let cluster = Cluster::make(kind, &dir, 1)?;
        row(name(kind), None, heartbeats(&cluster)?);
    }
    Ok(())
}

fn row(what: &str, rate: Option<f64>, mut took: Vec<Duration>) {
    took.sort_unstable();
    // Nearest rank.
    let at = |percent: usize| {
        let rank = (took.len() * percent).div_ceil(100).max(1);
        took.get(rank - 1).copied().unwrap_or_default()
    };
    let ms = |d: Duration| format!("{:.2} ms", d.as_secs_f64() * 1000.0);
    let rate = rate.map(|r| format!("{r:.0}")).unwrap_or_default();
    println!(
        "{what:<28} {rate:>14} {:>12} {:>12} {:>12} {:>10}",
        ms(at(50)),
        ms(at(99)),
        ms(at(100)),
        took.len()
    );
}

/// So many hosts take one lock and give it back, for so long. Gives how long each took from wanting it to having it
/// given back, among them the tries that another won.
fn contend(cluster: &Cluster, contenders: u32, lasts: Duration) -> Result<Vec<Duration>, String> {
    let inside = AtomicU32::new(0);
    let broken = AtomicBool::new(false);
    let over = AtomicBool::new(false);
    let together = Barrier::new(usize::try_from(contenders).unwrap_or(1));
    let one = |n: u32| -> Result<Vec<Duration>, String> {
        let mut holder = Holder::open(cluster, n)?;
        together.wait();
        let begun = Instant::now();
        let mut took = Vec::new();
        while begun.elapsed() < lasts {
            let wanted = Instant::now();
            holder.acquire(&over)?;
            let others = inside.fetch_add(1, Ordering::SeqCst);
            broken.fetch_or(others > 0, Ordering::SeqCst);
            inside.fetch_sub(1, Ordering::SeqCst);
            holder.release()?;
            took.push(wanted.elapsed());
        }
        Ok(took)
    };
    // Whoever fails may hold the lock: nobody waits for it then.
    let one = |n: u32| one(n).inspect_err(|_| over.store(true, Ordering::SeqCst));
    let one = &one;
    let all: Vec<Result<Vec<Duration>, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=contenders)
            .map(|n| scope.spawn(move || one(n)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|_| Err("a contender ended by a fault of its own".to_owned()))
        };
        threads.into_iter().map(join).collect()
    });
    if broken.load(Ordering::SeqCst) {
        return Err("two held the lock at once: nothing here counts".to_owned());
    }
    let mut took = Vec::new();
    let mut failed = Vec::new();
    for one in all {
        match one {
            Ok(one) => took.extend(one),
            Err(why) => failed.push(why),
        }
    }
    // That of the one that failed first, not what the others made of it.
    if let Some(why) = failed
        .iter()
        .find(|why| *why != holder::OVER)
        .or(failed.first())
    {
        return Err(why.clone());
    }
    Ok(took)
}

/// Writes heartbeats as an agent does, though without its pauses between them: an eighth of them long.
fn heartbeats(cluster: &Cluster) -> Result<Vec<Duration>, String> {
    let mut holder = Holder::open(cluster, 1)?;
    let mut took = Vec::new();
    let mut next = Instant::now();
    for _ in 0..HEARTBEATS {
        let begun = Instant::now();
        holder.renew()?;
        took.push(begun.elapsed());
        next += HEARTBEAT_INTERVAL / 50;
        std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
    }
    Ok(took)
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        dir: std::env::temp_dir(),
        seconds: 3,
        sanlock: true,
        takeover: false,
        only: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = |what: &str| {
            arguments
                .next()
                .ok_or_else(|| format!("{what} needs a value"))
        };
        match argument.as_str() {
            // Cargo says so to every benchmark.
            "--bench" => {}
            "--dir" => options.dir = value("--dir")?.into(),
            "--seconds" => {
                let text = value("--seconds")?;
                options.seconds = text.parse().ok().filter(|n| *n > 0).ok_or_else(|| {
                    format!("--seconds takes a number from 1 up, such as 3, not '{text}'")
                })?;
            }
            "--without-sanlock" => options.sanlock = false,
            "--takeover" => options.takeover = true,
            "--only" => options.only = Some(value("--only")?),
            unknown => {
                return Err(format!(
                    "no option '{unknown}'; there are --dir DIR, --seconds N, --only KIND, --without-sanlock and --takeover (sanlock's takes more than a minute)"
                ));
            }
        }
    }
    Ok(options)
}
