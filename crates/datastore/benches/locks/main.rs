//! What a lock costs: the core's own swap over both kinds of datastore, alone and with eight that want the same
//! lock; how long a heartbeat takes to write; how long it takes to take the lock of a host that died; and the same of
//! sanlock, where it is installed. `cargo xtask bench locks` runs it.
//!
//! Every figure is taken on the same directory in the same run. What makes a lock safe is not left out: reads and
//! writes go past the page cache, writes wait for the disk, and each swap looks whether its predecessor is there.
#![expect(
    clippy::print_stdout,
    reason = "a benchmark prints its figures on standard output"
)]

mod cluster;
mod figures;
mod holder;
mod sanlock;
mod shell;
mod takeover;

use cluster::{Cluster, KINDS, name};
use holder::Holder;
use mainstay_core::config::{DatastoreKind, Profile};
use std::path::{Path, PathBuf};
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
    /// Nothing but Mainstay's takeovers.
    takeover_only: bool,
    /// Of which a takeover is measured.
    profiles: Vec<Profile>,
    /// Locks of one dead host that are taken over at once.
    locks: u32,
    only: Option<String>,
}

impl Options {
    fn kinds(&self) -> impl Iterator<Item = DatastoreKind> {
        let wanted = |kind: &DatastoreKind| self.only.as_deref().is_none_or(|o| o == name(*kind));
        KINDS.into_iter().filter(wanted)
    }
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
    if !options.takeover_only {
        figures_of_living(options, home.path())?;
    }
    match options.takeover {
        true => takeovers(options, home.path()),
        false => Ok(()),
    }
}

/// Acquiring, releasing and heartbeats, and sanlock's figures beside them.
fn figures_of_living(options: &Options, home: &Path) -> Result<(), String> {
    println!(
        "\n{:<28} {:>14} {:>12} {:>12} {:>12} {:>10}",
        "acquire and release", "a second", "median", "p99", "greatest", "values"
    );
    for kind in options.kinds() {
        let dir = home.join(name(kind));
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
        match sanlock::Daemons::start(home, 2) {
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
    for kind in options.kinds() {
        let dir = home.join(format!("{}-heartbeats", name(kind)));
        let cluster = Cluster::make(kind, &dir, 1)?;
        row(name(kind), None, heartbeats(&cluster)?);
    }
    Ok(())
}

/// Takes the locks of a host that died, on each kind of datastore by each profile.
fn takeovers(options: &Options, home: &Path) -> Result<(), String> {
    println!(
        "\n{:<28} {:>14} {:>12} {:>12} {:>12} {:>10}",
        "taken from a dead host", "break", "least", "median", "greatest", "values"
    );
    let s = |d: Duration| format!("{:.3} s", d.as_secs_f64());
    let mut late = Vec::new();
    for profile in &options.profiles {
        for kind in options.kinds() {
            let what = format!("{}, {}", name(kind), profile.name());
            let dir = home.join(format!("{}-{}", name(kind), profile.name()));
            let taken = takeover::takeover(kind, *profile, &dir, options.locks)
                .map_err(|e| format!("{what}: {e}"))?;
            let at = |percent| figures::percentile(&taken.took, percent);
            println!(
                "{what:<28} {:>14} {:>12} {:>12} {:>12} {:>10}",
                s(taken.r#break),
                s(at(0)),
                s(at(50)),
                s(at(100)),
                taken.took.len()
            );
            if at(100) > taken.r#break + takeover::BEYOND_BREAK {
                late.push(what);
            }
        }
    }
    match late.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "more than `break` and {:?} from the first reading of the last heartbeat to the lock: {}",
            takeover::BEYOND_BREAK,
            late.join("; ")
        )),
    }
}

fn row(what: &str, rate: Option<f64>, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |percent| figures::percentile(&took, percent);
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
        takeover_only: false,
        profiles: Vec::new(),
        locks: 8,
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
            "--takeover-only" => (options.takeover, options.takeover_only) = (true, true),
            "--profile" => {
                let text = value("--profile")?;
                let profile = Profile::from_name(&text).ok_or_else(|| {
                    format!(
                        "no profile '{text}'; there are {}",
                        Profile::NAMES.join(", ")
                    )
                })?;
                options.profiles.push(profile);
            }
            "--locks" => {
                let text = value("--locks")?;
                let locks = text.parse().ok().filter(|n| (1..=64).contains(n));
                options.locks = locks.ok_or_else(|| {
                    format!("--locks takes a number from 1 to 64, such as 8, not '{text}'")
                })?;
            }
            "--only" => options.only = Some(value("--only")?),
            unknown => {
                return Err(format!(
                    "no option '{unknown}'; there are --dir DIR, --seconds N, --only KIND, --without-sanlock, --takeover (sanlock's takes more than a minute), --takeover-only, --profile NAME and --locks N"
                ));
            }
        }
    }
    if options.profiles.is_empty() {
        options.profiles = vec![Profile::Classic, Profile::Balanced, Profile::Fast];
    }
    Ok(options)
}
