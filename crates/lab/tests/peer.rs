//! Pacemaker in the lab. Needs root, /dev/net/tun and the packages; says so and passes where they are not.

use mainstay_lab::peer::{self, Options, Report, Variant};
use mainstay_lab::place::{Kind, Note, Place};
use mainstay_lab::procs::{self, Marker};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// Set in a process of this test that is to be killed.
const DOOMED: &str = "MAINSTAY_PEER_TEST_DOOMED";

fn measured(options: &Options) -> Option<Report> {
    if let Err(failure) = peer::available() {
        eprintln!("skipped: {}", failure.one_line());
        return None;
    }
    let report = peer::measure(options, &mut |step| eprintln!("{step}"));
    Some(report.unwrap_or_else(|failure| panic!("{failure}")))
}

#[test]
fn resources_of_a_dead_host_start_elsewhere_and_nothing_is_left() {
    let Some(report) = measured(&Options {
        variants: vec![Variant::NoFencing],
        resources: vec![3],
        runs: 1,
        ..Options::default()
    }) else {
        return;
    };
    let [row] = report.rows.as_slice() else {
        panic!("one cluster, one row: {:?}", report.rows);
    };
    let [sample] = row.samples.as_slice() else {
        panic!("one run, one sample: {:?}", row.samples);
    };
    // Corosync's own timers alone take longer than a second, and shorter than a minute.
    assert!(sample.first_s > 1.0 && sample.first_s <= sample.all_s && sample.all_s < 60.0);
    assert_eq!(procs::marked(&Marker::run(&row.run)).len(), 0);
    let own = std::fs::read_to_string("/proc/self/cgroup").expect("own cgroup");
    let own = own.lines().find_map(|l| l.strip_prefix("0::/"));
    let cgroups = mainstay_lab::cgroup::root().expect("cgroup v2");
    let cgroups = cgroups.join(own.unwrap_or_default());
    let bases: [PathBuf; 3] = [cgroups, "/dev/shm".into(), std::env::temp_dir()];
    for base in bases {
        let left = base.join(format!("{}-{}", Kind::Lab.prefix(), row.run));
        assert!(!left.exists(), "{}", left.display());
    }
}

/// Not a test of its own: what the next one kills.
#[test]
#[ignore = "runs until it is killed"]
fn doomed() {
    if std::env::var_os(DOOMED).is_some() {
        measured(&Options {
            // With sbd, where it is there: it hides its mark.
            variants: vec![Variant::Watchdog, Variant::NoFencing],
            runs: 1_000,
            ..Options::default()
        });
    }
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn what_a_killed_lab_left_is_cleared_by_the_next_one() {
    if let Err(failure) = peer::available() {
        eprintln!("skipped: {}", failure.one_line());
        return;
    }
    let program = std::env::current_exe().expect("this program");
    let mut lab = Command::new(program)
        .args(["--ignored", "--exact", "doomed"])
        .env(DOOMED, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a lab of its own");
    let pid = i32::try_from(lab.id()).expect("a process id");
    let place = Place::of_user(Kind::Lab);
    let of_it = |note: &Note| note.pid == pid;
    let note: Note = wait("the lab notes its run", || {
        place.notes().into_iter().find(of_it)
    });
    let marker = Marker::run(&note.run);
    wait("all hosts have started", || {
        let lines = procs::marked(&marker).into_iter();
        let count = lines.filter(|p| procs::command_line(*p).contains("pacemaker-controld"));
        (count.count() == 3).then_some(())
    });
    lab.kill().expect("kill");
    // A lab in another test of this process may have taken its status first.
    drop(lab.wait());
    wait("nothing is left", || {
        // The next lab of this user may be somebody else's, and quicker.
        place.clear_leftovers();
        let cgroup = note.cgroup.as_deref().is_some_and(Path::exists);
        let left = cgroup || note.dir.exists() || !procs::marked(&marker).is_empty();
        (!left).then_some(())
    });
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    let text = std::env::var(name).ok();
    text.map_or(default, |t| {
        t.parse()
            .ok()
            .unwrap_or_else(|| panic!("{name} is not a number: {t}"))
    })
}

/// The lower of the two where there are two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len().saturating_sub(1) / 2;
    values.get(middle).copied().unwrap_or(f64::NAN)
}

/// `PEER_RUNS`, `PEER_RESOURCES` and `PEER_REST_S` change what it does, `PEER_VARIANTS` names variants.
#[test]
#[ignore = "takes minutes: prints the table of failover times"]
fn table() {
    let wanted = std::env::var("PEER_VARIANTS").unwrap_or_default();
    let wanted: Vec<&str> = wanted.split_whitespace().collect();
    let is_wanted = |v: &Variant| wanted.is_empty() || wanted.contains(&v.name());
    let rest: u64 = number("PEER_REST_S", 0);
    let Some(report) = measured(&Options {
        variants: Variant::ALL.into_iter().filter(is_wanted).collect(),
        resources: vec![number("PEER_RESOURCES", 10)],
        runs: number("PEER_RUNS", 5),
        rest: (rest > 0).then_some(Duration::from_secs(rest)),
        ..Options::default()
    }) else {
        return;
    };
    println!("{}", report.versions.join("\n"));
    for (variant, why) in &report.skipped {
        println!("{}: skipped: {why}", variant.label());
    }
    println!("| variant | resources | runs | first, median s | all, median s | worst s | load |");
    println!("|---|---|---|---|---|---|---|");
    for row in &report.rows {
        let first = median(row.samples.iter().map(|s| s.first_s).collect());
        let all = median(row.samples.iter().map(|s| s.all_s).collect());
        let worst = row.samples.iter().map(|s| s.all_s).fold(0.0, f64::max);
        let load = median(row.samples.iter().map(|s| s.load).collect());
        println!(
            "| {} | {} | {} | {first:.2} | {all:.2} | {worst:.2} | {load:.1} |",
            row.variant.label(),
            row.resources,
            row.samples.len()
        );
    }
    for (row, rest) in report
        .rows
        .iter()
        .flat_map(|r| r.rest.iter().map(move |x| (r, x)))
    {
        println!(
            "{}, {} resources, {}: {} daemons {:.2} CPU s/min (with agents {:.2}), RSS {} MiB, PSS {} MiB",
            row.variant.name(),
            row.resources,
            rest.host,
            rest.daemons,
            rest.daemons_cpu_s,
            rest.all_cpu_s,
            rest.rss_kib / 1024,
            rest.pss_kib / 1024
        );
    }
}
