//! How far rounds are, once in a minute: they take long, and a cluster that never settles would look like one that
//! plays.

use crate::scenarios::line;
use mainstay_lab::rounds::Rounds;
use mainstay_lab::run::{Audience, Look};
use mainstay_sim::Entry;
use serde_json::json;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines.
const EVERY: Duration = Duration::from_secs(60);

/// What is known of all clusters.
#[derive(Debug)]
pub(super) struct Progress {
    json: bool,
    began: Instant,
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    clusters: Vec<Cluster>,
    /// Lines that were told, or were due and passed over.
    told: u32,
}

/// One of them.
#[derive(Debug, Default, Clone)]
struct Cluster {
    rounds: usize,
    over: usize,
    /// It plays.
    settled: bool,
    /// Properties found broken.
    broken: usize,
}

impl Progress {
    pub(super) fn new(drawn: &[Rounds], json: bool) -> Self {
        let cluster = |rounds: &Rounds| Cluster {
            rounds: rounds.rounds.len(),
            ..Cluster::default()
        };
        Self {
            json,
            began: Instant::now(),
            now: Mutex::new(Now {
                clusters: drawn.iter().map(cluster).collect(),
                told: 0,
            }),
        }
    }

    /// Looks on at the cluster with that number.
    pub(super) fn of<'a>(&'a self, number: usize, rounds: &'a Rounds) -> Onlooker<'a> {
        Onlooker {
            progress: self,
            number,
            rounds,
        }
    }

    fn saw(&self, number: usize, seen: impl FnOnce(&mut Cluster)) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = now.clusters.get_mut(number) {
            seen(cluster);
        }
        let since = self.began.elapsed();
        if let Some(text) = now.due(since, self.json) {
            line(&text);
        }
    }
}

impl Now {
    /// What is to be told that long after the beginning.
    fn due(&mut self, since: Duration, json: bool) -> Option<String> {
        let minutes = u32::try_from(since.as_secs() / EVERY.as_secs()).unwrap_or(u32::MAX);
        if minutes <= self.told {
            return None;
        }
        self.told = minutes;
        Some(match json {
            true => self.json(since),
            false => self.people(minutes),
        })
    }

    fn sum(&self, of: impl Fn(&Cluster) -> usize) -> usize {
        self.clusters.iter().map(of).sum()
    }

    fn people(&self, minutes: u32) -> String {
        let settled = self.sum(|c| usize::from(c.settled));
        let broken = match self.sum(|c| c.broken) {
            0 => "nothing broken".to_owned(),
            n => format!("{n} BROKEN"),
        };
        format!(
            "minute {minutes}: {} of {} rounds are over; {settled} of {} clusters settled; {broken}",
            self.sum(|c| c.over),
            self.sum(|c| c.rounds),
            self.clusters.len(),
        )
    }

    fn json(&self, since: Duration) -> String {
        json!({
            "type": "progress",
            "second": since.as_secs(),
            "over": self.sum(|c| c.over),
            "rounds": self.sum(|c| c.rounds),
            "settled": self.sum(|c| usize::from(c.settled)),
            "clusters": self.clusters.len(),
            "broken": self.sum(|c| c.broken),
        })
        .to_string()
    }
}

/// The audience of one cluster.
#[derive(Debug)]
pub(super) struct Onlooker<'a> {
    progress: &'a Progress,
    number: usize,
    rounds: &'a Rounds,
}

impl Audience for Onlooker<'_> {
    fn phase(&mut self, _: &str) {}

    /// Before a cluster has settled nothing else is heard of it.
    fn entry(&mut self, _: &Entry, _: Option<u64>) {
        self.progress.saw(self.number, |_| {});
    }

    fn looked(&mut self, look: &Look<'_>) {
        let over = self.rounds.over(look.since_zero);
        self.progress.saw(self.number, |cluster| {
            cluster.over = over;
            cluster.settled = true;
            cluster.broken = look.broken;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Now {
        let cluster = |over, settled| Cluster {
            rounds: 10,
            over,
            settled,
            broken: 0,
        };
        Now {
            clusters: vec![cluster(3, true), cluster(0, false)],
            told: 0,
        }
    }

    #[test]
    fn each_minute_is_told_once_and_a_late_look_tells_the_last() {
        let mut now = now();
        let at = Duration::from_secs;
        assert_eq!(now.due(at(59), false), None);
        let text = now.due(at(60), false).expect("a minute is over");
        assert_eq!(
            text,
            "minute 1: 3 of 20 rounds are over; 1 of 2 clusters settled; nothing broken"
        );
        assert_eq!(now.due(at(61), false), None);
        let text = now.due(at(200), false).expect("three are over");
        assert!(text.starts_with("minute 3:"), "{text}");
        assert_eq!(now.due(at(201), false), None);
    }

    #[test]
    fn what_is_broken_is_told_at_once_when_a_minute_is_over() {
        let mut now = now();
        now.clusters[0].broken = 2;
        let text = now.due(Duration::from_secs(60), false).expect("a line");
        assert!(text.ends_with("2 BROKEN"), "{text}");
        let text = now.due(Duration::from_secs(120), true).expect("a line");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["type"], "progress");
        assert_eq!(value["over"], 3);
        assert_eq!(value["broken"], 2);
    }
}
