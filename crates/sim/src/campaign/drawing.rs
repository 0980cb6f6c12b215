//! Draws the faults of one seed.

use super::kinds::{Kind, Stroke};
use super::small;
use crate::clock::{MS, Nanos, SECOND};
use crate::scenario::{Fault, Planned};
use mainstay_core::config::Settings;
use mainstay_core::rng::Rng;
use mainstay_core::time::nanos;
use std::collections::BTreeMap;

/// How many of a hundred seeds have a kind of fault: about four kinds a seed.
const SWARM: u64 = 20;
/// How many of a hundred seeds aim.
const AIMED: u64 = 70;

/// The faults of a seed as far as they are drawn.
pub(super) struct Drawing<'a> {
    pub(super) rng: Rng,
    /// In this weather what was given up lands after all.
    pub(super) given_up_lands: bool,
    pub(super) hosts: usize,
    /// Those of the configuration, and those that were created since.
    pub(super) vms: usize,
    /// The host that each created VM starts on, if the user chose one.
    pub(super) created: Vec<Option<usize>>,
    pub(super) datastores: usize,
    pub(super) networks: usize,
    pub(super) settings: &'a Settings,
    /// Faults begin before this.
    pub(super) until: Nanos,
    pub(super) events: Vec<Planned>,
    pub(super) kinds: Vec<&'static str>,
    pub(super) patterns: BTreeMap<&'static str, u64>,
}

impl<'a> Drawing<'a> {
    pub(super) fn draw(&mut self) {
        // Swarm: which kinds of faults this seed has.
        let mut kinds: Vec<(&'static str, Kind<'a>)> = Self::KINDS.to_vec();
        kinds.retain(|_| self.rng.percent(SWARM));
        let mut at = self.rng.between(1, 20) * SECOND;
        let pace = self.rng.between(3, 60);
        while at < self.until && !kinds.is_empty() {
            let drawn = small(self.rng.below(kinds.len() as u64));
            if let Some((_, plays)) = kinds.get(drawn).copied() {
                let stroke = self.stroke(at);
                plays(self, stroke);
            }
            at += self.rng.between(500, pace * 2000) * MS;
        }
        self.kinds = kinds.into_iter().map(|(name, _)| name).collect();
        if self.rng.percent(AIMED) {
            self.aim();
        }
    }

    fn stroke(&mut self, at: Nanos) -> Stroke {
        let (host, other) = (self.host(), self.host());
        Stroke {
            at,
            end: at + self.length(),
            host,
            other,
        }
    }

    /// Times are whole milliseconds, as a scenario file has them.
    pub(super) fn push(&mut self, at: Nanos, fault: Fault) {
        let at = at / MS * MS;
        self.events.push(Planned { at, fault });
    }

    pub(super) fn host(&mut self) -> usize {
        small(self.rng.below(self.hosts as u64))
    }

    /// A VM; `vms` must not be 0.
    pub(super) fn vm(&mut self) -> usize {
        small(self.rng.below(self.vms as u64))
    }

    pub(super) fn disk(&mut self) -> usize {
        small(self.rng.below(self.datastores as u64))
    }

    /// A length around the times at which the protocol decides.
    fn length(&mut self) -> Nanos {
        let t = &self.settings.timing;
        let marks = [
            t.freeze,
            t.r#break,
            t.dead,
            t.election_start,
            t.unreachable,
            t.datastore_heartbeat,
        ];
        let mark = marks
            .get(small(self.rng.below(marks.len() as u64)))
            .copied()
            .map_or(SECOND, nanos);
        match self.rng.below(3) {
            0 => mark * self.rng.between(80, 130) / 100,
            1 => mark * self.rng.between(10, 300) / 100,
            _ => self.rng.between(100, 60_000) * MS,
        }
    }
}
