//! The cluster's configuration while it runs: one line of versions, changed from any agent, carried to
//! every host, without a manager.
//!
//! ```text
//!   any agent ── propose ──▶ primary: owner of the home datastore, its copy read and written again
//!       ▲                       │ checks, writes the next version under its owner generation
//!       │ outcome               ▼ on disk
//!       └───────────────── acknowledged ── configuration ──▶ every host, and later those that were down
//! ```
//! The configuration's *home* is the first datastore that more than one host mounts. Only its owner
//! changes the configuration, under the rules that guard the protected list (safety rules H5, H19), so
//! that there is one line of versions also in a partition, and an acknowledged change is never lost.
//! Agents compare versions when they meet; the newer configuration goes to whoever has the older.

mod home;
mod in_use;

pub(crate) use home::Home;

use crate::agent::{Agent, CommandError, planted};
use crate::config::{Change, ClusterConfig, Topology, summary};
use crate::event::{AbdicationCause, EventKind, IssueCause};
use crate::id::{DatastoreId, HostId};
use crate::io::{Channel, Output};
use crate::liveness::Peer;
use crate::store::Store;
use crate::time::{Duration, Instant};
use crate::wire::Message;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Changes that wait to be written, over all hosts.
const PROPOSALS: usize = 64;
/// A configuration that could not be kept on local disk is written again after so long: no sooner than an
/// admin makes room, and long before a host is started again.
const KEPT_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// A change on its way.
#[derive(Clone, Debug)]
pub(crate) struct Proposal {
    /// Who asked, and the number that it gave.
    from: HostId,
    ticket: u64,
    changes: Vec<Change>,
}

/// What this agent knows of changes under way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Membership {
    /// The heartbeat in which this host began to follow its primary, and told it its version.
    pub(crate) followed_at: u64,
    /// It stands in this election because the primary is in maintenance.
    pub(crate) relieves: bool,
    /// At the primary: changes that wait for the one being written.
    queue: VecDeque<Proposal>,
    /// At the asking agent: tickets whose outcome is awaited, with the primary that was asked.
    asked: Vec<(u64, HostId, Instant)>,
    /// The configuration is to be kept on local disk again then: it could not be.
    keep_again: Option<Instant>,
    pub(crate) home: Home,
}

impl Agent {
    /// Asks for changes of the configuration. The outcome comes as [`Output::Proposed`] with the ticket
    /// that is given back; accepted means that it is on disk.
    ///
    /// # Errors
    /// [`CommandError`] when the changes do not fit the configuration that this agent has, or no primary
    /// is known, or this host is silent in a drill; then nothing was changed.
    pub fn propose(&mut self, now: Instant, changes: Vec<Change>) -> Result<u64, CommandError> {
        self.check_not_silent()?;
        self.advance(now);
        self.check_changes(&changes).map_err(CommandError::Config)?;
        let ticket = self.number();
        if self.role.is_primary() {
            let from = self.me.host.clone();
            self.take_proposal(Proposal {
                from,
                ticket,
                changes,
            });
        } else {
            let Some(primary) = self.role.followed().cloned() else {
                return Err(CommandError::NoPrimary);
            };
            let message = Message::Propose { ticket, changes };
            if !self.understands_message(&primary, &message) {
                let why = format!(
                    "the primary {primary} has an agent of an older version, or showed none yet, and cannot read this change; upgrade it, or ask again in a few seconds"
                );
                return Err(CommandError::Config(why));
            }
            self.membership
                .asked
                .push((ticket, primary.clone(), self.now));
            self.send(&primary, Channel::Stream, message);
        }
        self.run();
        Ok(ticket)
    }

    fn check_changes(&self, changes: &[Change]) -> Result<ClusterConfig, String> {
        let next = self.config.with(changes).map_err(|e| e.to_string())?;
        for change in changes {
            self.check_use(change)?;
        }
        // The primary alone knows what all members understand.
        let said = changes.iter().any(Change::names_places);
        if said && self.role.is_primary() && self.level() < 2 {
            return Err(String::from(
                "a member has an agent of an older version, which knows neither addresses nor images in the configuration, or was not heard yet; upgrade every agent (`mainstay status` names the older ones), remove hosts that are gone for good, or ask again in a few seconds",
            ));
        }
        Ok(next)
    }

    /// A change that another agent passes on.
    pub(crate) fn on_propose(&mut self, from: &HostId, ticket: u64, changes: Vec<Change>) {
        let proposal = Proposal {
            from: from.clone(),
            ticket,
            changes,
        };
        if self.role.is_primary() {
            self.take_proposal(proposal);
        } else {
            let why = String::from("this agent is not the primary any more; ask again");
            self.answer_proposal(&proposal, Err(why));
        }
    }

