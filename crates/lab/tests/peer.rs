//! Pacemaker in the lab. Needs root, /dev/net/tun and the packages; says so and passes where they are not.

use mainstay_lab::peer::{self, Options, Report, Variant};
use mainstay_lab::procs::{self, Marker};
use std::time::Duration;

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
    let name = format!("mainstay-lab-{}", row.run);
    let cgroups = mainstay_lab::cgroup::root().expect("cgroup v2");
    for dir in [
        cgroups.as_path(),
        std::path::Path::new("/dev/shm"),
        &std::env::temp_dir(),
    ] {
        assert!(!dir.join(&name).exists(), "{}", dir.display());
    }
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    let text = std::env::var(name).ok();
    text.map_or(default, |t| {
        t.parse()
            .ok()
            .unwrap_or_else(|| panic!("{name} is not a number: {t}"))
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
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
    println!("| variant | resources | runs | first, median s | all, median s | worst s |");
    println!("|---|---|---|---|---|---|");
    for row in &report.rows {
        let first = median(row.samples.iter().map(|s| s.first_s).collect());
        let all = median(row.samples.iter().map(|s| s.all_s).collect());
        let worst = row.samples.iter().map(|s| s.all_s).fold(0.0, f64::max);
        println!(
            "| {} | {} | {} | {first:.2} | {all:.2} | {worst:.2} |",
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
