use super::stops::Stop;
use super::*;

fn watch(dir: &Path, stop: fn(&Process) -> Stop) -> Watch {
    std::fs::write(dir.join("watchdog"), "").expect("a file");
    let shm = Shm::create(&shm_path(dir), "boot", 1).expect("shared memory");
    Watch {
        host: HostId::new("host-1").expect("id"),
        shm: Arc::new(shm),
        guard: Guard::new(None),
        stops: Stops::by(stop),
        going: BTreeMap::new(),
        events: sync_channel(EVENT_QUEUE).0,
        bell: None,
        agent: Ringer::new(bell::of_agent(dir)),
        program: None,
        config: PathBuf::new(),
        log_dir: dir.into(),
        backoff: Backoff::default(),
        hung: false,
        watchdog: Some(Watchdog::open(&dir.join("watchdog")).expect("watchdog")),
    }
}

/// A VM of this test's own process whose right has ended: nothing here really stops it.
fn lapse(watch: &Watch) -> usize {
    let vm = VmId::new("vm-1").expect("id");
    let word =
        mainstay_core::guard::Word::new(SlotState::Lapsed, Generation(1), Instant::from_nanos(1));
    let slot = watch.shm.free_slot().expect("a slot");
    assert!(watch.shm.occupy(slot, &vm, Generation(1), word));
    let me = twin::own_process().expect("this process");
    watch.shm.bind(slot, &me);
    slot
}

/// How often it was fed over so many seconds from there.
fn fed(watch: &mut Watch, dir: &Path, from_s: u64, seconds: u64) -> usize {
    let count = || std::fs::read(dir.join("watchdog")).expect("read").len();
    let before = count();
    for tick in 0..seconds * 50 {
        let now = Instant::from_nanos(from_s * 1_000_000_000 + tick * 20_000_000);
        watch.check_slots(now);
        watch.feed_watchdog(now);
    }
    count() - before
}

#[test]
fn the_watchdog_is_fed_no_more_while_a_vm_runs_on_without_a_right() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut watch = watch(dir.path(), |_| Stop::Runs);
    assert_eq!(fed(&mut watch, dir.path(), 10, 10), 10, "all is well");
    let slot = lapse(&watch);
    assert_eq!(fed(&mut watch, dir.path(), 20, 60), 5, "it gets some time");
    assert!(watch.shm.has_weakness(Weakness::RunsOn));
    // It is killed, and its slot freed.
    watch.shm.release(slot);
    assert_eq!(fed(&mut watch, dir.path(), 80, 10), 10);
    assert!(!watch.shm.has_weakness(Weakness::RunsOn));
}

#[test]
fn a_vm_that_stops_or_hangs_in_its_storage_is_no_reason_for_a_reset() {
    for stop in [|_: &Process| Stop::Done, |_: &Process| Stop::InIo] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut watch = watch(dir.path(), stop);
        lapse(&watch);
        assert_eq!(fed(&mut watch, dir.path(), 10, 60), 60);
        assert!(!watch.shm.has_weakness(Weakness::RunsOn));
    }
}
