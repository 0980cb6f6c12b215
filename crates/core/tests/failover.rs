//! The main path through the core's public interface: who is elected, what is protected, and what
//! comes back when a host is lost, with the figures of the profiles.

mod cluster;
#[path = "failover/drill.rs"]
mod drill;
#[path = "failover/ends.rs"]
mod ends;
#[path = "failover/joining.rs"]
mod joining;

use cluster::{Cluster, host, vm};
use mainstay_core::Command;
use mainstay_core::config::{Change, HostSpec, Profile};
use mainstay_core::event::{EventKind, HostState, IssueCause, WaitCause};
use mainstay_core::id::DatastoreId;
use mainstay_core::time::Duration;

fn settled(profile: Profile, hosts: u32, vms: u32) -> Cluster {
    let mut c = Cluster::new(profile, hosts, vms);
    c.run_for(Duration::from_secs(60));
    for n in 1..=vms {
        c.command(1 + n % hosts, Command::PowerOn(vm(n)));
    }
    c.run_for(Duration::from_secs(60));
    assert_eq!(
        c.running.len(),
        usize::try_from(vms).expect("small"),
        "{:#?}",
        c.events
    );
    let protected = c.count(mainstay_core::time::Instant::ZERO, |e| {
        matches!(e, EventKind::VmProtected { .. })
    });
    assert_eq!(
        protected,
        usize::try_from(vms).expect("small"),
        "{:#?}",
        c.events
    );
    c
}

fn within(what: &str, got: Option<Duration>, figure_ms: u64, tolerance_ms: u64) {
    let got = u64::try_from(
        got.unwrap_or_else(|| panic!("{what} never happened"))
            .as_millis(),
    )
    .expect("small");
    assert!(
        (figure_ms..=figure_ms + tolerance_ms).contains(&got),
        "{what} after {got} ms, expected {figure_ms}"
    );
}

const PROFILES: [(Profile, u64, u64, u64); 3] = [
    (Profile::Classic, 18_000, 35_000, 1000),
    (Profile::Balanced, 6000, 6000, 500),
    (Profile::Fast, 2400, 2200, 200),
];

#[test]
fn the_lexically_highest_host_is_the_primary() {
    let mut c = Cluster::new(Profile::Balanced, 3, 0);
    c.run_for(Duration::from_secs(10));
    assert_eq!(c.status(1).primary, Some(host(3)));
    assert_eq!(c.status(3).primary, Some(host(3)));
}

#[test]
fn vms_of_a_lost_secondary_run_elsewhere_on_time() {
    for (profile, dead, _, beat) in PROFILES {
        let mut c = settled(profile, 3, 6);
        let from = c.now;
        c.power_off(1);
        c.run_for(Duration::from_secs(60));
        within(
            "dead",
            c.first(from, |e| matches!(e, EventKind::HostState { host: h, to: HostState::Dead, .. } if *h == host(1))),
            dead,
            beat + 20,
        );
        within(
            "restart",
            c.first(from, |e| matches!(e, EventKind::RestartRequested { .. })),
            dead,
            beat + 20,
        );
        assert_eq!(c.running.len(), 6, "{profile:?}");
    }
}

#[test]
fn vms_of_a_lost_primary_run_elsewhere_on_time() {
    for (profile, _, restart, beat) in PROFILES {
        let mut c = settled(profile, 3, 6);
        let from = c.now;
        c.power_off(3);
        c.run_for(Duration::from_secs(90));
        let asked = c.first(from, |e| matches!(e, EventKind::RestartRequested { .. }));
        within(
            &format!("{profile:?} restart"),
            asked,
            restart,
            2 * beat + 20,
        );
        assert_eq!(
            c.running.len(),
            6,
            "{profile:?} {:#?}",
            c.events.iter().filter(|e| e.0 > from).collect::<Vec<_>>()
        );
    }
}

