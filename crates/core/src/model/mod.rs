//! Exhaustive models of the real code, explored by `stateright`: what lies between the hosts is modelled, what
//! they decide is the code that ships.
//!
//! | model | what is real | what is modelled |
//! |---|---|---|
//! | `chain` | reading, swapping and cleaning up one lock | a directory; links and removals that land late, twice or never, damaged reads; hosts that die |
//! | `right` | an agent's heartbeats, windows, proofs, starts, thaws, releases; the guard's word | one VM, its host and an owner; operations that are late, lost or unknown |
//! | `owner` | the same, with owner locks and vouching | a second primary, messages that are late or lost |
//! | `fence` | the same with proofs by power | a fence device that is late, silent, or does nothing; power that comes back |
//! | `paxos` (in [`crate::paxos`]) | proposals and what is known of late writes | sectors, writes that land late or never, agents that die, hosts that boot |
//!
//! Each case explores every interleaving within its bounds; what takes minutes is left to `cargo xtask model`
//! (docs/protocol.md says what has been run to its end). `always` properties must hold in each state,
//! `sometimes` properties must be reached, so that a model that does nothing fails. A case that takes a clause away
//! must break a property. `cargo xtask model` goes further than the tests, and prints a table.
//!
//! # Never here
//! A rule of the protocol of its own. What a planted bug takes away is taken away in the code that ships.

mod chain;
mod fence;
mod hosts;
mod owner;
mod right;

use stateright::{Checker as _, Expectation, HasDiscoveries, Model};
use std::boxed::Box;
use std::hash::Hash;
use std::string::String;
use std::time::Instant;
use std::vec::Vec;
use std::{format, println};

/// What an exploration found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Different states.
    pub(crate) states: usize,
    /// Steps of the longest path that was followed.
    pub(crate) depth: usize,
    /// The property that does not hold, with the steps that show it.
    pub(crate) broken: Option<(&'static str, Vec<String>)>,
    /// What should be reached and was not.
    pub(crate) unreached: Vec<&'static str>,
    /// How long it took.
    pub(crate) seconds: f64,
}

/// What an exploration must find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Expect {
    /// All properties hold, and all that should be is reached.
    Holds,
    /// A property is broken: a clause was taken away.
    Breaks,
    /// Nothing, within these bounds: the clause is a defence behind another one, and the text says which.
    NotFound(&'static str),
}

/// One exploration.
pub(crate) struct Case {
    pub(crate) model: &'static str,
    /// The bounds, or what is taken away.
    pub(crate) name: String,
    /// The clause that is taken away.
    pub(crate) clause: &'static str,
    pub(crate) expect: Expect,
    pub(crate) explore: Box<dyn Fn() -> Found>,
}

impl Case {
    pub(crate) fn new<M>(model: &'static str, name: String, expect: Expect, what: M) -> Self
    where
        M: Model + Clone + Send + Sync + 'static,
        M::State: Clone + PartialEq + Hash + Send + Sync + 'static,
        M::Action: Clone + PartialEq + std::fmt::Debug + Send + Sync + 'static,
    {
        Self {
            model,
            name,
            clause: "",
            expect,
            explore: Box::new(move || explore(what.clone())),
        }
    }

    /// Explores, says what was found, and whether that is what must be.
    pub(crate) fn run(&self) -> Result<Found, String> {
        let found = (self.explore)();
        let what = match &found.broken {
            Some((what, steps)) => format!("broken after {} steps: {what}", steps.len()),
            None => String::from("holds"),
        };
        println!(
            "{:<6} {:<44} {:>8} states, depth {:>3}, {:>6.1} s: {what}",
            self.model, self.name, found.states, found.depth, found.seconds
        );
        let right = match self.expect {
            Expect::Holds => found.broken.is_none() && found.unreached.is_empty(),
            Expect::Breaks => found.broken.is_some(),
            Expect::NotFound(_) => found.broken.is_none(),
        };
        if right {
            Ok(found)
        } else {
            Err(format!("{} {}: {found:#?}", self.model, self.name))
        }
    }
}

/// Explores a model until a property is broken or there is no further state. Depth-first, which keeps few
/// states at once.
fn explore<M>(model: M) -> Found
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + PartialEq + Hash + Send + Sync + 'static,
    M::Action: Clone + PartialEq + std::fmt::Debug + Send + Sync + 'static,
{
    let begun = Instant::now();
    let properties = model.properties();
    let checker = model
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_dfs()
        .join();
    let mut broken = None;
    let mut unreached = Vec::new();
    for property in &properties {
        let discovery = checker.discovery(property.name);
        match (&property.expectation, discovery) {
            (Expectation::Always, Some(path)) => {
                let steps = path.into_actions();
                let steps = steps.iter().map(|step| format!("{step:?}")).collect();
                broken = broken.or(Some((property.name, steps)));
            }
            (Expectation::Sometimes, None) => unreached.push(property.name),
            _ => {}
        }
    }
    Found {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        broken,
        unreached,
        seconds: begun.elapsed().as_secs_f64(),
    }
}

/// Runs all cases.
pub(crate) fn run_all(cases: Vec<Case>) {
    let wrong: Vec<String> = cases.iter().filter_map(|case| case.run().err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// How far `cargo xtask model` goes: 1 as the tests do, 2 and 3 further.
fn bound() -> u32 {
    let asked = std::env::var("MAINSTAY_MODEL_BOUND");
    asked.ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// All that the models take away, and that the bounds hold: for `cargo xtask model`.
#[test]
#[ignore = "for cargo xtask model"]
fn table() {
    let wanted = std::env::var("MAINSTAY_MODEL").ok();
    let named = std::env::var("MAINSTAY_MODEL_CASE").unwrap_or_default();
    let bound = bound();
    let mut cases = chain::cases(bound);
    cases.extend(crate::paxos::cases(bound));
    cases.extend(right::cases(bound));
    cases.extend(owner::cases(bound));
    cases.extend(fence::cases(bound));
    cases.retain(|case| wanted.as_ref().is_none_or(|name| case.model == name));
    cases.retain(|case| case.name.contains(&named));
    assert!(!cases.is_empty(), "no model, or no case, of that name");
    // What must be found is found soon.
    cases.sort_by_key(|case| case.expect == Expect::Holds);
    let mut wrong = Vec::new();
    let mut rows = Vec::new();
    for case in &cases {
        match case.run() {
            Ok(found) if case.expect != Expect::Holds => rows.push((case, found)),
            Ok(_) => {}
            Err(what) => wrong.push(what),
        }
    }
    println!("\n| clause | taken away by | found by | states |\n|---|---|---|---|");
    for (case, found) in rows {
        let how = match (case.expect, &found.broken) {
            (Expect::NotFound(why), _) => format!("not found: {why}"),
            (_, Some((what, steps))) => {
                format!("`{}`, {} steps: {what}", case.model, steps.len())
            }
            (_, None) => String::new(),
        };
        println!(
            "| {} | {} | {how} | {} |",
            case.clause, case.name, found.states
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
