//! Rounds: one random fault after the other, each with time for a takeover and for all VMs to run again.
//!
//! ```text
//! round n: fault ... mended (at once, or after another host has had time to take the VMs over) ... all VMs run
//! ```
//! A soak draws what a cluster may meet in a day, faults upon faults. A round has one fault, or two at once, and its
//! end is judged: so it can be said how often each of them was survived.
//!
//! Never here: a fault that is not in the scenario. What a round plays, `mainstay lab run` plays again from a file.

use crate::fail::{Failure, Result};
use mainstay_core::config::{DatastoreKind, Profile, Timing};
use mainstay_core::event::EventKind;
use mainstay_core::rng::Rng;
use mainstay_sim::{Body, RunResult, Scenario};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// A host boots as fast as no machine does: what is wanted is many rounds.
const BOOT: Duration = Duration::from_secs(3);
/// Beside the timers: an election, an image's lock, a guest that starts.
const SLACK: Duration = Duration::from_secs(6);
/// So long after the beginning of a round its fault comes at the earliest.
const LEAD_MS: u64 = 500;
/// A short fault lasts so long at most.
const SHORT_MS: u64 = 1500;
/// The second of two faults comes so long after the first at most.
const APART_MS: u64 = 1000;

/// What the rounds of one cluster fix; the rest is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// Everything random follows from it.
    pub seed: u64,
    /// Rounds, at least 1.
    pub rounds: u32,
    /// Hosts, at least 3: two can be lost.
    pub hosts: u32,
    /// VMs, at least 1.
    pub vms: u32,
    /// How long everything takes.
    pub profile: Profile,
    /// What the datastores are.
    pub kind: DatastoreKind,
}

/// What happens to a host in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    AgentKilled,
    GuardKilled,
    GuestKilled,
    AgentStopped,
    GuardStopped,
    HostStopped,
    PowerLost,
    StorageHangs,
    StorageHangsForAll,
    Cut,
    Partition,
}

impl Act {
    const ALL: [Self; 11] = [
        Self::AgentKilled,
        Self::GuardKilled,
        Self::GuestKilled,
        Self::AgentStopped,
        Self::GuardStopped,
        Self::HostStopped,
        Self::PowerLost,
        Self::StorageHangs,
        Self::StorageHangsForAll,
        Self::Cut,
        Self::Partition,
    ];
    /// What can be combined with another of them at one host: what leaves something of the host to go wrong.
    const COMBINED: [Self; 6] = [
        Self::AgentKilled,
        Self::GuardKilled,
        Self::AgentStopped,
        Self::StorageHangs,
        Self::Cut,
        Self::HostStopped,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::AgentKilled => "agent killed",
            Self::GuardKilled => "guard killed",
            Self::GuestKilled => "guest killed",
            Self::AgentStopped => "agent stopped, goes on",
            Self::GuardStopped => "guard stopped, goes on",
            Self::HostStopped => "host stopped, goes on",
            Self::PowerLost => "power lost",
            Self::StorageHangs => "storage hangs for one host",
            Self::StorageHangsForAll => "storage hangs for all",
            Self::Cut => "network cut",
            Self::Partition => "network parted",
        }
    }

    /// The event that it is, and the one that mends it.
    fn events(self, on: &On, hosts: u32) -> (String, Option<String>) {
        let On { host, vm, store } = on;
        let at_host = |what: &str| format!("do = \"{what}\"\nhost = \"host-{host}\"\n");
        let hang = format!("do = \"datastore.apd\"\ndatastore = \"ds-{store}\"\n");
        let heal = format!("do = \"datastore.heal\"\ndatastore = \"ds-{store}\"\n");
        let one = format!("host = \"host-{host}\"\n");
        let (breaks, mends) = match self {
            Self::AgentKilled => (at_host("agent.kill"), None),
            Self::GuardKilled => (at_host("guard.kill"), None),
            Self::GuestKilled => (format!("do = \"vm.crash\"\nvm = \"vm-{vm}\"\n"), None),
            Self::AgentStopped => (at_host("agent.hang"), Some(at_host("agent.resume"))),
            Self::GuardStopped => (at_host("guard.hang"), Some(at_host("guard.resume"))),
            Self::HostStopped => (at_host("host.pause"), Some(at_host("host.resume"))),
            Self::PowerLost => (at_host("host.power_off"), Some(at_host("host.power_on"))),
            Self::StorageHangs => (hang + &one, Some(heal + &one)),
            Self::StorageHangsForAll => (hang, Some(heal)),
            Self::Cut => (at_host("network.cut"), Some(at_host("network.heal"))),
            Self::Partition => {
                let others = (1..=u64::from(hosts)).filter(|other| other != host);
                let others: Vec<String> = others.map(|n| format!("\"host-{n}\"")).collect();
                let groups = format!("[[\"host-{host}\"], [{}]]", others.join(", "));
                (
                    format!("do = \"network.partition\"\ngroups = {groups}\n"),
                    Some("do = \"network.heal\"\n".to_owned()),
                )
            }
        };
        (breaks, mends)
    }
}