    fn take_proposal(&mut self, proposal: Proposal) {
        if self.membership.queue.len() >= PROPOSALS {
            let why = format!("{PROPOSALS} changes wait already; ask again later");
            self.answer_proposal(&proposal, Err(why));
            return;
        }
        self.membership.queue.push_back(proposal);
        self.next_proposal();
    }

    /// Begins to write the next change when nothing is being written.
    pub(crate) fn next_proposal(&mut self) {
        while self.role.is_primary() && !self.membership.home.is_writing() {
            let Some(proposal) = self.membership.queue.pop_front() else {
                return;
            };
            match self.check_changes(&proposal.changes) {
                Err(why) => self.answer_proposal(&proposal, Err(why)),
                Ok(next) => match self.ready_to_write() {
                    Ok(datastore) => self.write_config(&datastore, next, Some(proposal)),
                    Err(why) => self.answer_proposal(&proposal, Err(why)),
                },
            }
        }
    }

    /// The home datastore, when this primary may write the configuration there.
    fn ready_to_write(&self) -> Result<DatastoreId, String> {
        let Some(home) = self.topology.home().cloned() else {
            return Err(String::from(
                "no datastore is shared by two hosts, so that a change could not be kept; add one",
            ));
        };
        let owns = self.acting(&home).map(|a| a.generation);
        if owns.is_some() && self.membership.home.ready_under(owns) {
            return Ok(home);
        }
        Err(format!(
            "the primary {} does not own {home}, where the configuration is kept; ask again when it does",
            self.me.host
        ))
    }

    pub(crate) fn answer_proposal(&mut self, to: &Proposal, outcome: Result<u64, String>) {
        if to.from == self.me.host {
            self.out.push_back(Output::Proposed(to.ticket, outcome));
        } else {
            let message = Message::Proposed {
                ticket: to.ticket,
                outcome,
            };
            self.send(&to.from, Channel::Stream, message);
        }
    }

    /// The primary's answer to a change that this agent passed on.
    pub(crate) fn on_proposed(&mut self, ticket: u64, outcome: Result<u64, String>) {
        let before = self.membership.asked.len();
        self.membership.asked.retain(|(t, ..)| *t != ticket);
        if self.membership.asked.len() < before {
            self.out.push_back(Output::Proposed(ticket, outcome));
        }
    }

    /// Changes whose primary was lost: their outcome is not known.
    pub(crate) fn run_membership(&mut self) {
        let followed = self.role.followed().cloned();
        let limit = self.config.settings.order_timeout;
        let now = self.now;
        let (lost, left): (Vec<_>, Vec<_>) = core::mem::take(&mut self.membership.asked)
            .into_iter()
            .partition(|(_, of, at)| Some(of) != followed.as_ref() || now.since(*at) >= limit);
        self.membership.asked = left;
        for (ticket, of, _) in lost {
            let why = format!(
                "{of}, which was asked, is the primary no more or says nothing: whether the change was made is not known; look at the configuration's version, and ask again"
            );
            self.out.push_back(Output::Proposed(ticket, Err(why)));
        }
        if self.membership.keep_again.is_some_and(|at| now >= at) {
            self.membership.keep_again = None;
            self.keep_config();
        }
        self.run_home();
        self.next_proposal();
    }

    /// This primary writes nothing more: whoever asked learns it.
    pub(crate) fn drop_proposals(&mut self, why: &str) {
        let waiting: Vec<Proposal> = self.membership.queue.drain(..).collect();
        for proposal in waiting {
            self.answer_proposal(&proposal, Err(why.to_string()));
        }
        if let Some(proposal) = self.membership.home.abandon() {
            let why = format!(
                "{why}: whether the change was made is not known; look at the configuration's version, and ask again"
            );
            self.answer_proposal(&proposal, Err(why));
        }
    }

    // Carrying it to everybody.

    /// Says which version this agent has.
    pub(crate) fn tell_version(&mut self, to: &HostId) {
        let version = self.config.version;
        self.send(to, Channel::Stream, Message::ConfigVersion { version });
    }

    /// To one that looks for a primary beside the one that is followed: it may be a host that was down when
    /// that primary joined, and takes nothing from it.
    pub(crate) fn tell_version_to_stranger(&mut self, to: &HostId) {
        if self.config.version > 0 {
            self.tell_version(to);
        }
    }

    pub(crate) fn on_config_version(&mut self, from: &HostId, version: u64) {
        if version < self.config.version {
            self.send_config(from);
        } else if version > self.config.version {
            // The answer is the configuration itself.
            self.tell_version(from);
        }
    }

