//! A lab leaves nothing behind, however it ends, and touches nothing that is not its own. On real processes;
//! skipped, with a word, where no lab can be had.

mod kit;

use kit::{Decoys, Home, Lab, Traces, taps};
use nix::sys::signal::Signal;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;

/// As bad as it gets: guests hang in a datastore, all VMs of another one are frozen, a host is paused.
const BAD: &str = r#"
name = "everything hangs"
duration = "30m"
profile = "fast"

[[datastore]]
id = "ds-1"

[[datastore]]
id = "ds-2"

[[host]]
count = 3

[[vm]]
id = "vm-1"
host = "host-1"
datastore = "ds-1"

[[vm]]
id = "vm-2"
host = "host-1"
datastore = "ds-2"

[[vm]]
id = "vm-3"
host = "host-2"
datastore = "ds-2"

[[vm]]
id = "vm-4"
host = "host-3"
datastore = "ds-2"

[[event]]
at = "500ms"
do = "datastore.apd"
datastore = "ds-1"
host = "host-1"

[[event]]
at = "500ms"
do = "datastore.apd"
datastore = "ds-2"

[[event]]
at = "6s"
do = "host.pause"
host = "host-2"
"#;
/// What tells that it is so.
const IS_BAD: [&str; 2] = ["vm.frozen", "host.pause"];

/// Over as soon as it is settled.
const SHORT: &str = r#"
name = "nothing happens"
duration = "1s"
profile = "fast"

[[datastore]]
id = "ds-1"

[[host]]
count = 2

[[vm]]
id = "vm-1"
host = "host-1"
"#;

/// A home, where labs can be had.
fn home() -> Option<Home> {
    match mainstay_lab::cluster::available() {
        Ok(()) => Some(Home::new()),
        Err(missing) => {
            eprintln!("skipped: {missing}");
            None
        }
    }
}

/// A lab in the middle of the worst, with what it has.
fn bad_lab(home: &Home) -> (Lab, Traces) {
    let mut lab = Lab::start(home, BAD);
    lab.wait_for(&IS_BAD);
    let noted = home.noted();
    let [run] = noted.as_slice() else {
        panic!("{noted:?}");
    };
    let traces = Traces::of(run, Some(lab.pid()));
    // Three agents, three guards, four guests.
    assert!(traces.processes.len() >= 10, "{traces:?}");
    assert!(traces.networks.len() >= 4, "{traces:?}");
    assert!(!traces.mounts.is_empty() && !traces.cgroups.is_empty());
    (lab, traces)
}

fn text(output: &Output) -> String {
    let both = [&output.stdout, &output.stderr];
    both.map(|b| String::from_utf8_lossy(b).into_owned())
        .concat()
}

#[test]
fn ctrl_c_in_the_middle_of_the_worst_leaves_nothing() {
    let Some(home) = home() else { return };
    let before = taps();
    let (lab, traces) = bad_lab(&home);
    let status = lab.end_by(Signal::SIGINT);
    assert_eq!(status.code(), Some(4), "{status}");
    traces.assert_gone();
    home.assert_empty();
    assert_eq!(taps(), before);
}

/// A panic aborts a process as SIGABRT does, or unwinds: then it ends as any failure does.
#[test]
fn what_a_lab_that_was_killed_or_crashed_left_is_cleared_by_the_next_and_nothing_else_is() {
    for signal in [Signal::SIGKILL, Signal::SIGABRT, Signal::SIGSEGV] {
        let Some(home) = home() else { return };
        let before = taps();
        let (lab, traces) = bad_lab(&home);
        let mut decoys = Decoys::make(&home);
        let run = home.noted().concat();
        let status = lab.end_by(signal);
        assert_eq!(status.signal(), Some(signal as i32), "{status}");
        assert_ne!(
            Traces::of(&run, None).processes.len(),
            0,
            "nothing to clear after {signal}"
        );
        let next = match signal {
            Signal::SIGSEGV => home.play(SHORT),
            _ => home.lab(&["clean"]),
        };
        let said = text(&next);
        assert!(next.status.success(), "{said}");
        if signal != Signal::SIGSEGV {
            assert!(said.contains(&format!("dead lab {run}: ")), "{said}");
            assert!(said.contains(" processes ended") && said.contains(" removed"));
            assert!(!said.contains("STILL THERE"), "{said}");
        }
        traces.assert_gone();
        home.assert_empty();
        assert_eq!(taps(), before);
        decoys.assert_untouched();
        let again = text(&home.lab(&["clean"]));
        assert!(again.contains("no dead lab has left anything"), "{again}");
    }
}

#[test]
fn a_lab_that_goes_on_is_left_alone_by_clean_and_by_another() {
    let Some(home) = home() else { return };
    let (lab, traces) = bad_lab(&home);
    let run = home.noted().concat();
    let said = text(&home.lab(&["clean"]));
    assert!(said.contains(&format!("lab {run} goes on")), "{said}");
    assert!(said.contains("no dead lab has left anything"), "{said}");
    let another = home.play(SHORT);
    assert!(another.status.success(), "{}", text(&another));
    let now = Traces::of(&run, Some(lab.pid()));
    // A frozen or paused cluster starts and ends nothing; an agent may have another go at a VM.
    let same = now.processes.intersection(&traces.processes).count();
    assert!(same >= 10, "{traces:?} {now:?}");
    assert_eq!(
        (&now.networks, &now.cgroups),
        (&traces.networks, &traces.cgroups)
    );
    assert_eq!(home.noted(), [run]);
    assert_eq!(lab.end_by(Signal::SIGTERM).code(), Some(4));
    traces.assert_gone();
    home.assert_empty();
}