/// What an act is done to.
#[derive(Debug, Clone, Copy)]
struct On {
    host: u64,
    vm: u64,
    store: u64,
}

/// One round of a scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// What happens in it, in words.
    pub what: String,
    /// Its end, counted from zero; it begins where the one before ends.
    pub end: Duration,
}

/// A scenario, and what its rounds are.
#[derive(Debug, Clone)]
pub struct Rounds {
    /// What is played.
    pub scenario: Scenario,
    /// In the order of time.
    pub rounds: Vec<Round>,
}

/// How often one kind of round was played, and what came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Rounds.
    pub played: u32,
    /// Of these, rounds at whose end every VM ran.
    pub held: u32,
    /// Rounds in which another host took a VM's lock.
    pub taken_over: u32,
    /// Locks that were taken so.
    pub locks_broken: u32,
    /// VMs that guards froze.
    pub frozen: u32,
}

/// Draws the rounds of a wish.
///
/// # Errors
/// When the scenario cannot be read back, which would be a fault of this program.
pub fn draw(wish: &Wish) -> Result<Rounds> {
    let timing = Timing::of(wish.profile);
    // From the last sign of life: a verdict, a lock that has expired.
    let past = timing.dead + timing.r#break + SLACK;
    let length = past + BOOT + past;
    let mut rng = Rng::new(wish.seed).fork("rounds");
    let mut text = String::new();
    let profile = wish.profile.name();
    let _ = write!(
        text,
        "name = \"{} rounds, seed {}, {profile}\"\nduration = \"{}ms\"\nseed = {}\nprofile = \"{profile}\"\n",
        wish.rounds,
        wish.seed,
        (length * wish.rounds).as_millis(),
        wish.seed
    );
    let kind = match wish.kind {
        DatastoreKind::File => "file",
        DatastoreKind::Block => "block",
    };
    for id in ["ds-1", "ds-2"] {
        let _ = write!(text, "[[datastore]]\nid = \"{id}\"\nkind = \"{kind}\"\n");
    }
    let _ = write!(
        text,
        "[[host]]\ncount = {}\nboot_time = \"{}s\"\n",
        wish.hosts,
        BOOT.as_secs()
    );
    for vm in 1..=wish.vms {
        let store = vm % 2 + 1;
        let _ = write!(
            text,
            "[[vm]]\nid = \"vm-{vm}\"\ndatastore = \"ds-{store}\"\nmemory_mb = 64\n"
        );
    }
    let mut rounds = Vec::new();
    for n in 0..wish.rounds {
        let (begin, end) = (length * n, length * (n + 1));
        let what = round(&mut rng, wish, begin, past, &mut text);
        for vm in 1..=wish.vms {
            let by = end.as_millis();
            let _ = write!(
                text,
                "[[expect]]\nby = \"{by}ms\"\nvm = \"vm-{vm}\"\nstate = \"running\"\n"
            );
        }
        rounds.push(Round { what, end });
    }
    let scenario = mainstay_sim::parse("rounds.toml", &text)
        .map_err(|error| Failure::new(format_args!("the rounds cannot be played: {error}")))?;
    Ok(Rounds { scenario, rounds })
}

