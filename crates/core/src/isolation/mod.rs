//! Is this host cut off, and what becomes of its VMs then.
//!
//! ```text
//!               nobody is heard           no address answers for long enough
//!   connected ─────────────────▶ alone ─────────────────────────────────────▶ isolated ──▶ response
//!       ▲                          │ a heartbeat, election traffic                │       (`response`)
//!       └──────────────────────────┴──────────────────────────────────────────────┘ or one answered ping
//! ```
//! A host is isolated when it hears no heartbeat, no election traffic, and none of its isolation
//! addresses answers (seed "vSphere 5.0 High Availability (HA)", "Isolated vs Partitioned"). A ping that
//! could not be sent is no silence: a host that cannot ping never calls itself isolated. The addresses
//! are pinged all the time, slowly while all is well, so that a wrong one is known before it is needed.

mod response;

pub(crate) use response::Asked;

use crate::agent::{Agent, Pending};
use crate::event::{EventKind, IssueCause};
use crate::id::VmId;
use crate::io::{PingOutcome, PingTarget};
use crate::time::{Duration, Instant};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Checks in a row without an answer after which an address is reported, while others are heard.
const SILENT_CHECKS: u32 = 3;

/// One isolation address.
#[derive(Clone, Debug)]
struct Address {
    name: String,
    pinging: bool,
    next: Instant,
    answered: Option<Instant>,
    /// The last ping that ended: when it was sent, and what it found.
    last: Option<(Instant, PingOutcome)>,
    silent_checks: u32,
}

/// Nobody is heard.
#[derive(Clone, Copy, Debug)]
struct Alone {
    /// The first heartbeat that is missing from the last host that was heard.
    from: Instant,
    /// This host was the primary when it fell silent around it.
    was_primary: bool,
}

/// What this host knows of its own isolation.
#[derive(Clone, Debug)]
pub(crate) struct Isolation {
    addresses: Vec<Address>,
    last_heard: Instant,
    alone: Option<Alone>,
    /// Isolated since then.
    declared: Option<Instant>,
    /// When VMs are looked at again.
    next_round: Instant,
    /// Why nothing was done about a VM, as it was last said.
    said: BTreeMap<VmId, String>,
}

impl Isolation {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            addresses: Vec::new(),
            last_heard: now,
            alone: None,
            declared: None,
            next_round: now,
            said: BTreeMap::new(),
        }
    }

    /// This host has declared itself isolated.
    pub(crate) fn is_declared(&self) -> bool {
        self.declared.is_some()
    }

    /// This agent was stopped until now and must listen before it concludes anything.
    pub(crate) fn note_gap(&mut self, now: Instant, interval: Duration) {
        self.last_heard = now;
        self.alone = None;
        self.next_round = self.next_round.max(now + 2 * interval);
    }

    /// When an isolation address last answered.
    pub(crate) fn answered(&self) -> Option<Instant> {
        self.addresses.iter().filter_map(|a| a.answered).max()
    }
}

impl Agent {
    /// Names the isolation addresses, for messages; [`PingTarget::Isolation`] counts in this list. At
    /// most eleven: the gateways of the management networks, and up to ten more. What is known of an
    /// address that was there before is kept; pings that are under way count no more, because they may
    /// be of another address now.
    pub fn set_isolation_addresses(&mut self, names: Vec<String>) {
        let now = self.now;
        let of_isolation = |pending: &Pending| {
            matches!(
                pending,
                Pending::Ping {
                    target: PingTarget::Isolation(_),
                    ..
                }
            )
        };
        self.pending.retain(|_, pending| !of_isolation(pending));
        let known = core::mem::take(&mut self.isolation.addresses);
        for old in known.iter().filter(|a| !names.contains(&a.name)) {
            self.withdraw(IssueCause::IsolationAddressSilent, &old.name);
            self.withdraw(IssueCause::CannotProbe, &old.name);
        }
        self.isolation.addresses = names
            .into_iter()
            .map(|name| {
                let same = known.iter().find(|a| a.name == name);
                Address {
                    pinging: false,
                    next: now,
                    answered: same.and_then(|a| a.answered),
                    last: same.and_then(|a| a.last),
                    silent_checks: same.map_or(0, |a| a.silent_checks),
                    name,
                }
            })
            .collect();
        if self.isolation.addresses.is_empty() {
            self.issue(IssueCause::NoIsolationAddress, "", String::from(
                "this host has no isolation address, so that it never knows that it is cut off; add isolation_addresses",
            ));
        } else {
            self.withdraw(IssueCause::NoIsolationAddress, "");
        }
    }

    /// Something came from another host: this one is not isolated.
    pub(crate) fn note_company(&mut self) {
        self.isolation.last_heard = self.now;
        self.isolation.alone = None;
        self.end_isolation("another host is heard");
    }

    pub(crate) fn isolation_due(&self) -> Option<Instant> {
        let i = &self.isolation;
        let round = i.declared.is_some().then_some(i.next_round);
        let declares = i.declared.is_none().then(|| self.declares_at()).flatten();
        let quiet = i
            .alone
            .is_none()
            .then_some(i.last_heard + self.timing().network_heartbeat);
        [round, declares, quiet, self.asked_due()]
            .into_iter()
            .flatten()
            .filter(|at| *at > self.now)
            .min()
    }

