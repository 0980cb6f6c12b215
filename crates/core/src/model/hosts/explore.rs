//! What can happen next, and what comes of it: the exploration's steps, and what must hold in each state.

use super::{
    BEFORE, Bounds, FIRST, HANDOVER, LIVES, OWNERS, Part, TAKEOVER, THAW, TWICE, VOUCHED, World,
};
use super::{at, datastore, follows, leads, ticks, vm};
use crate::io::{IoFault, StorageOutcome, StorageRequest};
use crate::restart::Step;
use stateright::{Model, Property};
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

/// Hosts within bounds, explored.
#[derive(Clone, Debug)]
pub(in crate::model) struct Explored {
    pub(in crate::model) bounds: Bounds,
    /// What must be reached, of what the rooms are for.
    pub(in crate::model) reaches: &'static [&'static str],
}

impl Explored {
    fn reached(&self, what: &str, world: &World) -> bool {
        !self.reaches.contains(&what) || world.reached.contains(what)
    }
}

impl Model for Explored {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(&self.bounds)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        world.actions(&self.bounds, actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        world.next(&self.bounds, &action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(TWICE, |_, w: &World| w.broken != Some(TWICE)),
            Property::always(LIVES, |_, w: &World| w.broken != Some(LIVES)),
            Property::always(OWNERS, |_, w: &World| w.broken != Some(OWNERS)),
            Property::sometimes(TAKEOVER, |m: &Self, w: &World| m.reached(TAKEOVER, w)),
            Property::sometimes(THAW, |m: &Self, w: &World| m.reached(THAW, w)),
            Property::sometimes(VOUCHED, |m: &Self, w: &World| m.reached(VOUCHED, w)),
            Property::sometimes(HANDOVER, |m: &Self, w: &World| m.reached(HANDOVER, w)),
        ]
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::model) enum Action {
    Tick,
    Renew(usize),
    Observe(usize),
    /// A primary reads the VM's lock.
    Look(usize),
    /// A primary does what it can about owner locks and restarts.
    Act(usize),
    Land(usize),
    Acknowledge(usize),
    /// An operation's outcome stays unknown; it may land later if it has not.
    Lose(usize),
    Deliver(usize),
    Crash(usize),
    Boot(usize),
    Kill(usize),
    Off(usize),
    On(usize),
    Stale(usize),
    Raise(usize),
    Restore,
    /// The VM's host becomes a primary, or follows the first one again.
    Turn(usize),
    StepDown(usize),
    /// The fence device does what it was told.
    Switch(usize),
    Answer(usize),
    /// It does not answer.
    Silent(usize),
}

impl World {
    fn actions(&self, bounds: &Bounds, actions: &mut Vec<Action>) {
        if self.broken.is_some() {
            return;
        }
        let left = &self.budget;
        // A primary looks at each heartbeat in each tick, before or after anything else.
        let acts = |n: &usize| self.leads(*n) && bounds.parts[*n] != Part::Answers;
        let mut primaries = (1..self.nodes.len()).filter(acts);
        let all_observed = primaries.all(|n| self.observed.contains(&n));
        if self.now < BEFORE + bounds.ticks && all_observed {
            actions.push(Action::Tick);
        }
        for (n, node) in self.nodes.iter().enumerate() {
            if node.off {
                actions.push(Action::Boot(n));
                continue;
            }
            let beats = match bounds.parts[n] {
                Part::Runs(_) => left.beats,
                Part::Leads => left.leads,
                Part::Steady | Part::Answers => 0,
            };
            if beats > 0 && !self.renewed.contains(&n) {
                actions.push(Action::Renew(n));
            }
            let acts = acts(&n);
            if acts && n > 0 {
                if !self.observed.contains(&n) {
                    actions.push(Action::Observe(n));
                }
                if !self.looked.contains(&n) {
                    actions.push(Action::Look(n));
                }
            }
            if acts && !self.acted.contains(&n) {
                actions.push(Action::Act(n));
            }
            if n > 0 {
                if left.stale > 0 {
                    actions.push(Action::Stale(n));
                }
                if self.leads(n) && n == FIRST && left.steps_down > 0 {
                    actions.push(Action::StepDown(n));
                }
                continue;
            }
            let faults = [
                (left.restores, Action::Restore),
                (left.roles, Action::Turn(n)),
                (left.crashes, Action::Crash(n)),
                (left.kills, Action::Kill(n)),
                (left.offs, Action::Off(n)),
                (left.ons, Action::On(n)),
                (left.raises, Action::Raise(n)),
            ];
            let faults = faults.into_iter().filter(|(left, _)| *left > 0);
            actions.extend(faults.map(|(_, fault)| fault));
        }
        for (n, op) in self.ops.iter().enumerate() {
            if op.landed.is_none() {
                actions.push(Action::Land(n));
            } else {
                actions.push(Action::Acknowledge(n));
            }
            if !op.given_up && left.unknown > 0 {
                actions.push(Action::Lose(n));
            }
        }
        for (n, question) in self.questions.iter().enumerate() {
            if question.answer.is_none() {
                actions.push(Action::Switch(n));
            } else {
                actions.push(Action::Answer(n));
            }
            if !question.given_up && left.unknown > 0 {
                actions.push(Action::Silent(n));
            }
        }
        actions.extend((0..self.mail.len()).map(Action::Deliver));
    }

