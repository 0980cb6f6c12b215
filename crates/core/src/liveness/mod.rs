//! What a primary decides about every other host: live, unreachable, dead, partitioned, isolated, or
//! its agent unreachable (the table in `docs/protocol.md`, "Verdicts").
//!
//! ```text
//!          silent for `unreachable`          no ping, no datastore heartbeat for `dead`
//!   live ───────────────────────▶ unreachable ───────────────────────────▶ dead
//!    ▲                               │  │ ping answers, no datastore heartbeat
//!    │ heartbeat                     │  └──────────────▶ agent unreachable
//!    └──────── from every state      │ datastore heartbeat
//!                                    └──────────────▶ partitioned / isolated
//! ```
//! A verdict never breaks a lock: that needs a proof of its own (`store`, window proof). Unknown is
//! never dead: a ping that could not be sent and a heartbeat that could not be read leave the host
//! unreachable.

mod lists;
mod window;

pub(crate) use window::{Seen, Window};

use crate::agent::Agent;
use crate::event::{EventKind, HostState};
use crate::health::Drift;
use crate::id::{DatastoreId, HostId, InstanceId};
use crate::inventory::Reported;
use crate::io::{PingOutcome, PingTarget};
use crate::store::Store;
use crate::time::{Duration, Instant};
use crate::wire::{Facts, PoweronRecord, RoleTag, Stamp};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Another host as this agent sees it.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) heard: Option<Instant>,
    /// Silence is not counted from before this agent listened.
    pub(crate) listened_since: Instant,
    pub(crate) instance: Option<InstanceId>,
    pub(crate) role: Option<RoleTag>,
    /// It follows this agent.
    pub(crate) follows: bool,
    /// Its admin shuts it down.
    pub(crate) leaving: bool,
    pub(crate) state: HostState,
    pub(crate) why: String,
    pinging: bool,
    ping_answered: Option<Instant>,
    /// The datastores on which its heartbeat was seen when its silence began; none: it is not silent.
    wrote_on: Option<BTreeSet<DatastoreId>>,
    /// The last ping that ended: when it was sent is not needed, only what it found.
    last_ping: Option<PingOutcome>,
    pub(crate) report: Option<Reported>,
    /// Its report counts: it is connected.
    pub(crate) counted: bool,
    /// A report of it was lost: what came since says nothing.
    pub(crate) report_missing: bool,
    /// When a whole report was last asked for.
    pub(crate) report_asked: Option<Instant>,
    /// The newest of its powered-on lists, and who wrote it when.
    poweron: Option<(Stamp, PoweronRecord)>,
    /// The newest format version that its agent understands, once that was seen.
    pub(crate) understands: Option<u16>,
    /// What it last said of itself.
    pub(crate) facts: Option<Facts>,
    /// It has another version of the configuration since then.
    pub(crate) behind_since: Option<Instant>,
    /// Its clock against this host's.
    pub(crate) drift: Drift,
}

impl Peer {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            heard: None,
            listened_since: now,
            instance: None,
            role: None,
            follows: false,
            leaving: false,
            state: HostState::Live,
            why: String::from("nothing was heard of it yet"),
            pinging: false,
            ping_answered: None,
            wrote_on: None,
            last_ping: None,
            report: None,
            counted: false,
            report_missing: false,
            report_asked: None,
            poweron: None,
            understands: None,
            facts: None,
            behind_since: None,
            drift: Drift::default(),
        }
    }

    /// Connected: it follows this primary and its heartbeats come. A host in maintenance is company too,
    /// and what it reports counts; only placement passes it over.
    pub(crate) fn connected(&self) -> bool {
        let judged = matches!(self.state, HostState::Live | HostState::Maintenance);
        self.follows && judged && self.heard.is_some()
    }

    /// The last ping that ended was answered, or none has ended.
    pub(crate) fn answers_pings(&self) -> bool {
        self.last_ping != Some(PingOutcome::NoAnswer)
    }

    /// When a ping of it was last answered.
    pub(crate) fn ping_answered_at(&self) -> Option<Instant> {
        self.ping_answered
    }

    /// The last ping that ended was answered.
    pub(crate) fn ping_answered_last(&self) -> bool {
        self.last_ping == Some(PingOutcome::Answered)
    }

    /// The moment at which the first missing heartbeat was due.
    pub(crate) fn silent_from(&self, interval: Duration) -> Instant {
        self.heard
            .map_or(self.listened_since, |h| h.max(self.listened_since))
            + interval
    }
}

