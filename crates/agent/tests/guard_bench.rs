//! The arithmetic and the options of the guard's benchmark (`benches/guard`), which is no test itself.

#[path = "../benches/guard/figures.rs"]
mod figures;
#[path = "../benches/guard/options.rs"]
mod options;

use figures::Figures;
use options::Options;
use std::time::Duration;

const MS: u64 = 1_000_000;

/// Let on at 100 ms, with a deadline at 160 ms.
fn figures(last: impl IntoIterator<Item = u64>) -> Figures {
    let mut figures = Figures::default();
    for last in last {
        figures.add(100 * MS, 160 * MS, last);
    }
    figures
}

#[test]
fn a_guest_that_stopped_before_its_deadline_was_not_late_and_one_that_never_ran_is_no_value() {
    let figures = figures([159 * MS, 160 * MS, 162 * MS, 99 * MS]);
    assert_eq!((figures.values(), figures.idle()), (3, 1));
    assert_eq!(figures.ran_on(), 1);
    assert_eq!(figures.percentile(50), Some(Duration::ZERO));
    assert_eq!(figures.percentile(100), Some(Duration::from_millis(2)));
}

#[test]
fn percentiles_are_values_that_were_measured() {
    // Not in order, and each once: 1 to 200 ms late.
    let figures = figures((1..=200).map(|n| 160 * MS + (n * 7 % 201) * MS));
    let at = |percent| figures.percentile(percent).map(|d| d.as_millis());
    assert_eq!(
        [0, 1, 50, 90, 99, 100].map(at),
        [1, 2, 100, 180, 198, 200].map(Some)
    );
}

#[test]
fn with_few_values_the_99th_percentile_is_the_greatest() {
    assert_eq!(Figures::default().percentile(99), None);
    let one = figures([163 * MS]);
    assert_eq!(one.percentile(0), Some(Duration::from_millis(3)));
    let few = figures((1..=99).map(|n| (160 + n) * MS));
    assert_eq!(few.percentile(99), Some(Duration::from_millis(99)));
}

fn parse(line: &str) -> Result<Options, String> {
    Options::parse(line.split_whitespace().map(str::to_owned))
}

#[test]
fn options_are_taken_in_any_order_and_wrong_ones_are_refused_by_name() {
    let given =
        parse("--vms 30 --bench --program /opt/mainstay --vcpus 2 --rounds 7 --load 4 --dir /run");
    let wanted = Options {
        rounds: 7,
        vms: 30,
        vcpus: Some(2),
        load: Some(4),
        dir: Some("/run".into()),
        program: Some("/opt/mainstay".into()),
    };
    assert_eq!(given, Ok(wanted));
    for (line, what) in [
        ("--rounds 0", "--rounds takes a number from 1 up"),
        ("--vms many", "not 'many'"),
        ("--dir", "--dir needs a value"),
        ("--guests 3", "no option '--guests'"),
    ] {
        let refused = parse(line).expect_err(line);
        assert!(refused.contains(what), "{refused}");
    }
}

#[test]
fn where_cargo_only_tests_that_it_runs_few_deadlines_pass() {
    let rounds = |line| parse(line).map(|options| options.rounds);
    assert_eq!((rounds("--bench"), rounds("")), (Ok(200), Ok(2)));
    assert_eq!(rounds("--rounds 9"), Ok(9));
}
