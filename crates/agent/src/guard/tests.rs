//! The guard with a device that the test plays: when it is fed, when not, and what is on disk by then.

use super::stops::Stop;
use super::*;
use mainstay_core::guard::Word;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, sync_channel};

/// What a scripted device was told, and what it answers.
#[derive(Debug)]
struct Script {
    /// A byte for each thing that was written to it, as the kernel's is.
    written: Vec<u8>,
    time_out: Duration,
    fixed: bool,
}

#[derive(Clone, Debug)]
struct Scripted(Arc<Mutex<Script>>);

impl Scripted {
    fn new(time_out_s: u64, fixed: bool) -> Self {
        Self(Arc::new(Mutex::new(Script {
            written: Vec::new(),
            time_out: Duration::from_secs(time_out_s),
            fixed,
        })))
    }

    fn with<T>(&self, look: impl FnOnce(&mut Script) -> T) -> T {
        look(&mut self.0.lock().expect("lock"))
    }

    fn written(&self) -> usize {
        self.with(|s| s.written.len())
    }

    fn is_let_go(&self) -> bool {
        self.with(|s| s.written.last() == Some(&b'V'))
    }
}

impl crate::watchdog::Device for Scripted {
    fn feed(&mut self) -> io::Result<()> {
        self.with(|s| s.written.push(0));
        Ok(())
    }

    fn let_go(&mut self) -> io::Result<()> {
        self.with(|s| s.written.push(b'V'));
        Ok(())
    }

    fn time_out(&self) -> Option<Duration> {
        Some(self.with(|s| s.time_out))
    }

    fn set_time_out(&mut self, wanted: Duration) -> io::Result<Duration> {
        self.with(|s| {
            if s.fixed {
                return Err(io::ErrorKind::Unsupported.into());
            }
            s.time_out = wanted;
            Ok(wanted)
        })
    }

    fn has_reset(&self) -> Option<bool> {
        Some(false)
    }
}

/// A guard with a scripted device; what it keeps on disk, the test says.
struct Scene {
    watch: Watch,
    device: Scripted,
    notes: Receiver<Note>,
    kept: Arc<AtomicU64>,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn new(stop: fn(&Process) -> Stop) -> Self {
        Self::with(stop, Scripted::new(60, false))
    }

    fn with(stop: fn(&Process) -> Stop, device: Scripted) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let shm = Shm::create(&shm_path(dir.path()), "boot", 1).expect("shared memory");
        let (events, notes) = sync_channel(notes::QUEUE);
        let kept = Arc::new(AtomicU64::new(0));
        let keeper = Keeper::new(events.clone(), Arc::clone(&kept));
        let watchdog = Watchdog::new(Box::new(device.clone()));
        let watch = Watch {
            host: HostId::new("host-1").expect("id"),
            shm: Arc::new(shm),
            guard: Guard::new(None),
            stops: Stops::by(stop),
            strays: Vec::new(),
            going: BTreeMap::new(),
            events,
            bell: None,
            agent: Ringer::new(bell::of_agent(dir.path())),
            program: None,
            config: PathBuf::new(),
            log_dir: dir.path().into(),
            backoff: Backoff::default(),
            hung: false,
            feeding: Feeding::new(Some(watchdog), keeper, None),
        };
        Self {
            watch,
            device,
            notes,
            kept,
            _dir: dir,
        }
    }

    /// A VM of this test's own process, in that state: nothing here really stops it.
    fn vm(&self, state: SlotState) -> usize {
        let me = twin::own_process().expect("this process");
        self.vm_of(&me, state, Instant::from_nanos(1 << 62))
    }

    fn vm_of(&self, process: &Process, state: SlotState, deadline: Instant) -> usize {
        let shm = &self.watch.shm;
        let slot = shm.free_slot().expect("a slot");
        let vm = VmId::new(&format!("vm-{slot}")).expect("id");
        let word = Word::new(state, Generation(1), deadline);
        assert!(shm.occupy(slot, &vm, Generation(1), word));
        shm.bind(slot, process);
        slot
    }

    /// An agent that counts renewals.
    fn agent(&self) -> &Shm {
        let me = twin::own_process().expect("this process");
        self.watch.shm.enter_agent(&me);
        self.watch.shm.count_renewals(&me);
        &self.watch.shm
    }

    fn look(&mut self, now: Instant) {
        self.watch.check_slots(now);
        self.watch.feed_watchdog(now);
    }

    /// How often it was fed over so many seconds from there.
    fn fed(&mut self, from_s: u64, seconds: u64) -> usize {
        let before = self.device.written();
        for tick in 0..seconds * 50 {
            self.look(at_ms(from_s * 1000 + tick * 20));
        }
        self.device.written() - before
    }

    /// What was sent to the disk since this was asked last.
    fn sent(&self) -> Vec<reset::Keeping> {
        let all = self.notes.try_iter().filter_map(|note| match note {
            Note::Watchdog(_, keeping) => Some(*keeping),
            Note::Event(_) => None,
        });
        all.collect()
    }

    /// The disk has taken all that was sent.
    fn disk_takes(&self, number: u64) {
        self.kept.store(number, Ordering::Release);
    }
}