/// Which hosts are to be judged with each input: all whose heartbeats do not come, or have not been
/// judged to. The others are judged once in each heartbeat interval, and when their silence could have
/// lasted for long enough.
#[derive(Clone, Debug, Default)]
pub(crate) struct Judging {
    unsettled: BTreeSet<HostId>,
    /// Nothing changes before then about the hosts that are settled; none: all are to be judged.
    until: Option<Instant>,
}

impl Judging {
    /// All hosts are judged with the next input.
    pub(crate) fn begin_again(&mut self) {
        self.until = None;
    }
}

/// What the datastores say of a silent host.
enum DatastoreSign {
    /// It has no heartbeat datastores.
    None,
    /// Its heartbeat changed.
    Alive(DatastoreId),
    /// It stood still on one that it should have been written on, and changed on none.
    Still,
    /// None could be read for long enough.
    Unknown,
}

impl Agent {
    pub(crate) fn note_heard(&mut self, from: &HostId) {
        let now = self.now;
        if let Some(peer) = self.peers.get_mut(from) {
            peer.heard = Some(now);
        }
    }

    pub(crate) fn note_instance(&mut self, from: &HostId, instance: InstanceId) {
        let Some(peer) = self.peers.get_mut(from) else {
            return;
        };
        if peer.instance != Some(instance) {
            peer.instance = Some(instance);
            peer.leaving = false;
            peer.facts = None;
            peer.behind_since = None;
            // A new agent counts its reports from the beginning.
            self.drop_report(from);
        }
    }

    pub(crate) fn note_follower(&mut self, from: &HostId, role: RoleTag, primary: Option<HostId>) {
        let (me, leads) = (self.me.host.clone(), self.role.is_primary());
        if let Some(peer) = self.peers.get_mut(from) {
            peer.role = Some(role);
            peer.follows = leads && primary.as_ref() == Some(&me);
        }
        self.note_connection(from);
    }

    /// A host says that its admin shuts it down.
    pub(crate) fn on_leaving(&mut self, from: &HostId) {
        if let Some(peer) = self.peers.get_mut(from) {
            peer.leaving = true;
        }
    }

    /// A new primary judges from what was seen before, and of hosts that it did not listen to from now on.
    pub(crate) fn begin_watch(&mut self) {
        for peer in self.peers.values_mut() {
            peer.state = HostState::Live;
            peer.follows = false;
            peer.why = String::from("this primary has just been elected");
        }
        self.judging.begin_again();
        let hosts: Vec<HostId> = self.peers.keys().cloned().collect();
        for host in hosts {
            self.drop_report(&host);
        }
    }

    /// This agent is the primary no more: nobody follows it, and what was reported to it says nothing of now.
    pub(crate) fn end_watch(&mut self) {
        let hosts: Vec<HostId> = self.peers.keys().cloned().collect();
        for host in hosts {
            if let Some(peer) = self.peers.get_mut(&host) {
                peer.follows = false;
                peer.poweron = None;
            }
            self.drop_report(&host);
        }
    }

    /// Some host follows this primary.
    pub(crate) fn has_company(&self) -> bool {
        self.peers.values().any(Peer::connected)
    }