#[test]
fn one_vms_change_costs_a_page_of_each_list_however_many_vms_there_are() {
    let cost = |vms: u32| {
        let mut c = settled(Profile::Balanced, 3, vms);
        c.list_writes.clear();
        c.command(2, Command::PowerOff(vm(1)));
        c.run_for(Duration::from_secs(5));
        assert!(!c.running.contains_key(&vm(1)));
        c.command(2, Command::PowerOn(vm(1)));
        c.run_for(Duration::from_secs(5));
        assert!(c.running.contains_key(&vm(1)));
        c.list_writes.clone()
    };
    let few = cost(6);
    // Off and on: twice the protected list, twice the powered-on list on both heartbeat datastores.
    assert_eq!(few, [4096; 6]);
    assert_eq!(cost(200), few);
}

#[test]
fn what_its_user_switched_off_stays_off() {
    let mut c = settled(Profile::Balanced, 3, 3);
    c.command(2, Command::PowerOff(vm(1)));
    c.run_for(Duration::from_secs(5));
    let from = c.now;
    c.power_off(2);
    c.run_for(Duration::from_secs(60));
    assert!(!c.running.contains_key(&vm(1)));
    assert_eq!(
        c.count(
            from,
            |e| matches!(e, EventKind::RestartRequested { vm: v, .. } if *v == vm(1))
        ),
        0
    );
}

#[test]
fn a_crashed_vm_is_restarted() {
    let mut c = settled(Profile::Balanced, 3, 3);
    c.crash(&vm(1));
    c.run_for(Duration::from_secs(10));
    assert!(c.running.contains_key(&vm(1)));
}

#[test]
fn retries_come_after_2_4_8_8_8_minutes_and_end() {
    let mut c = settled(Profile::Classic, 3, 3);
    c.failing_starts = 100;
    let from = c.now;
    c.crash(&vm(1));
    c.run_for(Duration::from_secs(3600));
    let asked: Vec<u64> = c
        .events
        .iter()
        .filter(|(at, _, e)| *at >= from && matches!(e, EventKind::RestartRequested { .. }))
        .map(|(at, ..)| at.since(from).as_secs())
        .collect();
    let gaps: Vec<u64> = asked.windows(2).map(|w| w[1] - w[0]).collect();
    assert_eq!(gaps, [120, 240, 480, 480, 480]);
    assert_eq!(
        c.count(from, |e| matches!(e, EventKind::RestartAbandoned { .. })),
        1
    );
}

#[test]
fn a_restart_is_explained() {
    let mut c = settled(Profile::Balanced, 3, 3);
    c.power_off(2);
    c.run_for(Duration::from_secs(20));
    let text = c.explain_vm(3, &vm(1)).sentences.join(" ");
    assert!(text.contains("vm-1 is running on"), "{text}");
    assert!(text.contains("It is protected"), "{text}");
    assert!(!text.contains("is not restarted"), "{text}");
    let off = Change::Set {
        key: "host_monitoring".into(),
        value: "false".into(),
    };
    c.propose(3, off);
    c.run_for(Duration::from_secs(5));
    let text = c.explain_vm(3, &vm(1)).sentences.join(" ");
    assert!(
        text.contains("is not restarted when its host is lost: host_monitoring"),
        "{text}"
    );
    let issues = c.status(3).issues;
    let off = issues.iter().find(|i| i.cause == IssueCause::MonitoringOff);
    assert!(
        off.is_some_and(|i| i.text.contains("config set")),
        "{issues:?}"
    );
}

#[test]
fn a_cluster_at_rest_reports_nothing_whole_and_no_vm_again() {
    let mut c = settled(Profile::Balanced, 3, 12);
    (c.whole_reports, c.changed_vms) = (0, 0);
    c.run_for(Duration::from_secs(120));
    assert_eq!((c.whole_reports, c.changed_vms), (0, 0));
}

#[test]
fn a_lost_report_is_sent_again_and_no_whole_one_is_needed() {
    let mut c = settled(Profile::Balanced, 3, 1);
    let from = c.now;
    c.whole_reports = 0;
    c.command(2, Command::PowerOff(vm(1)));
    c.run_for(Duration::from_secs(10));
    c.losing_changes = 2;
    c.command(2, Command::PowerOn(vm(1)));
    c.run_for(Duration::from_secs(15));
    assert_eq!((c.losing_changes, c.whole_reports), (0, 0));
    let status = c.status(3);
    let known = status.vms.iter().find(|v| v.vm == vm(1)).expect("known");
    assert_eq!(known.host, Some(host(2)));
    assert!(known.protected, "{known:?}");
    let asked = |e: &EventKind| matches!(e, EventKind::RestartRequested { .. });
    assert_eq!(c.count(from, asked), 0);
}

