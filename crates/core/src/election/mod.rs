//! Who is the primary.
//!
//! ```text
//!             election ends, best candidate is this host
//!   electing ──────────────────────────────────────────▶ primary
//!     ▲  │ a primary is heard                               │ hears a better primary
//!     │  ▼                                                  ▼
//!   secondary ◀───────────────────────────────────────── abdicates
//!     (primary silent for `election_start`: electing)
//! ```
//! The candidate with the most datastores wins, then the lexically highest id. An election lasts as
//! long as its timer says: nobody is elected early. Timers of silence run from the first heartbeat
//! that is missing, not from the last that came, so that no figure of a profile is ever undercut.

use crate::agent::{Agent, planted};
use crate::event::{AbdicationCause, ElectionCause, EventKind};
use crate::id::{HostId, InstanceId};
use crate::io::Channel;
use crate::time::Instant;
use crate::wire::{Message, Rank, RoleTag};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// A primary that has a newer configuration has sent it by then.
const BEATS_TO_HEAR_OF_CHANGES: u64 = 4;

/// What this agent is.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    /// In an election until `until`.
    Electing {
        until: Instant,
        candidates: BTreeMap<HostId, Rank>,
    },
    /// Follows a primary, last heard at `heard`.
    Secondary {
        primary: HostId,
        rank: Rank,
        heard: Instant,
        silent_at: Instant,
    },
    /// Is the primary; asks for restarts from then on.
    Primary { restarts_from: Instant },
}

impl Role {
    pub(crate) fn starting(now: Instant) -> Self {
        Self::Electing {
            until: now,
            candidates: BTreeMap::new(),
        }
    }

    pub(crate) fn tag(&self) -> RoleTag {
        match self {
            Self::Electing { .. } => RoleTag::Electing,
            Self::Secondary { .. } => RoleTag::Secondary,
            Self::Primary { .. } => RoleTag::Primary,
        }
    }

    pub(crate) fn is_primary(&self) -> bool {
        matches!(self, Self::Primary { .. })
    }

    pub(crate) fn is_secondary(&self) -> bool {
        matches!(self, Self::Secondary { .. })
    }

    /// The primary that is followed.
    pub(crate) fn followed(&self) -> Option<&HostId> {
        match self {
            Self::Secondary { primary, .. } => Some(primary),
            Self::Electing { .. } | Self::Primary { .. } => None,
        }
    }

    /// The silence of the primary counts no earlier than for an election at that moment.
    pub(crate) fn listens_from(&mut self, earliest: Instant) {
        if let Self::Secondary { silent_at, .. } = self {
            *silent_at = (*silent_at).max(earliest);
        }
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        match self {
            Self::Electing { until, .. } => Some(*until),
            Self::Secondary { silent_at, .. } => Some(*silent_at),
            Self::Primary { restarts_from, .. } => Some(*restarts_from),
        }
    }
}

impl Agent {
    /// All heartbeats on the datastores are watched by a primary, by a candidate, and by a secondary
    /// from its primary's first missing heartbeat (safety rule H27).
    pub(crate) fn watches_all(&self) -> bool {
        match &self.role {
            Role::Electing { .. } | Role::Primary { .. } => true,
            Role::Secondary { heard, .. } => {
                self.now > *heard + 2 * self.timing().network_heartbeat
            }
        }
    }

    pub(crate) fn begin_election(&mut self, cause: ElectionCause, why: &str) {
        let (host, now) = (self.me.host.clone(), self.now);
        let until = now + self.timing().election;
        // The primary that was lost has been silent since its last heartbeat; of the other hosts nothing
        // was to be heard before now.
        let lost = self.role.followed().cloned();
        self.membership.relieves = false;
        self.role = Role::Electing {
            until,
            candidates: BTreeMap::new(),
        };
        self.emit(
            EventKind::ElectionStarted { host, cause },
            String::from(why),
        );
        for (host, peer) in &mut self.peers {
            if Some(host) != lost.as_ref() {
                peer.listened_since = now;
            }
        }
        self.send_candidate();
    }

    /// A host that is being shut down or restarted is no candidate.
    fn is_fit(&self) -> bool {
        self.leaving.is_none() && self.planned.is_none() && self.own_spec().is_some()
    }

    /// That host is in maintenance, or no member.
    pub(crate) fn is_resting(&self, host: &HostId) -> bool {
        self.config.hosts.get(host).is_none_or(|h| h.maintenance)
    }

    fn send_candidate(&mut self) {
        if !self.is_fit() {
            return;
        }
        let rank = self.rank();
        let others: Vec<HostId> = self.peers.keys().cloned().collect();
        for to in others {
            self.send(
                &to,
                Channel::Datagram,
                Message::Candidate { rank: rank.clone() },
            );
        }
    }

    /// Heartbeats: a primary's to every host of the cluster, so that other primaries see it too.
    pub(crate) fn send_heartbeats(&mut self) {
        let to: Vec<HostId> = match &self.role {
            Role::Electing { .. } => {
                self.send_candidate();
                return;
            }
            Role::Secondary { primary, .. } => alloc::vec![primary.clone()],
            Role::Primary { .. } => self.peers.keys().cloned().collect(),
        };
        let message = self.heartbeat();
        for to in to {
            self.send(&to, Channel::Datagram, message.clone());
        }
    }

    fn send_heartbeat(&mut self, to: &HostId) {
        let message = self.heartbeat();
        self.send(to, Channel::Datagram, message);
    }

    fn heartbeat(&self) -> Message {
        let primary = match &self.role {
            Role::Primary { .. } => Some(self.me.host.clone()),
            Role::Secondary { primary, .. } => Some(primary.clone()),
            Role::Electing { .. } => None,
        };
        Message::Heartbeat {
            role: self.role.tag(),
            rank: self.rank(),
            primary,
            instance: self.me.instance,
        }
    }