/// Writes the events of one round, and says what it is.
fn round(rng: &mut Rng, wish: &Wish, begin: Duration, past: Duration, text: &mut String) -> String {
    let on = |rng: &mut Rng| On {
        host: rng.between(1, u64::from(wish.hosts)),
        vm: rng.between(1, u64::from(wish.vms)),
        store: rng.between(1, 2),
    };
    let first = on(rng);
    let start = begin + Duration::from_millis(rng.between(LEAD_MS, 2 * LEAD_MS));
    // Mostly long enough for another host to have taken over what it can.
    let lasts = |rng: &mut Rng| match rng.percent(25) {
        true => Duration::from_millis(rng.between(100, SHORT_MS)),
        false => past,
    };
    let mut put = |at: Duration, lasts: Duration, act: Act, on: &On| {
        let (breaks, mends) = act.events(on, wish.hosts);
        let _ = write!(text, "[[event]]\nat = \"{}ms\"\n{breaks}", at.as_millis());
        let mended = (at + lasts).as_millis();
        if let Some(mends) = mends {
            let _ = write!(text, "[[event]]\nat = \"{mended}ms\"\n{mends}");
        }
    };
    match rng.below(4) {
        // Two at one host.
        0 => {
            let one = draw_one(rng, &Act::COMBINED);
            let left: Vec<Act> = Act::COMBINED.into_iter().filter(|a| *a != one).collect();
            let other = draw_one(rng, &left);
            let second = start + Duration::from_millis(rng.below(APART_MS));
            let lasts = lasts(rng);
            put(start, lasts, one, &first);
            put(second, lasts, other, &first);
            let (a, b) = (one.min(other), one.max(other));
            format!("{}, and {}", a.name(), b.name())
        }
        // The same at two hosts.
        1 => {
            let act = draw_one(
                rng,
                &[
                    Act::PowerLost,
                    Act::AgentStopped,
                    Act::StorageHangs,
                    Act::Cut,
                ],
            );
            let second = On {
                host: first.host % u64::from(wish.hosts) + 1,
                ..first
            };
            let lasts = lasts(rng);
            put(start, lasts, act, &first);
            put(
                start + Duration::from_millis(rng.below(APART_MS)),
                lasts,
                act,
                &second,
            );
            format!("{}, at two hosts", act.name())
        }
        _ => {
            let act = draw_one(rng, &Act::ALL);
            let lasts = lasts(rng);
            put(start, lasts, act, &first);
            act.name().to_owned()
        }
    }
}

fn draw_one(rng: &mut Rng, acts: &[Act]) -> Act {
    let n = usize::try_from(rng.below(acts.len() as u64)).unwrap_or(0);
    acts.get(n).copied().unwrap_or(Act::PowerLost)
}

impl Rounds {
    /// How many are over that long after zero.
    #[must_use]
    pub fn over(&self, since_zero: Duration) -> usize {
        self.rounds
            .iter()
            .take_while(|round| round.end <= since_zero)
            .count()
    }