#[test]
fn a_vm_whose_protection_was_not_acknowledged_is_told_protected_when_the_list_is_read_again() {
    let mut c = settled(Profile::Balanced, 3, 3);
    c.command(2, Command::PowerOff(vm(1)));
    c.run_for(Duration::from_secs(5));
    let from = c.now;
    c.broken.list_acks = true;
    c.command(2, Command::PowerOn(vm(1)));
    c.run_for(Duration::from_secs(30));
    assert!(!c.broken.list_acks, "the list was written");
    let owned = |e: &EventKind| matches!(e, EventKind::DatastoreOwned { .. });
    assert_eq!(c.count(from, owned), 1, "another generation, another file");
    let told = |e: &EventKind| matches!(e, EventKind::VmProtected { vm: v, .. } if *v == vm(1));
    assert_eq!(c.count(from, told), 1, "{:#?}", c.events);
    let others = |e: &EventKind| matches!(e, EventKind::VmProtected { .. });
    assert_eq!(c.count(from, others), 1, "the others were all along");
}

#[test]
fn a_secondary_knows_which_of_its_vms_are_protected() {
    let mut c = settled(Profile::Balanced, 3, 4);
    c.power_off(3);
    c.run_for(Duration::from_secs(60));
    for n in [1, 2] {
        let status = c.status(n);
        let here = |v: &&mainstay_core::status::VmStatus| v.host == Some(host(n));
        assert!(status.vms.iter().filter(here).count() > 0);
        assert!(
            status.vms.iter().filter(here).all(|v| v.protected),
            "{status:#?}"
        );
    }
}

/// What the primary said to changes that host 2 passed on, since that many answers.
fn answers(c: &Cluster, from: usize) -> Vec<Result<u64, String>> {
    c.proposed
        .iter()
        .skip(from)
        .map(|(_, _, r)| r.clone())
        .collect()
}

#[test]
fn lost_host_is_not_removed_while_a_lock_may_name_it() {
    let mut c = settled(Profile::Balanced, 3, 4);
    let lost: Vec<_> = (1..=4)
        .map(vm)
        .filter(|v| c.running.get(v) == Some(&host(1)))
        .collect();
    assert!(!lost.is_empty());
    c.power_off(1);
    // Each moment from the host's loss on, until the removal is accepted.
    let mut asked = 0;
    while answers(&c, 0).iter().all(Result::is_err) {
        assert!(asked < 20_000, "{:?}", answers(&c, 0).last());
        c.propose(2, Change::RemoveHost(host(1)));
        c.run_for(Duration::from_millis(1));
        asked += 1;
    }
    for id in &lost {
        assert!(c.running.contains_key(id), "{id} {:?}", c.running);
    }
    let refusals = answers(&c, 0);
    let says = |what: &str| {
        let said = |r: &Result<u64, String>| r.as_ref().is_err_and(|why| why.contains(what));
        refusals.iter().any(said)
    };
    assert!(says("VMs run on host-1"), "{refusals:?}");
    assert!(says("is not known yet; ask again"), "{refusals:?}");
    assert!(says("still names host-1"), "{refusals:?}");
    c.run_for(Duration::from_secs(30));
    assert!(c.running.len() == 4, "{:?}", c.running);
}

#[test]
fn host_keeps_the_datastore_on_which_its_vms_live() {
    let mut c = settled(Profile::Balanced, 3, 4);
    let spec = |mounts: &[&str]| HostSpec {
        id: host(1),
        cpu_mhz: 20_000,
        memory_mb: 65_536,
        datastores: mounts
            .iter()
            .map(|d| DatastoreId::new(d).expect("id"))
            .collect(),
        maintenance: false,
        networks: Default::default(),
    };
    // vm-3 is on host-1 and lives on ds-2.
    assert_eq!(c.running.get(&vm(3)), Some(&host(1)));
    c.propose(2, Change::PutHost(spec(&["ds-1"])));
    c.run_for(Duration::from_secs(1));
    let refused = answers(&c, 0);
    assert!(
        refused.iter().any(|r| r
            .as_ref()
            .is_err_and(|why| why.contains("vm-3 runs on host-1 and its home is ds-2"))),
        "{refused:?}"
    );
    let so_far = refused.len();
    c.command(1, Command::PowerOff(vm(3)));
    c.run_for(Duration::from_secs(5));
    c.propose(2, Change::PutHost(spec(&["ds-1"])));
    c.run_for(Duration::from_secs(1));
    assert!(
        answers(&c, so_far).iter().all(Result::is_ok),
        "{:?}",
        answers(&c, so_far)
    );
}

