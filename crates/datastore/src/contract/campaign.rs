//! Random runs: three hosts that read and swap one lock, step by step, while operations below fail, lose their
//! answers, land late, and hosts boot. What is told to them is held against everything that was told before.

use super::kit::{HOSTS, Host, KINDS, Kit};
use super::script::Fault;
use super::swaps::{Running, record};
use mainstay_core::config::DatastoreKind;
use mainstay_core::id::{Generation, Nonce};
use mainstay_core::lock_machines::Next;
use mainstay_core::rng::Rng;
use mainstay_core::wire::LockRecord;
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};

const SEEDS: u64 = 30;
const STEPS: usize = 400;

enum Doing {
    Nothing,
    /// Since when: the newest generation that was told to anyone then.
    Reading(Running, Generation),
    Swapping(Running, LockRecord),
    Cleaning(Running),
}

struct Player {
    host: Host,
    doing: Doing,
    /// The newest lock that it knows of.
    known: Option<LockRecord>,
}

/// What was told.
#[derive(Default)]
struct Told {
    /// Nonces by generation: of swaps that were won, and of heads that were read.
    won: BTreeMap<Generation, Nonce>,
    heads: BTreeMap<Generation, Nonce>,
    never: BTreeSet<Nonce>,
    swaps: usize,
}

impl Told {
    fn newest(&self) -> Generation {
        let last = |told: &BTreeMap<Generation, Nonce>| told.keys().next_back().copied();
        last(&self.won)
            .max(last(&self.heads))
            .unwrap_or(Generation(0))
    }

    fn won(&mut self, record: &LockRecord) {
        let before = self.won.insert(record.generation, record.nonce);
        assert_eq!(before, None, "{:?} was won twice", record.generation);
        assert!(!self.never.contains(&record.nonce));
        self.swaps += 1;
        self.agree(record);
    }

    fn head(&mut self, record: &LockRecord, since: Generation) {
        assert!(
            record.generation >= since,
            "{record:?} is older than {since:?}"
        );
        assert!(
            !self.never.contains(&record.nonce),
            "it was not done: {record:?}"
        );
        let first = self.heads.entry(record.generation).or_insert(record.nonce);
        assert_eq!(*first, record.nonce, "{:?} changed", record.generation);
        self.agree(record);
    }

    fn agree(&self, record: &LockRecord) {
        let won = self.won.get(&record.generation);
        let read = self.heads.get(&record.generation);
        if let (Some(won), Some(read)) = (won, read) {
            assert_eq!(won, read, "{:?}", record.generation);
        }
    }
}

struct Run {
    kit: Kit,
    rng: Rng,
    players: Vec<Player>,
    told: Told,
    nonces: u64,
    boots: u64,
}

impl Run {
    fn new(kind: DatastoreKind, seed: u64) -> Self {
        let kit = Kit::new(kind);
        let players = (1..=HOSTS).map(|n| Player {
            host: kit.host(n),
            doing: Doing::Nothing,
            known: None,
        });
        Self {
            players: players.collect(),
            kit,
            rng: Rng::new(seed),
            told: Told::default(),
            nonces: 0,
            boots: 1000,
        }
    }

    /// A fault for one of the next operations of a host, now and then.
    fn disturb(&mut self, which: usize) {
        let Some(player) = self.players.get(which) else {
            return;
        };
        let script = &player.host.script;
        let n = usize::try_from(self.rng.below(12)).expect("small");
        match self.rng.below(100) {
            0..8 => script.nth(n, Fault::Error(Errno::EIO)),
            8..12 => script.nth(n, Fault::Error(Errno::ENOSPC)),
            12..20 => script.nth(n / 2, Fault::LostAnswer),
            20..28 => script.nth(n / 2, Fault::Late),
            28..36 => drop(script.land()),
            _ => {}
        }
    }

    /// Its operating system is started anew: what was under way never lands.
    fn boot(&mut self, which: usize) {
        let Some(player) = self.players.get_mut(which) else {
            return;
        };
        player.host.script.forget();
        self.boots += 1;
        let n = player.host.n;
        // The one before is gone, with its claims, before the next one is there.
        player.doing = Doing::Nothing;
        player.known = None;
        player.host = self.kit.booted(n, self.boots);
    }

    fn step(&mut self, which: usize) {
        let newest = self.told.newest();
        let Some(player) = self.players.get_mut(which) else {
            return;
        };
        let doing = std::mem::replace(&mut player.doing, Doing::Nothing);
        player.doing = match doing {
            Doing::Nothing => match &player.known {
                Some(known) if self.rng.percent(60) => {
                    self.nonces += 1;
                    let holder = self.rng.percent(70).then_some(&player.host);
                    let new = record(known.generation.0 + 1, self.nonces, holder);
                    let running = Running::swap(&player.host, known, new.clone());
                    Doing::Swapping(running, new)
                }
                known => {
                    let hint = known.as_ref().map(|known| known.generation.0);
                    let hint = hint.filter(|_| self.rng.percent(50));
                    Doing::Reading(Running::read(hint), newest)
                }
            },
            Doing::Reading(mut running, since) => match running.step(&player.host) {
                None => Doing::Reading(running, since),
                Some(Next::Head(Some(record))) => {
                    self.told.head(&record, since);
                    player.known = Some(record);
                    Doing::Nothing
                }
                Some(other) => panic!("a reading ended with {other:?}"),
            },
            Doing::Swapping(mut running, new) => match running.step(&player.host) {
                None => Doing::Swapping(running, new),
                Some(Next::Won) => {
                    self.told.won(&new);
                    player.known = Some(new);
                    running.cleanup().map_or(Doing::Nothing, Doing::Cleaning)
                }
                Some(Next::NotDone(_)) => {
                    self.told.never.insert(new.nonce);
                    Doing::Nothing
                }
                Some(Next::Lost) => {
                    player.known = None;
                    Doing::Nothing
                }
                Some(other) => panic!("a swap ended with {other:?}"),
            },
            Doing::Cleaning(mut running) => match running.step(&player.host) {
                None => Doing::Cleaning(running),
                Some(_) => Doing::Nothing,
            },
        };
    }
}

fn play(kind: DatastoreKind, seed: u64) -> usize {
    let mut run = Run::new(kind, seed);
    for _ in 0..STEPS {
        let which = usize::try_from(run.rng.below(u64::from(HOSTS))).expect("small");
        run.disturb(which);
        if run.rng.percent(1) {
            run.boot(which);
        }
        run.step(which);
    }
    run.told.swaps
}

#[test]
fn no_random_run_makes_two_winners_or_takes_back_what_was_told() {
    for kind in KINDS {
        let mut swaps = 0;
        for seed in 0..SEEDS {
            swaps += play(kind, seed);
        }
        println!("{kind:?}: {swaps} swaps won");
        assert!(
            swaps > usize::try_from(SEEDS).expect("small") * 5,
            "{kind:?}: {swaps}"
        );
    }
}