    fn send_config(&mut self, to: &HostId) {
        let message = Message::Config(Box::new(self.config.clone()));
        if self.understands_message(to, &message) {
            self.send(to, Channel::Stream, message);
        }
    }

    pub(crate) fn on_config(&mut self, from: &HostId, config: ClusterConfig) {
        if config.cluster_id != self.config.cluster_id || config.check().is_err() {
            self.ignore("unsound configuration");
            return;
        }
        if config.version > self.config.version {
            self.apply_config(config, &format!("{from} has it"));
        }
    }

    /// The configuration is on local disk, or could not be written there.
    pub(crate) fn config_kept(&mut self, ok: bool) {
        let issue = String::from(
            "the cluster's configuration cannot be kept on this host's local disk: after a restart it begins with an older one until it hears from another host; make room, or find out what is wrong with the disk",
        );
        if ok {
            self.membership.keep_again = None;
            self.withdraw(IssueCause::ConfigNotKept, "");
        } else {
            self.membership.keep_again = Some(self.now + KEPT_AGAIN_AFTER);
            self.issue(IssueCause::ConfigNotKept, "", issue);
        }
    }

    /// Puts a newer configuration in force here, and keeps it on local disk.
    pub(crate) fn apply_config(&mut self, config: ClusterConfig, why: &str) {
        let now = self.now;
        let one_network = self.own_network_issue();
        let old = core::mem::replace(&mut self.config, config);
        self.topology = Topology::of(&self.config);
        self.judging.begin_again();
        self.keep_config();
        let gone: Vec<HostId> = self
            .peers
            .keys()
            .filter(|h| !self.config.hosts.contains_key(*h))
            .cloned()
            .collect();
        for host in gone {
            self.drop_report(&host);
        }
        let others: Vec<HostId> = self.config.hosts.keys().cloned().collect();
        self.peers.retain(|h, _| self.config.hosts.contains_key(h));
        self.end_sessions_without_a_member();
        for host in others {
            if host != self.me.host {
                self.peers.entry(host).or_insert_with(|| Peer::new(now));
            }
        }
        let mounts: Vec<DatastoreId> = self
            .own_spec()
            .map(|s| s.datastores.iter().cloned().collect())
            .unwrap_or_default();
        for datastore in mounts {
            self.stores
                .entry(datastore)
                .or_insert_with(|| Store::new(now));
        }
        for vm in self.vms.values_mut() {
            if let Some(spec) = self.config.vms.get(&vm.spec.id) {
                vm.spec = spec.clone();
            }
        }
        let host = self.me.host.clone();
        let version = self.config.version;
        self.emit(
            EventKind::ConfigChanged { host, version },
            format!("version {version} replaces {}: {why}", old.version),
        );
        self.report_redundancy(one_network.as_ref());
        self.want_poweron_list();
        self.report_dirty = true;
        if self.config.settings.timing.freeze > old.settings.timing.freeze {
            // A longer right belongs to a new generation of the owner locks (safety rule H18).
            self.give_up_ownership("the timers have changed", true);
        }
        self.after_membership_change();
    }

    fn after_membership_change(&mut self) {
        if self.is_resting(&self.me.host) && !planted!(self, RestingHostStarts) {
            self.end_starts("this host went into maintenance, or left the cluster");
        }
        let other = |h: &HostId| *h != self.me.host && !self.is_resting(h);
        let relieved =
            self.own_spec().is_none() || self.peers.iter().any(|(h, p)| p.connected() && other(h));
        if self.role.is_primary() && self.is_resting(&self.me.host) && relieved {
            self.step_down(
                AbdicationCause::Resting,
                "this host is in maintenance, or left the cluster",
            );
        }
        self.relieve_resting_primary();
    }

    /// The change is on disk: in force here and everywhere.
    pub(crate) fn config_written(&mut self, config: ClusterConfig, proposal: Option<Proposal>) {
        let version = config.version;
        let what = proposal.as_ref().map(|p| {
            let by = &p.from;
            format!("{} (asked for at {by})", summary(&p.changes))
        });
        if let Some(what) = what {
            // First the answer, then the configuration, then here: applying it may end this host's being
            // the primary, and whoever asked would take the outcome for unknown.
            if let Some(proposal) = &proposal {
                self.answer_proposal(proposal, Ok(version));
            }
            let connected: Vec<HostId> = self
                .peers
                .iter()
                .filter(|(_, p)| p.connected())
                .map(|(h, _)| h.clone())
                .collect();
            for to in connected {
                let message = Message::Config(Box::new(config.clone()));
                if self.understands_message(&to, &message) {
                    self.send(&to, Channel::Stream, message);
                }
            }
            self.apply_config(config, &what);
        }
    }
}
