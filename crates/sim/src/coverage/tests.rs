//! The lists are the code's own, zeros are said first, and a run is counted as it was.

use super::*;
use crate::campaign::{Limits, draw_all};
use crate::world::{Options, run};

fn standing(coverage: &Coverage, group: Group, item: &str) -> Option<Standing> {
    let rows = coverage.rows();
    let row = rows.iter().find(|r| r.group == group && r.item == item);
    row.map(|r| r.standing)
}

#[test]
fn every_value_of_an_enum_is_in_its_list() {
    assert!(names_of::<StopReason>().contains(&"lock_lost"));
    assert!(names_of::<WaitCause>().contains(&"no_room"));
    assert!(names_of::<IssueCause>().contains(&"heartbeat_not_written"));
    assert!(kinds_of::<EventKind>().contains(&"vm.restart.requested"));
    assert_eq!(names_of::<HostState>().len(), 7);
    for group in Group::ALL {
        assert!(!group.known().is_empty(), "{group:?}");
    }
}

#[test]
fn the_names_are_those_that_events_are_counted_under() {
    let host = HostId::new("host-1").expect("id");
    let cause = ElectionCause::PrimarySilent;
    let (name, counted) = name_of(&EventKind::ElectionStarted { host, cause });
    assert!(kinds_of::<EventKind>().contains(&name.as_str()));
    let counted = counted.expect("elections have causes");
    assert_eq!(counted, (Group::Election, "primary_silent".to_owned()));
    assert!(counted.0.known().contains(&counted.1));
}

#[test]
fn nothing_played_is_all_defects_but_the_exceptions() {
    let rows = Coverage::default().rows();
    let total: usize = Group::ALL.iter().map(|g| g.known().len()).sum();
    assert_eq!(rows.len(), total);
    let first_sound = rows.iter().position(|r| !r.is_defect());
    let after = rows.iter().skip(first_sound.expect("there are exceptions"));
    assert!(after.clone().count() > 0);
    for row in after {
        assert!(matches!(row.standing, Standing::Excepted(_)), "{row:?}");
    }
}

#[test]
fn an_exception_that_is_reached_is_a_defect() {
    let mut coverage = Coverage::default();
    let excepted = standing(&coverage, Group::Issue, "cannot_probe");
    assert!(matches!(excepted, Some(Standing::Excepted(_))));
    coverage.count(Group::Issue, "cannot_probe", 1);
    let reached = standing(&coverage, Group::Issue, "cannot_probe");
    assert!(matches!(reached, Some(Standing::Unexpected(_))));
    let json = coverage.json();
    let defects = json["defects"].as_array().expect("list").clone();
    assert!(defects.iter().any(|d| d["item"] == "cannot_probe"));
}

#[test]
fn every_exception_names_something_that_the_code_knows() {
    let all: Vec<Row> = Coverage::default().rows();
    for (group, item) in exceptions::items() {
        let known = |row: &&Row| {
            row.group == group
                && (row.item == item || row.item.split(" -> ").any(|part| part == item))
        };
        assert!(all.iter().any(|row| known(&row)), "{group:?} {item}");
    }
}

#[test]
fn runs_add_up() {
    let limits = Limits {
        minutes: Some(3),
        hosts: Some(3),
        ..Limits::default()
    };
    let of = |seed| {
        let drawn = draw_all(seed, &limits);
        let result = run(&drawn.scenario, &Options::default());
        (Coverage::of(&drawn, &result), result)
    };
    let ((mut sum, first), (more, second)) = (of(1), of(2));
    sum.add(&more);
    for (kind, wanted) in [("vm.started", 0), ("primary.elected", 0)] {
        let count = |result: &RunResult| {
            let named =
                |e: &&crate::trace::Entry| e.fields().get("kind").is_some_and(|k| k == kind);
            result.trace.iter().filter(named).count() as u64
        };
        let both = count(&first) + count(&second);
        assert!(both > wanted, "{kind}");
        assert_eq!(sum.times(Group::Event, kind), both, "{kind}");
    }
    let text = serde_json::to_string(&sum).expect("json");
    assert_eq!(serde_json::from_str::<Coverage>(&text).expect("json"), sum);
}
