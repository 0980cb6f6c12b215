//! What goes wrong inside a guest, and what a driver says about it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use mainstay_hypervisor::inside::{self, LivingGuest};
use mainstay_hypervisor::{
    CgroupPlacement, ExitCause, GuestTimes, StartError, freeze, memory_cgroup_beside,
    write_guest_times,
};

use crate::kit::{self, Kind, Kit, wait_until};

contract!(
    guest_that_panics_is_told_apart,
    panic_while_no_agent_lived_is_known_to_the_next,
    hung_guest_lives_and_hears_nothing,
    guest_shuts_itself_down,
    shutdown_takes_as_long_as_the_image_says,
    guest_that_never_shuts_down_can_only_be_killed,
    guest_that_is_killed_while_it_shuts_down_is_gone_at_once,
    guest_killed_for_want_of_memory_is_told_apart,
    kill_for_want_of_memory_is_known_to_the_next_agent,
    hung_guest_is_killed_for_want_of_memory,
    guest_killed_otherwise_was_not_out_of_memory,
    frozen_guest_does_not_execute,
);

const SHUTDOWN: Duration = Duration::from_millis(700);

fn guest(kit: &Kit) -> LivingGuest {
    inside::find(&kit.run_dir(), "vm").expect("a guest")
}

fn set_times(kit: &Kit, shutdown: Option<Duration>) {
    let times = GuestTimes {
        shutdown,
        ..GuestTimes::default()
    };
    write_guest_times(&kit.image(), &times).expect("its times");
}

/// Whether this guest's memory can be limited here; says so where it cannot.
fn has_memory_cgroup(guest: &LivingGuest) -> bool {
    let has = guest.memory_cgroup().is_some();
    if !has {
        eprintln!("SKIPPED: guests have no cgroup with the memory controller here");
    }
    has
}

fn cgroups(guest: &LivingGuest) -> Vec<PathBuf> {
    let dirs = guest.process().cgroup.iter().cloned();
    dirs.chain(guest.memory_cgroup().map(PathBuf::from))
        .collect()
}

fn guest_that_panics_is_told_apart(kind: Kind) {
    let mut kit = Kit::new(kind);
    kit.start(CgroupPlacement::Auto);
    guest(&kit).panic().expect("panic");
    assert_eq!(kit.exit(), ExitCause::Panicked);
    assert!(inside::find(&kit.run_dir(), "vm").is_none());
    // The next one begins anew.
    kit.start(CgroupPlacement::Auto);
    kit.driver.kill("vm").expect("kill");
    assert_eq!(kit.exit(), ExitCause::Killed);
}

fn panic_while_no_agent_lived_is_known_to_the_next(kind: Kind) {
    let mut kit = Kit::new(kind);
    kit.start(CgroupPlacement::Auto);
    kit.driver = kit::driver(kind);
    guest(&kit).panic().expect("panic");
    kit.restart_agent();
    assert_eq!(kit.exit(), ExitCause::Panicked);
    kit.restart_agent();
    assert_eq!(
        kit.exit(),
        ExitCause::Panicked,
        "also to one that comes later"
    );
}

fn hung_guest_lives_and_hears_nothing(kind: Kind) {
    let mut kit = Kit::new(kind);
    kit.start(CgroupPlacement::Auto);
    let inside = guest(&kit);
    inside.hang().expect("hang");
    // A key waits for the next count.
    kit.assert_comes_to_rest();
    kit.driver.resume("vm").expect("resume");
    kit.driver.request_shutdown("vm").expect("request");
    inside.panic().expect("not heard");
    inside.shut_down().expect("not heard");
    kit.assert_still();
    assert!(!kit.driver.is_gone("vm") && inside.executes());
    kit.driver.kill("vm").expect("kill");
    assert_eq!(kit.exit(), ExitCause::Killed);
}

fn guest_shuts_itself_down(kind: Kind) {
    let mut kit = Kit::new(kind);
    set_times(&kit, Some(SHUTDOWN));
    kit.start(CgroupPlacement::Auto);
    let start = Instant::now();
    guest(&kit).shut_down().expect("shut down");
    assert_eq!(kit.exit(), ExitCause::Clean);
    assert!(start.elapsed() >= SHUTDOWN, "{:?}", start.elapsed());
}

fn shutdown_takes_as_long_as_the_image_says(kind: Kind) {
    let mut kit = Kit::new(kind);
    set_times(&kit, Some(SHUTDOWN));
    kit.start(CgroupPlacement::Auto);
    let start = Instant::now();
    kit.driver.request_shutdown("vm").expect("request");
    kit.assert_counts();
    // A second request changes nothing.
    kit.driver.request_shutdown("vm").expect("request");
    assert_eq!(kit.exit(), ExitCause::Clean);
    assert!(start.elapsed() >= SHUTDOWN, "{:?}", start.elapsed());
}

fn guest_that_never_shuts_down_can_only_be_killed(kind: Kind) {
    let mut kit = Kit::new(kind);
    set_times(&kit, None);
    kit.start(CgroupPlacement::Auto);
    kit.driver.request_shutdown("vm").expect("request");
    guest(&kit).shut_down().expect("shut down");
    kit.assert_counts();
    let waited = kit.driver.wait_exit("vm", 2 * SHUTDOWN);
    assert_eq!(waited, None);
    kit.driver.kill("vm").expect("kill");
    assert_eq!(kit.exit(), ExitCause::Killed);
}