    /// Pings hosts that are silent, and follows how long this primary has been alone.
    pub(crate) fn ping_silent(&mut self) {
        if self.role.is_secondary() {
            return;
        }
        let (now, interval, from) = (
            self.now,
            self.timing().network_heartbeat,
            self.timing().unreachable,
        );
        let mut targets: Vec<HostId> = Vec::new();
        for (host, peer) in &mut self.peers {
            if now >= peer.silent_from(interval) + from && !peer.pinging {
                peer.pinging = true;
                targets.push(host.clone());
            }
        }
        for host in targets {
            self.ping(PingTarget::Host(host));
        }
        if self.has_company() {
            self.alone_since = None;
        } else if self.alone_since.is_none() {
            self.alone_since = Some(now);
        }
    }

    pub(crate) fn on_ping(&mut self, target: PingTarget, issued: Instant, outcome: PingOutcome) {
        let now = self.now;
        let host = match target {
            PingTarget::Host(host) => host,
            PingTarget::Isolation(index) => {
                self.on_isolation_ping(index, issued, outcome);
                return;
            }
        };
        if let Some(peer) = self.peers.get_mut(&host) {
            peer.pinging = false;
            peer.last_ping = Some(outcome);
            if outcome == PingOutcome::Answered {
                peer.ping_answered = Some(now);
            }
        }
    }

    pub(crate) fn verdict_due(&self) -> Option<Instant> {
        if !self.role.is_primary() {
            return None;
        }
        let t = self.timing();
        let thresholds = [t.unreachable, t.dead_without_datastores, t.dead];
        let unsettled = self.judging.unsettled.iter();
        unsettled
            .filter_map(|host| self.peers.get(host))
            .flat_map(|p| thresholds.map(|d| p.silent_from(t.network_heartbeat) + d))
            .chain(self.judging.until)
            .filter(|at| *at > self.now)
            .min()
    }

    pub(crate) fn judge_hosts(&mut self) {
        if !self.role.is_primary() {
            return;
        }
        let (now, t) = (self.now, self.timing());
        let quiet = t.network_heartbeat + t.unreachable;
        if self.judging.until.is_none_or(|until| now >= until) {
            self.judging.unsettled = self.peers.keys().cloned().collect();
            self.judging.until = Some(now + quiet);
        }
        let hosts: Vec<HostId> = self.judging.unsettled.iter().cloned().collect();
        for host in hosts {
            self.note_writing(&host);
            let Some((state, why)) = self.verdict(&host) else {
                continue;
            };
            let silent = self.is_silent(&host);
            let comes = state == HostState::Live || state == HostState::Maintenance && !silent;
            if comes {
                self.settle(&host);
            }
            let Some(peer) = self.peers.get_mut(&host) else {
                continue;
            };
            let from = core::mem::replace(&mut peer.state, state);
            peer.why.clone_from(&why);
            let lost = !comes && peer.follows;
            if lost {
                peer.follows = false;
            }
            if from != state || lost {
                if comes {
                    peer.poweron = None;
                }
                self.note_connection(&host);
            }
            if from != state {
                self.begin_put_off_again();
                let observer = self.me.host.clone();
                self.emit(
                    EventKind::HostState {
                        observer,
                        host,
                        from,
                        to: state,
                    },
                    why,
                );
            }
        }
    }

    /// The host's heartbeats come: nothing changes about it until they could be missed for long enough.
    fn settle(&mut self, host: &HostId) {
        let t = self.timing();
        let (interval, unreachable) = (t.network_heartbeat, t.unreachable);
        let Some(peer) = self.peers.get(host) else {
            return;
        };
        let at = peer.silent_from(interval) + unreachable;
        self.judging.until = Some(self.judging.until.map_or(at, |until| until.min(at)));
        self.judging.unsettled.remove(host);
    }

