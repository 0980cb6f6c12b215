//! What an agent reads beside messages and records: datagrams, its own state, the control socket, the guard's
//! events.

use crate::wire::{changed, sound};
use crate::{CLUSTER, wire};
use mainstay_agent::config::ClusterKey;
use mainstay_agent::control::{Answer, EventLine, InForce, Leaving, Pong, Readiness, Request};
use mainstay_agent::decoders::{self, Judged, Receiver};
use mainstay_core::config::ClusterConfig;
use mainstay_core::id::HostId;
use mainstay_core::status::{Explanation, Status};
use mainstay_core::time::Instant;
use mainstay_core::{drill, wire as core_wire};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// The key of the receiver, and of whoever signs.
pub(crate) const KEY: [u8; 32] = [7; 32];

pub(crate) fn host(n: u8) -> HostId {
    HostId::new(&format!("host-{n}")).expect("an id")
}

/// The agent of `host-1`, whose peers are `host-2` and `host-3`.
pub(crate) fn receiver() -> Receiver {
    let peers = [host(2), host(3)].into_iter();
    Receiver::new(&ClusterKey::new(KEY), CLUSTER, host(1), peers).expect("random numbers")
}

/// A datagram without its signature: as it comes, signed, and signed by somebody who knows the receiver's nonce.
pub(crate) fn datagram(bytes: &[u8]) -> bool {
    let Some(again) = decoders::datagram(bytes) else {
        let answer = receiver().open(Instant::ZERO, bytes);
        assert!(matches!(answer, Judged::Dropped(_)), "{answer:?}");
        return false;
    };
    assert_eq!(again, bytes, "each byte of a datagram means something");
    let mut agent = receiver();
    for forged in [bytes.to_vec(), agent.signed(bytes)] {
        match agent.open(Instant::ZERO, &forged) {
            Judged::Message { .. } => panic!("it cannot know the nonce"),
            Judged::Answer(answer) => {
                let answer = decoders::datagram(Receiver::unsigned(&answer)).expect("a datagram");
                assert!(
                    answer.len() <= bytes.len() + 256,
                    "an answer amplifies nothing"
                );
            }
            Judged::Dropped(kind) => assert!(!kind.is_empty()),
        }
    }
    let Some(addressed) = agent.addressed(bytes) else {
        return true;
    };
    if let Judged::Message { from, payload } = agent.open(Instant::ZERO, &addressed) {
        assert!(from == host(2) || from == host(3));
        assert!(bytes.ends_with(&payload));
        wire::message(&payload);
    }
    let twice = agent.open(Instant::ZERO, &addressed);
    assert!(!matches!(twice, Judged::Message { .. }), "{twice:?}");
    true
}

/// The cookie of the ping that is answered here.
pub(crate) const COOKIE: [u8; 16] = *b"a cookie of ours";

/// What comes back after a ping, and the kernel's tables of routes, which say where to.
pub(crate) fn ping(bytes: &[u8]) -> bool {
    let holds_it = bytes.windows(COOKIE.len()).any(|part| part == COOKIE);
    let mut decoded = false;
    for (v4, icmp) in [(true, true), (false, true), (true, false)] {
        let answered = decoders::is_ping_answer(bytes, v4, icmp, &COOKIE);
        assert!(holds_it || !answered, "nobody else knows the cookie");
        decoded |= answered;
    }
    if let Ok(table) = std::str::from_utf8(bytes) {
        let found = decoders::gateways(table);
        assert!(found.len() <= 2 * table.lines().count());
        assert!(found.iter().all(|interface| interface == "eth0"));
        decoded |= !found.is_empty();
    }
    decoded
}

/// Bytes of a kept file before its body: magic and checksum.
const KEPT_HEAD: usize = 12;

/// The agent's state and the configuration, as they are kept on local disk: as they are, and with a checksum that
/// fits.
pub(crate) fn state(bytes: &[u8]) -> bool {
    let sealed = bytes.split_at_checked(KEPT_HEAD).and_then(|(head, body)| {
        let magic = head.get(..8)?;
        Some([magic, &crc32fast::hash(body).to_le_bytes(), body].concat())
    });
    let mut decoded = false;
    for bytes in [Some(bytes.to_vec()), sealed].into_iter().flatten() {
        if let Some(state) = decoders::state(&bytes) {
            decoded = true;
            let again = decoders::state_file(&state).expect("encoded");
            assert_eq!(decoders::state(&again), Some(state));
        }
        if let Some(config) = decoders::kept_config(&bytes) {
            decoded = true;
            sound(&config);
            let again = decoders::kept_config_file(&config).expect("encoded");
            assert_eq!(decoders::kept_config(&again), Some(config));
        }
    }
    decoded
}

/// Lines of the control socket: requests as an agent reads them, answers as the command line does.
pub(crate) fn control(bytes: &[u8]) -> bool {
    let mut decoded = false;
    for line in bytes.split(|byte| *byte == b'\n') {
        match decoders::request(line) {
            Ok(request) => {
                decoded = true;
                let again = serde_json::to_vec(&request).expect("encoded");
                if let Request::Change { changes } = &request {
                    changed(changes);
                }
                assert_eq!(decoders::request(&again), Ok(request));
            }
            Err(why) => assert!(why.contains("send one line")),
        }
        decoded |= answer(line);
    }
    decoded
}

fn answer(line: &[u8]) -> bool {
    let answers = [
        json::<Answer<Status>>(line),
        json::<Answer<Explanation>>(line),
        json::<Answer<ClusterConfig>>(line),
        json::<Answer<InForce>>(line),
        json::<Answer<EventLine>>(line),
        json::<Answer<Pong>>(line),
        json::<Answer<Leaving>>(line),
        json::<Answer<Readiness>>(line),
        json::<Answer<drill::Answer>>(line),
        json::<Answer<drill::Progress>>(line),
    ];
    answers.contains(&true)
}

/// What is read from JSON is written as JSON that reads the same.
pub(crate) fn json<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<T>(bytes) else {
        return false;
    };
    let again = serde_json::to_vec(&value).expect("encoded");
    assert!(again.len() <= core_wire::RECORD_MAX_BYTES);
    let again = serde_json::from_slice::<T>(&again).expect("what was written");
    assert_eq!(again, value);
    true
}

/// The lines that a guard has written.
pub(crate) fn guard_events(bytes: &[u8]) -> bool {
    let (events, whole) = decoders::guard_events(bytes);
    let whole = usize::try_from(whole).expect("no longer than the bytes");
    let read = bytes.get(..whole).expect("no longer than the bytes");
    assert!(read.is_empty() || read.ends_with(b"\n"));
    assert!(!bytes.get(whole..).unwrap_or_default().contains(&b'\n'));
    let lines = read.split(|byte| *byte == b'\n').filter(|l| !l.is_empty());
    assert!(events.len() <= lines.count());
    for event in &events {
        let line = serde_json::to_vec(event).expect("encoded");
        let line = [line.as_slice(), b"\n"].concat();
        let (again, _) = decoders::guard_events(&line);
        assert_eq!(again, std::slice::from_ref(event));
    }
    !events.is_empty()
}