fn at_ms(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

#[test]
fn the_watchdog_is_fed_no_more_while_a_vm_runs_on_without_a_right() {
    let mut scene = Scene::new(|_| Stop::Runs);
    assert_eq!(scene.fed(10, 10), 10, "all is well");
    assert_eq!(scene.sent(), [reset::Keeping::Armed(None)]);
    scene.disk_takes(1);
    let slot = scene.vm(SlotState::Lapsed);
    assert_eq!(scene.fed(20, 4), 4, "it gets some time");
    assert_eq!(scene.sent(), []);
    assert!(scene.fed(24, 3) <= 3, "no longer than the reason takes");
    let sent = scene.sent();
    assert!(
        matches!(sent.as_slice(), [reset::Keeping::Resets(why)] if why.contains("vm-0")),
        "{sent:?}"
    );
    assert_eq!(scene.fed(27, 60), 0);
    assert!(scene.watch.shm.has_weakness(Weakness::RunsOn));
    // It is killed, and its slot freed.
    scene.watch.shm.release(slot);
    assert_eq!(scene.fed(90, 10), 10);
    assert!(!scene.watch.shm.has_weakness(Weakness::RunsOn));
    assert_eq!(scene.sent(), [reset::Keeping::Averted]);
}

#[test]
fn a_vm_that_stops_or_hangs_in_its_storage_is_no_reason_for_a_reset() {
    for stop in [|_: &Process| Stop::Done, |_: &Process| Stop::InIo] {
        let mut scene = Scene::new(stop);
        scene.agent();
        scene.vm(SlotState::Lapsed);
        assert_eq!(scene.fed(10, 60), 60);
        assert!(!scene.watch.shm.has_weakness(Weakness::RunsOn));
    }
}

/// Planted bug: a guard that feeds after each look. Agent and guard then need not be dead for the promise to
/// fail that a host without renewals is reset.
#[test]
fn while_a_right_lasts_the_watchdog_is_fed_only_after_a_completed_renewal() {
    let mut scene = Scene::new(|_| Stop::Done);
    scene.agent().renewed();
    let slot = scene.vm(SlotState::Running);
    assert_eq!(scene.fed(10, 5), 1, "for the renewal that was");
    for second in 15..20 {
        scene.watch.shm.renewed();
        assert_eq!(scene.fed(second, 1), 1);
    }
    assert_eq!(scene.fed(20, 30), 0, "nothing was renewed");
    // Its right ends, and it stops.
    let word = scene.watch.shm.load(slot);
    let lapsed = Word::new(SlotState::Lapsed, Generation(1), at_ms(1));
    assert!(scene.watch.shm.compare_exchange(slot, word, lapsed));
    assert_eq!(scene.fed(50, 10), 10, "nothing executes any more");
}

#[test]
fn what_is_not_yet_seen_to_be_stopped_counts_as_running() {
    let mut scene = Scene::new(|_| Stop::Runs);
    scene.agent().renewed();
    scene.vm(SlotState::Lapsed);
    assert_eq!(scene.fed(10, 4), 1);
}

#[test]
fn one_datastore_that_renews_keeps_the_host_while_another_hangs() {
    let mut scene = Scene::new(|_| Stop::InIo);
    scene.agent();
    scene.vm(SlotState::Running);
    scene.vm(SlotState::Lapsed);
    for second in 10..40 {
        scene.watch.shm.renewed();
        assert_eq!(scene.fed(second, 1), 1);
    }
}

#[test]
fn a_planned_stop_of_the_agent_and_an_agent_that_counts_nothing_reset_no_host() {
    let mut scene = Scene::new(|_| Stop::Done);
    scene.agent().set_planned_stop();
    scene.vm(SlotState::Running);
    assert_eq!(scene.fed(10, 60), 60, "rights were made longer on purpose");
    let mut scene = Scene::new(|_| Stop::Done);
    scene.vm(SlotState::Running);
    let older = twin::own_process().expect("this process");
    scene.watch.shm.enter_agent(&older);
    assert_eq!(scene.fed(10, 60), 60);
}

/// Planted bug: the reset comes before its reason is on disk.
#[test]
fn the_watchdog_is_fed_until_the_reason_is_on_disk_and_not_much_longer() {
    // Runs on from 10 s, so that it is decided at 15 s.
    let decided = |kept_at_s: Option<u64>| {
        let mut scene = Scene::new(|_| Stop::Runs);
        scene.disk_takes(1);
        scene.vm(SlotState::Lapsed);
        scene.fed(10, 5);
        let mut fed = Vec::new();
        for second in 15..25 {
            if Some(second) == kept_at_s {
                scene.disk_takes(2);
            }
            fed.push(scene.fed(second, 1));
        }
        fed
    };
    assert_eq!(decided(Some(15))[1..], [0; 9], "the disk is quick");
    let slow = decided(Some(16));
    assert_eq!((slow[0], &slow[1..]), (1, [0; 9].as_slice()));
    let never = decided(None);
    assert_eq!(never.iter().sum::<usize>(), 2, "KEEPING_LIMIT: {never:?}");
    assert_eq!(never[2..], [0; 8]);
}

#[test]
fn the_reason_that_counts_as_kept_is_on_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("kmsg"), "").expect("a file");
    let shm = Arc::new(Shm::create(&shm_path(dir.path()), "boot", 1).expect("shared memory"));
    let writer = Writer {
        events: at("events"),
        log_dir: dir.path().into(),
        kernel_log: at("kmsg"),
        watchdog: Some(reset::Files {
            state_dir: at("state"),
            boot: "one".into(),
            device: at("watchdog"),
        }),
        shm,
    };
    let (notes, kept) = writer.start().expect("a thread");
    let mut keeper = Keeper::new(notes, kept);
    keeper.keep(reset::Keeping::Armed(None));
    keeper.keep(reset::Keeping::Resets("vm-7 runs on".into()));
    let begun = std::time::Instant::now();
    while !keeper.is_kept() {
        assert!(begun.elapsed().as_secs() < 30, "never kept");
        clock::pause(std::time::Duration::from_millis(1));
    }
    let said = reset::of_last_boot(&at("state"), "two").expect("said");
    assert!(said.contains("vm-7 runs on"), "{said}");
    let told = std::fs::read_to_string(at("kmsg")).expect("read");
    assert!(
        told.starts_with("<2>") && told.contains("vm-7 runs on"),
        "{told}"
    );
}