    /// Remembers, once in each silence, on which datastores the host was writing its heartbeat. Later it
    /// may write elsewhere, as a candidate does, and end that again while it lives.
    fn note_writing(&mut self, host: &HostId) {
        let t = self.timing();
        let (interval, look, lately) = (t.network_heartbeat, t.look_datastore, t.r#break);
        let Some(peer) = self.peers.get(host) else {
            return;
        };
        let from = peer.silent_from(interval);
        let silent = self.now >= from + look;
        if silent == peer.wrote_on.is_some() {
            return;
        }
        let then = from - lately..=from + look;
        let wrote = |s: &Store| {
            let window = s.windows.get(host);
            window
                .and_then(Window::changed)
                .is_some_and(|at| then.contains(&at))
        };
        let stores = self.stores.iter().filter(|(_, s)| wrote(s));
        let wrote_on = silent.then(|| stores.map(|(d, _)| d.clone()).collect());
        if let Some(peer) = self.peers.get_mut(host) {
            peer.wrote_on = wrote_on;
        }
    }

    /// Nothing was heard of it for so long that it is no company.
    fn is_silent(&self, host: &HostId) -> bool {
        let t = self.timing();
        self.peers
            .get(host)
            .is_none_or(|p| self.now >= p.silent_from(t.network_heartbeat) + t.unreachable)
    }

    /// The verdict about a host now; none: as before.
    fn verdict(&self, host: &HostId) -> Option<(HostState, String)> {
        let peer = self.peers.get(host)?;
        let t = self.timing();
        let silent_from = peer.silent_from(t.network_heartbeat);
        if self.config.hosts.get(host).is_some_and(|h| h.maintenance) {
            let why = if self.is_silent(host) {
                let silence = self.now.since(silent_from).as_millis();
                format!("it is in maintenance, and no network heartbeat came for {silence} ms")
            } else {
                String::from("it is in maintenance")
            };
            return Some((HostState::Maintenance, why));
        }
        if self.is_off(host) {
            return Some((
                HostState::Dead,
                String::from("its fence device calls it off, and nothing was heard of it since"),
            ));
        }
        if self.now < silent_from + t.unreachable {
            // Before the time is up nothing is decided; after a heartbeat came the host is live.
            let came = peer.heard.is_some_and(|h| h >= peer.listened_since);
            return came.then(|| (HostState::Live, String::from("its network heartbeats come")));
        }
        let silence = self.now.since(silent_from).as_millis();
        let unreachable = |why: String| {
            Some((
                HostState::Unreachable,
                format!("no network heartbeat for {silence} ms; {why}"),
            ))
        };
        let sign = self.datastore_sign(host, silent_from);
        let decided = match &sign {
            DatastoreSign::Alive(_) | DatastoreSign::None => t.dead_without_datastores,
            DatastoreSign::Still | DatastoreSign::Unknown => t.dead,
        };
        if self.now < silent_from + decided {
            // A verdict that was reached before stays until there is another reason.
            let undecided = matches!(
                peer.state,
                HostState::Live | HostState::Unreachable | HostState::Maintenance
            );
            return if undecided {
                unreachable(String::from("it is pinged"))
            } else {
                None
            };
        }
        match sign {
            DatastoreSign::Alive(datastore) => {
                let list = peer.poweron.as_ref();
                let isolated = list.is_some_and(|(_, p)| p.flags.isolated);
                let state = if isolated {
                    HostState::Isolated
                } else {
                    HostState::Partitioned
                };
                Some((
                    state,
                    format!(
                        "no network heartbeat for {silence} ms, but its heartbeat on {datastore} goes on"
                    ),
                ))
            }
            DatastoreSign::Unknown => unreachable(String::from(
                "its datastore heartbeats cannot be read, which says nothing of it",
            )),
            DatastoreSign::Still | DatastoreSign::None => {
                self.verdict_by_ping(peer, silence, &sign)
            }
        }
    }

    fn verdict_by_ping(
        &self,
        peer: &Peer,
        silence: u128,
        sign: &DatastoreSign,
    ) -> Option<(HostState, String)> {
        let t = self.timing();
        let datastores = match sign {
            DatastoreSign::None => "no heartbeat datastores are configured",
            _ => "its datastore heartbeats stand still",
        };
        let lately = t.dead.saturating_sub(t.unreachable);
        let answered = peer
            .ping_answered
            .is_some_and(|at| self.now.since(at) < lately);
        if answered {
            let why = format!(
                "no network heartbeat for {silence} ms, {datastores}, but it answers pings: its agent is gone or stuck"
            );
            return Some((HostState::AgentUnreachable, why));
        }
        match peer.last_ping {
            Some(PingOutcome::NoAnswer) => Some((
                HostState::Dead,
                format!("no network heartbeat for {silence} ms, no ping is answered, {datastores}"),
            )),
            // An answer that is too old to count, while the next ping is out: wait for it.
            Some(PingOutcome::Answered) | None => None,
            Some(PingOutcome::CannotProbe) => {
                let why = format!(
                    "no network heartbeat for {silence} ms, {datastores}, but it cannot be pinged from here, which says nothing of it"
                );
                Some((HostState::Unreachable, why))
            }
        }
    }

    fn datastore_sign(&self, host: &HostId, silent_from: Instant) -> DatastoreSign {
        let t = self.timing();
        let chosen = self.topology.heartbeat_datastores(host);
        if chosen.is_empty() {
            return DatastoreSign::None;
        }
        let wrote_on = self.peers.get(host).and_then(|p| p.wrote_on.as_ref());
        let look = silent_from + t.look_datastore;
        let lately = t.dead.saturating_sub(t.look_datastore);
        let since = if self.now.since(look) > lately {
            self.now - lately
        } else {
            look
        };
        let mut still = false;
        for (datastore, store) in &self.stores {
            let Some(window) = store.windows.get(host) else {
                continue;
            };
            if window.changed().is_some_and(|at| at > since) {
                return DatastoreSign::Alive(datastore.clone());
            }
            // Where it writes none, a heartbeat that stands still says nothing.
            let writes =
                chosen.contains(datastore) || wrote_on.is_some_and(|on| on.contains(datastore));
            still |= writes && window.length() > t.r#break;
        }
        if still {
            DatastoreSign::Still
        } else {
            DatastoreSign::Unknown
        }
    }

    /// The verdict is still to come, and nothing speaks against death: no message, no answer to a ping, and a
    /// datastore heartbeat that stands still where it was written, read at least twice.
    pub(crate) fn looks_dead(&self, host: &HostId) -> bool {
        let t = self.timing();
        let Some(peer) = self.peers.get(host) else {
            return false;
        };
        let silent_from = peer.silent_from(t.network_heartbeat);
        if self.now < silent_from + t.unreachable
            || peer.last_ping != Some(PingOutcome::NoAnswer)
            || matches!(
                self.datastore_sign(host, silent_from),
                DatastoreSign::Alive(_)
            )
        {
            return false;
        }
        let chosen = self.topology.heartbeat_datastores(host);
        let stands = |(datastore, store): (&DatastoreId, &Store)| {
            let writes = chosen.contains(datastore)
                || peer
                    .wrote_on
                    .as_ref()
                    .is_some_and(|on| on.contains(datastore));
            let window = store.windows.get(host);
            writes && window.is_some_and(|w| w.length() > 2 * t.datastore_heartbeat)
        };
        self.stores.iter().any(stands)
    }

    /// A state's name as events show it.
    pub(crate) fn state_name(state: HostState) -> String {
        match state {
            HostState::Live => "live",
            HostState::Unreachable => "unreachable",
            HostState::Dead => "dead",
            HostState::Partitioned => "partitioned",
            HostState::Isolated => "isolated",
            HostState::AgentUnreachable => "agent_unreachable",
            HostState::Maintenance => "maintenance",
        }
        .to_string()
    }
}
