//! This host's heartbeat on a datastore: does what is there come from this machine, or from another one that has
//! its id?
//!
//! A cloned machine has the same host id and another boot. To the core a lock that names this host in another boot
//! is one that is left of a boot which is over, and may be given back at once. So nothing is written in this
//! host's name while another machine writes its heartbeat: what another boot left there is taken over when it
//! stood still for the `break` that it names, as any other host would have to wait.

use mainstay_core::id::{BootId, DatastoreId, HostId};
use mainstay_core::wire::HeartbeatRecord;
use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// What a host that was lost is trusted to be after at the latest: the longest `break`.
const STRANGER_PATIENCE: Duration = Duration::from_secs(60);

/// Own heartbeats that are known by their bytes: what was tried before may still land.
const KEPT: usize = 8;

/// What this process knows of its host's heartbeat.
#[derive(Debug, Default)]
pub(crate) struct OwnHeartbeat {
    boot: Option<BootId>,
    /// What it wrote last, and what it tried to write since, without the zeroes at the end.
    written: Vec<Vec<u8>>,
    stranger: Option<Stranger>,
    /// Another boot's heartbeat changed while it was looked at: another machine lives.
    is_cloned: bool,
    /// The last look found it to be this host's own.
    is_known: bool,
    /// When the newest renewal that was performed was issued, in time since boot, suspended time included.
    renewed: Option<Duration>,
}

/// What another boot wrote.
#[derive(Debug)]
struct Stranger {
    bytes: Vec<u8>,
    since: Instant,
    /// It stood still for long enough.
    is_over: bool,
}

/// Time since boot, suspended time included. Without that clock: none, and nothing is taken for recent.
pub(crate) fn now() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_BOOTTIME).ok().map(Into::into)
}

/// A record without the zeroes that fill its sector or its block.
fn trimmed(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != 0);
    bytes.get(..end.map_or(0, |end| end + 1)).unwrap_or(bytes)
}

impl OwnHeartbeat {
    /// Must what is there be read before a renewal? Not while renewals went on without a gap of `freeze`, which is
    /// shorter than the time for which anyone else would have watched: then the agent's own looks show enough.
    pub(crate) fn needs_look(&self, freeze: Duration) -> bool {
        let recent = self.renewed.zip(now());
        let is_recent = recent.is_some_and(|(at, now)| now.saturating_sub(at) < freeze);
        !self.is_known || !is_recent
    }

    /// Before a renewal: may what is there be written over?
    pub(crate) fn may_renew(&mut self, cluster: u64, boot: BootId, there: &[u8]) -> bool {
        self.boot = Some(boot);
        self.is_known = self.is_ours(cluster, boot, there);
        self.is_known
    }

    /// What is there, as the agent read it for another purpose.
    pub(crate) fn saw(&mut self, cluster: u64, there: &[u8]) {
        if let Some(boot) = self.boot
            && !self.is_ours(cluster, boot, there)
        {
            self.is_known = false;
        }
    }

    /// A renewal with these bytes begins.
    pub(crate) fn writes(&mut self, bytes: &[u8]) {
        self.written.push(trimmed(bytes).to_vec());
    }

    /// One that was issued at `issued` was performed.
    pub(crate) fn wrote(&mut self, issued: Option<Duration>) {
        let gone = self.written.len().saturating_sub(KEPT);
        self.written.drain(..gone);
        self.renewed = issued;
    }

    /// The last look found that this machine alone has this host's id.
    pub(crate) fn is_known(&self) -> bool {
        self.is_known && !self.has_stranger()
    }

    /// Another machine may be writing in this host's name.
    pub(crate) fn has_stranger(&self) -> bool {
        self.stranger.as_ref().is_some_and(|other| !other.is_over)
    }

    /// What a person must do about another machine that lives, if there is one.
    pub(crate) fn weakness(&self, datastore: &DatastoreId, host: &HostId) -> Option<String> {
        self.is_cloned.then(|| {
            format!(
                "datastore \"{datastore}\": another machine writes heartbeats as {host}, so that this one takes no lock there; \
                 give one of the two another host id in its agent.toml, and add it to the cluster under that"
            )
        })
    }