    pub(crate) fn run_election(&mut self) {
        match &self.role {
            Role::Electing {
                until, candidates, ..
            } if self.now >= *until => {
                let own = self.rank();
                let fit = self.is_fit();
                let best = candidates.values().max();
                match best {
                    Some(best) if !fit || *best > own => {
                        // The winner will be heard; if it is not, the next round is without it.
                        let until = self.now + self.timing().election;
                        self.role = Role::Electing {
                            until,
                            candidates: BTreeMap::new(),
                        };
                    }
                    _ if fit => self.become_primary(own),
                    _ => {
                        let until = self.now + self.timing().election;
                        self.role = Role::Electing {
                            until,
                            candidates: BTreeMap::new(),
                        };
                    }
                }
            }
            Role::Secondary {
                primary, silent_at, ..
            } if self.now >= *silent_at => {
                let why = format!(
                    "no heartbeat of the primary {primary} for {} ms",
                    self.timing().election_start.as_millis()
                );
                self.begin_election(ElectionCause::PrimarySilent, &why);
            }
            _ => {}
        }
    }

    fn become_primary(&mut self, rank: Rank) {
        let now = self.now;
        self.role = Role::Primary {
            restarts_from: now + self.timing().elected_to_restart,
        };
        let host = self.me.host.clone();
        let why = format!(
            "no candidate with more than {} datastores, or as many and a higher id, was heard",
            rank.datastores
        );
        self.emit(EventKind::PrimaryElected { host: host.clone() }, why);
        self.alone_since = Some(now);
        self.durable.last_primary = Some(host);
        self.durable_dirty = true;
        self.restarts.clear();
        self.begin_watch();
        self.want_poweron_list();
        self.send_heartbeats();
    }

    pub(crate) fn on_candidate(&mut self, from: &HostId, rank: Rank) {
        self.note_heard(from);
        match &mut self.role {
            Role::Electing { candidates, .. } => {
                candidates.insert(from.clone(), rank);
            }
            Role::Primary { .. } => self.send_heartbeat(from),
            Role::Secondary { .. } => self.tell_version_to_stranger(from),
        }
    }

    pub(crate) fn on_heartbeat(
        &mut self,
        from: &HostId,
        role: RoleTag,
        rank: Rank,
        primary: Option<HostId>,
        instance: InstanceId,
    ) {
        if !self.meet(from, instance) {
            return;
        }
        self.note_heard(from);
        self.note_instance(from, instance);
        match role {
            RoleTag::Primary => self.on_primary_heard(from, rank),
            RoleTag::Secondary | RoleTag::Electing => self.note_follower(from, role, primary),
        }
    }

    fn on_primary_heard(&mut self, from: &HostId, rank: Rank) {
        let own = self.rank();
        let relieved = self.membership.relieves && self.is_resting(from);
        match &self.role {
            Role::Electing { .. } if relieved => {}
            Role::Electing { .. } => self.follow(from, rank),
            Role::Secondary {
                primary,
                rank: followed,
                heard,
                ..
            } => {
                let lost = self.now > *heard + 3 * self.timing().network_heartbeat;
                if primary == from || lost || rank > *followed {
                    self.follow(from, rank);
                } else {
                    self.tell_version_to_stranger(from);
                }
            }
            Role::Primary { .. } if planted!(self, NobodyAbdicates) => {}
            Role::Primary { .. } if rank > own => {
                let by = if self.is_resting(&own.host) {
                    String::from("this host is in maintenance")
                } else {
                    format!("{} datastores against {}", rank.datastores, own.datastores)
                };
                let why = format!("{from} is a primary too and would win an election ({by})");
                let host = self.me.host.clone();
                let cause = AbdicationCause::BetterPrimary;
                self.emit(EventKind::PrimaryAbdicated { host, cause }, why);
                self.give_up_ownership("this primary abdicated", true);
                self.drop_proposals("this primary abdicated");
                self.restarts.clear();
                self.end_watch();
                self.follow(from, rank);
            }
            Role::Primary { .. } => {
                // It follows nobody: what it last reported counts no more. It will abdicate when it
                // hears this one, which may be long where only one way is lost.
                self.note_follower(from, RoleTag::Primary, None);
                self.send_heartbeat(from);
            }
        }
    }

    /// Where this host can lead, one in maintenance need not. First it hears whether that is still so: its
    /// own configuration may be old.
    pub(crate) fn relieve_resting_primary(&mut self) {
        let Some(primary) = self.role.followed().cloned() else {
            return;
        };
        let told = self.beats >= self.membership.followed_at + BEATS_TO_HEAR_OF_CHANGES;
        if told && self.is_fit() && self.rank().datastores > 0 && self.is_resting(&primary) {
            let why = format!("the primary {primary} is in maintenance, or left the cluster");
            self.begin_election(ElectionCause::PrimaryResting, &why);
            self.membership.relieves = true;
        }
    }

    fn follow(&mut self, primary: &HostId, rank: Rank) {
        let now = self.now;
        let silent_at = now + self.timing().network_heartbeat + self.timing().election_start;
        let same = self.role.followed() == Some(primary);
        self.role = Role::Secondary {
            primary: primary.clone(),
            rank,
            heard: now,
            silent_at,
        };
        if !same {
            self.protected_here.clear();
            self.membership.followed_at = self.beats;
            self.membership.relieves = false;
            self.durable.last_primary = Some(primary.clone());
            self.durable_dirty = true;
            self.send_heartbeat(primary);
            self.reporting.begin_again();
            self.send_report();
            self.tell_version(&primary.clone());
            self.free_leftover_ownership();
        }
    }
}
