use super::*;

const A: End = End::Host(0);
const B: End = End::Host(1);
const C: End = End::Host(2);
const D: End = End::Host(3);
const AT_ONCE: Fate = Fate::Travels(Duration::ZERO);

fn four_hosts_on_two_networks() -> Rules {
    Rules::new(4, 2, 7)
}

fn reaches(rules: &mut Rules, from: End, to: End) -> bool {
    let sent = rules.send(0, from, to) != Fate::Blocked;
    assert_eq!(
        sent,
        rules.arrive(0, from, to) == Arrival::Enters,
        "the two ends of a way disagree"
    );
    sent
}

#[test]
fn everything_passes_at_once_without_faults() {
    let mut rules = four_hosts_on_two_networks();
    for (from, to) in [(A, B), (B, A), (A, End::Gateway), (End::Gateway, A)] {
        assert_eq!(rules.send(1, from, to), AT_ONCE);
        assert_eq!(rules.arrive(1, from, to), Arrival::Enters);
    }
}

#[test]
fn a_cut_of_one_network_leaves_the_other() {
    let mut rules = four_hosts_on_two_networks();
    rules.cut(0, Some(0));
    assert_eq!(rules.send(0, A, B), Fate::Blocked);
    assert_eq!(rules.send(0, B, A), Fate::Blocked);
    assert_eq!(rules.send(0, A, End::Gateway), Fate::Blocked);
    assert_eq!(rules.send(1, A, B), AT_ONCE);
    assert_eq!(rules.send(0, B, C), AT_ONCE);
    rules.cut(0, None);
    assert_eq!(rules.send(1, A, B), Fate::Blocked);
    rules.heal(Some(0), Some(1));
    assert_eq!(rules.send(1, A, B), AT_ONCE);
    assert_eq!(rules.send(0, A, B), Fate::Blocked);
}

#[test]
fn a_one_way_drop_is_one_way() {
    let mut rules = four_hosts_on_two_networks();
    rules.drop_one_way(0, 1);
    assert!(!reaches(&mut rules, A, B));
    assert!(reaches(&mut rules, B, A));
    assert!(reaches(&mut rules, A, C));
    assert!(reaches(&mut rules, A, End::Gateway));
}

#[test]
fn hosts_of_no_group_stay_together_and_all_reach_the_gateway() {
    let mut rules = four_hosts_on_two_networks();
    rules.partition(&[vec![0], vec![1]]);
    assert!(!reaches(&mut rules, A, B));
    assert!(!reaches(&mut rules, B, C));
    assert!(reaches(&mut rules, C, D));
    for end in [A, B, C, D] {
        assert!(reaches(&mut rules, end, End::Gateway));
        assert!(reaches(&mut rules, End::Gateway, end));
    }
    rules.partition(&[vec![0, 1]]);
    assert!(reaches(&mut rules, A, B), "the last partition counts");
    assert!(!reaches(&mut rules, A, C));
}

#[test]
fn only_a_heal_of_all_hosts_ends_a_partition() {
    let mut rules = four_hosts_on_two_networks();
    rules.partition(&[vec![0], vec![1, 2, 3]]);
    rules.heal(Some(0), None);
    rules.heal(None, Some(0));
    assert!(!reaches(&mut rules, A, B));
    rules.heal(None, None);
    assert!(reaches(&mut rules, A, B));
}

#[test]
fn a_heal_of_a_host_ends_its_drops_in_both_directions_loss_and_delay() {
    let mut rules = four_hosts_on_two_networks();
    let late = Duration::from_secs(1);
    rules.drop_one_way(0, 1);
    rules.drop_one_way(2, 0);
    rules.drop_one_way(2, 3);
    rules.set_loss(100, None);
    rules.set_delay(late, None);
    rules.heal(Some(0), None);
    assert_eq!(rules.arrive(0, A, B), Arrival::Enters);
    assert_eq!(rules.arrive(0, C, A), Arrival::Enters);
    assert_eq!(rules.arrive(0, C, D), Arrival::Blocked);
    assert_eq!(rules.send(0, A, End::Gateway), AT_ONCE);
    assert_eq!(rules.send(0, A, B), Fate::Lost, "what was set for B stays");
    assert_eq!(rules.send(0, End::Gateway, B), Fate::Travels(late));
}