/// Planted bug: the watchdog is let go while something executes.
#[test]
fn the_watchdog_is_let_go_only_where_nothing_executes() {
    type Case = (fn(&Process) -> Stop, Option<SlotState>, bool);
    let scenes: [Case; 5] = [
        (|_| Stop::Done, None, true),
        (|_| Stop::Done, Some(SlotState::Lapsed), true),
        (|_| Stop::InIo, Some(SlotState::Lapsed), true),
        (|_| Stop::Runs, Some(SlotState::Lapsed), false),
        (|_| Stop::Done, Some(SlotState::Running), false),
    ];
    for (stop, state, let_go) in scenes {
        let mut scene = Scene::new(stop);
        scene.disk_takes(u64::MAX);
        state.map(|state| scene.vm(state));
        scene.watch.check_slots(at_ms(10));
        scene.watch.leave_watchdog();
        assert_eq!(scene.device.is_let_go(), let_go, "{state:?}");
        let kept = scene.sent().contains(&reset::Keeping::LetGo);
        assert_eq!(
            kept, let_go,
            "a device that goes on is not said to have ended"
        );
    }
}

#[test]
fn a_time_out_that_is_shorter_than_the_rights_is_made_longer_or_said() {
    let mut scene = Scene::with(|_| Stop::Done, Scripted::new(10, false));
    scene.watch.shm.set_freeze(Duration::from_secs(12));
    scene.fed(10, 1);
    assert_eq!(scene.device.with(|s| s.time_out), Duration::from_secs(22));
    assert!(!scene.watch.shm.has_weakness(Weakness::HastyWatchdog));
    let mut scene = Scene::with(|_| Stop::Done, Scripted::new(12, true));
    scene.watch.shm.set_freeze(Duration::from_secs(12));
    scene.fed(10, 1);
    assert!(scene.watch.shm.has_weakness(Weakness::HastyWatchdog));
    scene.watch.shm.set_freeze(Duration::from_secs(1));
    scene.fed(11, 1);
    assert!(!scene.watch.shm.has_weakness(Weakness::HastyWatchdog));
    let mut scene = Scene::with(|_| Stop::Done, Scripted::new(60, false));
    scene.watch.shm.set_freeze(Duration::from_secs(3));
    scene.fed(10, 1);
    let admin_s = scene.device.with(|s| s.time_out);
    assert_eq!(admin_s, Duration::from_secs(60), "a longer one stays");
}

