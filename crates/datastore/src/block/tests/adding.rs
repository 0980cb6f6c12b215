//! Registers that are bound to what is new, by two at once and by who comes after one that broke off.

use super::*;

#[test]
fn what_is_new_is_added_by_who_comes_first() {
    let kit = Kit::new(512);
    let (one, two) = (kit.open(1, 7), kit.open(2, 8));
    assert!(matches!(
        kit.try_open(3, 9),
        Err(crate::OpenError::NoPlace { .. })
    ));
    let larger = config(4, 9);
    let barrier = Barrier::new(2);
    let made: Vec<Vec<RecordKey>> = std::thread::scope(|scope| {
        let add = |store| {
            let (barrier, larger) = (&barrier, &larger);
            scope.spawn(move || {
                barrier.wait();
                let store: &BlockDatastore = store;
                // Who loses too many ballots to the other gives up for now.
                for _ in 0..1000 {
                    if let Ok(made) = store.add_missing(larger) {
                        return made;
                    }
                }
                panic!("a thousand attempts failed");
            })
        };
        let adding = [add(&one), add(&two)];
        adding.map(|a| a.join().expect("added")).into()
    });
    assert!(made.iter().map(Vec::len).sum::<usize>() <= 2 * 9);
    let (names, damaged) = one.read_names().expect("read");
    assert_eq!(damaged, []);
    assert_eq!(names.len(), 1 + 4 + 9);
    let registers: std::collections::BTreeSet<u32> = names.values().copied().collect();
    assert_eq!(registers.len(), names.len(), "one register each");
    assert_eq!(one.add_missing(&larger).expect("nothing is missing"), []);
    assert_eq!(kit.open(3, 9).perform(&beat(3, 9, 1)), DONE);
    let locks = keys(&two, StorageRequest::ListAllVmLocks);
    assert_eq!(locks.len(), 9);
}

#[test]
fn a_name_gets_one_register_however_old_the_names_that_its_binder_read() {
    let kit = Kit::new(512);
    let (one, two) = (kit.open(1, 7), kit.open(2, 8));
    let taken = |store: &BlockDatastore| -> Vec<u32> {
        let (names, _) = store.read_names().expect("read");
        names.into_values().collect()
    };
    let of_vm = |n| Name::Vm(vm(n));
    let old = taken(&one);
    for n in [3, 4] {
        assert!(two.bind(&of_vm(n), &[7; 180], None).expect("bound"));
    }
    // The lock has moved on, so that its first generation, which has the name, is gone.
    for generation in 1..=4 {
        let key = RecordKey::VmLock(vm(4), Generation(generation));
        assert_eq!(two.perform(&StorageRequest::Link(key, vec![1; 180])), DONE);
    }
    for n in [3, 4] {
        let bound = one.bind_one_of_the_rest(&old, &of_vm(n), &[9; 180], None);
        assert!(!bound.expect("it has one"));
    }
    assert_eq!(taken(&one).len(), old.len() + 2);

    // Who bound it broke off before its name was written: it is finished by whoever wants the same.
    let before = taken(&one);
    let register = before.iter().max().expect("some") + 1;
    let value = layout::Value {
        name: Some(of_vm(5)),
        record: vec![3; 180],
    };
    let decided = two.decide(register, Generation(0), &value);
    assert!(matches!(decided, register::Decided::Won));
    assert_eq!(taken(&one), before);
    assert!(!one.bind(&of_vm(5), &[9; 180], None).expect("finished"));
    let (names, _) = two.read_names().expect("read");
    assert_eq!(names.get(&of_vm(5)), Some(&register));
    let first = RecordKey::VmLock(vm(5), Generation(0));
    let first = two.perform(&StorageRequest::Read(first));
    assert_eq!(first, bytes(3), "as it was begun");
}

#[test]
fn a_place_whose_host_was_named_by_another_gets_its_first_heartbeat() {
    let kit = Kit::new(512);
    let one = kit.open(1, 7);
    let (register, blank) = (3, vec![0; 512]);
    let value = layout::Value {
        name: Some(Name::Host(host(3))),
        record: vec![],
    };
    let decided = one.decide(register, Generation(0), &value);
    assert!(matches!(decided, register::Decided::Won));
    let at = kit.geometry.heartbeat(register - 1);
    assert_eq!(kit.path().read(at, 512).expect("read"), blank);
    one.add_missing(&config(3, 2)).expect("finished");
    let begun = kit.path().read(at, 512).expect("read");
    assert_ne!(begun, blank);
    // What its agent wrote stays.
    assert_eq!(kit.open(3, 9).perform(&beat(3, 9, 1)), DONE);
    let beaten = kit.path().read(at, 512).expect("read");
    assert_ne!(beaten, begun);
    assert_eq!(one.add_missing(&config(3, 2)).expect("all is there"), []);
    assert_eq!(kit.path().read(at, 512).expect("read"), beaten);
}