fn guest_that_is_killed_while_it_shuts_down_is_gone_at_once(kind: Kind) {
    let mut kit = Kit::new(kind);
    set_times(&kit, Some(10 * kit::PATIENCE));
    kit.start(CgroupPlacement::Auto);
    kit.driver.request_shutdown("vm").expect("request");
    kit.assert_counts();
    kit.driver.kill("vm").expect("kill");
    assert_eq!(kit.exit(), ExitCause::Killed);
}

fn guest_killed_for_want_of_memory_is_told_apart(kind: Kind) {
    let mut kit = Kit::new(kind);
    kit.start(CgroupPlacement::Auto);
    let inside = guest(&kit);
    if !has_memory_cgroup(&inside) {
        return;
    }
    inside.oom_kill(kit::PATIENCE).expect("an OOM kill");
    assert_eq!(kit.exit(), ExitCause::OutOfMemory);
    for dir in cgroups(&inside) {
        assert!(!dir.exists(), "{}", dir.display());
    }
    // Nothing of it is left to the next one of that name and generation.
    kit.start(CgroupPlacement::Auto);
    kit.driver.kill("vm").expect("kill");
    assert_eq!(kit.exit(), ExitCause::Killed);
}

fn kill_for_want_of_memory_is_known_to_the_next_agent(kind: Kind) {
    let mut kit = Kit::new(kind);
    kit.start(CgroupPlacement::Auto);
    let inside = guest(&kit);
    if !has_memory_cgroup(&inside) {
        return;
    }
    // Nobody looks while it ends.
    kit.driver = kit::driver(kind);
    inside.oom_kill(kit::PATIENCE).expect("an OOM kill");
    let found = kit.restart_agent();
    let exit = found[0].exit.as_ref().expect("an exit");
    assert_eq!(exit.cause, ExitCause::OutOfMemory);
    // The count is gone with the cgroup, the cause is not.
    let found = kit.restart_agent();
    let exit = found[0].exit.as_ref().expect("an exit");
    assert_eq!(exit.cause, ExitCause::OutOfMemory);
    for dir in cgroups(&inside) {
        assert!(!dir.exists(), "{}", dir.display());
    }
}

fn hung_guest_is_killed_for_want_of_memory(kind: Kind) {
    let mut kit = Kit::new(kind);
    kit.start(CgroupPlacement::Auto);
    let inside = guest(&kit);
    if !has_memory_cgroup(&inside) {
        return;
    }
    inside.hang().expect("hang");
    kit.assert_comes_to_rest();
    inside.oom_kill(kit::PATIENCE).expect("an OOM kill");
    assert_eq!(kit.exit(), ExitCause::OutOfMemory);
}

fn guest_killed_otherwise_was_not_out_of_memory(kind: Kind) {
    let mut kit = Kit::new(kind);
    let process = kit.start(CgroupPlacement::Auto);
    if !has_memory_cgroup(&guest(&kit)) {
        return;
    }
    kit.driver = kit::driver(kind);
    freeze::kill(&process).expect("kill");
    wait_until("the guest is gone", || {
        freeze::all_threads_gone(process.pid, process.start_time)
    });
    let found = kit.restart_agent();
    let exit = found[0].exit.as_ref().expect("an exit");
    assert!(matches!(exit.cause, ExitCause::Crashed { .. }), "{exit:?}");
}

fn frozen_guest_does_not_execute(kind: Kind) {
    let mut kit = Kit::new(kind);
    let process = kit.prepare(CgroupPlacement::Auto);
    assert!(!guest(&kit).executes(), "it has not begun");
    kit.driver.resume("vm").expect("resume");
    kit.assert_counts();
    assert!(guest(&kit).executes());
    kit.freeze(&process);
    assert!(!guest(&kit).executes());
}

#[test]
fn embedded_guest_starts_as_slowly_as_its_image_says() {
    let mut kit = Kit::new(Kind::Embedded);
    let start_time = Duration::from_millis(400);
    let times = GuestTimes {
        start: start_time,
        ..GuestTimes::default()
    };
    write_guest_times(&kit.image(), &times).expect("its times");
    let start = Instant::now();
    kit.start(CgroupPlacement::Auto);
    assert!(start.elapsed() >= start_time, "{:?}", start.elapsed());
}

#[test]
fn guest_that_is_killed_while_it_starts_is_gone_at_once() {
    let kit = Kit::new(Kind::Embedded);
    let times = GuestTimes {
        start: 10 * kit::PATIENCE,
        ..GuestTimes::default()
    };
    write_guest_times(&kit.image(), &times).expect("its times");
    let spec = kit.spec();
    let refused = std::thread::scope(|scope| {
        let prepared = scope.spawn(|| kit.driver.prepare(&spec));
        wait_until("there is a process", || {
            inside::find(&kit.run_dir(), "vm").is_some() && kit.driver.kill("vm").is_ok()
        });
        prepared.join().expect("no panic")
    });
    assert!(
        matches!(refused, Err(StartError::Failed { .. })),
        "{refused:?}"
    );
    assert!(kit.driver.is_gone("vm"));
}

#[test]
fn memory_cgroups_lie_beside_the_others() {
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    assert_eq!(memory_cgroup_beside(elsewhere.path()), None);
}