#[test]
fn what_was_found_without_a_table_is_kept_stopped_until_it_is_registered() {
    let mut scene = Scene::new(|_| Stop::Runs);
    let me = twin::own_process().expect("this process");
    scene.watch.strays = vec![me.clone()];
    scene.disk_takes(u64::MAX);
    assert_eq!(scene.fed(10, 60), 5, "it runs on without a right");
    let sent = scene.sent();
    let named = format!("process {}", me.pid);
    assert!(
        matches!(sent.last(), Some(reset::Keeping::Resets(why)) if why.contains(&named)),
        "{sent:?}"
    );
    scene.vm(SlotState::Running);
    assert_eq!(scene.fed(70, 5), 5, "the agent has registered it");
    assert!(scene.watch.strays.is_empty());
}

/// Planted bug: the guard lets a process go on because its slot says *running*, although its deadline has passed.
#[test]
fn an_expired_slot_is_never_let_go_on() {
    let mut child = std::process::Command::new("sleep")
        .arg("600")
        .spawn()
        .expect("a process");
    let process = Process::of_pid(child.id().cast_signed()).expect("it is there");
    freeze::freeze(&process).expect("told to stop");
    let begun = std::time::Instant::now();
    while !freeze::is_stopped(&process) {
        assert!(begun.elapsed().as_secs() < 30, "it does not stop");
        clock::pause(std::time::Duration::from_millis(1));
    }
    let mut scene = Scene::new(|_| Stop::Done);
    let now = clock::now();
    let slot = scene.vm_of(&process, SlotState::Running, now);
    scene.watch.check_slots(now);
    assert!(scene.watch.going.is_empty() && freeze::is_stopped(&process));
    // Under a right that lasts it is.
    scene.watch.shm.release(slot);
    scene.vm_of(&process, SlotState::Running, now + Duration::from_secs(600));
    scene.watch.check_slots(now);
    assert_eq!(scene.watch.going.len(), 1);
    assert!(!freeze::is_stopped(&process), "it goes on");
    child.kill().expect("killed");
    child.wait().expect("gone");
}