    /// Pings the isolation addresses that are due: at each heartbeat while nobody is heard or this host
    /// is a primary without company, else slowly.
    pub(crate) fn ping_isolation_addresses(&mut self) {
        let now = self.now;
        let lonely = !self.role.is_secondary() && !self.has_company();
        let pace = if lonely || self.isolation.alone.is_some() {
            self.timing().network_heartbeat
        } else {
            self.config.settings.isolation_check_interval
        };
        let mut due = Vec::new();
        for (index, address) in self.isolation.addresses.iter_mut().enumerate() {
            // A slow plan made in good times does not bind in bad ones.
            address.next = address.next.min(now + pace);
            if !address.pinging
                && now + self.config.settings.timing.network_heartbeat > address.next
            {
                address.pinging = true;
                address.next = now + pace;
                due.push(index);
            }
        }
        for index in due {
            self.ping(PingTarget::Isolation(index));
        }
    }

    pub(crate) fn on_isolation_ping(
        &mut self,
        index: usize,
        issued: Instant,
        outcome: PingOutcome,
    ) {
        let now = self.now;
        let alone = self.isolation.alone.is_some();
        let Some(address) = self.isolation.addresses.get_mut(index) else {
            return;
        };
        address.pinging = false;
        address.last = Some((issued, outcome));
        let name = address.name.clone();
        if outcome != PingOutcome::CannotProbe {
            self.withdraw(IssueCause::CannotProbe, &name);
        }
        let Some(address) = self.isolation.addresses.get_mut(index) else {
            return;
        };
        match outcome {
            PingOutcome::Answered => {
                address.answered = Some(now);
                address.silent_checks = 0;
                self.withdraw(IssueCause::IsolationAddressSilent, &name);
                self.end_isolation(&format!("{name} answers"));
            }
            PingOutcome::NoAnswer if alone => {}
            PingOutcome::NoAnswer => {
                address.silent_checks += 1;
                if address.silent_checks == SILENT_CHECKS {
                    self.issue(IssueCause::IsolationAddressSilent, &name, silent_address(&name));
                }
            }
            PingOutcome::CannotProbe => self.issue(IssueCause::CannotProbe, &name, format!(
                "the isolation address {name} cannot be pinged from this host, so that isolation is not noticed by it; give the agent CAP_NET_RAW or a ping_group_range that has its group, or name a TCP address"
            )),
        }
    }

    /// Follows silence, declares isolation, and carries the response out.
    pub(crate) fn run_isolation(&mut self) {
        self.note_silence();
        if self.isolation.declared.is_none()
            && let Some(why) = self.is_isolated()
        {
            self.declare_isolation(why);
        }
        self.run_response();
    }

    fn note_silence(&mut self) {
        let from = self.isolation.last_heard + self.timing().network_heartbeat;
        if self.isolation.alone.is_none() && self.now >= from && !self.peers.is_empty() {
            let was_primary = self.role.is_primary();
            self.isolation.alone = Some(Alone { from, was_primary });
        }
    }

    /// From when pings count, and for how long none may be answered.
    fn patience(&self, alone: Alone) -> (Instant, Duration) {
        let t = self.timing();
        if alone.was_primary {
            (alone.from, t.primary_isolation_declare)
        } else {
            let span = t.isolation_declare.saturating_sub(t.isolation_ping);
            (alone.from + t.isolation_ping, span)
        }
    }

    fn declares_at(&self) -> Option<Instant> {
        let (from, span) = self.patience(self.isolation.alone?);
        let from = self.isolation.answered().map_or(from, |a| a.max(from));
        Some(from + span)
    }

    /// Why this host is isolated now, if it is.
    fn is_isolated(&self) -> Option<String> {
        let alone = self.isolation.alone?;
        if self.role.is_secondary() || self.now < self.declares_at()? {
            return None;
        }
        let (from, _) = self.patience(alone);
        let from = self.isolation.answered().map_or(from, |a| a.max(from));
        let mut silent: Vec<&str> = Vec::new();
        for address in &self.isolation.addresses {
            match address.last {
                Some((issued, PingOutcome::NoAnswer)) if issued >= from => {
                    silent.push(&address.name);
                }
                Some((issued, PingOutcome::CannotProbe)) if issued >= from => {}
                // An answer is still possible.
                _ => return None,
            }
        }
        let silence = self.now.since(alone.from).as_millis();
        (!silent.is_empty()).then(|| {
            format!(
                "no heartbeat and no election traffic for {silence} ms, and no answer from {}",
                silent.join(", ")
            )
        })
    }

    fn declare_isolation(&mut self, why: String) {
        let now = self.now;
        self.isolation.declared = Some(now);
        self.isolation.next_round =
            (now + self.timing().isolation_policy_delay).max(self.owner_has_noticed());
        self.isolation.said.clear();
        let host = self.me.host.clone();
        self.emit(EventKind::IsolationDeclared { host }, why);
        // The flag goes to the datastores, where a primary reads it.
        self.want_poweron_list();
        self.give_up_ownership("this host is isolated", true);
        self.restarts.clear();
    }

    /// When an owner for which the addresses fell silent at the same moment has declared itself isolated and
    /// given its locks up. Where answers came after the silence of the hosts had begun, its patience may
    /// end later than this host's; it would seem to own datastores on which it restarts nothing.
    fn owner_has_noticed(&self) -> Instant {
        let t = self.timing();
        let alone = self.isolation.alone.map(|a| a.from);
        let answered = self.isolation.answered().filter(|a| Some(*a) > alone);
        answered.map_or(self.now, |answered| {
            answered + t.primary_isolation_declare + 2 * t.network_heartbeat
        })
    }

    fn end_isolation(&mut self, why: &str) {
        if self.isolation.declared.take().is_none() {
            return;
        }
        let host = self.me.host.clone();
        self.emit(EventKind::IsolationEnded { host }, why.to_string());
        self.stop_responding();
        self.want_poweron_list();
    }
}

fn silent_address(name: &str) -> String {
    format!(
        "the isolation address {name} does not answer though other hosts are heard; a host that is cut off could take itself for isolated: correct isolation_addresses, or let the address answer"
    )
}
