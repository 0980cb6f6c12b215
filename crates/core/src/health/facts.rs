//! What agents tell each other of themselves: weaknesses, versions, clocks.

use super::Issue;
use crate::agent::Agent;
use crate::event::IssueCause;
use crate::id::{HostId, InstanceId};
use crate::io::Channel;
use crate::time::Instant;
use crate::wire::{FORMAT_VERSION, Facts, Message, OLDEST_VERSION};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Facts are told again after so many looks though nothing changed.
const LOOKS_BETWEEN: u64 = 8;
/// From this format version on, agents tell facts.
const TELLS_FACTS: u16 = 2;

/// What was told, and to whom.
#[derive(Clone, Debug, Default)]
pub(crate) struct Telling {
    told: BTreeMap<HostId, (u64, Facts)>,
    looks: u64,
    /// The digest of a configuration, by its version.
    digest: Option<(u64, u64)>,
    /// The primary says that all members understand this.
    level: Option<(HostId, u16)>,
}

impl Agent {
    /// Makes the agent behave as one that understands formats up to that version only, so that a cluster
    /// in the middle of an upgrade can be played.
    pub fn understand_up_to(&mut self, version: u16) {
        self.understands = version.clamp(OLDEST_VERSION, FORMAT_VERSION);
    }

    /// An agent showed which formats it understands.
    pub(crate) fn on_understands(&mut self, host: &HostId, version: u16) {
        if let Some(peer) = self.peers.get_mut(host) {
            peer.understands = Some(version.min(FORMAT_VERSION));
        }
    }

    /// The format version that all members understand; of one that was never heard, the oldest is assumed.
    /// A secondary goes by its primary's word; until a new primary has given it, by what it saw itself.
    #[must_use]
    pub fn level(&self) -> u16 {
        match (self.role.followed(), &self.telling.level) {
            (Some(primary), Some((by, level))) if by == primary => (*level).min(self.understands),
            _ => {
                let others = self.peers.values();
                others
                    .map(|p| p.understands.unwrap_or(OLDEST_VERSION))
                    .fold(self.understands, u16::min)
            }
        }
    }

    /// That message says nothing to an agent of an older version.
    pub(crate) fn understands_message(&self, to: &HostId, message: &Message) -> bool {
        let version = message.version();
        version <= OLDEST_VERSION
            || (version <= self.understands
                && self
                    .peers
                    .get(to)
                    .and_then(|p| p.understands)
                    .is_some_and(|v| v >= version))
    }

    fn config_digest(&mut self) -> u64 {
        let version = self.config.version;
        if let Some((of, digest)) = self.telling.digest
            && of == version
        {
            return digest;
        }
        // Serialising our own types into memory cannot fail.
        let bytes = postcard::to_allocvec(&self.config).unwrap_or_default();
        let digest = u64::from(crc32fast::hash(&bytes));
        self.telling.digest = Some((version, digest));
        digest
    }

    fn own_facts(&mut self) -> Facts {
        let digest = self.config_digest();
        let mut issues = self.own_issues();
        issues.truncate(Facts::MOST_ISSUES);
        Facts {
            level: self.level(),
            config: self.config.version,
            digest,
            profile: self.config.settings.profile.name().to_string(),
            issues,
        }
    }

    /// Those with whom facts are shared: the primary, or those who follow this one.
    fn companions(&self) -> Vec<HostId> {
        if let Some(primary) = self.role.followed() {
            return [primary.clone()].into();
        }
        if !self.role.is_primary() {
            return Vec::new();
        }
        let connected = self.peers.iter().filter(|(_, p)| p.connected());
        connected.map(|(h, _)| h.clone()).collect()
    }

    pub(super) fn tell_facts(&mut self) {
        if self.understands < TELLS_FACTS {
            return;
        }
        self.telling.looks += 1;
        let looks = self.telling.looks;
        let facts = self.own_facts();
        let due: Vec<HostId> = self
            .companions()
            .into_iter()
            .filter(|h| {
                let told = self.telling.told.get(h);
                told.is_none_or(|(at, f)| *f != facts || looks >= at + LOOKS_BETWEEN)
            })
            .collect();
        for host in due {
            let message = Message::Facts(Box::new(facts.clone()));
            if self.understands_message(&host, &message) {
                self.send(&host, Channel::Stream, message);
                self.telling.told.insert(host, (looks, facts.clone()));
            }
        }
    }