    /// What became of the rounds that were played, by what happened in them, added to what others gave. Of a cluster
    /// that never settled, or a run that broke off, the others are no rounds.
    pub fn count(&self, result: &RunResult, counts: &mut BTreeMap<String, Count>) {
        let vms = self.scenario.vms.len();
        let mut verdicts = result.verdicts.chunks(vms.max(1));
        let mut begin = 0;
        for round in &self.rounds {
            let end = u64::try_from(round.end.as_nanos()).unwrap_or(u64::MAX);
            let held = verdicts
                .next()
                .is_some_and(|all| all.iter().all(|v| v.pass));
            let within = |at: u64| {
                at.checked_sub(result.zero)
                    .is_some_and(|at| (begin..end).contains(&at))
            };
            let of = |wanted: fn(&EventKind) -> bool| -> u32 {
                let events = result.trace.iter().filter(|entry| within(entry.at));
                events
                    .map(|e| u32::from(matches!(&e.body, Body::Event(kind) if wanted(kind))))
                    .sum()
            };
            let faults = result.trace.iter().filter(|entry| within(entry.at));
            let played = faults
                .map(|entry| &entry.body)
                .any(|body| matches!(body, Body::Fault { .. }));
            if !played {
                begin = end;
                continue;
            }
            let broken = of(|kind| matches!(kind, EventKind::LockBroken { .. }));
            let count = counts.entry(round.what.clone()).or_default();
            count.played += 1;
            count.held += u32::from(held);
            count.taken_over += u32::from(broken > 0);
            count.locks_broken += broken;
            count.frozen += of(|kind| matches!(kind, EventKind::VmFrozen { .. }));
            begin = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::unplayable;

    fn wish(seed: u64) -> Wish {
        Wish {
            seed,
            rounds: 40,
            hosts: 3,
            vms: 4,
            profile: Profile::Fast,
            kind: DatastoreKind::File,
        }
    }

    #[test]
    fn the_lab_can_play_what_is_drawn_and_every_act_comes() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..20 {
            let drawn = draw(&wish(seed)).expect("rounds");
            assert!(unplayable(&drawn.scenario).is_empty());
            assert_eq!(drawn.rounds.len(), 40);
            assert_eq!(drawn.scenario.expects.len(), 160);
            seen.extend(drawn.rounds.into_iter().map(|round| round.what));
        }
        for act in Act::ALL {
            assert!(seen.contains(act.name()), "{}", act.name());
        }
        assert!(seen.iter().any(|what| what.contains(", and ")));
    }

    #[test]
    fn datastores_are_of_the_kind_that_is_wished() {
        for kind in [DatastoreKind::File, DatastoreKind::Block] {
            let drawn = draw(&Wish { kind, ..wish(1) }).expect("rounds");
            let specs = drawn.scenario.config.datastores.values();
            assert!(specs.clone().all(|d| d.kind == kind) && specs.count() == 2);
            assert!(unplayable(&drawn.scenario).is_empty());
        }
    }

    #[test]
    fn the_same_wish_gives_the_same_rounds_and_another_seed_others() {
        let events = |seed| draw(&wish(seed)).expect("rounds").scenario.events;
        let drawn = draw(&wish(7)).expect("rounds");
        let third = drawn.rounds[2].end;
        assert_eq!(drawn.over(third), 3);
        assert_eq!(
            drawn.over(third.saturating_sub(Duration::from_millis(1))),
            2
        );
        assert_eq!(events(7), events(7));
        assert_ne!(events(7), events(8));
    }

    #[test]
    fn the_simulator_survives_them_and_they_are_counted() {
        let drawn = draw(&Wish {
            rounds: 12,
            ..wish(5)
        })
        .expect("rounds");
        let result = mainstay_sim::run(&drawn.scenario, &mainstay_sim::Options::default());
        assert!(result.violations.is_empty(), "{:?}", result.violations);
        let mut counts = BTreeMap::new();
        drawn.count(&result, &mut counts);
        assert_eq!(counts.values().map(|c| c.played).sum::<u32>(), 12);
        assert_eq!(counts.values().map(|c| c.held).sum::<u32>(), 12);
        assert!(counts.values().map(|c| c.taken_over).sum::<u32>() > 0);
    }

    #[test]
    fn what_was_not_played_is_not_counted() {
        let drawn = draw(&wish(5)).expect("rounds");
        let mut result = mainstay_sim::run(&drawn.scenario, &mainstay_sim::Options::default());
        result.trace.clear();
        let mut counts = BTreeMap::new();
        drawn.count(&result, &mut counts);
        assert!(counts.is_empty(), "{counts:?}");
    }
}
