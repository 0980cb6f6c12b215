//! Byte-range locks between mounts of one storage.

use super::helper::{self, in_the_way, lock, said};
use super::kit::{Host, Lab, comes_true, skipped};
use mainstay_lab::storage::Fault;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_RDLCK, F_UNLCK, F_WRLCK};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::Child;
use std::time::{Duration, Instant};

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

#[test]
fn open_file_locks_exclude_across_mounts_and_within_one() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let (one, two) = (lab.host("host-1"), lab.host("host-2"));
    let (mine, again, theirs) = (one.open("disk"), one.open("disk"), two.open("disk"));
    // As QEMU does: shared locks, then a look for others'.
    lock(&mine, F_RDLCK, 100, 4).unwrap();
    lock(&theirs, F_RDLCK, 100, 4).unwrap();
    assert_eq!(in_the_way(&theirs, 100, 4), Some((F_RDLCK, 100, 4)));
    lock(&theirs, F_UNLCK, 100, 4).unwrap();
    assert_eq!(
        in_the_way(&mine, 100, 4),
        None,
        "one's own are in nobody's way"
    );
    lock(&mine, F_WRLCK, 200, 4).unwrap();
    for other in [&again, &theirs] {
        assert_eq!(lock(other, F_WRLCK, 203, 1), Err(Errno::EAGAIN));
        assert_eq!(in_the_way(other, 0, 0), Some((F_RDLCK, 100, 4)));
    }
    lock(&theirs, F_WRLCK, 204, 0).unwrap();
    assert_eq!(in_the_way(&mine, 204, 1), Some((F_WRLCK, 204, 0)));
    drop(mine);
    comes_true("closing gives them up", || {
        lock(&theirs, F_WRLCK, 100, 200).is_ok()
    });
}

#[test]
fn process_locks_exclude_across_mounts_until_any_close() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let (one, two) = (lab.host("host-1"), lab.host("host-2"));
    let (mine, theirs) = (one.open("disk"), two.open("disk"));
    let take = |file, kind| fcntl(file, FcntlArg::F_SETLK(&helper::range(kind, 0, 10)));
    take(&mine, F_WRLCK).unwrap();
    assert_eq!(take(&theirs, F_RDLCK), Err(Errno::EAGAIN));
    drop(one.open("disk"));
    take(&theirs, F_WRLCK).unwrap();
}

#[test]
fn locks_end_with_their_process() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let (one, two) = (lab.host("host-1"), lab.host("host-2"));
    let theirs = two.open("disk");
    let mut child = one.spawn(&mut helper::command("lock", &one.path("disk")));
    said(&mut child, "LOCKED");
    assert_eq!(lock(&theirs, F_WRLCK, 100, 1), Err(Errno::EAGAIN));
    child.kill().unwrap();
    child.wait().unwrap();
    comes_true("its lock is free", || {
        lock(&theirs, F_WRLCK, 100, 1).is_ok()
    });
}

#[test]
fn a_cut_off_host_keeps_its_locks_until_it_is_heard_again() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let (one, two) = (lab.host("host-1"), lab.host("host-2"));
    let (mine, theirs) = (one.open("disk"), two.open("disk"));
    lock(&mine, F_WRLCK, 100, 4).unwrap();
    one.mount().set(Some(Fault::Hang));
    let closing = one.hang(move || drop(mine));
    assert_eq!(lock(&theirs, F_WRLCK, 100, 4), Err(Errno::EAGAIN));
    one.mount().set(None);
    closing.join().unwrap();
    comes_true("it is free", || lock(&theirs, F_WRLCK, 100, 4).is_ok());
}

#[test]
fn storage_that_enforces_no_locks_keeps_them_within_a_host() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let open = |name: &str| {
        let mut spec = lab.spec(name);
        spec.image_locks = false;
        lab.host_by(&spec)
    };
    let (one, two) = (open("host-1"), open("host-2"));
    let (mine, again, theirs) = (one.open("disk"), one.open("disk"), two.open("disk"));
    lock(&mine, F_WRLCK, 100, 4).unwrap();
    assert_eq!(lock(&again, F_WRLCK, 100, 4), Err(Errno::EAGAIN));
    lock(&theirs, F_WRLCK, 100, 4).unwrap();
}

fn waiter(host: &Host) -> Child {
    let mut child = host.spawn(&mut helper::command("wait", &host.path("disk")));
    said(&mut child, "WAITS");
    child
}

#[test]
fn a_waiting_lock_is_given_and_a_signal_ends_the_wait() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let (one, two) = (lab.host("host-1"), lab.host("host-2"));
    let mine = one.open("disk");
    lock(&mine, F_WRLCK, 100, 4).unwrap();
    let mut waiting = waiter(&two);
    let mut killed = waiter(&two);
    comes_true("both wait", || lab.storage.waiting_for_locks() == 2);
    let start = Instant::now();
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert!(waiting.try_wait().unwrap().is_none());
    // The mount still serves: no thread waits for the lock.
    drop(two.open("other"));
    lock(&mine, F_UNLCK, 100, 4).unwrap();
    said(&mut waiting, "LOCKED");
    assert_eq!(lock(&mine, F_WRLCK, 100, 4), Err(Errno::EAGAIN));
    kill(pid(&waiting), Signal::SIGKILL).unwrap();
    waiting.wait().unwrap();
}

#[test]
fn locks_of_a_host_without_power_are_kept_exactly_that_long() {
    if skipped() {
        return;
    }
    let keep = Duration::from_millis(700);
    let lab = Lab::new();
    let (mut one, two) = (lab.host("host-1"), lab.host("host-2"));
    let theirs = two.open("disk");
    let mut child = one.spawn(&mut helper::command("lock", &one.path("disk")));
    said(&mut child, "LOCKED");
    let before = Instant::now();
    one.mount.take().unwrap().power_off(keep).unwrap();
    let after = Instant::now();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(lock(&theirs, F_WRLCK, 100, 4), Err(Errno::EAGAIN));
    comes_true("they expire", || lock(&theirs, F_WRLCK, 100, 4).is_ok());
    assert!(before.elapsed() >= keep, "{:?}", before.elapsed());
    assert!(
        after.elapsed() < keep + Duration::from_secs(2),
        "{:?}",
        after.elapsed()
    );
}
