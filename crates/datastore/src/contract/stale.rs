//! Readings that are old: listings that a host has cached, as with NFS, names that it does not know of yet, sectors
//! from a cache; and readers so slow that the lock goes on between their steps.

use super::kit::{Host, KINDS, Kit};
use super::swaps::{Running, head, record, swap};
use mainstay_core::config::DatastoreKind;
use mainstay_core::id::Generation;
use mainstay_core::lock_machines::Next;

/// The lock goes on by so many generations.
fn advance(by: &Host, generations: u64) {
    for _ in 0..generations {
        let now = head(by, None).expect("read");
        assert_eq!(swap(by, &now, now.generation.0 + 100), Some(Next::Won));
    }
}

#[test]
fn a_host_with_old_reads_wins_no_generation_that_another_has() {
    for kind in KINDS {
        for behind in 1..5 {
            let kit = Kit::new(kind);
            let (a, b) = (kit.host(1), kit.host(2));
            let old = head(&b, None).expect("read");
            b.cache();
            advance(&a, behind);
            let what = format!("{kind:?}, {behind} behind");
            let mut running = Running::swap(&b, &old, record(1, 22, Some(&b)));
            let end = running.drive(&b);
            assert!(
                matches!(end, None | Some(Next::Lost | Next::NotDone(_))),
                "{what}: {end:?}"
            );
            b.expire();
            // What it waits for is decided when it sees what is there.
            let end = end.or_else(|| running.drive(&b));
            assert!(
                matches!(end, Some(Next::Lost | Next::NotDone(_))),
                "{what}: {end:?}"
            );
            for host in [&a, &b] {
                let now = head(host, None).expect("read");
                assert_eq!(now.generation, Generation(behind), "{what}");
                assert_eq!(now.nonce.0, behind + 99, "{what}");
            }
        }
    }
}

#[test]
fn an_old_listing_hides_no_newer_generation_from_who_opens_by_path() {
    for kind in KINDS {
        for behind in 0..5 {
            for known in [None, Some(0), Some(1)] {
                let kit = Kit::new(kind);
                let (a, b) = (kit.host(1), kit.host(2));
                advance(&a, 1);
                b.cache_listings();
                advance(&a, behind);
                let found = head(&b, known);
                let what = format!("{kind:?}, {behind} behind, knew {known:?}");
                if found.is_none() {
                    // All that was listed is gone: it waits until its listing is new, and concludes nothing.
                    assert!(behind > 1 && kind == DatastoreKind::File, "{what}");
                    b.expire();
                }
                let found = found.or_else(|| head(&b, known)).expect("read");
                assert_eq!(found.generation, Generation(1 + behind), "{what}");
            }
        }
    }
}

#[test]
fn no_clean_up_leads_a_slow_reader_astray() {
    const PACES: [u64; 3] = [0, 1, 3];
    for kind in KINDS {
        let mut read = 0;
        for paces in 0..PACES.len().pow(4) {
            let kit = Kit::new(kind);
            let (a, b) = (kit.host(1), kit.host(2));
            advance(&a, 1);
            let known = (paces % 2 == 0).then_some(1);
            let mut reading = Running::read(known);
            let mut left = paces;
            let mut end = None;
            for _ in 0..20 {
                end = reading.step(&b);
                if end.is_some() {
                    break;
                }
                advance(&a, PACES[left % PACES.len()]);
                left /= PACES.len();
            }
            let Some(Next::Head(Some(found))) = end else {
                panic!("{kind:?} {paces}: {end:?}, though the lock stood still at last");
            };
            let now = head(&a, None).expect("read");
            assert!(found.generation >= Generation(1), "{kind:?} {paces}");
            assert!(found.generation <= now.generation, "{kind:?} {paces}");
            // Whoever takes an old one for the newest loses.
            let end = swap(&b, &found, 22);
            let won = end == Some(Next::Won);
            assert_eq!(
                won,
                found == now,
                "{kind:?} {paces}: {end:?} from {found:?}"
            );
            read += usize::from(won);
        }
        assert!(read > 10, "{kind:?}: {read}");
    }
}