#[test]
fn a_primary_that_made_room_says_nothing_of_what_was_reported_to_it() {
    let mut c = settled(Profile::Balanced, 3, 4);
    let elsewhere = |c: &Cluster| -> Vec<String> {
        let vms = c.status(3).vms.into_iter();
        let other = |h: &Option<_>| h.as_ref().is_some_and(|h| *h != host(3));
        vms.filter(|v| other(&v.host)).map(|v| v.why).collect()
    };
    assert!(!elsewhere(&c).is_empty());
    let on = true;
    c.propose(2, Change::Maintenance { host: host(3), on });
    c.run_for(Duration::from_secs(10));
    assert_eq!(c.status(3).primary, Some(host(2)));
    assert_eq!(elsewhere(&c), Vec::<String>::new());
    // Nor does it keep others from deleting what was switched off since.
    c.command(1, Command::PowerOff(vm(3)));
    c.run_for(Duration::from_secs(5));
    c.propose(3, Change::RemoveVm(vm(3)));
    c.run_for(Duration::from_secs(2));
    assert!(answers(&c, 0).iter().all(Result::is_ok), "{:?}", c.proposed);
}

fn set(key: &str, value: &str) -> Change {
    Change::Set {
        key: key.into(),
        value: value.into(),
    }
}

#[test]
fn a_configuration_that_could_not_be_kept_is_kept_later() {
    let mut c = settled(Profile::Balanced, 3, 0);
    c.losing_configs = 5;
    c.propose(2, set("max_restart_attempts", "3"));
    c.run_for(Duration::from_secs(2));
    let weak = |c: &Cluster| {
        let issues = c.status(3).issues;
        issues.iter().any(|i| i.cause == IssueCause::ConfigNotKept)
    };
    assert!(c.kept.is_empty() && weak(&c), "{:?}", c.kept);
    c.run_for(Duration::from_secs(30));
    assert_eq!(c.kept.values().copied().collect::<Vec<_>>(), [1, 1, 1]);
    assert!(!weak(&c));
}

#[test]
fn a_network_that_a_change_leaves_alone_is_said() {
    let mut c = settled(Profile::Balanced, 3, 0);
    let said = |c: &Cluster| {
        let one = |e: &EventKind| matches!(e, EventKind::ConfigIssue { cause: IssueCause::OneNetwork, host: h, .. } if *h == host(1));
        c.count(mainstay_core::time::Instant::ZERO, one)
    };
    let spec = |networks: &[&str]| HostSpec {
        id: host(1),
        cpu_mhz: 20_000,
        memory_mb: 65_536,
        datastores: ["ds-1", "ds-2"]
            .map(|d| DatastoreId::new(d).expect("id"))
            .into(),
        maintenance: false,
        networks: networks.iter().map(|n| String::from(*n)).collect(),
    };
    let mut make = |change, count| {
        c.propose(2, change);
        c.run_for(Duration::from_secs(5));
        assert_eq!(said(&c), count, "{:?}", c.proposed);
    };
    make(Change::PutHost(spec(&["lan", "wan"])), 0);
    make(Change::PutHost(spec(&["lan"])), 1);
    make(set("max_restart_attempts", "3"), 1);
    make(set("ignore_redundant_network_warning", "true"), 1);
    make(set("ignore_redundant_network_warning", "false"), 2);
}

fn waits(c: &Cluster, of: &mainstay_core::id::VmId, for_what: WaitCause) -> usize {
    c.count(
        mainstay_core::time::Instant::ZERO,
        |e| matches!(e, EventKind::RestartWaiting { vm, cause, .. } if vm == of && *cause == for_what),
    )
}