    fn next(&self, bounds: &Bounds, action: &Action) -> Option<Self> {
        let mut world = self.clone();
        world.changed.extend(faulty(action));
        let now = at(world.now);
        match *action {
            Action::Tick => {
                world.tick(bounds);
            }
            Action::Renew(n) => {
                world.renewed.insert(n);
                match bounds.parts[n] {
                    Part::Runs(_) => world.budget.beats -= 1,
                    Part::Leads | Part::Steady | Part::Answers => world.budget.leads -= 1,
                }
                world.drive(bounds, n, 2, |a| a.renew(&datastore(), ticks(1)));
            }
            Action::Observe(n) => {
                world.observed.insert(n);
                world.drive(bounds, n, 3, |a| a.observe(&datastore(), ticks(1)));
            }
            Action::Look(n) => {
                world.looked.insert(n);
                world.drive(bounds, n, 4, |a| {
                    if let Some(restart) = a.restarts.get_mut(&vm()) {
                        restart.step = Step::Look(now);
                    }
                    a.run_restarts();
                });
            }
            Action::Act(n) => {
                world.acted.insert(n);
                world.drive(bounds, n, 5, |a| {
                    // A datastore is met for the first time, and its lock is read.
                    a.run_ownership();
                    a.run_ownership();
                    a.begin_fencing();
                    a.run_fencing();
                    a.run_restarts();
                });
                // A new owner has the list from its predecessor.
                if n > 0 {
                    world.protect(n);
                }
            }
            Action::Land(at) => {
                let op = world.ops.get(at)?.clone();
                let value = world.perform(op.host, &op.request);
                if op.given_up {
                    world.ops.remove(at);
                } else {
                    world.ops[at].landed = Some(StorageOutcome::Ok(value));
                }
            }
            Action::Acknowledge(at) => {
                let op = world.ops.remove(at);
                let outcome = op.landed.clone()?;
                world.acknowledge(bounds, op, outcome);
            }
            Action::Lose(at) => {
                world.budget.unknown -= 1;
                let op = world.ops.get(at)?.clone();
                if op.landed.is_some() || !is_write(&op.request) {
                    world.ops.remove(at);
                } else {
                    world.ops[at].given_up = true;
                }
                let unknown = StorageOutcome::Unknown(IoFault::TimedOut);
                world.acknowledge(bounds, op, unknown);
            }
            Action::Deliver(at) => {
                let post = world.mail.iter().nth(at)?.clone();
                world.mail.remove(&post);
                world.deliver(bounds, post);
            }
            Action::Crash(n) => {
                world.budget.crashes -= 1;
                world.lose_power(n);
            }
            Action::Switch(at) => world.device_acts(bounds, at)?,
            Action::Answer(at) => world.device_answers(bounds, at)?,
            Action::Silent(at) => {
                world.budget.unknown -= 1;
                world.device_is_silent(bounds, at)?;
            }
            Action::Boot(n) => world.start_agent(bounds, n, true),
            Action::Kill(n) => {
                world.budget.kills -= 1;
                world.ops.retain(|op| op.host != n || op.landed.is_none());
                world.start_agent(bounds, n, false);
            }
            Action::Off(n) => {
                world.budget.offs -= 1;
                world.drive(bounds, n, 6, |a| drop(a.power_off(&vm())));
            }
            Action::On(n) => {
                world.budget.ons -= 1;
                world.drive(bounds, n, 7, |a| drop(a.power_on(&vm())));
            }
            Action::Stale(n) => {
                world.budget.stale -= 1;
                world.cached[n] = Some(Arc::new(world.disk.clone()));
            }
            Action::Raise(n) => {
                world.budget.raises -= 1;
                world.drive(bounds, n, 9, |a| {
                    let timing = &mut a.config.settings.timing;
                    timing.freeze += ticks(2);
                    timing.r#break += ticks(2);
                });
            }
            Action::Restore => {
                world.budget.restores -= 1;
                world.disk = (*world.snapshot).clone();
                // The storage does not know them any more: no generation is said to be used twice.
                world.lived.clear();
            }
            Action::Turn(n) => {
                world.budget.roles -= 1;
                let back = world.leads(n);
                world.drive(bounds, n, 15, |a| {
                    if back {
                        a.give_up_ownership("it follows again", true);
                    }
                    a.role = if back { follows(FIRST) } else { leads() };
                });
            }
            Action::StepDown(n) => {
                world.budget.steps_down -= 1;
                world.drive(bounds, n, 16, |a| {
                    a.give_up_ownership("it steps down", true);
                    a.restarts.clear();
                    a.role = follows(0);
                });
            }
        }
        world.seal();
        // Whoever found nothing to do may do so later, with all that is left to happen: that is no state of its own.
        let spent = matches!(
            action,
            Action::Look(_) | Action::Act(_) | Action::Renew(_) | Action::Off(_) | Action::On(_)
        );
        let idle = spent
            && (&world.prints, &world.ops, &world.mail) == (&self.prints, &self.ops, &self.mail)
            && (&world.disk, world.broken) == (&self.disk, self.broken)
            && world.questions == self.questions;
        (world.print != self.print && !idle).then_some(world)
    }
}

/// The host to which something happens that its agent does not see.
fn faulty(action: &Action) -> Option<usize> {
    match *action {
        Action::Boot(n) | Action::Kill(n) => Some(n),
        _ => None,
    }
}

fn is_write(request: &StorageRequest) -> bool {
    matches!(
        request,
        StorageRequest::Renew(..) | StorageRequest::Link(..)
    )
}