#[test]
fn a_heal_of_one_network_ends_cuts_alone() {
    let mut rules = four_hosts_on_two_networks();
    rules.cut(0, None);
    rules.drop_one_way(0, 1);
    rules.set_delay(Duration::from_millis(5), Some(2));
    rules.heal(None, Some(0));
    assert!(!reaches(&mut rules, A, B));
    assert_eq!(rules.send(0, B, A), AT_ONCE);
    assert_eq!(rules.send(1, B, A), Fate::Blocked);
    assert_eq!(rules.send(0, C, D), Fate::Travels(Duration::from_millis(5)));
}

#[test]
fn the_worse_of_both_ends_counts() {
    let mut rules = four_hosts_on_two_networks();
    let (short, long) = (Duration::from_millis(5), Duration::from_millis(50));
    rules.set_delay(short, Some(0));
    rules.set_delay(long, Some(1));
    assert_eq!(rules.send(0, A, B), Fate::Travels(long));
    assert_eq!(rules.send(0, B, A), Fate::Travels(long));
    assert_eq!(rules.send(0, A, C), Fate::Travels(short));
    assert_eq!(rules.send(0, End::Gateway, A), Fate::Travels(short));
    assert_eq!(rules.send(0, C, D), AT_ONCE);
}

#[test]
fn a_round_trip_to_the_gateway_is_one_chance() {
    let mut rules = four_hosts_on_two_networks();
    rules.set_loss(100, Some(0));
    assert_eq!(rules.send(0, A, End::Gateway), Fate::Lost);
    assert_eq!(rules.send(0, End::Gateway, A), AT_ONCE);
    assert_eq!(rules.send(0, B, A), Fate::Lost);
}

fn losses(seed: u64, between: impl Fn(&mut Rules)) -> Vec<bool> {
    let mut rules = Rules::new(3, 1, seed);
    rules.set_loss(20, None);
    let draw = |_| {
        between(&mut rules);
        rules.send(0, A, B) == Fate::Lost
    };
    (0..10_000).map(draw).collect()
}

#[test]
fn the_losses_of_a_way_follow_from_the_seed_alone() {
    let alone = losses(7, |_| {});
    let busy = losses(7, |rules| {
        rules.send(0, B, A);
        rules.send(0, A, C);
    });
    assert_eq!(alone, busy);
    assert_ne!(alone, losses(8, |_| {}));
    let lost = alone.iter().filter(|lost| **lost).count();
    assert!((1_800..2_200).contains(&lost), "{lost} of 10000");
}

#[test]
fn a_host_without_power_sends_and_gets_nothing_but_what_it_sent_arrives() {
    let mut rules = four_hosts_on_two_networks();
    rules.set_power(0, Power::Off);
    assert_eq!(rules.send(0, A, B), Fate::Blocked);
    assert_eq!(rules.arrive(0, B, A), Arrival::Blocked);
    assert_eq!(rules.arrive(0, A, B), Arrival::Enters);
    rules.heal(None, None);
    assert_eq!(
        rules.send(0, A, B),
        Fate::Blocked,
        "a heal is of the network, not of the host"
    );
    rules.set_power(0, Power::On);
    assert!(reaches(&mut rules, A, B));
}

#[test]
fn what_reaches_a_paused_host_waits() {
    let mut rules = four_hosts_on_two_networks();
    rules.set_power(0, Power::Paused);
    assert_eq!(rules.send(0, B, A), AT_ONCE);
    assert_eq!(rules.arrive(0, B, A), Arrival::Waits);
    assert_eq!(rules.send(0, A, B), Fate::Blocked);
    rules.cut(0, None);
    assert_eq!(rules.arrive(0, B, A), Arrival::Blocked);
}