fn listed(c: &Cluster, n: u32, cause: IssueCause) -> bool {
    c.status(n).issues.iter().any(|i| i.cause == cause)
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_restart_whose_lock_is_damaged_says_so_and_goes_on_when_it_can_be_read() {
    let mut c = settled(Profile::Balanced, 3, 3);
    let sound = c.swap_newest_lock(&vm(1), vec![0; 512]);
    c.power_off(2);
    c.run_for(60 * SECOND);
    assert!(!c.running.contains_key(&vm(1)));
    assert_eq!(waits(&c, &vm(1), WaitCause::LockUnreadable), 1);
    assert!(listed(&c, 3, IssueCause::RecordUnreadable));
    let text = c.explain_vm(3, &vm(1)).sentences.join(" ");
    assert!(text.contains("damaged or foreign"), "{text}");
    c.swap_newest_lock(&vm(1), sound);
    c.run_for(10 * SECOND);
    assert!(c.running.contains_key(&vm(1)));
    assert!(!listed(&c, 3, IssueCause::RecordUnreadable));
}

#[test]
fn a_restart_whose_holder_cannot_be_judged_says_so() {
    let mut c = settled(Profile::Balanced, 3, 3);
    c.broken.pings = true;
    c.power_off(2);
    c.run_for(11 * SECOND);
    assert_eq!(waits(&c, &vm(1), WaitCause::HolderUnreachable), 0);
    c.run_for(49 * SECOND);
    assert!(!c.running.contains_key(&vm(1)), "unknown is never dead");
    assert_eq!(waits(&c, &vm(1), WaitCause::HolderUnreachable), 1);
}

/// A frozen VM is thawed when that works again, and until then its lock is written once a heartbeat.
fn thaws_later(what: fn(&mut cluster::Broken) -> &mut bool) {
    let mut c = settled(Profile::Balanced, 3, 3);
    *what(&mut c.broken) = true;
    c.asked = cluster::Asked::default();
    c.lapse(&vm(1));
    c.run_for(30 * SECOND);
    let asked = c.asked.lock_writes;
    assert!((30..=61).contains(&asked), "{asked} times in 30 s");
    *what(&mut c.broken) = false;
    let from = c.now;
    c.run_for(2 * SECOND);
    assert_eq!(
        c.count(from, |e| matches!(e, EventKind::VmThawed { .. })),
        1
    );
}

#[test]
fn a_frozen_vm_is_thawed_later_where_its_lock_cannot_be_written_and_asks_once_a_heartbeat() {
    thaws_later(|broken| &mut broken.lock_writes);
}

#[test]
fn a_frozen_vm_without_a_guard_takes_one_generation_a_heartbeat() {
    thaws_later(|broken| &mut broken.thaws);
}

#[test]
fn what_a_local_disk_or_a_list_refuses_is_written_again_once_a_heartbeat() {
    let mut c = settled(Profile::Balanced, 3, 3);
    (c.broken.local_disks, c.broken.list_writes) = (true, true);
    c.asked = cluster::Asked::default();
    c.command(2, Command::PowerOff(vm(1)));
    c.run_for(10 * SECOND);
    let (disks, lists) = (c.asked.local_disks, c.asked.list_writes);
    // Three hosts learn of the new generations; two heartbeat datastores.
    assert!((10..=63).contains(&disks), "{disks} times in 10 s");
    assert!((10..=42).contains(&lists), "{lists} times in 10 s");
    assert!(listed(&c, 2, IssueCause::StateNotKept));
    (c.broken.local_disks, c.broken.list_writes) = (false, false);
    c.run_for(2 * SECOND);
    assert!(!listed(&c, 2, IssueCause::StateNotKept));
    c.asked = cluster::Asked::default();
    c.run_for(10 * SECOND);
    assert_eq!(c.asked.list_writes, 0);
}

#[test]
fn a_vm_that_cannot_be_killed_is_killed_again_once_a_heartbeat() {
    let mut c = settled(Profile::Balanced, 3, 3);
    c.broken.kills = true;
    c.command(2, Command::PowerOff(vm(1)));
    c.run_for(10 * SECOND);
    let asked = c.asked.kills;
    assert!((10..=21).contains(&asked), "{asked} times in 10 s");
    c.broken.kills = false;
    c.run_for(2 * SECOND);
    assert!(!c.running.contains_key(&vm(1)));
}