    pub(super) fn tell_clock(&mut self) {
        let Some(primary) = self.role.followed().cloned() else {
            return;
        };
        let nanos = self.now.since(Instant::ZERO).as_nanos();
        let message = Message::Clock {
            instance: self.me.instance,
            at: u64::try_from(nanos).unwrap_or(u64::MAX),
        };
        if self.understands_message(&primary, &message) {
            self.send(&primary, Channel::Datagram, message);
        }
    }

    pub(crate) fn on_facts(&mut self, from: &HostId, mut facts: Facts) {
        if self.role.followed() == Some(from) {
            self.telling.level = Some((from.clone(), facts.level));
        }
        facts.issues.truncate(Facts::MOST_ISSUES);
        let now = self.now;
        let same = facts.config == self.config.version;
        if let Some(peer) = self.peers.get_mut(from) {
            peer.behind_since = (!same).then(|| peer.behind_since.unwrap_or(now));
            peer.facts = Some(facts);
        }
    }

    pub(crate) fn on_clock(&mut self, from: &HostId, instance: InstanceId, at: u64) {
        let (now, interval) = (self.now, self.config.settings.clock_check_interval);
        if let Some(peer) = self.peers.get_mut(from) {
            peer.drift.shown(instance, at, now, interval);
        }
    }

    /// What the primary finds when it holds its members against each other.
    pub(super) fn issues_of_members(&self, now: Instant) -> Vec<Issue> {
        let mut all = Vec::new();
        let digest = self.telling.digest.map(|(_, digest)| digest);
        for (host, peer) in self.peers.iter().filter(|(_, p)| p.connected()) {
            let mut say = |cause, text| {
                all.push(Issue {
                    cause,
                    host: Some(host.clone()),
                    text,
                });
            };
            if let Some(text) = self.clocks_apart(host, peer.drift.ppm()) {
                say(IssueCause::ClockDrift, text);
            }
            if peer.understands.is_some_and(|v| v < self.understands) {
                let text = format!(
                    "the agent of {host} is of an older version (format {} of {}): all write what it can read, and what is newer waits; upgrade it",
                    peer.understands.unwrap_or(OLDEST_VERSION),
                    self.understands
                );
                say(IssueCause::OldAgent, text);
            }
            let Some(facts) = &peer.facts else { continue };
            let own = self.config.version;
            if facts.config == own && digest.is_some_and(|d| d != facts.digest) {
                say(
                    IssueCause::ConfigDiffers,
                    differs(
                        host,
                        &facts.profile,
                        self.config.settings.profile.name(),
                        own,
                    ),
                );
            }
            let behind = peer
                .behind_since
                .is_some_and(|s| now.since(s) > self.timing().dead);
            if facts.config < own && behind {
                let text = format!(
                    "{host} has version {} of the configuration and not {own}, which is carried to it again and again: its timing profile may be another; look at the log of its agent",
                    facts.config
                );
                say(IssueCause::ConfigDiffers, text);
            }
        }
        all.extend(self.image_lock_issues());
        all
    }

    fn clocks_apart(&self, host: &HostId, ppm: Option<i64>) -> Option<String> {
        let bound = u64::from(self.timing().clock_drift_ppm);
        let ppm = ppm.filter(|p| p.unsigned_abs() > 2 * bound)?;
        let how = if ppm > 0 { "faster" } else { "slower" };
        Some(format!(
            "the clock of {host} runs {} millionths {how} than that of {}: one of them is off by more than clock_drift_ppm = {bound}, on which the rights to run rest; look for a host that was suspended, and for its clock source",
            ppm.unsigned_abs(),
            self.me.host
        ))
    }
}

fn differs(host: &HostId, theirs: &str, own: &str, version: u64) -> String {
    let profile = if theirs == own {
        String::new()
    } else {
        format!(", with timing profile {theirs} and not {own}")
    };
    format!(
        "{host} has another configuration under the same version {version}{profile}; make any change with `mainstay config set`, which brings all hosts to one"
    )
}