    /// Does what is there come from this host in this boot, or is it over?
    pub(crate) fn is_ours(&mut self, cluster: u64, boot: BootId, there: &[u8]) -> bool {
        let there = trimmed(there);
        let is_own = self.written.iter().any(|own| own == there);
        let still = match HeartbeatRecord::decode(cluster, there) {
            _ if is_own => None,
            // An agent of this boot; or nobody yet.
            Ok((stamp, _)) if stamp.boot == boot => None,
            Ok((stamp, _)) if stamp.boot == BootId(0) && self.written.is_empty() => None,
            Ok((_, record)) => Some(record.r#break.min(STRANGER_PATIENCE)),
            // Damaged: nobody's sign of life, and nobody else would renew it.
            Err(_) => None,
        };
        let Some(still) = still else {
            self.stranger = None;
            self.is_cloned = false;
            return true;
        };
        match &mut self.stranger {
            Some(known) if known.bytes == there => {
                known.is_over |= known.since.elapsed() > still;
                if known.is_over {
                    self.is_cloned = false;
                }
                known.is_over
            }
            known => {
                self.is_cloned = known.is_some() || !self.written.is_empty();
                *known = Some(Stranger {
                    bytes: there.to_vec(),
                    since: Instant::now(),
                    is_over: false,
                });
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_core::id::InstanceId;
    use mainstay_core::wire::Stamp;

    const CLUSTER: u64 = 7;

    fn beat(boot: u64, seq: u64, r#break: Duration) -> Vec<u8> {
        let stamp = Stamp {
            writer: HostId::new("host-1").expect("id"),
            boot: BootId(boot),
            instance: InstanceId(1),
            seq,
        };
        let freeze = r#break / 2;
        let mut bytes = HeartbeatRecord { freeze, r#break }.encode(CLUSTER, &stamp);
        bytes.resize(4096, 0);
        bytes
    }

    const SHORT: Duration = Duration::from_millis(2);
    const LONG: Duration = Duration::from_secs(50);

    #[test]
    fn what_this_boot_or_nobody_wrote_is_written_over_at_once() {
        for boot in [0, 5] {
            let mut own = OwnHeartbeat::default();
            assert!(own.may_renew(CLUSTER, BootId(5), &beat(boot, 1, LONG)));
            assert!(own.is_known() && !own.has_stranger());
        }
        let damaged = vec![1; 512];
        assert!(OwnHeartbeat::default().may_renew(CLUSTER, BootId(5), &damaged));
    }

    #[test]
    fn what_another_boot_wrote_must_have_stood_still_for_its_break() {
        let mut own = OwnHeartbeat::default();
        assert!(!own.may_renew(CLUSTER, BootId(5), &beat(4, 1, LONG)));
        assert!(!own.may_renew(CLUSTER, BootId(5), &beat(4, 1, LONG)));
        assert!(own.has_stranger());
        let ids = (
            DatastoreId::new("ds-1").expect("id"),
            HostId::new("host-1").expect("id"),
        );
        assert_eq!(own.weakness(&ids.0, &ids.1), None, "it may be over");
        assert!(!own.may_renew(CLUSTER, BootId(5), &beat(4, 2, SHORT)));
        let said = own.weakness(&ids.0, &ids.1).expect("another machine lives");
        assert!(said.contains("another host id"), "{said}");
        let until = Instant::now() + Duration::from_secs(20);
        while !own.may_renew(CLUSTER, BootId(5), &beat(4, 2, SHORT)) {
            assert!(Instant::now() < until, "it stands still");
        }
        assert_eq!(own.weakness(&ids.0, &ids.1), None);
    }

    #[test]
    fn a_machine_whose_heartbeat_was_written_over_knows_it() {
        let mut own = OwnHeartbeat::default();
        assert!(own.may_renew(CLUSTER, BootId(5), &beat(0, 0, LONG)));
        own.writes(&beat(5, 1, LONG));
        own.wrote(now());
        assert!(own.may_renew(CLUSTER, BootId(5), &beat(5, 1, LONG)));
        assert!(!own.may_renew(CLUSTER, BootId(5), &beat(9, 1, LONG)));
        assert!(!own.is_known() && own.has_stranger());
        let restored = beat(0, 0, LONG);
        let mut own = OwnHeartbeat::default();
        own.writes(&beat(5, 1, LONG));
        assert!(
            !own.may_renew(CLUSTER, BootId(5), &restored),
            "a snapshot from before the first heartbeat"
        );
    }

    #[test]
    fn renewals_without_a_gap_need_no_look_of_their_own() {
        let mut own = OwnHeartbeat::default();
        assert!(own.needs_look(LONG));
        assert!(own.may_renew(CLUSTER, BootId(5), &beat(0, 0, LONG)));
        assert!(own.needs_look(LONG), "none was performed yet");
        own.writes(&beat(5, 1, LONG));
        own.wrote(now());
        assert!(!own.needs_look(LONG));
        assert!(own.needs_look(Duration::ZERO), "after a gap");
        own.saw(CLUSTER, &beat(5, 1, LONG));
        assert!(!own.needs_look(LONG));
        own.saw(CLUSTER, &beat(9, 1, LONG));
        assert!(own.needs_look(LONG), "another machine was seen");
    }
}
