//! When heartbeats are read again, and what their windows prove.

use super::*;
use crate::id::{BootId, InstanceId};
use crate::io::Output;
use crate::testing::{datastore, primary};
use crate::wire::Stamp;

/// The agent of host-1, which watches host-2; milliseconds are counted from its start.
struct Observer {
    agent: Agent,
    start: Instant,
}

impl Observer {
    fn new() -> Self {
        let mut agent = primary(Vec::new());
        while agent.poll_output().is_some() {}
        let start = agent.now;
        Self { agent, start }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    /// The hosts whose heartbeats are read, if any are due then.
    fn polls(&mut self, ms: u64) -> Vec<&'static str> {
        self.agent.now = self.at(ms);
        let interval = self.agent.timing().datastore_heartbeat;
        self.agent.observe(&datastore(), interval);
        let mut read = Vec::new();
        while let Some(output) = self.agent.poll_output() {
            if let Output::Storage(_, _, StorageRequest::Read(RecordKey::Heartbeat(host))) = output
            {
                read.push(if host.as_str() == "host-1" {
                    "own"
                } else {
                    "other"
                });
            }
        }
        read
    }

    /// A reading ends that was issued then. The other's heartbeat never changes.
    fn ends(&mut self, what: &str, issued: u64, ms: u64) {
        self.agent.now = self.at(ms);
        let (host, seq) = match what {
            "own" => ("host-1", ms),
            _ => ("host-2", 1),
        };
        let stamp = Stamp {
            writer: HostId::new(host).expect("id"),
            boot: BootId(1),
            instance: InstanceId(1),
            seq,
        };
        let (freeze, r#break) = self.agent.constants();
        let bytes = HeartbeatRecord { freeze, r#break }.encode(1, &stamp);
        let outcome = StorageOutcome::Ok(StorageValue::Bytes(bytes));
        let issued = self.at(issued);
        if what == "own" {
            // It shows what was written last.
            let store = self.agent.stores.get_mut(&datastore()).expect("mounted");
            store.writes.push_back((seq, issued));
        }
        self.agent
            .on_observed(&datastore(), &stamp.writer, issued, &outcome);
    }

    /// The other's heartbeat has been there since 2 ms, so that 4,503 ms are enough; and both are being read since
    /// 4,500 ms, as one more of the usual times.
    fn just_before_it_is_enough() -> Self {
        let mut observer = Self::new();
        assert_eq!(observer.polls(0), ["own", "other"]);
        observer.ends("own", 0, 2);
        observer.ends("other", 0, 2);
        assert_eq!(observer.polls(4500), ["own", "other"]);
        observer
    }
}

#[test]
fn what_stands_still_is_read_at_the_moment_at_which_that_is_enough() {
    let mut observer = Observer::just_before_it_is_enough();
    observer.ends("own", 4500, 4501);
    observer.ends("other", 4500, 4501);
    assert!(observer.polls(4502).is_empty());
    assert_eq!(observer.polls(4503), ["own", "other"]);
}

#[test]
fn it_is_read_again_at_once_where_a_slow_reading_was_issued_too_early() {
    for order in [["own", "other"], ["other", "own"]] {
        let mut observer = Observer::just_before_it_is_enough();
        observer.ends(order[0], 4500, 4510);
        assert!(
            observer.polls(4510).is_empty(),
            "{order:?}: one without the other"
        );
        observer.ends(order[1], 4500, 4511);
        assert_eq!(observer.polls(4511), ["own", "other"], "{order:?}");
        observer.ends(order[0], 4511, 4520);
        observer.ends(order[1], 4511, 4521);
        assert!(observer.polls(4521).is_empty(), "{order:?}: once is enough");
        assert_eq!(observer.polls(5011), ["own", "other"], "{order:?}");
    }
}

#[test]
fn it_is_read_again_where_it_was_read_while_the_own_heartbeat_was_on_its_way() {
    let mut observer = Observer::just_before_it_is_enough();
    observer.ends("other", 4500, 4501);
    assert_eq!(observer.polls(5000), ["other"], "the own one is slow");
    observer.ends("other", 5000, 5002);
    observer.ends("own", 4500, 5003);
    assert_eq!(observer.polls(5003), ["own", "other"]);
    observer.ends("own", 5003, 5004);
    observer.ends("other", 5003, 5004);
    assert!(observer.polls(5004).is_empty());
}

#[test]
fn what_is_proven_stays_so_while_the_next_readings_are_on_their_way() {
    let mut observer = Observer::just_before_it_is_enough();
    for host in ["own", "other"] {
        observer.ends(host, 4500, 4501);
    }
    observer.polls(4503);
    let proven = |observer: &Observer| {
        let (other, r#break) = (
            HostId::new("host-2").expect("id"),
            observer.agent.constants().1,
        );
        let proof = observer
            .agent
            .window_proof(&datastore(), &other, observer.at(10), r#break);
        proof.map(|length| length.as_millis())
    };
    observer.ends("other", 4503, 4504);
    proven(&observer).expect_err("the own heartbeat has not been read back at its end");
    observer.ends("own", 4503, 4505);
    assert_eq!(proven(&observer), Ok(4501));
    // The next readings: the one is there before the other.
    observer.polls(5003);
    observer.ends("other", 5003, 5004);
    assert_eq!(proven(&observer), Ok(4501));
    observer.ends("own", 5003, 5005);
    assert_eq!(proven(&observer), Ok(5001));
    // Where the own heartbeat is not read back for longer, nothing is proven any more.
    for poll in [5503, 6003] {
        observer.polls(poll);
        observer.ends("other", poll, poll + 1);
    }
    proven(&observer).expect_err("two readings without the own heartbeat");
}

#[test]
fn what_cannot_be_read_hurries_nobody() {
    let mut observer = Observer::just_before_it_is_enough();
    let fails = StorageOutcome::Unknown(IoFault::TimedOut);
    let other = HostId::new("host-2").expect("id");
    observer.agent.now = observer.at(4510);
    let issued = observer.at(4500);
    observer
        .agent
        .on_observed(&datastore(), &other, issued, &fails);
    observer.ends("own", 4500, 4511);
    assert!(observer.polls(4511).is_empty());
    assert_eq!(observer.polls(5000), ["own", "other"]);
}
